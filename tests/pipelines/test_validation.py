"""What pipelines find of the rows set aside, on a tiny network: only what a choice needs is run, and its numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from tests.conftest import PLAIN, Tiny, sentence
from tests.preferring import Preferring

from trimtab.pipelines.bootstrap import Bootstrap
from trimtab.pipelines.debate import Debate
from trimtab.pipelines.guided import Guided
from trimtab.pipelines.preference import Preference
from trimtab.pipelines.reward import Reward
from trimtab.run.artifact import Artifact, PlanRunner
from trimtab.run.local import LocalRunner
from trimtab.stages.outcome import read_outcome
from trimtab.stages.pairs import read_scores

BUDGET = 5
KEPT = {"rows": 12, "truth": BUDGET}
TEST_STAGES = {"evaluate", "measure", "rank", "audit", "audit_pairs", "report", "policy_report"}
MODEL = {"source": "builtin:smollm2-135m", "layers": 4}


def checked(tiny: Tiny, job: Any, *names: str, folder: str) -> tuple[LocalRunner, dict[str, dict[str, Any]]]:
    """The outcomes of these names, for which alone the job was run."""
    runner = LocalRunner(tiny.compute().model_copy(update={"storage": tiny.root / folder}))
    job(runner)
    runner.ends = [artifact for name in names for artifact in runner.outcomes["validation", name]]
    runner.wait()
    made = {node.artifact.stage for node in runner.nodes.values() if node.artifact.ready}
    assert not made & TEST_STAGES
    return runner, {name: read_outcome(runner.outcomes["validation", name][0].path) for name in names}


def the(runner: PlanRunner, stage: str) -> Artifact:
    return next(node.artifact for node in runner.nodes.values() if node.artifact.stage == stage)


@pytest.fixture(scope="module")
def prompts(tiny: Tiny) -> str:
    draw = random.Random(3)
    texts = dict.fromkeys(" ".join([*draw.choices(PLAIN, k=draw.randint(2, 5)), ""]) for _ in range(90))
    file = tiny.root / "validated.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in list(texts)[:60]))
    return str(file)


@pytest.fixture(scope="module")
def scoring(prompts: str) -> dict[str, Any]:
    return {"task": {"source": prompts}, "validation": KEPT, "report": {"bootstrap": 100}}


@pytest.mark.slow
def test_policies_are_told_by_order_and_by_samples(tiny: Tiny, scoring: dict[str, Any]) -> None:
    words = Preferring(tiny)
    policy, weak = words.fields(batch_size=8), words.fields(batch_size=8, model={"layers": 2})
    job = Preference.model_validate(
        scoring
        | {
            "sampling": {"samples": 3, "max_new_tokens": 6},
            "measure": {"sampling": {"samples": 2, "max_new_tokens": 6}},
            "split": {"supervise": 16, "transfer": 16, "test": 12},
            "supervisor": weak | {"kind": "reward"},
            "students": {"dpo": policy},
            "ceiling": policy,
        }
    )
    runner, found = checked(tiny, job, "student.dpo", "student.dpo.samples", folder="validated")
    kept = the(runner, "reserve_prompts")
    free = set(read_scores(kept.path / "truth"))
    assert len(free) == BUDGET
    order, samples = found["student.dpo"], found["student.dpo.samples"]
    assert set(order) == {"agreement", "accuracy"}
    assert set(samples) == {"tokens", "kl", "weak_reward", "gold"}
    assert set(order["accuracy"]) <= free
    assert set(samples["gold"]) == free
    assert len(samples["kl"]) == len(samples["weak_reward"]) == 12
    assert set(order["agreement"]) <= set(samples["kl"])
    assert all(0 <= share <= 1 for of in order.values() for share in of.values())
    trained = [node.label for node in runner.nodes.values() if node.artifact.stage == "align" and node.artifact.ready]
    assert trained == ["seed 0 / train student.dpo"], "no ceiling is trained for a choice"


@pytest.mark.slow
def test_a_guide_is_told_by_its_samples_and_by_the_base_s(tiny: Tiny, scoring: dict[str, Any]) -> None:
    network = Preferring(tiny).fields()["model"]
    job = Guided.model_validate(
        scoring
        | {
            "base": network,
            "sampling": {"samples": 3, "max_new_tokens": 6},
            "measure": {"sampling": {"samples": 2, "max_new_tokens": 6}},
            "test": 12,
            "helpers": {"small": network | {"layers": 2}},
            "guides": {
                "genarm": {"guide": {"kind": "genarm"}, "helpers": ["small"], "strengths": {"alpha": [0, 1]}},
                "best": {"guide": {"kind": "best_of_n", "n": 2}, "helpers": ["small"]},
            },
        }
    )
    names = ("guided.genarm 0.reweighted", "guided.genarm 1.reweighted", "guided.genarm 1", "guided.best")
    runner, found = checked(tiny, job, *names, folder="reweighed")
    assert ("validation", "guided.best.reweighted") not in runner.outcomes, "a search says nothing of single tokens"
    kept = the(runner, "reserve_prompts")
    gold = read_scores(kept.path / "truth")
    still, moved = found[names[0]], found[names[1]]
    assert still["gold_reweighted"] == pytest.approx({i: fmean(values) for i, values in gold.items()}, abs=1e-4)
    assert still["effective_samples"] == pytest.approx(dict.fromkeys(still["effective_samples"], 3.0), abs=1e-3)
    assert max(map(abs, still["kl_reweighted"].values())) < 1e-3
    assert len(still["kl_reweighted"]) == 12
    assert set(moved["gold_reweighted"]) == set(gold)
    assert all(1 <= count < 3 for count in moved["effective_samples"].values())
    for i, values in gold.items():
        assert min(values) - 1e-6 <= moved["gold_reweighted"][i] <= max(values) + 1e-6
    assert fmean(found["guided.genarm 1"]["kl"].values()) > 0
    assert set(found["guided.genarm 1"]["gold"]) == set(found["guided.best"]["gold"]) == set(gold)
    assert set(found["guided.best"]["kl"].values()) == {job.guides["best"].guide.kl}
    _weights_are_those_of_the_formula(tiny, runner, moved, alpha=1.0)


def _weights_are_those_of_the_formula(tiny: Tiny, runner: LocalRunner, moved: dict[str, Any], *, alpha: float) -> None:
    """log p_fused = log softmax(log p_base + alpha log p_helper) at every token, done here token by token."""
    import torch

    from trimtab.data.tables import read_jsonl
    from trimtab.models.language import LanguageModel, load_language
    from trimtab.parts import ModelSpec
    from trimtab.policy_metrics import reweighted
    from trimtab.stages.logprobs import Logprobs

    specs = [ModelSpec(source=str(tiny.model), dtype="float32", layers=layers) for layers in (None, 2)]
    lms = [LanguageModel(load_language(s, runner.compute.cache), ends=frozenset(), batch=8) for s in specs]
    whole = next(n.artifact for n in runner.nodes.values() if n.label == "completions by the base")
    drawn, kept = Logprobs(whole.path), the(runner, "reserve_prompts")
    words = {row["id"]: row["prompt"] for row in read_jsonl(kept.path / "validation" / "rows.jsonl")}
    tokenizer = _tokenizer(tiny)
    for row_id in list(words)[:3]:
        prompt, ratios = tokenizer(words[row_id], add_special_tokens=False)["input_ids"], []
        for k in range(3):
            ids = drawn.of(row_id, k)[0].tolist()
            contexts = [prompt + ids[:n] for n in range(len(ids))]
            base_TV, helper_TV = (lm.next_logprobs(contexts) for lm in lms)
            fused_TV = (base_TV + alpha * helper_TV).log_softmax(-1)
            ratios.append(float((fused_TV - base_TV)[torch.arange(len(ids)), torch.tensor(ids)].sum()))
        expected = reweighted(ratios)
        assert moved["kl_reweighted"][row_id] == pytest.approx(expected.kl, abs=1e-3)
        assert moved["effective_samples"][row_id] == pytest.approx(expected.effective, abs=1e-3)


def _tokenizer(tiny: Tiny) -> Any:
    from trimtab.models.network import load_tokenizer

    return load_tokenizer(tiny.model)


@pytest.mark.slow
def test_reward_models_are_told_by_the_supervisor_s_order_and_the_true_one(tiny: Tiny, tmp_path: Path) -> None:
    from tests.preferring import asked

    rows = [{"prompt": row["prompt"], **_sides(row)} for row in asked() for _ in (0, 1)]
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps(row | {"id": str(i)}) + "\n" for i, row in enumerate(rows))
    )
    probe = Preferring(tiny).fields(tune={"kind": "probe", "steps": 30}, learning_rate=0.05)
    job = Reward.model_validate(
        {
            "task": {"source": str(tmp_path / "pairs.jsonl"), "columns": {"id": "id"}, "group_by": "row"},
            "validation": KEPT,
            "supervisor": probe,
            "students": {"naive": probe},
            "ceiling": probe,
        }
    )
    runner, found = checked(tiny, job, "student.naive", folder="rewarded")
    told = found["student.naive"]
    assert len(told["agreement"]) == 12
    assert set(told["accuracy"]) == set(read_scores(the(runner, "reserve_prompts").path / "truth"))
    assert {
        node.label for node in runner.nodes.values() if node.artifact.stage == "train_reward" and node.artifact.ready
    } == {
        "seed 0 / train supervisor",
        "seed 0 / train student.naive",
    }


def _sides(row: dict[str, Any]) -> dict[str, str]:
    from tests.conftest import GOOD

    first, second = (candidate["text"] for candidate in row["candidates"])
    good = first.split(maxsplit=1)[0] in GOOD
    return {"chosen": first if good else second, "rejected": second if good else first}


@pytest.mark.slow
def test_a_chain_is_compared_with_whoever_labelled_for_it(tiny: Tiny, tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [dict(zip(("text", "label"), sentence(draw), strict=True), id=f"r{i}") for i in range(240)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    probe = tiny.spec(tune={"kind": "probe", "steps": 30}, learning_rate=0.05).model_dump()
    middle = probe | {"model": probe["model"] | {"layers": 2}}
    job = Bootstrap.model_validate(
        {
            "task": {"source": str(tmp_path / "rows.jsonl")},
            "validation": KEPT,
            "supervisor": probe | {"model": probe["model"] | {"layers": 1}},
            "chain": [middle],
            "students": {"naive": probe},
            "ceiling": probe,
        }
    )
    names = ("student.naive", "student.naive-direct", "intermediate.1")
    runner, found = checked(tiny, job, *names, folder="chained")
    for name, labeller in zip(names, ("intermediate.1", "supervisor", "supervisor"), strict=True):
        node = runner.nodes[runner.outcomes["validation", name][0].id]
        labels = runner.nodes[node.needs["labels"].id]
        assert labels.needs["data"].part == "validation"
        assert runner.nodes[labels.needs["model"].id].label == f"seed 0 / train {labeller}"
        assert (len(found[name]["agreement"]), len(found[name]["accuracy"])) == (12, BUDGET)


def test_a_debate_s_students_and_judges_are_told_by_their_names(tmp_path: Path) -> None:
    probe = {"model": MODEL, "tune": {"kind": "probe"}, "max_length": 1100}
    students = {"naive": probe, "hard": probe | {"objective": {"kind": "xent", "hard": True}}}
    job = Debate.model_validate(
        {
            "task": {"source": "builtin:facts"},
            "validation": KEPT,
            "debaters": MODEL | {"layers": None},
            "members": 2,
            "supervisor": probe,
            "ceiling": probe,
            "students": students,
        }
    )
    plan = PlanRunner(Tiny(tmp_path, *[tmp_path] * 4).compute())
    job(plan)
    by = ("debate", "consultancy", "weak_debaters", "shuffled", "masked", "ensemble")
    wanted = {f"student.{one} {name}" for one in (*by, "single") for name in students}
    assert {name for split, name in plan.outcomes if split == "validation"} == wanted | {f"judge.{one}" for one in by}
    for one in by:
        node = plan.nodes[plan.outcomes["validation", f"student.{one} naive"][0].id]
        assert plan.nodes[node.needs["labels"].id].label == f"seed 0 / panel of {one}, validation"
    drawn = [node for node in plan.nodes.values() if node.artifact.stage == "split"]
    assert {node.needs["rows"].stage for node in drawn} == {"reserve"}
    assert {node.needs["rows"].part for node in drawn} == {"rest"}
    assert len(drawn) > 5, "every room's rows are dealt alike"
