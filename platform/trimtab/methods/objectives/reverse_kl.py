"""Reverse KL divergence (Yao et al. 2025, arXiv 2502.11107): L = KL(p || q), mode-seeking.

Departure: weak labels are kept above a floor, so that hard labels give finite losses.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trimtab.methods.objectives._base import LabelBatch, Loss, Objective, log_weak
from trimtab.ranges import LogUniform, Ranges


class ReverseKL(Objective):
    """Yao et al. 2025: mean_B sum_c p_c (log p_c - log q_c)."""

    ranges: ClassVar[Ranges] = {
        "clamp": LogUniform(loguniform=(1e-6, 1e-3)),
        "temperature": LogUniform(loguniform=(0.5, 2)),
    }
    kind: Literal["reverse_kl"] = "reverse_kl"
    clamp: float = Field(1e-6, gt=0, le=0.1, description="floor of a weak probability")
    temperature: float = Field(1.0, gt=0, le=10, description="of the weak label; above 1 softens it")

    def __call__(self, batch: LabelBatch) -> Loss:
        logq_BC = log_weak(batch.weak_BC, clamp=self.clamp, temperature=self.temperature)
        logp_BC = batch.logits_BC.float().log_softmax(-1)
        return Loss((logp_BC.exp() * (logp_BC - logq_BC)).sum(-1).mean())
