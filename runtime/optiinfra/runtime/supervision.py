"""Keeps the roles of one process running: what fails for want of something is started again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping

import structlog

from optiinfra.schemas.errors import Invariant, OptiInfraError

log = structlog.get_logger()

Role = Callable[[], Awaitable[None]]
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
CANCEL_AGAIN_S = 3.5


async def run_roles(roles: Mapping[str, Role]) -> None:
    """Runs all until cancelled. Raises `Invariant` when one breaks a promise of ours."""
    tasks = {asyncio.create_task(supervised(name, role), name=name) for name, role in roles.items()}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancelled(tasks)
    for task in done:
        task.result()


async def cancelled(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancels the tasks and waits until they have ended.

    Before Python 3.12 `asyncio.wait_for`, which drivers use, loses a cancellation that comes in
    the moment in which it is done, and a `TaskGroup` cancels its tasks only once. So whatever was
    cancelled and still runs is cancelled again, after what consumers need at their end.
    """
    left = set(tasks)
    for task in left:
        task.cancel()
    while left:
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
        if left:
            _cancel_again()


def _cancel_again() -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if task.cancelling():
            log.warning("task.cancelled_again", task=task.get_name())
            task.cancel()


async def supervised(name: str, role: Role) -> None:
    """Runs a role for ever: what ends for want of something outside is started again.

    Anything but an error of the outside is a bug, and ends the process.
    """
    now, wait_s = asyncio.get_running_loop().time, FIRST_WAIT_S
    while True:
        began = now()
        try:
            await role()
            reason = "it ended"
        except Exception as failed:  # noqa: BLE001 - the edge of the process
            reason = _told(name, failed)
        _end_if_cancelled()
        if now() - began > LONGEST_WAIT_S:
            wait_s = FIRST_WAIT_S
        log.warning("role.failed", role=name, reason=reason, again_in_s=wait_s)
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _told(name: str, failed: Exception) -> str:
    """Why the role ended. Raises `Invariant` when that was a bug."""
    errors = leaves(failed)
    bug = next((one for one in errors if _is_bug(one)), None)
    if bug is not None:
        log.error("role.broke", role=name, exc_info=bug)
        raise Invariant(f"the role {name} broke: {bug!r}", hint="please report this") from bug
    return "; ".join(str(one) for one in errors)


def _is_bug(error: BaseException) -> bool:
    return isinstance(error, Invariant) or not isinstance(error, OptiInfraError)


def _end_if_cancelled() -> None:
    """A role that failed while it was being cancelled must not be started again."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def leaves(error: BaseException) -> list[BaseException]:
    """The errors inside a group, however deep; the error itself when it is none."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in leaves(inner)]


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first leaf, errors of ours before others."""
    found = leaves(group)
    return next((one for one in found if isinstance(one, OptiInfraError)), found[0])
