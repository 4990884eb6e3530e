"""Rows on their way into a model, and what is measured on rows that are only watched."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from trimtab.models.features import left_padded


@dataclass(frozen=True)
class Labelled(Dataset):
    """Rows by id: tokens ids_T, states_TD of a frozen trunk, or one state_D each, with probabilities_C."""

    ids: list[str]
    rows: list[Tensor] | Tensor
    weak_NC: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> tuple[int, Tensor, Tensor]:
        return i, self.rows[i], self.weak_NC[i]


def collate(items: list[tuple[int, Tensor, Tensor]]) -> dict[str, Tensor]:
    """A padded batch of ids_BT or states_BTD, with the labels and each row's place in its data set."""
    rows, mask_BT = left_padded([row for _, row, _ in items])
    name = "input_ids" if rows.ndim == 2 else "inputs_embeds"
    weak_BC = torch.stack([weak for _, _, weak in items])
    return {name: rows, "attention_mask": mask_BT, "weak": weak_BC, "row": torch.tensor([i for i, _, _ in items])}


def watched(logits_NC: Tensor, weak_NC: Tensor) -> dict[str, float]:
    """How often the model says what the labels say, and its cross-entropy on them."""
    same_N = logits_NC.argmax(-1) == weak_NC.argmax(-1)
    loss_N = -(weak_NC * logits_NC.float().log_softmax(-1)).sum(-1)
    return {"agreement": same_N.float().mean().item(), "cross_entropy": loss_N.mean().item()}
