"""Best-of-n (Stiennon et al. 2020, arXiv 2009.01325; Nakano et al. 2021): of n responses the one that scores best."""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import ClassVar, Literal

from pydantic import Field

from trimtab.methods.searches._base import Response, Round, Sampler, Scorer, Search, best, grown
from trimtab.ranges import Choice, Ranges


class BestOfN(Search):
    """Stiennon et al. 2020: argmax_i score(y_i), y_1 ... y_n drawn from the base."""

    ranges: ClassVar[Ranges] = {"n": Choice(choice=(2, 4, 8, 16))}
    kind: Literal["best_of_n"] = "best_of_n"
    n: int = Field(4, ge=1, le=256, description="responses drawn")

    @property
    def kl(self) -> float:
        """Log n - (n - 1) / n (Stiennon et al. 2020), which no response is beyond on average (Beirami et al. 2024)."""
        return log(self.n) - (self.n - 1) / self.n

    def __call__(self, sampler: Sampler, scorer: Scorer, *, most: int, seed: int) -> Iterator[Round]:
        whole = grown(sampler, scorer, [Response((), False)] * self.n, most=most, seed=seed)
        kept = best(whole, self.n)
        yield Round(kept[0].response.ids, tuple(kept))
