"""How often somebody may try: the same in memory and on a real Redis, and while Redis is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from optiinfra.schemas.errors import TooMany
from optiinfra.storage.rates import MEMORY, PER_MINUTE, Bucket, Rates


@pytest.fixture(params=["memory", "redis", "away"])
async def rates(request: pytest.FixtureRequest) -> AsyncIterator[Rates]:
    urls = {"memory": MEMORY, "away": "redis://127.0.0.1:9"}
    url = urls.get(request.param) or request.getfixturevalue("redis_url")
    made = Rates(url, prefix=uuid4().hex)
    yield made
    await made.aclose()


@pytest.mark.parametrize("bucket", Bucket)
async def test_beyond_the_limit_it_says_how_long_to_wait(rates: Rates, bucket: Bucket) -> None:
    for _ in range(PER_MINUTE[bucket]):
        await rates.spend(bucket, "ann")
    with pytest.raises(TooMany) as refused:
        await rates.spend(bucket, "ann")
    assert 1 <= refused.value.retry_after_s <= 60


async def test_people_and_buckets_are_counted_apart(rates: Rates) -> None:
    for _ in range(PER_MINUTE[Bucket.SIGN_IN]):
        await rates.spend(Bucket.SIGN_IN, "ann")
    await rates.spend(Bucket.SIGN_IN, "bob")
    await rates.spend(Bucket.DECISIONS, "ann")
    with pytest.raises(TooMany):
        await rates.spend(Bucket.SIGN_IN, "ann")


async def test_two_processes_on_one_redis_count_together(redis_url: str) -> None:
    prefix = uuid4().hex
    one, other = (Rates(redis_url, prefix=prefix) for _ in range(2))
    try:
        for _ in range(PER_MINUTE[Bucket.SIGN_IN]):
            await one.spend(Bucket.SIGN_IN, "ann")
        with pytest.raises(TooMany):
            await other.spend(Bucket.SIGN_IN, "ann")
    finally:
        await one.aclose()
        await other.aclose()
