# SPDX-License-Identifier: MIT
"""What a caller of SessionManager can rely on, with each size of cache."""

import asyncio
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sessionstore import InvalidArgumentError, SessionManager, SessionStatus, StorageError

from ..conftest import START, FakeClock


async def test_create_gives_an_active_session(sessions: SessionManager) -> None:
    """A new session has a UUID of version 7, the data given, and is active."""
    id_ = await sessions.create_session("lina", {"topic": "قمر"}, metadata={"device": "toy"})
    assert str(uuid.UUID(id_)) == id_
    assert (uuid.UUID(id_).version, uuid.UUID(id_).variant) == (7, uuid.RFC_4122)
    session = await sessions.get_session(id_)
    assert session is not None
    assert (session.id, session.child_id, session.status) == (id_, "lina", SessionStatus.ACTIVE)
    assert session.is_active
    assert session.data == {"topic": "قمر"}
    assert session.metadata == {"device": "toy"}
    assert (
        session.started_at
        == session.last_activity
        == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    )
    assert session.expires_at == session.started_at + timedelta(minutes=30)
    assert session.ended_at is None
    assert session.end_reason is None
    assert session.interaction_count == 0
    assert session.duration == timedelta(0)


async def test_ids_tell_the_time_and_are_random(sessions: SessionManager, clock: FakeClock) -> None:
    """An id holds the milliseconds of the clock, and 74 bits that no other one shares."""
    now = await asyncio.gather(*(sessions.create_session("lina") for _ in range(200)))
    clock.turn(0.001)
    later = await asyncio.gather(*(sessions.create_session("lina") for _ in range(200)))
    assert max(now) < min(later)
    numbers = [uuid.UUID(id_).int for id_ in now]
    assert {number >> 80 for number in numbers} == {int(START * 1_000)}
    for bit in [*range(62), *range(64, 76)]:
        assert len({number >> bit & 1 for number in numbers}) == 2


async def test_a_uuid_is_taken_wherever_an_id_is(sessions: SessionManager) -> None:
    """uuid.UUID stands for its text, as the id of a session and as that of a child."""
    child = uuid.UUID("123e4567-e89b-42d3-a456-426614174000")
    id_, other = [uuid.UUID(await sessions.create_session(child)) for _ in range(2)]  # type: ignore[arg-type]
    given: Any = id_
    assert await sessions.update_activity(given)
    assert await sessions.update_session(given, {"a": 1})
    session = await sessions.get_session(given)
    assert session is not None
    assert (session.id, session.child_id, session.data) == (str(id_), str(child), {"a": 1})
    stats = await sessions.get_session_stats()
    assert stats["cache_hits"] == min(1, stats["memory_cache_size"])
    found = await sessions.get_sessions_for_child(child)  # type: ignore[arg-type]
    assert {session.id for session in found} == {str(id_), str(other)}
    assert await sessions.end_sessions(child, except_id=given) == 1  # type: ignore[arg-type]
    assert await sessions.end_session(given)
    assert await sessions.delete_session(given)
    assert await sessions.get_session(str(id_)) is None


async def test_ids_of_version_4_stay_valid(sessions: SessionManager, database: Path) -> None:
    """A session of an earlier release, with a random id, is like any other."""
    id_ = await sessions.create_session("lina")
    old = "9d1c1a54-7a1e-4f0c-9a53-5b8e6a0f4c11"
    with closing(sqlite3.connect(database)) as shell, shell:
        shell.execute("UPDATE sessions SET id = ? WHERE id = ?", [old, id_])
    assert await sessions.update_activity(old)
    session = await sessions.get_session(old)
    assert session is not None
    assert (session.id, session.interaction_count) == (old, 1)
    assert await sessions.end_session(old)


