# SPDX-License-Identifier: MIT
"""The sidecar file: where it stands, what is in it, and what happens when it goes."""

import asyncio
import fcntl
import gc
import os
import shutil
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sessionstore import (
    SchemaError,
    SessionManager,
    SessionStoreError,
    StorageError,
    StoreBusyError,
    coherence,
    queries,
    store,
)
from sessionstore.sqlite.jobs import Turn
from sessionstore.sqlite.sidecar import SLOTS, Coherence

from ..children import Child, Line, is_locked
from ..conftest import FakeClock

SIZE = 8 * (SLOTS + 1)


def lock_of(database: Path) -> Path:
    """Return the path of a database's sidecar."""
    return database.with_name(f"{database.name}-lock")


def quiet(database: Path | str, **settings: Any) -> SessionManager:
    """Return a manager without a sweeper."""
    return SessionManager(database, sweep_interval=None, **settings)


def mappings(path: Path) -> list[int]:
    """Return the inode of each mapping of a file that this process has."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [int(line.split()[4]) for line in lines if line.endswith(str(path))]


def descriptors(path: Path) -> list[str]:
    """Return the descriptors of a file that this process has open, deleted or not."""
    names = []
    for name in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # of the listing itself
            continue
    return [name for name in names if name.startswith(str(path))]


async def is_active(manager: SessionManager, session_id: str) -> bool:
    """Say whether a manager shows a session as active."""
    session = await manager.get_session(session_id)
    assert session is not None
    return session.is_active


# -- Where it stands -------------------------------------------------------------------------------


@pytest.fixture(params=[0, 0o022, 0o077, 0o177], ids=oct)
def umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Set the mask of permissions for a test."""
    assert tmp_path.is_dir()  # it was made under the mask of before
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
async def test_it_is_the_owners_alone(database: Path) -> None:
    """Its mode is 0600, whatever the umask."""
    async with quiet(database):
        assert stat.S_IMODE(lock_of(database).stat().st_mode) == 0o600


async def test_its_size_never_changes(database: Path) -> None:
    """Sessions, writes and openings change nothing about its size, or its place on the disk."""
    for _ in range(2):
        async with quiet(database) as sessions:
            first = lock_of(database).stat()
            await asyncio.gather(*(sessions.create_session("lina") for _ in range(1_000)))
            last = lock_of(database).stat()
            assert first.st_size == last.st_size == SIZE
            assert first.st_ino == last.st_ino
            assert first.st_blocks * 512 >= SIZE  # no holes: a full disk must not kill


async def test_both_names_of_a_database_share_it(tmp_path: Path) -> None:
    """Through a symlink it is beside the real file, and an end is seen through either name."""
    real, link = tmp_path / "real" / "a.db", tmp_path / "link.db"
    real.parent.mkdir()
    link.symlink_to(real)
    async with quiet(link) as one, quiet(real) as other:
        id_ = await one.create_session("lina")
        assert await is_active(other, id_)
        assert await one.end_session(id_)
        assert not await is_active(other, id_)
    assert sorted(os.listdir(real.parent)) == ["a.db", "a.db-lock"]
    assert sorted(os.listdir(tmp_path)) == ["link.db", "real"]


async def map_once(line: Line, database: Path) -> None:
    """Open at a sign, live a little, tell what is mapped, close at a sign, and tell again."""
    manager = quiet(database)
    line.say()
    line.hear()
    await manager.open()
    for _ in range(5):
        await manager.get_session(await manager.create_session("lina"))
    line.say(mappings(lock_of(database)))
    line.hear()
    await manager.close()
    line.say(mappings(lock_of(database)) + descriptors(lock_of(database)))
    line.hear()


def test_processes_that_make_it_at_once_share_it(database: Path) -> None:
    """Eight that come at one moment have one mapping each, of one file, and leave none open."""
    with ExitStack() as stack:
        lines = [stack.enter_context(Child(map_once, database)).line for _ in range(8)]
        answers: list[list[object]] = []
        for _ in range(3):
            answers.append([line.hear() for line in lines])
            for line in lines:
                line.say()
    _, mapped, left = answers
    assert mapped == [[lock_of(database).stat().st_ino]] * 8
    assert left == [[]] * 8


