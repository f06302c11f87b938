# SPDX-License-Identifier: MIT
"""Group commit: one transaction for many, replay after a failure, and what is durable when."""

import asyncio
import math
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sessionstore import SessionManager, StorageError, StoreBusyError, store
from sessionstore import database as database_module
from sessionstore.sqlite.jobs import Turn
from sessionstore.sqlite.schema import migrate
from sessionstore.sqlite.writer import NO_CHANGE, PATIENCE, Change, Operation, _apply_all

from ..conftest import FakeClock

CONTROL = ("PRAGMA synchronous", "BEGIN", "COMMIT", "ROLLBACK")


async def trace(sessions: SessionManager) -> list[str]:
    """Return the list to which the writing connection's transactions are written from now on."""
    seen: list[str] = []

    def keep(statement: str) -> None:
        if statement.startswith(CONTROL):
            seen.append(statement)

    await sessions._database._writer.run(lambda connection: connection.set_trace_callback(keep))
    return seen


@pytest.mark.parametrize(("shared_at", "commits"), [(math.inf, 1), (-math.inf, 2)])
async def test_concurrent_writes_share_a_transaction(
    database: Path, clock: FakeClock, shared_at: float, commits: int
) -> None:
    """A hundred callers are answered by one COMMIT, or two while no other process writes."""
    async with SessionManager(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        sessions._database.coherence._shared_at = shared_at
        seen = await trace(sessions)
        assert all(await asyncio.gather(*(sessions.update_activity(id_) for _ in range(100))))
        assert seen == ["PRAGMA synchronous = NORMAL", "BEGIN IMMEDIATE", "COMMIT"] * commits


async def test_a_batch_has_a_limit(database: Path, clock: FakeClock) -> None:
    """1,200 callers need three transactions of at most 500."""
    async with SessionManager(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        seen = await trace(sessions)
        await asyncio.gather(*(sessions.update_activity(id_) for _ in range(1_200)))
        assert seen.count("COMMIT") == 3  # 500, 500 and 200, overlapping or not


async def test_the_queue_has_a_limit(database: Path, clock: FakeClock) -> None:
    """Of 10,100 callers, 10,000 are queued and the others wait outside; all are answered."""
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        id_ = await sessions.create_session("lina")
        calls = [asyncio.create_task(sessions.update_activity(id_)) for _ in range(10_100)]
        await asyncio.sleep(0)
        assert len(sessions._writer._batcher._queue) == 10_000
        assert all(await asyncio.gather(*calls))
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.interaction_count == 10_100


async def test_what_must_survive_a_power_cut_is_synced(database: Path, clock: FakeClock) -> None:
    """Activity and timeouts commit with NORMAL; everything else, and what shares a batch, FULL."""
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(6)]
        seen = await trace(sessions)

        async def synchronous(*calls: Any) -> list[str]:
            seen.clear()
            await asyncio.gather(*calls)
            return [text.split()[-1] for text in seen if text.startswith("PRAGMA")]

        assert await synchronous(sessions.update_activity(ids[0])) == ["NORMAL"]
        assert await synchronous(sessions.create_session("lina")) == ["FULL"]
        assert await synchronous(sessions.update_session(ids[0], {"a": 1})) == ["FULL"]
        assert await synchronous(sessions.end_session(ids[1])) == ["FULL"]
        assert await synchronous(sessions.end_sessions("omar")) == ["FULL"]
        assert await synchronous(sessions.delete_session(ids[2])) == ["FULL"]
        mixed = [sessions.update_activity(ids[0]), sessions.end_session(ids[3])]
        assert await synchronous(*mixed) == ["FULL"]
        clock.turn(1_800)
        assert await synchronous(sessions.cleanup_inactive_sessions()) == ["NORMAL"]
        assert await synchronous(sessions.purge_ended_sessions(0)) == ["NORMAL", "FULL"]


async def test_a_caller_hears_only_after_commit(database: Path, clock: FakeClock) -> None:
    """When create_session returns, another connection sees the row, also in the middle of many."""
    async with SessionManager(database, clock=clock) as sessions:
        shell = sqlite3.connect(database)

        async def create_and_look() -> int:
            id_ = await sessions.create_session("lina")
            found: tuple[int] = shell.execute(
                "SELECT count(*) FROM sessions WHERE id = ?", [id_]
            ).fetchone()
            return found[0]

        assert await asyncio.gather(*(create_and_look() for _ in range(200))) == [1] * 200
        shell.close()


def failing(times: int) -> Callable[[sqlite3.Connection], Change]:
    """Return an operation that writes, and then breaks a constraint, so many times."""
    left = times

    def fail(connection: sqlite3.Connection) -> Change:
        nonlocal left
        connection.execute("DELETE FROM sessions WHERE child_id = 'omar'")
        if left:
            left -= 1
            connection.execute("UPDATE sessions SET status = 'asleep'")
        return Change()

    return fail


async def submit(sessions: SessionManager, apply: Callable[[sqlite3.Connection], Change]) -> Change:
    """Write an operation of a test's own, in its turn among other calls."""
    return await sessions._writer.submit(apply, durable=True)


async def test_a_failing_operation_fails_alone(database: Path, clock: FakeClock) -> None:
    """The batch is rolled back and replayed: only the bad operation's caller sees its error."""
    async with SessionManager(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        kept = await sessions.create_session("omar")
        seen = await trace(sessions)
        results = await asyncio.gather(
            sessions.update_activity(id_),
            submit(sessions, failing(9)),
            sessions.create_session("lina"),
            sessions.end_session(id_),
            return_exceptions=True,
        )
        assert results[0] is True
        assert isinstance(results[1], StorageError)
        assert isinstance(results[1].__cause__, sqlite3.IntegrityError)
        assert isinstance(results[2], str)
        assert results[3] is True
        assert [text for text in seen if not text.startswith("PRAGMA")] == [
            *("BEGIN IMMEDIATE", "ROLLBACK"),
            *("BEGIN IMMEDIATE", "COMMIT"),
            *("BEGIN IMMEDIATE", "ROLLBACK"),
            *("BEGIN IMMEDIATE", "COMMIT"),
            *("BEGIN IMMEDIATE", "COMMIT"),
        ]
        assert await sessions.get_session(kept) is not None
        session = await sessions.get_session(id_)
        assert session is not None
        assert (session.interaction_count, session.status) == (1, "ended")


async def test_an_error_that_is_none_of_sqlites_reaches_its_caller(
    database: Path, clock: FakeClock
) -> None:
    """A fault in an operation is raised as it is where it was called, and nowhere else.

    By itself it is tried once; of a batch it is tried again by itself.
    """
    tries = 0

    def stumble(_: sqlite3.Connection) -> Change:
        nonlocal tries
        tries += 1
        raise ZeroDivisionError

    async with SessionManager(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        with pytest.raises(ZeroDivisionError):
            await submit(sessions, stumble)
        assert tries == 1
        results = await asyncio.gather(
            submit(sessions, stumble), sessions.update_activity(id_), return_exceptions=True
        )
        assert [type(result) for result in results] == [ZeroDivisionError, bool]
        assert tries == 3


async def test_a_failure_that_passes_costs_nobody_anything(
    database: Path, clock: FakeClock
) -> None:
    """Where the replay succeeds, every caller has its result, counted once."""
    async with SessionManager(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        results = await asyncio.gather(
            *(sessions.update_activity(id_) for _ in range(10)),
            submit(sessions, failing(1)),
        )
        assert results == [True] * 10 + [Change()]
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.interaction_count == 10


async def test_a_rollback_by_sqlite_itself_is_noticed(database: Path, clock: FakeClock) -> None:
    """An operation after which no transaction is open fails alone, and the store works on."""

    def lose(connection: sqlite3.Connection) -> Change:
        connection.execute("ROLLBACK")  # as SQLite does by itself on a full disk
        raise sqlite3.OperationalError("database or disk is full")

    async with SessionManager(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        results = await asyncio.gather(
            sessions.update_activity(id_),
            submit(sessions, lose),
            sessions.update_activity(id_),
            return_exceptions=True,
        )
        assert (results[0], type(results[1]), results[2]) == (True, StorageError, True)
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.interaction_count == 2


async def test_a_locked_file_fails_the_batch_after_one_wait(
    database: Path, clock: FakeClock
) -> None:
    """While another program holds the lock, reads go on and writers hear StoreBusyError."""
    async with SessionManager(database, clock=clock, cache_size=0, busy_timeout=0.2) as sessions:
        id_ = await sessions.create_session("lina")
        shell = sqlite3.connect(database, isolation_level=None)
        seen = await trace(sessions)
        shell.execute("BEGIN IMMEDIATE")
        started = asyncio.get_running_loop().time()
        results = await asyncio.gather(
            *(sessions.update_activity(id_) for _ in range(200)), return_exceptions=True
        )
        assert {type(result) for result in results} == {StoreBusyError}
        assert asyncio.get_running_loop().time() - started < 20 * 0.2
        assert await sessions.get_session(id_) is not None
        with pytest.raises(StoreBusyError):
            await sessions.update_activity(id_)
        shell.execute("ROLLBACK")
        shell.close()
        assert await sessions.update_activity(id_) is True
        assert seen.count("BEGIN IMMEDIATE") < 100  # it was not tried for each by itself
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.interaction_count == 1


async def test_who_has_waited_in_the_queue_waits_no_longer_for_a_lock(
    database: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeout counts from the call: a batch behind one that gave up waits hardly any more."""
    patience: list[float] = []

    class Recorded(Turn):
        def __init__(self, seconds: float) -> None:
            super().__init__(seconds)
            patience.append(seconds)

    async with SessionManager(
        database, clock=clock, busy_timeout=0.5, sweep_interval=None
    ) as sessions:
        id_ = await sessions.create_session("lina")
        monkeypatch.setattr(database_module, "Turn", Recorded)
        with closing(sqlite3.connect(database, isolation_level=None)) as shell:
            shell.execute("BEGIN IMMEDIATE")
            calls = (sessions.update_activity(id_) for _ in range(1_200))
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {StoreBusyError}
        assert len(patience) == 3
        assert max(patience[1:]) < 0.25


async def test_a_lock_in_the_middle_of_a_batch_fails_it_whole(
    database: Path, clock: FakeClock
) -> None:
    """Where SQLite is busy later than at BEGIN, all callers hear so, and nothing is replayed."""
    tries = 0

    def meet_a_lock(_: sqlite3.Connection) -> Change:
        nonlocal tries
        tries += 1
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error

    async with SessionManager(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        results = await asyncio.gather(
            sessions.update_activity(id_),
            submit(sessions, meet_a_lock),
            sessions.update_activity(id_),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [StoreBusyError] * 3
        assert tries == 1
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.interaction_count == 0


@pytest.mark.parametrize("callers", [1, 5])
async def test_a_batch_waits_for_a_lock_like_one_call(
    database: Path, clock: FakeClock, callers: int
) -> None:
    """Where another program lets go of its lock in time, nobody hears of it."""
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        id_ = await sessions.create_session("lina")
        with closing(sqlite3.connect(database, isolation_level=None)) as shell:
            shell.execute("BEGIN IMMEDIATE")
            asyncio.get_running_loop().call_later(0.25, shell.execute, "ROLLBACK")
            touches = await asyncio.gather(*(sessions.update_activity(id_) for _ in range(callers)))
        assert touches == [True] * callers


async def test_the_cache_is_told_before_the_callers(database: Path, clock: FakeClock) -> None:
    """What a commit changed is a hit at once, for its own caller, and what ended is dropped."""
    async with SessionManager(database, clock=clock) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(2)]
        assert await sessions.update_session(ids[0], {"a": 1})
        session = await sessions.get_session(ids[0])
        assert session is not None
        assert session.data == {"a": 1}
        await sessions.end_session(ids[1])
        stats = await sessions.get_session_stats()
        assert (stats["cache_hits"], stats["cache_misses"]) == (1, 0)
        assert stats["memory_cache_size"] == 1


async def test_the_last_of_several_changes_in_a_batch_is_cached(
    database: Path, clock: FakeClock
) -> None:
    """Where one batch changes a session twice, the cache holds the second state."""
    async with SessionManager(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        first = asyncio.create_task(sessions.update_activity(id_))
        second = asyncio.create_task(sessions.update_activity(id_))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        cached = await sessions.get_session(id_)
        stored = (await sessions.get_sessions_for_child("lina"))[0]
        assert cached == stored


def test_an_operation_that_refuses_has_written_nothing() -> None:
    """merge_session raises before its UPDATE, which is what lets the batch go on."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, ":memory:", "2023-11-14 22:13:20.000000")
    connection.execute(
        "INSERT INTO sessions (id, child_id, started_at, last_activity) VALUES ('i', 'c',"
        " '2023-11-14 22:13:20.000000', '2023-11-14 22:13:20.000000')"
    )
    before = connection.total_changes
    cutoffs = {"now": "2023-11-14 22:13:21.000000", "idle_cutoff": "", "lifetime_cutoff": ""}
    with pytest.raises(ValueError, match="must not exceed"):
        store.merge_session(connection, "i", '{"a":"xxxxxxxxxx"}', "{}", (), 10, cutoffs)
    assert connection.total_changes == before
    connection.close()


@pytest.mark.parametrize(("seconds", "announced"), [(0.0, []), (PATIENCE * 1.2, [1, 2, 3])])
def test_long_operations_do_not_keep_the_callers_of_the_batch_before(
    monkeypatch: pytest.MonkeyPatch, seconds: float, announced: list[int]
) -> None:
    """The end of that batch is announced after each that was long, and for short ones at COMMIT."""
    applied: list[int] = []
    heard: list[int] = []
    turn = Turn(1.0)
    monkeypatch.setattr(turn, "announce", lambda: heard.append(len(applied)))

    def apply(_: sqlite3.Connection, number: int) -> Change:
        time.sleep(seconds)
        applied.append(number)
        return NO_CHANGE

    operations = [Operation(apply, (number,), durable=True) for number in range(3)]
    with closing(sqlite3.connect(":memory:")) as connection:
        assert _apply_all(connection, turn, operations) == [NO_CHANGE] * 3
    assert heard == announced
