"""Whether this machine can run an artifact's code: an instruction that it lacks would end the process."""

from __future__ import annotations

import re
from pathlib import Path

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest

CPUINFO = Path("/proc/cpuinfo")


def check_processor(manifest: Manifest, cpuinfo: Path = CPUINFO) -> None:
    """FQT402 if the processor lacks instructions that the step was compiled for.

    Args:
        manifest: its target's ``requires`` are names of the kernel's processor flags, separated by spaces.
        cpuinfo: where the kernel lists them; nothing is checked where that file does not exist.
    """
    required = manifest.target.get("requires", "").split()
    if not required or not cpuinfo.is_file():
        return
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    present = set(found[1].split()) if found else set()
    if missing := [flag for flag in required if flag not in present]:
        raise FqtError(
            f"{manifest.name} is compiled for {manifest.target['mcpu']}; this machine lacks {', '.join(missing)}",
            code="FQT402",
            hint="compile it for this machine, or with a lower --mcpu such as x86-64-v3",
        )
