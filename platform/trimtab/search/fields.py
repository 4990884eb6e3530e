"""Whether the fields of a search are there, take their ranges' ends and choices, and ever meet their conditions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from trimtab.errors import JobError
from trimtab.load import PIPELINES
from trimtab.mistakes import nearest, typed
from trimtab.ranges import AnyRange, Choice, LogUniform, QUniform, RandInt, Uniform
from trimtab.search.job import changed_by, get, made, put
from trimtab.spec import Spec

ASIDE = {
    "compute": "says where a trial runs, not what it does",
    "seeds": "are the trials' own: give seeds beside the space",
    "validation": "is what trials are compared by",
    "kind": "is the experiment itself",
    **dict.fromkeys(("name", "register", "report", "oracle"), "is no part of a trial"),
}
"""Fields of a job that no search changes."""
INSIDE = 0.382
"""A place between two ends that a whole number hardly falls on."""


@dataclass(frozen=True)
class Ground:
    """The job that is searched: its mapping, which makes a job without mistakes, and what a search does over it."""

    raw: dict[str, Any]
    space: Mapping[str, AnyRange]
    seeds: tuple[int, ...]
    name: str

    def mistakes(self, path: str) -> list[str]:
        """What is wrong with one searched field."""
        if reason := ASIDE.get(path.split(".", maxsplit=1)[0]):
            return [f"there is nothing to search in {path.split('.', maxsplit=1)[0]}, which {reason}"]
        try:
            held = self.conditions(path)
            raw = changed_by(self.raw, held)
        except JobError as error:
            return error.problems
        missing = no_place(raw, path)
        return [missing] if missing else list(self._refused(path, held))

    def conditions(self, path: str, met: tuple[str, ...] = ()) -> dict[str, Any]:
        """Values by which a field's conditions hold. Raises JobError where they never do."""
        held: dict[str, Any] = {}
        for field, wanted in self.space[path].when.items():
            if field in (*met, path):
                raise JobError([f"when: {field} and {path} each wait for the other"])
            options = wanted if isinstance(wanted, list) else [wanted]
            part = next((p for p in self.space if field == p or field.startswith(f"{p}.")), None)
            fits = self._fitting(field, part, options)
            if not fits:
                raise JobError([f"when: {self._never(field, part, options)}"])
            held |= (self.conditions(part, (*met, path)) | {part: fits[0]}) if part else {}
        return held

    def _fitting(self, field: str, part: str | None, options: list[Any]) -> list[Any]:
        """Values of the searched part by which a field is as wanted; of one that stands still, its own value."""
        if part is None:
            return [value for value in [get(self.raw, field)] if value in options]
        if part == field:
            return [value for value in options if within(self.space[part], value)]
        rest = field.removeprefix(f"{part}.")
        choices = self.space[part].choice if isinstance(self.space[part], Choice) else ()
        return [value for value in choices if isinstance(value, dict) and get(value, rest) in options]

    def _never(self, field: str, part: str | None, options: list[Any]) -> str:
        wanted = " or ".join(map(repr, options))
        if part:
            return f"{field} is never {wanted}: its range has {said(self.space[part])}"
        if missing := no_place(self.raw, field):
            return missing
        return f"{field} is never {wanted}: in the job it is {get(self.raw, field)!r}, and no range changes it"

    def _refused(self, path: str, held: dict[str, Any]) -> Iterator[str]:
        by_text: dict[str, list[Any]] = {}
        for value in candidates(self.space[path]):
            try:
                _, found = made(self.raw, held | {path: value}, self.seeds, name=self.name)
            except JobError as error:
                found = [((), text) for text in error.problems]
            for loc, text in found:
                where = ".".join(map(str, loc))
                told = text.partition(" (given: ")[0] if where == path else f"{where}: {text}"
                by_text.setdefault(told, []).append(value)
        for text, values in by_text.items():
            way_out = "; for whole numbers take randint or choice" if "integer" in text else ""
            yield f"with {', '.join(map(repr, values))}: {text}{way_out}"


def candidates(found: AnyRange) -> list[Any]:
    """Values that stand for a range: both ends and one between them, or every choice."""
    if isinstance(found, Choice):
        return list(found.choice)
    low, high = found.ends
    if isinstance(found, RandInt):
        return [low, high]
    if isinstance(found, QUniform):
        return [low, low + found.quniform[2], high]
    return [low, low + round(INSIDE * (high - low), 2 - math.floor(math.log10(high - low))), high]


def within(found: AnyRange, value: Any) -> bool:
    """Whether a range has a value."""
    if isinstance(found, Choice):
        return value in found.choice
    return isinstance(value, int | float) and found.ends[0] <= value <= found.ends[1]


def points(found: AnyRange) -> int | None:
    """How many values a range has; None where they cannot be counted."""
    if isinstance(found, Choice):
        return len(found.choice)
    if isinstance(found, Uniform | LogUniform):
        return None
    step = found.quniform[2] if isinstance(found, QUniform) else 1
    return int((found.ends[1] - found.ends[0]) / step + 1e-9) + 1


def said(found: AnyRange) -> str:
    """A range in words."""
    if isinstance(found, Choice):
        return ", ".join(map(repr, found.choice))
    return f"{found.ends[0]:g} to {found.ends[1]:g}"


def no_place(raw: dict[str, Any], path: str) -> str | None:
    """Why a job has no such dotted field; None where it has one, be it unset."""
    classes: dict[tuple[str | int, ...], list[type[Spec]]] = {}
    for loc, cls, _ in typed(PIPELINES[raw["kind"]], raw):
        classes.setdefault(loc, []).append(cls)
    loc, node = (), raw
    for step in path.split("."):
        if isinstance(node, list):
            if not (step.isdigit() and int(step) < len(node)):
                return f"{step!r} is no place of the list {'.'.join(map(str, loc))}, which has 0 to {len(node) - 1}"
            loc, node = (*loc, int(step)), node[int(step)]
        elif isinstance(node, dict) and step in node:
            loc, node = (*loc, step), node[step]
        else:
            fields = {name for cls in classes.get(loc, ()) for name in cls.model_fields}
            there = sorted(fields or (node if isinstance(node, dict) else ()))
            where = f" in {'.'.join(map(str, loc))}" if loc else " in the job"
            ways = f"{nearest(step, there)}; there: {', '.join(map(str, there))}" if there else ""
            return None if step in fields else f"there is no {step!r}{where}{ways}"
    return None


def spelled(raw: dict[str, Any], pipeline: Spec, space: Mapping[str, AnyRange]) -> dict[str, Any]:
    """The mapping with what conditions ask, and the parts that searched fields lie in, written out where unset."""
    spelled_out, usual = deepcopy(raw), pipeline.model_dump(mode="json")
    asked = [field for found in space.values() for field in found.when]
    for path in [*asked, *(path.rpartition(".")[0] for path in space)]:
        steps = path.split(".")
        for depth in range(1, len(steps) + 1):
            part = ".".join(steps[:depth])
            if get(spelled_out, part) is None and (value := get(usual, part)) is not None:
                put(spelled_out, part, value)
    return spelled_out
