"""A job file and dotted overrides -> a pipeline and where to run it; every mistake is reported at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trimtab.alignment import PromptSpec
from trimtab.compute import Compute
from trimtab.data.prompt_doctor import holds_prompts
from trimtab.errors import JobError, ModelError
from trimtab.mistakes import Loc, Mistake, Source, beyond_types, nearest, typed, worded
from trimtab.models.source import REGISTRY
from trimtab.parts import ModelSpec, TaskSpec
from trimtab.pipelines._base import Pipeline
from trimtab.run.artifact import Artifact, PlanRunner
from trimtab.run.registering import wanted
from trimtab.run.registry import Registry
from trimtab.run.remote import adopted, fetch, named_in
from trimtab.run.store import problem
from trimtab.spec import Spec, methods_in

PIPELINES = methods_in("trimtab.pipelines")


@dataclass(frozen=True)
class Job:
    """A job file that has been read: what is done, where, under which name, and what it registers.

    `versions` says which version of a registered model stands behind a source; the pipeline holds its folder.
    """

    name: str
    pipeline: Pipeline
    compute: Compute
    register: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job file. Raises JobError with every mistake: place, what is wrong, what is allowed, the nearest name."""
    path = Path(path)
    raw, source = read_yaml(path, "job file", "kind")
    problems = [problem for text in overrides for problem in override(raw, text, source)]
    job, found = job_from(raw, path.stem, blocked=bool(problems))
    if problems or found:
        raise JobError(problems + source.told(found))
    return job


def job_from(raw: dict[str, Any], name: str, *, blocked: bool = False) -> tuple[Job | None, list[Mistake]]:
    """The job that a mapping says, which is used up, and what is wrong with it; None where anything is."""
    place, found = validated(Compute, raw.pop("compute", None) or {}, ("compute",))
    if place and place.remote:
        found += _far(place, str(raw))
    name = raw.pop("name", name)
    if not isinstance(name, str):
        found.append((("name",), f"should be text (given: {name!r})"))
    kind, register, versions = raw.get("kind"), raw.pop("register", None) or {}, {}
    if isinstance(kind, str) and kind in PIPELINES:
        versions, unknown = looked_up(PIPELINES[kind], raw, place or Compute())
        pipeline, more = validated(PIPELINES[kind], raw, ())
        found += [*unknown, *more, *beyond_types(PIPELINES[kind], raw, place)]
    else:
        said = f"unknown kind {kind!r}{nearest(kind, PIPELINES)}" if "kind" in raw else "is missing"
        found.append((("kind",), f"{said}; allowed: {', '.join(sorted(PIPELINES))}"))
    if register and not blocked and not found:
        runner = PlanRunner(place)
        pipeline(runner)
        found += wanted(register, runner.nodes.values())[1]
    if blocked or found:
        return None, found
    place = place.model_copy(update={"storage": place.storage.expanduser().resolve()})
    return Job(re.sub(r"[^\w.-]+", "-", name), pipeline, place, register, versions), []


def _far(place: Compute, job: str) -> list[Mistake]:
    """What is wrong with a storage's URL; models that the job names as outputs of other stages are fetched from it."""
    if text := problem(place.remote):
        return [(("compute", "storage"), text)]
    fetch(named_in(job, Artifact("", "", place.artifacts, remote=place.remote)))
    return []


def looked_up(cls: type[Spec], raw: dict[str, Any], place: Compute) -> tuple[dict[str, str], list[Mistake]]:
    """Puts folders in the place of registered models, so that keys follow what an alias points at now.

    Which version stands behind each source, and what cannot be found.
    """
    registry, versions, found = Registry(place.storage), {}, []
    near = Artifact("", "", place.artifacts, remote=place.remote)
    for loc, spec, node in list(typed(cls, raw)):
        at = (*loc, "source") if isinstance(node, dict) else loc
        source = node.get("source") if isinstance(node, dict) else node
        if not issubclass(spec, ModelSpec) or not isinstance(source, str) or not source.startswith(REGISTRY):
            continue
        try:
            reduce(getitem, at[:-1], raw)[at[-1]] = str(adopted(registry.folder(source), near))
            versions[source] = registry.version(source).source
        except ModelError as error:
            found.append((at, str(error)))
    return versions, found


def load_data(source: str, overrides: Sequence[str] = ()) -> TaskSpec | PromptSpec:
    """A data set from a source and `field=value` strings: as a task, or as prompts where its columns or fields say so.

    Raises JobError with every mistake.
    """
    raw: dict[str, Any] = {"source": source}
    said = Source("data", None)
    problems = [problem for text in overrides for problem in override(raw, text, said)]
    task, prompts = validated(TaskSpec, raw, ()), validated(PromptSpec, raw, ())
    fits = [found for found in (task, prompts) if not found[1]]
    loaded, mistakes = fits[0] if len(fits) == 1 else prompts if holds_prompts(source) else task
    if problems or mistakes:
        raise JobError(problems + said.told(mistakes))
    return loaded


def read_yaml(path: Path, what: str, key: str) -> tuple[dict[str, Any], Source]:
    """A YAML file that holds a mapping with at least one key, and where each key stands. Raises JobError."""
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        ways = f"{nearest(path.name, there)}; there: {', '.join(there)}" if there else ""
        raise JobError([f"{path}: no such {what}{ways}"])
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
        raise JobError([f"{path}: {found}; a {what} is a mapping with the key {key}"])
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


def override(raw: dict[str, Any], text: str, source: Source) -> list[str]:
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
        source.overrides[path] = re.sub(r"://\S*@", "://...@", text)
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


def validated(cls: type[Spec], raw: Any, base: Loc) -> tuple[Any, list[Mistake]]:
    """The spec that a raw value makes, None where it makes none; and what is wrong with it."""
    try:
        return cls.model_validate(raw), []
    except ValidationError as error:
        return None, worded(error.errors(), cls, raw, base)
