# SPDX-License-Identifier: MIT
"""An event loop that always has something to do: the threads get their share of the GIL."""

import asyncio
import random
import time
from pathlib import Path

import pytest

from sessionstore import SessionManager

from ..conftest import FakeClock
from .tools import quiet

SLICE = 0.002  # seconds that the loop is kept busy without a pause
SESSIONS = 500
CLIENTS = 50
PAUSE = 0.01  # seconds between two calls of a client


async def spin(sessions: SessionManager, seconds: float) -> list[float]:
    """Keep the loop busy beside fifty clients, and return how long each of their calls took."""
    ids = await asyncio.gather(*(sessions.create_session("lina") for _ in range(SESSIONS)))
    chance = random.Random(5)
    waits: list[float] = []
    is_over = False

    async def call_on() -> None:
        while not is_over:
            started = time.perf_counter()
            assert await asyncio.wait_for(sessions.update_activity(chance.choice(ids)), 10)
            waits.append(time.perf_counter() - started)
            await asyncio.sleep(PAUSE)

    async def keep_busy() -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            end = time.perf_counter() + SLICE
            while time.perf_counter() < end:
                pass
            await asyncio.sleep(0)

    clients = [asyncio.create_task(call_on()) for _ in range(CLIENTS)]
    await keep_busy()
    is_over = True
    await asyncio.gather(*clients)
    return waits


def p99(waits: list[float]) -> float:
    """Return what 99 of 100 calls took at most."""
    return sorted(waits)[len(waits) * 99 // 100]


@pytest.mark.parametrize(
    ("runs", "seconds", "limit"),
    [(1, 1.0, 0.25), pytest.param(10, 3.0, 0.05, marks=pytest.mark.torture)],
)
async def test_a_busy_event_loop_does_not_starve_the_engine(
    database: Path, clock: FakeClock, runs: int, seconds: float, limit: float
) -> None:
    """In each run, 99 of 100 touches are answered soon."""
    async with quiet(database, clock=clock) as sessions:
        for _ in range(runs):
            waits = await spin(sessions, seconds)
            print(len(waits), p99(waits), max(waits))
            assert len(waits) > CLIENTS
            assert p99(waits) < limit


async def test_a_loop_that_never_rests_is_served(database: Path, clock: FakeClock) -> None:
    """With callbacks that are ready all the time, writes, loads and lists get through."""
    loop = asyncio.get_running_loop()
    is_spinning = True

    def spin_on() -> None:
        end = time.perf_counter() + 0.0002
        while time.perf_counter() < end:
            pass
        if is_spinning:
            loop.call_soon(spin_on)

    async with quiet(database, clock=clock, cache_size=0) as sessions:
        id_ = await sessions.create_session("lina")
        loop.call_soon(spin_on)
        try:
            async with asyncio.timeout(20):
                for _ in range(10):
                    assert await sessions.update_activity(id_)
                    assert await sessions.get_session(id_)
                    assert await sessions.get_active_sessions()
        finally:
            is_spinning = False
