"""CW-PO, confidence-weighted preference optimization (Afzali, Jeon and Brbić 2026, ICLR): sure pairs count more.

A weak reward model's margin m weighs a pair by 2 (s(|m|) - 1/2), which is |2p - 1| for p = s(m).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from trimtab.errors import StageError
from trimtab.methods.objectives._base import Loss
from trimtab.methods.preferences._base import PairBatch, PairObjective, Role
from trimtab.methods.preferences.arm import Arm
from trimtab.methods.preferences.asft import Asft
from trimtab.methods.preferences.cpo import Cpo
from trimtab.methods.preferences.dpo import Dpo
from trimtab.methods.preferences.orpo import Orpo
from trimtab.methods.preferences.simpo import Simpo
from trimtab.ranges import LogUniform, Ranges

Base = Annotated[Dpo | Simpo | Orpo | Asft | Cpo | Arm, Field(discriminator="kind")]


class Cwpo(PairObjective):
    """Afzali et al. 2026: mean_B |2p - 1| l, l the loss of `base`; the weights are not normalised."""

    ranges: ClassVar[Ranges] = {"base.beta": LogUniform(loguniform=(0.05, 0.5))}
    kind: Literal["cwpo"] = "cwpo"
    base: Base = Field(Dpo(beta=0.5), description="the objective whose row losses are weighted")

    @model_validator(mode="after")
    def _possible(self) -> Cwpo:
        if getattr(self.base, "sorts", False):
            raise ValueError("base.loss_type compares sorted batches, so its rows cannot be weighted; take another one")
        return self

    @property
    def needs(self) -> tuple[Role, ...]:  # type: ignore[override]
        """The frozen models that `base` reads."""
        return self.base.needs

    def __call__(self, batch: PairBatch) -> Loss:
        if batch.p_B is None:
            raise StageError("cwpo weighs pairs by the weak labeller's p, which these have not: label them with scores")
        confidence_B = (2 * batch.p_B - 1).abs()
        weight_B = confidence_B if batch.weight_B is None else confidence_B * batch.weight_B
        loss = self.base(replace(batch, weight_B=weight_B))
        return Loss(loss.value, loss.metrics | {"confidence": confidence_B.mean().item()})
