"""The nodes of a cluster: is there room for the workers, do all reach the storage, and hold the same libraries?"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import trimtab
from trimtab.compute import Compute
from trimtab.errors import ResourceError
from trimtab.run.store import store_of
from trimtab.versions import LIBRARIES

LOOKS_FOR_S = 5.0
"""What one node writes, another sees on a network's file system after a while."""
ANSWERS_WITHIN_S = 120.0
ABSENT = "absent"
UNPACKED = "runtime_resources"
"""Ray's folder for what came with a job; it goes when the job does."""
WAY = "set compute.storage or TRIMTAB_STORAGE to a folder that all nodes reach (NFS, a shared volume), or to s3://..."


@dataclass(frozen=True)
class Seen:
    """A node as seen from a task on it."""

    address: str
    reaches: bool
    versions: dict[str, str]


def arrived(compute: Compute) -> None:
    """Raises ResourceError where a job was sent here that this cluster's trimtab, libraries or storage do not suit."""
    sent_by = os.environ.get("TRIMTAB_SENT_BY", "").partition(",")[0]
    if sent_by and sent_by != f"trimtab {trimtab.__version__}":
        raise ResourceError(
            f"this cluster has trimtab {trimtab.__version__}, the job was checked by {sent_by}; submit it without "
            "--installed, or bring both to one version"
        )
    if sent_by and (lacking := [name for name, found in libraries().items() if found == ABSENT]):
        raise ResourceError(f"this cluster lacks {', '.join(lacking)}; install what trimtab's constraints.txt pins")
    if UNPACKED in compute.storage.parts:
        raise ResourceError(f"storage {compute.storage} is the folder of this job and goes with it; {WAY}")


def living(ray: Any) -> list[Mapping[str, float]]:
    """What each living node has, be it in use or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room(nodes: Sequence[Mapping[str, float]], compute: Compute) -> int:
    """How many workers fit on nodes with these resources. Raises ResourceError, with numbers, for too few."""
    cpus, gpus = compute.cpus_per_worker, compute.gpus(sum(node.get("GPU", 0) for node in nodes))
    fit, least = sum(_fit(node, cpus, gpus) for node in nodes), compute.sizes[0]
    if fit >= least:
        return fit
    most = max(nodes, key=lambda node: (bool(gpus) * node.get("GPU", 0), node.get("CPU", 0)), default={})
    raise ResourceError(
        f"compute: {least} worker{'s' * (least != 1)} of {cpus:g} CPUs and {gpus:g} GPUs each do not fit: there is "
        f"room for {fit} on {len(nodes)} node{'s' * (len(nodes) != 1)}, the largest with {most.get('CPU', 0):g} CPUs "
        f"and {most.get('GPU', 0):g} GPUs; lower compute.workers, compute.cpus_per_worker or compute.gpus_per_worker, "
        "or set compute.grows where an autoscaler adds nodes"
    )


def _fit(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many workers of a size; parts of a GPU are all of one."""
    fit = _times(node.get("CPU", 0), cpus)
    if gpus:
        there = node.get("GPU", 0)
        fit = min(fit, _times(there, gpus) if gpus >= 1 else int(there) * _times(1, gpus))
    return fit


def _times(whole: float, part: float) -> int:
    return int(whole / part + 1e-6)


def suited(ray: Any, compute: Compute) -> None:
    """Raises ResourceError where nodes do not reach the storage or have other libraries; a single one always does.

    A node that does not answer, or is lost meanwhile, is left to Ray.
    """
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    with _probe(_folder(compute)) as probe:
        seen = list(_looked(ray, nodes, probe))
    if apart := [one.address for one in seen if not one.reaches]:
        place = compute.remote or compute.storage
        raise ResourceError(
            f"storage {place}: {len(apart)} of {len(nodes)} nodes ({_few(apart)}) do not see what this one writes "
            f"there, so their results would be lost; {WAY}"
        )
    if unlike := list(_unlike(seen)):
        raise ResourceError("nodes with other libraries than the driver's: " + "; ".join(unlike))


def _folder(compute: Compute) -> Path | None:
    """The folder that all nodes must see; none where they reach the storage over a network.

    Raises ResourceError for a storage that no other process reaches.
    """
    scheme = (compute.remote or "").partition("://")[0]
    if scheme == "memory":
        raise ResourceError(f"storage {compute.remote} is the memory of one process; {WAY}")
    if scheme in ("file", "local"):
        return Path(store_of(compute.remote).root)
    return None if compute.remote else compute.storage


@contextmanager
def _probe(folder: Path | None) -> Iterator[Path | None]:
    """A file of ours in a folder, if there is one, for as long as the context lasts."""
    if folder is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{uuid.uuid4().hex}"
    probe.write_text(probe.name)
    try:
        yield probe
    finally:
        probe.unlink(missing_ok=True)


def _looked(ray: Any, nodes: Sequence[str], probe: Path | None) -> Iterator[Seen]:
    """What each node sees, of those that answer. Raises ResourceError where one cannot so much as look."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(seen_here)
    tasks = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)).remote(probe) for n in nodes
    ]
    answered, _ = ray.wait(tasks, num_returns=len(tasks), timeout=ANSWERS_WITHIN_S)
    for task in answered:
        try:
            yield ray.get(task)
        except ray.exceptions.RayTaskError as error:
            told = str(error).strip().splitlines()[-1]
            raise ResourceError(f"a node cannot run trimtab {trimtab.__version__}: {told}") from error
        except ray.exceptions.RayError:
            continue


def seen_here(probe: Path | None) -> Seen:
    """Whether this node sees the probe, if there is one, and which libraries it has."""
    import ray

    until = time.monotonic() + LOOKS_FOR_S
    while not (there := probe is None or probe.is_file()) and time.monotonic() < until:
        time.sleep(0.25)
    return Seen(ray.util.get_node_ip_address(), there, libraries())


def libraries() -> dict[str, str]:
    """Versions without what tells builds for devices apart."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            found[name] = ABSENT
    return found | {"trimtab": trimtab.__version__}


def _unlike(seen: Sequence[Seen]) -> Iterator[str]:
    ours = libraries()
    for one in seen:
        other = [
            f"{name} {one.versions[name]} (here {ours[name]})" for name in ours if one.versions[name] != ours[name]
        ]
        if other:
            yield f"{one.address}: {', '.join(other)}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
