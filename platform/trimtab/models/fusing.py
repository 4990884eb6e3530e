"""From what the models say of the next token to the token that is drawn: rows of all guides together.

B places, M models (the base first), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.lm import draw
from trimtab.methods.guides._base import fuse
from trimtab.models.asked import Told

if TYPE_CHECKING:
    from torch import Tensor

    from trimtab.models.asked import Row


@dataclass(frozen=True)
class Place:
    """Where a row's next token stands: what each model says of it, None where the model does not count."""

    row: Row
    logits_MV: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Fusion:
    """What the models say, what comes of it, and how much each counted for it."""

    logprobs_MBV: Tensor
    fused_BV: Tensor
    weights: list[tuple[float, ...]]


class Fusing:
    """Models of one vocabulary, each with the tokens that it ends with."""

    def __init__(self, ends: Sequence[frozenset[int]], vocabulary: int) -> None:
        self.ends, self.vocabulary = ends, vocabulary

    def __call__(self, places: list[Place]) -> Fusion:
        """Linear rows together, whatever their guides; the others by guide."""
        logprobs_MBV, rows = self._logprobs(places), [place.row for place in places]
        fused_BV, weights = logprobs_MBV.new_empty(logprobs_MBV.shape[1:]), [row.counts for row in rows]
        if linear := [b for b, row in enumerate(rows) if row.counts is not None]:
            weights_BM = logprobs_MBV.new_tensor([rows[b].counts for b in linear])
            part = logprobs_MBV if len(linear) == len(rows) else logprobs_MBV[:, linear]
            fused_BV[linear] = fuse(weights_BM, part)
        for guide in dict.fromkeys(row.asked.guide for row in rows if row.counts is None):
            group = [b for b, row in enumerate(rows) if row.counts is None and row.asked.guide == guide]
            found = guide(logprobs_MBV[:, group])
            fused_BV[group] = found.logprobs_BV
            for b, counted in zip(group, found.weights_BM.tolist(), strict=True):
                weights[b] = tuple(counted)
        return Fusion(logprobs_MBV, fused_BV, weights)

    def _logprobs(self, places: list[Place]) -> Tensor:
        """logprobs_MBV in fp32; 0 where a model does not count."""
        import torch

        some = next(logits_V for logits_V in places[0].logits_MV if logits_V is not None)
        found = torch.zeros(len(self.ends), len(places), self.vocabulary, device=some.device)
        for m in range(len(self.ends)):
            run = [b for b, place in enumerate(places) if place.logits_MV[m] is not None]
            if run:
                found[m, run] = self.alone(torch.stack([places[b].logits_MV[m] for b in run]), m)
        return found

    def alone(self, logits_BV: Tensor, model: int) -> Tensor:
        """logprobs_BV in fp32 of one model."""
        logprobs_BV = logits_BV[:, : self.vocabulary].float().log_softmax(-1)
        self._one_end(logprobs_BV, self.ends[model])
        return logprobs_BV

    def _one_end(self, logprobs_BV: Tensor, ends: frozenset[int]) -> None:
        """All that a model ends with becomes one token, the least of the base's; other models' ends are none."""
        if all(own == self.ends[0] and len(own) == 1 for own in self.ends):
            return
        everyone, own = sorted(frozenset().union(*self.ends)), sorted(ends)
        mass_B = logprobs_BV[:, own].logsumexp(-1) if own else -math.inf
        logprobs_BV[:, everyone] = -math.inf
        if self.ends[0]:
            logprobs_BV[:, min(self.ends[0])] = mass_B

    def draw(self, places: list[Place], fused_BV: Tensor) -> list[int]:
        """The next token of each place, by the row's own settings and random numbers."""
        import torch

        next_B, rows = torch.empty(len(places), dtype=torch.long), [place.row for place in places]
        for sampling in dict.fromkeys(row.asked.sampling for row in rows):
            group = [b for b, row in enumerate(rows) if row.asked.sampling == sampling]
            wanted_BV = self.adjusted([rows[b] for b in group], fused_BV[group])
            uniform_B = torch.stack([rows[b].uniform_T[len(rows[b].drawn)] for b in group])
            next_B[group] = draw(wanted_BV, sampling, uniform_B.to(fused_BV.device)).cpu()
        return next_B.tolist()

    def adjusted(self, rows: list[Row], fused_BV: Tensor) -> Tensor:
        """With the bias and penalties of the rows that have any."""
        for b, asked in enumerate(row.asked for row in rows):
            for token, value in asked.bias.items():
                fused_BV[b, token] += value
            if rows[b].drawn and (asked.presence or asked.frequency):
                ids, times = fused_BV.new_tensor(rows[b].drawn).long().unique(return_counts=True)
                fused_BV[b, ids] -= asked.presence + asked.frequency * times
            if asked.bias or asked.presence or asked.frequency:
                fused_BV[b] = fused_BV[b].log_softmax(-1)
        return fused_BV

    def told(self, places: list[Place], fusion: Fusion, tokens: list[int]) -> list[Told]:
        """What is told of the tokens that were taken; whether a row ends with one is not known here."""
        next_B = fusion.fused_BV.new_tensor(tokens).long()
        picked_B = fusion.fused_BV.gather(1, next_B[:, None])[:, 0].tolist()
        said_BM = fusion.logprobs_MBV.gather(2, next_B.expand(len(self.ends), -1)[..., None])[..., 0].T.tolist()
        return [
            Told(
                ticket=place.row.ticket,
                id=token,
                logprob=picked_B[b],
                likeliest=_likeliest(place.row.asked.tell, fusion.fused_BV[b]),
                said=tuple(said_BM[b]),
                weights=fusion.weights[b],
            )
            for b, (place, token) in enumerate(zip(places, tokens, strict=True))
        ]


def _likeliest(count: int, fused_V: Tensor) -> list[tuple[int, float]]:
    if not count:
        return []
    values, ids = fused_V.topk(min(count, len(fused_V)))
    return list(zip(ids.tolist(), values.tolist(), strict=True))
