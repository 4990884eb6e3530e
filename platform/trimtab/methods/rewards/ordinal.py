"""Ordinal regression (McCullagh 1980) on graded preferences, such as those of Llama 2 (Touvron et al. 2023).

A grade is one of `levels` equal bins of p, an edge belonging to the bin above it: with 5 levels, p from 0.4 to 0.6 says
"about the same". The thresholds are no parameters: they are the differences of rewards at which a Bradley-Terry
model's probability crosses the edges, log(k / (levels - k)), times `spread`. So they are symmetric around 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trimtab.methods._pairs import row_mean
from trimtab.methods._torch import torch
from trimtab.methods.objectives._base import Loss
from trimtab.methods.rewards._base import RewardBatch, RewardObjective, watched

if TYPE_CHECKING:
    from torch import Tensor


class Ordinal(RewardObjective):
    """McCullagh 1980, cumulative logits: mean_B -log [s(t_{g+1} - d) - s(t_g - d)], d = r_c - r_r, g the grade.

    t_0 = -inf, t_levels = inf. Two levels are Bradley-Terry on hard labels.
    """

    kind: Literal["ordinal"] = "ordinal"
    levels: int = Field(5, ge=2, le=100, description="grades, from rejected clearly better to chosen clearly better")
    spread: float = Field(1.0, gt=0, le=100, description="scale of the thresholds")

    def __call__(self, batch: RewardBatch) -> Loss:
        grade_B = (batch.preference_B * self.levels).long().clamp(0, self.levels - 1)
        edge_K = torch.tensor(self.thresholds()).to(batch.chosen_B)
        loss_B = -log_between(edge_K[grade_B], edge_K[grade_B + 1], batch.difference_B)
        return Loss(row_mean(loss_B, batch.weight_B), watched(batch) | {"grade": grade_B.float().mean().item()})

    def thresholds(self) -> list[float]:
        """t_0 to t_levels."""
        inner = [self.spread * math.log(k / (self.levels - k)) for k in range(1, self.levels)]
        return [-math.inf, *inner, math.inf]


def log_between(low_B: Tensor, high_B: Tensor, at_B: Tensor) -> Tensor:
    """log [s(high - at) - s(low - at)] as log s(high - at) + log s(at - low) + log(1 - exp(low - high)): (B,)."""
    log_sigmoid = torch.nn.functional.logsigmoid
    return log_sigmoid(high_B - at_B) + log_sigmoid(at_B - low_B) + torch.log1p(-torch.exp(low_B - high_B))