async def test_nothing_of_it_is_open_after_close(database: Path) -> None:
    """Neither a descriptor nor a mapping is left, also where it was replaced meanwhile."""
    async with quiet(database) as sessions:
        for _ in range(3):
            await sessions.create_session("lina")
            assert len(mappings(lock_of(database))) == 1
            lock_of(database).unlink()
        await sessions.create_session("lina")
    gc.collect()
    assert mappings(lock_of(database)) == []
    assert descriptors(lock_of(database)) == []


async def test_a_database_in_memory_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is only in memory needs no file."""
    monkeypatch.chdir(tmp_path)
    async with quiet(":memory:") as sessions:
        assert await sessions.create_session("lina")
        assert os.listdir() == []


def make_refused_file(path: Path, kind: str) -> None:
    """Make a file that open() refuses."""
    if kind == "garbage":
        path.write_bytes(b"garbage" * 1_000)
        return
    with closing(sqlite3.connect(path)) as connection:
        if kind == "newer release":
            connection.execute(queries.CREATE_MIGRATIONS)
            row = {"version": 9_999, "name": "9999_later", "applied_at": "2099-01-01"}
            connection.execute(queries.INSERT_MIGRATION, row)
            connection.execute("CREATE TABLE sessions (id)")
        elif kind == "foreign table":
            connection.execute("CREATE TABLE sessions (token, user)")
        else:
            connection.execute("CREATE TABLE notes (text)")
        connection.commit()


@pytest.mark.parametrize(
    "kind, create, error",
    [
        ("garbage", True, StorageError),
        ("newer release", True, SchemaError),
        ("foreign table", True, SchemaError),
        ("no sessions", False, SchemaError),
        ("nothing", False, StorageError),
    ],
)
async def test_a_refused_file_gets_none(
    database: Path, kind: str, create: bool, error: type[SessionStoreError]
) -> None:
    """Beside what is not ours nothing is made."""
    if kind != "nothing":
        make_refused_file(database, kind)
    before = os.listdir(database.parent)
    with pytest.raises(error):
        await quiet(database, create=create).open()
    assert os.listdir(database.parent) == before


# -- What is in it ---------------------------------------------------------------------------------


def hold_once(database: Path) -> Coherence:
    """Return the coherence of a database, with the file mapped."""
    words = Coherence(str(database))
    with words.hold(Turn(1.0)):
        assert words.is_open
    return words


def now() -> int:
    """Return the time in the unit in which a new file's revisions begin."""
    return time.time_ns() // 1_000


def test_two_that_map_it_see_the_same_words(database: Path) -> None:
    """What one sets, the other sees at once; an odd word is not believed, an even one is."""
    one, other = hold_once(database), hold_once(database)
    noted = other.word(7)
    with one.hold(Turn(1.0)):
        one.begin([7])
        assert not other.is_current(7, noted)
        assert not other.is_current(7, other.word(7))
        word = one.settle([7])
    assert other.is_current(7, word)
    assert not other.is_current(7, noted)
    assert other.is_current(8, other.word(8))
    one.close()
    other.close()


def test_without_the_file_nothing_is_current(database: Path) -> None:
    """Before the first lock and after close() no noted word counts, and none can be set."""
    words = Coherence(str(database))
    for _ in range(2):
        with pytest.raises(TypeError):
            words.begin([7])
        with words.hold(Turn(1.0)):
            noted = [words.word(slot) for slot in (0, 7, SLOTS - 1)]
            assert all(map(words.is_current, (0, 7, SLOTS - 1), noted))
        words.close()
        assert not any(map(words.is_current, (0, 7, SLOTS - 1), noted))


