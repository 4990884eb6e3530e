"""A task's source read into rows (id, text, label, group, part); what cannot be used is set aside with its reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any, Protocol

from trimtab.data.formats import BadRow, Format, RowReader, label_names, stable_hash, template_fields
from trimtab.data.sources import Record, nearest, read_records
from trimtab.data.tables import Row
from trimtab.errors import DataError
from trimtab.parts import TaskSpec

USUAL = {
    "text": ("text", "txt", "sentence", "content", "statement", "prompt"),
    "label": ("label", "hard_label", "labels", "target", "class", "answer", "correct", "gold"),
    "id": ("id", "uid", "example_id"),
    "group": ("group", "group_id"),
    "question": ("question", "query", "prompt"),
    "choices": ("choices", "options", "candidates", "endings"),
}
ROLES: dict[Format, tuple[str, ...]] = {
    "classification": ("text", "label", "id", "group"),
    "multiple_choice": ("question", "choices", "label", "id", "group"),
}


@dataclass(frozen=True, slots=True)
class Rejected:
    """A raw row that was set aside. `row_number` counts as Record.number does."""

    source: str
    row_number: int
    reason: str
    raw: Any


@dataclass(frozen=True)
class ReadResult:
    """Rows of a task and how they were found.

    columns: role -> column. classes: names in the order of the labels, where labels were words. conflicts: ids of rows
    that share a text and differ in the label; they stay in.
    """

    rows: list[Row]
    rejected: list[Rejected]
    format: Format
    columns: dict[str, str]
    n_classes: int
    classes: tuple[str, ...] | None
    conflicts: list[tuple[str, ...]]
    n_records: int


def read_task(task: TaskSpec) -> ReadResult:
    """The rows of a task.

    Raises DataError for an absent source, absent columns, an unsafe template, no rows, or more than `max_bad_fraction`
    bad rows.
    """
    result = scan_task(task)
    check_usable(task.source, result, task.max_bad_fraction)
    return result


class Scanned(Protocol):
    """What was read, whatever of."""

    @property
    def rows(self) -> Sized: ...
    @property
    def rejected(self) -> list[Rejected]: ...
    @property
    def n_records(self) -> int: ...


def check_usable(source: str, found: Scanned, max_bad_fraction: float) -> None:
    """Raises DataError when there are no rows or more than `max_bad_fraction` bad ones."""
    bad = len(found.rejected)
    if found.rows and bad <= max_bad_fraction * found.n_records:
        return
    reasons = ", ".join(f"{n} x {reason}" for reason, n in Counter(r.reason for r in found.rejected).most_common())
    first = "; ".join(f"{r.source}, row {r.row_number}: {r.reason}: {str(r.raw)[:200]}" for r in found.rejected[:3])
    raise DataError(
        f"{source}: {bad} of {found.n_records} rows cannot be used ({reasons}); first: {first}. Repair them, map "
        f"`columns`, or raise max_bad_fraction (now {max_bad_fraction:g})"
    )


def scan_task(task: TaskSpec) -> ReadResult:
    """As `read_task`, however many rows are bad."""
    fields = template_fields(task.template)
    records = _records(task)
    good = [record for record in records if record.problem is None]
    present = Counter(key for record in good for key in record.raw)
    kind = _format(task, present)
    columns = _columns(task, kind, present)
    _check_template(task, kind, columns, present, fields)
    labels = label_names(r.raw.get(columns["label"]) for r in good) if kind == "classification" else []
    reader = RowReader(kind, columns, task.template, labels)
    rows, rejected = [], []
    for record in records:
        try:
            rows += reader.read(record)
        except BadRow as reason:
            rejected.append(Rejected(record.source, record.number, str(reason), record.raw))
    rows = _apart(rows if "id" in columns or kind == "multiple_choice" else _with_ids(rows))
    n_classes = len(labels) if kind == "classification" else 2
    return ReadResult(
        rows, rejected, kind, columns, n_classes, reader.words or None, _conflicts(rows), n_records=len(records)
    )


def _records(task: TaskSpec) -> list[Record]:
    records = read_records(task.source)
    if task.test is not None:
        if any(record.part == "test" for record in records):
            raise DataError(f"{task.source}: brings its own test rows, so `test: {task.test}` cannot be used beside it")
        records += [record for record in read_records(task.test, "test") if record.part == "test"]
    if not records:
        raise DataError(f"{task.source}: holds no rows")
    return records


def _detect(task: TaskSpec, role: str, present: Mapping[str, int]) -> str | None:
    return getattr(task.columns, role) or next((name for name in USUAL[role] if name in present), None)


def _format(task: TaskSpec, present: Mapping[str, int]) -> Format:
    if task.format != "auto":
        return task.format
    both = _detect(task, "question", present) and _detect(task, "choices", present)
    return "multiple_choice" if both else "classification"


def _columns(task: TaskSpec, kind: Format, present: Mapping[str, int]) -> dict[str, str]:
    found = {role: name for role in ROLES[kind] if (name := _detect(task, role, present))}
    for role, name in found.items():
        if present and name not in present:
            raise DataError(f"{task.source}: columns.{role}: no column {name!r}; {nearest(name, present)}")
    for role in ROLES[kind]:
        if present and role not in found and role not in ("id", "group", "text"):
            raise DataError(
                f"{task.source}: no column for the {role}; name one as columns.{role}; {nearest('', present)}"
            )
    return found


def _check_template(
    task: TaskSpec, kind: Format, columns: Mapping[str, str], present: Mapping[str, int], fields: list[str]
) -> None:
    made = {"text", "question", "choice"} if kind == "multiple_choice" else set(columns)
    for name in fields:
        if name in ("label", columns.get("label")):
            raise DataError(f"{task.source}: template: {name!r} is the label, which a text must not show")
        if present and name not in made and name not in present:
            way = "; name it as columns.text or write a template" if name == "text" else ""
            raise DataError(f"{task.source}: no column {name!r} for the template{way}; {nearest(name, present)}")


def _with_ids(rows: list[Row]) -> list[Row]:
    """Ids from the text; rows of one text are numbered in the order of part and label, not of the file."""
    places: dict[str, list[int]] = defaultdict(list)
    for i in sorted(range(len(rows)), key=lambda i: (rows[i].part == "test", rows[i].label)):
        places[rows[i].text].append(i)
    named = list(rows)
    for text, same in places.items():
        for n, i in enumerate(same, start=1):
            named[i] = replace(rows[i], id=stable_hash(text) + (f"-{n}" if n > 1 else ""))
    return named


def _apart(rows: list[Row]) -> list[Row]:
    """Ids that count anew in the test part get a prefix there."""
    train = {row.id for row in rows if row.part == "train"}
    if train.isdisjoint(row.id for row in rows if row.part == "test"):
        return rows
    return [replace(row, id=f"test/{row.id}") if row.part == "test" else row for row in rows]


def _conflicts(rows: list[Row]) -> list[tuple[str, ...]]:
    by_text: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_text[row.text].append(row)
    return [tuple(r.id for r in same) for same in by_text.values() if len({r.label for r in same}) > 1]
