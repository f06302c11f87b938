# SPDX-License-Identifier: MIT
"""Touches that come together: one statement, which SQLite commits by itself, and what is left."""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from sessionstore import SessionManager, StorageError, StoreBusyError, queries
from sessionstore.sqlite.sidecar import slot_of
from sessionstore.sqlite.writer import Change

from ..conftest import FakeClock
from .test_writer import trace


@pytest_asyncio.fixture
async def sessions(database: Path, clock: FakeClock) -> AsyncIterator[SessionManager]:
    """Yield a store that waits half a second for locks, and does not sweep."""
    async with SessionManager(
        database, clock=clock, busy_timeout=0.5, sweep_interval=None
    ) as opened:
        yield opened


async def create(sessions: SessionManager, count: int) -> list[str]:
    """Create sessions and return their ids."""
    return [await sessions.create_session("lina") for _ in range(count)]


async def touch(sessions: SessionManager, ids: Sequence[str]) -> list[bool | BaseException]:
    """Touch all at the same time."""
    calls = (sessions.update_activity(id_) for id_ in ids)
    return await asyncio.gather(*calls, return_exceptions=True)


async def counts(sessions: SessionManager, ids: Sequence[str]) -> list[int]:
    """Return how many interactions the file has of each."""
    found = {each.id: each.interaction_count for each in await sessions.list_sessions()}
    return [found[id_] for id_ in ids]


@pytest.mark.parametrize("count", [1, 20])
async def test_touches_need_no_transaction_of_ours(sessions: SessionManager, count: int) -> None:
    """One or many, they are written and committed by their statement alone."""
    ids = await create(sessions, count)
    seen = await trace(sessions)
    assert await touch(sessions, ids) == [True] * count
    assert seen == ["PRAGMA synchronous = NORMAL"]
    assert await counts(sessions, ids) == [1] * count


async def test_what_cannot_be_touched_is_left_for_a_transaction(
    sessions: SessionManager, clock: FakeClock
) -> None:
    """Ended, timed out or not there: each is told apart, and the others are touched once."""
    timed_out = (await create(sessions, 1))[0]
    clock.turn(1_800)
    ids = await create(sessions, 4)
    await sessions.end_session(ids[2])
    seen = await trace(sessions)
    answers = await touch(sessions, [ids[0], timed_out, ids[1], "not there", ids[2], ids[3]])
    assert answers == [True, False, True, False, False, True]
    assert seen[1:] == ["PRAGMA synchronous = NORMAL", "BEGIN IMMEDIATE", "COMMIT"]
    assert await counts(sessions, [*ids, timed_out]) == [1, 1, 0, 1, 0]


