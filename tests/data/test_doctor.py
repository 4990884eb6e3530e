from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.data.doctor import examine, normalised, render, write_quarantine
from trimtab.errors import DataError
from trimtab.parts import TaskSpec


def folder(tmp_path: Path) -> TaskSpec:
    train = [
        {"text": "one two", "label": "no"},
        {"text": "one two", "label": "yes"},
        {"text": "One, two!", "label": "no"},
        {"text": "x" * 40, "label": "no"},
    ]
    test = [{"text": "one two", "label": "no"}, {"text": "ONE  TWO", "label": "yes"}, {"text": "", "label": "yes"}]
    lines = [json.dumps(row) for row in test] + ["{", "oops"]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    return TaskSpec(source=str(tmp_path))


def test_the_report_counts_what_is_there(tmp_path: Path) -> None:
    report, _ = examine(folder(tmp_path))
    assert (report.format, report.classes, report.n_records, report.n_rows) == ("classification", ("no", "yes"), 9, 6)
    assert report.labels == {"train": {0: 3, 1: 1}, "test": {0: 1, 1: 1}}
    assert [row.text for row in report.sample] == ["one two", "one two", "One, two!"]
    found = report.duplicates
    assert (found.within, found.test_in_train, found.near_within, found.near_test_in_train) == (1, 1, 3, 2)
    assert [len(ids) for ids in found.conflicts] == [3]
    assert report.rejected == {"empty text": (("test.jsonl", 3),), "not JSON": (("test.jsonl", 4), ("test.jsonl", 5))}


def test_lengths(tmp_path: Path) -> None:
    report, _ = examine(folder(tmp_path))
    assert report.characters is not None
    assert report.words is not None
    assert (report.characters.shortest, report.characters.median, report.characters.longest) == (7, 7.5, 40)
    assert report.characters.p95 == 40
    assert report.characters.bins == ((4, 7, 3), (8, 15, 2), (16, 31, 0), (32, 63, 1))
    assert report.words.bins == ((1, 1, 1), (2, 3, 5))


@pytest.mark.chaos
def test_too_many_bad_rows_are_reported_not_raised(tmp_path: Path) -> None:
    report, _ = examine(folder(tmp_path))
    assert not report.usable
    assert report.n_rejected == 3
    assert examine(folder(tmp_path).model_copy(update={"max_bad_fraction": 0.34}))[0].usable
    (tmp_path / "all.jsonl").write_text("bad\nworse\n")
    nothing, _ = examine(TaskSpec(source=str(tmp_path / "all.jsonl"), max_bad_fraction=1))
    assert (nothing.n_rows, nothing.usable, nothing.characters) == (0, False, None)
    assert "NOT USABLE" in render(nothing)
    with pytest.raises(DataError, match="no such file"):
        examine(TaskSpec(source=str(tmp_path / "al.jsonl")))


def test_the_text_names_the_findings_and_holds_no_control_characters(tmp_path: Path) -> None:
    with (tmp_path / "train.jsonl").open("w") as file:
        file.write(json.dumps({"text": "\x1b[31mred\x07 " + "long " * 99, "label": 0}) + "\n")
        file.write(json.dumps({"text": "b", "label": 1}) + "\nbad\n")
    text = render(examine(TaskSpec(source=str(tmp_path)))[0])
    for part in (
        "text from 'text'",
        "0: 1 (50.0%)",
        "Rejected, not JSON: 1 (train.jsonl:3)",
        "NOT USABLE: 33.3%",
        "...",
    ):
        assert part in text
    assert all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.chaos
def test_quarantine_holds_every_rejected_row(tmp_path: Path) -> None:
    report, rejected = examine(folder(tmp_path))
    path = tmp_path / "quarantine.jsonl"
    write_quarantine(rejected, path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == report.n_rejected
    assert rows[0] == {
        "source": "test.jsonl",
        "row_number": 3,
        "reason": "empty text",
        "raw": {"text": "", "label": "yes"},
    }
    assert rows[2]["raw"] == "oops"


def test_normalised_keeps_texts_of_signs_apart() -> None:
    assert normalised("Don't  STOP.") == normalised("dont stop")
    assert normalised("!!") != normalised("??")
