"""What a reward model's objective sees and gives. B pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.methods._pairs import check_shape
from trimtab.methods._torch import torch
from trimtab.methods.objectives._base import Loss
from trimtab.spec import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RewardBatch:
    """Rewards of B pairs in fp32.

    `p_B` is the probability that chosen is the better one, 1 where unset; `margin_B` is by how much its score is
    higher; `weight_B` scales a row's loss, 1 where unset; `truth_B` is 1 where chosen is truly better, 0 elsewhere,
    and read only by objectives that say so. Raises StageError where shapes differ.
    """

    chosen_B: Tensor
    rejected_B: Tensor
    p_B: Tensor | None = None
    margin_B: Tensor | None = None
    weight_B: Tensor | None = None
    truth_B: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("rejected_B", "p_B", "margin_B", "weight_B", "truth_B"):
            check_shape(name, getattr(self, name), (len(self.chosen_B),))

    @property
    def difference_B(self) -> Tensor:
        """Reward of chosen less that of rejected."""
        return self.chosen_B - self.rejected_B

    @property
    def preference_B(self) -> Tensor:
        """p, 1 where unset."""
        return torch.ones_like(self.chosen_B) if self.p_B is None else self.p_B


class RewardObjective(Method):
    """Trains a reward model on pairs."""

    def __call__(self, batch: RewardBatch) -> Loss:
        raise TypeError(f"{type(self).__name__} has no loss of its own")


def watched(batch: RewardBatch) -> dict[str, float]:
    """TRL's metrics; `accuracy` is the share of pairs whose difference has the sign of p - 1/2."""
    difference_B = batch.difference_B.detach()
    right_B = difference_B * (batch.preference_B - 0.5) > 0
    mean = (batch.chosen_B + batch.rejected_B).detach().mean() / 2
    found = torch.stack([right_B.to(difference_B).mean(), difference_B.mean(), mean]).tolist()
    return dict(zip(("accuracy", "margin", "mean_reward"), found, strict=True))
