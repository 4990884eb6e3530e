"""Debate with simultaneous turns: nobody has the advantage of the last word (Khan et al. 2024)."""

from __future__ import annotations

from typing import Literal

from trimtab.methods.debates._base import DebateProtocol


class Simultaneous(DebateProtocol):
    """Two debaters argue for opposite answers; in every round both know the rounds before it only."""

    kind: Literal["simultaneous"] = "simultaneous"

    def beats(self) -> tuple[tuple[int, ...], ...]:
        """Both at once, round after round."""
        return ((0, 1),) * self.turns
