"""Mistakes in a job, worded for the one who made them: where, what is wrong, what is allowed, the nearest name."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trimtab.alignment import OnlineSpec, PolicySpec, PromptSpec, RewardSpec
from trimtab.compute import Compute
from trimtab.data.sources import source_problem as data_problem
from trimtab.models.source import artifact_problem, split_source
from trimtab.models.source import source_problem as model_problem
from trimtab.parts import ModelSpec, Probe, TaskSpec, Top, TrainSpec
from trimtab.run.estimate import size_of, whole_size
from trimtab.spec import Spec

TRAININGS = (TrainSpec, PolicySpec, RewardSpec, OnlineSpec)
USUAL = "policy"
"""The kind of a student that names none, where there are several."""
Loc = tuple[str | int, ...]
Mistake = tuple[Loc, str]

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

    def told(self, mistakes: Iterable[Mistake]) -> list[str]:
        """Mistakes as lines of text; one that an anchor repeats in several places is said once."""
        paths: dict[tuple[str, Loc, str], list[str]] = {}
        for loc, text in mistakes:
            paths.setdefault((self.place(loc), loc[-1:], text), []).append(".".join(map(str, loc)))
        lines = []
        for (place, _, text), same in paths.items():
            first, *rest = sorted(dict.fromkeys(same), key=len)
            also = f" (and in {', '.join(rest)})" if rest else ""
            lines.append(": ".join(filter(None, [place, first + also, text])))
        return lines

    def place(self, loc: Loc) -> str:
        """The override that said it, or file:line."""
        path = ".".join(map(str, loc))
        for key, text in reversed(self.overrides.items()):
            if path == key or path.startswith(key + "."):
                return f"override {text}"
        node, line, known = self.tree, 1, True
        for step in loc:
            entry = _child(node, step)
            known = known and entry is not None
            line, node = entry or (line, None)
        within = ", ".join(text for key, text in self.overrides.items() if key.startswith(path + "."))
        if within and not known:
            return f"override {within}"
        place = f"{self.file}:{line}" if self.tree else self.file
        return place + f" with override {within}" * bool(within)


def _child(node: yaml.Node | None, step: str | int) -> tuple[int, yaml.Node] | None:
    """The line and the value of a key or place; a key that came in by `<<` stands where its anchor is."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key.start_mark.line + 1, value
        merged = [value for key, value in node.value if key.value == "<<"]
        merged = [n for value in merged for n in (value.value if isinstance(value, yaml.SequenceNode) else [value])]
        return next(filter(None, (_child(n, step) for n in merged)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark.line + 1, node.value[step]
    return None


def worded(errors: list[ErrorDetails], cls: type[Spec], raw: Any, base: Loc) -> list[Mistake]:
    """Pydantic's errors in the user's terms; what several members of a union say of one value is one mistake."""
    said: dict[Loc, list[str]] = {}
    given: dict[Loc, str] = {}
    for error in errors:
        loc = _as_written(error["loc"], raw) + ("kind",) * (error["type"] == "union_tag_invalid")
        loc = loc[:-1] if error["type"] == "invalid_key" else loc
        text = _said(error, loc, cls, raw, base)
        said[loc] = [*said[loc], text.removeprefix("should be ")] if loc in said else [text]
        if text.startswith("should be ") and not isinstance(error["input"], dict):
            given[loc] = f" (given: {error['input']!r})"
    return [(base + loc, " or ".join(dict.fromkeys(texts)) + given.get(loc, "")) for loc, texts in said.items()]


def _said(error: ErrorDetails, loc: Loc, cls: type[Spec], raw: Any, base: Loc) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        fields = sorted(next((found.model_fields for at, found, _ in typed(cls, raw) if at == loc[:-1]), []))
        fields += ["compute", "name", "register"] * (len(loc) == 1 and not base and "kind" in fields)
        return f"unknown key{nearest(loc[-1], fields)}; allowed: {', '.join(fields)}"
    if kind == "union_tag_invalid":
        tags = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
        return f"unknown kind {context['tag']!r}{nearest(context['tag'], tags)}; allowed: {', '.join(tags)}"
    if kind in ("union_tag_not_found", "model_attributes_type"):
        return "should be a mapping with a kind, as in {kind: NAME}"
    if kind in ("model_type", "dict_type"):
        return "should be a mapping"
    if kind == "tuple_type":
        return "should be a list"
    if kind == "missing":
        return "is missing"
    if kind == "invalid_key":
        return f"the key {error['input']!r} should be text: put it in quotes"
    text = error["msg"].removeprefix("Value error, ").partition(", unable to")[0].replace("Input should", "should")
    return text + (nearest(error["input"], context["expected"].split("'")[1::2]) if kind == "literal_error" else "")


def _as_written(loc: Loc, raw: Any) -> Loc:
    """A pydantic location without the tags of unions: the path through the keys that the user wrote."""
    path: list[str | int] = []
    node, tagged = raw, True
    for step in loc:
        is_tag = not tagged and isinstance(node, dict) and node.get("kind", USUAL) == step
        tagged = True
        if is_tag or step == "[key]":
            continue
        has_step = step in node if isinstance(node, dict) else isinstance(node, list) and isinstance(step, int)
        if not has_step and not isinstance(node, dict | None) and not isinstance(step, int):
            continue
        path.append(step)
        if has_step:
            node, tagged = node[step], False
    return tuple(path)


def typed(annotation: Any, node: Any, loc: Loc = ()) -> Iterator[tuple[Loc, type[Spec], Any]]:
    """Every place of a raw job where a spec is expected, with its class, as far as the raw values tell."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from typed(arguments[0], node, loc)
    elif origin in (typing.Union, types.UnionType):
        for member in arguments:
            kind = member.model_fields.get("kind") if isinstance(member, type) and issubclass(member, Spec) else None
            if kind is None or (isinstance(node, Mapping) and node.get("kind", USUAL) == kind.default):
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


def nearest(name: Any, names: Iterable[str]) -> str:
    if isinstance(name, str) and name in ELSEWHERE:
        return f"; here it is called {ELSEWHERE[name]}"
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def beyond_types(cls: type[Spec], raw: dict[str, Any], compute: Compute | None) -> Iterator[Mistake]:
    """Models and data that cannot be found, and combinations that each part alone allows.

    Looks at every part that is right by itself, whatever is wrong with the others; `compute` is None if that is wrong.
    """
    compute = compute or Compute()
    checks = {ModelSpec: model_mistakes, TaskSpec: _task, PromptSpec: _prompts} | dict.fromkeys(TRAININGS, _training)
    for loc, found, node in typed(cls, raw):
        for check in [checks[kind] for kind in found.__mro__ if kind in checks]:
            try:
                part = found.model_validate(node)
            except ValidationError:
                continue
            for name, text in check(part, compute):
                yield (*loc, name) if isinstance(node, dict) else loc, text
    seeds, students = raw.get("seeds", [0]), raw.get("students", {"": None})
    if isinstance(seeds, list) and (not seeds or len({repr(seed) for seed in seeds}) < len(seeds)):
        yield ("seeds",), "give at least one seed, each once"
    if students == {}:
        yield ("students",), "give at least one student"
    for name in students if isinstance(students, dict) else ():
        if isinstance(name, str) and name and not name.replace("-", "_").isidentifier():
            yield ("students", name), "a student's name is letters, digits, - and _, a letter first"
    storage = compute.storage.expanduser().absolute()
    if not next(p for p in (storage, *storage.parents) if p.exists()).is_dir():
        yield ("compute", "storage"), f"{storage} is a file or lies below one; give a folder here or in TRIMTAB_STORAGE"


def _task(task: TaskSpec, compute: Compute) -> Iterator[tuple[str, str]]:
    for name, source in (("source", task.source), ("test", task.test)):
        if source is not None and (problem := data_problem(source)):
            yield name, problem


def _prompts(task: PromptSpec, compute: Compute) -> Iterator[tuple[str, str]]:
    sources = (task.source,) if isinstance(task.source, str) else task.source
    for name, source in (*(("source", one) for one in sources), ("test", task.test)):
        if source is not None and (problem := data_problem(source)):
            yield name, problem


def model_mistakes(model: ModelSpec, compute: Compute) -> Iterator[tuple[str, str]]:
    """A model that cannot be found, or has not the layers asked for: which field says so, and what is wrong."""
    kind, name = split_source(model.source)
    if problem := model_problem(model.source):
        yield "source", problem
        return
    if kind == "artifact" and (problem := artifact_problem(compute.artifacts, name)):
        yield "source", problem
    kept = model.layers if isinstance(model.layers, tuple) else range(model.layers or 1)
    if not kept or min(kept) < 0 or model.layers == 0:
        yield "layers", "keep at least one layer; layers are counted from 0"
    elif (size := whole_size(model)) and max(kept) >= size.layers:
        yield "layers", f"the model has {size.layers} layers"


def _training(spec: TrainSpec | PolicySpec | RewardSpec | OnlineSpec, compute: Compute) -> Iterator[tuple[str, str]]:
    if not isinstance(spec.tune, Probe) and (odd := [size for size in compute.sizes if spec.batch_size % size]):
        yield "batch_size", f"{spec.batch_size} rows cannot be shared by {' or '.join(map(str, odd))} workers"
    if isinstance(spec.tune, Top) and (size := size_of(spec.model)) and spec.tune.layers >= size.layers:
        yield "tune", f"tune.layers is {spec.tune.layers} but the model has {size.layers}; use kind: full"
    share = min(compute.micro_batch or spec.batch_size, spec.batch_size // compute.workers)
    if getattr(getattr(spec, "objective", None), "sorts", False) and share < spec.batch_size:
        yield "objective", "compares all rows of a batch: set compute.workers to 1 and leave compute.micro_batch out"
