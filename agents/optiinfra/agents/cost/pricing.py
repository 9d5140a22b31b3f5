"""Prices the machines of a fleet: live spot quotes where they are believed, else the price list."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import structlog

from optiinfra.agents.base.agent import Clock
from optiinfra.agents.collectors.clouds import SpotCloud
from optiinfra.agents.cost.policy import MachineKind, PricedReplica, SpotOffer, machine_kind, spend
from optiinfra.schemas.deployment import Market, Provider, Replica
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.telemetry import Known, Unknown, UnknownReason
from optiinfra.serving.prices import (
    DEFAULT_LIMITS,
    Catalogue,
    PriceBand,
    QuoteLimits,
    SpotQuote,
    spot_band,
    zones_by_price,
)

_log = structlog.get_logger()


class Pricing:
    """Offers are asked of the cloud once in `refresh`; a cloud that cannot answer has none live."""

    def __init__(
        self,
        catalogue: Catalogue,
        clouds: Mapping[Provider, SpotCloud],
        clock: Clock,
        *,
        limits: QuoteLimits = DEFAULT_LIMITS,
        refresh: timedelta = timedelta(minutes=5),
    ) -> None:
        self._catalogue = catalogue
        self._clouds = clouds
        self._clock = clock
        self._limits = limits
        self._refresh = refresh
        self._offers: dict[MachineKind, tuple[datetime, SpotOffer]] = {}

    @property
    def catalogue(self) -> Catalogue:
        return self._catalogue

    async def spend(self, replicas: Sequence[Replica]) -> Known | Unknown:
        """USD per hour of the replicas, unknown when one of them has no price."""
        return spend(await self.priced(replicas))

    async def priced(self, replicas: Sequence[Replica]) -> tuple[PricedReplica, ...]:
        prices = await asyncio.gather(*(self.price(replica) for replica in replicas))
        return tuple(map(PricedReplica, replicas, prices))

    async def price(self, replica: Replica) -> PriceBand | Unknown:
        """USD per hour of one replica in the market that it was bought in."""
        kind = machine_kind(replica)
        if replica.instance.market is Market.SPOT:
            return (await self.offer(kind)).spot
        return self._listed(kind, replica.instance.market)

    async def offer(self, kind: MachineKind) -> SpotOffer:
        """What `kind` costs on spot now."""
        now = self._clock()
        known = self._offers.get(kind)
        if known is not None and now - known[0] < self._refresh:
            return known[1]
        offer = await self._ask(kind, now)
        self._offers[kind] = (now, offer)
        return offer

    async def _ask(self, kind: MachineKind, now: datetime) -> SpotOffer:
        on_demand = self._listed(kind, Market.ON_DEMAND)
        interruption = self._catalogue.interruption(kind.instance_type, kind.region)
        history, zones, failure = await self._quotes(kind, now)
        if isinstance(on_demand, Unknown):
            return SpotOffer(on_demand, interruption, zones)
        live = failure or spot_band(history, now, on_demand.mid, self._limits)
        cheapest = zones_by_price(history, now, on_demand.mid, self._limits)
        zones = cheapest + tuple(zone for zone in zones if zone not in cheapest)
        if isinstance(live, PriceBand):
            return SpotOffer(live, interruption, zones)
        _log.info("spot.not_believed", kind=kind, reason=live.reason, detail=live.detail)
        return SpotOffer(self._listed(kind, Market.SPOT), interruption, zones, live)

    async def _quotes(
        self, kind: MachineKind, now: datetime
    ) -> tuple[Sequence[SpotQuote], tuple[str, ...], Unknown | None]:
        cloud = self._clouds.get(kind.provider)
        if cloud is None:
            detail = f"no price feed for {kind.provider} is configured"
            return (), (), Unknown(reason=UnknownReason.NOT_CONFIGURED, detail=detail)
        try:
            since = now - self._limits.window
            history = await cloud.spot_history(kind.instance_type, kind.region, since)
            return history, tuple(await cloud.zones(kind.region)), None
        except (Unavailable, Rejected) as error:
            return (), (), Unknown(reason=UnknownReason.UNREACHABLE, detail=str(error))

    def _listed(self, kind: MachineKind, market: Market) -> PriceBand | Unknown:
        band = self._catalogue.price(kind.instance_type, kind.region, market)
        if band is not None:
            return band
        listed = self._catalogue.source
        return Unknown(
            reason=UnknownReason.MISSING,
            detail=(
                f"{kind.instance_type} in {kind.region} has no {market} price in the "
                f"{listed.name} of {listed.as_of:%Y-%m-%d}"
            ),
        )
