"""A session that changes to another compiled step in the course of training; all state goes along."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.training import Array


class ScheduledSession:
    """Sessions of one network and optimizer that follow each other, for the same number of steps each.

    Args:
        sessions: the sessions in order.
        steps: number of steps of the whole training.
    """

    def __init__(self, sessions: Sequence[Any], steps: int) -> None:
        self._sessions = sessions
        self._ends = [steps * (i + 1) // len(sessions) for i in range(len(sessions) - 1)]
        self._session = sessions[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    @property
    def lr(self) -> Any:
        """Learning rate of the next steps."""
        return self._session.lr

    @lr.setter
    def lr(self, value: Any) -> None:
        self._session.lr = value

    @property
    def seed(self) -> int:
        """Seed of the random streams."""
        seed: int = self._session.seed
        return seed

    @seed.setter
    def seed(self, value: int) -> None:
        for session in self._sessions:
            session.seed = value

    def step(self, x: Array, y: Array) -> float:
        """Run one step of the session whose turn it is, and return its loss."""
        due = self._sessions[sum(self._session.step_count >= end for end in self._ends)]
        if due is not self._session:
            with tempfile.TemporaryDirectory() as folder:
                self._session.save_checkpoint(Path(folder) / "state.safetensors")
                due.load_checkpoint(Path(folder) / "state.safetensors")
            self._session = due
        loss: float = self._session.step(x, y)
        return loss

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Set the state of the session whose turn it is."""
        self._session.load_state_dict(values)

    def load_checkpoint(self, path: Path | str) -> dict[str, str]:
        """Go back to a checkpoint, whichever session wrote it."""
        metadata: dict[str, str] = self._session.load_checkpoint(path)
        return metadata
