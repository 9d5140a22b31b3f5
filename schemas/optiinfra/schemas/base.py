"""The one configuration that all values share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen value; unknown fields are kept out so that a typo cannot pass silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")
