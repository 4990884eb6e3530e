"""What a report of debates says, and that it says no more than the numbers carry."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from trimtab.data.tables import write_jsonl
from trimtab.parts import ReportSpec
from trimtab.spec import Spec
from trimtab.stages.debate_report import _finding, _gains, _worded
from trimtab.stages.report import Parts


class Job(Spec):
    """As much of a debate experiment as gains need."""

    rivals: tuple[str, ...] = ("consultancy",)
    report: ReportSpec = ReportSpec(bootstrap=400)


def scored(root: Path, name: str, right: float, *, seed: int = 0) -> Path:
    """Predictions on 150 cases, both answers of a case right or wrong together."""
    folder = root / f"{name} {seed}"
    folder.mkdir()
    rows = []
    for case in range(150):
        is_right = case < right * 150
        for k in (0, 1):
            p = [0.9, 0.1] if (k == 0) == is_right else [0.1, 0.9]
            rows.append({"id": f"c{case}-{k}", "label": k, "probs": p})
    random.Random(seed).shuffle(rows)
    write_jsonl(folder / "predictions.jsonl", rows)
    (folder / "metrics.json").write_text(json.dumps({}))
    return folder


def gains(tmp_path: Path, **shares: float):
    shares = {"supervisor": 0.6, "ceiling": 0.9} | {f"student.{name}": p for name, p in shares.items()}
    return _gains(Job(), Parts({f"0/score/{name}": scored(tmp_path, name, p) for name, p in shares.items()}))


def test_gains_are_differences_with_intervals_over_cases(tmp_path: Path) -> None:
    found = {gain.control: gain for gain in gains(tmp_path, debate=0.8, consultancy=0.6, single=0.79, masked=0.9)}
    assert set(found) == {"consultancy", "single", "masked"}
    assert {name: gain.sign for name, gain in found.items()} == {"consultancy": 1, "single": 0, "masked": -1}
    points = found["consultancy"].points
    assert points.mean == pytest.approx(0.2)
    spread = (0.2 * 0.8 / 150) ** 0.5
    assert points.hi - points.lo == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert "student.debate against masked (transcripts of the same lengths, every word masked): −10.0" in _worded(
        found["masked"]
    )


@pytest.mark.parametrize(
    ("shares", "start", "against"),
    [
        ({"single": 0.5, "shuffled": 0.6}, "Debate helped.", "above single, shuffled."),
        (
            {"single": 0.5, "shuffled": 0.8, "ensemble": 0.95},
            "Debate was not shown to help.",
            "above single; not clearly different from shuffled; below ensemble.",
        ),
    ],
)
def test_debate_helped_only_where_it_is_above_every_control(tmp_path: Path, shares, start, against) -> None:
    from trimtab.stages._report_page import ModelResult, ReportData

    found = gains(tmp_path, debate=0.8, **shares)
    models = [
        ModelResult(name, "student", 0.8, 0.7, 0.9) for name in ("supervisor", "ceiling", *{gain.who for gain in found})
    ]
    said = _finding(ReportData("t", "", {}, None, "", models), found)
    assert said.startswith(start)
    assert f"student.debate reaches 80.0 % [70.0, 90.0], {against}" in said
