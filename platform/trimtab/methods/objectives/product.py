"""Product confidence objective (the `product` loss of the code of Burns et al. 2023): L = CE(z, t), t ~ p^beta q^alpha.

Departure: the authors' code declares a warm-up that it never uses; there is none here.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trimtab.methods._torch import torch
from trimtab.methods.objectives._base import LabelBatch, Loss, Objective, cross_entropy
from trimtab.ranges import Ranges, Uniform


class Product(Objective):
    """Burns et al. 2023: the target is the row-normalised p^beta q^alpha, without gradient."""

    ranges: ClassVar[Ranges] = {"alpha": Uniform(uniform=(0.25, 2)), "beta": Uniform(uniform=(0.25, 2))}
    kind: Literal["product"] = "product"
    alpha: float = Field(1.0, ge=0, le=8, description="power of the weak label")
    beta: float = Field(1.0, ge=0, le=8, description="power of the student's own probability")

    def __call__(self, batch: LabelBatch) -> Loss:
        own_BC = self.beta * batch.logits_BC.detach().float().log_softmax(-1)
        target_BC = (own_BC + torch.special.xlogy(self.alpha, batch.weak_BC.float())).softmax(-1)
        return Loss(cross_entropy(batch.logits_BC, target_BC).mean())
