"""The shipped probe job on the real model: the numbers that it must keep giving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab import verbs
from trimtab.data.builtin import BUILTIN

JOBS = Path(__file__).parents[1] / "jobs"


def halved(folder: Path) -> Path:
    """Every second word of the built-in task: half of the time, nearly the same numbers."""
    task = BUILTIN["valence"]
    rows = [row for _, row in task.rows(task.file())][::2]
    path = folder / "words.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_the_probe_job_recovers_what_it_should(tmp_path: Path) -> None:
    asked = ["seeds=[0, 1, 2]", f"compute.storage={tmp_path}", f"task.source={halved(tmp_path)}"]
    found = verbs.run(JOBS / "probe.yaml", asked)
    accuracy = {name.removesuffix("/accuracy"): value for name, value in found.metrics.items() if "accuracy" in name}
    pgr = {name: found.metrics[f"student.{name}/pgr"] for name in ("hard", "naive", "logconf")}
    assert accuracy["supervisor"] == pytest.approx(0.72, abs=0.03)
    assert accuracy["ceiling"] == pytest.approx(0.90, abs=0.02)
    assert 0 < pgr["hard"] < pgr["naive"] < pgr["logconf"] < 1
    assert pgr["naive"] == pytest.approx(0.40, abs=0.12)
    assert pgr["logconf"] == pytest.approx(0.69, abs=0.12)
    again = verbs.run(JOBS / "probe.yaml", asked)
    assert again.ran == 0
    assert again.metrics == found.metrics
