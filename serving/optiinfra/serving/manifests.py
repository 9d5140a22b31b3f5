"""A Kubernetes Deployment from the same configuration as the command line, as plain data."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from optiinfra.schemas.base import Value
from optiinfra.serving.engines import EngineConfig
from optiinfra.serving.launch import command

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
_PROBE_S = 10


class SecretKey(Value):
    """A value that Kubernetes keeps as a secret."""

    name: Name
    key: str = Field(pattern=r"^[-._a-zA-Z0-9]+$")


class Workload(Value):
    """What Kubernetes must know besides the engine's configuration.

    `start_up_s` is the time until the weights are loaded, `drain_s` that for requests under way
    when a pod leaves. `hub_token` is handed over as the variable HF_TOKEN.
    """

    name: Name
    image: str = Field(pattern=r"^\S+[:@]\S+$")
    namespace: Name = "default"
    replicas: int = Field(default=1, ge=0)
    gpu_resource: str = "nvidia.com/gpu"
    node_selector: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    shared_memory_gib: int = Field(default=8, ge=1)
    start_up_s: int = Field(default=900, ge=_PROBE_S)
    drain_s: int = Field(default=300, ge=0)
    hub_token: SecretKey | None = None


def deployment(config: EngineConfig, workload: Workload, version: str | None) -> dict[str, Any]:
    """The apps/v1 Deployment whose pods run `command(config, version)`, one server a pod.

    A new pod serves before an old one goes. Raises as `command`.
    """
    labels = {
        "app.kubernetes.io/name": workload.name,
        "app.kubernetes.io/component": config.engine.value,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": workload.name,
            "namespace": workload.namespace,
            "labels": {**workload.labels, **labels},
        },
        "spec": {
            "replicas": workload.replicas,
            "selector": {"matchLabels": labels},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
            },
            "template": {
                "metadata": {"labels": {**workload.labels, **labels}},
                "spec": _pod(config, workload, version),
            },
        },
    }


def _pod(config: EngineConfig, workload: Workload, version: str | None) -> dict[str, Any]:
    memory = {"medium": "Memory", "sizeLimit": f"{workload.shared_memory_gib}Gi"}
    pod: dict[str, Any] = {
        "containers": [_container(config, workload, version)],
        "terminationGracePeriodSeconds": workload.drain_s,
        "volumes": [{"name": "shm", "emptyDir": memory}],
    }
    if workload.node_selector:
        pod["nodeSelector"] = dict(workload.node_selector)
    return pod


def _container(config: EngineConfig, workload: Workload, version: str | None) -> dict[str, Any]:
    gpus = {workload.gpu_resource: str(config.gpus)}
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": _PROBE_S}
    container: dict[str, Any] = {
        "name": config.engine.value,
        "image": workload.image,
        "command": list(command(config, version)),
        "ports": [{"name": "http", "containerPort": config.port}],
        "resources": {"limits": gpus, "requests": gpus},
        "startupProbe": {**probe, "failureThreshold": -(-workload.start_up_s // _PROBE_S)},
        "readinessProbe": probe,
        "livenessProbe": {**probe, "failureThreshold": 6},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108 - in the pod
    }
    if workload.hub_token is not None:
        secret = {"name": workload.hub_token.name, "key": workload.hub_token.key}
        container["env"] = [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": secret}}]
    return container
