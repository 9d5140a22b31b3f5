"""What every decision of the coordinator says besides itself: under which policy it was made."""

from __future__ import annotations

from optiinfra.schemas.base import Value


class Decided(Value):
    """Base of the facts and commands that follow from the policy.

    `rules_version` is `<name>@<12 hex>` of the policy that was in force; None in what was said
    before versions were recorded, and in a person's own word.
    """

    rules_version: str | None = None
