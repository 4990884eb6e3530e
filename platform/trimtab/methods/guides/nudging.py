"""Nudging (Fei et al. 2024, arXiv 2410.09300): a small aligned model puts in words where a large base is unsure.

As the authors' code has it: the nudger's first word is always taken, the base goes on at the first later word where its
token begins that word or has probability gamma; where there is none the nudger's last word, maybe cut off, is dropped.
Only the nudger ends the answer.
Departures: the limit counts tokens written and is kept exactly, where the code counts GPT-3.5's tokens between windows;
a base that stopped is not asked once more; the longest repeated ending is cut off, which the code's bisection can miss.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from itertools import pairwise, takewhile
from typing import ClassVar, Literal

from pydantic import Field

from trimtab.methods.guides._base import Guide
from trimtab.methods.guides._nudging import Draft, End, Piece, Reason, Why, Writer, cut, joined
from trimtab.ranges import Ranges, Uniform

WORD = re.compile(" (?=[^ ])")
"""Where a word starts, with the space before it."""
LONG = 30
"""Characters from which on an ending that repeats what stands before it is cut off."""
SAME = 3
"""Repeats of a nudge that end the answer."""


class Nudging(Guide):
    """Fei et al. 2024: the base writes while max p >= gamma, the nudger writes the words in between."""

    ranges: ClassVar[Ranges] = {"gamma": Uniform(uniform=(0.2, 0.5))}
    kind: Literal["nudging"] = "nudging"
    gamma: float = Field(0.4, ge=0, le=1, description="the base's top-1 probability from which on it is sure")
    window: int = Field(16, ge=1, le=256, description="tokens written at once")
    max_rounds: int = Field(150, ge=1, le=1000, description="nudges at most")

    @property
    def helpers(self) -> tuple[int, int | None]:
        """The nudger."""
        return 1, 1

    def __call__(self, base: Writer, nudger: Writer, *, most: int) -> Iterator[Piece | End]:
        """The answer's pieces, each as soon as it is final, of at most `most` tokens in all; then its end."""
        draft = Draft(most)
        reason = yield from self._pieces(draft, base, nudger)
        yield End(reason, trimmed(draft.text))

    def _pieces(self, draft: Draft, base: Writer, nudger: Writer) -> Generator[Piece, None, Reason]:
        last, repeats = "", 0
        for _ in range(self.max_rounds):
            if not draft.left:
                return "length"
            window = nudger.write(draft.text, self.window)
            if window.stopped:
                fits = len(window.tokens) <= draft.left
                yield from draft.add(window.tokens, "nudger", "ending")
                return "nudging_model_stop" if fits else "length"
            nudge, why = self._nudge(draft.text, joined(window.tokens), base)
            repeats = repeats + 1 if nudge == last else 0
            if repeats == SAME:
                return "repeated_nudging_words"
            last = nudge
            yield from draft.add(cut(window.tokens, len(nudge)), "nudger", "nudge")
            if why and draft.left:
                yield from self._go_on(draft, base, why)
        return "rounds"

    def _nudge(self, text: str, window: str, base: Writer) -> tuple[str, Why | None]:
        """The nudger's words up to where the base goes on, and why it does; None where it does not."""
        body = window.lstrip(" ")
        starts = [found.start() for found in WORD.finditer(window, len(window) - len(body))]
        words = [window[a:b] for a, b in pairwise([0, *starts, len(window)])]
        tokens = base.first_tokens(text, words[:-1]) if starts else iter(())
        for start, word, token in zip(starts, words[1:], tokens, strict=True):
            if token is None:
                return window[:start], None
            if word.rstrip(" ").startswith(token.text):
                return window[:start], "agreed"
            if token.probability >= self.gamma:
                return window[:start], "sure"
        return window.rpartition(" ")[0] if " " in body else window, None

    def _go_on(self, draft: Draft, base: Writer, why: Why) -> Iterator[Piece]:
        """What the base writes until it is unsure, stops or repeats itself; its first token is taken as it is."""
        window = base.write(draft.text, self.window)
        first, rest, wrote = window.tokens[:1], window.tokens[1:], joined(window.tokens[:1])
        while True:
            sure = tuple(takewhile(lambda token: token.probability >= self.gamma, rest))
            if joined(rest) in wrote or said(joined(sure), draft.text + joined(first)):
                sure = ()
            yield from draft.add(first + sure, "base", why)
            if not sure or len(sure) < len(rest) or window.stopped or not draft.left:
                return
            wrote += joined(sure)
            window = base.write(draft.text, self.window)
            first, rest, why = (), window.tokens, "sure"


def said(new: str, text: str) -> bool:
    """Whether more than five words stand in the text already."""
    return len(new.split(" ")) > 5 and new in text


def trimmed(answer: str) -> str:
    """The answer without space around it, and without long endings that repeat what stands right before them."""
    answer = answer.strip()
    while again := next((n for n in range(len(answer) // 2, LONG - 1, -1) if answer[:-n].endswith(answer[-n:])), 0):
        answer = answer[:-again]
    return answer
