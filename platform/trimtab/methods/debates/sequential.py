"""Debate in turns: each debater answers what the other has just said (Irving et al. 2018; Lang et al. 2025)."""

from __future__ import annotations

from typing import Literal

from trimtab.methods.debates._base import DebateProtocol


class Sequential(DebateProtocol):
    """Two debaters argue for opposite answers, one after the other."""

    kind: Literal["sequential"] = "sequential"

    def beats(self) -> tuple[tuple[int, ...], ...]:
        """First, second, first, second, ..."""
        return ((0,), (1,)) * self.turns
