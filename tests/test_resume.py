"""A run that is killed goes on where it stopped, and finds what an undisturbed one finds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import GOOD, Tiny

from trimtab import verbs
from trimtab.run.log import read_log

pytestmark = [pytest.mark.chaos, pytest.mark.slow]
RUN_ID = "job_1-of.2"
"""What the runs are told to be called."""
KILLED = """
import os, sys
from trimtab import verbs
trained = set()
def hear(event):
    if event["event"] == "stage_end" and event["stage_id"].startswith("train-"):
        trained.add(event["stage_id"])
    if len(trained) == 2 and event["event"] == "metrics" and event["stage_id"] not in trained:
        os.kill(os.getpid(), 9)
job, *given = sys.argv[1:]
verbs.run(job, given, listeners=[hear])
"""
"""Runs a job, and is killed in its third training."""


def job_file(folder: Path, tiny: Tiny) -> Path:
    """Two students on a random network, in float32; a row's label is the half of the list its first word is from."""
    texts = [f"{word} {thing}{' stone' * n}" for n in range(8) for word in GOOD for thing in ("road", "cup")]
    rows = [{"text": text, "label": int(text.split()[0] in GOOD[:3])} for text in texts]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = {"source": str(tiny.model), "dtype": "float32"}
    strong = {"model": model, "tune": {"kind": "top", "layers": 2}, "learning_rate": 0.003, "batch_size": 8}
    job = {
        "kind": "weak_to_strong",
        "task": {"source": str(folder / "rows.jsonl")},
        "split": {"supervise": 16, "transfer": 32, "test": 32},
        "supervisor": strong | {"model": model | {"layers": 2}, "tune": {"kind": "full"}},
        "students": {"naive": strong, "logconf": strong | {"objective": {"kind": "logconf"}}},
        "ceiling": strong,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def start(job: Path, storage: Path, mlflow_uri: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trimtab", "run", str(job), f"compute.storage={storage}", "--json"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow_uri, "TRIMTAB_RUN_ID": RUN_ID}
    return subprocess.Popen(
        [*command, "compute.backend=inline"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )


def finished(storage: Path) -> dict[str, int]:
    """Whole artifacts and when each was completed."""
    return {p.parent.name: p.stat().st_mtime_ns for p in (storage / "artifacts").glob("[a-z]*/metrics.json")}


def outcome(storage: Path) -> dict[str, Any]:
    """Predictions of every evaluation, by stage key."""
    return {p.parent.name: p.read_text() for p in (storage / "artifacts").glob("evaluate-*/predictions.jsonl")}


def ended(run: subprocess.Popen[str]) -> list[dict[str, Any]]:
    printed, _ = run.communicate(timeout=300)
    assert run.returncode == 0
    return [json.loads(line) for line in printed.splitlines()]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, mlflow_uri: str
) -> tuple[dict[str, float], dict[str, str]]:
    """Metrics and predictions of a run that nothing happened to, in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
        done = verbs.run(job_file(folder, tiny), [f"compute.storage={folder}", "compute.backend=inline"])
    return done.metrics, outcome(folder)


def test_a_killed_driver_repeats_nothing_and_finds_the_same(
    tmp_path: Path, tiny: Tiny, undisturbed: tuple[dict[str, float], dict[str, str]], mlflow_uri: str
) -> None:
    job, killed = job_file(tmp_path, tiny), tmp_path / "killed"
    given = [f"compute.storage={killed}", "compute.backend=inline"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow_uri, "TRIMTAB_RUN_ID": RUN_ID}
    run = subprocess.run([sys.executable, "-c", KILLED, job, *given], env=environment, check=False)
    assert run.returncode == -signal.SIGKILL
    assert list((killed / "artifacts").glob(".train-*"))
    before = finished(killed)
    assert sum(name.startswith("train-") for name in before) >= 2

    events = ended(start(job, killed, mlflow_uri))
    after = finished(killed)
    assert {name: after[name] for name in before} == before, "finished stages stay as they were"
    assert not [e for e in events if e["event"] == "stage_start" and e["stage_id"] in before]
    assert [p.name for p in (killed / "artifacts").glob(".*")] == [], "half-written folders are swept"

    assert events[-1]["event"] == "done"
    assert (events[-1]["metrics"], outcome(killed)) == undisturbed
    assert {"supervisor/accuracy", "student.naive/accuracy", "ceiling/accuracy"} <= set(events[-1]["metrics"])
    is_one_run(killed, events[-1]["run_id"], mlflow_uri)


def is_one_run(storage: Path, run_id: str, mlflow_uri: str) -> None:
    """The driver that was killed and the one that went on are one run: a folder, a log, a run of MLflow."""
    from mlflow import MlflowClient

    assert run_id == RUN_ID
    assert [folder.name for folder in (storage / "runs").iterdir()] == [run_id]
    log = list(read_log(storage / "runs" / run_id))
    told = [event["event"] for event in log if event["event"] in ("run_start", "run_end")]
    assert told == ["run_start", "run_end", "run_start", "run_end"]
    assert log[-1]["status"] == "done"
    ends = [event["stage_id"] for event in log if event["event"] == "stage_end" and event["status"] == "done"]
    assert len(ends) == len(set(ends)) == len(finished(storage)), "no stage is told of twice"
    client = MlflowClient(mlflow_uri)
    runs = client.search_runs([client.get_experiment_by_name("trimtab/job").experiment_id])
    own = [run for run in runs if run.data.tags["trimtab.run_id"] == run_id]
    stages = [run.data.tags["trimtab.stage_id"] for run in own if "trimtab.stage_id" in run.data.tags]
    assert sorted(stages) == sorted(ends)
    assert len(own) == len(stages) + 1
    assert {run.info.status for run in own} == {"FINISHED"}
    assert {run.data.tags["trimtab.cached"] for run in own if "trimtab.stage_id" in run.data.tags} == {"false"}


def test_a_checkpoint_that_was_cut_short_is_told_of_in_the_report(
    tmp_path: Path,
    tiny: Tiny,
    undisturbed: tuple[dict[str, float], dict[str, str]],
    mlflow_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "metrics" and event["step"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setattr("trimtab.tracked.CLOSES_WITHIN_S", 300.0)
    job = job_file(tmp_path, tiny)
    given = [f"compute.storage={tmp_path}", "compute.backend=inline", "compute.checkpoint_steps=1"]
    with pytest.raises(KeyboardInterrupt):
        verbs.run(job, given, listeners=[stop])
    *_, newest = sorted((tmp_path / "partial").glob("*/step-*"))
    weights = newest / "tensors-00000.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = verbs.run(job, given)
    assert (done.metrics, outcome(tmp_path)) == undisturbed
    (warning,) = done.warnings
    said = f"checkpoint {newest} is left aside: {weights.name} is"
    assert warning.startswith(f"{newest.parent.name}: {said}") and warning.endswith("it was cut short")
    (page,) = (tmp_path / "artifacts").glob("report-*/report.html")
    assert f"train supervisor: {said}" in page.read_text()
