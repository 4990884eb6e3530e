"""A look at a data set before anything is trained on it: what was read, what was not, what is odd."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

from trimtab.data.formats import Format
from trimtab.data.tables import Row
from trimtab.data.tasks import Rejected, scan_task
from trimtab.parts import TaskSpec

SHOWN = 5


@dataclass(frozen=True)
class Lengths:
    """How long texts are. `bins` are (shortest, longest, rows), each twice as wide as the one before."""

    shortest: int
    median: float
    p95: int
    longest: int
    bins: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Duplicates:
    """Rows beyond the first of each text, and test rows whose text is in train, by the text as it is or normalised."""

    within: int
    test_in_train: int
    near_within: int
    near_test_in_train: int
    conflicts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class DataReport:
    """What `examine` found. `labels`: part -> label -> rows; `rejected`: reason -> (source, row number) of each."""

    source: str
    format: Format
    columns: dict[str, str]
    classes: tuple[str, ...] | None
    n_records: int
    n_rows: int
    n_groups: int
    sample: tuple[Row, ...]
    labels: dict[str, dict[int, int]]
    characters: Lengths | None
    words: Lengths | None
    duplicates: Duplicates
    rejected: dict[str, tuple[tuple[str, int], ...]]
    max_bad_fraction: float

    @property
    def n_rejected(self) -> int:
        return sum(map(len, self.rejected.values()))

    @property
    def usable(self) -> bool:
        """Whether `read_task` would accept the data set."""
        return self.n_rows > 0 and self.n_rejected <= self.max_bad_fraction * self.n_records


def examine(task: TaskSpec) -> tuple[DataReport, list[Rejected]]:
    """What a data set holds, however many rows are bad, and the rejected rows themselves for `write_quarantine`.

    Raises DataError when it cannot be read at all.
    """
    found = scan_task(task)
    rows = found.rows
    labels: dict[str, Counter[int]] = defaultdict(Counter)
    for row in rows:
        labels[row.part][row.label] += 1
    report = DataReport(
        source=task.source,
        format=found.format,
        columns=found.columns,
        classes=found.classes,
        n_records=found.n_records,
        n_rows=len(rows),
        n_groups=len({row.group for row in rows if row.group is not None}),
        sample=tuple(rows[:3]),
        labels={part: dict(sorted(labels[part].items())) for part in sorted(labels, reverse=True)},
        characters=lengths_of([len(row.text) for row in rows]),
        words=lengths_of([len(row.text.split()) for row in rows]),
        duplicates=_duplicates(rows, found.conflicts),
        rejected=by_reason(found.rejected),
        max_bad_fraction=task.max_bad_fraction,
    )
    return report, found.rejected


def by_reason(rejected: Iterable[Rejected]) -> dict[str, tuple[tuple[str, int], ...]]:
    """Reason -> (source, row number) of each row rejected for it."""
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for bad in rejected:
        places[bad.reason].append((bad.source, bad.row_number))
    return {reason: tuple(found) for reason, found in places.items()}


def write_quarantine(rejected: Iterable[Rejected], path: Path) -> None:
    """The rejected rows as JSON Lines: source, row_number, reason, raw."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for bad in rejected:
            file.write(json.dumps(asdict(bad), default=str) + "\n")


def normalised(text: str) -> str:
    """The text without case, punctuation and space: what near-duplicates share."""
    return "".join(c for c in text.casefold() if c.isalnum()) or text


def lengths_of(values: list[int]) -> Lengths | None:
    """Range, middle and spread; None of nothing."""
    if not values:
        return None
    values = sorted(values)
    bins = Counter(value.bit_length() for value in values)
    spans = tuple((1 << (b - 1) if b else 0, (1 << b) - 1, bins[b]) for b in range(min(bins), max(bins) + 1))
    return Lengths(values[0], median(values), values[math.ceil(0.95 * len(values)) - 1], values[-1], spans)


