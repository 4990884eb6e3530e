"""What k8s/README.md tells to type names things that are there."""

from __future__ import annotations

import re

import pytest
from tests.k8s.kube import K8S, ROOT, Doc, Kustomize, cluster_spec, of_kind, pods
from tests.k8s.lint_pods import amount
from tests.k8s.references import example_secrets

TEXT = (K8S / "README.md").read_text()
OF_OPERATORS = {"trimtab-head-svc", "guided-serve-svc", "prometheus-grafana"}
"""Services that operators and charts make."""


def lost(text: str, docs: list[Doc]) -> list[str]:
    """Folders, labels, Services and Secrets that a text names and that are not there."""
    found = [path for path in re.findall(r"\bk8s/[\w./-]+", text) if not (ROOT / path.rstrip(".")).exists()]
    found += [
        path
        for path in re.findall(r"`((?:parts|base|overlays|ray|monitoring|examples)/[\w./-]+)`", text)
        if not (K8S / path).exists()
    ]
    labels = {(key, value) for doc in docs for key, value in (doc["metadata"].get("labels") or {}).items()}
    found += [
        f"{key}={value}" for key, value in re.findall(r"-l (job|app)=([a-z-]+)", text) if (key, value) not in labels
    ]
    services = {doc["metadata"]["name"] for doc in of_kind(docs, "Service")} | OF_OPERATORS
    found += [name for name in re.findall(r"svc/([\w-]+)", text) if name not in services]
    made = dict(re.findall(r"create secret generic ([\w-]+) (.*)", text))
    keys = {name: set(re.findall(r"--from-literal=(\w+)=", rest)) for name, rest in made.items()}
    wanted = example_secrets()
    return found + [name for name in wanted | keys if wanted.get(name) != keys.get(name)]


def test_what_the_readme_names_is_there(local: list[Doc]) -> None:
    assert lost(TEXT, local) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("overlays/local/jobs", "overlays/local/job", "k8s/overlays/local/job"),
        ("-l job=quickstart", "-l job=quick", "job=quick"),
        ("svc/mlflow", "svc/mlfow", "mlfow"),
        ("=auth_token=", "=token=", "ray-token"),
        ("`parts/kueue`", "`parts/keue`", "parts/keue"),
    ],
)
def test_a_wrong_name_is_found(local: list[Doc], old: str, new: str, said: str) -> None:
    assert said in lost(TEXT.replace(old, new), local)


def test_versions_in_the_readme_are_those_of_the_images() -> None:
    tags = re.findall(r"newName: trimtab, newTag: (\S+)}", (K8S / "parts" / "image" / "kustomization.yaml").read_text())
    assert set(re.findall(r"trimtab:(\d+\.\d+\S+)", TEXT)) == set(tags)
    assert set(re.findall(r"trimtab:(\d+\.\d+\S+)", (K8S / "Dockerfile").read_text())) == set(tags)


def needed(docs: list[Doc]) -> tuple[float, float]:
    """CPUs and GiB of memory that the pods of resources ask for, with an autoscaler beside each head."""
    cpus = memory = 0.0
    for doc in docs:
        spec = cluster_spec(doc)
        beside = [spec["autoscalerOptions"]["resources"]] if spec else []
        own = [one["resources"] for pod in pods([doc]) for one in pod.spec["containers"]]
        cpus += sum(amount(one["requests"]["cpu"]) for one in own + beside)
        memory += sum(amount(one["requests"]["memory"]) for one in own + beside)
    return cpus, memory / 2**30


def test_what_the_readme_says_of_room_is_so(kustomize: Kustomize) -> None:
    (words,) = re.findall(
        r"about (\d+) CPUs and (\d+) GiB, each job and each service about (\d+) CPUs and (\d+) GiB", TEXT
    )
    said = list(map(int, words))
    whole = needed(kustomize.overlay("local"))
    job = needed(kustomize.overlay("local", "jobs")[:1])
    served = needed(of_kind(kustomize.overlay("local", "serving"), "RayService")[:1])
    for cpus, memory, real in ((*said[:2], whole), (*said[2:], job), (*said[2:], served)):
        assert 0 <= cpus - real[0] < 1
        assert 0 <= memory - real[1] < 2
