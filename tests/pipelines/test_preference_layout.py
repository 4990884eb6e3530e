"""What a preference experiment lays out: who receives what, what is shared, what rounds and policies add."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trimtab.alignment import PolicySpec, RewardSpec
from trimtab.compute import Compute
from trimtab.pipelines.preference import Preference
from trimtab.run.artifact import Artifact, Node, PlanRunner

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
    assert found == {"split", "gold", "model", "weak", "score", "audit"}


def test_seeds_share_completions_and_what_frozen_models_say_of_them(tmp_path: Path) -> None:
    nodes = laid_out(job(seeds=[0, 1, 2], students={"dpo": DPO, "wspo": WSPO}, weak_policy=WEAK), tmp_path)
    whole = next(node.artifact for node in nodes if node.label == "completions by the strong policy")
    shared = [node for node in nodes if node.artifact.stage == "logprobs" and node.needs["rows"] == whole]
    assert [len([n for n in shared if n.spec.model == spec.model]) for spec in (DPO, WEAK)] == [1, 1]
    assert len(shared) == 2
    assert Counter(node.artifact.stage for node in nodes)["align"] == 3 * 4
