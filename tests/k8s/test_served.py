"""What a RayService serves is a file of serve/, reached from other pods."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tests.k8s.kube import OVERLAYS, ROOT, Doc, Kustomize, cluster_spec, of_kind

from trimtab.errors import JobError

LINES = {
    "proxy_location: HeadOnly": "proxy_location: EveryNode",
    "http_options: {host: 127.0.0.1, port: 8000}": "http_options: {host: 0.0.0.0, port: 8000}",
}
"""On a pod, Serve has to be reached from others, and the operator asks for a proxy on every node."""


def differing(served: str, name: str) -> list[tuple[str, str]]:
    """Lines of a serve file, and what stands in their place in a RayService."""
    ours = (ROOT / "serve" / f"{name}.yaml").read_text().splitlines()
    return [(a, b) for a, b in zip(ours, served.splitlines(), strict=True) if a != b]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_service_serves_its_file_line_by_line(kustomize: Kustomize, overlay: str) -> None:
    services = of_kind(kustomize.overlay(overlay, "serving"), "RayService")
    assert {doc["metadata"]["name"] for doc in services} == {"debate", "guided"}
    for doc in services:
        assert differing(doc["spec"]["serveConfigV2"], doc["metadata"]["name"]) == list(LINES.items())


def test_every_serve_file_has_these_lines_where_they_are_replaced() -> None:
    for path in sorted((ROOT / "serve").glob("*.yaml")):
        assert path.read_text().splitlines()[3:5] == list(LINES), path.name


def test_a_file_whose_lines_moved_is_found(local: list[Doc]) -> None:
    served = of_kind(local, "RayService")[0]["spec"]["serveConfigV2"]
    assert differing(served.replace("turns: 2", "turns: 3"), "debate") != list(LINES.items())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_replicas_fit_one_pod_and_their_next_version_another(kustomize: Kustomize, overlay: str) -> None:
    for doc in of_kind(kustomize.overlay(overlay, "serving"), "RayService"):
        (application,) = yaml.safe_load(doc["spec"]["serveConfigV2"])["applications"]
        asked = [
            one["ray_actor_options"]["num_cpus"] * one.get("num_replicas", 1) for one in application["deployments"]
        ]
        group = cluster_spec(doc)["workerGroupSpecs"][0]
        assert sum(asked) <= float(group["rayStartParams"]["num-cpus"]) * group["minReplicas"]
        assert group["maxReplicas"] >= 2 * group["minReplicas"]


@pytest.mark.slow
def test_what_is_served_is_read_by_serve_and_by_our_arguments(local: list[Doc], tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    from trimtab.serving.file import load_serve

    for doc in of_kind(local, "RayService"):
        text = doc["spec"]["serveConfigV2"]
        assert ServeDeploySchema.model_validate(yaml.safe_load(text)).http_options.host == "0.0.0.0"
        path = tmp_path / f"{doc['metadata']['name']}.yaml"
        path.write_text(re.sub(r"models:/[\w-]+@latest", "builtin:smollm2-135m", text))
        file = load_serve(path)
        assert list(file.args) == [doc["metadata"]["name"]]
        longest = max(args.deadline_s for args in file.args.values())
        assert doc["spec"]["rayClusterDeletionDelaySeconds"] > longest, "requests under way may end"
        path.write_text(path.read_text().replace("num_replicas", "num_replica").replace("max_surge_percent", "surge"))
        with pytest.raises(JobError, match="unknown key"):
            load_serve(path)
