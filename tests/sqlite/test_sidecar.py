# SPDX-License-Identifier: MIT
"""The lock file: where it stands, what is in it, what rests on it, and what happens when it goes.

Its words are tested through Sidecar's methods; the cache that rests on them through two managers,
or two stores, on one file.
"""

import asyncio
import contextlib
import fcntl
import gc
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest

from sessionstore import (
    SchemaError,
    SessionManager,
    SessionStoreError,
    StorageError,
    StoreBusyError,
)
from sessionstore.expiry import Expiry
from sessionstore.session import Record
from sessionstore.sqlite import SQLiteStore, queries, sidecar
from sessionstore.sqlite.sidecar import SLOTS, Sidecar

from ..children import Child, Line, is_locked
from ..conftest import FakeClock
from .tools import (
    LOCK_SIZE,
    connect,
    lock_of,
    moment,
    new_record,
    opened,
    quiet,
    run_sql,
    the_session,
)

DAY = 86_400_000_000  # microseconds


def mappings(path: Path) -> list[int]:
    """Return the inode of each mapping of a file that this process has."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [int(line.split()[4]) for line in lines if line.endswith(str(path))]


def descriptors(path: Path) -> list[str]:
    """Return the descriptors of a file that this process has open, deleted or not."""
    names = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            names.append(os.readlink(f"/proc/self/fd/{name}"))
    return [name for name in names if name.startswith(str(path))]


async def is_active(manager: SessionManager, session_id: str) -> bool:
    """Say whether a manager shows a session as active."""
    return (await the_session(manager, session_id)).is_active


async def misses(manager: SessionManager) -> int:
    """Return how many calls the cache could not answer so far."""
    return (await manager.get_session_stats())["cache_misses"]


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
    """Its mode is 0600, whatever the umask, and so is that of all files of a new database."""
    async with quiet(database) as sessions:
        await sessions.create_session("lina")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in database.parent.iterdir()}
    assert modes.keys() == {"sessions.db", "sessions.db-lock", "sessions.db-wal", "sessions.db-shm"}
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o666])
async def test_it_has_the_mode_and_owner_of_the_database(database: Path, mode: int) -> None:
    """Whoever may write the database may take its lock, as with SQLite's own files beside it."""
    os.close(os.open(database, os.O_CREAT))
    os.chmod(database, mode)
    owner = (os.getuid(), 12_345 if os.getuid() == 0 else os.getgid())
    os.chown(database, *owner)
    async with quiet(database) as sessions:
        await sessions.create_session("lina")
        for path in (lock_of(database), Path(f"{database}-wal")):
            status = path.stat()
            assert stat.S_IMODE(status.st_mode) == mode
            assert (status.st_uid, status.st_gid) == owner


async def test_its_size_never_changes(database: Path) -> None:
    """Sessions, writes and openings change nothing about its size, or its place on the disk."""
    for _ in range(2):
        async with quiet(database) as sessions:
            first = lock_of(database).stat()
            await asyncio.gather(*(sessions.create_session("lina") for _ in range(1_000)))
            last = lock_of(database).stat()
            assert first.st_size == last.st_size == LOCK_SIZE
            assert first.st_ino == last.st_ino
            assert first.st_blocks * 512 >= LOCK_SIZE  # no holes: a full disk must not kill


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
    gc.collect()
    line.say(mappings(lock_of(database)) + descriptors(lock_of(database)))
    line.hear()


def test_processes_that_make_it_at_once_share_it(database: Path) -> None:
    """Those that come at one moment have one mapping each, of one file, and leave none open."""
    with ExitStack() as stack:
        lines = [stack.enter_context(Child(map_once, database)).line for _ in range(6)]
        answers: list[list[object]] = []
        for _ in range(3):
            answers.append([line.hear() for line in lines])
            for line in lines:
                line.say()
    _, mapped, left = answers
    assert mapped == [[lock_of(database).stat().st_ino]] * 6
    assert left == [[]] * 6


