"""Every check finds the damage that it is there for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from tests.k8s import lint_pods, lint_ray
from tests.k8s.kube import Doc, Kustomize, find, pods
from tests.k8s.references import unresolved
from tests.k8s.schemas import CRDS, wrongs

JOB, CLUSTER, SERVICE = ("RayJob", "quickstart"), ("RayCluster", "trimtab"), ("RayService", "debate")
OF_JOB, OF_SERVICE = "spec.rayClusterSpec", "spec.rayClusterConfig"
HEAD = "spec.headGroupSpec.template.spec"
CPU = "spec.workerGroupSpecs.0"
REMOVED = object()


def damaged(doc: Doc, path: str, value: Any) -> Doc:
    """A copy with one value put in place, or removed; `~` in a path stands for a dot in a key."""
    found = copy.deepcopy(doc)
    *steps, last = (int(step) if step.isdigit() else step.replace("~", ".") for step in path.split("."))
    node = found
    for step in steps:
        node = node.setdefault(step, {}) if isinstance(node, dict) else node[step]
    if value is REMOVED:
        del node[last]
    else:
        node[last] = value
    return found


SCHEMA = [
    (CLUSTER, "spec.headGroupSpce", {}, "headGroupSpce"),
    (CLUSTER, "spec.autoscalerOptions.version", "v3", "v3"),
    (CLUSTER, f"{CPU}.maxReplicas", "8", "not of type 'integer'"),
    (CLUSTER, f"{CPU}.template.spec.containers.0.image", 7, "not of type 'string'"),
    (CLUSTER, f"{CPU}.template.spec.containers.0.volumeMount", [], "volumeMount"),
    (CLUSTER, f"{CPU}.groupName", REMOVED, "groupName"),
    (CLUSTER, f"{HEAD}.containers.0.resources.limits.memory", True, "is not of type"),
    (JOB, "spec.entrypont", "ls", "entrypont"),
    (JOB, f"{OF_JOB}.authOptions.mode", "none", "none"),
    (SERVICE, "spec.serveConfigV2", {"applications": []}, "not of type 'string'"),
    (("Deployment", "mlflow"), "spec.template.spec.containers.0.port", [], "port"),
    (("Deployment", "mlflow"), "spec.replicas", "one", "one"),
    (("StatefulSet", "redis"), "spec.selector", REMOVED, "selector"),
    (("NetworkPolicy", "mlflow"), "spec.ingress.0.port", 5000, "port"),
    (("PodDisruptionBudget", "head"), "spec.minAvailabel", 1, "minAvailabel"),
]


@pytest.mark.parametrize(("which", "path", "value", "said"), SCHEMA, ids=[f"{a[0]}-{b}" for a, b, *_ in SCHEMA])
def test_a_schema_finds_it(local: list[Doc], which: tuple[str, str], path: str, value: Any, said: str) -> None:
    if which[0].startswith("Ray") and not CRDS.exists():
        pytest.skip("the operator's schemas are not beside the repository")
    doc = find(local, *which)
    assert wrongs(doc) == []
    assert said in str(wrongs(damaged(doc, path, value)))


OPERATOR = [
    ("name_fits", CLUSTER, "metadata.name", "x" * 54),
    ("name_fits", JOB, "metadata.name", "x" * 48),
    ("name_fits", SERVICE, "metadata.name", "Guided"),
    ("name_fits", JOB, "metadata.name", "1st"),
    ("one_cluster", JOB, "spec.clusterSelector", {"ray.io/cluster": "trimtab"}),
    ("one_cluster", JOB, OF_JOB, {}),
    ("replicas_are_bounded", CLUSTER, f"{CPU}.minReplicas", 3),
    ("replicas_are_bounded", CLUSTER, f"{CPU}.replicas", 9),
    ("autoscaler_starts_pods_anew", CLUSTER, f"{HEAD}.restartPolicy", "Always"),
    ("autoscaler_starts_pods_anew", CLUSTER, f"{CPU}.template.spec.restartPolicy", "OnFailure"),
    ("autoscaler_starts_pods_anew", CLUSTER, "spec.autoscalerOptions", {}),
    ("autoscaler_starts_pods_anew", CLUSTER, f"{HEAD}.containers.0.env", [{"name": "RAY_enable_autoscaler_v2"}]),
    ("autoscaler_starts_pods_anew", CLUSTER, f"{CPU}.suspend", True),
    ("idleness_is_known_to_v2_only", CLUSTER, f"{CPU}.idleTimeoutSeconds", -1),
    ("autoscaler_has_an_account", CLUSTER, f"{HEAD}.serviceAccountName", "ray-worker"),
    ("autoscaler_has_an_account", SERVICE, f"{OF_SERVICE}.{HEAD[5:]}.automountServiceAccountToken", False),
    ("resources_in_one_place", CLUSTER, "spec.headGroupSpec.resources", {"CPU": "1"}),
    ("labels_at_the_top", CLUSTER, f"{CPU}.rayStartParams.labels", "a=b"),
    ("head_does_no_work", JOB, f"{OF_JOB}.headGroupSpec.rayStartParams.num-cpus", "4"),
    ("redis_in_one_place", CLUSTER, f"{HEAD}.containers.0.env", [{"name": "REDIS_PASSWORD"}]),
    ("redis_in_one_place", CLUSTER, "spec.headGroupSpec.rayStartParams.redis-password", "x"),
    ("redis_in_one_place", CLUSTER, "metadata.annotations", {"ray.io/external-storage-namespace": "x"}),
    ("redis_in_one_place", CLUSTER, "spec.gcsFaultToleranceOptions.backend", "rocksdb"),
    ("nothing_behind_a_gate", CLUSTER, "spec.networkPolicy", {}),
    ("nothing_behind_a_gate", SERVICE, f"{OF_SERVICE}.tlsOptions", {"enabled": True}),
    ("guarded_by_a_token", CLUSTER, "spec.authOptions.mode", "disabled"),
    ("guarded_by_a_token", JOB, f"{OF_JOB}.authOptions", {}),
    ("guarded_by_a_token", CLUSTER, "spec.authOptions.enableK8sTokenAuth", True),
    ("guarded_by_a_token", CLUSTER, "spec.rayVersion", "2.51.0"),
    ("ends_in_one_way", JOB, "spec.shutdownAfterJobFinishes", False),
    ("ends_in_one_way", JOB, "spec.deletionStrategy", {"deletionRules": [{}]}),
    ("ends_in_one_way", JOB, "spec.activeDeadlineSeconds", REMOVED),
    ("submits_in_one_way", JOB, "spec.submissionMode", "SidecarMode"),
    ("submits_in_one_way", JOB, "spec.submissionMode", "InteractiveMode"),
    ("submits_in_one_way", JOB, "spec.entrypoint", "cd /opt && trimtab run jobs/quickstart.yaml"),
    ("submits_in_one_way", JOB, "spec.submitterPodTemplate.spec.restartPolicy", "Always"),
    ("runtime_env_is_plain", JOB, "spec.runtimeEnvYAML", "env_vars: {TRIMTAB_RUN_ID: other}"),
    ("runtime_env_is_plain", JOB, "spec.runtimeEnvYAML", "- 1"),
    ("runtime_env_is_plain", JOB, "spec.runtimeEnvYAML", "pip: [x]"),
    ("runtime_env_is_plain", JOB, "spec.runtimeEnvYAML", "env_vars: {TRIMTAB_RUN_ID: quickstart, B: 1}"),
    ("upgrades_as_the_kind_can", SERVICE, "spec.upgradeStrategy.type", "Recreate"),
    ("upgrades_as_the_kind_can", JOB, f"{OF_JOB}.upgradeStrategy", {"type": "None"}),
    ("upgrades_as_the_kind_can", SERVICE, f"{OF_SERVICE}.headGroupSpec.headService", {"metadata": {"name": "a"}}),
]


@pytest.mark.parametrize(("rule", "which", "path", "value"), OPERATOR, ids=[f"{a}-{c}" for a, _, c, _ in OPERATOR])
def test_a_rule_of_the_operator_finds_it(
    local: list[Doc], rule: str, which: tuple[str, str], path: str, value: Any
) -> None:
    doc = find(local, *which)
    assert lint_ray.lint(doc) == []
    assert rule in [said.partition(":")[0] for said in lint_ray.lint(damaged(doc, path, value))]


def test_every_rule_of_the_operator_is_shown_to_find_something() -> None:
    assert {rule.__name__ for rule in lint_ray.RULES} == {rule for rule, *_ in OPERATOR}
    assert {rule.__name__ for rule in lint_pods.RULES} == {rule for rule, *_ in PODS}


MLFLOW, POSTGRES = ("Deployment", "mlflow"), ("StatefulSet", "postgres")
TEMPLATE = "spec.template.spec"
WORKER = f"{CPU}.template.spec"
SUBMITTER = "spec.submitterPodTemplate.spec"
PODS = [
    ("image_has_a_tag", MLFLOW, f"{TEMPLATE}.containers.0.image", "trimtab"),
    ("image_has_a_tag", CLUSTER, f"{WORKER}.initContainers.0.image", "host:5000/trimtab:latest"),
    ("limits_are_set", MLFLOW, f"{TEMPLATE}.containers.0.resources", {"requests": {"cpu": 1, "memory": "1Gi"}}),
    ("limits_are_set", CLUSTER, f"{WORKER}.containers.0.resources.limits.memory", "20Gi"),
    ("limits_are_set", CLUSTER, f"{WORKER}.containers.0.resources.requests.cpu", "3000m"),
    ("limits_are_set", CLUSTER, f"{WORKER}.containers.0.resources.requests.nvidia~com/gpu", "1"),
    ("nobody_in_particular", POSTGRES, f"{TEMPLATE}.securityContext.runAsNonRoot", False),
    ("nobody_in_particular", JOB, f"{SUBMITTER}.securityContext.seccompProfile", REMOVED),
    ("nobody_in_particular", CLUSTER, f"{HEAD}.hostNetwork", True),
    ("nobody_in_particular", CLUSTER, f"{HEAD}.volumes.0", {"name": "scratch", "hostPath": {"path": "/"}}),
    ("privileges_are_dropped", MLFLOW, f"{TEMPLATE}.containers.0.securityContext.readOnlyRootFilesystem", False),
    ("privileges_are_dropped", MLFLOW, f"{TEMPLATE}.containers.0.securityContext.capabilities", {"drop": []}),
    ("privileges_are_dropped", CLUSTER, f"{HEAD}.containers.0.securityContext.privileged", True),
    ("no_token_without_need", CLUSTER, f"{WORKER}.automountServiceAccountToken", REMOVED),
    ("no_token_without_need", CLUSTER, "spec.enableInTreeAutoscaling", False),
    ("no_token_without_need", JOB, f"{SUBMITTER}.serviceAccountName", REMOVED),
    ("probes_ask", MLFLOW, f"{TEMPLATE}.containers.0.readinessProbe", REMOVED),
    ("probes_ask", MLFLOW, f"{TEMPLATE}.containers.0.livenessProbe.httpGet.port", "web"),
    ("secrets_come_from_secrets", CLUSTER, f"{HEAD}.containers.0.env", [{"name": "S3_SECRET_KEY", "value": "x"}]),
    ("secrets_come_from_secrets", MLFLOW, f"{TEMPLATE}.containers.0.env.1.value", "postgresql://a:b@postgres:5432/c"),
    ("mounts_are_volumes", CLUSTER, f"{HEAD}.containers.0.volumeMounts.2.name", "shmem"),
    ("mounts_are_volumes", CLUSTER, f"{HEAD}.containers.0.volumeMounts.2.mountPath", "/tmp"),
    ("scratch_is_bounded", CLUSTER, f"{HEAD}.volumes.0.emptyDir", {}),
    ("objects_have_room", CLUSTER, f"{CPU}.rayStartParams.object-store-memory", "3000000000"),
    ("objects_have_room", CLUSTER, "spec.headGroupSpec.rayStartParams.object-store-memory", REMOVED),
    ("objects_have_room", CLUSTER, f"{WORKER}.volumes.1.emptyDir.sizeLimit", "5Gi"),
    ("disk_is_allowed", CLUSTER, f"{HEAD}.volumes.0.emptyDir.sizeLimit", "11Gi"),
    ("disk_is_allowed", CLUSTER, f"{WORKER}.volumes.2", {"name": "storage", "emptyDir": {"sizeLimit": "50Gi"}}),
    ("metrics_are_told", CLUSTER, f"{CPU}.rayStartParams.metrics-export-port", "8081"),
]


@pytest.mark.parametrize(("rule", "which", "path", "value"), PODS, ids=[f"{a}-{c}" for a, _, c, _ in PODS])
def test_a_rule_for_pods_finds_it(local: list[Doc], rule: str, which: tuple[str, str], path: str, value: Any) -> None:
    doc = find(local, *which)
    found = [said for pod in pods([damaged(doc, path, value)]) for said in lint_pods.lint(pod)]
    assert rule in [said.partition(":")[0] for said in found]


@pytest.mark.parametrize(
    ("rule", "which", "path", "value"),
    [
        (lint_pods.open_secrets, ("ConfigMap", "trimtab"), "data.RAY_AUTH_TOKEN", "x"),
        (lint_pods.open_secrets, ("ConfigMap", "mlflow"), "data.STORE", "postgresql://a:b@c/d"),
        (lint_pods.open_secrets, ("ConfigMap", "mlflow"), "kind", "Secret"),
        (lint_pods.budget_can_count, ("PodDisruptionBudget", "head"), "spec.minAvailable", "50%"),
        (lint_pods.budget_can_count, ("PodDisruptionBudget", "head"), "spec", {"maxUnavailable": 1}),
    ],
)
def test_other_rules_find_it(local: list[Doc], rule: Callable, which: tuple[str, str], path: str, value: Any) -> None:
    assert list(rule(find(local, *which))) == []
    assert list(rule(damaged(find(local, *which), path, value)))


NAMES = [
    (CLUSTER, f"{WORKER}.serviceAccountName", "worker", "no ServiceAccount worker"),
    (CLUSTER, f"{WORKER}.volumes.2.persistentVolumeClaim.claimName", "store", "no PersistentVolumeClaim store"),
    (CLUSTER, f"{WORKER}.containers.0.envFrom.0.configMapRef.name", "setings", "no ConfigMap setings"),
    (CLUSTER, "spec.authOptions.secretName", "token", "no key auth_token in Secret token"),
    (CLUSTER, "spec.gcsFaultToleranceOptions.redisAddress", "redis:6380", "no Service redis:6380"),
    (SERVICE, f"{OF_SERVICE}.{HEAD[5:]}.containers.0.env.0.valueFrom.secretKeyRef.key", "key", "no key key in Secret"),
    (MLFLOW, f"{TEMPLATE}.containers.0.env.1.value", "postgresql://a@db:5432/x", "no Service db:5432"),
    (MLFLOW, f"{TEMPLATE}.containers.0.ports.0.containerPort", 5001, "no policy lets it through to mlflow:5000"),
    (MLFLOW, "spec.selector.matchLabels", {"app": "mlflow"}, "does not select its own pods"),
    (("Service", "redis"), "spec.selector", {"app": "redis"}, "no pod behind port 6379"),
    (("ConfigMap", "trimtab"), "data.MLFLOW_TRACKING_URI", "http://mlflow:5001", "no Service mlflow:5001"),
    (("NetworkPolicy", "mlflow"), "spec.ingress", [], "no policy lets it through to mlflow:5000"),
    (("NetworkPolicy", "ray-state"), "spec.egress.0.ports.0.port", 6380, "through to redis:6379"),
    (("NetworkPolicy", "postgres"), "spec.podSelector", {"matchLabels": {"a": "b"}}, "no pod that it is about"),
    (("PodDisruptionBudget", "head"), "spec.selector.matchLabels", {"ray.io/cluster": "x"}, "no pod to keep"),
    (("PodMonitor", "ray"), "spec.podMetricsEndpoints.0.port", "metric", "no pod with a port metric"),
    (("PodMonitor", "served"), "spec.podMetricsEndpoints.0.authorization.credentials.key", "k", "no key k in Secret"),
]


@pytest.mark.parametrize(("which", "path", "value", "said"), NAMES, ids=[f"{a[1]}-{b}" for a, b, *_ in NAMES])
def test_a_name_that_leads_nowhere_is_found(
    kustomize: Kustomize, which: tuple[str, str], path: str, value: Any, said: str
) -> None:
    docs = kustomize.whole("local")
    doc = find(docs, *which)
    assert said in str(unresolved([damaged(one, path, value) if one is doc else one for one in docs]))
