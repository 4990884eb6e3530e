"""A search's study in Optuna: who proposes, what trials told, and how a killed search goes on."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from trimtab.progress import Sink
from trimtab.run.track_words import sqlite_file
from trimtab.search.job import Search
from trimtab.search.record import RECORD, Record, Told, records
from trimtab.search.space import Space, Values, params
from trimtab.search.spec import Searcher
from trimtab.search.trial import pruned_mark, trial_id

AGAIN = "trimtab.again"
"""The user attribute of a trial that takes up the values of one that was interrupted, whose number it holds."""
BUSY_S = 60
POPULATION = 16


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna's notes stay unsaid: it writes to the terminal that the search's table is on."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(before)


def sampler(spec: Searcher, there: int) -> BaseSampler:
    """Who proposes; with `there` trials behind it, so that one that goes on does not propose what it did before."""
    seed = spec.seed + there
    if spec.kind == "tpe":
        return TPESampler(seed=seed, n_startup_trials=spec.startup)
    if spec.kind == "gp":
        return GPSampler(seed=seed, n_startup_trials=spec.startup, warn_independent_sampling=False)
    if spec.kind == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(2, min(POPULATION, spec.startup)))
    return RandomSampler(seed=seed)


def opened(search: Search) -> optuna.Study:
    """The study of a search, made where there is none."""
    search.storage.mkdir(parents=True, exist_ok=True)
    if file := sqlite_file(search.study_url):
        file.touch()  # SQLite itself would let its owner alone write
    directions = ["maximize" if mode == "max" else "minimize" for mode in search.spec.modes]
    waiting = {"timeout": BUSY_S} if file else {"connect_timeout": BUSY_S}
    engine = {"connect_args": waiting, "pool_pre_ping": True}
    storage = optuna.storages.RDBStorage(search.study_url, engine_kwargs=engine)
    with quiet():
        study = optuna.create_study(storage=storage, study_name=search.id, directions=directions, load_if_exists=True)
        study.set_metric_names(list(search.spec.metrics))
    study.sampler = sampler(search.spec.searcher, len(study.get_trials(deepcopy=False)))
    return study


@dataclass
class Running:
    """A trial that was handed out: Optuna's, and what it told last."""

    trial: optuna.Trial
    told: Told
    steps: int = 0
    said: dict[str, Any] = field(default_factory=dict)


