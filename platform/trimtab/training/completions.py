"""Completions on their way into a policy or a reward model: tokens, masks, and what frozen models say of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trimtab.data.rendering import Rendered


@dataclass(frozen=True)
class Shown:
    """Rows of K completions each (a pair, or one and a stranger), with what each frozen model gives every token.

    `p_N` is the probability that the first is the better one, or for single completions that it is good; `margin_N` by
    how much its score is higher.
    """

    ids: list[str]
    completions: list[tuple[Rendered, ...]]
    p_N: Tensor
    margin_N: Tensor
    frozen: dict[str, list[tuple[Tensor, ...]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, other: Shown) -> Shown:
        """The rows of both, the other's behind."""
        frozen = {name: values + other.frozen[name] for name, values in self.frozen.items()}
        p_N, margin_N = torch.cat([self.p_N, other.p_N]), torch.cat([self.margin_N, other.margin_N])
        return Shown(self.ids + other.ids, self.completions + other.completions, p_N, margin_N, frozen)


@dataclass(frozen=True)
class Collate:
    """Batches of rows by their places: ids and masks (B, K, T) padded on the right, frozen log-probs (B, K, T - 1)."""

    data: Shown
    pad: int

    def __call__(self, items: list[dict[str, int]]) -> dict[str, Tensor]:
        rows = [item["row"] for item in items]
        shown = [self.data.completions[i] for i in rows]
        longest = max(len(c.ids) for row in shown for c in row)
        batch = {
            "row": torch.tensor(rows),
            "p": self.data.p_N[rows],
            "margin": self.data.margin_N[rows],
            "input_ids": _stacked([[c.ids for c in row] for row in shown], longest, self.pad),
            "attention_mask": _stacked([[[1] * len(c.ids) for c in row] for row in shown], longest, 0),
            "completion_mask": _stacked([[c.mask for c in row] for row in shown], longest, 0),
        }
        for name, logps in self.data.frozen.items():
            placed = [
                torch.stack([_placed(logps_T, c, longest - 1) for logps_T, c in zip(logps[i], row, strict=True)])
                for i, row in zip(rows, shown, strict=True)
            ]
            batch[name] = torch.stack(placed)
        return batch


def _stacked(rows: list[list[list[int]]], longest: int, fill: int) -> Tensor:
    return torch.tensor([[values + [fill] * (longest - len(values)) for values in row] for row in rows])


def _placed(logps_T: Tensor, completion: Rendered, longest: int) -> Tensor:
    """Log-probs at the places of the tokens that they predict, 0 elsewhere."""
    placed = torch.zeros(longest)
    first = len(completion.prompt_ids) - 1
    placed[first : first + len(logps_T)] = logps_T
    return placed


def unpaired(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch of (completion, stranger) as the keys of single completions, the stranger's with the prefix kl_."""
    split = {name: value.unbind(1) for name, value in batch.items() if value.ndim == 3}
    alone = {name: value for name, value in batch.items() if value.ndim < 3}
    return (
        alone | {name: own for name, (own, _) in split.items()} | {f"kl_{n}": other for n, (_, other) in split.items()}
    )
