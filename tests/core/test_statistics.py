# SPDX-License-Identifier: MIT
"""The counters behind get_session_stats, and the due times behind the sweep.

Both are kept in the file beside what they sum up, by triggers and by the sweep itself, and must be
true whoever writes: these tests write as another program does, and compare with a count of all.
"""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionstore import SessionManager, SessionStatus, queries
from sessionstore.session import Expiry, SessionRow
from sessionstore.sqlite.store import insert_session, time_out_sessions
from sessionstore.sqlite.times import micros_to_text

from ..conftest import START, FakeClock
from ..sqlite.test_query_plans import SCHEMA, steps_of

MINUTE = 60_000_000
NOON = 1_700_049_600_000_000  # 2023-11-15 12:00:00 UTC, in microseconds
DAY = 86_400_000_000

INSERT = """
INSERT INTO sessions (id, child_id, status, started_at, ended_at, last_activity)
VALUES (:id, 'lina', :status, :time, iif(:status = 'active', NULL, :time), :time)
"""
STATEMENTS = [
    INSERT,
    f"{INSERT} ON CONFLICT (id) DO UPDATE SET interaction_count = 1",
    INSERT.replace("INSERT", "INSERT OR IGNORE", 1),
    "DELETE FROM sessions WHERE id = :id",
    "UPDATE sessions SET started_at = :time WHERE id = :id",
    "UPDATE sessions SET last_activity = :time WHERE id = :id",
    "UPDATE sessions SET status = 'ended', ended_at = :time WHERE status = 'active'",
    "UPDATE sessions SET status = 'active', ended_at = NULL WHERE id = :id",
]


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection of sqlite3 to a new file with today's schema."""
    with closing(sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)) as connection:
        connection.executescript(SCHEMA)
        yield connection


def row(number: int, last_activity: int) -> SessionRow:
    """Return an active session that started an hour before its last activity."""
    started, last = micros_to_text(last_activity - 60 * MINUTE), micros_to_text(last_activity)
    return SessionRow(str(number), "lina", "active", started, None, last, "{}", "{}", 0)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(STATEMENTS),
            st.sampled_from("abcde"),
            st.sampled_from(list(SessionStatus)),
            st.integers(0, 3),
        ),
        max_size=30,
    )
)
def test_counters_agree_with_a_count_whoever_writes(
    steps: list[tuple[str, str, SessionStatus, int]],
) -> None:
    """After any statements of another program, the counters are what counting all rows gives."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.executescript(SCHEMA)
        for statement, id_, status, day in steps:
            values = {"id": id_, "status": str(status), "time": micros_to_text(NOON + day * DAY)}
            try:
                connection.execute(statement, values)
            except sqlite3.IntegrityError:
                continue
        counted = Counter(
            connection.execute("SELECT substr(started_at, 1, 10), status FROM sessions").fetchall()
        )
        kept = connection.execute(
            "SELECT day, status, sessions FROM sessionstore_counts"
        ).fetchall()
        assert {(day, status): count for day, status, count in kept if count} == counted


async def test_statistics_count_by_day_and_status(database: Path, clock: FakeClock) -> None:
    """Sessions that started before midnight, UTC, are in the total but not in today's count."""
    async with SessionManager(database, clock=clock, timeout=3 * 86_400) as sessions:
        ended = await sessions.create_session("lina")
        await sessions.create_session("lina")
        await sessions.end_session(ended)
        assert (await sessions.get_session_stats())["sessions_today"] == 2
        clock.turn(7_200)  # 00:13 of the next day
        await sessions.create_session("omar")
        stats = await sessions.get_session_stats()
        assert (stats["sessions_today"], stats["active_sessions"], stats["total_sessions"]) == (
            *(1, 2, 3),
        )
        await sessions.delete_session(ended)
        stats = await sessions.get_session_stats()
        assert stats["by_status"] == {"active": 2, "ended": 0, "timeout": 0, "error": 0}


