"""The price list and the judgement of live spot quotes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiinfra.schemas.deployment import Market
from optiinfra.schemas.money import PriceSource
from optiinfra.schemas.telemetry import Unknown, UnknownReason
from optiinfra.serving.prices import (
    Catalogue,
    PriceBand,
    SpotQuote,
    interruption_band,
    spot_band,
    zones_by_price,
)

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
HEADER = (
    "snapshot,instance_type,gpu_model,gpu_count,gpu_memory_gib_total,region,ondemand_usd_hr,"
    "spot_avg_usd_hr,spot_min_usd_hr,spot_max_usd_hr,spot_interrupt_band,ri_a_usd_hr,ri_b_usd_hr"
)


def quote(price: float, hours_ago: float, zone: str = "a") -> SpotQuote:
    return SpotQuote(zone, price, NOW - timedelta(hours=hours_ago))


def known(found: PriceBand | Unknown) -> PriceBand:
    assert isinstance(found, PriceBand), found
    return found


def unknown(found: PriceBand | Unknown) -> Unknown:
    assert isinstance(found, Unknown), found
    return found


def test_the_shipped_list_knows_every_market_of_a_gpu_machine() -> None:
    catalogue = Catalogue.load()
    on_demand = catalogue.price("g5.xlarge", "ap-northeast-2", Market.ON_DEMAND)
    spot = catalogue.price("g5.xlarge", "ap-northeast-2", Market.SPOT)
    reserved = catalogue.price("g5.xlarge", "ap-northeast-2", Market.RESERVED)
    assert on_demand is not None
    assert spot is not None
    assert reserved is not None
    assert on_demand.low == on_demand.high == 1.237
    assert (spot.low, spot.mid, spot.high) == (0.2143, 0.3515, 0.4253)
    assert spot.high < reserved.low < reserved.high < on_demand.mid
    assert spot.source.as_of.date().isoformat() == "2025-11-30"
    assert catalogue.source is spot.source


def test_the_shipped_list_knows_shapes_regions_and_interruptions() -> None:
    catalogue = Catalogue.load()
    shape = catalogue.shape("p5.48xlarge")
    assert shape is not None
    assert (shape.gpus, shape.gpu_memory_gib) == (8, 640)
    band = catalogue.interruption("g5.xlarge", "ap-northeast-2")
    assert band is not None
    assert (band.label, band.low, band.mid, band.high) == ("<5%", 0, 0.025, 0.05)
    assert "us-east-1" in catalogue.regions("g5.xlarge")


def test_what_is_not_listed_has_no_price_rather_than_a_price_of_zero() -> None:
    catalogue = Catalogue.load()
    assert catalogue.price("m5.large", "us-east-1", Market.ON_DEMAND) is None
    assert catalogue.interruption("m5.large", "us-east-1") is None
    assert catalogue.shape("m5.large") is None


def test_a_spot_average_without_a_measured_spread_and_missing_columns_stay_unknown() -> None:
    rows = [HEADER, "d,x,G,1,24,r,2.0,0.2,,,,,"]
    catalogue = Catalogue.read(rows, "mine", NOW)
    assert catalogue.price("x", "r", Market.SPOT) is None
    assert catalogue.price("x", "r", Market.RESERVED) is None
    assert catalogue.interruption("x", "r") is None


def test_a_reserved_price_runs_from_the_cheapest_to_the_dearest_commitment() -> None:
    rows = [HEADER, "d,x,G,1,24,r,2.0,0.5,0.4,0.6,5-10%,1.5,1.0"]
    reserved = Catalogue.read(rows, "mine", NOW).price("x", "r", Market.RESERVED)
    assert reserved is not None
    assert (reserved.low, reserved.mid, reserved.high) == (1.0, 1.5, 1.5)


@pytest.mark.parametrize(
    ("label", "bounds"),
    [("<5%", (0, 0.05)), ("5-10%", (0.05, 0.1)), (">20%", (0.2, 1))],
)
def test_interruption_labels_become_shares(label: str, bounds: tuple[float, float]) -> None:
    band = interruption_band(label)
    assert band is not None
    assert (band.low, band.high) == bounds


def test_an_unreadable_interruption_label_is_an_error() -> None:
    assert interruption_band("") is None
    with pytest.raises(ValueError, match="often"):
        interruption_band("often")


def test_a_band_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="not ordered"):
        PriceBand(low=2, mid=1, high=3, source=PriceSource(name="x", as_of=NOW))


def test_quotes_count_for_the_time_that_they_held() -> None:
    history = [quote(0.9, 100), quote(0.4, 90), quote(0.5, 2)]
    band = known(spot_band(history, NOW, 1.0))
    assert (band.low, band.mid, band.high) == (0.4, 0.4, 0.9)
    assert band.source.as_of == NOW - timedelta(hours=2)


def test_time_before_the_window_does_not_count() -> None:
    history = [quote(0.9, 400), quote(0.8, 200), quote(0.4, 1)]
    band = known(spot_band(history, NOW, 1.0))
    assert (band.low, band.mid, band.high) == (0.8, 0.8, 0.8)


def test_a_single_quote_of_this_moment_is_the_price() -> None:
    band = known(spot_band([quote(0.3, 0)], NOW, 1.0))
    assert (band.low, band.mid, band.high) == (0.3, 0.3, 0.3)


def test_a_price_of_a_thousandth_of_a_cent_is_implausible_not_a_bargain() -> None:
    found = unknown(spot_band([quote(0.00001, 1)], NOW, 1.0))
    assert found.reason is UnknownReason.IMPLAUSIBLE
    assert "1e-05" in found.detail
    assert unknown(spot_band([quote(1.6, 1)], NOW, 1.0)).reason is UnknownReason.IMPLAUSIBLE


def test_a_quote_of_2006_is_stale() -> None:
    old = SpotQuote("a", 0.4, datetime(2006, 1, 1, tzinfo=UTC))
    assert unknown(spot_band([old], NOW, 1.0)).reason is UnknownReason.STALE


def test_no_quote_and_quotes_of_the_future_are_missing() -> None:
    assert unknown(spot_band([], NOW, 1.0)).reason is UnknownReason.MISSING
    assert unknown(spot_band([quote(0.4, -1)], NOW, 1.0)).reason is UnknownReason.MISSING


def test_a_stale_zone_is_left_out_and_an_implausible_one_gives_the_reason() -> None:
    history = [quote(0.4, 1, "good"), quote(0.1, 300, "stale"), quote(9.0, 1, "mad")]
    band = known(spot_band(history, NOW, 1.0))
    assert (band.low, band.high) == (0.4, 0.4)
    assert unknown(spot_band(history[1:], NOW, 1.0)).reason is UnknownReason.IMPLAUSIBLE


def test_zones_are_ordered_by_price_and_unbelievable_ones_left_out() -> None:
    history = [quote(0.5, 1, "b"), quote(0.4, 1, "c"), quote(9, 1, "a")]
    assert zones_by_price(history, NOW, 1.0) == ("c", "b")


@given(
    st.lists(st.tuples(st.floats(0.06, 1.4), st.floats(0, 160), st.sampled_from("abc")), min_size=1)
)
def test_a_band_lies_within_the_quotes_whatever_they_are(
    rows: list[tuple[float, float, str]],
) -> None:
    history = [quote(price, hours, zone) for price, hours, zone in rows]
    found = spot_band(history, NOW, 1.0)
    if isinstance(found, PriceBand):
        assert min(q.usd_per_hour for q in history) <= found.low <= found.mid <= found.high
        assert found.high <= max(q.usd_per_hour for q in history)
    else:
        assert found.reason is UnknownReason.STALE
