"""The choice among the shapes of batches that an artifact was compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import InputSpec, Variant


def variant_of(variants: Sequence[Variant], values: Sequence[Any]) -> Variant:
    """The variant whose inputs have the shapes of ``values``; the only one is left to check them itself.

    Raises:
        FqtError: FQT505 with the shapes that there are.
    """
    if len(variants) == 1:
        return variants[0]
    shapes = [_shape(value) for value in values]
    for variant in variants:
        if shapes == [spec.shape for spec in variant.inputs]:
            return variant
    raise _refused([v.inputs for v in variants], shapes, "")


def variants_for_samples(variants: Sequence[Variant], values: Sequence[Any]) -> list[Variant]:
    """The variants whose samples have the shapes of those in ``values``, the largest batch first.

    Raises:
        FqtError: FQT505 with the shapes that there are, where there are several.
    """
    shapes = [_shape(value) for value in values]
    rest = [shape[1:] for shape in shapes]
    found = [v for v in variants if rest == [spec.shape[1:] for spec in v.model_inputs]]
    if not found and len(variants) > 1:
        raise _refused([v.model_inputs for v in variants], shapes, ", of any number of samples")
    return sorted(found or variants, key=lambda variant: -variant.batch)


def batch_sizes(variants: Sequence[Variant], samples: int) -> list[int]:
    """The sizes of the batches that ``samples`` samples are trained in: of the first variant, then of smaller ones.

    Samples that are left when no batch is small enough are not trained.
    """
    first, *others = sizes_of_samples(variants)
    planned: list[int] = []
    for size in [first, *sorted((size for size in others if size < first), reverse=True)]:
        planned += [size] * ((samples - sum(planned)) // size)
    return planned


def sizes_of_samples(variants: Sequence[Variant]) -> list[int]:
    """The batch of the first variant, then those of the others that take samples of the same shapes."""
    rest = [spec.shape[1:] for spec in variants[0].inputs]
    return [v.batch for v in variants if rest == [spec.shape[1:] for spec in v.inputs]]


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(int(extent) for extent in getattr(value, "shape", ()))


def _refused(variants: Sequence[Sequence[InputSpec]], shapes: Sequence[tuple[int, ...]], more: str) -> FqtError:
    given = ", ".join(f"{spec.name} is {list(shape)}" for spec, shape in zip(variants[0], shapes, strict=True))
    known = "; ".join(", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs) for specs in variants)
    return FqtError(
        f"{given}; the step is compiled for {known}{more}",
        code="FQT505",
        hint="compile again with this shape too: --batch, or a list of example inputs",
    )
