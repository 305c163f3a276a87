"""What a compilation depends on besides the model and the options: versions, machine, environment, files."""

from __future__ import annotations

import os
import platform
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from fqt_deploy.core.user_cache import user_cache

UNIMPORTANT = frozenset({
    "PWD", "OLDPWD", "SHLVL", "_", "COLUMNS", "LINES", "TERM", "COLORTERM", "WINDOWID", "TTY", "DISPLAY",
    "PYTEST_CURRENT_TEST", "FQT_BUILD_CACHE", "FQT_KERNEL_CACHE",
    "FQT_NUM_THREADS", "TVM_NUM_THREADS", "TVM_BIND_THREADS", "TVM_THREAD_POOL_SPIN_COUNT", "OMP_NUM_THREADS",
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK",
    "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "TORCH_NCCL_ASYNC_ERROR_HANDLING",
})  # fmt: skip
"""Environment variables that differ from call to call and say nothing of the model, like those that begin as below;
those of threads are for the time when the step runs, and torchrun's for the exchange."""
UNIMPORTANT_STARTS = ("TORCHELASTIC_", "SSH_", "XDG_", "DBUS_", "TMUX", "STY", "LC_", "LS_", "VTE_")

_KERNEL_FILES = ("/proc/", "/sys/", "/dev/")

FileState = tuple[str, int, int]
"""A file by its path, its size in bytes and the time of its last change in nanoseconds."""


def surroundings() -> Iterator[str]:
    """Texts that say where a compilation runs, and how PyTorch is set there."""
    yield f"{sys.version} {platform.machine()} {platform.platform()}"
    yield _processor()
    yield from sorted(_installed())
    for name, value in sorted(os.environ.items()):
        if name not in UNIMPORTANT and not name.startswith(UNIMPORTANT_STARTS):
            yield f"{name}={value}"
    yield f"{torch.get_default_dtype()} {torch.get_default_device()} {torch.is_grad_enabled()}"
    yield f"{torch.are_deterministic_algorithms_enabled()} {torch.is_autocast_enabled('cpu')}"


def _processor() -> str:
    """Model and instruction sets of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    first = text.partition("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.startswith(("model name", "flags", "Features", "CPU ")))


def _installed() -> set[str]:
    """The names and versions of the installed packages, as their folders say."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    names = (name for folder in folders if os.path.isdir(folder) for name in os.listdir(folder))
    return {name for name in names if name.endswith((".dist-info", ".egg-info", ".egg-link", ".pth"))}


def loaded_files() -> set[str]:
    """The files of all modules that are loaded, but those of Python itself."""
    python = sysconfig.get_path("stdlib")
    inside = os.path.join(python, "site-packages")
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return {f for f in files if isinstance(f, str) and (not f.startswith(python) or f.startswith(inside))}


def file_states(paths: Iterable[str]) -> list[FileState]:
    """The files among ``paths`` that are there, without those of the kernel and of our own cache."""
    found = []
    for path in sorted(paths):
        if not path.startswith((*_KERNEL_FILES, str(user_cache()))) and (state := _state(path)) is not None:
            found.append(state)
    return found


def are_unchanged(states: Iterable[FileState]) -> bool:
    """Whether every file is as it was when ``states`` were taken."""
    return all(_state(path) == (path, size, changed) for path, size, changed in states)


def _state(path: str) -> FileState | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (path, status.st_size, status.st_mtime_ns) if os.path.isfile(path) else None
