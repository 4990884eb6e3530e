"""Every file that ships loads, and says what it means."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest
import yaml

from trimtab.errors import JobError
from trimtab.load import load_job
from trimtab.run.artifact import PlanRunner
from trimtab.run.leaks import leaks
from trimtab.search.checks import laid_out, warnings
from trimtab.search.fields import candidates
from trimtab.search.load import load_search
from trimtab.search.space import Space

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
SERVE = sorted((ROOT / "serve").glob("*.yaml"))
TUNE = sorted((ROOT / "tune").glob("*.yaml"))
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


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_what_tells_of_validation_rows_is_left_to_searches(path: Path, tmp_path: Path) -> None:
    said = [*overrides(path, tmp_path), f"compute.storage={tmp_path}", "validation={rows: 20, truth: 8}"]
    job = load_job(path, said)
    runner = PlanRunner(job.compute)
    last = job.pipeline(runner)
    planned = {node.artifact.id for node in runner.pending}
    assert planned == {node.artifact.id for node in runner.needed}
    told: dict[str, set[str]] = {"validation": set(), "test": set()}
    for (split, _), found in runner.outcomes.items():
        told[split] |= {artifact.id for artifact in found}
    assert told["test"] | {last.id} <= planned
    assert not told["validation"] & planned


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


@pytest.mark.parametrize("smoke", [False, True], ids=["whole", "smoke"])
@pytest.mark.parametrize("path", TUNE, ids=lambda p: p.stem)
def test_every_search_loads_and_begins_with_the_default(path: Path, smoke: bool, tmp_path: Path) -> None:
    search = load_search(path, [f"compute.storage={tmp_path}"], smoke=smoke)
    assert warnings(search) == []
    default = Space(search).default()
    assert default and default.keys() <= search.spec.space.keys()
    plan = laid_out(search.default)
    asked = {metric.rpartition("/")[0] for metric in search.spec.metrics}
    assert asked <= {name for split, name in plan.outcomes if split == "validation"}
    assert not leaks(plan, asked)
    assert not list(tmp_path.iterdir()), "to look at a search writes nothing"


@pytest.mark.parametrize("path", TUNE, ids=lambda p: p.stem)
def test_every_point_of_a_search_makes_a_job(path: Path, tmp_path: Path) -> None:
    search = load_search(path, [f"compute.storage={tmp_path}"])
    space, study = Space(search), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [space.suggested(study.ask()) for _ in range(12)]
    ends = [{field: value} for field, of in search.spec.space.items() if not of.when for value in candidates(of)]
    jobs = [search.job(values, search.spec.seeds) for values in (*drawn, *ends)]
    assert all(job.pipeline.seeds == search.spec.seeds for job in jobs)
    assert set().union(*drawn) == search.spec.space.keys(), "each field is searched at some point"


@pytest.mark.parametrize("path", TUNE, ids=lambda p: p.stem)
def test_a_trial_run_of_a_search_is_a_small_one_of_its_own(path: Path, tmp_path: Path) -> None:
    whole, small = (load_search(path, [f"compute.storage={tmp_path}"], smoke=smoke) for smoke in (False, True))
    assert small.id != whole.id, "its trials are not taken for those of the whole search"
    assert (small.spec.space, small.spec.metrics) == (whole.spec.space, whole.spec.metrics)
    assert 2 <= small.spec.budget.trials < whole.spec.budget.trials
    assert len(small.spec.final.seeds) <= len(whole.spec.final.seeds)


def test_there_are_searches() -> None:
    assert {"logconf", "objectives", "softdpo", "genarm", "nudging"} <= {path.stem for path in TUNE}
