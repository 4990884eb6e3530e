"""What resources name has to be there, and has to be let through."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import yaml
from tests.k8s.kube import K8S, Doc, Pod, at, cluster_spec, of_kind, pods, selects, title

ADDRESS = re.compile(r"(?:^|//|@)([a-z][a-z0-9.-]*):(\d+)(?:/|$)")
OUTSIDE = {"minio.minio"}
"""Services that are not ours."""


@functools.cache
def example_secrets() -> dict[str, set[str]]:
    """Names and keys of the Secrets that an installation needs."""
    docs = yaml.safe_load_all((K8S / "examples" / "secrets.yaml").read_text())
    return {doc["metadata"]["name"]: set(doc["stringData"]) for doc in docs}


def unresolved(docs: list[Doc]) -> list[str]:
    """Names that lead nowhere."""
    there = {(doc["kind"], doc["metadata"]["name"]): doc for doc in docs}
    found = [f"{pod.name}: {text}" for pod in pods(docs) for text in (*_named(pod, there), *_secrets_of(pod))]
    found += [f"{title(doc)}: {text}" for doc in docs for text in _secrets_elsewhere(doc)]
    found += [f"{title(doc)}: {text}" for doc in docs for text in _selectors(doc, pods(docs))]
    return found + list(_addresses(docs, pods(docs)))


def _named(pod: Pod, there: dict[tuple[str, str], Doc]) -> Iterator[str]:
    account = pod.spec.get("serviceAccountName")
    if account and ("ServiceAccount", account) not in there:
        yield f"no ServiceAccount {account}"
    for volume in pod.spec.get("volumes", ()):
        claim, config = at(volume, "persistentVolumeClaim", "claimName"), at(volume, "configMap", "name")
        if claim and ("PersistentVolumeClaim", claim) not in there:
            yield f"no PersistentVolumeClaim {claim}"
        if config and ("ConfigMap", config) not in there:
            yield f"no ConfigMap {config}"
    for one in pod.containers:
        for source in one.get("envFrom", ()):
            config = at(source, "configMapRef", "name")
            if config and ("ConfigMap", config) not in there:
                yield f"no ConfigMap {config}"
        for variable in one.get("env", ()):
            wanted = at(variable, "valueFrom", "configMapKeyRef")
            if wanted and wanted["key"] not in (at(there.get(("ConfigMap", wanted["name"]), {}), "data") or {}):
                yield f"no key {wanted['key']} in ConfigMap {wanted['name']}"


def _secrets_of(pod: Pod) -> Iterator[str]:
    secrets = example_secrets()
    for one in pod.containers:
        for source in one.get("envFrom", ()):
            if at(source, "secretRef", "name") not in (None, *secrets):
                yield f"no Secret {source['secretRef']['name']}"
        for variable in one.get("env", ()):
            yield from _key(at(variable, "valueFrom", "secretKeyRef"), secrets)


def _secrets_elsewhere(doc: Doc) -> Iterator[str]:
    secrets, spec = example_secrets(), cluster_spec(doc) or {}
    yield from _key(at(spec, "gcsFaultToleranceOptions", "redisPassword", "valueFrom", "secretKeyRef"), secrets)
    if token := at(spec, "authOptions", "secretName"):
        yield from _key({"name": token, "key": "auth_token"}, secrets)
    for endpoint in at(doc, "spec", "podMetricsEndpoints") or ():
        yield from _key(at(endpoint, "authorization", "credentials"), secrets)


def _key(wanted: Doc | None, secrets: dict[str, set[str]]) -> Iterator[str]:
    if wanted and wanted["key"] not in secrets.get(wanted["name"], ()):
        yield f"no key {wanted['key']} in Secret {wanted['name']}"


def _selectors(doc: Doc, there: list[Pod]) -> Iterator[str]:
    spec = doc.get("spec", {})
    if doc["kind"] == "Service":
        meant = [pod for pod in there if selects({"matchLabels": spec["selector"]}, pod.labels)]
        for port in spec["ports"]:
            target = port.get("targetPort", port["port"])
            if not any(target in (*pod.ports, *pod.ports.values()) for pod in meant):
                yield f"no pod behind port {port['port']}"
    elif doc["kind"] == "PodDisruptionBudget":
        if not any(selects(spec["selector"], pod.labels) for pod in there):
            yield "no pod to keep"
    elif doc["kind"] == "PodMonitor":
        meant = [pod for pod in there if selects(spec["selector"], pod.labels)]
        for endpoint in spec["podMetricsEndpoints"]:
            if not any(endpoint["port"] in pod.ports for pod in meant):
                yield f"no pod with a port {endpoint['port']}"
    elif doc["kind"] in ("Deployment", "StatefulSet"):
        if not selects(spec["selector"], spec["template"]["metadata"]["labels"]):
            yield "does not select its own pods"
    elif doc["kind"] == "NetworkPolicy":
        made = MADE & set(_values(spec["podSelector"]))
        if not made and not any(selects(spec["podSelector"], pod.labels) for pod in there):
            yield "no pod that it is about"


MADE = {"redis-cleanup"}
"""Pods that the operator makes for a while."""


def _values(selector: Doc) -> list[str]:
    return [value for one in selector.get("matchExpressions", ()) for value in one.get("values", ())]


def addresses(pod: Pod, docs: list[Doc]) -> set[tuple[str, int]]:
    """Hosts and ports that a pod is told of."""
    maps = {doc["metadata"]["name"]: doc["data"] for doc in of_kind(docs, "ConfigMap")}
    texts = []
    for one in pod.containers:
        texts += [str(variable.get("value", "")) for variable in one.get("env", ())]
        for source in one.get("envFrom", ()):
            data = maps.get(at(source, "configMapRef", "name"), {})
            texts += [text for key, text in data.items() if not key.endswith("ALLOWED_HOSTS")]
    if pod.role == "head":
        texts.append(at(cluster_spec(pod.owner), "gcsFaultToleranceOptions", "redisAddress") or "")
    return {(host, int(port)) for text in texts for host, port in ADDRESS.findall(text) if host not in OUTSIDE}


def _addresses(docs: list[Doc], there: list[Pod]) -> Iterator[str]:
    services = {doc["metadata"]["name"]: doc["spec"] for doc in of_kind(docs, "Service")}
    policies = of_kind(docs, "NetworkPolicy")
    for pod in there:
        for host, port in sorted(addresses(pod, docs)):
            if port not in [one["port"] for one in services.get(host, {}).get("ports", ())]:
                yield f"{pod.name}: no Service {host}:{port}"
                continue
            (target,) = (one.get("targetPort", port) for one in services[host]["ports"] if one["port"] == port)
            behind = [one for one in there if selects({"matchLabels": services[host]["selector"]}, one.labels)]
            if not all(passes(policies, pod, one, one.ports.get(target, target)) for one in behind):
                yield f"{pod.name}: no policy lets it through to {host}:{port}"


def passes(policies: list[Doc], source: Pod, target: Pod, port: int) -> bool:
    """Whether network policies let one pod of the namespace open a connection to another."""
    out = _lets(policies, source, "Egress", target, port)
    return out and _lets(policies, target, "Ingress", source, port)


def _lets(policies: list[Doc], about: Pod, way: str, other: Pod, port: int) -> bool:
    mine = [
        one["spec"]
        for one in policies
        if way in one["spec"]["policyTypes"] and selects(one["spec"]["podSelector"], about.labels)
    ]
    rules = [rule for spec in mine for rule in spec.get(way.lower(), ())]
    ports = other.ports if way == "Egress" else about.ports
    return not mine or any(
        any(
            "namespaceSelector" not in peer and selects(peer.get("podSelector", NOBODY), other.labels) for peer in peers
        )
        and port in [ports.get(one["port"], one["port"]) for one in rule.get("ports", [{"port": port}])]
        for rule in rules
        for peers in (rule.get("to", []) + rule.get("from", []),)
    )


NOBODY = {"matchLabels": {"trimtab/nobody": "at all"}}
