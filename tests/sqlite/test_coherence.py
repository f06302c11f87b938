# SPDX-License-Identifier: MIT
"""The words of the generations, and what rests on them: a cache that no commit can overtake."""

import asyncio
import math
import sqlite3
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sessionstore import SessionManager, store
from sessionstore import coherence as coherence_module
from sessionstore.sqlite.jobs import Turn
from sessionstore.sqlite.sidecar import SLOTS, Coherence, slot_of
from sessionstore.sqlite.times import micros_to_text
from sessionstore.sqlite.writer import Change, Commit

from ..conftest import FakeClock


def test_a_word_is_current_until_its_slot_is_written() -> None:
    """A noted word stops being current at the mark before COMMIT, and stays so for ever."""
    coherence = Coherence(None)
    noted = coherence.word(7)
    assert coherence.is_current(7, noted)
    coherence.begin([7])
    in_flight = coherence.word(7)
    assert not coherence.is_current(7, noted)
    assert not coherence.is_current(7, in_flight)
    settled = coherence.settle([7])
    assert coherence.is_current(7, settled)
    assert not coherence.is_current(7, noted)
    assert coherence.is_current(8, coherence.word(8))


def test_words_are_made_of_the_revision() -> None:
    """A job of the revision r has the word 2r + 1 in flight, and 2r after it, in every release."""
    coherence = Coherence(None)
    assert coherence.begin([7, 8]) == {7: 0, 8: 0}
    flying = coherence.word(7)
    assert flying & 1
    assert [coherence.word(slot) for slot in (6, 7, 8)] == [0, flying, flying]
    assert coherence.settle([7, 8]) == flying - 1
    assert coherence.begin([8]) == {8: flying - 1}
    assert [coherence.word(slot) for slot in (6, 7, 8)] == [0, flying - 1, flying + 2]
    assert coherence.settle([8]) == flying + 1
    assert [coherence.word(slot) for slot in (6, 7, 8)] == [0, flying - 1, flying + 1]


def test_who_notices_the_write_of_another_process_is_not_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is who has just opened the file: who was there before is not known."""
    now = 100.0
    clock = SimpleNamespace(monotonic=lambda: now, time_ns=time.time_ns)
    monkeypatch.setattr(coherence_module, "time", clock)
    one, other = Coherence(str(tmp_path / "a.db")), Coherence(str(tmp_path / "a.db"))

    def write(coherence: Coherence) -> bool:
        with coherence.hold(Turn(1.0)):
            coherence.settle(coherence.begin([7]))
        return coherence.is_alone

    assert not write(one)
    now += 0.09
    assert not write(one)
    now += 0.02
    assert write(one)
    assert not write(other)
    assert one.is_alone  # for all that it has noticed
    assert not write(one)
    now += 0.11
    assert write(one)
    for each in (one, other):
        each.close()


def test_the_slot_of_a_session_is_stable() -> None:
    """The slot is a function of the id alone, the same in every process and release."""
    assert slot_of("123e4567-e89b-42d3-a456-426614174000") == 20_086
    assert 0 <= slot_of("") < SLOTS


def hold_selects(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Keep the rows of a load back until a commit is done; return the events of both."""
    selected, committed = threading.Event(), threading.Event()
    select = store.select_sessions

    def slow_select(connection: sqlite3.Connection, ids: Any) -> Any:
        rows = select(connection, ids)
        selected.set()
        assert committed.wait(10)
        return rows

    monkeypatch.setattr(store, "select_sessions", slow_select)
    return selected, committed


async def test_a_load_that_a_commit_overtakes_is_not_kept(
    database: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row read before a commit and delivered after it is returned once, but never cached."""
    async with SessionManager(database, clock=clock, cache_size=10) as sessions:
        id_ = await sessions.create_session("lina")
        sessions._reader._cache.pop(id_)
        selected, committed = hold_selects(monkeypatch)
        loading = asyncio.create_task(sessions.get_session(id_))
        await asyncio.to_thread(selected.wait, 10)
        assert await sessions.end_session(id_)
        committed.set()
        early = await loading
        monkeypatch.undo()
        late = await sessions.get_session(id_)
        assert early is not None
        assert late is not None
        assert early.is_active
        assert late.status == "ended"


async def test_a_miss_never_joins_a_load_that_had_begun(
    database: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks after an acknowledged commit sees it, also while an older load runs."""
    async with SessionManager(database, clock=clock, cache_size=0) as sessions:
        id_ = await sessions.create_session("lina")
        selected, committed = hold_selects(monkeypatch)
        loading = asyncio.create_task(sessions.get_session(id_))
        await asyncio.to_thread(selected.wait, 10)
        assert await sessions.end_session(id_)
        reading = asyncio.create_task(sessions.get_session(id_))
        await asyncio.sleep(0)
        committed.set()
        later = await reading
        await loading
        assert later is not None
        assert later.status == "ended"


async def test_concurrent_misses_are_one_job_and_one_statement(
    database: Path, clock: FakeClock
) -> None:
    """A hundred misses, of fifty ids, at once are loaded by one SELECT."""
    statements: list[str] = []
    async with SessionManager(database, clock=clock, cache_size=0) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(50)]
        await sessions._database.reader.run(lambda c: c.set_trace_callback(statements.append))
        found = await asyncio.gather(*(sessions.get_session(id_) for id_ in ids + ids))
        assert [session.id for session in found if session] == ids + ids
    assert len([text for text in statements if "SELECT" in text and "json_each" in text]) == 1


