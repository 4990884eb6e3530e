"""What a debate is: a case, what is said of it, and a protocol that tells whose turn is next (Irving et al. 2018).

A protocol knows nothing of models. Whoever drives it asks what is to be said now, and by whom; has it said; and tells
the protocol, until nothing more is asked. A transcript that stopped anywhere can be taken up again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import Field

from trimtab.errors import StageError
from trimtab.methods.debates._said import Quote, said
from trimtab.methods.debates._wording import Worded, Wording
from trimtab.ranges import RandInt, Ranges, Uniform
from trimtab.spec import Method

Message = dict[str, str]
TOKENS_A_WORD = 1.5
NAMED = 12
"""Words of an answer by which speakers name it; in the case, and before a judge, it stands in full."""


@dataclass(frozen=True)
class Case:
    """A question, two answers, and a text that the speakers can quote, if there is one."""

    id: str
    question: str
    answers: tuple[str, str]
    source: str | None = None


@dataclass(frozen=True)
class Turn:
    """What a speaker said: the text that all see, its quotes marked, and the plan that nobody else sees."""

    speaker: int
    name: str
    round: int
    text: str
    plan: str = ""
    quotes: tuple[Quote, ...] = ()
    cut: bool = False
    """Whether more was said than the word limit lets stand."""


@dataclass(frozen=True)
class Transcript:
    """A case and what was said of it. Speaker i argues for answer `order[i]`."""

    case: Case
    order: tuple[int, int] = (0, 1)
    turns: tuple[Turn, ...] = ()

    def answer(self, speaker: int) -> str:
        return self.case.answers[self.order[speaker]]

    def named(self, speaker: int) -> str:
        """The answer in one short line: as it is, or the words with which it sets itself apart from the other."""
        words, others = self.answer(speaker).split(), self.answer(1 - speaker).split()
        shared = next((i for i, (a, b) in enumerate(zip(words, others, strict=False)) if a != b), len(others))
        start = min(shared, max(0, len(words) - NAMED)) if shared >= NAMED else 0
        before, after = "… " * (start > 0), " …" * (start + NAMED < len(words))
        return before + " ".join(words[start : start + NAMED]) + after


@dataclass(frozen=True)
class Ask:
    """A turn that is to be said now: by whom, the messages that the speaker sees, and the tokens it may take.

    `start` are words that the reply begins with; they belong to the text that the protocol is told.
    """

    speaker: int
    round: int
    messages: list[Message]
    max_tokens: int
    start: str = ""


class DebateProtocol(Worded, Method):
    """Who speaks when, how long, and in which words."""

    ranges: ClassVar[Ranges] = {"turns": RandInt(randint=(1, 4)), "temperature": Uniform(uniform=(0.4, 1))}
    turns: int = Field(3, ge=1, le=12, description="turns of each speaker")
    words: int = Field(
        100, ge=1, le=1000, description="words of a turn that stand, behind those it is given to begin with"
    )
    temperature: float = Field(0.7, ge=0)
    plan: int = Field(0, ge=0, le=1000, description="words of a plan before each turn that only its speaker sees")
    order: Literal["drawn", "given"] = Field("drawn", description="which answer is argued for first")

    part: ClassVar[str] = "debate"
    """Which opening and reply of the wording its speakers are given."""

    def beats(self) -> tuple[tuple[int, ...], ...]:
        """Who speaks, beat by beat; those of one beat do not hear one another."""
        raise TypeError(f"{type(self).__name__} has no speakers")

    @property
    def utterances(self) -> int:
        """Turns of all speakers together."""
        return sum(map(len, self.beats()))

    @property
    def max_tokens(self) -> int:
        """Tokens that a turn may take, its plan included."""
        return math.ceil(TOKENS_A_WORD * (self.words + self.plan)) + 8 * (self.plan > 0)

    def begin(self, case: Case, *, seed: int = 0) -> Transcript:
        """An empty transcript; which answer is argued for first hangs on the seed and the case's id alone."""
        turned = self.order == "drawn" and hashlib.blake2b(f"{seed}:order:{case.id}".encode()).digest()[0] % 2
        return Transcript(case, (1, 0) if turned else (0, 1))

    def asks(self, transcript: Transcript) -> tuple[Ask, ...]:
        """What is to be said next, by all speakers of the beat; nothing once the debate is over."""
        done, count = len(transcript.turns), 0
        rounds: dict[int, int] = {}
        for beat in self.beats():
            if count == done:
                return tuple(self._ask(transcript, speaker, rounds.get(speaker, 0)) for speaker in beat)
            count += len(beat)
            rounds |= {speaker: rounds.get(speaker, 0) + 1 for speaker in beat}
        return ()

    def told(self, transcript: Transcript, texts: Sequence[str]) -> Transcript:
        """The transcript after what was asked for was said. Raises StageError for other than one text an ask."""
        asked = self.asks(transcript)
        if len(texts) != len(asked) or not asked:
            raise StageError(f"{len(texts)} texts for {len(asked)} turns that were asked for")
        turns = tuple(self._turn(transcript, ask, text) for ask, text in zip(asked, texts, strict=True))
        return replace(transcript, turns=transcript.turns + turns)

    def name(self, transcript: Transcript, speaker: int) -> str:
        return self.wording.debater.format(number=speaker + 1, answer=transcript.named(speaker))

    def _turn(self, transcript: Transcript, ask: Ask, text: str) -> Turn:
        given = len(ask.start.split()) if text.startswith(ask.start) else 0
        public = said(text, words=self.words + given, source=transcript.case.source)
        name = self.name(transcript, ask.speaker)
        return Turn(ask.speaker, name, ask.round, public.text, public.plan, public.quotes, public.cut)

    def _ask(self, transcript: Transcript, speaker: int, round_: int) -> Ask:
        words: Wording = self.wording
        case = transcript.case
        common = words.case.format(
            question=case.question,
            first=transcript.answer(0),
            second=transcript.answer(1),
            source=words.source.format(source=case.source) if case.source else "",
            transcript=render(transcript, words),
        )
        instruction = getattr(words, f"{self.part}_{'reply' if transcript.turns else 'opening'}").format(
            number=speaker + 1, own=transcript.named(speaker), other=transcript.named(1 - speaker), words=self.words
        )
        instruction += words.quote if case.source else ""
        instruction += words.plan.format(plan=self.plan) if self.plan else ""
        start = "" if self.plan else getattr(words, f"{self.part}_start").format(own=transcript.named(speaker))
        return Ask(speaker, round_, [{"role": "user", "content": common + instruction}], self.max_tokens, start)


def render(transcript: Transcript, wording: Wording) -> str:
    """What all see of the turns so far, a line each."""
    return "".join(wording.turn.format(name=turn.name, text=turn.text) for turn in transcript.turns)
