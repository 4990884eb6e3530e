"""Ensembles of models that share a vocabulary: product of experts (Hinton 2002), or their mixture.

The product is normalised (a geometric mean), as the mixture is: only the ratios of the weights count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from trimtab.methods.guides._base import Blend, Fused, fuse

if TYPE_CHECKING:
    from torch import Tensor

Share = Annotated[float, Field(ge=0, le=10)]


class Ensemble(Blend):
    """Product: p ~ prod_m p_m^w_m (Hinton 2002). Mixture: p = sum_m w_m p_m. The w_m sum to 1."""

    kind: Literal["ensemble"] = "ensemble"
    mode: Literal["product", "mixture"] = "product"
    weights: tuple[Share, ...] | None = Field(None, description="one a model, the base first; unset: all the same")

    @field_validator("weights")
    @classmethod
    def _some(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None and (len(weights) < 2 or sum(weights) == 0):
            raise ValueError("give a weight to the base and to every helper, not all of them 0")
        return weights

    @property
    def helpers(self) -> tuple[int, int | None]:
        """As many as there are weights, that of the base taken off."""
        return (1, None) if self.weights is None else (len(self.weights) - 1, len(self.weights) - 1)

    def __call__(self, logprobs_MBV: Tensor) -> Fused:
        models, rows, _ = logprobs_MBV.shape
        self.check(models)
        weights_M = logprobs_MBV.new_tensor(self.weights or (1,) * models)
        weights_BM = (weights_M / weights_M.sum()).expand(rows, -1)
        if self.mode == "product":
            return Fused(fuse(weights_BM, logprobs_MBV), weights_BM)
        return Fused((weights_BM.T.log()[..., None] + logprobs_MBV).logsumexp(0), weights_BM)
