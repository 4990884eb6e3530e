from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.errors import StageError
from trimtab.run.artifact import Artifact
from trimtab.search.measured import early, measured, objectives
from trimtab.search.record import Measured
from trimtab.stages.outcome import write_outcome


def outcomes(folder: Path, *seeds: dict[str, list[float | None]]) -> dict[str, list[Artifact]]:
    made = []
    for number, columns in enumerate(seeds):
        artifact = Artifact("validate", str(number), folder)
        artifact.folder.mkdir()
        names = list(columns)
        rows = [
            dict(zip(names, row, strict=True), id=f"r{i}") for i, row in enumerate(zip(*columns.values(), strict=True))
        ]
        write_outcome(artifact.folder, rows)
        made.append(artifact)
    return {"student.a": made}


def test_a_metric_is_the_mean_over_rows_and_seeds(tmp_path: Path) -> None:
    found = measured(outcomes(tmp_path, {"agreement": [1.0, 0.0, 1.0, 1.0]}, {"agreement": [0.0, 0.0, 1.0, 0.0]}))
    one = found["student.a/agreement"]
    assert one.mean == pytest.approx(0.5) and one.rows == 4
    assert 0 <= one.lo < one.mean < one.hi <= 1


def test_rows_that_are_all_alike_leave_no_doubt(tmp_path: Path) -> None:
    assert measured(outcomes(tmp_path, {"x": [0.5] * 6}))["student.a/x"] == Measured(0.5, 0.5, 0.5, 6)


def test_more_rows_narrow_the_interval(tmp_path: Path) -> None:
    few = measured(outcomes(tmp_path, {"x": [0.0, 1.0] * 5}))["student.a/x"]
    (tmp_path / "more").mkdir()
    many = measured(outcomes(tmp_path / "more", {"x": [0.0, 1.0] * 80}))["student.a/x"]
    assert (many.hi - many.lo) < (few.hi - few.lo) / 2


def test_what_is_known_of_some_rows_is_measured_on_those(tmp_path: Path) -> None:
    found = measured(outcomes(tmp_path, {"agreement": [1.0, 0.0, 0.0], "accuracy": [1.0, None, None]}))
    assert (found["student.a/accuracy"].mean, found["student.a/accuracy"].rows) == (1.0, 1)


def test_objectives_are_in_the_order_asked_for_and_have_to_be_there_and_finite() -> None:
    one = Measured(0.5, 0.4, 0.6, 10)
    assert objectives({"a/x": one, "a/y": replace(one, mean=0.2)}, ["a/y", "a/x"]) == [0.2, 0.5]
    with pytest.raises(StageError, match="no stage measured a/z; measured: a/x"):
        objectives({"a/x": one}, ["a/z"])
    with pytest.raises(StageError, match="a/x is not finite"):
        objectives({"a/x": replace(one, mean=float("nan"))}, ["a/x"])


def test_early_signals_are_means_over_the_first_tenth_of_steps() -> None:
    curve = [(step, {"loss": float(step)}) for step in range(1, 21)]
    assert early([(curve, 20)]) == {"loss": 1.5}
    assert early([(curve, 20), ([(10, {"loss": 3.5, "grad_norm": 2.0})], 20)]) == {"loss": 2.5, "grad_norm": 2.0}
    assert early([]) == {}
