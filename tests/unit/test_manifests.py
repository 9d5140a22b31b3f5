"""Kubernetes manifests of engines: the shape that the API takes, and the same command."""

from __future__ import annotations

from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from pydantic import ValidationError

from optiinfra.schemas.errors import Rejected
from optiinfra.serving.engines import EngineConfig, SglangConfig, VllmConfig
from optiinfra.serving.launch import command
from optiinfra.serving.manifests import SecretKey, Workload, deployment

LABEL = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
LABELS: dict[str, Any] = {
    "type": "object", "additionalProperties": {"type": "string", "pattern": LABEL},
}  # fmt: skip
PROBE: dict[str, Any] = {
    "type": "object", "required": ["httpGet", "periodSeconds"], "additionalProperties": False,
    "properties": {
        "httpGet": {
            "type": "object", "required": ["path", "port"], "additionalProperties": False,
            "properties": {"path": {"type": "string", "pattern": "^/"}, "port": {"const": "http"}},
        },
        "periodSeconds": {"type": "integer", "minimum": 1},
        "failureThreshold": {"type": "integer", "minimum": 1},
    },
}  # fmt: skip
QUANTITIES: dict[str, Any] = {
    "type": "object", "additionalProperties": {"type": "string", "pattern": r"^[0-9]+(Gi)?$"},
}  # fmt: skip
CONTAINER: dict[str, Any] = {
    "type": "object", "required": ["name", "image", "command", "ports", "resources"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"}, "image": {"type": "string"},
        "command": {"type": "array", "minItems": 1, "items": {"type": "string"}},
        "env": {"type": "array", "items": {"type": "object", "required": ["name", "valueFrom"]}},
        "ports": {
            "type": "array",
            "items": {
                "type": "object", "required": ["containerPort"],
                "properties": {"containerPort": {"type": "integer"}, "name": {"type": "string"}},
            },
        },
        "resources": {
            "type": "object", "required": ["limits", "requests"],
            "properties": {"limits": QUANTITIES, "requests": QUANTITIES},
        },
        "startupProbe": PROBE, "readinessProbe": PROBE, "livenessProbe": PROBE,
        "volumeMounts": {"type": "array"},
    },
}  # fmt: skip
DEPLOYMENT: dict[str, Any] = {
    "type": "object", "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "apps/v1"}, "kind": {"const": "Deployment"},
        "metadata": {
            "type": "object", "required": ["name", "namespace"], "additionalProperties": False,
            "properties": {
                "name": {"type": "string"}, "namespace": {"type": "string"}, "labels": LABELS,
            },
        },
        "spec": {
            "type": "object", "required": ["selector", "template"], "additionalProperties": False,
            "properties": {
                "replicas": {"type": "integer", "minimum": 0},
                "selector": {"type": "object", "properties": {"matchLabels": LABELS}},
                "strategy": {"type": "object"},
                "template": {
                    "type": "object", "required": ["metadata", "spec"],
                    "properties": {
                        "metadata": {"type": "object", "properties": {"labels": LABELS}},
                        "spec": {
                            "type": "object", "required": ["containers"],
                            "additionalProperties": False,
                            "properties": {
                                "containers": {"type": "array", "items": CONTAINER},
                                "terminationGracePeriodSeconds": {"type": "integer"},
                                "volumes": {"type": "array"},
                                "nodeSelector": {"type": "object"},
                            },
                        },
                    },
                },
            },
        },
    },
}  # fmt: skip
"""What apps/v1 takes of what is written here; unknown fields are refused, as the API does."""
PLAIN = Workload(name="chat", image="vllm/vllm-openai:v0.10.2")


def pod_of(made: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = made["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize(
    ("config", "version"),
    [
        (VllmConfig(model="org/m", max_num_seqs=64, tensor_parallel=4), "0.10.2"),
        (SglangConfig(model="org/m", prefix_caching=False, port=30000), "0.5.10"),
    ],
)
def test_a_deployment_has_the_shape_of_the_api_and_the_command_of_the_engine(
    config: EngineConfig, version: str
) -> None:
    made = deployment(config, PLAIN, version)
    jsonschema.validate(made, DEPLOYMENT)
    (container,) = pod_of(made)["containers"]
    assert tuple(container["command"]) == command(config, version)
    assert container["ports"][0]["containerPort"] == config.port
    assert container["resources"]["limits"] == {"nvidia.com/gpu": str(config.gpus)}
    selected = made["spec"]["selector"]["matchLabels"]
    assert selected.items() <= made["spec"]["template"]["metadata"]["labels"].items()


def test_a_workload_says_where_how_many_and_how_long() -> None:
    workload = Workload(
        name="chat", image="registry/vllm@sha256:0a", namespace="llm", replicas=3, start_up_s=95,
        drain_s=60, node_selector={"gpu": "h100"}, labels={"team": "search"}, shared_memory_gib=16,
        hub_token=SecretKey(name="hub", key="token"),
    )  # fmt: skip
    made = deployment(VllmConfig(model="m"), workload, "0.10.2")
    jsonschema.validate(made, DEPLOYMENT)
    assert made["metadata"]["labels"]["team"] == "search"
    assert made["spec"]["replicas"] == 3
    pod = pod_of(made)
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert pod["terminationGracePeriodSeconds"] == 60
    assert pod["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    (container,) = pod["containers"]
    assert container["startupProbe"]["failureThreshold"] * 10 >= 95
    secret = {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert container["env"] == [{"name": "HF_TOKEN", "valueFrom": secret}]
    assert "nodeSelector" not in pod_of(deployment(VllmConfig(model="m"), PLAIN, "0.10.2"))


def test_a_configuration_that_would_not_start_has_no_manifest() -> None:
    with pytest.raises(Rejected, match="would not start"):
        deployment(VllmConfig(model="m", swap_gib=1), PLAIN, "0.33.0")


@pytest.mark.parametrize(("name", "image"), [("Chat", "a:1"), ("chat", "latest")])
def test_a_name_or_an_image_that_the_api_would_refuse_is_refused(name: str, image: str) -> None:
    with pytest.raises(ValidationError):
        Workload(name=name, image=image)
