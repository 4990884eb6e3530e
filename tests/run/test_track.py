"""A run's event log replayed to MLflow: into SQLite, over a server that dies, towards one that is not there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.ports import free_port

from trimtab.errors import DataError
from trimtab.run.registry import Registry
from trimtab.run.track import Replay, Tracker, default_uri, sync
from trimtab.run.track_words import connect

START = 1_700_000_000.0
SPLIT, SUPERVISOR, STUDENT = "split-00aa11bb22cc33dd", "train-1111222233334444", "train-5555666677778888"
LABEL, EVALUATE = "label-9999000011112222", "evaluate-3333444455556666"


class Log:
    """Writes events.jsonl the way a run does; each event is half a second after the one before."""

    def __init__(self, storage: Path, run_id: str = "20240101-a") -> None:
        self.storage, self.run_id, self.time = storage, run_id, START
        self.folder = storage / "runs" / run_id
        self.folder.mkdir(parents=True)

    def add(self, event: str, **fields: Any) -> None:
        self.time += 0.5
        with (self.folder / "events.jsonl").open("a") as log:
            log.write(json.dumps({"event": event, "time": self.time, **fields}) + "\n")

    def stage(self, event: str, stage_id: str, label: str, **fields: Any) -> None:
        stage, _, key = stage_id.rpartition("-")
        spec = {"model": {"source": "builtin:tiny", "layers": None}, "learning_rate": 1e-05, "tags": [1, 2]}
        told = {"stage_id": stage_id, "stage": stage, "label": label, "key": key, "version": 2, "spec": spec}
        self.add(event, **{**told, **fields})

    def start(self) -> None:
        job = {"kind": "weak_to_strong", "students": {"log conf+": {"seed": 0}}, "long": "x" * 7000}
        job["many"] = {f"k{i}": i for i in range(150)}
        versions = {"trimtab": "0.1", "torch": "2.13.0"}
        who = {"run_id": self.run_id, "name": "quickstart", "kind": "weak_to_strong"}
        self.add("run_start", **who, job=job, commit="abc123", dirty=True, versions=versions)

    def first_half(self) -> None:
        self.start()
        done = {"status": "cached", "seconds": 0.0, "metrics": {"rows": 300}, "path": None}
        self.stage("stage_end", SPLIT, "split", inputs={"data": "prepare-77"}, **done)
        self.stage("stage_start", SUPERVISOR, "seed 0 / supervisor", inputs={"data": f"{SPLIT}/supervise"})
        for step in range(1, 6):
            self.add("metrics", stage_id=SUPERVISOR, step=step, values={"loss": 1 / step, "lr (head)": 0.1})
            self.add("progress", stage_id=SUPERVISOR, done=step, total=10)

    def second_half(self) -> None:
        for step in range(6, 11):
            loss = {8: float("nan"), 9: float("inf")}.get(step, 1 / step)
            self.add("metrics", stage_id=SUPERVISOR, step=step, values={"loss": loss, "lr (head)": 0.1})
        ended = {"status": "done", "seconds": 4.5, "metrics": {"accuracy": 0.75, "name": "not a number"}}
        self.add("stage_end", stage_id=SUPERVISOR, path=str(self.model(SUPERVISOR)), **ended)
        self.stage("stage_start", LABEL, "weak labels", inputs={"model": SUPERVISOR, "data": f"{SPLIT}/transfer"})
        self.add("stage_retry", stage_id=LABEL, text="out of memory with micro_batch 8; again with 4")
        self.add("stage_end", stage_id=LABEL, status="done", seconds=1.0, metrics={}, path=None)
        self.stage("stage_start", STUDENT, "seed 0 / student logconf", inputs={"data": LABEL})
        self.add("stage_end", stage_id=STUDENT, status="failed", seconds=1.0, metrics={}, path=None)
        self.stage("stage_start", EVALUATE, "evaluate", inputs={"model": SUPERVISOR, "data": f"{SPLIT}/test"})

    def finish(self, status: str = "interrupted") -> None:
        report = self.folder / "report.html"
        report.write_text("<html></html>")
        self.add("run_end", status=status, metrics={"student.log conf+/accuracy": 0.8}, report=str(report))

    def whole(self) -> Log:
        self.first_half()
        self.second_half()
        self.finish()
        return self

    def model(self, stage_id: str) -> Path:
        folder = self.storage / "artifacts" / stage_id
        (folder / "model").mkdir(parents=True, exist_ok=True)
        for name in ("metrics.json", "README.md", "model/config.json", "model/model.safetensors"):
            (folder / name).write_text(name)
        return folder


def everything(uri: str, experiment: str = "trimtab/quickstart") -> dict[str, Any]:
    """Every run of an experiment as plain data, by name; a second run of the same name shows as an error."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], max_results=1000)
    names = {run.info.run_id: run.info.run_name for run in runs}
    assert len(set(names.values())) == len(names), f"the same run twice: {sorted(names.values())}"
    told = {}
    for run in runs:
        points = {
            key: [(p.step, p.timestamp, repr(p.value)) for p in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        told[run.info.run_name] = {
            "status": run.info.status,
            "start": run.info.start_time,
            "end": run.info.end_time,
            "parent": names.get(run.data.tags.get("mlflow.parentRunId", "")),
            "tags": {k: v for k, v in run.data.tags.items() if k.startswith("trimtab.")},
            "params": run.data.params,
            "points": {key: sorted(found) for key, found in points.items()},
            "datasets": sorted((d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs),
            "files": sorted(file.path for file in client.list_artifacts(run.info.run_id)),
            "model": sorted(file.path for file in client.list_artifacts(run.info.run_id, "model")),
        }
    return told


def test_default_uri_is_the_users_or_a_file_in_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert default_uri(tmp_path) == "http://localhost:5000"


def test_a_log_without_a_whole_line_needs_no_server(tmp_path: Path) -> None:
    replay = Replay(tmp_path, "http://localhost:1")
    assert replay.step() == 0
    (tmp_path / "events.jsonl").write_text('{"event": "run_st')
    assert replay.step() == 0


def test_sync_of_an_unknown_run_names_near_ones(tmp_path: Path) -> None:
    Log(tmp_path, "20240101-a").start()
    with pytest.raises(DataError, match="no run 20240101-b in .*; there is: 20240101-a"):
        sync(tmp_path, "20240101-b")
    assert sync(tmp_path / "nothing") == []


@pytest.mark.slow
def test_a_run_becomes_an_experiment_with_nested_runs(storage: Path) -> None:
    log = Log(storage).whole()
    uri = default_uri(storage)
    replay = Replay(log.folder, uri)
    assert replay.step() == len((log.folder / "events.jsonl").read_text().splitlines())
    assert replay.refused == []
    runs = everything(uri)
    job, supervisor = runs.pop(log.run_id), runs["seed 0 / supervisor"]

    assert {run["parent"] for run in runs.values()} == {log.run_id}
    assert {name: run["status"] for name, run in runs.items()} == {
        "split": "FINISHED",
        "seed 0 / supervisor": "FINISHED",
        "weak labels": "FINISHED",
        "seed 0 / student logconf": "FAILED",
        "evaluate": "KILLED",
    }
    assert job["status"] == "KILLED"
    assert job["start"] == START * 1000 + 500
    assert job["end"] == log.time * 1000

    assert job["tags"]["trimtab.kind"] == "weak_to_strong"
    assert job["tags"]["trimtab.version.torch"] == "2.13.0"
    assert job["params"]["students.log conf_.seed"] == "0"
    assert job["params"]["long"] == "x" * 6000
    assert job["params"]["many.k149"] == "149"
    assert job["points"] == {"student.log conf_/accuracy": [(0, log.time * 1000, "0.8")]}
    assert job["files"] == ["events.jsonl", "report.html"]

    common = {"trimtab.run_id": log.run_id, "trimtab.commit": "abc123", "trimtab.dirty": "true"}
    lineage = {"trimtab.input.data": f"{SPLIT}/supervise", "trimtab.key": "1111222233334444"}
    expected = common | lineage | {"trimtab.stage": "train", "trimtab.version": "0.1", "trimtab.stage_version": "2"}
    assert expected.items() <= supervisor["tags"].items()
    assert supervisor["params"] == {
        "model.source": "builtin:tiny",
        "model.layers": "null",
        "learning_rate": "1e-05",
        "tags": "[1, 2]",
    }
    assert runs["weak labels"]["tags"]["trimtab.input.model"] == SUPERVISOR
    assert runs["weak labels"]["tags"]["trimtab.stage_retry"] == "out of memory with micro_batch 8; again with 4"
    assert runs["split"]["tags"]["trimtab.cached"] == "true"
    assert runs["split"]["points"]["rows"][0][2] == "300.0"


@pytest.mark.slow
def test_points_datasets_and_artifacts_of_a_stage(storage: Path) -> None:
    log = Log(storage).whole()
    uri = default_uri(storage)
    Replay(log.folder, uri).step()
    run = everything(uri)["seed 0 / supervisor"]

    losses = {step: value for step, _, value in run["points"]["loss"]}
    assert losses == {s: repr(1 / s) for s in (1, 2, 3, 4, 5, 6, 7, 10)} | {8: "nan", 9: "1.7976931348623157e+308"}
    assert run["points"]["loss"][0][1] == START * 1000 + 2000
    assert [(step, value) for step, _, value in run["points"]["accuracy"]] == [(10, "0.75")]
    assert set(run["points"]) == {"loss", "lr _head_", "accuracy", "seconds"}
    assert run["datasets"] == [("data", f"{SPLIT}/supervise")]

    assert run["files"] == ["README.md", "metrics.json", "model"]
    assert run["model"] == ["model/config.json", "model/model.safetensors"]
    assert run["tags"]["trimtab.model_path"] == str(storage / "artifacts" / SUPERVISOR / "model")
    (weights,) = (storage / "mlartifacts").rglob("model.safetensors")
    assert weights.stat().st_ino == (storage / "artifacts" / SUPERVISOR / "model/model.safetensors").stat().st_ino


@pytest.mark.slow
def test_replaying_again_changes_nothing(storage: Path) -> None:
    log = Log(storage)
    uri = default_uri(storage)
    log.first_half()
    replay = Replay(log.folder, uri)
    replay.step()
    log.second_half()
    log.finish()
    replay.step()
    once = everything(uri)

    assert replay.step() == 0
    assert Replay(log.folder, uri).step() == 0
    assert everything(uri) == once
    (log.folder / "mlflow.json").unlink()
    assert Replay(log.folder, uri).step() > 0
    assert everything(uri) == once
    state = json.loads((log.folder / "mlflow.json").read_text())
    (log.folder / "mlflow.json").write_text(json.dumps(state | {"offset": 0, "runs": {}, "open": {}, "tags": {}}))
    again = Replay(log.folder, uri)
    assert again.step() > 0
    assert everything(uri) == once
    assert again.refused == []


@pytest.mark.chaos
@pytest.mark.slow
def test_half_lines_wait_and_garbage_is_told(storage: Path) -> None:
    log = Log(storage)
    uri = default_uri(storage)
    log.first_half()
    path = log.folder / "events.jsonl"
    whole, half = path.read_bytes(), b'{"event": "metrics", "time": 1700000100.0, "stage_id": "' + SUPERVISOR.encode()
    path.write_bytes(whole + half)
    replay = Replay(log.folder, uri)
    assert replay.step() == whole.count(b"\n")
    assert replay.step() == 0
    path.write_bytes(whole + half + b'", "step": 77, "values": {"loss": 0.5}}\n' + b'{"event": "met\n')
    assert replay.step() == 2
    assert everything(uri)["seed 0 / supervisor"]["points"]["loss"][-1] == (77, 1700000100000, "0.5")
    assert len(replay.refused) == 1
    assert "not a JSON object" in replay.refused[0]


@pytest.mark.chaos
@pytest.mark.slow
def test_what_the_server_lost_or_the_user_deleted(storage: Path, empty_store: Path) -> None:
    from mlflow import MlflowClient

    log = Log(storage)
    uri = default_uri(storage)
    log.first_half()
    Replay(log.folder, uri).step()
    client = MlflowClient(tracking_uri=uri)
    job = json.loads((log.folder / "mlflow.json").read_text())["runs"]["job"]
    client.delete_run(job)
    log.second_half()
    log.finish("done")
    replay = Replay(log.folder, uri)
    replay.step()
    assert any(job in text for text in replay.refused)
    assert log.run_id not in everything(uri)

    other = f"sqlite:///{storage}/other.db"
    shutil.copy(empty_store, storage / "other.db")
    assert [run.problem for run in sync(storage, uri=other)] == [None]
    assert everything(other)[log.run_id]["status"] == "FINISHED"
    assert json.loads((log.folder / "mlflow.json").read_text())["uri"] == other


@pytest.mark.slow
def test_sync_takes_what_is_behind(storage: Path) -> None:
    one, two = Log(storage, "one").whole(), Log(storage, "two")
    two.first_half()
    assert [run.run_id for run in sync(storage, "one")] == ["one"]
    assert [(run.run_id, run.events > 0) for run in sync(storage)] == [("one", False), ("two", True)]
    two.second_half()
    two.finish("done")
    sync(storage)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(storage))
    found = client.search_runs([client.get_experiment_by_name("trimtab/quickstart").experiment_id])
    states = {run.info.run_name: run.info.status for run in found if "mlflow.parentRunId" not in run.data.tags}
    assert states == {one.run_id: "KILLED", two.run_id: "FINISHED"}


@pytest.mark.slow
def test_a_tracker_follows_a_live_run(storage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = Log(storage)
    uri = default_uri(storage)
    tracker = Tracker(log.folder, uri, every=0.1)
    log.first_half()
    deadline = time.monotonic() + 60
    while not (log.folder / "mlflow.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    log.second_half()
    log.finish("done")
    assert tracker.close(60) is None
    assert everything(uri)[log.run_id]["status"] == "FINISHED"
    assert capfd.readouterr() == ("", "")


@pytest.mark.chaos
@pytest.mark.slow
def test_without_a_server_a_run_ends_with_a_warning(storage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = Log(storage)
    uri = f"http://user:secret@localhost:{free_port()}"
    tracker = Tracker(log.folder, uri, every=0.1)
    log.whole()
    warning = tracker.close(60)
    assert warning is not None
    assert "trimtab report --sync" in warning
    assert "secret" not in warning
    assert "\n" not in warning
    assert len((log.folder / "events.jsonl").read_text().splitlines()) > 20
    assert capfd.readouterr() == ("", "")
    assert sync(storage)[0].problem is None
    assert everything(default_uri(storage))[log.run_id]["status"] == "KILLED"


@contextmanager
def server(storage: Path, port: int) -> Iterator[None]:
    """A real `mlflow server` over the storage's database, killed without warning at the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{storage}/mlflow.db"]
    command += ["--artifacts-destination", str(storage / "served")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (storage / "server.log").open("ab") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=os.environ | quiet, cwd=storage, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 300
        while not answers(port):
            assert process.poll() is None, (storage / "server.log").read_text()
            assert time.monotonic() < deadline, (storage / "server.log").read_text()
            time.sleep(0.5)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


KILLED = """
import os, sys
from pathlib import Path
from sqlalchemy import Engine, event
from trimtab.run.track_words import connect
uri, half = sys.argv[1:]
event.listen(Engine, "before_cursor_execute", lambda *_: Path(half).stat().st_size and os.kill(os.getpid(), 9))
connect(uri)
"""
"""Makes a store, and is killed at the first statement after something of it is in the file."""


@pytest.mark.chaos
@pytest.mark.slow
def test_a_kill_in_the_first_migration_leaves_no_half_made_store(tmp_path: Path) -> None:
    uri, half = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / ".mlflow.db.new"
    process = subprocess.run([sys.executable, "-c", KILLED, uri, half], check=False)
    assert process.returncode == -signal.SIGKILL
    assert half.stat().st_size
    assert [path.name for path in tmp_path.glob("*.db")] == []
    assert connect(uri).search_experiments()
    assert not half.exists()


@pytest.mark.chaos
@pytest.mark.slow
def test_a_server_killed_in_the_middle_loses_nothing(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    log, port = Log(storage), free_port()
    uri = f"http://127.0.0.1:{port}"
    replay = Replay(log.folder, uri)
    log.first_half()
    with server(storage, port):
        replay.step()
    log.second_half()
    before = (log.folder / "mlflow.json").read_text()
    with pytest.raises(Exception, match="failed with exception"):
        replay.step()
    assert (log.folder / "mlflow.json").read_text() == before
    with server(storage, port):
        assert replay.step() > 0
        log.add("register", stage_id=LABEL, name="weak", alias="best", tags={}, path=str(log.model(LABEL)))
        log.finish("done")
        replay.step()
        assert (replay.refused, replay.registered) == ([], ["models:/weak/1"])
        runs = everything(uri)
        registered = Registry(storage, uri).folder("models:/weak@best")
    assert {name: run["status"] for name, run in runs.items()} == {
        log.run_id: "FINISHED",
        "split": "FINISHED",
        "seed 0 / supervisor": "FINISHED",
        "weak labels": "FINISHED",
        "seed 0 / student logconf": "FAILED",
        "evaluate": "KILLED",
    }
    supervisor = runs["seed 0 / supervisor"]
    assert [step for step, _, _ in supervisor["points"]["loss"]] == list(range(1, 11))
    assert supervisor["model"] == ["model/config.json"]
    assert supervisor["tags"]["trimtab.model_path"].endswith(f"{SUPERVISOR}/model")
    assert len(list((storage / "served").rglob("model.safetensors"))) == 1
    assert registered.parent == storage / "cache" / "registry"
    assert (registered / "model.safetensors").read_text() == "model/model.safetensors"