def test_statistics_take_no_more_steps_with_more_sessions(connection: sqlite3.Connection) -> None:
    """The cost grows with the days and not with the sessions, live ones or not."""

    def cost() -> int:
        cutoffs = Expiry(30 * MINUTE).cutoffs(NOON)
        return steps_of(
            connection,
            lambda: [
                connection.execute(query, {**cutoffs, "today": ""}).fetchall()
                for query in (queries.COUNT_SESSIONS_BY_STATUS, queries.COUNT_SESSIONS_TIMED_OUT)
            ],
        )

    insert_session(connection, row(0, NOON))
    before = cost()
    for number in range(1, 2_000):
        insert_session(connection, row(number, NOON))
    assert cost() == before


def test_a_sweep_moves_on_what_is_alive(connection: sqlite3.Connection) -> None:
    """What had activity since it came due is looked at once, and found when its time is up."""
    expiry = Expiry(30 * MINUTE)
    for number in range(1_000):
        insert_session(connection, row(number, NOON))
    connection.execute(
        "UPDATE sessions SET last_activity = :last", {"last": micros_to_text(NOON + 20 * MINUTE)}
    )
    now = NOON + 40 * MINUTE
    assert not time_out_sessions(connection, expiry, now, 600).is_all
    assert time_out_sessions(connection, expiry, now, 600).is_all
    again = steps_of(connection, lambda: time_out_sessions(connection, expiry, now, 600))
    assert again < 200
    found = time_out_sessions(connection, expiry, NOON + 50 * MINUTE, 2_000).rows
    assert {session.ended_at for session in found} == {micros_to_text(NOON + 50 * MINUTE)}
    assert len(found) == 1_000


async def test_a_busy_session_times_out_in_the_end(database: Path, clock: FakeClock) -> None:
    """However often a sweep has found it alive, it times out at its last activity plus timeout."""
    async with SessionManager(database, clock=clock, timeout=60, sweep_interval=None) as sessions:
        id_ = await sessions.create_session("lina")
        for _ in range(10):
            clock.turn(50)
            assert await sessions.update_activity(id_)
            assert (await sessions.get_session_stats())["active_sessions"] == 1
            assert await sessions.cleanup_inactive_sessions() == 0
        clock.turn(60)
        assert (await sessions.get_session_stats())["active_sessions"] == 0
        assert await sessions.cleanup_inactive_sessions() == 1
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.ended_at is not None
        assert session.ended_at.timestamp() == START + 10 * 50 + 60


async def test_last_activity_set_back_is_found_by_the_next_sweep(
    database: Path, clock: FakeClock
) -> None:
    """Where another program sets last_activity back, neither sweep nor statistics miss it."""
    async with SessionManager(database, clock=clock, timeout=60, sweep_interval=None) as sessions:
        id_ = await sessions.create_session("lina")
        long_ago = micros_to_text(int((START - 3_600) * 1_000_000))
        with closing(sqlite3.connect(database)) as other, other:
            other.execute("UPDATE sessions SET last_activity = ? WHERE id = ?", (long_ago, id_))
        assert (await sessions.get_session_stats())["by_status"]["timeout"] == 1
        assert await sessions.cleanup_inactive_sessions() == 1


@pytest.mark.parametrize("obstacle", ["NUL in the ids", "a trigger"])
async def test_a_sweep_ends_whatever_stands_in_its_way(
    database: Path, clock: FakeClock, obstacle: str
) -> None:
    """More sessions than a chunk that are due and alive are moved on, or left, but not for ever."""
    async with SessionManager(database, clock=clock, timeout=60, sweep_interval=None) as sessions:
        with closing(sqlite3.connect(database)) as other, other:
            for number in range(600):
                values = {
                    "id": f"a\0{number}",
                    "status": "active",
                    "time": micros_to_text(int(START) * 1_000_000),
                }
                other.execute(INSERT, values)
            if obstacle == "a trigger":
                other.execute(
                    "CREATE TRIGGER keep BEFORE UPDATE OF swept_activity ON sessions"
                    " BEGIN SELECT RAISE(IGNORE); END"
                )
        async with asyncio.timeout(10):
            assert await sessions.cleanup_inactive_sessions() == 0
        with closing(sqlite3.connect(database)) as other:
            (left,) = other.execute(
                "SELECT count(*) FROM sessions WHERE swept_activity = ''"
            ).fetchone()
        assert left == (600 if obstacle == "a trigger" else 0)
