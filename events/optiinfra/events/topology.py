"""The streams as data, and how they are created, compared and required on a broker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nats.js.api import (
    DiscardPolicy,
    PersistMode,
    RawStreamMsg,
    RetentionPolicy,
    StorageType,
    StoreCompression,
    StreamConfig,
    StreamInfo,
    StreamSource,
)
from nats.js.errors import APIError, BadRequestError, NotFoundError, ServerError

from optiinfra.events.bus import Bus
from optiinfra.events.publish import SCHEDULES
from optiinfra.events.refusals import STREAM_NOT_FOUND, is_full
from optiinfra.events.subjects import Stream, subjects_in
from optiinfra.schemas.errors import Conflict, Unavailable

_MIB = 1 << 20
_DAY_S = 86_400.0
ADVISORIES = tuple(
    f"$JS.EVENT.ADVISORY.CONSUMER.{what}.>"
    for what in ("MAX_DELIVERIES", "MSG_TERMINATED", "MSG_NAKED")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyLimits:
    """How much each stream may hold, bytes, and for how long, s.

    The broker reserves the sizes, so their sum must fit into its storage; the defaults (1.9 GiB)
    fit a laptop.
    """

    metrics_bytes: int = 512 * _MIB
    samples_bytes: int = 128 * _MIB
    changes_bytes: int = 512 * _MIB
    timers_bytes: int = 64 * _MIB
    dlq_bytes: int = 128 * _MIB
    advisory_bytes: int = 32 * _MIB
    metrics_age_s: float = _DAY_S
    samples_age_s: float = _DAY_S
    changes_age_s: float = 30 * _DAY_S
    dlq_age_s: float = 90 * _DAY_S
    advisory_age_s: float = 30 * _DAY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """One stream; `size` and `age` name fields of `TopologyLimits`."""

    stream: Stream
    about: str
    subjects: tuple[str, ...] = ()
    size: str
    age: str | None = None
    discard: DiscardPolicy = DiscardPolicy.OLD
    duplicate_window_s: float = 120.0
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the stream's configuration."""

    def config(self, limits: TopologyLimits, replicas: int) -> StreamConfig:
        """The whole configuration at `replicas` copies."""
        config = StreamConfig(
            name=self.stream.value,
            description=self.about,
            subjects=list(self.subjects) or None,
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            max_bytes=getattr(limits, self.size),
            max_age=getattr(limits, self.age) if self.age else 0.0,
            discard=self.discard,
            duplicate_window=self.duplicate_window_s,
            num_replicas=replicas,
        ).evolve(**self.fixed)
        if replicas > 1:
            # Acknowledging before the write is for single copies only.
            config = config.evolve(persist_mode=None)
        return config


STREAMS: tuple[StreamSpec, ...] = (
    StreamSpec(
        stream=Stream.METRICS,
        about="What was measured; the newest counts.",
        subjects=subjects_in(Stream.METRICS),
        size="metrics_bytes",
        age="metrics_age_s",
        fixed={"persist_mode": PersistMode.ASYNC, "compression": StoreCompression.S2},
    ),
    StreamSpec(
        stream=Stream.SAMPLES,
        about="Answers tapped for scoring.",
        subjects=subjects_in(Stream.SAMPLES),
        size="samples_bytes",
        age="samples_age_s",
        fixed={"compression": StoreCompression.S2},
    ),
    StreamSpec(
        stream=Stream.CHANGES,
        about="Everything that is decided and done; refuses new messages rather than lose old.",
        subjects=subjects_in(Stream.CHANGES),
        size="changes_bytes",
        age="changes_age_s",
        discard=DiscardPolicy.NEW,
        duplicate_window_s=600.0,
        fixed={"deny_delete": True},
    ),
    StreamSpec(
        stream=Stream.TIMERS,
        about="Message schedules, and what they have fired.",
        subjects=(*subjects_in(Stream.TIMERS), f"{SCHEDULES}.*.*.*"),
        size="timers_bytes",
        duplicate_window_s=600.0,
        # The broker refuses schedules together with "discard new" and needs roll-ups for them.
        fixed={"allow_msg_schedules": True, "allow_msg_ttl": True, "allow_rollup_hdrs": True},
    ),
    StreamSpec(
        stream=Stream.DLQ,
        about="Messages that could not be handled, with their cause.",
        subjects=subjects_in(Stream.DLQ),
        size="dlq_bytes",
        age="dlq_age_s",
        discard=DiscardPolicy.NEW,
        duplicate_window_s=600.0,
    ),
    StreamSpec(
        stream=Stream.ADVISORY,
        about="The broker's own notices of messages given up, terminated or sent back.",
        subjects=ADVISORIES,
        size="advisory_bytes",
        age="advisory_age_s",
    ),
    StreamSpec(
        stream=Stream.CHANGES_REPLAY,
        about="A mirror of CHANGES, for audits and replays.",
        size="changes_bytes",
        age="changes_age_s",
        duplicate_window_s=0.0,
        fixed={"mirror": StreamSource(name=Stream.CHANGES.value)},
    ),
)

