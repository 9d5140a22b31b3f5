"""Agents and deployments."""

from __future__ import annotations

from fastapi import APIRouter

from optiinfra.portal_api.auth import Ports, Reader
from optiinfra.portal_api.paging import Paged, PageOf
from optiinfra.portal_api.routes.snapshots import Snapshot
from optiinfra.portal_api.views import AgentView, DeploymentView, agent_view, deployment_view

router = APIRouter(tags=["fleet"], dependencies=[Snapshot])


@router.get("/agents")
async def agents(who: Reader, ports: Ports) -> PageOf[AgentView]:
    """All instances of all agents with their heartbeats."""
    rows = await ports.queries.agents(who.tenant)
    return PageOf[AgentView](items=[agent_view(row) for row in rows])


@router.get("/deployments")
async def deployments(who: Reader, ports: Ports, paging: Paged) -> PageOf[DeploymentView]:
    """What is served, with its objectives."""
    rows = await ports.queries.deployments(who.tenant, paging.page(str))
    return paging.of(rows, deployment_view, ("id",))
