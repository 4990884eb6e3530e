"""RayRunner: independent stages side by side, on training groups that live as long as the run."""

from __future__ import annotations

import os
import queue
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab import progress
from trimtab.compute import Compute
from trimtab.errors import ResourceError
from trimtab.run.artifact import Node, PlanRunner
from trimtab.run.local import call_here, execute
from trimtab.stages._base import Metrics

if TYPE_CHECKING:
    from trimtab.training.group import Group

EVENTS_EVERY_S = 0.25
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
LOCAL = {"RAY_AUTH_MODE": "token", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_prestart_worker_first_driver": "0"}


def urgency(nodes: list[Node]) -> dict[str, int]:
    """For each node the length of the longest chain of stages that waits for it."""
    height: dict[str, int] = {}
    for node in reversed(nodes):
        height.setdefault(node.artifact.id, 0)
        for need in node.needs.values():
            height[need.id] = max(height.get(need.id, 0), height[node.artifact.id] + 1)
    return height


@contextmanager
def cluster(compute: Compute, width: int, sink: progress.Sink) -> Iterator[list[Group]]:
    """Join or start Ray, and start as many training groups as fit and are useful. Raises ResourceError."""
    ray = _ray(compute.address or os.environ.get("RAY_ADDRESS") or "local")
    from trimtab.training.group import Desk, Group

    groups: list[Group] = []
    try:
        count = min(width, compute.groups or fitting(compute, ray.cluster_resources()))
        desk = ray.remote(num_cpus=0)(Desk).remote(count, compute.workers)
        over = threading.Event()
        listener = threading.Thread(target=_listen, args=(ray, desk, sink, over), daemon=True)
        listener.start()
        groups += [Group(desk, number, compute) for number in range(count)]
        yield groups
        over.set()
        listener.join(5)
    finally:
        for group in groups:
            group.stop()
        ray.shutdown()


def _ray(address: str) -> Any:
    """Ray, initialised. What it reads from the environment must stand before it is imported."""
    settings = SETTINGS | (LOCAL | {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if address == "local" else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import ray

    local = {"include_dashboard": False, "object_store_memory": 256 * 2**20} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    return ray


def fitting(compute: Compute, resources: dict[str, float]) -> int:
    """How many groups of workers fit in these resources. Raises ResourceError with the numbers."""
    cpus = resources.get("CPU", 0)
    wanted = compute.workers * compute.cpus_per_worker
    count = int(cpus // wanted)
    if gpus := compute.workers * (compute.gpus_per_worker or (1 if resources.get("GPU") else 0)):
        count = min(count, int(resources.get("GPU", 0) // gpus))
    if count < 1:
        raise ResourceError(
            f"compute: {compute.workers} workers x {compute.cpus_per_worker:g} CPUs and {gpus:g} GPUs in all do not "
            f"fit in {cpus:g} CPUs and {resources.get('GPU', 0):g} GPUs; lower compute.workers or compute.cpus_per_worker"
        )
    return count


def _listen(ray: object, desk: object, sink: progress.Sink, over: threading.Event) -> None:
    while not over.wait(EVENTS_EVERY_S):
        for event in ray.get(desk.said.remote()):
            sink(event)


@dataclass
class RayRunner(PlanRunner):
    """Runs the missing stages: those for workers on training groups, the others in this process."""

    sink: progress.Sink = lambda event: None
    _free: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)

    def wait(self) -> None:
        """Run what is missing. Raises StageError when a stage fails; those under way are finished first."""
        pending = {node.artifact.id: node for node in self.pending}
        heavy = [node for node in pending.values() if node.stage.on == "workers"]
        with ThreadPoolExecutor(max_workers=2 + len(heavy)) as pool:
            running = self._launch(pending, pool, {})
            if not heavy:
                return self._drain(pending, pool, running)
            with cluster(self.compute, len(heavy), self.sink) as groups:
                for group in groups:
                    self._free.put(group)
                self._drain(pending, pool, running)

    def _drain(self, pending: dict[str, Node], pool: ThreadPoolExecutor, running: dict[Future, Node]) -> None:
        failure: BaseException | None = None
        while running or (pending and failure is None):
            if failure is None:
                running = self._launch(pending, pool, running)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                running.pop(future)
                failure = failure or future.exception()
        if failure:
            raise failure

    def _launch(self, pending: dict[str, Node], pool: ThreadPoolExecutor, running: dict[Future, Node]) -> dict:
        """Start every node whose inputs are there, the most urgent first, as long as a group is free for it."""
        height = urgency(list(self.nodes.values()))
        for node in sorted(pending.values(), key=lambda n: -height[n.artifact.id]):
            if not all(need.ready for need in node.needs.values()):
                continue
            if node.stage.on == "driver":
                running[pool.submit(execute, node, self._here, self.sink)] = node
            elif not self._free.empty():
                running[pool.submit(self._on, self._free.get(), node)] = node
            else:
                continue
            del pending[node.artifact.id]
        return running

    def _here(self, node: Node, out: Path) -> Metrics:
        return call_here(node, out, compute=self.compute, sink=self.sink)

    def _on(self, group: Group, node: Node) -> None:
        task = {"stage": node.stage, "spec": node.spec, "arguments": node.arguments(), "stage_id": node.artifact.id}
        try:
            execute(node, lambda _, out: group.run(task | {"out": str(out)}), self.sink)
        finally:
            self._free.put(group)
