# SPDX-License-Identifier: MIT
"""Calls that come at once.

How an engine gathers them is its own affair; what becomes of each is not.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessionstore import StorageError
from sessionstore.session import Record
from sessionstore.store import Store

from .engines import ALL, NOW, SECOND, TIMEOUT, Mirror, a_record, at, contents, ended_record, seen
from .test_writes import RefusedError, refuse

LATER = TIMEOUT / SECOND  # seconds after which a session that is touched at NOW has timed out


def count_up(record: Record) -> Record:
    """Add one to the number in a record's data."""
    return record._replace(data=f'{{"n":{seen(record)["data"].get("n", 0) + 1}}}')


async def test_every_touch_counts(store: Store) -> None:
    """Whether they are of one session or of several."""
    records = [a_record() for _ in range(3)]
    await asyncio.gather(*map(store.create, records))
    touches = [
        store.touch(record.id, at(second))
        for record, times in zip(records, (1, 200, 700), strict=True)
        for second in range(times)
    ]
    assert all(await asyncio.gather(*touches))
    loaded = await asyncio.gather(*(store.load(record.id) for record in records))
    assert [each and each.interaction_count for each in loaded] == [1, 200, 700]
    assert seen(loaded[2])["last_activity"] == NOW + 699 * SECOND


async def test_an_id_may_be_any_text(store: Store) -> None:
    """Alone or together with others: an adopted file may have ids that are no UUIDs."""
    ids = [
        '"',
        "\\",
        "\\u0041",
        "A",
        "é",
        "e\u0301",
        "🤖",
        "$.a",
        "a'b",
        "%",
        "null",
        "1",
        "1.0",
        " ",
    ]
    await asyncio.gather(*(store.create(a_record(id=id_)) for id_ in ids))
    for id_ in ids:
        assert await store.touch(id_, at())
    assert all(await asyncio.gather(*(store.touch(id_, at()) for id_ in ids)))
    assert [(await store.load(id_)) is not None for id_ in ids] == [True] * len(ids)
    loaded = await asyncio.gather(*map(store.load, ids))
    assert [each and (each.id, each.interaction_count) for each in loaded] == [(i, 2) for i in ids]
    assert await store.time_out(at(LATER), ALL) == (len(ids), False)
    assert all(await asyncio.gather(*map(store.erase, ids)))


async def test_no_edit_is_lost(store: Store) -> None:
    """Each begins with what the one before has written."""
    record = a_record(data="{}")
    await store.create(record)
    assert all(await asyncio.gather(*(store.edit(record.id, at(), count_up) for _ in range(50))))
    assert seen(await store.load(record.id))["data"] == {"n": 50}


async def test_one_caller_ends_a_session(store: Store, mirror: Mirror) -> None:
    """And on_end would hear of it once."""
    record = a_record()
    await store.create(record)
    ends = [store.end(record.id, at(), "ended", "manual") for _ in range(20)]
    results = await asyncio.gather(*ends, store.end_all("lina", at(), "error", "error", None))
    assert sum(results) == 1
    assert [each.id for commit in mirror.commits for each in commit.ended] == [record.id]


async def test_one_caller_erases_a_session(store: Store) -> None:
    """The others find nothing."""
    record = a_record()
    await store.create(record)
    assert sum(await asyncio.gather(*(store.erase(record.id) for _ in range(20)))) == 1


@pytest.mark.parametrize("place", [0, 3, 6])
async def test_a_change_that_refuses_hurts_its_own_caller_only(store: Store, place: int) -> None:
    """Whatever came with it is written, once."""
    record, other, over, new = a_record(data="{}"), a_record(), a_record(), a_record()
    for each in (record, other, over):
        await store.create(each)
    calls: list[Awaitable[Any]] = [
        store.create(new),
        store.touch(record.id, at(5)),
        store.touch(other.id, at(5)),
        store.edit(record.id, at(5), count_up),
        store.end(over.id, at(5), "ended", "manual"),
        store.edit(record.id, at(5), count_up),
    ]
    calls.insert(place, store.edit(record.id, at(5), refuse))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results.pop(place), RefusedError)
    assert results == [None, True, True, True, True, True]
    now = NOW + 5 * SECOND
    expected = [
        record._replace(data='{"n":2}', interaction_count=1, last_activity=now),
        other._replace(interaction_count=1, last_activity=now),
        over._replace(status="ended", ended_at=now, end_reason="manual"),
        new,
    ]
    assert await contents(store) == {each.id: seen(each) for each in expected}


