"""Where another user can reach files: PostgreSQL refuses to run as root, so root needs a place."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from optiinfra.schemas.errors import Unavailable

UNPRIVILEGED_UID = 65534
PERSISTENT_ROOT = Path("/var/lib/optiinfra")


def reachable_by_others(path: Path) -> bool:
    """Whether a user without rights of its own can walk down to `path`, symbolic links resolved."""
    real = path.resolve()
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (real, *real.parents))


def readable_by_others(tree: Path) -> bool:
    """Whether such a user can read every file below `tree` and run the executable ones."""
    return reachable_by_others(tree) and all(_is_open_to_others(path) for path in _walk(tree))


def _walk(tree: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(tree):
        yield from (Path(folder, name) for name in (*folders, *files))


def _is_open_to_others(path: Path) -> bool:
    mode = path.stat().st_mode
    needs = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) or mode & stat.S_IXUSR else 0)
    return mode & needs == needs


def open_place(name: str) -> Path:
    """A folder of ours that others can walk through and only we can change.

    It lies under `/var/lib/optiinfra`, else (a read-only system) under the temporary folder.
    """
    fallback = Path(tempfile.gettempdir(), f"optiinfra-{os.geteuid()}")
    for root in (PERSISTENT_ROOT, fallback):
        try:
            return _own_folder(_own_folder(root) / name)
        except (OSError, Unavailable):
            continue
    raise Unavailable(
        f"no folder that user {UNPRIVILEGED_UID} can reach: tried {PERSISTENT_ROOT} and {fallback}",
        hint="start OptiInfra as another user than root",
    )


def _own_folder(path: Path) -> Path:
    path.mkdir(mode=0o711, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise Unavailable(f"{path} belongs to somebody else")
    path.chmod(0o711)
    if not reachable_by_others(path):
        raise Unavailable(f"{path} cannot be reached by others")
    return path


def make_private_folder(path: Path) -> None:
    """Make a folder that is closed to others, save that root lets its database user walk in."""
    if path.exists():
        return
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() == 0:
        path.chmod(0o711)


def place_for_another_user(home: Path) -> Path:
    """`home` where others can reach it, else a place of ours derived from the path of `home`."""
    if reachable_by_others(home):
        return home
    digest = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]
    return open_place(f"{home.name}-{digest}")


def copied_tree(sources: dict[str, Path], name: str) -> Path:
    """A copy of folders, by their names below the result, that others can read; made once.

    The copy appears whole or not at all: it is made beside its place and renamed.
    """
    place = open_place(name)
    tree = place / "tree"
    if tree.exists():
        return tree
    fresh = Path(tempfile.mkdtemp(prefix="new-", dir=place))
    for relative, source in sources.items():
        shutil.copytree(source, fresh / relative, symlinks=True)
    for path in (fresh, *_walk(fresh)):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | _rights_of_owner_for_others(path))
    try:
        fresh.rename(tree)
    except OSError:
        shutil.rmtree(fresh)
    return tree


def _rights_of_owner_for_others(path: Path) -> int:
    owner = path.stat().st_mode & (stat.S_IRUSR | stat.S_IXUSR)
    return owner >> 3 | owner >> 6
