"""Training groups: Ray Train workers that stay alive and run one stage after another.

One `fit()` costs seconds of processes and imports before it trains; a group pays that once. Its workers ask a desk
for the next stage, run it together, and say how it ended. Ray Train restarts a group whose worker died, and the
desk hands out the interrupted stage again.
"""

from __future__ import annotations

import os
import shutil
import threading
import traceback
import uuid
from pathlib import Path
from typing import Any

import ray

from trimtab import errors, progress
from trimtab.compute import Compute
from trimtab.run_log import LOG, log_of, logged_to
from trimtab.training.desk import End
from trimtab.training.world import world


def serve(config: dict[str, Any]) -> None:
    """What every worker of a group does: stages from the desk, for as long as the group lives."""
    import torch

    if os.path.isdir(config["cwd"]):
        os.chdir(config["cwd"])
    torch.set_num_threads(config["threads"])
    desk, group, done = config["desk"], config["group"], -1
    ranks = world()
    life = ranks.gather(uuid.uuid4().hex)[0]
    ray.get(desk.begin.remote(group, life))
    while True:
        done, task = ray.get(desk.next.remote(group, life, done))
        if task is None:
            return
        end = _run(task, desk)
        ray.get(desk.end.remote(group, ranks.rank, ticket=task["ticket"], end=end))
        if end.error and ranks.size > 1:
            raise errors.StageError(f"{end.kind}: {end.error}")


def _run(task: dict[str, Any], desk: Any) -> End:
    ranks, out = world(), Path(task["out"])
    if task["attempt"]:
        _clear(out)

    def say(event: dict[str, Any]) -> None:
        desk.say.remote({"stage_id": task["stage_id"], **event})

    with progress.listening(say if ranks.first else lambda event: None):
        with logged_to(out / log_of(ranks.rank)):
            try:
                return End(task["stage"](task["spec"], out, compute=task["compute"], **task["arguments"]))
            except Exception as error:  # noqa: BLE001
                traceback.print_exc()
                return End.failed(error, ranks.rank)


def _clear(out: Path) -> None:
    """Rank 0 removes what an interrupted attempt left, but for the logs; the others wait."""
    ranks = world()
    for left in out.iterdir() if ranks.first else ():
        if left.is_dir():
            shutil.rmtree(left)
        elif not left.name.endswith(LOG):
            left.unlink()
    ranks.gather(None)


class Group:
    """The driver's side of one group: a thread in which `TorchTrainer.fit()` runs."""

    def __init__(self, desk: Any, number: int, compute: Compute) -> None:
        self.desk, self.number, self.compute = desk, number, compute
        self.failure: BaseException | None = None
        self.stopping = False
        self.thread = threading.Thread(target=self._fit, name=f"group {number}", daemon=True)
        self.thread.start()

    def _fit(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        compute = self.compute
        config = {"desk": self.desk, "group": self.number, "cwd": os.getcwd()}
        gpus = compute.gpus(ray.cluster_resources().get("GPU", 0))
        resources = {"CPU": compute.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
        failures = FailureConfig(max_failures=compute.max_failures, controller_failure_limit=0)
        try:
            TorchTrainer(
                serve,
                train_loop_config=config | {"threads": max(1, int(compute.cpus_per_worker))},
                scaling_config=ScalingConfig(
                    num_workers=compute.workers, use_gpu="GPU" in resources, resources_per_worker=resources
                ),
                run_config=RunConfig(
                    name=f"group-{self.number}-{uuid.uuid4().hex[:8]}",
                    storage_path=str((compute.storage / "ray").resolve()),
                    failure_config=failures,
                ),
            ).fit()
        except BaseException as error:  # noqa: BLE001
            self.failure = error

    def up(self) -> None:
        """Wait until its workers are there, or are not to come."""
        begun = self.desk.begun.remote(self.number)
        while self.thread.is_alive() and not self.stopping and not ray.wait([begun], timeout=0.5)[0]:
            pass

    def run(self, task: dict[str, Any]) -> dict[str, float]:
        """Run a stage on this group and wait; what rank 0 returned.

        Raises the stage's own TrimtabError, StageError when it failed otherwise or the workers are gone, or Stopped.
        """
        ray.get(self.desk.give.remote(self.number, task | {"compute": self.compute}))
        outcome = self.desk.outcome.remote(self.number)
        while not ray.wait([outcome], timeout=1.0)[0]:
            if self.stopping:
                raise errors.Stopped("it was stopped")
            if not self.thread.is_alive() and not ray.wait([outcome], timeout=1.0)[0]:
                said = ray.get(self.desk.trouble.remote(self.number)) or self.failure or "the group ended early"
                raise errors.StageError(f"its workers died: {said}")
        end = ray.get(outcome)
        if end.error is None:
            return end.metrics
        own = getattr(errors, end.kind, None)
        error = own(end.error) if own else errors.StageError(f"{end.kind}: {end.error}")
        if isinstance(error, errors.StageError):
            error.rank = end.rank
        raise error

    def stop(self) -> None:
        """Let go of a stage that waits."""
        self.stopping = True