IMPOSSIBLE_IDS: dict[str, object] = {
    "unknown": "123e4567-e89b-42d3-a456-426614174000",
    "empty": "",
    "short": "x",
    "long": "x" * 37,
    "surrogates": "\ud800" * 36,
    "NULs": "\0" * 36,
    "None": None,
    "number": 7,
    "bytes": b"x" * 36,
    "list": ["x"],
    "dict": {},
}


@pytest.mark.parametrize("session_id", IMPOSSIBLE_IDS.values(), ids=IMPOSSIBLE_IDS)
async def test_what_is_not_there_is_a_value(sessions: SessionManager, session_id: object) -> None:
    """An unknown or impossible id is None or False, and never an error."""
    await sessions.create_session("lina")
    assert await sessions.get_session(session_id) is None  # type: ignore[arg-type]
    assert await sessions.update_activity(session_id) is False  # type: ignore[arg-type]
    assert await sessions.update_session(session_id, {"a": 1}) is False  # type: ignore[arg-type]
    assert await sessions.end_session(session_id) is False  # type: ignore[arg-type]
    assert await sessions.delete_session(session_id) is False  # type: ignore[arg-type]


async def test_update_activity_counts(sessions: SessionManager, clock: FakeClock) -> None:
    """Each call counts one interaction and moves last_activity and the expiry."""
    id_ = await sessions.create_session("lina")
    for _ in range(3):
        clock.turn(60)
        assert await sessions.update_activity(id_) is True
    session = await sessions.get_session(id_)
    assert session is not None
    assert session.interaction_count == 3
    assert session.last_activity == session.started_at + timedelta(minutes=3)
    assert session.duration == timedelta(minutes=3)


async def test_last_activity_never_moves_backwards(
    sessions: SessionManager, clock: FakeClock
) -> None:
    """A clock that is set back changes the count, and not last_activity."""
    id_ = await sessions.create_session("lina")
    clock.turn(-600)
    assert await sessions.update_activity(id_)
    session = await sessions.get_session(id_)
    assert session is not None
    assert session.last_activity == session.started_at
    assert session.interaction_count == 1


async def test_no_session_ends_before_its_last_activity(
    sessions: SessionManager, clock: FakeClock
) -> None:
    """Ended by a clock that was set back, a session has ended at its last activity."""
    ids = [await sessions.create_session("lina") for _ in range(2)]
    clock.turn(-600)
    assert await sessions.end_session(ids[0])
    assert await sessions.end_sessions("lina") == 1
    for id_ in ids:
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.ended_at == session.last_activity == session.started_at


async def test_many_touches_at_once_are_all_counted(sessions: SessionManager) -> None:
    """A thousand concurrent calls count a thousand interactions."""
    id_ = await sessions.create_session("lina")
    assert all(await asyncio.gather(*(sessions.update_activity(id_) for _ in range(1000))))
    session = await sessions.get_session(id_)
    assert session is not None
    assert session.interaction_count == 1000


async def test_concurrent_updates_lose_nothing(sessions: SessionManager) -> None:
    """A hundred callers that each merge a key of their own all find it there."""
    id_ = await sessions.create_session("lina", {"start": True})
    await asyncio.gather(*(sessions.update_session(id_, {f"k{n}": n}) for n in range(100)))
    session = await sessions.get_session(id_)
    assert session is not None
    assert session.data == {"start": True} | {f"k{n}": n for n in range(100)}
    assert session.interaction_count == 0


async def test_update_merges_the_top_level_and_removes(
    sessions: SessionManager, clock: FakeClock
) -> None:
    """Keys are replaced whole, None is a value, removal comes last, and activity moves."""
    id_ = await sessions.create_session("lina", {"a": {"x": 1}, "b": 1, "c": 1}, metadata={"m": 1})
    clock.turn(5)
    assert await sessions.update_session(
        id_, {"a": {"y": 2}, "b": None, "d": 1}, metadata={"n": 2}, remove=["c", "d", "absent"]
    )
    session = await sessions.get_session(id_)
    assert session is not None
    assert session.data == {"a": {"y": 2}, "b": None}
    assert session.metadata == {"m": 1, "n": 2}
    assert session.last_activity == session.started_at + timedelta(seconds=5)