async def test_nothing_of_it_is_open_after_close(database: Path) -> None:
    """Neither a descriptor nor a mapping is left, also if it was replaced meanwhile."""
    async with quiet(database) as sessions:
        for _ in range(3):
            await sessions.create_session("lina")
            lock_of(database).unlink()
        await sessions.create_session("lina")
        gc.collect()
        assert len(mappings(lock_of(database))) == 1
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
    with connect(path) as connection:
        if kind == "newer release":
            connection.execute(queries.CREATE_MIGRATIONS)
            row = {"version": 9_999, "name": "9999_later", "applied_at": "2099-01-01"}
            connection.execute(queries.INSERT_MIGRATION, row)
            connection.execute("CREATE TABLE sessions (id)")
        elif kind == "foreign table":
            connection.execute("CREATE TABLE sessions (token, user)")
        else:
            connection.execute("CREATE TABLE notes (text)")


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
    """Beside what is not ours nothing is made, and it is left byte for byte."""
    if kind != "nothing":
        make_refused_file(database, kind)
    before = {path.name: path.read_bytes() for path in database.parent.iterdir()}
    with pytest.raises(error):
        await quiet(database, create=create).open()
    assert {path.name: path.read_bytes() for path in database.parent.iterdir()} == before


# -- What is in it ---------------------------------------------------------------------------------


@contextmanager
def locked(database: Path) -> Iterator[Sidecar]:
    """Take the lock with a sidecar of its own during the block."""
    database.touch()
    each = Sidecar(str(database))
    assert each.try_lock()
    yield each
    each.unlock()
    each.close()


def write(each: Sidecar, *session_ids: str) -> int:
    """Do what a batch of writes does with the words, and return the new one."""
    assert each.try_lock()
    each.mark(session_ids)
    version = each.settle()
    each.unlock()
    return version


def slot_of(session_id: str) -> int:
    """Return the slot of a session, the same in every process and release."""
    return crc32(session_id.encode()) % SLOTS


def read_words(database: Path) -> memoryview:
    """Return all words of the file as they are now, the revision last."""
    return memoryview(lock_of(database).read_bytes()).cast("Q")


def write_words(database: Path, words: "dict[int, int]") -> None:
    """Overwrite words of the file."""
    with lock_of(database).open("r+b") as file:
        for index, word in words.items():
            file.seek(8 * index)
            file.write(word.to_bytes(8, sys.byteorder))


def now() -> int:
    """Return the time in the unit in which a new file's revisions begin."""
    return time.time_ns() // 1_000


IDS = [f"session-{number}" for number in range(200)]


def test_a_version_is_odd_from_the_mark_to_the_commit(database: Path) -> None:
    """Both who map the file see it at once; other slots keep theirs."""
    with locked(database) as one:
        one.unlock()
        other = Sidecar(str(database))
        assert other.try_lock()
        other.unlock()
        a, b, rest = slot_of("a"), slot_of("b"), slot_of("c")
        before = list(other.versions)
        assert one.try_lock()
        assert one.mark(["a", "b"]) == {"a": before[a], "b": before[b]}
        for each in (one, other):
            assert each.versions[a] == each.versions[b] > max(before)
            assert each.versions[a] & 1
            assert each.versions[rest] == before[rest]
        version = one.settle()
        one.unlock()
        for each in (one, other):
            assert each.versions[a] == each.versions[b] == version > max(before)
            assert not version & 1
        other.close()


def test_the_layout_is_that_of_every_release(database: Path) -> None:
    """65,536 words of 64 bits and a revision r: a batch's word is 2r + 1 in flight, 2r after it."""
    with locked(database) as each:
        each.unlock()
        before = read_words(database)
        assert len(before) == 65_537
        assert set(before[:-1]) == {before[-1] << 1}
        write(each, "123e4567-e89b-42d3-a456-426614174000")
        after = read_words(database)
        assert after[-1] == before[-1] + 1
        assert [slot for slot in range(SLOTS) if after[slot] != before[slot]] == [20_086]
        assert after[20_086] == after[-1] << 1
        assert each.try_lock()
        each.mark(["123e4567-e89b-42d3-a456-426614174000"])
        assert read_words(database)[20_086] == (after[-1] + 1) << 1 | 1


