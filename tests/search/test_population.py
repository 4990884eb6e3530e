from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tests.searched import search_over

from trimtab.errors import JobError
from trimtab.ranges import LogUniform
from trimtab.run.artifact import PlanRunner
from trimtab.search.job import Search
from trimtab.search.population import chained, drawn, explored, nudged, trained
from trimtab.search.space import Space
from trimtab.search.trial import Plan

RATE, BETA = "students.dpo.learning_rate", "students.dpo.objective.beta"
SPACE = {RATE: {"loguniform": [1e-6, 1e-4]}, BETA: {"uniform": [0.05, 1.0]}}


def searched(folder: Path, space: dict[str, Any] | None = None, **fields: Any) -> Search:
    model = {"source": "builtin:smollm2-135m", "layers": 4}
    raw = {
        "kind": "preference",
        "task": {"source": "builtin:openings"},
        "supervisor": {"kind": "reward", "model": model},
        "ceiling": {"kind": "policy", "model": model},
        "students": {"dpo": {"kind": "policy", "model": model, "num_train_epochs": 2, "objective": {"kind": "dpo"}}},
    }
    usual = {"metric": "student.dpo/agreement", "scheduler": {"kind": "pbt", "generations": 4}}
    return search_over(space or SPACE, folder, raw, **usual | fields)


def aligned(search: Search, chain: list[dict[str, Any]]) -> list[str]:
    """The trainings of the searched student, the first one first."""
    values = chained(Plan.of(search), "students.dpo", chain=chain, generations=4)
    job = Plan.of(search).job(values)
    runner = PlanRunner(job.compute)
    job.pipeline(runner)
    return [n.artifact.id for n in runner.nodes.values() if n.label.startswith("seed 0 / train student.dpo")]


def test_a_generation_is_one_more_training_on_top_of_those_before_it(tmp_path: Path) -> None:
    search = searched(tmp_path)
    chain = [{RATE: 1e-5, BETA: 0.1}, {RATE: 2e-5, BETA: 0.1}, {RATE: 2e-5, BETA: 0.2}]
    found = [aligned(search, chain[:length]) for length in (1, 2, 3)]
    assert [len(one) for one in found] == [1, 2, 3]
    assert found[0] == found[1][:1] and found[1] == found[2][:2]
    other = aligned(search, [chain[0], {RATE: 5e-5, BETA: 0.1}])
    assert other[0] == found[0][0] and other[1] != found[1][1]


def test_generations_share_the_epochs_and_the_values_say_what_the_last_one_has(tmp_path: Path) -> None:
    chain = [{RATE: 1e-5, BETA: 0.1}, {RATE: 2e-5, BETA: 0.3}]
    values = chained(Plan.of(searched(tmp_path)), "students.dpo", chain=chain, generations=4)
    student = values["students.dpo"]
    assert (student["num_train_epochs"], student["after"]["num_train_epochs"]) == (0.5, 0.5)
    assert (student["learning_rate"], student["after"]["learning_rate"]) == (2e-5, 1e-5)
    assert student["after"]["after"] is None
    assert (values[RATE], values[BETA]) == (2e-5, 0.3)


def test_epochs_that_are_searched_are_shared_out_too(tmp_path: Path) -> None:
    epochs = "students.dpo.num_train_epochs"
    plan = Plan.of(searched(tmp_path, {epochs: {"uniform": [1, 8]}}))
    values = chained(plan, "students.dpo", chain=[{epochs: 6.0}], generations=4)
    assert plan.job(values).pipeline.students["dpo"].num_train_epochs == 1.5


@pytest.mark.parametrize(
    "space",
    [
        {**SPACE, "supervisor.learning_rate": {"uniform": [0.1, 0.2]}},
        {"pairs.temperature": {"uniform": [0.5, 2.0]}},
        {"students.dpo": {"choice": ["a"]}},
    ],
)
def test_a_population_trains_one_policy(space: dict[str, Any], tmp_path: Path) -> None:
    assert trained(searched(tmp_path)) == "students.dpo"
    with pytest.raises(JobError, match="fields below one students.NAME of kind policy"):
        trained(searched(tmp_path, space))


def test_what_is_explored_is_a_fifth_away_or_drawn_anew_and_stays_in_the_space(tmp_path: Path) -> None:
    space, draw = Space(searched(tmp_path)), random.Random(0)
    start = {RATE: 1e-5, BETA: 0.9}
    found = [explored(space, start, draw) for _ in range(200)]
    assert all(1e-6 <= one[RATE] <= 1e-4 and 0.05 <= one[BETA] <= 1.0 for one in found)
    near = [one for one in found if one[RATE] == pytest.approx(0.8e-5) or one[RATE] == pytest.approx(1.2e-5)]
    assert 120 <= len(near) <= 180
    assert sum(one[BETA] == 1.0 for one in found) > 40 < sum(one[BETA] == pytest.approx(0.72) for one in found)


def test_orders_of_magnitude_are_as_likely() -> None:
    draw, field = random.Random(0), LogUniform(loguniform=(1e-6, 1e-2))
    drawn_N = [drawn("x", field, draw) for _ in range(400)]
    assert 150 < sum(value < 1e-4 for value in drawn_N) < 250
    assert nudged("x", field, 1e-2, draw=random.Random(1)) <= 1e-2
