"""A guided experiment: what is refused, what is laid out, and what comes out of it on a tiny network."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.conftest import PLAIN
from tests.pipelines.test_preference import Done, run

from trimtab import verbs
from trimtab.compute import Compute
from trimtab.load import load_job
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
        (with_guide(["arm"], kind="args"), "args does not make one distribution"),
        (with_guide(["arm"] * 3, kind="best_of_n"), "best_of_n takes 1 or 2 helpers beside the base, but there are 3"),
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
def job(tiny: Any) -> dict[str, Any]:
    rows = [{"prompt": f"{a} {b} {c} "} for a in PLAIN for b in PLAIN[:3] for c in PLAIN[:2]]
    (tiny.root / "guided.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    network = {"source": str(tiny.model), "dtype": "float32"}
    return {
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
            "best": {"guide": {"kind": "best_of_n"}, "helpers": ["arm", "small"], "strengths": {"n": [1, 4]}},
            "beam": {"guide": {"kind": "chunk_beam", "chunk": 3}, "helpers": ["arm"]},
        },
        "report": {"bootstrap": 100},
    }


@pytest.fixture(scope="module")
def done(tiny: Any, job: dict[str, Any]) -> Done:
    compute = tiny.compute().model_copy(update={"storage": tiny.root / "guided"})
    return run(Guided.model_validate(job), compute)


@pytest.mark.slow
def test_every_guide_is_measured_in_numbers(done: Done) -> None:
    names = ("reference", *(f"guided.{name}" for name in ("genarm 0", "genarm 1", "proxy", "best 1", "best 4", "beam")))
    wanted = {f"{name}/{what}" for name in names for what in ("gold", "kl", "tokens", "tokens_per_second")}
    wanted -= {"guided.beam/kl"}
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
def test_a_search_s_distance_is_what_is_known_of_it(done: Done) -> None:
    assert done.metrics["guided.best 1/kl"] == 0
    assert done.metrics["guided.best 4/kl"] == pytest.approx(math.log(4) - 3 / 4)
    assert "guided.beam/kl" not in done.metrics


@pytest.mark.slow
def test_the_page_speaks_of_guides(done: Done) -> None:
    page = (done.report.path / "report.html").read_text()
    assert "guides on these test prompts" in page
    assert "tokens/s" in page
    assert "preference accuracy</th>" not in page


@pytest.mark.slow
def test_trained_helpers_are_registered_without_guides_too(
    done: Done, job: dict[str, Any], tiny: Any, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("trimtab.tracked.CLOSES_WITHIN_S", 300.0)
    storage, file = tiny.root / "guided", tiny.root / "guides.yaml"
    shutil.copy(empty_store, storage / "mlflow.db")
    where = {"kind": "guided", "compute": {"backend": "inline", "storage": str(storage)}}
    file.write_text(json.dumps(job | {"guides": {}, "register": {"arm": "tiny-arm"}} | where))
    heard: list[dict[str, Any]] = []
    first = verbs.run(file, listeners=[heard.append])
    assert (first.ran, first.registered, first.warnings) == (1, ["models:/tiny-arm/1"], [])
    assert {name.partition("/")[0] for name in first.metrics} == {"reference"}
    (trained,) = done.of("align")
    assert {event["stage_id"] for event in heard if event["event"] == "register"} == {trained.artifact.id}
    again = verbs.run(file)
    assert (again.ran, again.registered) == (0, ["models:/tiny-arm/1"])
    assert load_job(file, ["base=models:/tiny-arm@latest"]).pipeline.base.source == f"{trained.artifact.path}/model"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    unheard = verbs.run(file)
    assert unheard.registered == []
    assert "is behind" in unheard.warnings[0]
