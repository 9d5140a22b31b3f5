"""The outcome store finds like situations within one tenant, on each of its adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from optiinfra.schemas.errors import Conflict, Rejected, Unavailable
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.qdrant import OutcomePoint, OutcomeStore


def outcome(*vector: float, tenant: str = "acme", kind: str = "spot_migration") -> OutcomePoint:
    return OutcomePoint(
        id=uuid4(), tenant=tenant, kind=kind, vector=vector, payload={"saved": 1.5, "of": [1, 2]}
    )


@pytest.fixture(params=["memory", "folder", "server"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OutcomeStore]:
    if request.param == "server":
        url = request.getfixturevalue("servers").qdrant_url
        if not url.startswith("http"):
            pytest.skip("no Qdrant server: neither OPTIINFRA_TEST_QDRANT_URL nor Docker")
    else:
        url = {"memory": "memory://", "folder": f"local://{tmp_path}/qdrant"}[request.param]
    store = OutcomeStore(url, dimension=3, collection=f"test_{uuid4().hex}")
    yield store
    await store.forget_all()
    await store.aclose()


async def test_the_most_alike_come_first_with_their_payload(store: OutcomeStore) -> None:
    near, far = outcome(1, 0.1, 0), outcome(0, 1, 0)
    await store.remember(far)
    await store.remember(near)
    found = await store.similar([1, 0, 0], tenant="acme", kind="spot_migration")
    assert [one.id for one in found] == [near.id, far.id]
    assert found[0].similarity == pytest.approx(0.995, abs=1e-3)
    assert found[0].payload == {"saved": 1.5, "of": [1, 2]}


async def test_other_tenants_and_kinds_are_not_found(store: OutcomeStore) -> None:
    await store.remember(outcome(1, 0, 0, tenant="other"))
    await store.remember(outcome(1, 0, 0, kind="scale"))
    assert await store.similar([1, 0, 0], tenant="acme", kind="spot_migration") == []


async def test_the_same_id_replaces_and_the_limit_holds(store: OutcomeStore) -> None:
    first = outcome(1, 0, 0)
    await store.remember(first)
    await store.remember(first)
    await store.remember(outcome(1, 1, 0))
    found = await store.similar([1, 0, 0], tenant="acme", kind="spot_migration", limit=10)
    assert len(found) == 2
    found = await store.similar([1, 0, 0], tenant="acme", kind="spot_migration", limit=1)
    assert [one.id for one in found] == [first.id]


@pytest.mark.parametrize(
    ("vector", "complaint"),
    [
        ((0, 0, 0), "zeros"),
        ((1, float("nan"), 0), "not finite"),
        ((1, float("inf"), 0), "not finite"),
        ((1, 2), "2 numbers where 3"),
    ],
)
async def test_a_vector_that_cannot_be_compared_is_rejected(
    store: OutcomeStore, vector: tuple[float, ...], complaint: str
) -> None:
    with pytest.raises(Rejected, match=complaint):
        await store.remember(outcome(*vector))
    with pytest.raises(Rejected, match=complaint):
        await store.similar(vector, tenant="acme", kind="spot_migration")


async def test_a_limit_out_of_bounds_is_rejected(store: OutcomeStore) -> None:
    with pytest.raises(Rejected, match="limit 0"):
        await store.similar([1, 0, 0], tenant="acme", kind="spot_migration", limit=0)


async def test_a_folder_keeps_its_outcomes_and_admits_one_at_a_time(tmp_path: Path) -> None:
    url = f"local://{tmp_path}/a%20folder"
    first, second = OutcomeStore(url, dimension=3), OutcomeStore(url, dimension=3)
    await first.remember(outcome(1, 0, 0))
    with pytest.raises(Conflict, match="already in use by process"):
        await second.remember(outcome(1, 0, 0))
    await first.aclose()
    assert len(await second.similar([1, 0, 0], tenant="acme", kind="spot_migration")) == 1
    await second.aclose()
    assert (tmp_path / "a folder").is_dir()


async def test_another_embedding_needs_another_collection(tmp_path: Path) -> None:
    url = f"local://{tmp_path}/qdrant"
    small = OutcomeStore(url, dimension=3)
    await small.remember(outcome(1, 0, 0))
    await small.aclose()
    large = OutcomeStore(url, dimension=4)
    with pytest.raises(Rejected, match="holds other vectors"):
        await large.remember(outcome(1, 0, 0, 0))
    await large.aclose()


async def test_an_absent_server_is_unavailable(servers: Addresses) -> None:
    store = OutcomeStore("http://127.0.0.1:9", dimension=3)
    with pytest.raises(Unavailable, match="does not answer"):
        await store.remember(outcome(1, 0, 0))
    await store.aclose()
    with pytest.raises(Unavailable, match="closed"):
        await store.remember(outcome(1, 0, 0))
