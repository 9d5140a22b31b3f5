"""What the Kubernetes API refuses to take: its types as the official client has them, and names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from kubernetes import client
from kubernetes.client import Configuration

NAME = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
SERVICE_NAME = r"[a-z]([-a-z0-9]*[a-z0-9])?"
LABEL_VALUE = r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
KEY = r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
_PLAIN: dict[str, type | tuple[type, ...]] = {
    "str": str, "int": int, "bool": bool, "float": (int, float), "object": object,
}  # fmt: skip
_STRICT = Configuration()
_DNS = {"type": "string", "minLength": 1, "maxLength": 253}


def _closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "required": required, "properties": properties,
        "additionalProperties": False,
    }  # fmt: skip


_BACKEND = _closed(
    ["name", "port"],  # a Service must have a port
    group={"type": "string", "maxLength": 253},
    kind={"type": "string", "pattern": "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"},
    name=_DNS,
    port={"type": "integer", "minimum": 1, "maximum": 65_535},
    weight={"type": "integer", "minimum": 0, "maximum": 1_000_000},
)
_RULE = _closed(
    [],
    backendRefs={"type": "array", "maxItems": 16, "items": _BACKEND},
    matches={"type": "array", "maxItems": 64},
    timeouts={"type": "object"},
)
HTTP_ROUTE = _closed(
    ["spec"],
    apiVersion={"const": "gateway.networking.k8s.io/v1"},
    kind={"const": "HTTPRoute"},
    metadata={"type": "object"},
    status={"type": "object"},
    spec=_closed(
        [],
        parentRefs={
            "type": "array",
            "maxItems": 32,
            "items": _closed(["name"], name=_DNS, namespace=_DNS, sectionName=_DNS),
        },
        hostnames={"type": "array", "maxItems": 16, "items": _DNS},
        rules={"type": "array", "minItems": 1, "maxItems": 16, "items": _RULE},
    ),
)


def problems(model: str, value: Any, path: str = "") -> Iterator[str]:
    """Unknown fields, missing ones and wrong types, by the client's generated models."""
    if model.startswith("list["):
        yield from _each(model[5:-1], value, path)
    elif model.startswith("dict["):
        yield from _entries(model.split(", ")[1][:-1], value, path)
    elif model == "datetime":
        if not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is None:
            yield f"{path}: no time: {value!r}"
    elif model in _PLAIN:
        wrong = isinstance(value, bool) and model in ("int", "float")
        if wrong or not isinstance(value, _PLAIN[model]):
            yield f"{path}: {value!r} is no {model}"
    else:
        yield from _fields(getattr(client, model), value, path)


def metadata_problems(body: Mapping[str, Any], name: str) -> Iterator[str]:
    """Names, labels and annotations, which the types do not bound."""
    metadata = body.get("metadata", {})
    if not re.fullmatch(name, metadata.get("name", "")) or len(metadata["name"]) > 63:
        yield f"metadata.name: {metadata.get('name')!r} is not a DNS label"
    for key, value in metadata.get("labels", {}).items():
        if not re.fullmatch(KEY, key) or not re.fullmatch(LABEL_VALUE, value) or len(value) > 63:
            yield f"metadata.labels: {key}={value}"
    for key in metadata.get("annotations", {}):
        if not re.fullmatch(KEY, key):
            yield f"metadata.annotations: {key} is no qualified name"


def deployment_problems(body: Mapping[str, Any]) -> Iterator[str]:
    yield from problems("V1Deployment", body)
    yield from metadata_problems(body, NAME)
    spec = body.get("spec", {})
    labels = spec.get("template", {}).get("metadata", {}).get("labels", {})
    wanted = spec.get("selector", {}).get("matchLabels", {})
    if not wanted or not wanted.items() <= labels.items():
        yield "spec.template.metadata.labels: `selector` does not match template `labels`"


def service_problems(body: Mapping[str, Any]) -> Iterator[str]:
    yield from problems("V1Service", body)
    yield from metadata_problems(body, SERVICE_NAME)
    if not body.get("spec", {}).get("ports"):
        yield "spec.ports: Required value"


def route_problems(body: Mapping[str, Any]) -> Iterator[str]:
    """By the bounds that the Gateway API's CRD sets for what is used here (standard, v1)."""
    yield from problems("V1ObjectMeta", body.get("metadata", {}), "metadata")
    yield from metadata_problems(body, NAME)
    for wrong in Draft202012Validator(HTTP_ROUTE).iter_errors(body):
        yield f"{wrong.json_path}: {wrong.message}"


def _each(model: str, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{path}: {value!r} is no list"
        return
    for number, one in enumerate(value):
        yield from problems(model, one, f"{path}[{number}]")


def _entries(model: str, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is no mapping"
        return
    for key, one in value.items():
        yield from problems(model, one, f"{path}.{key}")


def _fields(model: Any, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is no mapping"
        return
    names = {written: name for name, written in model.attribute_map.items()}
    for written, one in value.items():
        where = f"{path}.{written}".lstrip(".")
        if written not in names:
            yield f"{where}: unknown field"
        else:
            yield from problems(model.openapi_types[names[written]], one, where)
    for written in names.keys() - value.keys():
        if _is_required(model, names[written]):
            yield f"{path}.{written}: Required value".lstrip(".")


def _is_required(model: Any, name: str) -> bool:
    probe = model.__new__(model)
    probe.local_vars_configuration = _STRICT
    try:
        setattr(probe, name, None)
    except ValueError:
        return True
    return False
