"""The Kubernetes actuator on the stub cluster, where containers are processes of this machine."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from optiinfra.agents.actuators.kubernetes import KubernetesActuator
from optiinfra.agents.actuators.kubernetes_objects import EngineImage, Site
from optiinfra.schemas.deployment import Engine, Market
from optiinfra.serving.engines import VllmConfig
from tests.cost_stand import TYPE
from tests.kubernetes_stub import NAMESPACE, ClusterAt, Node, Run, stub_cluster

REGION = "us-east-1"
SPOT = {"karpenter.sh/capacity-type": "spot"}
INSTANCE = {"node.kubernetes.io/instance-type": TYPE}
IMAGE = EngineImage("vllm/vllm-openai:v0.11.0", "0.11.0")


def now() -> datetime:
    return datetime.now(UTC)


def free_port() -> int:
    """Free on all of loopback, where each pod has an address of its own."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def site(engine: VllmConfig, **changes: Any) -> Site:
    values: dict[str, Any] = {
        "namespace": NAMESPACE,
        "region": REGION,
        "images": {Engine.VLLM: IMAGE},
        "engines": {"chat": engine},
        "markets": {Market.ON_DEMAND: {}, Market.SPOT: SPOT},
    }
    return Site(**{**values, **changes})


def file_server(folder: Path) -> Run:
    """An engine that answers `/health`: a plain file server over a folder with that file."""
    (folder / "www").mkdir(exist_ok=True)
    (folder / "www" / "health").write_text("ok")

    def run(command: Sequence[str], address: str) -> Sequence[str]:
        port = command[command.index("--port") + 1]
        serve = (sys.executable, "-m", "http.server", port, "--bind", address)
        return (*serve, "--directory", str(folder / "www"))

    return run


@asynccontextmanager
async def kubernetes(
    folder: Path,
    run: Run | None = None,
    *,
    site_changes: dict[str, Any] | None = None,
    actuator_changes: dict[str, Any] | None = None,
    **stub: Any,
) -> AsyncIterator[tuple[KubernetesActuator, ClusterAt]]:
    """An actuator with its cluster: two spot nodes of two GPUs."""
    if sys.platform != "linux":
        pytest.skip("pods need loopback addresses of their own")
    nodes = stub.pop("nodes", [Node({**INSTANCE, **SPOT}, gpus=2) for _ in range(2)])
    engine = VllmConfig(model="m", port=free_port())
    async with (
        stub_cluster(run or file_server(folder), nodes, **stub) as at,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        api = at.api(folder)
        options = {"clock": now, "capacity_wait_s": 5.0, **(actuator_changes or {})}
        try:
            yield KubernetesActuator(api, site(engine, **(site_changes or {})), http, **options), at
        finally:
            await api.close()
