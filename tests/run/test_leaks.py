"""What a choice may hang on: no shipped job's validation reads truth of transfer or test, and what does is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.test_files import JOBS, overrides

from trimtab.alignment import OnlineSpec
from trimtab.compute import Compute
from trimtab.load import load_job
from trimtab.parts import EvalSpec, TrainSpec
from trimtab.pipelines._base import Bench
from trimtab.pipelines.preference import Preference
from trimtab.pipelines.weak_to_strong import WeakToStrong
from trimtab.run.artifact import PlanRunner
from trimtab.run.leaks import leaks
from trimtab.stages.evaluate import evaluate
from trimtab.stages.prepare import prepare
from trimtab.stages.train import train

MODEL = {"source": "builtin:smollm2-135m", "layers": 4}
PROBE = TrainSpec(model=MODEL, tune={"kind": "probe"})
JOB = {
    "task": {"source": "builtin:valence"},
    "validation": {"rows": 40, "truth": 10},
    "supervisor": PROBE,
    "ceiling": PROBE,
    "students": {"naive": PROBE},
}
POLICY = {"model": {"source": "builtin:smollm2-135m"}}
PREFERENCE: dict[str, Any] = {
    "task": {"source": "builtin:openings"},
    "validation": {"rows": 40, "truth": 10},
    "supervisor": {"kind": "reward", "model": MODEL},
    "ceiling": POLICY,
    "students": {"dpo": POLICY},
}


@pytest.fixture
def run(tmp_path: Path) -> PlanRunner:
    return PlanRunner(Compute(storage=tmp_path))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_no_shipped_job_s_validation_reads_truth_that_it_may_not(path: Path, tmp_path: Path) -> None:
    said = [*overrides(path, tmp_path), f"compute.storage={tmp_path}", "validation={rows: 20, truth: 8}"]
    job = load_job(path, said)
    runner = PlanRunner(job.compute)
    job.pipeline(runner)
    checked = {name: found for (split, name), found in runner.outcomes.items() if split == "validation"}
    tested = {name for split, name in runner.outcomes if split == "test"}
    assert leaks(runner) == []
    assert bool(checked) == (path.stem != "guides"), "that job only trains"
    assert set(checked) <= tested, "what is chosen by can be tested"
    assert {len(found) for found in runner.outcomes.values()} == {len(job.pipeline.seeds)}
    before = {node.artifact.stage for node in runner.behind([a for found in checked.values() for a in found])}
    assert not before & {"evaluate", "measure", "rank", "audit", "audit_pairs", "report", "policy_report"}


def test_a_ceiling_as_outcome_is_a_leak(run: PlanRunner) -> None:
    WeakToStrong.model_validate(JOB)(run)
    assert leaks(run) == []
    (ceiling,) = run.outcomes[("test", "ceiling")]
    run.outcome("validation", "ceiling", ceiling)
    assert leaks(run) == [
        "seed 0 / train ceiling: its input truth is the truth of transfer",
        "seed 0 / evaluate ceiling: its input data is the test split",
    ]
    assert leaks(run, ["student.naive"]) == []
    assert len(leaks(run, ["student.naive", "ceiling"])) == 2


def test_truth_shown_during_training_is_a_leak(run: PlanRunner) -> None:
    WeakToStrong.model_validate(JOB | {"oracle": True})(run)
    assert leaks(run) == [
        "seed 0 / train supervisor: its input oracle is the test split",
        "seed 0 / train student.naive: its input oracle is the test split",
    ]


def test_all_rows_may_be_read_as_texts_only(run: PlanRunner) -> None:
    job = WeakToStrong.model_validate(JOB)
    rows = run(prepare, job.task)
    bench = Bench(job, run, rows, 0)
    for data in (rows, bench.held / "rest", bench.data):
        model = run(train, PROBE, label=f"train on {data.stage}", data=data)
        scored = run(evaluate, EvalSpec(), label=f"score {data.stage}", model=model, data=bench.held / "truth")
        run.outcome("validation", f"of {data.stage}", scored)
    assert leaks(run) == [
        "train on prepare: its input data is all rows with their truth",
        "train on reserve: its input data is all rows that are not set aside, with their truth",
        "train on split: its input data is every split with its truth",
    ]


def test_a_policy_that_learns_by_the_gold_reward_is_a_leak(run: PlanRunner) -> None:
    online = OnlineSpec(model=POLICY["model"])
    Preference.model_validate(PREFERENCE | {"ceiling": online, "students": {"online": online}})(run)
    assert leaks(run) == []
    run.outcome("validation", "ceiling", run.outcomes[("test", "ceiling.samples")][0])
    found = leaks(run, ["ceiling"])
    assert "seed 0 / train ceiling: it learns from the gold reward of transfer prompts" in found
    assert "seed 0 / measure ceiling: its input gold is a gold reward of more than the rows set aside" in found


@pytest.mark.parametrize(("part", "what"), [("truth/test", "the truth of test"), ("truth/transfer", "transfer")])
def test_scores_of_other_prompts_than_the_supervisor_s_are_a_leak(run: PlanRunner, part: str, what: str) -> None:
    from trimtab.alignment import PairSpec
    from trimtab.stages.pairs import pair

    Preference.model_validate(PREFERENCE)(run)
    divided = next(node.artifact for node in run.nodes.values() if node.artifact.stage == "divide")
    for name in (part, "truth/supervise"):
        made = run(pair, PairSpec(), label=name, rows=divided / "transfer", scores=divided / name)
        run.outcome("validation", name, made)
    (found,) = leaks(run)
    assert found.startswith(f"{part}: its input scores is the truth of ")
    assert found.endswith(what)
