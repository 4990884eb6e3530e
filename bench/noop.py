"""Stages that do nothing, in a module of their own so that workers import them as they import real ones."""

from __future__ import annotations

from pathlib import Path

from trimtab.compute import Compute
from trimtab.run.artifact import Artifact, PlanRunner
from trimtab.spec import Spec
from trimtab.stages._base import Metrics, Stage, stage

WIDTH = 10


class Number(Spec):
    number: int


@stage(version=1, on="workers")
def nothing(spec: Number, out: Path, *, compute: Compute, after: dict[str, Path]) -> Metrics:
    return {"number": spec.number}


@stage(version=1, on="driver")
def nothing_here(spec: Number, out: Path, *, compute: Compute, after: dict[str, Path]) -> Metrics:
    return {"number": spec.number}


def lay_out(run: PlanRunner, count: int, called: Stage = nothing) -> None:
    """Layers of ten stages; each needs two of the layer before."""
    before: list[Artifact] = []
    for first in range(0, count, WIDTH):
        layer = []
        for place in range(min(WIDTH, count - first)):
            after = {name: before[(place + i) % WIDTH] for i, name in enumerate("ab")} if before else {}
            layer.append(run(called, Number(number=first + place), after=after))
        before = layer
