"""Rules for pods, whatever makes them: limits, probes, privileges, secrets, room in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.k8s.kube import Doc, Pod, at, cluster_spec

SECRET = re.compile(r"PASSWORD|SECRET|TOKEN$|AUTH_TOKEN|ACCESS_KEY|API_KEYS?$|CREDENTIAL", re.IGNORECASE)
SECRET_TEXT = re.compile(r"://[^/\s:@]+:(?!\$\()[^/\s@]+@")
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 0.001}


def amount(text: str | int) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text)).groups()
    return float(number) * UNITS[unit]


def image_has_a_tag(pod: Pod) -> Iterator[str]:
    for one in pod.containers:
        tag = one["image"].rpartition("/")[2].partition("@")[0].partition(":")[2]
        if "@sha256:" not in one["image"] and tag in ("", "latest"):
            yield f"{one['name']}: image {one['image']} has no tag of its own"


def limits_are_set(pod: Pod) -> Iterator[str]:
    for one in pod.containers:
        asked, most = (at(one, "resources", key) or {} for key in ("requests", "limits"))
        if not {"cpu", "memory"} <= asked.keys() & most.keys():
            yield f"{one['name']}: cpu and memory should have requests and limits"
        elif asked["memory"] != most["memory"]:
            yield f"{one['name']}: what is promised of memory and what may be used differ"
        elif amount(asked["cpu"]) > amount(most["cpu"]):
            yield f"{one['name']}: more CPUs are asked for than allowed"
        if asked.get("nvidia.com/gpu") != most.get("nvidia.com/gpu"):
            yield f"{one['name']}: GPUs are not shared: requests are limits"


def nobody_in_particular(pod: Pod) -> Iterator[str]:
    whole = pod.spec.get("securityContext") or {}
    if whole.get("runAsNonRoot") is not True or not whole.get("runAsUser"):
        yield "runAsNonRoot with a user"
    if at(whole, "seccompProfile", "type") != "RuntimeDefault":
        yield "seccompProfile: RuntimeDefault"
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(name):
            yield name
    for volume in pod.spec.get("volumes", ()):
        if "hostPath" in volume:
            yield f"{volume['name']}: hostPath"


def privileges_are_dropped(pod: Pod) -> Iterator[str]:
    for one in pod.containers:
        context = one.get("securityContext") or {}
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{one['name']}: allowPrivilegeEscalation: false"
        if at(context, "capabilities", "drop") != ["ALL"] or at(context, "capabilities", "add"):
            yield f"{one['name']}: capabilities: drop ALL"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{one['name']}: readOnlyRootFilesystem"


def no_token_without_need(pod: Pod) -> Iterator[str]:
    scaled = pod.role == "head" and (cluster_spec(pod.owner) or {}).get("enableInTreeAutoscaling")
    if not scaled and pod.spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken: false"
    if pod.role != "head" and not pod.spec.get("serviceAccountName"):
        yield "an account of its own"


def probes_ask(pod: Pod) -> Iterator[str]:
    if pod.owner["kind"] in ("Deployment", "StatefulSet"):
        for one in pod.spec["containers"]:
            if missing := {"startupProbe", "readinessProbe", "livenessProbe"} - one.keys():
                yield f"{one['name']}: {', '.join(sorted(missing))}"
            for name in {"startupProbe", "readinessProbe", "livenessProbe"} & one.keys():
                port = at(one, name, "httpGet", "port")
                if isinstance(port, str) and port not in pod.ports:
                    yield f"{one['name']}: {name} asks port {port}"


def secrets_come_from_secrets(pod: Pod) -> Iterator[str]:
    for one in pod.containers:
        for variable in one.get("env", ()):
            value = variable.get("value", "")
            if value and (SECRET.search(variable["name"]) or SECRET_TEXT.search(value)):
                yield f"{one['name']}: {variable['name']} holds a secret as it is"


def mounts_are_volumes(pod: Pod) -> Iterator[str]:
    claimed = [at(one, "metadata", "name") for one in at(pod.owner, "spec", "volumeClaimTemplates") or ()]
    there = {one["name"] for one in pod.spec.get("volumes", ())} | set(claimed)
    for one in pod.containers:
        mounts = one.get("volumeMounts", ())
        if lost := {mount["name"] for mount in mounts} - there:
            yield f"{one['name']}: no volume {', '.join(sorted(lost))}"
        if len({mount["mountPath"] for mount in mounts}) < len(mounts):
            yield f"{one['name']}: two volumes at one path"
    if unused := there - {mount["name"] for one in pod.containers for mount in one.get("volumeMounts", ())}:
        yield f"volume {', '.join(sorted(unused))} is mounted nowhere"


def scratch_is_bounded(pod: Pod) -> Iterator[str]:
    for volume in pod.spec.get("volumes", ()):
        if "emptyDir" in volume and not at(volume, "emptyDir", "sizeLimit"):
            yield f"{volume['name']}: sizeLimit"


def disk_is_allowed(pod: Pod) -> Iterator[str]:
    """What a pod's scratch volumes hold counts against its containers' limits: with more it is evicted."""
    most = [at(one, "resources", "limits", "ephemeral-storage") for one in pod.spec["containers"]]
    room = sum(amount(at(one, "emptyDir", "sizeLimit") or 0) for one in pod.spec.get("volumes", ()) if on_disk(one))
    if any(most) and room > sum(amount(one or 0) for one in most):
        yield "scratch volumes may hold more than the limit of ephemeral-storage"


def on_disk(volume: Doc) -> bool:
    return "emptyDir" in volume and at(volume, "emptyDir", "medium") != "Memory"


def objects_have_room(pod: Pod) -> Iterator[str]:
    """Ray's object store lies in shared memory, beside what DeepSpeed and gloo put there, and counts as memory."""
    if pod.role not in ("head", "worker"):
        return
    shared = [one for one in pod.spec["volumes"] if at(one, "emptyDir", "medium") == "Memory"]
    mounted = {one["mountPath"]: one["name"] for one in pod.spec["containers"][0]["volumeMounts"]}
    room = sum(amount(one["emptyDir"]["sizeLimit"]) for one in shared if one["name"] == mounted.get("/dev/shm"))
    params = next(start for start, template in _groups(pod.owner) if template["spec"] is pod.spec)
    store = amount(params.get("object-store-memory", "0"))
    if not 0 < store <= 0.6 * room:
        yield "object-store-memory should be said, and leave 40 % of /dev/shm to others"
    if room > 0.55 * amount(pod.spec["containers"][0]["resources"]["limits"]["memory"]):
        yield "/dev/shm may take more than half of the memory"


