"""Takes whole answers aside for scoring without ever holding up the data plane."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from optiinfra.gateway.routes import RouteKey, hash_fraction
from optiinfra.schemas.errors import OptiInfraError, Rejected
from optiinfra.schemas.ids import DeploymentId
from optiinfra.schemas.sampling import AnswerSample

log = structlog.get_logger(__name__)


class SampleSink(Protocol):
    """Where samples go."""

    async def publish(self, samples: list[AnswerSample]) -> None:
        """Deliver all of `samples`; may be asked again with the same ones after a failure.

        Raises `Rejected` when they can never be delivered (they are dropped), any other
        `OptiInfraError`, `OSError` or `TimeoutError` when it is worth trying again.
        """
        ...


@dataclass(frozen=True, slots=True)
class TapLimits:
    """How much is sampled and how much may wait."""

    fraction: float
    fractions: Mapping[DeploymentId, float] = field(default_factory=dict)
    text_bytes: int = 65536
    queue_samples: int = 2048
    queue_bytes: int = 32 << 20
    batch_samples: int = 64
    retry_first_s: float = 0.1
    retry_most_s: float = 5.0


class Tap:
    """A bounded queue of samples (the oldest give way) and the task that delivers them."""

    def __init__(self, sink: SampleSink | None, limits: TapLimits) -> None:
        """Without a sink nothing is sampled."""
        self._sink = sink
        self._limits = limits
        self._queue: deque[tuple[AnswerSample, int]] = deque()
        self._bytes = 0
        self._in_hand = 0
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self.delivered = 0
        self.dropped = 0
        """Samples that gave way to newer ones or that the sink rejected."""
        self.oversized = 0
        """Requests not sampled because a text was beyond its limit or unreadable."""

    @property
    def waiting(self) -> int:
        return len(self._queue) + self._in_hand

    @property
    def text_limit_bytes(self) -> int:
        """How long a prompt or an answer may be, in UTF-8 bytes."""
        return self._limits.text_bytes

    def wants(self, key: RouteKey, unit: str) -> bool:
        """Whether `unit` is sampled: always or never, a session is sampled whole."""
        fraction = self._limits.fractions.get(key.deployment, self._limits.fraction)
        if self._sink is None or fraction <= 0:
            return False
        return hash_fraction(unit, key=key.deployment.encode(), person=b"tap") < fraction

    def offer(self, sample: AnswerSample) -> None:
        """Queue `sample`; makes room by dropping the oldest."""
        size = len(sample.prompt) + len(sample.answer)
        self._queue.append((sample, size))
        self._bytes += size
        while (
            len(self._queue) > self._limits.queue_samples or self._bytes > self._limits.queue_bytes
        ):
            self._bytes -= self._queue.popleft()[1]
            self.dropped += 1
        self._filled.set()
        self._drained.clear()

    async def pump(self) -> None:
        """Deliver until cancelled."""
        if self._sink is None:
            return
        while True:
            await self._filled.wait()
            batch = self._take()
            self._in_hand = len(batch)
            await self._deliver(self._sink, batch)
            self._in_hand = 0
            if not self._queue:
                self._filled.clear()
                self._drained.set()

    async def flush(self, timeout_s: float) -> None:
        """Wait until all is delivered, at most `timeout_s`; what is left counts as dropped."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._drained.wait()
        except TimeoutError:
            self.dropped += self.waiting
            log.warning("samples_lost_at_stop", samples=self.waiting)

    def _take(self) -> list[AnswerSample]:
        batch: list[AnswerSample] = []
        while self._queue and len(batch) < self._limits.batch_samples:
            sample, size = self._queue.popleft()
            self._bytes -= size
            batch.append(sample)
        return batch

    async def _deliver(self, sink: SampleSink, batch: list[AnswerSample]) -> None:
        wait_s = self._limits.retry_first_s
        while batch:
            try:
                await sink.publish(batch)
            except Rejected as error:
                self.dropped += len(batch)
                log.error("samples_rejected", samples=len(batch), reason=str(error))
                return
            except (OptiInfraError, OSError, TimeoutError) as error:
                log.warning("samples_delayed", samples=len(batch), reason=str(error))
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, self._limits.retry_most_s)
            else:
                self.delivered += len(batch)
                return
