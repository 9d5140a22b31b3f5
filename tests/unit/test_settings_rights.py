"""The pages explain rights beforehand by a table of their own, which is the API's."""

from __future__ import annotations

import re
from pathlib import Path

from optiinfra.portal_api.auth import LEAST_ROLE
from optiinfra.portal_api.policy_text import MOST_CHARACTERS

SETTINGS = Path(__file__).parents[2] / "portal" / "src" / "settings"


def test_the_pages_ask_for_the_roles_that_the_api_asks_for() -> None:
    text = (SETTINGS / "rights.ts").read_text(encoding="utf-8")
    table = re.search(r"LEAST_ROLE: [^=]+ = [{]([^}]+)[}]", text)
    assert table is not None
    told = dict(re.findall(r'(\w+): "(\w+)"', table[1]))
    assert told == {permission.value: role.value for permission, role in LEAST_ROLE.items()}


def test_the_draft_may_be_as_long_as_the_api_takes_it() -> None:
    text = (SETTINGS / "PolicyDraft.tsx").read_text(encoding="utf-8")
    assert f"MOST_CHARACTERS = {MOST_CHARACTERS:_};" in text
