"""A job or search file -> what is sent to a cluster: its command, its files, its name. Nothing is sent here."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trimtab
from trimtab.cluster.inputs import Named, named
from trimtab.cluster.parcel import Parcel, code
from trimtab.compute import PASSWORD, Compute
from trimtab.errors import JobError
from trimtab.load import Job, load_job, override, read_yaml
from trimtab.ranges import Choice
from trimtab.run.artifact import PlanRunner
from trimtab.run.estimate import Need, need, text_of, total
from trimtab.search.job import Search, changed_by, get
from trimtab.search.load import job_file, load_search

SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)S?$")
LONG_ENOUGH = 8
NAMED = 40


@dataclass(frozen=True)
class Read:
    """A file that has been checked: the job, or the search with its default job, and the job's mapping as written."""

    file: Path
    overrides: tuple[str, ...]
    job: Job
    search: Search | None
    raw: dict[str, Any]
    also: tuple[Path, ...] = ()
    """Other files that the file leads to."""

    @property
    def verb(self) -> str:
        return "tune" if self.search else "run"

    @cached_property
    def plan(self) -> PlanRunner:
        runner = PlanRunner(self.job.compute)
        self.job.pipeline(runner)
        return runner

    @property
    def digest(self) -> str:
        """Of all that makes it this job: what its stages are made of, and where they run."""
        made = self.search.spec.model_dump(mode="json") if self.search else sorted(self.plan.nodes)
        place = self.job.compute.model_dump(mode="json", exclude={"address"})
        content = [self.job.name, made, self.search and self.search.id, self.job.register, place]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Submission:
    """What travels, and what it is told to do there."""

    stem: str
    command: list[str]
    parcel: Parcel
    code: Parcel | None
    metadata: dict[str, str]
    compute: Compute
    plan: PlanRunner

    @property
    def entrypoint(self) -> str:
        return shlex.join(self.command)

    def runtime_env(self, run_id: str, folder: str) -> dict[str, Any]:
        """As Ray takes it; environment variables hold no secrets, since everyone who may list jobs sees them."""
        packages = {"py_modules": [str(Path(trimtab.__file__).parent)]} if self.code else {}
        said = {"TRIMTAB_RUN_ID": run_id, "TRIMTAB_SENT_BY": sender()}
        return {"working_dir": folder, **packages, "excludes": ["__pycache__", "*.pyc"], "env_vars": said}

    def need(self, cpus: float) -> Need:
        """Peak memory and disk of the stages that this machine knows to be missing, on so many CPUs."""
        return total(self.plan.needed, self.plan.pending, self.compute, cpus=int(cpus))

    @property
    def worker(self) -> int:
        """Memory of the worker that needs most, as far as it can be told before a download."""
        text = text_of(self.plan.needed)
        return max((need(node, text).memory or 0 for node in self.plan.pending), default=0)


def sender() -> str:
    """Versions on this side."""
    return f"trimtab {trimtab.__version__}, Ray {version('ray')}, Python {platform.python_version()}"


def read(path: str | Path, overrides: Sequence[str] = (), *, smoke: bool = False) -> Read:
    """Check a job or search file. Raises JobError with every mistake."""
    path = Path(path)
    raw, source = read_yaml(path, "job or search file", "kind or space")
    if "space" in raw and "kind" not in raw:
        search = load_search(path, overrides, smoke=smoke)
        return Read(path, tuple(overrides), search.default, search, search.raw, (job_file(search.spec.job, path),))
    job = load_job(path, overrides)
    for text in overrides:
        override(raw, text, source)
    return Read(path, tuple(overrides), job, None, raw)


