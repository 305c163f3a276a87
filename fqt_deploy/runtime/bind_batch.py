"""The arrays of a batch by name, from what a caller passes: by position, by name, nested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import InputSpec

_CODE = "FQT505"


def bind_batch(
    specs: Sequence[InputSpec], values: Sequence[Any], named: Mapping[str, Any], *, ignored: Sequence[InputSpec] = ()
) -> list[Any]:
    """One value for each of ``specs``, in their order.

    What comes in a mapping or as a keyword goes by its name, nested ones by names with points between them. The others
    fill the inputs that are left, in order; tuples and lists are as many values as they hold. None is no value.

    Args:
        specs: the arrays that are wanted.
        values: what was passed by position.
        named: what was passed by keyword.
        ignored: arrays that may be passed by name as well, and are not needed.

    Raises:
        FqtError: FQT505 for what is missing, unknown or passed twice, with its name.
    """
    by_name: dict[str, Any] = {}
    in_order: list[Any] = []
    for name, value in _flattened((*values, dict(named))):
        if name is None:
            in_order.append(value)
        elif name in by_name:
            raise FqtError(f"{name} is passed twice", code=_CODE)
        else:
            by_name[name] = value
    known = [spec.name for spec in specs]
    for spec in ignored:
        by_name.pop(spec.name, None)
    if unknown := [name for name in by_name if name not in known]:
        raise FqtError(
            f"there is no input {', '.join(unknown)}; the inputs are {', '.join(known)}",
            code=_CODE,
            hint="leave it out, or compile the model with an example that has it",
        )
    free = [name for name in known if name not in by_name]
    if len(in_order) > len(free):
        raise FqtError(
            f"{len(in_order)} arrays are passed by position, and there are {len(free)} inputs"
            + (f" besides {', '.join(by_name)}" if by_name else ""),
            code=_CODE,
            hint=f"the inputs are {', '.join(known)}",
        )
    by_name |= dict(zip(free, in_order, strict=False))
    if missing := free[len(in_order) :]:
        raise FqtError(
            f"there is no value for {', '.join(missing)}", code=_CODE, hint=f"the inputs are {', '.join(known)}"
        )
    return [by_name[name] for name in known]


def _flattened(values: Sequence[Any], prefix: str | None = None) -> Iterator[tuple[str | None, Any]]:
    """The arrays in nested values, each with its name in mappings, None where it has none."""
    for place, value in enumerate(values):
        name = prefix if prefix is None else f"{prefix}.{place}"
        yield from _named(name, value)


def _named(name: str | None, value: Any) -> Iterator[tuple[str | None, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _named(str(key) if name is None else f"{name}.{key}", inner)
    elif isinstance(value, (tuple, list)) and not all(isinstance(inner, (int, float)) for inner in value):
        yield from _flattened(value, name)
    elif value is not None:
        yield name, value
