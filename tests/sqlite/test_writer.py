# SPDX-License-Identifier: MIT
"""Batches of writes: one transaction for all that has gathered, and who hears of what fails.

A change that stays inside of its transaction makes the calls behind it gather.
"""

import asyncio
import json
import os
import sqlite3
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionstore import StorageError
from sessionstore.expiry import Expiry, Moment
from sessionstore.session import Record
from sessionstore.sqlite import SQLiteStore
from sessionstore.sqlite.lane import BATCH_LIMIT
from sessionstore.store import Touch

from ..conftest import FakeClock
from .tools import (
    EXPIRY,
    NOON,
    SECOND,
    Held,
    connect,
    moment,
    new_record,
    opened,
    quiet,
    run_sql,
    the_session,
)

LONG = Expiry(10**15)


async def together(store: SQLiteStore, *calls: Awaitable[Any]) -> list[Any]:
    """Have all calls gather behind a transaction, and return what became of each."""
    blocker, held = new_record(), Held()
    await store.create(blocker)
    blocking = asyncio.create_task(store.edit(blocker.id, moment(), held))
    await held.has_begun()
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    held.may_go_on.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert await blocking
    return results


async def counts(store: SQLiteStore, ids: Sequence[str]) -> list[int]:
    """Return how many interactions the file has of each."""
    records = [await store.load(id_) for id_ in ids]
    return [record.interaction_count for record in records if record is not None]


async def create(store: SQLiteStore, count: int) -> list[str]:
    """Create sessions and return their ids."""
    records = [new_record() for _ in range(count)]
    await asyncio.gather(*map(store.create, records))
    return [record.id for record in records]


# -- One transaction -------------------------------------------------------------------------------


async def test_concurrent_writes_of_every_kind_are_one_commit(database: Path) -> None:
    """Whatever has gathered is committed at once, and each caller hears of its own."""
    async with opened(database) as (store, heard):
        ids = await create(store, 5)
        new, now = new_record(), moment(1)
        before = len(heard.commits) + 2  # the blocker's
        results = await together(
            store,
            *(store.touch(id_, now) for id_ in ids[:2]),
            store.end(ids[2], now, "ended", "manual"),
            store.create(new),
            store.erase(ids[3]),
            store.edit(ids[4], now, lambda record: record._replace(data='{"a":1}')),
            store.touch("not there", now),
            store.touch(ids[0], now),
        )
        assert results == [True, True, True, None, True, True, False, True]
        assert len(heard.commits) == before + 1
        commit = heard.commits[-1]
        assert commit.touched == {ids[0]: Touch(2, now.now), ids[1]: Touch(1, now.now)}
        assert {record.id for record in commit.written} == {ids[2], new.id, ids[4]}
        assert [record.id for record in commit.ended] == [ids[2]]
        assert commit.erased == [ids[3]]
        assert commit.versions_before.keys() == {*ids, new.id}


async def test_a_batch_has_a_limit(database: Path) -> None:
    """Of calls that have gathered, no more than so many are one commit."""
    async with opened(database) as (store, heard):
        (id_,) = await create(store, 1)
        await together(store, *(store.touch(id_, moment()) for _ in range(1_200)))
        sizes = [commit.touched[id_].times for commit in heard.commits if id_ in commit.touched]
        assert max(sizes) == BATCH_LIMIT
        assert sum(sizes) == 1_200
        assert await counts(store, [id_]) == [1_200]


async def test_nobody_sees_a_part_of_a_batch(database: Path) -> None:
    """Another program finds nothing of it while it is under way, and all of it afterwards."""
    async with opened(database) as (store, _):
        (id_,) = await create(store, 1)
        held = Held()
        calls = together(
            store,
            *(store.create(new_record(child_id="omar")) for _ in range(3)),
            store.touch(id_, moment()),
            store.edit(id_, moment(), held),
        )
        writing = asyncio.create_task(calls)
        await held.has_begun()
        select = "SELECT sum(interaction_count), sum(child_id = 'omar') FROM sessions"
        assert run_sql(database, select) == [(0, 0)]
        held.may_go_on.set()
        await writing
        assert run_sql(database, select) == [(1, 3)]


async def test_a_caller_hears_only_after_commit(database: Path, clock: FakeClock) -> None:
    """When create_session returns, another connection sees the row, also in the middle of many."""
    async with quiet(database, clock=clock) as sessions:
        with connect(database) as shell:

            async def create_and_look() -> int:
                id_ = await sessions.create_session("lina")
                found: tuple[int] = shell.execute(
                    "SELECT count(*) FROM sessions WHERE id = ?", [id_]
                ).fetchone()
                return found[0]

            assert await asyncio.gather(*(create_and_look() for _ in range(200))) == [1] * 200