def _duplicates(rows: Sequence[Row], conflicts: Sequence[tuple[str, ...]]) -> Duplicates:
    within, across = _repeats(rows, lambda text: text)
    near_within, near_across = _repeats(rows, normalised)
    return Duplicates(within, across, near_within, near_across, tuple(conflicts))


def _repeats(rows: Sequence[Row], key: Callable[[str], str]) -> tuple[int, int]:
    """Rows beyond the first of their text in their part; test rows whose text is in train."""
    train = Counter(key(row.text) for row in rows if row.part == "train")
    test = Counter(key(row.text) for row in rows if row.part == "test")
    extra = train.total() - len(train) + test.total() - len(test)
    return extra, sum(n for text, n in test.items() if text in train)


def render(report: DataReport) -> str:
    """The report as plain text."""
    parts = ", ".join(f"{role} from {name!r}" for role, name in report.columns.items())
    groups = f", {report.n_groups} groups" if report.n_groups else ""
    lines = [
        f"{report.source}: {report.format}; {parts}",
        f"{report.n_rows} rows from {report.n_records} records{groups}; {report.n_rejected} records rejected",
        "",
        *_label_lines(report),
        *length_lines("characters", report.characters),
        *length_lines("words", report.words),
        *_duplicate_lines(report.duplicates),
        *rejected_lines(report),
        "First rows:",
        *(f"  {row.id} [{_name(report, row.label)}] {short(row.text)}" for row in report.sample),
    ]
    return "\n".join(lines)


def short(text: str) -> str:
    """What a terminal can show of a text on one line."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= 160 else text[:157] + "..."


def _name(report: DataReport, label: int) -> str:
    return f"{label} {report.classes[label]}" if report.classes else str(label)


def _label_lines(report: DataReport) -> list[str]:
    lines = []
    for part, counts in report.labels.items():
        total = sum(counts.values())
        shares = ", ".join(f"{short(_name(report, c))}: {n} ({n / total:.1%})" for c, n in counts.items())
        lines.append(f"Labels, {part}: {shares}")
    return lines


def length_lines(unit: str, lengths: Lengths | None) -> list[str]:
    """Lengths in words and as a histogram."""
    if lengths is None:
        return []
    highest = max(n for _, _, n in lengths.bins)
    head = (
        f"Length in {unit}: {lengths.shortest} to {lengths.longest}, median {lengths.median:g}, "
        f"95 % have at most {lengths.p95}"
    )
    return [head, *(f"  {a:>6}-{b:<6} {'#' * math.ceil(40 * n / highest):<40} {n}" for a, b, n in lengths.bins)]


def _duplicate_lines(found: Duplicates) -> list[str]:
    lines = [
        f"Repeated texts: {found.within}; {found.near_within} when case, punctuation and space do not count",
        f"Test texts that are in train: {found.test_in_train}; {found.near_test_in_train} likewise",
    ]
    if found.conflicts:
        shown = "; ".join(", ".join(ids) for ids in found.conflicts[:SHOWN])
        lines.append(f"Texts with more than one label: {len(found.conflicts)} (rows {short(shown)})")
    return lines


class Checked(Protocol):
    """The part of a report that says what could not be used."""

    @property
    def rejected(self) -> dict[str, tuple[tuple[str, int], ...]]: ...
    @property
    def n_rejected(self) -> int: ...
    @property
    def n_records(self) -> int: ...
    @property
    def max_bad_fraction(self) -> float: ...
    @property
    def usable(self) -> bool: ...


def rejected_lines(report: Checked) -> list[str]:
    """How many rows were rejected for what, and where the first of them are."""
    lines = []
    for reason, places in sorted(report.rejected.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(f"{source}:{number}" for source, number in places[:SHOWN])
        more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
        lines.append(f"Rejected, {reason}: {len(places)} ({shown}{more})")
    if not report.usable:
        share = report.n_rejected / report.n_records
        lines.append(f"NOT USABLE: {share:.1%} rejected, max_bad_fraction is {report.max_bad_fraction:.1%}")
    return lines
