# SPDX-License-Identifier: MIT
"""Writes that end sessions, and the callback that hears of each.

on_end is called after COMMIT and outside the transaction, once for each session that a change of
this process ended, with the final snapshot. Where there is a callback, the write and the calls run
in a task of their own: a caller that is cancelled cannot lose a call. No other module calls on_end.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from sqlite3 import Connection
from typing import Any, TypeVarTuple

from . import store
from .models import Expiry, Session, SessionRow, snapshot
from .writer import Change, Writer

logger = logging.getLogger(__name__)

Arguments = TypeVarTuple("Arguments")
OnEnd = Callable[[Session], Awaitable[None] | None]

CHUNK = 500  # sessions that one transaction of a sweep touches
GRACE = 5.0  # seconds that close() waits for callbacks that are still running


class Ender:
    """Ends sessions, and tells on_end."""

    def __init__(
        self,
        writer: Writer,
        expiry: Expiry,
        on_end: OnEnd | None,
    ) -> None:
        self._writer = writer
        self._expiry = expiry
        self._on_end = on_end
        self._tasks: set[asyncio.Task[Change]] = set()

    async def end(
        self,
        apply: Callable[[Connection, *Arguments], Change],
        *arguments: *Arguments,
        durable: bool,
    ) -> Change:
        """Commit an operation that ends sessions; return when on_end has returned for each."""
        if self._on_end is None:
            return await self._writer.submit(apply, *arguments, durable=durable)
        task = asyncio.create_task(
            self._end_and_tell(self._on_end, apply, *arguments, durable=durable)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def time_out(self, now: int) -> int:
        """Time out all sessions that are due, in short transactions; return their number."""
        total = 0
        while True:
            change = await self.end(
                store.time_out_sessions, self._expiry, now, CHUNK, durable=False
            )
            total += len(change.rows)
            if len(change.rows) < CHUNK:
                return total

    async def purge(self, cutoff: str) -> int:
        """Erase all sessions that ended at the cutoff or before; return their number."""
        total = 0
        while True:
            change = await self._writer.submit(store.purge_sessions, cutoff, CHUNK, durable=True)
            total += len(change.erased)
            if len(change.erased) < CHUNK:
                return total

    async def close(self, closer: asyncio.Task[Any] | None) -> None:
        """Wait for the callbacks that are running, but not for one that is itself the closer."""
        waiting = self._tasks - {closer}
        if not waiting:
            return
        _, pending = await asyncio.wait(waiting, timeout=GRACE)
        for task in pending:
            logger.warning("on_end has not returned for %g s after close(); cancelled", GRACE)
            task.cancel()
        if pending:
            await asyncio.wait(pending, timeout=GRACE)

    async def _end_and_tell(
        self,
        on_end: OnEnd,
        apply: Callable[[Connection, *Arguments], Change],
        *arguments: *Arguments,
        durable: bool,
    ) -> Change:
        change = await self._writer.submit(apply, *arguments, durable=durable)
        for row in change.rows:
            await self._tell(on_end, row)
        return change

    async def _tell(self, on_end: OnEnd, row: SessionRow) -> None:
        try:
            result = on_end(snapshot(row, self._expiry.expires_at(row)))
            if inspect.isawaitable(result):
                await result
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            logger.exception("on_end was cancelled for session %s", row.id[:8])
        except Exception:
            logger.exception("on_end failed for session %s", row.id[:8])
