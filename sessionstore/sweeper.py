# SPDX-License-Identifier: MIT
"""A background loop round any coroutine function, and a watch on the clock for it.

The loop knows nothing of what it runs. An error is logged, and the next round comes all the same.
The pauses vary by a tenth, so that several processes do not sweep at the same moment.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

JITTER = 0.1
MAX_JUMP = 300.0  # seconds that the clock may gain or lose between two sweeps


def read_uptime() -> float:
    """Return seconds on a clock that nobody sets and, on Linux, no sleep of the machine stops."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class ClockWatch:
    """Says whether a clock has jumped, by a monotonic one, since it was last asked.

    Each look starts anew. So a clock that is corrected before the next look was never believed,
    and one that stays where it is is believed then. In a sleep of the machine the monotonic clock
    must go on: one sleep between every two looks would be a jump each.
    """

    def __init__(self, now: int, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._last = now, monotonic()

    def has_jumped(self, now: int) -> bool:
        """Compare the clock's reading, in microseconds, with the one before; log a jump."""
        before, started = self._last
        self._last = now, self._monotonic()
        gained = (now - before) / 1_000_000 - (self._last[1] - started)
        if abs(gained) <= MAX_JUMP:
            return False
        logger.warning("the clock has jumped by %+.0f s since the last sweep: no sweep now", gained)
        return True


class Sweeper:
    """Calls a coroutine function every `interval` seconds until it is stopped."""

    def __init__(self, sweep: Callable[[], Awaitable[object]], interval: float) -> None:
        self._sweep = sweep
        self._interval = interval
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the loop; the first round comes after one interval."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop at once, also in the middle of a round."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval * random.uniform(1 - JITTER, 1 + JITTER))
            try:
                await self._sweep()
            except Exception:
                logger.exception("the sweep failed; the next one comes in %g s", self._interval)
