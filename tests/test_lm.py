"""How tokens are drawn: frequencies, filters, seeds; and a model made of a table."""

from __future__ import annotations

import math

import pytest
import torch

from trimtab.alignment import Sampling
from trimtab.lm import ScriptedLM, draw, row_seed, uniforms

A, B, C, END = range(4)
HALVES = [math.log(p) for p in (0.5, 0.25, 0.125, 0.125)]
TABLE = {(): HALVES, (C,): [-math.inf, -math.inf, 0.0, -math.inf], (A, B): [-math.inf, -math.inf, -math.inf, 0.0]}


@pytest.fixture
def model() -> ScriptedLM:
    return ScriptedLM.from_table(TABLE, end_ids=frozenset({END}))


def drawn(probs: list[float], sampling: Sampling, n: int = 20_000) -> torch.Tensor:
    """How often each token is drawn from these probabilities, over evenly spread uniform numbers."""
    uniform_B = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    ids_B = draw(torch.tensor(probs).log().expand(n, -1), sampling, uniform_B)
    return torch.bincount(ids_B, minlength=len(probs)) / n


PROBS = [0.05, 0.4, 0.0, 0.3, 0.15, 0.1]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, PROBS),
        ({"temperature": 0.5}, [p**2 for p in PROBS]),
        ({"temperature": 0.01}, [0, 1, 0, 0, 0, 0]),
        ({"top_k": 2}, [0, 0.4, 0, 0.3, 0, 0]),
        ({"top_k": 6}, PROBS),
        ({"top_p": 0.69}, [0, 0.4, 0, 0.3, 0, 0]),
        ({"top_p": 0.71}, [0, 0.4, 0, 0.3, 0.15, 0]),
        ({"top_p": 0.1}, [0, 1, 0, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.8}, [0, 0.4, 0, 0.3, 0, 0]),
        ({"temperature": 0}, [0, 1, 0, 0, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_they_should(fields, expected):
    wanted = torch.tensor(expected) / sum(expected)
    assert (drawn(PROBS, Sampling(**fields)) - wanted).abs().max() < 2e-4


def test_tokens_as_likely_as_the_last_one_kept_are_kept():
    assert drawn([0.2, 0.4, 0.2, 0.2], Sampling(top_k=2)).gt(0).all()
    assert drawn([0.2, 0.4, 0.2, 0.2], Sampling(top_p=0.5)).gt(0).all()


@pytest.mark.parametrize("vocabulary", [255, 256, 257, 5000])
def test_a_large_vocabulary_is_inverted_like_a_small_one(vocabulary):
    logprobs_BV = torch.randn(50, vocabulary, generator=torch.Generator().manual_seed(0)).mul(2).log_softmax(-1)
    uniform_B = uniforms([3], 50)[:, 0]
    expected = torch.searchsorted(logprobs_BV.double().exp().cumsum(-1), uniform_B[:, None], right=True)[:, 0]
    assert torch.equal(draw(logprobs_BV, Sampling(), uniform_B), expected)


def test_the_ends_of_the_unit_interval_give_tokens_that_can_be_drawn():
    logprobs_BV = torch.tensor([[0.0, 0.5, 0.5, 0.0] + [0.0] * 600]).log().expand(2, -1)
    assert draw(logprobs_BV, Sampling(), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 2]


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_the_nucleus_is_the_one_that_sorting_finds(top_p):
    """Rows from peaked to flat: some need 64 tokens, some 1024, some all."""
    sharpness = torch.tensor([8.0, 3.0, 1.0, 0.01])[:, None]
    logprobs_BV = (torch.randn(4, 3000, generator=torch.Generator().manual_seed(1)) * sharpness).log_softmax(-1)
    probs, order = logprobs_BV.double().exp().sort(-1, descending=True)
    size_B = (probs.cumsum(-1) < top_p).sum(-1) + 1
    for row, size in enumerate(size_B.tolist()):
        uniform_B = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
        ids = draw(logprobs_BV[row].expand(500, -1), Sampling(top_p=top_p), uniform_B)
        nucleus = order[row, :size]
        assert set(ids.tolist()) <= set(nucleus.tolist())
        assert (ids == nucleus[0]).double().mean() == pytest.approx(
            (probs[row, 0] / probs[row, :size].sum()).item(), abs=4e-3
        )


def test_a_row_that_is_no_number_still_gives_a_token():
    logprobs_BV = torch.tensor([[math.nan] * 5, [0.5, 0.1, 0.1, 0.1, 0.2]])
    for sampling in (Sampling(), Sampling(top_p=0.5), Sampling(top_k=2), Sampling(temperature=0.5)):
        assert 0 <= draw(logprobs_BV, sampling, torch.tensor([0.5, 0.5]))[0] < 5


def test_a_seed_is_one_row_and_sample():
    seeds = {row_seed(seed, row, sample) for seed in (0, 1) for row in ("a", "b", "1:a") for sample in (0, 1, 11)}
    assert len(seeds) == 18
    assert row_seed(7, "r1", 2) == 3037493316380085830
    assert torch.equal(uniforms([5, 9], 30)[:10, 1], uniforms([9], 10)[:, 0])


def test_the_table_answers_with_its_longest_ending(model):
    assert model.next_logprobs([[B, C], [C, A, B]]).exp().tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]
    assert model.score([[B]], [[A, B, END]])[0].logprobs == pytest.approx([math.log(0.5), math.log(0.25), 0.0])


def test_it_ends_where_an_end_token_is_drawn(model):
    seeds = [row_seed(0, str(i), 0) for i in range(400)]
    made = model.generate([[A]] * 400, Sampling(max_new_tokens=3), seeds)
    assert {g.ended for g in made} == {True, False}
    for g in made:
        assert g.ended == (g.ids[-1] == END)
        assert g.ended or len(g.ids) == 3
        assert END not in g.ids[:-1]
    assert sum(g.ids[0] == B for g in made) == pytest.approx(100, abs=30)
    assert all(g.ids == [B, END] for g in made if g.ids[0] == B)


def test_a_completion_depends_on_its_seed_alone(model):
    seeds = [row_seed(0, str(i), 0) for i in range(20)]
    prompts = [[A], [B], [A, A], [B, A]] * 5
    together = model.generate(prompts, Sampling(max_new_tokens=9), seeds)
    for i in (0, 7, 19):
        assert model.generate([prompts[i]], Sampling(max_new_tokens=9), [seeds[i]]) == [together[i]]


def test_log_probs_are_the_models_own_whatever_the_temperature(model):
    hot = Sampling(temperature=3.0, top_k=3, max_new_tokens=6)
    for g in model.generate([[A]] * 5, hot, [1, 2, 3, 4, 5]):
        assert model.score([[A]], [g.ids])[0].logprobs == g.logprobs


def test_nothing_asked_nothing_given(model):
    assert model.generate([], Sampling(), []) == model.score([], []) == []
