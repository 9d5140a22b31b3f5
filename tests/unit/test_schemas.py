"""The values everyone speaks in: what they refuse, and what they compute."""

from __future__ import annotations

from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from optiinfra.schemas.base import Value
from optiinfra.schemas.change import (
    TARGET_HOLDING_STATES,
    TERMINAL_STATES,
    ChangeState,
    ControlVerb,
    Phase,
)
from optiinfra.schemas.deployment import Deployment, QualityFloor
from optiinfra.schemas.errors import (
    Conflict,
    Denied,
    Invariant,
    NotFound,
    OptiInfraError,
    Rejected,
    Unavailable,
)
from optiinfra.schemas.execution import Intent
from optiinfra.schemas.ids import EventId, TenantId, derived_id, token, uuid7
from optiinfra.schemas.money import Interval
from optiinfra.schemas.recommendation import (
    ChangeSpec,
    Precision,
    Quantisation,
    Recommendation,
    Risk,
    StagePlan,
)
from optiinfra.schemas.rollout import GateVerdict, Step
from optiinfra.schemas.routing import Backend, RouteTable
from optiinfra.schemas.telemetry import Known, Reading, Unknown, UnknownReason, is_known
from optiinfra.schemas.tenant import Role, person, policy
from optiinfra.schemas.tuning import TrialOutcome, TuningTrial
from optiinfra.schemas.vote import VOTERS, AgentName
from tests.factories import recommendation


class Point(Value):
    x: int


def test_values_are_frozen_and_refuse_what_they_do_not_know() -> None:
    point = Point(x=1)
    with pytest.raises(ValidationError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Point.model_validate({"x": 1, "y": 2})


def test_an_error_says_what_to_do_about_it() -> None:
    assert str(Rejected("bad name", hint="use letters")) == "bad name (use letters)"
    assert str(Conflict("moved on")) == "moved on"
    assert Unavailable("away", 3.0).retry_after_s == 3.0
    assert issubclass(NotFound, Rejected)
    assert issubclass(Denied, Rejected)
    assert issubclass(Invariant, OptiInfraError)


def test_states_that_end_a_change_hold_no_target() -> None:
    assert not TERMINAL_STATES & TARGET_HOLDING_STATES
    for state in ChangeState:
        assert state.is_terminal == (state in TERMINAL_STATES)
        assert state.holds_target == (state in TARGET_HOLDING_STATES)
    assert Phase("soaking") is Phase.SOAKING
    assert ControlVerb("abort") is ControlVerb.ABORT


@given(st.integers(0, (1 << 48) - 1), st.integers(0, (1 << 74) - 1))
def test_a_uuid7_carries_its_time_version_and_variant(unix_ms: int, bits: int) -> None:
    made = UUID(uuid7(unix_ms, bits))
    assert made.int >> 80 == unix_ms
    assert (made.version, made.variant) == (7, "specified in RFC 4122")


@given(st.integers(0, (1 << 48) - 2), st.integers(0, (1 << 74) - 1))
def test_later_uuid7s_sort_later(unix_ms: int, bits: int) -> None:
    assert uuid7(unix_ms, bits) < uuid7(unix_ms + 1, 0)


def test_a_time_outside_of_48_bits_is_refused() -> None:
    for unix_ms in (-1, 1 << 48):
        with pytest.raises(Rejected):
            uuid7(unix_ms, 0)


def test_ids_are_single_lower_case_tokens() -> None:
    assert token("team-a_1") == "team-a_1"
    for bad in ("", "A", "a.b", "a b", "*", ">", "-a", "x" * 64):
        with pytest.raises(Rejected):
            token(bad)
        with pytest.raises(ValidationError):
            TypeAdapter(TenantId).validate_python(bad)
    ids: TypeAdapter[str] = TypeAdapter(EventId)
    assert ids.validate_python(derived_id("x")) == derived_id("x")
    space = UUID("6f1c1f0e-9c58-5b0e-8f6e-2f9f3a0d7b11")
    assert derived_id("é", 7) == uuid5(space, "é\x1f7").hex
    with pytest.raises(ValidationError):
        ids.validate_python("not-a-uuid")


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3).map(sorted), st.floats(-10, 10))
def test_an_interval_stays_ordered_when_scaled_or_capped(
    bounds: list[float], factor: float
) -> None:
    low, mid, high = bounds
    interval = Interval(low=low, mid=mid, high=high)
    scaled, capped = interval.scaled(factor), interval.capped(factor)
    assert scaled.low <= scaled.mid <= scaled.high
    assert capped.low <= capped.mid <= capped.high <= max(factor, high)


def test_an_interval_out_of_order_is_refused() -> None:
    with pytest.raises(ValidationError, match="not ordered"):
        Interval(low=2.0, mid=1.0, high=3.0)


def test_unknown_is_a_value_and_never_a_number() -> None:
    readings: TypeAdapter[Known | Unknown] = TypeAdapter(Reading)
    assert is_known(readings.validate_python({"state": "known", "value": 0.0}))
    unknown = readings.validate_python({"state": "unknown", "reason": "stale"})
    assert not is_known(unknown)
    assert unknown == Unknown(reason=UnknownReason.STALE)
    with pytest.raises(ValidationError):
        readings.validate_python({"state": "known", "value": float("nan")})


