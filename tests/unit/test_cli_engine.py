"""`optiinfra engine` without a server: command lines, manifests, differences, an engine's help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from optiinfra.runtime import cli

VLLM = "engine: vllm\nmodel: org/model\nmax_num_seqs: 256\n"
HELP = "options:\n  --model MODEL\n  --max-num-seqs N\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "engine.yaml"
    path.write_text(VLLM, encoding="utf-8")
    return path


def test_show_prints_a_command_that_a_shell_takes(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["engine", "show", str(file), "--for", "0.10.2"]) == 0
    told = capsys.readouterr().out
    assert told == "vllm serve org/model --host 0.0.0.0 --port 8000 --max-num-seqs 256\n"
    assert cli.run(["engine", "show", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[:3] == ["vllm", "serve", "org/model"]


def test_show_prints_a_manifest_of_the_same_command(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["engine", "show", str(file), "--image", "vllm:v1", "--name", "chat"]
    assert cli.run(wanted) == 0
    made = yaml.safe_load(capsys.readouterr().out)
    assert made["kind"] == "Deployment"
    command = made["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[-2:] == ["--max-num-seqs", "256"]
    assert cli.run([*wanted, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == made


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("swap_gib: 4\n", "has no flag for swap_gib"),
        ("max_num_batched_tokens: 8\n", "must be at least max_num_seqs"),
        ("max_num_seq: 8\n", "did you mean 'max_num_seqs'"),
    ],
)
def test_what_would_not_start_is_told_with_what_to_do(
    file: Path, more: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(VLLM + more, encoding="utf-8")
    assert cli.run(["engine", "show", str(file)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "  try: " in told


def test_a_knob_without_effect_is_a_warning(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(VLLM + "kv_cache_bytes: 9\ngpu_memory_fraction: 0.9\n", encoding="utf-8")
    assert cli.run(["engine", "show", str(file)]) == 0
    assert "warning: kv_cache_bytes, gpu_memory_fraction: " in capsys.readouterr().err


@pytest.mark.parametrize(("version", "warned"), [("0.33.0", 0), ("0.99", 1), ("nightly", 1)])
def test_a_version_that_nobody_checked_is_a_warning(
    file: Path, version: str, warned: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["engine", "show", str(file), "--for", version]) == 0
    assert capsys.readouterr().err.count("was not checked") == warned


def test_another_engine_and_a_bad_image_are_refused(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["engine", "show", str(file), "--image", "latest"]) == 2
    assert "--image is none that Kubernetes takes" in capsys.readouterr().err
    file.write_text("engine: tgi\nmodel: m\n", encoding="utf-8")
    assert cli.run(["engine", "show", str(file)]) == 2
    assert "engine must be one of vllm, sglang" in capsys.readouterr().err


def test_diff_tells_changes_and_restarts(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(VLLM.replace("256", "512"), encoding="utf-8")
    assert cli.run(["engine", "diff", str(file), str(other)]) == 5
    assert capsys.readouterr().out.splitlines() == [
        "max_num_seqs: 256 → 512 (--max-num-seqs), needs a restart", "a restart is needed",
    ]  # fmt: skip
    assert cli.run(["engine", "diff", str(file), str(file)]) == 0
    assert capsys.readouterr().out == "the same\n"


def test_diff_tells_what_needs_no_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for size in (2, 4):
        paths.append(tmp_path / f"{size}.yaml")
        text = f"engine: sglang\nmodel: m\nmicro_batch: {size}\n"
        paths[-1].write_text(text, encoding="utf-8")
    assert cli.run(["engine", "diff", *map(str, paths), "--for", "0.5.10"]) == 5
    assert capsys.readouterr().out.endswith("no restart is needed\n")


def test_knobs_lists_flags_and_values_of_a_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["engine", "knobs", "sglang", "--for", "0.5.10"]) == 0
    rows = {line.split("\t")[0]: line.split("\t") for line in capsys.readouterr().out.splitlines()}
    assert rows["kv_cache_dtype"][1:4] == [
        "--kv-cache-dtype", "yes", "auto fp8_e5m2 fp8_e4m3 bf16 bfloat16 fp4_e2m1",
    ]  # fmt: skip
    assert rows["micro_batch"][2] == "no"
    assert cli.run(["engine", "knobs", "tgi"]) == 2


def program(path: Path, answer: str) -> Path:
    path.write_text(f"#!/bin/sh\n{answer}", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_check_tells_what_an_installed_engine_lists_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = f'[ "$1" = --version ] && echo 0.32.0 && exit\ncat <<EOF\n{HELP}EOF\n'
    assert cli.run(["engine", "check", str(program(tmp_path / "vllm", said))]) == 5
    told = capsys.readouterr().out
    assert "--enforce-eager (enforce_eager) is no flag of this engine" in told
    assert "--max-num-seqs" not in told


@pytest.mark.parametrize("answer", ["exit 1\n", "echo 1\n"])
def test_check_refuses_what_is_no_vllm(
    tmp_path: Path, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["engine", "check", str(program(tmp_path / "vllm", answer))]) == 2
    assert "does not answer as vLLM does" in capsys.readouterr().err
    assert cli.run(["engine", "check", str(tmp_path / "missing")]) == 2
