"""A replica as objects of Kubernetes, and the objects read back as a replica; no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from optiinfra.agents.actuators.port import LaunchSpec, replica_name
from optiinfra.schemas.deployment import (
    Engine,
    Instance,
    Market,
    Provider,
    Replica,
    ReplicaState,
)
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import DeploymentId
from optiinfra.serving.engines import EngineConfig
from optiinfra.serving.launch import command
from optiinfra.serving.manifests import SecretKey, Workload, deployment

LABEL_TENANT = "optiinfra.io/tenant"
LABEL_DEPLOYMENT = "optiinfra.io/deployment"
LABEL_REPLICA = "optiinfra.io/replica"
LABEL_TOKEN = "optiinfra.io/launch-token"  # noqa: S105 - the name of a label
LABEL_MANAGER = "app.kubernetes.io/managed-by"
_ENGINE = "optiinfra.io/engine"
_TYPE = "optiinfra.io/instance-type"
_MARKET = "optiinfra.io/market"
_EMULATED = "optiinfra.io/emulated"
_ZONE = "topology.kubernetes.io/zone"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ENGINES: TypeAdapter[EngineConfig] = TypeAdapter(
    Annotated[EngineConfig, Field(discriminator="engine")]
)
Labels = Mapping[str, str]
Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EngineImage:
    """The container that an engine runs in; `version` is the engine's, the newest when None."""

    image: str
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """How replicas are made in one namespace of one cluster.

    `engines` is what a launch that brings no configuration starts. `markets` gives the node labels
    that tell the machines of each market apart; a market that is not named cannot be launched in.
    """

    namespace: str
    region: str
    images: Mapping[Engine, EngineImage]
    engines: Mapping[DeploymentId, EngineConfig] = field(default_factory=dict)
    markets: Mapping[Market, Labels] = field(default_factory=lambda: {Market.ON_DEMAND: {}})
    instance_type_label: str = "node.kubernetes.io/instance-type"
    gpu_resource: str = "nvidia.com/gpu"
    hub_token: SecretKey | None = None
    start_up_s: int = 900
    drain_s: int = 300
    emulated: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What the API shows of one replica."""

    deployment: Object
    pods: Sequence[Object]
    service: Object | None

    @property
    def replica_id(self) -> str:
        return str(labels_of(self.deployment)[LABEL_REPLICA])

    @property
    def ending(self) -> bool:
        """Whether it is on its way out."""
        return "deletionTimestamp" in self.deployment["metadata"]

    @property
    def pod(self) -> Object | None:
        """The pod that stands for the replica: the newest that is to stay."""
        staying = [one for one in self.pods if "deletionTimestamp" not in one["metadata"]]
        return max(staying, key=lambda one: str(one["metadata"]["creationTimestamp"]), default=None)

    @property
    def running_since(self) -> datetime | None:
        """Since when the engine's process runs; None while it does not."""
        running = self._process.get("running")
        return _time(running.get("startedAt")) if running is not None else None

    @property
    def obstacle(self) -> str | None:
        """Why there is no pod, or no node has taken it; None where Kubernetes says nothing."""
        if self.pod is None:
            return _condition(self.deployment, "ReplicaFailure", "True")
        return _condition(self.pod, "PodScheduled", "False")

    @property
    def placed(self) -> bool:
        pod = self.pod
        return pod is not None and bool(pod["spec"].get("nodeName"))

    @property
    def state(self) -> ReplicaState:
        """As Kubernetes alone says; `UNKNOWN` of a process that runs, which must be asked itself.

        A process that ends is started again at once, and then ever later: one that has ended twice
        and waits has stopped.
        """
        if self.ending:
            return ReplicaState.DRAINING
        if self.deployment["spec"].get("replicas", 1) == 0:
            return ReplicaState.STOPPED
        if "running" in self._process:
            return ReplicaState.UNKNOWN
        again = self._status.get("restartCount", 0) > 0
        return ReplicaState.STOPPED if again else ReplicaState.STARTING

    @property
    def engine(self) -> EngineConfig | None:
        """What it was launched with. Raises `Rejected` when that cannot be read."""
        kept = _annotations(self.deployment).get(_ENGINE)
        if kept is None:
            return None
        try:
            return _ENGINES.validate_json(kept)
        except ValidationError as error:
            raise Rejected(
                f"annotation {_ENGINE} of {self.deployment['metadata']['name']} is unreadable",
                hint="remove the annotation, or the Deployment",
            ) from error

    @property
    def _status(self) -> Object:
        pod = self.pod
        name = self.deployment["spec"]["template"]["spec"]["containers"][0]["name"]
        statuses = pod.get("status", {}).get("containerStatuses", []) if pod is not None else []
        return next((one for one in statuses if one["name"] == name), {})

    @property
    def _process(self) -> Object:
        state: Object = self._status.get("state", {})
        return state

    def replica(self, site: Site) -> Replica:
        """As Kubernetes alone shows it."""
        metadata, kept = self.deployment["metadata"], _annotations(self.deployment)
        selector = self.deployment["spec"]["template"]["spec"].get("nodeSelector", {})
        pod_labels = labels_of(self.pod) if self.pod is not None else {}
        return Replica(
            id=self.replica_id,
            deployment=labels_of(self.deployment)[LABEL_DEPLOYMENT],
            state=self.state,
            url=service_url(self.service),
            instance=Instance(
                id=f"kubernetes-{metadata['uid']}",
                provider=Provider.KUBERNETES,
                instance_type=kept.get(_TYPE, "unknown"),
                region=site.region,
                zone=pod_labels.get(_ZONE) or selector.get(_ZONE) or "",
                market=Market(kept.get(_MARKET, Market.ON_DEMAND)),
                launched_at=_time(metadata.get("creationTimestamp")),
            ),
            launch_token=labels_of(self.deployment).get(LABEL_TOKEN),
            emulated=kept.get(_EMULATED) == "true",
        )


