"""An ensemble as a language model: the base alone is LanguageModel, the fused one is the sum that it says it is."""

from __future__ import annotations

import pytest
import torch
from tests.decoding import Sum, tiny_llama

from trimtab.alignment import Sampling
from trimtab.errors import ModelError
from trimtab.models.decode import Decoder
from trimtab.models.guided import GuidedLM, check_vocabulary
from trimtab.models.language import LanguageModel
from trimtab.models.llama import LlamaStepper

pytestmark = pytest.mark.slow

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [4], [2, 2]]
ENDS = frozenset({0})


@pytest.fixture(scope="module")
def models():
    return [tiny_llama(0), tiny_llama(1, layers=1)]


def guided(models, guide) -> GuidedLM:
    steppers = [LlamaStepper(model, 3, 100) for model in models]
    return GuidedLM(Decoder(steppers, ends=[ENDS] * len(models), vocabulary=50), guide)


def test_without_a_guide_it_is_the_base(models):
    alone = LanguageModel(models[0], ends=ENDS, batch=4)
    ours = guided(models, None)
    for sampling in (Sampling(max_new_tokens=12), Sampling(max_new_tokens=5, temperature=0.7, top_k=9, top_p=0.8)):
        expected = alone.generate(PROMPTS, sampling, list(range(5)))
        found = ours.generate(PROMPTS, sampling, list(range(5)))
        assert [one.ids for one in found] == [one.ids for one in expected]
        assert [one.ended for one in found] == [one.ended for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    torch.testing.assert_close(ours.next_logprobs(PROMPTS), alone.next_logprobs(PROMPTS), atol=1e-4, rtol=1e-4)


def test_scores_and_draws_are_of_the_fused_distribution(models):
    both = [LanguageModel(model, ends=ENDS, batch=4) for model in models]
    ours = guided(models, Sum(alpha=1.5))
    base, helper = (lm.next_logprobs(PROMPTS) for lm in both)
    torch.testing.assert_close(ours.next_logprobs(PROMPTS), (base + 1.5 * helper).log_softmax(-1), atol=1e-4, rtol=1e-4)
    drawn = ours.generate(PROMPTS, Sampling(max_new_tokens=7), list(range(5)))
    scored = ours.score([*PROMPTS, [1]], [*(one.ids for one in drawn), []])
    assert scored[-1].ids == []
    for one, score in zip(drawn, scored, strict=False):
        assert (score.ids, score.logprobs) == (one.ids, pytest.approx(one.logprobs, abs=1e-4))


def test_other_vocabularies_are_refused_by_what_they_hold(tiny):
    from trimtab.models.network import load_tokenizer

    own, other = load_tokenizer(tiny.model), load_tokenizer(tiny.model)
    check_vocabulary("base", own, "helper", other)
    other.add_tokens(["brand-new"])
    with pytest.raises(
        ModelError, match=r"helper has another vocabulary than base .*'brand-new' is the first.*nudging"
    ):
        check_vocabulary("base", own, "helper", other)
