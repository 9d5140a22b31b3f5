"""Run as a script: become the given user, ask to die with the parent, then exec the command.

Arguments: uid (or "-"), death signal number, parent pid, then the command and its arguments.
The order matters: a change of user clears the death signal, and the parent may already be gone.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(signal_number: int, parent_pid: int) -> None:
    """Have the kernel signal this process when the thread that forked it ends (Linux only)."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        sys.exit(1)


def become(uid: int) -> None:
    """Give up root for `uid` and the group of the same number, for good."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def main() -> None:
    """Parse the arguments, set the process up and replace it by the command."""
    uid, death_signal, parent_pid, *command = sys.argv[1:]
    if uid != "-":
        become(int(uid))
    die_with_parent(int(death_signal), int(parent_pid))
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main()
