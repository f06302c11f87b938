# SPDX-License-Identifier: MIT
"""Clocks that jump, either way, between calls and between processes, and clocks that tell nonsense.

A background sweep does not believe a clock that has jumped since the sweep before it. If the clock
was set back, sweeps see to it that what is ahead of it does not live until it is there again.
Tests hold the store's clock and its monotonic one, and run the sweep themselves: none waits.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sessionstore import InvalidArgumentError, Session, SessionManager, sweeper
from sessionstore.expiry import Expiry, Moment
from sessionstore.sqlite import SQLiteStore
from sessionstore.sweeper import MAX_JUMP, ClockWatch, Sweeper

from ..clocks import DAY, HOUR, MINUTE, TIMEOUT, YEAR, Times, Watched
from ..conftest import START, FakeClock

JUMPS = [sign * size for size in (MAX_JUMP + 1, DAY, 10 * YEAR) for sign in (1, -1)]


@pytest.fixture
def times() -> Times:
    """Return clocks that agree."""
    return Times()


def read_file(database: Path) -> dict[str, int]:
    """Count the rows of the file by their status."""
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT status, count(*) FROM sessions GROUP BY status"
        return dict(connection.execute(query).fetchall())


async def fill(sessions: Watched, count: int = 40) -> list[str]:
    """Create sessions, and end one more; return the first."""
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
    assert await losses(database, times, 10 * YEAR) == (40, 41)


async def test_a_clock_that_stays_where_it_jumped_is_believed_by_the_next_sweep(
    database: Path, times: Times, caplog: pytest.LogCaptureFixture
) -> None:
    """After a sleep of the machine, in which the monotonic clock stood, one sweep is left out."""
    async with Watched(database, times.wall, times.monotonic, retention=7 * HOUR) as sessions:
        await fill(sessions)
        times.jump(8 * HOUR)
        await sessions.sweep()
        assert read_file(database) == {"active": 40, "ended": 1}
        times.pass_by(MINUTE)
        await sessions.sweep()
        assert read_file(database) == {}
    assert caplog.text.count("jumped") == 1


@pytest.mark.parametrize("has_boot_time", [True, False])
async def test_a_machine_that_sleeps_before_each_sweep_is_swept(
    database: Path, monkeypatch: pytest.MonkeyPatch, has_boot_time: bool
) -> None:
    """Where the system has a clock that goes on in sleep; by one that does not, each is a jump."""
    wall, awake = FakeClock(), FakeClock(1_000.0)
    system = SimpleNamespace(monotonic=awake)
    if has_boot_time:
        system.CLOCK_BOOTTIME = wall
        system.clock_gettime = lambda which: which()
    monkeypatch.setattr(sweeper, "time", system)
    swept = []
    store = SQLiteStore(database)
    async with SessionManager(store, clock=wall, sweep_interval=None) as sessions:
        background = Sweeper(store, wall, Expiry(1_800_000_000), None, uptime=sweeper.read_uptime)
        for _ in range(3):
            await sessions.create_session("lina")
            awake.turn(HOUR)
            wall.turn(9 * HOUR)
            await background.sweep()
            swept.append(read_file(database).get("timeout", 0))
    assert swept == ([1, 2, 3] if has_boot_time else [0, 0, 0])


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
        assert read_file(database) == {"ended": 1, "timeout": 40}
    assert "jumped" not in caplog.text


async def test_a_call_believes_the_clock(database: Path, times: Times) -> None:
    """Who calls cleanup or purge gets what was asked for, by the clock that was handed in."""
    async with Watched(database, times.wall, times.monotonic) as sessions:
        await fill(sessions)
        times.jump(10 * YEAR)
        assert await sessions.cleanup_inactive_sessions() == 40
        assert await sessions.purge_ended_sessions(YEAR) == 41


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


@pytest.mark.parametrize(("jump", "timeouts"), [(HOUR, 3), (DAY, 2), (10 * YEAR, 2)])
async def test_a_session_of_the_future_times_out(
    database: Path, times: Times, jump: float, timeouts: int
) -> None:
    """Created before the clock was set back, it has two timeouts to live, and not years.

    One that is ahead by less than two is left alone, and has three.
    """
    async with Watched(database, times.wall, times.monotonic) as sessions:
        id_ = await ahead(sessions, times, jump)
        await live_through(sessions, times, TIMEOUT, None)
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.last_activity.timestamp() > times.wall.now + jump - 2 * TIMEOUT
        await live_through(sessions, times, (timeouts - 1) * TIMEOUT - MINUTE, None)
        assert read_file(database) == {"active": 1}
        await live_through(sessions, times, 3 * MINUTE, None)
        session = await sessions.get_session(id_)
        assert session is not None
        assert (session.status, session.end_reason) == ("timeout", "timeout")
        assert session.ended_at is not None
        assert 0 < times.wall.now - session.ended_at.timestamp() <= 3 * MINUTE
        assert session.ended_at == session.last_activity + timedelta(seconds=TIMEOUT)
        assert session.duration.total_seconds() >= 0


async def test_it_is_seen_ahead_by_each_process_that_opens_the_file(
    database: Path, times: Times
) -> None:
    """A process that begins after the clock was set back brings the session back, too."""
    async with Watched(database, times.wall, times.monotonic) as sessions:
        await ahead(sessions, times, YEAR)
    async with Watched(database, times.wall, times.monotonic) as sessions:
        await live_through(sessions, times, 2 * TIMEOUT + 3 * MINUTE, None)
    assert read_file(database) == {"timeout": 1}


async def test_without_tidying_it_would_live_for_years(
    database: Path, times: Times, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above sees what it must."""

    async def tidy(self: SQLiteStore, moment: Moment) -> None:
        pass

    monkeypatch.setattr(SQLiteStore, "tidy", tidy)
    async with Watched(database, times.wall, times.monotonic) as sessions:
        await ahead(sessions, times, YEAR)
        for _ in range(200):
            times.pass_by(DAY)
            await sessions.sweep()
        assert read_file(database) == {"active": 1}


