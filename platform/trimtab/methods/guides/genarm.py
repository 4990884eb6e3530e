"""GenARM (Xu et al. 2024, arXiv 2410.08193): p ~ p_base prod_i p_i^alpha_i, each p_i an autoregressive reward model.

`normalize` is the geometric mean of the authors' code (its normalize_logit), much flatter: the weights over their sum.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trimtab.methods.guides._base import Linear, each
from trimtab.ranges import LogUniform, Ranges

Alpha = Annotated[float, Field(ge=0, le=10)]


class GenArm(Linear):
    """Xu et al. 2024: log p_base + sum_i alpha_i log p_i; alpha is 1 / beta of the reward-KL trade-off."""

    ranges: ClassVar[Ranges] = {"alpha": LogUniform(loguniform=(0.2, 4))}
    kind: Literal["genarm"] = "genarm"
    alpha: Alpha | tuple[Alpha, ...] = Field(1.0, description="weight of every helper, or one each")
    normalize: bool = Field(False, description="divide the weights by 1 + their sum")

    @property
    def helpers(self) -> tuple[int, int | None]:
        """As many as there are weights."""
        return (len(self.alpha), len(self.alpha)) if isinstance(self.alpha, tuple) else (1, None)

    def weights(self, models: int) -> tuple[float, ...]:
        """1 for the base, alpha for the helpers."""
        alphas = each(self.alpha, models - 1)
        total = 1 + sum(alphas) if self.normalize else 1
        return tuple(weight / total for weight in (1, *alphas))
