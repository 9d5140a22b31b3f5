"""An answer that the gateway has tapped for scoring."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import DeploymentId, ReplicaId, TenantId, UuidHex

MAX_STRATUM_CHARS = 64


class AnswerSample(Value):
    """One request with its whole answer, as a client got it; kept 24 h.

    `unit` names the session (one session always meets the same arm), so that samples of one
    session count as one unit of the quality test. `stratum` is the kind of work that the client
    named, empty when it named none: the test compares answers of one kind only with one another.
    `ok` is False when the engine failed.
    """

    id: UuidHex
    tenant: TenantId
    deployment: DeploymentId
    replica: ReplicaId
    unit: str
    stratum: str = Field(default="", max_length=MAX_STRATUM_CHARS)
    prompt: str
    answer: str
    ok: bool
    finish_reason: str | None = None
    prompt_tokens: int | None = Field(default=None, ge=0)
    output_tokens: int | None = Field(default=None, ge=0)
    ttft_s: float | None = Field(default=None, ge=0)
    tpot_s: float | None = Field(default=None, ge=0)
    route_version: int = Field(ge=0)
    at: AwareDatetime
