# SPDX-License-Identifier: MIT
"""Clocks that jump, either way, between calls and between processes, and clocks that tell nonsense.

A background sweep does not believe a clock that has jumped since the sweep before it. Where the
clock was set back, sweeps see to it that what is ahead of it does not live until it is there again.
Tests hold the store's clock and its monotonic one, and run the sweep themselves: none waits.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sessionstore import SessionManager, store
from sessionstore.sweeper import MAX_JUMP, ClockWatch
from sessionstore.writer import Change

from .conftest import START, FakeClock

MINUTE, HOUR, DAY, YEAR = 60.0, 3_600.0, 86_400.0, 31_556_952.0
TIMEOUT = 30 * MINUTE
JUMPS = [sign * size for size in (MAX_JUMP + 1, HOUR, DAY, YEAR, 10 * YEAR) for sign in (1, -1)]


class Watched(SessionManager):
    """A manager whose monotonic clock is the test's, and whose sweep a test calls."""

    def __init__(self, database: Path, clock: FakeClock, monotonic: FakeClock, **settings: Any):
        settings.setdefault("sweep_interval", None)
        super().__init__(database, clock=clock, **settings)
        self._monotonic = monotonic

    async def sweep(self) -> None:
        """Do what the background loop does after each pause."""
        await self._sweep()


class Times:
    """A wall clock and a monotonic one: time passes on both, and a jump moves the first only."""

    def __init__(self) -> None:
        self.wall = FakeClock()
        self.monotonic = FakeClock(1_000.0)

    def pass_by(self, seconds: float) -> None:
        """Let time pass."""
        self.wall.turn(seconds)
        self.monotonic.turn(seconds)

    def jump(self, seconds: float) -> None:
        """Set the wall clock."""
        self.wall.turn(seconds)


@pytest.fixture
def times() -> Times:
    """Return clocks that agree."""
    return Times()


def read_file(database: Path) -> dict[str, int]:
    """Count the rows of the file by their status."""
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT status, count(*) FROM sessions GROUP BY status"
        return dict(connection.execute(query).fetchall())


async def fill(sessions: Watched, count: int = 600) -> list[str]:
    """Create more sessions than a chunk of a sweep has, and end one more; return the first."""
    ids = await asyncio.gather(*(sessions.create_session("lina") for _ in range(count)))
    assert await sessions.end_session(await sessions.create_session("omar"))
    return ids


async def losses(database: Path, times: Times, jump: float) -> tuple[int, int]:
    """Let a sweep meet a clock that is corrected after it; return sessions ended and rows erased.

    The sessions are active, with 10 minutes to go, and one ended a moment ago, with a retention of
    a day.
    """
    async with Watched(database, times.wall, times.monotonic, retention=DAY) as sessions:
        ids = await fill(sessions)
        await sessions.sweep()
        times.pass_by(20 * MINUTE)
        await sessions.sweep()
        times.jump(jump)
        times.pass_by(MINUTE)
        await sessions.sweep()
        times.jump(-jump)
        times.pass_by(MINUTE)
        await sessions.sweep()
        alive = sum(await asyncio.gather(*(sessions.update_activity(id_) for id_ in ids)))
        return len(ids) - alive, len(ids) + 1 - sum(read_file(database).values())


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_jump_that_is_corrected_ends_no_session(
    database: Path, times: Times, jump: float, caplog: pytest.LogCaptureFixture
) -> None:
    """What a sweep met in between has changed nothing: no mass timeout, and nothing erased."""
    assert await losses(database, times, jump) == (0, 0)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        f"the clock has jumped by {each:+.0f} s since the last sweep: no sweep now"
        for each in (jump, -jump)
    ]


