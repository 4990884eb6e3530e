"""What the missing stages will need of memory and disk, from the models' sizes; and whether the machine has it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.alignment import GenerateSpec, LogprobSpec, OnlineSpec, PolicySpec, PromptSpec, RewardModel, RewardSpec
from trimtab.compute import Compute
from trimtab.debating import DebateSpec, JudgeSpec
from trimtab.errors import ResourceError
from trimtab.models.builtin import KNOWN
from trimtab.models.source import split_source
from trimtab.parts import FeatureSpec, Full, LoRA, ModelSpec, Probe, TaskSpec, Top, TrainSpec
from trimtab.run.artifact import Node
from trimtab.run.nodes import arrived
from trimtab.run.remote import check_writable

PROCESS = 900 * 2**20
"""A worker with its libraries loaded."""
SMALL = 2**20
TRAINED = 16
"""Bytes a trained weight: bfloat16 weight and gradient, float32 master and two moments of AdamW."""
FROZEN = 2
BUILTIN_TEXT = 512 * 2**10
MOVE = "set compute.storage or TRIMTAB_STORAGE to another folder"


@dataclass(frozen=True)
class Need:
    """Bytes; None where they cannot be told before a model or data set is downloaded."""

    memory: int | None
    disk: int | None


@dataclass(frozen=True)
class Size:
    """A network's weights and layers."""

    weights: int
    layers: int

    @property
    def width(self) -> int:
        """About the length of one state: a decoder layer has some 12 x width x width weights."""
        return int((self.weights / (12 * self.layers)) ** 0.5)


def whole_size(model: ModelSpec) -> Size | None:
    """A model before its cut, as far as it can be told without loading or downloading it."""
    kind, name = split_source(model.source)
    if kind == "builtin" and name in KNOWN:
        return Size(KNOWN[name].parameters, KNOWN[name].layers)
    folder = Path(name).expanduser()
    if kind != "folder" or not (folder / "config.json").is_file():
        return None
    try:
        layers = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    except (ValueError, KeyError, TypeError):
        return None
    weights = sum(p.stat().st_size for p in folder.glob("*.safetensors")) // FROZEN
    return Size(weights, layers) if isinstance(layers, int) and layers > 0 else None


