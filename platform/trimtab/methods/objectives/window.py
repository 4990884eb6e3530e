"""Window loss (EleutherAI 2024, "Experiments in weak-to-strong generalization"): CE on rows the student is unsure of.

Departure: the authors' binary condition max p < 1/2 + radius reads max p < 1/C + radius here; the same for two classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trimtab.methods.objectives._base import LabelBatch, Loss, Objective, cross_entropy
from trimtab.ranges import Ranges, Uniform


class Window(Objective):
    """EleutherAI 2024: (1/B) sum over rows with max p < 1/C + radius of CE(z, q); other rows count as 0."""

    ranges: ClassVar[Ranges] = {"radius": Uniform(uniform=(0.05, 0.35))}
    kind: Literal["window"] = "window"
    radius: float = Field(0.15, gt=0, le=1, description="how far above chance a student may be sure and still learn")

    def __call__(self, batch: LabelBatch) -> Loss:
        top_B = batch.logits_BC.detach().float().softmax(-1).amax(-1)
        inside_B = (top_B < 1 / batch.logits_BC.shape[-1] + self.radius).float()
        loss_B = inside_B * cross_entropy(batch.logits_BC, batch.weak_BC)
        return Loss(loss_B.mean(), {"window_share": inside_B.mean().item()})
