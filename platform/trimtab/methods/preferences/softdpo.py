"""Soft-label DPO (conservative DPO, Mitchell 2023; with an offset, Amini et al. 2024, arXiv 2402.10571).

Every pair has its own probability p, that of the weak labeller, where conservative DPO has one for all.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trimtab.errors import StageError
from trimtab.methods._pairs import log_loss, row_mean
from trimtab.methods.objectives._base import Loss
from trimtab.methods.preferences._base import PairBatch, PairObjective, Role, watched
from trimtab.ranges import LogUniform, Ranges


class Softdpo(PairObjective):
    """mean_B -p log s(z) - (1 - p) log s(-z), z = beta D - margin; D as in DPO, p = 1 where unset."""

    needs: ClassVar[tuple[Role, ...]] = ("reference",)
    ranges: ClassVar[Ranges] = {"beta": LogUniform(loguniform=(0.01, 1))}
    kind: Literal["softdpo"] = "softdpo"
    beta: float = Field(0.1, gt=0, le=100, description="how strongly the policy is held to its reference")
    margin_scale: float = Field(0.0, ge=0, le=100, description="z's margin is this times the pair's own")

    def __call__(self, batch: PairBatch) -> Loss:
        ratio = batch.ratio()
        chosen_B, rejected_B = self.beta * ratio.chosen_B, self.beta * ratio.rejected_B
        z_B = chosen_B - rejected_B
        if self.margin_scale:
            if batch.margin_B is None:
                raise StageError(
                    "margin_scale is set, but the pairs have no margin: write it into them, or set it to 0"
                )
            z_B = z_B - self.margin_scale * batch.margin_B
        loss_B = log_loss(z_B, 1.0 if batch.p_B is None else batch.p_B)
        return Loss(row_mean(loss_B, batch.weight_B), watched(batch, chosen_B, rejected_B))
