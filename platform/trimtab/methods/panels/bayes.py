"""Independent judges by Bayes' rule: the product of their probabilities (Tax et al. 2000)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trimtab.methods.panels._base import Panel

if TYPE_CHECKING:
    from torch import Tensor


class Bayes(Panel):
    """P(class) ~ prod_j p_j(class)^weight, with equal priors: judges who agree make the panel surer than each of them.

    Judges are seldom independent; a weight below 1 says how much of each one's evidence is its own, and 1 / judges is
    the logarithmic pool, in which agreement adds nothing.
    """

    kind: Literal["bayes"] = "bayes"
    weight: float = Field(1.0, gt=0, le=1)

    def __call__(self, probs_JNC: Tensor) -> Tensor:
        """probs_NC; a probability of 0 counts as 1e-6, so that no judge alone can rule a class out for good."""
        return (self.weight * probs_JNC.clamp(min=1e-6).log().sum(0)).softmax(-1)
