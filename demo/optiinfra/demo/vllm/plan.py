"""The demo's fleet as a person would declare it: one vLLM server, badly configured."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml

from optiinfra.runtime.fleet import Fleet
from optiinfra.schemas.tuning import KnobValue
from optiinfra.serving.engines import VllmConfig

TENANT, DEPLOYMENT, MODEL = "demo", "qa", "tinyqa"
BAD_BATCH = 2
"""`max_num_seqs` that the server is started with; everything else is left to the engine."""
TRIALS = 6
MEASURE_S = 10.0
"""How long a replay is measured at least: the fast configurations serve it in two seconds."""
STUDY_S = 20.0
"""The same in the study, which tells configurations apart that differ by a tenth: some eight turns
of each."""
GRID: tuple[dict[str, KnobValue], ...] = tuple(
    {"max_num_seqs": seqs, "max_num_batched_tokens": tokens}
    for seqs in (8, 16, 32, 64, 128, 256)
    for tokens in (1024, 2048, 8192)
)
"""What vLLM's own tuner would walk through; a third of it is what ours may try."""
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
"""Unbound: vLLM would bind every server of this machine to the same first cores. And the model runs
in the engine's own process: beside it, each of the two spins for a second while it waits for the
other, on a small machine often on the core that the other needs."""


@dataclass(frozen=True, slots=True)
class Question:
    prompt: str
    answer: str


def questions() -> tuple[Question, ...]:
    """Facts that the model has learnt, as questions with their answers."""
    text = (files("optiinfra.demo.vllm") / "models" / "closed.jsonl").read_text("utf-8")
    return tuple(Question(**json.loads(line)) for line in text.splitlines())


@dataclass(frozen=True, slots=True)
class Models:
    """Folders with weights: the one that is served, an equal one and two that answer worse."""

    served: Path
    equal: Path
    worse: Path
    broken: Path


def models_in(home: Path) -> Models:
    """The models, copied into `home`."""
    with as_file(files("optiinfra.demo.vllm") / "models") as shipped:
        sources = {"served": MODEL, "equal": MODEL, "worse": f"{MODEL}-worse"}
        sources["broken"] = f"{MODEL}-broken"
        found = {}
        for name, source in sources.items():
            found[name] = home / "models" / f"{MODEL}-{name}"
            shutil.copytree(shipped / source, found[name])
    return Models(**found)


def engine(models: Models, **knobs: Any) -> VllmConfig:
    """The server's configuration."""
    return VllmConfig(model=str(models.served), max_num_seqs=BAD_BATCH, **knobs)


def command(executable: Path) -> list[str]:
    """How an engine is started; its configuration stands where the last word is."""
    return [
        str(executable), "serve", "{weights}", "--served-model-name", "{model}",
        "--host", "{host}", "--port", "{port}", "{engine_arguments}",
    ]  # fmt: skip


def written(home: Path, executable: Path, models: Models) -> Path:
    """Writes fleet file, engine file and golden set into `home`; the fleet file's path."""
    golden = [
        {
            "id": hashlib.sha256(one.prompt.encode()).hexdigest()[:12],
            "stratum": "closed", "prompt": one.prompt, "answer": one.answer,
        }
        for one in questions()
    ]  # fmt: skip
    (home / "golden.jsonl").write_text("".join(json.dumps(one) + "\n" for one in golden), "utf-8")
    _dump(home / "engine.yaml", {"engine": "vllm", **engine(models).knobs()})
    content = fleet(executable)
    Fleet.model_validate(content)
    return _dump(home / "fleet.yaml", content)


def fleet(executable: Path) -> dict[str, Any]:
    """The fleet file. A person approves every change."""
    return {
        "tenant": TENANT,
        "mode": "act",
        "clouds": {"local": {"command": command(executable), "engine_version": "0.32.0"}},
        "deployments": [
            {
                "id": DEPLOYMENT,
                "model": MODEL,
                "provider": "local",
                "slo": {"ttft_p95_s": 1.0, "tpot_p95_s": 0.2},
                "engine_file": "engine.yaml",
                "golden": "golden.jsonl",
                "start": {"replicas": 1},
                "tuning": {
                    "trials": TRIALS, "window_s": 60, "traffic_s": 1800, "requests": 300,
                    "min_requests": 250, "every_s": 5, "ready_s": 600, "measure_s": STUDY_S,
                    "beside_best": True, "saturation": 32,
                },
            }
        ],
        "rules": {
            "name": "demo", "max_vote_rounds": 60, "revote_after_s": 5, "movers_per_hour": None,
        },
        "timing": {
            "sense_every_s": 2, "heartbeat_s": 5, "stage_soak_s": [5, 5, 5], "hold_limit_s": 240,
            "look_every_s": 2, "apply_timeout_s": 600, "drain_timeout_s": 60, "window_s": 60,
            "golden_per_look": 30, "baseline_every_s": 120, "min_gate_samples": 20,
            "load_step_s": 5, "start_up_s": 60,
        },
        "sample_fraction": 1.0,
    }  # fmt: skip


def _dump(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), "utf-8")
    return path
