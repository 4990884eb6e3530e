"""A driver of its own for the tests of nodes: trainings on workers of a CPU each, which wait where a file says so.

Arguments: the storage folder, how many workers, and the stages to run (train, held). Prints events as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from trimtab.compute import Compute
from trimtab.parts import TrainSpec
from trimtab.run.artifact import Artifact
from trimtab.run.gauges import Gauges
from trimtab.run.log import EventLog
from trimtab.run.on_ray import RayRunner, initialised
from trimtab.stages._base import Metrics, stage
from trimtab.stages.train import train


@stage(version=1, on="workers", resumes=True)
def held(spec: TrainSpec, out: Path, *, compute: Compute, data: Path, partial: Path) -> Metrics:
    """Stage train, in which all ranks wait after a step's checkpoint while a file hold-STEP lies in the storage."""
    from trimtab.training import callbacks
    from trimtab.training.world import world

    def wait(self, args, state, control, **kwargs) -> None:
        hold = compute.storage / f"hold-{state.global_step}"
        if hold.exists() and world().first:
            (compute.storage / f"at-{state.global_step}").touch()
        while hold.exists():
            time.sleep(0.02)

    callbacks.Keep.on_save = wait
    return train(spec, out, compute=compute, data=data, partial=partial)


def say(event: dict[str, Any]) -> None:
    """As JSON, with the node that this driver is on."""
    import ray

    node = {"node": ray.get_runtime_context().get_node_id()} if initialised() else {}
    print(json.dumps(event | node), flush=True)


def main(storage: Path, workers: int, stages: list[str]) -> None:
    log = EventLog(storage / "runs" / "driven", [say, Gauges()])
    log({"event": "run_start", "kind": "driven"})
    settings = {"workers": workers, "zero_stage": 2, "checkpoint_steps": 1, "max_failures": 1, "grows": True}
    run = RayRunner(Compute(storage=storage, **settings), sink=log)
    rows = Artifact("rows", "weak", run.compute.artifacts.resolve())
    spec = TrainSpec.model_validate_json((storage / "spec.json").read_text())
    for name in stages:
        run({"train": train, "held": held}[name], spec, data=rows)
    run.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
