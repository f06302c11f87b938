# SPDX-License-Identifier: MIT
"""The sweep and its background loop, by themselves on a store in a dict, and in the manager."""

import asyncio
import logging
import os
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from sessionstore import Session, SessionManager, StoreBusyError
from sessionstore.expiry import Expiry, Moment
from sessionstore.session import LATEST
from sessionstore.store import Commit, Swept
from sessionstore.sweeper import CHUNK, MAX_JUMP, ClockWatch, Sweeper, purge_all, time_out_all

from ..clocks import MINUTE, TIMEOUT, Watched
from ..conftest import FakeClock
from ..contract.dict_store import DictStore
from .records import NOW, record

EXPIRY = Expiry(1_800_000_000)
RETENTION = 3_600_000_000


class Listener:
    """Hears of commits, and remembers."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []

    def on_commit(self, commit: Commit) -> None:
        """Remember a commit."""
        self.commits.append(commit)

    def forget(self) -> None:
        """Do nothing."""


def size_of_log(database: Path) -> int:
    """Return the bytes of a file's write-ahead log."""
    return os.path.getsize(f"{database}-wal")


class SlowStore(DictStore):
    """A store in which each sweep takes until it is let go, or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.sweeps = 0
        self.tidied = 0
        self.fails_with: Exception | None = None
        self.hangs_from = 10**9  # the number of the first sweep that hangs
        self.waits_for = 0
        self.reached = asyncio.Event()
        self.interrupted = asyncio.Event()

    async def time_out(self, moment: Moment, limit: int) -> Swept:
        """Count the sweep."""
        self.sweeps += 1
        if self.sweeps == self.waits_for:
            self.reached.set()
        if self.sweeps >= self.hangs_from:
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(3):
                    await asyncio.sleep(0)
                self.interrupted.set()
        if self.fails_with is not None:
            raise self.fails_with
        return await super().time_out(moment, limit)

    async def tidy(self, moment: Moment) -> None:
        """Count it."""
        self.tidied += 1


async def opened(store: DictStore) -> Listener:
    """Open a store, and return what listens to it."""
    listener = Listener()
    await store.open(listener, NOW)
    return listener


def make(store: DictStore, clock: FakeClock, retention: int | None = None) -> Sweeper:
    """Return a sweeper whose clock and uptime agree."""
    return Sweeper(store, clock, EXPIRY, retention, uptime=clock)


# -- One sweep -------------------------------------------------------------------------------------


async def test_chunk_after_chunk_until_there_is_no_more() -> None:
    """All that has timed out ends, and all that ended long ago goes, in commits of 500 at most."""
    store = DictStore()
    listener = await opened(store)
    for number in range(CHUNK * 2 + 1):
        await store.create(record(f"{number}"))
    listener.commits.clear()
    moment = Moment(NOW + EXPIRY.timeout, EXPIRY)
    assert await time_out_all(store, moment) == CHUNK * 2 + 1
    assert await time_out_all(store, moment) == 0
    assert await purge_all(store, NOW + EXPIRY.timeout - 1) == 0
    assert await purge_all(store, NOW + EXPIRY.timeout) == CHUNK * 2 + 1
    assert [len(commit.ended) for commit in listener.commits if commit.ended] == [CHUNK, CHUNK, 1]
    assert [len(c.erased) for c in listener.commits if c.erased] == [CHUNK, CHUNK, 1]


@pytest.mark.parametrize("retention", [None, RETENTION])
async def test_a_sweep_ends_and_erases_by_the_clock(
    clock: FakeClock, caplog: pytest.LogCaptureFixture, retention: int | None
) -> None:
    """What has timed out is ended; what ended a retention ago is erased, if there is one."""
    caplog.set_level(logging.INFO)
    store = DictStore()
    await opened(store)
    await store.create(record("a"))
    sweeper = make(store, clock, retention)
    clock.turn(1_799)
    await sweeper.sweep()
    found = await store.load("a")
    assert found is not None
    assert found.status == "active"
    clock.turn(3_600)
    await sweeper.sweep()
    found = await store.load("a")
    assert found is not None
    assert (found.status, found.ended_at) == ("timeout", NOW + EXPIRY.timeout)
    clock.turn(1)
    await sweeper.sweep()
    assert (await store.load("a") is None) == (retention is not None)
    said = [record.getMessage() for record in caplog.records]
    expected = ["sweep: 1 sessions timed out, 0 purged", "sweep: 0 sessions timed out, 1 purged"]
    assert said == expected[: 1 if retention is None else 2]


async def test_a_sweep_that_fails_still_tidies(clock: FakeClock) -> None:
    """What the engine needs at each sweep is done whatever else went wrong."""
    store = SlowStore()
    await opened(store)
    store.fails_with = OSError("broken")
    with pytest.raises(OSError, match="broken"):
        await make(store, clock).sweep()
    assert store.tidied == 1


async def test_a_retention_of_all_times_erases_nothing(clock: FakeClock) -> None:
    """The cutoff may be before the year 1."""
    store = DictStore()
    await opened(store)
    await store.create(record("a", status="ended", ended_at=NOW))
    await make(store, clock, LATEST).sweep()
    assert await store.load("a") is not None


# -- The watch on the clock ------------------------------------------------------------------------


@pytest.mark.parametrize("passed", [0.0, 1.0, 10 * 365 * 86_400.0])
@pytest.mark.parametrize("jump", [MAX_JUMP, -MAX_JUMP, MAX_JUMP + 0.001, -MAX_JUMP - 0.001])
def test_more_than_five_minutes_against_the_uptime_are_a_jump(
    passed: float, jump: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Either way, however long the pause was on both clocks; each look starts anew."""
    uptime = FakeClock(1_000.0)
    watch = ClockWatch(NOW, uptime)
    uptime.turn(passed)
    now = NOW + round((passed + jump) * 1_000_000)
    is_jump = abs(jump) > MAX_JUMP
    assert watch.has_jumped(now) == is_jump
    assert not watch.has_jumped(now)
    assert caplog.text.count("the clock has jumped by") == is_jump


