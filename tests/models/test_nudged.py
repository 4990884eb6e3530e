"""Nudged answers side by side: each is what base and nudger write alone, and its log-probs are the base's."""

from __future__ import annotations

import pytest
from tests.decoding import letters, tiny_llama

from trimtab.alignment import Sampling
from trimtab.methods.guides._nudging import Piece
from trimtab.methods.guides.nudging import Nudging
from trimtab.models.decode import Decoder
from trimtab.models.language import LanguageModel
from trimtab.models.llama import LlamaStepper
from trimtab.models.nudged import NudgedLM
from trimtab.models.writer import LocalWriter

pytestmark = pytest.mark.slow

WORDS = ("bread", "door", "river", "cup", "house")
ENDS = frozenset({0})


@pytest.fixture(scope="module")
def tokenizer():
    return letters(WORDS)


@pytest.fixture(scope="module")
def models(tokenizer):
    return [tiny_llama(seed, vocabulary=len(tokenizer)) for seed in (0, 1)]


def nudging(models, tokenizer, gamma: float) -> NudgedLM:
    decoders = [Decoder([LlamaStepper(one, 4, 120)], ends=[ENDS], vocabulary=len(tokenizer)) for one in models]
    return NudgedLM(Nudging(gamma=gamma, window=4), decoders, tokenizer)


@pytest.mark.parametrize("gamma", [0.0, 0.05, 1.0])
def test_side_by_side_each_is_what_the_two_write_alone(models, tokenizer, gamma):
    lm = nudging(models, tokenizer, gamma)
    prompts = [tokenizer(word + " ")["input_ids"] for word in (*WORDS, WORDS[0])]
    found = lm.generate(prompts, Sampling(max_new_tokens=9), [0] * len(prompts))
    assert found[0] == found[-1]
    base = LanguageModel(models[0], ends=ENDS, batch=4)
    for prompt, one in zip(prompts, found, strict=True):
        text = "".join(piece.text for piece in alone(lm, prompt) if isinstance(piece, Piece))
        ids = tokenizer(text)["input_ids"] + [0] * one.ended
        assert one.ids == ids
        assert one.logprobs == pytest.approx(base.score([prompt], [ids])[0].logprobs, abs=1e-4)


def alone(lm: NudgedLM, prompt: list[int]) -> list:
    def asking(decoder):
        def ask(asked):
            decoder.add(asked)
            told = []
            while decoder.busy:
                told += decoder.step()
            return told

        return ask

    writers = [LocalWriter(asking(one), lm.tokenizer, prompt, ENDS) for one in lm.together.decoders]
    return list(lm.guide(*writers, most=9))
