"""What must hold before anything runs; `up` refuses to start without it, `doctor` shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from optiinfra.agents.actuators.port import Actuator
from optiinfra.agents.application.golden import load_golden
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.settings import Settings
from optiinfra.schemas.deployment import Provider
from optiinfra.schemas.errors import Rejected, Unavailable

GATEWAY_TOKEN = "OPTIINFRA_GATEWAY_ADMIN_TOKEN"  # noqa: S105 - its name
_ADDRESS_HINT = {
    Provider.AWS: "check clouds.aws.regions and clouds.aws.endpoint_url, and the network",
    Provider.LOCAL: "check clouds.local.command",
    Provider.KUBERNETES: "check clouds.kubernetes.context and clouds.kubernetes.namespace",
}


class Counts(Protocol):
    """The part of the gateway's admin plane that a check needs."""

    async def counters(self) -> object: ...


def require_golden(fleet: Fleet) -> int:
    """How many items the golden set has. Raises `Rejected` naming the key."""
    with about("deployments.golden"):
        return len(load_golden(fleet.golden).items)


def gateway_token(fleet: Fleet, settings: Settings) -> str | None:
    """The admin token for the gateway that the file names; None when it names none.

    Raises `Rejected` when it is needed and not set.
    """
    if fleet.gateway is None:
        return None
    token = settings.gateway_admin_token
    if token is None:
        raise Rejected(
            f"gateway: the fleet file names a gateway, but {GATEWAY_TOKEN} is not set",
            hint=f"set {GATEWAY_TOKEN} to the token that the gateway was started with",
        )
    return token.get_secret_value()


async def require_gateway(gateway: Counts) -> None:
    """Raises `Rejected` when the token is wrong, `Unavailable` when nothing answers."""
    with about("gateway.admin_url", f"start the gateway, or correct the url and {GATEWAY_TOKEN}"):
        await gateway.counters()


async def require_cloud(fleet: Fleet, provider: Provider, actuator: Actuator) -> int:
    """How many replicas the cloud shows, by a call that only reads.

    Raises `Rejected` for missing or wrong credentials, `Unavailable` when it does not answer.
    """
    with about(f"clouds.{provider}", _ADDRESS_HINT.get(provider, "")):
        found = 0
        for one in fleet.deployments:
            if one.provider is provider:
                found += len(await actuator.replicas(fleet.tenant, one.id))
        return found


async def require_clouds(fleet: Fleet, actuators: Mapping[Provider, Actuator]) -> None:
    """As `require_cloud`, for every cloud that the file configures."""
    for provider, actuator in actuators.items():
        await require_cloud(fleet, provider, actuator)


@contextmanager
def about(key: str, hint: str = "") -> Iterator[None]:
    """Puts the key of the fleet file before what is wrong, and says what to do about it."""
    try:
        yield
    except Unavailable as error:
        raise Unavailable(
            f"{key}: {error.message}", error.retry_after_s, hint=error.hint or hint or None
        ) from error
    except Rejected as error:
        raise Rejected(f"{key}: {error.message}", hint=error.hint or hint or None) from error