async def test_after_a_jump_one_sweep_is_left_out(clock: FakeClock) -> None:
    """A clock that stays where it jumped is believed by the next one."""
    store, uptime = SlowStore(), FakeClock(1_000.0)
    await opened(store)
    sweeper = Sweeper(store, clock, EXPIRY, None, uptime=uptime)
    for _ in range(3):
        clock.turn(1e9)
        await sweeper.sweep()
        assert store.sweeps == 0
    await sweeper.sweep()
    assert store.sweeps == 1


# -- The background loop ---------------------------------------------------------------------------


async def test_it_sweeps_again_and_again_and_stops_at_once(clock: FakeClock) -> None:
    """Sweeps follow one another until stop(), which interrupts one, and leaves no task."""
    store = SlowStore()
    await opened(store)
    store.hangs_from = store.waits_for = 3
    sweeper = make(store, clock)
    sweeper.start(0.001)
    await store.reached.wait()
    await sweeper.stop()
    assert store.interrupted.is_set()  # what an interrupted sweep had to put in order is in order
    await sweeper.stop()
    await asyncio.sleep(0.01)
    assert store.sweeps == 3
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("is_ours", [True, False])
async def test_an_error_is_logged_and_the_next_sweep_comes(
    clock: FakeClock, caplog: pytest.LogCaptureFixture, is_ours: bool
) -> None:
    """A sweep that fails does not end the sweeping: an error of the store is a warning."""
    store = SlowStore()
    await opened(store)
    store.fails_with = StoreBusyError("a lock") if is_ours else OSError("broken")
    store.waits_for = 3
    sweeper = make(store, clock)
    sweeper.start(0.001)
    await store.reached.wait()
    await sweeper.stop()
    assert caplog.text.count("the sweep failed") >= 2
    assert ("a lock" if is_ours else "broken") in caplog.text
    levels = {record.levelname for record in caplog.records}
    assert levels == {"WARNING" if is_ours else "ERROR"}


async def test_pauses_vary_by_a_tenth(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that start together do not sweep together for ever."""
    pauses: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)
        await real_sleep(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    store = SlowStore()
    await opened(store)
    sweeper = make(store, clock)
    sweeper.start(100)
    while len(pauses) < 200:
        await real_sleep(0)
    await sweeper.stop()
    assert 90 <= min(pauses) < 95
    assert 105 < max(pauses) <= 110


# -- In the manager --------------------------------------------------------------------------------


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
    database: Path, clock: FakeClock
) -> None:
    """A sweep leaves it as it is, times out and purges the others, and empties the log."""
    async with Watched(database, clock, clock, retention=MINUTE, cache_size=0) as sessions:
        damaged, idle, old = [await sessions.create_session("lina") for _ in range(3)]
        await sessions.end_session(old)
        with closing(sqlite3.connect(database)) as other, other:
            other.execute("PRAGMA ignore_check_constraints = ON")
            other.execute(
                "UPDATE sessions SET last_activity = '2000 and no time' WHERE id = ?", [damaged]
            )
        clock.turn(TIMEOUT)
        await sessions.sweep()
        assert await sessions.get_session(old) is None
        session = await sessions.get_session(idle)
        assert session is not None
        assert session.status == "timeout"
        with closing(sqlite3.connect(database)) as other:
            found = other.execute("SELECT id FROM sessions WHERE status = 'timeout'").fetchall()
        assert found == [(idle,)]
        assert size_of_log(database) == 0
        assert await sessions.delete_session(damaged)


async def test_callers_get_in_between_the_chunks_of_a_sweep(
    database: Path, clock: FakeClock
) -> None:
    """A write that comes during a long sweep is committed before the sweep has ended."""
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        await asyncio.gather(*(sessions.create_session("lina") for _ in range(2_000)))
        clock.turn(1_800)
        sweeping = asyncio.create_task(sessions.cleanup_inactive_sessions())
        await asyncio.sleep(0)
        await sessions.create_session("omar")
        assert not sweeping.done()
        assert await sweeping == 2_000
