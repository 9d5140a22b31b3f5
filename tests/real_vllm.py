"""A real vLLM server for tests, where `OPTIINFRA_VLLM` names its executable."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.captures import TINY_MODEL

VLLM = os.environ.get("OPTIINFRA_VLLM", "")
needs_vllm = pytest.mark.skipif(
    not (VLLM and Path(VLLM).is_file() and TINY_MODEL.is_dir()),
    reason="OPTIINFRA_VLLM names no vLLM executable, or the shared tiny model is not here",
)
MODEL_NAME = "tiny"
_START_S, _STOP_S, _POLL_S = 240.0, 30.0, 0.5
_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


@asynccontextmanager
async def running(arguments: Sequence[str], port: int, log: Path) -> AsyncIterator[str]:
    """A server started with `arguments` (after `vllm`), and its URL once it answers.

    It has a process group of its own, which ends with it.
    """
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            VLLM, *arguments, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, **_ENVIRONMENT},
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        await _until_ready(process, url, log)
        yield url
    finally:
        await _end(process)


async def output_of(*arguments: str) -> tuple[int, str]:
    """Exit status and output of a call that ends by itself."""
    process = await asyncio.create_subprocess_exec(
        VLLM, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        start_new_session=True, env={**os.environ, **_ENVIRONMENT},
    )  # fmt: skip
    try:
        async with asyncio.timeout(_START_S):
            output, _ = await process.communicate()
    finally:
        await _end(process)
    return process.returncode or 0, output.decode("utf-8", "replace")


async def _until_ready(process: asyncio.subprocess.Process, url: str, log: Path) -> None:
    async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(_START_S):
        while True:
            if process.returncode is not None:
                pytest.fail(f"vLLM ended at its start:\n{log.read_text('utf-8')[-3000:]}")
            with suppress(httpx.HTTPError):
                if (await http.get(f"{url}/health")).is_success:
                    return
            await asyncio.sleep(_POLL_S)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Asks it to end, then ends its whole group: its engines are processes of their own."""
    if process.returncode is None:
        process.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def completed(url: str, prompts: Sequence[str], tokens: int) -> int:
    """Asks for `tokens` tokens after each prompt, all at once; gives how many came."""

    async def ask(http: httpx.AsyncClient, prompt: str) -> int:
        body = {
            "model": MODEL_NAME, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True,
            "temperature": 0,
        }  # fmt: skip
        answer = await http.post(f"{url}/v1/completions", json=body)
        answer.raise_for_status()
        return int(answer.json()["usage"]["completion_tokens"])

    async with httpx.AsyncClient(trust_env=False, timeout=60) as http, asyncio.TaskGroup() as group:
        asked = [group.create_task(ask(http, prompt)) for prompt in prompts]
    return sum(task.result() for task in asked)
