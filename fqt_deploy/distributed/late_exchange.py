"""Exchange behind backward, for processes on one machine that compute on all of its cores.

Between machines a message takes time on the wire, which backward hides. Within one machine it takes processor time
alone: threads that move bytes while every core computes interrupt kernels, and what these have in their caches is lost.
"""

from __future__ import annotations

from typing import Any

from fqt_deploy.runtime.exchange import Exchange


class LateExchange:
    """Another exchange, whose gradients leave when the first of them is awaited: when backward has ended.

    Args:
        exchange: what sums up the gradients.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._noted: list[tuple[int, Any]] = []

    def begin(self, seed: int, step: int) -> None:
        """Begin step ``step``, and forget what an earlier one that failed has left."""
        self._noted.clear()
        self._exchange.begin(seed, step)

    def share(self, number: Any) -> None:
        """Replace ``number`` by 1 / number of processes."""
        self._exchange.share(number)

    def start(self, index: int, gradient: Any) -> None:
        """Note ``gradient``."""
        self._noted.append((index, gradient))

    def finish(self, index: int) -> None:
        """Send what was noted, in order, and wait until gradient ``index`` is the sum."""
        noted, self._noted = self._noted, []
        for number, gradient in noted:
            self._exchange.start(number, gradient)
        self._exchange.finish(index)
