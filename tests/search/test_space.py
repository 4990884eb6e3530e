from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from tests.searched import STUDENT, job, search_over

from trimtab.errors import JobError
from trimtab.search.space import Space, params

KIND, COEF, RATE = f"{STUDENT}.objective.kind", f"{STUDENT}.objective.aux_coef", f"{STUDENT}.learning_rate"
CONDITIONAL = {
    COEF: {"quniform": [0.1, 0.5, 0.2], "when": {KIND: "logconf"}},
    KIND: {"choice": ["xent", "logconf"]},
}


def space(fields: dict[str, Any], tmp_path: Path, raw: dict[str, Any] | None = None) -> Space:
    return Space(search_over(fields, tmp_path, raw))


def test_conditions_come_before_what_waits_for_them(tmp_path: Path) -> None:
    assert list(space(CONDITIONAL, tmp_path).fields) == [KIND, COEF]


def test_conditions_that_wait_for_one_another_are_refused(tmp_path: Path) -> None:
    circle = {COEF: {"uniform": [0, 1], "when": {RATE: 1}}, RATE: {"uniform": [0, 1], "when": {COEF: 1}}}
    with pytest.raises(JobError, match="wait for one another"):
        space(circle, tmp_path)


def test_a_condition_is_looked_up_in_the_values_then_in_the_job_then_in_its_defaults(tmp_path: Path) -> None:
    made = space(CONDITIONAL, tmp_path)
    assert made.holds(made.fields[COEF], {KIND: "logconf"})
    assert not made.holds(made.fields[COEF], {KIND: "xent"})
    alone = {COEF: CONDITIONAL[COEF]}
    said = space(alone, tmp_path, job(objective={"kind": "logconf"}))
    assert said.holds(said.fields[COEF], {})
    unsaid = space({RATE: {"uniform": [0, 1], "when": {KIND: ["xent", "product"]}}}, tmp_path)
    assert unsaid.holds(unsaid.fields[RATE], {})


def test_a_condition_is_met_by_a_choice_of_several_keys_that_says_so(tmp_path: Path) -> None:
    whole = f"{STUDENT}.objective"
    fields = {
        COEF: {"choice": [0.1, 0.5], "when": {KIND: "logconf"}},
        whole: {"choice": [{"kind": "xent"}, {"kind": "logconf"}]},
    }
    made = space(fields, tmp_path)
    assert list(made.fields) == [whole, COEF]
    logconf = {whole: {"kind": "logconf"}}
    assert sorted(made.points(), key=str) == sorted(
        [{whole: {"kind": "xent"}}, logconf | {COEF: 0.1}, logconf | {COEF: 0.5}], key=str
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        values = made.suggested(study.ask())
        assert (COEF in values) == (values[whole]["kind"] == "logconf")


def test_a_grid_has_every_point_once_and_the_default_first(tmp_path: Path) -> None:
    points = space(CONDITIONAL, tmp_path, job(objective={"kind": "logconf", "aux_coef": 0.3})).points()
    assert points[0] == {KIND: "logconf", COEF: pytest.approx(0.3)}
    rest = sorted(points[1:], key=str)
    assert rest == [{KIND: "logconf", COEF: pytest.approx(v)} for v in (0.1, 0.5)] + [{KIND: "xent"}]


def test_a_grid_of_what_has_no_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="a grid has no end"):
        space({RATE: {"loguniform": [1e-4, 1e-2]}}, tmp_path).points()


@pytest.mark.parametrize(
    ("field", "value", "inside"),
    [
        ({"loguniform": [1e-3, 1e-1]}, 0.01, 0.01),
        ({"loguniform": [1e-3, 1e-2]}, 0.02, None),
        ({"quniform": [0.01, 0.1, 0.03]}, 0.07, 0.07),
        ({"quniform": [0.01, 0.1, 0.03]}, 0.08, None),
        ({"choice": [0.1, 0.01]}, 0.01, 0.01),
        ({"choice": [0.1, 0.2]}, 0.01, None),
    ],
)
def test_the_default_is_tried_where_it_lies_in_the_space(
    field: dict[str, Any], value: float, inside: float | None, tmp_path: Path
) -> None:
    found = space({RATE: field}, tmp_path, job(learning_rate=value)).default()
    assert found == (None if inside is None else {RATE: pytest.approx(inside)})


def test_a_choice_of_several_keys_is_the_default_though_it_leaves_out_what_need_not_be_said(tmp_path: Path) -> None:
    choices = [{"kind": "logconf", "aux_coef": 0.3}, {"kind": "xent"}]
    made = space({f"{STUDENT}.objective": {"choice": choices}}, tmp_path)
    assert made.default() == {f"{STUDENT}.objective": {"kind": "xent"}}


@pytest.mark.parametrize(
    "field",
    [
        {"uniform": [0.2, 0.7]},
        {"loguniform": [1e-5, 1e-1]},
        {"quniform": [0.1, 0.95, 0.2]},
        {"randint": [2, 4]},
        {"choice": [{"kind": "xent"}, "text", 3, None]},
    ],
)
def test_values_go_through_a_study_and_back(field: dict[str, Any], tmp_path: Path) -> None:
    made = space({RATE: field}, tmp_path)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        values = made.suggested(study.ask())
        study.enqueue_trial(params(made.fields, values))
        assert made.suggested(study.ask()) == values
