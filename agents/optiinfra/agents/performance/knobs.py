"""Which knobs of an engine are worth turning for a cause, and between which values; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.tuning import KnobValue
from optiinfra.serving.bottleneck_table import Cause
from optiinfra.serving.engine_rules import Severity
from optiinfra.serving.engines import EngineConfig
from optiinfra.serving.launch import problems
from optiinfra.serving.predictions import Prediction, Replica, candidates
from optiinfra.serving.simulation import Arrival

Point = tuple[int, ...]
"""One configuration of a space: for each knob the place of its value among the choices."""

_LEAST_SEQS, _MOST_SEQS = 8, 1024
"""Above 1,024 requests no replica of the shipped perf cards keeps a TPOT of 50 ms."""
_LEAST_STEP_TOKENS, _MOST_STEP_TOKENS = 512, 32_768
"""512 is vLLM's oldest default with chunked prefill; activations of longer steps eat the cache."""
_MEMORY_FRACTIONS = (0.85, 0.88, 0.9, 0.92, 0.94, 0.96)
_KV_DTYPES = {Engine.VLLM: ("auto", "fp8"), Engine.SGLANG: ("auto", "fp8_e4m3")}

ENGINE_DEFAULTS: dict[Engine, dict[str, KnobValue]] = {
    Engine.VLLM: {
        "max_num_seqs": 256, "max_num_batched_tokens": 2048, "gpu_memory_fraction": 0.9,
        "kv_cache_dtype": "auto", "kv_block_tokens": 16, "prefix_caching": True,
        "chunked_prefill": True,
    },
    Engine.SGLANG: {
        "max_num_seqs": 256, "chunked_prefill_tokens": 8192, "gpu_memory_fraction": 0.88,
        "kv_cache_dtype": "auto", "kv_block_tokens": 1, "prefix_caching": True,
        "mixed_chunk": False,
    },
}  # fmt: skip
"""Where a search begins for a knob that is not set. Some engines choose by GPU and version (both
batch limits, SGLang's memory): whoever knows what it runs with passes that."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One knob: its values in order, the one it has, and the one that the cause asks for."""

    name: str
    choices: tuple[KnobValue, ...]
    present: KnobValue
    bold: KnobValue


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Knobs to turn and the `points` that the engine starts with; none, and then a `reason`."""

    now: EngineConfig
    knobs: tuple[Knob, ...] = ()
    points: tuple[Point, ...] = ()
    reason: str = ""

    @property
    def present(self) -> dict[str, KnobValue]:
        """The knobs as they are."""
        return {knob.name: knob.present for knob in self.knobs}

    @property
    def bold(self) -> dict[str, KnobValue]:
        """The step that the cause asks for, or what comes nearest of what the engine takes."""
        if not self.points:
            return {}
        return self.values(nearest(self._place({k.name: k.bold for k in self.knobs}), self.points))

    def values(self, point: Point) -> dict[str, KnobValue]:
        """The knobs of a point by name."""
        return {k.name: k.choices[i] for k, i in zip(self.knobs, point, strict=True)}

    def point(self, values: Mapping[str, KnobValue]) -> Point:
        """The point with these values. Raises `Rejected` where the space has none."""
        known = set(values) == {k.name for k in self.knobs}
        if known and all(values[k.name] in k.choices for k in self.knobs):
            point = self._place(values)
            if point in self.points:
                return point
        raise Rejected(f"{dict(values)} is not in the search space", hint="take one of its points")

    def config(self, values: Mapping[str, KnobValue]) -> EngineConfig:
        """`now` with these values; what stays as it is stays unset where it was unset."""
        return _turned(self.now, self.knobs, values)

    def neighbours(self, point: Point) -> tuple[Point, ...]:
        """Points that differ by one step of one knob."""
        return tuple(p for p in self.points if distance(p, point) == 1)

    def _place(self, values: Mapping[str, KnobValue]) -> Point:
        return tuple(k.choices.index(values[k.name]) for k in self.knobs)


def space_for(
    cause: Cause,
    now: EngineConfig,
    *,
    version: str | None = None,
    effective: Mapping[str, KnobValue] | None = None,
) -> SearchSpace:
    """The knobs that bind for `cause`, around what the engine runs with.

    `effective` are values that the engine chose itself, where they are known. Combinations that
    `version` refuses to start with are left out, and knobs that it would ignore.
    """
    if cause in _NOT_BY_KNOBS:
        return SearchSpace(now, reason=_NOT_BY_KNOBS[cause])
    runs_with = {**ENGINE_DEFAULTS[now.engine], **(effective or {}), **now.knobs()}
    found = [
        knob
        for make in _KNOBS[cause]
        if (knob := make(now.engine, runs_with)) is not None and len(knob.choices) > 1
    ]
    return _allowed(now, tuple(k for k in found if not _is_ignored(now, k, version)), version)


def predicted_best(
    space: SearchSpace,
    replica: Replica,
    arrivals: Sequence[Arrival],
    limits: tuple[float, float],
) -> dict[str, KnobValue] | None:
    """The point that the performance model finds fastest inside p95 (TTFT, TPOT) `limits`, s.

    None where it finds none inside them, or does not stand for any of the points.
    """
    by_config = {space.config(v): v for v in map(space.values, space.points)}
    for one in candidates(replica, by_config, arrivals, limits):
        if one.config is not None and isinstance(one.predicted, Prediction):
            return by_config[one.config] if one.predicted.meets(limits) else None
    return None


def distance(one: Point, other: Point) -> int:
    """Steps from one point to another, over all knobs."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def nearest(wanted: Point, points: Iterable[Point]) -> Point:
    """The point that is the fewest steps away; of several the first."""
    return min(points, key=partial(distance, wanted))


