"""The web pages: built of the sources that stand here, and served so that nothing foreign runs."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from optiinfra.portal_api import openapi
from optiinfra.portal_api.app import create_app
from optiinfra.portal_api.pages import BUILT, POLICY

PORTAL = Path(__file__).parents[2] / "portal"
NOT_BUILT_FROM = {"node_modules", "built.json", "README.md"}
REBUILD = "run: make pages (it needs Node 20)"
INDEX = (BUILT / "index.html").read_text(encoding="utf-8")
SCRIPT = re.search(r'src="/(assets/index-[^"]+[.]js)"', INDEX)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    nothing: Any = None
    transport = httpx.ASGITransport(create_app(nothing), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as made:
        yield made


def digests(root: Path, skipped: set[str]) -> dict[str, str]:
    kept = [path for path in root.iterdir() if path.name not in skipped]
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for top in kept
        for path in (top.rglob("*") if top.is_dir() else [top])
        if path.is_file()
    }


def test_the_built_pages_are_those_of_the_sources() -> None:
    built = json.loads((PORTAL / "built.json").read_text(encoding="utf-8"))
    assert digests(PORTAL, NOT_BUILT_FROM) == built["sources"], REBUILD
    assert digests(BUILT, set()) == built["pages"], REBUILD


def test_the_types_of_the_pages_are_those_of_the_api() -> None:
    kept = (PORTAL / "openapi.json").read_text(encoding="utf-8")
    assert kept == openapi.document(), REBUILD


def test_the_document_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    assert openapi.main([]) == 2
    assert openapi.main([str(tmp_path / "api.json")]) == 0
    assert (tmp_path / "api.json").read_text(encoding="utf-8") == openapi.document()


def test_the_lock_file_names_no_address() -> None:
    assert "resolved" not in (PORTAL / "package-lock.json").read_text(encoding="utf-8")


def test_no_script_stands_in_the_page_itself() -> None:
    assert re.findall(r"<script[^>]*>", INDEX)
    assert not re.findall(r"<script(?![^>]*src=)", INDEX)
    assert not re.findall(r"\son[a-z]+=|style=", INDEX)


@pytest.mark.parametrize("path", ["/", "/recommendations", "/executions?id=1", "/no/such/page"])
async def test_every_address_gives_the_page_under_a_strict_policy(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.text) == (200, INDEX)
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"] == POLICY
    assert "script-src 'self';" in POLICY
    assert "unsafe" not in POLICY
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/api", "/api/nothing", "/api/v1/nothing", "/assets/none.js"])
async def test_what_the_api_lacks_is_a_problem_and_never_the_page(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.json()["detail"] == f"there is no {path}"
    assert "script-src" not in answer.headers["content-security-policy"]


async def test_hashed_files_are_kept_for_ever_and_others_are_asked_for_again(
    client: httpx.AsyncClient,
) -> None:
    assert SCRIPT is not None
    script = await client.get(f"/{SCRIPT[1]}")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "immutable" in script.headers["cache-control"]
    theme = await client.get("/theme.js")
    assert theme.headers["cache-control"] == "no-cache"
    same = await client.get("/theme.js", headers={"If-None-Match": theme.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")


async def test_files_are_sent_compressed_to_those_who_can_read_it(
    client: httpx.AsyncClient,
) -> None:
    assert SCRIPT is not None
    plain = await client.get(f"/{SCRIPT[1]}", headers={"Accept-Encoding": "identity"})
    packed = await client.get(f"/{SCRIPT[1]}", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content
    assert int(packed.headers["content-length"]) == len(gzip.compress(plain.content, mtime=0))


async def test_a_page_can_only_be_read(client: httpx.AsyncClient) -> None:
    answer = await client.post("/recommendations")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert (await client.head("/")).status_code == 200


@pytest.mark.parametrize("path", ["/../app.py", "/%2e%2e/app.py", "/assets/../../app.py"])
async def test_nothing_beside_the_pages_can_be_read(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert "create_app" not in answer.text