@pytest.mark.parametrize("call", ["update_activity", "update_session"])
@pytest.mark.parametrize("jump", [20 * MINUTE, 10 * YEAR])
async def test_a_session_of_the_future_lives_while_it_is_used(
    database: Path, times: Times, jump: float, call: str
) -> None:
    """The clock may be corrected for good: who is at it is not thrown out. Idle, it times out."""
    async with Watched(database, times.wall, times.monotonic) as sessions:
        id_ = await ahead(sessions, times, jump)
        await live_through(sessions, times, 2 * HOUR, lambda: getattr(sessions, call)(id_))
        assert read_file(database) == {"active": 1}
        await live_through(sessions, times, TIMEOUT + 2 * MINUTE, None)
        assert read_file(database) == {"timeout": 1}


@pytest.mark.parametrize("jump", [-HOUR, -10 * YEAR, HOUR])
async def test_a_clock_that_was_wrong_for_a_while_has_changed_nothing(
    database: Path, times: Times, jump: float
) -> None:
    """Back and forth again within a timeout: who was used or idle lives, and stands as before."""
    async with Watched(database, times.wall, times.monotonic) as sessions:
        used, idle = [await sessions.create_session("lina") for _ in range(2)]
        before = await sessions.get_session(idle)
        times.jump(jump)
        touch = None if jump > 0 else lambda: sessions.update_activity(used)
        await live_through(
            sessions, times, min(TIMEOUT - 4 * MINUTE, 1e9 if jump < 0 else 1), touch
        )
        times.jump(-jump)
        await live_through(sessions, times, 2 * MINUTE, None)
        for id_ in (used, idle):
            session = await sessions.get_session(id_)
            assert session is not None
            assert session.is_active
            assert session.last_activity.timestamp() == START
        assert await sessions.get_session(idle) == before
        assert await sessions.update_activity(used)
        assert await sessions.update_activity(idle)


async def test_two_short_mistakes_of_the_clock_are_not_a_long_one(
    database: Path, times: Times
) -> None:
    """Right again in between, it has to be wrong for a whole timeout anew."""
    async with Watched(database, times.wall, times.monotonic) as sessions:
        id_ = await sessions.create_session("lina")
        times.jump(-DAY)
        await live_through(sessions, times, 14 * MINUTE, None)
        times.jump(DAY)
        await live_through(sessions, times, 2 * MINUTE, None)
        assert await sessions.update_activity(id_)
        before = await sessions.get_session(id_)
        times.jump(-DAY)
        await live_through(sessions, times, 25 * MINUTE, None)
        times.jump(DAY)
        assert await sessions.get_session(id_) == before


# -- What is listed and counted by a clock that jumps ----------------------------------------------


@pytest.mark.parametrize("jump", [-10 * YEAR, -DAY, -1.0, 1.0, MINUTE])
async def test_pages_show_each_session_once(database: Path, times: Times, jump: float) -> None:
    """Where the clock jumps between pages, whatever was there at first is shown once, in order."""
    async with Watched(database, times.wall, times.monotonic, timeout=10 * YEAR) as sessions:
        for number in range(20):
            times.jump(jump if number % 2 else -jump)
            await sessions.create_session("lina")
        expected = [session.id for session in await sessions.get_active_sessions()]
        seen: list[Session] = []
        while page := await sessions.get_active_sessions(limit=3, after=seen[-1] if seen else None):
            seen += page
            times.jump(jump)
            if len(seen) < 30:  # else there would be a next page for ever
                await sessions.create_session("omar")
        assert [session.id for session in seen if session.child_id == "lina"] == expected
        assert [session.started_at for session in seen] == sorted(s.started_at for s in seen)


async def test_what_ended_in_the_future_is_kept_until_then(database: Path, times: Times) -> None:
    """A purge goes by ended_at and the clock, whichever of the two was wrong; both are final."""
    async with Watched(database, times.wall, times.monotonic, retention=DAY) as sessions:
        id_ = await sessions.create_session("lina")
        times.jump(20 * MINUTE)
        assert await sessions.end_session(id_)
        times.jump(-20 * MINUTE)
        assert not await sessions.update_activity(id_)
        assert await sessions.purge_ended_sessions(0) == 0
        stats = await sessions.get_session_stats()
        assert (stats["sessions_today"], stats["by_status"]["ended"]) == (1, 1)
        times.jump(20 * MINUTE)
        assert await sessions.purge_ended_sessions(0) == 1


