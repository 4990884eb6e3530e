"""Rows on their way into a model, without a model."""

from __future__ import annotations

import math

import torch

from trimtab.training.rows import Labelled, collate, watched


def test_ids_are_padded_on_the_left_and_keep_their_places():
    rows = Labelled(["a", "b"], [torch.tensor([5, 6, 7]), torch.tensor([8])], torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
    batch = collate([rows[1], rows[0]])
    assert batch["input_ids"].tolist() == [[0, 0, 8], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert batch["row"].tolist() == [1, 0]
    assert torch.equal(batch["weak"], torch.tensor([[0.2, 0.8], [0.9, 0.1]]))


def test_states_go_in_as_embeddings():
    rows = Labelled(["a", "b"], [torch.ones(2, 3), torch.ones(1, 3)], torch.tensor([[1.0, 0.0]] * 2))
    batch = collate([rows[0], rows[1]])
    assert "input_ids" not in batch
    assert batch["inputs_embeds"].sum(-1).tolist() == [[3, 3], [0, 3]]


def test_watched_rows_give_agreement_and_cross_entropy():
    logits, weak = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([[0.6, 0.4], [1.0, 0.0]])
    found = watched(logits, weak)
    assert found["agreement"] == 0.5
    assert math.isclose(found["cross_entropy"], (math.log(2) + math.log(4)) / 2, rel_tol=1e-6)
