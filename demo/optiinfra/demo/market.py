"""The demo's spot market in front of moto: prices of its own, and capacity that can run out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from werkzeug.wrappers import Response

from optiinfra.schemas.deployment import Market
from optiinfra.schemas.ids import derived_id
from optiinfra.serving.prices import Catalogue, PriceBand, SpotQuote

STEP = timedelta(hours=6)
"""How long one simulated price holds."""
_WINDOW = timedelta(days=7)
_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
_PRIVATE_IP = re.compile(rb"<privateIpAddress>[^<]*</privateIpAddress>")
_LOOPBACK = b"<privateIpAddress>127.0.0.1</privateIpAddress>"
_NO_CAPACITY = (
    "We currently do not have sufficient {type} capacity in the Availability Zone you requested"
    " ({zone}). (Simulated.)"
)

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]


def simulated_quotes(
    band: PriceBand, zones: Sequence[str], since: datetime, until: datetime, *, seed: str
) -> list[SpotQuote]:
    """Prices that follow the catalogue's band, oldest first; the same seed gives the same ones.

    In each zone a price holds for six hours. Half of the prices lie between the band's low and
    middle, half between its middle and high.
    """
    start = int(max(since, until - _WINDOW).timestamp() // STEP.total_seconds())
    end = int(until.timestamp() // STEP.total_seconds())
    return [
        SpotQuote(
            zone,
            round(_drawn(band, f"{seed}:{zone}:{step}"), 4),
            datetime.fromtimestamp(step * STEP.total_seconds(), UTC),
        )
        for step in range(start, end + 1)
        for zone in zones
    ]


def _drawn(band: PriceBand, name: str) -> float:
    share = int(derived_id("spot price", name), 16) / 2**128
    if share < 0.5:
        return band.low + (band.mid - band.low) * 2 * share
    return band.mid + (band.high - band.mid) * (2 * share - 1)


@dataclass(slots=True)
class SpotMarket:
    """What the simulated market offers in one region; `open` says whether spot has capacity."""

    region: str
    zones: tuple[str, ...]
    seed: int
    clock: Callable[[], datetime]
    catalogue: Catalogue = field(default_factory=Catalogue.load)
    open: bool = True

    def quotes(self, instance_type: str, since: datetime) -> list[SpotQuote]:
        """Empty for a type without a spot price in the catalogue."""
        band = self.catalogue.price(instance_type, self.region, Market.SPOT)
        if band is None:
            return []
        seed = f"{self.seed}:{self.region}:{instance_type}"
        return simulated_quotes(band, self.zones, since, self.clock(), seed=seed)


class CloudFront:
    """A WSGI application: moto, but for spot prices and capacity.

    `changed` is called after every launch and termination; `refused` for a launch without capacity.
    Private addresses are shown as 127.0.0.1, so that nobody looks for a replica elsewhere.
    """

    def __init__(
        self,
        moto: Wsgi,
        market: SpotMarket,
        *,
        changed: Callable[[], None],
        refused: Callable[[str, str], None],
    ) -> None:
        self._moto = moto
        self._market = market
        self._changed = changed
        self._refused = refused

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        query = _query(environ)
        action = query.get("Action", "")
        if action == "DescribeSpotPriceHistory":
            answer = self._prices(query)
        elif action == "RunInstances" and _is_spot(query) and not self._market.open:
            answer = self._no_capacity(query)
        else:
            answer = self._passed(action, environ)
        return answer(environ, start_response)

    def _passed(self, action: str, environ: dict[str, Any]) -> Response:
        answer = Response.from_app(self._moto, environ, buffered=True)
        if action in {"RunInstances", "DescribeInstances"}:
            answer.set_data(_PRIVATE_IP.sub(_LOOPBACK, answer.get_data()))
        if action in {"RunInstances", "TerminateInstances"}:
            self._changed()
        return answer

    def _prices(self, query: Mapping[str, str]) -> Response:
        types = [value for name, value in query.items() if name.startswith("InstanceType.")]
        asked = query.get("StartTime")
        now = self._market.clock()
        since = datetime.fromisoformat(asked) if asked else now - _WINDOW
        since = since if since.tzinfo else since.replace(tzinfo=UTC)
        items = "".join(
            _price_item(name, quote) for name in types for quote in self._market.quotes(name, since)
        )
        return _xml(
            f'<DescribeSpotPriceHistoryResponse xmlns="{_NAMESPACE}">'
            f"<requestId>simulated</requestId><spotPriceHistorySet>{items}</spotPriceHistorySet>"
            "</DescribeSpotPriceHistoryResponse>"
        )

    def _no_capacity(self, query: Mapping[str, str]) -> Response:
        """As EC2 says it: an error of the server, which clients try again a few times."""
        kind = query.get("InstanceType", "")
        zone = query.get("Placement.AvailabilityZone") or query.get("SubnetId", "any")
        self._refused(kind, zone)
        message = escape(_NO_CAPACITY.format(type=kind, zone=zone))
        return _xml(
            "<Response><Errors><Error><Code>InsufficientInstanceCapacity</Code>"
            f"<Message>{message}</Message></Error></Errors><RequestID>simulated</RequestID>"
            "</Response>",
            status=500,
        )


def _query(environ: dict[str, Any]) -> dict[str, str]:
    """The parameters of an EC2 call; the body is put back for moto."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = BytesIO(body)
    if not environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        return {}
    return {name: values[-1] for name, values in parse_qs(body.decode()).items()}


def _is_spot(query: Mapping[str, str]) -> bool:
    return query.get("InstanceMarketOptions.MarketType") == "spot"


def _price_item(instance_type: str, quote: SpotQuote) -> str:
    return (
        f"<item><instanceType>{escape(instance_type)}</instanceType>"
        "<productDescription>Linux/UNIX</productDescription>"
        f"<spotPrice>{quote.usd_per_hour:.4f}</spotPrice>"
        f"<timestamp>{quote.at:%Y-%m-%dT%H:%M:%SZ}</timestamp>"
        f"<availabilityZone>{quote.zone}</availabilityZone></item>"
    )


def _xml(text: str, status: int = 200) -> Response:
    return Response(text, status=status, content_type="text/xml; charset=utf-8")