_COMPARED = (
    "subjects",
    "retention",
    "storage",
    "max_bytes",
    "max_age",
    "max_msgs",
    "max_msg_size",
    "discard",
    "duplicate_window",
    "num_replicas",
    "deny_delete",
    "allow_msg_schedules",
    "allow_msg_ttl",
    "compression",
    "persist_mode",
    "mirror",
)
_UNSET: dict[str, tuple[object, ...]] = {
    "max_msgs": (None, -1, 0),
    "max_msg_size": (None, -1, 0),
    "compression": (None, "none"),
    "persist_mode": (None, "default", ""),
    "duplicate_window": (None, 0, 0.0),
}
MISSING = "(the whole stream)"


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of one stream that is not as it should be."""

    stream: Stream
    field: str
    wanted: object
    found: object

    @property
    def is_addition(self) -> bool:
        """Whether only subjects are lacking: nothing that is kept changes when they are added."""
        return bool(self._lacking) and set(self._subjects(self.found)) <= set(
            self._subjects(self.wanted)
        )

    @property
    def _lacking(self) -> list[str]:
        return sorted(set(self._subjects(self.wanted)) - set(self._subjects(self.found)))

    def _subjects(self, value: object) -> list[str]:
        return value if self.field == "subjects" and isinstance(value, list) else []

    def __str__(self) -> str:
        if self.field == MISSING:
            return f"{self.stream} is missing"
        if self.is_addition:
            return f"{self.stream} lacks {', '.join(self._lacking)}"
        return f"{self.stream}.{self.field} is {self.found!r}, should be {self.wanted!r}"


async def diff(
    bus: Bus, *, replicas: int | None = None, limits: TopologyLimits | None = None
) -> list[Difference]:
    """What differs on the broker; the number of copies counts only when it is given."""
    found: list[Difference] = []
    for spec in STREAMS:
        info = await _info(bus, spec.stream)
        found.extend(_differences(spec, info, replicas, limits or TopologyLimits()))
    return found


async def apply(
    bus: Bus,
    *,
    replicas: int = 1,
    limits: TopologyLimits | None = None,
    allow_update: bool = False,
) -> list[Difference]:
    """Creates what is missing, and with `allow_update` corrects what drifted; gives what it did.

    Subjects that a newer release adds count as missing, not as drift.

    Raises `Conflict` naming each drifted field when updating is not allowed, or when the broker
    cannot change it in place; `Unavailable` when the broker has no room.
    """
    limits = limits or TopologyLimits()
    differences = await diff(bus, replicas=replicas, limits=limits)
    drifted = [one for one in differences if not (one.field == MISSING or one.is_addition)]
    if drifted and not allow_update:
        raise _drift(drifted, "allow the update: optiinfra topology apply --update")
    for spec in STREAMS:
        mine = [one for one in differences if one.stream is spec.stream]
        if mine:
            await _put(bus, spec.config(limits, replicas), mine)
    return differences


async def require(bus: Bus, *, limits: TopologyLimits | None = None) -> None:
    """Raises `Conflict` naming each drifted field and each missing stream."""
    differences = await diff(bus, limits=limits)
    if differences:
        raise _drift(differences, "run: optiinfra topology apply")


@dataclass(frozen=True, slots=True)
class Kept:
    """The first and the last sequence of a stream (the last is 0 when it never had a message)."""

    first: int
    last: int


async def kept(bus: Bus, stream: Stream) -> Kept:
    """What a stream holds. Raises `Unavailable` when there is none, or no answer."""
    info = await _info(bus, stream)
    if info is None:
        raise Unavailable(f"there is no stream {stream}", hint="run: optiinfra topology apply")
    return Kept(info.state.first_seq, info.state.last_seq)


async def message_at(bus: Bus, stream: Stream, sequence: int) -> RawStreamMsg | None:
    """The message at a sequence; None when there is no message (any more).

    Raises `Unavailable` when there is no such stream.
    """

    async def look() -> RawStreamMsg | None:
        try:
            return await bus.js.get_msg(stream.value, sequence)
        except NotFoundError as missing:
            if missing.err_code == STREAM_NOT_FOUND:
                raise
            return None

    return await bus.ask(look, f"cannot look at message {sequence} of {stream}")


async def message_id(bus: Bus, stream: Stream, sequence: int) -> str | None:
    """The message id at a sequence; None when there is no message (any more)."""
    found = await message_at(bus, stream, sequence)
    return (found.headers or {}).get("Nats-Msg-Id") if found else None


async def last_sequence(bus: Bus, stream: Stream) -> int:
    """The sequence of the stream's last message (0 when it has none).

    Raises `Unavailable` when the broker does not answer or has no such stream.
    """
    info = await _info(bus, stream)
    if info is None:
        raise Unavailable(f"there is no stream {stream}", hint="run: optiinfra topology apply")
    return info.state.last_seq


async def _info(bus: Bus, stream: Stream) -> StreamInfo | None:
    async def look() -> StreamInfo | None:
        try:
            return await bus.js.stream_info(stream.value)
        except NotFoundError:
            return None

    return await bus.ask(look, f"cannot look at the stream {stream}")


async def _put(bus: Bus, config: StreamConfig, because: list[Difference]) -> None:
    create = any(one.field == MISSING for one in because)
    change = bus.js.add_stream if create else bus.js.update_stream

    async def put() -> None:
        try:
            await change(config)
        except (BadRequestError, ServerError) as refused:
            if is_full(refused):
                raise
            raise _refused(because, refused) from refused

    await bus.ask(put, f"cannot write the stream {config.name}")


def _refused(because: list[Difference], refused: APIError) -> Conflict:
    return Conflict(
        f"the broker does not change this in place: {refused.description}; "
        + "; ".join(map(str, because)),
        hint="export what the stream holds, delete it and apply the topology again",
    )


def _drift(differences: list[Difference], hint: str) -> Conflict:
    listed = "; ".join(map(str, differences))
    return Conflict(f"the broker's streams are not as they should be: {listed}", hint=hint)


def _differences(
    spec: StreamSpec, info: StreamInfo | None, replicas: int | None, limits: TopologyLimits
) -> list[Difference]:
    if info is None:
        return [Difference(spec.stream, MISSING, "a stream", None)]
    wanted = spec.config(limits, replicas or info.config.num_replicas or 1)
    pairs = (
        (name, _plain(name, getattr(wanted, name)), _plain(name, getattr(info.config, name)))
        for name in _COMPARED
    )
    return [Difference(spec.stream, name, want, have) for name, want, have in pairs if want != have]


def _plain(name: str, value: object) -> object:
    """A value as both sides write it, so that equal settings compare equal."""
    if name == "mirror":
        return value.name if isinstance(value, StreamSource) else None
    if name == "subjects":
        return sorted(value) if isinstance(value, list) else []
    value = getattr(value, "value", value)
    if value in _UNSET.get(name, ()):
        return None
    return False if value is None and name not in _UNSET else value
