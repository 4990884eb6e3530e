"""Every overlay renders, and what it renders is right: schemas, the operator's rules, names that lead somewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml
from tests.k8s import lint_pods, lint_ray
from tests.k8s.kube import K8S, OVERLAYS, PARTS, RAY_SPEC, ROOT, Doc, Kustomize, cluster_spec, of_kind, pods, title
from tests.k8s.references import passes, unresolved
from tests.k8s.schemas import CRDS, wrongs

WITH = {
    "s3": (["base"], ["ray", "parts/s3", "parts/s3/base", "parts/gpu", "parts/remembering", "parts/image"]),
    "s3-jobs": ([], ["ray", "parts/s3", "parts/jobs/pods", "parts/small", "parts/jobs", "parts/image"]),
    "s3-serving": (
        [],
        ["ray", "parts/s3", "parts/serving/pods", "parts/gpu", "parts/remembering", "parts/serving", "parts/image"],
    ),
    "kueue": ([], ["ray", "parts/jobs/pods", "parts/gpu", "parts/jobs", "parts/kueue", "parts/image"]),
}


def beside(kustomize: Kustomize, folder: Path, name: str) -> list[Doc]:
    """An overlay of one's own, made of the parts that none of those that ship takes."""
    resources, components = ([os.path.relpath(K8S / one, folder) for one in some] for some in WITH[name])
    said = {"namespace": "trimtab", "resources": resources, "components": components}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(said))
    return kustomize(folder)


@pytest.fixture(scope="session", params=[*OVERLAYS, *WITH])
def docs(request: pytest.FixtureRequest, kustomize: Kustomize, tmp_path_factory: pytest.TempPathFactory) -> list[Doc]:
    if request.param in OVERLAYS:
        return kustomize.whole(request.param)
    return beside(kustomize, tmp_path_factory.mktemp(request.param), request.param)


def test_resources_keep_to_their_schemas(docs: list[Doc]) -> None:
    if not CRDS.exists():
        docs = [doc for doc in docs if doc["kind"] not in RAY_SPEC]
    assert [f"{title(doc)}: {wrong}" for doc in docs for wrong in wrongs(doc)] == []
    if not CRDS.exists():
        pytest.skip("the operator's schemas are not beside the repository")


def test_the_operator_would_take_them(docs: list[Doc]) -> None:
    found = [f"{title(doc)}: {text}" for doc in of_kind(docs, *RAY_SPEC) for text in lint_ray.lint(doc)]
    assert found == []


def test_pods_are_guarded_and_bounded(docs: list[Doc]) -> None:
    assert [f"{pod.name}: {text}" for pod in pods(docs) for text in lint_pods.lint(pod)] == []
    rules = (lint_pods.open_secrets, lint_pods.budget_can_count)
    assert [f"{title(doc)}: {text}" for doc in docs for rule in rules for text in rule(doc)] == []


