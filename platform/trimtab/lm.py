"""What every language model can be asked, how a next token is drawn, and a model made of a table.

B rows, V vocabulary, N blocks of the vocabulary, T steps. Token ids in and out; text is the caller's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from trimtab.alignment import Sampling

BLOCK = 256
"""Tokens whose probabilities are summed at once when one is drawn."""
PART = 32
"""Tokens of which only the largest weight is compared when the likeliest are sought; a block is whole parts."""
REACHES = (64, 1024)
"""How many of the likeliest tokens are looked at for top_p before all are sorted."""


@dataclass(frozen=True)
class TokenScores:
    """A completion's token ids and the natural log-prob of each under a model."""

    ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class Generated:
    """Tokens drawn, and their log-probs under the model itself whatever temperature and filters they were drawn with.

    Where it `ended`, the last of them is the end token.
    """

    ids: list[int]
    logprobs: list[float]
    ended: bool


class LM(Protocol):
    """A language model over token ids."""

    def next_logprobs(self, contexts: list[list[int]]) -> Tensor:
        """logprobs_BV in fp32 of the token after each context."""
        ...

    def score(self, prompts: list[list[int]], completions: list[list[int]]) -> list[TokenScores]:
        """log p of every completion token given the prompt and the tokens before it."""
        ...

    def generate(self, prompts: list[list[int]], sampling: Sampling, seeds: list[int]) -> list[Generated]:
        """One completion a prompt (give a prompt several times for several), drawn with random numbers of its seed."""
        ...


