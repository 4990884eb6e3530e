"""What a trial's events say of it while it runs: how far it is, its held-out signal, its early loss."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.run.artifact import Artifact, Node
from trimtab.search.measured import EARLY, Curve, early
from trimtab.training.curves import TRAININGS, read_curves

SIGNAL = "eval_agreement"


def last_trainings(nodes: Sequence[Node]) -> list[Artifact]:
    """The trainings that no other training builds on: in all trials of a search they are alike."""
    under: set[str] = set()
    found = []
    for node in reversed(nodes):
        training = node.artifact.stage in TRAININGS
        if training and node.artifact.id not in under:
            found.append(node.artifact)
        if training or node.artifact.id in under:
            under |= {artifact.id for artifact in node.needs.values()}
    return found[::-1]


@dataclass
class Watch:
    """Hears the events of a trial's stages, from any thread.

    `progress` is the share of its last trainings that is done, or of its stages where it trains nothing: so that two
    trials at one progress have learned as much, whatever else they found there or had to make.
    """

    needed: list[Node]
    at: str = ""
    ran: list[str] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, dict[str, float]]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        trained = last_trainings(self.needed)
        self.watched = {artifact.id: artifact for artifact in trained or [n.artifact for n in self.needed]}
        self.trains = bool(trained)
        self.shares = {stage_id: float(artifact.ready) for stage_id, artifact in self.watched.items()}
        self.missing = {node.artifact.id for node in self.needed if not node.artifact.ready}

    def __call__(self, event: dict[str, Any]) -> dict[str, float]:
        """The signals that an event brings: of a training that is watched, and at what progress; mostly none."""
        with self.lock:
            return self._heard(event, event.get("stage_id", ""))

    def _heard(self, event: dict[str, Any], stage_id: str) -> dict[str, float]:
        kind = event["event"]
        if kind == "stage_start":
            self.at = event["label"]
        elif kind == "stage_end" and event["status"] in ("done", "cached"):
            self._share(stage_id, 1.0)
            self.ran += [stage_id] if event["status"] == "done" else []
        elif kind == "progress":
            self.totals[stage_id] = event["total"]
            self._share(stage_id, event["done"] / max(1, event["total"]))
        elif kind == "metrics" and self.trains and stage_id in self.watched:
            self.curves.setdefault(stage_id, []).append((event["step"], event["values"]))
            if stage_id in self.totals:
                self._share(stage_id, event["step"] / self.totals[stage_id])
            return self.signals() if SIGNAL in event["values"] else {}
        return {}

    def _share(self, stage_id: str, share: float) -> None:
        if stage_id in self.shares:
            self.shares[stage_id] = max(self.shares[stage_id], min(1.0, share))

    @property
    def progress(self) -> float:
        return sum(self.shares.values()) / max(1, len(self.shares))

    def signals(self) -> dict[str, float]:
        """The last that is known: held-out agreement as `signal`, loss, gradient norm; means over seeds."""
        found: dict[str, float] = {}
        for said, name in (("signal", SIGNAL), *((name, name) for name in EARLY)):
            last = [[v[name] for _, v in curve if name in v][-1:] for curve in self.curves.values()]
            values = [value for one in last for value in one]
            if values:
                found[said] = sum(values) / len(values)
        return found

    def early(self) -> dict[str, float]:
        """Early loss and gradient norm, of trainings that were there already too."""
        found: list[tuple[Curve, int]] = []
        for stage_id, artifact in self.watched.items() if self.trains else ():
            curve = self.curves.get(stage_id) or (read_curves(artifact.folder) if artifact.ready else [])
            if curve:
                found.append((curve, self.totals.get(stage_id) or curve[-1][0]))
        return early(found)
