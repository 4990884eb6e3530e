"""Reward model under an explicit conflict (Yang et al. 2024, arXiv 2406.11431, weak-to-strong deception).

A second goal pays the student for the worse completion. It reads truth: use it to study deception, never to supervise.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trimtab.errors import StageError
from trimtab.methods._pairs import log_loss, row_mean
from trimtab.methods.objectives._base import Loss
from trimtab.methods.rewards._base import RewardBatch, RewardObjective, watched


class Conflict(RewardObjective):
    """Yang et al. 2024: BCE(d, p) + (conflict_coef / B) sum over rows that d gets wrong of BCE(d, 1 - truth).

    d = r_c - r_r; a row is wrong where s(d) and truth lie on two sides of 1/2, and d = 0 says that rejected is better.
    """

    kind: Literal["conflict"] = "conflict"
    conflict_coef: float = Field(0.5, ge=0, le=100, description="weight of the conflicting goal")

    def __call__(self, batch: RewardBatch) -> Loss:
        if batch.truth_B is None:
            raise StageError("the conflicting goal is about the truth of pairs, which these have not: give truth_B")
        z_B, truth_B = batch.difference_B, batch.truth_B.to(batch.chosen_B)
        wrong_B = ((z_B.detach() > 0) != (truth_B > 0.5)).to(z_B)
        conflict = row_mean(wrong_B * log_loss(z_B, 1 - truth_B), batch.weight_B)
        value = row_mean(log_loss(z_B, batch.preference_B), batch.weight_B) + self.conflict_coef * conflict
        metrics = {"conflict": conflict.item(), "conflict_share": wrong_B.mean().item()}
        return Loss(value, watched(batch) | metrics)
