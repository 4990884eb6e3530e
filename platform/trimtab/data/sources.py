"""Where raw rows come from: a built-in data set, a local file or folder, or a data set of the Hugging Face hub."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.data.builtin import BUILTIN
from trimtab.data.tables import Part
from trimtab.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz", ".tsv.gz")
PART_FILE = re.compile(
    r"(?:(?P<name>.+)\.)?(?P<part>train|test)(?:-\d+-of-\d+)?(?:" + "|".join(map(re.escape, SUFFIXES)) + ")"
)
HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*(?:/[\w.-]+)?)(?::(?P<split>[^:/]+))?")


@dataclass(frozen=True, slots=True)
class Record:
    """A raw row, and what keeps it from being read, if anything does.

    `number` counts from 1: the line where the row starts in jsonl, csv and tsv, its position elsewhere.
    """

    source: str
    number: int
    raw: Any
    part: Part
    problem: str | None = None


def read_records(source: str, part: Part = "train") -> list[Record]:
    """Every raw row of a source; `part` holds where the source itself says nothing of train and test.

    Raises DataError with the way out when the source is absent or no such thing can be read.
    """
    found = _located(source)
    if isinstance(found, Path):
        return list(_builtin(source, found, part) if source.startswith("builtin:") else _file(found, part))
    if isinstance(found, re.Match):
        return list(_hub(found["id"], found["split"], part))
    if part == "train" and all(own == "test" for _, own in found):
        raise DataError(f"{source}: there is a test file but no train file")
    return [record for file, own in found for record in _file(file, own)]


def source_problem(source: str) -> str | None:
    """What can be seen to be wrong with a source without reading it."""
    try:
        _located(source)
    except DataError as error:
        return str(error)
    return None


def _located(source: str) -> Path | list[tuple[Path, Part]] | re.Match[str]:
    """The one file of a source, or its train and test files, or its hub id. Raises DataError when it is none."""
    if source.startswith("builtin:"):
        name = source.removeprefix("builtin:")
        if name not in BUILTIN:
            raise DataError(f"no built-in data set {name!r}; {nearest(name, BUILTIN)}")
        return BUILTIN[name].file()
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if found := _part_files(path):
        return found
    if path.is_dir():
        raise DataError(f"{source}: the folder holds no file called train.* or test.* ({_suffixes()})")
    hub = HUB_ID.fullmatch(source)
    if hub is None or source.endswith(SUFFIXES) or (path.parent != Path() and path.parent.is_dir()):
        raise DataError(_missing(path))
    return hub


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint that names what is closest, or else what there is."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there is: {', '.join(names[:10])}" + (", ..." if len(names) > 10 else "") if names else "there is none"


def _suffixes() -> str:
    return ", ".join(SUFFIXES)


def _missing(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        return f"{path}: no such file; the folder {path.parent} does not exist (its nearest is {folder})"
    return f"{path}: no such file or folder; in {folder}: {nearest(path.name, (p.name for p in folder.iterdir()))}"


def _part_files(path: Path) -> list[tuple[Path, Part]]:
    """train.* and test.* of a folder, NAME.train.* and NAME.test.* of a folder, or those of the prefix FOLDER/NAME."""
    folder = path if path.is_dir() else path.parent
    wanted = None if path.is_dir() else path.name
    if not folder.is_dir():
        return []
    matches = [(file, match) for file in sorted(folder.iterdir()) if (match := PART_FILE.fullmatch(file.name))]
    names = {match["name"] for _, match in matches}
    if wanted is None and len(names) > 1:
        given = ", ".join(sorted(str(name) for name in names if name))
        raise DataError(f"{path}: the folder holds several data sets ({given}); name one, as in {path}/{_first(names)}")
    found = [(file, _part(match["part"])) for file, match in matches if wanted in (None, match["name"])]
    return sorted(found, key=lambda item: item[1] == "test")


def _first(names: set[str | None]) -> str:
    return min(name for name in names if name)


def _part(name: str) -> Part:
    return "test" if name == "test" else "train"


def _file(path: Path, part: Part) -> Iterator[Record]:
    readers: dict[str, Callable[[bytes], Iterator[tuple[int, Any, str | None]]]] = {
        ".jsonl": _jsonl,
        ".json": _json,
        ".csv": lambda data: _csv(data, ","),
        ".tsv": lambda data: _csv(data, "\t"),
        ".parquet": _parquet,
    }
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: cannot tell the format from the name; it must end in one of {_suffixes()}")
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        read = readers[Path(path.name.removesuffix(".gz")).suffix]
        for number, raw, problem in read(data):
            yield Record(path.name, number, raw, part, problem or _unwritable(raw))
    except (OSError, EOFError, ValueError, TypeError, csv.Error, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _unwritable(raw: Any) -> str | None:
    """Text that is no UTF-8 arrives as lone surrogates, which no file written later could hold."""
    strings = [value for value in raw.values() if isinstance(value, str)] if isinstance(raw, dict) else []
    return "not UTF-8" if any("\ud800" <= c <= "\udfff" for s in strings if not s.isascii() for c in s) else None


def _jsonl(data: bytes) -> Iterator[tuple[int, Any, str | None]]:
    for number, line in enumerate(data.decode("utf-8-sig", "surrogateescape").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError):
            yield number, line, "not JSON"
        else:
            yield number, raw, None if isinstance(raw, dict) else "not a JSON object"


def _json(data: bytes) -> Iterator[tuple[int, Any, str | None]]:
    rows = json.loads(data.decode("utf-8-sig"))
    if not isinstance(rows, list):
        raise TypeError("a .json file must hold one list of objects (one object a line is .jsonl)")
    for number, raw in enumerate(rows, start=1):
        yield number, raw, None if isinstance(raw, dict) else "not a JSON object"


def _csv(data: bytes, delimiter: str) -> Iterator[tuple[int, Any, str | None]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    text = io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header = next(reader, [])
    if len(set(header)) != len(header):
        raise ValueError(f"a column name occurs twice in the header {header}")
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, str(error), f"not {'CSV' if delimiter == ',' else 'TSV'}"
            continue
        if fields:
            wrong = None if len(fields) == len(header) else "wrong number of fields"
            yield number, dict(zip(header, fields, strict=False)) if wrong is None else fields, wrong


def _parquet(data: bytes) -> Iterator[tuple[int, Any, str | None]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, raw in enumerate(pq.read_table(pa.BufferReader(data)).to_pylist(), start=1):
        yield number, raw, None


def _builtin(source: str, path: Path, part: Part) -> Iterator[Record]:
    rows = BUILTIN[source.removeprefix("builtin:")].rows(path)
    return (Record(source, number, raw, part) for number, raw in rows)


def _hub(name: str, split: str | None, part: Part) -> Iterator[Record]:
    import datasets

    try:
        loaded = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{name}: no local file or folder of that name, and not to be had from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); check the id, go online, or give a local file"
        ) from error
    parts = {part: loaded} if split else {_part(key): loaded[key] for key in ("train", "test") if key in loaded}
    if "train" not in parts and part == "train":
        raise DataError(f"{name}: no split called train; {nearest('train', loaded)} Name one as {name}:SPLIT")
    for own, rows in parts.items():
        for number, raw in enumerate(rows, start=1):
            yield Record(f"{name}:{own}", number, raw, own)