def size_of(model: ModelSpec) -> Size | None:
    """A model after its cut; of an embedding the same share is taken as of the layers."""
    whole = whole_size(model)
    if whole is None:
        return None
    kept = model.layers if isinstance(model.layers, int) else len(model.layers or range(whole.layers))
    return Size(whole.weights * kept // whole.layers, kept)


def need(node: Node, text: int | None = 0) -> Need:
    """Memory of one worker and disk of the output of a stage, on a task of `text` bytes."""
    spec = node.spec
    if isinstance(spec, FeatureSpec):
        size, whole = size_of(spec.model), whole_size(spec.model)
        if size is None or whole is None or text is None:
            return Need(None, None)
        tokens = text // 4 if spec.keep == "tokens" else text // 40
        return Need(PROCESS + size.weights * FROZEN, SMALL + tokens * whole.width * FROZEN)
    if isinstance(spec, TrainSpec | PolicySpec | RewardSpec | OnlineSpec):
        size = size_of(spec.model)
        if isinstance(spec.tune, Probe):
            return Need(PROCESS, SMALL)
        if size is None:
            return Need(None, None)
        share = {Full: 1.0, LoRA: 0.02}.get(type(spec.tune), 0.0)
        share = spec.tune.layers / size.layers if isinstance(spec.tune, Top) else share
        return Need(PROCESS + int(size.weights * (FROZEN + TRAINED * share)), SMALL + size.weights * FROZEN)
    if isinstance(spec, GenerateSpec | LogprobSpec | RewardModel | DebateSpec | JudgeSpec):
        size = size_of(spec.model)
        return Need(None, None) if size is None else Need(PROCESS + size.weights * FROZEN, SMALL)
    return Need(PROCESS, SMALL) if node.stage.on == "workers" else Need(200 * 2**20, SMALL)


def text_of(nodes: Sequence[Node]) -> int | None:
    """Bytes of the task's files."""
    tasks = [node.spec for node in nodes if isinstance(node.spec, TaskSpec | PromptSpec)]
    named = [s for task in tasks for s in ((task.source,) if isinstance(task.source, str) else task.source)]
    sources = named + [task.test for task in tasks if task.test]
    sizes = [_bytes(source) for source in sources]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _bytes(source: str) -> int | None:
    path = Path(source).expanduser()
    if source.startswith("builtin:"):
        return BUILTIN_TEXT
    files = [path] if path.is_file() else list(path.glob("*") if path.is_dir() else path.parent.glob(f"{path.name}.*"))
    return sum(file.stat().st_size for file in files if file.is_file()) if files else None


def total(nodes: Sequence[Node], pending: Sequence[Node], compute: Compute, *, cpus: int) -> Need:
    """Peak memory of the pending stages that can run side by side, and disk of all their outputs."""
    text = text_of(nodes)
    needs = [need(node, text) for node in pending]
    if any(n.memory is None or n.disk is None for n in needs):
        return Need(None, None)
    heavy = sorted((n.memory or 0 for n, node in zip(needs, pending, strict=True) if node.stage.on == "workers"))
    side_by_side = compute.groups or max(1, int(cpus // (compute.workers * compute.cpus_per_worker)))
    groups = side_by_side if compute.backend == "ray" else 1
    return Need(sum(heavy[-groups:]) * compute.workers, sum(n.disk or 0 for n in needs))


def free_here(compute: Compute) -> Need:
    """What this machine has; memory is None where the work is done on a cluster elsewhere."""
    import psutil

    remote = compute.backend == "ray" and (compute.address or os.environ.get("RAY_ADDRESS"))
    return Need(None if remote else psutil.virtual_memory().available, _disk(compute.storage))


def _disk(place: Path) -> int:
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free


def machine(storage: Path) -> dict[str, str]:
    """Cores, memory, disk and devices, in words."""
    import psutil

    memory = psutil.virtual_memory()
    found = {"cores": str(os.cpu_count()), "memory": f"{gib(memory.available)} free of {gib(memory.total)}"}
    found["disk"] = f"{gib(_disk(storage))} free at {storage}"
    try:
        import torch

        from trimtab.models.network import has_fast_bf16
    except ImportError as error:
        return found | {"devices": f"torch cannot be imported: {error}"}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found | {"devices": ", ".join(gpus) or "cpu", "fast bfloat16": "yes" if has_fast_bf16() else "no"}


def preflight(needed: Need, compute: Compute, *, free: Need) -> None:
    """Make the storage folder. Raises ResourceError, before it does, when there is too little memory or disk.

    On a cluster that the job was sent to also where that cluster cannot keep its results; and where a remote storage
    cannot be reached, or not be written to.
    """
    arrived(compute)
    if needed.memory and free.memory is not None and needed.memory > free.memory:
        way = "lower compute.groups or compute.workers, or use tune: {kind: lora}"
        raise ResourceError(_short("memory", needed.memory, free.memory, way))
    if needed.disk and free.disk is not None and needed.disk > free.disk:
        raise ResourceError(_short("disk", needed.disk, free.disk, f"make room, {MOVE}"))
    try:
        compute.artifacts.mkdir(parents=True, exist_ok=True)
        writable = os.access(compute.artifacts, os.W_OK)
    except OSError as error:
        raise ResourceError(f"storage {compute.storage} cannot be made ({error.strerror}); {MOVE}") from error
    if not writable:
        raise ResourceError(f"storage {compute.storage} cannot be written to; {MOVE}")
    check_writable(compute.remote)


def _short(what: str, needed: int, free: int, way_out: str) -> str:
    return f"too little {what}: the plan needs about {gib(needed)}, there is {gib(free)}; {way_out}"


def gib(size: int | None) -> str:
    """Bytes in words; unknown before a download."""
    if size is None:
        return "unknown until downloaded"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
