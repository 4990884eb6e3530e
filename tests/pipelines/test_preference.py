"""A preference experiment as a whole: what is reported, and what one more method costs."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PLAIN

from trimtab.compute import Compute
from trimtab.data.tables import read_jsonl
from trimtab.methods.preferences.kto import Kto
from trimtab.methods.preferences.softdpo import Softdpo
from trimtab.pipelines.preference import Preference
from trimtab.run.artifact import Artifact, Node
from trimtab.run.local import LocalRunner


def at(nodes: list[Node], artifact: Artifact) -> Node:
    return next(node for node in nodes if node.artifact.id == artifact.id)


@dataclass
class Done:
    """A job that was run: the plan, what ran, and what was found."""

    nodes: list[Node]
    ran: list[Node]
    report: Artifact

    @property
    def metrics(self) -> dict[str, float]:
        return self.report.metrics()

    def of(self, stage: str) -> list[Node]:
        return [node for node in self.nodes if node.artifact.stage == stage]

    def parts(self, what: str) -> dict[str, Path]:
        """Folders that the report reads, by the model's name."""
        needs = at(self.nodes, self.report).needs
        return {key.split("/")[2]: a.path for key, a in needs.items() if key.split("/")[1] == what}


def run(pipeline: Preference, compute: Compute) -> Done:
    events: list[dict[str, Any]] = []
    runner = LocalRunner(compute, sink=events.append)
    report = pipeline(runner)
    runner.wait()
    assert not runner.pending
    done = {event["stage_id"] for event in events if event["event"] == "stage_end" and event["status"] == "done"}
    nodes = list(runner.nodes.values())
    return Done(nodes, [node for node in nodes if node.artifact.id in done], report)


@pytest.fixture(scope="module")
def compute(tiny: Any) -> Compute:
    return tiny.compute().model_copy(update={"storage": tiny.root / "preference"})


@pytest.fixture(scope="module")
def small(tiny: Any) -> Preference:
    """80 prompts, three completions each, a weak reward model, a weak policy, two students."""
    draw = random.Random(5)
    prompts = [{"prompt": " ".join([*draw.choices(PLAIN, k=draw.randint(2, 5)), ""])} for _ in range(200)]
    unique = list({row["prompt"]: row for row in prompts}.values())[:80]
    (tiny.root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unique))
    trained = {"batch_size": 8, "num_train_epochs": 1, "learning_rate": 2e-3, "max_length": 32}
    weak, strong = ({"source": str(tiny.model), "dtype": "float32", "layers": n} for n in (2, 4))
    policy = trained | {"model": strong}
    return Preference.model_validate(
        {
            "task": {"source": str(tiny.root / "prompts.jsonl")},
            "sampling": {"samples": 3, "max_new_tokens": 6},
            "measure": {"sampling": {"samples": 2, "max_new_tokens": 6}},
            "split": {"supervise": 24, "transfer": 32, "test": 24},
            "supervisor": trained | {"kind": "reward", "model": weak},
            "weak_policy": trained | {"model": weak},
            "students": {"dpo": policy, "wspo": policy | {"objective": {"kind": "wspo"}}},
            "ceiling": policy,
            "report": {"bootstrap": 100},
        }
    )


@pytest.fixture(scope="module")
def done(small: Preference, compute: Compute) -> Done:
    return run(small, compute)


def test_everybody_is_measured_in_numbers(done: Done) -> None:
    assert len(done.ran) == len(done.nodes)
    names = ("reference", "supervisor", "student.dpo", "student.wspo", "ceiling")
    expected = {f"{name}/{what}" for name in names for what in ("gold", "kl", "tokens")}
    expected |= {f"{name}/{what}" for name in names[1:] for what in ("gain", "win_rate", "accuracy")}
    assert expected <= set(done.metrics)
    assert all(math.isfinite(value) for value in done.metrics.values())
    for name, value in done.metrics.items():
        if f"{name}_lo" in done.metrics:
            assert done.metrics[f"{name}_lo"] <= value + 1e-9 and value <= done.metrics[f"{name}_hi"] + 1e-9, name


def test_the_numbers_are_those_of_the_samples(done: Done) -> None:
    samples = {name: read_jsonl(folder / "samples.jsonl") for name, folder in done.parts("measure").items()}
    reference = samples["reference"]
    for name, rows in samples.items():
        assert {row["id"] for row in rows} == {row["id"] for row in reference}
        assert done.metrics[f"{name}/gold"] == pytest.approx(mean(rows, "gold"))
        assert done.metrics[f"{name}/kl"] == pytest.approx(mean(rows, "kl"))
        if name != "reference":
            assert done.metrics[f"{name}/gain"] == pytest.approx(mean(rows, "gold") - mean(reference, "gold"))
            assert done.metrics[f"{name}/win_rate"] == pytest.approx(wins(rows, reference))
    assert done.metrics["reference/kl"] == 0
    assert all(row["kl"] == [0, 0] for row in reference)


def mean(rows: list[dict[str, Any]], what: str) -> float:
    return sum(value for row in rows for value in row[what]) / (2 * len(rows))


