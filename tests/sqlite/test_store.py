# SPDX-License-Identifier: MIT
"""What the engine's verbs promise beyond the contract of all engines."""

import asyncio
import json
import os
import sqlite3
import threading
from collections.abc import Awaitable
from pathlib import Path

import pytest

from sessionstore import StorageError, StoreBusyError, StoreClosedError
from sessionstore.expiry import Expiry
from sessionstore.session import Record
from sessionstore.sqlite import SQLiteStore
from sessionstore.sqlite import store as store_module
from sessionstore.sqlite.operations import JSON_LIMIT

from ..conftest import FakeClock
from .tools import (
    EXPIRY,
    NOON,
    SECOND,
    Heard,
    Held,
    connect,
    moment,
    new_record,
    opened,
    quiet,
    run_sql,
    writing,
)

MINUTE = 60 * SECOND
LARGE = JSON_LIMIT // 10  # characters of a session that is not loaded with ten others


def fill(database: Path, count: int) -> None:
    """Add many active sessions, as another program does."""
    with connect(database) as connection:
        connection.execute(
            """
            WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT ?)
            INSERT INTO sessions (id, child_id, started_at, last_activity, data)
            SELECT printf('%036d', n), 'ben', '2023-11-15 12:00:00.000000',
                   '2023-11-15 12:00:00.000000', '{"text":"' || hex(zeroblob(200)) || '"}'
              FROM numbers
            """,
            [count],
        )


async def test_a_full_chunk_of_live_sessions_is_not_the_last(database: Path) -> None:
    """However small a chunk is, a sweep that has found some alive goes on to the next one."""
    async with opened(database) as (store, _):
        for _ in range(3):
            record = new_record()
            await store.create(record)
            await store.touch(record.id, moment(30))
        chunks = [await store.time_out(moment(60), 1) for _ in range(4)]
        assert [chunk.has_more for chunk in chunks] == [True, True, True, False]
        assert sum(chunk.timed_out for chunk in chunks) == 0
        assert await store.time_out(moment(90), 10) == (3, False)


@pytest.mark.parametrize("limit", [1, 2, 500])
async def test_a_sweep_ends_each_as_of_when_it_expired(database: Path, limit: int) -> None:
    """By idle time or by lifetime, whichever was first, in chunks of any size."""
    expiry = Expiry(60 * SECOND, max_lifetime=100 * SECOND)
    ages = {"idle": (30, 61), "aged": (100, 1), "both": (130, 70), "live": (99, 59)}
    async with opened(database) as (store, heard):
        for id_, (age, idle) in ages.items():
            times = {
                "started_at": NOON - age * SECOND + 1,
                "last_activity": NOON - idle * SECOND + 7,
            }
            await store.create(new_record(id=id_, **times))
        heard.commits.clear()
        while (await store.time_out(moment(0.00001, expiry), limit)).has_more:
            pass
        ended = {each.id: each.ended_at for commit in heard.commits for each in commit.ended}
        assert ended == {
            "idle": NOON - SECOND + 7,
            "aged": NOON + 1,
            "both": NOON - 30 * SECOND + 1,
        }


async def test_purge_takes_what_ended_first(database: Path) -> None:
    """If a chunk cannot hold all, the oldest go first, whatever index finds them."""
    async with opened(database) as (store, heard):
        run_sql(database, "DROP INDEX idx_sessions_ended_at")
        for number, id_ in enumerate("dacb"):
            await store.create(new_record(id=id_))
            assert await store.end(id_, moment(10 - number), "ended", "manual")
        assert await store.purge(NOON + MINUTE, 3) == 3
        assert set(heard.commits[-1].erased) == {"b", "c", "a"}
        assert await store.purge(NOON + MINUTE, 3) == 1


async def test_statistics_are_of_one_moment(database: Path) -> None:
    """While another process sweeps, each session counts once, as timed out."""
    async with opened(database) as (store, _), opened(database) as (other, _):
        await asyncio.gather(*(store.create(new_record()) for _ in range(300)))

        async def sweep() -> None:
            while (await other.time_out(moment(60), 3)).has_more:
                pass

        sweeping = asyncio.create_task(sweep())
        rounds = 0
        while not sweeping.done():
            counts = (await store.count(moment(60))).by_status
            assert (counts["active"], counts["timeout"]) == (0, 300)
            rounds += 1
        await sweeping
        assert rounds > 5


