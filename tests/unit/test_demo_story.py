"""What the demo does when something happens, and how it tells it."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from optiinfra.demo.main import DemoOptions, run
from optiinfra.demo.market import simulated_quotes
from optiinfra.demo.narration import Narrator, Spoken, tell_cloud
from optiinfra.demo.scenario import (
    CALM,
    FAST,
    LETTERS,
    TENANT,
    Pace,
    Play,
    cloud_plan,
    fleet_file,
    replay_file,
)
from optiinfra.demo.story import AskPerson, SendReclaim, Story
from optiinfra.demo.summary import summarise
from optiinfra.demo.view import View, closing_lines, closing_table
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.runtime.fleet import Fleet
from optiinfra.schemas.deployment import Market
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.rollout import Arms, Step, StepKind
from optiinfra.schemas.vote import Verdict
from optiinfra.serving.prices import Catalogue, PriceBand, spot_band
from tests.factories import AT, vote
from tests.unit.test_demo_summary import (
    ASSIST,
    CHAT,
    COUNTERS,
    SAVED,
    STORY,
    asked,
    logged,
    proposed,
    remembered,
)


def test_a_person_is_asked_for_the_plays_alone() -> None:
    story = Story([Play.MIGRATION])
    actions = [action for event in STORY for action in story.take(event)]
    assert actions == [AskPerson(CHAT, CHAT.version_hash)]


def test_the_reclaim_is_sent_once_the_migration_is_remembered() -> None:
    story = Story([Play.MIGRATION, Play.RECLAIM])
    sent = [
        event.kind
        for event in STORY
        if any(isinstance(action, SendReclaim) for action in story.take(event))
    ]
    assert sent == ["outcome.recorded"]


def test_the_story_is_over_when_all_plays_are_and_their_outcomes_are_on_record() -> None:
    story = Story(tuple(Play))
    over = []
    for event in STORY:
        story.take(event)
        over.append(story.is_over)
    assert over == [False] * (len(STORY) - 1) + [True]
    assert set(story.states.values()) == {"completed", "rolled_back", "vetoed"}


def test_without_a_finished_migration_there_is_nothing_to_reclaim() -> None:
    story = Story([Play.MIGRATION, Play.RECLAIM])
    rejected = f.ChangeRejected(change=CHAT.id, by="person:anna", reason="no")
    for event in logged((0.0, proposed(CHAT)), (1.0, rejected)):
        assert story.take(event) == []
    assert story.is_over


def test_a_second_proposal_on_a_deployment_is_not_part_of_the_play() -> None:
    story = Story([Play.MIGRATION])
    again = CHAT.model_copy(update={"id": ASSIST.id})
    log = logged((0.0, proposed(CHAT)), (1.0, proposed(again)), (2.0, asked(again)))
    assert [story.take(event) for event in log] == [[], [], []]


def told(*facts: f.Fact) -> list[Spoken]:
    narrator = Narrator()
    return [line for event in logged(*((0.0, x) for x in facts)) for line in narrator.tell(event)]


def test_lines_name_the_deployment_that_they_are_about() -> None:
    lines = told(proposed(CHAT), f.ChangeCompleted(change=CHAT.id, arms=Arms()))
    assert [line.about for line in lines] == ["chat", "chat"]
    assert lines[0].text == "the cost agent proposes: Move chat to spot"
    assert "COMPLETED" in lines[1].text


def test_a_proposal_that_is_repeated_is_told_once() -> None:
    assert len(told(proposed(CHAT), proposed(CHAT))) == 1


def test_a_vote_is_told_when_it_is_new_or_has_changed() -> None:
    abstained = vote(CHAT.id, "resource", Verdict.ABSTAIN)
    lines = told(
        proposed(CHAT),
        abstained,
        vote(CHAT.id, "resource", Verdict.ABSTAIN, 2),
        vote(CHAT.id, "resource", Verdict.REJECT, 3),
    )
    assert [line.tone for line in lines[1:]] == ["dim", "bad"]
    assert lines[2].text == "resource rejects: resource says reject"


def test_a_finish_that_carries_its_stage_is_told_as_both() -> None:
    stage, finish = (
        c.ExecutionRequested(
            change=CHAT.id,
            step=Step(kind=kind, stage=0, share=1.0),
            fence=1,
            executor=CHAT.proposer,
            recommendation=CHAT,
            deadline=AT,
        )
        for kind in (StepKind.APPLY, StepKind.FINISH)
    )
    assert [line.text[:10] for line in told(finish)] == ["stage 1 of", "last step:"]
    assert [line.text[:10] for line in told(stage, finish)] == ["stage 1 of", "last step:"]


def test_every_kind_of_fact_in_the_story_can_be_told() -> None:
    narrator = Narrator()
    lines = [line for event in STORY for line in narrator.tell(event)]
    assert any("VETOED by resource" in line.text for line in lines)
    assert any("e-values" in line.text for line in lines)
    assert any("in force: chat-new; $1.25/h now" in line.text for line in lines)
    assert any(line.text == "remembered: realised unknown" for line in lines)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"event": "launched", "replica": "r", "market": "spot", "zone": "z"}, "simulated machine"),
        ({"event": "serving", "replica": "r", "url": "u"}, "emulated engine"),
        ({"event": "stopped", "replica": "r"}, "is gone"),
        ({"event": "failed", "replica": "r"}, "did not start"),
        ({"event": "no_capacity", "instance_type": "g"}, "no spot capacity"),
        ({"event": "reclaiming", "replica": "r", "gone_at": "t"}, "(simulated)"),
        ({"event": "reclaimed", "replica": "r", "was_there": True}, "its power was cut"),
        ({"event": "reclaimed", "replica": "r", "was_there": False}, "gone already"),
    ],
)
def test_what_the_cloud_says_is_told_as_simulated(line: dict[str, object], words: str) -> None:
    spoken = tell_cloud(line)
    assert spoken is not None
    assert words in spoken.text


def test_what_is_of_no_interest_is_not_told() -> None:
    assert tell_cloud({"event": "done", "do": "defect"}) is None
    assert told(f.TimerFired(change=CHAT.id, name=f.TimerName.SOAK, key="0")) == []


def test_a_kept_home_can_be_looked_at_without_the_cloud() -> None:
    fleet = Fleet.model_validate(json.loads(json.dumps(replay_file(tuple(Play)))))
    assert fleet.mode == "observe"
    assert fleet.tenant == TENANT
    assert fleet.clouds.aws is None


@pytest.mark.parametrize("pace", [FAST, CALM])
def test_the_generated_fleet_file_is_one_that_optiinfra_takes(pace: Pace) -> None:
    content = fleet_file(
        tuple(Play), pace, endpoint_url="http://127.0.0.1:1", queue_url="http://127.0.0.1:1/q"
    )
    fleet = Fleet.model_validate(json.loads(json.dumps(content)))
    assert fleet.mode == "act"
    assert [one.id for one in fleet.deployments] == ["chat", "assist", "search"]
    assert [rule.kinds for rule in fleet.rules.approvals] == [("spot_replacement",)]


def test_the_machines_of_the_story_have_prices_and_interruption_bands(tmp_path: object) -> None:
    catalogue = Catalogue.load()
    plan = cloud_plan(tuple(Play), seed=1, log_dir="logs")  # type: ignore[arg-type]
    for fleet in plan.fleets:
        for market in (Market.ON_DEMAND, Market.SPOT):
            assert catalogue.price(fleet.instance_type, plan.region, market) is not None
        assert catalogue.interruption(fleet.instance_type, plan.region) is not None


def test_simulated_prices_keep_to_the_catalogue_and_are_believed() -> None:
    catalogue, until = Catalogue.load(), datetime(2026, 3, 1, 5, tzinfo=UTC)
    listed = catalogue.price("g6e.xlarge", "us-east-2", Market.SPOT)
    on_demand = catalogue.price("g6e.xlarge", "us-east-2", Market.ON_DEMAND)
    assert listed is not None
    assert on_demand is not None
    since = until - timedelta(days=30)
    quotes = simulated_quotes(listed, ["a", "b"], since, until, seed="s")
    assert quotes == simulated_quotes(listed, ["a", "b"], since, until, seed="s")
    assert quotes != simulated_quotes(listed, ["a", "b"], since, until, seed="t")
    assert all(listed.low <= one.usd_per_hour <= listed.high for one in quotes)
    band = spot_band(quotes, until, on_demand.mid)
    assert isinstance(band, PriceBand)
    assert band.mid == pytest.approx(listed.mid, rel=0.1)


def test_each_letter_plays_what_it_needs() -> None:
    assert LETTERS["d"] == (Play.MIGRATION, Play.RECLAIM)
    assert LETTERS["all"] == tuple(Play)


def test_an_unknown_play_and_an_approval_without_a_terminal_are_refused() -> None:
    with pytest.raises(Rejected, match="there is no play 'x'"):
        run(DemoOptions(play="x", yes=True))
    with pytest.raises(Rejected, match="no terminal"):
        run(DemoOptions())


def test_off_a_terminal_the_view_writes_plain_lines() -> None:
    shown = io.StringIO()
    with View(Console(file=shown, width=200)) as view:
        view.say(Spoken("chat", "all [is] well", "good"))
        view.load({"served": 3})
        view.plays({Play.VETO: "vetoed"})
    assert "simulated cloud" in shown.getvalue()
    assert "chat     all [is] well\n" in shown.getvalue()
    assert "\x1b" not in shown.getvalue()


def test_on_a_terminal_the_view_shows_plays_and_requests() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, height=30)
    with View(console) as view:
        view.plays({Play.VETO: "vetoed"})
        view.load({"served": 31})
        view.say(Spoken("chat", "all is well", "good"))
    assert "requests served 31" in shown.getvalue()
    assert "search" in shown.getvalue()


def test_the_closing_shows_unknown_as_a_dash_and_never_as_zero() -> None:
    found = summarise(STORY, COUNTERS, plays=tuple(Play), audit_ok=True, seed=5)
    shown = io.StringIO()
    Console(file=shown, width=100).print(closing_table(found))
    assert "9.000" in shown.getvalue()
    empty = summarise([], COUNTERS, plays=(), audit_ok=False, seed=5)
    shown = io.StringIO()
    Console(file=shown, width=100).print(closing_table(empty))
    assert "–" in shown.getvalue()
    assert any("BROKEN" in line for line in closing_lines(empty))
    assert any("-0.020 to +0.030" in line for line in closing_lines(found))


def test_an_outcome_of_another_change_ends_nothing() -> None:
    story = Story([Play.MIGRATION])
    for event in logged((0.0, proposed(CHAT)), (1.0, remembered(SAVED, 1.0))):
        story.take(event)
    assert not story.is_over
    assert CHAT.proposed_at == AT
