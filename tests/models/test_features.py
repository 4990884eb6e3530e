"""States of a frozen network: what they are, and stored and read by row id."""

from __future__ import annotations

import pytest
import torch

from trimtab.errors import DataError
from trimtab.models.features import States, batches_by_length, compute_states, encode, left_padded, write_states
from trimtab.parts import FeatureSpec


def test_rows_are_padded_on_the_left():
    padded, mask = left_padded([torch.tensor([1, 2, 3]), torch.tensor([4])])
    assert padded.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    states, _ = left_padded([torch.ones(2, 5), torch.ones(1, 5)])
    assert states.sum(-1).tolist() == [[5, 5], [0, 5]]


def test_batches_are_of_like_lengths_the_longest_first():
    batches = batches_by_length([3, 9, 1, 7, 5], 2)
    assert batches == [[1, 3], [4, 0], [2]]
    assert batches_by_length([], 2) == []


def test_states_are_read_by_row_id_from_all_parts(tmp_path):
    states = {"a": torch.ones(2, 3), "b": torch.full((1, 3), 2.0), "c": torch.full((4, 3), 3.0)}
    write_states(tmp_path, ["c", "a"], [states["c"], states["a"]], part=0)
    write_states(tmp_path, ["b"], [states["b"]], part=1)
    write_states(tmp_path, [], [], part=2)
    stored = States(tmp_path)
    for row_id, found in zip("abc", stored.rows(["a", "b", "c"]), strict=True):
        assert torch.equal(found, states[row_id])
    with pytest.raises(DataError, match="has no states of 1 rows, x the first"):
        stored.rows(["a", "x"])


def test_states_of_one_vector_a_row_are_a_matrix_in_float32(tmp_path):
    write_states(tmp_path, ["a", "b"], [torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([3.0, 4.0]).bfloat16()])
    matrix = States(tmp_path).matrix(["b", "a", "b"])
    assert matrix.dtype == torch.float32
    assert matrix.tolist() == [[3, 4], [1, 2], [3, 4]]


@pytest.mark.slow
class TestOnANetwork:
    @pytest.fixture
    def rows(self, tiny):
        from trimtab.models.network import load_tokenizer

        return encode(load_tokenizer(tiny.model), ["warm", "cold harsh road", "dim dim stone cup cup door"], 16)

    def states(self, tiny, tmp_path, rows, *, batch=2, **fields):
        from trimtab.models.network import load_network

        spec = FeatureSpec(model=tiny.spec().model, **fields)
        return compute_states(load_network(spec.model, tmp_path), rows, spec, batch=batch, tick=lambda *_: None)

    def test_they_are_the_last_layer_s_output_before_the_norm(self, tiny, tmp_path, rows):
        from trimtab.models.network import load_network

        model = load_network(tiny.spec().model, tmp_path).eval()
        found = self.states(tiny, tmp_path, rows, keep="tokens")
        for ids, state in zip(rows, found, strict=True):
            with torch.inference_mode():
                normed = model(input_ids=ids[None]).last_hidden_state[0]
                assert (model.norm(state) - normed).abs().max() < 1e-4

    def test_pooling_takes_the_last_token_or_the_mean(self, tiny, tmp_path, rows):
        tokens = self.states(tiny, tmp_path, rows, keep="tokens")
        last, mean = (self.states(tiny, tmp_path, rows, pool=pool) for pool in ("last", "mean"))
        for all_of, one, other in zip(tokens, last, mean, strict=True):
            assert torch.equal(one, all_of[-1])
            assert (other - all_of.mean(0)).abs().max() < 1e-6

    def test_neighbours_in_a_batch_change_nothing(self, tiny, tmp_path, rows):
        for left, right in zip(*(self.states(tiny, tmp_path, rows, batch=b) for b in (1, 3)), strict=True):
            assert (left - right).abs().max() < 1e-5

    def test_trailing_padding_is_cut_and_an_empty_text_is_one_token(self, tiny):
        from trimtab.models.network import load_tokenizer

        tokenizer = load_tokenizer(tiny.model)
        pad = tokenizer.pad_token_id
        found = encode(tokenizer, ["warm [PAD] [PAD]", "", "[PAD] cold", "warm cold dim"], 2)
        assert [len(row) for row in found] == [1, 1, 2, 2]
        assert found[1].tolist() == [pad]
        assert found[2][0] == pad