def test_words_never_repeat(database: Path) -> None:
    """Whoever writes, and if the file is opened anew or lost, each batch's word is a new one."""
    words: list[int] = []
    with locked(database) as one:
        one.unlock()
        for number in range(60):
            with locked(database) as other:
                other.unlock()
                words += [write(each, "a") for each in (one, other, one)]
                if number % 20 == 19:
                    lock_of(database).unlink()
    assert len(set(words)) == len(words)


def test_a_failed_commit_leaves_no_odd_word(database: Path) -> None:
    """What is marked is settled, whatever became of the transaction."""
    with locked(database) as each:
        each.mark(IDS)
        each.settle()
        each.unlock()
        assert not any(word & 1 for word in read_words(database)[:-1])


def test_a_new_file_begins_beyond_all_words_of_the_old_one(database: Path) -> None:
    """No word of a replaced file is ever met again, so that nothing cached under it is believed."""
    with locked(database) as old:
        old.unlock()
        for id_ in IDS:
            write(old, id_)
        lock_of(database).unlink()
        with locked(database) as new:
            assert min(new.versions) > max(old.versions)
            assert not any(word & 1 for word in new.versions)


BEGUN = b"\x02" + bytes(7)  # a slot's word of the year 1970
END = 2**60  # no clock will ever reach this revision


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        BEGUN * 1_000,
        BEGUN * SLOTS,
        bytes(LOCK_SIZE),
        b"\xff" * LOCK_SIZE,
        b"garbage!" * (SLOTS + 1),
        BEGUN * SLOTS + END.to_bytes(8, sys.byteorder),
    ],
    ids=["empty", "a byte", "short", "no revision", "zeros", "ones", "garbage", "beyond time"],
)
def test_a_file_that_is_too_short_or_garbage_is_begun_anew(database: Path, content: bytes) -> None:
    """Cut off at any point, or overwritten, it gets its size and words of now."""
    lock_of(database).write_bytes(content)
    started = now()
    with locked(database):
        assert lock_of(database).stat().st_size == LOCK_SIZE
        *words, revision = read_words(database)
        assert started <= revision <= now() + 1
        assert set(words) == {revision << 1}


def test_a_revision_older_than_the_clock_is_raised(database: Path) -> None:
    """After a power cut it may be older than some slots; those that are there stay."""
    with locked(database):
        pass
    write_words(database, {0: 2, SLOTS: now() - 3_600_000_000})
    started = now()
    with locked(database) as each:
        assert started <= read_words(database)[-1] <= now() + 1
        assert each.versions[0] == 2


@pytest.mark.parametrize("what", ["the revision", "a word", "an odd word"])
def test_words_of_a_clock_that_was_ahead_are_left_behind(database: Path, what: str) -> None:
    """If the clock was years ahead when the file was made, the next word is beyond all the same.

    Whether a power cut has kept the revision, or only a slot.
    """
    with locked(database):
        pass
    ahead = now() + 50 * 31_556_952_000_000  # 50 years
    words = {
        "the revision": (SLOTS, ahead),
        "a word": (7, ahead * 2),
        "an odd word": (7, ahead * 2 + 1),
    }
    index, word = words[what]
    write_words(database, {index: word})
    with locked(database) as each:
        each.unlock()
        assert ahead * 2 < write(each, "a") <= ahead * 2 + 10


@pytest.mark.parametrize("overwrite", [lambda now: 0, lambda now: now - 1_000, lambda now: now + 5])
def test_a_revision_that_was_overwritten_brings_no_word_back(
    database: Path, overwrite: Callable[[int], int]
) -> None:
    """While the file is open, too: the next word of a slot is one that it never had."""
    with locked(database) as each:
        each.unlock()
        words = set()
        for _ in range(10):
            words.add(write(each, "a"))
            write_words(database, {SLOTS: overwrite(read_words(database)[-1])})
        assert len(words) == 10


