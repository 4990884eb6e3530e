"""A search and the jobs that it makes of one job file: the default, every trial, the winner."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import JobError
from trimtab.load import Job, job_from
from trimtab.mistakes import Mistake
from trimtab.search.spec import SearchSpec


@dataclass(frozen=True)
class Search:
    """A search file that has been read: `raw` is the job's mapping with what the file sets, `default` what it makes.

    `id` names the search's place and its study: the file's name and a digest of all that trials hang on, so that a
    file with more trials goes on with what is there.
    """

    id: str
    name: str
    file: Path
    spec: SearchSpec
    raw: dict[str, Any]
    default: Job

    @property
    def storage(self) -> Path:
        return self.default.compute.storage

    @property
    def folder(self) -> Path:
        return self.storage / "searches" / self.id

    @property
    def study_url(self) -> str:
        return study_url(self.storage)

    def job(self, values: Mapping[str, Any], seeds: Sequence[int]) -> Job:
        """The job with these values in its dotted fields. Raises JobError where they do not go together."""
        job, found = made(self.raw, values, seeds, name=self.name)
        if job is None:
            raise JobError([f"{'.'.join(map(str, loc))}: {text}" for loc, text in found])
        return job


def study_url(storage: Path) -> str:
    """Where Optuna keeps studies: the database at TRIMTAB_STUDIES, or a file for all searches of a storage folder."""
    return os.environ.get("TRIMTAB_STUDIES") or f"sqlite:///{storage.resolve()}/optuna.db"


def made(
    raw: Mapping[str, Any], values: Mapping[str, Any], seeds: Sequence[int], *, name: str
) -> tuple[Job | None, list[Mistake]]:
    """The job that a mapping makes with further values, and what is wrong with it."""
    changed = changed_by(raw, values)
    changed["seeds"] = list(seeds)
    changed.pop("register", None)
    return job_from(changed, name)


def changed_by(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a job's mapping with values in dotted fields: parts before their fields, and a kind before the rest."""
    changed = deepcopy(dict(raw))
    for path in sorted(values, key=lambda path: (path.count("."), not path.endswith(".kind"))):
        put(changed, path, values[path])
    return changed


def put(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted field; a model that is only a name is spelled out on the way.

    Another `kind` takes none of the fields that the old one had. Raises JobError for no such place.
    """
    *parents, last = path.split(".")
    node: Any = raw
    for step in parents:
        key = _key(node, step, path)
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        if key == "model" and isinstance(node[key], str):
            node[key] = {"source": node[key]}
        node = node[key]
    if last == "kind" and isinstance(node, dict) and node.get("kind", value) != value:
        node.clear()
    node[_key(node, last, path)] = deepcopy(value)


def value_of(raw: Mapping[str, Any], values: Mapping[str, Any], path: str) -> Any:
    """The value of a dotted field of a job with these values, which may hold it or a part that it lies in."""
    return get(changed_by(raw, values), path)


def get(raw: Mapping[str, Any], path: str) -> Any:
    """The value of a dotted field, None where the mapping says nothing of it."""
    node: Any = raw
    for step in path.split("."):
        if isinstance(node, list) and step.isdigit() and int(step) < len(node):
            node = node[int(step)]
        elif isinstance(node, dict):
            node = node.get(step)
        else:
            return None
    return node


def _key(node: Any, step: str, path: str) -> str | int:
    if isinstance(node, dict):
        return step
    if isinstance(node, list) and step.isdigit() and int(step) < len(node):
        return int(step)
    raise JobError([f"{path}: there is no {step!r} in {node!r}"])
