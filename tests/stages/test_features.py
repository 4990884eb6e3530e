"""Stage features: states of every row, found again by id."""

from __future__ import annotations

import pytest

from trimtab.errors import ModelError
from trimtab.models.features import States, encode
from trimtab.models.network import load_tokenizer
from trimtab.parts import FeatureSpec
from trimtab.stages.features import features

pytestmark = pytest.mark.slow


def made(tiny, out, **fields):
    return features(FeatureSpec(model=tiny.spec().model, **fields), out, compute=tiny.compute(), rows=tiny.test)


def test_a_state_a_token_as_long_as_the_row(tiny, tmp_path):
    found = made(tiny, tmp_path, keep="tokens", without_top=1, max_length=6)
    table = tiny.table(tiny.test)
    lengths = [len(row) for row in encode(load_tokenizer(tiny.model), [row["text"] for row in table], 6)]
    states = States(tmp_path).rows([row["id"] for row in table])
    assert [len(state) for state in states] == lengths
    assert max(lengths) == 6
    assert found == {"rows": 40, "tokens": sum(lengths)}


def test_one_state_a_row(tiny, tmp_path):
    made(tiny, tmp_path)
    ids = [row["id"] for row in tiny.table(tiny.test)]
    assert States(tmp_path).matrix(ids[::-1]).shape == (40, 32)


def test_some_layer_must_be_left(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"layers 0 to 3; asked to keep \[\]"):
        made(tiny, tmp_path, without_top=4)
