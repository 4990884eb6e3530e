"""LocalRunner: stages called one after the other in this process; and what running any node means."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trimtab import progress
from trimtab.compute import Compute
from trimtab.errors import StageError, Stopped, TrimtabError
from trimtab.run.artifact import Node, PlanRunner, building
from trimtab.run.carrying import Carrier
from trimtab.run.fallback import falling_back
from trimtab.run.lease import leased
from trimtab.run.remote import finished, look
from trimtab.run_log import LOG, log_of, logged_to, tail
from trimtab.stages._base import Metrics
from trimtab.training.world import World

Call = Callable[[Node, Path], Metrics]


def execute(node: Node, call: Call, sink: progress.Noting, *, stopped: Callable[[], bool] = lambda: False) -> None:
    """Make one node's artifact through `call`, or find it once another process has made it.

    Raises StageError (which stage, which inputs, the end of its log) when the stage fails, and Stopped when `stopped`
    says so while another process is at it.
    """

    def waits() -> None:
        sink({"event": "stage_wait", "time": time.time(), "stage_id": node.artifact.id})

    with leased(node.artifact.lease, waits=waits, stopped=stopped):
        look([node.artifact])
        if node.artifact.ready:
            sink(was_there(node))
        else:
            _make(node, call, sink)


def was_there(node: Node) -> dict[str, Any]:
    """The event of a stage that need not run."""
    said = {"event": "stage_end", "time": time.time(), "status": "cached", "path": str(node.artifact.folder)}
    return said | {"seconds": node.artifact.record()["seconds"], "metrics": node.artifact.metrics()} | node.describe()


def _make(node: Node, call: Call, sink: progress.Noting) -> None:
    """Run a node into a folder aside, tell the sink, and rename when whole."""
    started = time.time()
    sink({"event": "stage_start", "time": started, **node.describe()})

    def say(status: str, metrics: Metrics, path: str | None, **why: str) -> None:
        ended = {"event": "stage_end", "time": time.time(), "stage_id": node.artifact.id, "status": status}
        sink(ended | {"seconds": time.time() - started, "metrics": metrics, "path": path} | why)

    try:
        if node.stage.resumes:
            node.artifact.partial.mkdir(parents=True, exist_ok=True)
        with building(node.artifact) as aside:
            metrics = call(node, aside)
            record = node.describe() | {"started": started, "seconds": time.time() - started}
            record |= {"befell": sink.befell.get(node.artifact.id, [])}
            finished(node.artifact, aside, record=record, metrics=metrics)
    except BaseException as error:
        stopped = isinstance(error, Stopped) or not isinstance(error, Exception)
        why = {"cause": getattr(error, "cause", "exception"), "error": f"{type(error).__name__}: {error}"}
        say("interrupted" if stopped else "failed", {}, None, **({} if stopped else why))
        if stopped or (isinstance(error, TrimtabError) and not isinstance(error, StageError)):
            raise
        failed = StageError(_post_mortem(node, error))
        failed.cause = why["cause"]
        raise failed from error
    say("done", metrics, str(node.artifact.folder))


def _post_mortem(node: Node, error: Exception) -> str:
    failed = node.artifact.root / f".{node.artifact.id}.failed"
    for rank, said in error.logs.items() if isinstance(error, StageError) else ():
        with suppress(OSError), (failed / log_of(rank)).open("a") as log:
            log.write(said)
    inputs = ", ".join(f"{name}={artifact.ref}" for name, artifact in node.needs.items()) or "none"
    log = failed / log_of(error.rank if isinstance(error, StageError) else 0)
    text = tail(log) or "".join(traceback.format_exception(error)[-3:]).rstrip()
    return (
        f"stage {node.artifact.id} ({node.label}) failed: {type(error).__name__}: {error}\n"
        f"  inputs: {inputs}\n  its folder is kept: {failed}\n  end of its log:\n"
        + "\n".join("    " + line for line in text.splitlines())
    )


@dataclass
class LocalRunner(PlanRunner):
    """Runs the stages that are missing one after the other, in this process."""

    sink: progress.Sink = lambda event: None
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set by another thread: no further stage is begun."""

    def wait(self) -> None:
        """Run what is missing. Raises StageError at the first stage that fails, Stopped once it is to stop."""
        sink = progress.Noting(self.sink)
        for node in self.pending:
            if self.stopping.is_set():
                raise Stopped("it was stopped")
            execute(node, here(self.compute, sink), sink, stopped=self.stopping.is_set)


def here(compute: Compute, sink: progress.Sink) -> Call:
    """The call of a stage in this process, with less at once where memory runs out."""
    return falling_back(partial(_call_here, sink=sink), compute, sink)


def _call_here(node: Node, out: Path, compute: Compute, *, sink: progress.Sink) -> Metrics:
    """For a stage meant for workers, all that is printed goes to its log."""
    tagged = lambda event: sink({"stage_id": node.artifact.id, **event})  # noqa: E731
    log = logged_to(out / LOG) if node.stage.on == "workers" else nullcontext()
    with progress.listening(tagged), log:
        try:
            with Carrier.of(node, compute).around(out, World(0, 1)):
                return node.stage(node.spec, out, compute=compute, **node.arguments())
        except Exception:
            if node.stage.on == "workers":
                traceback.print_exc()
            raise
