"""Row types of the files that stages hand on, and JSON Lines in and out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from trimtab.errors import DataError

Part = Literal["train", "test"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """An example with its truth. Rows of one group never go to different splits."""

    id: str
    text: str
    label: int
    group: str | None = None
    part: Part = "train"


@dataclass(frozen=True, slots=True)
class WeakLabel:
    """An example as a student sees it: a supervisor's label, never the truth."""

    id: str
    text: str
    soft_label: list[float]
    hard_label: int
    weak_model: str
    weak_confidence: float
    label_source: str


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """One object a line, from dataclasses or mappings; UTF-8, keys in their own order."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            values = asdict(row) if is_dataclass(row) and not isinstance(row, type) else dict(row)
            file.write(json.dumps(values, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every line as a dict; blank lines are passed over. Raises DataError with the line that is no JSON object."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(row, Mapping):
                raise DataError(f"{path}, line {number}: not a JSON object")
            rows.append(dict(row))
    return rows


def read_table(path: Path, kind: type[T]) -> list[T]:
    """Rows of one type, as `write_jsonl` wrote them. Raises DataError for a line with other fields."""
    rows = []
    for number, values in enumerate(read_jsonl(path), start=1):
        try:
            rows.append(kind(**values))
        except TypeError as error:
            raise DataError(f"{path}, row {number}: not a {kind.__name__} ({error})") from error
    return rows
