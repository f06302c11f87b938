# SPDX-License-Identifier: MIT
"""Traps that reviews of the design have found, each as a test."""

import asyncio
import fcntl
import json
import logging
import mmap
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from sessionstore import Session, SessionManager, StorageError, StoreBusyError, StoreClosedError
from sessionstore.session import Record

from ..children import Child, Line, hold_sidecar, holding, is_locked
from ..conftest import FakeClock
from .tools import (
    NOON,
    SECOND,
    SLOTS,
    lock_of,
    longest_gap,
    moment,
    new_record,
    opened,
    quiet,
    run_sql,
    the_session,
    until,
    writing,
)

# -- Rows that cannot be read ----------------------------------------------------------------------

UNREADABLE = {
    "a time that is none": "last_activity = '2023-02-31 10:00:00.000000'",
    "a time of letters": "started_at = 'abcd-ef-gh ij:kl:mn.opqrst'",
    "invalid UTF-8": "data = CAST(x'7b2261223a22ff227d' AS TEXT)",
    "a child of invalid UTF-8": "child_id = CAST(x'ff' AS TEXT)",
    "a count that is none": "interaction_count = 'many'",
    "a count without end": "interaction_count = 9e999",
}


@contextmanager
def unreadable(database: Path, session_id: str, how: str) -> Iterator[None]:
    """Have another program make a row unreadable, and mend it after the block."""
    select = "SELECT last_activity, started_at, data, child_id, interaction_count FROM sessions"
    (before,) = run_sql(database, f"{select} WHERE id = ?", session_id)
    run_sql(database, f"UPDATE sessions SET {UNREADABLE[how]} WHERE id = ?", session_id)
    yield
    run_sql(
        database,
        "UPDATE sessions SET last_activity = ?, started_at = ?, data = ?, child_id = ?,"
        " interaction_count = ? WHERE id = ?",
        *before,
        session_id,
    )


@pytest.mark.parametrize("how", UNREADABLE)
async def test_an_unreadable_row_is_an_error_for_its_own_caller_only(
    database: Path, how: str
) -> None:
    """Loads, edits and ends that come with it are served, and a list of others is whole."""
    async with opened(database) as (store, _):
        records = [new_record(child_id=child) for child in ("ben", "lina", "omar")]
        await asyncio.gather(*map(store.create, records))
        bad = records[1].id
        with unreadable(database, bad, how):
            loads = [store.load(record.id) for record in records]
            first, error, third = await asyncio.gather(*loads, return_exceptions=True)
            assert (first, third) == (records[0], records[2])
            assert isinstance(error, StorageError)
            assert "cannot be read" in str(error)
            assert error.__cause__ is None  # which would quote it
            results = await asyncio.gather(
                store.list_of_child("ben", 10),
                store.search(moment(), None, None, 10),
                store.list_of_child("omar", 10),
                store.touch(records[0].id, moment()),
                store.count(moment()),
                return_exceptions=True,
            )
            assert [type(result) for result in results[:4]] == [list, StorageError, list, bool]
            assert not isinstance(results[4], BaseException)
            assert results[4].by_status["active"] >= 2
            edits = [
                store.edit(record.id, moment(1), lambda record: record._replace(data='{"a":1}'))
                for record in records
            ]
            answers = await asyncio.gather(*edits, return_exceptions=True)
            assert (answers[0], answers[2]) == (True, True)
            assert answers[1] is False or isinstance(answers[1], StorageError)
        assert await store.load(bad) == records[1]


@pytest.mark.parametrize("how", UNREADABLE)
async def test_an_unreadable_row_leaves_no_statement_open(database: Path, how: str) -> None:
    """What is loaded and listed after it is new: no snapshot of before is kept."""
    async with opened(database) as (store, _), opened(database) as (other, _):
        records = [new_record() for _ in range(3)]
        await asyncio.gather(*map(store.create, records))
        for count in range(1, 4):
            with unreadable(database, records[1].id, how):
                for call in (
                    lambda: store.load(records[1].id),
                    lambda: store.search(moment(), None, None, 10),
                    lambda: store.list_of_child("lina", 10),
                ):
                    await asyncio.gather(call(), return_exceptions=True)
                assert await other.touch(records[0].id, moment())
                loaded = await store.load(records[0].id)
                assert loaded is not None
                assert loaded.interaction_count == count
            listed = await store.list_of_child("lina", 10)
            assert max(record.interaction_count for record in listed) == count


