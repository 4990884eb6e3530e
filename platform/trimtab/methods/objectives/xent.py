"""Cross-entropy on weak labels (Burns et al. 2023, naive fine-tuning): L = CE(z, q)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trimtab.methods.objectives._base import LabelBatch, Loss, Objective, cross_entropy, one_hot
from trimtab.ranges import Choice, Ranges


class Xent(Objective):
    """Burns et al. 2023: mean_B -sum_c q_c log p_c; `hard` replaces q by its argmax."""

    ranges: ClassVar[Ranges] = {"hard": Choice(choice=(False, True))}
    kind: Literal["xent"] = "xent"
    hard: bool = Field(False, description="train on the likeliest class of each weak label only")

    def __call__(self, batch: LabelBatch) -> Loss:
        target_BC = batch.weak_BC
        if self.hard:
            target_BC = one_hot(target_BC.argmax(-1), target_BC.shape[-1])
        return Loss(cross_entropy(batch.logits_BC, target_BC).mean())