async def test_what_has_timed_out_counts_once_swept_or_not(database: Path) -> None:
    """A timeout that a sweep has marked and one that it has not are two timeouts."""
    async with opened(database) as (store, _):
        await store.create(new_record())
        assert (await store.time_out(moment(60), 10)).timed_out == 1
        for _ in range(3):
            await store.create(new_record(last_activity=NOON + SECOND))
        await store.create(new_record(last_activity=NOON + 2 * SECOND))
        counts = await store.count(moment(61))
        assert counts.by_status == {"active": 1, "ended": 0, "timeout": 4, "error": 0}
        assert counts.started_today == 5
        aged = moment(61, Expiry(10 * MINUTE, max_lifetime=MINUTE))
        assert (await store.count(aged)).by_status["timeout"] == 5


async def test_figures_of_the_file_are_right(database: Path) -> None:
    """Its size in bytes, and the version of SQLite."""
    async with opened(database) as (store, _):
        await store.tidy(moment())
        counts = await store.count(moment())
        assert counts.database_bytes == os.stat(database).st_size
        assert counts.engine_version == sqlite3.sqlite_version


async def test_reads_go_on_during_a_long_transaction(database: Path) -> None:
    """Loads, lists and figures are served, with what was committed before."""
    async with opened(database) as (store, _):
        record, held = new_record(), Held()
        await store.create(record)
        writing_long = asyncio.create_task(store.edit(record.id, moment(), held))
        await held.has_begun()
        async with asyncio.timeout(5):
            assert await store.load(record.id) == record
            assert await store.list_active(moment(), None, None, None) == [record]
            assert (await store.count(moment())).by_status["active"] == 1
        assert not writing_long.done()
        held.may_go_on.set()
        assert await writing_long


async def test_a_long_list_delays_no_load(database: Path) -> None:
    """A load that was called after it is served while it is under way."""
    async with opened(database) as (store, _):
        fill(database, 10_000)
        listing = asyncio.create_task(store.list_active(moment(), None, None, None))
        await asyncio.sleep(0.001)
        loaded = 0
        while not listing.done():
            assert await store.load(f"{loaded + 1:036}") is not None
            loaded += 1
        assert len(await listing) == 10_000
        assert loaded >= 5


async def test_misses_of_a_moment_are_loaded_together(database: Path) -> None:
    """A hundred loads of fifty sessions, and one of none, each come back to their own callers."""
    async with opened(database) as (store, _):
        records = {record.id: record for record in (new_record() for _ in range(50))}
        await asyncio.gather(*map(store.create, records.values()))
        ids = [*records, *records, "not there"]
        found = await asyncio.gather(*map(store.load, ids))
        assert found == [records.get(id_) for id_ in ids]


@pytest.mark.parametrize("odd", ["x'ff'", "cast(x'ff7b7d' AS TEXT)", "1e999", "9007199254740993"])
@pytest.mark.parametrize("column", ["metadata", "interaction_count"])
async def test_what_is_loaded_together_is_what_is_loaded_alone(
    database: Path, column: str, odd: str
) -> None:
    """Small sessions and large ones, whatever they hold, beside one that is odd or damaged."""
    texts = ["", "\u20ac\U0001f40b", '"\\/\b\n\x01\x7f\u2028', "x" * LARGE, "\u20ac" * LARGE]
    async with opened(database) as (store, _):
        records = [new_record(data=json.dumps({"t": text})) for text in texts]
        records += [new_record(data=json.dumps({"t": text}, ensure_ascii=False)) for text in texts]
        records += [new_record(id=text, child_id=text) for text in ('"', "\\", "\u20ac'", "\x7f")]
        damaged = new_record()
        await asyncio.gather(*map(store.create, [*records, damaged]))
        with connect(database) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute(f"UPDATE sessions SET {column} = {odd} WHERE id = ?", [damaged.id])
        everything = [*records, damaged]
        alone = [await attempt(store.load(each.id)) for each in everything]
        together = await asyncio.gather(*(attempt(store.load(each.id)) for each in everything))
        assert alone[:-1] == records
        assert [str(each) for each in together] == [str(each) for each in alone]


async def attempt(loading: Awaitable[Record | None]) -> Record | StorageError | None:
    """Return what is loaded, or the error that is raised for it."""
    try:
        return await loading
    except StorageError as error:
        return error


