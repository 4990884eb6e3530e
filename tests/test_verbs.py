"""The verbs without a model: check, plan, report, data, and runs whose process is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trimtab import verbs
from trimtab.errors import ClusterError, DataError, JobError, ResourceError
from trimtab.run.log import EventLog, first_event, has_ended, owner, read_log, run_folders, settle_runs

ROOT = Path(__file__).parents[1]
JOB = """\
kind: weak_to_strong
task: {source: builtin:valence}
supervisor: {model: {source: builtin:smollm2-135m, layers: 4}}
ceiling: &strong {model: {source: builtin:smollm2-135m}}
students: {naive: *strong}
compute: {backend: inline}
"""
LIGHT = """
import sys
from trimtab import verbs
{call}
heavy = {{"torch", "ray", "transformers", "trl", "deepspeed", "mlflow", "datasets", "peft", "numpy"}}
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or 0)
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def events(*found: dict[str, Any], run: str, storage: Path) -> Path:
    """A run's log as it was left."""
    log = EventLog(storage / "runs" / run)
    for event in found:
        log(event)
    log.close()
    return log.folder


def dead() -> dict[str, Any]:
    """What a process said of itself that has ended since."""
    code = "import json; from trimtab.run.log import owner; print(json.dumps(owner()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("verb", ["check", "plan"])
