"""ORPO (Hong et al. 2024, arXiv 2403.07691): fine-tuning on chosen, and the odds of chosen above those of rejected.

`ce_coef: 0` with an inner `temperature` is the second stage, after fine-tuning, of Gorbatovski et al. 2025
(arXiv 2502.01237). Departure: the authors' cross-entropy covers prompt and chosen, here it covers chosen only.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trimtab.methods._pairs import log_loss, row_mean
from trimtab.methods.objectives._base import Loss
from trimtab.methods.preferences._base import PairBatch, PairObjective, log_odds, watched
from trimtab.ranges import LogUniform, Ranges, Uniform


class Orpo(PairObjective):
    """Hong et al. 2024: mean_B -ce_coef a_c - odds_coef log s(t (o_c - o_r)).

    a is the mean log-prob of a token, o its log-odds.
    """

    ranges: ClassVar[Ranges] = {"odds_coef": LogUniform(loguniform=(0.05, 1)), "temperature": Uniform(uniform=(0.1, 1))}
    kind: Literal["orpo"] = "orpo"
    ce_coef: float = Field(1.0, ge=0, le=100, description="weight of the cross-entropy on chosen")
    odds_coef: float = Field(0.1, ge=0, le=100, description="the paper's lambda; TRL's beta")
    temperature: float = Field(1.0, gt=0, le=100, description="t: scale of the log-odds inside the sigmoid")

    def __call__(self, batch: PairBatch) -> Loss:
        chosen_B = self.temperature * log_odds(batch.chosen_mean_B)
        rejected_B = self.temperature * log_odds(batch.rejected_mean_B)
        loss_B = -self.ce_coef * batch.chosen_mean_B + self.odds_coef * log_loss(chosen_B - rejected_B)
        metrics = {"nll_loss": -batch.chosen_mean_B.mean().item()}
        return Loss(row_mean(loss_B, batch.weight_B), watched(batch, chosen_B, rejected_B) | metrics)
