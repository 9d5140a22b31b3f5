"""The Kubernetes actuator's own promises, against an API server that keeps the API's rules."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from optiinfra.agents.actuators.kubernetes import KubernetesActuator
from optiinfra.agents.actuators.kubernetes_api import (
    DEPLOYMENT,
    SERVICE,
    AlreadyExists,
    Cluster,
    KubernetesApi,
)
from optiinfra.agents.actuators.kubernetes_objects import object_name
from optiinfra.agents.actuators.port import LaunchSpec, NoCapacity
from optiinfra.schemas.deployment import Market, Provider, Replica, ReplicaState
from optiinfra.schemas.errors import Conflict, Denied, Rejected, Unavailable
from optiinfra.schemas.ids import derived_id
from optiinfra.serving.engines import SglangConfig, VllmConfig
from tests.cost_stand import placement
from tests.kubernetes_stand import INSTANCE, REGION, SPOT, free_port, kubernetes
from tests.kubernetes_stub import ClusterAt, Node, Object

CHAT = ("acme", "chat")
ROOT = Path(__file__).resolve().parents[2]


def spec(market: Market = Market.SPOT, **changes: Any) -> LaunchSpec:
    to = placement(provider=Provider.KUBERNETES, region=REGION, market=market)
    return replace(LaunchSpec(*CHAT, "m", to, token=derived_id("one")), **changes)


def ends(_: Sequence[str], __: str) -> Sequence[str]:
    return (sys.executable, "-c", "raise SystemExit(1)")


def made(at: ClusterAt, plural: str = "deployments") -> Object:
    (only,) = at.stub.of(plural)
    return only


async def until(actuator: KubernetesActuator, replica_id: str, state: ReplicaState) -> Replica:
    async with asyncio.timeout(20):
        while True:
            found = await actuator.replica(*CHAT, replica_id)
            if found is not None and found.state is state:
                return found
            await asyncio.sleep(0.02)


# --- what is made


async def test_a_replica_is_a_deployment_of_one_pod_with_a_service_that_goes_with_it(
    tmp_path: Path,
) -> None:
    async with kubernetes(tmp_path) as (actuator, at):
        tags = {"optiinfra:change": "c1"}
        replica = (await actuator.launch(spec(tags=tags))).replica
        deployment, service = made(at), made(at, "services")
        labels = deployment["metadata"]["labels"]
        assert labels["optiinfra.io/tenant"] == "acme"
        assert labels["optiinfra.io/deployment"] == "chat"
        assert labels["optiinfra.io/launch-token"] == derived_id("one")
        assert labels["app.kubernetes.io/managed-by"] == "optiinfra"
        assert deployment["metadata"]["annotations"]["optiinfra.io/change"] == "c1"
        assert deployment["spec"]["replicas"] == 1
        pod = made(at, "pods")
        assert pod["spec"]["nodeSelector"] == {**INSTANCE, **SPOT}
        assert replica.url is not None
        assert service["spec"]["clusterIP"] in replica.url
        await actuator.terminate(*CHAT, replica.id)
        assert at.stub.objects == {}


async def test_an_engine_is_started_with_its_configuration_and_so_are_its_successors(
    tmp_path: Path,
) -> None:
    engine = VllmConfig(model="m", max_num_seqs=7, port=free_port())
    async with kubernetes(tmp_path) as (actuator, at):
        first = (await actuator.launch(spec(engine=engine))).replica
        words = made(at, "pods")["spec"]["containers"][0]["command"]
        assert words[:3] == ["vllm", "serve", "m"]
        assert words[words.index("--max-num-seqs") + 1] == "7"
        successor = await actuator.launch(spec(token=derived_id("two"), like=first))
        assert await actuator.engine(*CHAT, successor.replica.id) == engine
        assert await actuator.engine(*CHAT, "nobody") is None
        del at.stub.objects["deployments", first.id]["metadata"]["annotations"]
        plain = await actuator.launch(spec(token=derived_id("three"), like=first))
        declared = await actuator.engine(*CHAT, plain.replica.id)
        assert declared is not None
        assert declared.max_num_seqs is None
        at.stub.objects["deployments", first.id]["metadata"]["annotations"] = {}
        at.stub.objects["deployments", first.id]["metadata"]["annotations"][
            "optiinfra.io/engine"
        ] = "{"
        with pytest.raises(Rejected, match="unreadable"):
            await actuator.engine(*CHAT, first.id)


async def test_a_fleet_is_read_whole_however_small_the_pages_are(tmp_path: Path) -> None:
    async with kubernetes(tmp_path, page=1) as (actuator, _):
        made = [(await actuator.launch(spec(token=f"t{n}"))).replica.id for n in range(3)]
        assert sorted(one.id for one in await actuator.replicas(*CHAT)) == sorted(made)


async def test_what_a_person_has_deployed_is_seen_as_far_as_it_is_labelled(tmp_path: Path) -> None:
    async with kubernetes(tmp_path) as (actuator, at):
        replica = (await actuator.launch(spec())).replica
        deployment = made(at)
        del deployment["metadata"]["annotations"]
        deployment["spec"]["replicas"] = 0
        found = await actuator.replica(*CHAT, replica.id)
        assert found is not None
        assert found.state is ReplicaState.STOPPED
        assert found.instance.instance_type == "unknown", "so its price is unknown"
        assert await actuator.engine(*CHAT, replica.id) is None
        del deployment["metadata"]["labels"]["optiinfra.io/replica"]
        assert list(await actuator.replicas(*CHAT)) == []


async def test_a_launch_that_was_cut_off_before_its_service_is_completed(tmp_path: Path) -> None:
    async with kubernetes(tmp_path) as (actuator, at):
        replica = (await actuator.launch(spec())).replica
        del at.stub.objects["services", replica.id]
        (listed,) = await actuator.replicas(*CHAT)
        assert listed.url is None
        found = await until(actuator, replica.id, ReplicaState.SERVING)
        assert found.url == replica.url


@pytest.mark.parametrize(
    ("replica", "name"), [("chat-1", "chat-1"), ("my_chat-1", "my-chat-1"), ("7b-1", "r7b-1")]
)
def test_a_replica_has_a_name_that_a_service_may_have(replica: str, name: str) -> None:
    assert object_name(replica) == name


# --- how it fares


async def test_an_engine_that_ends_again_and_again_has_stopped(tmp_path: Path) -> None:
    async with kubernetes(tmp_path, ends) as (actuator, _):
        replica = (await actuator.launch(spec())).replica
        await until(actuator, replica.id, ReplicaState.STOPPED)
        again = await actuator.launch(spec())
        assert (again.created, again.replica.state) == (False, ReplicaState.STOPPED)
        assert await actuator.terminate(*CHAT, replica.id), "it still holds its GPU"


async def test_silence_of_a_process_that_runs_is_starting_then_unknown(tmp_path: Path) -> None:
    late: dict[str, Any] = {"actuator_changes": {"start_up_s": 0.0}}
    for changes, state in (({}, ReplicaState.STARTING), (late, ReplicaState.UNKNOWN)):
        async with kubernetes(tmp_path, **changes) as (actuator, _):
            (tmp_path / "www" / "health").unlink()
            replica = (await actuator.launch(spec())).replica
            await until(actuator, replica.id, state)


async def test_an_engine_that_crashes_once_is_started_again_by_kubernetes(tmp_path: Path) -> None:
    async with kubernetes(tmp_path) as (actuator, at):
        replica = (await actuator.launch(spec())).replica
        await until(actuator, replica.id, ReplicaState.SERVING)
        before = at.stub.processes[replica.id].pid
        os.kill(before, signal.SIGKILL)
        async with asyncio.timeout(20):
            while at.stub.processes[replica.id].pid == before:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await until(actuator, replica.id, ReplicaState.SERVING)).url == replica.url


async def test_an_engine_that_does_not_end_is_draining_and_the_caller_is_told(
    tmp_path: Path,
) -> None:
    def deaf(_: Sequence[str], __: str) -> Sequence[str]:
        return ("/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")

    changes = {"end_wait_s": 0.2}
    async with kubernetes(tmp_path, deaf, actuator_changes=changes, grace_s=1.5) as (actuator, at):
        replica = (await actuator.launch(spec())).replica
        with pytest.raises(Unavailable, match="still ending"):
            await actuator.terminate(*CHAT, replica.id)
        await until(actuator, replica.id, ReplicaState.DRAINING)
        again = await actuator.launch(spec())
        assert (again.created, again.replica.state) == (False, ReplicaState.DRAINING)
        async with asyncio.timeout(20):
            while await actuator.replica(*CHAT, replica.id):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert at.stub.objects == {}


# --- capacity


async def test_without_a_free_gpu_there_is_no_capacity_and_nothing_comes_up_later(
    tmp_path: Path,
) -> None:
    other = {**INSTANCE, "karpenter.sh/capacity-type": "on-demand"}
    nodes, soon = [Node(other, gpus=1)], {"capacity_wait_s": 0.2}
    async with kubernetes(tmp_path, nodes=nodes, actuator_changes=soon) as (actuator, at):
        with pytest.raises(NoCapacity, match=r"g5.xlarge: .*Insufficient nvidia.com/gpu"):
            await actuator.launch(spec())
        assert at.stub.objects == {}
        found = await actuator.launch(spec(Market.ON_DEMAND))
        assert (found.created, found.market) == (True, Market.ON_DEMAND)


async def test_a_node_that_comes_in_time_takes_the_pod(tmp_path: Path) -> None:
    async with kubernetes(tmp_path, nodes=[]) as (actuator, at):
        launching = asyncio.create_task(actuator.launch(spec()))
        async with asyncio.timeout(20):
            while not at.stub.of("pods"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        at.stub.nodes.append(Node({**INSTANCE, **SPOT}, gpus=1))
        at.stub.schedule()
        launched = await launching
        assert launched.created
        await until(actuator, launched.replica.id, ReplicaState.SERVING)


async def test_a_spent_quota_is_no_capacity_and_another_refusal_is_told(tmp_path: Path) -> None:
    soon = {"capacity_wait_s": 0.2}
    async with kubernetes(tmp_path, quota=0, actuator_changes=soon) as (actuator, at):
        with pytest.raises(NoCapacity, match="exceeded quota"):
            await actuator.launch(spec())
        at.stub.no_pod = "violates PodSecurity"
        with pytest.raises(Rejected, match=r"makes no pod .* violates PodSecurity"):
            await actuator.launch(spec())
        assert at.stub.objects == {}


async def test_when_nobody_says_why_no_pod_comes_it_is_waited_for(tmp_path: Path) -> None:
    soon = {"capacity_wait_s": 0.2}
    async with kubernetes(tmp_path, makes_pods=False, actuator_changes=soon) as (actuator, at):
        launched = await actuator.launch(spec())
        assert launched.replica.state is ReplicaState.STARTING
        assert made(at)


async def test_a_launch_whose_deployment_somebody_deletes_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kubernetes(tmp_path) as (actuator, at):

        async def taken(*_: object) -> Object:
            raise AlreadyExists("there is one")

        with monkeypatch.context() as patch:
            patch.setattr(actuator._api, "create", taken)
            with pytest.raises(Unavailable, match="went away"):
                await actuator.launch(spec())
        at.stub.makes_pods = False
        launching = asyncio.create_task(actuator.launch(spec()))
        async with asyncio.timeout(20):
            while not at.stub.of("services"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        at.stub.objects.clear()
        with pytest.raises(Unavailable, match="went away"):
            await launching


# --- refusals


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"placement": placement(region=REGION)}, "cannot launch on aws"),
        ({"placement": placement(provider=Provider.KUBERNETES)}, "is in us-east-1, not in ap-"),
        ({"deployment": "other"}, "nothing says how to start the engine of other"),
        ({"model": "x"}, "serves 'm', but requests ask for 'x'"),
        ({"engine": SglangConfig(model="m")}, "no image runs sglang"),
        ({"engine": VllmConfig(model="m", host="127.0.0.1")}, "cannot be reached from outside"),
        (
            {"engine": VllmConfig(model="m", max_num_seqs=8, max_num_batched_tokens=4)},
            "would not start",
        ),
        ({"tags": {"no good": "x"}}, "no good is no qualified name"),
    ],
)
async def test_what_can_never_be_launched_is_refused_before_anything_is_made(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    async with kubernetes(tmp_path) as (actuator, at):
        with pytest.raises(Rejected, match=text):
            await actuator.launch(spec(**changes))
        assert at.stub.objects == {}


async def test_a_market_whose_nodes_nobody_named_is_refused(tmp_path: Path) -> None:
    async with kubernetes(tmp_path, site_changes={"markets": {}}) as (actuator, _):
        with pytest.raises(Rejected, match=r"clouds.kubernetes.markets.spot"):
            await actuator.launch(spec())
        with pytest.raises(Rejected, match="would not start"):
            actuator.require_launchable(
                "m", VllmConfig(model="m", max_num_seqs=8, max_num_batched_tokens=4)
            )


@pytest.mark.parametrize("plural", ["deployments", "services"])
async def test_a_name_that_is_taken_by_something_else_is_left_alone(
    tmp_path: Path, plural: str
) -> None:
    async with kubernetes(tmp_path) as (actuator, at):
        replica = (await actuator.launch(spec())).replica
        taken = at.stub.objects[plural, replica.id]
        taken["metadata"]["labels"] = {}
        with pytest.raises(
            (Rejected, Unavailable), match=r"is none of acme/chat|of something else"
        ):
            await actuator.launch(spec())
        assert at.stub.objects[plural, replica.id] is taken


@pytest.mark.parametrize(
    ("forbidden", "hint"),
    [
        (("create", "deployments"), "create deployments.apps in namespace serving"),
        (("create", "services"), "create services in namespace serving"),
        (("list", "pods"), "list pods in namespace serving"),
    ],
)
async def test_a_right_that_lacks_is_named(
    tmp_path: Path, forbidden: tuple[str, str], hint: str
) -> None:
    async with kubernetes(tmp_path) as (actuator, at):
        at.stub.forbidden = {forbidden}
        with pytest.raises(Denied, match=f"allow the agent to {hint}"):
            await actuator.launch(spec())
        at.stub.forbidden = {("delete", "deployments")}
        replica = (await actuator.launch(spec())).replica
        with pytest.raises(Denied, match=r"delete deployments\.apps"):
            await actuator.terminate(*CHAT, replica.id)


async def test_the_shipped_roles_allow_what_is_done_and_nothing_else(tmp_path: Path) -> None:
    allowed = {
        name: {
            (verb, resource)
            for rule in role["rules"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        for role in yaml.safe_load_all((ROOT / "deploy/kubernetes-role.yaml").read_text())
        if (name := role["metadata"]["name"]) and role["kind"] == "Role"
    }
    async with kubernetes(tmp_path) as (actuator, at):
        replica = (await actuator.launch(spec())).replica
        at.stub.calls.clear()
        await actuator.replicas(*CHAT)
        await actuator.replica(*CHAT, replica.id)
        await actuator.engine(*CHAT, replica.id)
        assert set(at.stub.calls) == allowed["optiinfra-observe"]
        await actuator.launch(spec())
        await actuator.terminate(*CHAT, replica.id)
        done = set(at.stub.calls) - allowed["optiinfra-observe"]
        assert done | {("create", "deployments")} == allowed["optiinfra-act"]


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_cluster_that_is_busy_or_broken_is_unavailable(tmp_path: Path, status: int) -> None:
    async with kubernetes(tmp_path) as (actuator, at):
        at.stub.failing = status
        with pytest.raises(Unavailable, match="out of order"):
            await actuator.replicas(*CHAT)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_cluster_that_cannot_be_reached_is_unavailable_and_says_what_to_check(
    tmp_path: Path, scheme: str
) -> None:
    async with kubernetes(tmp_path) as (_, at):
        url = "http://127.0.0.1:9" if scheme == "http" else at.url.replace("http", "https")
        cluster = Cluster("serving", kubeconfig=at.kubeconfig(tmp_path, url=url))
        api = KubernetesApi.connect(cluster)
        with pytest.raises(Unavailable, match=r"check the network, .* clouds.kubernetes") as told:
            await api.list(DEPLOYMENT, {"a": "b"})
        assert ("SSLError" in str(told.value)) == (scheme == "https")
        await api.close()


async def test_credentials_and_namespaces_that_are_none_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kubernetes(tmp_path) as (_, at):
        stranger = Cluster("serving", kubeconfig=at.kubeconfig(tmp_path, token="wrong"))
        api = KubernetesApi.connect(stranger)
        with pytest.raises(Denied, match="renew the credentials"):
            await api.list(DEPLOYMENT, {"a": "b"})
        await api.close()
        api = at.api(tmp_path, "nowhere")
        body = {"metadata": {"name": "x"}, "spec": {"ports": [{"port": 1}]}}
        with pytest.raises(Rejected, match="namespace nowhere exists"):
            await api.create(SERVICE, body)
        await api.close()
    with pytest.raises(Denied, match="name a kubeconfig"):
        KubernetesApi.connect(Cluster("serving", kubeconfig=tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "none")
    with pytest.raises(Denied, match="service account"):
        KubernetesApi.connect(Cluster("serving"))


async def test_an_object_that_has_changed_since_is_neither_overwritten_nor_deleted(
    tmp_path: Path,
) -> None:
    async with kubernetes(tmp_path) as (actuator, at):
        replica = (await actuator.launch(spec())).replica
        api = at.api(tmp_path)
        old = await api.get(SERVICE, replica.id)
        assert old is not None
        await api.replace(SERVICE, old)
        with pytest.raises(Conflict, match="has been modified"):
            await api.replace(SERVICE, old)
        await api.delete(SERVICE, {"metadata": {"name": replica.id, "uid": "another"}})
        assert await api.get(SERVICE, replica.id) is not None
        await api.close()
