"""The tuning loop on a real vLLM server, where `OPTIINFRA_VLLM` names one."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.real_vllm import VLLM, needs_vllm

_LONGEST_S = 2_700


@needs_vllm
@pytest.mark.timeout(_LONGEST_S + 60)
async def test_a_badly_configured_server_is_found_tuned_and_rolled_out(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "optiinfra.runtime.cli", "demo-vllm", "--yes", "--json"),
        *("--no-grid", "--vllm", VLLM, "--home", str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_LONGEST_S):
        told, said = await process.communicate()
    assert told, said.decode()[-3000:]
    line = json.loads(told.splitlines()[-1])
    assert line["complaints"] == [], said.decode()[-3000:]
    assert process.returncode == 0
    assert line["tokens_per_s"]["after"] >= 2.5 * line["tokens_per_s"]["before"]
