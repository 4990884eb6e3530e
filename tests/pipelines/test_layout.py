"""What the pipelines lay out: who gets truth, what is shared, what one more student costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trimtab.compute import Compute
from trimtab.parts import Probe, TrainSpec
from trimtab.pipelines.bootstrap import Bootstrap
from trimtab.pipelines.weak_to_strong import WeakToStrong
from trimtab.run.artifact import Node, PlanRunner

WEAK = TrainSpec(model={"source": "builtin:smollm2-135m", "layers": 4})
STRONG = TrainSpec(model={"source": "builtin:smollm2-135m", "layers": 28}, tune={"kind": "top", "layers": 4})
PARTS: dict[str, Any] = {"task": {"source": "builtin:valence"}, "supervisor": WEAK, "ceiling": STRONG}


def laid_out(job: Any, tmp_path: Path) -> PlanRunner:
    run = PlanRunner(Compute(storage=tmp_path))
    job(run)
    return run


def by_label(run: PlanRunner) -> dict[str, Node]:
    return {node.label: node for node in run.nodes.values()}


def finish_all(run: PlanRunner) -> None:
    for node in run.nodes.values():
        node.artifact.folder.mkdir(parents=True)
        (node.artifact.folder / "metrics.json").write_text("{}")


def test_one_more_student_costs_its_own_training_evaluation_and_the_report(tmp_path: Path) -> None:
    job = WeakToStrong(**PARTS, students={"naive": STRONG})
    finish_all(laid_out(job, tmp_path))
    other = STRONG.model_copy(update={"learning_rate": 1e-3})
    more = laid_out(job.model_copy(update={"students": {"naive": STRONG, "other": other}}), tmp_path)
    assert [n.artifact.stage for n in more.pending] == ["train", "evaluate", "report"]


def test_a_student_never_receives_truth(tmp_path: Path) -> None:
    run = laid_out(WeakToStrong(**PARTS, students={"naive": STRONG}, seeds=(0, 1)), tmp_path)
    for label, node in by_label(run).items():
        parts = {artifact.part for artifact in node.needs.values()}
        if "train student" in label:
            assert set(node.needs) == {"data", "features"}
            assert node.needs["data"].stage == "label"
        if "labels by" in label:
            assert parts <= {"transfer", ""}
        if "train ceiling" in label:
            assert {"transfer", "truth"} <= parts


def test_frozen_states_are_shared_by_seeds_and_students(tmp_path: Path) -> None:
    run = laid_out(WeakToStrong(**PARTS, students={"a": STRONG, "b": STRONG}, seeds=(0, 1, 2)), tmp_path)
    stages = [n.artifact.stage for n in run.nodes.values()]
    assert stages.count("features") == 1
    assert stages.count("split") == 3
    assert stages.count("train") == 3 * 3, "equal students are one artifact"


def test_probes_read_one_vector_a_row_of_their_own_depth(tmp_path: Path) -> None:
    probe = {"tune": Probe(), "learning_rate": 0.01}
    weak, strong = WEAK.model_copy(update=probe), STRONG.model_copy(update=probe)
    run = laid_out(WeakToStrong(**PARTS | {"supervisor": weak, "ceiling": strong}, students={"a": strong}), tmp_path)
    specs = [n.spec for n in run.nodes.values() if n.artifact.stage == "features"]
    assert [(s.keep, s.model.layers, s.without_top) for s in specs] == [("pooled", 4, 0), ("pooled", 28, 0)]


def test_seeds_change_splits_and_initialisation(tmp_path: Path) -> None:
    run = laid_out(WeakToStrong(**PARTS, students={"a": STRONG}, seeds=(3, 4)), tmp_path)
    found = by_label(run)
    assert [found[f"seed {s} / split"].spec.seed for s in (3, 4)] == [3, 4]
    assert [found[f"seed {s} / train supervisor"].spec.seed for s in (3, 4)] == [3, 4]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_chain_labels_fresh_rows_at_every_hop(tmp_path: Path, fresh: bool) -> None:
    middle = STRONG.model_copy(update={"model": STRONG.model.model_copy(update={"layers": 12})})
    job = Bootstrap(**PARTS, students={"naive": STRONG}, chain=[middle], fresh=fresh)
    found = by_label(laid_out(job, tmp_path))
    first = found["seed 0 / labels by supervisor"].needs["data"].part
    second = found["seed 0 / labels by intermediate.1"].needs["data"].part
    assert (first, second) == (("transfer.0", "transfer.1") if fresh else ("transfer", "transfer"))
    assert found["seed 0 / split"].spec.hops == (2 if fresh else 1)
    assert found["seed 0 / train ceiling"].needs["data"].part == second
    labels = found["seed 0 / train student.naive"].needs["data"].key
    assert labels == found["seed 0 / labels by intermediate.1"].artifact.key
    assert "seed 0 / train student.naive-direct" in found
