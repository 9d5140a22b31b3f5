"""What a second reader would ask about a policy that is valid: parts that never count."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime
from difflib import get_close_matches

from optiinfra.schemas.approval_rules import Decision
from optiinfra.schemas.recommendation import IRREVERSIBLE_KINDS
from optiinfra.schemas.rules import Rules


def warnings(rules: Rules, now: datetime) -> tuple[str, ...]:
    """Each as `key: what is doubtful, and what to do`; `now` tells which freezes are over."""
    return (*_swallowed(rules), *_never_automatic(rules), *_over(rules, now), *_idle_limits(rules))


def named_deployments(rules: Rules) -> Iterator[tuple[str, str]]:
    """Each deployment that the policy names, with the key where it does."""
    for key in ("approvals", "freezes", "floors"):
        for number, part in enumerate(getattr(rules, key)):
            for name in part.deployments:
                yield f"{key}.{number} ({part.name}).deployments", name
    for target, needed in rules.arbitration.needs.items():
        for name in (target, *needed):
            yield f"arbitration.needs.{target}", name


def undeclared(rules: Rules, known: Collection[str]) -> Iterator[str]:
    """Each deployment that the policy is about and nobody declares, with what was meant."""
    for key, name in named_deployments(rules):
        if name not in known:
            near = get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            yield f"{key}: the fleet has no deployment {name!r}; {meant}"


def _swallowed(rules: Rules) -> Iterator[str]:
    for number, later in enumerate(rules.approvals):
        first = next((rule for rule in rules.approvals[:number] if rule.swallows(later)), None)
        if first is not None:
            yield (
                f"approvals.{number} ({later.name}): it never matches, as {first.name!r} before it"
                " is about all that it is about; put it first, or drop it"
            )


def _never_automatic(rules: Rules) -> Iterator[str]:
    strict = rules.four_eyes_from
    for number, rule in enumerate(rules.approvals):
        if rule.decision is not Decision.APPROVE:
            continue
        where = f"approvals.{number} ({rule.name})"
        if rule.kinds and set(rule.kinds) <= IRREVERSIBLE_KINDS:
            yield f"{where}: no rule approves what cannot be undone; people are asked"
        elif strict is not None and rule.highest_risk.rank >= strict.rank:
            yield (
                f"{where}.max_risk: from risk {strict} on two people are asked"
                " (four_eyes_from), so the rule approves only what is below"
            )


def _over(rules: Rules, now: datetime) -> Iterator[str]:
    for number, window in enumerate(rules.freezes):
        if window.ends_at is not None and window.ends_at <= now:
            yield f"freezes.{number} ({window.name}): it ended at {window.ends_at}; drop it"


def _idle_limits(rules: Rules) -> Iterator[str]:
    here, all_targets = rules.movers_per_hour_per_target, rules.movers_per_hour
    if here is not None and all_targets is not None and here >= all_targets:
        yield (
            f"movers_per_hour_per_target: {here} is not below movers_per_hour"
            f" ({all_targets}), which is reached first"
        )
