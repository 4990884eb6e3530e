"""The share of judges for each class (Verga et al. 2024, max voting)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trimtab.methods._torch import torch
from trimtab.methods.panels._base import Panel

if TYPE_CHECKING:
    from torch import Tensor


class Vote(Panel):
    """Every judge has one vote, however sure it is; where votes tie, the mean probability decides."""

    kind: Literal["vote"] = "vote"

    def __call__(self, probs_JNC: Tensor) -> Tensor:
        """probs_NC: shares of the votes; the mean over judges in rows whose first two classes have as many."""
        shares_NC = torch.nn.functional.one_hot(probs_JNC.argmax(-1), probs_JNC.shape[-1]).to(probs_JNC.dtype).mean(0)
        top_N2 = shares_NC.topk(2, dim=-1).values
        tied_N1 = top_N2[:, :1] == top_N2[:, 1:]
        return torch.where(tied_N1, probs_JNC.mean(0), shares_NC)