async def test_every_refusal_is_told_to_its_own_caller(store: Store) -> None:
    """Though many refuse at once, each with an exception of its own."""
    record = a_record(data="{}")
    await store.create(record)

    def refuse_as(number: int) -> Any:
        def change(before: Record) -> Record:
            raise ValueError(number)

        return change

    calls = [store.edit(record.id, at(), refuse_as(number)) for number in range(20)]
    results = await asyncio.gather(
        *calls, store.edit(record.id, at(), count_up), return_exceptions=True
    )
    assert results.pop() is True
    assert [getattr(each, "args", None) for each in results] == [(number,) for number in range(20)]
    assert seen(await store.load(record.id))["data"] == {"n": 1}


async def test_an_id_that_is_taken_hurts_its_own_caller_only(store: Store) -> None:
    """Whatever came with it is written, once."""
    taken, touched, new = a_record(), a_record(), a_record()
    await asyncio.gather(store.create(taken), store.create(touched))
    calls: list[Awaitable[Any]] = [
        store.touch(touched.id, at()),
        store.create(taken._replace(child_id="omar")),
        store.create(new),
        store.edit(touched.id, at(), count_up),
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results.pop(1), StorageError)
    assert results == [True, None, True]
    expected = [taken, touched._replace(interaction_count=1, data='{"n":1}'), new]
    assert await contents(store) == {each.id: seen(each) for each in expected}


async def test_what_is_erased_while_it_is_written_is_not_believed(
    store: Store, mirror: Mirror
) -> None:
    """In whatever order the calls came."""
    for place in range(4):
        record = a_record()
        await store.create(record)
        calls: list[Awaitable[Any]] = [
            store.touch(record.id, at()),
            store.edit(record.id, at(), count_up),
            store.end(record.id, at(), "ended", "manual"),
        ]
        calls.insert(place, store.erase(record.id))
        assert (await asyncio.gather(*calls))[place]
        assert await store.load(record.id) is None
        assert record.id not in mirror.sessions


async def test_a_session_that_is_ended_and_erased_at_once_has_ended_once(
    store: Store, mirror: Mirror
) -> None:
    """If its end came first, on_end hears of it."""
    for _ in range(10):
        record = a_record()
        await store.create(record)
        mirror.commits.clear()
        has_ended, is_erased = await asyncio.gather(
            store.end(record.id, at(), "ended", "manual"), store.erase(record.id)
        )
        assert is_erased
        ended = [each.id for commit in mirror.commits for each in commit.ended]
        assert ended == [record.id] * has_ended


@pytest.mark.parametrize("others", [0, 1, 3])
async def test_each_touch_is_live_at_its_own_moment(store: Store, others: int) -> None:
    """Though others come with it from a moment at which the session would have timed out."""
    record, companions = a_record(), [a_record(last_activity=NOW + TIMEOUT)] * (others > 0)
    await asyncio.gather(*map(store.create, [record, *companions]))
    results = await asyncio.gather(
        *(store.touch(each.id, at(LATER)) for each in companions for _ in range(others)),
        store.touch(record.id, at(LATER, micros=-1)),
        store.touch(record.id, at(LATER - 1)),
    )
    assert all(results)
    loaded = seen(await store.load(record.id))
    assert loaded["interaction_count"] == 2
    assert loaded["last_activity"] == NOW + TIMEOUT - 1


