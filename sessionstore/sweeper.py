# SPDX-License-Identifier: MIT
"""The background sweep: what has timed out is ended, and what ended long ago is erased.

The pauses vary by a tenth, so that several processes do not sweep at the same moment. A sweep is
left out after the clock has jumped: it may soon be corrected, and what has ended stays ended.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress

from .errors import SessionStoreError
from .expiry import Expiry, Moment, read_clock
from .session import EARLIEST
from .store import Store

logger = logging.getLogger(__name__)

CHUNK = 500  # sessions that one commit of a sweep ends or erases
JITTER = 0.1
MAX_JUMP = 300.0  # seconds that the clock may gain or lose between two sweeps


async def time_out_all(store: Store, moment: Moment) -> int:
    """Time out all sessions that are due, in chunks; return their number."""
    total = 0
    while True:
        timed_out, has_more = await store.time_out(moment, CHUNK)
        total += timed_out
        if not has_more:
            return total


async def purge_all(store: Store, ended_before: int) -> int:
    """Erase all sessions that ended at or before then, in chunks; return their number."""
    total = 0
    while True:
        purged = await store.purge(max(EARLIEST, ended_before), CHUNK)
        total += purged
        if purged < CHUNK:
            return total


def read_uptime() -> float:
    """Return seconds on a clock that nobody sets and, on Linux, no sleep of the machine stops."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class ClockWatch:
    """A watch that tells whether a clock has jumped, by a monotonic one, since the last look.

    Each look starts anew. So a clock that is corrected before the next look was never believed, and
    one that stays where it is is believed then.
    """

    def __init__(self, now: int, uptime: Callable[[], float] = read_uptime) -> None:
        self._uptime = uptime
        self._last = now, uptime()

    def has_jumped(self, now: int) -> bool:
        """Compare the clock's reading, in microseconds, with the one before; log a jump."""
        before, started = self._last
        self._last = now, self._uptime()
        gained = (now - before) / 1_000_000 - (self._last[1] - started)
        if abs(gained) <= MAX_JUMP:
            return False
        logger.warning("the clock has jumped by %+.0f s since the last sweep: no sweep now", gained)
        return True


class Sweeper:
    """The sweep of one store, and the background loop that repeats it.

    Lengths of time are microseconds; no retention: nothing is erased.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        expiry: Expiry,
        retention: int | None,
        *,
        uptime: Callable[[], float] = read_uptime,
    ) -> None:
        self._store = store
        self._clock = clock
        self._expiry = expiry
        self._retention = retention
        self._watch = ClockWatch(read_clock(clock), uptime)
        self._task: asyncio.Task[None] | None = None

    async def sweep(self) -> None:
        """Time out and purge, unless the clock has jumped, and let the engine tidy up."""
        now = read_clock(self._clock)
        if self._watch.has_jumped(now):
            return
        moment = Moment(now, self._expiry)
        timed_out = purged = 0
        try:
            timed_out = await time_out_all(self._store, moment)
            if self._retention is not None:
                purged = await purge_all(self._store, now - self._retention)
        except Exception:  # and not if it was cancelled: then it must end at once
            await self._store.tidy(moment)
            raise
        finally:
            if timed_out or purged:
                logger.info("sweep: %d sessions timed out, %d purged", timed_out, purged)
        await self._store.tidy(moment)

    def start(self, interval: float) -> None:
        """Sweep every `interval` seconds from now on; the first time after one interval."""
        self._task = asyncio.get_running_loop().create_task(self._run(interval))

    async def stop(self) -> None:
        """Stop at once, even in the middle of a sweep."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def _run(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval * random.uniform(1 - JITTER, 1 + JITTER))
            with suppress(Exception):  # a filter of the host's logging may raise, too
                await self._sweep_and_report(interval)

    async def _sweep_and_report(self, interval: float) -> None:
        try:
            await self.sweep()
        except SessionStoreError as error:
            logger.warning("the sweep failed (%s); the next one comes in %g s", error, interval)
        except Exception:
            logger.exception("the sweep failed; the next one comes in %g s", interval)
