"""A guided experiment: what is refused, what is laid out, and what comes out of it on a tiny network."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.conftest import PLAIN
from tests.pipelines.test_preference import Done, run

from trimtab.compute import Compute
from trimtab.pipelines.guided import Guided
from trimtab.run.artifact import PlanRunner

MODEL = {"source": "builtin:smollm2-135m"}
JOB: dict[str, Any] = {
    "task": {"source": "builtin:openings"},
    "base": MODEL,
    "helpers": {"small": MODEL | {"layers": 4}},
    "trained": {"arm": {"model": MODEL | {"layers": 4}, "objective": {"kind": "arm"}}},
    "guides": {"genarm": {"guide": {"kind": "genarm"}, "helpers": ["arm"], "strengths": {"alpha": [0.5, 2]}}},
}


def with_guide(helpers: list[str], strengths: dict[str, Any] | None = None, **guide: Any) -> dict[str, Any]:
    return {"guides": {"g": {"guide": guide, "helpers": helpers, "strengths": strengths or {}}}}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (with_guide(["nobody"], kind="genarm"), "guides.g.helpers: there is no 'nobody', there are small, arm"),
        (with_guide(["arm"], kind="proxy"), "proxy takes at least 2 helpers beside the base, but there are 1"),
        (with_guide(["arm"], {"beta": [1]}, kind="genarm"), "strengths: name one field of genarm, which has alpha"),
        (with_guide(["arm"], {"alpha": [-1]}, kind="genarm"), "strengths: Input should be greater than or equal to 0"),
        (with_guide(["arm"], kind="nudging"), "nudging does not make one distribution"),
        ({"trained": {"small": JOB["trained"]["arm"]}}, "helpers and trained both name 'small'"),
        ({"trained": {"arm": {"model": MODEL, "objective": {"kind": "kto"}}}}, "kto needs more than pairs"),
        ({"sampling": {"samples": 1}}, "sampling.samples: pairs are made of two completions"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Guided.model_validate(JOB | fields)


def test_helpers_are_trained_once_for_all_strengths(tmp_path: Path) -> None:
    plan = PlanRunner(Compute(storage=tmp_path))
    Guided.model_validate(JOB | {"seeds": [0, 1]})(plan)
    stages = [node.artifact.stage for node in plan.nodes.values()]
    assert stages.count("align") == 2
    assert stages.count("generate") == 1 + 2 * 3
    guided = [node.needs for node in plan.nodes.values() if any("helpers" in name for name in node.needs)]
    assert len(guided) == 4
    assert {artifact.stage for needs in guided for name, artifact in needs.items() if "helpers" in name} == {"align"}


@pytest.fixture(scope="module")
def done(tiny: Any) -> Done:
    rows = [{"prompt": f"{a} {b} {c} "} for a in PLAIN for b in PLAIN[:3] for c in PLAIN[:2]]
    (tiny.root / "guided.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    network = {"source": str(tiny.model), "dtype": "float32"}
    job = {
        "task": {"source": str(tiny.root / "guided.jsonl")},
        "base": network,
        "sampling": {"samples": 3, "max_new_tokens": 6},
        "measure": {"sampling": {"samples": 2, "max_new_tokens": 6}},
        "test": 20,
        "helpers": {"small": network | {"layers": 2}},
        "trained": {
            "arm": {
                "model": network | {"layers": 2},
                "objective": {"kind": "arm"},
                "batch_size": 8,
                "num_train_epochs": 1,
                "learning_rate": 2e-3,
                "max_length": 32,
            }
        },
        "guides": {
            "genarm": {"guide": {"kind": "genarm"}, "helpers": ["arm"], "strengths": {"alpha": [0, 1]}},
            "proxy": {"guide": {"kind": "proxy"}, "helpers": ["arm", "small"]},
        },
        "report": {"bootstrap": 100},
    }
    compute = tiny.compute().model_copy(update={"storage": tiny.root / "guided"})
    return run(Guided.model_validate(job), compute)


@pytest.mark.slow
def test_every_guide_is_measured_in_numbers(done: Done) -> None:
    names = ("reference", "guided.genarm 0", "guided.genarm 1", "guided.proxy")
    wanted = {f"{name}/{what}" for name in names for what in ("gold", "kl", "tokens", "tokens_per_second")}
    assert wanted <= set(done.metrics)
    assert all(math.isfinite(value) for value in done.metrics.values())
    assert not any(name.endswith("/accuracy") for name in done.metrics)


@pytest.mark.slow
def test_a_weight_of_nothing_is_the_base_and_more_weight_goes_further(done: Done) -> None:
    kl = {name: done.metrics[f"guided.{name}/kl"] for name in ("genarm 0", "genarm 1")}
    assert kl["genarm 0"] == pytest.approx(0, abs=1e-4)
    assert kl["genarm 1"] > 0.01
    assert done.metrics["guided.genarm 0/gold"] == done.metrics["reference/gold"]


@pytest.mark.slow
def test_the_page_speaks_of_guides(done: Done) -> None:
    page = (done.report.path / "report.html").read_text()
    assert "guides on these test prompts" in page
    assert "tokens/s" in page
    assert "preference accuracy</th>" not in page
