"""The programs that link, run and inspect code for one kind of machine; each is Debian's."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from fqt_deploy.core.diagnostics import FqtError


@dataclass(frozen=True)
class Toolchain:
    """The tools to compile for and to run an architecture that is not this machine's.

    Attributes:
        arch: the architecture, as ``uname -m`` says it.
        triple: what compilers call it, with operating system and C library.
        wheel_platform: what PyPI calls it.
        emulator: runs its programs on this machine.
    """

    arch: str
    triple: str
    wheel_platform: str
    emulator: str

    @property
    def is_native(self) -> bool:
        """Whether this machine runs the code itself."""
        return self.arch == platform.machine()

    def compiler(self) -> str:
        """The C++ compiler; FQT302 naming the Debian package if it is missing."""
        name, package = ("g++", "g++") if self.is_native else (f"{self.triple}-g++", f"g++-{self.triple}")
        if shutil.which(name) is None:
            raise FqtError(
                f"the C++ compiler for {self.arch}, {name}, is missing",
                code="FQT302",
                hint=f"install it (Debian: apt install {package.replace('x86_64', 'x86-64')})",
            )
        return name

    def runner(self) -> tuple[str, ...]:
        """The command that runs a program of this architecture; FQT403 naming the Debian package if it is missing."""
        if self.is_native:
            return ()
        if shutil.which(self.emulator) is None:
            raise FqtError(
                f"this machine ({platform.machine()}) runs no {self.arch} programs: {self.emulator} is missing",
                code="FQT403",
                hint="install it (Debian: apt install qemu-user-static)",
            )
        # Debian's cross compilers bring the C library along, for the emulator to load.
        root = Path("/usr") / self.triple
        if not (root / "lib" / "libstdc++.so.6").exists():
            raise FqtError(
                f"{root} holds no C++ library for {self.arch} programs",
                code="FQT403",
                hint=f"install it (Debian: apt install g++-{self.triple.replace('x86_64', 'x86-64')})",
            )
        return (self.emulator, "-L", str(root))


TOOLCHAINS: dict[str, Toolchain] = {
    "aarch64": Toolchain("aarch64", "aarch64-linux-gnu", "manylinux_2_28_aarch64", "qemu-aarch64-static"),
    "x86_64": Toolchain("x86_64", "x86_64-linux-gnu", "manylinux_2_28_x86_64", "qemu-x86_64-static"),
}
"""The toolchains by architecture; programs for another one than this machine's are cross-compiled and emulated."""


def native_toolchain() -> Toolchain:
    """The toolchain of this machine; FQT403 if it is of an unknown architecture."""
    arch = platform.machine()
    if arch not in TOOLCHAINS:
        raise FqtError(
            f"machines of type {arch} are not supported", code="FQT403", hint=f"supported: {', '.join(TOOLCHAINS)}"
        )
    return TOOLCHAINS[arch]
