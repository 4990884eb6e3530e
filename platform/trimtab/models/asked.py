"""A completion that is asked for, its row while it is written, and what is told of each token.

T tokens, M models (the base first), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from trimtab.alignment import Sampling
from trimtab.lm import row_seed, uniforms
from trimtab.methods.guides._base import Guide, Linear

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Asked:
    """One completion: the prompt as each model sees it, and how to go on. No guide: the base alone."""

    prompts: tuple[list[int], ...]
    sampling: Sampling
    seed: int
    guide: Guide | None = None
    forced: tuple[int, ...] = ()
    """Tokens that the completion begins with, whatever their log-probs."""
    score_only: bool = False
    """Nothing is drawn behind them."""
    tell: int = 0
    """How many of the likeliest tokens are told at every step."""
    bias: dict[int, float] = field(default_factory=dict)
    """Added to the log-probs of tokens before one is drawn."""
    draft: int | None = None
    """The helper that may draft tokens ahead, where that is faster; the distribution stays the ensemble's."""
    presence: float = 0.0
    frequency: float = 0.0
    """Taken off a token that was drawn before: once, and for every time (OpenAI's penalties)."""


@dataclass(frozen=True)
class Told:
    """One token, its log-prob after fusion and before temperature, and what each model said of it and counted."""

    ticket: int
    id: int
    logprob: float
    likeliest: list[tuple[int, float]]
    said: tuple[float, ...]
    weights: tuple[float, ...]
    drafted: bool = False
    """Whether a helper drew it before the ensemble agreed."""
    finish: Finish | None = None


@dataclass(eq=False)
class Row:
    """A completion in its slot."""

    ticket: int
    asked: Asked
    slot: int
    counts: tuple[float, ...] | None
    """What each model counts in every step; None where that is known in the step only."""
    uniform_T: Tensor
    drawn: list[int] = field(default_factory=list)
    chances: torch.Generator | None = None
    """Random numbers of drafts and of what becomes of them."""
    logits_MV: list[Tensor | None] | None = None
    """What each model says of the next token, where that is known already."""

    @property
    def drafts(self) -> bool:
        """Whether the helper that may draft counts for it; penalties hang on drafts that may come to nothing."""
        draft, asked = self.asked.draft, self.asked
        return draft is not None and self.runs(draft) and not (asked.presence or asked.frequency)

    @property
    def left_to_force(self) -> tuple[int, ...]:
        return self.asked.forced[len(self.drawn) :]

    def runs(self, model: int) -> bool:
        """Whether the model counts for this row at all."""
        return self.counts is None or self.counts[model] != 0

    @classmethod
    def of(cls, ticket: int, asked: Asked, slot: int) -> Row:
        import torch

        models, guide = len(asked.prompts), asked.guide
        counts = (1.0,) + (0.0,) * (models - 1) if guide is None else None
        if isinstance(guide, Linear):
            counts = guide.weights(models)
        uniform_T = uniforms([asked.seed], asked.sampling.max_new_tokens + len(asked.forced))[:, 0]
        chances = torch.Generator().manual_seed(row_seed(asked.seed, "drafts", 0))
        return cls(ticket, asked, slot, counts, uniform_T, chances=chances, logits_MV=[None] * models)
