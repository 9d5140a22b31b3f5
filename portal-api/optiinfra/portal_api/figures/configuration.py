"""The whole configuration before and after a change, as a unified diff; unknown says so."""

from __future__ import annotations

from difflib import unified_diff
from typing import Any

from optiinfra.portal_api.figures.seen import Seen
from optiinfra.portal_api.measures import SPEND
from optiinfra.schemas.deployment import Deployment, Engine
from optiinfra.schemas.recommendation import (
    CommitmentPurchase,
    Consolidation,
    GateTightening,
    IdleShutdown,
    Placement,
    PredictiveScaling,
    Quantisation,
    Recommendation,
    RevertChange,
    RightSizing,
    SpotMigration,
    SpotReplacement,
)
from optiinfra.serving.engines import EngineSettings, SglangConfig, VllmConfig

UNKNOWN = "unknown"
Lines = dict[str, Any]
_SETTINGS: dict[Engine, type[EngineSettings]] = {
    Engine.VLLM: VllmConfig,
    Engine.SGLANG: SglangConfig,
}
_OF_US = {"id", "tenant"}
_NO_KNOBS = {"engine", "model", "served_model_name", "host", "port", "extra_arguments"}
_PLACED = ("provider", "instance_type", "region", "zone", "market", "fallback_market")
_KNOB_OF = {"dtype": "kv_cache_dtype", "block_tokens": "kv_block_tokens"}
"""The knobs that a change of the KV cache calls by a shorter name."""


def configuration_diff(
    proposal: Recommendation, deployment: Deployment | None, seen: Seen | None
) -> str:
    """Every line of the configuration, those that change with `-` and `+`.

    `deployment` is what is declared, `seen` what telemetry tells of the replicas; None of either
    leaves its lines unknown.
    """
    now = {
        **_declared(proposal, deployment),
        **_engine(proposal, deployment),
        **_replicas(proposal, seen),
    }
    before, after = _changed(proposal, now)
    old, new = _written(before), _written(after)
    context = max(len(old), len(new))
    return "\n".join(unified_diff(old, new, "now", "after", n=context, lineterm=""))


def _declared(proposal: Recommendation, deployment: Deployment | None) -> Lines:
    if deployment is None:
        names = [name for name in Deployment.model_fields if name not in _OF_US]
        return {"deployment": proposal.deployment, **dict.fromkeys(names, UNKNOWN)}
    told = deployment.model_dump(mode="json", exclude=_OF_US)
    return {"deployment": proposal.deployment, **_flat(told)}


def _engine(proposal: Recommendation, deployment: Deployment | None) -> Lines:
    """The knobs of the engine: known are those of the first trial, which is the present."""
    settings = _SETTINGS.get(deployment.engine, EngineSettings) if deployment else EngineSettings
    present = proposal.curve[0].knobs if proposal.curve else {}
    names = [*(name for name in settings.model_fields if name not in _NO_KNOBS), *present]
    return {f"engine.{name}": present.get(name, UNKNOWN) for name in dict.fromkeys(names)}


def _replicas(proposal: Recommendation, seen: Seen | None) -> Lines:
    """Those that telemetry or the proposal names; telemetry tells the instance and its market."""
    named = {*getattr(proposal.spec, "replicas", ()), *(seen.replicas if seen else ())}
    lines: Lines = {}
    for name in sorted(named):
        prices = seen.of(SPEND, replica=name) if seen else []
        labels = max(prices, key=lambda row: row.last_at).labels if prices else {}
        lines |= {f"replica {name}.{part}": labels.get(part) or UNKNOWN for part in _PLACED[:-1]}
    return lines


def _changed(proposal: Recommendation, now: Lines) -> tuple[Lines, Lines]:
    """The lines before, with what the change itself tells of the present, and after."""
    spec = proposal.spec
    match spec:
        case SpotMigration() | SpotReplacement():
            return now, now | _placed(spec.replicas, spec.to)
        case RightSizing():
            new = [f"new {number}" for number in range(1, spec.count + 1)]
            return now, _without(now, spec.replicas) | _placed(new, spec.to)
        case IdleShutdown() | Consolidation():
            kept = getattr(spec, "onto", ())
            return now, _without(now, [name for name in spec.replicas if name not in kept])
        case CommitmentPurchase():
            bought = spec.model_dump(mode="json", exclude={"kind"})
            return now, now | {f"new commitment.{name}": value for name, value in bought.items()}
        case PredictiveScaling():
            return (
                now | {"replicas": spec.from_replicas},
                now | {"replicas": spec.to_replicas},
            )
        case Quantisation():
            before = now | {"engine.precision": spec.from_precision.value}
            after = before | {"engine.precision": spec.to_precision.value}
            if spec.weights is None:
                return before, after
            return before | {"engine.weights": UNKNOWN}, after | {"engine.weights": spec.weights}
        case GateTightening():
            return now, now | {"quality.max_relative_drop": spec.max_relative_drop}
        case RevertChange():
            line = f"change {spec.change}"
            return now | {line: "in force"}, now | {line: "undone"}
        case _:
            knobs = spec.model_dump(mode="json", exclude={"kind"}, exclude_none=True)
            to = {f"engine.{_KNOB_OF.get(name, name)}": value for name, value in knobs.items()}
            return dict.fromkeys(to, UNKNOWN) | now, now | to


def _placed(replicas: Any, to: Placement) -> Lines:
    told = to.model_dump(mode="json", exclude_none=True)
    return {
        f"replica {name}.{part}": told[part]
        for name in replicas
        for part in _PLACED
        if part in told
    }


def _without(now: Lines, replicas: Any) -> Lines:
    gone = tuple(f"replica {name}." for name in replicas)
    return {name: value for name, value in now.items() if not name.startswith(gone)}


def _flat(value: Lines, prefix: str = "") -> Lines:
    lines: Lines = {}
    for name, part in value.items():
        lines |= _flat(part, f"{name}.") if isinstance(part, dict) else {f"{prefix}{name}": part}
    return lines


def _written(lines: Lines) -> list[str]:
    """Sorted, so that a line that stays stands at the same place on both sides."""
    return [f"{name}: {_said(value)}" for name, value in sorted(lines.items())]


def _said(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case _:
            return str(value)
