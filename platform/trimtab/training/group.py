"""Training groups: Ray Train workers that stay alive and run one stage after another.

One `fit()` costs seconds of processes and imports before it trains; a group pays that once. Its workers ask a desk
for the next stage, run it together, and say how it ended. Ray Train restarts a group whose worker died, and the
desk hands out the interrupted stage again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import traceback
from pathlib import Path
from typing import Any

import ray

from trimtab import progress
from trimtab.compute import Compute
from trimtab.errors import StageError
from trimtab.run_log import LOG, logged_to


class Desk:
    """Where the driver leaves stages and workers fetch them (an async Ray actor)."""

    def __init__(self, groups: int, workers: int) -> None:
        self.workers, self.closed = workers, False
        self.tasks: list[tuple[int, dict[str, Any] | None]] = [(-1, None)] * groups
        self.ends: list[dict[int, Any]] = [{} for _ in range(groups)]
        self.events: list[dict[str, Any]] = []
        self.changed = asyncio.Condition()

    async def _change(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def give(self, group: int, task: dict[str, Any]) -> None:
        """The next stage of a group."""
        self.tasks[group], self.ends[group] = (self.tasks[group][0] + 1, task), {}
        await self._change()

    async def next(self, group: int, rank: int, after: int) -> tuple[int, dict[str, Any]] | None:
        """The stage to run after number `after`; a fresh worker (-1) gets the unfinished one again. None: go home."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.closed or self._waiting(group, rank, after))
        if self.closed:
            return None
        number, task = self.tasks[group]
        return number, dict(task, attempt=task["attempts"].setdefault(rank, 0))

    def _waiting(self, group: int, rank: int, after: int) -> bool:
        number, task = self.tasks[group]
        return task is not None and number > after and len(self.ends[group]) < self.workers

    async def begun(self, group: int, rank: int) -> None:
        """A worker entered its loop, for the first time or again: what its group had ended counts no more."""
        self.ends[group].pop(rank, None)
        task = self.tasks[group][1]
        if task is not None and rank in task["attempts"]:
            task["attempts"][rank] += 1

    async def end(self, group: int, rank: int, number: int, result: Any) -> None:
        if number == self.tasks[group][0]:
            self.ends[group][rank] = result
            await self._change()

    async def outcome(self, group: int) -> list[Any]:
        """What each rank of the group's stage returned, when all have, or the first that failed."""
        async with self.changed:
            await self.changed.wait_for(lambda: self._over(group))
        return [self.ends[group][rank] for rank in sorted(self.ends[group])]

    def _over(self, group: int) -> bool:
        ends = self.ends[group].values()
        return len(ends) == self.workers or any("error" in end for end in ends)

    async def say(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    async def said(self) -> list[dict[str, Any]]:
        events, self.events = self.events, []
        return events

    async def close(self) -> None:
        self.closed = True
        await self._change()


def serve(config: dict[str, Any]) -> None:
    """What every worker of a group does: stages from the desk until it says to go home."""
    import torch
    from ray import train as ray_train

    context = ray_train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    os.chdir(config["cwd"])
    torch.set_num_threads(config["threads"])
    desk, group, done = config["desk"], config["group"], -1
    ray.get(desk.begun.remote(group, rank))
    while (got := ray.get(desk.next.remote(group, rank, done))) is not None:
        done, task = got
        result = _run(task, rank, desk)
        ray.get(desk.end.remote(group, rank, done, result))
        if "error" in result and size > 1:
            raise StageError(result["error"])


def _run(task: dict[str, Any], rank: int, desk: Any) -> dict[str, Any]:
    out = Path(task["out"])
    if rank == 0 and task["attempt"]:
        for left in out.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def say(event: dict[str, Any]) -> None:
        desk.say.remote({"stage_id": task["stage_id"], **event})

    with progress.listening(say if rank == 0 else lambda event: None):
        with logged_to(out / (LOG if rank == 0 else f"rank{rank}.{LOG}")):
            try:
                return {"metrics": task["stage"](task["spec"], out, compute=task["compute"], **task["arguments"])}
            except Exception as error:
                traceback.print_exc()
                return {"error": f"{type(error).__name__}: {error}"}


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
        resources = {"CPU": compute.cpus_per_worker} | ({"GPU": gpus} if (gpus := gpus_per_worker(compute)) else {})
        failures = FailureConfig(max_failures=compute.max_failures, controller_failure_limit=0)
        try:
            TorchTrainer(
                serve,
                train_loop_config=config | {"threads": max(1, int(compute.cpus_per_worker))},
                scaling_config=ScalingConfig(
                    num_workers=compute.workers, use_gpu="GPU" in resources, resources_per_worker=resources
                ),
                run_config=RunConfig(
                    name=f"group-{os.getpid()}-{self.number}",
                    storage_path=str((compute.storage / "ray").resolve()),
                    failure_config=failures,
                ),
            ).fit()
        except BaseException as error:
            self.failure = error

    def run(self, task: dict[str, Any]) -> dict[str, float]:
        """Run a stage on this group and wait. Raises StageError when it fails or the group is gone."""
        ray.get(self.desk.give.remote(self.number, task | {"attempts": {}, "compute": self.compute}))
        outcome = self.desk.outcome.remote(self.number)
        while not ray.wait([outcome], timeout=1.0)[0]:
            if self.stopping:
                raise StageError("it was stopped")
            if not self.thread.is_alive():
                raise StageError(f"its workers died: {self.failure or 'the group ended early'}")
        ends = ray.get(outcome)
        errors = [end["error"] for end in ends if "error" in end]
        if errors:
            raise StageError(errors[0])
        return ends[0]["metrics"]

    def stop(self) -> None:
        """Let go of a stage that waits."""
        self.stopping = True


def gpus_per_worker(compute: Compute) -> float:
    """As asked for, or one where the cluster has any."""
    if compute.gpus_per_worker is not None:
        return compute.gpus_per_worker
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
