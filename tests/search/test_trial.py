"""What a trial leaves behind where it cannot run, and what is best of several."""

from __future__ import annotations

from pathlib import Path

from tests.searched import STUDENT, search_over

from trimtab.run.log import read_log
from trimtab.search.record import Record, Told
from trimtab.search.trial import Plan, Trial, trial_id
from trimtab.search.tuner import best_of

RATE = f"{STUDENT}.learning_rate"


def test_a_trial_whose_values_make_no_job_says_whose_it_is_before_it_fails(tmp_path: Path) -> None:
    search = search_over({RATE: {"uniform": [0.001, 0.1]}}, tmp_path)
    result = Trial(Plan.of(search), 3, {RATE: -1.0}, lambda result: None)()
    assert result["status"] == "failed"
    start, end = read_log(tmp_path / "runs" / trial_id(search.id, 3))
    assert (start["event"], start["parent"], start["trial"], start["values"]) == (
        "run_start",
        search.id,
        3,
        {RATE: -1.0},
    )
    assert (end["event"], end["status"]) == ("run_end", "failed")
    assert RATE in end["error"]


def test_the_best_of_each_metric_goes_by_its_own_mode() -> None:
    found = [Record(i, "done", Told({}), scores) for i, scores in enumerate([(0.2, 3.0), (0.7, 5.0)])]
    found.append(Record(2, "failed", Told({})))
    assert best_of(found, ("a/x", "b/y"), ("max", "min")) == {"best/a/x": 0.7, "best/b/y": 3.0}
    assert best_of(found[2:], ("a/x", "b/y"), ("max", "min")) == {}
