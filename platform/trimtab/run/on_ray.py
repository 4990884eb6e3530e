"""RayRunner: independent stages side by side, on training groups that live as long as the run."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
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
        count = min(width, compute.groups or counted(compute, nodes.living(ray), sink))
        desk = _desk(ray, count, compute.workers)
        listener = Listener(ray, desk, sink)
        listener.start()
        groups = [Group(desk, number, compute, listener.hear) for number in range(count)]
        try:
            yield groups
        finally:
            listener.over.set()
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


def counted(compute: Compute, there: Sequence[Mapping[str, float]], sink: progress.Sink) -> int:
    """How many groups to start: as many as fit, or one that waits where the cluster grows. Raises ResourceError."""
    try:
        return max(1, nodes.room(there, compute) // compute.workers)
    except ResourceError as error:
        if not compute.grows:
            raise
        lacks = str(error).partition(";")[0]
        sink({"event": "nodes_wait", "time": time.time(), "text": f"an autoscaler is waited for: {lacks}"})
        return 1


class Listener(threading.Thread):
    """Brings what is said at the desk to the sink now and then; what is told with a stage's end comes before that."""

    def __init__(self, ray: Any, desk: Any, sink: progress.Sink) -> None:
        super().__init__(name="listener", daemon=True)
        self.ray, self.desk, self.sink = ray, desk, sink
        self.over, self.lock = threading.Event(), threading.Lock()

    def run(self) -> None:
        last = False
        while not last:
            last = self.over.wait(EVENTS_EVERY_S)
            with self.lock:
                self._pass(self.ray.get(self.desk.said.remote()))

    def hear(self, events: list[dict[str, Any]]) -> None:
        """Those that the desk told with a stage's outcome."""
        with self.lock:
            self._pass(events)

    def _pass(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            self.sink(event)


def _come(group: Group, groups: list[Group], free: queue.SimpleQueue) -> None:
    """A group takes stages once its workers are there; where none has any, a stage on one that failed says why.

    So who holds a stage's lease never waits for CPUs that a group holds who waits for the lease.
    """
    group.up()
    if group.begun or not any(other.begun or other.thread.is_alive() for other in groups):
        free.put(group)


@dataclass
class RayRunner(PlanRunner):
    """Runs the missing stages: those for workers on training groups, the others in this process."""

    sink: progress.Sink = lambda event: None
    over: threading.Event = field(default_factory=threading.Event)
    """Set when nothing is waited for any more that another process makes."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set by another thread: stages under way are let go of."""
    noting: progress.Noting = field(init=False)

    def wait(self) -> None:
        """Run what is missing; if a stage fails, those under way are finished. Raises StageError, or Stopped."""
        pending = self.pending
        heavy = [node for node in pending if node.stage.on == "workers"]
        order, free, self.noting = Order(pending), queue.SimpleQueue(), progress.Noting(self.sink)
        self.over.clear()
        with ThreadPoolExecutor(max_workers=2 + len(heavy)) as pool, self._ending():
            running: dict[Future[None], Node | None] = {}
            self._drain(order, pool, running, free)  # what needs no workers first: bad data must not wait for a cluster
            if not order.left:
                return
            with cluster(self.compute, len(heavy), self.noting) as groups:
                running |= {pool.submit(_come, group, groups, free): None for group in groups}
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
        """Start and await stages until none runs and none can start; after a failure none is started.

        What runs and is no stage is a group of workers that is still to come.
        """
        failure: BaseException | None = None
        while True:
            if failure is None and self.stopping.is_set():
                failure = Stopped("it was stopped")
            if failure is None:
                self._start(order, pool, running, free)
            if not running or (not any(running.values()) and (failure or not order.left)):
                break
            while not (ended := wait(running, timeout=STOPS_WITHIN_S, return_when=FIRST_COMPLETED).done):
                if self.stopping.is_set():
                    raise Stopped("it was stopped")
            for future in ended:
                node = running.pop(future)
                failure = failure or future.exception()
                if future.exception():
                    self.over.set()
                elif node:
                    order.done(node)
        if failure:
            raise failure

    def _start(self, order: Order, pool: ThreadPoolExecutor, running: dict, free: queue.SimpleQueue) -> None:
        """Start what can start: stages of the driver at once, those for workers while a group is free."""
        while node := order.take("driver"):
            call = here(self.compute, self.noting)
            running[pool.submit(execute, node, call, self.noting, stopped=self._let_go)] = node
        while not free.empty() and (node := order.take("workers")):
            running[pool.submit(self._on, free.get(), free, node)] = node

    def _on(self, group: Group, free: queue.SimpleQueue, node: Node) -> None:
        task = {"stage": node.stage, "spec": node.spec, "arguments": node.arguments(), "stage_id": node.artifact.id}
        task |= {"carrier": Carrier.of(node, self.compute)}

        def call(node: Node, out: Path, compute: Compute) -> Metrics:
            return group.run(task | {"out": str(out), "compute": compute})

        try:
            execute(node, falling_back(call, self.compute, self.noting), self.noting, stopped=self._let_go)
        finally:
            free.put(group)
