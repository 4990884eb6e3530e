"""Searches as they are remembered, made by the product's own code: studies, trials, run folders."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState, create_trial

from trimtab.run.log import EventLog
from trimtab.search.job import Search, made, study_url
from trimtab.search.record import RECORD, Measured, Told
from trimtab.search.space import distribution, params
from trimtab.search.spec import SearchSpec

JOB = Path(__file__).parents[1] / "jobs" / "probe.yaml"
SPACE = {
    "students.logconf.objective.aux_coef": {"uniform": [0.0, 1.0]},
    "students.logconf.learning_rate": {"loguniform": [1.0e-4, 0.1]},
    "students.logconf.tune.l2": {"choice": [0.0, 0.003, 0.03]},
}
METRIC = "student.logconf/agreement"


def search_of(storage: Path, **fields: Any) -> Search:
    """A search over the probes' job, in a storage folder."""
    usual = {"job": str(JOB), "space": SPACE, "metric": METRIC, "truth_budget": 0}
    spec = SearchSpec.model_validate(usual | fields)
    raw = yaml.safe_load(JOB.read_text()) | {"compute": {"backend": "inline", "storage": str(storage)}}
    default, found = made(raw, {}, spec.seeds, name="probe")
    assert default is not None, found
    return Search("logconf-1a2b3c4d", "logconf", Path("tune/logconf.yaml"), spec, raw, default)


def study_of(search: Search) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search.storage.mkdir(parents=True, exist_ok=True)
    directions = ["maximize" if mode == "max" else "minimize" for mode in search.spec.modes]
    return optuna.create_study(
        study_name=search.id, storage=study_url(search.storage), directions=directions, load_if_exists=True
    )


def drawn(search: Search, draw: random.Random) -> dict[str, Any]:
    """Values for the fields whose conditions hold."""
    values: dict[str, Any] = {}
    for field, of in search.spec.space.items():
        if any(values.get(other) != needed for other, needed in of.when.items()):
            continue
        low, high = (0, 1) if hasattr(of, "choice") else of.ends
        values[field] = (
            draw.choice(of.choice)
            if hasattr(of, "choice")
            else math.exp(draw.uniform(math.log(low), math.log(high)))
            if hasattr(of, "loguniform")
            else draw.randint(low, high)
            if hasattr(of, "randint")
            else draw.uniform(low, high)
        )
    return values


def score_of(values: dict[str, Any], which: int) -> float:
    """Something that hangs on the values, best inside their ranges."""
    numbers = [v for v in values.values() if isinstance(v, int | float)]
    at = numbers[0] if numbers else 0.5
    return 0.62 + 0.12 * math.exp(-8 * (at - 0.6) ** 2) if which == 0 else 4 * at * at + 0.3


def told_of(search: Search, values: dict[str, Any], draw: random.Random, *, part: float = 1.0) -> Told:
    metrics = {}
    for which, name in enumerate(search.spec.metrics) if part == 1 else ():
        mean = score_of(values, which) + draw.gauss(0, 0.01)
        metrics[name] = Measured(mean, mean - 0.03, mean + 0.028, 200)
    early = {"loss": draw.uniform(0.5, 0.9), "grad_norm": draw.lognormvariate(0, 0.4)}
    ran = [f"train-{draw.getrandbits(64):016x}", f"validate-{draw.getrandbits(64):016x}"]
    return Told(values, metrics, early, ran, shared=4, progress=part, seconds=draw.uniform(1, 6) * part)


def fill(search: Search, trials: int, *, seed: int = 0, failing: float = 0.08, pruned: float = 0.15) -> optuna.Study:
    """A study with trials of every kind, drawn by a seed; folders of their runs beside it."""
    study, draw = study_of(search), random.Random(seed)
    for _ in range(trials):
        values, luck = drawn(search, draw), draw.random()
        if luck < failing:
            error = f"StageError: stage train-{draw.getrandbits(64):016x} failed: loss is not finite"
            told, state = Told(values, error=error, seconds=0.8), TrialState.FAIL
        elif luck < failing + pruned:
            told, state = told_of(search, values, draw, part=0.33), TrialState.PRUNED
        else:
            told, state = told_of(search, values, draw), TrialState.COMPLETE
        add(search, study, told, state)
    return study


