# SPDX-License-Identifier: MIT
"""Calls of on_end: once for each session that a commit of this process has ended.

They are made after COMMIT, outside of any transaction, in a task for each commit, one after the
other. So a caller that is cancelled cannot lose a call. No other module calls on_end.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar

from .expiry import Expiry
from .session import Record, Session, short_id
from .store import Commit

logger = logging.getLogger(__name__)

OnEnd = Callable[[Session], Awaitable[None] | None]

GRACE = 5.0  # seconds that close() waits for calls that have not returned

# The task in which on_end is being called, for whatever it calls or starts.
_calling: ContextVar[asyncio.Task[None] | None] = ContextVar("calling", default=None)


class Endings:
    """The calls of on_end that are still to be made, or have not returned."""

    def __init__(self, on_end: OnEnd | None, expiry: Expiry) -> None:
        self._on_end = on_end
        self._expiry = expiry
        self._tasks: dict[asyncio.Task[None], list[Record]] = {}

    def on_commit(self, commit: Commit) -> None:
        """Call on_end for what the commit has ended, soon."""
        if self._on_end is not None and commit.ended:
            records = list(commit.ended)
            task = asyncio.get_running_loop().create_task(self._call_each(self._on_end, records))
            self._tasks[task] = records
            task.add_done_callback(self._tasks.pop)

    async def wait(self, is_meant: Callable[[Record], bool]) -> None:
        """Return once on_end has returned for the sessions that are meant.

        A call that comes from on_end itself does not wait: it could wait for itself.
        """
        if _calling.get() is None:
            tasks = [task for task, ended in self._tasks.items() if any(map(is_meant, ended))]
            if tasks:
                await asyncio.wait(tasks)

    async def close(self) -> None:
        """Wait for all calls but one that closes the store; cancel what does not return."""
        waiting = self._tasks.keys() - {_calling.get()}
        if not waiting:
            return
        _, pending = await asyncio.wait(waiting, timeout=GRACE)
        for task in pending:
            logger.warning("on_end has not returned for %g s after close(); cancelled", GRACE)
            task.cancel()
        if pending:
            await asyncio.wait(pending, timeout=GRACE)

    async def _call_each(self, on_end: OnEnd, records: list[Record]) -> None:
        _calling.set(asyncio.current_task())
        for record in records:
            # A task of its own: what a call does to the task that it runs in harms no other.
            call = asyncio.create_task(self._call(on_end, record))
            try:
                await asyncio.wait({call})
            except asyncio.CancelledError:
                call.cancel()
                raise
            error = None if call.cancelled() else call.exception()
            if call.cancelled() or error is not None:
                with suppress(Exception):  # a filter of the host's logging may raise, too
                    logger.error(
                        "on_end failed for session …%s", short_id(record.id), exc_info=error
                    )

    async def _call(self, on_end: OnEnd, record: Record) -> None:
        result = on_end(Session(record, self._expiry.expires_at(record)))
        if inspect.isawaitable(result):
            await result
