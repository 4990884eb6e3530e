"""Dynamic logit fusion (Fan et al. 2024, arXiv 2406.15480): proxy tuning whose alpha is searched anew for every token.

The base shall move as far from itself as each expert moved from its untuned start, in KL both ways: with P, Q, Q_t the
distributions of base, untuned model and expert t, and P~ ~ P exp(sum_t alpha_t (log Q_t - log Q)), the alpha taken is
the first on the grid with the least sum_t (KL(P~||P) - KL(Q_t||Q))^2 + (KL(P||P~) - KL(Q||Q_t))^2.

P~ is an exponential tilt of P by d = log Q_t - log Q: with Z = E_P[e^(alpha d)], KL(P~||P) = alpha E_P~[d] - log Z and
KL(P||P~) = log Z - alpha E_P[d]. On a line of evenly spaced alphas the sums behind Z and E_P~[d] are a product of two
thin matrices, e^(coarse step d) and e^(fine step d), so 21 alphas take 10 exponentials and no second search.
Departure: the pseudo-code sets its running minimum once; it is one a token here, as the text has it.

I coarse and J fine steps, N alphas of the grid, T experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from trimtab.errors import StageError
from trimtab.methods._torch import torch
from trimtab.methods.guides._base import Blend, Fused, fuse
from trimtab.ranges import Ranges, Uniform

if TYPE_CHECKING:
    from torch import Tensor

LEAST = -60.0
"""A log-prob below this counts as this much while alpha is searched, which keeps the fine factors in fp32's range."""
REACH, FINE = 0.6, 7
"""How far the fine steps may go in alpha, and how many they may be."""
POINTS = 10_000
"""Points of a joint grid at most."""


class Fusion(Blend):
    """Fan et al. 2024: log P + sum_t alpha_t (log Q_t - log Q); helpers are the experts and, last, the untuned model.

    `one_expert` gives an alpha to one expert and 0 to the others; `joint` searches the grid over all of them.
    """

    ranges: ClassVar[Ranges] = {"max": Uniform(uniform=(0.5, 3))}
    kind: Literal["fusion"] = "fusion"
    min: float = Field(0.0, ge=0, le=10, description="least alpha")
    max: float = Field(2.0, ge=0, le=10, description="most alpha")
    step: float = Field(0.1, gt=0, description="between two alphas of the grid")
    mode: Literal["one_expert", "joint"] = "one_expert"

    @model_validator(mode="after")
    def _possible(self) -> Fusion:
        if self.max < self.min:
            raise ValueError(f"max is {self.max:g}, below min, which is {self.min:g}")
        if self.max - self.min > 100 * self.step:
            raise ValueError(f"step: {self.step:g} makes more than 101 alphas; take a larger one")
        return self

    @property
    def helpers(self) -> tuple[int, int | None]:
        """An expert at least, and the untuned model."""
        return 2, None

    @property
    def grid(self) -> tuple[float, ...]:
        """The alphas that are tried, rising."""
        return tuple(self.min + self.step * i for i in range(int((self.max - self.min) / self.step + 1e-6) + 1))

    def check(self, models: int) -> None:
        """Raises StageError where an expert or the untuned model is missing, or a joint grid has too many points."""
        super().check(models)
        if self.mode == "joint" and len(self.grid) ** (models - 2) > POINTS:
            raise StageError(
                f"{len(self.grid)} alphas for each of {models - 2} experts are over {POINTS} points: "
                "take mode: one_expert, or a larger step"
            )

    def __call__(self, logprobs_MBV: Tensor) -> Fused:
        self.check(len(logprobs_MBV))
        alpha_BT = self._alphas(logprobs_MBV.clamp(min=LEAST))
        weights_BM = torch.cat([torch.ones_like(alpha_BT[:, :1]), alpha_BT, -alpha_BT.sum(-1, keepdim=True)], -1)
        return Fused(fuse(weights_BM, logprobs_MBV), weights_BM)

    def _alphas(self, logprobs_MBV: Tensor) -> Tensor:
        base_BV, expert_TBV, untuned_BV = logprobs_MBV[0], logprobs_MBV[1:-1], logprobs_MBV[-1]
        shift_TBV = expert_TBV - untuned_BV
        onward_BT1 = (expert_TBV.exp() * shift_TBV).sum(-1).T[..., None]
        backward_BT1 = -(untuned_BV.exp() * shift_TBV).sum(-1).T[..., None]
        best_B, alpha_BT = torch.full_like(base_BV[:, 0], torch.inf), base_BV.new_zeros(len(base_BV), len(shift_TBV))
        for moved, line in self._lines(len(shift_TBV)):
            line_TN = base_BV.new_tensor(line)
            there_BN, back_BN = divergences(base_BV, shift_TBV[moved], line_TN[moved], fine=self._fine)
            loss_BTN = (there_BN[:, None] - onward_BT1) ** 2 + (back_BN[:, None] - backward_BT1) ** 2
            least_B, first_B = loss_BTN.sum(1).min(-1)
            better_B = least_B < best_B
            alpha_BT = torch.where(better_B[:, None], line_TN.T[first_B], alpha_BT)
            best_B = torch.where(better_B, least_B, best_B)
        return alpha_BT

    def _lines(self, experts: int) -> Iterator[tuple[slice, list[list[float]]]]:
        """Every line of the search: the experts that count on it, the last of them moving, and all alphas (T, N)."""
        grid = list(self.grid)
        if self.mode == "one_expert":
            for t in range(experts):
                yield slice(t, t + 1), [grid if t == i else [0.0] * len(grid) for i in range(experts)]
        else:
            for held in product(grid, repeat=experts - 1):
                yield slice(None), [*([alpha] * len(grid) for alpha in held), grid]

    @property
    def _fine(self) -> int:
        return min(FINE, int(REACH / self.step + 1e-6) + 1)


def divergences(base_BV: Tensor, shift_TBV: Tensor, alpha_TN: Tensor, *, fine: int) -> tuple[Tensor, Tensor]:
    """KL(P~||P) and KL(P||P~), both (B, N), on a line: the last row of alpha_TN is an even grid, the others are held.

    `fine` alphas lie between two coarse steps.
    """
    points_N, shift_BV = alpha_TN[-1], shift_TBV[-1]
    top_B1 = shift_BV.amax(-1, keepdim=True)
    coarse_I1, fine_J1 = points_N[::fine, None], points_N[:fine, None] - points_N[0]
    start_BV = base_BV + torch.einsum("t,tbv->bv", alpha_TN[:-1, 0], shift_TBV[:-1])
    tilted_BIV = torch.addcmul(start_BV[:, None], coarse_I1, shift_BV[:, None])
    norm_BI1 = tilted_BIV.logsumexp(-1, keepdim=True)
    tilted_BIV = tilted_BIV.sub_(norm_BI1).exp_()
    factor_BJV = (fine_J1 * (shift_BV - top_B1)[:, None]).exp_()
    mass_BIJ = tilted_BIV @ factor_BJV.mT
    norm_BIJ = norm_BI1 + mass_BIJ.log() + (fine_J1 * top_B1[:, None]).mT
    mean_TBIJ = torch.stack([tilted_BIV @ (factor_BJV * d_BV[:, None]).mT / mass_BIJ for d_BV in shift_TBV])
    norm_BN, mean_TBN = (x.flatten(-2)[..., : len(points_N)] for x in (norm_BIJ, mean_TBIJ))
    unmoved_BT = (base_BV.exp() * shift_TBV).sum(-1).T
    return torch.einsum("tn,tbn->bn", alpha_TN, mean_TBN) - norm_BN, norm_BN - unmoved_BT @ alpha_TN
