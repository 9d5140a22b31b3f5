"""Whatever the OpenAPI document allows, and what it does not, is answered as it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from optiinfra.portal_api.server import running_api
from optiinfra.schemas.tenant import Role
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.postgres.database import open_database
from optiinfra.storage.postgres.setup import declare
from optiinfra.storage.redis import RegistryCache
from tests.integration.api_stand import Stand, standing
from tests.measured import just_now, metric_store, price, record
from tests.telemetry import deployment, steady

CASES_EACH = 8
"""Requests for each operation and mode."""
ELSEWHERE = ("/dead-letters", "/sse", "/readyz", "/session")
"""Letters need a broker and the stream never ends, which other tests see to; a session that is
ended cannot ask for more."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@dataclass
class Served:
    """The API at an address, with somebody who may do all."""

    url: str
    token: str
    document: dict[str, Any]


@pytest.fixture
async def store(servers: Addresses) -> AsyncIterator[MetricStore]:
    async with metric_store(servers.clickhouse_url) as made:
        yield made


@pytest.fixture
async def served(database: str, store: MetricStore) -> AsyncIterator[Served]:
    cache = RegistryCache("memory://")
    async with (
        open_database(database) as postgres,
        standing(postgres, metrics=store, cache=cache) as stand,
    ):
        await declare(postgres, "acme", [deployment()])
        await fill(stand, store)
        async with (
            running_api(stand.app, "127.0.0.1", 0) as url,
            httpx.AsyncClient(base_url=url, trust_env=False) as client,
        ):
            document = (await client.get("/api/openapi.json")).json()
            yield Served(url, await stand.token(Role.ADMIN), document)
    await cache.aclose()


async def fill(stand: Stand, store: MetricStore) -> None:
    """So that answers hold something."""
    await stand.fleet.awaiting("a")
    await record(store, [*steady("r1", until=just_now()), price(2.0, at=just_now())])


def operations(document: dict[str, Any]) -> list[Any]:
    schema = schemathesis.openapi.from_dict(document)
    found = []
    for one in schema.get_all_operations():
        assert isinstance(one, Ok), one.err()
        found.append(one.ok())
    return [one for one in found if not one.path.endswith(ELSEWHERE) and "letters" not in one.path]


def asking(operation: Any, mode: GenerationMode, served: Served) -> Callable[[], None]:
    """Asks with generated cases, always the same ones."""

    @settings(
        max_examples=CASES_EACH,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        case.call_and_validate(
            base_url=served.url,
            headers={"Authorization": f"Bearer {served.token}"},
            checks=CHECKS,
            timeout=20,
        )

    made: Callable[[], None] = ask
    return made


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
async def test_every_operation_keeps_the_document(served: Served, mode: GenerationMode) -> None:
    found = operations(served.document)
    assert len(found) > 25
    failures, asked = [], 0
    for operation in found:
        try:
            await asyncio.to_thread(asking(operation, mode, served))
            asked += 1
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE  # what takes nothing cannot be asked wrongly
        except (Exception, ExceptionGroup) as failed:  # noqa: BLE001 - all are told together
            failures.append(f"{operation.label}: {told(failed)}")
    assert not failures, "\n".join(failures)
    assert asked > len(found) / 2


def told(failed: BaseException) -> str:
    parts = failed.exceptions if isinstance(failed, BaseExceptionGroup) else (failed,)
    return "; ".join(f"{type(one).__name__} {one}" for one in parts)[:1500]