def wins(rows: list[dict[str, Any]], reference: list[dict[str, Any]]) -> float:
    """Over all pairs of samples of a prompt, ties half."""
    theirs = {row["id"]: row["gold"] for row in reference}
    pairs = [(a, b) for row in rows for a in row["gold"] for b in theirs[row["id"]]]
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def test_accuracy_is_that_of_the_rankings(done: Done) -> None:
    for name, folder in done.parts("score").items():
        rows = read_jsonl(folder / "predictions.jsonl")
        right = [row["probs"][row["label"]] > row["probs"][1 - row["label"]] for row in rows]
        assert done.metrics[f"{name}/accuracy"] == pytest.approx(sum(right) / len(right), abs=0.5 / len(right))


def test_rows_that_go_in_come_out_or_are_counted(done: Done) -> None:
    (prompts,), (divided,) = done.of("prompts"), done.of("divide")
    assert prompts.artifact.metrics().items() >= {"rows": 80, "rejected": 0}.items()
    assert divided.artifact.metrics() == {"supervise": 24, "transfer": 32, "test": 24, "transfer.0": 32}
    whole = next(node for node in done.of("generate") if node.needs["rows"] == prompts.artifact)
    assert (whole.artifact.metrics()["samples"], whole.artifact.metrics()["dropped_long_prompt"]) == (240, 0)
    for node in done.of("pair"):
        found = node.artifact.metrics()
        assert found["rows"] + found["left_out"] == found["prompts"] in (24, 32)
    for node in done.of("align") + done.of("train_reward"):
        found, pairs = node.artifact.metrics(), at(done.nodes, node.needs["data"]).artifact.metrics()
        assert found["train/rows"] + found["rows_dropped"] == pairs["rows"]
        assert found["rows_merged_boundary"] == found["rows_truncated"] == 0
        assert found["train/steps"] == found["train/rows"] // 8
    page = (done.report.path / "report.html").read_text()
    left_out = sum(node.artifact.metrics()["left_out"] for node in done.of("pair"))
    sampled = sum(node.artifact.metrics()["samples"] for node in done.of("generate"))
    assert sampled == 240 + 5 * 48
    for name, count in (("completions sampled", sampled), ("pairs left out", left_out), ("training rows dropped", 0)):
        assert re.search(rf"{name}[^0-9]*{int(count)}\b", page), name


def test_the_table_has_a_row_for_everybody(done: Done) -> None:
    header, *rows = json.loads((done.report.path / "table.json").read_text())
    assert [row[0] for row in rows] == ["reference", "supervisor", "student.dpo", "student.wspo", "ceiling"]
    assert {"gold reward", "win rate", "preference accuracy", "KL"} <= set(header)
    assert all(len(row) == len(header) for row in rows)


def test_a_job_that_is_done_runs_nothing(done: Done, small: Preference, compute: Compute) -> None:
    again = run(small, compute)
    assert again.ran == []
    assert again.report == done.report


def test_one_more_method_makes_no_reference_pass(done: Done, small: Preference, compute: Compute) -> None:
    """What frozen models say of completions that were there already is read, not computed again."""
    policy = small.students["dpo"]
    more = {one.kind: policy.model_copy(update={"objective": one}) for one in (Softdpo(), Kto())}
    again = run(small.model_copy(update={"students": small.students | more}), compute)
    ran = Counter(node.artifact.stage for node in again.ran)
    assert ran["align"] == 2
    assert not {"prompts", "divide", "train_reward", "score", "pair", "audit_pairs"} & set(ran)
    frozen = [node for node in again.ran if node.artifact.stage == "logprobs" and "model" not in node.needs]
    singles, *samples = sorted(frozen, key=lambda node: node.needs["rows"].stage != "unpair")
    assert [at(again.nodes, node.needs["rows"]).label for node in samples] == [
        "seed 0 / samples of student.softdpo",
        "seed 0 / samples of student.kto",
    ]
    found = singles.artifact.metrics()
    own = {(row["prompt"], str(row["candidates"][0])) for row in read_jsonl(singles.needs["rows"].path / "rows.jsonl")}
    assert found["found"] >= len(own)
    assert found["computed"] <= len(own), "at most one stranger a row is new"
    assert done.metrics["student.dpo/gold"] == again.metrics["student.dpo/gold"]
    assert {"student.kto/gold", "student.softdpo/accuracy"} <= set(again.metrics)


def test_a_policy_supervises_in_place_of_a_reward_model(done: Done, small: Preference, compute: Compute) -> None:
    """The same weak policy, which was there; only what it prefers and who learns of it are new."""
    students = {"dpo": small.students["dpo"]}
    again = run(small.model_copy(update={"supervisor": small.weak, "weak_policy": None, "students": students}), compute)
    ran = Counter(node.artifact.stage for node in again.ran)
    assert (ran["align"], ran["train_reward"], ran["implicit"]) == (1, 0, 2)
    implied = [node.artifact.metrics() for node in again.of("implicit")]
    assert sorted(found["rows"] for found in implied) == [24, 32]
    assert again.metrics["supervisor/gold"] == done.metrics["supervisor/gold"]
    assert again.metrics["ceiling/gold"] == done.metrics["ceiling/gold"]
    assert math.isfinite(again.metrics["student.dpo/gain"])