async def test_touches_of_one_session_share_a_transaction(sessions: SessionManager) -> None:
    """Where one would be left for a second transaction anyway, there is only that."""
    ids = await create(sessions, 2)
    seen = await trace(sessions)
    assert await touch(sessions, [ids[0], ids[1], ids[0]]) == [True] * 3
    assert seen.count("COMMIT") == seen.count("PRAGMA synchronous = NORMAL") == 1
    assert await counts(sessions, ids) == [2, 1]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_failure_after_the_commit_repeats_nothing(
    sessions: SessionManager, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Where nobody can say who was touched, all hear of the error; none is touched twice."""
    ids = await create(sessions, count)
    monkeypatch.setattr(queries, "SELECT_SESSIONS_TOUCHED", "SELECT nothing")
    answers = await touch(sessions, [*ids, "not there"])
    assert [type(answer) for answer in answers] == [StorageError] * (count + 1)
    assert await counts(sessions, ids) == [1] * count


async def test_a_statement_that_fails_at_once_is_made_up_for(
    sessions: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing was written, each touch is done by itself, whatever was done before."""
    ids = await create(sessions, 3)
    assert await touch(sessions, ids) == [True] * 3
    monkeypatch.setattr(queries, "UPDATE_SESSIONS_ACTIVITY", "UPDATE nothing SET at_all = 1")
    assert await touch(sessions, ids) == [True] * 3
    assert await counts(sessions, ids) == [2] * 3


def make_trigger(database: Path, what: str) -> None:
    """Add a trigger of the host project's to the table."""
    with closing(sqlite3.connect(database)) as shell:
        shell.execute(f"CREATE TRIGGER host {what}; END")


@pytest.mark.parametrize("action", ["ABORT", "ROLLBACK"])
@pytest.mark.parametrize("audit", ["", "INSERT INTO audit SELECT old.id; "])
async def test_a_trigger_that_refuses_one_touch_refuses_no_other(
    sessions: SessionManager, database: Path, action: str, audit: str
) -> None:
    """The statement is undone as a whole, and each touch is then done by itself.

    So it is where triggers have written something, which SQLite's counter does not forget.
    """
    ids = await create(sessions, 3)
    with closing(sqlite3.connect(database)) as shell:
        shell.execute("CREATE TABLE audit (id TEXT)")
    refuse = f"SELECT RAISE({action}, 'no') WHERE old.id = '{ids[1]}'"
    make_trigger(database, f"AFTER UPDATE ON sessions BEGIN {audit}{refuse}")
    answers = await touch(sessions, ids)
    assert [type(answer) for answer in answers] == [bool, StorageError, bool]
    assert await counts(sessions, ids) == [1, 0, 1]
    coherence = sessions._database.coherence
    assert [coherence.word(slot_of(id_)) & 1 for id_ in ids] == [0] * 3  # nothing is in flight


async def test_a_touch_that_cannot_be_told_is_not_repeated(
    sessions: SessionManager, database: Path, clock: FakeClock
) -> None:
    """Where a trigger sets other times, and not all are there, all hear of it."""
    ids = await create(sessions, 3)
    round_down = "substr(new.last_activity, 1, 20) || '000000'"
    update = f"UPDATE sessions SET last_activity = {round_down} WHERE id = new.id"
    make_trigger(database, f"AFTER UPDATE OF interaction_count ON sessions BEGIN {update}")
    clock.turn(0.5)
    answers = await touch(sessions, [*ids, "not there"])
    assert [type(answer) for answer in answers] == [StorageError] * 4
    assert await counts(sessions, ids) == [1] * 3


async def test_a_touch_that_was_given_up_is_not_written(
    sessions: SessionManager, database: Path
) -> None:
    """Where another process keeps the lock file for too long, its later end changes nothing."""
    ids = await create(sessions, 3)
    descriptor = os.open(f"{database}-lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    answers = await touch(sessions, ids)
    os.close(descriptor)
    assert [type(answer) for answer in answers] == [StoreBusyError] * 3
    assert await counts(sessions, ids) == [0] * 3
    assert await touch(sessions, ids) == [True] * 3
    assert await counts(sessions, ids) == [1] * 3


@pytest.mark.parametrize("count", [1, 20])
async def test_a_lock_of_another_program_is_waited_for(
    sessions: SessionManager, database: Path, count: int
) -> None:
    """Until it is free, or the timeout is over; then nothing was written."""
    ids = await create(sessions, count)
    with closing(sqlite3.connect(database, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        answers = await touch(sessions, ids)
        assert [type(answer) for answer in answers] == [StoreBusyError] * count
        asyncio.get_running_loop().call_later(0.25, shell.execute, "ROLLBACK")
        assert await touch(sessions, ids) == [True] * count
    assert await counts(sessions, ids) == [1] * count


async def test_closing_waits_hardly_any_longer_for_a_lock(database: Path, clock: FakeClock) -> None:
    """Touches that wait for another program are given up, though their batch was begun."""
    sessions = SessionManager(database, clock=clock, busy_timeout=30, sweep_interval=None)
    await sessions.open()
    ids = await create(sessions, 3)
    with closing(sqlite3.connect(database, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        touching = asyncio.create_task(touch(sessions, ids))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            await sessions.close()
            assert [type(answer) for answer in await touching] == [StoreBusyError] * 3


Together = Callable[[sqlite3.Connection, list[tuple[Change]]], list[Change | None]]


async def submit(
    sessions: SessionManager, together: Together, ids: Sequence[str]
) -> list[Change | BaseException]:
    """Write operations of a test's own at the same time, which do nothing by themselves."""

    def apply(_: sqlite3.Connection, change: Change) -> Change:
        return change

    changes = [Change((), id_, "") for id_ in ids]
    submit_one = partial(sessions._writer.submit_jointly, together, apply, durable=False)
    return await asyncio.gather(*map(submit_one, changes), return_exceptions=True)


@pytest.mark.parametrize("closing_down", [False, True])
async def test_what_is_left_waits_no_longer_than_any_write(
    database: Path, clock: FakeClock, closing_down: bool
) -> None:
    """Where a lock comes between the commit and what is left, only that is given up."""
    shell = sqlite3.connect(database, isolation_level=None, check_same_thread=False)

    def together(
        connection: sqlite3.Connection, touches: list[tuple[Change]]
    ) -> list[Change | None]:
        connection.execute("UPDATE sessions SET data = '{}'")
        shell.execute("BEGIN IMMEDIATE")
        return [touches[0][0], None]

    timeout = 30 if closing_down else 0.5
    sessions = SessionManager(database, clock=clock, busy_timeout=timeout, sweep_interval=None)
    async with asyncio.timeout(10):
        await sessions.open()
        ids = [*await create(sessions, 1), "other"]
        answers = asyncio.create_task(submit(sessions, together, ids))
        if closing_down:
            await asyncio.sleep(0.2)
            await sessions.close()
        assert [type(answer) for answer in await answers] == [Change, StoreBusyError]
        shell.close()
        await sessions.close()


async def test_the_slots_are_in_flight_before_the_statement(sessions: SessionManager) -> None:
    """Since the statement commits, no reader may keep what it reads from its beginning on."""
    ids = await create(sessions, 2)
    coherence = sessions._database.coherence
    seen: list[int] = []

    def together(_: sqlite3.Connection, touches: list[tuple[Change]]) -> list[Change | None]:
        seen.extend(coherence.word(slot_of(id_)) for id_ in ids)
        return [change for (change,) in touches]

    changes = await submit(sessions, together, ids)
    assert [type(change) for change in changes] == [Change, Change]
    assert [word & 1 for word in seen] == [1, 1]
    assert [coherence.word(slot_of(id_)) & 1 for id_ in ids] == [0, 0]
