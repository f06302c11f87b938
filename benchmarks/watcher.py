# SPDX-License-Identifier: MIT
"""A child that watches its event loop while sessionstore handles very many sessions at once.

It is a process of its own since each collection of garbage looks at all that was ever imported.
"""

import asyncio
import sys
import time
from collections.abc import Coroutine
from pathlib import Path

from sessionstore import SessionManager

from .children import answer
from .sized import AGAIN, TIMEOUT, Clock, fill
from .work import SMALL, call_all, shuffled

IDLE = "idle loop"
PULSE = 0.001  # seconds that the watch sleeps between two looks at the clock
CALLERS = 10  # tasks of the traffic
CALLED = 100  # sessions of the traffic


async def main(folder: str, count: str, rest: str) -> None:
    """Measure once for each question, which says nothing."""

    async def reply(_: object) -> dict[str, float]:
        return await measure(Path(folder), int(count), float(rest))

    await answer(reply)


async def measure(folder: Path, count: int, rest: float) -> dict[str, float]:
    """Do one thing after the other with all sessions, and return the longest gap beside each."""
    clock = Clock()
    sized = await fill(folder, count)
    gaps = {IDLE: await watch(asyncio.sleep(rest))}
    async with sized.manager(clock) as sessions:
        gaps["traffic alone"] = await watch_in_traffic(sessions, asyncio.sleep(rest))
        gaps[f"list of {count:,}"] = await watch_in_traffic(sessions, list_all(sessions, count))
        gaps[f"iteration over {count:,}"] = await watch_in_traffic(
            sessions, iterate(sessions, count)
        )
        gaps["statistics"] = await watch_in_traffic(sessions, count_often(sessions))
        clock.offset = TIMEOUT.total_seconds()
        gaps[f"cleanup of {count:,}"] = await watch_in_traffic(sessions, clean_up(sessions, count))
        gaps[f"purge of {count:,}"] = await watch_in_traffic(sessions, purge(sessions, count))
    return gaps


async def list_all(sessions: SessionManager, count: int) -> None:
    """List all sessions in one call."""
    demand(len(await sessions.get_active_sessions()), count)


async def iterate(sessions: SessionManager, count: int) -> None:
    """Iterate over all sessions."""
    seen = 0
    async for _ in sessions.iter_active_sessions():
        seen += 1
    demand(seen, count)


async def count_often(sessions: SessionManager) -> None:
    """Ask for the statistics several times."""
    for _ in range(AGAIN):
        await sessions.get_session_stats()


async def clean_up(sessions: SessionManager, count: int) -> None:
    """Mark all sessions as timed out."""
    demand(await sessions.cleanup_inactive_sessions(), count)


async def purge(sessions: SessionManager, count: int) -> None:
    """Delete all sessions, which have timed out."""
    demand(await sessions.purge_ended_sessions(0), count)


def demand(done: int, count: int) -> None:
    """Refuse a gap that was measured beside less work than it says; the traffic's comes on top."""
    if done < count:
        raise RuntimeError(f"only {done} of {count} sessions were there")


async def watch_in_traffic(
    sessions: SessionManager, activity: Coroutine[None, None, object]
) -> float:
    """Return the longest gap beside an activity, while tasks call sessions of their own."""
    ids = [await sessions.create_session("traffic", SMALL) for _ in range(CALLED)]
    is_over = asyncio.Event()

    async def call_again_and_again() -> None:
        for id_ in shuffled(ids):
            if is_over.is_set():
                break
            await call_all([(sessions.get_session, id_), (sessions.update_activity, id_)])

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(call_again_and_again())
        try:
            return await watch(activity)
        finally:
            is_over.set()


async def watch(activity: Coroutine[None, None, object]) -> float:
    """Return the longest gap from before an activity to after it."""
    task = asyncio.create_task(activity)
    longest, last = 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(PULSE)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    await task
    return longest


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
