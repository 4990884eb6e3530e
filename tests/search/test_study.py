from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from tests.searched import STUDENT, job, search_over

from trimtab.search.record import Measured, Told, leaders
from trimtab.search.spec import Searcher
from trimtab.search.study import Trials, opened, sampler, signature
from trimtab.search.trial import pruned_mark, trial_id

RATE, STEPS = f"{STUDENT}.learning_rate", f"{STUDENT}.tune.steps"
SPACE = {RATE: {"loguniform": [1e-3, 1e-1]}}


class Heard(list):
    """What a search says, kept."""

    def __call__(self, event: dict[str, Any]) -> None:
        self.append(event)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self if event["event"] == kind]


def trials(folder: Path, space: dict[str, Any] | None = None, raw: dict[str, Any] | None = None, **f: Any) -> Trials:
    search = search_over(space or SPACE, folder, raw, **f)
    found = Trials(search, opened(search), Heard())
    found.resume()
    return found


def result(values: dict[str, Any], score: float | None = None, error: str | None = None, **more: Any) -> dict[str, Any]:
    """As a trial's process gives it."""
    metrics = {} if score is None else {"student.a/agreement": Measured(score, score - 0.1, score + 0.1, 40)}
    told = Told(values, metrics=metrics, ran=["train-1"], shared=3, progress=0.5, seconds=2.0, error=error)
    status = {} if score is None and error is None else {"status": "failed" if error else "done"}
    return {"told": json.dumps(told.as_json()), "objectives": json.dumps(score and [score])} | status | more


def test_the_default_comes_first_and_what_a_trial_told_can_be_read(tmp_path: Path) -> None:
    there = trials(tmp_path)
    number, values = there.next("x")
    assert (number, values) == (0, {RATE: 0.01})
    there.ended("x", result(values, 0.8))
    (record,) = there.records()
    assert (record.status, record.objectives) == ("done", (0.8,))
    assert record.told.values == values and record.told.metrics["student.a/agreement"].hi == pytest.approx(0.9)
    assert record.told.progress == 1.0 and (record.told.ran, record.told.shared) == (["train-1"], 3)


def test_studies_may_stand_in_a_database_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_STUDIES", f"sqlite:///{tmp_path}/elsewhere.db")
    there = trials(tmp_path / "storage")
    there.next("x")
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/elsewhere.db") == [there.search.id]
    assert not (tmp_path / "storage" / "optuna.db").exists()


def test_a_default_outside_the_space_is_not_a_trial(tmp_path: Path) -> None:
    _, values = trials(tmp_path, raw=job(learning_rate=0.5)).next("x")
    assert 1e-3 <= values[RATE] <= 1e-1


def test_a_trial_stopped_by_the_scheduler_is_pruned_and_one_that_died_has_failed(tmp_path: Path) -> None:
    there = trials(tmp_path)
    for key in "abc":
        there.next(key)
    there.heard("a", result({RATE: 0.01}, signal=0.7, at="train"))
    there.ended("a", result({RATE: 0.01}))
    there.ended("b", None, died=True)
    there.ended("c", result({RATE: 0.3}, error="StageError: the loss is nan"))
    assert [one.status for one in there.records()] == ["pruned", "failed", "failed"]
    assert "process died" in there.records()[1].told.error
    assert there.records()[2].told.error == "StageError: the loss is nan"
    assert there.study.trials[0].intermediate_values == {1: 0.7}
    assert leaders(there.records(), ("max",)) == []
    assert [event["status"] for event in there.sink.of("trial_end")] == ["pruned", "failed", "failed"]
    marked = [pruned_mark(tmp_path, trial_id(there.search.id, number)).exists() for number in range(3)]
    assert marked == [True, False, False]


def test_objectives_are_named_by_their_metrics(tmp_path: Path) -> None:
    assert trials(tmp_path).study.metric_names == ["student.a/agreement"]


def test_trials_end_with_the_budget_and_those_interrupted_do_not_count(tmp_path: Path) -> None:
    there = trials(tmp_path, budget={"trials": 2})
    there.next("a")
    _, values = there.next("b")
    assert there.next("c") is None and there.why == "trials"
    there.ended("a", result({RATE: 0.01}, 0.7))
    there.interrupt()
    assert [one.status for one in there.records()] == ["done", "interrupted", "waiting"]
    again = trials(tmp_path, budget={"trials": 2})
    number, same = again.next("d")
    assert (number, same) == (2, values) and again.have == 1
    assert again.next("e") is None


