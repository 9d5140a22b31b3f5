"""Hears which spot instances the cloud is about to take back (EventBridge notices on SQS)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog

from optiinfra.agents.collectors.clouds import AwsApi

_WARNING = "EC2 Spot Instance Interruption Warning"
_NOTICE = timedelta(minutes=2)
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ReclaimNotice:
    """An instance that goes away at `reclaim_at`; `receipt` acknowledges the message."""

    instance_id: str
    reclaim_at: datetime
    receipt: str


class Interruptions(Protocol):
    """A source of reclaim notices; a notice comes again until it is acknowledged."""

    async def notices(self) -> Sequence[ReclaimNotice]:
        """Notices that are waiting. Errors: `Unavailable`, `Denied`, `Rejected`."""
        ...

    async def acknowledge(self, notice: ReclaimNotice) -> None: ...


class SqsInterruptions:
    """Reads the queue to which an EventBridge rule sends EC2's events.

    The queue hides a message for `hidden_s` after it was read, then it comes again: whoever acts on
    a notice acknowledges it only once what follows from it is on record.
    """

    def __init__(self, sqs: AwsApi, queue_url: str, hidden_s: int = 30) -> None:
        self._sqs = sqs
        self._queue_url = queue_url
        self._hidden_s = hidden_s

    async def notices(self) -> Sequence[ReclaimNotice]:
        answer = await self._sqs.call(
            "receive_message",
            {
                "QueueUrl": self._queue_url,
                "MaxNumberOfMessages": 10,
                "VisibilityTimeout": self._hidden_s,
                "WaitTimeSeconds": 0,
            },
        )
        found: list[ReclaimNotice] = []
        for message in answer.get("Messages", []):
            notice = parse_notice(message["Body"], message["ReceiptHandle"])
            if notice is None:
                await self._delete(message["ReceiptHandle"])
            else:
                found.append(notice)
        return found

    async def acknowledge(self, notice: ReclaimNotice) -> None:
        await self._delete(notice.receipt)

    async def _delete(self, receipt: str) -> None:
        await self._sqs.call(
            "delete_message", {"QueueUrl": self._queue_url, "ReceiptHandle": receipt}
        )


def parse_notice(body: str, receipt: str) -> ReclaimNotice | None:
    """The notice in an EventBridge message; None (logged) for any other event.

    EC2 warns two minutes before it takes the instance; the event carries the time of the warning.
    """
    try:
        event: Any = json.loads(body)
        kind, action = event["detail-type"], event["detail"].get("instance-action")
        instance_id, at = event["detail"]["instance-id"], datetime.fromisoformat(event["time"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("interruption.unreadable", error=repr(error), body=body[:500])
        return None
    if kind != _WARNING or at.tzinfo is None:
        _log.info("interruption.ignored", detail_type=kind, instance_id=instance_id)
        return None
    _log.info("interruption.noticed", instance_id=instance_id, action=action, at=event["time"])
    return ReclaimNotice(str(instance_id), at + _NOTICE, receipt)
