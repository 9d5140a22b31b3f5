"""Emulated replicas with a planted cause: healthy ones, and the same with one thing made worse.

Every draw depends on the cause and the seed alone. Loads are sized from the card, so that the plant
binds whatever the card is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from math import exp, inf
from random import Random

from optiinfra.schemas.deployment import SLO
from optiinfra.schemas.errors import Invariant
from optiinfra.serving.bottleneck_table import Cause
from optiinfra.serving.cards import PerfCard, load_card
from optiinfra.serving.scheduler import SchedulerConfig
from optiinfra.serving.simulation import Arrival, percentile
from optiinfra.serving.steps import decode_step_ms, prefill_ms
from optiinfra.twin.defects import Defect
from optiinfra.twin.endpoints import Emulation
from optiinfra.twin.recording import Recording, Served, record

CARDS = (
    "h100-8b-fp16-tp1", "h100-8b-fp8-tp1", "a100-8b-fp16-tp1", "l40s-8b-fp16-tp1",
    "l40s-8b-fp8-tp1", "h100-32b-fp16-tp2", "h100-70b-fp16-tp4", "h100-70b-fp8-tp2",
)  # fmt: skip
EVERY_S, WARM_UP_S, WINDOW_S = 5.0, 60.0, 60.0
"""Scrapes; what happens before the window; the window."""
TPOT_BOUNDS_S = (0.01, 0.025, 0.05)
"""Objectives for TPOT: where vLLM's buckets end, so that a histogram can tell."""
BLOCK = 16
MOST_DRAWS = 200
CLEARLY = 0.1
"""How far, ÷ the objective, a latency lies inside or outside it for a draw to count."""
ROOMY = SchedulerConfig(max_model_len=262_144)


@dataclass(frozen=True, slots=True)
class Load:
    """Traffic: mean lengths in tokens; `families` share their first `shared` prompt tokens.

    `cv` is the variation of the gaps between arrivals (1 is Poisson), `spread` the standard
    deviation of the logarithm of lengths.
    """

    rate_rps: float
    prompt: float
    output: float
    cv: float = 1.0
    spread: float = 0.3
    shared: int = 0
    families: int = 1


