# SPDX-License-Identifier: MIT
"""What others must not get at: the files, what was erased from them, and ids to be guessed."""

import asyncio
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path

import pytest

from sessionstore import SessionManager
from sessionstore.sqlite import connection, queries

from ..children import ROOT, Child, Line
from ..conftest import START, FakeClock
from . import old_files


def modes(folder: Path) -> dict[str, int]:
    """Return the permissions of each file in a folder."""
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


# -- Permissions -----------------------------------------------------------------------------------


@pytest.fixture(params=[0, 0o022, 0o077, 0o277, 0o777], ids=oct)
def _umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    assert tmp_path.is_dir()  # it was made under the umask of before
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_umask")
async def test_each_file_is_its_owners_alone(tmp_path: Path) -> None:
    """The database, the WAL, its index and the lock have mode 0600 under every umask."""
    async with SessionManager(tmp_path / "a.db", sweep_interval=None) as sessions:
        await sessions.create_session("lina")
        made = modes(tmp_path)
    assert made == dict.fromkeys(("a.db", "a.db-wal", "a.db-shm", "a.db-lock"), 0o600)


@pytest.mark.usefixtures("_umask")
async def test_the_copy_of_an_adopted_file_is_its_owners_alone(tmp_path: Path) -> None:
    """The copy of a file that everybody could read is not; the file itself keeps its mode."""
    old_files.PREDECESSORS["predecessor"](tmp_path / "a.db", 1, old_files.APPLIED_AT)
    os.chmod(tmp_path / "a.db", 0o644)  # as any program makes it
    async with SessionManager(tmp_path / "a.db", sweep_interval=None):
        made = modes(tmp_path)
    assert made["a.db.before-sessionstore"] == 0o600
    assert made["a.db"] == 0o644


async def test_without_that_the_umask_would_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the modes sees a file that SQLite has made by itself."""
    monkeypatch.setattr(connection, "make_file", lambda path: Path(path).touch())
    async with SessionManager(tmp_path / "a.db", sweep_interval=None):
        assert modes(tmp_path)["a.db"] == 0o644


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o666])
@pytest.mark.parametrize("is_empty", [True, False])
async def test_the_mode_of_a_file_that_is_there_is_left_alone(
    tmp_path: Path, mode: int, is_empty: bool
) -> None:
    """A file that is shared with a group stays so, with its WAL, its index and its lock."""
    path = tmp_path / "a.db"
    if not is_empty:
        async with SessionManager(path, sweep_interval=None):
            pass
        os.unlink(f"{path}-lock")  # it gets the mode that the database has when it is made
    else:
        path.touch()
    path.chmod(mode)
    async with SessionManager(path, sweep_interval=None) as sessions:
        await sessions.create_session("lina")
        made = modes(tmp_path)
    assert made == dict.fromkeys(("a.db", "a.db-wal", "a.db-shm", "a.db-lock"), mode)


async def open_at_a_sign(line: Line, path: Path) -> None:
    """Open a file together with others, and write to it."""
    line.say()
    line.hear()
    async with SessionManager(path, sweep_interval=None) as sessions:
        await sessions.create_session("lina")
        line.say(modes(path.parent))
        line.hear()


@pytest.mark.parametrize(
    "rounds", [2, pytest.param(100, marks=[pytest.mark.torture])], ids=["quick", "torture"]
)
def test_processes_that_make_it_at_once_make_one(tmp_path: Path, rounds: int) -> None:
    """Six that come at one moment share one file, which has mode 0600 and all that they wrote."""
    for number in range(rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        with ExitStack() as stack:
            path = folder / "a.db"
            children = [stack.enter_context(Child(open_at_a_sign, path)) for _ in range(6)]
            for child in children:
                child.line.hear()
            for child in children:
                child.line.say()
            for child in children:
                assert set(child.line.hear().values()) == {0o600}
            for child in children:
                child.line.say()
                assert child.join() == 0
        with closing(sqlite3.connect(folder / "a.db")) as connection:
            assert connection.execute("SELECT count(*) FROM sessions").fetchone() == (6,)
        shutil.rmtree(folder)


# -- What was erased -------------------------------------------------------------------------------


class Marks:
    """Texts that are in no file by chance, and the search for them in all files of a database."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0
        self.alive: dict[str, list[str]] = {}  # by session: its id and what it has now
        self.dead: list[str] = []

    def new(self) -> str:
        """Return a text that was never used."""
        self._number += 1
        return f"<{self._number}:{uuid.uuid4()}>"

    def erase(self, id_: str) -> None:
        """Note that a session is gone."""
        self.dead += self.alive.pop(id_)

    def found(self, texts: list[str], *suffixes: str) -> list[str]:
        """Return those of the texts that one of the files holds."""
        content = b"".join(
            Path(f"{self._path}{suffix}").read_bytes()
            for suffix in suffixes
            if os.path.exists(f"{self._path}{suffix}")
        )
        return [text for text in texts if text.encode() in content]

    def size(self, suffix: str) -> int:
        """Return the bytes of one of the files."""
        return os.path.getsize(f"{self._path}{suffix}")

    def living(self) -> list[str]:
        """Return all that is to be found."""
        return [text for texts in self.alive.values() for text in texts]