@dataclass
class Trials:
    """Hands out trials and keeps what becomes of them. `why` says what ended the search, once something did.

    `sink` hears trial_start, trial_result and trial_end. All writing to the study is done here, in one process.
    """

    search: Search
    study: optuna.Study
    sink: Sink = lambda event: None
    why: str | None = None
    running: dict[str, Running] = field(default_factory=dict)
    alike: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.space = Space(self.search)
        self.grid = self.space.points() if self.search.spec.searcher.kind == "grid" else None

    def resume(self) -> None:
        """What a killed search left running is interrupted, and its values are to be tried again, once."""
        found = self.study.get_trials(deepcopy=False)
        waiting = {one.user_attrs.get(AGAIN) for one in found if one.state == TrialState.WAITING}
        for one in found:
            if one.state == TrialState.RUNNING:
                handed = optuna.Trial(self.study, one._trial_id)
                told = Told.from_json(one.user_attrs[RECORD]) if RECORD in one.user_attrs else None
                if told and one.number not in waiting:
                    self._again(one.params, one.number)
                self._close(handed, replace(told or Told({}), interrupted=True), TrialState.FAIL)
        if not found and self.grid is None and (values := self.space.default()) is not None:
            self.study.enqueue_trial(params(self.space.fields, values))

    def _again(self, proposed: dict[str, Any], number: int) -> None:
        self.study.enqueue_trial(proposed, user_attrs={AGAIN: number})

    @property
    def have(self) -> int:
        """Trials that count: all that were ended by themselves or by the scheduler."""
        return sum(one.status in ("done", "pruned", "failed") for one in records(self.study))

    @property
    def left(self) -> int:
        """How many more may be handed out."""
        return self.search.spec.budget.trials - self.have - len(self.running)

    def next(self, key: str) -> tuple[int, Values] | None:
        """A trial's number and values, under a key that it goes by; None where the search has come to its end."""
        if self.why is None and self.left <= 0:
            self.why = "trials"
        if self.why is None and self.grid is not None and not self._queue_point():
            self.why = "grid"
        if self.why is not None:
            return None
        with quiet():
            trial = self.study.ask()
            values = self.space.suggested(trial)
        told = Told(values)
        trial.set_user_attr(RECORD, told.as_json())
        self.running[key] = Running(trial, told)
        self.sink({"event": "trial_start", "trial": trial.number, "values": values})
        return trial.number, values

    def _queue_point(self) -> bool:
        """Put the next point of the grid into the queue, unless one waits there; whether there is any."""
        found = records(self.study)
        if any(one.status == "waiting" for one in found):
            return True
        tried = [one.told.values for one in found if one.status != "interrupted"]
        point = next((point for point in self.grid if point not in tried), None)
        if point is not None:
            self.study.enqueue_trial(params(self.space.fields, point))
        return point is not None

    def heard(self, key: str, result: dict[str, Any]) -> None:
        """What a running trial says."""
        if (one := self.running.get(key)) is None:
            return
        one.told = _told(result) or one.told
        signals = {name: result[name] for name in ("signal", "loss", "grad_norm") if name in result}
        if "signal" in signals and len(self.search.spec.metrics) == 1:
            one.steps += 1
            one.trial.report(signals["signal"], one.steps)
        said = {"progress": one.told.progress, "at": result.get("at", ""), **signals}
        if said != one.said:
            one.said = said
            self.sink({"event": "trial_result", "trial": one.trial.number, **said})

    def ended(self, key: str, result: dict[str, Any] | None, *, died: bool = False) -> None:
        """A trial has ended: by itself where its result says how, else it was stopped by the scheduler."""
        if (one := self.running.pop(key, None)) is None:
            return
        result = result or {}
        one.told = told = _told(result) or one.told
        status = "failed" if died else result.get("status", "pruned")
        if status == "stopped":
            self._interrupted(one)
        elif status == "failed":
            error = told.error or "ResourceError: its process died: killed from outside, or out of memory"
            self._close(one.trial, replace(told, error=error), TrialState.FAIL)
            self._count(error)
        elif status == "done":
            self._close(one.trial, replace(told, progress=1.0), TrialState.COMPLETE, json.loads(result["objectives"]))
        else:
            self._pruned(one)

    def _pruned(self, one: Running) -> None:
        mark = pruned_mark(self.search.storage, trial_id(self.search.id, one.trial.number))
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()  # before Ray Tune stops it: its log then says why it ended
        self._close(one.trial, one.told, TrialState.PRUNED)

    def interrupt(self) -> None:
        """What still runs is to be tried again by whoever goes on with the search."""
        for key in list(self.running):
            self._interrupted(self.running.pop(key))

    def _interrupted(self, one: Running) -> None:
        self._again(one.trial.params, one.trial.number)
        self._close(one.trial, replace(one.told, interrupted=True), TrialState.FAIL)

    def _count(self, error: str) -> None:
        kind = signature(error)
        self.alike[kind] += 1
        if self.alike[kind] >= self.search.spec.budget.failures and self.why is None:
            self.why = f"{self.alike[kind]} trials failed alike: {error.splitlines()[0]}"

    def _close(self, trial: optuna.Trial, told: Told, state: TrialState, values: list[float] | None = None) -> None:
        trial.set_user_attr(RECORD, told.as_json())
        with quiet():
            self.study.tell(trial, values, state=state)
        said = {TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}[state]
        status = "interrupted" if told.interrupted else said
        means = {name: one.mean for name, one in told.metrics.items()}
        ended = {"status": status, "objectives": values, "metrics": means, "seconds": told.seconds}
        more = {"ran": len(told.ran), "shared": told.shared, "error": told.error, "progress": told.progress}
        self.sink({"event": "trial_end", "trial": trial.number, "values": told.values, **ended, **more})

    def records(self) -> list[Record]:
        return records(self.study)


def _told(result: dict[str, Any]) -> Told | None:
    return Told.from_json(json.loads(result["told"])) if "told" in result else None


def signature(error: str) -> str:
    """An error's type and message without numbers and keys."""
    first = error.splitlines()[0] if error else ""
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", re.sub(r"\b[0-9a-f]{8,}\b", "#", first))
