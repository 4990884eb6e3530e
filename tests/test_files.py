"""Every file that ships loads, and says what it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.load import load_job
from trimtab.run.artifact import PlanRunner

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
LOCAL = {"ai_risk_statements", "truthfulqa_judge"}
LOCAL_PAIRS = {"justice_rewards", "truthfulqa_preferences"}


def overrides(path: Path, folder: Path) -> list[str]:
    """Jobs for local data name no place; the test gives them a file of the right form."""
    if path.stem in LOCAL_PAIRS:
        pairs = folder / "pairs.jsonl"
        pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
        return [f"task.source={pairs}", f"task.test={pairs}"]
    if path.stem not in LOCAL:
        return []
    for part in ("train", "test"):
        (folder / f"{path.stem}.{part}.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    return [f"task.source={folder / path.stem}"]


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_every_job_loads_and_plans(path: Path, tmp_path: Path) -> None:
    job = load_job(path, [*overrides(path, tmp_path), f"compute.storage={tmp_path}"])
    runner = PlanRunner(job.compute)
    last = job.pipeline(runner)
    assert last.stage in ("report", "policy_report")
    assert len(runner.pending) == len(runner.nodes) > 5


def test_there_are_jobs() -> None:
    assert {"quickstart", "probe", "bootstrap", "preference", "weak_preferences"} <= {path.stem for path in JOBS}
