"""The rules of the house that no linter knows: packaging, names, sizes, hashes, deployment."""

from __future__ import annotations

import ast
import importlib
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = {"__pycache__", "node_modules", "htmlcov", "dist", "build"}
OURS_THOUGH_HIDDEN = {".ci", ".github"}
ROOMS = {
    "schemas": "schemas",
    "events": "events",
    "serving": "serving",
    "storage": "storage",
    "agents": "agents",
    "coordinator": "coordinator",
    "gateway": "gateway",
    "twin": "twin",
    "portal-api": "portal_api",
    "runtime": "runtime",
    "demo": "demo",
}
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
MAX_SUITE_LINES = 600
"""A suite is a list of sentences about one thing; cutting it in two helps nobody."""
VAGUE_NAMES = {"utils", "helpers", "common", "manager", "service"}
# Who reads the environment, and why it cannot take a setting instead.
READS_THE_ENVIRONMENT = {
    "bootstrap.py": "runs before there is an environment to install settings into",
    "runtime/optiinfra/runtime/settings.py": "is the settings",
}


def is_ours(folder: str) -> bool:
    return folder in OURS_THOUGH_HIDDEN or not (folder in NOT_OURS or folder.startswith("."))


def files(*suffixes: str) -> list[Path]:
    """Files of the project with one of the suffixes (all files without any), in order."""
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [name for name in subfolders if is_ours(name)]
        found += [Path(folder, name) for name in names if name.endswith(suffixes or "")]
    return sorted(path for path in found if not path.name.startswith(".coverage"))


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sources() -> list[Path]:
    """Python that ships or is run by hand; tests are held to their own habits."""
    return [path for path in files(".py") if not shown(path).startswith("tests/")]


