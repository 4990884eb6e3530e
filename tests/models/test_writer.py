"""A model as a writer: windows are its greedy text, and all first tokens at once are what each is alone."""

from __future__ import annotations

from itertools import accumulate

import pytest
from tests.decoding import letters, tiny_llama

from trimtab.alignment import Sampling
from trimtab.methods.guides._nudging import Piece, joined
from trimtab.methods.guides.nudging import Nudging
from trimtab.models.asked import Asked, Told
from trimtab.models.decode import Decoder
from trimtab.models.language import LanguageModel
from trimtab.models.llama import LlamaStepper
from trimtab.models.writer import LocalWriter

pytestmark = pytest.mark.slow

WORDS = ("bread", "door", "river", "cup", "house")


class Counted:
    """A decoder that is asked one thing after the other, and what it was asked."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.asked = decoder, []

    def __call__(self, asked: Asked) -> list[Told]:
        self.asked.append(asked)
        self.decoder.add(asked)
        told: list[Told] = []
        while self.decoder.busy:
            told += self.decoder.step()
        return told


@pytest.fixture(scope="module")
def tokenizer():
    return letters(WORDS)


def writer(tokenizer, seed: int) -> tuple[LocalWriter, LanguageModel, Counted]:
    model = tiny_llama(seed, vocabulary=len(tokenizer))
    ask = Counted(Decoder([LlamaStepper(model, 2, 120)], ends=[frozenset({0})], vocabulary=len(tokenizer)))
    prompt = tokenizer("Say: ")["input_ids"]
    return LocalWriter(ask, tokenizer, prompt, frozenset({0})), LanguageModel(model, ends=frozenset({0}), batch=4), ask


def test_a_window_is_the_model_s_greedy_text(tokenizer):
    ours, alone, _ = writer(tokenizer, 0)
    for text in ("", "bread door"):
        ids = tokenizer("Say: ")["input_ids"] + (tokenizer(text)["input_ids"] if text else [])
        expected = alone.generate([ids], Sampling(max_new_tokens=8, temperature=0), [0])[0]
        window = ours.write(text, 8)
        assert window.stopped == expected.ended
        kept = expected.ids[:-1] if expected.ended else expected.ids
        assert len(window.tokens) == len(kept)
        assert joined(window.tokens) == tokenizer.decode(ids + kept)[len(tokenizer.decode(ids)) :]


def test_one_reading_tells_what_each_would_tell_alone(tokenizer):
    ours, _, ask = writer(tokenizer, 1)
    words = ["bread", " door", " river", " cup"]
    together = list(ours.first_tokens("house ", words))
    assert len(ask.asked) == 1
    for found, begun in zip(together, accumulate(words), strict=True):
        window = ours.write("house " + begun, 1)
        if window.stopped:
            assert found is None
        else:
            assert found.text == window.tokens[0].text
            assert found.probability == pytest.approx(window.tokens[0].probability, abs=1e-4)


def test_where_words_are_no_places_between_tokens_each_is_read_alone(tokenizer):
    ours, _, ask = writer(tokenizer, 1)
    assert len(list(ours.first_tokens("", ["br", "ead"]))) == 2
    assert len(ask.asked) == 2


def test_two_models_write_one_answer(tokenizer):
    base, nudger = writer(tokenizer, 0)[0], writer(tokenizer, 1)[0]
    *pieces, end = Nudging(gamma=0.05)(base, nudger, most=30)
    assert pieces
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert sum(len(piece.tokens) for piece in pieces) <= 30
    assert end.answer in "".join(piece.text for piece in pieces)
