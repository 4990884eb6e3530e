"""SimPO (Meng et al. 2024, arXiv 2405.14734): no reference, log-probs a token, a target margin.

With alpha, AlphaPO (Gupta et al. 2025, arXiv 2501.03884): the reward is (1 - p^-alpha) / alpha, p = exp(mean log-prob).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trimtab.methods._pairs import log_loss, row_mean
from trimtab.methods._torch import torch
from trimtab.methods.objectives._base import Loss
from trimtab.methods.preferences._base import PairBatch, PairObjective, watched
from trimtab.ranges import Ranges, Uniform

if TYPE_CHECKING:
    from torch import Tensor


class Simpo(PairObjective):
    """Meng et al. 2024, eq. 6: mean_B -log s(beta (a_c - a_r) - gamma), a the mean log-prob of a token."""

    ranges: ClassVar[Ranges] = {"beta": Uniform(uniform=(2, 10)), "gamma_beta_ratio": Uniform(uniform=(0, 1))}
    kind: Literal["simpo"] = "simpo"
    beta: float = Field(2.0, gt=0, le=100, description="scale of the reward")
    gamma_beta_ratio: float = Field(0.5, ge=0, le=100, description="target margin gamma, divided by beta")
    alpha: float = Field(0.0, ge=-10, le=10, description="AlphaPO's shape of the reward; 0: the log-prob itself")

    @property
    def gamma(self) -> float:
        """The target margin."""
        return self.beta * self.gamma_beta_ratio

    def __call__(self, batch: PairBatch) -> Loss:
        chosen_B, rejected_B = self._reward(batch.chosen_mean_B), self._reward(batch.rejected_mean_B)
        loss_B = log_loss(chosen_B - rejected_B - self.gamma)
        return Loss(row_mean(loss_B, batch.weight_B), watched(batch, chosen_B, rejected_B))

    def _reward(self, mean_B: Tensor) -> Tensor:
        return self.beta * (-torch.expm1(-self.alpha * mean_B) / self.alpha if self.alpha else mean_B)