def test_a_killed_search_goes_on_with_the_very_values_and_none_is_tried_twice(tmp_path: Path) -> None:
    killed = trials(tmp_path, budget={"trials": 6})
    for key in "abc":
        _, values = killed.next(key)
        if key == "a":
            killed.ended(key, result(values, 0.6))
    left = [one.told.values for one in killed.records() if one.status == "running"]
    for _ in range(2):  # the second one is killed before it hands out any
        again = trials(tmp_path, budget={"trials": 6})
    handed = []
    while (one := again.next(str(len(handed)))) is not None:
        handed.append(one[1])
        again.ended(str(len(handed) - 1), result(one[1], 0.5))
    assert handed[:2] == left
    done = [one.told.values[RATE] for one in again.records() if one.status == "done"]
    assert len(done) == 6 and len(set(done)) == 6
    assert [one.status for one in again.records()].count("interrupted") == 2


def test_a_search_killed_between_queueing_and_marking_queues_once(tmp_path: Path) -> None:
    killed = trials(tmp_path)
    number, values = killed.next("a")
    killed._again(values, number)
    again = trials(tmp_path)
    assert [one.status for one in again.records()] == ["interrupted", "waiting"]


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_who_goes_on_does_not_propose_what_was_proposed(kind: str, tmp_path: Path) -> None:
    tried = []
    for _ in range(2):
        there = trials(tmp_path, searcher={"kind": kind, "startup": 2}, budget={"trials": 20})
        for key in range(4):
            _, values = there.next(str(key))
            there.ended(str(key), result(values, 0.5))
            tried.append(values[RATE])
    assert len(set(tried)) == len(tried)


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_small_space_is_tried_again_rather_than_searched_for_ever(kind: str, tmp_path: Path) -> None:
    there = trials(tmp_path, {RATE: {"choice": [0.01, 0.02]}}, searcher={"kind": kind}, budget={"trials": 9})
    while (one := there.next("x")) is not None:
        there.ended("x", result(one[1], 0.5))
    assert there.have == 9 and there.why == "trials"


def test_a_grid_is_gone_through_once_whoever_goes_on_with_it(tmp_path: Path) -> None:
    space = {RATE: {"choice": [0.01, 0.02]}, STEPS: {"randint": [1, 2], "when": {RATE: 0.02}}}
    fields = {"searcher": {"kind": "grid"}, "budget": {"trials": 20}}
    first = trials(tmp_path, space, **fields)
    _, values = first.next("a")
    first.ended("a", result(values, 0.5))
    first.next("b")
    there = trials(tmp_path, space, **fields)
    while (one := there.next("x")) is not None:
        there.ended("x", result(one[1], 0.5))
    done = [one.told.values for one in there.records() if one.status == "done"]
    assert done == [{RATE: 0.01}, {RATE: 0.02, STEPS: 1}, {RATE: 0.02, STEPS: 2}]
    assert there.why == "grid"


def test_two_objectives_make_a_front(tmp_path: Path) -> None:
    fields = {"metric": ["student.a/agreement", "student.a/cross_entropy"], "mode": ["max", "min"]}
    there = trials(tmp_path, searcher={"kind": "nsga2"}, budget={"trials": 3}, **fields)
    for key, objectives in enumerate([[0.5, 0.5], [0.9, 0.9], [0.4, 0.6]]):
        _, values = there.next(str(key))
        there.heard(str(key), result(values, signal=0.3))
        there.ended(str(key), result(values, 0.5) | {"objectives": json.dumps(objectives)})
    assert {trial.number for trial in there.study.best_trials} == {0, 1}
    assert leaders(there.records(), ("max", "min"))[-1].number == 2


def test_trials_that_fail_alike_end_the_search(tmp_path: Path) -> None:
    there = trials(tmp_path, budget={"trials": 9, "failures": 2})
    errors = ["StageError: step 3: loss 0.25 at align-0123456789abcdef", "DataError: no rows"]
    errors.append("StageError: step 17: loss 1e-05 at align-fedcba9876543210")
    for key, error in enumerate(errors):
        _, values = there.next(str(key))
        there.ended(str(key), result(values, error=error))
        assert (there.why is None) == (key < 2)
    assert there.why.startswith("2 trials failed alike: StageError: step 17")
    assert there.next("x") is None


def test_errors_are_alike_when_only_numbers_and_keys_differ() -> None:
    assert signature("A: 3 of 1.5e-3 in train-0a1b2c3d4e5f\nmore") == signature("A: 4 of 7 in train-ffffffffffff\nless")
    assert signature("A: too little") != signature("A: too much")


def test_two_objectives_are_sampled_by_nsga2() -> None:
    assert isinstance(sampler(Searcher(kind="nsga2"), 0), optuna.samplers.NSGAIISampler)


@pytest.mark.slow
def test_a_gaussian_process_comes_closer_to_the_best(tmp_path: Path) -> None:
    there = trials(tmp_path, searcher={"kind": "gp", "startup": 4}, budget={"trials": 12})
    missed = []
    while (one := there.next("x")) is not None:
        missed.append(abs(math.log10(one[1][RATE]) + 1.4))
        there.ended("x", result(one[1], 1 - missed[-1]))
    assert min(missed[4:]) < 0.1
