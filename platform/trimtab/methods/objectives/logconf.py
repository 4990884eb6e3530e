"""Auxiliary confidence loss (Burns et al. 2023, section 4.3.2): L = (1 - a) CE(z, q) + a CE(z, h).

h is the student's own prediction, hardened at the threshold where its class shares match the weak labels' mean.
Departures: the authors' code ramps `a` by the fraction of training itself and jumps at the end of the warm-up
(`ramp: openai_compat` keeps that); here the ramp is linear. Three classes or more are not in the paper: there h is the
argmax after subtracting one offset per class, found by quantiles, so that shares match within a few rows.
One row without context has no threshold: it keeps its argmax, where the authors' code answers class 0 whatever it sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trimtab.methods._torch import torch
from trimtab.methods.objectives._base import LabelBatch, Loss, Objective, cross_entropy, one_hot, ramp
from trimtab.ranges import Ranges, Uniform

if TYPE_CHECKING:
    from torch import Tensor


class LogConf(Objective):
    """Burns et al. 2023: mean_B CE(z, (1 - a) q + a h), with `a` rising to `aux_coef`."""

    whole_batch: ClassVar[bool] = True
    ranges: ClassVar[Ranges] = {"aux_coef": Uniform(uniform=(0.25, 0.9)), "warmup": Uniform(uniform=(0, 0.4))}
    kind: Literal["logconf"] = "logconf"
    aux_coef: float = Field(0.5, ge=0, le=1, description="a: weight of the student's own hardened labels")
    warmup: float = Field(0.2, ge=0, le=1, description="fraction of training over which a rises")
    ramp: Literal["linear", "openai_compat"] = Field("linear", description="how a rises")
    buffer: int = Field(0, ge=0, description="recent rows the trainer keeps for the threshold; 0: the global batch")

    def __call__(self, batch: LabelBatch) -> Loss:
        weight = self.aux_coef * self._ramp(batch.progress)
        self_B = self_labels(batch.seen_logits(), batch.seen_weak())[: len(batch.logits_BC)]
        self_BC = one_hot(self_B, batch.logits_BC.shape[-1])
        target_BC = (1 - weight) * batch.weak_BC + weight * self_BC
        disagree_B = self_B != batch.weak_BC.argmax(-1)
        metrics = {"aux_weight": weight, "self_label_disagreement": disagree_B.float().mean().item()}
        return Loss(cross_entropy(batch.logits_BC, target_BC).mean(), metrics)

    def _ramp(self, progress: float) -> float:
        if self.ramp == "linear":
            return ramp(progress, self.warmup)
        return 1.0 if progress > self.warmup else progress


def self_labels(logits_NC: Tensor, weak_NC: Tensor) -> Tensor:
    """Hardened classes whose shares follow the mean weak label; two-class ties at the threshold go to class 0: (N,)."""
    if len(logits_NC) == 1:
        return logits_NC.argmax(-1)
    # In fp64 the order of the rows, and so their split into micro-batches, cannot move a row over the threshold.
    logp_NC = logits_NC.double().log_softmax(-1)
    share_C = weak_NC.double().mean(0).clamp(0, 1)
    if len(share_C) == 2:
        p0_N = logp_NC[:, 0].exp()
        return (p0_N < p0_N.quantile(share_C[1])).long()
    return (logp_NC - _offsets(logp_NC, share_C)).argmax(-1)


def _offsets(logp_NC: Tensor, share_C: Tensor, sweeps: int = 3) -> Tensor:
    """One offset per class; each in turn is set where that class wins its share of the rows, none if none: (C,)."""
    offset_C = torch.zeros_like(share_C).masked_fill(share_C == 0, torch.inf)
    wanted = share_C.nonzero()[:, 0].tolist()
    for c in wanted * sweeps if len(wanted) > 1 else []:
        rivals_NC = logp_NC - offset_C
        rivals_NC[:, c] = -torch.inf
        offset_C[c] = (logp_NC[:, c] - rivals_NC.amax(-1)).quantile(1 - share_C[c])
    return offset_C