def test_looking_at_a_job_imports_little(job: Path, verb: str) -> None:
    code = LIGHT.format(call=f"verbs.{verb}({str(job)!r})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_plan_says_what_is_there_and_what_the_rest_needs(job: Path, tmp_path: Path) -> None:
    storage = f"compute.storage={tmp_path / 'storage'}"
    plan = verbs.plan(job, [storage])
    assert [stage.stage for stage in plan.stages].count("train") == 3
    assert len(plan.to_run) == len(plan.stages)
    assert plan.need.memory > 134_515_008 * 18
    assert plan.need.disk > 2 * 134_515_008 * 2
    assert not (tmp_path / "storage").exists()
    done = tmp_path / "storage" / "artifacts" / plan.stages[0].id
    done.mkdir(parents=True)
    (done / "metrics.json").write_text("{}")
    assert [stage.label for stage in verbs.plan(job, [storage]).stages if stage.have] == ["prepare"]


def test_a_job_that_is_wrong_writes_nothing(job: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError):
        verbs.run(job, [f"compute.storage={tmp_path / 'storage'}", "seeds=[]"])
    with pytest.raises(ResourceError, match=r"set compute\.storage or TRIMTAB_STORAGE"):
        verbs.run(job, ["compute.storage=/proc/nowhere"])
    assert not (tmp_path / "storage").exists()


def test_what_cannot_be_joined_is_refused_before_anything_is_written(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TRIMTAB_STORAGE", str(tmp_path / "storage"))
    with pytest.raises(ClusterError, match=r"compute\.address begins with https://.*trimtab submit"):
        verbs.run(job, ["compute.backend=ray", "compute.address=https://head"])
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS begins with http://.*as HOST:6379"):
        verbs.run(job, ["compute.backend=ray"])
    with pytest.raises(ClusterError, match="RAY_ADDRESS"):
        verbs.tune(verbs.search("tune/logconf.yaml"))
    with pytest.raises(ClusterError, match="RAY_ADDRESS"), verbs.serve("serve/contrastive.yaml"):
        pass
    assert not (tmp_path / "storage").exists()


def test_the_newest_run_is_reported(tmp_path: Path) -> None:
    page = tmp_path / "artifacts" / "report-0" / "report.html"
    page.parent.mkdir(parents=True)
    (page.parent / "table.json").write_text('[["model", "accuracy"], ["ceiling", "90 %"]]')
    start = {"event": "run_start", "owner": owner()}
    ended = {"event": "run_end", "status": "done", "metrics": {"ceiling/accuracy": 0.9}, "report": str(page)}
    failed = {"event": "run_end", "status": "failed", "metrics": {}, "report": None}
    events(start | {"time": 1.0}, failed, run="b-first", storage=tmp_path)
    events(start | {"time": 2.0}, ended, run="a-second", storage=tmp_path)
    found = verbs.report(storage=tmp_path)
    assert (found.run_id, found.status, found.report) == ("a-second", "done", page)
    assert found.table[1] == ["ceiling", "90 %"]
    assert found.metrics == {"ceiling/accuracy": 0.9}
    assert verbs.report("b-first", tmp_path).status == "failed"
    with pytest.raises(DataError, match=r"no run third under .*; there: a-second, b-first"):
        verbs.report("third", tmp_path)


def test_a_storage_without_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run under .*/runs; there: none"):
        verbs.report(storage=tmp_path / "nowhere")
    assert verbs.sync(storage=tmp_path / "nowhere") == []


def test_a_run_whose_process_is_gone_is_ended(tmp_path: Path) -> None:
    who = dead()
    folder = events({"event": "run_start", "owner": who}, run="killed", storage=tmp_path)
    with (folder / "events.jsonl").open("a") as log:
        log.write('{"event": "stage_st')
    left = tmp_path / "artifacts" / f".train-0123.{who['host']}-{who['pid']}-0123abcd"
    others = tmp_path / "artifacts" / f".train-0123.{who['host']}-{who['pid'] + 1}-0123abcd"
    left.mkdir(parents=True)
    others.mkdir()
    assert verbs.report(storage=tmp_path).status == "interrupted"
    assert [event["event"] for event in read_log(folder)] == ["run_start", "run_end"]
    assert (folder / "events.jsonl").read_text().endswith("\n")
    assert not left.exists()
    assert others.exists()
    assert settle_runs(tmp_path) == []


def test_runs_that_live_or_that_live_elsewhere_are_left_alone(tmp_path: Path) -> None:
    events({"event": "run_start", "owner": owner()}, run="alive", storage=tmp_path)
    events({"event": "run_start", "owner": dead() | {"host": "elsewhere"}}, run="elsewhere", storage=tmp_path)
    events({"event": "run_start"}, run="unknown", storage=tmp_path)
    events(run="empty", storage=tmp_path)
    assert settle_runs(tmp_path) == []
    assert verbs.report("alive", tmp_path).status.startswith("running on ")


def test_a_process_number_used_again_is_another_process(tmp_path: Path) -> None:
    before = owner() | {"born": owner()["born"] - 1000}
    events({"event": "run_start", "owner": before}, run="before", storage=tmp_path)
    assert settle_runs(tmp_path) == ["before"]


def test_the_log_and_its_listeners(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []

    def gone(event: dict[str, Any]) -> None:
        raise BrokenPipeError

    log = EventLog(tmp_path / "runs" / "r", [gone, heard.append])
    log({"event": "metrics", "values": {"loss": float("inf")}})
    log({"event": "run_end"})
    log.close()
    assert [event["event"] for event in heard] == ["metrics", "run_end"]
    assert next(read_log(log.folder))["values"] == {"loss": "inf"}
    assert first_event(log.folder)["event"] == "metrics"
    assert has_ended(log.folder)
    assert run_folders(tmp_path) == [log.folder]


def test_a_run_has_ended_however_much_it_said_last(tmp_path: Path) -> None:
    metrics = {f"student.{number}/accuracy": number / 7 for number in range(5000)}
    folder = events({"event": "run_start"}, {"event": "run_end", "metrics": metrics}, run="r", storage=tmp_path)
    assert has_ended(folder)
    events({"event": "run_start"}, {"event": "plan", "stages": list(metrics)}, run="r", storage=tmp_path)
    assert not has_ended(folder)


def test_a_data_set_is_described_and_its_bad_rows_kept(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"body": "text {i}", "label": {i % 2}}}\n' for i in range(9)) + '{"label": 1}\n')
    found = verbs.data(str(rows), ["columns.text=body"], quarantine=tmp_path / "bad.jsonl")
    assert (found.n_rows, found.n_rejected) == (9, 1)
    assert json.loads((tmp_path / "bad.jsonl").read_text())["row_number"] == 10
    with pytest.raises(JobError):
        verbs.data(str(rows), ["columns.txt=body"])
    with pytest.raises(DataError, match="no such file"):
        verbs.data(str(tmp_path / "row.jsonl"))


@pytest.mark.slow
def test_the_doctor_needs_nothing(tmp_path: Path) -> None:
    found = verbs.doctor(tmp_path / "nowhere")
    assert {"torch", "ray", "cores", "memory", "disk", "devices", "mlflow", "compiler"} <= set(found)
    assert not (tmp_path / "nowhere").exists()
