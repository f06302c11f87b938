# SPDX-License-Identifier: MIT
"""What get_session_stats counts, and what the sweep finds, whoever has written to the file."""

import asyncio
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sessionstore import SessionManager, SessionStatus

from ..clocks import DAY, HOUR, MINUTE, text
from ..conftest import START, FakeClock
from ..seeds import draw_seed

TIMEOUT, LIFETIME = 30 * MINUTE, 2 * HOUR

INSERT = """
INSERT INTO sessions (id, child_id, status, started_at, ended_at, last_activity)
VALUES (:id, 'lina', :status, :time, iif(:status = 'active', NULL, :time), :time)
"""
STATEMENTS = [
    *[INSERT] * 4,
    f"{INSERT} ON CONFLICT (id) DO UPDATE SET interaction_count = 1",
    INSERT.replace("INSERT", "INSERT OR REPLACE", 1),
    "DELETE FROM sessions WHERE id = :id",
    "UPDATE sessions SET started_at = :time WHERE id = :id",
    "UPDATE sessions SET last_activity = max(last_activity, :time) WHERE id = :id",
    "UPDATE sessions SET status = 'ended', ended_at = :time WHERE id = :id",
    "UPDATE sessions SET status = 'active', ended_at = NULL WHERE id = :id",
]


def count(connection: sqlite3.Connection, now: float) -> tuple[dict[str, int], int]:
    """Count all rows one by one; return how many there are of each status, and since midnight."""
    by_status = dict.fromkeys(map(str, SessionStatus), 0)
    today = 0
    rows = connection.execute("SELECT status, started_at, last_activity FROM sessions")
    for status, started_at, last_activity in rows:
        is_live = last_activity > text(now - TIMEOUT) and started_at > text(now - LIFETIME)
        by_status[status if status != "active" or is_live else "timeout"] += 1
        today += started_at >= text(now - now % DAY)
    return by_status, today


async def test_statistics_agree_with_a_count_whoever_writes(
    database: Path, clock: FakeClock
) -> None:
    """After any statements of another program, they are what counting all rows gives."""
    chance = random.Random(draw_seed())
    async with SessionManager(
        database, clock=clock, timeout=TIMEOUT, max_lifetime=LIFETIME, sweep_interval=None
    ) as sessions:
        for _ in range(60):
            with closing(sqlite3.connect(database)) as connection:
                for _ in range(chance.randrange(6)):
                    values = {
                        "id": chance.choice("abcdefgh"),
                        "status": str(chance.choice(list(SessionStatus))),
                        "time": text(clock.now - chance.choice([0, TIMEOUT, LIFETIME, DAY])),
                    }
                    try:
                        connection.execute(chance.choice(STATEMENTS), values)
                    except sqlite3.IntegrityError:
                        continue
                connection.commit()
                expected = count(connection, clock.now)
            stats = await sessions.get_session_stats()
            assert (stats["by_status"], stats["sessions_today"]) == expected
            assert stats["total_sessions"] == sum(expected[0].values())
            assert stats["active_sessions"] == expected[0]["active"]
            if chance.random() < 0.2:
                timed_out = stats["by_status"]["timeout"]
                await sessions.cleanup_inactive_sessions()
                assert (await sessions.get_session_stats())["by_status"]["timeout"] == timed_out
            clock.turn(chance.choice([0, MINUTE, 20 * MINUTE, HOUR]))


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


async def test_a_sweep_finds_its_sessions_among_many_that_are_alive(
    database: Path, clock: FakeClock
) -> None:
    """More sessions than a chunk that are alive are in nobody's way."""
    async with SessionManager(database, clock=clock, timeout=60, sweep_interval=None) as sessions:
        alive, idle = [
            await asyncio.gather(*(sessions.create_session("lina") for _ in range(600)))
            for _ in range(2)
        ]
        clock.turn(50)
        await asyncio.gather(*map(sessions.update_activity, alive))
        clock.turn(10)
        assert await sessions.cleanup_inactive_sessions() == len(idle)
        clock.turn(50)
        assert await sessions.cleanup_inactive_sessions() == len(alive)


@pytest.mark.parametrize("obstacle", ["NUL in the ids", "a trigger"])
async def test_a_sweep_ends_whatever_stands_in_its_way(
    database: Path, clock: FakeClock, obstacle: str
) -> None:
    """More sessions than a chunk that cannot be written are left, and not tried for ever."""
    async with SessionManager(database, clock=clock, timeout=60, sweep_interval=None) as sessions:
        with closing(sqlite3.connect(database)) as other, other:
            for number in range(600):
                values = {"id": f"a\0{number}", "status": "active", "time": text(START)}
                other.execute(INSERT, values)
            if obstacle == "a trigger":
                other.execute(
                    "CREATE TRIGGER keep BEFORE UPDATE ON sessions BEGIN SELECT RAISE(IGNORE); END"
                )
        async with asyncio.timeout(10):
            for seconds in (0, 60):
                clock.turn(seconds)
                assert await sessions.cleanup_inactive_sessions() == 0
        stats = await sessions.get_session_stats()
        assert stats["by_status"]["timeout"] == 600