def prepared(found: Read, *, shared: Sequence[Path] = (), installed: bool = False, smoke: bool = False) -> Submission:
    """What would be sent. Raises JobError for what cannot be reached from a cluster, ResourceError for too much."""
    storage, said, problems = _storage(found.raw)
    root = _root([found.file, *found.also])
    reached = [*map(_absolute, shared), *([Path(storage)] if storage and Path(storage).is_absolute() else [])]
    files = {str(_absolute(path).relative_to(root)): path for path in (found.file, *found.also)}
    given, chosen = named(found.raw), _chosen(found)
    for one in (*given, *chosen):
        if any(one.path.is_relative_to(folder) for folder in reached):
            place = str(one.path)
        elif one.travels and one.path.is_relative_to(root):
            place = str(one.path.relative_to(root))
            files |= {str(path.relative_to(root)): path for path in one.files()}
        else:
            problems.append(_unreached(one, root))
            continue
        if place != one.text and one in chosen:
            problems.append(f"{one.field}: a choice, {one.text}, is {place} on the cluster; write it so")
        elif place != one.text:
            said.append(f"{one.field}={_quoted(place)}")
    if get(found.raw, "compute.address"):
        said.append("compute.address=null")
    name, *others = (str(_absolute(path).relative_to(root)) for path in (found.file, *found.also))
    if found.search and others != [found.search.spec.job]:
        said.append(f"job={_quoted(others[0])}")
    command = ["python", "-m", "trimtab", found.verb, name, *found.overrides, *said, *["--smoke"] * smoke, "--json"]
    problems += _secrets([*command, *(path.read_text(errors="replace") for path in (found.file, *found.also))])
    if problems:
        raise JobError(problems)
    about = {"name": found.job.name, "kind": found.verb, "job": found.file.name, "digest": found.digest}
    parcel, package = Parcel("files of the job", files), None if installed else code()
    for one in filter(None, (parcel, package)):
        one.fits()
    stem = f"{_usable(found.job.name)[:NAMED]}-{found.digest}"
    return Submission(stem, command, parcel, package, about | {"sent_by": sender()}, found.job.compute, found.plan)


def _usable(name: str) -> str:
    """As a job's id and a run's may begin."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).lstrip("-_.") or "job"


def _storage(raw: Mapping[str, Any]) -> tuple[str | None, list[str], list[str]]:
    """The storage said for the cluster, what is to be said of it there, and what is wrong with it."""
    given, ours = get(raw, "compute.storage"), os.environ.get("TRIMTAB_STORAGE")
    place = str(given) if given else ours
    way = "give a path that all nodes of the cluster reach, as in compute.storage=/mnt/shared/trimtab"
    if place and place.startswith("memory://"):
        return None, [], [f"compute.storage: {place!r} is the memory of one process; {way}"]
    if place and "://" not in place and not place.startswith("/"):
        return None, [], [f"compute.storage: {place!r} is a folder of this machine; {way}"]
    return place, [f"compute.storage={_quoted(ours)}"] if ours and not given else [], []


def _quoted(text: str) -> str:
    """As YAML reads it; of JSON's escapes it takes one for a character, not two."""
    return json.dumps(text, ensure_ascii=False)


def _chosen(found: Read) -> list[Named]:
    """What the choices of a search name, and its default does not."""
    space = found.search.spec.space if found.search else {}
    changes = [{path: value} for path, one in space.items() if isinstance(one, Choice) for value in one.choice]
    there = {one: None for change in changes for one in named(changed_by(found.raw, change))}
    return [one for one in there if one not in named(found.raw)]


def _root(files: Sequence[Path]) -> Path:
    """The folder whose inside keeps its paths: the current one, or the nearest that holds all of a job's files."""
    places, here = [_absolute(path) for path in files], Path.cwd()
    if all(place.is_relative_to(here) for place in places):
        return here
    return Path(os.path.commonpath([place.parent for place in places]))


def _unreached(one: Named, root: Path) -> str:
    way = "put it below compute.storage, or say --shared FOLDER of one that all nodes reach under the same path"
    if one.what == "checkpoint":
        return f"{one.field}: {one.text}: checkpoints do not travel; {way}"
    if one.what == "model":
        return f"{one.field}: {one.text}: weights do not travel; {way}, or give a hub id or models:/NAME@ALIAS"
    return f"{one.field}: {one.text} lies on this machine outside {root}, so it does not travel; {way}, or move it"


def _secrets(texts: Sequence[str]) -> list[str]:
    """Secrets of this environment, and passwords in addresses, that would be seen by all who may list jobs."""
    ours = {name: value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= LONG_ENOUGH}
    found = [name for name, value in ours.items() if any(value in text for text in texts)]
    way = "leave it out; give it to the cluster's nodes as a secret of their own environment"
    problems = [f"the value of {name} would travel in the open; {way}" for name in found]
    passwords = any(PASSWORD.search(text) for text in texts)
    return problems + [f"an address holds a password that would travel in the open; {way}"] * passwords


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))