async def test_without_the_watch_a_jump_ends_all(
    database: Path, times: Times, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above sees what it must: a sweep that believes the clock leaves nothing."""
    monkeypatch.setattr(ClockWatch, "has_jumped", lambda *_: False)
    assert await losses(database, times, 10 * YEAR) == (600, 601)


async def test_a_clock_that_stays_where_it_jumped_is_believed_by_the_next_sweep(
    database: Path, times: Times, caplog: pytest.LogCaptureFixture
) -> None:
    """After a sleep of the machine, in which the monotonic clock stood, one sweep is left out."""
    async with Watched(database, times.wall, times.monotonic, retention=7 * HOUR) as sessions:
        await fill(sessions)
        times.jump(8 * HOUR)
        await sessions.sweep()
        assert read_file(database) == {"active": 600, "ended": 1}
        times.pass_by(MINUTE)
        await sessions.sweep()
        assert read_file(database) == {}
    assert caplog.text.count("jumped") == 1


@pytest.mark.parametrize("jump", [MAX_JUMP, -MAX_JUMP, 1.0, -1.0, 0.0])
async def test_five_minutes_are_no_jump(
    database: Path, times: Times, jump: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Up to there, and however long the pause was on both clocks, a sweep is a sweep."""
    async with Watched(database, times.wall, times.monotonic) as sessions:
        await fill(sessions)
        times.jump(jump)
        times.pass_by(10 * YEAR)
        await sessions.sweep()
        assert read_file(database) == {"ended": 1, "timeout": 600}
    assert "jumped" not in caplog.text


async def test_a_call_believes_the_clock(database: Path, times: Times) -> None:
    """Who calls cleanup or purge gets what was asked for, by the clock that was handed in."""
    async with Watched(database, times.wall, times.monotonic) as sessions:
        await fill(sessions)
        times.jump(10 * YEAR)
        assert await sessions.cleanup_inactive_sessions() == 600
        assert await sessions.purge_ended_sessions(YEAR) == 601


async def test_a_sweep_that_is_left_out_still_sees_what_others_wrote(
    database: Path, times: Times
) -> None:
    """A session that another program has ended is not shown from the cache after it."""
    async with Watched(database, times.wall, times.monotonic) as sessions:
        id_ = await sessions.create_session("lina")
        await sessions.sweep()
        assert await sessions.get_session(id_) is not None
        with closing(sqlite3.connect(database)) as other, other:
            other.execute("UPDATE sessions SET status = 'ended', ended_at = started_at")
        times.jump(-YEAR)
        await sessions.sweep()
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.status == "ended"


class Correction(logging.Handler):
    """Sets the clock right as soon as the store warns of it."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(logging.WARNING)
        self.clock = clock
        self.warned = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one jump back; the next sweep sees that, too, as a jump."""
        if "jumped by +" in record.getMessage():
            self.clock.turn(-YEAR)
        else:
            self.warned.set()


async def test_the_background_sweep_is_the_one_that_watches(database: Path) -> None:
    """The store's own loop, on the real monotonic clock, leaves a mass timeout unwritten."""
    clock = FakeClock()
    correction = Correction(clock)
    logger = logging.getLogger("sessionstore.sweeper")
    async with SessionManager(database, clock=clock, sweep_interval=0.01) as sessions:
        await asyncio.gather(*(sessions.create_session("lina") for _ in range(50)))
        logger.addHandler(correction)
        try:
            clock.turn(YEAR)
            async with asyncio.timeout(10):
                await correction.warned.wait()
        finally:
            logger.removeHandler(correction)
        assert clock.now == START
        assert read_file(database) == {"active": 50}


# -- Sessions that are ahead of the clock ----------------------------------------------------------


async def live_through(
    sessions: Watched, times: Times, seconds: float, touch: Callable[[], Awaitable[bool]] | None
) -> None:
    """Let time pass by the minute, with a sweep each, and activity every ten."""
    for minute in range(int(seconds / MINUTE)):
        times.pass_by(MINUTE)
        await sessions.sweep()
        if touch is not None and minute % 10 == 9:
            assert await touch()


async def ahead(sessions: Watched, times: Times, jump: float) -> str:
    """Create a session while the clock is wrong, for long enough that it is believed."""
    times.jump(jump)
    await live_through(sessions, times, 5 * MINUTE, None)
    id_ = await sessions.create_session("lina")
    await sessions.update_activity(id_)
    times.jump(-jump)
    await sessions.sweep()  # sees the jump
    return id_


@pytest.mark.parametrize("jump", [HOUR, DAY, YEAR, 10 * YEAR])
async def test_a_session_of_the_future_times_out(database: Path, times: Times, jump: float) -> None:
    """One that was created before the clock was set back has one timeout, not years, to live."""
    async with Watched(database, times.wall, times.monotonic) as sessions:
        id_ = await ahead(sessions, times, jump)
        await live_through(sessions, times, TIMEOUT, None)
        assert read_file(database) == {"active": 1}
        await live_through(sessions, times, 2 * MINUTE, None)
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.status == "timeout"
        assert session.end_reason == "timeout"
        assert session.ended_at is not None
        assert 0 < times.wall.now - session.ended_at.timestamp() <= 2 * MINUTE
        assert session.last_activity.timestamp() > times.wall.now + jump - 2 * TIMEOUT
        assert session.duration.total_seconds() == 0


async def test_without_the_mark_it_would_live_for_years(
    database: Path, times: Times, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above sees what it must."""
    monkeypatch.setattr(store, "mark_sessions_ahead", lambda *_: Change())
    async with Watched(database, times.wall, times.monotonic) as sessions:
        await ahead(sessions, times, YEAR)
        for _ in range(300):
            times.pass_by(DAY)
            await sessions.sweep()
        assert read_file(database) == {"active": 1}


@pytest.mark.parametrize("call", ["update_activity", "update_session"])
@pytest.mark.parametrize("jump", [20 * MINUTE, HOUR, 10 * YEAR])
async def test_a_session_of_the_future_lives_while_it_is_used(
    database: Path, times: Times, jump: float, call: str
) -> None:
    """The clock may be corrected for good: who is at it is not thrown out. Idle, it times out."""
    async with Watched(database, times.wall, times.monotonic) as sessions:
        id_ = await ahead(sessions, times, jump)
        await live_through(sessions, times, 5 * HOUR, lambda: getattr(sessions, call)(id_))
        assert read_file(database) == {"active": 1}
        await live_through(sessions, times, TIMEOUT + 2 * MINUTE, None)
        assert read_file(database) == {"timeout": 1}


async def test_a_lifetime_that_starts_in_the_future_ends(database: Path, times: Times) -> None:
    """However busy it is, such a session does not outlive the limit by the length of the jump."""
    async with Watched(database, times.wall, times.monotonic, max_lifetime=HOUR) as sessions:
        id_ = await ahead(sessions, times, YEAR)
        for _ in range(12):
            await sessions.update_activity(id_)
            await live_through(sessions, times, 5 * MINUTE, None)
        assert read_file(database) == {"timeout": 1}


async def test_a_clock_that_is_wrong_for_hours_throws_nobody_out(
    database: Path, times: Times
) -> None:
    """Ten years back and forth again: what was used lives, with its old last_activity; one dies."""
    async with Watched(database, times.wall, times.monotonic) as sessions:
        used, idle = [await sessions.create_session("lina") for _ in range(2)]
        times.jump(-10 * YEAR)
        await live_through(sessions, times, 5 * HOUR, lambda: sessions.update_activity(used))
        session = await sessions.get_session(used)
        assert session is not None
        assert session.last_activity.timestamp() == START
        times.jump(10 * YEAR)
        assert not await sessions.update_activity(used)  # for hours, by last_activity; not written
        assert (await sessions.get_session(idle)).status == "timeout"  # type: ignore[union-attr]
        assert read_file(database) == {"active": 1, "timeout": 1}
