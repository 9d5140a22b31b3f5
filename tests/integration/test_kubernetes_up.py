"""A fleet file that names a Kubernetes cluster, from its keys to requests that pods answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from optiinfra.agents.actuators.port import LaunchSpec
from optiinfra.runtime.clouds import SplitTraffic, WholeFleet, connect_clouds
from optiinfra.runtime.engines import start_first
from optiinfra.runtime.fleet_file import load_fleet
from optiinfra.runtime.outside import look_at_clouds
from optiinfra.runtime.preflight import require_clouds
from optiinfra.runtime.routes import seed_routes
from optiinfra.runtime.settings import Settings
from optiinfra.schemas.deployment import Market, Provider
from optiinfra.schemas.errors import Denied, Rejected, Unavailable
from optiinfra.schemas.ids import derived_id
from optiinfra.serving.engines import VllmConfig
from optiinfra.storage.testing.servers import reachable_home
from tests.cost_stand import TYPE, FakeTraffic, placement
from tests.kubernetes_stand import INSTANCE, REGION, SPOT, free_port
from tests.kubernetes_stub import ClusterAt, Node, stub_cluster
from tests.up_stand import CARD, Up, fleet, until_answered

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="pods need loopback addresses of their own"
)
MODEL = "emulated-8b"
START = {"replicas": 2, "instance_type": TYPE, "region": REGION}


def emulated(command: Sequence[str], address: str) -> Sequence[str]:
    port = command[command.index("--port") + 1]
    return (
        *(sys.executable, "-m", "optiinfra.twin.emulator", "--card", CARD, "--model", MODEL),
        *("--host", address, "--port", port, "--time-scale", "20", "--grace", "1"),
    )


@pytest.fixture
async def at() -> AsyncIterator[ClusterAt]:
    async with stub_cluster(emulated, [Node({**INSTANCE, **SPOT}, gpus=4)]) as cluster:
        yield cluster


def content(at: ClusterAt, folder: Path, **deployment: Any) -> dict[str, Any]:
    """A fleet file whose cluster is the stub; the files that it names lie beside it."""
    at.kubeconfig(folder)
    engine = VllmConfig(model=MODEL, port=free_port()).model_dump(mode="json", exclude_none=True)
    (folder / "engine.yaml").write_text(yaml.safe_dump(engine))
    declared = {**fleet()["deployments"][0], "provider": "kubernetes", "start": START}
    return fleet(
        clouds={
            "kubernetes": {
                "namespace": "serving",
                "kubeconfig": "kubeconfig.yaml",
                "region": REGION,
                "images": [{"engine": "vllm", "image": "vllm/vllm-openai:v0.11.0"}],
                "markets": {"on_demand": {}, "spot": SPOT},
                "capacity_wait_s": 0.5,
                "emulated": True,
            }
        },
        deployments=[{**declared, "engine_file": "engine.yaml", **deployment}],
    )


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


async def test_the_adapter_is_made_of_what_the_file_says(at: ClusterAt, tmp_path: Path) -> None:
    declared = load_fleet(written(tmp_path, content(at, tmp_path)))
    to = placement(provider=Provider.KUBERNETES, region=REGION, market=Market.SPOT)
    spec = LaunchSpec("default", "chat", MODEL, to, token=derived_id("one"))
    async with AsyncExitStack() as stack:
        clouds = await connect_clouds(declared, stack, tmp_path)
        assert set(clouds.configurable) == set(clouds.actuators) == {Provider.KUBERNETES}
        actuator = clouds.actuators[Provider.KUBERNETES]
        await require_clouds(declared, clouds.actuators)
        replica = (await actuator.launch(spec)).replica
        assert replica.emulated
        assert replica.instance.instance_type == TYPE
        (pod,) = at.stub.of("pods")
        container = pod["spec"]["containers"][0]
        assert pod["spec"]["nodeSelector"] == {**INSTANCE, **SPOT}
        assert container["image"] == "vllm/vllm-openai:v0.11.0"
        assert pod["spec"]["terminationGracePeriodSeconds"] == 300
        with pytest.raises(Rejected, match="nothing says which nodes are reserved"):
            await actuator.launch(
                replace(
                    spec,
                    token=derived_id("two"),
                    placement=to.model_copy(update={"market": Market.RESERVED}),
                )
            )
        await actuator.terminate("default", "chat", replica.id)
        at.stub.nodes.clear()
        with pytest.raises(Unavailable, match=r"make room .*nodes"):
            await start_first("default", declared.deployments[0], actuator, acting=True)


class NothingMoves:
    async def are_under_way(self, tenant: str, deployment: str) -> bool:
        return False


async def test_a_gateway_of_kubernetes_splits_the_traffic_of_its_deployments(
    at: ClusterAt, tmp_path: Path
) -> None:
    file = content(at, tmp_path)
    hostnames = {"chat": ["chat.example.com"]}
    file["clouds"]["kubernetes"]["gateway"] = {"name": "inference", "hostnames": hostnames}
    declared = load_fleet(written(tmp_path, file))
    chat = declared.declared("http://127.0.0.1:1/")["chat"]
    async with AsyncExitStack() as stack:
        clouds = await connect_clouds(declared, stack, tmp_path)
        ours = FakeTraffic([])
        split = SplitTraffic(ours, clouds.traffic)
        assert await start_first(
            "default", declared.deployments[0], clouds.actuators[Provider.KUBERNETES], acting=True
        )
        async with asyncio.timeout(60):
            source = WholeFleet(clouds.actuators)
            while not await seed_routes(chat, source, split, NothingMoves()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        (route,) = at.stub.of("httproutes")
        assert route["spec"]["hostnames"] == ["chat.example.com"]
        assert ours.history == []
        first = (await split.status("default", "chat")).table.backends[0]
        resting = first.model_copy(update={"weight": 0.0})
        await split.set_backends("default", "chat", (resting,))
        assert await split.await_drained("default", "chat", first.replica, 20)
        at.stub.processes[first.replica].kill()
        assert not await split.await_drained("default", "chat", first.replica, 1), "unknown"
        elsewhere = ours.table.model_copy(update={"deployment": "other", "version": 1})
        assert (await split.put(elsewhere)).table.version == 1
        assert ours.history


async def test_what_is_wrong_with_the_cluster_is_told_with_its_key(
    at: ClusterAt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written(tmp_path, content(at, tmp_path))
    declared = load_fleet(config)
    at.stub.forbidden = {("list", "deployments")}
    async with AsyncExitStack() as stack:
        clouds = await connect_clouds(declared, stack, tmp_path)
        with pytest.raises(Rejected, match=r"clouds\.kubernetes: .* list deployments\.apps"):
            await require_clouds(declared, clouds.actuators)
    found = await look_at_clouds(Settings(home=tmp_path), declared)
    assert [one for one in found if "list deployments.apps" in (one.todo or "")]
    (tmp_path / "kubeconfig.yaml").unlink()
    async with AsyncExitStack() as stack:
        with pytest.raises(Denied, match="name a kubeconfig"):
            await connect_clouds(declared, stack, tmp_path)
        monkeypatch.setitem(sys.modules, "optiinfra.runtime.kubernetes_cloud", None)
        with pytest.raises(Rejected, match=r"install optiinfra\[kubernetes\]"):
            await connect_clouds(declared, stack, tmp_path)


async def test_up_starts_the_first_pods_and_leaves_them_when_it_ends(at: ClusterAt) -> None:
    with reachable_home() as folder:
        up = Up(folder, content(at, folder))
        try:
            session = await up.start()
            assert session.gateway_url is not None
            await until_answered(session.gateway_url)
        finally:
            await up.close()
        assert len(at.stub.of("pods")) == 2
        assert all(at.stub.is_running(one["metadata"]["name"]) for one in at.stub.of("deployments"))
