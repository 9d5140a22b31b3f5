"""Brings replicas up in a Kubernetes cluster: one Deployment of one pod a launch token."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import httpx
import structlog

from optiinfra.agents.actuators.health import probed
from optiinfra.agents.actuators.kubernetes_api import (
    DEPLOYMENT,
    POD,
    SERVICE,
    AlreadyExists,
    KubernetesApi,
)
from optiinfra.agents.actuators.kubernetes_objects import (
    LABEL_REPLICA,
    Seen,
    Site,
    deployment_manifest,
    labels_of,
    object_name,
    require_launchable,
    selected,
    service_manifest,
)
from optiinfra.agents.actuators.port import Launched, LaunchSpec, NoCapacity, replica_name
from optiinfra.schemas.deployment import Provider, Replica, ReplicaState
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.serving.engines import EngineConfig

_FIRST_POLL_S, _LAST_POLL_S = 0.1, 2.0
_QUOTA = "exceeded quota"
_log = structlog.get_logger()


class KubernetesActuator:
    """A cluster behind the ports `Actuator` and `Configurable`.

    The name of a Deployment comes from its launch token, so the API itself sees to it that there is
    one at most. What it was launched with stands in its annotations; nothing is kept here.
    """

    def __init__(
        self,
        api: KubernetesApi,
        site: Site,
        http: httpx.AsyncClient,
        *,
        clock: Callable[[], datetime],
        start_up_s: float = 900.0,
        capacity_wait_s: float = 120.0,
        end_wait_s: float = 60.0,
    ) -> None:
        """A pod that no node takes for `capacity_wait_s` has no capacity; a cluster that adds nodes
        needs time for it."""
        self._api = api
        self._site = site
        self._http = http
        self._clock = clock
        self._start_up = timedelta(seconds=start_up_s)
        self._capacity_wait_s = capacity_wait_s
        self._end_wait_s = end_wait_s

    async def replicas(self, tenant: str, deployment: str) -> Sequence[Replica]:
        seen = await self._seen(selected(tenant, deployment))
        return await asyncio.gather(*(self._observed(one) for one in seen))

    async def replica(self, tenant: str, deployment: str, replica_id: str) -> Replica | None:
        """As the port says. A launch that was cut off before its Service is completed here."""
        seen = await self._one(tenant, deployment, replica_id)
        if seen is None:
            return None
        if seen.service is None and not seen.ending:
            seen = Seen(seen.deployment, seen.pods, await self._serve(seen.deployment))
        return await self._observed(seen)

    async def launch(self, spec: LaunchSpec) -> Launched:
        """As the port says. One whose engine has ended is returned as stopped."""
        if spec.placement.provider is not Provider.KUBERNETES:
            raise Rejected(f"the Kubernetes actuator cannot launch on {spec.placement.provider}")
        created, made = await self._create(spec)
        if "deletionTimestamp" not in made["metadata"]:
            await self._serve(made)
        replica_id = replica_name(spec.deployment, spec.token)
        seen = await self._placed(spec, replica_id)
        replica = await self._observed(seen)
        if created:
            _log.info("kubernetes.launched", replica=replica_id, url=replica.url)
        return Launched(replica, created, replica.instance.market)

    async def terminate(self, tenant: str, deployment: str, replica_id: str) -> bool:
        """As the port says. `Unavailable` while its pod is still ending."""
        seen = await self._one(tenant, deployment, replica_id)
        if seen is None:
            return False
        await self._remove(seen, tenant, deployment)
        _log.info("kubernetes.terminated", replica=replica_id)
        return True

    def require_launchable(self, model: str, engine: EngineConfig) -> None:
        require_launchable(self._site, model, engine)

    async def engine(self, tenant: str, deployment: str, replica_id: str) -> EngineConfig | None:
        seen = await self._one(tenant, deployment, replica_id)
        return seen.engine if seen is not None else None

    async def _create(self, spec: LaunchSpec) -> tuple[bool, dict[str, Any]]:
        """Whether the Deployment is new, and the one that there is."""
        name = object_name(replica_name(spec.deployment, spec.token))
        made = await self._api.get(DEPLOYMENT, name)
        if made is None:
            manifest = deployment_manifest(spec, await self._engine_of(spec), self._site)
            try:
                return True, await self._api.create(DEPLOYMENT, manifest)
            except AlreadyExists:
                made = await self._api.get(DEPLOYMENT, name)
        if made is None:
            raise Unavailable(f"{name} went away while it was launched")
        ours = selected(spec.tenant, spec.deployment)
        if not ours.items() <= labels_of(made).items():
            raise Rejected(f"Deployment {name} is none of {spec.tenant}/{spec.deployment}")
        return False, made

    async def _engine_of(self, spec: LaunchSpec) -> EngineConfig:
        """A tuned replica's successor stays tuned, also on a machine of another kind."""
        if spec.engine is not None:
            return spec.engine
        like = spec.like
        if like is not None:
            kept = await self.engine(spec.tenant, spec.deployment, like.id)
            if kept is not None:
                return kept
        declared = self._site.engines.get(spec.deployment)
        if declared is None:
            raise Rejected(
                f"nothing says how to start the engine of {spec.deployment}",
                hint=f"name its engine_file in the fleet file, under {spec.deployment}",
            )
        return declared

    async def _serve(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """The Service before a Deployment."""
        try:
            return await self._api.create(SERVICE, service_manifest(made))
        except AlreadyExists:
            found = await self._api.get(SERVICE, made["metadata"]["name"])
        if found is None or labels_of(found).get(LABEL_REPLICA) != labels_of(made)[LABEL_REPLICA]:
            raise Unavailable(
                f"Service {made['metadata']['name']} is of something else or going away"
            )
        return found

    async def _placed(self, spec: LaunchSpec, replica_id: str) -> Seen:
        """The replica once a node has taken its pod, or when nobody says that none does.

        Without capacity it is removed again: nothing must come up later, in a market that was given
        up.
        """
        waits = _pauses(self._capacity_wait_s)
        while True:
            seen = await self._one(spec.tenant, spec.deployment, replica_id)
            if seen is None:
                raise Unavailable(f"{replica_id} went away while it was launched")
            if seen.placed or seen.ending:
                return seen
            pause = next(waits, None)
            if pause is not None:
                await asyncio.sleep(pause)
                continue
            if seen.obstacle is None:
                return seen
            await self._remove(seen, spec.tenant, spec.deployment)
            if seen.pod is not None or _QUOTA in seen.obstacle:
                raise NoCapacity(f"{spec.placement.instance_type}: {seen.obstacle}")
            raise Rejected(f"Kubernetes makes no pod for {replica_id}: {seen.obstacle}")

    async def _remove(self, seen: Seen, tenant: str, deployment: str) -> None:
        await self._api.delete(DEPLOYMENT, seen.deployment)
        for pause in _pauses(self._end_wait_s):
            if await self._one(tenant, deployment, seen.replica_id) is None:
                return
            await asyncio.sleep(pause)
        raise Unavailable(f"the pod of {seen.replica_id} is still ending", retry_after_s=5.0)

    async def _observed(self, seen: Seen) -> Replica:
        replica = seen.replica(self._site)
        if replica.state is not ReplicaState.UNKNOWN:
            return replica
        since = seen.running_since
        young = since is not None and self._clock() - since < self._start_up
        return await probed(self._http, replica, young=young)

    async def _one(self, tenant: str, deployment: str, replica_id: str) -> Seen | None:
        found = await self._seen(selected(tenant, deployment, replica_id))
        return found[0] if found else None

    async def _seen(self, labels: Mapping[str, str]) -> list[Seen]:
        """All replicas with these labels, oldest first."""
        deployments = await self._api.list(DEPLOYMENT, labels)
        if not deployments:
            return []
        services, pods = await asyncio.gather(
            self._api.list(SERVICE, labels), self._api.list(POD, labels)
        )
        service_of = {labels_of(one).get(LABEL_REPLICA): one for one in services}
        pods_of: dict[str | None, list[Mapping[str, Any]]] = defaultdict(list)
        for pod in pods:
            pods_of[labels_of(pod).get(LABEL_REPLICA)].append(pod)
        found = [
            Seen(one, pods_of[replica], service_of.get(replica))
            for one in deployments
            if (replica := labels_of(one).get(LABEL_REPLICA)) is not None
        ]
        return sorted(found, key=lambda one: str(one.deployment["metadata"]["creationTimestamp"]))


def _pauses(total_s: float) -> Iterator[float]:
    """Growing pauses that make up a time; the API is asked rather than told."""
    pause, left = _FIRST_POLL_S, total_s
    while left > 0:
        yield min(pause, left)
        left -= pause
        pause = min(1.5 * pause, _LAST_POLL_S)
