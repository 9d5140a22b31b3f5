"""Golden prompts with known answers, and asking replicas for them."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
from pydantic import Field, ValidationError

from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Rejected

ClientFactory = Callable[[], httpx.AsyncClient]
"""Opens a client for one run; the runner closes it."""

LEAST_ITEMS = 20
_OVERLOADED = 429


class GoldenItem(Value):
    """One prompt and the answer that is expected."""

    id: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    stratum: str = Field(default="all", min_length=1)
    prompt: str = Field(min_length=1)
    context: str | None = None
    answer: str = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """Items with unique ids."""

    items: tuple[GoldenItem, ...]

    def choose(self, salt: str, asked: Mapping[str, int], count: int) -> tuple[GoldenItem, ...]:
        """`count` items (all, if there are fewer), those asked least often first.

        Ties are broken by an order that `salt` alone decides, so that a change sees each prompt
        once before it sees any twice, and a repeated look asks the same prompts.
        """

        def rank(item: GoldenItem) -> tuple[int, bytes]:
            return asked.get(item.id, 0), hashlib.sha256(f"{salt}:{item.id}".encode()).digest()

        return tuple(sorted(self.items, key=rank)[:count])


def load_golden(path: Path | None = None) -> GoldenSet:
    """The set in `path` (JSON lines, also gzipped), or the one that ships.

    Raises `Rejected` naming the line and what is wrong with it.
    """
    if path is None:
        shipped = files("optiinfra.agents.application.data") / "golden.jsonl.gz"
        return parse_golden(gzip.decompress(shipped.read_bytes()).decode(), "golden.jsonl.gz")
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise Rejected(
            f"the golden set {path} cannot be read: {error}",
            hint="give a file of JSON lines in UTF-8, plain or gzipped",
        ) from error
    return parse_golden(text, str(path))


def parse_golden(text: str, origin: str) -> GoldenSet:
    """The items in `text`. Raises `Rejected` naming `origin`, the line and the field."""
    first_lines: dict[str, int] = {}
    items = []
    for number, item in _items(text, origin):
        if item.id in first_lines:
            raise Rejected(
                f"{origin}:{number}: id {item.id!r} stands in line {first_lines[item.id]} too"
            )
        first_lines[item.id] = number
        items.append(item)
    if len(items) < LEAST_ITEMS:
        raise Rejected(
            f"{origin} holds {len(items)} items, {LEAST_ITEMS} are the least",
            hint="a test with fewer prompts cannot see a drop of 5 %",
        )
    return GoldenSet(tuple(items))


def _items(text: str, origin: str) -> Iterator[tuple[int, GoldenItem]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, GoldenItem.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "line"
            raise Rejected(f"{origin}:{number}: {where}: {first['msg']}") from error


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt for one replica."""

    item: GoldenItem
    replica: str
    url: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    `unreached` says why nothing was learnt about the replica (no connection, no answer in time,
    too busy); otherwise `ok` says whether the engine answered, and `text` what. It was asked
    `asked_ago_s` before the run that it belongs to was over. One that was `turned_away` (HTTP 4xx)
    never was work for the engine.
    """

    ask: Ask
    ok: bool = False
    text: str = ""
    finish_reason: str | None = None
    unreached: str | None = None
    turned_away: bool = False
    asked_ago_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GoldenRunner:
    """Asks replicas directly, past the gateway, with greedy decoding.

    At most `per_replica` prompts are under way at one replica.
    """

    clients: ClientFactory
    max_tokens: int = 64
    per_replica: int = 4

    async def run(self, asks: Sequence[Ask], model: str, *, limit_s: float) -> list[Reply]:
        """A reply to each of `asks`, in their order, after at most `limit_s` seconds."""
        time = asyncio.get_running_loop().time
        deadline = time() + limit_s
        gates = {ask.replica: asyncio.Semaphore(self.per_replica) for ask in asks}

        async def one(ask: Ask) -> tuple[float, Reply]:
            asked = time()
            try:
                async with asyncio.timeout_at(deadline), gates[ask.replica]:
                    asked = time()
                    return asked, await self._ask(client, ask, model)
            except TimeoutError:
                return asked, Reply(ask, unreached=f"no answer within {limit_s:g} s")

        async with self.clients() as client, asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(ask)) for ask in asks]
        over = time()
        return [
            replace(reply, asked_ago_s=over - asked)
            for asked, reply in (task.result() for task in tasks)
        ]

    async def _ask(self, client: httpx.AsyncClient, ask: Ask, model: str) -> Reply:
        body = {
            "model": model,
            "prompt": ask.item.prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        try:
            response = await client.post(
                f"{ask.url.rstrip('/')}/v1/completions", json=body, timeout=None
            )
        except httpx.HTTPError as error:
            return Reply(ask, unreached=f"{type(error).__name__}: {error}".rstrip(": "))
        if response.status_code == _OVERLOADED:
            return Reply(ask, unreached="too busy (429)")
        return _read(ask, response)


def _read(ask: Ask, response: httpx.Response) -> Reply:
    """An answer that is no completion counts as the engine's failure."""
    try:
        response.raise_for_status()
        choice: Any = response.json()["choices"][0]
        text, finish_reason = choice["text"], choice.get("finish_reason")
    except (httpx.HTTPStatusError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Reply(ask, turned_away=response.is_client_error)
    if not isinstance(text, str):
        return Reply(ask)
    return Reply(ask, ok=True, text=text, finish_reason=finish_reason)
