"""RayRunner: independent stages side by side, on training groups that live as long as the run."""

from __future__ import annotations

import heapq
import os
import queue
import secrets
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
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
    from trimtab.training.desk import Desk
    from trimtab.training.group import Group

    groups: list[Group] = []
    over = threading.Event()
    try:
        count = min(width, compute.groups or fitting(compute, ray.cluster_resources()))
        desk = ray.remote(num_cpus=0)(Desk).remote(count, compute.workers)
        listener = threading.Thread(target=_listen, args=(ray, desk, sink, over), daemon=True)
        listener.start()
        groups += [Group(desk, number, compute) for number in range(count)]
        try:
            yield groups
        finally:
            over.set()
            listener.join(5)
    finally:
        for group in groups:
            group.stop()
        ray.shutdown()


def _ray(address: str) -> Any:
    """Ray, initialised. What it reads from the environment must stand before it is imported.

    A cluster of our own gets a token of its own, unless the caller has imported Ray and so settled how it is guarded.
    """
    own = address == "local" and "ray" not in sys.modules
    settings = SETTINGS | (LOCAL | {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if own else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import ray

    local = {"include_dashboard": False, "object_store_memory": 256 * 2**20} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    return ray


def fitting(compute: Compute, resources: dict[str, float]) -> int:
    """How many groups of workers fit in these resources. Raises ResourceError with the numbers."""
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    wanted = compute.workers * compute.cpus_per_worker
    wanted_gpus = compute.workers * compute.gpus(gpus)
    count = int(min(cpus // wanted, gpus // wanted_gpus if wanted_gpus else cpus // wanted))
    if count < 1:
        raise ResourceError(
            f"compute: {compute.workers} workers need {wanted:g} CPUs and {wanted_gpus:g} GPUs, there are {cpus:g} "
            f"and {gpus:g} GPUs; lower compute.workers or compute.cpus_per_worker"
        )
    return count


def _listen(ray: object, desk: object, sink: progress.Sink, over: threading.Event) -> None:
    last = False
    while not last:
        last = over.wait(EVENTS_EVERY_S)
        for event in ray.get(desk.said.remote()):
            sink(event)


class Order:
    """Which missing stages can start: those whose inputs are there, the longest chain behind them first."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = {node.artifact.id: node for node in nodes}
        self.height, self.places = urgency(nodes), {stage_id: i for i, stage_id in enumerate(self.nodes)}
        self.unmet = {n.artifact.id: {a.id for a in n.needs.values()} & set(self.nodes) for n in nodes}
        self.waits_for: dict[str, list[str]] = {}
        for stage_id, needs in self.unmet.items():
            for need in needs:
                self.waits_for.setdefault(need, []).append(stage_id)
        self.ready: dict[str, list[tuple[int, int, str]]] = {"driver": [], "workers": []}
        self.left = len(nodes)
        for stage_id, needs in self.unmet.items():
            if not needs:
                self._offer(stage_id)

    def _offer(self, stage_id: str) -> None:
        heapq.heappush(
            self.ready[self.nodes[stage_id].stage.on], (-self.height[stage_id], self.places[stage_id], stage_id)
        )

    def take(self, on: str) -> Node | None:
        """The most urgent stage that can start there."""
        if not self.ready[on]:
            return None
        self.left -= 1
        return self.nodes[heapq.heappop(self.ready[on])[-1]]

    def done(self, node: Node) -> None:
        for stage_id in self.waits_for.get(node.artifact.id, ()):
            self.unmet[stage_id].discard(node.artifact.id)
            if not self.unmet[stage_id]:
                self._offer(stage_id)


@dataclass
class RayRunner(PlanRunner):
    """Runs the missing stages: those for workers on training groups, the others in this process."""

    sink: progress.Sink = lambda event: None

    def wait(self) -> None:
        """Run what is missing. Raises StageError when a stage fails; those under way are finished first."""
        pending = self.pending
        heavy = [node for node in pending if node.stage.on == "workers"]
        order, free = Order(pending), queue.SimpleQueue()
        with ThreadPoolExecutor(max_workers=2 + len(heavy)) as pool:
            running: dict[Future[None], Node] = {}
            self._drain(order, pool, running, free)  # what needs no workers first: bad data must not wait for a cluster
            if not order.left:
                return
            with cluster(self.compute, len(heavy), self.sink) as groups:
                for group in groups:
                    free.put(group)
                try:
                    self._drain(order, pool, running, free)
                except BaseException:
                    for group in groups:
                        group.stop()
                    wait(running, timeout=10)
                    raise

    def _drain(self, order: Order, pool: ThreadPoolExecutor, running: dict, free: queue.SimpleQueue) -> None:
        """Start and await stages until none runs and none can start; after a failure none is started."""
        failure: BaseException | None = None
        while True:
            if failure is None:
                self._start(order, pool, running, free)
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                node = running.pop(future)
                failure = failure or future.exception()
                if not future.exception():
                    order.done(node)
        if failure:
            raise failure

    def _start(self, order: Order, pool: ThreadPoolExecutor, running: dict, free: queue.SimpleQueue) -> None:
        """Start what can start: stages of the driver at once, those for workers while a group is free."""
        while node := order.take("driver"):
            running[pool.submit(execute, node, self._here, self.sink)] = node
        while not free.empty() and (node := order.take("workers")):
            running[pool.submit(self._on, free.get(), free, node)] = node

    def _here(self, node: Node, out: Path) -> Metrics:
        return call_here(node, out, compute=self.compute, sink=self.sink)

    def _on(self, group: Group, free: queue.SimpleQueue, node: Node) -> None:
        task = {"stage": node.stage, "spec": node.spec, "arguments": node.arguments(), "stage_id": node.artifact.id}
        try:
            execute(node, lambda _, out: group.run(task | {"out": str(out)}), self.sink)
        finally:
            free.put(group)
