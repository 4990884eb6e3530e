"""Who writes in nudging, and what comes out. Only text crosses between the two, so their tokenizers may differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Speaker = Literal["base", "nudger"]
Why = Literal["nudge", "ending", "agreed", "sure"]
Reason = Literal["nudging_model_stop", "repeated_nudging_words", "length", "rounds"]


@dataclass(frozen=True)
class Token:
    """A token's text, and the probability that its writer gave it."""

    text: str
    probability: float


@dataclass(frozen=True)
class Window:
    """Tokens written in one go; `stopped`: the writer ended its answer after them."""

    tokens: tuple[Token, ...]
    stopped: bool


class Writer(Protocol):
    """A model that answers one prompt, which it holds in its own template, and always takes its likeliest token."""

    def write(self, text: str, most: int) -> Window:
        """At most so many tokens that follow its prompt and this much of the answer; the end token is left off."""
        ...

    def first_tokens(self, text: str, words: Sequence[str]) -> Iterator[Token | None]:
        """The token that follows `text` and the first word, the first two words, and so on; None where it would end.

        One forward pass may read them all; who must ask for each computes it when it is asked for.
        """
        ...


@dataclass(frozen=True)
class Piece:
    """Text that is final: a nudge, the nudger's `ending`, or tokens of the base.

    `why` the base goes on: its first token `agreed` with the nudger's next word, or it was `sure`.
    """

    tokens: tuple[Token, ...]
    speaker: Speaker
    why: Why

    @property
    def text(self) -> str:
        """The tokens, joined."""
        return joined(self.tokens)


@dataclass(frozen=True)
class End:
    """The last thing that comes: why it is over, and the answer, trimmed and without repetition at its end."""

    reason: Reason
    answer: str


@dataclass
class Draft:
    """The answer so far, and how many more tokens it may have."""

    left: int
    text: str = ""

    def add(self, tokens: Sequence[Token], speaker: Speaker, why: Why) -> Iterator[Piece]:
        """The piece that these tokens make, as far as there is room; none where there is nothing to add."""
        if kept := tuple(tokens[: self.left]):
            piece = Piece(kept, speaker, why)
            self.left -= len(kept)
            self.text += piece.text
            yield piece


def joined(tokens: Sequence[Token]) -> str:
    """Their text."""
    return "".join(token.text for token in tokens)


def cut(tokens: Sequence[Token], length: int) -> tuple[Token, ...]:
    """The tokens behind the first `length` characters, the last one shortened where they end inside it."""
    kept: list[Token] = []
    for token in tokens:
        if length <= 0:
            break
        kept.append(Token(token.text[:length], token.probability))
        length -= len(token.text)
    return tuple(kept)
