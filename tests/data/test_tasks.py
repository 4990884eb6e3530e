from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from trimtab.data.tables import Row
from trimtab.data.tasks import ReadResult, read_task, scan_task
from trimtab.errors import DataError
from trimtab.parts import Columns, TaskSpec

PLAIN = [{"text": f"text {i}", "label": i % 2} for i in range(6)]


def lines(*rows: object) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"


def save(path: Path, *rows: object) -> Path:
    path.write_text(lines(*rows), encoding="utf-8")
    return path


def read(source: object, **fields: object) -> ReadResult:
    return read_task(TaskSpec(source=str(source), **fields))


def refusals(result: ReadResult) -> list[tuple[int, str]]:
    return [(bad.row_number, bad.reason) for bad in result.rejected]


def test_labels_as_words_bools_and_the_form_of_the_first_w2s_code(tmp_path: Path) -> None:
    words = read(save(tmp_path / "w.jsonl", *({"text": t, "label": t} for t in ("pos", "neg", "mixed"))))
    assert words.classes == ("mixed", "neg", "pos")
    assert [row.label for row in words.rows] == [2, 1, 0]
    bools = read(save(tmp_path / "b.jsonl", {"text": "a", "label": True}, {"text": "b", "label": False}))
    assert [row.label for row in bools.rows] == [1, 0]
    assert bools.classes is None
    old = [{"txt": f"t{i}", "hard_label": i, "soft_label": [1 - i, i]} for i in range(2)]
    result = read(save(tmp_path / "o.jsonl", *old))
    assert [(row.text, row.label) for row in result.rows] == [("t0", 0), ("t1", 1)]
    assert result.columns == {"text": "txt", "label": "hard_label"}


