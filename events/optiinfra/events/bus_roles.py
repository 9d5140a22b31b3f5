"""Who signs in at the broker: one credential a role, named as its user there."""

from __future__ import annotations

from enum import StrEnum


class BusRole(StrEnum):
    """A user of the broker. What each may say stands in `subjects`, all it may do follows."""

    COORDINATOR = "coordinator"
    AGENT_COST = "agent-cost"
    AGENT_PERFORMANCE = "agent-performance"
    AGENT_RESOURCE = "agent-resource"
    AGENT_APPLICATION = "agent-application"
    COLLECTOR = "collector"
    """Also remembers outcomes: both run in one process."""
    GATEWAY = "gateway"
    PORTAL_API = "portal-api"
    NOTIFIER = "notifier"
    """Tells people and other systems; a durable consumer a target."""
    TOPOLOGY = "topology"
    """Creates and corrects the streams; reads and says nothing."""
    OPERATOR = "operator"
    """A person's tools: looks at everything, handles dead letters."""
    SUBSCRIBER = "subscriber"
    """A downstream system: reads."""


AGENTS = (
    BusRole.AGENT_COST,
    BusRole.AGENT_PERFORMANCE,
    BusRole.AGENT_RESOURCE,
    BusRole.AGENT_APPLICATION,
)
EXECUTORS = (BusRole.AGENT_COST, BusRole.AGENT_PERFORMANCE)
VOTERS = (BusRole.AGENT_PERFORMANCE, BusRole.AGENT_RESOURCE, BusRole.AGENT_APPLICATION)
ASSESSORS = (BusRole.AGENT_PERFORMANCE, BusRole.AGENT_APPLICATION)


def agent_of(role: BusRole) -> str:
    """The name under which an agent's role votes, answers and is alive."""
    return role.value.removeprefix("agent-")


def inbox_of(user: str | None) -> str:
    """The prefix of the answers to a user: its own, so that no role can hear another's."""
    return f"_INBOX_{user}" if user in BusRole.__members__.values() else "_INBOX"