def test_a_new_file_begins_beyond_all_words_of_the_old_one(database: Path) -> None:
    """No word of a replaced file is ever met again, so that nothing cached under it is believed."""
    old = hold_once(database)
    for slot in range(2_000):
        with old.hold(Turn(1.0)):
            old.begin([slot])
            old.settle([slot])
    lock_of(database).unlink()
    new = hold_once(database)
    assert min(new.words[:SLOTS]) > max(old.words[:SLOTS])
    assert not any(word & 1 for word in new.words[:SLOTS])
    old.close()
    new.close()


BEGUN = b"\x02" + bytes(7)  # a slot's word of the year 1970
END = 2**58  # no clock will ever reach this revision


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        BEGUN * 1_000,
        bytes(SIZE),
        BEGUN * SLOTS + bytes(8),
        b"\xff" * SIZE,
        b"garbage!" * (SLOTS + 1),
        BEGUN * SLOTS + END.to_bytes(8, sys.byteorder),
    ],
    ids=["empty", "a byte", "short", "zeros", "no last word", "ones", "garbage", "no revision"],
)
def test_a_file_that_was_never_finished_is_begun_anew(database: Path, content: bytes) -> None:
    """Cut off at any point, or overwritten, it gets its size and words of now."""
    lock_of(database).write_bytes(content)
    started = now()
    words = hold_once(database)
    assert lock_of(database).stat().st_size == SIZE
    assert started <= words.words[SLOTS] <= now()
    assert set(words.words[:SLOTS]) == {words.words[SLOTS] << 1}
    words.close()


def test_a_revision_older_than_the_clock_is_raised(database: Path) -> None:
    """After a power cut it may be older than some slots; those that are there stay."""
    hold_once(database).close()
    with open(lock_of(database), "r+b") as file:
        file.write(BEGUN)
        file.seek(8 * SLOTS)
        file.write((now() - 3_600_000_000).to_bytes(8, sys.byteorder))
    started = now()
    words = hold_once(database)
    assert started <= words.words[SLOTS] <= now()
    assert words.word(0) == 2
    words.close()


@pytest.mark.parametrize("hours", [1, None])
def test_a_revision_ahead_of_the_clock_is_kept(database: Path, hours: int | None) -> None:
    """A clock that was turned back makes no revision smaller."""
    hold_once(database).close()
    ahead = now() + hours * 3_600_000_000 if hours else END - 1
    with open(lock_of(database), "r+b") as file:
        file.seek(8 * SLOTS)
        file.write(ahead.to_bytes(8, sys.byteorder))
    words = hold_once(database)
    assert words.words[SLOTS] == ahead
    words.begin([3])
    assert words.settle([3]) == (ahead + 1) << 1
    words.close()


def test_who_waits_for_it_says_so(database: Path) -> None:
    """The event loop's guard sees whether a job waits for the lock, and when it does no longer."""
    words, turn = hold_once(database), Turn(1.0)
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with words.hold(turn):
            held.set()
            assert go_on.wait(10)

    with open(lock_of(database), "r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiter = threading.Thread(target=hold)
        waiter.start()
        end = time.monotonic() + 10
        while not turn.waiting and time.monotonic() < end:
            time.sleep(0.001)
        assert turn.waiting
        assert not held.is_set()
        fcntl.flock(other, fcntl.LOCK_UN)
        assert held.wait(10)
        assert not turn.waiting
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        go_on.set()
        waiter.join(10)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    words.close()


# -- When it goes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("notice", ["write", "sweep"])
async def test_no_stale_hit_remains_when_it_was_deleted(
    database: Path, clock: FakeClock, notice: str
) -> None:
    """After the next write, or sweep, of one that used the old file it knows all that happened."""
    async with quiet(database, clock=clock) as one:
        id_, own = await one.create_session("lina"), await one.create_session("ben")
        assert await is_active(one, id_)
        lock_of(database).unlink()
        async with quiet(database, clock=clock) as newcomer:
            assert await newcomer.end_session(id_)
            if notice == "write":
                assert await one.update_activity(own)
            else:
                assert await one.cleanup_inactive_sessions() == 0
            assert not await is_active(one, id_)
            files = {m._database.coherence._descriptor for m in (one, newcomer)}
            assert {os.fstat(file).st_ino for file in files} == {lock_of(database).stat().st_ino}
            assert await is_active(newcomer, own)
            assert await one.end_session(own)  # they hear of each other at once again
            assert not await is_active(newcomer, own)


async def test_the_first_who_notices_warns_those_who_only_read(database: Path) -> None:
    """Whoever still has the old file finds no hit in it from the first write to the new one on.

    Nor is anything kept under its words that was read after that.
    """
    async with quiet(database) as one, quiet(database) as other:
        id_, later = await one.create_session("lina"), await one.create_session("ben")
        assert await is_active(one, id_)
        lock_of(database).unlink()
        assert await other.end_session(id_)
        assert not await is_active(one, id_)
        assert await is_active(one, later)
        assert await other.end_session(later)
        assert not await is_active(one, later)


async def test_a_background_sweep_notices_that_it_was_deleted(database: Path) -> None:
    """Who only reads is on the new file after the next sweep."""
    async with SessionManager(database, sweep_interval=0.02) as one:
        id_ = await one.create_session("lina")
        assert await is_active(one, id_)
        lock_of(database).unlink()
        async with quiet(database) as newcomer:
            assert await newcomer.end_session(id_)
        async with asyncio.timeout(5):
            while await is_active(one, id_):  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.005)