def metrics_are_told(pod: Pod) -> Iterator[str]:
    if pod.role not in ("head", "worker"):
        return
    params = next(start for start, template in _groups(pod.owner) if template["spec"] is pod.spec)
    if params.get("metrics-export-port") != str(pod.ports.get("metrics")):
        yield "metrics-export-port is not the port called metrics"
    if {"serve": 8000}.items() - pod.ports.items():
        yield "a port called serve, 8000"


def _groups(owner: Doc) -> Iterator[tuple[Doc, Doc]]:
    spec = cluster_spec(owner)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group.get("rayStartParams") or {}, group["template"]


RULES = (
    *(image_has_a_tag, limits_are_set, nobody_in_particular, privileges_are_dropped, no_token_without_need),
    *(probes_ask, secrets_come_from_secrets, mounts_are_volumes, scratch_is_bounded, objects_have_room),
    *(metrics_are_told, disk_is_allowed),
)


def lint(pod: Pod) -> list[str]:
    """What the rules have against a pod."""
    return [f"{rule.__name__}: {text}" for rule in RULES for text in rule(pod)]


def open_secrets(doc: Doc) -> Iterator[str]:
    """Secrets in a ConfigMap, or a Secret that would be applied."""
    if doc["kind"] == "Secret":
        yield "Secrets are not applied from here"
    if doc["kind"] == "ConfigMap":
        for key, value in doc["data"].items():
            if SECRET.search(key) or SECRET_TEXT.search(value):
                yield f"{key} belongs into a Secret"


def budget_can_count(doc: Doc) -> Iterator[str]:
    """The pods of a custom resource have no scale of their own, so only a number of them that stay can be said."""
    if doc["kind"] == "PodDisruptionBudget" and not isinstance(doc["spec"].get("minAvailable"), int):
        yield "minAvailable as a number: custom resources have nothing to take a share of"
