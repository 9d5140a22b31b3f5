"""`optiinfra engine`: command lines and manifests of engines, and what changes between two."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from optiinfra.runtime import console
from optiinfra.runtime.cli_options import Json

DIFFERS = 5

app = typer.Typer(no_args_is_help=True, help="What an engine is started with.")

Configuration = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="The engine's knobs, as YAML.")
]
Version = Annotated[
    str | None, typer.Option("--for", help="The engine's version; else the newest known.")
]


@app.command()
def knobs(
    engine: Annotated[str, typer.Argument(help="vllm or sglang.")],
    version: Version = None,
) -> None:
    """Lists the knobs of an engine, and the flag of each in a version."""
    from optiinfra.runtime.engine_file import type_of
    from optiinfra.serving.flags import flag_table
    from optiinfra.serving.versions import parse_version

    config, parsed = type_of(engine), parse_version(version)
    table, rows = flag_table(config.model_fields["engine"].default), []
    for name, field in config.model_fields.items():
        if name in ("engine", "extra_arguments"):
            continue
        flag = table.flag_of(name, parsed)
        taken = " ".join(flag.choices_in(parsed)) if flag else ""
        restart = "no" if table.live_in(name, parsed) else "yes"
        rows.append((name, flag.name if flag else None, restart, taken, field.description))
    console.table(("knob", "flag", "restart", "values", "what"), rows)


@app.command()
def show(
    path: Configuration,
    version: Version = None,
    image: Annotated[
        str | None, typer.Option("--image", help="A Kubernetes Deployment that runs this image.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="The name of that Deployment.")] = "engine",
    replicas: Annotated[int, typer.Option("--replicas", min=0, help="Its pods.")] = 1,
    as_json: Json = False,
) -> None:
    """Prints the command line, or with --image the manifest; exits with 2 if it would not start."""
    from optiinfra.runtime.engine_file import load_engine, workload
    from optiinfra.serving.flags import flag_table
    from optiinfra.serving.launch import command, problems
    from optiinfra.serving.manifests import deployment
    from optiinfra.serving.versions import parse_version

    config = load_engine(path)
    words = command(config, version)
    for problem in problems(config, version):
        console.say(f"warning: {', '.join(problem.knobs)}: {problem.reason}")
    if version is not None and not flag_table(config.engine).checked(parse_version(version)):
        console.say(f"warning: {config.engine} {version} was not checked; known versions stand in")
    if image is not None:
        made = deployment(config, workload(name, image, replicas), version)
        _print(made, as_json=as_json)
    elif as_json:
        console.data(list(words))
    else:
        console.line(shlex.join(words))


@app.command()
def diff(before: Configuration, after: Configuration, version: Version = None) -> int:
    """Says what changes between two files and what needs a restart; exits with 5 if they differ."""
    from optiinfra.runtime.engine_file import load_engine
    from optiinfra.serving.config_diff import differences, needs_restart

    changes = differences(load_engine(before), load_engine(after), version)
    for change in changes:
        console.line(change.in_words)
    if not changes:
        console.line("the same")
        return 0
    console.line("a restart is needed" if needs_restart(changes) else "no restart is needed")
    return DIFFERS


@app.command()
def check(
    executable: Annotated[Path, typer.Argument(help="An installed vLLM, such as venv/bin/vllm.")],
) -> int:
    """Compares the flags known here with those that an installed vLLM lists itself."""
    from optiinfra.runtime.engine_file import installed_vllm

    version, found = installed_vllm(executable)
    for said in found:
        console.line(said)
    if found:
        return DIFFERS
    console.line(f"vllm {version}: all flags are as they are known here")
    return 0


def _print(manifest: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        console.data(manifest)
        return
    import yaml

    console.line(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True).rstrip())
