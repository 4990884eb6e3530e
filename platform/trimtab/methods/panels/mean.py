"""The mean of the judges' probabilities, as the ensemble of Lang et al. 2025 takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trimtab.methods.panels._base import Panel

if TYPE_CHECKING:
    from torch import Tensor


class Mean(Panel):
    """Every judge counts by how sure it is."""

    kind: Literal["mean"] = "mean"

    def __call__(self, probs_JNC: Tensor) -> Tensor:
        """probs_NC: the mean over judges."""
        return probs_JNC.mean(0)
