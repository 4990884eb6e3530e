"""Every file that ships loads, and says what it means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from trimtab.errors import JobError
from trimtab.load import load_job
from trimtab.run.artifact import PlanRunner

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
SERVE = sorted((ROOT / "serve").glob("*.yaml"))
LOCAL = {"ai_risk_statements", "truthfulqa_judge"}
LOCAL_PAIRS = {"justice_rewards", "truthfulqa_preferences", "debate_truthfulqa"}
LOCAL_CASES = {"debate_gsm8k", "debate_pandalm"}


def overrides(path: Path, folder: Path) -> list[str]:
    """Jobs for local data name no place; the test gives them a file of the right form."""
    if path.stem in LOCAL_PAIRS:
        pairs = folder / "pairs.jsonl"
        pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
        return [f"task.source={pairs}", f"task.test={pairs}"]
    if path.stem in LOCAL_CASES:
        (folder / "cases.jsonl").write_text("{}\n")
        return [f"task.source={folder / 'cases.jsonl'}"]
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
    assert last.stage in ("report", "policy_report", "debate_report")
    assert len(runner.pending) == len(runner.nodes) > 5


def test_the_guides_job_trains_what_the_guided_job_trains(tmp_path: Path) -> None:
    plans = {}
    for name in ("guided", "guides"):
        job = load_job(ROOT / "jobs" / f"{name}.yaml", [f"compute.storage={tmp_path}"])
        plan = PlanRunner(job.compute)
        job.pipeline(plan)
        plans[name] = plan.nodes
    trained = {name: {id_ for id_, node in plan.items() if "train " in node.label} for name, plan in plans.items()}
    assert len(trained["guides"]) == 2
    assert trained["guides"] == trained["guided"]
    own = set(plans["guides"]) - set(plans["guided"])
    assert {plans["guides"][name].artifact.stage for name in own} == {"policy_report"}


def test_there_are_jobs() -> None:
    assert {"quickstart", "probe", "bootstrap", "preference", "weak_preferences", "debate"} <= {
        path.stem for path in JOBS
    }


@pytest.mark.slow
@pytest.mark.parametrize("path", SERVE, ids=lambda p: p.stem)
def test_every_serve_file_is_one_of_ray_serve_and_ours_and_has_no_key_that_means_nothing(path: Path) -> None:
    from trimtab.serving.file import load_serve

    registered = re.findall(r"(\w+): models:/([\w-]+)@latest", path.read_text())
    known = set(yaml.safe_load((ROOT / "jobs" / "guides.yaml").read_text())["register"].values())
    assert {name for _, name in registered} <= known
    there = [f"applications.0.args.models.{model}=builtin:smollm2-135m" for model, _ in registered]
    file = load_serve(path, there)
    assert file.config.applications
    assert file.config.http_options.host == "127.0.0.1"
    assert all(args.groups for args in file.args.values())
    app = "applications.0"
    for place in ("", "http_options", f"{app}", f"{app}.deployments.0", f"{app}.args", f"{app}.args.limits"):
        with pytest.raises(JobError, match="nonsense: unknown key"):
            load_serve(path, [*there, f"{place}.nonsense=1".lstrip(".")])


def test_there_are_serve_files() -> None:
    assert {"guided", "contrastive", "debate"} <= {path.stem for path in SERVE}
