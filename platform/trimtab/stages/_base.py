"""What a stage is: a plain function from a spec and input folders to one output folder and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Metrics = dict[str, float]
Stage = Callable[..., Metrics]


def stage(*, version: int, on: Literal["driver", "workers"], resumes: bool = False) -> Callable[[Stage], Stage]:
    """Mark a function as a stage. Raise `version` by hand when its meaning changes: it enters every key.

    A stage on `workers` is called by every rank of a training group at once, with torch.distributed joined;
    what rank 0 returns are its metrics. One that `resumes` is given a folder `partial` that outlives attempts cut
    short, and goes when its output is whole: what is found there need not be made again.
    """

    def mark(function: Stage) -> Stage:
        function.version = version
        function.on = on
        function.resumes = resumes
        return function

    return mark
