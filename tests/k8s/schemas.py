"""Resources against schemas: Kubernetes' own, and those of KubeRay's custom resources."""

from __future__ import annotations

import copy
import functools
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from tests.k8s.kube import ROOT, Doc

CRDS = ROOT / ".." / "shared" / "k8s"
VERSION = "1.37"
OPERATORS = ("PodMonitor", "PrometheusRule")
"""Kinds of the Prometheus operator, whose schemas are not at hand."""


def wrongs(doc: Doc) -> list[str]:
    """What a schema has against a resource."""
    if doc["apiVersion"] == "ray.io/v1":
        return custom_wrongs(doc)
    if doc["kind"] in OPERATORS:
        return []
    try:
        kubernetes_validate.validate(doc, VERSION, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return [str(error)]
    return []


def custom_wrongs(doc: Doc) -> list[str]:
    """As the API server checks a custom resource: defaults are filled in first, unknown keys are mistakes."""
    schema, closed = crd(doc["kind"].lower())
    filled = with_defaults(copy.deepcopy(doc), schema)
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message[:300]}" for e in closed.iter_errors(filled)]


@functools.cache
def crd(kind: str) -> tuple[Doc, Draft202012Validator]:
    text = (CRDS / f"crd-{kind}.yaml").read_text()
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = (one["schema"]["openAPIV3Schema"] for one in versions if one["name"] == "v1")
    return schema, Draft202012Validator(as_json_schema(schema))


def as_json_schema(schema: Doc) -> Doc:
    """An OpenAPI v3 schema of a CRD as a JSON schema that refuses unknown keys."""
    found = {key: schema[key] for key in KEPT if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        found = {"type": ["integer", "string"]}
    if "properties" in schema:
        found["properties"] = {name: as_json_schema(one) for name, one in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        found["additionalProperties"] = as_json_schema(schema["additionalProperties"])
    if "items" in schema:
        found["items"] = as_json_schema(schema["items"])
    if schema.get("nullable"):
        found["type"] = [found["type"], "null"]
    return found


KEPT = ("type", "required", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")


def with_defaults(node: Any, schema: Doc) -> Any:
    """A resource with every default of its schema where it says nothing."""
    if isinstance(node, dict):
        for name, one in schema.get("properties", {}).items():
            if name not in node and "default" in one:
                node[name] = copy.deepcopy(one["default"])
            if name in node:
                with_defaults(node[name], one)
        if isinstance(schema.get("additionalProperties"), dict):
            for value in node.values():
                with_defaults(value, schema["additionalProperties"])
    elif isinstance(node, list) and "items" in schema:
        for item in node:
            with_defaults(item, schema["items"])
    return node
