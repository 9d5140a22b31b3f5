"""Whether a change sleeps, as SQL over its row `s` of `sagas`: what `Saga.is_asleep` says, now."""

from __future__ import annotations

from optiinfra.schemas.change import ChangeState

_STILL = "(s.body::json -> 'snooze' ->> 'until')::timestamptz > clock_timestamp()"
ASLEEP = f"""
CASE WHEN s.state = '{ChangeState.AWAITING_APPROVAL}' THEN coalesce({_STILL}, false) ELSE false END
"""
SNOOZED = f"CASE WHEN {ASLEEP} THEN s.body::json -> 'snooze' END"
"""Who has put it off, until when and why; null while it is awake."""
