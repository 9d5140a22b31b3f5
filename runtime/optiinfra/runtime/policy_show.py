"""The policy in words: what `optiinfra config show` prints of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from optiinfra.runtime.fleet_file import load_governed
from optiinfra.runtime.settings import Settings
from optiinfra.schemas.rules import Rules


def policy_of(settings: Settings) -> Rules | None:
    """The policy that the files give; None where no fleet file is named. Raises `Rejected`."""
    if settings.config is None:
        return None
    return load_governed(settings.config, settings.policy).rules


def policy_lines(rules: Rules) -> Iterator[str]:
    """The version, and the whole policy as YAML, defaults included."""
    yield ""
    yield f"# policy {rules.version}"
    content: dict[str, Any] = rules.model_dump(mode="json", exclude_none=True)
    yield from yaml.safe_dump(content, sort_keys=False, allow_unicode=True).splitlines()
