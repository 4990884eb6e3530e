"""Our side of bench/preference.py: pairs read once, the reference's log-probs once, one training for each loss.

Prints one JSON object: when the steps of each training ended, and its loss.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from trimtab.alignment import LogprobSpec, PairSpec, PolicySpec, PromptSpec
from trimtab.compute import Compute
from trimtab.environment import settle
from trimtab.methods.preferences.dpo import Dpo
from trimtab.parts import ModelSpec
from trimtab.run.on_ray import RayRunner
from trimtab.stages.align import align
from trimtab.stages.logprobs import logprobs
from trimtab.stages.pairs import pair
from trimtab.stages.prompts import prompts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("rows", "model", "storage"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--losses", nargs="+", required=True, help="name, or name:label_smoothing")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--groups", type=int, default=os.cpu_count(), help="trainings side by side, sharing the cores")
    return parser.parse_args()


def objective(said: str) -> Dpo:
    name, _, smoothing = said.partition(":")
    return Dpo(loss_type=name, label_smoothing=float(smoothing or 0))


def main() -> None:
    said = arguments()
    threads = max(1, (os.cpu_count() or 1) // said.groups)
    settle(threads)
    compute = Compute(
        zero_stage=2, groups=said.groups, cpus_per_worker=threads, storage=Path(said.storage), checkpoint_minutes=1e6
    )
    events: list[dict[str, Any]] = []
    run = RayRunner(compute, sink=events.append)
    model = ModelSpec(source=said.model)
    rows = run(prompts, PromptSpec(source=said.rows, max_bad_fraction=0))
    pairs = run(pair, PairSpec(), rows=rows, scores=rows)
    reference = run(logprobs, LogprobSpec(model=model), rows=rows)
    count = len(Path(said.rows).read_text(encoding="utf-8").splitlines())
    trained = {}
    for loss in said.losses:
        spec = PolicySpec(
            model=model,
            objective=objective(loss),
            batch_size=said.batch,
            learning_rate=said.learning_rate,
            num_train_epochs=said.steps * said.batch / count,
        )
        trained[loss] = run(align, spec, data=pairs, reference=reference)
    run.wait()
    told = {}
    for loss, policy in trained.items():
        heard = [e for e in events if e["event"] == "metrics" and e["stage_id"] == policy.id and "loss" in e["values"]]
        losses, metrics = [e["values"]["loss"] for e in heard], policy.metrics()
        told[loss] = {"step_ends": [e["time"] for e in heard], "losses": losses, "loss": metrics["train/loss"]}
        told[loss]["train_runtime"] = metrics["train/seconds"]
    stages = [(e["stage_id"].split("-")[0], e["seconds"]) for e in events if e["event"] == "stage_end"]
    print(json.dumps({"trainings": told, "stages": stages}))


if __name__ == "__main__":
    main()
