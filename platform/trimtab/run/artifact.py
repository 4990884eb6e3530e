"""Artifacts by key: a stage's output folder is named by what made it, and a folder that exists is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from trimtab.compute import Compute
from trimtab.errors import Stopped
from trimtab.run.identity import identity
from trimtab.sharing import shared
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
    remote: str | None = None

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
    def lease(self) -> Path:
        """The file that whoever makes it holds locked."""
        return self.root.parent / "leases" / f"{self.id}.lock"

    @property
    def known(self) -> Path:
        """What was last seen of it in a remote storage: the mark of the attempt that stands there."""
        return self.root.parent / "known" / f"{self.id}.json"

    @property
    def here(self) -> bool:
        """Whether its folder is on this node."""
        return (self.folder / METRICS).exists()

    @property
    def ready(self) -> bool:
        return self.here or (self.remote is not None and self.known.exists())

    def metrics(self) -> Metrics:
        return self._said(METRICS)

    def record(self) -> dict[str, Any]:
        return self._said(RECORD)

    def _said(self, name: str) -> dict[str, Any]:
        if self.remote is None or self.here:
            return json.loads((self.folder / name).read_text())
        return json.loads(self.known.read_text())[name]


Input = Artifact | Mapping[str, Artifact]
Split = Literal["validation", "test"]


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

    def outcome(self, split: Split, name: str, artifact: Artifact) -> None:
        """Say which artifact tells, for one seed, how well something did: a search may read those of validation."""
        ...


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
    """Collects the stage graph without running anything; nodes stand in an order in which they can run.

    `ends` are what has to be there in the end: by default all that nothing else needs, without the outcomes of
    validation rows, which are for searches. `outcomes` hold one artifact a seed for each split and name.
    """

    compute: Compute
    prefix: str = ""
    nodes: dict[str, Node] = field(default_factory=dict)
    outcomes: dict[tuple[Split, str], list[Artifact]] = field(default_factory=dict)
    ends: list[Artifact] | None = None

    def __call__(self, stage: Stage, spec: Spec, *, label: str = "", **inputs: Input) -> Artifact:
        label = " / ".join(filter(None, [self.prefix, label or stage.__name__]))
        made = Artifact(stage.__name__, "", self.compute.artifacts.resolve(), remote=self.compute.remote)
        draft = Node(stage, spec, inputs, made, label)
        key = key_of(stage, spec, draft.needs)
        node = replace(draft, artifact=replace(draft.artifact, key=key))
        return self.nodes.setdefault(node.artifact.id, node).artifact

    def under(self, prefix: str) -> PlanRunner:
        return replace(self, prefix=" / ".join(filter(None, [self.prefix, prefix])))

    def outcome(self, split: Split, name: str, artifact: Artifact) -> None:
        self.outcomes.setdefault((split, name), []).append(artifact)

    @property
    def pending(self) -> list[Node]:
        """Nodes whose output does not exist yet and that an end of the graph still needs."""
        return self._behind(self._ends(), lambda node: not node.artifact.ready)

    @property
    def needed(self) -> list[Node]:
        """All nodes that an end of the graph hangs on, and the ends."""
        return self.behind([self.nodes[stage_id].artifact for stage_id in self._ends()])

    def behind(self, ends: Collection[Artifact]) -> list[Node]:
        """The nodes that these artifacts are made by, and all that those hang on, in the order of the plan."""
        return self._behind({artifact.id for artifact in ends}, lambda node: True)

    def _behind(self, ends: Collection[str], counts: Callable[[Node], bool]) -> list[Node]:
        met: set[str] = set()
        todo = list(ends)
        while todo:
            node = self.nodes.get(todo.pop())
            if node and node.artifact.id not in met and counts(node):
                met.add(node.artifact.id)
                todo += [artifact.id for artifact in node.needs.values()]
        return [node for node in self.nodes.values() if node.artifact.id in met]

    def _ends(self) -> set[str]:
        if self.ends is not None:
            return {artifact.id for artifact in self.ends}
        inner = {a.id for n in self.nodes.values() for a in n.needs.values()}
        chosen_by = {a.id for (split, _), found in self.outcomes.items() if split == "validation" for a in found}
        return self.nodes.keys() - inner - chosen_by


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
        if aside.exists():
            aside.rename(failed)
        raise


def finish(artifact: Artifact, aside: Path, *, record: dict[str, Any], metrics: Metrics) -> None:
    """Write the record, then the metrics, and rename, unless another was first; what earlier attempts left goes."""
    (aside / RECORD).write_text(json.dumps(record, indent=1))
    (aside / METRICS).write_text(json.dumps(metrics, indent=1))
    shared(*aside.rglob("*"))
    try:
        aside.rename(artifact.folder)
    except OSError:
        if not artifact.here:
            raise
        shutil.rmtree(aside, ignore_errors=True)
    for left in (artifact.root / f".{artifact.id}.failed", artifact.partial):
        shutil.rmtree(left, ignore_errors=True)
