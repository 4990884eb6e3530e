"""ARGS (Khanov et al. 2024, arXiv 2402.01694): the base's likeliest tokens, reranked by a reward of each.

Departure: log-probs stand where the paper has raw logits; the two differ by one number a row, which ranks nothing anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trimtab.errors import StageError
from trimtab.methods._torch import torch
from trimtab.methods.guides._base import Fused, Guide, Weight
from trimtab.ranges import Choice, LogUniform, Ranges

if TYPE_CHECKING:
    from torch import Tensor


class Args(Guide):
    """Khanov et al. 2024: log p(v | prefix) + weight r(prefix, v) over the base's top k, K tokens a row.

    The reward comes in between: ask `candidates`, score prefix and token, and call.
    """

    ranges: ClassVar[Ranges] = {"weight": LogUniform(loguniform=(0.5, 2)), "k": Choice(choice=(5, 10, 20))}
    kind: Literal["args"] = "args"
    k: int = Field(10, ge=1, le=100, description="tokens of the base that are looked at")
    weight: Weight = Field(1.0, description="weight of the reward")

    @property
    def helpers(self) -> tuple[int, int | None]:
        """The reward model."""
        return 1, 1

    def candidates(self, logprobs_BV: Tensor) -> Tensor:
        """ids_BK of the tokens that need a reward, the likeliest first."""
        return logprobs_BV.topk(min(self.k, logprobs_BV.shape[-1])).indices

    def __call__(self, logprobs_BV: Tensor, ids_BK: Tensor, rewards_BK: Tensor) -> Fused:
        """Normalised log-probs, -inf off the candidates. Raises StageError unless each candidate has a reward."""
        if rewards_BK.shape != ids_BK.shape:
            shapes = f"{tuple(ids_BK.shape)}, rewards for {tuple(rewards_BK.shape)}"
            raise StageError(f"there are candidates for {shapes}: give each candidate one reward")
        scores_BK = logprobs_BV.gather(-1, ids_BK) + self.weight * rewards_BK.to(logprobs_BV)
        fused_BV = torch.full_like(logprobs_BV, -torch.inf).scatter(-1, ids_BK, scores_BK.log_softmax(-1))
        return Fused(fused_BV, logprobs_BV.new_tensor([1, self.weight]).expand(len(logprobs_BV), -1))