def test_a_lock_that_is_held_is_not_waited_for(database: Path) -> None:
    """try_lock says so at once, and takes the lock when it is free."""
    each = Sidecar(str(database))
    with locked(database):
        for _ in range(2):
            started = time.monotonic()
            assert not each.try_lock()
            assert time.monotonic() - started < 0.5
    assert each.try_lock()
    assert is_locked(database)
    each.unlock()
    assert not is_locked(database)
    each.close()


def test_it_may_be_descriptor_0(database: Path) -> None:
    """If standard input is closed, as in some daemons, it gets that number, and keeps it."""
    database.touch()
    with ExitStack() as stack:
        standard_input = os.dup(0)
        stack.callback(os.close, standard_input)
        stack.callback(os.dup2, standard_input, 0)
        os.close(0)
        each = Sidecar(str(database))
        for _ in range(2):
            assert each.try_lock()
            assert is_locked(database)
            assert os.fstat(0).st_ino == lock_of(database).stat().st_ino
            each.unlock()
            assert not is_locked(database)
        each.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(0)


# -- What rests on it ------------------------------------------------------------------------------


class Overtaken(SQLiteStore):
    """A store whose loads deliver their row when the test lets them."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.has_loaded, self.may_deliver = asyncio.Event(), asyncio.Event()

    async def load(self, session_id: str) -> Record | None:
        """Load at once, and return later."""
        record = await super().load(session_id)
        self.has_loaded.set()
        await self.may_deliver.wait()
        return record


@pytest.mark.parametrize("writer", ["itself", "another"])
async def test_a_load_that_a_commit_overtakes_is_not_kept(
    database: Path, clock: FakeClock, writer: str
) -> None:
    """A row read before a commit and delivered after it is returned once, but never cached."""
    store = Overtaken(database)
    async with quiet(store, clock=clock) as one, quiet(database, clock=clock) as other:
        id_ = await other.create_session("lina")
        loading = asyncio.create_task(the_session(one, id_))
        await store.has_loaded.wait()
        assert await (one if writer == "itself" else other).end_session(id_)
        store.may_deliver.set()
        assert (await loading).is_active
        assert not await is_active(one, id_)


async def test_a_miss_never_joins_a_load_that_had_begun(database: Path, clock: FakeClock) -> None:
    """Whoever asks after an acknowledged commit sees it, also while an older load is under way."""
    store = Overtaken(database)
    async with quiet(store, clock=clock, cache_size=0) as sessions:
        id_ = await sessions.create_session("lina")
        loading = asyncio.create_task(the_session(sessions, id_))
        await store.has_loaded.wait()
        assert await sessions.end_session(id_)
        reading = asyncio.create_task(the_session(sessions, id_))
        store.may_deliver.set()
        assert not (await reading).is_active
        await loading


async def test_an_odd_word_keeps_its_sessions_out_of_the_cache(
    database: Path, clock: FakeClock
) -> None:
    """As a writer leaves it that died in its COMMIT: until the next write to the session."""
    async with quiet(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
    write_words(database, {slot_of(id_): (now() << 1) | 1})
    async with quiet(database, clock=clock) as one, quiet(database, clock=clock) as other:
        for count in range(1, 4):
            await the_session(one, id_)
            assert await misses(one) == count
        assert await other.update_activity(id_)  # the next write to it makes it right
        for _ in range(3):
            assert (await the_session(one, id_)).interaction_count == 1
        assert await misses(one) == 4


async def test_a_writer_that_dies_in_its_transaction_leaves_nothing(
    database: Path, clock: FakeClock
) -> None:
    """The lock is free, its write is not there, and others go on with hits."""
    async with quiet(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        with Child(edit_and_stay, database, id_) as child:
            child.line.hear()
            assert is_locked(database)
            child.kill()
        session = await the_session(sessions, id_)
        assert session.data == {}
        assert await sessions.update_activity(id_)
        assert (await the_session(sessions, id_)).interaction_count == 1
        assert await misses(sessions) == 0


async def edit_and_stay(line: Line, database: Path, session_id: str) -> None:
    """Be in the middle of a transaction for ever."""

    def change(record: Record) -> Record:
        line.say()
        threading.Event().wait()
        return record

    async with opened(database) as (store, _):
        await store.edit(session_id, moment(expiry=Expiry(DAY)), change)


async def test_a_hit_needs_no_other_thread(database: Path, clock: FakeClock) -> None:
    """What was created, touched or read is served from memory, without giving up control."""
    async with quiet(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        for _ in range(2):
            await sessions.update_activity(id_)
            getting = sessions.get_session(id_)
            with pytest.raises(StopIteration) as stopped:
                getting.send(None)  # it returns at its first step: no hop, and no task
        assert stopped.value.value.interaction_count == 2


async def test_a_row_that_has_timed_out_in_the_cache_is_checked_too(
    database: Path, clock: FakeClock
) -> None:
    """The long way to a cached row, past its expiry, compares the version as the short way does."""
    async with quiet(database, clock=clock) as one, quiet(database, clock=clock) as other:
        id_ = await one.create_session("lina")
        assert await is_active(one, id_)
        clock.turn(1_800)
        assert (await the_session(one, id_)).status == "timeout"
        assert await other.delete_session(id_)
        assert await one.get_session(id_) is None


async def test_touches_keep_the_cache_true(database: Path, clock: FakeClock) -> None:
    """Touches and updates of one session in one batch leave the row in memory that is true."""
    async with (
        quiet(database, clock=clock) as sessions,
        quiet(database, clock=clock, cache_size=0) as other,
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
            shown = await the_session(sessions, id_)
            assert shown.interaction_count == 2 * step + step * (step + 1) // 2
            assert shown == await the_session(other, id_)
        assert await misses(sessions) == 0


async def test_a_touch_does_not_revive_what_another_process_has_changed(
    database: Path, clock: FakeClock
) -> None:
    """A row that was stale when the touch began is not brought up to date by it."""
    async with quiet(database, clock=clock) as one, quiet(database, clock=clock) as other:
        id_ = await one.create_session("lina", {"step": 0})
        await the_session(one, id_)
        assert await other.update_session(id_, {"step": 1})
        assert await one.update_activity(id_)
        session = await the_session(one, id_)
        assert (session.data, session.interaction_count) == ({"step": 1}, 1)


async def test_versions_tell_a_second_store_of_every_write(database: Path) -> None:
    """Each verb that changes a session changes its version before it returns, and no other one."""
    async with opened(database) as (one, heard), opened(database) as (other, _):
        record, bystander = new_record(), new_record()
        slot, quiet_slot = slot_of(record.id), slot_of(bystander.id)

        def versions() -> tuple[int, int]:
            assert one.versions is not None
            assert other.versions is not None
            assert one.versions[slot] == other.versions[slot]
            return other.versions[slot], other.versions[quiet_slot]

        await one.create(bystander)
        seen = [versions()]
        calls: list[Callable[[], Any]] = [
            lambda: one.create(record),
            lambda: one.touch(record.id, moment()),
            lambda: one.edit(record.id, moment(), lambda record: record),
            lambda: one.end(record.id, moment(), "ended", "manual"),
            lambda: one.erase(record.id),
        ]
        for call in calls:
            await call()
            seen.append(versions())
            assert heard.commits[-1].version == seen[-1][0]
            assert heard.commits[-1].versions_before[record.id] == seen[-2][0]
        changing, staying = zip(*seen, strict=True)
        assert sorted(set(changing)) == list(changing)
        assert len(set(staying)) == 1
        assert not any(version & 1 for version in changing)
        await one.touch(record.id, moment())  # it is gone, so nothing changes
        assert versions() == seen[-1]


async def test_no_hit_is_stale_whoever_writes(database: Path, clock: FakeClock) -> None:
    """Two managers write and read twelve sessions for some time, and each sees what was written."""
    async with quiet(database, clock=clock) as one, quiet(database, clock=clock) as other:
        ids = [await one.create_session("lina", {"n": 0}) for _ in range(12)]
        acknowledged = dict.fromkeys(ids, 0)

        async def write_on(manager: SessionManager, number: int) -> None:
            for step in range(1, 40):
                for id_ in ids[number::6]:
                    assert await manager.update_session(id_, {"n": step})
                    acknowledged[id_] = step

        async def read_on(manager: SessionManager, writers: "asyncio.Future[Any]") -> None:
            while not writers.done():
                for id_ in ids:
                    at_least = acknowledged[id_]
                    assert (await the_session(manager, id_)).data["n"] >= at_least
                await asyncio.sleep(0)

        writers = asyncio.gather(
            *(write_on(one if number % 2 else other, number) for number in range(6))
        )
        await asyncio.gather(writers, read_on(one, writers), read_on(other, writers))
        stats = await one.get_session_stats()
        assert stats["cache_hits"] > 0


# -- When it goes ----------------------------------------------------------------------------------


def delete(database: Path) -> None:
    """Delete the lock file."""
    lock_of(database).unlink()


def replace(database: Path) -> None:
    """Put an empty one in its place."""
    lock_of(database).with_suffix(".new").touch()
    os.replace(lock_of(database).with_suffix(".new"), lock_of(database))


def replace_by_garbage(database: Path) -> None:
    """Put one in its place that is none."""
    lock_of(database).with_suffix(".new").write_bytes(b"garbage!" * (SLOTS + 1))
    os.replace(lock_of(database).with_suffix(".new"), lock_of(database))


@pytest.mark.parametrize("notice", ["write", "sweep"])
@pytest.mark.parametrize("how", [delete, replace, replace_by_garbage])
async def test_no_stale_hit_remains_when_it_was_deleted_or_replaced(
    database: Path, clock: FakeClock, notice: str, how: Callable[[Path], None]
) -> None:
    """After the next write, or sweep, of one that used the old file it knows all that happened."""
    async with quiet(database, clock=clock) as one:
        id_, own = await one.create_session("lina"), await one.create_session("ben")
        assert await is_active(one, id_)
        how(database)
        async with quiet(database, clock=clock) as newcomer:
            assert await newcomer.end_session(id_)
            if notice == "write":
                assert await one.update_activity(own)
            else:
                assert await one.cleanup_inactive_sessions() == 0
            assert not await is_active(one, id_)
            assert await is_active(newcomer, own)
            assert await one.end_session(own)  # they hear of each other at once again
            assert not await is_active(newcomer, own)
            gc.collect()
            assert set(mappings(lock_of(database))) == {lock_of(database).stat().st_ino}


async def test_a_deleted_one_of_a_clock_that_was_ahead_is_left_behind(
    database: Path, clock: FakeClock
) -> None:
    """Whoever had the old file, with words of the far future, brings the new one beyond them."""
    async with quiet(database, clock=clock):
        pass
    ahead = now() + 50 * 31_556_952_000_000
    write_words(database, {SLOTS: ahead})
    async with quiet(database, clock=clock) as one:
        id_ = await one.create_session("lina")
        delete(database)
        async with quiet(database, clock=clock) as newcomer:
            assert await newcomer.update_activity(id_)
            assert await one.update_activity(id_)
            assert read_words(database)[-1] > ahead
            for manager in (one, newcomer):
                assert (await the_session(manager, id_)).interaction_count == 2


async def test_one_that_was_cut_off_is_made_whole_by_the_next_write(
    database: Path, clock: FakeClock
) -> None:
    """It gets its size and new words, and nothing in memory is believed."""
    async with opened(database) as (store, heard):
        record = new_record()
        await store.create(record)
    os.truncate(lock_of(database), 100)
    async with opened(database) as (store, heard):
        assert lock_of(database).stat().st_size == LOCK_SIZE
        assert await store.touch(record.id, moment())
        assert heard.commits[-1].version == read_words(database)[slot_of(record.id)]


async def test_the_listener_is_told_to_forget(database: Path) -> None:
    """When another file has become the lock file, before the write that noticed it is answered."""
    async with opened(database) as (store, heard):
        await store.create(new_record())
        assert heard.forgotten == 0
        before = store.versions
        delete(database)
        await store.create(new_record())
        assert heard.forgotten == 1
        assert store.versions is not before
        await store.create(new_record())
        assert heard.forgotten == 1


async def test_a_background_sweep_notices_that_it_was_deleted(database: Path) -> None:
    """A process that only reads is on the new file after the next sweep."""
    async with SessionManager(database, sweep_interval=0.02) as one:
        id_ = await one.create_session("lina")
        assert await is_active(one, id_)
        delete(database)
        async with quiet(database) as newcomer:
            assert await newcomer.end_session(id_)
        async with asyncio.timeout(5):
            while await is_active(one, id_):  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.005)


async def test_traffic_survives_many_deletions(database: Path) -> None:
    """With the file deleted every few milliseconds no call fails, and no touch is lost."""
    acknowledged = deleted = 0
    async with quiet(database) as one, quiet(database) as two, quiet(database) as three:
        ids = [await one.create_session("lina") for _ in range(5)]

        def is_enough() -> bool:
            return acknowledged >= 300 and deleted >= 30

        async def touch(manager: SessionManager, number: int) -> None:
            nonlocal acknowledged
            while not is_enough():
                assert await manager.update_activity(ids[number % 5])
                acknowledged += 1
                assert await is_active(manager, ids[number % 5])

        async def keep_deleting() -> None:
            nonlocal deleted
            while not is_enough():
                lock_of(database).unlink(missing_ok=True)
                deleted += 1
                await asyncio.sleep(0.005)

        calls = [touch(manager, number) for manager in (one, two, three) for number in range(6)]
        await asyncio.gather(keep_deleting(), *calls)
        for manager in (one, two, three):
            await manager.cleanup_inactive_sessions()
            found = [await the_session(manager, id_) for id_ in ids]
            assert sum(session.interaction_count for session in found) == acknowledged
    assert run_sql(database, "PRAGMA integrity_check") == [("ok",)]


async def test_one_that_comes_back_is_mapped_again(database: Path) -> None:
    """If another one took its place for a while, held by somebody, and it was then put back."""
    async with opened(database, busy_timeout=0.1) as (store, _):
        record = new_record()
        await store.create(record)
        aside = lock_of(database).with_suffix(".aside")
        os.rename(lock_of(database), aside)
        with open(lock_of(database), "w+b") as other:  # noqa: ASYNC230
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(StoreBusyError):
                await store.touch(record.id, moment())
        os.rename(aside, lock_of(database))
        assert await store.touch(record.id, moment())
        assert store.versions is not None
        assert store.versions[slot_of(record.id)] == read_words(database)[slot_of(record.id)]


async def test_one_that_cannot_be_opened_is_an_error_until_it_can(
    database: Path, clock: FakeClock
) -> None:
    """All calls of the batch hear StorageError, nothing is written, and the next call is well."""
    async with quiet(database, clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        delete(database)
        lock_of(database).mkdir()
        calls = (sessions.update_activity(id_) for _ in range(3))
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, StorageError)
            assert "Is a directory" in str(result)
        lock_of(database).rmdir()
        assert await sessions.update_activity(id_)
        assert (await the_session(sessions, id_)).interaction_count == 1


# -- Without fcntl ---------------------------------------------------------------------------------


def lock_like_windows(descriptor: int, mode: int, length: int) -> None:
    """Stand in for msvcrt.locking."""
    assert (mode, length) == (2, 1)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_without_fcntl_one_manager_at_a_time_has_the_file(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one is refused with words that say why, and served when the first has closed."""
    monkeypatch.setattr(sidecar, "fcntl", None)
    windows = SimpleNamespace(LK_NBLCK=2, locking=lock_like_windows)
    monkeypatch.setattr(sidecar, "msvcrt", windows, raising=False)
    first, second = quiet(database), quiet(database)
    async with first:
        assert stat.S_IMODE(lock_of(database).stat().st_mode) == 0o600
        id_ = await first.create_session("lina")
        for _ in range(2):
            with pytest.raises(StoreBusyError, match="another process has the database open"):
                await second.open()
        assert await first.update_activity(id_)
        assert await first.get_session(id_)
        assert await first.cleanup_inactive_sessions() == 0
    async with second:
        assert (await the_session(second, id_)).interaction_count == 1
    assert descriptors(lock_of(database)) == []