async def test_a_load_is_at_least_as_new_as_its_call(database: Path) -> None:
    """Whatever another store has committed before it is called is in it."""
    async with opened(database) as (store, _), opened(database) as (other, _):
        record = new_record()
        await store.create(record)
        for count in range(1, 100):
            assert await other.touch(record.id, moment())
            loaded = await store.load(record.id)
            assert loaded is not None
            assert loaded.interaction_count == count


async def test_a_store_may_be_opened_again(database: Path) -> None:
    """After close, and after an open that has failed."""
    store = SQLiteStore(database, busy_timeout=0.2)
    with writing(database), pytest.raises(StoreBusyError):
        async with quiet(store):
            pass
    for _ in range(2):
        async with quiet(store) as sessions:
            await sessions.create_session("lina")
    async with quiet(store) as sessions:
        assert (await sessions.get_session_stats())["total_sessions"] == 2


async def hold_up(store: SQLiteStore, held: Held) -> tuple[Record, "asyncio.Future[bool]"]:
    """Open a store, and return a session and the write to it that is held in the midst."""
    await store.open(Heard(), NOON)
    record = new_record()
    await store.create(record)
    at_work = asyncio.ensure_future(store.edit(record.id, moment(), held))
    await held.has_begun()
    return record, at_work


async def test_close_gives_up_on_a_disk_that_hangs(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All who wait hear that it is unknown what was written; the file can be opened again."""
    monkeypatch.setattr(store_module, "CLOSE_LIMIT", 0.3)
    store, held = SQLiteStore(database), Held()
    record, at_work = await hold_up(store, held)
    gathered = asyncio.ensure_future(store.create(new_record()))
    threads = threading.active_count()
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await store.close()
        for call in (at_work, gathered):
            with pytest.raises(StorageError, match="unknown"):
                await call
    with pytest.raises(StoreClosedError):
        await store.load(record.id)
    held.may_go_on.set()
    async with opened(database) as (again, _):
        assert await again.load(record.id) is not None
    for _ in range(500):  # the connections close once the disk answers
        if threading.active_count() == threads - 3:
            break
        await asyncio.sleep(0.01)
    assert threading.active_count() == threads - 3


@pytest.mark.parametrize("and_then", ["close", "open"])
async def test_a_close_that_was_cut_off_goes_on(database: Path, and_then: str) -> None:
    """In the background; the next close or open finishes it, and the store can be used again."""
    store, held = SQLiteStore(database), Held()
    record, at_work = await hold_up(store, held)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.close(), 0.05)
    held.may_go_on.set()
    assert await at_work
    await asyncio.sleep(0.2)  # so that it has finished, or not
    if and_then == "close":
        await store.close()
    await store.open(Heard(), NOON)
    assert await store.load(record.id) is not None
    await store.close()
    with pytest.raises(StoreClosedError):
        await store.load(record.id)


async def test_a_sweep_takes_what_was_erased_out_of_file_and_log(
    database: Path, clock: FakeClock
) -> None:
    """Nothing of it is in any file of the database, while it is open and afterwards."""
    word = "a very secret word"
    async with quiet(database, clock=clock) as sessions:
        ids = [await sessions.create_session("lina", {"word": word}) for _ in range(20)]
        for id_ in ids[:10]:
            await sessions.delete_session(id_)
        for id_ in ids[10:]:
            await sessions.end_session(id_)
        assert await sessions.purge_ended_sessions(0) == 10
        for path in database.parent.iterdir():
            assert word.encode() not in path.read_bytes(), path.name
    for path in database.parent.iterdir():
        assert word.encode() not in path.read_bytes(), path.name


async def test_what_is_ahead_of_the_clock_is_brought_back_after_a_whole_timeout(
    database: Path,
) -> None:
    """A clock that was wrong for less than that has changed nothing."""
    uptime = FakeClock(0)
    async with opened(database, uptime=uptime) as (store, heard):
        record = new_record(last_activity=NOON + 61 * SECOND)
        await store.create(record)
        await store.tidy(moment())
        uptime.turn(59)
        await store.tidy(moment(59))  # it is not ahead by more than the timeout now
        uptime.turn(1)
        await store.tidy(moment())
        assert await store.load(record.id) == record
        uptime.turn(60)
        await store.tidy(moment())
        brought_back = await store.load(record.id)
        assert brought_back == record._replace(last_activity=NOON)
        assert heard.commits[-1].written == [brought_back]
        assert not await store.touch(record.id, moment(60, EXPIRY))
