"""Reads the fleet file, and the policy that it names or holds."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from optiinfra.runtime.fleet import Fleet, as_fleet
from optiinfra.runtime.policy_file import WatchedFile, load_policy, require_deployments
from optiinfra.runtime.yaml_file import FileKind, content_of, wrong
from optiinfra.schemas.rules import Rules

FLEET_FILE = FileKind("fleet file", Fleet, "docs/fleet.md", needs="deployments")


def load_fleet(path: Path) -> Fleet:
    """Reads and checks the file; a policy that it only names is left where it is.

    Raises `Rejected` naming each bad key and what to do.
    """
    try:
        fleet = as_fleet(content_of(path, FLEET_FILE), path.absolute().parent)
    except ValidationError as invalid:
        raise wrong(path, FLEET_FILE, invalid) from invalid
    require_deployments(fleet.rules, fleet.deployment_ids, path)
    return fleet


def load_governed(path: Path, policy: Path | None = None) -> Fleet:
    """The fleet with its policy: that of the file `policy`, else of the one that it names, else
    its own rules. Raises `Rejected` as `load_fleet` does.
    """
    fleet = load_fleet(path)
    chosen = policy.absolute() if policy is not None else fleet.policy
    if chosen is None:
        return fleet
    rules = load_policy(chosen)
    require_deployments(rules, fleet.deployment_ids, chosen)
    return fleet.model_copy(update={"policy": chosen, "rules": rules})


def watched_policy(path: Path, fleet: Fleet) -> WatchedFile:
    """The file that holds the policy of a governed fleet: one of its own, or the fleet file."""
    if fleet.policy is None:
        return WatchedFile(path, lambda file: load_fleet(file).rules)

    def read(file: Path) -> Rules:
        rules = load_policy(file)
        require_deployments(rules, fleet.deployment_ids, file)
        return rules

    return WatchedFile(fleet.policy, read)
