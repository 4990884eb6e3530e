"""Rules of the KubeRay operator that no schema holds: it refuses such resources, or does something else than they say.

Each rule takes a custom resource of Ray and tells what it has against it. They follow the operator's own validation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml
from tests.k8s.kube import Doc, at, cluster_spec

LONGEST = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
IN_START_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
REDIS = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME")
GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")
UPGRADES = {
    "RayCluster": ("Recreate", "None"),
    "RayService": ("NewCluster", "NewClusterWithIncrementalUpgrade", "None"),
}
SHELL = re.compile(r"[;&|<>`$\\\n\"'(){}*?#]")
OLDEST_WITH_TOKENS = (2, 52)


def groups(doc: Doc) -> list[tuple[str, Doc]]:
    """Head and worker groups, each with its name."""
    spec = cluster_spec(doc)
    return [("head", spec["headGroupSpec"])] + [(one["groupName"], one) for one in spec["workerGroupSpecs"]]


def head_env(doc: Doc) -> set[str]:
    containers = cluster_spec(doc)["headGroupSpec"]["template"]["spec"]["containers"]
    return {one["name"] for one in containers[0].get("env", ())}


def start_params(group: Doc) -> Doc:
    return group.get("rayStartParams") or {}


def name_fits(doc: Doc) -> Iterator[str]:
    name = doc["metadata"]["name"]
    if len(name) > LONGEST[doc["kind"]]:
        yield f"name is longer than {LONGEST[doc['kind']]}: Services are named after it"
    if not DNS_1035.fullmatch(name):
        yield "name is no DNS-1035 label"


def one_cluster(doc: Doc) -> Iterator[str]:
    if doc["kind"] == "RayJob":
        spec = doc["spec"]
        if bool(spec.get("rayClusterSpec")) == bool(spec.get("clusterSelector")):
            yield "exactly one of rayClusterSpec and clusterSelector"
        if spec.get("clusterSelector") and (spec.get("backoffLimit") or spec.get("suspend")):
            yield "a job on a cluster that is there is neither tried again nor suspended"


def replicas_are_bounded(doc: Doc) -> Iterator[str]:
    fixed = not cluster_spec(doc).get("enableInTreeAutoscaling")
    for name, group in groups(doc)[1:]:
        least, most = group.get("minReplicas"), group.get("maxReplicas")
        if fixed and (least is None or most is None):
            yield f"{name}: minReplicas and maxReplicas have to be said without autoscaling"
        count, least, most = group.get("replicas", 0), least or 0, most if most is not None else 2**31
        if not 0 <= least <= count <= most:
            yield f"{name}: 0 <= minReplicas <= replicas <= maxReplicas does not hold"


def autoscaler_starts_pods_anew(doc: Doc) -> Iterator[str]:
    spec = cluster_spec(doc)
    if not spec.get("enableInTreeAutoscaling"):
        return
    if at(spec, "autoscalerOptions", "version") != "v2":
        yield "autoscalerOptions.version should be v2"
    if "RAY_enable_autoscaler_v2" in head_env(doc):
        yield "RAY_enable_autoscaler_v2 is said by autoscalerOptions.version"
    for name, group in groups(doc):
        if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{name}: restartPolicy has to be Never with autoscaler v2"
        if group.get("suspend"):
            yield f"{name}: a group is not suspended where there is an autoscaler"


def idleness_is_known_to_v2_only(doc: Doc) -> Iterator[str]:
    version = at(cluster_spec(doc), "autoscalerOptions", "version")
    for name, group in groups(doc)[1:]:
        idle = group.get("idleTimeoutSeconds")
        if idle is not None and (idle < 0 or version != "v2"):
            yield f"{name}: idleTimeoutSeconds is 0 or more, and needs autoscalerOptions.version v2"


def autoscaler_has_an_account(doc: Doc) -> Iterator[str]:
    spec = cluster_spec(doc)
    head = spec["headGroupSpec"]["template"]["spec"]
    if spec.get("enableInTreeAutoscaling"):
        if head.get("serviceAccountName"):
            yield "head: with an account of yours the operator binds no role to it; leave it to the operator"
        if head.get("automountServiceAccountToken") is False:
            yield "head: the autoscaler needs its account's token"


def resources_in_one_place(doc: Doc) -> Iterator[str]:
    for name, group in groups(doc):
        if group.get("resources") and set(IN_START_PARAMS) & set(start_params(group)):
            yield f"{name}: resources stand in rayStartParams and in resources"


def labels_at_the_top(doc: Doc) -> Iterator[str]:
    for name, group in groups(doc):
        if "labels" in start_params(group):
            yield f"{name}: labels belong to the group, not to rayStartParams"


def head_does_no_work(doc: Doc) -> Iterator[str]:
    if start_params(cluster_spec(doc)["headGroupSpec"]).get("num-cpus") != "0":
        yield "head: num-cpus should be 0"


def redis_in_one_place(doc: Doc) -> Iterator[str]:
    spec = cluster_spec(doc)
    annotations = doc["metadata"].get("annotations") or {}
    params = start_params(spec["headGroupSpec"])
    said = {*head_env(doc), *annotations, *params}
    own = {*REDIS, "redis-password", "redis-username", "ray.io/external-storage-namespace", "ray.io/ft-enabled"}
    if found := sorted(said & own):
        yield f"{', '.join(found)}: gcsFaultToleranceOptions is the place for it"
    options = spec.get("gcsFaultToleranceOptions") or {}
    if options.get("backend") == "rocksdb" and {"redisAddress", "redisPassword", "redisUsername"} & options.keys():
        yield "gcsFaultToleranceOptions: redis beside rocksdb"


def nothing_behind_a_gate(doc: Doc) -> Iterator[str]:
    spec = cluster_spec(doc)
    for name in GATED:
        if name in spec:
            yield f"{name} needs a feature gate that is off"
    if at(spec, "gcsFaultToleranceOptions", "backend") == "rocksdb":
        yield "gcsFaultToleranceOptions.backend: rocksdb needs a feature gate that is off"


def guarded_by_a_token(doc: Doc) -> Iterator[str]:
    spec = cluster_spec(doc)
    options = spec.get("authOptions") or {}
    if options.get("mode") != "token" or not options.get("secretName"):
        yield "authOptions: mode token, with the name of a Secret"
    if options.get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth: not with a Secret, nor for RayJob and RayService"
    version = tuple(int(part) for part in spec.get("rayVersion", "0.0").split(".")[:2])
    if version < OLDEST_WITH_TOKENS:
        yield "rayVersion: tokens need 2.52"


def ends_in_one_way(doc: Doc) -> Iterator[str]:
    if doc["kind"] != "RayJob":
        return
    spec = doc["spec"]
    shuts = spec.get("shutdownAfterJobFinishes", False)
    if not shuts and (spec.get("suspend") or spec.get("ttlSecondsAfterFinished")):
        yield "suspend and ttlSecondsAfterFinished need shutdownAfterJobFinishes"
    if shuts and at(spec, "deletionStrategy", "deletionRules"):
        yield "shutdownAfterJobFinishes beside deletionRules"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 0) <= 0:
            yield f"{name}: a job that hangs should end"
    if not shuts and not spec.get("deletionStrategy"):
        yield "the cluster would stay when the job is done"


def submits_in_one_way(doc: Doc) -> Iterator[str]:
    if doc["kind"] != "RayJob":
        return
    spec, mode = doc["spec"], doc["spec"].get("submissionMode", "K8sJobMode")
    if mode == "SidecarMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "SidecarMode takes neither submitterPodTemplate nor submitterConfig"
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "InteractiveMode is not tried again"
    if SHELL.search(spec["entrypoint"]):
        yield "entrypoint: the operator puts it into a shell line as it is"
    if at(spec, "submitterPodTemplate", "spec", "restartPolicy") not in (None, "Never", "OnFailure"):
        yield "submitterPodTemplate: restartPolicy of a Job is Never or OnFailure"


def runtime_env_is_plain(doc: Doc) -> Iterator[str]:
    if doc["kind"] != "RayJob":
        return
    found, runs = yaml.safe_load(doc["spec"].get("runtimeEnvYAML", "{}")), "trimtab run " in doc["spec"]["entrypoint"]
    if not isinstance(found, dict):
        yield "runtimeEnvYAML is no mapping"
    elif found.keys() - {"env_vars"}:
        yield "runtimeEnvYAML: code and packages are in the image"
    elif run_id(found) != (doc["metadata"]["name"] if runs else None):
        yield "runtimeEnvYAML: TRIMTAB_RUN_ID should be the job's name, so that the next attempt goes on with the run"
    elif not all(isinstance(value, str) for value in found.get("env_vars", {}).values()):
        yield "runtimeEnvYAML: values of env_vars are strings"


def run_id(runtime_env: Doc) -> str | None:
    return runtime_env.get("env_vars", {}).get("TRIMTAB_RUN_ID")


def upgrades_as_the_kind_can(doc: Doc) -> Iterator[str]:
    strategy = at(doc, "spec", "upgradeStrategy", "type")
    if strategy is not None and strategy not in UPGRADES[doc["kind"]]:
        yield f"upgradeStrategy.type: {strategy} is none of {', '.join(UPGRADES[doc['kind']])}"
    if doc["kind"] != "RayCluster" and "upgradeStrategy" in cluster_spec(doc):
        yield "upgradeStrategy of the cluster cannot be set where another resource makes it"
    if at(cluster_spec(doc), "headGroupSpec", "headService", "metadata", "name"):
        yield "headService: the operator names it"


RULES = (
    *(name_fits, one_cluster, replicas_are_bounded, autoscaler_starts_pods_anew, autoscaler_has_an_account),
    *(idleness_is_known_to_v2_only,),
    *(resources_in_one_place, labels_at_the_top, head_does_no_work, redis_in_one_place, nothing_behind_a_gate),
    *(guarded_by_a_token, ends_in_one_way, submits_in_one_way, runtime_env_is_plain, upgrades_as_the_kind_can),
)


def lint(doc: Doc) -> list[str]:
    """What the rules have against a custom resource of Ray; no more than that it has no cluster, where it has none."""
    if not cluster_spec(doc):
        return [f"{one_cluster.__name__}: {text}" for text in one_cluster(doc)]
    return [f"{rule.__name__}: {text}" for rule in RULES for text in rule(doc)]
