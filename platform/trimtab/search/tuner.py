"""A search from its first trial to its last: Ray Tune runs the trials, an Optuna study remembers them."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from trimtab.compute import Compute
from trimtab.environment import settle
from trimtab.errors import ResourceError
from trimtab.run.joining import address_of, initialised, ray_at
from trimtab.run.log import EventLog, Listener, owner, settle_runs
from trimtab.run.naming import alone
from trimtab.run.nodes import living, suited
from trimtab.run.on_ray import counted
from trimtab.search.job import Search
from trimtab.search.record import Record
from trimtab.search.study import Trials, opened
from trimtab.search.trial import Plan
from trimtab.versions import commit, versions

SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "10",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Tuned:
    """How a search ended. `why`: trials, grid, minutes, or which failure it gave up over."""

    search: Search
    records: list[Record]
    why: str
    ran: int

    @property
    def gave_up(self) -> bool:
        return self.why not in ("trials", "grid", "minutes")


def tuned(search: Search, listeners: Sequence[Listener] = ()) -> Tuned:
    """Run the trials that a search still lacks; what a killed one left is taken up first.

    Listeners hear run_start, search_plan, trial_start, trial_result, trial_end and run_end, as the search's run does.
    Raises ResourceError where not one trial fits, JobError where another process is at it; KeyboardInterrupt when it is
    interrupted, the study whole.
    """
    settle(max(1, int(search.default.compute.cpus_per_worker)))
    search.folder.mkdir(parents=True, exist_ok=True)
    settle_runs(search.storage)
    with alone(search.storage / "runs" / search.id) as folder, closing(EventLog(folder, listeners)) as log:
        made_by = _made_by()
        described = {"name": search.name, "kind": "search", "job": search.spec.model_dump(mode="json")}
        log({"event": "run_start", "run_id": search.id, "owner": owner(), "models": {}} | described | made_by)
        trials, status = Trials(search, opened(search), log), "failed"
        try:
            ran = _run(trials, Plan.of(search, made_by), log)
            trials.interrupt()
            if trials.why == "interrupted":
                raise KeyboardInterrupt
            found = Tuned(search, trials.records(), trials.why or "trials", ran)
            status = "failed" if found.gave_up else "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            trials.interrupt()
            settle_runs(search.storage)
            best = best_of(trials.records(), search.spec.metrics, search.spec.modes)
            log({"event": "run_end", "status": status, "metrics": best, "report": None, "why": trials.why})
    return found


def best_of(found: Sequence[Record], metrics: Sequence[str], modes: Sequence[str]) -> dict[str, float]:
    """The best value of each metric, of all trials that came to their end."""
    done = [one.objectives for one in found if one.objectives]
    pick = {"max": max, "min": min}
    scores = zip(metrics, modes, zip(*done, strict=True), strict=True) if done else ()
    return {f"best/{metric}": pick[mode](values) for metric, mode, values in scores}


def _made_by() -> dict[str, Any]:
    sha = commit()
    return {"commit": sha, "dirty": str(sha).endswith("+"), "versions": versions()}


def _run(trials: Trials, plan: Plan, log: Listener) -> int:
    """Run what is left of the trials; how many ended."""
    search, there = trials.search, trials.have
    trials.resume()
    compute, budget = search.default.compute, search.spec.budget
    if trials.left <= 0:
        trials.why = "trials"
        log({"event": "search_plan", "trials": budget.trials, "concurrent": 0, "have": there})
        return 0
    with _at_ray(compute) as ray:
        nodes = living(ray)
        in_reach(compute, len(nodes))
        room = concurrent(compute, nodes, log)
        width = min(room, budget.concurrent or room, trials.left)
        log({"event": "search_plan", "trials": budget.trials, "concurrent": width, "have": there})
        with stoppable() as stopped:
            _fit(trials, plan, stopped, width=width)
    return trials.have - there


def in_reach(compute: Compute, nodes: int) -> None:
    """Raises ResourceError where trials would run on nodes that do not see the study's folder."""
    if compute.remote is not None and nodes > 1:
        raise ResourceError(
            f"a search keeps its study, and the logs of its trials, in one folder, which {compute.remote} is not for "
            f"{nodes} nodes; set compute.storage to a folder that all of them share (NFS, a PVC), or search on one node"
        )


def concurrent(compute: Compute, nodes: Sequence[Mapping[str, float]], sink: Listener) -> int:
    """How many trials fit side by side. Raises ResourceError with the numbers where none does."""
    each = compute if compute.backend == "ray" else compute.model_copy(update={"workers": 1})
    return counted(each, nodes, sink)


def _fit(trials: Trials, plan: Plan, stopped: Callable[[], bool], *, width: int) -> None:
    from ray import tune

    from trimtab.search.schedule import Enough, Proposer, actor, scheduler

    search = trials.search
    compute, spec = search.default.compute, search.spec
    place = search.storage / "ray"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    shutil.rmtree(place / search.id, ignore_errors=True)
    runs, fixed = actor(trials, plan)
    whole = spec.scheduler.kind == "pbt"  # of a population all are there at once, and take turns
    tune.Tuner(
        tune.with_resources(runs, _resources(compute)),
        tune_config=tune.TuneConfig(
            search_alg=Proposer(trials, **fixed),
            scheduler=scheduler(trials),
            num_samples=-1,
            max_concurrent_trials=None if whole else width,
            reuse_actors=compute.backend == "inline",
            trial_dirname_creator=lambda trial: f"t{trial.config['number']:04d}",
        ),
        run_config=tune.RunConfig(
            name=search.id,
            storage_path=str(place),
            verbose=0,
            stop=Enough(trials, spec.budget.minutes, stopped),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()
    shutil.rmtree(place / search.id, ignore_errors=True)


def _resources(compute: Compute) -> dict[str, float]:
    """What a trial's process reserves: what its stages take, or next to nothing where workers run them."""
    import ray

    if compute.backend == "ray":
        return {"memory": 1}
    gpus = compute.gpus(ray.cluster_resources().get("GPU", 0))
    return {"CPU": compute.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


@contextmanager
def _at_ray(compute: Compute) -> Iterator[Any]:
    """Ray, joined or started; one that was started here is ended here."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    joined = initialised()
    ray = ray_at(address_of(compute))
    try:
        if not joined:
            suited(ray, compute)
        yield ray
    finally:
        if not joined:
            ray.shutdown()


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came; a second one ends the process at once."""
    asked = threading.Event()
    kinds = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def ask(number: int, frame: Any) -> None:
        asked.set()
        for kind in kinds:
            signal.signal(kind, signal.SIG_DFL)

    for kind in kinds:
        signal.signal(kind, ask)
    try:
        yield asked.is_set
    finally:
        for kind, was in before.items():
            signal.signal(kind, was)