@dataclass(frozen=True, slots=True)
class Setting:
    """A replica and what is put to it; `away_s` passes outside the engine before a first token."""

    card: PerfCard
    load: Load
    slo: SLO = field(default_factory=SLO)
    config: SchedulerConfig = ROOMY
    away_s: float = 0.01


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a setting; `traffic` is the seed of its arrivals."""

    setting: Setting
    traffic: float
    made: Recording

    @property
    def ttft_strain(self) -> float:
        """TTFT p95 that clients see in the window ÷ its objective; infinite if none had a token."""
        seen = [one.ttft_s + self.setting.away_s for one in self._window()]
        return percentile(seen, 0.95) / self.setting.slo.ttft_p95_s if seen else inf

    @property
    def tpot_strain(self) -> float:
        """As `ttft_strain`, for TPOT."""
        seen = [one.tpot_s for one in self._window() if one.tpot_s is not None]
        return percentile(seen, 0.95) / self.setting.slo.tpot_p95_s if seen else inf

    def _window(self) -> list[Served]:
        return [one for one in self.made.served if one.first_s >= WARM_UP_S]


@dataclass(frozen=True, slots=True)
class Planted:
    """A replica without and with the cause, and how many draws it took to find one."""

    cause: Cause
    draws: int
    healthy: Run
    bound: Run


def plant(cause: Cause, seed: int) -> Planted:
    """The seed's replica with this cause, run without and with it.

    A draw in which the plant does not harm what it is about (TPOT for memory bandwidth, else TTFT),
    or the replica misses its objectives without it, is drawn again: by what its clients see, never
    by what a finder says.
    """
    for draw in range(MOST_DRAWS):
        random = Random(f"{cause}:{seed}:{draw}")
        settings = _PLANTS[cause](random, load_card(random.choice(CARDS)))
        healthy = run(settings[0], random.random())
        if max(healthy.ttft_strain, healthy.tpot_strain) > 1 - CLEARLY:
            continue
        bound = run(settings[1], random.random())
        is_tpot = cause is Cause.MEMORY_BANDWIDTH
        if (bound.tpot_strain if is_tpot else bound.ttft_strain) > 1 + CLEARLY:
            return Planted(cause, draw + 1, healthy, bound)
    raise Invariant(f"no draw of {cause} with seed {seed} does harm")


def run(setting: Setting, traffic: float, hidden: tuple[str, ...] = ()) -> Run:
    """Two minutes of a replica; `hidden` families are left out of what it exposes."""
    span_s = WARM_UP_S + WINDOW_S
    emulation = Emulation(
        card=setting.card, model="m", seed=0, time_scale=1.0, scheduler=setting.config,
        defect=Defect(hide_metrics=hidden),
    )  # fmt: skip
    made = record(
        emulation, _arrivals(setting.load, traffic, span_s),
        scrape_every_s=EVERY_S, scrapes=round(span_s / EVERY_S),
    )  # fmt: skip
    return Run(setting, traffic, made)


def _arrivals(load: Load, traffic: float, until_s: float) -> list[Arrival]:
    """Gamma-distributed gaps, log-normal lengths, families of prompts drawn evenly."""
    random, found, at_s = Random(traffic), list[Arrival](), 0.0
    shape = 1 / load.cv**2
    while (at_s := at_s + random.gammavariate(shape, 1 / (shape * load.rate_rps))) < until_s:
        own = _length(random, load.prompt - load.shared, load.spread)
        family = random.randrange(load.families)
        hashes = [family * 100_000 + block for block in range(load.shared // BLOCK)]
        output = _length(random, load.output, load.spread)
        found.append(Arrival(at_s, load.shared + own, output, hashes))
    return found


def _length(random: Random, mean: float, spread: float) -> int:
    factor = exp(random.gauss(0, spread) - spread**2 / 2)
    return max(1, round(mean * min(3.0, factor)))


def _service_s(card: PerfCard, load: Load, batch: float) -> float:
    """Decode of one request in such a batch, s."""
    tokens = batch * (load.prompt + load.output / 2)
    return load.output * decode_step_ms(card, round(batch), round(tokens)) / 1e3


def _at_batch(card: PerfCard, load: Load, batch: float, most_prefill: float) -> Load:
    """The load whose requests fill `batch` on their own, but with at most this prefill share."""
    prefill_s = prefill_ms(card, [(load.shared, max(1, round(load.prompt) - load.shared))]) / 1e3
    rate = batch / (_service_s(card, load, batch) + batch * prefill_s)
    return replace(load, rate_rps=min(rate, most_prefill / prefill_s))


def _batch(card: PerfCard, load: Load) -> float:
    """The batch that a load fills when nothing holds it back (a fixed point, from below)."""
    prefill_s = prefill_ms(card, [(load.shared, max(1, round(load.prompt) - load.shared))]) / 1e3
    free, batch = max(0.1, 1 - load.rate_rps * prefill_s), 1.0
    for _ in range(60):
        batch = min(2000.0, load.rate_rps * _service_s(card, load, batch) / free)
    return max(1.0, batch)


def _chat(random: Random, prompt: tuple[float, float], output: tuple[float, float]) -> Load:
    """Traffic of these mean lengths; half of the deployments have a common system prompt."""
    mean = random.uniform(*prompt)
    shared = BLOCK * int(random.uniform(0.2, 0.6) * mean / BLOCK) if random.random() < 0.5 else 0
    return Load(
        1.0,
        mean,
        random.uniform(*output),
        random.uniform(0.8, 1.6),
        random.uniform(0.2, 0.6),
        shared,
    )


def _cap(random: Random, card: PerfCard) -> tuple[Setting, Setting]:
    """`max_num_seqs` set far under what the traffic fills."""
    load = _at_batch(card, _chat(random, (150, 500), (150, 400)), random.uniform(30, 120), 0.35)
    healthy = Setting(card, load)
    seqs = max(2, round(_batch(card, load) * random.uniform(0.3, 0.75)))
    return healthy, _with(healthy, max_num_seqs=seqs)


def _kv(random: Random, card: PerfCard) -> tuple[Setting, Setting]:
    """A small KV cache under long prompts: the next one does not fit."""
    longest = _tokens_of(card, 0.2)
    load = _chat(random, (longest / 2, longest), (longest / 16, longest / 8))
    load = _at_batch(card, load, 0.45 * card.kv_tokens / load.prompt, 0.3)
    healthy = Setting(card, load, SLO(ttft_p95_s=1.0))
    return healthy, _with(healthy, kv_tokens=_kv_tokens(random, card, load, 3.0))


def _preemption(random: Random, card: PerfCard) -> tuple[Setting, Setting]:
    """A small KV cache under long answers: they are admitted, and then outgrow it."""
    load = _chat(random, (60, 400), (400, 900))
    load = _at_batch(card, load, random.uniform(60, 160), 0.35)
    healthy = Setting(card, load)
    return healthy, _with(healthy, kv_tokens=_kv_tokens(random, card, load, 8.0))


def _kv_tokens(random: Random, card: PerfCard, load: Load, requests: float) -> int:
    """Less KV than the load fills, and still room for a few requests."""
    whole = load.prompt + load.output
    filled = _batch(card, load) * (load.prompt + load.output / 2)
    return round(max(requests * whole, filled * random.uniform(0.35, 0.7)))


def _compute(random: Random, card: PerfCard) -> tuple[Setting, Setting]:
    """Prompts grow: more tokens than the card computes, or one prompt takes too long."""
    short = replace(_chat(random, (200, 500), (20, 80)), shared=0)
    if random.random() < 0.3:
        tokens, share = _tokens_of(card, random.uniform(0.8, 1.5)), random.uniform(0.2, 0.35)
    else:
        tokens, share = random.uniform(1000, 6000), random.uniform(0.95, 1.8)
    long = replace(short, prompt=tokens)
    rate = share / (prefill_ms(card, [(0, round(tokens))]) / 1e3)
    healthy = Setting(card, replace(short, rate_rps=rate))
    return healthy, replace(healthy, load=replace(long, rate_rps=rate))


def _tokens_of(card: PerfCard, prefill_s: float) -> float:
    """A prompt whose prefill takes this long alone."""
    return next(n for n in count(1000, 500) if prefill_ms(card, [(0, n)]) / 1e3 > prefill_s)


def _bandwidth(random: Random, card: PerfCard) -> tuple[Setting, Setting]:
    """Traffic grows until the batch's decode step is longer than the objective allows."""
    load = _chat(random, (50, 900), (300, 700))
    whole = load.prompt + load.output / 2
    batch = min(220.0, random.uniform(0.5, 0.75) * card.kv_tokens / whole)
    step_s = _service_s(card, load, batch) / load.output
    objective_s = max(TPOT_BOUNDS_S, key=lambda bound_s: (bound_s < step_s, bound_s))
    bound = Setting(card, _at_batch(card, load, batch, 0.2), SLO(tpot_p95_s=objective_s))
    rate = bound.load.rate_rps * random.uniform(0.05, 0.15)
    return replace(bound, load=replace(bound.load, rate_rps=rate)), bound