FILES = ("", "-wal", "-shm", "-lock")


async def live_and_erase(sessions: SessionManager, marks: Marks, clock: FakeClock) -> None:
    """Create sessions of all sizes, change what is in them, end some, and erase two of three."""
    rng = random.Random(0)

    async def live() -> None:
        child, first, second, third, kept = (marks.new() for _ in range(5))
        size = rng.choice([1, 1, 1, 5, 50, 400])  # the last ones need pages of their own
        id_ = await sessions.create_session(
            child, {"a": first * size, "b": second}, metadata={"m": kept}
        )
        marks.alive[id_] = [id_, child, third, kept]
        marks.dead += [first, second]
        assert await sessions.update_session(id_, {"a": third * size}, remove=["b"])

    async def erase(id_: str) -> None:
        marks.erase(id_)
        assert await sessions.delete_session(id_)

    async def end(id_: str) -> None:
        marks.alive[id_].append(reason := marks.new())
        assert await sessions.end_session(id_, reason)
        marks.erase(id_)

    for _ in range(SESSIONS // CROWD):
        await asyncio.gather(*(live() for _ in range(CROWD)))
    ids = [*marks.alive]
    rng.shuffle(ids)
    await asyncio.gather(*map(erase, ids[: SESSIONS // 3]))
    await asyncio.gather(*map(end, ids[SESSIONS // 3 : SESSIONS * 2 // 3]))
    clock.turn(60)
    purged = await sessions.purge_ended_sessions(timedelta(seconds=30))
    assert purged == len(ids[SESSIONS // 3 : SESSIONS * 2 // 3])


SESSIONS = 120
CROWD = 10  # sessions that live at once


# Of 120,000 erased texts SQLite left 19, in 13 of 100 runs: a row that moves to another page may
# stay in the free space of its old one, since SQLite zeroes what it deletes, and not what it moves.
LEFT_BY_SQLITE = 4  # of 600


def vacuum(path: Path) -> None:
    """Write the file anew, as an operator does."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM")


async def test_nothing_is_left_of_what_was_erased(database: Path, clock: FakeClock) -> None:
    """After the next sweep the WAL is empty, and after close() no file holds what was erased.

    What SQLite itself leaves, a text in thousands, VACUUM clears. What is alive is found.
    """
    marks = Marks(database)
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        await live_and_erase(sessions, marks, clock)
        await sessions.cleanup_inactive_sessions()
        while_open = marks.found(marks.dead, *FILES)
        assert marks.size("-wal") == 0
        assert marks.found(marks.living(), "") == marks.living()
    assert len(marks.dead) == 5 * SESSIONS
    assert len(while_open) <= LEFT_BY_SQLITE, while_open
    assert len(marks.found(marks.dead, *FILES)) <= LEFT_BY_SQLITE
    vacuum(database)
    assert marks.found(marks.dead, *FILES) == []
    assert marks.found(marks.living(), "") == marks.living()


async def test_the_background_sweep_empties_the_log(database: Path) -> None:
    """Nobody has to call anything."""
    marks = Marks(database)
    async with SessionManager(database, sweep_interval=0.02) as sessions:
        id_ = await sessions.create_session("lina", {"a": "b" * 10_000})
        assert await sessions.delete_session(id_)
        async with asyncio.timeout(10):
            while marks.size("-wal"):  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.005)
        assert marks.found([id_], *FILES) == []


async def erase_and_linger(line: Line, database: Path) -> None:
    """Erase a session in a process that never sweeps, and close at a sign."""
    async with SessionManager(database, sweep_interval=None) as sessions:
        id_ = await sessions.create_session("lina")
        assert await sessions.delete_session(id_)
        line.say(id_)
        line.hear()


async def test_what_a_process_that_died_had_erased_goes_with_the_next_sweep(database: Path) -> None:
    """Whoever opens the file next cannot know of it, and sees to it all the same."""
    marks = Marks(database)
    with Child(erase_and_linger, database) as child:
        id_ = child.line.hear()
        child.kill()
    async with SessionManager(database, sweep_interval=None) as sessions:
        assert marks.found([id_], "-wal") == [id_]
        await sessions.cleanup_inactive_sessions()
        assert marks.found([id_], *FILES) == []
        assert marks.size("-wal") == 0


async def test_what_was_erased_goes_with_close_if_no_sweep_comes_by(database: Path) -> None:
    """Also if others have the file open, so that SQLite keeps the log."""
    marks = Marks(database)
    async with SessionManager(database, sweep_interval=None):
        with Child(erase_and_linger, database) as child:
            id_ = child.line.hear()
            assert marks.found([id_], "-wal") == [id_]
            child.line.say()
            assert child.join() == 0
        assert marks.found([id_], *FILES) == []
        assert marks.size("-wal") == 0


async def test_close_leaves_the_log_to_a_reader_who_needs_it(database: Path) -> None:
    """It neither fails nor waits for long, and the next close, or sweep, takes it out."""
    marks = Marks(database)
    with closing(sqlite3.connect(database, isolation_level=None)) as reader:
        async with SessionManager(database, sweep_interval=None) as sessions:
            id_ = await sessions.create_session("lina")
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM sessions").fetchall() == [(1,)]
            assert await sessions.delete_session(id_)
            started = time.monotonic()
        assert time.monotonic() - started < 5
        assert marks.found([id_], "-wal") == [id_]
        reader.execute("ROLLBACK")
        async with SessionManager(database, sweep_interval=None):
            pass
        assert marks.found([id_], *FILES) == []


BROKEN = {
    "SET_SECURE_DELETE": "PRAGMA secure_delete = OFF",
    "CHECKPOINT_TRUNCATE": "PRAGMA wal_checkpoint(PASSIVE)",
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_the_search_finds_what_would_be_left(
    database: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Without either half, a good part of what was erased is still in the file, or in the WAL."""
    monkeypatch.setattr(queries, broken, BROKEN[broken])
    marks = Marks(database)
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        await live_and_erase(sessions, marks, clock)
        await sessions.cleanup_inactive_sessions()
        suffix = "-wal" if broken == "CHECKPOINT_TRUNCATE" else ""
        found = marks.found(marks.dead, suffix)
    assert len(found) > len(marks.dead) / 5


@pytest.mark.torture
async def test_how_much_sqlite_leaves_under_long_churn(database: Path, clock: FakeClock) -> None:
    """Of 30,000 sessions that come and go, less than a text in a thousand; after VACUUM none."""
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    marks = Marks(database)
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        for _ in range(300):

            async def create() -> None:
                child, text = marks.new(), marks.new()
                data = {"a": text * rng.choice([1, 1, 3, 20, 100])}
                id_ = await sessions.create_session(child, data)
                marks.alive[id_] = [id_, child, text]

            await asyncio.gather(*(create() for _ in range(100)))
            gone = rng.sample([*marks.alive], len(marks.alive) // 3)
            for id_ in gone:
                marks.erase(id_)
            await asyncio.gather(*map(sessions.delete_session, gone))
        await sessions.cleanup_inactive_sessions()
        left = marks.found(marks.dead, *FILES)
        assert marks.found(marks.living(), "") == marks.living()
    vacuum(database)
    print(f"seed {seed}: {len(left)} of {len(marks.dead)} texts left")
    assert len(left) < len(marks.dead) / 1_000, f"seed {seed}"
    assert marks.found(marks.dead, *FILES) == []


# -- Temporary files -------------------------------------------------------------------------------

TRAFFIC = """
import asyncio, sys
from sessionstore import SessionManager
from sessionstore.sqlite import queries

if sys.argv[2] == "broken":
    queries.SET_TEMP_STORE_MEMORY = "PRAGMA temp_store = FILE"

async def main():
    async with SessionManager(sys.argv[1], sweep_interval=None) as sessions:
        ids = await asyncio.gather(
            *(sessions.create_session("lina", {"a": "x" * 4000}) for _ in range(900))
        )
        assert len(await sessions.list_sessions(limit=900)) == 900
        assert len(await sessions.get_sessions_for_child("lina", 900)) == 900
        assert len(await sessions.get_active_sessions()) == 900
        await sessions.end_sessions("lina")
        assert await sessions.purge_ended_sessions(0) == 900
        await sessions.get_session_stats()

asyncio.run(main())
"""


@pytest.mark.parametrize("variant", ["ours", "broken"])
def test_no_data_goes_to_a_temporary_file(tmp_path: Path, variant: str) -> None:
    """Sorting, purging and ending thousands of sessions opens none; SQLite would, if it might."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("there is no strace")
    log = tmp_path / "log"
    command = [strace, "-f", "-o", str(log), "-e", "trace=openat,open", sys.executable, "-c"]
    script = textwrap.dedent(TRAFFIC)
    done = subprocess.run(
        [*command, script, str(tmp_path / "a.db"), variant],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
    )
    if not log.exists() or b"ptrace" in done.stderr:
        pytest.skip("tracing is not allowed here")
    assert (done.returncode, done.stderr) == (0, b"")
    opened = log.read_text(errors="replace")
    assert "a.db-wal" in opened
    assert ("etilqs_" in opened) == (variant == "broken")


# -- Ids -------------------------------------------------------------------------------------------


async def make_ids(database: Path, clock: FakeClock, count: int) -> list[str]:
    """Return the ids of so many sessions."""
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        ids = []
        for _ in range(count):
            random.seed(0)  # as a host may do
            ids.append(await sessions.create_session("lina"))
        return ids


async def test_ids_have_74_bits_that_nobody_can_guess(database: Path, clock: FakeClock) -> None:
    """In ids of one moment all bits change but those of the time, the version and the variant."""
    ids = [uuid.UUID(id_).int for id_ in await make_ids(database, clock, 50)]
    changing = 0
    for id_ in ids:
        changing |= id_ ^ ids[0]
    assert changing.bit_count() == 74
    assert {id_ >> 80 for id_ in ids} == {int(START * 1_000)}
    assert {uuid.UUID(int=id_).version for id_ in ids} == {7}


async def test_ids_come_from_the_systems_randomness(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the system's source repeats itself, so do the ids: nothing else has a part in them."""
    monkeypatch.setattr(os, "urandom", bytes)
    ids = [await make_ids(tmp_path / f"{number}.db", clock, 1) for number in range(3)]
    assert ids[0] == ids[1] == ids[2]
