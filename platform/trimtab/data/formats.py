"""One raw record into rows: the template, the labels, and questions with choices as binary rows."""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trimtab.data.sources import Record
from trimtab.data.tables import Row
from trimtab.errors import DataError

Format = Literal["classification", "multiple_choice"]


class BadRow(Exception):
    """Why a record is set aside."""


def stable_hash(*parts: object) -> str:
    """The same 16 hex digits on every machine and in every run."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def template_fields(template: str) -> list[str]:
    """The columns that a template names. Raises DataError for anything but plain {column} fields."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"template {template!r}: {error}; write a brace of the text twice: {{{{ or }}}}") from error
    fields = []
    for _, name, spec, conversion in parsed:
        if name is None:
            continue
        if spec or conversion or not re.fullmatch(r"[^\W\d][\w -]*", name):
            raise DataError(f"template {template!r}: only plain column names may stand in braces, as in {{text}}")
        fields.append(name)
    if not fields:
        raise DataError(f"template {template!r}: names no column, so every row would have the same text")
    return fields


def label_names(values: Iterable[Any]) -> list[int] | list[str]:
    """The classes in the order of their numbers: words sorted, or 0..K-1 as far as there is no gap."""
    labels = [label_of(value) for value in values]
    words = Counter(label for label in labels if isinstance(label, str))
    numbers = Counter(label for label in labels if isinstance(label, int))
    if words.total() > numbers.total():
        return sorted(words)
    k = 0
    while k in numbers:
        k += 1
    return list(range(k))


def label_of(value: Any) -> int | str | None:
    """A label as a number where it is one or reads like one, else as a word, else None."""
    if isinstance(value, str):
        value = value.strip()
        return int(value) if re.fullmatch(r"[+-]?[0-9]{1,9}", value) else value or None
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return None


@dataclass
class RowReader:
    """Reads records of one format; `read` raises BadRow with the reason."""

    kind: Format
    columns: dict[str, str]
    template: str
    labels: list[int] | list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.index = {name: i for i, name in enumerate(self.labels)}
        self.words = tuple(name for name in self.labels if isinstance(name, str))
        self.pieces = [(text, name) for text, name, _, _ in string.Formatter().parse(self.template)]
        self.seen: set[tuple[str, str]] = set()

    def read(self, record: Record) -> list[Row]:
        """One row, or a right and a wrong candidate of a question. Without an id column a row's id stays empty."""
        if record.problem:
            raise BadRow(record.problem)
        own = {role: record.raw.get(name) for role, name in self.columns.items()}
        if self.kind == "classification":
            return [self._one(record, own)]
        return self._candidates(record, own)

    def _one(self, record: Record, own: Mapping[str, Any]) -> Row:
        text = self._text(record.raw | own)
        label = label_of(own["label"])
        if label is None:
            missing = own["label"] is None or own["label"] == ""
            raise BadRow("no label" if missing else "label is neither a whole number nor a word")
        if label not in self.index:
            if isinstance(label, str) or self.words:
                raise BadRow(
                    "label is a word among numbers" if isinstance(label, str) else "label is a number among words"
                )
            raise BadRow(f"label outside 0..{len(self.labels) - 1}, the classes without a gap")
        return Row(self._id(record, own, ""), text, self.index[label], _group(own), record.part)

    def _candidates(self, record: Record, own: Mapping[str, Any]) -> list[Row]:
        question, choices = own["question"], own["choices"]
        if not isinstance(question, str) or not question.strip():
            raise BadRow("no question")
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            raise BadRow("choices is not a list of texts")
        right = right_choice(own["label"], choices)
        wrong = [i for i, choice in enumerate(choices) if choice.strip() not in ("", choices[right].strip())]
        if not wrong:
            raise BadRow("no wrong candidate")
        key = self._id(record, own, stable_hash(question))
        chosen = min(wrong, key=lambda i: stable_hash(key, choices[i]))
        rows = []
        for i, label in ((right, 1), (chosen, 0)):
            made = {"question": question, "choice": choices[i], "text": f"Q: {question}\nA: {choices[i]}"}
            text = self._text(record.raw | own | made)
            rows.append(Row(f"{key}-{i}", text, label, _group(own) or key, record.part))
        return rows

    def _id(self, record: Record, own: Mapping[str, Any], otherwise: str) -> str:
        if "id" in self.columns and (own["id"] is None or own["id"] == ""):
            raise BadRow("no id")
        key = str(own["id"]) if "id" in self.columns else otherwise
        if key and (record.part, key) in self.seen:
            raise BadRow("duplicate id" if "id" in self.columns else "duplicate question")
        self.seen.add((record.part, key))
        return key

    def _text(self, values: Mapping[str, Any]) -> str:
        text = ""
        for literal, name in self.pieces:
            text += literal
            if name is None:
                continue
            value = values.get(name)
            if value is None:
                raise BadRow(f"no {name}")
            if not isinstance(value, str) and (name == "text" or not isinstance(value, int | float)):
                raise BadRow(f"{name} is not a text")
            if not str(value).strip():
                raise BadRow(f"empty {name}")
            text += str(value)
        return text


def right_choice(label: Any, choices: Sequence[str]) -> int:
    """Place of the right answer: the answer's text, else its number from 0."""
    stripped = [choice.strip() for choice in choices]
    if isinstance(label, str) and label.strip() and label.strip() in stripped:
        return stripped.index(label.strip())
    value = None if isinstance(label, bool) else label_of(label)
    if value is None:
        raise BadRow("no label")
    if isinstance(value, int) and 0 <= value < len(choices) and stripped[value]:
        return value
    raise BadRow("label is not one of the choices")


def _group(own: Mapping[str, Any]) -> str | None:
    value = own.get("group")
    return None if value is None or value == "" else str(value)
