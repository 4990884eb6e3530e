"""What a guide sees and gives: next-token log-probs of the models of an ensemble.

M models, the base first and its helpers in the ensemble's order; B rows, V vocabulary. Log-probs are natural.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trimtab.errors import StageError
from trimtab.methods._torch import torch
from trimtab.spec import Method

if TYPE_CHECKING:
    from torch import Tensor

NEVER, FLOOR = -1e30, -1e8
"""Log-probs of the base and of helpers below these count as this much: infinity less infinity is no number."""
HEAVIEST = 40
"""The sizes of a linear guide's weights are no more than this in all."""
Weight = Annotated[float, Field(ge=-10, le=10)]


@dataclass(frozen=True)
class Fused:
    """The next token's log-probs, and how much each model counted for them in each row."""

    logprobs_BV: Tensor
    weights_BM: Tensor


class Guide(Method):
    """A rule by which helpers steer a base."""

    @property
    def helpers(self) -> tuple[int, int | None]:
        """The least and the most helpers it takes."""
        return 1, None

    def check(self, models: int) -> None:
        """Raises StageError where the rule takes another number of models, the base counted."""
        least, most = self.helpers
        if models - 1 < least or (most is not None and models - 1 > most):
            wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            raise StageError(f"{self.kind} takes {wanted} helpers beside the base, but there are {models - 1}")


class Blend(Guide):
    """A guide that makes one distribution of those of base and helpers."""

    def __call__(self, logprobs_MBV: Tensor) -> Fused:
        """Normalised log-probs of the next token. Raises StageError where the number of models does not fit."""
        raise TypeError(f"{type(self).__name__} gives no log-probs of its own")


class Linear(Blend):
    """A weighted sum of log-probs, with the same weights for every token and row."""

    def weights(self, models: int) -> tuple[float, ...]:
        """How much each model counts, for as many models as `check` lets through."""
        raise TypeError(f"{type(self).__name__} has no weights of its own")

    def check(self, models: int) -> None:
        """Raises StageError where the rule takes another number of models, or the weights grow out of hand."""
        super().check(models)
        if (heavy := sum(map(abs, self.weights(models)))) > HEAVIEST:
            raise StageError(f"the weights of {self.kind} come to {heavy:g} in all: keep them to {HEAVIEST}")

    def __call__(self, logprobs_MBV: Tensor) -> Fused:
        models, rows, _ = logprobs_MBV.shape
        self.check(models)
        weights_BM = logprobs_MBV.new_tensor(self.weights(models)).expand(rows, -1)
        return Fused(fuse(weights_BM, logprobs_MBV), weights_BM)


def each(weight: float | tuple[float, ...], count: int) -> tuple[float, ...]:
    """One weight for each of `count` helpers, where one may have been given for all."""
    return weight if isinstance(weight, tuple) else (weight,) * count


def fuse(weights_BM: Tensor, logprobs_MBV: Tensor) -> Tensor:
    """log softmax of sum_m w_bm log p_mbv: the one operator behind all linear guides, a weight matrix over models.

    What a base of positive weight never says is never said, whatever the helpers make of it.
    """
    floor_M = logprobs_MBV.new_tensor([NEVER] + [FLOOR] * (len(logprobs_MBV) - 1))
    floored_MBV = logprobs_MBV.clamp(min=floor_M[:, None, None])
    return torch.einsum("bm,mbv->bv", weights_BM, floored_MBV).log_softmax(-1)
