"""Row types of the files that stages hand on, and JSON Lines in and out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from trimtab.errors import DataError

Part = Literal["train", "test"]
Message = dict[str, str]
Prompt = str | list[Message]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """An example with its truth, where it has one. Rows of one group never go to different splits."""

    id: str
    text: str
    label: int | None
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


@dataclass(frozen=True, slots=True)
class Completion:
    """A continuation of a prompt. `ended`: it is whole, so an end token belongs after it."""

    text: str
    ended: bool = True


@dataclass(frozen=True, slots=True)
class Candidates:
    """A prompt, a text or messages with a role and a content, and completions of it, if there are any yet."""

    id: str
    prompt: Prompt
    candidates: list[Completion]
    group: str | None = None
    part: Part = "train"


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


def read_candidates(path: Path) -> list[Candidates]:
    """Prompts with their completions. Raises DataError for a line with other fields."""
    return [
        replace(row, candidates=[Completion(**completion) for completion in row.candidates])
        for row in read_table(path, Candidates)
    ]
