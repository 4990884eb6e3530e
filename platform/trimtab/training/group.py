"""Training groups: Ray Train workers that stay alive and run one stage after another.

One `fit()` costs seconds of processes and imports before it trains; a group pays that once. Its workers ask a desk
for the next stage, run it together, and say how it ended. Ray Train restarts a group whose worker died, and the
desk hands out the interrupted stage again.
"""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trimtab import errors, progress
from trimtab.compute import Compute
from trimtab.run_log import clear, log_of, logged_to
from trimtab.training.postmortem import Beat, End, Place, lengths, since
from trimtab.training.vitals import Vitals
from trimtab.training.world import world

STARTS = 5
"""Times in all that the workers of a group may fail to come, each after RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S."""
READ_WITHIN_S = 90.0
AFTER_STACKS_S = 10.0
"""How much later than the ranks, which then leave their stacks, the driver takes a stage for hung."""


def serve(config: dict[str, Any]) -> None:
    """What every worker of a group does: stages from the desk, for as long as the group lives."""
    import torch

    if os.path.isdir(config["cwd"]):
        os.chdir(config["cwd"])
    torch.set_num_threads(config["threads"])
    desk, group, done, end = config["desk"], config["group"], -1, None
    ranks = world()
    life = ranks.gather(uuid.uuid4().hex)[0]
    place = Place(os.getpid(), ray.get_runtime_context().get_node_id())
    ray.get(desk.begin.remote(group, life, ranks.size, place=place))
    while True:
        done, task = ray.get(desk.next.remote(group, life, done, rank=ranks.rank, end=end))
        if task is None:
            return
        end = _run(task, desk, group)
        if end.error and ranks.size > 1:
            ray.get(desk.end.remote(group, ranks.rank, ticket=task["ticket"], end=end))
            raise errors.StageError(f"{end.kind}: {end.error}")


def _run(task: dict[str, Any], desk: Any, group: int) -> End:
    ranks, compute, carrier = world(), task["compute"], task["carrier"]
    try:
        out = carrier.place(Path(task["out"]))
    except errors.ResourceError as error:
        return End.failed(error, ranks.rank)
    log, away = out / log_of(ranks.rank), None
    if out != Path(task["out"]):
        away = Away(ray.get_runtime_context().get_node_id(), log, lengths(out).get(log.name, 0))
        desk.away.remote(group, ranks.rank, ticket=task["ticket"], log=away)
    if task["attempt"]:
        compute = compute.model_copy(update={"resume": "auto"})  # what the first attempt kept is its own
        if ranks.first:
            clear(out)
        ranks.gather(None)

    def say(event: dict[str, Any]) -> None:
        desk.say.remote({"stage_id": task["stage_id"], **event})

    def send(beat: Beat) -> None:
        desk.beat.remote(group, ranks.rank, ticket=task["ticket"], beat=beat)

    vitals = Vitals(send, hang_s=compute.hang_s)
    hear = vitals.hearing(say if ranks.first else lambda event: None)
    with logged_to(log), vitals, progress.listening(hear):
        try:
            with carrier.around(out, ranks):
                return End(task["stage"](task["spec"], out, compute=compute, **task["arguments"]))
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            end = End.failed(error, ranks.rank)
    return replace(end, logs={ranks.rank: since(log, away.before)}) if away else end


@dataclass(frozen=True)
class Away:
    """The log of a rank that does not see the driver's folder: on which node, and how long it was before."""

    node: str
    path: Path
    before: int

    async def read(self) -> str | None:
        """What was added since, by a task on its node; None where that does not answer."""
        there = NodeAffinitySchedulingStrategy(self.node, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(since).remote(self.path, self.before)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(task.future()), READ_WITHIN_S)
        except (ray.exceptions.RayError, TimeoutError):
            return None


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

    def __init__(self, desk: Any, number: int, compute: Compute, hear: Callable[[list[dict[str, Any]]], Any]) -> None:
        self.desk, self.number, self.compute, self.hear = desk, number, compute, hear
        self.failure: BaseException | None = None
        self.stopping = self.begun = False
        self.thread = self._started(compute.max_failures)

    def _started(self, failures: int) -> threading.Thread:
        thread = threading.Thread(target=self._fit, args=(failures,), name=f"group {self.number}", daemon=True)
        thread.start()
        return thread

    def _fit(self, failures: int) -> None:
        """As often as its workers fail; stages that end with an error cost a group of several its workers, too."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from trimtab.training.meeting import Meeting
        from trimtab.training.witness import Witness

        compute = self.compute
        config = {"desk": self.desk, "group": self.number, "cwd": os.getcwd()}
        gpus = compute.gpus(ray.cluster_resources().get("GPU", 0))
        resources = {"CPU": compute.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
        try:
            TorchTrainer(
                serve,
                torch_config=Meeting(),
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
                        max_failures=failures,
                        max_preemption_failures=-1 if compute.max_preemptions is None else compute.max_preemptions,
                        controller_failure_limit=STARTS,
                    ),
                    callbacks=[Witness(self.desk, self.number)],
                ),
            ).fit()
        except BaseException as error:  # noqa: BLE001
            self.failure = error

    def up(self) -> None:
        """Wait until its workers have been there (`begun`), or are not to come."""
        begun = None if self.begun else self.desk.begun.remote(self.number)
        while not self.begun and self.thread.is_alive() and not self.stopping:
            self.begun = bool(ray.wait([begun], timeout=0.5)[0])

    def run(self, task: dict[str, Any]) -> dict[str, float]:
        """Run a stage on this group and wait; what rank 0 returned, once all that was said of it is heard.

        Workers that earlier stages used up are replaced: a stage may cost `max_failures` lives, and one more fails it.
        Raises the stage's own TrimtabError, OutOfMemory, StageError when it failed otherwise, hung, or the workers are
        gone, or Stopped.
        """
        outcome, before = self.desk.work.remote(self.number, task), None
        while not ray.wait([outcome], timeout=1.0)[0]:
            if self.stopping:
                raise errors.Stopped("it was stopped")
            self._watch(task["compute"].hang_s)
            if not self.thread.is_alive() and not ray.wait([outcome], timeout=1.0)[0]:
                failures = ray.get(self.desk.failures.remote(self.number))
                if failures in (None, before) or failures > self.compute.max_failures:
                    raise self._lost()
                before, self.thread = failures, self._started(self.compute.max_failures - failures)
        end, said = ray.get(outcome)
        self.hear(said)
        if end.error is None:
            return end.metrics
        raise _error(end)

    def _watch(self, hang_s: float | None) -> None:
        """End the workers of a stage that has not got on for too long; they have left their stacks in their logs."""
        if hang_s is None or ray.get(self.desk.idle.remote(self.number)) <= hang_s + AFTER_STACKS_S:
            return
        for place in ray.get(self.desk.hangs.remote(self.number)):
            there = NodeAffinitySchedulingStrategy(place.node, soft=False)
            ray.remote(num_cpus=0, scheduling_strategy=there)(_kill).remote(place.pid)

    def _lost(self) -> errors.StageError:
        self.hear(ray.get(self.desk.said.remote()))
        end = ray.get(self.desk.trouble.remote(self.number))
        if end is None:
            return errors.StageError(f"its workers died: {self.failure or 'the group ended early'}")
        return _error(replace(end, kind="StageError", error=f"its workers died: {end.told}"))

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
        error.rank, error.cause, error.logs = end.rank, end.cause, end.logs
    return error