def test_every_kind_of_change_is_told_by_its_tag() -> None:
    specs: TypeAdapter[BaseModel] = TypeAdapter(ChangeSpec)
    spec = specs.validate_python({"kind": "idle_shutdown", "replicas": ["chat-1"]})
    assert type(spec).__name__ == "IdleShutdown"
    with pytest.raises(ValidationError):
        specs.validate_python({"kind": "wishful_thinking"})
    with pytest.raises(ValidationError):
        specs.validate_python({"replicas": ["chat-1"]})


def test_risks_are_ranked() -> None:
    assert [risk.rank for risk in (Risk.LOW, Risk.MEDIUM, Risk.HIGH, Risk.CRITICAL)] == [0, 1, 2, 3]


def test_the_version_hash_changes_with_anything_in_the_proposal() -> None:
    proposal = recommendation()
    assert proposal.version_hash == recommendation().version_hash
    assert proposal.version_hash != recommendation(title="other").version_hash
    assert len(proposal.version_hash) == 16


def test_an_approval_of_the_last_release_still_fits_its_proposal() -> None:
    """Hashes that release 0.1.0 gave: fields that came later must not change them."""
    converted = Quantisation(from_precision=Precision.FP16, to_precision=Precision.FP8)
    assert recommendation().version_hash == "faaad46d725472e8"
    assert recommendation(spec=converted).version_hash == "45d4f0e7adcde6a5"
    weights = recommendation(spec=converted.model_copy(update={"weights": "chat-fp8"}))
    curve = (TuningTrial(knobs={"max_num_seqs": 8}, outcome=TrialOutcome.COMPLETE),)
    hashes = {weights.version_hash, recommendation(curve=curve).version_hash}
    assert len(hashes | {"faaad46d725472e8", "45d4f0e7adcde6a5"}) == 4


def test_a_deep_copy_shares_nothing() -> None:
    first = TuningTrial(knobs={"max_num_seqs": 8}, outcome=TrialOutcome.COMPLETE)
    deep = first.model_copy(deep=True, update={"served": 3})
    assert (deep.knobs, deep.served) == (first.knobs, 3)
    assert deep.knobs is not first.knobs
    assert first.model_copy().knobs is first.knobs


def test_a_throughput_is_that_of_a_whole_replay() -> None:
    whole = TuningTrial(knobs={}, outcome=TrialOutcome.COMPLETE, tokens_per_s=Known(value=9.0))
    assert whole.throughput == 9.0
    assert whole.model_copy(update={"outcome": TrialOutcome.PRUNED}).throughput is None
    assert TuningTrial(knobs={}, outcome=TrialOutcome.COMPLETE).throughput is None


def test_shares_and_stages_are_bounded() -> None:
    for share in (0.0, 1.1):
        with pytest.raises(ValidationError):
            StagePlan(share=share, soak_s=0, hold_limit_s=1)
    with pytest.raises(ValidationError):
        Step.model_validate({"kind": "apply", "stage": -1, "share": 0.1})
    assert GateVerdict("hold") is GateVerdict.HOLD


def test_an_intent_is_frozen() -> None:
    step = Step.model_validate({"kind": "apply", "stage": 0, "share": 0.1})
    intent = Intent(
        change=derived_id("c"), step=step, fence=1, captured={}, result=None, fresh=True
    )
    with pytest.raises(AttributeError):
        intent.fence = 2  # type: ignore[misc]


def test_a_replica_stands_once_in_a_route_table() -> None:
    backend = Backend(replica="chat-1", url="http://127.0.0.1:1", weight=1.0)
    table = RouteTable(tenant="acme", deployment="chat", model="m", backends=(backend,))
    assert table.backends == (backend,)
    with pytest.raises(ValidationError, match="stands twice"):
        RouteTable(tenant="acme", deployment="chat", model="m", backends=(backend, backend))


def test_a_role_may_do_what_those_before_it_may() -> None:
    assert Role.ADMIN.includes(Role.VIEWER)
    assert Role.VIEWER.includes(Role.VIEWER)
    assert not Role.OPERATOR.includes(Role.APPROVER)
    assert (str(person("ada")), str(policy("auto"))) == ("person:ada", "policy:auto")


def test_the_proposer_has_no_vote_and_deployments_act_only_when_told_to() -> None:
    assert AgentName.COST not in VOTERS
    deployment = Deployment.model_validate(
        {"id": "chat", "tenant": "acme", "model": "m", "gateway_url": "http://127.0.0.1:1"}
    )
    assert deployment.acting is False
    assert deployment.quality == QualityFloor(max_relative_drop=0.05)


def test_a_copy_has_a_version_of_its_own() -> None:
    one = recommendation()
    assert one.version_hash == recommendation().version_hash
    other = one.model_copy(update={"title": "another"})
    assert other.version_hash != one.version_hash
    assert other.version_hash == recommendation(title="another").version_hash
    assert one == recommendation()
    assert one.model_copy(update={"title": one.title}) == one


def test_of_the_class_what_is_kept_is_the_property() -> None:
    assert getattr(Recommendation, "version_hash") is vars(Recommendation)["version_hash"]  # noqa: B009
