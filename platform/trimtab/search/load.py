"""A search file and overrides -> a Search; every mistake at once, where it was made, before anything runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trimtab.errors import JobError
from trimtab.load import PIPELINES, Job, override, read_yaml, validated
from trimtab.mistakes import Mistake, Source, nearest
from trimtab.ranges import KINDS, AnyRange
from trimtab.run.identity import identity
from trimtab.search.checks import (
    budget_mistakes,
    metric_mistakes,
    needless,
    scheduler_mistakes,
)
from trimtab.search.fields import Ground, no_place, spelled
from trimtab.search.job import Search, changed_by, made
from trimtab.search.spec import SearchSpec

STAND_IN = {"seed": {"choice": [0]}}
RANGE = TypeAdapter(AnyRange)
FREE = ("set", "space", "smoke")
"""Keys of a search file whose own keys are dotted fields."""


def load_search(path: str | Path, overrides: Sequence[str] = (), *, smoke: bool = False) -> Search:
    """Read a search file. Raises JobError with every mistake: place, what is wrong, what is allowed, the nearest name.

    An override is a dotted field of the search file, or of its job; `smoke` applies what the file says of trial runs.
    """
    path = Path(path)
    raw, source = read_yaml(path, "search file", "space")
    return read(Draft(path, path.stem, raw, source), overrides, smoke=smoke)


@dataclass
class Draft:
    """A search as it was written, and what is wrong with it so far."""

    file: Path
    name: str
    raw: dict[str, Any]
    source: Source
    problems: list[str] = field(default_factory=list)

    def blame(self, mistakes: Sequence[Mistake]) -> None:
        """Tell mistakes; one that is of the whole file stands at the key that it begins with."""
        placed = []
        for loc, text in mistakes:
            key, colon, rest = text.partition(": ")
            at_key = not loc and colon and key.split(".")[0] in SearchSpec.model_fields
            placed.append((tuple(key.split(".")), rest) if at_key else (loc, text))
        self.problems += self.source.told(placed)

    def overridden(self, texts: Sequence[str]) -> None:
        for text in texts:
            self.problems += _override(self.raw, text, self.source)


def read(draft: Draft, overrides: Sequence[str] = (), *, smoke: bool = False) -> Search:
    """The search that a draft makes. Raises JobError with every mistake."""
    said = draft.raw.get("smoke") if smoke else {}
    draft.overridden([f"{path}={json.dumps(value)}" for path, value in (said or {}).items()])
    draft.overridden(overrides)
    space, wrong = _ranges(draft.raw.get("space"))
    spec = _spec(draft, space)
    draft.blame(wrong)
    ground, default = _ground(draft, spec, space)
    if ground:
        refused = [(("space", path), text) for path in space for text in ground.mistakes(path)]
        draft.blame(refused)
        if spec and default:
            _suited(draft, spec, ground, default, {loc[1] for loc, _ in refused})
    if draft.problems:
        raise JobError(draft.problems)
    name = re.sub(r"[^\w.-]+", "-", draft.name)
    return Search(f"{name}-{_digest(spec, default)}", name, draft.file, spec, ground.raw, default)


def _spec(draft: Draft, space: dict[str, AnyRange]) -> SearchSpec | None:
    """What can be read of the search file: keys with mistakes are told, and left out."""
    whole, found = validated(SearchSpec, draft.raw, ())
    bad = {loc[0] for loc, _ in found if loc}
    draft.blame([(loc, text) for loc, text in found if loc[:1] != ("space",) or draft.raw.get("space") in (None, {})])
    if whole is None and found and not bad & {"job", "metric"}:
        rest = {key: value for key, value in draft.raw.items() if key not in bad} | {"space": dict(space) or STAND_IN}
        whole, found = validated(SearchSpec, rest, ()) if bad else (None, found)
        draft.blame(found if bad else [])
    return whole and whole.model_copy(update={"space": space})


def _suited(draft: Draft, spec: SearchSpec, ground: Ground, default: Job, refused: set[str]) -> None:
    """Mistakes of parts that are right by themselves."""
    unknown = list(metric_mistakes(spec, default))
    draft.blame(unknown)
    draft.blame(list(scheduler_mistakes(spec, ground.raw)))
    draft.blame(list(budget_mistakes(spec, default, ground.raw)))
    if not unknown:
        metrics = {metric.rpartition("/")[0]: metric for metric in spec.metrics}
        told = {path: needless(spec, ground, path, metrics) for path in spec.space if path not in refused}
        draft.blame([(("space", path), text) for path, text in told.items() if text])


def _override(raw: dict[str, Any], text: str, source: Source) -> list[str]:
    """An override of the search file; one of a field that only the job has goes to `set`."""
    path, equals, _ = text.partition("=")
    first, _, rest = path.partition(".")
    fields = SearchSpec.model_fields
    job_fields = {name for cls in PIPELINES.values() for name in cls.model_fields} | {"compute"}
    if first not in fields and first in job_fields:
        first, rest = "set", path
    if not (equals and rest and first in FREE and isinstance(raw.get(first) or {}, dict)):
        return override(raw, text, source)
    said: dict[str, Any] = {}
    problems = override(said, f"value{text[len(path) :]}", Source("", None))
    if problems:
        return [problem.replace("'value=", f"'{path}=", 1) for problem in problems]
    stem, _, last = rest.rpartition(".")
    node = raw.setdefault(first, {}) if raw.get(first) is not None else raw.update({first: {}}) or raw[first]
    if first == "space" and last in KINDS:
        rest, said["value"] = stem, {last: said["value"]}
    node[rest] = said["value"]
    source.overrides[f"{first}.{rest}"] = text
    return []


def _ranges(raw: Any) -> tuple[dict[str, AnyRange], list[Mistake]]:
    """The ranges that can be read, and what is wrong with the others."""
    found, wrong = {}, []
    for path, said in raw.items() if isinstance(raw, dict) else ():
        loc = ("space", path)
        given = [key for key in said if key in KINDS] if isinstance(said, dict) else []
        strange = [key for key in said if key not in (*KINDS, "when")] if isinstance(said, dict) else []
        wrong += [
            ((*loc, key), f"unknown key{nearest(key, KINDS)}; allowed: {', '.join(KINDS)}, when") for key in strange
        ]
        if len(given) > 1:
            wrong.append((loc, f"has {' and '.join(given)}: give one"))
        elif not given and not strange:
            wrong.append((loc, f"should be a range, one of {', '.join(KINDS)}, as in {{uniform: [0, 1]}}"))
        elif given and not strange:
            try:
                found[path] = RANGE.validate_python(said)
            except ValidationError as error:
                texts = [one["msg"].removeprefix("Value error, ") for one in error.errors()]
                wrong.append(((*loc, given[0]), f"{'; '.join(dict.fromkeys(texts))} (given: {said[given[0]]!r})"))
    return found, wrong


def _ground(draft: Draft, spec: SearchSpec | None, space: dict[str, AnyRange]) -> tuple[Ground | None, Job | None]:
    """The job of a search, with what it sets and the rows it sets aside; None where it has mistakes."""
    try:
        raw, source = read_yaml(_job_file(draft), "job file", "kind")
    except JobError as error:
        draft.problems += [f"{draft.source.place(('job',))}: job: {text}" for text in error.problems]
        return None, None
    raw["validation"] = {"rows": spec.validation, "truth": spec.truth_budget} if spec else {"rows": 2}
    seeds = spec.seeds if spec else (0,)
    wanted = draft.raw.get("set") if isinstance(draft.raw.get("set"), dict) else {}
    changed, default = raw, None
    for path, value in wanted.items():
        try:
            changed = changed_by(changed, {path: value})
        except JobError as error:
            draft.blame([(("set", path), text.removeprefix(f"{path}: ")) for text in error.problems])
    default, found = made(changed, {}, seeds, name=draft.name)
    _blame_job(draft, found, source, wanted, raw)
    if default is None and wanted:
        changed = raw
        default, _ = made(raw, {}, seeds, name=draft.name)
    if default is None:
        known = raw.get("kind") in PIPELINES
        missing = {path: no_place(raw, path) for path in space} if known else {}
        draft.blame([(("space", path), text) for path, text in missing.items() if text])
        return None, None
    return Ground(spelled(changed, default.pipeline, space), space, seeds, draft.name), default


def _job_file(draft: Draft) -> Path:
    """Raises JobError where none is named."""
    said = draft.raw.get("job")
    if not isinstance(said, str):
        raise JobError(["name the job file that is searched"])
    return job_file(said, draft.file)


def job_file(said: str, file: Path) -> Path:
    """The job file that a search file names: from here, else from the search file's folder or the one above."""
    places = [Path(said), file.parent / said, file.parent.parent / said]
    return next((place for place in places if place.is_file()), places[0])


