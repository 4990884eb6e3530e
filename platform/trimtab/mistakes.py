"""Mistakes in a job, worded for the one who made them: where, what is wrong, what is allowed, the nearest name."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic_core import ErrorDetails

from trimtab.compute import Compute
from trimtab.data.sources import source_problem as data_problem
from trimtab.models.source import source_problem as model_problem
from trimtab.parts import ModelSpec, Probe, TaskSpec, TrainSpec
from trimtab.spec import Spec

Loc = tuple[str | int, ...]

ELSEWHERE = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "warmup": "warmup_ratio",
    "model_name_or_path": "source",
    "max_seq_length": "max_length",
    "cutoff_len": "max_length",
    "sequence_len": "max_length",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "compute.micro_batch",
    "gradient_accumulation_steps": "compute.micro_batch",
    "num_workers": "compute.workers",
    "storage_path": "compute.storage",
    "output_dir": "compute.storage",
    "dataset": "task.source",
}


@dataclass
class Source:
    """Where each key of a job stands, so that a mistake can be shown where the user made it."""

    file: str
    tree: yaml.Node | None
    overrides: dict[str, str] = field(default_factory=dict)

    def place(self, loc: Loc) -> str:
        path = ".".join(map(str, loc))
        for key, text in self.overrides.items():
            if path == key or path.startswith(key + ".") or key.startswith(path + "."):
                return f"override {text}: {path}"
        node, line = self.tree, 1
        for step in loc:
            entry = _child(node, step)
            if entry is None:
                break
            line, node = entry
        return f"{self.file}:{line}: {path}" if path else f"{self.file}:{line}"


def _child(node: yaml.Node | None, step: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((k.start_mark.line + 1, v) for k, v in node.value if k.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark.line + 1, node.value[step]
    return None


def worded(errors: list[ErrorDetails], cls: type[Spec], raw: Any, source: Source, base: Loc) -> list[str]:
    """Pydantic's errors in the user's terms; what several members of a union say of one value is one mistake."""
    said: dict[str, list[str]] = {}
    for error in errors:
        loc = _as_written(error["loc"], raw)
        said.setdefault(source.place(base + loc), []).append(_said(error, loc, cls, raw))
    return [f"{place}: {', or '.join(dict.fromkeys(texts))}" for place, texts in said.items()]


def _said(error: ErrorDetails, loc: Loc, cls: type[Spec], raw: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        fields = sorted(next((found.model_fields for at, found, _ in typed(cls, raw) if at == loc[:-1]), []))
        return f"unknown key{nearest(str(loc[-1]), fields)}; allowed: {', '.join(fields)}"
    if kind == "union_tag_invalid":
        tags = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
        return f"unknown kind {context['tag']!r}{nearest(context['tag'], tags)}; allowed: {', '.join(tags)}"
    if kind == "union_tag_not_found":
        return "give a kind, as in {kind: NAME}"
    if kind == "missing":
        return "is missing"
    given = "" if isinstance(error["input"], dict | list) else f" (given: {error['input']!r})"
    return f"{error['msg'].removeprefix('Value error, ')}{given}"


def _as_written(loc: Loc, raw: Any) -> Loc:
    """A pydantic location without the tags of unions: the path through the keys that the user wrote."""
    path: list[str | int] = []
    node = raw
    for step in loc:
        has_step = step in node if isinstance(node, dict) else isinstance(node, list) and isinstance(step, int)
        if not has_step and isinstance(node, dict) and node.get("kind") == step:
            continue
        if not has_step and isinstance(node, str | list | int | float) and not isinstance(step, int):
            continue
        path.append(step)
        if has_step:
            node = node[step]
    return tuple(path)


def typed(annotation: Any, node: Any, loc: Loc = ()) -> Iterator[tuple[Loc, type[Spec], Any]]:
    """Every place of a raw job where a spec is expected, with its class, as far as the raw values tell."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from typed(arguments[0], node, loc)
    elif origin in (typing.Union, types.UnionType):
        for member in arguments:
            kind = member.model_fields.get("kind") if isinstance(member, type) and issubclass(member, Spec) else None
            if kind is None or (isinstance(node, Mapping) and node.get("kind") == kind.default):
                yield from typed(member, node, loc)
    elif isinstance(annotation, type) and issubclass(annotation, Spec):
        yield loc, annotation, node
        for key in node if isinstance(node, dict) else ():
            if key in annotation.model_fields:
                yield from typed(annotation.model_fields[key].annotation, node[key], (*loc, key))
    elif origin is dict and isinstance(node, dict):
        for key, item in node.items():
            yield from typed(arguments[1], item, (*loc, key))
    elif origin in (tuple, list) and isinstance(node, list):
        for i, item in enumerate(node):
            yield from typed(arguments[0], item, (*loc, i))


def nearest(name: Any, names: Any) -> str:
    if name in ELSEWHERE:
        return f"; here it is called {ELSEWHERE[name]}"
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def beyond_types(cls: type[Spec], raw: Any) -> Iterator[tuple[Loc, str]]:
    """Models and data that cannot be found."""
    for loc, found, node in typed(cls, raw):
        values = {"source": node} if isinstance(node, str) else node if isinstance(node, dict) else {}
        finders = {ModelSpec: (model_problem, ("source",)), TaskSpec: (data_problem, ("source", "test"))}
        find, names = finders.get(found, (None, ()))
        for name in names:
            if find and isinstance(values.get(name), str) and (problem := find(values[name])):
                yield (*loc, name), problem


def impossible(pipeline: Any, compute: Compute) -> Iterator[tuple[Loc, str]]:
    """Combinations that each part alone allows."""
    for loc, spec in _specs(pipeline, ()):
        if isinstance(spec, TrainSpec) and not isinstance(spec.tune, Probe) and spec.batch_size % compute.workers:
            yield (*loc, "batch_size"), f"{spec.batch_size} rows cannot be shared by {compute.workers} workers"
    seeds = getattr(pipeline, "seeds", (0,))
    if not seeds or len(set(seeds)) < len(seeds):
        yield ("seeds",), "give at least one seed, each once"
    for name in getattr(pipeline, "students", {}):
        if not name.replace("-", "_").isidentifier():
            yield ("students", name), "a student's name is letters, digits, - and _"


def _specs(value: Any, loc: Loc) -> Iterator[tuple[Loc, Spec]]:
    """Every spec inside a value, with its place."""
    if isinstance(value, Spec):
        yield loc, value
        value = {name: getattr(value, name) for name in type(value).model_fields}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
    for key, item in pairs:
        yield from _specs(item, (*loc, key))
