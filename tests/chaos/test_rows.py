"""Rows that are spoilt, and a resume that is required and not possible: a run says so before it trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Tiny
from tests.test_resume import job_file

from trimtab import verbs
from trimtab.errors import DataError, ResourceError

pytestmark = [pytest.mark.chaos, pytest.mark.slow]
SPOILT = {"not JSON": "{", "empty text": '{"text": "", "label": 1}', "no label": '{"text": "a road"}'}


@pytest.fixture
def job(tiny: Tiny, tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job on 96 rows and three spoilt ones."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    job = job_file(tmp_path, tiny)
    with (tmp_path / "rows.jsonl").open("a") as rows:
        rows.write("".join(f"\n{row}" for row in SPOILT.values()))
    return job


def run(job: Path, *overrides: str) -> tuple[Any, list[str]]:
    """What it found or raised, and the stages that it began."""
    begun = []

    def hear(event: dict[str, Any]) -> None:
        begun.extend([event["stage"]] if event["event"] == "stage_start" else [])

    asked = [f"compute.storage={job.parent / 'storage'}", "compute.backend=inline", *overrides]
    try:
        return verbs.run(job, asked, listeners=[hear]), begun
    except (DataError, ResourceError) as error:
        return error, begun


def test_too_many_spoilt_rows_end_a_run_before_it_trains(job: Path) -> None:
    error, begun = run(job)
    assert error.exit_code == 2
    assert "3 of 99 rows cannot be used" in str(error)
    assert begun == ["prepare"]


def test_a_few_are_set_aside_and_a_required_resume_is_taken_at_its_word(job: Path) -> None:
    usable = "task.max_bad_fraction=0.05"
    error, begun = run(job, usable, "compute.resume=required")
    assert error.exit_code == 2
    assert "compute.resume is required, but" in str(error)
    assert "has no checkpoint to use; set it to auto" in str(error)
    assert begun.count("train") == 1

    found, begun = run(job, usable)
    (prepared,) = (job.parent / "storage" / "artifacts").glob("prepare-*")
    noted = [json.loads(line) for line in (prepared / "quarantine.jsonl").read_text().splitlines()]
    assert {entry["reason"]: entry["row_number"] for entry in noted} == {
        "not JSON": 97,
        "empty text": 98,
        "no label": 99,
    }
    assert json.loads((prepared / "metrics.json").read_text())["rows"] == 96
    assert begun.count("train") == 4

    again, begun = run(job, usable, "compute.resume=required")
    assert (again.ran, begun) == (0, [])
    assert again.metrics == found.metrics
