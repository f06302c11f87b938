# SPDX-License-Identifier: MIT
"""What loads, lists and figures say of what was written."""

import asyncio

import pytest

from sessionstore.expiry import Expiry, Moment
from sessionstore.session import Record
from sessionstore.store import Store

from .engines import (
    ALL,
    NOW,
    SECOND,
    TIMEOUT,
    Engine,
    Mirror,
    a_record,
    at,
    contents,
    ended_record,
    seen,
)

MIDNIGHT = 1_699_920_000 * SECOND  # of the day of NOW
LIFETIME = 4 * TIMEOUT

# In the order of starting; the second and third start at one moment.
IDS = ["0001", "0002", "0003", "0004", "0005", "0006", "0007"]
SESSIONS = [
    a_record(id=IDS[0], started_at=NOW - LIFETIME, child_id="omar"),  # too old
    a_record(id=IDS[1], started_at=NOW - 9),
    a_record(id=IDS[2], started_at=NOW - 9, child_id="omar"),
    ended_record(id=IDS[3], started_at=NOW - 7),
    a_record(id=IDS[4], started_at=NOW - 5, last_activity=NOW - TIMEOUT),  # idle
    ended_record(id=IDS[5], started_at=NOW - 3, status="timeout", child_id="omar"),
    a_record(id=IDS[6], started_at=NOW + 3),
]
MOMENT = at(expiry=Expiry(TIMEOUT, LIFETIME))


@pytest.fixture
async def filled(store: Store) -> Store:
    """Return a store that holds SESSIONS, created in another order."""
    for record in SESSIONS[::-2] + SESSIONS[-2::-2]:
        await store.create(record)
    return store


def ids(records: list[Record]) -> list[str]:
    """Return the ids of records that were created as SESSIONS."""
    created = {record.id: record for record in SESSIONS}
    assert [seen(record) for record in records] == [seen(created[each.id]) for each in records]
    return [record.id for record in records]


async def test_there_is_nothing_in_a_new_store(store: Store) -> None:
    """No session, no list, no count."""
    assert await store.load("nobody") is None
    assert await contents(store) == {}
    assert await store.list_active(at(), None, None, None) == []
    assert await store.list_of_child("lina", 10) == []
    assert (await store.count(at())).started_today == 0
    assert set((await store.count(at())).by_status.values()) == {0}


async def test_loads_at_once_get_a_record_each(filled: Store) -> None:
    """Also of what is there twice, or not at all."""
    asked = [*IDS, "absent", *IDS, "", "x" * 36, "é"]
    loaded = await asyncio.gather(*map(filled.load, asked))
    created = {record.id: seen(record) for record in SESSIONS}
    assert [record and seen(record) for record in loaded] == [created.get(id_) for id_ in asked]


async def test_active_sessions_come_in_the_order_of_starting(filled: Store) -> None:
    """Ties by id; none that has ended or timed out."""
    listed = await filled.list_active(MOMENT, None, None, None)
    assert ids(listed) == ["0002", "0003", "0007"]
    assert ids(await filled.list_active(MOMENT, "lina", None, None)) == ["0002", "0007"]
    assert ids(await filled.list_active(MOMENT, "omar", None, None)) == ["0003"]
    assert await filled.list_active(MOMENT, "nobody", None, None) == []


@pytest.mark.parametrize(("limit", "number"), [(0, 0), (1, 1), (2, 2), (3, 3), (2**63 - 1, 3)])
async def test_active_sessions_are_as_many_as_asked_for(
    filled: Store, limit: int, number: int
) -> None:
    """None asks for all."""
    listed = await filled.list_active(MOMENT, None, None, limit)
    assert ids(listed) == ["0002", "0003", "0007"][:number]


async def test_active_sessions_go_on_behind_a_place(filled: Store) -> None:
    """Whether a session stands there or not, and for one child, too."""
    for after, expected in {
        (NOW - 10, "0009"): ["0002", "0003", "0007"],
        (NOW - 9, ""): ["0002", "0003", "0007"],
        (NOW - 9, "0002"): ["0003", "0007"],
        (NOW - 9, "00025"): ["0003", "0007"],
        (NOW - 9, "0003"): ["0007"],
        (NOW - 5, "0005"): ["0007"],
        (NOW + 3, "0006"): ["0007"],
        (NOW + 3, "0007"): [],
        (NOW + 4, ""): [],
    }.items():
        assert ids(await filled.list_active(MOMENT, None, after, None)) == expected
        assert ids(await filled.list_active(MOMENT, None, after, 1)) == expected[:1]
        of_child = [id_ for id_ in expected if id_ != "0003"]
        assert ids(await filled.list_active(MOMENT, "lina", after, None)) == of_child


