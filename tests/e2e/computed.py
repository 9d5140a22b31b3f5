"""The numbers that pages compute themselves, each with where it stands and out of which answers.

All others they show as the API tells them. Who lets a page count or add something names it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from optiinfra.schemas.change import TERMINAL_STATES, ChangeState

if TYPE_CHECKING:
    from tests.e2e.traced import Answers

Computed = Callable[["Answers"], Iterable[float]]
"""What may be shown: one value for each answer that the page may have shown it of."""

PHRASES = (
    "at 730 h", "per 1M tokens", "per 1M good tokens", "The latest 200 are shown", "SHA-256",
    "in 60 minutes", "in 24 hours", "the last 24 hours", "for 95 % of requests", "p50", "p95",
    "p99",
)  # fmt: skip
"""Words with digits in them: units, hours of a month, names of quantiles, limits of the page."""

TABS: dict[str, set[ChangeState]] = {
    "pending": {
        ChangeState.PROPOSED, ChangeState.DEFERRED, ChangeState.VOTING,
        ChangeState.AWAITING_APPROVAL,
    },
    "approved": {ChangeState.APPROVED},
    "running": {ChangeState.EXECUTING, ChangeState.ROLLING_BACK},
    "done": {ChangeState.COMPLETED, ChangeState.ROLLED_BACK, ChangeState.FAILED},
    "rejected": {ChangeState.VETOED, ChangeState.REJECTED},
    "expired": {ChangeState.EXPIRED},
    "suppressed": {ChangeState.SUPERSEDED, ChangeState.CANCELLED},
}  # fmt: skip
ASKED = "/recommendations?state=awaiting_approval"
SHADES = 5
BEGUN = {ChangeState.APPROVED, ChangeState.EXECUTING, ChangeState.ROLLING_BACK}


def rows(path: str, fits: Callable[[Any], Any] = bool, part: str = "items") -> Computed:
    """How many of a list fit."""
    return lambda answers: [
        sum(bool(fits(row)) for row in one[part]) for one in answers.of(path) if part in one
    ]


def _asleep(row: Any) -> bool:
    return bool(row.get("snoozed"))


def _in_tab(states: set[ChangeState]) -> Computed:
    return rows("/recommendations?limit", lambda row: row["state"] in states and not _asleep(row))


def _savings(end: str) -> Computed:
    """Of all that waits for a person and has a forecast."""

    def summed(answers: Answers) -> list[float]:
        told = [
            [row["recommendation"]["saving_usd_per_month"] for row in one["items"]]
            for one in answers.of(ASKED)
        ]
        return [sum(saving[end] for saving in each if saving) for each in told]

    return summed


def _no_forecast(row: Any) -> bool:
    return row["recommendation"]["saving_usd_per_month"] is None


def _moving(answers: Answers) -> list[float]:
    """Changes that are carried out, and those that are undone."""
    forth, back = (answers.of(f"/changes?state={one}") for one in ("executing", "rolling_back"))
    return [len(one["items"]) + len(two["items"]) for one in forth for two in back]


def _objectives(fits: Callable[[Any], bool]) -> Computed:
    return lambda answers: [
        sum(fits(one["met"]) for one in told["slo"]["deployments"])
        for told in answers.of("/overview")
    ]


def _begun(row: Any, *, ended: bool) -> bool:
    return (row["step"] is not None or row["state"] in BEGUN) and (
        (row["state"] in TERMINAL_STATES) == ended
    )


def _log(answers: Answers) -> list[float]:
    """Events of a log that is read page by page."""
    lengths = [len(one["items"]) for one in answers.of("/events?")]
    return [sum(lengths[: place + 1]) for place in range(len(lengths))]


def _shade(step: int) -> Computed:
    """How many requests a shade of the heat map stands for: in equal ratios up to the most."""

    def requests(answers: Answers) -> list[float]:
        maps = [one["columns"] for one in answers.of("/deployments/") if "columns" in one]
        peaks = [max((n for one in told for n in one["counts"] or ()), default=0) for told in maps]
        return [round(peak ** (step / (SHADES - 1))) for peak in peaks]

    return requests


def _forecasts_held(answers: Answers) -> list[float]:
    told = [one for one in answers.of("/deployments/") if "held" in one and one["over"]]
    return [100 * one["held"] / one["over"] for one in told]


def _certainty(answers: Answers) -> list[float]:
    """The evidence that a test needs is the inverse of how often it may be wrong."""
    found = [
        answer["quality"]
        for change in answers.of("/changes/")
        for stage in change["stages"]
        for look in stage["looks"]
        for answer in look["answers"]
    ]
    return [1 / told[name] for told in found if told for name in ("alpha", "beta")]


COMPUTED: list[tuple[str, Computed]] = [
    (r"Waiting for you\s+(\d+)", rows(ASKED)),
    (r"Savings waiting\s+\$([\d,]+) to", _savings("low")),
    (r"Savings waiting\s+\$[\d,]+ to \$([\d,]+) per month", _savings("high")),
    (r"(\d+) without an estimate", rows(ASKED, _no_forecast)),
    (r"Running changes\s+(\d+)", _moving),
    (r"Agents alive\s+(\d+) of", rows("/agents?", lambda one: one["status"] == "alive")),
    (r"Agents alive\s+\d+ of (\d+)", rows("/agents?")),
    (r"Objectives met\s+(\d+) of", _objectives(lambda met: met is True)),
    (r"Objectives met\s+\d+ of (\d+)", _objectives(lambda met: met is not None)),
    (r"(\d+) deployments not known", _objectives(lambda met: met is None)),
    (r"Replicas\s+(\d+)\s+\d+ busy", rows("/deployments/", part="replicas")),
    (r"(\d+) busy", rows("/deployments/", lambda one: one["state"] == "busy", "replicas")),
    *((rf"\b{name} (\d+)", _in_tab(states)) for name, states in TABS.items()),
    (r"\bsnoozed (\d+)", rows("/recommendations?limit", _asleep)),
    (r"\brunning (\d+)", rows("/changes?limit", lambda one: _begun(one, ended=False))),
    (r"\bover (\d+)", rows("/changes?limit", lambda one: _begun(one, ended=True))),
    (r"\ball (\d+)", rows("/changes?limit")),
    (r"\breplicas\s+(\d+):", lambda answers: [
        len(one["blast_radius"]["replicas"]) for one in answers.of("/recommendations/")
    ]),
    (r"needs ([\d.e+-]+)", _certainty),
    *(
        (rf"requests in [^:]+:(?:\s+[\d,]+){{{step}}}\s+([\d,]+)", _shade(step))
        for step in range(SHADES)
    ),
    (r"forecasts held \((\d+) %\)", _forecasts_held),
    (r"([\d,]+) of [\d,]+ events", _log),
    (r"[\d,]+ of ([\d,]+) events", _log),
    (r"It led to ([\d,]+) event", rows("/events/", lambda one: one["depth"] > 0)),
    (r"([\d,]+) causes, the first", rows("/events/", lambda one: one["depth"] < 0)),
]  # fmt: skip