def object_name(replica: str) -> str:
    """The name of a replica's objects: DNS takes no underscore, and a Service no leading digit."""
    name = replica.replace("_", "-")
    return f"r{name}" if name[0].isdigit() else name


def labels_of(one: Object) -> Labels:
    labels: Labels = one["metadata"].get("labels") or {}
    return labels


def selected(tenant: str, deployment_id: str, replica: str | None = None) -> dict[str, str]:
    """The labels that all objects of a deployment's replicas carry, or of one replica."""
    labels = {LABEL_TENANT: tenant, LABEL_DEPLOYMENT: deployment_id}
    return {**labels, LABEL_REPLICA: replica} if replica is not None else labels


def require_launchable(site: Site, model: str, engine: EngineConfig) -> None:
    """Raises `Rejected` as the port says."""
    image = site.images.get(engine.engine)
    if image is None:
        raise Rejected(
            f"no image runs {engine.engine.value}",
            hint="name one under clouds.kubernetes.images",
        )
    served = engine.served_model_name or engine.model
    if served != model:
        raise Rejected(
            f"the engine serves {served!r}, but requests ask for {model!r}",
            hint="set served_model_name in the engine file",
        )
    if engine.host in _LOOPBACK:
        raise Rejected(
            f"an engine on {engine.host} cannot be reached from outside its pod",
            hint="leave host out of the engine file",
        )
    command(engine, image.version)


def deployment_manifest(spec: LaunchSpec, engine: EngineConfig, site: Site) -> dict[str, Any]:
    """The Deployment of one replica. Raises `Rejected` for what cannot be launched here."""
    require_launchable(site, spec.model, engine)
    to, image = spec.placement, site.images[engine.engine]
    replica = replica_name(spec.deployment, spec.token)
    workload = Workload(
        name=object_name(replica),
        image=image.image,
        namespace=site.namespace,
        gpu_resource=site.gpu_resource,
        node_selector=_node_selector(spec, site),
        labels={
            **selected(spec.tenant, spec.deployment, replica),
            LABEL_TOKEN: spec.token,
            LABEL_MANAGER: "optiinfra",
        },
        start_up_s=site.start_up_s,
        drain_s=site.drain_s,
        hub_token=site.hub_token,
    )
    made = deployment(engine, workload, image.version)
    made["metadata"]["annotations"] = {
        **{name.replace("optiinfra:", "optiinfra.io/"): value for name, value in spec.tags.items()},
        _ENGINE: engine.model_dump_json(exclude_none=True),
        _TYPE: to.instance_type,
        _MARKET: to.market.value,
        _EMULATED: str(site.emulated).lower(),
    }
    return made


def service_manifest(made: Object) -> dict[str, Any]:
    """The Service before a replica, which goes with its Deployment; `made` as it stands."""
    metadata, spec = made["metadata"], made["spec"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": dict(labels_of(made)),
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "Deployment",
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                }
            ],
        },
        "spec": {
            "selector": dict(spec["selector"]["matchLabels"]),
            "ports": [{"name": "http", "port": _port(made), "targetPort": "http"}],
        },
    }


def _port(made: Object) -> int:
    ports = made["spec"]["template"]["spec"]["containers"][0]["ports"]
    return int(next(one for one in ports if one["name"] == "http")["containerPort"])


def _node_selector(spec: LaunchSpec, site: Site) -> dict[str, str]:
    to = spec.placement
    if to.region != site.region:
        raise Rejected(
            f"the cluster is in {site.region}, not in {to.region}",
            hint="correct clouds.kubernetes.region, or name another region",
        )
    market = site.markets.get(to.market)
    if market is None:
        raise Rejected(
            f"nothing says which nodes are {to.market.value}",
            hint=f"name their labels under clouds.kubernetes.markets.{to.market.value}",
        )
    zone = {_ZONE: to.zone} if to.zone else {}
    return {site.instance_type_label: to.instance_type, **zone, **market}


def _annotations(one: Object) -> Labels:
    annotations: Labels = one["metadata"].get("annotations") or {}
    return annotations


def _condition(one: Object, kind: str, status: str) -> str | None:
    """The words of a condition that holds."""
    for condition in one.get("status", {}).get("conditions", []):
        if (condition["type"], condition["status"]) == (kind, status):
            return str(condition.get("message") or condition.get("reason") or kind)
    return None


def service_url(service: Object | None) -> str | None:
    """The address of a Service; None before it has one."""
    address = service["spec"].get("clusterIP") if service is not None else None
    if service is None or not address or address == "None":
        return None
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{service['spec']['ports'][0]['port']}"


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