def read_yaml(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
SERVICES: dict[str, dict[str, Any]] = read_yaml("compose.yaml")["services"]
ROLES = sorted(name for name, it in SERVICES.items() if it["image"].startswith("optiinfra-"))


# Packaging


def test_the_namespace_has_no_init_that_would_hide_the_other_portions() -> None:
    assert not [shown(p) for p in files("__init__.py") if p.parent.name == "optiinfra"]


@pytest.mark.parametrize("folder", ROOMS)
def test_a_room_is_an_importable_typed_package_that_introduces_itself(folder: str) -> None:
    package = importlib.import_module(f"optiinfra.{ROOMS[folder]}")
    home = ROOT / folder / "optiinfra" / ROOMS[folder]
    assert package.__file__ == str(home / "__init__.py")
    assert (home / "py.typed").is_file()
    assert (ROOT / folder / "README.md").is_file()


def test_every_list_of_rooms_in_pyproject_is_complete() -> None:
    tool = PROJECT["tool"]
    wheel = tool["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["packages"]) == {f"{folder}/optiinfra" for folder in ROOMS}
    assert set(wheel["dev-mode-dirs"]) == set(ROOMS)
    assert set(tool["mypy"]["mypy_path"]) == {*ROOMS, "."}
    assert set(tool["ruff"]["src"]) == {*ROOMS, "."}
    assert set(tool["pyright"]["extraPaths"]) == set(ROOMS)
    assert set(tool["coverage"]["run"]["source_pkgs"]) == {f"optiinfra.{n}" for n in ROOMS.values()}


def test_no_package_re_exports_from_its_init() -> None:
    for path in files("__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert len(body) <= 1, shown(path)
        assert all(isinstance(statement, ast.Expr) for statement in body), shown(path)


# Names and sizes


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert not [shown(path) for path in files(".py") if path.stem in VAGUE_NAMES]


def test_no_file_is_longer_than_one_idea() -> None:
    lengths = {shown(path): len(path.read_text("utf-8").splitlines()) for path in files(".py")}
    limits = {
        name: MAX_SUITE_LINES if name.startswith("tests/") else MAX_FILE_LINES for name in lengths
    }
    assert not {name: lines for name, lines in lengths.items() if lines > limits[name]}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_function_is_longer_than_a_screen() -> None:
    lengths = {
        f"{shown(path)}:{function.lineno} {function.name}": (function.end_lineno or 0)
        - function.lineno
        + 1
        for path in files(".py")
        if "/migrations/versions/" not in shown(path)  # a list of statements, never changed again
        for function in functions(path)
    }
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES}


def test_every_module_opens_with_what_it_is_for() -> None:
    modules = [path for path in sources() if path.name != "__init__.py"]
    assert not [shown(p) for p in modules if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]


def reads_environment(tree: ast.AST) -> bool:
    """Whether code asks for a variable; handing `os.environ` on whole to a child is no question."""
    asked = re.compile(r"os\.(getenv\(|environ\.get\(|environ\[)")
    return any(
        asked.match(ast.unparse(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call | ast.Subscript)
    )


def test_only_the_settings_read_the_environment() -> None:
    readers = {
        shown(path)
        for path in sources()
        if not shown(path).startswith("bench/")
        and reads_environment(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert readers <= set(READS_THE_ENVIRONMENT)


def test_no_file_names_the_machine_it_was_written_on() -> None:
    private = ("/" + "work/", "/" + "root/", "files.python" + "hosted", "registry.npm" + "js")
    named = [
        (shown(path), word)
        for path in files()
        for word in private
        if word.encode() in path.read_bytes()
    ]
    assert not named


# Requirements


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_requirements_are_pinned_and_hashed_and_name_no_address(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    entries = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    assert entries
    assert not [line[:60] for line in entries if not re.match(r"[a-z0-9._-]+(\[.*\])?==\S+ ", line)]
    assert not [line[:60] for line in entries if "--hash=sha256:" not in line]
    assert "://" not in text


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[.*\])?==(\S+)", text, re.MULTILINE))


def test_what_ships_is_a_part_of_what_is_tested() -> None:
    tested = pins("dev.txt")
    for path in REQUIREMENTS:
        differing = {k: v for k, v in pins(path.name).items() if tested.get(k) != v and k != "uv"}
        assert not differing, path.name


def test_a_subscriber_needs_pydantic_and_nats_and_nothing_of_ours_besides() -> None:
    light = {"annotated-types", "typing-extensions", "typing-inspection", "pydantic-core"}
    assert set(pins("client.txt")) == {"pydantic", "nats-py"} | light


@pytest.mark.parametrize("name", ["demo.txt", "dev.txt", "bootstrap.txt"])
def test_the_project_itself_can_be_installed_from(name: str) -> None:
    assert "hatchling" in pins(name)


# Deployment


def test_every_image_of_compose_is_pinned_to_a_version() -> None:
    images = [service["image"] for service in SERVICES.values()]
    assert not [image for image in images if not re.search(r":v?\d+\.\d+", image)]


@pytest.mark.parametrize("name", ROLES)
def test_a_role_runs_unprivileged_on_a_read_only_root(name: str) -> None:
    role = SERVICES[name]
    assert role["user"] not in {"", "root", "0", "0:0"}
    assert role["read_only"] is True
    assert role["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in role["security_opt"]
    assert role["healthcheck"]


@pytest.mark.parametrize("name", ROLES)
def test_a_role_installs_a_set_that_exists(name: str) -> None:
    extra = SERVICES[name]["build"]["args"]["EXTRA"]
    assert extra in PROJECT["project"]["optional-dependencies"]
    assert (ROOT / "requirements" / f"{extra}.txt").is_file()


def test_migrations_and_topology_are_applied_before_any_role_starts() -> None:
    assert SERVICES["migrate"]["command"] == ["migrate"]
    assert SERVICES["topology"]["command"] == ["topology", "apply"]
    finished = {"condition": "service_completed_successfully"}
    for name in set(ROLES) - {"migrate", "topology"}:
        assert SERVICES[name]["depends_on"] == {"migrate": finished, "topology": finished}


@pytest.mark.parametrize("name", ROLES)
def test_a_role_runs_a_command_that_the_program_has(name: str) -> None:
    cli = importlib.import_module("optiinfra.runtime.cli")
    command: Any = typer.main.get_command(cli.app)
    arguments = list(SERVICES[name]["command"])
    while arguments and hasattr(command, "commands"):
        assert arguments[0] in command.commands, f"optiinfra has no command {arguments}"
        command = command.commands[arguments.pop(0)]
    command.make_context(name, arguments)


def test_compose_sets_only_settings_that_exist() -> None:
    settings = importlib.import_module("optiinfra.runtime.settings").Settings
    known = {f"OPTIINFRA_{field.upper()}" for field in settings.model_fields}
    assert not {key for name in ROLES for key in SERVICES[name]["environment"]} - known


def test_no_secret_is_written_down() -> None:
    example = (ROOT / "deploy/optiinfra.env.example").read_text(encoding="utf-8")
    secrets = re.findall(r"^(\w+(?:PASSWORD|KEY|TOKEN))=(.*)$", example, re.MULTILINE)
    assert secrets
    assert not [name for name, value in secrets if value]
    used = set(re.findall(r"\$\{(\w+):\?\}", (ROOT / "compose.yaml").read_text(encoding="utf-8")))
    assert used == {name for name, _ in secrets}


def test_the_workflow_runs_what_a_developer_runs() -> None:
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    assert {"run": ".ci/run"} in jobs["test"]["steps"]
    actions = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert not [
        action for action in actions if not re.search(r"@(v\d+(\.\d+)*|[0-9a-f]{40})$", action)
    ]


def test_the_image_can_see_everything_that_it_is_built_from() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    needed = {*ROOMS, "requirements", "pyproject.toml", "README.md", "LICENSE", "NOTICE"}
    assert needed <= set(re.findall(r"^!(\S+)$", ignored, re.MULTILINE))