async def test_a_write_that_is_under_way_when_it_is_deleted_is_seen(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit under the old file's lock is no secret to those who came on the new file."""
    in_transaction, go_on = threading.Event(), threading.Event()
    end_session = store.end_session

    def end_slowly(*arguments: Any) -> Any:
        change = end_session(*arguments)
        in_transaction.set()
        assert go_on.wait(10)
        return change

    async with quiet(database) as one:
        id_ = await one.create_session("lina")
        monkeypatch.setattr(store, "end_session", end_slowly)
        ending = asyncio.create_task(one.end_session(id_))
        assert await asyncio.to_thread(in_transaction.wait, 10)
        lock_of(database).unlink()
        async with quiet(database) as other:
            assert await is_active(other, id_)
            go_on.set()
            assert await ending
            assert not await is_active(other, id_)


async def test_traffic_survives_many_deletions(database: Path) -> None:
    """With the file deleted every few milliseconds no call fails, and no touch is lost."""
    acknowledged = deleted = 0
    async with quiet(database) as one, quiet(database) as two, quiet(database) as three:
        ids = [await one.create_session("lina") for _ in range(5)]

        def is_enough() -> bool:
            return acknowledged >= 600 and deleted >= 60

        async def touch(manager: SessionManager, number: int) -> None:
            nonlocal acknowledged
            while not is_enough():
                assert await manager.update_activity(ids[number % 5])
                acknowledged += 1
                assert await is_active(manager, ids[number % 5])

        async def delete() -> None:
            nonlocal deleted
            while not is_enough():
                lock_of(database).unlink(missing_ok=True)
                deleted += 1
                await asyncio.sleep(0.005)

        calls = [touch(manager, number) for manager in (one, two, three) for number in range(6)]
        await asyncio.gather(delete(), *calls)
        for manager in (one, two, three):
            await manager.cleanup_inactive_sessions()
            found = [await manager.get_session(id_) for id_ in ids]
            assert sum(s.interaction_count for s in found if s is not None) == acknowledged
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("touches_it", [True, False])
@pytest.mark.parametrize("how", ["copied", "moved"])
async def test_an_old_copy_of_it_brings_no_hit_back_for_long(
    database: Path, how: str, touches_it: bool
) -> None:
    """After the next write no row counts that was kept under the words of the copy."""
    copy = database.with_name("copy")
    async with quiet(database) as one, quiet(database) as two:
        id_, own = await one.create_session("lina"), await one.create_session("ben")
        assert await is_active(one, id_)
        shutil.copy(lock_of(database), copy)
        assert await two.update_session(id_, {"step": 1})
        assert await one.update_activity(own)
        if how == "copied":
            shutil.copyfile(copy, lock_of(database))
        else:
            copy.rename(lock_of(database))
        assert await one.update_activity(id_ if touches_it else own)
        session = await one.get_session(id_)
        assert session is not None
        assert session.data == {"step": 1}


@pytest.mark.parametrize("moment", ["open", "write"])
async def test_one_that_is_cut_off_while_it_is_mapped_is_told_of(
    database: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The call raises StorageError, nobody is left with the lock, and the next call is well."""
    fill = coherence._fill

    def fill_and_cut(descriptor: int) -> None:
        fill(descriptor)
        os.ftruncate(descriptor, 100)

    async with quiet(database) as sessions:
        id_ = await sessions.create_session("lina")
        if moment == "open":
            await sessions.close()
        os.truncate(lock_of(database), 100)
        with monkeypatch.context() as patch:
            patch.setattr(coherence, "_fill", fill_and_cut)
            with pytest.raises(StorageError, match="cut off"):
                await (sessions.open() if moment == "open" else sessions.update_activity(id_))
            assert not is_locked(database)
        await sessions.open()
        assert await sessions.update_activity(id_)


# -- Where there is no fcntl -----------------------------------------------------------------------


def lock_like_windows(descriptor: int, mode: int, length: int) -> None:
    """Stand in for msvcrt.locking."""
    assert (mode, length) == (2, 1)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def take_fcntl_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the package believe that it is on Windows."""
    monkeypatch.setattr(coherence, "fcntl", None)
    windows = SimpleNamespace(LK_NBLCK=2, locking=lock_like_windows)
    monkeypatch.setattr(coherence, "msvcrt", windows, raising=False)


@pytest.mark.parametrize("has_fcntl", [True, False])
def test_it_may_be_descriptor_0(
    database: Path, monkeypatch: pytest.MonkeyPatch, has_fcntl: bool
) -> None:
    """Where standard input is closed, as in some daemons, it gets that number, and keeps it."""
    if not has_fcntl:
        take_fcntl_away(monkeypatch)
    with ExitStack() as stack:
        standard_input = os.dup(0)
        stack.callback(os.close, standard_input)
        stack.callback(os.dup2, standard_input, 0)
        os.close(0)
        words = Coherence(str(database))
        assert not words.is_open
        opened: list[int] = []
        for _ in range(2):
            with words.hold(Turn(1.0)):
                assert words.is_open
            assert os.fstat(0).st_ino == lock_of(database).stat().st_ino
            opened.append(len(descriptors(lock_of(database))))
        assert opened[0] == opened[1]
        words.close()
        assert not words.is_open
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(0)


async def test_without_fcntl_one_manager_at_a_time_has_the_file(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one is refused with words that say why, and served when the first has closed."""
    take_fcntl_away(monkeypatch)
    first, second = quiet(database), quiet(database)
    words = "another process has the database open; one at a time"
    async with first:
        assert stat.S_IMODE(lock_of(database).stat().st_mode) == 0o600
        id_ = await first.create_session("lina")
        for _ in range(2):
            with pytest.raises(StoreBusyError, match=f"^{words}$"):
                await second.open()
        assert await first.update_activity(id_)
        assert await first.get_session(id_)
        assert await first.cleanup_inactive_sessions() == 0
    async with second:
        session = await second.get_session(id_)
        assert session is not None
        assert session.interaction_count == 1
    assert descriptors(lock_of(database)) == []


@pytest.mark.parametrize("overwrite", [lambda now: 0, lambda now: 2**64 - 1, lambda now: now - 1])
def test_a_revision_that_was_overwritten_brings_no_word_back(
    database: Path, overwrite: Callable[[int], int]
) -> None:
    """While the file is open, too: the next word of a slot is one that it never had."""
    one = hold_once(database)
    words = set()
    for _ in range(10):
        one.begin([5])
        words.add(one.settle([5]))
        one.words[SLOTS] = overwrite(one.words[SLOTS])
    assert len(words) == 10
    assert max(words) < 2**60
    one.close()
