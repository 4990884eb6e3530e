"""A search in MLflow: its trials nested in it, their own stages nested in them, whoever is replayed first."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.searching import fill, log_runs, search_of

from trimtab.run.found import find
from trimtab.run.log import EventLog, owner, settle_runs
from trimtab.run.track import Tracker, default_uri, sync
from trimtab.run.track_replay import Replay, SearchReplay
from trimtab.search.board import ranked, write_tables
from trimtab.search.job import Search
from trimtab.search.page import write_page
from trimtab.search.record import Record, records

EXPERIMENT = "trimtab/tune/logconf"


def searched(storage: Path, trials: int = 6) -> tuple[Search, list[Record]]:
    search = search_of(storage, truth_budget=64)
    found = records(fill(search, trials, seed=3, failing=0.2))
    write_page(search, found, final=None, out=search.folder / "report.html")
    write_tables(ranked(found, search.spec.modes), search.spec, search.folder)
    log_runs(search, found)
    return search, found


def runs_of(uri: str) -> dict[str, Any]:
    """Every run of the search's experiment by name and parent's name."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id], max_results=1000)
    names = {run.info.run_id: run.info.run_name for run in found}
    told = {(run.info.run_name, names.get(run.data.tags.get("mlflow.parentRunId", ""))): run for run in found}
    assert len(told) == len(found)
    return told


@pytest.mark.slow
def test_trials_are_nested_in_their_search_and_stages_they_ran_in_them(storage: Path) -> None:
    search, found = searched(storage)
    uri = default_uri(storage)
    replay = SearchReplay(storage / "runs" / search.id, uri)
    assert replay.step() > 0
    assert replay.refused == []
    runs = runs_of(uri)
    parents = Counter(parent for _, parent in runs)
    assert parents[None] == 1
    assert parents[search.id] == len(found)
    for one in found:
        name = f"trial {one.number}"
        run = runs[name, search.id]
        assert parents[name] == len(one.told.ran)
        assert run.data.params == {field: str(value) for field, value in one.told.values.items()}
        assert run.data.metrics == {metric: m.mean for metric, m in one.told.metrics.items()}
        assert run.data.tags["trimtab.trial"] == str(one.number)
        assert run.data.tags["trimtab.status"] == one.status
        assert run.data.tags["trimtab.found.seed 0 / supervisor"] == "train-00aa"
        assert run.info.status == {"done": "FINISHED", "failed": "FAILED", "pruned": "FINISHED"}[one.status]
    assert {one.status for one in found} >= {"done", "failed"}


@pytest.mark.slow
def test_the_searchs_run_says_what_it_searched_and_keeps_its_page(storage: Path) -> None:
    from mlflow import MlflowClient

    search, _ = searched(storage)
    uri = default_uri(storage)
    SearchReplay(storage / "runs" / search.id, uri).step()
    run = runs_of(uri)[search.id, None]
    assert run.data.tags["trimtab.study"] == search.id
    assert run.data.tags["trimtab.truth_budget"] == "64"
    assert run.data.params["metric"] == search.spec.metric
    assert not [name for name in run.data.params if name.startswith(("budget", "final"))]
    kept = {file.path for file in MlflowClient(tracking_uri=uri).list_artifacts(run.info.run_id)}
    assert kept == {"events.jsonl", "report.html", "leaderboard.csv", "table.json"}


@pytest.mark.slow
def test_replaying_again_or_trial_by_trial_changes_nothing(storage: Path) -> None:
    search, _ = searched(storage, 4)
    uri = default_uri(storage)
    last = storage / "runs" / f"{search.id}-t0003"
    Replay(last, uri).step()
    assert set(runs_of(uri)) >= {(search.id, None), ("trial 3", search.id)}
    assert [run.problem for run in sync(storage)] == [None] * 5
    once = {name: (run.info.run_id, run.data.tags, run.data.metrics) for name, run in runs_of(uri).items()}
    replay = SearchReplay(storage / "runs" / search.id, uri)
    assert (replay.step(), replay.step()) == (0, 0)
    for state in storage.glob("runs/*/mlflow.json"):
        state.unlink()
    assert SearchReplay(storage / "runs" / search.id, uri).step() > 0
    assert {name: (run.info.run_id, run.data.tags, run.data.metrics) for name, run in runs_of(uri).items()} == once


@pytest.mark.slow
def test_a_trial_whose_search_left_no_log_stands_alone(storage: Path) -> None:
    search, _ = searched(storage, 2)
    shutil.rmtree(storage / "runs" / search.id)
    assert [run.problem for run in sync(storage)] == [None, None]
    names = {name for name, parent in runs_of(default_uri(storage)) if parent is None}
    assert names == {"trial 0", "trial 1"}


@pytest.mark.slow
def test_a_tracker_hears_of_trials_that_begin_while_it_follows(storage: Path) -> None:
    search = search_of(storage)
    folder = storage / "runs" / search.id
    start = {"event": "run_start", "run_id": search.id, "name": search.name, "kind": "search"}
    EventLog(folder)(start | {"job": search.spec.model_dump(mode="json")})
    tracker = Tracker(folder, default_uri(storage), every=0.1, replay=SearchReplay)
    log_runs(search, records(fill(search, 3, failing=0, pruned=0)))
    assert tracker.close(60) is None
    assert Counter(parent for _, parent in runs_of(default_uri(storage)))[search.id] == 3


def test_a_search_that_went_on_after_an_end_runs_until_it_ends_again(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "runs" / "s")
    start = {"event": "run_start", "name": "s", "kind": "search"}
    ended = {"event": "run_end", "status": "interrupted", "metrics": {}, "report": None}
    log(start | {"owner": {"host": "elsewhere", "pid": 1, "born": 0}})
    log(ended)
    assert find(tmp_path, "s").status == "interrupted"
    log(start | {"owner": owner()})
    assert find(tmp_path, "s").status.startswith("running on ")
    assert settle_runs(tmp_path) == []
    log(start | {"owner": owner() | {"born": 0}})
    assert settle_runs(tmp_path) == ["s"]
    log(ended | {"status": "done"})
    assert find(tmp_path, "s").status == "done"


def test_a_report_without_a_name_is_of_the_search_and_not_of_its_last_trial(tmp_path: Path) -> None:
    search, found = searched(tmp_path, 3)
    newest = find(tmp_path, None)
    assert (newest.run_id, newest.status, newest.report) == (search.id, "done", search.folder / "report.html")
    assert len(newest.table) == 4
    best = next(one for one in found if one.status == "done")
    trial = find(tmp_path, f"{search.id}-t{best.number:04d}")
    assert trial.table == [["metric", "value"], [search.spec.metric, f"{best.objectives[0]:.4g}"]]