@pytest.mark.parametrize("how", UNREADABLE)
async def test_an_unreadable_row_stops_no_sweep(database: Path, how: str) -> None:
    """All others are ended, each once, and it is ended when it can be read again, or deleted."""
    async with opened(database) as (store, heard):
        records = [new_record() for _ in range(5)]
        await asyncio.gather(*map(store.create, records))
        bad = records[2].id
        with unreadable(database, bad, how):
            for _ in range(3):
                while (await store.time_out(moment(60), 2)).has_more:
                    pass
            ended = [each.id for commit in heard.commits for each in commit.ended]
            assert len(set(ended)) == len(ended)
            assert {record.id for record in records} - set(ended) <= {bad}
        while (await store.time_out(moment(60), 2)).has_more:
            pass
        assert await store.erase(bad)
        assert (await store.count(moment(60))).by_status["timeout"] == 4


async def test_a_write_that_cannot_be_read_back_is_not_half_done(database: Path) -> None:
    """The end of an unreadable session raises, and it is as it was, in the file and in caches."""
    async with opened(database) as (store, heard):
        records = [new_record() for _ in range(3)]
        await asyncio.gather(*map(store.create, records))
        with unreadable(database, records[1].id, "a count that is none"):
            ends = [store.end(record.id, moment(1), "ended", "manual") for record in records]
            answers = await asyncio.gather(*ends, return_exceptions=True)
            assert (answers[0], type(answers[1]), answers[2]) == (True, StorageError, True)
            with pytest.raises(StorageError):
                await store.end_all("lina", moment(1), "ended", "manual", None)
        assert await store.load(records[1].id) == records[1]
        ended = [each.id for commit in heard.commits for each in commit.ended]
        assert sorted(ended) == sorted([records[0].id, records[2].id])


async def test_json_of_another_program_is_told_when_it_is_asked_for(
    database: Path, clock: FakeClock
) -> None:
    """What is JSON, but no object, fails data and metadata, and nothing else of the session."""
    async with quiet(database, clock=clock) as sessions:
        ids = [await sessions.create_session("lina")]
        clock.turn(1)
        ids.append(await sessions.create_session("lina"))
        run_sql(
            database, "UPDATE sessions SET data = '[1, 2]', metadata = '7' WHERE id = ?", ids[0]
        )
        await sessions.purge_ended_sessions(0)  # which sees that another program has written
        first, second = await sessions.get_active_sessions("lina")
        assert second.data == {}
        for name in ("data", "metadata"):
            with pytest.raises(StorageError, match="cannot be read"):
                getattr(first, name)
        assert await sessions.update_activity(ids[0])
        with pytest.raises(StorageError):
            await sessions.update_session(ids[0], {"a": 1})
        assert await sessions.update_session(ids[1], {"a": 1})


# -- Faults of the host's --------------------------------------------------------------------------


class RaisingFilter(logging.Filter):
    """A filter that has a fault."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Raise."""
        raise ZeroDivisionError