async def test_an_update_that_grows_too_large_changes_nothing(
    database: Path, clock: FakeClock
) -> None:
    """The limit holds for the merged data, and a refused call costs no other caller anything."""
    async with SessionManager(database, clock=clock, max_data_bytes=40) as sessions:
        id_ = await sessions.create_session("lina", {"a": "x" * 20})
        results = await asyncio.gather(
            sessions.update_activity(id_),
            sessions.update_session(id_, {"b": "y" * 20}),
            sessions.update_session(id_, {"c": 1}),
            return_exceptions=True,
        )
        assert results[0] is True
        assert isinstance(results[1], InvalidArgumentError)
        assert str(results[1]) == "data must not exceed 40 bytes as JSON in UTF-8"
        assert results[2] is True
        await sessions.update_session(id_, metadata={"a": "x" * 20})
        with pytest.raises(InvalidArgumentError, match=r"^metadata must not exceed 40 bytes"):
            await sessions.update_session(id_, metadata={"b": "y" * 20})
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.data == {"a": "x" * 20, "c": 1}


@pytest.mark.parametrize(
    ("reason", "status"),
    [("manual", "ended"), ("timeout", "timeout"), ("error", "error"), ("وداعا", "ended")],
)
async def test_end_session_is_final(
    sessions: SessionManager, clock: FakeClock, reason: str, status: str
) -> None:
    """The first call ends the session with status, time and reason; nothing brings it back."""
    id_ = await sessions.create_session("lina", metadata={"m": 1})
    clock.turn(10)
    assert await sessions.end_session(id_, reason) is True
    assert await sessions.end_session(id_, "again") is False
    assert await sessions.update_activity(id_) is False
    assert await sessions.update_session(id_, {"a": 1}) is False
    session = await sessions.get_session(id_)
    assert session is not None
    assert (session.status, session.end_reason) == (status, reason)
    assert session.ended_at == session.started_at + timedelta(seconds=10)
    assert session.metadata == {"m": 1, "end_reason": reason}
    assert session.data == {}
    assert not session.is_active


async def test_one_of_many_callers_ends_a_session(sessions: SessionManager) -> None:
    """Of twenty concurrent calls one hears True."""
    id_ = await sessions.create_session("lina")
    ended = await asyncio.gather(*(sessions.end_session(id_) for _ in range(20)))
    assert sum(ended) == 1


async def test_end_sessions_spares_one(sessions: SessionManager) -> None:
    """All active sessions of the child end but the one excepted; other children's go on."""
    ids = [await sessions.create_session("lina") for _ in range(5)]
    other = await sessions.create_session("omar")
    await sessions.end_session(ids[0])
    assert await sessions.end_sessions("lina", except_id=ids[4], reason="error") == 3
    assert await sessions.end_sessions("lina", except_id=ids[4]) == 0
    active = await sessions.get_active_sessions()
    assert {session.id for session in active} == {ids[4], other}
    found = await sessions.list_sessions(status="error")
    assert {(session.id, session.end_reason) for session in found} == {
        (id_, "error") for id_ in ids[1:4]
    }


async def test_delete_erases_any_session(sessions: SessionManager) -> None:
    """A deleted session is gone, whatever its status, and is deleted once."""
    active, ended = [await sessions.create_session("lina") for _ in range(2)]
    await sessions.end_session(ended)
    assert await sessions.delete_session(active) is True
    assert await sessions.delete_session(active) is False
    assert await sessions.delete_session(ended) is True
    assert await sessions.get_session(active) is None
    assert await sessions.update_activity(active) is False


