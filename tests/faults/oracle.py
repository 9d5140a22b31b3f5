"""What must be true after every fault: SQL over the event log, and a target that counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from optiinfra.coordinator.saga.evolve import fold
from optiinfra.coordinator.saga.state import Saga
from optiinfra.events.facts import TERMINAL_FACTS
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.events import log_of_chain
from optiinfra.storage.postgres.verification import verify
from tests.faults.target import Target

ENDS = [f"optiinfra.{kind}.v1" for kind in TERMINAL_FACTS]


async def broken_promises(
    database: Database, target: Target, proposed: Sequence[Recommendation]
) -> list[str]:
    """Every invariant that does not hold, in words; empty when all do."""
    async with database.connection() as connection:
        rows = await connection.fetch(_BROKEN, ENDS, [one.id for one in proposed])
    found = [f"{row['what']}: {row['n']} ({row['example']})" for row in rows if row["n"]]
    verified = await verify(database)
    found += [f"the chain breaks: {one}" for one in verified.breaks]
    found += await _unlike_their_fold(database)
    for one in proposed:
        found += _done_twice(target, one.deployment)
    return found


def names(broken: Sequence[str], what: str) -> bool:
    """Whether `what` is among the promises that do not hold."""
    return any(what in one for one in broken)


async def _unlike_their_fold(database: Database) -> list[str]:
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT change_id, body FROM sagas")
    found = []
    for row in rows:
        log = await log_of_chain(database, row["change_id"])
        folded = fold(Saga(change=row["change_id"]), [(event.fact, at) for event, at in log])
        if folded.model_dump_json() != row["body"]:
            found.append(f"{row['change_id']}: its row is not the fold of its log")
    return found


def _done_twice(target: Target, deployment: str) -> list[str]:
    """Each launch, each state of the routes and each end of a machine may come about once."""
    acts = target.acts(deployment)
    kinds = Counter(what for what, _ in acts)
    found = [
        f"{deployment}: {act} came about {n} times" for act, n in Counter(acts).items() if n > 1
    ]
    found += [
        f"{deployment}: {what} {kinds[what]} times, there is one machine to replace"
        for what in ("launch", "terminate")
        if kinds[what] > 1
    ]
    return found


async def moved_at_once(database: Database) -> int:
    """How many changes were carried out at the same time, at most, by the log."""
    async with database.connection() as connection:
        return int(await connection.fetchval(_AT_ONCE, ENDS))


_AT_ONCE = """
WITH moved AS (
    SELECT chain, min(at) FILTER (WHERE type LIKE 'optiinfra.execution.requested.%') AS began,
        max(at) FILTER (WHERE type = ANY($1)) AS ended
    FROM event_log GROUP BY chain
)
SELECT coalesce(max(n), 0) FROM (
    SELECT count(*) AS n FROM moved AS one JOIN moved AS other
    ON other.began <= one.began AND other.ended > one.began
    GROUP BY one.chain
) AS pairs
"""
_BROKEN = """
WITH log AS (SELECT *, split_part(type, '.', 2) || '.' || split_part(type, '.', 3) AS kind
    FROM event_log),
ends AS (SELECT chain, count(*) AS n FROM log WHERE type = ANY($1) GROUP BY chain),
steps AS (SELECT chain, version, body::jsonb AS body FROM log WHERE kind = 'execution.requested')
SELECT 'proposed without exactly one end' AS what, count(*) AS n, min(id) AS example
FROM unnest($2::text[]) AS wanted(id) LEFT JOIN ends ON chain = id
WHERE coalesce(ends.n, 0) <> 1
UNION ALL
SELECT 'executed without three approvals before', count(*), min(chain) FROM steps
WHERE (
    SELECT count(DISTINCT v.body::jsonb #>> '{vote,agent}') FROM log v
    WHERE v.chain = steps.chain AND v.kind = 'vote.cast' AND v.version < steps.version
    AND v.body::jsonb #>> '{vote,verdict}' = 'approve'
) < 3
UNION ALL
SELECT 'executed without a grant of that very version before', count(*), min(chain) FROM steps
WHERE NOT EXISTS (
    SELECT 1 FROM log g JOIN recommendations r ON r.id = g.chain
    WHERE g.chain = steps.chain AND g.kind = 'approval.granted' AND g.version < steps.version
    AND g.body::jsonb #>> '{approval,version_hash}' = r.version_hash
)
UNION ALL
SELECT 'a step asked for twice', count(*), min(chain) FROM (
    SELECT chain FROM steps
    GROUP BY chain, body #> '{step,kind}', body #> '{step,stage}', body #> '{step,attempt}'
    HAVING count(*) > 1
) AS twice
UNION ALL
SELECT 'versions with a gap', count(*), min(chain) FROM (
    SELECT chain FROM log GROUP BY chain HAVING max(version) <> count(*) OR min(version) <> 1
) AS gaps
UNION ALL
SELECT 'a row that is not at the end of its log', count(*), min(change_id) FROM sagas
WHERE version <> (SELECT max(version) FROM log WHERE chain = change_id)
UNION ALL
SELECT 'left in the outbox', count(*), min(event_id) FROM outbox WHERE sent_seq IS NULL
UNION ALL
SELECT 'timers left behind', count(*), min(change_id) FROM timers
UNION ALL
SELECT 'intents without a result', count(*), min(change_id) FROM executions WHERE result IS NULL
UNION ALL
SELECT 'a vote counted twice', count(*), min(change_id) FROM (
    SELECT change_id FROM votes GROUP BY change_id, agent, round HAVING count(*) > 1
) AS votes_twice
"""
