"""Rows on their way into a model, in which order, and what is measured on rows that are only watched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

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


class WholeBatches(Sampler[int]):
    """A seeded shuffle of the rows for each epoch, cut to whole effective batches.

    So every optimiser step sees the same rows whatever the number of workers and the micro-batch.
    """

    def __init__(self, rows: int, *, batch_size: int, seed: int) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0
        self.used = rows // batch_size * batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.used

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.rows, generator=generator)[: self.used].tolist()


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
