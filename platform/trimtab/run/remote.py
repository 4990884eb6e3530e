"""Storage behind a URL, through fsspec: what is made is pushed there, what is needed is fetched to this node's mirror.

`artifacts/STAGE-KEY/ATTEMPT/` holds what one attempt made, `files.json` in it names the files, and `whole.json` beside
it, written last, says which attempt stands, with its metrics and record: without it nothing is seen. Two that make the
same stage push to folders of their own. The first to be whole stands where the store can create a file only if there
is none (S3, Google Cloud Storage), elsewhere the last; what stands was always made by one. Nothing that stands is ever
removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab.errors import ResourceError, StageError
from trimtab.models.source import folder_hash
from trimtab.run.artifact import METRICS, RECORD, Artifact, finish
from trimtab.run.lease import leased
from trimtab.run.log import LOG
from trimtab.run.store import store_of
from trimtab.run.track_words import link
from trimtab.stages._base import Metrics

WHOLE = "whole.json"
FILES = "files.json"
MADE = ".made"
"""Lies in the folder of an attempt that came to its end on nodes that all see it."""
NAMED = r"(?:artifact:|{root}/)(\w+)-([0-9a-f]{{16}})"
"""How a spec, or a job, names a stage's output as a model's source."""


def check_writable(url: str | None) -> None:
    """Raises ResourceError where nothing can be written."""
    if url is not None:
        store_of(url).write("trimtab.json", b'{"layout": 1}\n')


def look(artifacts: Iterable[Artifact]) -> None:
    """Bring up to date which of them stand in their remote storage. Raises ResourceError."""
    wanted = {f"artifacts/{one.id}/{WHOLE}": one for one in artifacts if one.remote is not None}
    if not wanted:
        return
    found = store_of(next(iter(wanted.values())).remote).read(wanted)
    for name, artifact in wanted.items():
        _note(artifact, _parsed(found.get(name)))


def _parsed(mark: bytes | None) -> dict[str, Any] | None:
    """A mark; None where there is none, or only the beginning of one."""
    with suppress(ValueError, TypeError):
        said = json.loads(mark)
        return said if isinstance(said, dict) and {"attempt", METRICS, RECORD} <= said.keys() else None
    return None


def _note(artifact: Artifact, mark: dict[str, Any] | None) -> None:
    if mark is None:
        artifact.known.unlink(missing_ok=True)
        return
    artifact.known.parent.mkdir(parents=True, exist_ok=True)
    aside = artifact.known.with_name(f".{artifact.id}.{uuid.uuid4().hex[:8]}")
    aside.write_text(json.dumps(mark))
    aside.replace(artifact.known)


def fetch(artifacts: Iterable[Artifact]) -> None:
    """See that their folders are on this node, one process at a time. Raises ResourceError."""
    for artifact in {one.id: one for one in artifacts if one.remote is not None and not one.here}.values():
        lock = artifact.lease.with_name(f"{artifact.id}.fetch.lock")
        with leased(lock, waits=lambda: None, stopped=lambda: False):
            if not artifact.here:
                _fetch(artifact)


def fetched(artifact: Artifact) -> Path:
    """Its path, on this node. Raises ResourceError."""
    fetch([artifact])
    return artifact.path


def _fetch(artifact: Artifact) -> None:
    look([artifact])
    if not artifact.known.exists():
        raise ResourceError(f"{artifact.id} is neither here nor in {artifact.remote}; run the job again to make it")
    mark = json.loads(artifact.known.read_text())
    under = f"artifacts/{artifact.id}/{mark['attempt']}"
    store = store_of(artifact.remote)
    files = json.loads(store.read([f"{under}/{FILES}"]).get(f"{under}/{FILES}", b"null"))
    aside = artifact.root / f".{artifact.id}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    aside.mkdir(parents=True)
    try:
        store.get({f"{under}/{name}": aside / name for name in files or ()})
        wrong = [name for name, written in (files or {}).items() if described(aside / name) != written]
        if files is None or wrong:
            text = f"{wrong[0]} is not what was pushed" if wrong else f"it has no {FILES}"
            way = f"remove {artifact.remote}/artifacts/{artifact.id}/{WHOLE} to have it made again"
            raise ResourceError(f"{artifact.remote}/{under}: {text}; {way}")
        for name in (RECORD, METRICS):
            (aside / name).write_text(json.dumps(mark[name], indent=1))
        aside.rename(artifact.folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def named_in(text: str, like: Artifact) -> list[Artifact]:
    """Outputs of other stages that a spec or job names, beside those that are its inputs."""
    found = re.findall(NAMED.format(root=re.escape(str(like.root))), text)
    return [replace(like, stage=stage, key=key, part="") for stage, key in found]


def adopted(model: Path, like: Artifact) -> Path:
    """A model that only this node has, as an output of a stage is kept: all nodes fetch it when a spec names it."""
    if like.remote is None or model.resolve().is_relative_to(like.root):
        return model
    made = replace(like, stage="registered", key=folder_hash(model), part="")
    if not made.here:
        aside = made.root / f".{made.id}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        shutil.copytree(model, aside / "model", copy_function=link)
        finish(made, aside, record={"seconds": 0.0}, metrics={})
    return made.folder / "model"


def described(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def push(artifact: Artifact, folder: Path, attempt: str) -> None:
    """What an attempt made in one folder, but for the mark."""
    files = {name: path for name, path in files_in(folder).items() if name not in (METRICS, RECORD)}
    write_names(artifact, sent(artifact, files, attempt), attempt)


def files_in(folder: Path) -> dict[str, Path]:
    """Files below a folder, by their names in it."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def sent(artifact: Artifact, files: Mapping[str, Path], attempt: str) -> dict[str, Any]:
    """Push some files of an attempt; how each is described."""
    store_of(artifact.remote).put({f"artifacts/{artifact.id}/{attempt}/{name}": path for name, path in files.items()})
    return {name: described(path) for name, path in files.items()}


