"""A preference experiment as a whole: what is reported, what one more method costs, what rounds lay out."""

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
from pydantic import ValidationError
from tests.conftest import PLAIN

from trimtab.alignment import PolicySpec, RewardSpec
from trimtab.compute import Compute
from trimtab.data.tables import read_jsonl
from trimtab.pipelines.preference import Preference
from trimtab.run.artifact import Artifact, Node, PlanRunner
from trimtab.run.local import LocalRunner

MODEL = {"source": "builtin:smollm2-135m"}
PARTS: dict[str, Any] = {
    "task": {"source": "builtin:openings"},
    "supervisor": RewardSpec(model=MODEL | {"layers": 4}),
    "ceiling": PolicySpec(model=MODEL),
}
DPO = PolicySpec(model=MODEL)
WSPO = PolicySpec(model=MODEL, objective={"kind": "wspo"})
WEAK = PolicySpec(model=MODEL | {"layers": 6})


def job(**fields: Any) -> Preference:
    return Preference.model_validate(PARTS | {"students": {"dpo": DPO}} | fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"students": {"w": WSPO}}, "students.w: wspo transfers a weak policy's shift, so name a weak_policy"),
        ({"ceiling": WSPO}, "ceiling: wspo transfers a weak policy's shift"),
        ({"students": {"s": DPO.model_copy(update={"after": WSPO})}}, "students.s: wspo transfers"),
        ({"weak_policy": WSPO}, "the weak policy itself cannot be trained with wspo"),
        ({"supervisor": WEAK, "weak_policy": WEAK}, "weak_policy: the supervisor is a weak policy already"),
        ({"sampling": None, "rounds": 2}, "rounds: on-policy rounds need sampling"),
        (
            {"gold": {"kind": "given"}},
            "gold: a given order exists for the task's own pairs only, so set sampling: null",
        ),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        job(**fields)


def test_what_can_be_is_taken() -> None:
    assert job(students={"w": WSPO}, weak_policy=WEAK).weak == WEAK
    assert job(students={"w": WSPO}, supervisor=WEAK).weak == WEAK
    assert job(gold={"kind": "given"}, sampling=None).weak is None


def laid_out(pipeline: Preference, folder: Path) -> list[Node]:
    run = PlanRunner(Compute(storage=folder))
    assert pipeline(run).stage == "policy_report"
    return list(run.nodes.values())


def at(nodes: list[Node], artifact: Artifact) -> Node:
    return next(node for node in nodes if node.artifact.id == artifact.id)


def named(nodes: list[Node], label: str) -> list[Node]:
    return [node for node in nodes if node.label == f"seed 0 / {label}"]


def test_rounds_train_on_the_policy_s_own_completions(tmp_path: Path) -> None:
    nodes = laid_out(job(rounds=2), tmp_path)
    assert named(nodes, "split")[0].spec.hops == 2
    first, second = named(nodes, "train student.dpo")
    (sampled,) = named(nodes, "completions by student.dpo")
    assert sampled.needs["model"] == first.artifact
    assert sampled.needs["rows"].part == "transfer.1"
    pairs = [at(nodes, node.needs["data"]) for node in (first, second)]
    assert pairs[0].needs["rows"].part == "transfer.0"
    assert pairs[1].needs["rows"] == sampled.artifact
    assert "model" not in first.needs
    assert second.needs["model"] == first.artifact
    for node, rows in ((first, sampled.needs["rows"].id), (second, sampled.artifact.id)):
        reference = at(nodes, node.needs["reference"])
        assert "model" not in reference.needs, "both rounds are held to the policy as it came"
        assert (reference.needs["rows"].id == rows) == (node is second)
    weak = at(nodes, pairs[1].needs["scores"])
    assert (weak.artifact.stage, weak.needs["rows"]) == ("score", sampled.artifact)
    parts = nodes[-1].needs
    assert {"parts.0/measure/student.dpo@1", "parts.0/measure/student.dpo", "parts.0/measure/ceiling@1"} <= set(parts)
    measured = [at(nodes, parts[f"parts.0/measure/student.dpo{which}"]) for which in ("@1", "")]
    samples = [at(nodes, node.needs["rows"]).needs["model"] for node in measured]
    assert samples == [first.artifact, second.artifact]


