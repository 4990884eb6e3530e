"""Bradley-Terry reward model (Bradley and Terry 1952; on weak labels, Burns et al. 2023)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trimtab.errors import StageError
from trimtab.methods._pairs import log_loss, row_mean
from trimtab.methods.objectives._base import Loss
from trimtab.methods.rewards._base import RewardBatch, RewardObjective, watched


class BradleyTerry(RewardObjective):
    """mean_B -p log s(z) - (1 - p) log s(-z) + k (r_c + r_r)^2, z = r_c - r_r - margin.

    A margin asks for a larger difference where scores differ more (Touvron et al. 2023, eq. 2); k keeps rewards
    around 0 (Eisenstein et al. 2023).
    """

    kind: Literal["bradley_terry"] = "bradley_terry"
    hard: bool = Field(False, description="what is called chosen counts as surely better, whatever p")
    margin_scale: float = Field(0.0, ge=0, le=100, description="z's margin is this times the pair's own")
    center_rewards_coefficient: float = Field(0.0, ge=0, le=100, description="k")

    def __call__(self, batch: RewardBatch) -> Loss:
        z_B = batch.difference_B
        if self.margin_scale:
            if batch.margin_B is None:
                raise StageError(
                    "margin_scale is set, but the pairs have no margin: write it into them, or set it to 0"
                )
            z_B = z_B - self.margin_scale * batch.margin_B
        loss_B = log_loss(z_B, 1.0 if self.hard else batch.preference_B)
        if self.center_rewards_coefficient:
            loss_B = loss_B + self.center_rewards_coefficient * (batch.chosen_B + batch.rejected_B) ** 2
        return Loss(row_mean(loss_B, batch.weight_B), watched(batch))
