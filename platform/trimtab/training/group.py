"""Training groups: Ray Train workers that stay alive and run one stage after another.

One `fit()` costs seconds of processes and imports before it trains; a group pays that once. Its workers ask a desk
for the next stage, run it together, and say how it ended. Ray Train restarts a group whose worker died, and the
desk hands out the interrupted stage again.
"""

from __future__ import annotations

import os
import threading
import traceback
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trimtab import errors, progress
from trimtab.compute import Compute
from trimtab.run_log import clear, log_of, logged_to
from trimtab.training.desk import End
from trimtab.training.postmortem import Beat
from trimtab.training.vitals import Vitals
from trimtab.training.world import world

STARTS = 5
"""Times that the workers of a group may fail to come, each after RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S."""
AFTER_STACKS_S = 1.0
"""How much later than the ranks, which then leave their stacks, the driver takes a stage for hung."""


def serve(config: dict[str, Any]) -> None:
    """What every worker of a group does: stages from the desk, for as long as the group lives."""
    import torch

    if os.path.isdir(config["cwd"]):
        os.chdir(config["cwd"])
    torch.set_num_threads(config["threads"])
    desk, group, done = config["desk"], config["group"], -1
    ranks = world()
    life = ranks.gather(uuid.uuid4().hex)[0]
    ray.get(desk.begin.remote(group, life, ranks.size))
    while True:
        done, task = ray.get(desk.next.remote(group, life, done))
        if task is None:
            return
        end = _run(task, desk, group)
        ray.get(desk.end.remote(group, ranks.rank, ticket=task["ticket"], end=end))
        if end.error and ranks.size > 1:
            raise errors.StageError(f"{end.kind}: {end.error}")


def _run(task: dict[str, Any], desk: Any, group: int) -> End:
    ranks, compute, carrier = world(), task["compute"], task["carrier"]
    out = carrier.place(Path(task["out"]))
    if task["attempt"]:
        if ranks.first:
            clear(out)
        ranks.gather(None)

    def say(event: dict[str, Any]) -> None:
        desk.say.remote({"stage_id": task["stage_id"], **event})

    def send(beat: Beat) -> None:
        desk.beat.remote(group, ranks.rank, ticket=task["ticket"], beat=beat)

    log = out / log_of(ranks.rank)
    vitals = Vitals(log, ray.get_runtime_context().get_node_id(), send, hang_s=compute.hang_s)
    with logged_to(log), vitals, progress.listening(vitals.hearing(say if ranks.first else lambda event: None)):
        try:
            with carrier.around(out, ranks):
                return End(task["stage"](task["spec"], out, compute=compute, **task["arguments"]))
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            return End.failed(error, ranks.rank)


def _place(compute: Compute) -> dict[str, Any]:
    """Where Ray Train leaves its marks: all nodes must see them."""
    if compute.remote is None:
        return {"storage_path": str((compute.storage / "ray").resolve())}
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, root = fsspec.url_to_fs(f"{compute.remote}/ray")
    return {"storage_path": root, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


class Group:
    """The driver's side of one group: a thread in which `TorchTrainer.fit()` runs."""

    def __init__(self, desk: Any, number: int, compute: Compute) -> None:
        self.desk, self.number, self.compute = desk, number, compute
        self.failure: BaseException | None = None
        self.stopping = self.begun = False
        self.thread = self._started()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._fit, name=f"group {self.number}", daemon=True)
        thread.start()
        return thread

    def _fit(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from trimtab.training.witness import Witness

        compute = self.compute
        config = {"desk": self.desk, "group": self.number, "cwd": os.getcwd()}
        gpus = compute.gpus(ray.cluster_resources().get("GPU", 0))
        resources = {"CPU": compute.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
        try:
            TorchTrainer(
                serve,
                train_loop_config=config | {"threads": max(1, int(compute.cpus_per_worker))},
                scaling_config=ScalingConfig(
                    num_workers=(compute.min_workers, compute.workers) if compute.min_workers else compute.workers,
                    elastic_resize_monitor_interval_s=60 * compute.checkpoint_minutes,
                    use_gpu="GPU" in resources,
                    resources_per_worker=resources,
                ),
                run_config=RunConfig(
                    name=f"group-{self.number}-{uuid.uuid4().hex[:8]}",
                    **_place(compute),
                    failure_config=FailureConfig(
                        max_failures=compute.max_failures,
                        max_preemption_failures=-1 if compute.max_preemptions is None else compute.max_preemptions,
                        controller_failure_limit=STARTS,
                    ),
                    callbacks=[Witness(self.desk, self.number)],
                ),
            ).fit()
        except BaseException as error:  # noqa: BLE001
            self.failure = error

    def up(self) -> None:
        """Wait until its workers have been there, or are not to come."""
        begun = None if self.begun else self.desk.begun.remote(self.number)
        while not self.begun and self.thread.is_alive() and not self.stopping:
            self.begun = bool(ray.wait([begun], timeout=0.5)[0])

    def run(self, task: dict[str, Any]) -> dict[str, float]:
        """Run a stage on this group and wait; what rank 0 returned. Workers that an earlier stage used up are replaced.

        Raises the stage's own TrimtabError, OutOfMemory, StageError when it failed otherwise, hung, or the workers are
        gone, or Stopped.
        """
        outcome, revived = self.desk.work.remote(self.number, task), False
        while not ray.wait([outcome], timeout=1.0)[0]:
            if self.stopping:
                raise errors.Stopped("it was stopped")
            self._watch(task["compute"].hang_s)
            if not self.thread.is_alive() and not ray.wait([outcome], timeout=1.0)[0]:
                if revived or not ray.get(self.desk.untouched.remote(self.number)):
                    raise self._lost()
                self.thread, revived = self._started(), True
        end = ray.get(outcome)
        if end.error is None:
            return end.metrics
        raise _error(end)

    def _watch(self, hang_s: float | None) -> None:
        """End the workers of a stage that has not got on for too long; they have left their stacks in their logs."""
        if hang_s is None or ray.get(self.desk.idle.remote(self.number)) <= hang_s + AFTER_STACKS_S:
            return
        for beat in ray.get(self.desk.hangs.remote(self.number)):
            there = NodeAffinitySchedulingStrategy(beat.node, soft=False)
            ray.remote(num_cpus=0, scheduling_strategy=there)(_kill).remote(beat.pid)

    def _lost(self) -> errors.StageError:
        end = ray.get(self.desk.trouble.remote(self.number))
        if end is None:
            return errors.StageError(f"its workers died: {self.failure or 'the group ended early'}")
        told = end.error if end.cause != "exception" else f"{end.kind}: {end.error}"
        return _error(replace(end, kind="StageError", error=f"its workers died: {told}"))

    def stop(self) -> None:
        """Let go of a stage that waits."""
        self.stopping = True


def _kill(pid: int) -> None:
    """End a worker of Ray's that is still the one it was."""
    process = psutil.Process(pid)
    if "ray::" in " ".join(process.cmdline()):
        process.kill()


def _error(end: End) -> errors.TrimtabError:
    own = getattr(errors, end.kind, None)
    error = own(end.error) if own else errors.StageError(f"{end.kind}: {end.error}")
    if isinstance(error, errors.StageError):
        error.rank, error.cause = end.rank, end.cause
    return error
