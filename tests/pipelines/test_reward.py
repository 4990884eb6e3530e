"""Weak-to-strong reward modelling as a whole: an ensemble of weak rewards, linear ones, and what is reported."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import BAD, GOOD, PLAIN

from trimtab.compute import Compute
from trimtab.data.tables import read_jsonl
from trimtab.errors import DataError
from trimtab.pipelines.reward import Reward
from trimtab.run.artifact import Node, PlanRunner
from trimtab.run.local import LocalRunner
from trimtab.stages.pairs import read_scores

BUILTIN = {"source": "builtin:smollm2-135m"}


def laid_out(pipeline: Reward, folder: Path) -> list[Node]:
    run = PlanRunner(Compute(storage=folder))
    assert pipeline(run).stage == "report"
    return list(run.nodes.values())


def job(**fields: Any) -> Reward:
    spec = {"model": BUILTIN, "tune": {"kind": "probe"}, "learning_rate": 0.01}
    weak = spec | {"model": BUILTIN | {"layers": 4}}
    usual = {"task": {"source": "builtin:openings"}, "supervisor": weak, "students": {"naive": spec}, "ceiling": spec}
    return Reward.model_validate(usual | fields)


def test_members_of_an_ensemble_differ_in_their_seed_alone(tmp_path: Path) -> None:
    nodes = laid_out(job(ensemble={"members": 3, "how": "min"}, seeds=[4]), tmp_path)
    members = [node for node in nodes if node.label == "seed 4 / train supervisor"]
    assert [node.spec.seed for node in members] == [4, 1004, 2004]
    assert len({node.needs["data"].id for node in members}) == 1
    combined = [node for node in nodes if node.artifact.stage == "combine"]
    assert len(combined) == 2, "on transfer and on test"
    for node in combined:
        scored = [next(n for n in nodes if n.artifact == artifact) for artifact in node.needs.values()]
        assert [n.needs["model"] for n in scored] == [n.artifact for n in members]


def test_states_are_those_of_all_completions_whatever_the_seed(tmp_path: Path) -> None:
    nodes = laid_out(job(seeds=[0, 1]), tmp_path)
    stages = Counter(node.artifact.stage for node in nodes)
    assert (stages["features"], stages["divide"], stages["train_reward"]) == (2, 2, 6)


def test_students_learn_from_weak_scores_and_the_ceiling_from_the_truth(tmp_path: Path) -> None:
    nodes = laid_out(job(), tmp_path)
    by_label = {node.label: node for node in nodes}
    for name, stage, part in (("student.naive", "score", ""), ("ceiling", "divide", "truth/transfer")):
        pairs = next(n for n in nodes if n.artifact == by_label[f"seed 0 / train {name}"].needs["data"])
        assert pairs.needs["rows"].part == "transfer"
        assert (pairs.needs["scores"].stage, pairs.needs["scores"].part) == (stage, part)


@pytest.fixture(scope="module")
def pairs(tiny: Any) -> Path:
    """120 pairs of an answer with good words and one with bad words."""
    draw, source, rows = random.Random(7), tiny.root / "pairs.jsonl", []
    for _ in range(120):
        good, bad = (
            " ".join(["", *draw.choices(words, k=draw.randint(1, 3)), *draw.choices(PLAIN, k=draw.randint(0, 2))])
            for words in (GOOD, BAD)
        )
        rows.append({"prompt": " ".join(draw.choices(PLAIN, k=5)), "chosen": good, "rejected": bad})
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return source


def run(pipeline: Reward, compute: Compute) -> LocalRunner:
    runner = LocalRunner(compute)
    pipeline(runner)
    runner.wait()
    return runner


def test_an_ensemble_of_linear_rewards_supervises(tiny: Any, pairs: Path) -> None:
    usual = {"model": {"source": str(tiny.model), "dtype": "float32"}, "max_length": 32}
    probe = usual | {"tune": {"kind": "probe", "steps": 40}, "learning_rate": 0.05, "eval_fraction": 0.25}
    full = usual | {"batch_size": 8, "learning_rate": 2e-3, "num_train_epochs": 1}
    pipeline = Reward.model_validate(
        {
            "task": {"source": str(pairs)},
            "supervisor": probe,
            "ensemble": {"members": 2, "how": "uncertainty"},
            "students": {"probe": probe, "full": full},
            "ceiling": full | {"num_train_epochs": 4},
            "report": {"bootstrap": 100},
        }
    )
    compute = tiny.compute().model_copy(update={"storage": tiny.root / "reward"})
    runner = run(pipeline, compute)
    nodes = list(runner.nodes.values())
    report = nodes[-1].artifact
    metrics = report.metrics()
    assert all(math.isfinite(value) for value in metrics.values())
    for name in ("supervisor", "student.probe", "student.full", "ceiling"):
        assert {f"{name}/accuracy", f"{name}/accuracy_lo", f"{name}/accuracy_hi"} <= set(metrics)
    assert metrics["ceiling/accuracy"] > 0.85 > metrics["supervisor/accuracy"]
    for name in ("student.probe", "student.full"):
        gained = metrics[f"{name}/accuracy"] - metrics["supervisor/accuracy"]
        room = metrics["ceiling/accuracy"] - metrics["supervisor/accuracy"]
        assert metrics[f"{name}/pgr"] == pytest.approx(gained / room)
        assert metrics[f"{name}/pgr_informative"] in (0, 1)
    members = [node.artifact for node in nodes if node.label == "seed 0 / train supervisor"]
    assert [found.metrics()["train/rows"] for found in members] == [30, 30]
    combined = [node.artifact for node in nodes if node.artifact.stage == "combine"]
    assert all(found.metrics()["disagreement"] > 0 for found in combined), "members saw other rows"
    assert {len(read_scores(found.path)) for found in combined} == {40}
    audited = next(node.artifact for node in nodes if node.artifact.stage == "audit_pairs").metrics()
    assert (audited["rows"], audited["ties"]) == (40, 0)
    predictions = read_jsonl(
        next(n for n in nodes if n.label.endswith("ranking by ceiling")).artifact.path / "predictions.jsonl"
    )
    assert len(predictions) == 40
    table = json.loads((report.path / "table.json").read_text())
    assert [row[0] for row in table[1:]] == ["supervisor", "student.probe", "student.full", "ceiling"]


def test_prompts_without_answers_have_no_truth_to_learn(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"bread {w}"}) + "\n" for w in PLAIN))
    pipeline = job(task={"source": str(tmp_path / "prompts.jsonl")})
    with pytest.raises(DataError, match="truth/supervise has no scores: the task must hold pairs"):
        run(pipeline, tiny.compute().model_copy(update={"storage": tmp_path / "storage"}))
