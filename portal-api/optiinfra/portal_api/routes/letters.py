"""Dead letters: what could not be handled, sent again or dropped by an operator."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from optiinfra.portal_api.auth import Auditor, LetterKeeper, Ports
from optiinfra.portal_api.paging import Paged, PageOf
from optiinfra.portal_api.routes.recommendations import IdempotencyKey, Name
from optiinfra.portal_api.views import DealtView, LetterDetail, LetterView
from optiinfra.schemas.tenant import person
from optiinfra.storage.letters import Letter, Wanted
from optiinfra.storage.postgres.access import Principal
from optiinfra.storage.postgres.letters import Done, LetterState, Order
from optiinfra.storage.postgres.queries import Row

router = APIRouter(tags=["dead letters"])
Number = Annotated[int, Path(ge=1, lt=1 << 63, description="its number in the list")]


class RetryBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=2_000)


class DropBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=2_000)


@router.get("/dead-letters")
async def dead_letters(
    who: Auditor,
    ports: Ports,
    paging: Paged,
    state: LetterState | None = None,
    consumer: Name = None,
    cause: Annotated[str | None, Query(max_length=63, description="as `Rejected`")] = None,
    since: AwareDatetime | None = None,
) -> PageOf[LetterView]:
    """In the order in which they were buried, with what was done with each."""
    page = paging.page(int)
    wanted = Wanted(consumer, cause, since, state, who.tenant)
    after = page.after[0] if page.after else 0
    found = await ports.letters.ls(wanted, after=after, limit=page.limit)
    return paging.of([one.told() for one in found], _view, ("number",))


@router.get("/dead-letters/{number}")
async def dead_letter(number: Number, who: Auditor, ports: Ports) -> LetterDetail:
    """One, with the body and the headers of its message."""
    letter = await ports.letters.show(number, tenant=who.tenant)
    return LetterDetail.model_validate(letter.told())


@router.post("/dead-letters/{number}/retry")
async def retry_letter(
    number: Number,
    who: LetterKeeper,
    ports: Ports,
    body: RetryBody,
    idempotency_key: IdempotencyKey = None,
) -> DealtView:
    """Sends the message again, as it was; a letter once. Consumers that know it do nothing."""
    letter = await ports.letters.show(number, tenant=who.tenant)
    done = await ports.letters.retry(letter, _order(who, body.reason, idempotency_key))
    return _dealt(letter, done)


@router.post("/dead-letters/{number}/drop")
async def drop_letter(
    number: Number,
    who: LetterKeeper,
    ports: Ports,
    body: DropBody,
    idempotency_key: IdempotencyKey = None,
) -> DealtView:
    """Says that nothing more is to come of it; nothing is sent."""
    letter = await ports.letters.show(number, tenant=who.tenant)
    done = await ports.letters.drop(letter, _order(who, body.reason, idempotency_key))
    return _dealt(letter, done)


def _order(who: Principal, reason: str, key: str | None) -> Order:
    """A key names a request of its token alone."""
    request = f"{who.token_id}:{key}" if key is not None else None
    return Order(str(person(who.name)), reason, request, who.token_id)


def _view(row: Row) -> LetterView:
    return LetterView.model_validate(row)


def _dealt(letter: Letter, done: Done) -> DealtView:
    dealt = done.dealt
    return DealtView(
        number=letter.number,
        state=dealt.state,
        dealt_by=dealt.by,
        reason=dealt.reason,
        at=dealt.at,
        repeated=done.repeated,
        sequence=done.sequence,
    )
