"""The statement behind a recommendation's card: the proposal, its saga, and others like it."""

from __future__ import annotations

from optiinfra.events.subjects import BY_PREFIX
from optiinfra.storage.postgres.asleep import SNOOZED

SIMILAR = 5
_SAVED = "(o.body #>> '{realised_usd_per_month,value}')::float8"
_LOW, _MID, _HIGH = (
    f"(o.body #>> '{{predicted_usd_per_month,{part}}}')::float8" for part in ("low", "mid", "high")
)
_COMPARABLE = f"{_SAVED} IS NOT NULL AND {_MID} IS NOT NULL"
_RECORD = f"""
SELECT json_build_object('finished', count(*), 'known', count(*) FILTER (WHERE {_COMPARABLE}),
    'predicted_usd_per_month', sum({_MID}) FILTER (WHERE {_COMPARABLE}),
    'realised_usd_per_month', sum({_SAVED}) FILTER (WHERE {_COMPARABLE}),
    'within', count(*) FILTER (WHERE {_SAVED} BETWEEN {_LOW} AND {_HIGH}),
    'deployments', coalesce(json_agg(DISTINCT o.body ->> 'deployment'), '[]'))
FROM outcomes o
WHERE o.tenant = r.tenant AND o.kind = r.kind AND o.body ->> 'terminal' = 'completed'
"""  # noqa: S608 - of constants
_ALIKE = f"""
SELECT coalesce(json_agg(w ORDER BY w.same DESC, w.at DESC), '[]') FROM (
    SELECT o.change_id AS id, p.body ->> 'title' AS title, o.body ->> 'deployment' AS deployment,
        o.body ->> 'terminal' AS terminal, o.body -> 'predicted_usd_per_month'
        AS predicted_usd_per_month, o.body -> 'realised_usd_per_month' AS realised_usd_per_month,
        o.at, o.same
    FROM (
        SELECT a.*, coalesce(a.body ->> 'deployment' = r.deployment, false) AS same
        FROM outcomes a WHERE a.tenant = r.tenant AND a.kind = r.kind AND a.change_id <> r.id
        ORDER BY same DESC, a.at DESC LIMIT {SIMILAR}
    ) o LEFT JOIN recommendations p ON p.id = o.change_id
) w
"""  # noqa: S608 - of constants
_ASKED = f"""
SELECT json_build_object('expires_at', e.body::json ->> 'expires_at',
    'reason', e.body::json ->> 'reason') FROM event_log e
WHERE e.chain = r.id AND e.type = '{BY_PREFIX["approval.requested"].type}'
ORDER BY e.version DESC LIMIT 1
"""  # noqa: S608 - of constants
_VOTES = """
SELECT coalesce(json_agg(v.body ORDER BY v.round DESC, v.agent, v.cast_at), '[]')
FROM votes v WHERE v.change_id = r.id
"""
_APPROVALS = """
SELECT coalesce(json_agg(json_build_object('granted', a.granted,
    'by', a.by_kind || ':' || a.by_name, 'version_hash', a.version_hash, 'reason', a.reason,
    'at', a.at) ORDER BY a.at), '[]')
FROM approvals a WHERE a.change_id = r.id
"""
CARD = f"""
SELECT json_build_object('id', r.id, 'state', s.state, 'version_hash', r.version_hash,
    'recommendation', r.body, 'end_reason', s.body::json ->> 'end_reason',
    'waiting', s.body::json ->> 'waiting', 'snoozed', {SNOOZED},
    'approvals_needed', coalesce((s.body::json ->> 'needed')::integer, 1),
    'now', clock_timestamp(), 'asked', ({_ASKED}), 'votes', ({_VOTES}),
    'approvals', ({_APPROVALS}), 'record', ({_RECORD}), 'similar', ({_ALIKE}),
    'deployment', (SELECT d.body FROM deployments d WHERE d.tenant = r.tenant
        AND d.id = r.deployment))::text
FROM recommendations r JOIN sagas s ON s.change_id = r.id
WHERE r.tenant = $1 AND r.id = $2
"""  # noqa: S608 - of constants
