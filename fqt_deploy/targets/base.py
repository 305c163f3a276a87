"""A target: a name, a TVM target, and an ordered list of schedule rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import tvm
from tvm import tirx

from fqt_deploy.targets.toolchain import Toolchain, native_toolchain
from fqt_deploy.targets.tuning_log import Tile, TunedTile, kernel_signature, tiles_of


class ScheduleRule(Protocol):
    """Makes the kernels of some ops fast on one target.

    Attributes:
        ops: names of the root ops that the rule is asked about; empty for any.
    """

    ops: ClassVar[frozenset[str]]

    def apply(self, function: tirx.PrimFunc, features: Any) -> tirx.PrimFunc | None:
        """Returns the function scheduled, with ``tile`` where one is given, or None where the rule does not take it."""


@dataclass(frozen=True)
class TileChoice:
    """The choice of tiles that one kernel leaves open.

    Attributes:
        form: stable name of the way to compute the kernel, which the tuning log is keyed by.
        tiles: tiles worth measuring, the one that is taken where nothing was measured first.
    """

    form: str
    tiles: tuple[Tile, ...]


@runtime_checkable
class TunableRule(Protocol):
    """A schedule rule with tiles to choose from; whichever it is, the result is the same."""

    ops: ClassVar[frozenset[str]]

    def choice(self, function: tirx.PrimFunc, features: Any) -> TileChoice | None:
        """The form that ``apply`` gives the kernel, and its tiles; None where the rule does not take it."""

    def apply(self, function: tirx.PrimFunc, features: Any, tile: Tile | None = None) -> tirx.PrimFunc | None:
        """Returns the function scheduled, with ``tile`` where one is given, or None where the rule does not take it."""


@dataclass(frozen=True)
class Target:
    """One kind of device to compile for.

    Attributes:
        name: the name, as given to ``--target``.
        tvm_target: what TVM compiles for.
        features: what the schedule rules choose by.
        rules: schedule rules, asked in order; the last takes anything.
        separate_objects: kernels are code of the host alone, and may be compiled apart from each other.
        takes_weight_levels: a form of a product on bits may take weights of several bits whole.
        lowering: name under which TVM knows the passes that lower kernels.
        toolchain: links the library, for the machine that is to load it.
        tuned: tiles that were measured, by form and ``kernel_signature``.
    """

    name: str
    tvm_target: tvm.target.Target
    features: Any
    rules: tuple[ScheduleRule, ...]
    separate_objects: ClassVar[bool] = False
    takes_weight_levels: ClassVar[bool] = False
    lowering: ClassVar[str] = "default"
    toolchain: Toolchain = field(default_factory=native_toolchain)
    tuned: Mapping[tuple[str, str], Tile] = field(default_factory=dict)

    def schedule(self, function: tirx.PrimFunc) -> tirx.PrimFunc:
        """The first rule's result for a kernel's loop nests."""
        op = str(function.attrs["fqt.op"])
        kept = {name: function.attrs[name] for name in ("fqt.op", "global_symbol") if name in function.attrs}
        for rule in self._rules_for(op):
            if isinstance(rule, TunableRule):
                scheduled = rule.apply(function, self.features, self._measured(rule, function))
            else:
                scheduled = rule.apply(function, self.features)
            if scheduled is not None:
                return scheduled.with_attrs({**kept, "tirx.is_scheduled": True})
        raise AssertionError(f"target {self.name} has no rule that takes {op}")

    def tunable_rule(self, function: tirx.PrimFunc) -> tuple[TunableRule, TileChoice] | None:
        """The rule that takes ``function``, and what is to be chosen; None if the rule has no tiles."""
        for rule in self._rules_for(str(function.attrs["fqt.op"])):
            if isinstance(rule, TunableRule):
                choice = rule.choice(function, self.features)
                if choice is not None:
                    return rule, choice
            elif rule.apply(function, self.features) is not None:
                return None
        return None

    def _measured(self, rule: TunableRule, function: tirx.PrimFunc) -> Tile | None:
        """The tile that was fastest for ``function``, if it was measured."""
        choice = rule.choice(function, self.features) if self.tuned else None
        return None if choice is None else self.tuned.get((choice.form, kernel_signature(function)))

    def _rules_for(self, op: str) -> Iterator[ScheduleRule]:
        return (rule for rule in self.rules if not rule.ops or op in rule.ops)

    def compile(self, module: tvm.IRModule, relax_pipeline: Any) -> Any:
        """An executable of ``module``: its Relax functions lowered by ``relax_pipeline``, its kernels as they are."""
        with self.tvm_target:
            return tvm.compile(module, self.tvm_target, relax_pipeline=relax_pipeline, tir_pipeline=self.lowering)

    def with_tiles(self, tiles: Iterable[TunedTile]) -> Target:
        """The same, going by those of ``tiles`` that were measured on its processor, too."""
        processor = getattr(self.features, "mcpu", None)
        return self if processor is None else replace(self, tuned={**self.tuned, **tiles_of(processor, tiles)})

    def variant(self) -> Mapping[str, str]:
        """The facts about the code that the manifest adds to target and processor."""
        return {}

    def device(self) -> Any:
        """The TVM device of this machine that runs the target's code; FQT403 if there is none."""
        return tvm.cpu()

    def companions(self) -> Mapping[str, Path]:
        """The files that an artifact brings along for the device, by their paths there."""
        return {}

    def check_library(self, library: Path) -> None:
        """Raise an ``FqtError`` if the exported ``library`` lacks what the device runs."""
