from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from trimtab.data.tables import Row
from trimtab.data.tasks import ReadResult, read_task, scan_task
from trimtab.errors import DataError
from trimtab.parts import TaskSpec

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
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


def test_every_file_format_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = lines(*PLAIN)
    for name, data in {
        "a.jsonl": text,
        "a.json": json.dumps(PLAIN),
        "a.csv": "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\r\n' for row in PLAIN),
        "a.tsv": "\ufefftext\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in PLAIN),
    }.items():
        (tmp_path / name).write_bytes(data.encode())
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data.encode()))
    pq.write_table(pa.Table.from_pylist(PLAIN), tmp_path / "a.parquet")
    expected = read(tmp_path / "a.jsonl")
    assert [(row.text, row.label) for row in expected.rows] == [(row["text"], row["label"]) for row in PLAIN]
    assert (expected.n_classes, expected.format, expected.columns) == (
        2,
        "classification",
        {"text": "text", "label": "label"},
    )
    for name in ("a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.csv.gz", "a.tsv.gz"):
        assert read(tmp_path / name).rows == expected.rows, name


def test_a_folder_a_prefix_and_a_test_source_name_the_parts(tmp_path: Path) -> None:
    save(tmp_path / "x.train.jsonl", *PLAIN[:4])
    save(tmp_path / "x.test.jsonl", *PLAIN[4:])
    both = read(tmp_path)
    assert [row.part for row in both.rows] == ["train"] * 4 + ["test"] * 2
    assert read(tmp_path / "x").rows == both.rows
    train, test = str(tmp_path / "x.train.jsonl"), str(tmp_path / "x.test.jsonl")
    assert read(train, test=test).rows == both.rows
    assert read(train, test=str(tmp_path)).rows == both.rows
    with pytest.raises(DataError, match="brings its own test rows"):
        read(tmp_path, test=test)
    save(tmp_path / "y.train.jsonl", *PLAIN)
    with pytest.raises(DataError, match=r"several data sets \(x, y\)"):
        read(tmp_path)


def test_csv_rows_are_named_by_the_line_where_they_start(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('text,label\n"two\nlines",0\nshort\n"a"b,1\nlast,1\n')
    result = scan_task(TaskSpec(source=str(path)))
    assert [row.text for row in result.rows] == ["two\nlines", "last"]
    assert refusals(result) == [(4, "wrong number of fields"), (5, "not CSV")]
    path.write_bytes(b"text,label\nfine,0\ncaf\xe9,1\n")
    assert refusals(scan_task(TaskSpec(source=str(path)))) == [(3, "not UTF-8")]


def test_absent_and_unreadable_sources_say_the_way_out(tmp_path: Path) -> None:
    save(tmp_path / "reviews.jsonl", *PLAIN)
    for name, says in {
        "review.jsonl": "did you mean 'reviews.jsonl'",
        "nowhere/x.jsonl": "nowhere does not exist",
    }.items():
        with pytest.raises(DataError, match=says):
            read(tmp_path / name)
    with pytest.raises(DataError, match="no file called train"):
        read(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "twice.csv").write_text("text,text\n")
    for name, says in {
        "notes.txt": "must end in one of .jsonl",
        "bad.jsonl.gz": "bad.jsonl.gz: cannot be read",
        "object.json": "one list of objects",
        "empty.jsonl": "holds no rows",
        "twice.csv": "occurs twice",
    }.items():
        with pytest.raises(DataError, match=says):
            read(tmp_path / name)
    with pytest.raises(DataError, match="did you mean 'valence'"):
        read("builtin:valance")


@pytest.mark.slow
def test_a_hub_set_that_cannot_be_had_says_the_way_out() -> None:
    code = "from trimtab.data.sources import read_records; read_records('no/such:train')"
    env = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "DataError: no/such: no local file or folder of that name" in done.stderr
    assert "give a local file" in done.stderr


def test_valence_is_as_documented() -> None:
    result = read("builtin:valence")
    counts = Counter(row.label for row in result.rows)
    assert (2 * min(counts.values()), result.rejected) == (5634, [])
    rows = {row.id: row for row in result.rows}
    assert len(rows) == len(result.rows)
    text = 'The feeling of the word "abandon" is'
    assert rows["valence-abandon"] == Row("valence-abandon", text, 0, "aband", "train")
    assert rows["valence-abandoned"].group == "aband"
    assert read("builtin:valence", template='"{word}":').rows[0].text.startswith('"')


@pytest.mark.parametrize(
    ("name", "train", "test"), [("ai_risk_statements", 4420, 1852), ("truthfulqa_judge", 6000, 1500)]
)
def test_shared_files_are_read_without_rejects(name: str, train: int, test: int) -> None:
    source = SHARED / "classification" / name
    if not source.with_name(f"{name}.train.jsonl").exists():
        pytest.skip("the shared data are not beside the repository")
    result = read(source, max_bad_fraction=0)
    assert Counter(row.part for row in result.rows) == {"train": train, "test": test}
    assert result.n_classes == 2


def test_examining_and_splitting_import_nothing_heavy(tmp_path: Path) -> None:
    path = save(tmp_path / "x.jsonl", *PLAIN)
    code = (
        "import sys, trimtab.data.splits\n"
        "from trimtab.data.doctor import TaskSpec, examine\n"
        f"examine(TaskSpec(source={str(path)!r}))\n"
        "sys.exit(bool({'torch.nn', 'transformers', 'datasets', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
