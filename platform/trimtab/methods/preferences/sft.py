"""Supervised fine-tuning on the chosen completions (Ouyang et al. 2022, arXiv 2203.02155).

Departs from the usual mean over the tokens of a batch: every completion weighs the same, so micro-batches add up.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from trimtab.methods._pairs import row_mean
from trimtab.methods.objectives._base import Loss
from trimtab.methods.preferences._base import PairBatch, PairObjective


class Sft(PairObjective):
    """mean_B -a_c, a_c the mean log-prob of a token of the chosen completion."""

    kind: Literal["sft"] = "sft"
    chosen_only: ClassVar[bool] = True

    def __call__(self, batch: PairBatch) -> Loss:
        said = {"logps/chosen": batch.policy.chosen_B.mean().item()}
        return Loss(row_mean(-batch.chosen_mean_B, batch.weight_B), said)
