"""A pipeline of small stages that a process runs, saying every event; several such processes race in the tests."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from trimtab.compute import Compute
from trimtab.run.artifact import PlanRunner
from trimtab.run.local import LocalRunner
from trimtab.spec import Spec
from trimtab.stages._base import Metrics, stage

STAGES = 5


class Step(Spec):
    number: int
    seconds: float = 0.05


@stage(version=1, on="driver")
def step(spec: Step, out: Path, *, compute: Compute, after: dict[str, Path]) -> Metrics:
    """Leaves its process's id, and a mark beside the artifacts for every time that it is run."""
    with (compute.storage / "ran.txt").open("a") as file:
        file.write(f"{spec.number} {os.getpid()}\n")
    while (compute.storage / "hold").exists():
        time.sleep(0.01)
    time.sleep(spec.seconds)
    return {"number": spec.number, "pid": os.getpid()}


def laid_out(run: PlanRunner) -> None:
    """A chain: two processes that start together meet at every stage."""
    last = {}
    for number in range(STAGES):
        last = {"a": run(step, Step(number=number), after=last)}


def runner(storage: Path, **fields: object) -> LocalRunner:
    run = LocalRunner(Compute(storage=storage, backend="inline"), **fields)
    laid_out(run)
    return run


if __name__ == "__main__":
    place = Path(sys.argv[1])
    ready = runner(place, sink=lambda event: print(json.dumps(event), flush=True))
    while not (place / "go").exists():
        time.sleep(0.005)
    ready.wait()