async def test_a_touch_that_is_too_late_does_not_spoil_one_that_is_not(store: Store) -> None:
    """The late one alone finds the session timed out, unless the other came first."""
    record, other = a_record(), a_record(last_activity=NOW + TIMEOUT)
    await asyncio.gather(store.create(record), store.create(other))
    results = await asyncio.gather(
        store.touch(record.id, at(LATER)),
        store.touch(record.id, at(5)),
        store.touch(other.id, at(LATER)),
    )
    assert results[1]
    assert results[2]
    assert seen(await store.load(record.id))["interaction_count"] == sum(results[:2])


async def test_a_touch_keeps_a_session_alive_for_one_that_comes_with_it(store: Store) -> None:
    """The first is in time, and the second would be too late without it."""
    record, other = a_record(), a_record(last_activity=NOW + TIMEOUT)
    await asyncio.gather(store.create(record), store.create(other))
    results = await asyncio.gather(
        store.touch(record.id, at(LATER - 1)),
        store.touch(record.id, at(LATER)),
        store.touch(other.id, at(LATER)),
    )
    assert all(results)


async def test_an_end_and_a_later_touch_may_come_at_once(store: Store) -> None:
    """The end wins, and is no earlier than the activity that came before it."""
    for is_touch_first in (True, False):
        record = a_record()
        await store.create(record)
        calls: list[Awaitable[bool]] = [
            store.end(record.id, at(5), "ended", "manual"),
            store.touch(record.id, at(7)),
        ]
        results = await asyncio.gather(*(calls[::-1] if is_touch_first else calls))
        was_touched = results[0 if is_touch_first else 1]
        assert results[1 if is_touch_first else 0]
        loaded = seen(await store.load(record.id))
        assert loaded["status"] == "ended"
        assert loaded["interaction_count"] == was_touched
        assert loaded["ended_at"] == NOW + (7 if was_touched else 5) * SECOND
        assert loaded["ended_at"] >= loaded["last_activity"]


async def test_an_end_stands_whatever_comes_with_it(store: Store) -> None:
    """No touch or edit brings a session back."""
    record = a_record()
    await store.create(record)
    calls: list[Awaitable[bool]] = []
    for number in range(30):
        calls.append(store.touch(record.id, at(number)))
        calls.append(store.edit(record.id, at(number), count_up))
        if number == 15:
            calls.append(store.end(record.id, at(), "error", "error"))
    await asyncio.gather(*calls)
    ended = seen(await store.load(record.id))
    assert ended["status"] == "error"
    assert not await store.touch(record.id, at(60))
    assert seen(await store.load(record.id)) == ended


async def test_a_cancelled_caller_disturbs_no_other(store: Store, mirror: Mirror) -> None:
    """Whether its own write happens is open."""
    records = [a_record() for _ in range(5)]
    await asyncio.gather(*map(store.create, records))
    for turns in range(12):
        calls = [asyncio.ensure_future(store.touch(record.id, at())) for record in records * 4] + [
            asyncio.ensure_future(store.edit(record.id, at(), count_up)) for record in records
        ]
        loads = [asyncio.ensure_future(store.load(record.id)) for record in records]
        for _ in range(turns):
            await asyncio.sleep(0)
        for call in (*calls[::2], loads[0]):
            call.cancel()
        assert all(await asyncio.gather(*calls[1::2]))
        assert all(await asyncio.gather(*loads[1:]))
        await asyncio.wait(calls)
    await store.erase("absent")  # those before are over then
    assert await contents(store) == mirror.sessions
    counts = [each["interaction_count"] for each in mirror.sessions.values()]
    assert sum(counts) >= 12 * 10
    assert sum(counts) <= 12 * 20


class Ask(NamedTuple):
    """One call of a batch, on one of a few ids, at a second after NOW."""

    verb: str
    id: str
    second: float


ASKS = st.builds(
    Ask,
    verb=st.sampled_from(
        ["create", "touch", "edit", "refuse", "end", "end_all", "erase", "time_out", "purge"]
    ),
    id=st.sampled_from(["1", "2", "3"]),
    second=st.sampled_from([-LATER, 0, 1, LATER - 1, LATER, LATER + 1, 3 * LATER]),
)


