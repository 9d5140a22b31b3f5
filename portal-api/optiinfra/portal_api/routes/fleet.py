"""Agents and deployments."""

from __future__ import annotations

from fastapi import APIRouter, Response

from optiinfra.portal_api.auth import Ports, Reader
from optiinfra.portal_api.paging import Paged, PageOf, page_answer
from optiinfra.portal_api.routes.snapshots import Snapshot
from optiinfra.portal_api.views import AgentView, DeploymentView, deployment_view

router = APIRouter(tags=["fleet"], dependencies=[Snapshot])


@router.get("/agents", response_model=PageOf[AgentView])
async def agents(who: Reader, ports: Ports, response: Response) -> Response:
    """All instances of all agents with their heartbeats."""
    return page_answer(await ports.documents.agents(who.tenant), response)


@router.get("/deployments")
async def deployments(who: Reader, ports: Ports, paging: Paged) -> PageOf[DeploymentView]:
    """What is served, with its objectives."""
    rows = await ports.queries.deployments(who.tenant, paging.page(str))
    return paging.of(rows, deployment_view, ("id",))
