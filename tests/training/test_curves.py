"""metrics.jsonl is written, said and read back."""

from __future__ import annotations

from trimtab import progress
from trimtab.training.curves import read_curves, write_curve


def test_points_are_appended_said_and_read_back_in_order(tmp_path):
    heard = []
    with progress.listening(heard.append):
        write_curve(tmp_path, 1, {"loss": 0.5})
        write_curve(tmp_path, 2, {"loss": 0.25, "eval_agreement": 1.0})
    assert read_curves(tmp_path) == [(1, {"loss": 0.5}), (2, {"loss": 0.25, "eval_agreement": 1.0})]
    assert [(event["event"], event["step"]) for event in heard] == [("metrics", 1), ("metrics", 2)]


def test_a_training_that_logged_nothing_has_no_curve(tmp_path):
    assert read_curves(tmp_path) == []
