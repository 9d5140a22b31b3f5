"""Who may do what at the broker, and the files that say so."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from optiinfra.agents.base.agent import Say
from optiinfra.agents.base.host import AgentHost, Identity, Ports
from optiinfra.agents.memory import OutcomeMemory
from optiinfra.coordinator.process import Coordinator, CoordinatorPorts
from optiinfra.events import authorization
from optiinfra.events.bus import Bus
from optiinfra.events.bus_roles import AGENTS, EXECUTORS, BusRole, agent_of, inbox_of
from optiinfra.events.consume import Consumer
from optiinfra.events.envelope import Event
from optiinfra.events.facts import Fact
from optiinfra.events.permissions import DURABLES, permissions_of, says
from optiinfra.events.subjects import BY_PREFIX, SUBJECTS
from optiinfra.runtime.bus_credentials import CONFIG, PASSWORDS, write_credentials
from optiinfra.runtime.cli import app
from optiinfra.runtime.control import collector, remembering
from optiinfra.runtime.stores import Stores
from optiinfra.schemas.errors import Conflict, Rejected
from optiinfra.schemas.vote import AgentName

ROOT = Path(__file__).parents[2]
DECIDES = (
    "approval.granted", "approval.denied", "control.requested", "switch.turned",
    "recommendation.snoozed", "recommendation.woken",
)  # fmt: skip
COMMANDS = ("execution.requested", "rollback.requested", "vote.requested", "gate.requested")


def test_no_agent_may_approve_or_command() -> None:
    for prefix in (*DECIDES, *COMMANDS):
        assert not set(BY_PREFIX[prefix].publishers) & set(AGENTS), prefix


def test_the_cost_agent_does_not_vote_and_only_executors_execute() -> None:
    assert not [one for one in says(BusRole.AGENT_COST) if one.startswith("vote.")]
    assert EXECUTORS == (BusRole.AGENT_COST, BusRole.AGENT_PERFORMANCE)
    for agent in set(AGENTS) - set(EXECUTORS):
        assert not [one for one in says(agent) if one.startswith(("execution.", "rollback."))]
    assert says(BusRole.GATEWAY) == ("sample.answer.*.*",)
    assert set(says(BusRole.PORTAL_API)) == {f"{prefix}.*.*" for prefix in DECIDES}


def test_each_agent_votes_answers_and_is_alive_in_its_own_name_alone() -> None:
    proving = [row for row in SUBJECTS if row.tokens[-1] == "agent"]
    assert {row.prefix for row in proving} == {
        "vote.cast", "gate.answered", "agent.registered", "agent.heartbeat",
    }  # fmt: skip
    for role in AGENTS:
        said = [one for row in proving for one in says(role) if one.startswith(f"{row.prefix}.")]
        assert len(said) == sum(role in row.publishers for row in proving)
        assert {one.rpartition(".")[2] for one in said} == {agent_of(role)}


def test_a_role_buries_in_the_name_of_its_own_consumers_alone() -> None:
    for role, durables in DURABLES.items():
        said = {one for one in says(role) if one.startswith("dlq.")}
        assert said == {f"dlq.*.{name}" for _, name in durables}


def test_everything_said_has_somebody_who_may_say_it_but_what_the_broker_says() -> None:
    assert [row.prefix for row in SUBJECTS if not row.publishers] == ["timer.fired"]


def test_only_the_roles_that_administer_reach_the_administration() -> None:
    changing = re.compile(r"STREAM\.(CREATE|UPDATE|DELETE|PURGE|MSG\.DELETE|RESTORE|SNAPSHOT)")
    able = {
        role for role in BusRole if any(changing.search(s) for s in permissions_of(role).publish)
    }
    assert able == {BusRole.TOPOLOGY, BusRole.OPERATOR}


def test_no_role_hears_another_one() -> None:
    for role in BusRole:
        heard = permissions_of(role).subscribe
        assert heard[0] == f"{inbox_of(role)}.>"
        assert set(heard[1:]) <= {"agent.heartbeat.*.*"}
    assert inbox_of("somebody") == inbox_of(None) == "_INBOX"


@dataclass
class Agent:
    """Hears everything that an agent may hear."""

    name: AgentName
    capabilities: tuple[str, ...] = ()
    hears: tuple[str, ...] = ("vote.requested",)
    sense_every_s: float = 60.0

    async def handle(self, event: Event, say: Say) -> Sequence[Fact]:
        return []

    async def sense(self) -> Sequence[Fact]:
        return []


class Scorer(Agent):
    async def samples_handler(self, events: Sequence[Event]) -> Sequence[Fact]:
        return []


async def test_the_durables_are_those_that_the_roles_make() -> None:
    """The rooms that make them stand above the table, which cannot ask them."""
    nothing: Any = None
    bus = Bus("nats://nowhere")
    made: dict[BusRole, list[Consumer]] = {}
    for name in AgentName:
        agent = (Scorer if name is AgentName.APPLICATION else Agent)(name)
        ports = Ports(bus, nothing, nothing, nothing, nothing, nothing, nothing)
        host = AgentHost(agent, Identity("acme", "one", "1"), ports)
        made[BusRole(f"agent-{name}")] = host._consumers()
    stores = Stores(nothing, bus, nothing, nothing, nothing, nothing)
    made[BusRole.COLLECTOR] = [collector(stores), remembering(stores, nothing_remembered())]
    ports_of_coordinator = CoordinatorPorts(*[bus, *[nothing] * 7])
    made[BusRole.COORDINATOR] = Coordinator(ports_of_coordinator)._consumers
    names = {
        role: {(one.spec.stream, one.spec.name) for one in consumers}
        for role, consumers in made.items()
    }
    assert names == {role: set(durables) for role, durables in DURABLES.items()}


def nothing_remembered() -> OutcomeMemory:
    nowhere: Any = None
    return OutcomeMemory(nowhere)


def test_the_broker_of_compose_knows_what_the_table_says() -> None:
    """After a change: python -m optiinfra.events.authorization deploy/nats-auth.conf"""
    written = (ROOT / "deploy/nats-auth.conf").read_text(encoding="utf-8")
    assert written == authorization.from_environment()


def test_each_container_gets_the_password_of_its_role_alone() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    held = {
        name: set(re.findall(r"NATS_(\w+)_PASSWORD", str(service["environment"])))
        for name, service in services.items()
        if name not in {"nats", "postgres", "clickhouse", "qdrant", "redis"}
    }
    expected = {name: {BusRole(name).name} for name in held if name != "migrate"}
    assert held == {**expected, "migrate": set()}


def test_the_module_writes_what_compose_mounts(tmp_path: Path) -> None:
    assert authorization.main([]) == 2
    assert authorization.main([str(tmp_path / "auth.conf")]) == 0
    assert (tmp_path / "auth.conf").read_text() == authorization.from_environment()


def test_credentials_are_written_for_the_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "bus"
    paths = write_credentials(folder, "nats://broker:4222", hashed=False, rotate=False)
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    names = {CONFIG, PASSWORDS, *(f"{role}.env" for role in BusRole)}
    assert {path.name for path in folder.iterdir()} == names
    cost = (folder / "agent-cost.env").read_text()
    found = re.fullmatch(r"OPTIINFRA_NATS_URL=nats://agent-cost:(p\w{48})@broker:4222\n", cost)
    assert found
    holding = [path.name for path in paths if found[1] in path.read_text()]
    assert sorted(holding) == sorted([CONFIG, PASSWORDS, "agent-cost.env"])


def test_credentials_are_not_overwritten_unless_rotated(tmp_path: Path) -> None:
    write_credentials(tmp_path, "nats:4222", hashed=False, rotate=False)
    before = (tmp_path / PASSWORDS).read_text()
    with pytest.raises(Conflict, match=r"holds .*passwords\.env"):
        write_credentials(tmp_path, "nats:4222", hashed=False, rotate=False)
    assert (tmp_path / PASSWORDS).read_text() == before
    write_credentials(tmp_path, "nats:4222", hashed=False, rotate=True)
    assert (tmp_path / PASSWORDS).read_text() != before


def test_hashes_need_bcrypt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcrypt", None)
    with pytest.raises(Rejected, match="bcrypt is not installed"):
        write_credentials(tmp_path, "nats:4222", hashed=True, rotate=False)
    assert list(tmp_path.iterdir()) == []
    bcrypt = ModuleType("bcrypt")
    bcrypt.gensalt = lambda _rounds: b"salt"  # type: ignore[attr-defined]
    bcrypt.hashpw = lambda word, salt: b"$2b$" + salt + word[:1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bcrypt", bcrypt)
    write_credentials(tmp_path, "nats:4222", hashed=True, rotate=False)
    config = (tmp_path / CONFIG).read_text()
    assert config.count('"$2b$saltp"') == len(BusRole)


def test_the_command_names_the_files_and_shows_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typer.main.get_command(app).main(
        ["topology", "credentials", "--out", str(tmp_path / "bus")], standalone_mode=False
    )
    shown = capsys.readouterr().out
    assert "agent-cost.env" in shown
    for line in (tmp_path / "bus" / PASSWORDS).read_text().split():
        assert line.partition("=")[2] not in shown
