"""Self-critique: one model weighs both answers, then corrects itself (Saunders et al. 2022)."""

from __future__ import annotations

from typing import ClassVar, Literal

from trimtab.methods.debates._base import DebateProtocol, Transcript


class SelfCritique(DebateProtocol):
    """One speaker who is for no answer; every turn after the first looks for the weakest point of those before."""

    kind: Literal["self_critique"] = "self_critique"
    part: ClassVar[str] = "critique"

    def beats(self) -> tuple[tuple[int, ...], ...]:
        """The reviewer, again and again."""
        return ((0,),) * self.turns

    def name(self, transcript: Transcript, speaker: int) -> str:
        return self.wording.critic
