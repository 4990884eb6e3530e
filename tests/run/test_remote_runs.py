"""Whole jobs on a storage behind a URL: another node has nothing to do, and shows the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.conftest import Tiny
from tests.run import faulty  # noqa: F401
from tests.test_resume import job_file

from trimtab import verbs
from trimtab.errors import ResourceError
from trimtab.run.log import read_log


@pytest.mark.slow
def test_what_one_node_has_run_another_finds_done(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setenv("TRIMTAB_MIRROR", str(tmp_path / "a"))
    url = (tmp_path / "store").as_uri().replace("file", "faulty")
    job, where = job_file(tmp_path, tiny), [f"compute.storage={url}", "compute.backend=inline"]
    before = verbs.plan(job, where)
    assert len(before.to_run) == len(before.stages)
    assert not (tmp_path / "store").exists(), "a plan writes nothing"
    first = verbs.run(job, where)
    assert first.ran == len(before.stages)
    assert not list((tmp_path / "store" / "partial").rglob("*.*"))
    shutil.rmtree(tmp_path / "a")

    monkeypatch.setenv("TRIMTAB_MIRROR", str(tmp_path / "b"))
    assert verbs.plan(job, where).to_run == []
    again = verbs.run(job, where)
    assert (again.ran, again.run_id, again.metrics, again.table) == (0, None, first.metrics, first.table)
    assert again.report.read_text().startswith("<!doctype html>")
    assert [p.name for p in (again.storage / "artifacts").iterdir()] == [again.report.parent.name]

    monkeypatch.setenv("TRIMTAB_MIRROR", str(tmp_path / "c"))
    monkeypatch.setenv("TRIMTAB_STORAGE", url)
    found = verbs.report()
    assert (found.run_id, found.status, found.metrics, found.table) == (
        first.run_id,
        "done",
        first.metrics,
        first.table,
    )
    assert found.report.read_text() == again.report.read_text()
    (synced,) = verbs.sync(first.run_id, uri=f"sqlite:///{tmp_path}/other.db")
    assert (synced.events > 10, synced.problem) == (True, None), "MLflow can be made again from the logs"
    kept = list(read_log(tmp_path / "store" / "runs" / first.run_id))
    assert (kept[0]["event"], kept[-1]["event"]) == ("run_start", "run_end")
    assert json.dumps(kept[-1]["metrics"]) == json.dumps(first.metrics)

    named = json.dumps([one.id for one in before.stages if one.stage == "train"][-1]).strip('"')
    model = [*where, f"supervisor.model={{source: 'artifact:{named}'}}"]
    assert {stage.stage for stage in verbs.plan(job, model).to_run} >= {"train"}

    (tmp_path / "store" / "DOWN").touch()
    for verb in (verbs.plan, verbs.run):
        with pytest.raises(ResourceError, match="the storage is down"):
            verb(job, where)