def _call(store: Store, ask: Ask) -> Awaitable[Any]:
    moment = at(ask.second)
    record = a_record(
        id=ask.id, started_at=moment.now, last_activity=moment.now, child_id=f"child {ask.id}"
    )
    calls: dict[str, Any] = {
        "create": lambda: store.create(record),
        "touch": lambda: store.touch(ask.id, moment),
        "edit": lambda: store.edit(ask.id, moment, count_up),
        "refuse": lambda: store.edit(ask.id, moment, refuse),
        "end": lambda: store.end(ask.id, moment, "ended", "manual"),
        "end_all": lambda: store.end_all(record.child_id, moment, "error", "error", None),
        "erase": lambda: store.erase(ask.id),
        "time_out": lambda: store.time_out(moment, 2),
        "purge": lambda: store.purge(moment.now, 2),
    }
    result: Awaitable[Any] = calls[ask.verb]()
    return result


@given(batches=st.lists(st.lists(ASKS, min_size=1, max_size=8), min_size=1, max_size=4))
@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_whatever_comes_at_once_what_is_told_is_what_is_stored(
    store: Store, mirror: Mirror, batches: Sequence[Sequence[Ask]]
) -> None:
    """Each commit tells exactly what it did, and results agree with what was told."""
    await asyncio.gather(*(store.erase(id_) for id_ in "123"))
    for batch in batches:
        mirror.commits.clear()
        results: list[Any] = await asyncio.gather(
            *(_call(store, ask) for ask in batch), return_exceptions=True
        )
        assert await contents(store) == mirror.sessions
        assert mirror.problems == []
        for id_, session in mirror.sessions.items():
            assert seen(await store.load(id_)) == session
        ended = erased = 0
        for ask, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                assert isinstance(result, RefusedError if ask.verb == "refuse" else StorageError)
                assert ask.verb in ("refuse", "create")
            elif ask.verb in ("end", "end_all"):
                ended += result
            elif ask.verb == "time_out":
                ended += result.timed_out
            elif ask.verb in ("erase", "purge"):
                erased += result
        assert sum(len(commit.ended) for commit in mirror.commits) == ended
        assert sum(len(commit.erased) for commit in mirror.commits) <= erased


async def test_more_calls_than_fit_in_a_batch_are_all_done(store: Store) -> None:
    """However many come, and however large they are."""
    records = [a_record(data='{"large":"' + "x" * size + '"}') for size in (10, 20_000) * 300]
    await asyncio.gather(*map(store.create, records))
    touches = asyncio.gather(*(store.touch(record.id, at()) for record in records))
    edits = asyncio.gather(*(store.edit(record.id, at(), count_up) for record in records))
    loads = asyncio.gather(*(store.load(record.id) for record in records))
    assert all(await touches)
    assert all(await edits)
    assert all(await loads)
    assert await store.end_all("lina", at(), "ended", "manual", None) == len(records)
    assert {each["interaction_count"] for each in (await contents(store)).values()} == {1}
    assert await store.purge(NOW, ALL) == len(records)


async def test_reads_and_sweeps_may_come_with_writes(store: Store) -> None:
    """Each answers with a state that there was."""
    records = [a_record() for _ in range(20)]
    old = [ended_record(NOW - SECOND) for _ in range(20)]
    await asyncio.gather(*map(store.create, [*records, *old]))
    ends = [store.end(record.id, at(), "ended", "manual") for record in records]
    reads = asyncio.gather(
        store.list_active(at(), None, None, None),
        store.search(at(), None, "ended", ALL),
        store.count(at()),
    )
    sweeps = asyncio.gather(store.time_out(at(), 10), store.purge(NOW - 1, ALL))
    assert all(await asyncio.gather(*ends))
    listed, found, counts = await reads
    swept, purged = await sweeps
    assert {record.id for record in listed} <= {record.id for record in records}
    assert {record.id for record in found} <= {record.id for record in [*records, *old]}
    assert counts.by_status["timeout"] == 0
    assert swept == (0, False)
    assert purged == 20
    assert len(await contents(store)) == 20
