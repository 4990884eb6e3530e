"""The nodes of a cluster that a run joins: do all of them reach its storage, and hold the same libraries?"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import trimtab
from trimtab.compute import Compute
from trimtab.errors import ResourceError
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


def suited(ray: Any, compute: Compute) -> None:
    """Raises ResourceError where nodes do not reach the storage or have other libraries; a single one always does.

    A node that does not answer is left to Ray.
    """
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    with _probe(compute) as probe:
        seen = list(_looked(ray, nodes, probe))
    if apart := [one.address for one in seen if not one.reaches]:
        raise ResourceError(
            f"storage {compute.storage}: {len(apart)} of {len(nodes)} nodes ({_few(apart)}) do not see what this one "
            f"writes there, so their results would be lost; {WAY}"
        )
    if unlike := list(_unlike(seen)):
        raise ResourceError("nodes with other libraries than the driver's: " + "; ".join(unlike))


def offered(ray: Any) -> dict[str, float]:
    """What a cluster has, or can have where an autoscaler adds nodes."""
    from ray._private.state import state

    most = state.get_max_resources_from_cluster_config() or {}
    there = ray.cluster_resources()
    return there | {name: max(value, there.get(name, 0)) for name, value in most.items()}


@contextmanager
def _probe(compute: Compute) -> Iterator[Path | None]:
    """A file of ours in the storage, for as long as the context lasts; none where all nodes reach it by a URL."""
    if compute.remote:
        yield None
        return
    compute.storage.mkdir(parents=True, exist_ok=True)
    probe = compute.storage / f".probe-{uuid.uuid4().hex}"
    probe.write_text(probe.name)
    try:
        yield probe
    finally:
        probe.unlink(missing_ok=True)


def _looked(ray: Any, nodes: Sequence[str], probe: Path | None) -> Iterator[Seen]:
    """What each node sees, of those that answer."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(seen_here)
    tasks = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)).remote(probe) for n in nodes
    ]
    answered, _ = ray.wait(tasks, num_returns=len(tasks), timeout=ANSWERS_WITHIN_S)
    for task in answered:
        try:
            yield ray.get(task)
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
