"""The processes that train one model together, as a session sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from fqt_deploy.runtime.exchange import Exchange

if TYPE_CHECKING:
    from fqt_deploy.runtime.library import Library

_MASK = 2**64 - 1
_STRIDE, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of splitmix64 (Steele, Lea and Flood, 2014)."""


class Group(Protocol):
    """Processes that run the same steps on different samples.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        stopping: whether this process wants training to end.
        stopped: whether one of them wanted it before the latest step.
    """

    rank: int
    size: int
    stopping: bool
    stopped: bool

    def exchange(self, wire: str, library: Library) -> Exchange:
        """Returns an exchange of gradients.

        Args:
            wire: the option ``distributed`` of the step.
            library: the step.
        """

    def check_same(self, what: str, digest: str) -> None:
        """FQT602 unless every process calls this with the same ``digest``; ``what`` names it."""

    def share_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Overwrite the arrays by those of process 0."""

    def share_text(self, text: str) -> str:
        """Returns the text of process 0."""

    def average(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Overwrite float arrays by their means over all processes."""

    def mean_loss(self, loss: float) -> float:
        """The mean of the loss over all processes; also settles ``stopped``."""


def rank_seed(seed: int, rank: int) -> int:
    """The seed that process ``rank`` draws its selections and rounding from; process 0 draws from ``seed`` itself.

    Args:
        seed: seed of the training, a signed 64-bit integer.
        rank: number of the process.

    Returns:
        A signed 64-bit integer.
    """
    if rank == 0:
        return seed
    mixed = mixed_seed(seed, rank)
    return mixed - 2**64 if mixed >= 2**63 else mixed


def mixed_seed(seed: int, number: int) -> int:
    """Seed ``number`` of those that follow from ``seed``, by splitmix64; an unsigned 64-bit integer."""
    mixed = (seed + (number + 1) * _STRIDE) & _MASK
    mixed = ((mixed ^ mixed >> 30) * _FIRST) & _MASK
    mixed = ((mixed ^ mixed >> 27) * _SECOND) & _MASK
    return mixed ^ mixed >> 31
