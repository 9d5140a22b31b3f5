"""The names under which scored answers are stored, for all who write or read them."""

from __future__ import annotations

ANSWER_SCORE = "answer_score"
"""One per answer, 0-1; unknown where the answer could not be scored.

Every reply to a golden prompt has exactly one, also a failed one. Its `window_s` tells how long
before `at` the prompt was put to the replica.
"""
SOURCE = "source"
"""The label that says where an answer comes from."""
LIVE = "live"
GOLDEN = "golden"
"""Asked by the application agent past the gateway: work for the replica, but no offered load."""
TURNED_AWAY = "turned_away"
"""The label of a golden prompt that was refused (HTTP 4xx) before it became work."""
GOLDEN_SETTLE_S = 35.0
"""How long a golden prompt may go unrecorded: the longest run (30 s) and the way to the store."""
