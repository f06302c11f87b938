# SPDX-License-Identifier: MIT
"""Foreign programs on the file, and the size of the log beside it."""

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sessionstore import SessionManager
from sessionstore.sqlite import queries

from ..children import Child, Line
from ..conftest import FakeClock
from .tools import connect, quiet, the_session

SHELL = shutil.which("sqlite3")
PYTHON = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit()"
PROGRAMS = [
    pytest.param(
        [SHELL], id="shell", marks=pytest.mark.skipif(SHELL is None, reason="there is no sqlite3")
    ),
    pytest.param([sys.executable, "-c", PYTHON], id="python"),
]


def write_by(program: list[str], database: Path, session_id: str) -> None:
    """Change a session as an operator does, with another program."""
    update = f"UPDATE sessions SET interaction_count = 77 WHERE id = '{session_id}'"
    subprocess.run([*program, database, update], check=True, capture_output=True, timeout=20)


async def count_of(manager: SessionManager, session_id: str) -> int:
    """Return a session's count as a manager shows it."""
    return (await the_session(manager, session_id)).interaction_count


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_foreign_write_is_seen_after_the_next_sweep(
    database: Path, program: list[str]
) -> None:
    """Whatever was cached, and however, in any manager, and nobody has to call anything."""
    async with (
        SessionManager(database, sweep_interval=0.02) as one,
        SessionManager(database, sweep_interval=0.02) as other,
    ):
        ids = [await one.create_session("lina") for _ in range(3)]
        for id_ in ids:
            assert [await count_of(manager, id_) for manager in (one, other)] == [0, 0]
            write_by(program, database, id_)
            async with asyncio.timeout(10):
                for manager in (one, other):
                    while await count_of(manager, id_) == 0:  # noqa: ASYNC110  # no event tells
                        await asyncio.sleep(0.005)
            assert [await count_of(manager, id_) for manager in (one, other)] == [77, 77]


async def test_a_purge_makes_room_for_the_truth_too(database: Path, clock: FakeClock) -> None:
    """Whoever has no background sweep sees a foreign commit after purge_ended_sessions."""
    async with quiet(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        assert await count_of(sessions, id_) == 0
        with connect(database) as shell:
            shell.execute("UPDATE sessions SET interaction_count = 77")
        await sessions.purge_ended_sessions(0)
        assert await count_of(sessions, id_) == 77


async def test_a_write_sees_a_foreign_commit_at_once(database: Path, clock: FakeClock) -> None:
    """A cache may be behind a foreign program; a write never is."""
    async with quiet(database, clock=clock) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(2)]
        with connect(database) as shell:
            shell.execute('UPDATE sessions SET data = \'{"by":"hand"}\'')
            end = "UPDATE sessions SET status = 'ended', ended_at = last_activity WHERE id = ?"
            shell.execute(end, [ids[1]])
        assert await sessions.update_session(ids[0], {"a": 1})
        assert (await the_session(sessions, ids[0])).data == {"by": "hand", "a": 1}
        assert not await sessions.update_activity(ids[1])
        assert not await sessions.end_session(ids[1])


async def test_sweeps_of_our_own_empty_no_cache(database: Path, clock: FakeClock) -> None:
    """A sweep takes the manager's own commits for what they are, and hits go on."""
    async with quiet(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        for count in range(1, 4):
            assert await sessions.update_activity(id_)
            await sessions.purge_ended_sessions(0)
            assert await count_of(sessions, id_) == count
        assert (await sessions.get_session_stats())["cache_misses"] == 0


# -- The size of the log ---------------------------------------------------------------------------

LIMIT = 100_000  # bytes
LISTED = 300  # sessions in a long list


@pytest.fixture
def _small_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the log a small limit."""
    pages = f"PRAGMA wal_autocheckpoint = {LIMIT // 2_048}"
    monkeypatch.setattr(queries, "SET_WAL_AUTOCHECKPOINT", pages)
    monkeypatch.setattr(queries, "SET_JOURNAL_SIZE_LIMIT", f"PRAGMA journal_size_limit = {LIMIT}")


class Traffic:
    """Updates of one session, and what is measured of them."""

    def __init__(self, sessions: SessionManager, database: Path, session_id: str) -> None:
        self._sessions = sessions
        self._log = Path(f"{database}-wal")
        self._id = session_id
        self.largest = 0  # bytes of the log
        self.slowest = 0.0  # seconds that a write took

    def size(self) -> int:
        """Return the bytes that the log has now."""
        return self._log.stat().st_size

    async def run(self, writes: int) -> None:
        """Write a number of transactions of some pages each."""
        for number in range(writes):
            started = time.monotonic()
            assert await self._sessions.update_session(self._id, {"text": "x" * 4_000, "n": number})
            self.slowest = max(self.slowest, time.monotonic() - started)
            self.largest = max(self.largest, self.size())


async def list_on(line: Line, database: Path) -> None:
    """Read long lists with overlapping readers until told to end."""
    async with quiet(database) as one, quiet(database) as other:
        line.say()

        async def read(manager: SessionManager) -> int:
            lists = 0
            while not line.has_news():
                assert len(await manager.get_active_sessions()) == LISTED + 1
                lists += 1
            return lists

        counts = await asyncio.gather(read(one), read(other))
    line.say(min(counts))


@pytest.mark.usefixtures("_small_log")
async def test_the_log_stays_small_while_lists_overlap(database: Path) -> None:
    """Hundreds of updates under long lists leave it near its limit, and wait little for it."""
    async with SessionManager(database, sweep_interval=0.05) as sessions:
        await asyncio.gather(*(sessions.create_session("ben") for _ in range(LISTED)))
        traffic = Traffic(sessions, database, await sessions.create_session("lina"))
        with Child(list_on, database) as child:
            child.line.hear()
            await traffic.run(250)
            child.line.say()
            assert child.line.hear() > 5
        print(traffic.largest, traffic.slowest)
        assert traffic.largest < 15 * LIMIT
        assert traffic.slowest < 2
        await traffic.run(100)
        assert traffic.size() < 3 * LIMIT


@pytest.mark.usefixtures("_small_log")
async def test_the_log_shrinks_when_a_long_reader_has_gone(
    database: Path, clock: FakeClock
) -> None:
    """While a snapshot is held it must grow, and writes wait little; a sweep cuts it to nothing."""
    async with quiet(database, clock=clock) as sessions:
        traffic = Traffic(sessions, database, await sessions.create_session("lina"))
        with connect(database) as foreign:
            foreign.execute("BEGIN")
            before = foreign.execute("SELECT * FROM sessions").fetchall()
            await traffic.run(200)
            assert traffic.size() > 4 * LIMIT
            started = time.monotonic()
            await sessions.purge_ended_sessions(0)  # with a sweep, which does not wait for it
            assert time.monotonic() - started < 1
            assert foreign.execute("SELECT * FROM sessions").fetchall() == before
            foreign.execute("COMMIT")
            await traffic.run(100)
            assert traffic.size() < 3 * LIMIT
            await sessions.purge_ended_sessions(0)
            assert traffic.size() == 0
        assert traffic.slowest < 2
    assert not list(database.parent.glob("*-wal"))
