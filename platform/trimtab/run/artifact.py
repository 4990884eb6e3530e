"""Artifacts by key: a stage's output folder is named by what made it, and a folder that exists is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from trimtab.compute import Compute
from trimtab.errors import Stopped
from trimtab.run.identity import identity
from trimtab.spec import Spec
from trimtab.stages._base import Metrics, Stage

METRICS = "metrics.json"
RECORD = "stage.json"


@dataclass(frozen=True)
class Artifact:
    """The output of a stage, or with `/` a named part of it. It has a path before it exists."""

    stage: str
    key: str
    root: Path
    part: str = ""

    def __truediv__(self, part: str) -> Artifact:
        return replace(self, part=f"{self.part}/{part}" if self.part else part)

    @property
    def id(self) -> str:
        return f"{self.stage}-{self.key}"

    @property
    def ref(self) -> str:
        return f"{self.id}/{self.part}" if self.part else self.id

    @property
    def folder(self) -> Path:
        return self.root / self.id

    @property
    def path(self) -> Path:
        return self.folder / self.part

    @property
    def partial(self) -> Path:
        """Where a stage that resumes leaves what it has so far."""
        return self.root.parent / "partial" / self.id

    @property
    def ready(self) -> bool:
        return (self.folder / METRICS).exists()

    def metrics(self) -> Metrics:
        return json.loads((self.folder / METRICS).read_text())

    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / RECORD).read_text())


Input = Artifact | Mapping[str, Artifact]


@dataclass(frozen=True)
class Node:
    """One call of a stage in a plan."""

    stage: Stage
    spec: Spec
    inputs: dict[str, Input]
    artifact: Artifact
    label: str

    @property
    def needs(self) -> dict[str, Artifact]:
        """Every input artifact by its name; those of a mapping as name.key."""
        flat: dict[str, Artifact] = {}
        for name, value in self.inputs.items():
            flat |= {name: value} if isinstance(value, Artifact) else {f"{name}.{k}": v for k, v in value.items()}
        return flat

    def arguments(self) -> dict[str, Any]:
        """The inputs as paths, the way the stage receives them; with `partial` where it resumes."""
        paths = {
            name: value.path if isinstance(value, Artifact) else {k: v.path for k, v in value.items()}
            for name, value in self.inputs.items()
        }
        return paths | ({"partial": self.artifact.partial} if self.stage.resumes else {})

    def describe(self) -> dict[str, Any]:
        return {
            "stage_id": self.artifact.id,
            "stage": self.artifact.stage,
            "label": self.label,
            "key": self.artifact.key,
            "version": self.stage.version,
            "spec": self.spec.model_dump(mode="json"),
            "inputs": {name: artifact.ref for name, artifact in self.needs.items()},
        }


class Runner(Protocol):
    """Decides whether calling a stage plans it, runs it here, or runs it on Ray."""

    def __call__(self, stage: Stage, spec: Spec, *, label: str = "", **inputs: Input) -> Artifact: ...

    def under(self, prefix: str) -> Runner: ...


def key_of(stage: Stage, spec: Spec, inputs: Mapping[str, Artifact]) -> str:
    """Hash of the stage's name and version, the spec, and what the inputs are named by."""
    content = {
        "stage": stage.__name__,
        "version": stage.version,
        "spec": identity(spec),
        "inputs": {name: artifact.ref for name, artifact in sorted(inputs.items())},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass
class PlanRunner:
    """Collects the stage graph without running anything; nodes stand in an order in which they can run."""

    compute: Compute
    prefix: str = ""
    nodes: dict[str, Node] = field(default_factory=dict)

    def __call__(self, stage: Stage, spec: Spec, *, label: str = "", **inputs: Input) -> Artifact:
        label = " / ".join(filter(None, [self.prefix, label or stage.__name__]))
        draft = Node(stage, spec, inputs, Artifact(stage.__name__, "", self.compute.artifacts.resolve()), label)
        key = key_of(stage, spec, draft.needs)
        node = replace(draft, artifact=replace(draft.artifact, key=key))
        return self.nodes.setdefault(node.artifact.id, node).artifact

    def under(self, prefix: str) -> PlanRunner:
        return replace(self, prefix=" / ".join(filter(None, [self.prefix, prefix])))

    @property
    def pending(self) -> list[Node]:
        """Nodes whose output does not exist yet and that an end of the graph still needs."""
        wanted: dict[str, None] = {}
        inner = {a.id for n in self.nodes.values() for a in n.needs.values()}
        todo = [n for n in self.nodes.values() if n.artifact.id not in inner]
        while todo:
            node = todo.pop()
            if node.artifact.id in wanted or node.artifact.ready:
                continue
            wanted[node.artifact.id] = None
            todo += [self.nodes[a.id] for a in node.needs.values() if a.id in self.nodes]
        return [n for n in self.nodes.values() if n.artifact.id in wanted]


@contextmanager
def building(artifact: Artifact) -> Iterator[Path]:
    """A folder aside to write into; when the block fails it is kept as .failed, when it is stopped it goes."""
    aside = artifact.root / f".{artifact.id}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    aside.mkdir(parents=True)
    try:
        yield aside
    except (Stopped, KeyboardInterrupt):
        shutil.rmtree(aside, ignore_errors=True)
        raise
    except BaseException:
        failed = artifact.root / f".{artifact.id}.failed"
        shutil.rmtree(failed, ignore_errors=True)
        aside.rename(failed)
        raise


def finish(artifact: Artifact, aside: Path, *, record: dict[str, Any], metrics: Metrics) -> None:
    """Write the record, then the metrics, and rename; when another writer was first, its folder stands.

    What earlier attempts had left is no longer needed.
    """
    (aside / RECORD).write_text(json.dumps(record, indent=1))
    (aside / METRICS).write_text(json.dumps(metrics, indent=1))
    try:
        aside.rename(artifact.folder)
    except OSError:
        if not artifact.ready:
            raise
        shutil.rmtree(aside, ignore_errors=True)
    for left in (artifact.root / f".{artifact.id}.failed", artifact.partial):
        shutil.rmtree(left, ignore_errors=True)
