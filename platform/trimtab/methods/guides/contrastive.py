"""Contrastive decoding (Li et al. 2022, arXiv 2210.15097): what the base likes more than an amateur does.

`form: extrapolation` is that of O'Brien & Lewis 2023 (arXiv 2309.09117); with `mask: 0` it is classifier-free guidance
(Sanchez et al. 2023, arXiv 2306.17806) at scale 1 + coef, the helper being the base without its condition.
Departure: a distribution comes out, the softmax of the scores; the paper searches for the highest.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trimtab.methods._torch import torch
from trimtab.methods.guides._base import Blend, Fused, fuse
from trimtab.ranges import LogUniform, Ranges, Uniform

if TYPE_CHECKING:
    from torch import Tensor


class Contrastive(Blend):
    """Li et al. 2022: log p - coef log p_amateur on the tokens with p >= mask max p, none elsewhere.

    Extrapolation: (1 + coef) log p - coef log p_amateur.
    """

    ranges: ClassVar[Ranges] = {
        "coef": Uniform(uniform=(0.1, 1)),
        "mask": LogUniform(loguniform=(0.01, 0.5)),
        "amateur_temperature": Uniform(uniform=(0.5, 1.5)),
    }
    kind: Literal["contrastive"] = "contrastive"
    coef: float = Field(1.0, ge=0, le=10, description="weight of the amateur")
    mask: float = Field(0.1, ge=0, le=1, description="tokens below this part of the likeliest's probability are out")
    amateur_temperature: float = Field(1.0, gt=0, le=10, description="divides the amateur's logits")
    form: Literal["difference", "extrapolation"] = "difference"

    @property
    def helpers(self) -> tuple[int, int | None]:
        """The amateur."""
        return 1, 1

    def __call__(self, logprobs_MBV: Tensor) -> Fused:
        self.check(len(logprobs_MBV))
        base_BV, amateur_BV = logprobs_MBV
        tempered_BV = (amateur_BV / self.amateur_temperature).log_softmax(-1)
        base_weight = 1.0 if self.form == "difference" else 1 + self.coef
        weights_BM = base_BV.new_tensor([base_weight, -self.coef]).expand(len(base_BV), -1)
        fused_BV = fuse(weights_BM, torch.stack([base_BV, tempered_BV]))
        if self.mask > 0:
            least_B1 = base_BV.amax(-1, keepdim=True) + math.log(self.mask)
            fused_BV = fused_BV.masked_fill(base_BV < least_B1, -torch.inf).log_softmax(-1)
        return Fused(fused_BV, weights_BM)
