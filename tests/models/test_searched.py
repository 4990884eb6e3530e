"""Searches side by side: each is what it is alone, and its choice is the best of what the base draws alone."""

from __future__ import annotations

import pytest
from tests.decoding import tiny_llama

from trimtab.alignment import Sampling
from trimtab.errors import ModelError
from trimtab.lm import row_seed
from trimtab.methods.searches.best_of_n import BestOfN
from trimtab.methods.searches.chunk_beam import ChunkBeam
from trimtab.models.decode import Decoder
from trimtab.models.language import LanguageModel
from trimtab.models.llama import LlamaStepper
from trimtab.models.searched import SearchedLM

pytestmark = pytest.mark.slow

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [4], [2, 2]]
ENDS = frozenset({0})
DRAWN = Sampling(max_new_tokens=9)


@pytest.fixture(scope="module")
def models():
    return [tiny_llama(0), tiny_llama(1, layers=1), tiny_llama(2, layers=1)]


def searching(models, search) -> SearchedLM:
    decoders = [Decoder([LlamaStepper(model, 4, 100)], ends=[ENDS], vocabulary=50) for model in models]
    return SearchedLM(search, decoders[0], decoders[1:])


def total(model, prompt: list[int], ids: list[int]) -> float:
    return sum(LanguageModel(model, ends=ENDS, batch=1).score([prompt], [ids])[0].logprobs)


def test_the_best_of_n_is_the_likeliest_by_the_ratio_of_its_helpers(models):
    found = searching(models, BestOfN(n=4)).generate(PROMPTS, DRAWN, [3] * 5)
    alone = LanguageModel(models[0], ends=ENDS, batch=4)
    for prompt, one in zip(PROMPTS, found, strict=True):
        seeds = [row_seed(3, "0", i) for i in range(4)]
        drawn = alone.generate([prompt] * 4, DRAWN, seeds)
        best = max(drawn, key=lambda other: total(models[1], prompt, other.ids) - total(models[2], prompt, other.ids))
        assert (one.ids, one.ended) == (best.ids, best.ended)
        assert one.logprobs == pytest.approx(best.logprobs, abs=1e-4)


def test_beside_others_or_alone_it_is_the_same(models):
    beam = searching(models[:2], ChunkBeam(width=2, samples=2, chunk=4))
    together = beam.generate(PROMPTS, DRAWN, list(range(5)))
    for i, prompt in enumerate(PROMPTS):
        assert beam.generate([prompt], DRAWN, [i])[0].ids == together[i].ids


def test_what_is_wrong_with_one_is_raised_and_the_next_are_answered(models):
    best = searching(models[:2], BestOfN(n=2))
    with pytest.raises(ModelError, match="101 tokens"):
        best.generate([[1] * 101, [4]], DRAWN, [0, 1])
    assert len(best.generate([[4]], DRAWN, [1])[0].ids) > 0