def add(search: Search, study: optuna.Study, told: Told, state: TrialState) -> None:
    """A trial as a search leaves it in its study."""
    of = {field: distribution(search.spec.space[field]) for field in told.values}
    values = [told.metrics[name].mean for name in search.spec.metrics] if state == TrialState.COMPLETE else None
    attrs = {RECORD: told.as_json()}
    study.add_trial(
        create_trial(
            state=state,
            values=values,
            params=params(search.spec.space, told.values),
            distributions=of,
            user_attrs=attrs,
        )
    )


def final_of(search: Search, values: dict[str, Any], verdict: str = "beats") -> dict[str, Any]:
    """What the fresh evaluation on test would say."""
    gain = {"beats": 0.031, "ties": 0.004, "loses": -0.027}[verdict]
    default = {"accuracy": {"mean": 0.712, "lo": 0.695, "hi": 0.729}}
    tuned = {"accuracy": {"mean": 0.712 + gain, "lo": 0.695 + gain, "hi": 0.729 + gain}}
    against = {"accuracy": {"mean": gain, "lo": gain - 0.012, "hi": gain + 0.012}}
    entries = [
        {"name": "default", "values": {}, "trial": None, "scores": default, "against_default": None},
        {"name": "tuned", "values": values, "trial": 11, "scores": tuned, "against_default": against},
    ]
    words = f"Tuned {verdict} the untuned default: accuracy {0.712 + gain:.3f} against 0.712 on test, over 3 seeds."
    told = {"seeds": list(search.spec.final.seeds), "truth_rows": search.spec.truth_budget, "metric": "accuracy"}
    return told | {"entries": entries, "verdict": verdict, "words": words}


def log_runs(search: Search, found: list[Any], *, started: float = 1_700_000_000.0) -> None:
    """The run folders that a search and its trials leave."""
    runs, at = search.storage / "runs", started
    made_by = {"commit": "abc123", "dirty": False, "versions": {"trimtab": "0.1"}}
    log = EventLog(runs / search.id)
    said = {"run_id": search.id, "name": search.name, "kind": "search", "job": search.spec.model_dump(mode="json")}
    log({"event": "run_start", "time": at} | said | made_by)
    for one in found:
        at += 1
        run_trial(search, one, runs / f"{search.id}-t{one.number:04d}", at)
        ended = {"status": one.status, "metrics": {name: m.mean for name, m in one.told.metrics.items()}}
        log({"event": "trial_end", "time": at + 0.9, "trial": one.number, "values": one.told.values} | ended)
    log({"event": "run_end", "time": at + 1, "status": "done", "metrics": {}, "report": None})
    log.close()


def run_trial(search: Search, one: Any, folder: Path, at: float) -> None:
    log = EventLog(folder)
    said = {"run_id": folder.name, "name": search.name, "kind": "trial", "parent": search.id, "trial": one.number}
    log({"event": "run_start", "time": at, "values": one.told.values, "commit": "abc123", "versions": {}} | said)
    cached = {"status": "cached", "label": "seed 0 / supervisor", "stage": "train", "inputs": {}, "path": None}
    log({"event": "stage_end", "time": at, "stage_id": "train-00aa", "seconds": 3.0, "metrics": {}} | cached)
    for stage in one.told.ran:
        described = {"stage": stage.partition("-")[0], "label": f"seed 0 / {stage[:5]} logconf", "spec": {"batch": 8}}
        log({"event": "stage_start", "time": at, "stage_id": stage, "inputs": {"model": "train-00aa"}} | described)
        for step in range(4):
            values = {"loss": 0.9 - 0.1 * step, "eval_agreement": 0.6 + 0.03 * step}
            log({"event": "metrics", "time": at + 0.1 * step, "stage_id": stage, "step": step, "values": values})
        ended = {"status": "done", "seconds": 0.4, "metrics": {}, "path": None}
        log({"event": "stage_end", "time": at + 0.5, "stage_id": stage} | ended)
    metrics = {name: m.mean for name, m in one.told.metrics.items()}
    end = {"event": "run_end", "time": at + 0.9, "status": one.status, "metrics": metrics, "report": None}
    log(end | ({"error": one.told.error} if one.told.error else {}))
    log.close()


def write_final(search: Search, final: dict[str, Any]) -> None:
    search.folder.mkdir(parents=True, exist_ok=True)
    (search.folder / "final.json").write_text(json.dumps(final))
