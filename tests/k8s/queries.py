"""Metrics that Prometheus can be asked for: what exists, and what dashboards and rules name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

import yaml
from tests.k8s.kube import K8S

from trimtab.run.gauges import TOLD

OF_KUBERNETES = {
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
    "kube_pod_container_status_restarts_total",
}
NAME = re.compile(r"\b(?:ray|trimtab|kube|kubelet)_[a-z0-9_]+")
LABELS = {"ray_io_cluster", "trimtab_serves"}
"""Labels that look like metrics; Prometheus makes them of pods' labels."""


@cache
def existing() -> frozenset[str]:
    """Names of metrics: of our endpoints, of our runs, of Ray as its own dashboards ask for them, of Kubernetes."""
    from trimtab.serving.meters import Meters

    ours = set(NAME.findall("\n".join(_samples(Meters()))))
    panels = resources.files("ray.dashboard.modules.metrics.dashboards")
    rays = {
        name for path in panels.iterdir() if path.name.endswith("_panels.py") for name in NAME.findall(path.read_text())
    }
    return frozenset(ours | rays | {f"ray_{name}" for name in TOLD} | OF_KUBERNETES)


def _samples(meters: object) -> Iterator[str]:
    for family in meters.registry.collect():
        yield family.name
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ())
        yield from (family.name + suffix for suffix in suffixes)


def unknown(expression: str) -> set[str]:
    """Metrics that an expression names and nobody tells."""
    return set(NAME.findall(expression)) - existing() - LABELS


def dashboards() -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (K8S / "monitoring" / "dashboards").glob("*.json")}


def expressions() -> list[str]:
    """All that dashboards ask."""
    panels = [panel for board in dashboards().values() for panel in board["panels"]]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def groups(path: Path = K8S / "monitoring" / "rules.yaml") -> list[dict]:
    return yaml.safe_load(path.read_text())["spec"]["groups"]
