"""Reads the configuration of one engine from YAML, and asks an installed engine for its flags."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pydantic import ValidationError

from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.yaml_file import FileKind, content_of, wrong
from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.ids import DeploymentId
from optiinfra.serving.engines import EngineConfig, SglangConfig, VllmConfig
from optiinfra.serving.flags import disagreements, flag_table
from optiinfra.serving.manifests import Workload

_TYPES: dict[str, type[EngineConfig]] = {
    Engine.VLLM.value: VllmConfig,
    Engine.SGLANG.value: SglangConfig,
}
_ANSWER_S = 120.0


def load_engine(path: Path) -> EngineConfig:
    """The configuration in a file. Raises `Rejected` that names the bad keys."""
    content = content_of(path, _kind(VllmConfig))
    chosen = type_of(str(content.get("engine")))
    try:
        return chosen.model_validate(content)
    except ValidationError as invalid:
        raise wrong(path, _kind(chosen), invalid) from invalid


def declared_engines(fleet: Fleet) -> dict[DeploymentId, EngineConfig]:
    """What the deployments that name an engine file say of it. Raises `Rejected` as `load_engine`.

    Also when the file is of another engine than the deployment's.
    """
    found = {}
    for deployment in fleet.deployments:
        if deployment.engine_file is not None:
            config = load_engine(deployment.engine_file)
            if config.engine is not deployment.engine:
                raise Rejected(
                    f"{deployment.engine_file} is of {config.engine.value}, but {deployment.id}"
                    f" is served by {deployment.engine.value}",
                    hint="make them agree",
                )
            found[deployment.id] = config
    return found


def type_of(engine: str) -> type[EngineConfig]:
    """The type of an engine's configuration. Raises `Rejected` for others."""
    chosen = _TYPES.get(engine)
    if chosen is None:
        raise Rejected(f"engine must be one of {', '.join(_TYPES)}", hint=f"not {engine!r}")
    return chosen


def workload(name: str, image: str, replicas: int) -> Workload:
    """What a manifest needs besides the engine. Raises `Rejected` for what Kubernetes refuses."""
    try:
        return Workload(name=name, image=image, replicas=replicas)
    except ValidationError as invalid:
        key = invalid.errors()[0]["loc"][0]
        raise Rejected(
            f"--{key} is none that Kubernetes takes",
            hint="names are lower case; an image has a tag or a digest",
        ) from invalid


def installed_vllm(executable: Path) -> tuple[str, tuple[str, ...]]:
    """Version of an installed vLLM, and what our table says otherwise than its own help."""
    version = _said(executable, "--version").split()[-1:]
    listed = _said(executable, "serve", "--help=all")
    if not version or "--model" not in listed:
        raise Rejected(f"{executable} does not answer as vLLM does", hint="name bin/vllm")
    return version[0], disagreements(flag_table(Engine.VLLM), version[0], listed)


def _said(executable: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(  # noqa: S603 - the program that the user named
            [str(executable), *arguments], capture_output=True, text=True, timeout=_ANSWER_S,
            check=False,
        )  # fmt: skip
    except OSError as missing:
        raise Rejected(f"{executable} cannot be run: {missing}", hint="name bin/vllm") from missing
    except subprocess.TimeoutExpired as slow:
        raise Unavailable(f"{executable} says nothing for {_ANSWER_S:g} s") from slow
    return answer.stdout


def _kind(model: type[EngineConfig]) -> FileKind:
    return FileKind(
        "engine file", model, "`optiinfra engine knobs`", needs="engine",
        checked_by="optiinfra engine show",
    )  # fmt: skip
