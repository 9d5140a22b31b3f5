"""Which knobs of an engine a tuning turns, from what it runs with; pure."""

from __future__ import annotations

from pydantic import ValidationError

from optiinfra.schemas.errors import Rejected
from optiinfra.serving.curves import Tuning, turned
from optiinfra.serving.engines import EngineConfig


def tuned(now: EngineConfig, tuning: Tuning) -> EngineConfig:
    """`now` with the knobs of `tuning`; what the tuning leaves out stays.

    Raises `Rejected` when the engine has no such knob, for a bad value, and when nothing changes.
    """
    knobs = turned(tuning)
    for name in knobs:
        if name not in type(now).model_fields:
            raise Rejected(
                f"{now.engine.value} has no knob {name}", hint="propose a knob that it has"
            )
    try:
        then = type(now).model_validate({**now.model_dump(), **knobs})
    except ValidationError as error:
        first = error.errors()[0]
        raise Rejected(f"{first['loc'][0]}: {first['msg']}", hint="propose another value") from None
    if then == now:
        raise Rejected("the engine runs with that already", hint="propose another value")
    return then
