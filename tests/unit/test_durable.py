"""What a broker tells of a durable consumer, and what it does not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from nats.js.api import ConsumerConfig, ConsumerInfo, SequenceInfo

from optiinfra.events.durable import left_of


@pytest.mark.parametrize(
    ("pending", "delivered", "left"),
    [
        (3, SequenceInfo(0, 0), 3),
        (3, SequenceInfo(7, 9), 3),
        (0, SequenceInfo(7, 9), 0),
        (0, SequenceInfo(0, 0), None),
        (0, None, None),
        (None, SequenceInfo(7, 9), 0),
    ],
)
def test_of_a_consumer_in_the_making_nothing_is_taken_for_told(
    pending: int | None, delivered: SequenceInfo | None, left: int | None
) -> None:
    info = ConsumerInfo(
        name="c",
        stream_name="s",
        config=ConsumerConfig(),
        created=datetime(2026, 1, 5, tzinfo=UTC),
        num_pending=pending,
        delivered=delivered,
    )
    assert left_of(info) == left
