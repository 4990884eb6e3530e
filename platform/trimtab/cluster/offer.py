"""Does a cluster have what a plan needs? Asked of its dashboard, before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from trimtab.cluster.connection import Cluster
from trimtab.compute import Compute
from trimtab.errors import ResourceError
from trimtab.run.estimate import Need, gib
from trimtab.run.nodes import room

PYTHONS = ((3, 11), (3, 13))
"""From the first, below the second."""


@dataclass(frozen=True)
class Offer:
    """What a cluster has now: resources of each node, and versions."""

    nodes: Sequence[Mapping[str, Any]]
    python: str
    ray: str

    def total(self, what: str) -> float:
        return sum(node.get(what, 0) for node in self.nodes)

    def most(self, what: str) -> float:
        """Of the node that has most of it."""
        return max((node.get(what, 0) for node in self.nodes), default=0)

    def __str__(self) -> str:
        nodes = f"{len(self.nodes)} node{'s' * (len(self.nodes) != 1)}"
        sizes = f"{self.total('CPU'):g} CPUs, {self.total('GPU'):g} GPUs, {gib(int(self.total('memory')))} of memory"
        return f"{nodes}, {sizes}; Ray {self.ray}, Python {self.python}"


def offer(cluster: Cluster) -> Offer:
    made = cluster.asked("/api/v0/cluster_metadata")["data"]
    return Offer(cluster.nodes(), made["pythonVersion"], made["rayVersion"])


def suited(there: Offer, compute: Compute, need: Need, *, worker: int = 0) -> None:
    """Raises ResourceError with the numbers of everything that a cluster lacks, if it does not grow.

    `need` is of all that runs side by side, `worker` the memory of the one that takes most.
    """
    lacks = _versions(there)
    if not compute.grows:
        lacks += [*_short(there, compute), *_short_of_memory(there, need, worker)]
    if lacks:
        raise ResourceError("\n  ".join(["the cluster does not suit this job:", *lacks]))


def _versions(there: Offer) -> list[str]:
    ours, lacks = version("ray"), []
    if parts(there.ray) != parts(ours):
        lacks.append(f"Ray {there.ray} there, {ours} here; use one minor version on both ends")
    least, below = PYTHONS
    if not least <= parts(there.python) < below:
        told = " to ".join(".".join(map(str, one)) for one in (least, (below[0], below[1] - 1)))
        lacks.append(f"Python {there.python} there; trimtab needs {told}")
    return lacks


def parts(text: str) -> tuple[int, ...]:
    """Major and minor of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _short(there: Offer, compute: Compute) -> list[str]:
    try:
        room(there.nodes, compute)
    except ResourceError as error:
        return [str(error)]
    return []


def _short_of_memory(there: Offer, need: Need, worker: int) -> list[str]:
    whole, most = int(there.total("memory")), int(there.most("memory"))
    if worker > most:
        return [f"memory: one worker needs {gib(worker)}, no node has more than {gib(most)}; use tune: {{kind: lora}}"]
    if need.memory and need.memory > whole:
        way = "lower compute.groups or compute.workers, or use tune: {kind: lora}"
        return [f"memory: the plan needs {gib(need.memory)}, there is {gib(whole)}; {way}"]
    return []
