"""What the missing stages will need of memory and disk, from the models' sizes; and whether the machine has it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from trimtab.compute import Compute
from trimtab.errors import ResourceError
from trimtab.models.builtin import KNOWN
from trimtab.models.source import split_source
from trimtab.parts import Full, LoRA, ModelSpec, Probe, Top, TrainSpec
from trimtab.run.artifact import Node

PROCESS = 900 * 2**20
"""A worker with its libraries loaded."""
TRAINED = 16
"""Bytes a trained weight: bfloat16 weight and gradient, float32 master and two moments of AdamW."""
FROZEN = 2


@dataclass(frozen=True)
class Need:
    """Bytes; None where a model's size is not known before it is downloaded."""

    memory: int | None
    disk: int | None


def size_of(model: ModelSpec) -> tuple[int, int] | None:
    """(weights, layers) of a model after its cut, as far as it can be told without loading it."""
    kind, name = split_source(model.source)
    if kind == "builtin":
        weights, layers = KNOWN[name].parameters, KNOWN[name].layers
    elif kind == "folder":
        folder = Path(name).expanduser()
        weights = sum(p.stat().st_size for p in folder.glob("*.safetensors")) // 2
        layers = json.loads((folder / "config.json").read_text()).get("num_hidden_layers", 1)
    else:
        return None
    kept = model.layers if isinstance(model.layers, int) else len(model.layers or range(layers))
    return weights * kept // layers, kept


def need(node: Node) -> Need:
    """Memory of one worker and disk of the output of a stage."""
    spec = node.spec
    if isinstance(spec, TrainSpec):
        size = size_of(spec.model)
        if size is None:
            return Need(None, None)
        weights, layers = size
        if isinstance(spec.tune, Probe):
            return Need(PROCESS, 2**20)
        share = {Full: 1.0, LoRA: 0.02}.get(type(spec.tune), 0.0)
        share = spec.tune.layers / layers if isinstance(spec.tune, Top) else share
        return Need(PROCESS + int(weights * (FROZEN + TRAINED * share)), weights * FROZEN)
    return Need(PROCESS, 2**20) if node.stage.on == "workers" else Need(200 * 2**20, 2**20)


def total(nodes: list[Node], compute: Compute, cpus: int) -> Need:
    """Peak memory of the stages that can run side by side, and disk of all outputs."""
    needs = [need(node) for node in nodes if node.stage.on == "workers"]
    if any(n.memory is None for n in needs):
        return Need(None, None)
    side_by_side = compute.groups or max(1, int(cpus // (compute.workers * compute.cpus_per_worker)))
    groups = min(len(needs), side_by_side if compute.backend == "ray" else 1)
    memory = sum(sorted((n.memory or 0 for n in needs), reverse=True)[:groups]) * compute.workers
    return Need(memory, sum(n.disk or 0 for n in needs))


def preflight(nodes: list[Node], compute: Compute) -> None:
    """Raises ResourceError with the numbers when this machine has too little memory or disk for the plan."""
    import os

    import psutil

    needed = total(nodes, compute, os.cpu_count() or 1)
    compute.storage.mkdir(parents=True, exist_ok=True)
    free = {"memory": psutil.virtual_memory().available, "disk": shutil.disk_usage(compute.storage).free}
    remote = compute.address or os.environ.get("RAY_ADDRESS")
    if needed.memory and not remote and needed.memory > free["memory"]:
        raise ResourceError(
            _short("memory", needed.memory, free["memory"], "lower compute.groups or use tune: {kind: lora}")
        )
    if needed.disk and needed.disk > free["disk"]:
        raise ResourceError(_short("disk", needed.disk, free["disk"], "free some or move compute.storage"))


def _short(what: str, needed: int, free: int, way_out: str) -> str:
    return f"too little {what}: the plan needs about {gib(needed)}, there is {gib(free)}; {way_out}"


def gib(size: int | None) -> str:
    """Bytes in words; unknown before a download."""
    if size is None:
        return "unknown until downloaded"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