async def test_a_logging_filter_that_raises_loses_no_call(
    database: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions end, on_end is called for each although it fails, and all callers are answered."""
    ended: list[str] = []

    def fail(session: Session) -> None:
        ended.append(session.id)
        raise RuntimeError

    async with SessionManager(
        database, clock=clock, on_end=fail, timeout=60, sweep_interval=0.01
    ) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(3)]
        later = [await sessions.create_session(child) for child in ("ben", "omar")]
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("sessionstore"):
                monkeypatch.setattr(logging.getLogger(name), "filters", [RaisingFilter()])
        async with asyncio.timeout(10):
            assert await sessions.end_sessions("lina") == 3
            assert await sessions.get_session(ids[0])
            with pytest.raises(ZeroDivisionError):  # its id cannot be logged
                await sessions.create_session("ada")
            assert await sessions.get_active_sessions("ada") == []  # and nothing is left behind
            clock.turn(30)
            for id_ in later:  # the background sweep goes on, too
                ids.append(id_)
                if id_ == later[0]:
                    assert await sessions.update_activity(later[1])
                    clock.turn(31)
                else:
                    clock.turn(30)
                await until(lambda: len(ended) == len(ids))
        monkeypatch.undo()
    assert sorted(ended) == sorted(ids)


# -- Locks -----------------------------------------------------------------------------------------


async def test_calls_that_queue_behind_a_lock_all_hear_in_time(database: Path) -> None:
    """Ten that were called at once wait for one time-out together, and not each for its own."""
    async with opened(database, busy_timeout=0.4) as (store, _):
        await store.create(new_record())
        with writing(database):
            started = time.monotonic()
            calls: list[asyncio.Task[None]] = []
            for _ in range(10):
                calls.append(asyncio.create_task(store.create(new_record())))
                await asyncio.sleep(0.01)
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} == {StoreBusyError}
            assert 0.4 <= time.monotonic() - started < 1.5
        assert (await store.count(moment())).by_status["active"] == 1


async def test_a_young_call_is_not_refused_with_an_old_one(database: Path) -> None:
    """It was made later, and so it waits longer, whether in the same batch or in the next."""
    async with opened(database, busy_timeout=0.6) as (store, _):
        with writing(database) as shell:
            old = [asyncio.create_task(store.create(new_record())) for _ in range(3)]
            await asyncio.sleep(0.3)
            young = asyncio.create_task(store.create(new_record()))
            results = await asyncio.gather(*old, return_exceptions=True)
            assert {type(result) for result in results} == {StoreBusyError}
            assert not young.done()
            shell.execute("ROLLBACK")
            await young
        assert (await store.count(moment())).by_status["active"] == 1


async def stay_in_a_transaction(line: Line, database: Path, session_id: str) -> None:
    """Write by the given name of the file until told to end."""

    def change(record: Record) -> Record:
        line.say()
        line.hear()
        return record

    async with opened(database) as (store, _):
        line.say(await store.edit(session_id, moment(), change))


async def test_processes_by_two_names_of_a_file_take_one_lock(
    tmp_path: Path, database: Path
) -> None:
    """A symbolic link leads to the lock, the log and the versions of the file itself."""
    link = tmp_path / "elsewhere" / "link.db"
    os.mkdir(link.parent)
    os.symlink(database, link)
    record = new_record()
    async with opened(database, busy_timeout=0.2) as (store, _):
        await store.create(record)
        with Child(stay_in_a_transaction, link, record.id) as child:
            child.line.hear()
            assert is_locked(database)
            with pytest.raises(StoreBusyError):
                await store.touch(record.id, moment())
            assert store.versions is not None
            before = store.versions[crc32(record.id.encode()) % SLOTS]
            child.line.say()
            assert child.line.hear() is True
            assert store.versions[crc32(record.id.encode()) % SLOTS] > before
            assert child.join() == 0
        assert await store.touch(record.id, moment())
    assert os.listdir(link.parent) == ["link.db"]


async def measure(seconds: float) -> tuple[float, float]:
    """Return the passes of the event loop in a second, and which part of a processor was used."""
    passes, cpu, started = 0, time.process_time(), time.monotonic()
    while time.monotonic() - started < seconds:
        await asyncio.sleep(0.001)
        passes += 1
    elapsed = time.monotonic() - started
    return passes / elapsed, (time.process_time() - cpu) / elapsed


@pytest.mark.parametrize(
    "seconds, most_cpu, least_speed",
    [(0.3, 0.3, 0.6), pytest.param(5.0, 0.03, 0.95, marks=pytest.mark.torture)],
)
async def test_waiting_for_a_lock_costs_the_event_loop_little(
    database: Path, seconds: float, most_cpu: float, least_speed: float
) -> None:
    """While another process holds it, the loop goes on and idles; the best round counts."""
    speeds, cpus = [], []
    async with quiet(database, busy_timeout=60) as sessions:
        id_ = await sessions.create_session("lina")
        for _ in range(4):
            free, idle = await measure(seconds)
            with holding(hold_sidecar, database):
                touching = asyncio.create_task(sessions.update_activity(id_))
                await asyncio.sleep(0.25)
                waiting, busy = await measure(seconds)
            assert await touching
            speeds.append(waiting / free)
            cpus.append(busy - idle)
            if speeds[-1] > least_speed and cpus[-1] < most_cpu:
                break
    print(speeds, cpus)
    assert max(speeds) > least_speed
    assert min(cpus) < most_cpu


# -- Memory ----------------------------------------------------------------------------------------


async def test_a_read_of_a_store_in_memory_is_served_while_thousands_write(
    clock: FakeClock,
) -> None:
    """The lanes of its one thread take turns: no read waits for more than a batch or two."""
    async with quiet(":memory:", clock=clock, cache_size=0) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(100)]
        is_over = False

        async def touch(number: int) -> None:
            while not is_over:
                assert await sessions.update_activity(ids[number % 100])

        touching = [asyncio.create_task(touch(number)) for number in range(3_000)]
        await asyncio.sleep(0)
        longest = 0.0
        for _ in range(5):
            started = time.monotonic()
            await the_session(sessions, ids[0])
            longest = max(longest, time.monotonic() - started)
        is_over = True
        await asyncio.gather(*touching)
        print(longest)
        assert longest < 1


@pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.torture)])
async def test_large_sessions_block_the_event_loop_no_longer_than_their_encoding(
    database: Path, clock: FakeClock, count: int
) -> None:
    """Megabytes that are created at once are written by the thread, and not in the loop."""
    data = {"words": ["word"] * 140_000}
    started = time.perf_counter()
    for _ in range(count):
        assert json.loads(json.dumps(data)) == data
    encoding = time.perf_counter() - started
    async with quiet(database, clock=clock) as sessions:
        creating = asyncio.gather(*(sessions.create_session("lina", data) for _ in range(count)))
        gap = await longest_gap(creating)
        print(encoding, gap)
        assert gap < 2 * encoding + 0.25
        assert (await the_session(sessions, (await creating)[-1])).data == data


# -- In flight -------------------------------------------------------------------------------------


async def test_calls_in_flight_across_close_are_answered(database: Path, clock: FakeClock) -> None:
    """Each ends with its result or StoreClosedError, and what was acknowledged is in the file."""
    for pause in (0, 1, 5):
        sessions = quiet(database, clock=clock, cache_size=0)
        await sessions.open()
        id_ = await sessions.create_session("lina")
        calls: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(call)
            for _ in range(20)
            for call in (
                sessions.get_session(id_),
                sessions.update_activity(id_),
                sessions.get_active_sessions(),
                sessions.create_session("omar"),
            )
        ]
        for _ in range(pause):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await sessions.close()
            results = await asyncio.gather(*calls, return_exceptions=True)
        kinds = {type(result) for result in results}
        assert kinds <= {Session, bool, list, str, StoreClosedError}
        query = "SELECT id FROM sessions WHERE child_id = 'omar'"
        assert {each for each in results if isinstance(each, str)} <= {
            each for (each,) in run_sql(database, query)
        }
        count = "SELECT interaction_count FROM sessions WHERE id = ?"
        assert run_sql(database, count, id_) == [(results.count(True),)]


async def test_a_load_in_flight_fills_no_cache_after_close(
    database: Path, clock: FakeClock
) -> None:
    """Nor does one that was under way when all was to be forgotten: what is read later is new."""
    async with quiet(database, clock=clock) as other:
        id_ = await other.create_session("lina")
        sessions = quiet(database, clock=clock)
        for forget in (True, False):
            await sessions.open()
            loading = [asyncio.create_task(sessions.get_session(id_)) for _ in range(3)]
            await asyncio.sleep(0)
            if forget:
                lock_of(database).unlink()
                await sessions.create_session("ben")  # which finds that it has gone
            await sessions.close()
            await asyncio.gather(*loading, return_exceptions=True)
            with pytest.raises(StoreClosedError):
                await sessions.get_session(id_)
            assert await other.update_activity(id_)
            await sessions.open()
            expected = await the_session(other, id_)
            assert (await the_session(sessions, id_)) == expected
            await sessions.close()


async def test_a_purge_across_close_ends_whole_or_closed(database: Path, clock: FakeClock) -> None:
    """Chunk by chunk: what was erased is gone, the rest is there, and nothing hangs."""
    sessions = quiet(database, clock=clock)
    await sessions.open()
    ids = await asyncio.gather(*(sessions.create_session("lina") for _ in range(1_200)))
    assert await sessions.end_sessions("lina") == len(ids)
    purging = asyncio.create_task(sessions.purge_ended_sessions(0))
    await asyncio.sleep(0.005)
    async with asyncio.timeout(10):
        await sessions.close()
        (result,) = await asyncio.gather(purging, return_exceptions=True)
    ((left,),) = run_sql(database, "SELECT count(*) FROM sessions")
    assert isinstance(result, StoreClosedError) or result == 1_200 - left
    assert left in (1_200, 700, 200, 0)
    async with sessions:
        assert await sessions.purge_ended_sessions(0) == left
    assert run_sql(database, "PRAGMA integrity_check") == [("ok",)]


# -- A process of 0.4.1 that still has the file open -----------------------------------------------


class OldProcess:
    """What a process of release 0.4.1 does with a file that it has opened before an upgrade.

    Its lock is the flock of the lock file, which it maps as 65,536 words of 64 bits and a revision;
    its statements know the columns of that release.
    """

    INSERT = """
    INSERT INTO sessions
           (id, child_id, status, started_at, ended_at, last_activity, data, metadata,
            interaction_count, swept_activity)
    VALUES (:id, 'old', 'active', :now, NULL, :now, '{}', '{}', 0, :now)
    """
    TOUCH = """
    UPDATE sessions
       SET last_activity     = max(last_activity, :now),
           interaction_count = interaction_count + 1
     WHERE id = :id AND last_activity <= :now AND length(swept_activity) <> 25
       AND status = 'active'
    """
    COUNT = "SELECT status, sum(sessions) FROM sessionstore_counts GROUP BY status"

    def __init__(self, database: Path) -> None:
        self._connection = sqlite3.connect(database, isolation_level=None)
        self._lock = lock_of(database).open("r+b")
        self._words = memoryview(mmap.mmap(self._lock.fileno(), 8 * (SLOTS + 1))).cast("Q")

    def write(self, statement: str, session_id: str, now: str) -> int:
        """Do a write job as it did: lock, mark, commit, settle, unlock."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            slot, revision = crc32(session_id.encode()) % SLOTS, self._words[SLOTS] + 1
            self._words[SLOTS] = revision
            self._words[slot] = revision << 1 | 1
            try:
                parameters = {"id": session_id, "now": now}
                return self._connection.execute(statement, parameters).rowcount
            finally:
                self._words[slot] = revision << 1
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def count(self) -> list[Any]:
        """Read the statistics as it did."""
        return self._connection.execute(self.COUNT).fetchall()

    def close(self) -> None:
        """End."""
        self._connection.close()
        self._words.release()
        self._lock.close()


async def test_a_process_of_the_release_before_damages_nothing(
    database: Path, clock: FakeClock
) -> None:
    """What it still can do is right, and seen at once; what it cannot is an error of its own."""
    clock.now = NOON / SECOND
    async with quiet(database, clock=clock) as sessions, quiet(database, clock=clock) as other:
        id_ = await sessions.create_session("lina", {"a": 1})
        old = OldProcess(database)
        later = "2023-11-15 12:00:30.000000"
        for count in range(1, 4):
            assert (await the_session(other, id_)).interaction_count == 2 * count - 2
            assert old.write(OldProcess.TOUCH, id_, later) == 1
            assert (await the_session(other, id_)).interaction_count == 2 * count - 1
            assert await sessions.update_activity(id_)
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            old.count()
        assert old.write(OldProcess.INSERT, "from-the-old-process", later) == 1
        session = await the_session(sessions, "from-the-old-process")
        assert (session.child_id, session.is_active) == ("old", True)
        clock.turn(30 + 1_800)
        assert await sessions.cleanup_inactive_sessions() == 2
        assert old.write(OldProcess.TOUCH, id_, later) == 0
        old.close()
    assert run_sql(database, "PRAGMA integrity_check") == [("ok",)]


async def test_a_process_of_the_release_before_takes_turns_with_ours(database: Path) -> None:
    """Each waits for the lock of the other."""
    async with opened(database, busy_timeout=0.2) as (store, _):
        record = new_record()
        await store.create(record)
        with lock_of(database).open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(StoreBusyError):
                await store.touch(record.id, moment())
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert await store.touch(record.id, moment())
        words = memoryview(lock_of(database).read_bytes()).cast("Q")
        assert len(words) == SLOTS + 1
        assert words[crc32(record.id.encode()) % SLOTS] == words[SLOTS] << 1
