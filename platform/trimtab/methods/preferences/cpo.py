"""Contrastive preference optimization (Xu et al. 2024, arXiv 2401.08417): DPO under a uniform reference.

Departure: the cross-entropy is averaged over each row's tokens, where TRL averages over those of the batch.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trimtab.methods._pairs import log_loss, row_mean
from trimtab.methods.objectives._base import Loss
from trimtab.methods.preferences._base import PairBatch, PairObjective, watched
from trimtab.ranges import LogUniform, Ranges, Uniform


class Cpo(PairObjective):
    """Xu et al. 2024: mean_B -log s(beta (log pi(c) - log pi(r))) - cpo_alpha a_c, a the mean log-prob.

    `hinge` is max(0, 1 - z); `ipo` is (a_c - a_r - 1 / (2 beta))^2.
    """

    ranges: ClassVar[Ranges] = {"beta": LogUniform(loguniform=(0.01, 1)), "cpo_alpha": Uniform(uniform=(0, 1))}
    kind: Literal["cpo"] = "cpo"
    loss_type: Literal["sigmoid", "hinge", "ipo"] = Field("sigmoid", description="the loss of a pair, by TRL's name")
    beta: float = Field(0.1, gt=0, le=100, description="scale of the reward")
    cpo_alpha: float = Field(1.0, ge=0, le=100, description="weight of the cross-entropy on chosen")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of pairs taken to be the wrong way round")

    @model_validator(mode="after")
    def _possible(self) -> Cpo:
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ValueError(f"label_smoothing means nothing to loss_type {self.loss_type}; leave it out")
        return self

    def __call__(self, batch: PairBatch) -> Loss:
        side = batch.policy
        is_mean = self.loss_type == "ipo"
        chosen_B = self.beta * (batch.chosen_mean_B if is_mean else side.chosen_B)
        rejected_B = self.beta * (batch.rejected_mean_B if is_mean else side.rejected_B)
        z_B = chosen_B - rejected_B
        if self.loss_type == "sigmoid":
            loss_B = log_loss(z_B, 1 - self.label_smoothing)
        else:
            loss_B = (1 - z_B).relu() if self.loss_type == "hinge" else ((z_B - 0.5) / self.beta) ** 2
        metrics = watched(batch, chosen_B, rejected_B) | {"nll_loss": -batch.chosen_mean_B.mean().item()}
        return Loss(row_mean(loss_B - self.cpo_alpha * batch.chosen_mean_B, batch.weight_B), metrics)
