"""The story's cast: three deployments, what they are asked, how fast things go, who may do what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from optiinfra.demo.cloud import CloudPlan, FleetPlan
from optiinfra.demo.load import LoadPlan, Stream
from optiinfra.demo.machines import EngineSpec
from optiinfra.demo.trace import Mix
from optiinfra.runtime.fleet import Fleet
from optiinfra.schemas.base import Value

TENANT = "demo"
REGION = "us-east-2"
NOWHERE_PORT = 9
"""The discard port: a machine whose engine has not registered itself is found silent there."""
WRONG_ANSWERS = 0.6
"""Share of answers that the faulty spot machines of play (b) take from elsewhere."""


class Play(StrEnum):
    """The four plays, by the letter that `--play` takes."""

    MIGRATION = "migration"
    REGRESSION = "regression"
    VETO = "veto"
    RECLAIM = "reclaim"


LETTERS = {
    "a": (Play.MIGRATION,),
    "b": (Play.REGRESSION,),
    "c": (Play.VETO,),
    "d": (Play.MIGRATION, Play.RECLAIM),
    "all": tuple(Play),
}
"""What each choice plays; a reclaim needs the migration before it."""


@dataclass(frozen=True, slots=True)
class Role:
    """One deployment of the story."""

    deployment: str
    model: str
    card: str
    instance_type: str
    replicas: int
    mix: Mix
    slo: tuple[float, float]
    """p95 of TTFT and TPOT, s."""


_CHATTY = Mix(
    rate_rps=2.0,
    prompt_scale=0.25,
    prompt_bounds=(80, 600),
    output_scale=0.2,
    output_bounds=(8, 80),
)
_LONG = Mix(
    rate_rps=2.8,
    prompt_scale=0.4,
    prompt_bounds=(80, 900),
    output_scale=0.15,
    output_bounds=(8, 50),
)

CHAT = Role("chat", "llama-8b-chat", "l40s-8b-fp8-tp1", "g6e.xlarge", 2, _CHATTY, (1.5, 0.15))
ASSIST = Role("assist", "llama-8b-assist", "l40s-8b-fp8-tp1", "g6e.xlarge", 2, _CHATTY, (1.5, 0.15))
SEARCH = Role("search", "llama-8b-search", "a10g-8b-fp16-tp1", "g5.xlarge", 2, _LONG, (1.2, 0.2))
"""Long prompts on small GPUs: two replicas carry the load with little room, one cannot."""

STAGE_OF = {
    Play.MIGRATION: CHAT,
    Play.REGRESSION: ASSIST,
    Play.VETO: SEARCH,
    Play.RECLAIM: CHAT,
}


def cast(plays: Sequence[Play]) -> tuple[Role, ...]:
    """The deployments that these plays need."""
    return tuple(dict.fromkeys(STAGE_OF[play] for play in plays))


class Pace(Value):
    """How fast the story goes; s."""

    soak_s: float
    look_every_s: float
    window_s: float
    sense_every_s: float
    load_step_s: float
    baseline_every_s: float
    revote_after_s: float
    notice_s: float
    epilogue_s: float
    patience_s: float


FAST = Pace(
    soak_s=3.0,
    look_every_s=1.0,
    window_s=15.0,
    sense_every_s=2.0,
    load_step_s=2.0,
    baseline_every_s=60.0,
    revote_after_s=2.0,
    notice_s=25.0,
    epilogue_s=5.0,
    patience_s=540.0,
)
CALM = Pace(
    soak_s=30.0,
    look_every_s=5.0,
    window_s=60.0,
    sense_every_s=5.0,
    load_step_s=5.0,
    baseline_every_s=120.0,
    revote_after_s=5.0,
    notice_s=120.0,
    epilogue_s=20.0,
    patience_s=1740.0,
)


def cloud_plan(plays: Sequence[Play], *, seed: int, log_dir: Path) -> CloudPlan:
    """The simulated region with the fleets of the cast."""
    return CloudPlan(
        tenant=TENANT,
        region=REGION,
        seed=seed,
        log_dir=log_dir,
        fleets=tuple(
            FleetPlan(
                engine=EngineSpec(
                    deployment=role.deployment, model=role.model, card=role.card, seed=seed
                ),
                instance_type=role.instance_type,
                replicas=role.replicas,
            )
            for role in cast(plays)
        ),
    )


def load_plan(plays: Sequence[Play], *, seed: int, gateway_url: str) -> LoadPlan:
    """What the users of the cast ask."""
    return LoadPlan(
        gateway_url=gateway_url,
        seed=seed,
        streams=tuple(
            Stream(deployment=role.deployment, model=role.model, mix=role.mix)
            for role in cast(plays)
        ),
    )


def fleet_file(
    plays: Sequence[Play], pace: Pace, *, endpoint_url: str, queue_url: str
) -> dict[str, Any]:
    """The fleet file, as a person would write it for these deployments."""
    content = {
        "tenant": TENANT,
        "mode": "act",
        "clouds": {
            "aws": {
                "regions": [REGION],
                "endpoint_url": endpoint_url,
                "interruption_queue_url": queue_url,
                "engine_port": NOWHERE_PORT,
            }
        },
        "deployments": [_declared(role) for role in cast(plays)],
        "rules": _rules(pace),
        "timing": _timing(pace),
        "sample_fraction": 0.5,
    }
    Fleet.model_validate(content)
    return content


def replay_file(plays: Sequence[Play]) -> dict[str, Any]:
    """A fleet file to look at a kept home with: it observes, and needs no cloud."""
    engine = ("python", "-m", "optiinfra.twin.emulator", "--port", "{port}", "--model", "{model}")
    content = {
        "tenant": TENANT,
        "mode": "observe",
        "clouds": {"local": {"command": list(engine)}},
        "deployments": [
            {"id": role.deployment, "model": role.model, "provider": "local"}
            for role in cast(plays)
        ],
    }
    Fleet.model_validate(content)
    return content


def _declared(role: Role) -> dict[str, Any]:
    ttft_s, tpot_s = role.slo
    return {
        "id": role.deployment,
        "model": role.model,
        "provider": "aws",
        "perf_card": role.card,
        "slo": {"ttft_p95_s": ttft_s, "tpot_p95_s": tpot_s},
        "interruptible": True,
        "min_replicas": 1,
        "failure_tolerance": 1,
    }


def _rules(pace: Pace) -> dict[str, Any]:
    """A person approves everything but the replacement of what is being reclaimed anyway."""
    return {
        "name": "demo",
        "max_moving": 2,
        "max_vote_rounds": 40,
        "revote_after_s": pace.revote_after_s,
        "retry_turn_s": pace.revote_after_s,
        "approvals": [{"name": "replace-reclaimed", "kinds": ["spot_replacement"]}],
    }


def _timing(pace: Pace) -> dict[str, Any]:
    return {
        "sense_every_s": pace.sense_every_s,
        "heartbeat_s": 5.0,
        "stage_shares": [0.1, 0.5, 1.0],
        "stage_soak_s": [pace.soak_s] * 3,
        "hold_limit_s": 120.0,
        "look_every_s": pace.look_every_s,
        "apply_timeout_s": 60.0,
        "drain_timeout_s": 30.0,
        "window_s": pace.window_s,
        "golden_per_look": 48,
        "baseline_every_s": pace.baseline_every_s,
        "min_gate_samples": 20,
        "load_step_s": pace.load_step_s,
        "start_up_s": 30.0,
    }
