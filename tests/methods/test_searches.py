"""Searches against exhaustive enumeration, and with a model that draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from pydantic import ValidationError

from trimtab.alignment import Sampling
from trimtab.lm import Generated, ScriptedLM
from trimtab.methods.searches._base import Response, Round, Search
from trimtab.methods.searches.best_of_n import BestOfN
from trimtab.methods.searches.chunk_beam import ChunkBeam

A, B, C, END = range(4)
TOKENS = (A, B, C, END)


def lm(table: dict[tuple[int, ...], Sequence[float]]) -> ScriptedLM:
    logs = {key: [math.log(p) if p else -math.inf for p in probs] for key, probs in table.items()}
    return ScriptedLM.from_table(logs, end_ids=frozenset({END}))


BASE = lm({(): [0.4, 0.3, 0.2, 0.1], (A,): [0.1, 0.5, 0.2, 0.2], (A, B): [0.3, 0.1, 0.3, 0.3]})
TUNED = lm(
    {(): [0.2, 0.35, 0.3, 0.15], (B,): [0.4, 0.1, 0.1, 0.4], (B, A): [0.1, 0.1, 0.7, 0.1], (C,): [0.7, 0.1, 0.1, 0.1]}
)
UNTUNED = lm({(): [0.3, 0.25, 0.35, 0.1], (A,): [0.3, 0.3, 0.2, 0.2], (C, A): [0.05, 0.05, 0.1, 0.8]})


class Drawing:
    """A Sampler: continues responses with a language model."""

    def __init__(self, model: ScriptedLM = BASE) -> None:
        self.model = model
        self.seeds: list[int] = []
        self.asked: list[tuple[int, int]] = []

    def __call__(self, responses: Sequence[tuple[int, ...]], most: int, seeds: Sequence[int]) -> list[Generated]:
        self.seeds += seeds
        self.asked.append((len(responses), most))
        return self.model.generate([list(ids) for ids in responses], Sampling(max_new_tokens=most), list(seeds))


class Listing:
    """A Sampler that gives the copies of a response each of its continuations in turn, then the worst of them."""

    def __call__(self, responses: Sequence[tuple[int, ...]], most: int, seeds: Sequence[int]) -> list[Generated]:
        turn: dict[tuple[int, ...], int] = {}
        ways = sorted({cut for way in itertools.product(TOKENS, repeat=most) if (cut := ended(way))})
        given = []
        for ids in responses:
            turn[ids] = turn.get(ids, -1) + 1
            way = ways[turn[ids]] if turn[ids] < len(ways) else min(ways, key=lambda way: ratio(ids + way))
            given.append(Generated(list(way), [0.0] * len(way), way[-1] == END))
        return given


def ended(way: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens up to the first end."""
    return way[: way.index(END) + 1] if END in way else way


class Ratio:
    """A Scorer: log p_tuned - log p_untuned of the whole response."""

    def __init__(self) -> None:
        self.seen: list[Response] = []

    def __call__(self, responses: Sequence[Response]) -> list[float]:
        self.seen += responses
        return [ratio(response.ids) for response in responses]


def ratio(ids: tuple[int, ...]) -> float:
    tuned, untuned = (model.score([[]], [list(ids)])[0].logprobs for model in (TUNED, UNTUNED))
    return sum(tuned) - sum(untuned)


def every(most: int) -> list[tuple[int, ...]]:
    """All responses of at most so many tokens that ended or are cut by the limit."""
    return sorted({ended(way) for way in itertools.product(TOKENS, repeat=most)})


def last(search: Search, sampler: Drawing | Listing, *, most: int, seed: int = 0) -> Round:
    *_, final = search(sampler, Ratio(), most=most, seed=seed)
    return final


def answer(search: Search, sampler: Drawing | Listing, *, most: int, seed: int = 0) -> tuple[int, ...]:
    return last(search, sampler, most=most, seed=seed).kept[0].response.ids


def naive_beam(width: int, chunk: int, most: int) -> tuple[int, ...]:
    """The beam over all continuations, written plainly."""
    beam: list[tuple[int, ...]] = [()]
    while any(len(ids) < most and END not in ids for ids in beam):
        pool = [ids for ids in beam if END in ids]
        for ids in beam:
            if END not in ids:
                pool += [ids + way for way in every(min(chunk, most - len(ids)))]
        beam = sorted(pool, key=ratio, reverse=True)[:width]
    return beam[0]


def test_best_of_all_is_the_best_there_is() -> None:
    whole = every(3)
    best = answer(BestOfN(n=len(whole)), Listing(), most=3)
    assert best == max(whole, key=ratio)
    assert len(best) == 3


@pytest.mark.parametrize(("width", "chunk", "most"), [(1, 1, 4), (1, 2, 4), (2, 1, 4), (3, 1, 5), (2, 2, 5), (3, 2, 3)])
def test_chunk_beam_over_all_continuations_is_the_plain_beam(width: int, chunk: int, most: int) -> None:
    search = ChunkBeam(width=width, samples=len(every(chunk)), chunk=chunk)
    assert answer(search, Listing(), most=most) == naive_beam(width, chunk, most)