def row_seed(seed: int, row_id: str, sample: int) -> int:
    """A seed for one completion of one row, the same wherever and beside whatever it is drawn."""
    digest = hashlib.blake2b(f"{seed}:{sample}:{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def uniforms(seeds: list[int], steps: int) -> Tensor:
    """uniform_TB in [0, 1) in fp64: each column from a generator of its own seed."""
    import torch

    rows = [torch.rand(steps, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    return torch.stack(rows, dim=1)


def draw(logprobs_BV: Tensor, sampling: Sampling, uniform_B: Tensor) -> Tensor:
    """ids_B: the next token of each row, by one uniform number a row; a row's token depends on nothing else.

    Temperature first, then top_k, then top_p (Holtzman et al. 2020); tokens as likely as the last one kept are kept.
    """
    if sampling.temperature == 0:
        return logprobs_BV.argmax(-1)
    weights_BV = weighed(logprobs_BV, sampling)
    return _invert(weights_BV, uniform_B).clamp(max=logprobs_BV.shape[-1] - 1)  # past the end only where all is NaN


def weighed(logprobs_BV: Tensor, sampling: Sampling) -> Tensor:
    """weights_BV, not normalised and padded to whole blocks, by which a token is drawn; for a temperature above 0."""
    from torch.nn.functional import pad

    scores_BV = logprobs_BV
    if sampling.temperature != 1:
        scores_BV = (logprobs_BV - logprobs_BV.amax(-1, keepdim=True)) / sampling.temperature
    weights_BV = scores_BV.exp()
    if over := weights_BV.shape[-1] % BLOCK:
        weights_BV = pad(weights_BV, (0, BLOCK - over))
    if 0 < sampling.top_k < logprobs_BV.shape[-1]:
        least_B1 = _likeliest(weights_BV, sampling.top_k)[:, -1:]
        weights_BV.masked_fill_(weights_BV < least_B1, 0)
    if sampling.top_p < 1:
        least_B1 = _least_of_nucleus(weights_BV, sampling.top_p)
        weights_BV.masked_fill_(weights_BV < least_B1, 0)
    return weights_BV


def _likeliest(weights_BV: Tensor, k: int) -> Tensor:
    """The k largest of each row's weights, falling: they are in the k parts of the row with the largest maxima."""
    parts = weights_BV.unflatten(-1, (-1, PART))
    if k >= parts.shape[1]:
        return weights_BV.topk(min(k, weights_BV.shape[-1])).values
    which = parts.amax(-1).topk(k, sorted=False).indices[..., None]
    return parts.gather(1, which.expand(-1, -1, PART)).flatten(1).topk(k).values


def _least_of_nucleus(weights_BV: Tensor, top_p: float) -> Tensor:
    """The smallest weight_B1 of the fewest tokens that hold `top_p` of the mass; only rows that need it are sorted."""
    import torch

    enough_B1 = top_p * weights_BV.sum(-1, keepdim=True)
    least_B1 = torch.zeros_like(enough_B1)
    rows = torch.arange(len(weights_BV), device=weights_BV.device)
    for reach in (*REACHES, weights_BV.shape[-1]):
        top = _likeliest(weights_BV[rows], reach)
        held = top.cumsum(-1)
        last = torch.searchsorted(held, enough_B1[rows]).clamp(max=top.shape[-1] - 1)
        least_B1[rows] = top.gather(-1, last)
        rows = rows[held[:, -1] < enough_B1[rows, 0]]
        if not len(rows):
            break
    return least_B1


def _invert(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Tokens at which the cumulated weights_BV pass uniform_B of their sum: first the block, then the token."""
    import torch

    blocks = weights_BV.unflatten(-1, (-1, BLOCK))
    sums_BN = blocks.sum(-1).double().cumsum(-1)
    wanted_B1 = uniform_B.to(sums_BN)[:, None] * sums_BN[:, -1:]
    block_B1 = torch.searchsorted(sums_BN, wanted_B1, right=True).clamp(max=sums_BN.shape[-1] - 1)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block_B1[:, 0]].double().cumsum(-1)
    before_B1 = sums_BN.gather(-1, (block_B1 - 1).clamp(min=0)) * (block_B1 > 0)
    rest_B1 = torch.minimum(wanted_B1 - before_B1, inside[:, -1:] * (1 - 1e-12))
    return (block_B1 * BLOCK + torch.searchsorted(inside, rest_B1, right=True))[:, 0]


class ScriptedLM:
    """A language model that follows a rule: from the tokens so far to the log-probs of the next.

    A real model in every respect but its size: it draws, ends and scores like the others.
    """

    def __init__(self, rule: Callable[[tuple[int, ...]], Sequence[float]], *, end_ids: frozenset[int]) -> None:
        self.rule, self.end_ids = rule, end_ids

    @classmethod
    def from_table(
        cls, table: Mapping[tuple[int, ...], Sequence[float]], *, end_ids: frozenset[int] = frozenset()
    ) -> ScriptedLM:
        """The rule is the entry of the longest ending of the context that the table has; it needs one for ()."""

        def rule(context: tuple[int, ...]) -> Sequence[float]:
            return next(table[context[i:]] for i in range(len(context) + 1) if context[i:] in table)

        return cls(rule, end_ids=end_ids)

    def next_logprobs(self, contexts: list[list[int]]) -> Tensor:
        """logprobs_BV in fp32 of the token after each context."""
        import torch

        return torch.tensor([list(self.rule(tuple(context))) for context in contexts])

    def score(self, prompts: list[list[int]], completions: list[list[int]]) -> list[TokenScores]:
        """log p of every completion token given the prompt and the tokens before it."""
        return [
            TokenScores(ids, [float(self.rule((*prompt, *ids[:i]))[token]) for i, token in enumerate(ids)])
            for prompt, ids in zip(prompts, completions, strict=True)
        ]

    def generate(self, prompts: list[list[int]], sampling: Sampling, seeds: list[int]) -> list[Generated]:
        """One completion a prompt, drawn with random numbers of its seed."""
        drawn: list[list[int]] = [[] for _ in prompts]
        alive = list(range(len(prompts)))
        for uniform_B in uniforms(seeds, sampling.max_new_tokens) if prompts else ():
            if not alive:
                break
            logprobs_BV = self.next_logprobs([prompts[i] + drawn[i] for i in alive])
            for i, token in zip(alive, draw(logprobs_BV, sampling, uniform_B[alive]).tolist(), strict=True):
                drawn[i].append(token)
            alive = [i for i in alive if drawn[i][-1] not in self.end_ids]
        scores = self.score(prompts, drawn)
        ended = [bool(ids) and ids[-1] in self.end_ids for ids in drawn]
        return [Generated(s.ids, s.logprobs, end) for s, end in zip(scores, ended, strict=True)]
