"""One namespace of a Kubernetes cluster through the official client, with its errors translated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config
from urllib3.exceptions import HTTPError

from optiinfra.schemas.errors import Conflict, Denied, NotFound, Rejected, Unavailable

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object in the API."""

    root: str
    plural: str

    @property
    def group(self) -> str:
        """As a role names it."""
        parts = self.root.split("/")
        return parts[1] if parts[0] == "apis" else ""


DEPLOYMENT = Kind("apis/apps/v1", "deployments")
SERVICE = Kind("api/v1", "services")
POD = Kind("api/v1", "pods")
HTTP_ROUTE = Kind("apis/gateway.networking.k8s.io/v1", "httproutes")


@dataclass(frozen=True, slots=True)
class Cluster:
    """How to reach one namespace; without kubeconfig and context it is the pod's own cluster, or
    else the kubeconfig that `kubectl` takes."""

    namespace: str
    kubeconfig: Path | None = None
    context: str | None = None
    connect_timeout_s: float = 3.0
    read_timeout_s: float = 20.0


class AlreadyExists(Conflict):
    """An object of this name is there."""


class KubernetesApi:
    """Blocking calls behind threads; objects are plain data, as JSON has them.

    Every method raises `Unavailable` (unreachable, throttled, failing), `Denied` (the right that
    lacks is named), `Conflict` (the object has changed since it was read) and `Rejected` (refused
    by the schema or an admission rule).
    """

    def __init__(self, client: ApiClient, cluster: Cluster) -> None:
        self._client = client
        self._timeouts = (cluster.connect_timeout_s, cluster.read_timeout_s)
        self.namespace = cluster.namespace

    @classmethod
    def connect(cls, cluster: Cluster) -> KubernetesApi:
        """Raises `Denied` when nothing says how to reach a cluster."""
        configuration = Configuration()
        configuration.retries = False
        try:
            _configure(configuration, cluster)
        except (ConfigException, OSError) as error:
            raise Denied(
                f"no Kubernetes client: {error}",
                hint="give the pod a service account, or name a kubeconfig and its context",
            ) from error
        return cls(ApiClient(configuration), cluster)

    async def create(self, kind: Kind, body: Mapping[str, Any]) -> dict[str, Any]:
        """The object as it stands now. Raises `AlreadyExists`."""
        try:
            return await self._call("POST", kind, body=body)
        except Conflict as error:
            raise AlreadyExists(error.message) from error

    async def get(self, kind: Kind, name: str) -> dict[str, Any] | None:
        try:
            return await self._call("GET", kind, name)
        except NotFound:
            return None

    async def list(self, kind: Kind, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """All objects with these labels, page by page."""
        query = {
            "labelSelector": ",".join(f"{name}={value}" for name, value in labels.items()),
            "limit": str(_PAGE),
        }
        items: list[dict[str, Any]] = []
        while True:
            page = await self._call("GET", kind, query=query)
            items += page["items"]
            more = page.get("metadata", {}).get("continue")
            if not more:
                return items
            query["continue"] = more

    async def replace(self, kind: Kind, body: Mapping[str, Any]) -> dict[str, Any]:
        """Puts the whole object; `Conflict` unless its resourceVersion is the one in force."""
        return await self._call("PUT", kind, body["metadata"]["name"], body=body)

    async def delete(self, kind: Kind, body: Mapping[str, Any]) -> None:
        """Deletes this object and waits for none of it; one of another uid is left alone.

        What it owns goes first. Nothing happens when it is gone already.
        """
        options = {
            "propagationPolicy": "Foreground",
            "preconditions": {"uid": body["metadata"]["uid"]},
        }
        try:
            await self._call("DELETE", kind, body["metadata"]["name"], body=options)
        except (NotFound, Conflict):
            return

    async def close(self) -> None:
        self._client.rest_client.pool_manager.clear()
        await asyncio.to_thread(self._client.close)

    async def _call(
        self,
        method: str,
        kind: Kind,
        name: str | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        place = f"/{kind.root}/namespaces/{self.namespace}/{kind.plural}"
        path = f"{place}/{name}" if name else place
        try:
            return await asyncio.to_thread(self._answer, method, path, body, query or {})
        except ApiException as error:
            raise self._translated(error, method, kind, name) from error
        except AttributeError as error:
            # When TLS fails, the client trips over its own error, which has no body.
            if not isinstance(error.__context__, ApiException):
                raise
            raise _unreachable(str(error.__context__.reason)) from error
        except (HTTPError, ValueError) as error:
            raise _unreachable(repr(error)) from error

    def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None, query: Mapping[str, str]
    ) -> dict[str, Any]:
        """Asks, and reads the answer whole: a caller who is cancelled leaves no open connection."""
        answer = self._client.call_api(
            path,
            method,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _preload_content=False,
            _request_timeout=self._timeouts,
        )
        read: dict[str, Any] = json.loads(answer.data)
        return read

    def _translated(
        self, error: ApiException, method: str, kind: Kind, name: str | None
    ) -> Exception:
        text = f"{method} {kind.plural}{f'/{name}' if name else ''}: {_message(error)}"
        match error.status:
            case 401:
                return Denied(
                    f"Kubernetes knows no such user: {text}", hint="renew the credentials"
                )
            case 403:
                verb = _verb(method, name)
                where = f"{kind.plural}.{kind.group}" if kind.group else kind.plural
                return Denied(
                    f"Kubernetes refuses {text}",
                    hint=f"allow the agent to {verb} {where} in namespace {self.namespace}",
                )
            case 404:
                return NotFound(text, hint=f"check that namespace {self.namespace} exists")
            case 409:
                return Conflict(text)
            case status if status and 400 <= status < 500 and status != 429:
                return Rejected(f"Kubernetes refuses {text}")
        return Unavailable(f"the Kubernetes API fails: {text}", retry_after_s=5.0)


def _configure(configuration: Configuration, cluster: Cluster) -> None:
    if cluster.kubeconfig is None and cluster.context is None:
        try:
            load_incluster_config(client_configuration=configuration)
        except ConfigException:
            load_kube_config(client_configuration=configuration)
        return
    path = str(cluster.kubeconfig) if cluster.kubeconfig else None
    load_kube_config(path, cluster.context, client_configuration=configuration)


def _unreachable(reason: str) -> Unavailable:
    return Unavailable(
        f"the Kubernetes API does not answer: {reason}",
        retry_after_s=5.0,
        hint="check the network, and the cluster and context of clouds.kubernetes",
    )


def _message(error: ApiException) -> str:
    """What the API says in words, without headers or the object itself."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason or error.status)


def _verb(method: str, name: str | None) -> str:
    """The word of a role for a call."""
    verbs = {"POST": "create", "PUT": "update", "DELETE": "delete"}
    return verbs.get(method, "get" if name else "list")
