"""What a search works with: it draws continuations from a base and keeps those that score best as responses.

Token ids are the base's; a scorer with another tokenizer makes text of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from trimtab.errors import StageError
from trimtab.lm import Generated, row_seed
from trimtab.spec import Method


@dataclass(frozen=True)
class Response:
    """A response so far; where it `ended`, the last of its tokens is the end token."""

    ids: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class Scored:
    """A response and its score."""

    response: Response
    score: float


@dataclass(frozen=True)
class Round:
    """What a round settled: the tokens that all responses kept have in common and that no round gave before.

    `kept` has the best first. In the last round the best is the answer, and the tokens of all rounds are its own.
    """

    ids: tuple[int, ...]
    kept: tuple[Scored, ...]


class Sampler(Protocol):
    """Draws from the base, behind its prompt."""

    def __call__(self, responses: Sequence[tuple[int, ...]], most: int, seeds: Sequence[int]) -> list[Generated]:
        """A continuation of each by at most so many tokens, drawn with random numbers of its own seed."""
        ...


class Scorer(Protocol):
    """Scores whole responses so far, the higher the better."""

    def __call__(self, responses: Sequence[Response]) -> list[float]:
        """One score a response; that it ended may count only where it did."""
        ...


@dataclass(frozen=True)
class Ratio:
    """What a helper says more of a response than another: log p_tuned - log p_untuned; of one alone, its log p."""

    scorers: tuple[Scorer, ...]

    def __call__(self, responses: Sequence[Response]) -> list[float]:
        first, *second = (scorer(responses) for scorer in self.scorers)
        return [a - b for a, b in zip(first, second[0], strict=True)] if second else first


class Search(Method):
    """A choice among responses drawn from a base, scored by one helper, or by a tuned and an untuned one."""

    def check(self, models: int) -> None:
        """Raises StageError where there are other helpers."""
        if models not in (2, 3):
            raise StageError(f"{self.kind} takes 1 or 2 helpers beside the base, but there are {models - 1}")

    @property
    def kl(self) -> float | None:
        """The distance of its responses to the base's, in nats a response; None where that is not known."""
        return None

    def __call__(self, sampler: Sampler, scorer: Scorer, *, most: int, seed: int) -> Iterator[Round]:
        """Rounds up to the last, of responses of at most `most` tokens; the same for the same seed."""
        raise TypeError(f"{type(self).__name__} does not search")


def grown(sampler: Sampler, scorer: Scorer, parents: Sequence[Response], *, most: int, seed: int) -> list[Scored]:
    """Each parent continued by at most so many tokens, and scored; name a parent several times for several."""
    seeds = [row_seed(seed, str(len(parent.ids)), i) for i, parent in enumerate(parents)]
    drawn = sampler([parent.ids for parent in parents], most, seeds)
    children = [Response((*parent.ids, *new.ids), new.ended) for parent, new in zip(parents, drawn, strict=True)]
    return [Scored(child, score) for child, score in zip(children, scorer(children), strict=True)]


def best(scored: Sequence[Scored], count: int) -> list[Scored]:
    """The highest scores, falling; of equals the earlier comes first."""
    return sorted(scored, key=lambda one: -one.score)[:count]


def common(scored: Sequence[Scored]) -> tuple[int, ...]:
    """The tokens that all begin with."""
    columns = zip(*(one.response.ids for one in scored), strict=False)
    return tuple(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))