def test_gold_reward_scores_the_ceiling_s_own_completions(tmp_path: Path) -> None:
    nodes = laid_out(job(rounds=2), tmp_path)
    _, second = named(nodes, "train ceiling")
    scores = at(nodes, at(nodes, second.needs["data"]).needs["scores"])
    assert scores.artifact.stage == "vader"
    assert at(nodes, scores.needs["rows"]).label == "seed 0 / completions by ceiling"


def test_a_student_never_receives_the_gold_reward(tmp_path: Path) -> None:
    """Neither its rows nor anything that they were made of, down to the supervisor's training."""
    for fields in ({}, {"rounds": 2}, {"supervisor": WEAK}):
        nodes = laid_out(job(**fields), tmp_path)
        for node in named(nodes, "train student.dpo"):
            scores = at(nodes, at(nodes, node.needs["data"]).needs["scores"])
            assert scores.artifact.stage in ("score", "implicit")
            assert not any("truth" in artifact.part for artifact in scores.needs.values())
        for node in named(nodes, "train ceiling")[:1]:
            assert "truth" in at(nodes, node.needs["data"]).needs["scores"].part


def test_a_policy_s_implied_reward_supervises(tmp_path: Path) -> None:
    nodes = laid_out(job(supervisor=WEAK), tmp_path)
    assert not any(node.artifact.stage in ("score", "train_reward") for node in nodes)
    (student,) = named(nodes, "train student.dpo")
    implied = at(nodes, at(nodes, student.needs["data"]).needs["scores"])
    after, before = (at(nodes, implied.needs[side]) for side in ("after", "before"))
    assert at(nodes, after.needs["model"]).label == "seed 0 / train weak policy"
    assert after.needs["rows"].part == "transfer"
    assert "model" not in before.needs


def test_what_is_trained_first_is_start_and_reference(tmp_path: Path) -> None:
    sft = PolicySpec(model=MODEL, objective={"kind": "sft"})
    nodes = laid_out(job(students={"both": DPO.model_copy(update={"after": sft})}), tmp_path)
    (first,), (student,) = named(nodes, "train student.both, first"), named(nodes, "train student.both")
    assert student.needs["model"] == first.artifact
    assert student.needs["data"] == first.needs["data"]
    assert set(first.needs) == {"data"}
    reference = at(nodes, student.needs["reference"])
    assert reference.needs["model"] == first.artifact
    assert reference.needs["rows"].part == "transfer"


def test_pairs_of_the_data_are_compared_and_not_sampled(tmp_path: Path) -> None:
    nodes = laid_out(job(gold={"kind": "given"}, sampling=None), tmp_path)
    assert not any(node.artifact.stage in ("generate", "vader", "measure") for node in nodes)
    found = {key.split("/")[1] for key in nodes[-1].needs}
    assert found == {"split", "candidates", "gold", "model", "weak", "score", "audit"}


def test_seeds_share_completions_and_what_frozen_models_say_of_them(tmp_path: Path) -> None:
    nodes = laid_out(job(seeds=[0, 1, 2], students={"dpo": DPO, "wspo": WSPO}, weak_policy=WEAK), tmp_path)
    whole = next(node.artifact for node in nodes if node.label == "completions by the strong policy")
    shared = [node for node in nodes if node.artifact.stage == "logprobs" and node.needs["rows"] == whole]
    assert [len([n for n in shared if n.spec.model == spec.model]) for spec in (DPO, WEAK)] == [1, 1]
    assert len(shared) == 2
    assert Counter(node.artifact.stage for node in nodes)["align"] == 3 * 4


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
    more = {kind: policy.model_copy(update={"objective": objective_of(kind)}) for kind in ("softdpo", "kto")}
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


def objective_of(kind: str) -> Any:
    return PolicySpec(model=MODEL, objective={"kind": kind}).objective


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
