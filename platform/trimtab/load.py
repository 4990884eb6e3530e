"""A job file and dotted overrides -> a pipeline and where to run it; every mistake is reported at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from trimtab.compute import Compute
from trimtab.errors import JobError
from trimtab.mistakes import Source, beyond_types, impossible, nearest, worded
from trimtab.pipelines._base import Pipeline
from trimtab.spec import Spec, methods_in

PIPELINES = methods_in("trimtab.pipelines")


@dataclass(frozen=True)
class Job:
    """A job file that has been read: what is done, where, and under which name."""

    name: str
    pipeline: Pipeline
    compute: Compute


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job file. Raises JobError with every mistake: place, what is wrong, what is allowed, the nearest name."""
    raw, source = _read(Path(path))
    problems = [problem for text in overrides for problem in _override(raw, text, source)]
    compute = raw.pop("compute", {})
    name = raw.pop("name", Path(path).stem)
    kinds = ", ".join(sorted(PIPELINES))
    if raw.get("kind") not in PIPELINES:
        said = f"unknown kind {raw['kind']!r}{nearest(raw['kind'], PIPELINES)}" if "kind" in raw else "kind is missing"
        raise JobError([*problems, f"{source.place(('kind',))}: {said}; allowed: {kinds}"])
    pipeline, found = _validated(PIPELINES[raw["kind"]], raw, source, ())
    place, more = _validated(Compute, compute, source, ("compute",))
    problems += found + more
    problems += [f"{source.place(loc)}: {text}" for loc, text in beyond_types(PIPELINES[raw["kind"]], raw)]
    if pipeline and place:
        problems += [f"{source.place(loc)}: {text}" for loc, text in impossible(pipeline, place)]
    if problems:
        raise JobError(problems)
    place = place.model_copy(update={"storage": place.storage.expanduser().resolve()})
    return Job(str(name), pipeline, place)


def _read(path: Path) -> tuple[dict[str, Any], Source]:
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise JobError(
            [f"{path}: no such job file{nearest(path.name, there)}" + f"; there: {', '.join(there)}" * bool(there)]
        )
    text = path.read_text(encoding="utf-8")
    try:
        tree, raw = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise JobError([f"{path}: not YAML: {error}"]) from error
    if not isinstance(raw, dict):
        raise JobError([f"{path}: a job file is a mapping with the key kind; this is {type(raw).__name__}"])
    twice = [f"{path}:{line}: {key} stands twice" for key, line in _twice(tree)]
    if twice:
        raise JobError(twice)
    return _unshared(raw), Source(str(path), tree)


def _unshared(value: Any) -> Any:
    """A copy in which an anchor's aliases are values of their own, so that an override changes one of them."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _twice(node: yaml.Node | None) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _twice(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _twice(value)


def _override(raw: dict[str, Any], text: str, source: Source) -> list[str]:
    """Apply `a.b.0.c=value`; the value is read as YAML. Returns what is wrong with it."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        return [f"override {text!r}: write it as path.to.field=value"]
    source.overrides[path] = text
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        return [f"override {text!r}: the value is not YAML: {error}"]
    *parents, last = path.split(".")
    node: Any = raw
    for step in parents:
        if isinstance(node, dict) and isinstance(node.get(step), str) and step == "model":
            node[step] = {"source": node[step]}
        node = _step(node, step)
        if node is None:
            return [f"override {text!r}: {step!r} is not a mapping or list here"]
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = parsed
    elif isinstance(node, dict):
        node[last] = parsed
    else:
        return [f"override {text!r}: there is no place {last!r}"]
    return []


def _step(node: Any, step: str) -> Any:
    if isinstance(node, list):
        return node[int(step)] if step.isdigit() and int(step) < len(node) else None
    return node.setdefault(step, {}) if isinstance(node, dict) else None


def _validated(cls: type[Spec], raw: Any, source: Source, base: Loc) -> tuple[Any, list[str]]:
    try:
        return TypeAdapter(cls).validate_python(raw), []
    except ValidationError as error:
        return None, worded(error.errors(), cls, raw, source, base)


def nested(overrides: Sequence[str]) -> dict[str, Any]:
    """`a.b=c` strings as nested fields. Raises JobError."""
    raw: dict[str, Any] = {}
    problems = [problem for text in overrides for problem in _override(raw, text, Source("", None))]
    if problems:
        raise JobError(problems)
    return raw
