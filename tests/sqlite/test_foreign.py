# SPDX-License-Identifier: MIT
"""Foreign programs on the file, SQLite's own version, and the size of the WAL beside it."""

import asyncio
import logging
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from sessionstore import SessionManager, queries, wal
from sessionstore.sqlite.preparation import has_wal_reset_bug

from ..children import Child, Line
from ..conftest import FakeClock

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
    session = await manager.get_session(session_id)
    assert session is not None
    return session.interaction_count


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_foreign_write_is_seen_after_the_next_sweep(
    database: Path, clock: FakeClock, program: list[str]
) -> None:
    """Whatever was cached, and however, a sweep after a foreign commit makes room for the truth."""
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(3)]
        await sessions.cleanup_inactive_sessions()
        for id_ in ids:
            assert await count_of(sessions, id_) == 0
            write_by(program, database, id_)
            assert await sessions.cleanup_inactive_sessions() == 0
            assert await count_of(sessions, id_) == 77


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_foreign_write_is_seen_after_the_background_sweep(
    database: Path, program: list[str]
) -> None:
    """Nobody has to call anything, in any manager."""
    async with (
        SessionManager(database, sweep_interval=0.02) as one,
        SessionManager(database, sweep_interval=0.02) as other,
    ):
        id_ = await one.create_session("lina")
        assert [await count_of(manager, id_) for manager in (one, other)] == [0, 0]
        write_by(program, database, id_)
        async with asyncio.timeout(5):
            for manager in (one, other):
                while await count_of(manager, id_) == 0:  # noqa: ASYNC110  # no event tells
                    await asyncio.sleep(0.005)
        assert [await count_of(manager, id_) for manager in (one, other)] == [77, 77]


async def test_writes_of_our_own_empty_no_cache(database: Path, clock: FakeClock) -> None:
    """A sweep takes the manager's own commits for what they are, and hits go on."""
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        id_ = await sessions.create_session("lina")
        await sessions.cleanup_inactive_sessions()
        await sessions.get_session(id_)  # the first sweep cannot know, and has emptied the cache
        for count in range(1, 4):
            assert await sessions.update_activity(id_)
            await sessions.cleanup_inactive_sessions()
            session = await sessions.get_session(id_)
            assert session is not None
            assert session.interaction_count == count
        assert (await sessions.get_session_stats())["cache_misses"] == 1


# -- SQLite's version ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "version, has_bug",
    [
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 44, 7), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 0), True),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
        ((4, 0, 0), False),
    ],
)
def test_versions_with_the_wal_reset_bug_are_known(
    version: tuple[int, int, int], has_bug: bool
) -> None:
    """Fixed in 3.51.3, and in 3.50.7 and 3.44.6 of the older lines."""
    assert has_wal_reset_bug(version) is has_bug


@pytest.mark.parametrize("version, lines", [((3, 45, 0), 1), ((3, 51, 3), 0)])
async def test_the_bug_is_mentioned_once(
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    version: tuple[int, int, int],
    lines: int,
) -> None:
    """At open, at info level, with the version; a library without it is no news."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    async with SessionManager(database, sweep_interval=0.01) as sessions:
        await sessions.create_session("lina")
        await sessions.cleanup_inactive_sessions()
    found = [record for record in caplog.records if "WAL-reset" in record.getMessage()]
    assert [record.levelno for record in found] == [logging.INFO] * lines
    assert all(sqlite3.sqlite_version in record.getMessage() for record in found)


async def test_stats_have_the_version(database: Path) -> None:
    """An operator need not ask the interpreter for it."""
    async with SessionManager(database, sweep_interval=None) as sessions:
        assert (await sessions.get_session_stats())["sqlite_version"] == sqlite3.sqlite_version


# -- The size of the WAL ---------------------------------------------------------------------------

LIMIT = 200_000  # bytes
LISTED = 300  # sessions in a long list


@pytest.fixture
def _small_wal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the WAL a small limit."""
    monkeypatch.setattr(wal, "LIMIT", LIMIT)
    monkeypatch.setattr(queries, "SET_JOURNAL_SIZE_LIMIT", f"PRAGMA journal_size_limit = {LIMIT}")


class Traffic:
    """Updates of one session, and what is measured of them."""

    def __init__(self, sessions: SessionManager, database: Path, session_id: str) -> None:
        self._sessions = sessions
        self._wal = Path(f"{database}-wal")
        self._id = session_id
        self.largest = 0  # bytes of the WAL
        self.slowest = 0.0  # seconds that a write took

    def size(self) -> int:
        """Return the bytes that the WAL has now."""
        return self._wal.stat().st_size

    async def run(self, writes: int) -> None:
        """Write a number of transactions of some pages each."""
        for number in range(writes):
            started = time.monotonic()
            assert await self._sessions.update_session(self._id, {"text": "x" * 4_000, "n": number})
            self.slowest = max(self.slowest, time.monotonic() - started)
            self.largest = max(self.largest, self.size())


async def list_on(line: Line, database: Path) -> None:
    """Read long lists with overlapping readers until told to end."""
    async with (
        SessionManager(database, sweep_interval=None) as one,
        SessionManager(database, sweep_interval=None) as other,
    ):
        line.say()

        async def read(manager: SessionManager) -> int:
            lists = 0
            while not line.has_news():
                assert len(await manager.get_active_sessions()) == LISTED + 1
                lists += 1
            return lists

        counts = await asyncio.gather(read(one), read(other))
    line.say(min(counts))


@pytest.mark.usefixtures("_small_wal")
async def test_the_wal_stays_small_while_lists_overlap(database: Path) -> None:
    """Thousands of updates under long lists leave it near its limit, and wait little for it."""
    async with SessionManager(database, sweep_interval=None) as sessions:
        await asyncio.gather(*(sessions.create_session("ben") for _ in range(LISTED)))
        traffic = Traffic(sessions, database, await sessions.create_session("lina"))
        with Child(list_on, database) as child:
            child.line.hear()
            await traffic.run(1_500)
            child.line.say()
            assert child.line.hear() > 10
        print(traffic.largest, traffic.slowest)
        assert traffic.largest < 15 * LIMIT
        assert traffic.slowest < 1
        await traffic.run(100)
        assert traffic.size() < 2 * LIMIT


@pytest.mark.usefixtures("_small_wal")
async def test_the_wal_shrinks_when_a_long_reader_has_gone(database: Path) -> None:
    """While a snapshot is held it must grow, and writes wait little; afterwards it is cut."""
    async with SessionManager(database, sweep_interval=None) as sessions:
        traffic = Traffic(sessions, database, await sessions.create_session("lina"))
        with closing(sqlite3.connect(database, isolation_level=None)) as foreign:
            foreign.execute("BEGIN")
            before = foreign.execute("SELECT * FROM sessions").fetchall()
            await traffic.run(400)
            assert traffic.size() > 4 * LIMIT
            assert foreign.execute("SELECT * FROM sessions").fetchall() == before
            foreign.execute("COMMIT")
            grown = traffic.size()
            await traffic.run(200)
            print(grown, traffic.size(), traffic.slowest)
            assert traffic.size() < 2 * LIMIT
        assert traffic.slowest < 1
    assert not list(database.parent.glob("*-wal"))
