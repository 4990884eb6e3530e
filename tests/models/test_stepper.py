"""Steppers against the network itself: the fast one and the general one, in every order of reading."""

from __future__ import annotations

import pytest
import torch
from tests.decoding import tiny_llama

from trimtab.errors import ModelError
from trimtab.models.llama import LlamaStepper, is_llama, linear, prepacks
from trimtab.models.stepper import AnyStepper

pytestmark = pytest.mark.slow

BOTH = pytest.mark.parametrize("kind", [LlamaStepper, AnyStepper])


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def truth(model, ids: list[int]) -> torch.Tensor:
    """logits_TV of the plain forward."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0]


@BOTH
def test_rows_of_any_lengths_read_on_as_if_alone(model, kind):
    stepper = kind(model, 4, 100)
    texts = {0: [1, 2, 3, 4, 5], 3: [9, 8], 1: [7]}
    for rows in ([(0, 2), (3, 1)], [(1, 1), (0, 1)], [(0, 2), (3, 1)]):
        asked = [(slot, texts[slot][len(stepper.held[slot]) :][:n]) for slot, n in rows]
        logits_BTV = stepper.read(asked)
        for (slot, _), logits_TV in zip(asked, logits_BTV, strict=True):
            torch.testing.assert_close(logits_TV[-1], truth(model, stepper.held[slot])[-1], atol=1e-4, rtol=1e-4)
    assert [stepper.held[slot] for slot in texts] == list(texts.values())


@BOTH
def test_every_position_that_is_wanted_is_told(model, kind):
    stepper = kind(model, 2, 100)
    stepper.read([(0, [1, 2]), (1, [3])])
    logits_BTV = stepper.read([(0, [4, 5, 6]), (1, [7, 8, 9, 10])], last=3)
    for slot in (0, 1):
        torch.testing.assert_close(logits_BTV[slot], truth(model, stepper.held[slot])[-3:], atol=1e-4, rtol=1e-4)


@BOTH
def test_what_is_taken_back_leaves_no_trace(model, kind):
    stepper = kind(model, 2, 100)
    stepper.read([(0, [1, 2, 3, 4, 5, 6])])
    stepper.rewind(0, 2)
    torch.testing.assert_close(stepper.read([(0, [9, 9])])[0, -1], truth(model, [1, 2, 9, 9])[-1], atol=1e-4, rtol=1e-4)
    stepper.rewind(0, 0)
    assert stepper.held[0] == []
    torch.testing.assert_close(stepper.read([(0, [5])])[0, -1], truth(model, [5])[-1], atol=1e-4, rtol=1e-4)


@BOTH
def test_a_slot_goes_on_from_anothers_beginning(model, kind):
    stepper = kind(model, 3, 100)
    stepper.read([(0, [1, 2, 3, 4])])
    stepper.copy(0, 2, 3)
    stepper.read([(0, [5])])
    torch.testing.assert_close(stepper.read([(2, [8])])[0, -1], truth(model, [1, 2, 3, 8])[-1], atol=1e-4, rtol=1e-4)
    assert (stepper.held[0], stepper.held[2]) == ([1, 2, 3, 4, 5], [1, 2, 3, 8])


def test_room_grows_with_what_is_read(model):
    stepper = LlamaStepper(model, 1, 128)
    ids = [i % 50 for i in range(120)]
    for start in range(0, 120, 30):
        found = stepper.read([(0, ids[start : start + 30])])
    torch.testing.assert_close(found[0, -1], truth(model, ids)[-1], atol=1e-4, rtol=1e-4)


def test_other_shapes_are_not_taken_for_llamas(model):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    other = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
    assert is_llama(model)
    assert not is_llama(other)
    stepper = AnyStepper(other, 2, 64)
    stepper.read([(1, [1, 2, 3])])
    stepper.rewind(1, 1)
    torch.testing.assert_close(stepper.read([(1, [4])])[0, -1], truth(other, [1, 4])[-1], atol=1e-4, rtol=1e-4)


def test_weights_laid_out_give_what_a_plain_product_gives():
    layers = [torch.nn.Linear(64, n, bias=bias).bfloat16() for n, bias in ((32, True), (16, False))]
    x = torch.randn(3, 2, 64).bfloat16()
    plain = torch.cat([layer(x) for layer in layers], -1)
    with torch.inference_mode():
        torch.testing.assert_close(linear(layers)(x), plain, atol=0.05, rtol=0.05)
    assert isinstance(prepacks(), bool)


def test_a_network_that_cannot_take_back_says_so(model):
    stepper = AnyStepper(model, 1, 100)
    stepper.read([(0, [1, 2, 3])])
    stepper._caches[0] = object()
    with pytest.raises(ModelError, match="cannot take back"):
        stepper.rewind(0, 1)
