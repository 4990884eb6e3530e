"""What events mean as metrics; that Ray exports them is shown where a cluster is up."""

from __future__ import annotations

from typing import Any

from trimtab.run.gauges import Gauges

SEARCH = {"event": "run_start", "kind": "search", "run_id": "beta-1", "job": {"metric": ["a/x", "b/y"], "mode": "min"}}


def due(*events: dict[str, Any]) -> dict[tuple[str, ...], float]:
    gauges = Gauges()
    for event in events:
        gauges(event)
    return {(name.removeprefix("trimtab_"), *tags): value for (name, tags), value in gauges.due.items()}


def ended(stage_id: str, status: str) -> dict[str, Any]:
    return {"event": "stage_end", "stage_id": stage_id, "status": status}


def test_stages_are_counted_by_how_they_ended() -> None:
    assert due(ended("train-1", "done"), ended("train-2", "done"), ended("label-3", "failed")) == {
        ("stages_total", "train", "done"): 2,
        ("stages_total", "label", "failed"): 1,
    }


def test_a_training_is_followed_and_the_progress_of_other_stages_is_no_step() -> None:
    def progress(stage_id: str, done: int) -> dict[str, Any]:
        return {"event": "progress", "stage_id": stage_id, "done": done, "total": 9}

    found = due(
        {"event": "stage_start", "stage_id": "align-1", "label": "student dpo"},
        progress("align-1", 3),
        progress("label-2", 5),
        {"event": "metrics", "stage_id": "align-1", "step": 3, "values": {"loss": 0.5, "eval_loss": 0.7}},
        progress("align-1", 4),
    )
    own = ("align-1", "student dpo")
    assert found == {("training_step", *own): 4, ("training_loss", *own): 0.5}


def test_a_search_tells_how_its_trials_stand_and_the_best_of_each_metric() -> None:
    def trial(number: int, status: str | None = None, objectives: list[float] | None = None) -> dict[str, Any]:
        if status is None:
            return {"event": "trial_start", "trial": number}
        return {"event": "trial_end", "trial": number, "status": status, "objectives": objectives}

    begun = [SEARCH, {"event": "search_plan", "have": 3}, trial(3), trial(4), trial(5)]
    went_on = [*begun, trial(3, "done", [0.2, 5.0]), trial(4, "done", [0.4, 1.0]), trial(5, "pruned")]
    counted = {("trials", "beta-1", "earlier"): 3, ("trials", "beta-1", "running"): 0}
    counted |= {("trials", "beta-1", "done"): 2, ("trials", "beta-1", "pruned"): 1}
    best = {("search_best", "beta-1", "a/x"): 0.2, ("search_best", "beta-1", "b/y"): 1.0}
    assert due(*went_on) == counted | best
    assert due(*begun)["trials", "beta-1", "running"] == 3
    last = {"event": "run_end", "metrics": {"best/a/x": 0.1, "test/default/x": 9.0}}
    assert due(*went_on, last) == counted | best | {("search_best", "beta-1", "a/x"): 0.1}


def test_runs_that_are_no_searches_end_without_a_best() -> None:
    begun = {"event": "run_start", "kind": "guided", "run_id": "r", "job": {}}
    assert due(begun, {"event": "run_end", "metrics": {"student.naive/accuracy": 0.5}}) == {}
