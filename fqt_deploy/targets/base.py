"""What a target is: a name, a TVM target, and an ordered list of schedule rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import tvm
from tvm import tirx

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
        toolchain: links the library, for the machine that is to load it.
    """

    name: str
    tvm_target: tvm.target.Target
    features: Any
    rules: tuple[ScheduleRule, ...]
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
