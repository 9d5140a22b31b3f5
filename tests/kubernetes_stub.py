"""A Kubernetes API server on loopback that keeps its rules, over nodes that really run engines."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from aiohttp import web

from optiinfra.agents.actuators.kubernetes_api import Cluster, KubernetesApi
from tests.kubernetes_schema import deployment_problems, route_problems, service_problems

NAMESPACE = "serving"
TOKEN = "a-service-account-token"
APP = "app.kubernetes.io/name"
Object = dict[str, Any]
Run = Callable[[Sequence[str], str], Sequence[str]]
"""The program that stands for a container's command at an address."""
_PLURALS: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "deployments": deployment_problems,
    "services": service_problems,
    "httproutes": route_problems,
}
_VERBS = {"POST": "create", "PUT": "update", "DELETE": "delete"}


@dataclass
class Node:
    """A machine of the cluster."""

    labels: dict[str, str]
    gpus: int


@dataclass
class Stub:
    """Objects with their rules: names taken once, resourceVersion, uid, schemas, rights, owners.

    `forbidden` names refused calls as (verb, plural); `quota` is how many pods may be, and
    `no_pod` what is said of others; `page` how many objects a list shows at once. A process that
    ends twice waits for `backoff_s`. A gateway `takes_routes`, and says so; a
    controller `makes_pods`.
    """

    run: Run
    nodes: list[Node]
    backoff_s: float = 60.0
    grace_s: float = 10.0
    forbidden: set[tuple[str, str]] = field(default_factory=set)
    failing: int | None = None
    quota: int = 1000
    no_pod: str = "exceeded quota: gpus"
    page: int = 500
    takes_routes: bool = True
    makes_pods: bool = True
    calls: list[tuple[str, str]] = field(default_factory=list)
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    _version: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _addresses: dict[str, str] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    # --- the API

    async def handle(self, request: web.Request) -> web.Response:
        plural, name = request.match_info["plural"], request.match_info.get("name")
        verb = _VERBS.get(request.method, "get" if name else "list")
        self.calls.append((verb, plural))
        if self.failing is not None:
            return _refused(self.failing, "the server is out of order")
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _refused(401, "Unauthorized")
        if (verb, plural) in self.forbidden:
            return _refused(403, f"{plural} is forbidden: User cannot {verb} resource {plural}")
        body = json.loads(await request.text() or "null")
        if request.match_info["namespace"] != NAMESPACE:
            if verb == "list":
                return web.json_response({"items": [], "metadata": {}})
            return _refused(404, f"namespaces {request.match_info['namespace']!r} not found")
        match verb:
            case "list":
                return self._list(plural, request.query)
            case "create":
                return self._create(plural, body)
        stored = self.objects.get((plural, name or ""))
        if stored is None:
            return _refused(404, f"{plural} {name!r} not found")
        if verb == "update":
            return self._update(plural, stored, body)
        return self._delete(plural, stored, body) if verb == "delete" else web.json_response(stored)

    def _list(self, plural: str, query: Mapping[str, str]) -> web.Response:
        wanted = dict(part.split("=") for part in query["labelSelector"].split(","))
        found = [
            one
            for (kind, _), one in sorted(self.objects.items())
            if kind == plural and wanted.items() <= one["metadata"].get("labels", {}).items()
        ]
        start = int(query.get("continue", 0))
        end = start + min(self.page, int(query["limit"]))
        more = {"continue": str(end)} if end < len(found) else {}
        return web.json_response({"items": found[start:end], "metadata": more})

    def _create(self, plural: str, body: Object) -> web.Response:
        wrong = "; ".join(_PLURALS[plural](body))
        if wrong:
            return _refused(422, f"{plural} is invalid: {wrong}")
        key = (plural, body["metadata"]["name"])
        if key in self.objects:
            return _refused(409, f"{plural} {key[1]!r} already exists", "AlreadyExists")
        self._store(plural, body)
        if plural == "services":
            body["spec"]["clusterIP"] = self._address(body["spec"]["selector"][APP])
        if plural == "deployments" and self.makes_pods:
            self._make_pod(body)
        if plural == "httproutes":
            self._complete(body)
        return web.json_response(body, status=201)

    def _update(self, plural: str, stored: Object, body: Object) -> web.Response:
        wrong = "; ".join(_PLURALS[plural](body))
        if wrong:
            return _refused(422, f"{plural} is invalid: {wrong}")
        if body["metadata"].get("resourceVersion") != stored["metadata"]["resourceVersion"]:
            return _refused(409, "the object has been modified", "Conflict")
        generation = stored["metadata"]["generation"] + (body["spec"] != stored["spec"])
        kept = {name: stored["metadata"][name] for name in ("uid", "creationTimestamp")}
        body["metadata"].update(kept, generation=generation)
        body["status"] = stored.get("status", {})
        if plural == "httproutes":
            self._complete(body)
        self.objects[plural, body["metadata"]["name"]] = body
        self.touch(body)
        return web.json_response(body)

    def _delete(self, plural: str, stored: Object, options: Object | None) -> web.Response:
        uid = (options or {}).get("preconditions", {}).get("uid")
        if uid is not None and uid != stored["metadata"]["uid"]:
            return _refused(409, "the UID in the precondition does not match", "Conflict")
        name = stored["metadata"]["name"]
        if plural != "deployments":
            del self.objects[plural, name]
        elif "deletionTimestamp" not in stored["metadata"]:
            stored["metadata"]["deletionTimestamp"] = _now()
            self.touch(stored)
            self._tasks[f"end {name}"] = asyncio.create_task(self._end(stored))
        return web.json_response(stored)

    def _complete(self, route: Object) -> None:
        """What the API adds to a rule that does not say it, and what a gateway says of it."""
        for rule in route["spec"]["rules"]:
            rule.setdefault("matches", [{"path": {"type": "PathPrefix", "value": "/"}}])
        if self.takes_routes:
            said = _condition("Accepted", "True", "")
            said["observedGeneration"] = route["metadata"]["generation"]
            route["status"] = {"parents": [{"conditions": [said]}]}

    def _store(self, plural: str, body: Object) -> None:
        metadata = body["metadata"]
        metadata.update(uid=str(uuid4()), creationTimestamp=_now(), generation=1)
        self.touch(body)
        self.objects[plural, metadata["name"]] = body

    def touch(self, one: Object) -> None:
        """Every write gives an object a new version."""
        one["metadata"]["resourceVersion"] = str(next(self._version))

    # --- what the controllers, the scheduler and the nodes do

    def of(self, plural: str) -> list[Object]:
        return [one for (kind, _), one in self.objects.items() if kind == plural]

    def is_running(self, name: str) -> bool:
        process = self.processes.get(name)
        return process is not None and process.returncode is None

    def _make_pod(self, deployment: Object) -> None:
        name = deployment["metadata"]["name"]
        if len(self.of("pods")) >= self.quota:
            words = f"pods is forbidden: {self.no_pod}"
            deployment["status"] = {"conditions": [_condition("ReplicaFailure", "True", words)]}
            return
        template = json.loads(json.dumps(deployment["spec"]["template"]))
        pod: Object = {
            "metadata": {**template["metadata"], "name": f"{name}-x"},
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        self._store("pods", pod)
        self.schedule()

    def schedule(self) -> None:
        """Gives the pods that wait to the nodes that fit."""
        for pod in self.of("pods"):
            if "nodeName" in pod["spec"]:
                continue
            node = self._free_node(pod)
            if node is None:
                words = f"0/{len(self.nodes)} nodes are available: Insufficient nvidia.com/gpu."
                pod["status"]["conditions"] = [_condition("PodScheduled", "False", words)]
                continue
            pod["spec"]["nodeName"] = node
            pod["status"]["conditions"] = [_condition("PodScheduled", "True", "")]
            name = pod["metadata"]["labels"][APP]
            self._tasks[name] = asyncio.create_task(self._kept_running(pod))

    def _free_node(self, pod: Object) -> str | None:
        wanted = pod["spec"].get("nodeSelector", {})
        for number, node in enumerate(self.nodes):
            here = [p for p in self.of("pods") if p["spec"].get("nodeName") == f"node-{number}"]
            if wanted.items() <= node.labels.items() and sum(map(_gpus, here)) < node.gpus:
                return f"node-{number}"
        return None

    async def _kept_running(self, pod: Object) -> None:
        """What the kubelet does: again at once after the first end, then ever later."""
        name = pod["metadata"]["labels"][APP]
        container = pod["spec"]["containers"][0]
        status: Object = {"name": container["name"], "restartCount": 0}
        pod["status"]["containerStatuses"] = [status]
        for restart in itertools.count():
            program = self.run(container["command"], self._address(name))
            process = await asyncio.create_subprocess_exec(
                *program, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
            )
            self.processes[name] = process
            status["state"] = {"running": {"startedAt": _now()}}
            code = await process.wait()
            status["state"] = {"terminated": {"exitCode": code}}
            if restart > 0:
                status["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
                await asyncio.sleep(self.backoff_s)
            status["restartCount"] = restart + 1
            status["lastState"] = {"terminated": {"exitCode": code}}

    async def _end(self, deployment: Object) -> None:
        """Deletes in the foreground: the pod, what the Deployment owns, and then itself."""
        metadata = deployment["metadata"]
        task = self._tasks.pop(metadata["name"], None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        process = self.processes.pop(metadata["name"], None)
        if process is not None:
            await self._killed(process)
        self.objects.pop(("pods", f"{metadata['name']}-x"), None)
        for key, one in list(self.objects.items()):
            if metadata["uid"] in [o["uid"] for o in one["metadata"].get("ownerReferences", [])]:
                del self.objects[key]
        del self.objects["deployments", metadata["name"]]

    async def _killed(self, process: asyncio.subprocess.Process) -> None:
        for step in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                process.send_signal(step)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.grace_s):
                    await process.wait()
                    return

    def _address(self, app: str) -> str:
        """Its own on loopback, for the pod and the Service before it."""
        number = len(self._addresses) + 2
        return self._addresses.setdefault(app, f"127.77.{number // 250}.{number % 250}")

    async def close(self) -> None:
        for deployment in self.of("deployments"):
            if "deletionTimestamp" not in deployment["metadata"]:
                await self._end(deployment)
        for task in self._tasks.values():
            await asyncio.wait([task])


@asynccontextmanager
async def stub_cluster(run: Run, nodes: list[Node], **changes: Any) -> AsyncIterator[ClusterAt]:
    """The stub behind a socket; what it runs ends with it."""
    stub = Stub(run, nodes, **changes)
    app = web.Application()
    place = "/{group:api/v1|apis/[^/]+/[^/]+}/namespaces/{namespace}/{plural}"
    app.router.add_route("*", place, stub.handle)
    app.router.add_route("*", place + "/{name}", stub.handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield ClusterAt(stub, f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await stub.close()
        await runner.cleanup()


@dataclass(frozen=True)
class ClusterAt:
    """The stub and where it is."""

    stub: Stub
    url: str

    def kubeconfig(self, folder: Path, *, token: str = TOKEN, url: str | None = None) -> Path:
        """A file as `kubectl` has it."""
        path = folder / "kubeconfig.yaml"
        names = {"name": "stub", "context": {"cluster": "stub", "user": "agent"}}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stub",
            "clusters": [{"name": "stub", "cluster": {"server": url or self.url}}],
            "users": [{"name": "agent", "user": {"token": token}}],
            "contexts": [names],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def api(self, folder: Path, namespace: str = NAMESPACE) -> KubernetesApi:
        return KubernetesApi.connect(Cluster(namespace, kubeconfig=self.kubeconfig(folder)))


def _gpus(pod: Object) -> int:
    return int(pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _condition(kind: str, status: str, message: str) -> Object:
    return {"type": kind, "status": status, "message": message, "lastTransitionTime": _now()}


def _refused(status: int, message: str, reason: str = "Failed") -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "message": message, "reason": reason}
    return web.json_response({**body, "status": "Failure", "code": status}, status=status)