def write_names(artifact: Artifact, files: Mapping[str, Any], attempt: str) -> None:
    """Once all files of an attempt are there, which they are."""
    store_of(artifact.remote).write(f"artifacts/{artifact.id}/{attempt}/{FILES}", json.dumps(files).encode())


def finished(artifact: Artifact, aside: Path, *, record: dict[str, Any], metrics: Metrics) -> None:
    """Finish an artifact, here and in its remote storage; what another node has made and pushed is only marked.

    Raises StageError where it stands here, but could not be pushed.
    """
    if artifact.remote is None:
        finish(artifact, aside, record=record, metrics=metrics)
        return
    attempt, here = attempt_of(aside), (aside / MADE).exists()
    (aside / MADE).unlink(missing_ok=True)
    try:
        if here:
            push(artifact, aside, attempt)
        stands = _marked(artifact, attempt, record=record, metrics=metrics)
    except ResourceError as error:
        if not here:
            raise
        finish(artifact, aside, record=record, metrics=metrics)
        raise StageError(f"it is made and kept here; the same command pushes it: {error}") from error
    with suppress(ResourceError):
        store_of(artifact.remote).remove(f"partial/{artifact.id}")
    if here and stands["attempt"] == attempt:
        finish(artifact, aside, record=record, metrics=metrics)
    else:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(artifact.partial, ignore_errors=True)


def attempt_of(out: Path) -> str:
    """The last part of the name of the folder that an attempt writes into."""
    return out.name[-8:]


def _marked(artifact: Artifact, attempt: str, *, record: dict[str, Any], metrics: Metrics) -> dict[str, Any]:
    """Say that an attempt is whole; the mark that stands, which may be another's."""
    mark = {"attempt": attempt, METRICS: metrics, RECORD: record}
    store, name = store_of(artifact.remote), f"artifacts/{artifact.id}/{WHOLE}"
    stands = _parsed(store.create(name, json.dumps(mark).encode()))
    if stands is None:  # what was begun and never finished
        store.write(name, json.dumps(mark).encode())
    _note(artifact, stands or mark)
    return stands or mark


def deliver(artifacts: Iterable[Artifact]) -> None:
    """Push what stands on this node and, as was last seen, not in the remote storage. Raises ResourceError."""
    for artifact in artifacts:
        if artifact.remote is not None and artifact.here and not artifact.known.exists():
            attempt = uuid.uuid4().hex[:8]
            push(artifact, artifact.folder, attempt)
            _marked(artifact, attempt, record=artifact.record(), metrics=artifact.metrics())


def fetch_runs(storage: Path, remote: str | None, run_id: str | None) -> None:
    """The logs of runs, or of one, where the remote storage knows more of them than this node."""
    if remote is None:
        return
    store, under = store_of(remote), f"runs/{run_id}" if run_id else "runs"
    logs = {f"{under}/{name}": size for name, size in store.sizes(under).items() if name.endswith(LOG)}
    here = {name: path.stat().st_size for name in logs if (path := storage / name).exists()}
    store.get({name: storage / name for name, size in logs.items() if size > here.get(name, 0)})
