"""Entropy penalty (Burns et al. 2023, confidence penalties; weighted as in EleutherAI 2024): L = (1 - a) CE + a H(p).

Departure: EleutherAI's code detaches the self-target p, which leaves exactly (1 - a) times the gradient of the
cross-entropy and so no penalty at all. Here the gradient flows through both factors of -sum p log p.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trimtab.methods.objectives._base import LabelBatch, Loss, Objective, cross_entropy, ramp
from trimtab.ranges import Ranges, Uniform


class Entropy(Objective):
    """Burns et al. 2023: mean_B (1 - a) CE(z, q) + a H(p), with `a` rising linearly to `aux_coef`."""

    ranges: ClassVar[Ranges] = {"aux_coef": Uniform(uniform=(0.1, 0.6)), "warmup": Uniform(uniform=(0, 0.4))}
    kind: Literal["entropy"] = "entropy"
    aux_coef: float = Field(0.5, ge=0, le=1, description="a: weight of the student's own entropy")
    warmup: float = Field(0.2, ge=0, le=1, description="fraction of training over which a rises")

    def __call__(self, batch: LabelBatch) -> Loss:
        weight = self.aux_coef * ramp(batch.progress, self.warmup)
        entropy = cross_entropy(batch.logits_BC, batch.logits_BC.float().softmax(-1)).mean()
        value = (1 - weight) * cross_entropy(batch.logits_BC, batch.weak_BC).mean() + weight * entropy
        return Loss(value, {"aux_weight": weight, "entropy": entropy.item()})
