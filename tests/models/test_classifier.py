"""A trained classifier answers the same from text and from stored states, in the order that was asked."""

from __future__ import annotations

import pytest
import torch

from trimtab.models.classifier import Classifier, Inputs
from trimtab.models.features import States

pytestmark = pytest.mark.slow

TUNES = {
    "top": {"kind": "top", "layers": 2},
    "probe, last": {"kind": "probe"},
    "probe, mean": {"kind": "probe", "pool": "mean"},
}


def trained(tiny, tune):
    spec = tiny.spec(tune=tune, learning_rate=0.01)
    return spec, tiny.trained(spec, features=tiny.states(spec, tiny.weak))


def answers(tiny, out, *, batch=7, states=None, order=None):
    table = tiny.table(tiny.test)
    rows = [table[i] for i in order or range(len(table))]
    classifier = Classifier(out, cache=tiny.compute().cache, batch=batch)
    return classifier.logits(Inputs([row["id"] for row in rows], [row["text"] for row in rows], states))


@pytest.mark.parametrize("tune", TUNES)
def test_text_and_stored_states_give_the_same_logits(tiny, tune):
    spec, out = trained(tiny, TUNES[tune])
    text = answers(tiny, out)
    states = answers(tiny, out, states=States(tiny.states(spec, tiny.test)))
    assert text.shape == (40, 2)
    assert text.std(0)[1] > 1e-3
    assert (text - states).abs().max() < 1e-5


@pytest.mark.parametrize("tune", ["top", "probe, last"])
def test_rows_come_back_in_the_order_given_whatever_the_batch(tiny, tune):
    _, out = trained(tiny, TUNES[tune])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    assert (answers(tiny, out, order=order, batch=64) - answers(tiny, out)[order]).abs().max() < 1e-5


def test_no_rows_give_no_logits(tiny):
    _, out = trained(tiny, TUNES["top"])
    assert Classifier(out, cache=tiny.compute().cache, batch=4).logits(Inputs([], [])).shape == (0, 0)