@pytest.mark.parametrize(("jump", "today"), [(DAY, 2), (-DAY, 1)])
async def test_sessions_today_are_those_since_midnight(
    database: Path, times: Times, jump: float, today: int
) -> None:
    """One that started tomorrow, by a clock that ran ahead, has started since midnight, too."""
    async with Watched(database, times.wall, times.monotonic) as sessions:
        await sessions.create_session("lina")
        times.jump(jump)
        await sessions.create_session("lina")
        times.jump(-jump)
        assert (await sessions.get_session_stats())["sessions_today"] == today


# -- Clocks that tell nonsense ---------------------------------------------------------------------


class BrokenError(Exception):
    """What a clock may raise."""


NONSENSE: list[object] = [
    float("nan"),
    float("inf"),
    float("-inf"),
    Decimal("NaN"),
    Decimal("Infinity"),
    None,
    "1700000000",
    b"1",
    [1],
    1j,
    object(),
    datetime(2023, 11, 14, tzinfo=UTC),
    timedelta(1),
]
NUMBERS: list[Any] = [0, -1, -1e18, 1e18, 10**400, -(10**400), Decimal(7), Fraction(1, 3), True]


async def answers(sessions: SessionManager, id_: str, child: Session) -> list[object]:
    """Make each call that reads the clock, and return what it gave or raised."""
    calls: list[Coroutine[Any, Any, object]] = [
        sessions.create_session("lina"),
        sessions.get_session(id_),
        sessions.get_session("not there"),
        sessions.update_activity(id_),
        sessions.update_session(id_, {"a": 1}),
        sessions.end_session(id_),
        sessions.end_sessions("lina"),
        sessions.get_active_sessions(after=child),
        sessions.get_sessions_for_child("lina"),
        sessions.list_sessions(),
        sessions.cleanup_inactive_sessions(),
        sessions.purge_ended_sessions(1),
        sessions.get_session_stats(),
    ]
    return await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("nonsense", NONSENSE, ids=repr)
async def test_a_clock_that_tells_no_time_is_named(database: Path, nonsense: Any) -> None:
    """Each call refuses it, and writes nothing; then all goes on."""
    clock = FakeClock()
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        id_ = await sessions.create_session("lina", {"a": 0})
        before = await sessions.get_session(id_)
        assert before is not None
        clock.now = nonsense
        results = await answers(sessions, id_, before)
        if nonsense == float("-inf"):  # before any expires_at, for what is in memory
            assert results.pop(1) == before
        for result in results:
            assert isinstance(result, InvalidArgumentError)
            assert "the clock must return" in str(result)
        with pytest.raises(InvalidArgumentError, match="the clock must return"):
            await SessionManager(database, clock=clock).open()
        clock.now = START
        assert await sessions.get_session(id_) == before
        assert (await sessions.get_session_stats())["total_sessions"] == 1


async def test_a_clock_that_raises_is_heard(database: Path) -> None:
    """Its own exception comes through, from each call, and harms nothing."""
    clock, fails = FakeClock(), False

    def read() -> float:
        if fails:
            raise BrokenError
        return clock()

    async with SessionManager(database, clock=read, sweep_interval=None) as sessions:
        id_ = await sessions.create_session("lina", {"a": 0})
        before = await sessions.get_session(id_)
        assert before is not None
        fails = True
        for result in await answers(sessions, id_, before):
            assert isinstance(result, BrokenError)
        with pytest.raises(BrokenError):
            await SessionManager(database, clock=read).open()
        fails = False
        assert await sessions.get_session(id_) == before


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: repr(number)[:9])
async def test_any_number_is_a_time(database: Path, number: Any) -> None:
    """A clock may tell numbers of any kind and size: beyond the years 1 to 9999 it stands still."""
    clock = FakeClock()
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        clock.now = number
        id_ = await sessions.create_session("lina")
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.is_active
        for result in await answers(sessions, id_, session):
            assert not isinstance(result, Exception)


async def test_a_sweep_by_a_clock_that_tells_no_time_is_logged(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The background loop goes on, and sweeps when the clock is back."""
    clock = FakeClock()
    clock_is_bad = asyncio.Event()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            clock_is_bad.set()

    logger, heard = logging.getLogger("sessionstore.sweeper"), Heard(logging.WARNING)
    logger.addHandler(heard)
    try:
        async with SessionManager(database, clock=clock, sweep_interval=0.01) as sessions:
            id_ = await sessions.create_session("lina")
            clock.now = float("nan")
            async with asyncio.timeout(10):
                await clock_is_bad.wait()
                clock.now = START + TIMEOUT
                while read_file(database) != {"timeout": 1}:  # noqa: ASYNC110  # no event tells
                    await asyncio.sleep(0.005)
            assert not await sessions.update_activity(id_)
    finally:
        logger.removeHandler(heard)
    assert "the clock must return seconds" in caplog.text