def test_names_are_unique_and_stand_in_one_namespace(docs: list[Doc]) -> None:
    names = [title(doc) for doc in docs]
    assert sorted(set(names)) == sorted(names)
    assert {doc["metadata"].get("namespace") for doc in docs if doc["kind"] != "Namespace"} == {"trimtab"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_name_leads_somewhere(kustomize: Kustomize, name: str) -> None:
    assert unresolved(kustomize.whole(name)) == []


def test_every_name_leads_somewhere_with_a_store_of_objects(kustomize: Kustomize, tmp_path: Path) -> None:
    found = beside(kustomize, tmp_path, "s3")
    assert [text for text in unresolved(found) if "no pod that it is about" not in text] == []
    assert [title(doc) for doc in of_kind(found, "PersistentVolumeClaim")] == ["PersistentVolumeClaim/storage"]
    (settings,) = (doc["data"] for doc in of_kind(found, "ConfigMap") if doc["metadata"]["name"] == "trimtab")
    for pod in (pod for pod in pods(found) if pod.role in ("head", "worker")):
        mounted = {one["mountPath"]: one["name"] for one in pod.spec["containers"][0]["volumeMounts"]}
        volumes = {one["name"]: one for one in pod.spec["volumes"]}
        assert "emptyDir" in volumes[mounted[settings["TRIMTAB_MIRROR"]]]
        assert "persistentVolumeClaim" in volumes[mounted[str(Path(settings["HF_HOME"]).parent)]]


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_an_overlay_brings(kustomize: Kustomize, name: str) -> None:
    stands, jobs, served = (kustomize.overlay(name, part) for part in PARTS)
    assert {doc["kind"] for doc in jobs} == {"RayJob"}
    assert {doc["kind"] for doc in served} == {"RayService", "PodDisruptionBudget"}
    assert [title(doc) for doc in of_kind(stands, "RayCluster")] == ["RayCluster/trimtab"]
    assert not [doc for doc in kustomize.whole(name) if "local-config" in str(doc["metadata"].get("annotations"))]
    labelled = [doc["metadata"]["labels"]["job"] for doc in jobs]
    assert labelled == [doc["metadata"]["name"] for doc in jobs], "a job is chosen by its label"
    assert {doc["metadata"]["labels"]["app"] for doc in served} == {"debate", "guided"}


def test_there_is_one_description_of_a_cluster(gpu: list[Doc]) -> None:
    """Jobs and services have the shared cluster's pods, but for what they are for."""
    shared, *others = (cluster_spec(doc) for doc in of_kind(gpu, *RAY_SPEC))
    for other in others:
        assert [group["groupName"] for group in other["workerGroupSpecs"]] == ["cpu", "gpu"]
        for ours, theirs in zip(shared["workerGroupSpecs"], other["workerGroupSpecs"], strict=True):
            mine, its = (dict(one["template"]["spec"]["containers"][0]) for one in (ours, theirs))
            its["env"] = mine["env"] = None
            assert mine == its
    served, job = of_kind(gpu, "RayService")[0], of_kind(gpu, "RayJob")[0]
    assert [one["replicas"] for one in cluster_spec(served)["workerGroupSpecs"]] == [1, 0]
    assert [one["replicas"] for one in cluster_spec(job)["workerGroupSpecs"]] == [1, 1]


def test_only_pods_that_serve_know_the_api_keys(gpu: list[Doc]) -> None:
    for pod in pods(gpu):
        names = [variable["name"] for one in pod.containers for variable in one.get("env", ())]
        serves = pod.owner["kind"] == "RayService"
        assert ("TRIMTAB_API_KEYS" in names) == serves, pod.name
        searches = (pod.role == "head" and not serves) or pod.owner["metadata"]["name"] == "studies"
        assert ("TRIMTAB_STUDIES" in names) == searches, pod.name
        assert (pod.labels.get("trimtab/role") == "serving") == serves


def test_images_stand_in_one_place(gpu: list[Doc]) -> None:
    said = yaml.safe_load((K8S / "parts" / "image" / "kustomization.yaml").read_text())["images"]
    known = {f"{one['newName']}:{one['newTag']}" for one in said}
    assert {one["image"] for pod in pods(gpu) for one in pod.containers} == known
    cuda = {pod.labels.get("ray.io/group") for pod in pods(gpu) if "cuda" in pod.spec["containers"][0]["image"]}
    assert cuda == {"gpu"}
    others = [path for path in K8S.rglob("*.yaml") if path.parent.name != "image"]
    assert not [path for path in others if re.search(r"image: \S+:", path.read_text())]


def test_policies_let_through_what_is_needed_and_no_more(local: list[Doc]) -> None:
    policies = of_kind(local, "NetworkPolicy")
    found = {pod.name.partition("/")[2]: pod for pod in pods(local)}
    head, worker, submitter = found["trimtab head"], found["trimtab cpu"], found["quickstart submitter"]
    mlflow, postgres, redis = found["mlflow"], found["postgres"], found["redis"]
    allowed = [(submitter, head, 8265), (head, redis, 6379), (worker, mlflow, 5000), (mlflow, postgres, 5432)]
    allowed += [(worker, head, 6379), (head, worker, 20001), (head, postgres, 5432), (found["studies"], postgres, 5432)]
    refused = [(worker, postgres, 5432), (worker, redis, 6379), (submitter, mlflow, 5000), (submitter, worker, 8265)]
    refused += [(mlflow, head, 8265), (postgres, mlflow, 5000), (redis, head, 6379), (submitter, head, 6379)]
    refused += [(found["debate head"], postgres, 5432), (head, found["studies"], 8080)]
    assert [(a.name, b.name, port) for a, b, port in allowed if not passes(policies, a, b, port)] == []
    assert [(a.name, b.name, port) for a, b, port in refused if passes(policies, a, b, port)] == []


def test_no_file_is_left_out() -> None:
    """Everything that could be applied is named by a kustomization, and every kustomization by an overlay."""
    kustomizations = [*K8S.rglob("kustomization.yaml"), ROOT / "serve" / "Kustomization"]
    named = {path.parent for path in kustomizations if "overlays" in path.parts}
    for path in kustomizations:
        said = yaml.safe_load(path.read_text())
        made = [name for one in said.get("configMapGenerator", ()) for name in one["files"]]
        patched = [one["path"] for one in said.get("patches", ()) if "path" in one]
        listed = [*said.get("resources", ()), *said.get("components", ()), *made, *patched]
        named |= {(path.parent / name).resolve() for name in listed}
    there = {path.parent if path.stem == "kustomization" else path for path in K8S.rglob("*.yaml")}
    there |= set((K8S / "monitoring" / "dashboards").glob("*.json"))
    assert {str(path.relative_to(K8S)) for path in there - named} == {
        *("examples/secrets.yaml", "parts/kueue", "parts/s3", "parts/s3/base"),
    }


def test_jobs_in_a_queue_have_clusters_of_a_fixed_size(kustomize: Kustomize, tmp_path: Path) -> None:
    for doc in beside(kustomize, tmp_path, "kueue"):
        assert doc["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "trimtab"
        assert "suspend" not in doc["spec"], "Kueue says it; applied again, it would stop a job that runs"
        assert cluster_spec(doc)["enableInTreeAutoscaling"] is False


def test_drivers_wait_for_nodes_just_where_there_is_an_autoscaler(docs: list[Doc]) -> None:
    for doc in (doc for doc in docs if doc["kind"] in ("RayCluster", "RayJob")):
        spec = cluster_spec(doc)
        head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
        (said,) = (one["value"] for one in head["env"] if one["name"] == "TRIMTAB_GROWS")
        assert said == str(int(spec["enableInTreeAutoscaling"])), title(doc)


def test_what_trimtab_sets_for_a_ray_of_its_own_is_set_for_pods_too(local: list[Doc]) -> None:
    from trimtab.run.joining import SETTINGS

    (found,) = (doc["data"] for doc in of_kind(local, "ConfigMap") if doc["metadata"]["name"] == "trimtab")
    assert SETTINGS.items() <= found.items()
    assert found["TRIMTAB_STORAGE"] in [
        mount["mountPath"]
        for pod in pods(local)
        if pod.role == "worker"
        for mount in pod.containers[-1]["volumeMounts"]
    ]


def test_ray_has_the_time_it_takes_to_leave(gpu: list[Doc]) -> None:
    from ray._private import ray_constants

    name = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    assert hasattr(ray_constants, name)
    (found,) = (doc["data"] for doc in of_kind(gpu, "ConfigMap") if doc["metadata"]["name"] == "trimtab")
    ours = [pod.spec for pod in pods(gpu) if pod.role in ("head", "worker")]
    assert all(float(found[name]) + 10 < spec["terminationGracePeriodSeconds"] for spec in ours)