async def test_a_hit_touches_no_connection(database: Path, clock: FakeClock) -> None:
    """What was created, touched or read is served from memory, without giving up control."""
    statements: list[str] = []
    async with SessionManager(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        await sessions.update_activity(id_)
        await sessions._database.reader.run(lambda c: c.set_trace_callback(statements.append))
        getting = sessions.get_session(id_)
        with pytest.raises(StopIteration) as stopped:
            getting.send(None)  # it returns at its first step: no hop, and no task
        assert stopped.value.value.interaction_count == 1
    assert statements == []


async def test_a_row_that_has_timed_out_in_the_cache_is_checked_too(
    database: Path, clock: FakeClock
) -> None:
    """The long way to a cached row, past its expiry, compares the word as the short way does."""
    settings = {"clock": clock, "sweep_interval": None}
    async with (
        SessionManager(database, **settings) as one,  # type: ignore[arg-type]
        SessionManager(database, **settings) as other,  # type: ignore[arg-type]
    ):
        id_ = await one.create_session("lina")
        assert await one.get_session(id_) is not None
        clock.turn(1_800)
        timed_out = await one.get_session(id_)
        assert timed_out is not None
        assert timed_out.status == "timeout"
        assert await other.delete_session(id_)
        assert await one.get_session(id_) is None


async def test_touches_keep_the_cache_true(database: Path, clock: FakeClock) -> None:
    """Touches and updates of one session in one batch leave the row in memory that is true."""
    async with (
        SessionManager(database, clock=clock) as sessions,
        SessionManager(database, clock=clock, cache_size=0) as other,
    ):
        id_ = await sessions.create_session("lina", {"step": 0})
        for step in range(1, 4):
            clock.turn(1)
            await asyncio.gather(
                sessions.update_activity(id_),
                sessions.update_session(id_, {"step": step}),
                sessions.update_activity(id_),
                sessions.update_session(id_, {str(step): True}),
                *(sessions.update_activity(id_) for _ in range(step)),
            )
            shown = await sessions.get_session(id_)
            assert shown is not None
            assert shown.interaction_count == 2 * step + step * (step + 1) // 2
            assert shown == await other.get_session(id_)
        assert (await sessions.get_session_stats())["cache_misses"] == 0


@pytest.mark.parametrize("read", ["before", "after"])
async def test_a_touch_is_counted_once_in_the_cache(
    database: Path, clock: FakeClock, read: str
) -> None:
    """A row that was read after the COMMIT has the touch in it; one from before is brought up."""
    async with SessionManager(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        await sessions.get_session(id_)
        reader, coherence = sessions._reader, sessions._database.coherence
        slot = slot_of(id_)
        before = coherence.word(slot)
        coherence.begin([slot])
        now = coherence.settle([slot])
        if read == "after":
            await sessions.get_session(id_)  # a miss, read under the new word
        moment = micros_to_text(int((clock() + 1) * 1_000_000))
        change = Change(touched=id_, touched_at=moment)
        reader.remember(Commit([change], word=now, words_before={slot: before}))
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.interaction_count == (1 if read == "before" else 0)


async def test_a_touch_does_not_revive_what_another_process_has_changed(
    database: Path, clock: FakeClock
) -> None:
    """A row that was stale when the touch began is not brought up to date by it."""
    async with (
        SessionManager(database, clock=clock) as sessions,
        SessionManager(database, clock=clock) as other,
    ):
        id_ = await sessions.create_session("lina", {"step": 0})
        await sessions.get_session(id_)
        assert await other.update_session(id_, {"step": 1})
        assert await sessions.update_activity(id_)
        session = await sessions.get_session(id_)
        assert session is not None
        assert (session.data, session.interaction_count) == ({"step": 1}, 1)


@pytest.mark.parametrize("second", ["touches", "updates"])
async def test_a_batch_that_overlaps_leaves_no_old_row_in_the_cache(
    database: Path, clock: FakeClock, second: str
) -> None:
    """A session is updated and touched in one batch, and touched in the next, which commits first.

    That is, before the cache has been told of the first one.
    """
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(80)]
        hot = ids[0]
        for number in range(20):
            sessions._database.coherence._shared_at = -math.inf
            assert await sessions.get_session(hot) is not None
            first = [sessions.update_session(hot, {"n": number}), sessions.update_activity(hot)]
            first += [sessions.update_activity(id_) for id_ in ids[1:39]]
            rest = ids[40:79]
            last = [sessions.update_activity(hot)]
            if second == "touches":
                last += [sessions.update_activity(id_) for id_ in rest]
            else:
                last += [sessions.update_session(id_, {"n": number}) for id_ in rest]
            assert all(await asyncio.gather(*first, *last))
            session = await sessions.get_session(hot)
            assert session is not None
            assert session.data == {"n": number}
            assert session.interaction_count == 2 * (number + 1)