def _misses(random: Random, card: PerfCard) -> tuple[Setting, Setting]:
    """Requests reach a replica that has not their prefix, or one with no room to keep it."""
    shared = BLOCK * random.randint(120, 300)
    load = Load(
        1.0, shared + random.uniform(100, 300), random.uniform(20, 80), random.uniform(0.8, 1.6),
        random.uniform(0.2, 0.6), shared, round(random.uniform(0.1, 0.5) * card.kv_tokens / shared),
    )  # fmt: skip
    rate = random.uniform(1.0, 1.5) / (prefill_ms(card, [(0, round(load.prompt))]) / 1e3)
    healthy = Setting(card, replace(load, rate_rps=rate))
    if random.random() < 0.5:
        scattered = replace(healthy.load, families=random.randint(2_000, 1_000_000))
        return healthy, replace(healthy, load=scattered)
    kept = round(load.families * shared * random.uniform(0.2, 0.5))
    return healthy, _with(healthy, kv_tokens=max(kept, round(4 * load.prompt)))


def _network(random: Random, card: PerfCard) -> tuple[Setting, Setting]:
    """Requests and first tokens are long on the way."""
    load = _at_batch(card, _chat(random, (150, 800), (100, 400)), random.uniform(5, 40), 0.25)
    healthy = Setting(card, load)
    return healthy, replace(healthy, away_s=random.uniform(0.45, 1.2))


def _overload(random: Random, card: PerfCard) -> tuple[Setting, Setting]:
    """More traffic than one replica serves, with cap and KV cache both put to use."""
    cap = random.choice([128, 256])
    whole = random.uniform(0.57, 0.83) * card.kv_tokens / cap
    output = min(900.0, whole / 1.5)
    load = Load(1.0, whole - output / 2, output, random.uniform(0.8, 1.6), random.uniform(0.2, 0.6))
    config = SchedulerConfig(max_num_seqs=cap, max_model_len=65_536)
    full = _at_batch(card, load, cap, 0.9)
    rate = full.rate_rps * random.uniform(1.2, 2.0)
    bound = Setting(card, replace(full, rate_rps=rate), SLO(ttft_p95_s=1.0), config)
    rate = full.rate_rps * random.uniform(0.2, 0.35)
    return replace(bound, load=replace(load, rate_rps=rate)), bound


def _with(setting: Setting, **changes: int) -> Setting:
    return replace(setting, config=setting.config.model_copy(update=changes))


_PLANTS: dict[Cause, Callable[[Random, PerfCard], tuple[Setting, Setting]]] = {
    Cause.SCHEDULER_CAP: _cap,
    Cause.KV_CAPACITY: _kv,
    Cause.PREEMPTION: _preemption,
    Cause.COMPUTE: _compute,
    Cause.MEMORY_BANDWIDTH: _bandwidth,
    Cause.PREFIX_MISSES: _misses,
    Cause.NETWORK: _network,
    Cause.QUEUE: _overload,
}
CAUSES = tuple(_PLANTS)