async def test_a_session_times_out_at_expires_at_unswept(
    sessions: SessionManager, clock: FakeClock
) -> None:
    """From expires_at on it is timed out for everybody, and reading writes nothing."""
    id_ = await sessions.create_session("lina")
    clock.turn(1_800 - 0.000_001)
    session = await sessions.get_session(id_)
    assert session is not None
    assert session.is_active
    clock.turn(0.000_001)
    session = await sessions.get_session(id_)
    assert session is not None
    assert session.status == "timeout"
    assert session.ended_at == session.expires_at == session.started_at + timedelta(minutes=30)
    assert session.end_reason == "timeout"
    assert await sessions.update_activity(id_) is False
    assert await sessions.update_session(id_) is False
    assert await sessions.end_session(id_) is False
    assert await sessions.get_active_sessions() == []
    stats = await sessions.get_session_stats()
    assert (stats["active_sessions"], stats["by_status"]["timeout"]) == (0, 1)
    assert await sessions.cleanup_inactive_sessions() == 1
    assert await sessions.get_session(id_) == session


async def test_cleanup_finds_what_was_set_back_in_the_file(
    sessions: SessionManager, database: Path, clock: FakeClock
) -> None:
    """A session whose last_activity another program has set back is timed out as of then."""
    id_, other = [await sessions.create_session("lina") for _ in range(2)]
    with closing(sqlite3.connect(database)) as shell, shell:
        shell.execute(
            "UPDATE sessions SET last_activity = '2023-11-14 21:13:20.000000' WHERE id = ?", [id_]
        )
    assert not await sessions.update_activity(id_)
    clock.turn(1_000)
    assert await sessions.update_activity(other)
    clock.turn(800)
    assert await sessions.cleanup_inactive_sessions() == 1
    session = await sessions.get_session(id_)
    assert session is not None
    assert session.status == "timeout"
    assert session.ended_at == datetime(2023, 11, 14, 21, 43, 20, tzinfo=UTC)
    spared = await sessions.get_session(other)
    assert spared is not None
    assert spared.is_active


async def test_cleanup_works_in_chunks(sessions: SessionManager, clock: FakeClock) -> None:
    """More sessions than one chunk holds are all timed out, and counted once."""
    await asyncio.gather(*(sessions.create_session("lina") for _ in range(1_100)))
    clock.turn(1_800)
    assert await sessions.cleanup_inactive_sessions() == 1_100
    assert await sessions.cleanup_inactive_sessions() == 0
    assert await sessions.purge_ended_sessions(0) == 1_100


async def test_max_lifetime_ends_even_busy_sessions(database: Path, clock: FakeClock) -> None:
    """A session that is touched all the time times out at started_at + max_lifetime."""
    async with SessionManager(database, clock=clock, max_lifetime=timedelta(hours=1)) as sessions:
        id_ = await sessions.create_session("lina")
        for _ in range(5):
            clock.turn(600)
            assert await sessions.update_activity(id_)
        clock.turn(600)
        assert await sessions.update_activity(id_) is False
        assert await sessions.cleanup_inactive_sessions() == 1
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.ended_at == session.started_at + timedelta(hours=1)


async def test_purge_deletes_what_ended_long_enough_ago(
    sessions: SessionManager, clock: FakeClock
) -> None:
    """The age counts from ended_at, inclusive, and for an unswept timeout from its expiry."""
    ended = await sessions.create_session("lina")
    await sessions.end_session(ended)
    clock.turn(3_600)
    unswept = await sessions.create_session("lina")
    clock.turn(1_800 + 3_600)
    active = await sessions.create_session("lina")
    assert await sessions.purge_ended_sessions(timedelta(seconds=9_000, microseconds=1)) == 0
    assert await sessions.purge_ended_sessions(9_000) == 1
    assert await sessions.get_session(ended) is None
    assert await sessions.purge_ended_sessions(timedelta(hours=1)) == 1
    assert await sessions.get_session(unswept) is None
    assert await sessions.get_session(active) is not None


