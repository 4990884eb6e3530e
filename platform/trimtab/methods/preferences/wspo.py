"""WSPO, weak-to-strong preference optimization (Zhu et al. 2025, ICLR): the policy shifts as a weak policy shifted.

The weak policy, before and after its alignment, needs the policy's tokens. Departure: the authors' code also runs the
rejected half, which the loss does not read.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trimtab.methods._pairs import row_mean
from trimtab.methods.objectives._base import Loss
from trimtab.methods.preferences._base import PairBatch, PairObjective, Role, watched
from trimtab.ranges import LogUniform, Ranges


class Wspo(PairObjective):
    """Zhu et al. 2025: mean_B mean_t [beta log pi/ref - log weak/weak_ref]^2 over the tokens of chosen."""

    needs: ClassVar[tuple[Role, ...]] = ("reference", "weak", "weak_reference")
    ranges: ClassVar[Ranges] = {"beta": LogUniform(loguniform=(0.05, 1))}
    kind: Literal["wspo"] = "wspo"
    beta: float = Field(0.1, gt=0, le=100, description="the policy shifts by 1 / beta of the weak policy's shift")

    def __call__(self, batch: PairBatch) -> Loss:
        ratio, weak = batch.ratio(), batch.needed("weak") - batch.needed("weak_reference")
        error_BT = (self.beta * ratio.chosen_BT - weak.chosen_BT) ** 2
        loss_B = error_BT.sum(-1) / batch.chosen_length_B
        metrics = watched(batch, self.beta * ratio.chosen_B, self.beta * ratio.rejected_B)
        return Loss(row_mean(loss_B, batch.weight_B), metrics | {"weak_shift": weak.chosen_B.mean().item()})