async def test_a_session_created_touched_ended_and_erased_in_one_commit(database: Path) -> None:
    """The commit tells of it once, as it was at COMMIT, and of its end all the same."""
    async with opened(database) as (store, heard):
        record, other = new_record(), new_record()
        results = await together(
            store,
            store.create(record),
            store.create(other),
            store.touch(record.id, moment(1)),
            store.touch(other.id, moment(1)),
            store.end(record.id, moment(2), "ended", "manual"),
            store.erase(record.id),
        )
        assert results == [None, None, True, True, True, True]
        commit = heard.commits[-1]
        assert commit.erased == [record.id]
        assert [each.interaction_count for each in commit.ended] == [1]
        assert [*commit.touched, *(each.id for each in commit.written)].count(other.id) == 1
        assert await store.load(record.id) is None


async def test_the_last_of_several_changes_in_a_batch_is_cached(
    database: Path, clock: FakeClock
) -> None:
    """If one batch changes a session often, the cache holds its last state."""
    async with quiet(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        await asyncio.gather(
            *(sessions.update_activity(id_) for _ in range(5)),
            *(sessions.update_session(id_, {str(number): number}) for number in range(5)),
        )
        cached = await sessions.get_session(id_)
        assert cached == (await sessions.get_sessions_for_child("lina"))[0]
        assert (await sessions.get_session_stats())["cache_misses"] == 0


async def test_many_creates_at_once_come_back_as_they_were(database: Path) -> None:
    """Small and large, in any script, with what JSON and SQL treat as special."""
    texts = ["", "it's", '"', "\\", "\\u0022", "\u2028", "سارة", "🌙", "\x7f", "$[0]", "x" * 40_000]
    records = [
        new_record(
            child_id=text[:50] or "nobody",
            data=json.dumps({text: text}, ensure_ascii=bool(number % 2)),
            metadata=json.dumps({"n": [text, 0.1, 2**63]}),
            interaction_count=2**53 + number,
        )
        for number, text in enumerate(texts)
    ]
    async with opened(database) as (store, _):
        assert set(await together(store, *map(store.create, records))) == {None}
        for record in records:
            assert await store.load(record.id) == record
        lonely = new_record(data=records[-1].data)
        await store.create(lonely)
        assert await store.load(lonely.id) == lonely


# -- Failures --------------------------------------------------------------------------------------


async def test_an_operation_that_fails_hurts_only_itself(database: Path) -> None:
    """The others of its batch are written once, and told of; only its own caller hears of it."""
    async with opened(database) as (store, heard):
        ids = await create(store, 3)
        there = await store.load(ids[0])
        assert there is not None
        results = await together(
            store,
            store.touch(ids[0], moment()),
            store.create(there),
            store.create(new_record(child_id="omar")),
            store.end(ids[1], moment(), "ended", "manual"),
        )
        assert isinstance(results[1], StorageError)
        assert isinstance(results[1].__cause__, sqlite3.IntegrityError)
        assert [results[0], results[2], results[3]] == [True, None, True]
        assert await counts(store, ids) == [1, 0, 0]
        assert len(await store.list_of_child("omar", 10)) == 1
        told = [id_ for commit in heard.commits for id_ in commit.touched]
        assert told.count(ids[0]) == 1
        assert [each.id for commit in heard.commits for each in commit.ended] == [ids[1]]


@pytest.mark.parametrize("error", [ZeroDivisionError, StopIteration, KeyError, StorageError])
async def test_an_exception_of_a_change_reaches_its_own_caller(
    database: Path, error: type[Exception]
) -> None:
    """It is raised where it was called, nothing of it is written, and no other notices."""

    def refuse(record: Record) -> Record:
        raise error

    async with opened(database) as (store, heard):
        ids = await create(store, 3)
        before = len(heard.commits) + 2
        calls = [
            store.touch(ids[0], moment()),
            store.edit(ids[1], moment(), refuse),
            store.edit(ids[2], moment(), lambda record: record._replace(data='{"a":1}')),
        ]
        first, refused, last = await together(store, *calls)
        expected = RuntimeError if error is StopIteration else error  # as a coroutine raises it
        assert type(refused) is expected
        assert (first, last) == (True, True)
        assert len(heard.commits) == before + 1
        record = await store.load(ids[1])
        assert record is not None
        assert (record.data, record.last_activity) == ("{}", NOON)


async def test_a_change_that_cannot_be_written_fails_alone(database: Path) -> None:
    """What SQLite refuses, JSON that is none for one, is rolled back."""
    async with opened(database) as (store, _):
        ids = await create(store, 2)
        first, refused = await together(
            store,
            store.touch(ids[0], moment()),
            store.edit(ids[1], moment(), lambda record: record._replace(data="no JSON")),
        )
        assert (first, type(refused)) == (True, StorageError)
        assert await counts(store, ids) == [1, 0]


def make_trigger(database: Path, what: str) -> None:
    """Add a trigger of the host project's to the table."""
    run_sql(database, f"CREATE TRIGGER host {what}; END")


@pytest.mark.parametrize("action", ["ABORT", "FAIL", "ROLLBACK"])
async def test_a_trigger_that_refuses_one_write_refuses_no_other(
    database: Path, action: str
) -> None:
    """Also if SQLite rolls the whole transaction back by itself. No session is left in flight."""
    async with opened(database) as (store, _):
        ids = await create(store, 3)
        refuse = f"SELECT RAISE({action}, 'no') WHERE old.id = '{ids[1]}'"
        make_trigger(database, f"AFTER UPDATE ON sessions BEGIN {refuse}")
        answers = await together(store, *(store.touch(id_, moment()) for id_ in ids))
        assert [type(answer) for answer in answers] == [bool, StorageError, bool]
        with pytest.raises(StorageError, match="refused"):
            await store.touch(ids[1], moment())
        assert await counts(store, ids) == [1, 0, 1]
        assert store.versions is not None
        assert not any(version & 1 for version in store.versions)


async def test_a_trigger_that_passes_a_session_by_is_not_taken_for_a_touch(database: Path) -> None:
    """Neither alone nor among others, and an edit that it passes by has not happened."""
    async with opened(database) as (store, heard):
        ids = await create(store, 3)
        ignore = f"SELECT RAISE(IGNORE) WHERE old.id = '{ids[1]}'"
        make_trigger(database, f"BEFORE UPDATE ON sessions BEGIN {ignore}")
        touches = [store.touch(id_, moment()) for id_ in ids]
        answers = await together(store, *touches)
        assert (answers[0], answers[2]) == (True, True)
        assert not await store.touch(ids[1], moment())
        assert not await store.edit(ids[1], moment(), lambda record: record)
        assert not await store.end(ids[1], moment(), "ended", "manual")
        assert await counts(store, ids) == [1, 0, 1]
        assert ids[1] not in {id_ for commit in heard.commits for id_ in commit.touched}


@pytest.mark.parametrize("what", ["deleted", "moved", "replaced"])
async def test_what_concerns_all_is_told_to_all_at_once(database: Path, what: str) -> None:
    """If the file is not the one at its path any more, no call is written, and each hears of it."""
    async with opened(database) as (store, heard):
        ids = await create(store, 3)
        before = len(heard.commits)
        os.rename(database, database.with_name("moved.db"))
        if what == "deleted":
            os.unlink(database.with_name("moved.db"))
        elif what == "replaced":
            os.close(os.open(database, os.O_CREAT))
        for _ in range(2):
            answers = await asyncio.gather(
                *(store.touch(id_, moment()) for id_ in ids),
                store.create(new_record()),
                store.purge(NOON, 10),
                store.tidy(moment()),
                return_exceptions=True,
            )
            assert {type(answer) for answer in answers} == {StorageError}
            assert all("open it again" in str(answer) for answer in answers)
        assert len(heard.commits) == before
    if what == "replaced":
        assert run_sql(database, "SELECT name FROM sqlite_master") == []


# -- Touches ---------------------------------------------------------------------------------------


async def test_what_cannot_be_touched_is_told_apart(database: Path) -> None:
    """Ended, timed out or not there: each hears so, and the others are touched once."""
    async with opened(database) as (store, _):
        ids = await create(store, 4)
        old = new_record(last_activity=NOON - 60 * SECOND)
        await store.create(old)
        await store.end(ids[2], moment(), "ended", "manual")
        asked = [ids[0], old.id, ids[1], "not there", ids[2], ids[3], ids[0]]
        answers = await together(store, *(store.touch(id_, moment()) for id_ in asked))
        assert answers == [True, False, True, False, False, True, True]
        assert await counts(store, [*ids, old.id]) == [2, 1, 0, 1, 0]


async def test_touches_of_different_rules_share_a_batch(database: Path) -> None:
    """Calls with other time-outs, as of two managers on one store, are judged by their own."""
    async with opened(database) as (store, _):
        ids = await create(store, 2)
        now = moment(100)
        answers = await together(
            store,
            *(store.touch(id_, now) for id_ in ids),
            *(store.touch(id_, now._replace(expiry=LONG)) for id_ in ids),
        )
        assert answers[2:] == [True, True]
        assert await counts(store, ids) == [sum(answers[0::2]), sum(answers[1::2])]


IDS = ["plain", 'a"b', "a\\u0022", "{}", "łódka", "🙂", "not there"]  # as JSON has them, and not
SECONDS = st.integers(-5, 5) | st.integers(58, 62)  # about now, and about the time-out


@given(
    ages=st.lists(SECONDS, min_size=len(IDS) - 1, max_size=len(IDS) - 1),
    ended=st.sets(st.sampled_from(IDS), max_size=2),
    touches=st.lists(st.tuples(st.sampled_from(IDS), st.integers(-3, 3)), min_size=2, max_size=12),
    expiry=st.sampled_from([EXPIRY, Expiry(60 * SECOND, max_lifetime=100 * SECOND)]),
)
@settings(max_examples=60)
def test_touches_together_are_right_for_each(
    ages: list[int], ended: set[str], touches: list[tuple[str, int]], expiry: Expiry
) -> None:
    """Whoever was live at its own moment is touched; counts and times say what was answered."""
    records = [
        new_record(id=id_, started_at=NOON - 98 * SECOND, last_activity=NOON - age * SECOND)
        for id_, age in zip(IDS, ages, strict=False)
    ]
    moments = [Moment(NOON + second * SECOND, expiry) for _, second in touches]

    async def run() -> tuple[list[bool], dict[str, Record | None]]:
        async with opened(":memory:") as (store, _):
            for record in records:
                await store.create(record)
            for id_ in ended:
                await store.end(id_, Moment(NOON, LONG), "ended", "manual")
            calls = zip(touches, moments, strict=True)
            answers = await together(store, *(store.touch(id_, at) for (id_, _), at in calls))
            return answers, {id_: await store.load(id_) for id_ in IDS}

    answers, after = asyncio.run(run())
    before = {record.id: record for record in records if record.id not in ended}
    latest = max(at.now for at in moments)
    for (id_, _), at, answer in zip(touches, moments, answers, strict=True):
        was_live = id_ in before and expiry.session(before[id_], at.now).is_active
        assert answer or not was_live
        assert not answer or id_ in before
    for id_, record in before.items():
        own = [
            at.now
            for (each, _), at, answer in zip(touches, moments, answers, strict=True)
            if each == id_ and answer
        ]
        found = after[id_]
        assert found is not None
        assert found.interaction_count == len(own)
        earliest = max([record.last_activity, *own])
        assert earliest <= found.last_activity <= (max(earliest, latest) if own else earliest)


async def test_a_call_that_was_given_up_in_time_is_not_written(database: Path) -> None:
    """If it was cancelled while it had only gathered, it takes nobody along."""
    async with opened(database) as (store, _):
        (id_,) = await create(store, 1)
        touching = [asyncio.ensure_future(store.touch(id_, moment())) for _ in range(3)]
        asyncio.get_running_loop().call_soon(touching[1].cancel)
        answers = await together(store, *touching)
        assert [type(answer) for answer in answers] == [bool, asyncio.CancelledError, bool]
        assert await counts(store, [id_]) == [2]


async def test_a_cancelled_call_that_is_under_way_is_told_of(
    database: Path, clock: FakeClock
) -> None:
    """If its caller has gone when it is committed, the cache and on_end hear of it all the same."""
    ended: list[str] = []
    store, held = SQLiteStore(database), Held()
    async with quiet(store, clock=clock, on_end=lambda each: ended.append(each.id)) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(2)]
        assert (await the_session(sessions, ids[0])).is_active
        # The end is in one transaction with a change that takes long.
        calls = [sessions.end_session(ids[0]), store.edit(ids[1], Moment(NOON, LONG), held)]
        ending, editing = [asyncio.ensure_future(call) for call in calls]
        await held.has_begun()
        ending.cancel()
        await asyncio.sleep(0)
        held.may_go_on.set()
        assert await editing
        assert ending.cancelled()
        if not ended:
            await asyncio.sleep(0.01)
        assert not (await the_session(sessions, ids[0])).is_active
    assert ended == ids[:1]
