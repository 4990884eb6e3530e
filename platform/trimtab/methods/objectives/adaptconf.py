"""Adaptive confidence (Guo et al. 2024, arXiv 2402.03749): L = (1 - a) KD(z, q) + a CE(z, argmax z), a per row.

Departure: the authors' code can add a loss on the truth; there is none here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trimtab.methods._torch import torch
from trimtab.methods.objectives._base import LabelBatch, Loss, Objective, cross_entropy, one_hot, ramp
from trimtab.ranges import LogUniform, Ranges

if TYPE_CHECKING:
    from torch import Tensor


class AdaptConf(Objective):
    """Guo et al. 2024: a = e^(s/T) / (e^(s/T) + e^(w/T)), s and w the CE on the student's and the weak label's argmax.

    KD is KL(q_tau || p_tau) tau^2, both softened by tau. `weighting: ramp` is the paper's AugConf: one `a`
    for all rows, rising to `aux_coef`.
    """

    ranges: ClassVar[Ranges] = {
        "temperature": LogUniform(loguniform=(0.1, 4), when={"weighting": "adaptive"}),
        "kd_temperature": LogUniform(loguniform=(1, 8)),
    }
    kind: Literal["adaptconf"] = "adaptconf"
    weighting: Literal["adaptive", "ramp"] = Field("adaptive", description="a per row (AdaptConf) or ramped (AugConf)")
    temperature: float = Field(0.5, gt=0, le=100, description="T of a; only with weighting: adaptive")
    kd_temperature: float = Field(4.0, gt=0, le=100, description="tau of the distillation term")
    aux_coef: float = Field(0.5, ge=0, le=1, description="highest a; only with weighting: ramp")
    warmup: float = Field(0.3, ge=0, le=1, description="fraction of training over which a rises; weighting: ramp")

    def __call__(self, batch: LabelBatch) -> Loss:
        own_B = _cross_entropy_on_argmax(batch.logits_BC, batch.logits_BC)
        weight_B = self._weight(batch, own_B)
        kd_B = distillation(batch.logits_BC, batch.weak_BC, temperature=self.kd_temperature)
        kd, own = ((1 - weight_B) * kd_B).mean(), (weight_B * own_B).mean()
        return Loss(kd + own, {"aux_weight": weight_B.mean().item(), "kd": kd.item(), "self": own.item()})

    def _weight(self, batch: LabelBatch, own_B: Tensor) -> Tensor:
        if self.weighting == "ramp":
            return own_B.new_full(own_B.shape, self.aux_coef * ramp(batch.progress, self.warmup))
        weak_B = _cross_entropy_on_argmax(batch.logits_BC, batch.weak_BC)
        return ((own_B - weak_B) / self.temperature).sigmoid().detach()


def distillation(logits_BC: Tensor, weak_BC: Tensor, *, temperature: float) -> Tensor:
    """Hinton et al. 2015: KL(q_tau || p_tau) tau^2 of every row, both softened by tau: (B,)."""
    soft_BC = (weak_BC.float().log() / temperature).softmax(-1)
    logp_BC = (logits_BC.float() / temperature).log_softmax(-1)
    return torch.nn.functional.kl_div(logp_BC, soft_BC, reduction="none").sum(-1) * temperature**2


def _cross_entropy_on_argmax(logits_BC: Tensor, label_BC: Tensor) -> Tensor:
    return cross_entropy(logits_BC, one_hot(label_BC.argmax(-1), label_BC.shape[-1]))