async def test_active_sessions_come_in_the_order_of_starting(
    sessions: SessionManager, clock: FakeClock
) -> None:
    """Pages follow one another by (started_at, id), of a child or of all; ties lose nobody."""
    ids: list[tuple[float, str]] = []
    for number in range(30):
        child = "lina" if number % 3 else "omar"
        ids.append((clock.now, await sessions.create_session(child)))
        clock.turn(number % 2)
    expected = [id_ for _, id_ in sorted(ids)]
    assert [session.id for session in await sessions.get_active_sessions()] == expected
    first = await sessions.get_active_sessions(limit=12)
    second = await sessions.get_active_sessions(limit=100, after=first[-1])
    assert [session.id for session in first + second] == expected
    assert await sessions.get_active_sessions(limit=0) == []
    of_child = await sessions.get_active_sessions("omar")
    assert [session.child_id for session in of_child] == ["omar"] * 10


async def test_iteration_reaches_every_active_session(sessions: SessionManager) -> None:
    """The iterator gives each of more sessions than a page holds once."""
    created = await asyncio.gather(*(sessions.create_session("lina") for _ in range(1_001)))
    seen = [session.id async for session in sessions.iter_active_sessions()]
    assert seen == sorted(created)
    assert [s async for s in sessions.iter_active_sessions("omar")] == []


async def test_sessions_of_a_child_come_last_first(
    sessions: SessionManager, clock: FakeClock
) -> None:
    """Every status is there, the last started first, ten by default."""
    ids = []
    for number in range(12):
        ids.append(await sessions.create_session("lina"))
        if number % 2:
            await sessions.end_session(ids[-1])
        clock.turn(1)
    found = await sessions.get_sessions_for_child("lina")
    assert [session.id for session in found] == ids[:1:-1]
    assert len(await sessions.get_sessions_for_child("lina", 100)) == 12
    assert await sessions.get_sessions_for_child("nobody") == []


async def test_list_sessions_filters(sessions: SessionManager, clock: FakeClock) -> None:
    """An operator lists by child and by status, an unswept timeout among the timeouts."""
    idle = await sessions.create_session("lina")
    clock.turn(1_800)
    ended = await sessions.create_session("lina")
    await sessions.end_session(ended)
    active = await sessions.create_session("omar")

    async def listed(child_id: str | None, status: str | None) -> set[str]:
        found = await sessions.list_sessions(child_id=child_id, status=status)
        return {session.id for session in found}

    assert await listed(None, None) == {idle, ended, active}
    assert await listed("lina", None) == {idle, ended}
    assert await listed(None, "timeout") == {idle}
    assert await listed(None, SessionStatus.ENDED) == {ended}
    assert await listed(None, "active") == {active}
    assert len(await sessions.list_sessions(limit=2)) == 2


async def test_stats_count(database: Path, clock: FakeClock) -> None:
    """The statistics hold what their names say."""
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(3)]
        await sessions.end_session(ids[0], "error")
        clock.turn(2 * 3_600)  # past midnight UTC: the others have timed out
        fresh = await sessions.create_session("omar")
        await sessions.get_session(fresh)
        await sessions.get_session(ids[0])
        stats = await sessions.get_session_stats()
        assert stats == {
            "active_sessions": 1,
            "sessions_today": 1,
            "total_sessions": 4,
            "by_status": {"active": 1, "ended": 0, "timeout": 2, "error": 1},
            "memory_cache_size": 4,
            "cache_hits": 1,
            "cache_misses": 1,
            "session_timeout_minutes": 30,
            "database_bytes": stats["database_bytes"],
            "sqlite_version": sqlite3.sqlite_version,
        }
        with closing(sqlite3.connect(database)) as shell:
            (pages,) = shell.execute("PRAGMA page_count").fetchone()
            (size,) = shell.execute("PRAGMA page_size").fetchone()
        assert stats["database_bytes"] == pages * size


