"""Autoregressive reward model (GenARM, Xu et al. 2024, arXiv 2410.08193): a language model whose log-prob is a reward.

The loss is DPO's under a reference of probability one.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trimtab.methods._pairs import log_loss, row_mean
from trimtab.methods.objectives._base import Loss
from trimtab.methods.preferences._base import PairBatch, PairObjective, watched
from trimtab.ranges import LogUniform, Ranges


class Arm(PairObjective):
    """Xu et al. 2024: mean_B -log s(beta_r (log pi(c) - log pi(r)) - gamma), summed over tokens."""

    ranges: ClassVar[Ranges] = {"beta_r": LogUniform(loguniform=(0.01, 0.5))}
    kind: Literal["arm"] = "arm"
    beta_r: float = Field(0.05, gt=0, le=100, description="scale of the reward")
    gamma: float = Field(0.0, ge=0, le=100, description="target margin")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of pairs taken to be the wrong way round")

    def __call__(self, batch: PairBatch) -> Loss:
        chosen_B, rejected_B = self.beta_r * batch.policy.chosen_B, self.beta_r * batch.policy.rejected_B
        loss_B = log_loss(chosen_B - rejected_B - self.gamma, 1 - self.label_smoothing)
        return Loss(row_mean(loss_B, batch.weight_B), watched(batch, chosen_B, rejected_B))
