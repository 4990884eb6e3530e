"""Whole searches on a small cluster, over the tiny network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Tiny
from tests.searched import STUDENT, search_over, tiny_job

from trimtab.run.joining import ray_at
from trimtab.run.log import read_log
from trimtab.search.job import Search
from trimtab.search.study import opened
from trimtab.search.tuner import tuned

pytestmark = pytest.mark.ray
RATE, STEPS, L2 = (f"{STUDENT}.{name}" for name in ("learning_rate", "tune.steps", "tune.l2"))
GRID = {"searcher": {"kind": "grid"}}


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    ray = ray_at("local")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def of_trials(search: Search) -> list[dict[str, Any]]:
    """Every event of every trial."""
    folders = sorted((search.storage / "runs").glob(f"{search.id}-t*"))
    return [event for folder in folders for event in read_log(folder)]


def times(events: list[dict[str, Any]], kind: str, **fields: Any) -> Counter[str]:
    """How often each stage had such an event."""
    wanted = {"event": kind} | fields
    return Counter(event["stage_id"] for event in events if wanted.items() <= event.items())


def test_trials_side_by_side_share_what_they_have_in_common(tiny: Tiny, tmp_path: Path, ray_address: str) -> None:
    space = {RATE: {"choice": [0.01, 0.03, 0.1]}, L2: {"choice": [0.1, 0.01]}}
    fields = {"budget": {"trials": 9, "concurrent": 2}, "seeds": [0, 1], "truth_budget": 20}
    search = search_over(space, tmp_path / "storage", tiny_job(tiny, tmp_path), **GRID, **fields)
    heard: list[dict[str, Any]] = []
    found = tuned(search, [heard.append])
    assert (found.why, found.ran) == ("grid", 6)
    assert [record.status for record in found.records] == ["done"] * 6
    events = of_trials(search)
    started = times(events, "stage_start")
    assert set(started.values()) == {1}
    assert Counter(stage.split("-")[0] for stage in started)["train"] == 2 * (1 + 6)
    assert not {event["stage"] for event in events if event["event"] == "stage_start"} & {"evaluate", "report"}
    assert sum(len(record.told.ran) for record in found.records) == len(started)
    assert {(len(record.told.ran) + record.told.shared) for record in found.records} == {
        len(found.records[0].told.ran) + found.records[0].told.shared
    }
    best = max(record.objectives[0] for record in found.records)
    assert best > 0.6
    assert {"student.a/agreement", "student.a/accuracy"} <= set(found.records[0].told.metrics)
    assert found.records[0].told.early["loss"] > 0
    (begun, *_), ends = events, [event for event in heard if event["event"] == "trial_end"]
    assert (begun["parent"], begun["trial"], begun["values"]) == (search.id, 0, {RATE: 0.01, L2: 0.1})
    assert len(ends) == 6 and [e["event"] for e in heard][-1] == "run_end"
    assert not list((search.storage / "ray").iterdir())


def test_a_search_that_fails_alike_gives_up_and_says_why(tiny: Tiny, tmp_path: Path, ray_address: str) -> None:
    raw = tiny_job(tiny, tmp_path)
    raw["task"]["max_bad_fraction"] = 0
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text() + "{}\n")
    search = search_over(
        {RATE: {"loguniform": [1e-3, 1e-1]}}, tmp_path / "storage", raw, budget={"trials": 9, "failures": 2}
    )
    found = tuned(search)
    assert found.gave_up and found.why.startswith("2 trials failed alike: DataError")
    assert [record.status for record in found.records].count("failed") == 2
    assert all("DataError" in record.told.error for record in found.records if record.status == "failed")


def trained(tiny: Tiny, folder: Path, **student: Any) -> dict[str, Any]:
    """A student that is trained step by step, rows held out."""
    usual = {"tune": {"kind": "full"}, "batch_size": 8, "num_train_epochs": 5, "eval_fraction": 0.25}
    return tiny_job(tiny, folder, **usual | student)


def test_what_learns_nothing_is_stopped_early(tiny: Tiny, tmp_path: Path, ray_address: str) -> None:
    space = {RATE: {"choice": [3e-3, 1e-9]}}
    fields = {"scheduler": {"kind": "asha", "grace": 0.4, "reduction": 2}, "budget": {"trials": 4, "concurrent": 1}}
    search = search_over(space, tmp_path / "storage", trained(tiny, tmp_path, learning_rate=3e-3), **GRID, **fields)
    heard: list[dict[str, Any]] = []
    found = tuned(search, [heard.append])
    assert [(record.told.values[RATE], record.status) for record in found.records] == [(3e-3, "done"), (1e-9, "pruned")]
    learned, stopped = found.records
    assert 0.4 <= stopped.told.progress < 1 and stopped.objectives is None
    assert learned.told.progress == 1 and learned.told.early.keys() == {"loss", "grad_norm"}
    signals = [[e["signal"] for e in heard if e.get("trial") == n and "signal" in e] for n in (0, 1)]
    assert max(signals[0]) > max(signals[1])
    begun = times(of_trials(search), "stage_start")
    (let_go,) = times(of_trials(search), "stage_end", status="interrupted")
    ends = [event["status"] for event in of_trials(search) if event["event"] == "run_end"]
    assert ends == ["done", "pruned"]
    assert next(e["metrics"] for e in heard if e["event"] == "run_end") == {
        "best/student.a/agreement": learned.objectives[0]
    }
    assert begun[let_go] == 1 and not list((search.storage / "artifacts").glob(f".{let_go}*"))


SCRIPT = """
import json, sys
from tests.search.test_tuner import killed_search
from trimtab.search.tuner import tuned
tuned(killed_search(*json.loads(sys.argv[1])), [lambda event: print(json.dumps(event, default=str), flush=True)])
"""


def killed_search(raw: dict[str, Any], storage: str) -> Search:
    raw["compute"] = {"checkpoint_steps": 1}
    space = {RATE: {"choice": [1e-3, 2e-3]}}
    return search_over(space, Path(storage), raw, **GRID, budget={"trials": 9, "concurrent": 1})


def in_the_middle_of(storage: Path, number: int, steps: int) -> bool:
    """Whether a trial has made that many checkpoints of its student."""
    folder = next((storage / "runs").glob(f"*-t{number:04d}"), None)
    said = list(read_log(folder)) if folder else []
    return sum(event["event"] == "metrics" for event in said) >= steps


@pytest.mark.chaos
def test_a_search_that_is_killed_goes_on_where_it_was(tiny: Tiny, tmp_path: Path, ray_address: str) -> None:
    raw, storage = trained(tiny, tmp_path, num_train_epochs=20), tmp_path / "storage"
    environment = os.environ | {"RAY_ADDRESS": ray_address}
    place = json.dumps([raw, str(storage)])
    killed = subprocess.Popen([sys.executable, "-c", SCRIPT, place], env=environment, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not in_the_middle_of(storage, 1, 6):
        assert killed.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    search = killed_search(raw, str(storage))
    before = {one.number: one.datetime_complete for one in opened(search).trials if one.state.is_finished()}
    found = tuned(search)
    assert [record.status for record in found.records] == ["done", "interrupted", "done"]
    assert [record.told.values[RATE] for record in found.records] == [1e-3, 2e-3, 2e-3]
    assert opened(search).trials[0].datetime_complete == before[0]
    events = of_trials(search)
    assert set(times(events, "stage_end", status="done").values()) == {1}
    (again,) = [stage for stage, count in times(events, "stage_start").items() if count > 1]
    assert "going on from step" in (storage / "artifacts" / again / "log.txt").read_text()
    last = list(read_log(storage / "runs" / f"{search.id}-t0001"))[-1]
    assert (last["event"], last["status"]) == ("run_end", "interrupted")


def test_a_signal_to_its_whole_process_group_leaves_the_study_whole(tiny: Tiny, tmp_path: Path) -> None:
    raw, storage = trained(tiny, tmp_path, num_train_epochs=200), tmp_path / "storage"
    place = json.dumps([raw, str(storage)])
    begun = subprocess.Popen([sys.executable, "-c", SCRIPT, place], stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 240
    while not in_the_middle_of(storage, 0, 2):
        assert begun.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    os.killpg(begun.pid, signal.SIGTERM)
    assert begun.wait(120) == -signal.SIGINT, "as KeyboardInterrupt ends it"
    search = killed_search(raw, str(storage))
    assert [one.state.name for one in opened(search).trials] == ["FAIL", "WAITING"]
    logs = [storage / "runs" / name for name in (search.id, f"{search.id}-t0000")]
    assert [list(read_log(log))[-1]["status"] for log in logs] == ["interrupted", "interrupted"]
