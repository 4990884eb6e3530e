"""RayRunner: independent stages side by side, on training groups that live as long as the run."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab import progress
from trimtab.compute import Compute
from trimtab.errors import ResourceError, Stopped
from trimtab.run import nodes
from trimtab.run.artifact import Node, PlanRunner
from trimtab.run.carrying import Carrier
from trimtab.run.fallback import falling_back
from trimtab.run.joining import address_of, initialised, ray_at
from trimtab.run.local import execute, here
from trimtab.run.order import Order
from trimtab.stages._base import Metrics

if TYPE_CHECKING:
    from trimtab.training.group import Group

EVENTS_EVERY_S = 0.25
STOPS_WITHIN_S = 0.5
DISMISSED_WITHIN_S = 10
ENDED_WITHIN_S = 4


@contextmanager
def cluster(compute: Compute, width: int, sink: progress.Sink) -> Iterator[list[Group]]:
    """Join or start Ray, and start as many training groups as fit and are useful. Raises ResourceError.

    Where this process is at Ray already it stays there, and the groups go when the process does.
    """
    joined = initialised()
    ray = ray_at(address_of(compute))
    from trimtab.training.group import Group

    try:
        if not joined:
            nodes.suited(ray, compute)
        count = min(width, compute.groups or fitting(compute, nodes.offered(ray)))
        desk, over = _desk(ray, count, compute.workers), threading.Event()
        listener = threading.Thread(target=_listen, args=(ray, desk, sink, over), daemon=True)
        listener.start()
        groups = [Group(desk, number, compute) for number in range(count)]
        try:
            yield groups
        finally:
            over.set()
            listener.join(5)
            for group in groups:
                group.stop()
            _dismiss(ray, desk, groups, within=DISMISSED_WITHIN_S if joined else ENDED_WITHIN_S)
    finally:
        if not joined:
            ray.shutdown()


def _desk(ray: Any, groups: int, workers: int) -> Any:
    """The desk stands where this process is: a node that is lost must not take it along."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from trimtab.training.desk import Desk

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Desk).remote(groups, workers)


def _dismiss(ray: Any, desk: Any, groups: list[Group], *, within: float) -> None:
    """Let the workers of groups go; those that are busy go when this process does.

    A thread that still waits for a cluster which is shut down would wait busily until then.
    """
    until = time.monotonic() + within
    with suppress(ray.exceptions.RayError):
        ray.get(desk.close.remote(), timeout=within)
    for group in groups:
        group.thread.join(max(0.0, until - time.monotonic()))


def fitting(compute: Compute, resources: dict[str, float]) -> int:
    """How many groups of workers fit in these resources. Raises ResourceError with the numbers."""
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    gpus_each = compute.gpus(gpus)
    fit = int(min(cpus // compute.cpus_per_worker, gpus // gpus_each if gpus_each else cpus // compute.cpus_per_worker))
    least = compute.sizes[0]
    if fit < least:
        raise ResourceError(
            f"compute: {least} workers need {least * compute.cpus_per_worker:g} CPUs and {least * gpus_each:g} GPUs, "
            f"there are {cpus:g} and {gpus:g} GPUs; lower compute.workers or compute.cpus_per_worker"
        )
    return max(1, fit // compute.workers)


def _listen(ray: object, desk: object, sink: progress.Sink, over: threading.Event) -> None:
    last = False
    while not last:
        last = over.wait(EVENTS_EVERY_S)
        for event in ray.get(desk.said.remote()):
            sink(event)


@dataclass
class RayRunner(PlanRunner):
    """Runs the missing stages: those for workers on training groups, the others in this process."""

    sink: progress.Sink = lambda event: None
    over: threading.Event = field(default_factory=threading.Event)
    """Set when nothing is waited for any more that another process makes."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set by another thread: stages under way are let go of."""

    def wait(self) -> None:
        """Run what is missing; if a stage fails, those under way are finished. Raises StageError, or Stopped."""
        pending = self.pending
        heavy = [node for node in pending if node.stage.on == "workers"]
        order, free = Order(pending), queue.SimpleQueue()
        self.over.clear()
        with ThreadPoolExecutor(max_workers=2 + len(heavy)) as pool, self._ending():
            running: dict[Future[None], Node] = {}
            self._drain(order, pool, running, free)  # what needs no workers first: bad data must not wait for a cluster
            if not order.left:
                return
            with cluster(self.compute, len(heavy), self.sink) as groups:
                for group in groups:
                    free.put(group)
                try:
                    with self._ending():
                        self._drain(order, pool, running, free)
                except BaseException:
                    for group in groups:
                        group.stop()
                    wait(running, timeout=10)
                    raise

    @contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.over.set()
            raise

    def _let_go(self) -> bool:
        return self.over.is_set() or self.stopping.is_set()

    def _drain(self, order: Order, pool: ThreadPoolExecutor, running: dict, free: queue.SimpleQueue) -> None:
        """Start and await stages until none runs and none can start; after a failure none is started."""
        failure: BaseException | None = None
        while True:
            if failure is None and self.stopping.is_set():
                failure = Stopped("it was stopped")
            if failure is None:
                self._start(order, pool, running, free)
            if not running:
                break
            while not (ended := wait(running, timeout=STOPS_WITHIN_S, return_when=FIRST_COMPLETED).done):
                if self.stopping.is_set():
                    raise Stopped("it was stopped")
            for future in ended:
                node = running.pop(future)
                failure = failure or future.exception()
                if future.exception():
                    self.over.set()
                else:
                    order.done(node)
        if failure:
            raise failure

    def _start(self, order: Order, pool: ThreadPoolExecutor, running: dict, free: queue.SimpleQueue) -> None:
        """Start what can start: stages of the driver at once, those for workers while a group is free."""
        while node := order.take("driver"):
            call = here(self.compute, self.sink)
            running[pool.submit(execute, node, call, self.sink, stopped=self._let_go)] = node
        while not free.empty() and (node := order.take("workers")):
            running[pool.submit(self._on, free.get(), free, node)] = node

    def _on(self, group: Group, free: queue.SimpleQueue, node: Node) -> None:
        task = {"stage": node.stage, "spec": node.spec, "arguments": node.arguments(), "stage_id": node.artifact.id}
        task |= {"carrier": Carrier.of(node, self.compute)}

        def call(node: Node, out: Path, compute: Compute) -> Metrics:
            return group.run(task | {"out": str(out), "compute": compute})

        try:
            group.up()  # who holds a lease never waits for CPUs that a group holds who waits for the lease
            execute(node, falling_back(call, self.compute, self.sink), self.sink, stopped=self._let_go)
        finally:
            free.put(group)
