"""Weak-to-strong search (Zhou et al. 2024, arXiv 2405.19262): a beam over chunks, each response scored as a whole.

The paper's score is log p_tuned - log p_untuned of a small pair, summed over the response.
Departures: a finished response stands once among those compared, where the authors' code copies it as often as it
continues the others, so that one can fill the beam; a response that the limit cut is not scored as if it had ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trimtab.methods.searches._base import Response, Round, Sampler, Scorer, Search, best, common, grown
from trimtab.ranges import Choice, Ranges

ROWS = 256
"""Responses drawn at once at most."""


class ChunkBeam(Search):
    """Zhou et al. 2024: keep `width`, continue each `samples` times by `chunk` tokens, keep the best."""

    ranges: ClassVar[Ranges] = {
        "width": Choice(choice=(1, 2, 4)),
        "samples": Choice(choice=(2, 4)),
        "chunk": Choice(choice=(5, 10, 20, 30)),
    }
    kind: Literal["chunk_beam"] = "chunk_beam"
    width: int = Field(2, ge=1, le=64, description="responses kept")
    samples: int = Field(2, ge=1, le=64, description="continuations of each")
    chunk: int = Field(10, ge=1, le=4096, description="tokens of a continuation")

    @model_validator(mode="after")
    def _possible(self) -> ChunkBeam:
        if self.width * self.samples > ROWS:
            raise ValueError(f"width x samples is {self.width * self.samples}: keep it to {ROWS}")
        return self

    def __call__(self, sampler: Sampler, scorer: Scorer, *, most: int, seed: int) -> Iterator[Round]:
        told, finished = 0, []
        parents = [Response((), False)] * self.width
        for start in range(0, most, self.chunk):
            rows = [parent for parent in parents for _ in range(self.samples)]
            length = min(self.chunk, most - start)
            children = grown(sampler, scorer, rows, most=length, seed=seed)
            kept = best([*finished, *children], self.width)
            finished = [one for one in kept if one.response.ended]
            parents = [one.response for one in kept if not one.response.ended]
            over = not parents or start + length == most
            shared = kept[0].response.ids if over else common(kept)
            yield Round(shared[told:], tuple(kept))
            told = len(shared)
            if over:
                return