def test_a_wider_beam_finds_more() -> None:
    found = [answer(ChunkBeam(width=width, samples=4, chunk=1), Listing(), most=4) for width in (1, 16)]
    assert ratio(found[0]) < ratio(found[1]) == ratio(max(every(4), key=ratio))


def test_a_greedy_chunk_can_miss_what_a_longer_one_finds() -> None:
    short = answer(ChunkBeam(width=1, samples=4, chunk=1), Listing(), most=3)
    long = answer(ChunkBeam(width=1, samples=len(every(3)), chunk=3), Listing(), most=3)
    assert ratio(short) < ratio(long) == ratio(max(every(3), key=ratio))


def test_many_draws_find_the_best() -> None:
    assert answer(BestOfN(n=256), Drawing(), most=2) == max(every(2), key=ratio)


@pytest.mark.parametrize("seed", range(5))
def test_best_of_n_is_a_beam_of_one_with_one_chunk(seed: int) -> None:
    beam = last(ChunkBeam(width=1, samples=5, chunk=40), Drawing(), most=8, seed=seed)
    assert last(BestOfN(n=5), Drawing(), most=8, seed=seed).kept[0] == beam.kept[0]


def test_best_of_n_shows_all_with_their_scores() -> None:
    (only,) = BestOfN(n=6)(Drawing(), Ratio(), most=5, seed=0)
    assert len(only.kept) == 6
    assert only.ids == only.kept[0].response.ids
    assert [one.score for one in only.kept] == sorted((ratio(one.response.ids) for one in only.kept), reverse=True)


@pytest.mark.parametrize("search", [BestOfN(n=3), ChunkBeam(width=2, samples=2, chunk=2)])
def test_a_seed_settles_the_answer(search: Search) -> None:
    runs = [list(search(Drawing(), Ratio(), most=7, seed=seed)) for seed in (0, 0, 1, 2, 3)]
    assert runs[0] == runs[1]
    assert len({run[-1].kept[0].response.ids for run in runs}) > 1


@pytest.mark.parametrize("search", [BestOfN(n=8), ChunkBeam(width=3, samples=4, chunk=2)])
def test_every_draw_has_random_numbers_of_its_own(search: Search) -> None:
    sampler = Drawing()
    list(search(sampler, Ratio(), most=6, seed=0))
    assert len(set(sampler.seeds)) == len(sampler.seeds)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("width", [1, 2, 4])
def test_rounds_settle_what_all_kept_have_in_common(width: int, seed: int) -> None:
    settled: tuple[int, ...] = ()
    rounds = list(ChunkBeam(width=width, samples=3, chunk=2)(Drawing(), Ratio(), most=9, seed=seed))
    for one in rounds:
        settled += one.ids
        holds = one.kept[:1] if one is rounds[-1] else one.kept
        assert all(scored.response.ids[: len(settled)] == settled for scored in holds)
        assert len(one.kept) == width
        assert [scored.score for scored in one.kept] == sorted((s.score for s in one.kept), reverse=True)
        assert all(scored.score == ratio(scored.response.ids) for scored in one.kept)
    assert settled == rounds[-1].kept[0].response.ids


@pytest.mark.parametrize("seed", range(8))
def test_finished_responses_stay_once_and_are_not_continued(seed: int) -> None:
    sampler, scorer = Drawing(), Ratio()
    rounds = list(ChunkBeam(width=3, samples=2, chunk=2)(sampler, scorer, most=12, seed=seed))
    assert sampler.asked[0] == (6, 2)
    for before, (rows, _) in zip(rounds, sampler.asked[1:], strict=False):
        assert rows == 2 * sum(not one.response.ended for one in before.kept)
    assert len(scorer.seen) == sum(rows for rows, _ in sampler.asked)
    assert all(END not in response.ids[:-1] for response in scorer.seen)
    assert all(response.ended == (response.ids[-1] == END) for response in scorer.seen)
    assert all(one.response.ended for one in rounds[-1].kept) or sampler.asked[-1][1] * len(rounds) == 12


def test_the_search_ends_when_all_are_finished() -> None:
    brief = lm({(): [0.0, 0.0, 0.0, 1.0]})
    sampler = Drawing(brief)
    (only,) = ChunkBeam(width=2, samples=2, chunk=3)(sampler, Ratio(), most=50, seed=0)
    assert [one.response for one in only.kept] == [Response((END,), ended=True)] * 2
    assert sampler.asked == [(4, 3)]


def test_the_limit_is_kept() -> None:
    endless = lm({(): [0.5, 0.25, 0.25, 0.0]})
    sampler = Drawing(endless)
    final = last(ChunkBeam(width=2, samples=2, chunk=4), sampler, most=10)
    assert [most for _, most in sampler.asked] == [4, 4, 2]
    assert [(len(one.response.ids), one.response.ended) for one in final.kept] == [(10, False)] * 2


def test_fields_out_of_range() -> None:
    with pytest.raises(ValidationError, match="width x samples is 1024: keep it to 256"):
        ChunkBeam(width=32, samples=32)
    with pytest.raises(ValidationError, match="less than or equal to 256"):
        BestOfN(n=257)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        ChunkBeam(chunk=0)
