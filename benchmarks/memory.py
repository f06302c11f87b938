# SPDX-License-Identifier: MIT
"""A child that measures how much memory it takes to use a store. It needs Linux's /proc.

Memory is what is resident, all of the process: objects, their holes, and SQLite's own.
"""

import asyncio
import gc
import json
import sys
from datetime import timedelta
from pathlib import Path

from sessionstore import SessionManager

from .children import answer
from .work import pair, settled, time_calls

TASKS = 100
PAGE = 100
WARM = 100  # sessions that are looked up before memory is measured


def read_memory(field: str) -> int:
    """Return the memory that is resident (VmRSS), or was at most (VmHWM), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


async def measure_resident(sessions: SessionManager, ids: list[str]) -> float:
    """Return the memory of the process after some work of each kind."""
    await look_up(sessions, ids[:10_000])
    await sessions.get_active_sessions(limit=PAGE)
    await sessions.get_session_stats()
    return read_memory("VmRSS")


async def measure_cached(sessions: SessionManager, ids: list[str]) -> float:
    """Return the memory of a session in the cache, without its data in JSON."""
    await look_up(sessions, ids[:WARM])
    gc.collect()
    before = read_memory("VmRSS")
    await look_up(sessions, ids[WARM:])
    gc.collect()
    taken = read_memory("VmRSS") - before
    if (await sessions.get_session_stats())["memory_cache_size"] != len(ids):
        raise RuntimeError("the sessions are not in the cache")
    return taken / (len(ids) - WARM) - len(json.dumps(await data_of(sessions, ids[0])))


async def measure_iteration(sessions: SessionManager, ids: list[str]) -> float:
    """Return by how much memory rises at most while all sessions are iterated over."""
    await look_up(sessions, ids[:WARM])
    gc.collect()
    before = read_memory("VmRSS")
    async for _ in sessions.iter_active_sessions():
        pass
    return read_memory("VmHWM") - before


async def look_up(sessions: SessionManager, ids: list[str]) -> None:
    """Get the sessions, many at a time."""
    await time_calls(pair(sessions.get_session, ids), TASKS, settled)


async def data_of(sessions: SessionManager, session_id: str) -> dict[str, object]:
    """Return the data of a session that is there."""
    session = await sessions.get_session(session_id)
    if session is None:
        raise LookupError(session_id)
    return session.data


MEASURES = {
    "resident": measure_resident,
    "cached": measure_cached,
    "iterate": measure_iteration,
}


async def main(kind: str, path: str) -> None:
    """Take the ids of some sessions, and measure."""

    async def reply(ids: list[str]) -> float:
        cache_size = len(ids) if kind == "cached" else 10_000
        async with SessionManager(
            path, timeout=timedelta(days=1), sweep_interval=None, cache_size=cache_size
        ) as sessions:
            return await MEASURES[kind](sessions, ids)

    await answer(reply)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
