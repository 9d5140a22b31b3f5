"""The part of the fleet file that names a Kubernetes cluster."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Engine, Market
from optiinfra.schemas.ids import DeploymentId
from optiinfra.serving.manifests import Name, SecretKey


class EngineContainer(Value):
    """The container image of one engine."""

    engine: Engine = Field(description="the engine that it starts")
    image: str = Field(pattern=r"^\S+[:@]\S+$", description="the image, with its tag or digest")
    version: str | None = Field(
        default=None, description="of the engine, for its flags; the newest when left out"
    )


class RouteGateway(Value):
    """A Gateway of the Gateway API that splits the traffic, in place of OptiInfra's."""

    name: Name = Field(description="of the Gateway that new HTTPRoutes hang on")
    namespace: Name | None = Field(default=None, description="where it is, when elsewhere")
    section: Name | None = Field(default=None, description="which of its listeners")
    hostnames: dict[DeploymentId, tuple[str, ...]] = Field(
        default_factory=dict, description="the host names of each deployment's requests"
    )


class KubernetesCloud(Value):
    """One namespace of a Kubernetes cluster: docs/kubernetes.md."""

    namespace: Name = Field(description="where the replicas are")
    kubeconfig: Path | None = Field(
        default=None,
        description="how to reach the cluster, relative to this file; without it and `context`,"
        " the service account of OptiInfra's own pod, or else what `kubectl` takes",
    )
    context: str | None = Field(default=None, description="which entry of the kubeconfig")
    region: str = Field(default="cluster", description="the replicas are priced in this region")
    images: tuple[EngineContainer, ...] = Field(
        default=(), description="what new replicas run; not needed to observe"
    )
    markets: dict[Market, dict[str, str]] = Field(
        default={Market.ON_DEMAND: {}},
        description="the node labels of each market's machines; a market that is not named is not"
        " launched in",
    )
    instance_type_label: str = Field(
        default="node.kubernetes.io/instance-type",
        description="the node label that says what a replica is priced as",
    )
    gpu_resource: str = Field(default="nvidia.com/gpu", description="what nodes call their GPUs")
    hub_token: SecretKey | None = Field(
        default=None, description="the Secret that holds HF_TOKEN, for weights that need one"
    )
    capacity_wait_s: float = Field(
        default=120.0,
        gt=0,
        description="a pod that no node takes for so long has no capacity; a cluster that adds"
        " nodes by itself needs minutes",
    )
    drain_s: int = Field(
        default=300, ge=0, description="the pod's time to end, for requests under way"
    )
    gateway: RouteGateway | None = Field(
        default=None, description="splits the traffic by HTTPRoutes: docs/kubernetes.md"
    )
    emulated: bool = Field(default=False, description="the images hold an engine emulator")

    @field_validator("images")
    @classmethod
    def _engines_differ(cls, images: tuple[EngineContainer, ...]) -> tuple[EngineContainer, ...]:
        if len({one.engine for one in images}) < len(images):
            raise ValueError("name one image for each engine")
        return images
