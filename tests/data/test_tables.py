from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.data.tables import Row, WeakLabel, read_jsonl, read_table, write_jsonl
from trimtab.errors import DataError


def test_tables_come_back_as_written(tmp_path: Path) -> None:
    rows = [Row("a", "grün\n", 1, "g", "test"), Row("b", "\u2028", 0)]
    labels = [WeakLabel("a", "x", [0.25, 0.75], 1, "m", 0.75, "weak")]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "labels.jsonl", labels)
    assert read_table(tmp_path / "rows.jsonl", Row) == rows
    assert read_table(tmp_path / "labels.jsonl", WeakLabel) == labels
    assert read_jsonl(tmp_path / "labels.jsonl")[0]["soft_label"] == [0.25, 0.75]
    with pytest.raises(DataError, match=r"labels.jsonl, row 1: not a Row"):
        read_table(tmp_path / "labels.jsonl", Row)
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\noops\n')
    with pytest.raises(DataError, match=r"bad.jsonl, line 2: not JSON"):
        read_jsonl(tmp_path / "bad.jsonl")
