# SPDX-License-Identifier: MIT
"""The background loop, by itself and in the manager."""

import asyncio
import logging
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from sessionstore import Session, SessionManager
from sessionstore.sqlite.files import size_at
from sessionstore.sweeper import ClockWatch, Sweeper

from ..conftest import FakeClock


async def test_it_calls_again_and_again_and_stops_at_once() -> None:
    """Rounds follow one another until stop(), which interrupts a round, and leaves no task."""
    rounds = 0
    enough, hanging = asyncio.Event(), asyncio.Event()

    async def sweep() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            enough.set()
            await hanging.wait()

    sweeper = Sweeper(sweep, 0.001)
    sweeper.start()
    await enough.wait()
    await sweeper.stop()
    await sweeper.stop()
    await asyncio.sleep(0.01)
    assert rounds == 3
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_stop_returns_when_the_round_has_ended() -> None:
    """What an interrupted round has to put in order is in order when stop() returns."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def sweep() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            ended.set()

    sweeper = Sweeper(sweep, 0.001)
    sweeper.start()
    await begun.wait()
    await sweeper.stop()
    assert ended.is_set()


async def test_an_error_is_logged_and_the_next_round_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A sweep that fails does not end the sweeping."""
    rounds = 0
    enough = asyncio.Event()

    async def sweep() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            enough.set()
        raise OSError("broken")

    sweeper = Sweeper(sweep, 0.001)
    sweeper.start()
    await enough.wait()
    await sweeper.stop()
    assert caplog.text.count("the sweep failed") >= 2
    assert "broken" in caplog.text


async def test_pauses_vary_by_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that start together do not sweep together for ever."""
    pauses: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await real_sleep(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def sweep() -> None:
        return None

    sweeper = Sweeper(sweep, 100)
    sweeper.start()
    while len(pauses) < 200:
        await real_sleep(0)
    await sweeper.stop()
    assert 90 <= min(pauses) < 95
    assert 105 < max(pauses) <= 110


async def test_the_manager_sweeps_and_purges_in_the_background(
    database: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Timeouts are recorded and told, and what is older than the retention goes, without a call."""
    caplog.set_level(logging.INFO)
    told: asyncio.Queue[Session] = asyncio.Queue()
    async with SessionManager(
        database,
        clock=clock,
        sweep_interval=timedelta(milliseconds=1),
        retention=timedelta(hours=1),
        on_end=told.put_nowait,
    ) as sessions:
        id_ = await sessions.create_session("lina")
        clock.turn(1_800)
        async with asyncio.timeout(10):
            session = await told.get()
            assert session.id == id_
            assert session.status == "timeout"
            clock.turn(3_599)
            for _ in range(10):
                await asyncio.sleep(0.002)
                assert await sessions.get_session(id_) is not None
            clock.turn(1)
            while await sessions.get_session(id_) is not None:  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.001)
    assert "sweep: 1 sessions timed out, 0 purged" in caplog.text
    assert "sweep: 0 sessions timed out, 1 purged" in caplog.text


async def test_a_row_that_cannot_be_read_keeps_no_other_one(
    database: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A sweep that it keeps from timing out is told of, and still purges, and empties the log."""
    async with SessionManager(
        database, clock=clock, retention=60, sweep_interval=None, cache_size=0
    ) as sessions:
        sessions._clock_watch = ClockWatch(int(clock() * 1_000_000), clock)
        damaged, old = [await sessions.create_session("lina") for _ in range(2)]
        await sessions.end_session(old)
        with closing(sqlite3.connect(database)) as other, other:
            other.execute("PRAGMA ignore_check_constraints = ON")
            other.execute(
                "UPDATE sessions SET last_activity = 'no time', swept_activity = '' WHERE id = ?",
                [damaged],
            )
        clock.turn(3_600)
        await sessions._sweep()
        assert await sessions.get_session(old) is None
        assert size_at(f"{database}-wal") == 0
    assert "a row holds what cannot be read" in caplog.text


async def test_callers_get_in_between_the_chunks_of_a_sweep(
    database: Path, clock: FakeClock
) -> None:
    """A write that comes during a long sweep is committed before the sweep has ended."""
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        await asyncio.gather(*(sessions.create_session("lina") for _ in range(5_000)))
        clock.turn(1_800)
        sweeping = asyncio.create_task(sessions.cleanup_inactive_sessions())
        await asyncio.sleep(0)
        await sessions.create_session("omar")
        assert not sweeping.done()
        assert await sweeping == 5_000
