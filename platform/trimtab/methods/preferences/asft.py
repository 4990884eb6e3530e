"""ASFT, aligned supervised fine-tuning through absolute likelihood (Wang et al. 2024, arXiv 2409.10571).

Departure: the paper leaves open whether the cross-entropy is a term of its own, and its weight. Here it is one, with
both weights given, as Gorbatovski et al. 2025 (arXiv 2502.01237) have it; the defaults weight the terms as ORPO does.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trimtab.methods._pairs import log_loss, row_mean
from trimtab.methods.objectives._base import Loss
from trimtab.methods.preferences._base import PairBatch, PairObjective, log_odds, watched
from trimtab.ranges import Choice, LogUniform, Ranges, Uniform


class Asft(PairObjective):
    """Wang et al. 2024: mean_B -ce_coef a_c - odds_coef [log s(beta o_c) + log s(-beta o_r)].

    a is the mean log-prob of a token, o its log-odds. With beta = 1 the bracket is a_c + log(1 - exp a_r).
    """

    ranges: ClassVar[Ranges] = {
        "ce_coef": Choice(choice=(0.0, 1.0)),
        "odds_coef": LogUniform(loguniform=(0.05, 1)),
        "beta": Uniform(uniform=(0.1, 1)),
    }
    kind: Literal["asft"] = "asft"
    ce_coef: float = Field(1.0, ge=0, le=100, description="weight of the cross-entropy on chosen")
    odds_coef: float = Field(0.1, ge=0, le=100, description="lambda: weight of the alignment term")
    beta: float = Field(1.0, gt=0, le=100, description="scale of the log-odds")

    def __call__(self, batch: PairBatch) -> Loss:
        chosen_B = self.beta * log_odds(batch.chosen_mean_B)
        rejected_B = self.beta * log_odds(batch.rejected_mean_B)
        loss_B = -self.ce_coef * batch.chosen_mean_B + self.odds_coef * (log_loss(chosen_B) + log_loss(-rejected_B))
        metrics = {"nll_loss": -batch.chosen_mean_B.mean().item()}
        return Loss(row_mean(loss_B, batch.weight_B), watched(batch, chosen_B, rejected_B) | metrics)
