# SPDX-License-Identifier: MIT
"""Writes that end sessions, and the callback that hears of each.

on_end is called after COMMIT and outside the transaction, once for each session that a change of
this process ended, with the final snapshot. Where there is a callback, the write and the calls run
in tasks of their own: a caller that is cancelled cannot lose a call. No other module calls on_end.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from sqlite3 import Connection
from typing import Any, TypeVar, TypeVarTuple

from .errors import StoreClosedError
from .session import Expiry, Session, SessionRow
from .sqlite import store
from .sqlite.writer import Change, Writer

logger = logging.getLogger(__name__)

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")
OnEnd = Callable[[Session], Awaitable[None] | None]

CHUNK = 500  # sessions that one transaction of a sweep touches
GRACE = 5.0  # seconds that close() waits for callbacks that are still running

# The task that is calling on_end, for whatever the callback calls or starts.
_telling_task: ContextVar[asyncio.Task[Any] | None] = ContextVar("telling_task", default=None)


class Ender:
    """Ends sessions, and tells on_end."""

    def __init__(self, writer: Writer, expiry: Expiry, on_end: OnEnd | None) -> None:
        self._writer = writer
        self._expiry = expiry
        self._on_end = on_end
        self._writing: set[asyncio.Task[Any]] = set()
        self._telling: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def end(
        self,
        apply: Callable[[Connection, *Arguments], Change],
        *arguments: *Arguments,
        durable: bool,
        wait: bool = True,
    ) -> Change:
        """Commit an operation that ends sessions; with wait, return when on_end has returned."""
        if self._on_end is None:
            return await self._writer.submit(apply, *arguments, durable=durable)
        if self._closed:
            raise StoreClosedError("the store was closed in the middle of this call")
        writing = self._write(self._on_end, apply, *arguments, durable=durable)
        change, telling = await asyncio.shield(_start(self._writing, writing))
        if telling is not None and wait:
            await asyncio.wait({telling})
        return change

    async def time_out(self, now: int, *, wait: bool = True) -> int:
        """Time out all sessions that are due, in short transactions; return their number."""
        total = 0
        while True:
            change = await self.end(
                store.time_out_sessions, self._expiry, now, CHUNK, durable=False, wait=wait
            )
            total += len(change.rows)
            if change.is_all:
                return total

    async def mark_ahead(self, now: int) -> None:
        """Mark what is ahead of the clock, in short transactions; idle from now on, it times out.

        Else a session from before the clock was set back would live until the clock is there again.
        """
        while not (
            await self._writer.submit(store.mark_sessions_ahead, now, CHUNK, durable=False)
        ).is_all:
            pass

    async def purge(self, cutoff: str) -> int:
        """Erase all sessions that ended at the cutoff or before; return their number."""
        total = 0
        while True:
            change = await self._writer.submit(store.purge_sessions, cutoff, CHUNK, durable=True)
            total += len(change.erased)
            if change.is_all:
                return total

    async def close(self) -> None:
        """Wait for the writes, and then for the callbacks, but not for one that closes the store.

        A callback that has not returned after a grace is cancelled.
        """
        self._closed = True
        while self._writing:
            await asyncio.wait(self._writing)
        waiting = self._telling - {_telling_task.get()}
        if not waiting:
            return
        _, pending = await asyncio.wait(waiting, timeout=GRACE)
        for task in pending:
            logger.warning("on_end has not returned for %g s after close(); cancelled", GRACE)
            task.cancel()
        if pending:
            await asyncio.wait(pending, timeout=GRACE)

    async def _write(
        self,
        on_end: OnEnd,
        apply: Callable[[Connection, *Arguments], Change],
        *arguments: *Arguments,
        durable: bool,
    ) -> tuple[Change, asyncio.Task[None] | None]:
        """Commit, and start telling before anything else can happen."""
        change = await self._writer.submit(apply, *arguments, durable=durable)
        if not change.rows:
            return change, None
        return change, _start(self._telling, self._tell_all(on_end, change.rows))

    async def _tell_all(self, on_end: OnEnd, rows: Sequence[SessionRow]) -> None:
        _telling_task.set(asyncio.current_task())
        for row in rows:
            # A task of its own: what a callback does to the task that it runs in harms no other.
            call = asyncio.create_task(self._tell(on_end, row))
            try:
                await asyncio.wait({call})
            except asyncio.CancelledError:
                call.cancel()
                raise
            error = None if call.cancelled() else call.exception()
            if call.cancelled() or error is not None:
                logger.error("on_end failed for session %s", row.id[:8], exc_info=error)

    async def _tell(self, on_end: OnEnd, row: SessionRow) -> None:
        result = on_end(self._expiry.snapshot(row))
        if inspect.isawaitable(result):
            await result


def _start(
    tasks: set[asyncio.Task[Any]], coroutine: Coroutine[Any, Any, Result]
) -> asyncio.Task[Result]:
    """Start a task that is in the set until it is done, since the event loop itself keeps none."""
    task = asyncio.create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    task.add_done_callback(_mark_seen)
    return task


def _mark_seen(task: asyncio.Task[Any]) -> None:
    """Keep asyncio from complaining of an error that nobody waits for, the caller being gone."""
    if not task.cancelled():
        task.exception()
