"""A model as a writer of text: greedy windows behind a prompt, and its first token behind every word of another's.

Prefixes that were read before are read from the slots, so a window costs its own tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from math import exp
from typing import TYPE_CHECKING

from trimtab.alignment import Sampling
from trimtab.methods.guides._nudging import Token, Window
from trimtab.models.asked import Asked, Told

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ask = Callable[[Asked], list[Told]]


class LocalWriter:
    """Writes with a model of this process; `ask` gives what a decoder of the model alone tells of a request."""

    def __init__(self, ask: Ask, tokenizer: PreTrainedTokenizerBase, prompt: list[int], ends: frozenset[int]) -> None:
        self.ask, self.tokenizer, self.prompt, self.ends = ask, tokenizer, prompt, ends

    def write(self, text: str, most: int) -> Window:
        """At most so many tokens that follow its prompt and this much of the answer; the end token is left off."""
        ids = self._ids(text)
        told = self.ask(Asked((ids,), Sampling(max_new_tokens=most, temperature=0), seed=0))
        stopped = told[-1].finish == "stop"
        kept = told[:-1] if stopped else told
        texts = self._texts(ids, [one.id for one in kept])
        return Window(
            tuple(Token(piece, exp(one.logprob)) for piece, one in zip(texts, kept, strict=True)), stopped=stopped
        )

    def first_tokens(self, text: str, words: Sequence[str]) -> Iterator[Token | None]:
        """The token that follows `text` and the first word, the first two words, and so on; None where it would end.

        One reading tells all of them where the whole is split into tokens as its parts are; else each is read alone.
        """
        whole = self._ids(text + "".join(words))
        parts = [self._ids(text + begun) for begun in accumulate(words)]
        if not all(whole[: len(part)] == part for part in parts):
            for part in parts:
                yield self._first(part, self.ask(Asked((part,), Sampling(max_new_tokens=1, temperature=0), seed=0))[0])
            return
        start = len(parts[0])
        asked = Asked(
            (whole[:start],), Sampling(max_new_tokens=1, temperature=0), 0, forced=tuple(whole[start:]), tell=1
        )
        told = self.ask(asked)
        for part in parts:
            yield self._first(part, told[len(part) - start])

    def _first(self, before: list[int], told: Told) -> Token | None:
        """The likeliest token at a place, whatever stands there."""
        token, logprob = told.likeliest[0] if told.likeliest else (told.id, told.logprob)
        return None if token in self.ends else Token(self._texts(before, [token])[0], exp(logprob))

    def _ids(self, text: str) -> list[int]:
        return self.prompt + list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else self.prompt

    def _texts(self, before: list[int], ids: list[int]) -> list[str]:
        """What each token adds to the text; a character of several tokens is the last one's."""
        known = before[-4:]
        done, texts = self.tokenizer.decode(known), []
        for n in range(1, len(ids) + 1):
            whole = self.tokenizer.decode(known + ids[:n])
            waits = whole.endswith("\N{REPLACEMENT CHARACTER}") and n < len(ids)
            texts.append("" if waits else whole[len(done) :])
            done = done if waits else whole
        return texts
