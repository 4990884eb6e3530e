"""A trial: the job with its values, run as far as the search's metrics need it, and measured."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trimtab.compute import Compute
from trimtab.errors import JobError, StageError, Stopped
from trimtab.load import Job
from trimtab.run.artifact import PlanRunner
from trimtab.run.gauges import Gauges
from trimtab.run.leaks import leaks
from trimtab.run.log import EventLog, owner
from trimtab.run.naming import alone
from trimtab.search.job import Search, made
from trimtab.search.measured import measured, objectives
from trimtab.search.record import Measured, Told
from trimtab.search.watch import Watch

SAY_EVERY_S = 1.0
Result = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What all trials of a search have in common, as plain data; `made_by` are commit and versions."""

    search: str
    name: str
    raw: dict[str, Any]
    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    made_by: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, search: Search, made_by: dict[str, Any] | None = None) -> Plan:
        spec = search.spec
        raw = json.loads(json.dumps(search.raw, default=str))
        return cls(search.id, search.name, raw, spec.metrics, spec.seeds, made_by or {})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        said = json.loads(text)
        return cls(**said | {"metrics": tuple(said["metrics"]), "seeds": tuple(said["seeds"])})

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    def job(self, values: dict[str, Any]) -> Job:
        """The job of a trial. Raises JobError where values do not go together."""
        job, found = made(self.raw, values, self.seeds, name=self.name)
        if job is None:
            raise JobError([f"{'.'.join(map(str, loc))}: {text}" for loc, text in found])
        return job


def trial_id(search: str, number: int, generation: int | None = None) -> str:
    """The name of a trial's run, or of one generation of it."""
    return f"{search}-t{number:04d}" + (f"-g{generation}" if generation else "")


def pruned_mark(storage: Path, run_id: str) -> Path:
    """The file by which the tuner tells a trial that the scheduler stops it, and not the user."""
    return storage / "runs" / run_id / "pruned"


@dataclass
class Trial:
    """One trial in this process. `report` is given results while it runs; one with a `signal` may take long to return.

    `stop` may be set by another thread: the stage under way ends at its next event.
    """

    plan: Plan
    number: int
    values: dict[str, Any]
    report: Callable[[Result], None]
    stop: threading.Event = field(default_factory=threading.Event)
    watch: Watch = field(default_factory=lambda: Watch([]))
    metrics: dict[str, Measured] = field(default_factory=dict)
    generation: int | None = None

    def __call__(self) -> Result:
        """Run it to its end; how it ended is in the result: done, failed, or stopped."""
        self.started = self.said = time.monotonic()
        status, found, error = "failed", None, None
        with self._log() as log:
            try:
                found = self._run(self._begun(log), log)
                status = "done"
            except Stopped:
                status = "stopped"
            except Exception as problem:  # noqa: BLE001
                error = f"{type(problem).__name__}: {problem}"
            means = {name: one.mean for name, one in self.metrics.items()}
            ended = status if status != "stopped" else "pruned" if self.pruned.exists() else "interrupted"
            log({"event": "run_end", "status": ended, "metrics": means, "report": None, "error": error})
        return self.result(error) | {"status": status, "objectives": json.dumps(found), "done": True}

    @contextmanager
    def _log(self) -> Iterator[EventLog]:
        with alone(self._storage / "runs" / self.run_id) as folder, closing(EventLog(folder, [Gauges()])) as log:
            yield log

    @property
    def _storage(self) -> Path:
        return Compute.model_validate(self.plan.raw.get("compute") or {}).storage.expanduser().resolve()

    @property
    def pruned(self) -> Path:
        return pruned_mark(self._storage, self.run_id)

    def _begun(self, log: EventLog) -> Job:
        """Its job. That it starts is told even where its values make none. Raises JobError."""
        described = {"name": self.plan.name, "kind": self.plan.raw["kind"], "job": self.plan.raw, "models": {}}
        own = {"parent": self.plan.search, "trial": self.number, "values": self.values, "owner": owner()}
        try:
            job = self.plan.job(self.values)
            described |= {"job": job.pipeline.model_dump(mode="json"), "models": job.versions}
        finally:
            log({"event": "run_start", "run_id": self.run_id} | own | described | self.plan.made_by)
        return job

    @property
    def run_id(self) -> str:
        return trial_id(self.plan.search, self.number, self.generation)

    def _run(self, job: Job, log: EventLog) -> list[float]:
        runner = self._runner(job, log)
        job.pipeline(runner)
        outcomes = {name: runner.outcomes.get(("validation", name)) for name in self._names()}
        if missing := [name for name, artifacts in outcomes.items() if not artifacts]:
            known = ", ".join(sorted(name for split, name in runner.outcomes if split == "validation"))
            raise StageError(f"no validation outcome is named {missing[0]}; there are: {known or 'none'}")
        if found := leaks(runner, self._names()):
            raise JobError([f"the search would see truth that it may not: {leak}" for leak in found])
        runner.ends = [artifact for artifacts in outcomes.values() for artifact in artifacts]
        self.watch = Watch(runner.needed)
        self.report(self.result())
        runner.wait()
        self.metrics = measured(outcomes)
        return objectives(self.metrics, self.plan.metrics)

    def _names(self) -> list[str]:
        return list(dict.fromkeys(metric.rpartition("/")[0] for metric in self.plan.metrics))

    def _runner(self, job: Job, log: EventLog) -> PlanRunner:
        if job.compute.backend == "inline":
            from trimtab.run.local import LocalRunner

            return LocalRunner(job.compute, sink=lambda event: self._hear(event, log, raises=True), stopping=self.stop)
        from trimtab.run.on_ray import RayRunner

        compute = job.compute.model_copy(update={"groups": 1})
        return RayRunner(compute, sink=lambda event: self._hear(event, log, raises=False), stopping=self.stop)

    def _hear(self, event: dict[str, Any], log: EventLog, *, raises: bool) -> None:
        log(event)
        ends = event["event"] == "stage_end"
        if self.stop.is_set() and raises and not ends:
            raise Stopped("the trial is stopped")
        signals = self.watch(event)
        if signals or ends or time.monotonic() - self.said > SAY_EVERY_S:
            self.said = time.monotonic()
            self.report(self.result() | signals)
            if self.stop.is_set() and raises and not ends:
                raise Stopped("the trial is stopped")

    def result(self, error: str | None = None) -> Result:
        """How far it is and what it would be remembered by if it ended here."""
        watch, ran = self.watch, list(self.watch.ran)
        told = Told(
            self.values,
            metrics=self.metrics,
            early=watch.early(),
            ran=ran,
            shared=sum(node.artifact.ready for node in watch.needed) - len(ran),
            progress=watch.progress,
            seconds=time.monotonic() - self.started,
            error=error,
        )
        return {"progress": watch.progress, "at": watch.at, "told": json.dumps(told.as_json())}
