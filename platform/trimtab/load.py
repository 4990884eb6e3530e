"""A job file and dotted overrides -> a pipeline and where to run it; every mistake is reported at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trimtab.alignment import PromptSpec
from trimtab.compute import Compute
from trimtab.data.prompt_doctor import holds_prompts
from trimtab.errors import JobError
from trimtab.mistakes import Mistake, Source, beyond_types, nearest, worded
from trimtab.parts import TaskSpec
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
    path = Path(path)
    raw, source = _read(path)
    problems = [problem for text in overrides for problem in _override(raw, text, source)]
    place, found = _validated(Compute, raw.pop("compute", None) or {}, ("compute",))
    name = raw.pop("name", path.stem)
    if not isinstance(name, str):
        found.append((("name",), f"should be text (given: {name!r})"))
    kind = raw.get("kind")
    if isinstance(kind, str) and kind in PIPELINES:
        pipeline, more = _validated(PIPELINES[kind], raw, ())
        found += [*more, *beyond_types(PIPELINES[kind], raw, place)]
    else:
        said = f"unknown kind {kind!r}{nearest(kind, PIPELINES)}" if "kind" in raw else "is missing"
        found.append((("kind",), f"{said}; allowed: {', '.join(sorted(PIPELINES))}"))
    if problems or found:
        raise JobError(problems + source.told(found))
    place = place.model_copy(update={"storage": place.storage.expanduser().resolve()})
    return Job(re.sub(r"[^\w.-]+", "-", name), pipeline, place)


def load_data(source: str, overrides: Sequence[str] = ()) -> TaskSpec | PromptSpec:
    """A data set from a source and `field=value` strings: as a task, or as prompts where its columns or fields say so.

    Raises JobError with every mistake.
    """
    raw: dict[str, Any] = {"source": source}
    said = Source("data", None)
    problems = [problem for text in overrides for problem in _override(raw, text, said)]
    task, prompts = _validated(TaskSpec, raw, ()), _validated(PromptSpec, raw, ())
    fits = [found for found in (task, prompts) if not found[1]]
    loaded, mistakes = fits[0] if len(fits) == 1 else prompts if holds_prompts(source) else task
    if problems or mistakes:
        raise JobError(problems + said.told(mistakes))
    return loaded


def _read(path: Path) -> tuple[dict[str, Any], Source]:
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        ways = f"{nearest(path.name, there)}; there: {', '.join(there)}" if there else ""
        raise JobError([f"{path}: no such job file{ways}"])
    try:
        text = path.read_text(encoding="utf-8")
        tree, raw = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
        twice = [f"{path}:{line}: {key} stands twice" for key, line in _twice(tree, set())]
        raw = _unshared(raw)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise JobError([f"{path}{line}: not YAML: {error.problem or error.context}"]) from error
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise JobError([f"{path}: cannot be read: {error}"]) from error
    except RecursionError as error:
        raise JobError([f"{path}: an anchor holds itself, or the nesting is too deep"]) from error
    if not isinstance(raw, dict):
        found = "is empty" if raw is None else f"holds a {type(raw).__name__}"
        raise JobError([f"{path}: {found}; a job file is a mapping with the key kind"])
    if twice:
        raise JobError(twice)
    return raw, Source(str(path), tree)


def _unshared(value: Any) -> Any:
    """A copy in which an anchor's aliases are values of their own, so that an override changes one of them."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _twice(node: yaml.Node | None, met: set[int]) -> Iterator[tuple[str, int]]:
    if node is None or id(node) in met:
        return
    met.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value if isinstance(key.value, str) else "")
            yield from _twice(value, met)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _twice(value, met)


def _override(raw: dict[str, Any], text: str, source: Source) -> list[str]:
    """Apply `a.b.0.c=value`; the value is read as YAML. Returns what is wrong with it."""
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        return [f"override {text!r}: write it as path.to.field=value"]
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        said = getattr(error, "problem", None) or str(error)
        return [f"override {text!r}: the value is not YAML ({said}); put it in quotes"]
    *parents, last = path.split(".")
    node: Any = raw
    for step in parents:
        problem = _unfit(node, step, text)
        if problem:
            return [problem]
        node = _entered(node, step)
    problem = _unfit(node, last, text)
    if not problem:
        node[int(last) if isinstance(node, list) else last] = parsed
        source.overrides[path] = text
    return [problem] if problem else []


def _unfit(node: Any, step: str, text: str) -> str | None:
    """Why an override cannot take this step."""
    if isinstance(node, dict):
        return None
    if not isinstance(node, list):
        return f"override {text!r}: there is no {step!r} in {node!r}, which is not a mapping or list"
    if step.isdigit() and int(step) < len(node):
        return None
    return f"override {text!r}: {step!r} is no place of this list; its places are 0 to {len(node) - 1}"


def _entered(node: Any, step: str) -> Any:
    """The value one step down: made where there is none, spelled out where a model is only a name."""
    key = int(step) if isinstance(node, list) else step
    if isinstance(node, dict) and node.get(key) is None:
        node[key] = {}
    if key == "model" and isinstance(node[key], str):
        node[key] = {"source": node[key]}
    return node[key]


def _validated(cls: type[Spec], raw: Any, base: tuple[str, ...]) -> tuple[Any, list[Mistake]]:
    try:
        return cls.model_validate(raw), []
    except ValidationError as error:
        return None, worded(error.errors(), cls, raw, base)
