"""The space of a search: its fields in an order in which conditions come first, and points in it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trimtab.errors import JobError
from trimtab.ranges import AnyRange, Choice, LogUniform, QUniform, RandInt
from trimtab.search.job import Search, get, value_of

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution

PLAIN = str | int | float | bool | None
Values = dict[str, Any]


class Space:
    """Which values a trial may have. Raises JobError where conditions go round in a circle."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.given = search.default.pipeline.model_dump(mode="json")
        self.fields = ordered(search.spec.space)

    def holds(self, field: AnyRange, values: Mapping[str, Any]) -> bool:
        """Whether the conditions of a field are met by the trial's values so far, or else by the job."""
        return all(self._said(path, values) in _several(wanted) for path, wanted in field.when.items())

    def _said(self, path: str, values: Mapping[str, Any]) -> Any:
        if path in values:
            return values[path]
        said = value_of(self.search.raw, values, path)
        return get(self.given, path) if said is None else said

    def suggested(self, trial: Trial) -> Values:
        """Values as the study's sampler proposes them, field by field."""
        values: Values = {}
        for path, field in self.fields.items():
            if self.holds(field, values):
                values[path] = suggest(trial, path, field)
        return values

    def points(self) -> list[Values]:
        """Every point of the grid, the default first where it is one. Raises JobError for a field without an end."""
        found = list(self._points(list(self.fields.items()), {}))
        return sorted(found, key=lambda values: values != self.default())

    def _points(self, fields: list[tuple[str, AnyRange]], values: Values) -> Iterator[Values]:
        if not fields:
            yield values
            return
        (path, field), *rest = fields
        for more in [{path: value} for value in every(path, field)] if self.holds(field, values) else [{}]:
            yield from self._points(rest, values | more)

    def default(self) -> Values | None:
        """The job's own values, where all of them lie in the space."""
        values: Values = {}
        for path, field in self.fields.items():
            if self.holds(field, values):
                value = get(self.given, path)
                inside = self._chosen(path, field, value) if isinstance(field, Choice) else within(field, value)
                if inside is None:
                    return None
                values[path] = inside[0]
        return values

    def _chosen(self, path: str, field: Choice, value: Any) -> tuple[Any] | None:
        """The choice that says what the job says; one of several keys may leave out what it need not say."""
        for choice in field.choice:
            if choice == value or (isinstance(choice, dict) and self._same(path, choice, value)):
                return (choice,)
        return None

    def _same(self, path: str, choice: Any, value: Any) -> bool:
        try:
            job = self.search.job({path: choice}, self.search.spec.seeds)
        except JobError:
            return False
        return get(job.pipeline.model_dump(mode="json"), path) == value


def ordered(space: Mapping[str, AnyRange]) -> dict[str, AnyRange]:
    """The fields as they stand, but for those that wait for others. Raises JobError for a circle."""
    left, found = dict(space), {}
    while left:
        free = [path for path, field in left.items() if not any(_lies_in(asked, left) for asked in field.when)]
        if not free:
            raise JobError([f"space: the conditions of {', '.join(left)} wait for one another"])
        found[free[0]] = left.pop(free[0])
    return found


def _lies_in(path: str, parts: Collection[str]) -> bool:
    return any(path == part or path.startswith(f"{part}.") for part in parts)


def suggest(trial: Trial, path: str, field: AnyRange) -> Any:
    """A value of one field from an Optuna trial."""
    if isinstance(field, Choice):
        return field.choice[coded(field).index(trial.suggest_categorical(path, coded(field)))]
    low, high = field.ends
    if isinstance(field, RandInt):
        return trial.suggest_int(path, int(low), int(high))
    if isinstance(field, QUniform):
        step = field.quniform[2]
        return trial.suggest_float(path, low, low + step * _steps(field), step=step)
    return trial.suggest_float(path, low, high, log=isinstance(field, LogUniform))


def distribution(field: AnyRange) -> BaseDistribution:
    """What Optuna calls the range, as `suggest` draws from it."""
    from optuna import distributions as of

    if isinstance(field, Choice):
        return of.CategoricalDistribution(coded(field))
    low, high = field.ends
    if isinstance(field, RandInt):
        return of.IntDistribution(int(low), int(high))
    if isinstance(field, QUniform):
        step = field.quniform[2]
        return of.FloatDistribution(low, low + step * _steps(field), step=step)
    return of.FloatDistribution(low, high, log=isinstance(field, LogUniform))


def coded(field: Choice) -> list[Any]:
    """The choices as Optuna keeps them: what is no plain value as its JSON text."""
    return [one if isinstance(one, PLAIN) else json.dumps(one, sort_keys=True) for one in field.choice]


def params(space: Mapping[str, AnyRange], values: Values) -> dict[str, Any]:
    """Values as Optuna's parameters."""

    def param(field: AnyRange, value: Any) -> Any:
        return coded(field)[field.choice.index(value)] if isinstance(field, Choice) else value

    return {path: param(field, values[path]) for path, field in space.items() if path in values}


def every(path: str, field: AnyRange) -> list[Any]:
    """All values of a field. Raises JobError where there are too many to name."""
    if isinstance(field, Choice):
        return list(field.choice)
    low, high = field.ends
    if isinstance(field, RandInt):
        return list(range(int(low), int(high) + 1))
    if isinstance(field, QUniform):
        return [low + field.quniform[2] * i for i in range(_steps(field) + 1)]
    raise JobError([f"space.{path}: a grid has no end here; give choice, quniform or randint, or another searcher"])


def within(field: AnyRange, value: Any) -> tuple[Any] | None:
    """The value as one of the field's range; None where it lies outside."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    low, high = field.ends
    if not low <= value <= high:
        return None
    if isinstance(field, QUniform):
        return next(((one,) for one in every("", field) if math.isclose(one, value, abs_tol=1e-12)), None)
    return (int(value) if isinstance(field, RandInt) else float(value),) if _fits(field, value) else None


def _fits(field: AnyRange, value: float) -> bool:
    return not isinstance(field, RandInt) or value == int(value)


def _steps(field: QUniform) -> int:
    low, high, step = field.quniform
    return int((high - low) / step + 1e-9)


def _several(wanted: Any) -> list[Any]:
    return list(wanted) if isinstance(wanted, list | tuple) else [wanted]
