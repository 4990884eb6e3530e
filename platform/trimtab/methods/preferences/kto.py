"""KTO (Ethayarajh et al. 2024, arXiv 2402.01306): single completions that are good or not, no pairs.

`apo_zero_unpaired` (D'Oosterlinck et al. 2024, arXiv 2408.06266) leaves the reference point at 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trimtab.methods._pairs import row_mean
from trimtab.methods._torch import torch
from trimtab.methods.objectives._base import Loss
from trimtab.methods.preferences._base import PairObjective, Role, UnpairedBatch
from trimtab.ranges import LogUniform, Ranges

if TYPE_CHECKING:
    from torch import Tensor


class Kto(PairObjective):
    """Ethayarajh et al. 2024, eq. 7: mean_B w (1 - s(+-beta (log pi/ref - z0))), + and w_d for desirable rows.

    z0 = max(0, mean log pi/ref of mismatched completions), a constant to the gradient.
    """

    needs: ClassVar[tuple[Role, ...]] = ("reference",)
    unpaired: ClassVar[bool] = True
    ranges: ClassVar[Ranges] = {
        "beta": LogUniform(loguniform=(0.01, 1)),
        "desirable_weight": LogUniform(loguniform=(0.5, 2)),
        "undesirable_weight": LogUniform(loguniform=(0.5, 2)),
    }
    kind: Literal["kto"] = "kto"
    loss_type: Literal["kto", "apo_zero_unpaired"] = Field("kto", description="with or without the reference point")
    beta: float = Field(0.1, gt=0, le=100, description="how strongly the policy is held to its reference")
    desirable_weight: float = Field(1.0, ge=0, le=100, description="w_d; (w_d n_d) / (w_u n_u) in 1 to 4/3 is advised")
    undesirable_weight: float = Field(1.0, ge=0, le=100, description="w_u")

    def __call__(self, batch: UnpairedBatch) -> Loss:
        ratio_B = batch.policy_BT.sum(-1) - batch.reference_BT.sum(-1)
        z0 = self._reference_point(batch)
        good_B = batch.desirable_B.bool()
        sign_B = torch.where(good_B, 1.0, -1.0)
        w_B = torch.where(good_B, self.desirable_weight, self.undesirable_weight)
        loss_B = w_B * (-sign_B * self.beta * (ratio_B - z0)).sigmoid()
        return Loss(row_mean(loss_B, batch.weight_B), self._watched(batch, self.beta * ratio_B) | {"kl": z0.item()})

    def _reference_point(self, batch: UnpairedBatch) -> Tensor:
        if self.loss_type != "kto":
            return batch.policy_BT.new_zeros(())
        return (batch.kl_policy_N - batch.kl_reference_N).detach().mean().clamp_min(0)

    def _watched(self, batch: UnpairedBatch, reward_B: Tensor) -> dict[str, float]:
        """TRL's metrics; those of a kind of row that the batch lacks are left out."""
        good_B, found = batch.desirable_B.bool(), {}
        for name, rows_B in (("chosen", good_B), ("rejected", ~good_B)):
            if rows_B.any():
                found[f"rewards/{name}"] = reward_B.detach()[rows_B].mean().item()
                found[f"logps/{name}"] = batch.policy_BT.detach().sum(-1)[rows_B].mean().item()
        if len(found) == 4:
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return found