def test_columns_and_template_override_detection(tmp_path: Path) -> None:
    rows = [{"text": "no", "body": f"b{i}", "n": i, "y": "ab"[i % 2], "fam": i // 2, "key": i} for i in range(4)]
    path = save(tmp_path / "x.jsonl", *rows)
    columns = Columns(text="body", label="y", id="key", group="fam")
    result = read(path, columns=columns, template="{n}: {text} {{ok}}")
    assert result.rows[3] == Row("3", "3: b3 {ok}", 1, "1", "train")
    with pytest.raises(DataError, match=r"columns.text: no column 'bodi'; did you mean 'body'"):
        read(path, columns=Columns(text="bodi", label="y"))
    with pytest.raises(DataError, match=r"no column for the label; name one as columns.label; there is: body, fam"):
        read(path)
    with pytest.raises(DataError, match=r"no column 'bod' for the template; did you mean 'body'"):
        read(path, columns=columns, template="{bod}")
    for name in ("y", "label"):
        with pytest.raises(DataError, match="is the label, which a text must not show"):
            read(path, columns=columns, template="{text} {" + name + "}")


@pytest.mark.parametrize(
    "template",
    ["{text.__class__}", "{text[0]}", "{text!r}", "{text:>99}", "{text:{n}}", "{}", "{0}", "{text", "no column", "}"],
)
def test_unsafe_templates_are_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(DataError, match="template"):
        read(save(tmp_path / "x.jsonl", *PLAIN), template=template)


def test_bad_rows_are_set_aside_with_their_line_and_reason(tmp_path: Path) -> None:
    good = [{"id": f"g{i}", "text": f"t{i}", "label": i % 2} for i in range(4)]
    path = save(
        tmp_path / "x.jsonl",
        *good,
        "{not json",
        "",
        "[1]",
        {"id": "a", "label": 1},
        {"id": "b", "text": "  ", "label": 1},
        {"id": "c", "text": 5, "label": 1},
        {"id": "d", "text": "x"},
        {"id": "e", "text": "x", "label": 7},
        {"id": "f", "text": "x", "label": -1},
        {"id": "h", "text": "x", "label": 0.5},
        {"id": "i", "text": "x", "label": "yes"},
        {"id": "g0", "text": "x", "label": 1},
        {"id": None, "text": "x", "label": 1},
        r'{"id": "s", "text": "\ud800", "label": 1}',
    )
    result = scan_task(TaskSpec(source=str(path)))
    assert [row.id for row in result.rows] == ["g0", "g1", "g2", "g3"]
    assert refusals(result) == [
        (5, "not JSON"),
        (7, "not a JSON object"),
        (8, "no text"),
        (9, "empty text"),
        (10, "text is not a text"),
        (11, "no label"),
        (12, "label outside 0..1, the classes without a gap"),
        (13, "label outside 0..1, the classes without a gap"),
        (14, "label is neither a whole number nor a word"),
        (15, "label is a word among numbers"),
        (16, "duplicate id"),
        (17, "no id"),
        (18, "not UTF-8"),
    ]
    assert result.rejected[0].raw == "{not json"
    assert (result.rejected[7].source, result.rejected[7].raw["id"]) == ("x.jsonl", "f")


@pytest.mark.chaos
def test_too_many_bad_rows_stop_the_reading(tmp_path: Path) -> None:
    path = save(tmp_path / "x.jsonl", *PLAIN, "oops", {"text": "x"}, {"label": 1}, {"label": 0})
    assert len(read(path, max_bad_fraction=0.4).rows) == 6
    with pytest.raises(DataError) as caught:
        read(path, max_bad_fraction=0.39)
    for part in ("x.jsonl", "4 of 10 rows", "2 x no text", "1 x not JSON", "row 7: not JSON: oops", "max_bad_fraction"):
        assert part in str(caught.value)


def test_multiple_choice_gives_a_right_and_a_wrong_candidate(tmp_path: Path) -> None:
    rows = [{"id": f"q{i}", "question": f"Q{i}?", "choices": ["a", "b", "c", ""], "label": i % 3} for i in range(30)]
    rows += [{"id": "word", "question": "W?", "choices": ["2", "1"], "label": "1"}]
    path = save(tmp_path / "x.jsonl", *rows)
    result = read(path)
    assert (result.format, result.n_classes, result.rejected) == ("multiple_choice", 2, [])
    for i in range(30):
        right, wrong = result.rows[2 * i : 2 * i + 2]
        assert (right.label, right.id, right.text) == (1, f"q{i}-{i % 3}", f"Q: Q{i}?\nA: {'abc'[i % 3]}")
        assert wrong.label == 0
        assert wrong.text[-1] in set("abc") - {right.text[-1]}
        assert right.group == wrong.group == f"q{i}"
    assert result.rows[-2].text == "Q: W?\nA: 1"
    assert len({row.text[-1] for row in result.rows if row.label == 0 and row.group != "word"}) == 3
    shuffled = random.Random(0).sample(rows, len(rows))
    assert set(read(save(tmp_path / "y.jsonl", *shuffled)).rows) == set(result.rows)
    framed = read(path, template="{question} Is it {choice}?")
    assert framed.rows[0].text == "Q0? Is it a?"


def test_bad_questions(tmp_path: Path) -> None:
    base = {"question": "Q", "choices": ["a", "b"], "label": 0}
    changes = [
        {},
        {},
        {"question": ""},
        {"question": "R", "choices": "a b"},
        {"question": "S", "choices": ["a", 1]},
        {"question": "T", "label": 2},
        {"question": "U", "label": "c"},
        {"question": "V", "choices": ["a", "a "]},
        {"question": "W", "label": None},
        {"question": "X", "choices": ["", "b"]},
    ]
    result = scan_task(TaskSpec(source=str(save(tmp_path / "x.jsonl", *(base | change for change in changes)))))
    assert len(result.rows) == 2
    assert refusals(result) == [
        (2, "duplicate question"),
        (3, "no question"),
        (4, "choices is not a list of texts"),
        (5, "choices is not a list of texts"),
        (6, "label is not one of the choices"),
        (7, "label is not one of the choices"),
        (8, "no wrong candidate"),
        (9, "no label"),
        (10, "label is not one of the choices"),
    ]


def test_ids_from_the_text_do_not_hang_on_the_order(tmp_path: Path) -> None:
    rows = [*PLAIN, {"text": "same", "label": 0}, {"text": "same", "label": 1}, {"text": "same", "label": 1}]
    one = read(save(tmp_path / "a.jsonl", *rows))
    two = read(save(tmp_path / "b.jsonl", *rows[::-1]))
    assert set(one.rows) == set(two.rows)
    assert len({row.id for row in one.rows}) == len(rows)
    assert [len(ids) for ids in one.conflicts] == [3]


def test_ids_that_start_anew_in_the_test_part_stay_apart(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / f"{part}.jsonl", *({"id": i, "text": f"{part} {i}", "label": i % 2} for i in range(3)))
    result = read(tmp_path)
    assert [row.id for row in result.rows] == ["0", "1", "2", "test/0", "test/1", "test/2"]
