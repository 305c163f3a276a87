"""What a target is: a name, a TVM target, and an ordered list of schedule rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import tvm
from tvm import tirx

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.targets.toolchain import Toolchain, native_toolchain


class ScheduleRule(Protocol):
    """Makes the kernels of some ops fast on one target.

    Attributes:
        ops: names of the root ops that the rule is asked about; empty for any.
    """

    ops: ClassVar[frozenset[str]]

    def apply(self, function: tirx.PrimFunc, features: Any) -> tirx.PrimFunc | None:
        """The scheduled function, or None: not mine."""


@dataclass(frozen=True)
class Target:
    """One kind of device to compile for.

    Attributes:
        name: as given to ``--target``.
        tvm_target: what TVM compiles for.
        features: what the schedule rules choose by.
        rules: asked in order; the last takes anything.
        separate_objects: kernels are code of the host alone, and may be compiled apart from each other.
        toolchain: links the library, for the machine that is to load it.
    """

    name: str
    tvm_target: tvm.target.Target
    features: Any
    rules: tuple[ScheduleRule, ...]
    separate_objects: ClassVar[bool] = False
    toolchain: Toolchain = field(default_factory=native_toolchain)

    def schedule(self, function: tirx.PrimFunc) -> tirx.PrimFunc:
        """The first rule's result for a kernel's loop nests."""
        op = str(function.attrs["fqt.op"])
        kept = {name: function.attrs[name] for name in ("fqt.op", "global_symbol") if name in function.attrs}
        for rule in self.rules:
            if rule.ops and op not in rule.ops:
                continue
            scheduled = rule.apply(function, self.features)
            if scheduled is not None:
                return scheduled.with_attrs({**kept, "tirx.is_scheduled": True})
        raise AssertionError(f"target {self.name} has no rule that takes {op}")

    def compile(self, module: tvm.IRModule, relax_pipeline: Any) -> Any:
        """An executable of ``module``: its Relax functions lowered by ``relax_pipeline``, its kernels as they are."""
        with self.tvm_target:
            return tvm.compile(module, self.tvm_target, relax_pipeline=relax_pipeline)

    def with_tf32(self) -> Target:
        """The same, rounding operands of fp32 products to TF32; FQT202 if the device has no such products."""
        raise FqtError(f"target {self.name} has no TF32", code="FQT202", hint="leave out --tf32: it is for GPUs")

    def variant(self) -> Mapping[str, str]:
        """What else the manifest says of the code than target and processor."""
        return {}

    def device(self) -> Any:
        """The TVM device of this machine that runs the target's code; FQT403 if there is none."""
        return tvm.cpu()

    def companions(self) -> Mapping[str, Path]:
        """What an artifact brings along for the device, by its path there, besides TVM's runtime library."""
        return {}

    def check_library(self, library: Path) -> None:
        """Raise an ``FqtError`` if the exported ``library`` lacks what the device runs."""
