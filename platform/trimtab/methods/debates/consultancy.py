"""Consultancy: one adviser argues for one answer, whether it is right or not (Khan et al. 2024)."""

from __future__ import annotations

from typing import ClassVar, Literal

from trimtab.methods.debates._base import DebateProtocol, Transcript


class Consultancy(DebateProtocol):
    """One speaker, for the answer that comes first in the order: with a drawn order, half of them for a wrong one.

    The papers let a judge answer the adviser; here the adviser goes on alone.
    """

    kind: Literal["consultancy"] = "consultancy"
    part: ClassVar[str] = "consult"

    def beats(self) -> tuple[tuple[int, ...], ...]:
        """The adviser, again and again."""
        return ((0,),) * self.turns

    def name(self, transcript: Transcript, speaker: int) -> str:
        return self.wording.adviser.format(answer=transcript.named(speaker))
