"""Exact speculation (Leviathan et al. 2023, algorithm 1; Chen et al. 2023): a helper drafts, the ensemble decides.

A draft x from q is kept with probability min(1, p(x) / q(x)), p being the fused distribution at its place. The first
that is not kept is drawn anew from max(p - q, 0), and behind K kept ones another token comes from p. Whatever q is,
what comes out is distributed as p.

B rows, K drafts, M models (the base first), V vocabulary.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from trimtab.lm import weighed
from trimtab.models.fusing import Place

if TYPE_CHECKING:
    from torch import Tensor

    from trimtab.alignment import Sampling
    from trimtab.models.asked import Row, Told
    from trimtab.models.decode import Decoder

COUNTS = (1, 2, 3, 4, 6)
AGAIN = 64
"""Plain steps after which drafting is tried once more."""
MEMORY = 0.95
"""How much of a running mean stays when something new is measured."""


class Pace:
    """How many tokens a helper had better draft, by what was measured: acceptance, and seconds of a read."""

    def __init__(self, models: int) -> None:
        self.acceptance, self.stretch = 0.8, 1.2
        self.seconds: list[float | None] = [None] * models
        self.drafted = self.accepted = self._plain = 0

    def read(self, model: int, seconds: float) -> None:
        """A model read one token of each row."""
        self.seconds[model] = _mean(self.seconds[model], seconds)

    def burst(self, drafted: int, accepted: int, stretch: float) -> None:
        """Drafts that were looked at, those that were kept, and how long checking took against reading one token."""
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted
        self.acceptance = MEMORY**drafted * self.acceptance + (1 - MEMORY**drafted) * accepted / drafted
        self.stretch = _mean(self.stretch, stretch)

    def count(self, helper: int, others: list[int]) -> int:
        """Drafts of the next burst; 0 where a plain step is faster."""
        times = [self.seconds[m] for m in (helper, *others)]
        if any(one is None for one in times):
            return 0
        own, rest = times[0], sum(times[1:])
        speeds = {0: 1 / (own + rest)} | {
            k: sum(self.acceptance**i for i in range(k + 1)) / ((k + 1) * own + rest * self.stretch) for k in COUNTS
        }
        best = max(speeds, key=lambda k: speeds[k])
        self._plain = 0 if best else self._plain + 1
        return best or (2 if self._plain % AGAIN == 0 else 0)


def _mean(old: float | None, new: float) -> float:
    return new if old is None else MEMORY * old + (1 - MEMORY) * new


def burst(decoder: Decoder, rows: list[Row], *, helper: int, count: int) -> list[Told]:
    """One to `count` + 1 tokens more of every row, whose last token no model has read yet."""
    rows = sorted(rows, key=lambda row: row.slot)
    drafts_BK, q_BKV, said_BKV = _drafted(decoder, rows, helper, count)
    read = [(row.slot, row.drawn[-1:] + drafts_BK[b]) for b, row in enumerate(rows)]
    others = [m for m in range(len(decoder.models)) if m != helper and rows[0].runs(m)]
    logits_MBKV: list[Tensor | None] = [None] * len(decoder.models)
    logits_MBKV[helper] = said_BKV
    started = time.perf_counter()
    for m in others:
        logits_MBKV[m] = decoder.models[m].read(read, last=count + 1)
        decoder.tokens[m] += len(rows) * (count + 1)
    stretch = (time.perf_counter() - started) / sum(decoder.pace.seconds[m] for m in others)
    places = [
        Place(row, tuple(None if logits is None else logits[b, i] for logits in logits_MBKV))
        for b, row in enumerate(rows)
        for i in range(count + 1)
    ]
    fusion = decoder.fusing(places)
    wanted_BV = decoder.fusing.adjusted([place.row for place in places], fusion.fused_BV.clone())
    p_BKV = _probabilities(wanted_BV, [place.row.asked.sampling for place in places]).unflatten(0, (len(rows), -1))
    tokens, kept = [], []
    for b, row in enumerate(rows):
        taken = _decided(row, drafts_BK[b], p_BKV[b], q_BKV[b])
        tokens += taken + [0] * (count + 1 - len(taken))
        kept.append(len(taken))
    decoder.pace.burst(sum(min(n, count) for n in kept), sum(kept) - len(kept), stretch)
    return _taken(decoder, places, fusion, tokens, kept)


def _drafted(decoder: Decoder, rows: list[Row], helper: int, count: int) -> tuple[list[list[int]], Tensor, Tensor]:
    """Drafts, the distributions that they are from, and the helper's logits at every place, the last one's included."""
    import torch

    drafts_BK: list[list[int]] = [[] for _ in rows]
    ids = [row.drawn[-1:] for row in rows]
    q_KBV, said_KBV = [], []
    for _ in range(count + 1):
        started = time.perf_counter()
        logits_BV = decoder.models[helper].read([(row.slot, ids[b]) for b, row in enumerate(rows)])[:, -1]
        decoder.pace.read(helper, time.perf_counter() - started)
        decoder.tokens[helper] += len(rows)
        said_KBV.append(logits_BV)
        if len(q_KBV) < count:
            q_BV = _probabilities(decoder.fusing.alone(logits_BV, helper), [row.asked.sampling for row in rows])
            ids = [[_pick(q_BV[b], row)] for b, row in enumerate(rows)]
            q_KBV.append(q_BV)
            for b, one in enumerate(ids):
                drafts_BK[b] += one
    return drafts_BK, torch.stack(q_KBV, 1), torch.stack(said_KBV, 1)


def _probabilities(logprobs_BV: Tensor, sampling: list[Sampling]) -> Tensor:
    """What tokens are drawn by, after temperature and filters."""
    import torch

    found_BV = torch.zeros_like(logprobs_BV)
    for one in dict.fromkeys(sampling):
        group = [b for b, own in enumerate(sampling) if own == one]
        if one.temperature == 0:
            found_BV[group, logprobs_BV[group].argmax(-1)] = 1
        else:
            weights_BV = weighed(logprobs_BV[group], one)[:, : logprobs_BV.shape[-1]]
            found_BV[group] = weights_BV / weights_BV.sum(-1, keepdim=True)
    return found_BV


def _decided(row: Row, drafts_K: list[int], p_KV: Tensor, q_KV: Tensor) -> list[int]:
    import torch

    for k, token in enumerate(drafts_K):
        chance = torch.rand((), generator=row.chances, dtype=torch.float64).item()
        if chance * float(q_KV[k, token]) >= float(p_KV[k, token]):
            rest_V = (p_KV[k] - q_KV[k]).clamp(min=0)
            return [*drafts_K[:k], _pick(rest_V if rest_V.sum() > 0 else p_KV[k], row)]
    return [*drafts_K, _pick(p_KV[-1], row)]


def _pick(weights_V: Tensor, row: Row) -> int:
    import torch

    total_V = weights_V.double().cumsum(-1)
    wanted = torch.rand((), generator=row.chances, dtype=torch.float64).to(total_V) * total_V[-1]
    return min(int(torch.searchsorted(total_V, wanted, right=True)), int(weights_V.nonzero()[-1]))


def _taken(decoder: Decoder, places: list[Place], fusion: object, tokens: list[int], kept: list[int]) -> list[Told]:
    """The tokens belong to their rows as far as those go; what was read beyond is taken back."""
    from dataclasses import replace

    width = len(places) // len(kept)
    told = []
    for i, one in enumerate(decoder.fusing.told(places, fusion, tokens)):
        row, k = places[i].row, i % width
        if k < kept[i // width] and row.ticket in decoder.rows:
            told.append(replace(decoder.take(row, one), drafted=k < kept[i // width] - 1))
    for row in dict.fromkeys(place.row.ticket for place in places):
        if row in decoder.rows:
            decoder.take_back(decoder.rows[row])
    return told