async def test_the_sessions_of_a_child_come_started_last_first(filled: Store) -> None:
    """Whatever their status, and as many as asked for."""
    assert ids(await filled.list_of_child("lina", 10)) == ["0007", "0005", "0004", "0002"]
    assert ids(await filled.list_of_child("omar", 10)) == ["0006", "0003", "0001"]
    assert ids(await filled.list_of_child("lina", 2)) == ["0007", "0005"]
    assert await filled.list_of_child("lina", 0) == []
    assert await filled.list_of_child("nobody", 10) == []


async def test_a_search_finds_by_child_and_status(filled: Store) -> None:
    """What has timed out is found as timed out, swept or not; started last first."""
    for (child, status), expected in {
        (None, None): IDS[::-1],
        (None, "active"): ["0007", "0003", "0002"],
        (None, "ended"): ["0004"],
        (None, "timeout"): ["0006", "0005", "0001"],
        (None, "error"): [],
        ("lina", None): ["0007", "0005", "0004", "0002"],
        ("lina", "active"): ["0007", "0002"],
        ("omar", "timeout"): ["0006", "0001"],
        ("nobody", None): [],
    }.items():
        assert ids(await filled.search(MOMENT, child, status, ALL)) == expected
        assert ids(await filled.search(MOMENT, child, status, 2)) == expected[:2]
        assert await filled.search(MOMENT, child, status, 0) == []


async def test_a_count_knows_what_has_timed_out(filled: Store) -> None:
    """Whether a sweep came by or not."""
    expected = {"active": 3, "ended": 1, "timeout": 3, "error": 0}
    assert (await filled.count(MOMENT)).by_status == expected
    assert await filled.time_out(MOMENT, 10) == (2, False)
    assert (await filled.count(MOMENT)).by_status == expected


async def test_a_count_knows_what_started_since_midnight(store: Store) -> None:
    """Midnight by UTC, of the day of the moment."""
    for started_at in (MIDNIGHT - 1, MIDNIGHT, NOW):
        await store.create(a_record(started_at=started_at))
    await store.create(ended_record(started_at=NOW))
    day = 86_400 * SECOND
    assert (await store.count(at())).started_today == 3
    for midnight, started in ((MIDNIGHT, 3), (MIDNIGHT - day, 4), (MIDNIGHT + day, 0)):
        for now in (midnight, midnight + day - 1):
            assert (await store.count(Moment(now, at().expiry))).started_today == started


async def test_a_count_tells_of_the_engine(store: Store) -> None:
    """Its size and its version."""
    counts = await store.count(at())
    assert counts.database_bytes >= 0
    assert counts.engine_version


async def test_what_was_acknowledged_is_read(store: Store) -> None:
    """By a load and by a list that begin afterwards."""
    record = a_record()
    await store.create(record)
    for count in range(1, 50):
        assert await store.touch(record.id, at())
        loaded, listed = await asyncio.gather(
            store.load(record.id), store.list_active(at(), None, None, None)
        )
        assert loaded is not None
        assert loaded.interaction_count == count
        assert [each.interaction_count for each in listed] == [count]
    assert await store.erase(record.id)
    assert await store.load(record.id) is None


async def test_what_another_store_wrote_is_read(shared_engine: Engine) -> None:
    """From its acknowledgement on; whoever wrote it, and nobody else, hears of the commit."""
    mirrors = Mirror(), Mirror()
    first, second = shared_engine.make(), shared_engine.make()
    await first.open(mirrors[0], NOW)
    await second.open(mirrors[1], NOW)
    try:
        record = a_record()
        await first.create(record)
        for count in range(1, 21):
            writing, reading = (first, second) if count % 2 else (second, first)
            assert await writing.touch(record.id, at())
            loaded = await reading.load(record.id)
            assert loaded is not None
            assert loaded.interaction_count == count
        assert await second.end(record.id, at(), "ended", "manual")
        assert await contents(first) == await contents(second)
        assert [len(each.commits) for each in mirrors] == [11, 11]
        assert [len(each.commits[-1].ended) for each in mirrors] == [0, 1]
    finally:
        await first.close()
        await second.close()
