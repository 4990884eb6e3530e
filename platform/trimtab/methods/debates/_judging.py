"""How a judge is asked about a transcript, and what it makes of both orders of the answers (Khan et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.methods.debates._base import Case, Message
from trimtab.methods.debates._wording import Wording


@dataclass(frozen=True)
class Verdict:
    """P(listed first) when the answers are listed in their order, and when they are swapped."""

    given: float
    swapped: float

    @property
    def probabilities(self) -> tuple[float, float]:
        """P of each answer of the case: the mean over both orders, in which a liking for a place cancels."""
        first = (self.given + 1 - self.swapped) / 2
        return first, 1 - first

    @property
    def place_bias(self) -> float:
        """How much likelier the judge finds an answer for being listed first, -1 to 1."""
        return self.given + self.swapped - 1

    @property
    def turns_with_order(self) -> bool:
        """Whether the judge names another answer when they are swapped."""
        return (self.given > 0.5) == (self.swapped > 0.5)


def judge_messages(wording: Wording, case: Case, transcript: str, *, swapped: bool) -> list[Message]:
    """What a judge reads: the question, both answers in one order, and what was said, if anything was."""
    first, second = case.answers[::-1] if swapped else case.answers
    asked = wording.judge.format(question=case.question, first=first, second=second, transcript=transcript)
    return [{"role": "user", "content": asked.strip()}]


def row_text(wording: Wording, case: Case, transcript: str, answer: int) -> str:
    """What a classifier reads of one answer: is it right?"""
    return wording.row.format(question=case.question, transcript=transcript, answer=case.answers[answer])
