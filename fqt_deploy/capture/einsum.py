"""``torch.einsum`` of a tensor and a weight as the product of a linear layer: PyTorch multiplies a batch of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def einsum(*args: Any, **kwargs: Any) -> Tensor:
    """``torch.einsum``: by ``torch.tensordot`` where two operands meet in sums alone, which makes rows times a matrix.

    Attention, and all else that has an axis of both operands in the result, is left as it is.
    """
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    sums = _sums(equation, operands) if isinstance(equation, str) and len(operands) == 2 and not kwargs else None
    if sums is None:
        return torch.einsum(*args, **kwargs)
    first, second, result = sums
    if result and result[0] in second:  # rows are of the operand that the result begins with
        (first, second), operands = (second, first), operands[::-1]
    summed = [letter for letter in first if letter in second]
    product: Tensor = torch.tensordot(
        operands[0], operands[1], dims=([first.index(x) for x in summed], [second.index(x) for x in summed])
    )
    found = [letter for letter in first + second if letter not in summed]
    return product if found == list(result) else product.permute([found.index(letter) for letter in result])


def _sums(equation: str, operands: list[Tensor]) -> tuple[str, str, str] | None:
    """The letters of both operands and of the result, if each is in two of the three; None for other equations."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    given = terms.split(",")
    if len(given) != 2 or any(
        len(term.replace("...", "")) > operand.dim() for term, operand in zip(given, operands, strict=True)
    ):
        return None  # which PyTorch refuses
    spare = [letter for letter in _LETTERS if letter not in equation]
    if "..." in given[0] and "..." in given[1]:
        return None
    for place, operand in enumerate(operands):
        dots = "".join(spare[: operand.dim() - len(given[place].replace("...", ""))])
        if "..." in given[place]:
            given[place], result = given[place].replace("...", dots), result.replace("...", dots)
        elif dots:
            return None
    if not arrow:
        return None
    first, second = given
    once = all(len(set(term)) == len(term) for term in (first, second, result))
    known = set(first + second) >= set(result)
    in_two = all((x in first) + (x in second) + (x in result) == 2 for x in {*first, *second})
    met = any(x in second for x in first)
    return (first, second, result) if once and known and in_two and met and "." not in first + second + result else None
