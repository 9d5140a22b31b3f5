"""One process at a time in a folder: an exclusive advisory lock that names its holder."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from optiinfra.schemas.errors import Conflict

LOCK_NAME: Final = "in-use.lock"


class FolderLock:
    """Holds `folder` for this process until `release` or the end of the process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise `Conflict` naming the process that holds it."""
        if self._fd is not None:
            return
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise Conflict(
                f"{self.path.parent} is already in use by process {holder}",
                hint="stop that process first, or choose another folder",
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Let go; the file stays, since removing it would race with the next holder."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