def _blame_job(
    draft: Draft, found: list[Mistake], source: Source, wanted: Mapping[str, Any], raw: dict[str, Any]
) -> None:
    """Mistakes of the job where they were made: in the job file, or in what the search sets."""
    own = []
    for loc, text in found:
        where = ".".join(map(str, loc))
        path = next((p for p in wanted if where == p or where.startswith(f"{p}.") or p.startswith(f"{where}.")), None)
        if loc[:1] == ("validation",) and len(loc) == 1:
            draft.blame([(("job",), f"an experiment of kind {raw.get('kind')} sets no rows aside to choose by")])
        elif loc[:1] == ("seeds",):
            draft.blame([(loc, text)])
        elif path:
            draft.blame([(("set", path), f"{where[len(path) :].lstrip('.')}: {text}".removeprefix(": "))])
        else:
            own.append((loc, text))
    draft.problems += source.told(own)


def _digest(spec: SearchSpec, default: Job) -> str:
    """Of all that trials hang on: how long a search goes on and how it is judged at the end make no other one of it."""
    pipeline = {k: v for k, v in identity(default.pipeline).items() if k not in ("seeds", "report")}
    kept = ("space", "metric", "mode", "seeds", "scheduler")
    said = spec.model_dump(mode="json", include=set(kept)) | {"searcher": spec.searcher.kind, "pipeline": pipeline}
    return hashlib.sha256(json.dumps(deepcopy(said), sort_keys=True, default=str).encode()).hexdigest()[:8]
