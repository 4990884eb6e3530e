"""RayRunner: independent stages side by side, on training groups that live as long as the run."""

from __future__ import annotations

import os
import queue
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab import progress
from trimtab.compute import Compute
from trimtab.errors import ResourceError, Stopped
from trimtab.run.artifact import Node, PlanRunner
from trimtab.run.local import call_here, execute
from trimtab.run.order import Order
from trimtab.stages._base import Metrics

if TYPE_CHECKING:
    from trimtab.training.group import Group

EVENTS_EVERY_S = 0.25
STOPS_WITHIN_S = 0.5
DISMISSED_WITHIN_S = 10
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
LOCAL = {"RAY_AUTH_MODE": "token", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_prestart_worker_first_driver": "0"}


@contextmanager
def cluster(compute: Compute, width: int, sink: progress.Sink) -> Iterator[list[Group]]:
    """Join or start Ray, and start as many training groups as fit and are useful. Raises ResourceError.

    Where this process is at Ray already it stays there, and the groups go when the process does.
    """
    joined = initialised()
    ray = ray_at(address_of(compute))
    from trimtab.training.desk import Desk
    from trimtab.training.group import Group

    try:
        count = min(width, compute.groups or fitting(compute, ray.cluster_resources()))
        desk, over = ray.remote(num_cpus=0)(Desk).remote(count, compute.workers), threading.Event()
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
            if joined:
                _dismiss(ray, desk, groups)
    finally:
        if not joined:
            ray.shutdown()


def _dismiss(ray: Any, desk: Any, groups: list[Group]) -> None:
    """Let the workers of groups go; those that are busy go when this process does."""
    ray.get(desk.close.remote())
    for group in groups:
        group.thread.join(DISMISSED_WITHIN_S)


def initialised() -> bool:
    """Whether this process is at a cluster."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def address_of(compute: Compute) -> str:
    return compute.address or os.environ.get("RAY_ADDRESS") or "local"


def ray_at(address: str) -> Any:
    """Ray, initialised. What it reads from the environment must stand before it is imported.

    A cluster of our own gets a token of its own, unless the caller has imported Ray and so settled how it is guarded.
    """
    own = address == "local" and "ray" not in sys.modules
    settings = SETTINGS | (LOCAL | {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if own else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return ray
    local = {"include_dashboard": False, "object_store_memory": 256 * 2**20} if address == "local" else {}
    with _apart():
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    return ray


@contextmanager
def _apart() -> Iterator[None]:
    """Signals stay ours while Ray starts. Raises KeyboardInterrupt where SIGTERM comes before it has.

    Ray's processes get groups of their own, since a signal to our group, as of Ctrl-C, is for us, and we end Ray; the
    handler of SIGTERM that Ray puts in place ends the process where it stands.
    """
    from ray._private import services

    popen, handler = services.ConsolePopen, signal.getsignal(signal.SIGTERM)
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        services.ConsolePopen = popen
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


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
            running[pool.submit(execute, node, self._here, self.sink, stopped=self._let_go)] = node
        while not free.empty() and (node := order.take("workers")):
            running[pool.submit(self._on, free.get(), free, node)] = node

    def _here(self, node: Node, out: Path) -> Metrics:
        return call_here(node, out, compute=self.compute, sink=self.sink)

    def _on(self, group: Group, free: queue.SimpleQueue, node: Node) -> None:
        task = {"stage": node.stage, "spec": node.spec, "arguments": node.arguments(), "stage_id": node.artifact.id}
        try:
            group.up()  # who holds a lease never waits for CPUs that a group holds who waits for the lease
            execute(node, lambda _, out: group.run(task | {"out": str(out)}), self.sink, stopped=self._let_go)
        finally:
            free.put(group)
