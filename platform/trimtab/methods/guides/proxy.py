"""Proxy tuning (Liu et al. 2024, arXiv 2401.08565) and emulated fine-tuning (Mitchell et al. 2023, arXiv 2310.12962).

The base is moved by what tuning changed in small models: helpers are the tuned ones (experts) and, last, their untuned
start. Without it the base stands in for it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trimtab.methods.guides._base import Linear, Weight, each
from trimtab.ranges import Ranges, Uniform


class Proxy(Linear):
    """Liu et al. 2024: log p_base + sum_i alpha_i (log p_expert_i - log p_untuned)."""

    ranges: ClassVar[Ranges] = {"alpha": Uniform(uniform=(0.25, 2))}
    kind: Literal["proxy"] = "proxy"
    alpha: Weight | tuple[Weight, ...] = Field(1.0, description="weight of every expert, or one each")
    untuned: bool = Field(True, description="the last helper is the experts' untuned start")

    @property
    def helpers(self) -> tuple[int, int | None]:
        """An expert for each weight, and the untuned model."""
        if isinstance(self.alpha, tuple):
            return len(self.alpha) + self.untuned, len(self.alpha) + self.untuned
        return 1 + self.untuned, None

    def weights(self, models: int) -> tuple[float, ...]:
        """1 for the base, alpha for the experts, less all of it for the untuned model."""
        alphas = each(self.alpha, models - 1 - self.untuned)
        return (1, *alphas, -sum(alphas)) if self.untuned else (1 - sum(alphas), *alphas)