def _allowed(now: EngineConfig, knobs: tuple[Knob, ...], version: str | None) -> SearchSpace:
    if refused := _refusals(now, version):
        return SearchSpace(now, reason=f"what it runs with would not start: {refused[0]}")
    every = SearchSpace(now, knobs, tuple(product(*(range(len(k.choices)) for k in knobs))))
    points = tuple(p for p in every.points if not _refusals(every.config(every.values(p)), version))
    if len(points) > 1:
        return SearchSpace(now, knobs, points)
    return SearchSpace(now, reason=f"{now.engine.value} has no knob to turn for this cause")


def _turned(
    now: EngineConfig, knobs: Iterable[Knob], values: Mapping[str, KnobValue]
) -> EngineConfig:
    changes = {k.name: values[k.name] for k in knobs if values[k.name] != k.present}
    return type(now).model_validate({**now.model_dump(), **changes})


def _refusals(config: EngineConfig, version: str | None) -> list[str]:
    return [p.reason for p in problems(config, version) if p.severity is Severity.REFUSED]


def _is_ignored(now: EngineConfig, knob: Knob, version: str | None) -> bool:
    """Whether the engine would start with another value of this knob and not heed it."""
    other = next(value for value in knob.choices if value != knob.present)
    ignored = problems(_turned(now, (knob,), {knob.name: other}), version)
    return any(p.severity is Severity.IGNORED and knob.name in p.knobs for p in ignored)


RunsWith = Mapping[str, KnobValue]


def _doubled(
    name: str, bounds: tuple[int, int], span: tuple[int, int], leap: int,
    _: Engine, runs_with: RunsWith,
) -> Knob | None:  # fmt: skip
    """Powers of two inside `bounds`, `span` doublings down and up; the bold one is `leap` away."""
    present = runs_with.get(name)
    if not isinstance(present, int) or present < 1:
        return None
    low = max(bounds[0], present / 2 ** span[0])
    high = min(bounds[1], present * 2 ** span[1])
    choices = tuple(sorted({present, *(2**k for k in range(16) if low <= 2**k <= high)}))
    at = min(max(0, choices.index(present) + leap), len(choices) - 1)
    return Knob(name, choices, present, choices[at])


def _on(name: str, _: Engine, runs_with: RunsWith) -> Knob | None:
    """A switch that the cause asks to be on."""
    return (
        Knob(name, (False, True), present=False, bold=True)
        if runs_with.get(name) is False
        else None
    )


def _memory(_: Engine, runs_with: RunsWith) -> Knob:
    """More of the GPU's memory; too much ends the engine at its start, and is told as failed."""
    present = runs_with["gpu_memory_fraction"]
    choices = (present, *(value for value in _MEMORY_FRACTIONS if value > float(present)))
    return Knob("gpu_memory_fraction", choices, present, choices[len(choices) // 2])


def _kv_dtype(engine: Engine, runs_with: RunsWith) -> Knob | None:
    """Half as many bytes a token. Whether the answers stay as good is the quality gate's matter."""
    choices = _KV_DTYPES[engine]
    is_small = runs_with["kv_cache_dtype"] != choices[0]
    return None if is_small else Knob("kv_cache_dtype", choices, *choices)


_SEQS, _TOKENS = (_LEAST_SEQS, _MOST_SEQS), (_LEAST_STEP_TOKENS, _MOST_STEP_TOKENS)
_more_seqs = partial(_doubled, "max_num_seqs", _SEQS, (1, 7), 2)
_fewer_seqs = partial(_doubled, "max_num_seqs", _SEQS, (3, 1), -1)
_same_seqs = partial(_doubled, "max_num_seqs", _SEQS, (2, 2), 0)
_step_tokens = partial(_doubled, "max_num_batched_tokens", _TOKENS, (2, 3), 0)
_more_step_tokens = partial(_doubled, "max_num_batched_tokens", _TOKENS, (2, 4), 2)
_piece_tokens = partial(_doubled, "chunked_prefill_tokens", _TOKENS, (2, 2), 1)
_smaller_blocks = partial(_doubled, "kv_block_tokens", (1, 64), (2, 0), -1)

_KNOBS = {
    Cause.SCHEDULER_CAP: (_more_seqs, _step_tokens),
    Cause.KV_CAPACITY: (_memory, _kv_dtype, _same_seqs),
    Cause.PREEMPTION: (_memory, _kv_dtype, _fewer_seqs),
    Cause.PREFIX_MISSES: (partial(_on, "prefix_caching"), _smaller_blocks, _memory),
    Cause.COMPUTE: (
        _more_step_tokens, partial(_on, "chunked_prefill"),
        _piece_tokens, partial(_on, "mixed_chunk"),
    ),
    Cause.MEMORY_BANDWIDTH: (_fewer_seqs, _kv_dtype),
}  # fmt: skip

_NOT_BY_KNOBS = {
    Cause.QUEUE: "the replica is used up: more replicas are the remedy, not its knobs",
    Cause.NETWORK: "the time passes outside the engine: none of its knobs shortens it",
    Cause.NONE: "it is inside its objectives: there is nothing to gain",
    Cause.UNKNOWN: "what binds it is not known: turning knobs would be guessing",
}
