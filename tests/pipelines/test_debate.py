"""A debate experiment: what is refused, who reads what, what one more control costs, and what comes out of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.conftest import BAD, GOOD, PLAIN
from tests.pipelines.test_preference import Done, run

from trimtab.compute import Compute
from trimtab.pipelines.debate import Debate
from trimtab.pipelines.preference import Preference
from trimtab.run.artifact import PlanRunner

MODEL = {"source": "builtin:smollm2-135m"}
PROBE = {"model": MODEL | {"layers": 6}, "tune": {"kind": "probe"}, "max_length": 1100}
JOB: dict[str, Any] = {
    "task": {"source": "builtin:facts"},
    "debaters": MODEL,
    "members": 2,
    "supervisor": PROBE,
    "ceiling": PROBE,
    "students": {"naive": PROBE},
}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"supervisor": PROBE | {"max_length": 512}}, "transcripts of protocol take up to 1044 tokens"),
        ({"rivals": {"single": {"kind": "simultaneous"}}}, "rivals: 'single' is the name of a part"),
        ({"protocol": {"kind": "sequential", "temperature": 0}}, "protocol.temperature is 0, so all members' debates"),
        ({"protocol": {"kind": "sequentiel"}}, "does not match any of the expected tags"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Debate.model_validate(JOB | fields)


@pytest.fixture
def plan(tmp_path: Path) -> PlanRunner:
    plan = PlanRunner(Compute(storage=tmp_path))
    Debate.model_validate(JOB | {"seeds": [0, 1], "zero_shot": {"model": MODEL}})(plan)
    return plan


def test_debates_are_held_once_for_all_seeds_and_each_member_has_its_own(plan: PlanRunner) -> None:
    debates = [node.label for node in plan.nodes.values() if node.artifact.stage == "debate"]
    assert debates == [f"{name} {i}" for name in ("debate", "consultancy", "weak_debaters") for i in (0, 1)]
    assert len([node for node in plan.nodes.values() if node.artifact.stage == "judge"]) == 2


def test_the_student_sees_the_question_only_and_no_truth(plan: PlanRunner) -> None:
    quiet = {node.artifact.id for node in plan.nodes.values() if node.label == "rows"}
    taught = [node for node in plan.nodes.values() if "train student" in node.label]
    assert len(taught) == 2 * 7
    for node in taught:
        labels = plan.nodes[node.needs["data"].id]
        data = labels.needs["data"]
        assert plan.nodes[data.id].needs["rows"].id in quiet
        assert data.part == "transfer"
        assert plan.nodes[node.needs["features"].id].needs["rows"].id in quiet
        assert "truth" not in node.needs


def test_every_judge_hears_and_is_taught_by_rows_of_its_own_debate(plan: PlanRunner) -> None:
    heard = {}
    for node in plan.nodes.values():
        if "seed 0 / train judge" in node.label:
            assert node.needs["data"].part == "supervise"
            rows = plan.nodes[plan.nodes[node.needs["data"].id].needs["rows"].id]
            said = [plan.nodes[one.id].label for name, one in rows.needs.items() if name == "transcripts"]
            heard[node.label] = (rows.spec.how, *said)
    assert heard["seed 0 / train judge, debate 1"] == ("own", "debate 1")
    assert heard["seed 0 / train judge, weak_debaters 0"] == ("own", "weak_debaters 0")
    assert heard["seed 0 / train judge, shuffled 1"] == ("shuffled", "debate 1")
    assert heard["seed 0 / train judge, masked 0"] == ("masked", "debate 0")
    assert heard["seed 0 / train judge, ensemble 1"] == ("none",)
    assert len(heard) == 2 * 6 - 1, "the first of the ensemble is the supervisor itself"


def test_another_student_costs_no_debate(tmp_path: Path, plan: PlanRunner) -> None:
    more = PlanRunner(Compute(storage=tmp_path))
    students = {"naive": PROBE, "hard": PROBE | {"objective": {"kind": "xent", "hard": True}}}
    Debate.model_validate(JOB | {"seeds": [0, 1], "zero_shot": {"model": MODEL}, "students": students})(more)
    new = [node.artifact.stage for key, node in more.nodes.items() if key not in plan.nodes]
    assert sorted(set(new)) == ["debate_report", "evaluate", "train"]
    assert new.count("train") == 2 * 7


PREFERENCES: dict[str, Any] = {
    "task": {"source": "builtin:facts"},
    "sampling": None,
    "gold": {"kind": "given"},
    "supervisor": {"kind": "debate", "debaters": MODEL, "judge": {"model": MODEL}, "members": 2},
    "ceiling": {"model": MODEL, "max_length": 64},
    "students": {"softdpo": {"model": MODEL, "max_length": 64, "objective": {"kind": "softdpo"}}},
}


def test_debate_labels_preferences_where_a_reward_model_would(tmp_path: Path) -> None:
    plan = PlanRunner(Compute(storage=tmp_path))
    Preference.model_validate(PREFERENCES)(plan)
    stages = [node.artifact.stage for node in plan.nodes.values()]
    assert (stages.count("debate"), stages.count("judge"), stages.count("jury")) == (2, 2, 1)
    taught = next(node for node in plan.nodes.values() if "train student.softdpo" in node.label)
    pairs = plan.nodes[taught.needs["data"].id]
    assert plan.nodes[pairs.needs["scores"].id].artifact.stage == "jury"
    with pytest.raises(ValidationError, match="a debate is between two completions, so draw 2"):
        Preference.model_validate(PREFERENCES | {"sampling": {"samples": 4}, "gold": {"kind": "vader"}})


TEXTS = """
case = "{question} {first} {second} {transcript}"
turn = "{text} "
judge = "{question} {first} {second} {transcript}"
judge_reply = ""
judge_labels = ["bread", "cup"]
debate_opening = "{own}"
debate_start = "{own}"
consult_opening = "{own}"
consult_start = "{own}"
row = "{question} {transcript} {answer}"
"""


@pytest.fixture(scope="module")
def done(tiny: Any) -> Done:
    """Which of two words is a good one? The network's states tell, whatever is said."""
    root = tiny.root / "debates"
    root.mkdir()
    (root / "prompts.toml").write_text(TEXTS)
    questions = [(a, b) for a in GOOD for b in BAD]
    rows = [
        {"prompt": PLAIN[i % 12], "chosen": good, "rejected": bad, "group": str(i)}
        for i, (good, bad) in enumerate(questions)
    ]
    (root / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    network = {"source": str(tiny.model), "dtype": "float32"}
    short = {"turns": 1, "words": 4, "prompts": str(root / "prompts.toml")}
    probe = {
        "model": network,
        "tune": {"kind": "probe", "l2": 0.01, "steps": 60},
        "learning_rate": 0.05,
        "max_length": 60,
    }
    job = {
        "task": {"source": str(root / "cases.jsonl")},
        "split": {"supervise": 24, "transfer": 24, "test": 24},
        "debaters": network,
        "protocol": {"kind": "simultaneous"} | short,
        "members": 2,
        "rivals": {"consultancy": {"kind": "consultancy"} | short},
        "zero_shot": {"model": network, "prompts": short["prompts"]},
        "supervisor": probe | {"model": network | {"layers": 1}, "eval_fraction": 0.2},
        "ceiling": probe,
        "students": {"naive": probe},
        "report": {"bootstrap": 100},
    }
    return run(Debate.model_validate(job), tiny.compute().model_copy(update={"storage": root}))


@pytest.mark.slow
def test_every_gain_and_every_cost_is_a_number(done: Done) -> None:
    controls = ("consultancy", "single", "ensemble", "shuffled", "masked", "weak_debaters")
    wanted = {f"gain/student.debate/{control}{end}" for control in controls for end in ("", "_lo", "_hi")}
    wanted |= {f"{name}/tokens" for name in ("debate", "consultancy", "weak_debaters")}
    assert wanted <= set(done.metrics)
    assert all(math.isfinite(value) for value in done.metrics.values())
    for control in controls:
        gain, lo, hi = (done.metrics[f"gain/student.debate/{control}{end}"] for end in ("", "_lo", "_hi"))
        assert lo <= gain <= hi
        less = done.metrics["student.debate/accuracy"] - done.metrics[f"student.{control}/accuracy"]
        assert gain == pytest.approx(less)
    assert done.metrics["debate/tokens"] > done.metrics["consultancy/tokens"] > 0


@pytest.mark.slow
def test_the_page_says_whether_debate_helped_and_what_judges_are_like(done: Done) -> None:
    page = (done.report.path / "report.html").read_text()
    assert "Debate was not shown to help." in page or "Debate helped." in page
    assert "members agree on" in page
    assert "P for being listed first" in page
    assert "Cost of debate:" in page
