"""Prepare the private environment `.venv` that every make target runs in.

Needs only a python3 of 3.11 or newer and its standard library. The packages come from the hashed
files in `requirements/`; uv installs them where it is found or can be fetched, pip where not.
Run as `python3 bootstrap.py demo` or `python3 bootstrap.py dev`; a second run is a quick no-op.
The syntax stays that of Python 3.6, so that an old Python can say what is wrong.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Dict, Iterator, List, Optional, Sequence

OLDEST = (3, 11)
CANDIDATES = ("python3.13", "python3.12", "python3.11", "python3.14")
SETS = ("demo", "dev")

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "bootstrap.stamp"
UNFINISHED = VENV / "bootstrap.unfinished"
IDENTITY = "import sys; print(sys.prefix, sys.implementation.cache_tag, *sys.version_info[:3])"

UV_INSTALL = ("pip", "install", "--quiet", "--python")
PIP_INSTALL = ("install", "--quiet", "--no-input")

Environ = Dict[str, str]


class SetupFailed(Exception):
    """The environment could not be prepared; the text says what to do about it."""


def say(text: str) -> None:
    """Tell the person at the terminal; stdout stays free for the command that follows."""
    print("optiinfra: " + text, file=sys.stderr, flush=True)


def continue_with_newer_python(argv: Sequence[str]) -> None:
    """Replace this process by a new enough Python from PATH, or say that there is none."""
    for name in CANDIDATES:
        found = shutil.which(name)
        if found and answers([found, "-c", ""], dict(os.environ)):
            os.execv(found, [found, str(Path(__file__).resolve()), *argv])  # does not return
    message = "Python {}.{} or newer is needed; this is {}.{} ({}), and PATH has no newer one."
    raise SetupFailed(message.format(*OLDEST, *sys.version_info[:2], sys.executable))


@contextlib.contextmanager
def only_one_at_a_time() -> Iterator[None]:
    """Hold a lock on the repository folder: two runs must not build one environment at once.

    Installers inherit it, so that one which outlives a killed run is waited for.
    """
    import fcntl

    folder = os.open(str(ROOT), os.O_RDONLY)
    os.set_inheritable(folder, True)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is running here; waiting for it")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def identity() -> Optional[str]:
    """Where and what the environment's Python is; None where there is no usable one."""
    command = [str(PYTHON), "-I", "-S", "-c", IDENTITY]
    try:
        # The scripts of an environment name its folder: a copied or moved one runs the old place.
        stands_where_made = str(VENV) in (VENV / "bin" / "activate").read_text(encoding="utf-8")
        answer = subprocess.check_output(command, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    text = answer.decode(errors="replace").strip()
    version = tuple(int(part) for part in text.split()[-3:])
    usable = stands_where_made and (VENV / "pyvenv.cfg").is_file() and version[:2] >= OLDEST
    return f"{VENV} {text}" if usable else None


def fingerprint(requirements: str, python: str) -> str:
    """The stamp of one finished set: a digest of all that decides what gets installed."""
    digest = hashlib.sha256(python.encode())
    for path in (requirement_file(requirements), ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return f"{requirements} {digest.hexdigest()}"


def requirement_file(requirements: str) -> Path:
    return ROOT / "requirements" / (requirements + ".txt")


def is_ready(requirements: str) -> bool:
    """Whether the environment holds the set as it stands on disk; `dev` holds `demo` too."""
    python = identity()
    if python is None or UNFINISHED.exists() or not STAMP.is_file():
        return False
    good = {fingerprint(name, python) for name in {requirements, "dev"}}
    return STAMP.read_text(encoding="utf-8") in good and (VENV / "bin" / "optiinfra").exists()


def installer_environment() -> Environ:
    """The caller's environment, where uv downloads no Python and trusts whom the system trusts."""
    environment = dict(os.environ, UV_PYTHON_DOWNLOADS="never", PIP_DISABLE_PIP_VERSION_CHECK="1")
    for name in ("PYTHONHOME", "PYTHONPATH", "PIP_REQUIRE_VIRTUALENV", "PIP_TARGET", "PIP_USER"):
        environment.pop(name, None)
    environment["VIRTUAL_ENV"] = str(VENV)
    if ssl.get_default_verify_paths().cafile:
        environment.setdefault("UV_SYSTEM_CERTS", "true")
    return environment


def run(command: Sequence[str], environment: Environ, output: int = 2) -> None:
    """Run an installer; SetupFailed where it does not succeed. It prints to stderr by default."""
    installer = subprocess.Popen(
        command,
        cwd=str(ROOT),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        close_fds=False,
        start_new_session=True,
    )
    try:
        status = installer.wait()
    except BaseException:
        os.killpg(installer.pid, signal.SIGKILL)  # it and what it started
        installer.wait()
        raise
    if status != 0:
        shown = " ".join(str(part).replace(str(ROOT) + "/", "") for part in command)
        raise SetupFailed(f"this failed ({status}): {shown}")


def answers(command: Sequence[str], environment: Environ) -> bool:
    """Whether a program exists and runs; what it prints is of no interest."""
    quiet = subprocess.DEVNULL
    try:
        return subprocess.call(command, env=environment, stdout=quiet, stderr=quiet) == 0
    except OSError:
        return False


def uv_is_wanted() -> bool:
    """OPTIINFRA_BOOTSTRAP_UV=0 keeps to pip, for machines where uv must not be used."""
    return os.environ.get("OPTIINFRA_BOOTSTRAP_UV", "1") != "0"


def uv_on_path(environment: Environ) -> Optional[str]:
    """A uv of the machine that answers: a version manager's stand-in may exist and not work."""
    found = shutil.which("uv") if uv_is_wanted() else None
    return found if found and answers([found, "--version"], environment) else None


def missing_ensurepip() -> str:
    """What to type where the Python comes without the part that makes environments."""
    if shutil.which("apt-get") is None:
        return "this Python lacks the module ensurepip: install your system's package for it."
    line = (
        "apt-get install python3-venv" if os.geteuid() == 0 else "sudo apt-get install python3-venv"
    )
    return f"this Python cannot make environments yet. Run this, then try again:\n\n    {line}\n"


def require_ensurepip(environment: Environ) -> None:
    if not answers(
        [sys.executable, "-I", "-c", "import ensurepip; ensurepip.version()"], environment
    ):
        raise SetupFailed(missing_ensurepip())


def make_environment(uv: Optional[str], environment: Environ) -> None:
    """Build an empty `.venv`, in place of whatever stood there."""
    if VENV.is_symlink():
        VENV.unlink()
    elif VENV.exists():
        say("rebuilding .venv (unfinished, moved or broken)")
        shutil.rmtree(str(VENV))
    if uv is None:
        require_ensurepip(environment)
        run([sys.executable, "-m", "venv", "--without-pip", str(VENV)], environment)
    else:
        run([uv, "venv", "--quiet", "--python", sys.executable, str(VENV)], environment)


def pip(environment: Environ) -> List[str]:
    """The environment's own pip, added first where there is none yet."""
    command = [str(PYTHON), "-m", "pip"]
    if not answers([*command, "--version"], environment):
        require_ensurepip(environment)
        command_to_add_it = [str(PYTHON), "-m", "ensurepip", "--default-pip"]
        run(command_to_add_it, environment, output=subprocess.DEVNULL)
    return command


def fetch_uv(environment: Environ) -> Optional[str]:
    """Install uv into the environment with pip; None where it is not wanted or not to be had."""
    if not uv_is_wanted():
        return None
    command = [*pip(environment), "install", "--quiet", "--require-hashes", "--only-binary=:all:"]
    try:
        run([*command, "-r", str(requirement_file("bootstrap"))], environment)
    except SetupFailed as failure:
        say(f"uv cannot be fetched; pip does the work ({failure})")
        return None
    fetched = str(VENV / "bin" / "uv")
    return fetched if answers([fetched, "--version"], environment) else None


def install_with(command: Sequence[str], requirements: str, environment: Environ) -> None:
    """Install the hashed set, then the project itself without looking for anything more."""
    run([*command, "--require-hashes", "-r", str(requirement_file(requirements))], environment)
    run([*command, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)], environment)


def install(requirements: str, uv: Optional[str], environment: Environ) -> str:
    """Install with uv, or with pip where uv is missing or fails; the name of the installer."""
    uv = uv or fetch_uv(environment)
    if uv is not None:
        say(f"installing requirements/{requirements}.txt with uv")
        try:
            install_with([uv, *UV_INSTALL, str(PYTHON)], requirements, environment)
        except SetupFailed as failure:  # for one, uv does not read the index set in pip.conf
            say(f"{failure}; trying pip")
        else:
            return "uv"
    say(f"installing requirements/{requirements}.txt with pip: a minute or two the first time")
    install_with([*pip(environment), *PIP_INSTALL], requirements, environment)
    return "pip"


def prepare(requirements: str) -> None:
    """Bring `.venv` to the state of the set; does nothing where it is there already."""
    if is_ready(requirements):
        return
    started = time.monotonic()
    environment = installer_environment()
    uv = uv_on_path(environment)
    if identity() is None or UNFINISHED.exists():
        make_environment(uv, environment)
    with contextlib.suppress(FileNotFoundError):
        STAMP.unlink()
    UNFINISHED.touch()
    try:
        name = install(requirements, uv, environment)
    except SetupFailed:
        UNFINISHED.unlink()  # installers undo a step that fails; only a kill leaves half of one
        raise
    python = identity()
    if python is None:
        raise SetupFailed("the environment that was just made does not run; remove .venv")
    STAMP.write_text(fingerprint(requirements, python), encoding="utf-8")
    UNFINISHED.unlink()
    say(f"environment ready in {time.monotonic() - started:.0f} s ({name})")


def stop_as_interrupted(_signum: int, _frame: Optional[FrameType]) -> None:
    """SIGTERM unwinds like Ctrl-C, so that a running installer ends with us."""
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> int:
    """Exit status 0 when the environment is ready, 1 with the reason, 2 for wrong usage."""
    if len(argv) != 1 or argv[0] not in SETS:
        say(f"usage: python3 bootstrap.py {'|'.join(SETS)}")
        return 2
    try:
        if sys.version_info < OLDEST:
            continue_with_newer_python(argv)
        signal.signal(signal.SIGTERM, stop_as_interrupted)
        with only_one_at_a_time():
            prepare(argv[0])
    except SetupFailed as failure:
        say(str(failure))
        return 1
    except PermissionError as error:
        say(f"{error.filename} belongs to another user; run as that user, or remove .venv")
        return 1
    except KeyboardInterrupt:
        say("stopped; the next run starts over")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
