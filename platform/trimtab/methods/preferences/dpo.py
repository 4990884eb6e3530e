"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290) and its relatives, by TRL's names.

Departures from TRL: with loss_type sigmoid, label_smoothing gives conservative DPO, where TRL leaves it unused; sft
averages over each row's tokens; a field that the loss would not read is refused.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trimtab.errors import StageError
from trimtab.methods._pairs import row_mean
from trimtab.methods.objectives._base import Loss
from trimtab.methods.preferences._base import PairBatch, PairObjective, Role, watched
from trimtab.methods.preferences._losses import (
    LOSSES,
    SORTS,
    TAKES_DIVERGENCE,
    TAKES_SMOOTHING,
    Divergence,
    LossType,
    Terms,
)
from trimtab.ranges import Choice, LogUniform, Ranges


class Dpo(PairObjective):
    """Rafailov et al. 2023: mean_B -log s(beta D), D = log pi/ref of chosen less that of rejected; p is not read."""

    needs: ClassVar[tuple[Role, ...]] = ("reference",)
    ranges: ClassVar[Ranges] = {
        "beta": LogUniform(loguniform=(0.01, 1)),
        "label_smoothing": Choice(choice=(0.0, 0.05, 0.1, 0.2, 0.3), when={"loss_type": ["sigmoid", "robust"]}),
    }
    kind: Literal["dpo"] = "dpo"
    loss_type: LossType = Field("sigmoid", description="the loss of a pair, by TRL's name")
    beta: float = Field(0.1, gt=0, le=100, description="how strongly the policy is held to its reference")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="e: share of pairs taken to be the wrong way round")
    discopop_tau: float = Field(0.05, gt=0, le=100, description="temperature of the mix; loss_type: discopop")
    f_divergence: Divergence = Field("reverse_kl", description="which divergence holds the policy to its reference")

    @model_validator(mode="after")
    def _possible(self) -> Dpo:
        if self.label_smoothing and self.loss_type not in TAKES_SMOOTHING:
            raise ValueError(f"label_smoothing means nothing to loss_type {self.loss_type}; leave it out")
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss_type exo_pair needs label_smoothing above 0, say 0.001")
        if self.f_divergence != "reverse_kl" and self.loss_type not in TAKES_DIVERGENCE:
            raise ValueError(f"f_divergence means nothing to loss_type {self.loss_type}; leave it out")
        return self

    @property
    def sorts(self) -> bool:
        """The loss compares sorted batches, so that its values belong to no row."""
        return self.loss_type in SORTS

    def __call__(self, batch: PairBatch) -> Loss:
        if self.sorts and batch.weight_B is not None:
            raise StageError(f"loss_type {self.loss_type} compares sorted batches, so its rows cannot be weighted")
        terms = Terms(batch, self.beta, e=self.label_smoothing, tau=self.discopop_tau, divergence=self.f_divergence)
        loss_B = LOSSES[self.loss_type](terms)
        metrics = watched(batch, self.beta * terms.c_B, self.beta * terms.r_B)
        return Loss(row_mean(loss_B, batch.weight_B), metrics)