async def test_snapshots_belong_to_their_caller(sessions: SessionManager) -> None:
    """What a caller does to what it gave or got is seen by nobody else."""
    given = {"list": [1], "dict": {"a": 1}}
    id_ = await sessions.create_session("lina", given)
    given["list"].append(2)  # type: ignore[attr-defined]
    first = await sessions.get_session(id_)
    assert first is not None
    first.data["list"].append(3)
    first.data["dict"]["b"] = 2
    first.metadata["m"] = 1
    second = await sessions.get_session(id_)
    assert second is not None
    assert second.data == {"list": [1], "dict": {"a": 1}}
    assert second.metadata == {}
    assert first != second


@pytest.mark.parametrize("bad", ["", "x" * 256, None, 7, b"lina", "\ud800", "a\0b", ["lina"]])
async def test_a_child_id_or_reason_that_is_none_is_refused(
    sessions: SessionManager, bad: object
) -> None:
    """Wherever a child_id or a reason goes in, a bad one is refused, and nothing changes."""
    id_ = await sessions.create_session("lina")
    with pytest.raises(InvalidArgumentError):
        await sessions.create_session(bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        await sessions.end_session(id_, bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        await sessions.end_sessions(bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        await sessions.end_sessions("lina", reason=bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        await sessions.get_sessions_for_child(bad)  # type: ignore[arg-type]
    if bad is not None:
        with pytest.raises(InvalidArgumentError):
            await sessions.get_active_sessions(bad)  # type: ignore[arg-type]
    stats = await sessions.get_session_stats()
    assert (stats["active_sessions"], stats["total_sessions"]) == (1, 1)


async def test_an_odd_id_harms_no_other_caller(sessions: SessionManager, database: Path) -> None:
    """An id that another program gave is found by itself, and not by one with NUL behind it."""
    id_ = await sessions.create_session("lina")
    with closing(sqlite3.connect(database)) as shell, shell:
        shell.execute("UPDATE sessions SET id = 'abc' WHERE id = ?", [id_])
    good = await sessions.create_session("lina")
    found = await asyncio.gather(*map(sessions.get_session, ["abc\0", good, "abc"]))
    assert [session and session.id for session in found] == [None, good, "abc"]


@pytest.mark.parametrize("document", ['{"a": 1e999}', '{"a": "\\ud83d"}', '{"\\udc00": 1}'])
async def test_foreign_json_that_cannot_be_merged_is_a_storage_error(
    sessions: SessionManager, database: Path, document: str
) -> None:
    """A number beyond all floats, or half a character, as only another program writes.

    It is not the caller's fault.
    """
    id_ = await sessions.create_session("lina")
    with closing(sqlite3.connect(database)) as shell, shell:
        shell.execute("UPDATE sessions SET data = ? WHERE id = ?", [document, id_])
    words = "^a session in the store cannot be read; mend it, delete it, or restore a backup$"
    with pytest.raises(StorageError, match=words):
        await sessions.update_session(id_, {"b": 1})
    assert await sessions.update_activity(id_)


async def test_other_bad_arguments_are_refused(sessions: SessionManager) -> None:
    """Limits, pages, ages, statuses and keys are checked before anything is done."""
    id_ = await sessions.create_session("lina", {"a": 1})
    with pytest.raises(InvalidArgumentError, match="limit"):
        await sessions.get_active_sessions(limit=-1)
    with pytest.raises(InvalidArgumentError, match="limit"):
        await sessions.get_sessions_for_child("lina", 2**63)
    with pytest.raises(InvalidArgumentError, match="limit"):
        await sessions.get_sessions_for_child("lina", True)
    with pytest.raises(InvalidArgumentError, match="after"):
        await sessions.get_active_sessions(after=id_)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="older_than"):
        await sessions.purge_ended_sessions(-1)
    with pytest.raises(InvalidArgumentError, match="status"):
        await sessions.list_sessions(status="asleep")
    with pytest.raises(InvalidArgumentError, match="remove"):
        await sessions.update_session(id_, remove="a")
    session = await sessions.get_session(id_)
    assert session is not None
    assert session.data == {"a": 1}
