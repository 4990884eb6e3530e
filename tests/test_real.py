"""The shipped probe job on the real model: the numbers that it must keep giving."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab import verbs

JOBS = Path(__file__).parents[1] / "jobs"


@pytest.mark.slow
def test_the_probe_job_recovers_what_it_should(tmp_path: Path) -> None:
    found = verbs.run(JOBS / "probe.yaml", ["seeds=[0, 1, 2]", f"compute.storage={tmp_path}"])
    accuracy = {name.removesuffix("/accuracy"): value for name, value in found.metrics.items() if "accuracy" in name}
    pgr = {name: found.metrics[f"student.{name}/pgr"] for name in ("hard", "naive", "logconf")}
    assert accuracy["supervisor"] == pytest.approx(0.72, abs=0.03)
    assert accuracy["ceiling"] == pytest.approx(0.90, abs=0.02)
    assert 0 < pgr["hard"] < pgr["naive"] < pgr["logconf"] < 1
    assert pgr["naive"] == pytest.approx(0.47, abs=0.12)
    assert pgr["logconf"] == pytest.approx(0.74, abs=0.12)
    again = verbs.run(JOBS / "probe.yaml", ["seeds=[0, 1, 2]", f"compute.storage={tmp_path}"])
    assert again.ran == 0
    assert again.metrics == found.metrics
