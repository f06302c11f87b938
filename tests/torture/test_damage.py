# SPDX-License-Identifier: MIT
"""A database, WAL, index or sidecar that somebody cut, flipped, swapped or took away.

Each case is a target, a kind of damage and a moment, run by a process of its own kind, so that one
that is killed or hangs is seen. All calls of the API must then work, or raise one of our errors,
and what they show must be what was written at some time: nothing foreign, nothing made up. What
cannot be held to that is named with its reason: SQLite has no checksums in the database file. What
sidecar.py assumes of a lock file in use is left out: that nobody cuts it off or writes into it.
"""

import ctypes
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sessionstore import Session, SessionManager, SessionStoreError, StorageError

from ..children import Child, Line, is_locked
from .disk import scratch

SESSIONS = 16
SUFFIXES = {"database": "", "wal": "-wal", "shm": "-shm", "sidecar": "-lock"}
SETTINGS: dict[str, Any] = {"sweep_interval": None, "busy_timeout": 0.3, "timeout": 10**9}


class Known(NamedTuple):
    """What was written: by id, the owner and all that the data has been."""

    sessions: dict[str, tuple[str, list[int]]]

    def admits(self, session: Session, exact: bool) -> bool:
        """Return whether a snapshot shows what was written: at last, or at any time."""
        if session.id not in self.sessions:
            return False
        child, versions = self.sessions[session.id]
        seen = session.data.get("version")
        return session.child_id == child and seen in (versions[-1:] if exact else versions)


# -- The images that are damaged -------------------------------------------------------------------


async def write_sessions(database: Path, known: Known, tag: str, size: int) -> SessionManager:
    """Leave a manager open on a database with sessions, some updated and some ended."""
    manager = SessionManager(database, **SETTINGS)
    await manager.open()
    for number in range(SESSIONS):
        child = f"{tag}-{number}"
        id_ = await manager.create_session(child, {"version": 0, "text": "x" * (number * size)})
        known.sessions[id_] = child, [0]
    for version in (1, 2):
        for id_ in [*known.sessions][::version]:
            await manager.update_session(id_, {"version": version})
            known.sessions[id_][1].append(version)
    return manager


async def make_image(line: Line, database: Path, tag: str, close: bool) -> None:
    """Write sessions, say which, and close, or wait to be killed in the midst of it."""
    known = Known({})
    manager = await write_sessions(database, known, tag, 200)
    if close:
        await manager.close()
    line.say(known)
    line.hear()


class Image(NamedTuple):
    """A folder with the files of a database, and what is in them."""

    folder: Path
    known: Known


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    """Make the files of a process that was killed, of one that has closed, and of another store."""
    made = {}
    for name, close in (("killed", False), ("closed", True), ("other", True)):
        folder = tmp_path_factory.mktemp(name)
        with Child(make_image, folder / "a.db", name, close) as child:
            known = child.line.hear()
            child.kill()
        made[name] = Image(folder, known)
    assert (made["killed"].folder / "a.db-wal").stat().st_size > 50_000
    assert not (made["closed"].folder / "a.db-wal").exists()
    return made


# -- The kinds of damage ---------------------------------------------------------------------------


class Case(NamedTuple):
    """One damage: to what, of which kind, when, and the seed of what is random in it."""

    target: str
    kind: str
    moment: str  # "killed", "closed": before the file is opened; "open": while it is
    seed: int

    @property
    def exact(self) -> bool:
        """Whether nothing that was acknowledged may be missing: no content was damaged."""
        moved = self.kind == "link" and self.moment != "killed"  # then it has lost its WAL
        return self.target in ("sidecar", "shm") or moved

    @property
    def open_to_all(self) -> str:
        """Why the contents cannot be held to what was written, if they cannot."""
        if self.target == "database" and self.kind in ("flip", "block", "cut"):
            return "SQLite keeps no checksum of a page of the database"
        if (self.target, self.kind, self.moment) == ("database", "other", "killed"):
            return "it is another database, and the WAL of the first one is laid over it"
        if (
            self.target == "wal"
            and self.kind in ("other", "flip", "block")
            and self.moment == "open"
        ):
            return "SQLite checks the checksums of a WAL when it opens it, and not at each read"
        if self.target == "shm" and self.moment == "open":
            return "SQLite trusts the index of the WAL while it is in use"
        return ""


def cut(path: Path, rng: random.Random, image: Path) -> None:
    """Cut it at a length: of a page, of a header, or anywhere."""
    size = path.stat().st_size
    os.truncate(path, min(size, rng.choice([1, 16, 100, 512, 4096, 4097, rng.randrange(size + 1)])))


def flip(path: Path, rng: random.Random, image: Path) -> None:
    """Flip a few bits, half of them near the beginning, where most of the structure is."""
    with open(path, "r+b", buffering=0) as file:
        size = path.stat().st_size
        for _ in range(rng.choice([1, 1, 2, 8, 64])):
            at = rng.randrange(min(size, rng.choice([128, 4096, size])))
            (byte,) = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte ^ 1 << rng.randrange(8)]), at)


def block(path: Path, rng: random.Random, image: Path) -> None:
    """Overwrite a block of the disk with zeros or garbage."""
    with open(path, "r+b", buffering=0) as file:
        at = rng.randrange(max(1, path.stat().st_size // 512)) * 512
        length = min(path.stat().st_size - at, rng.choice([512, 4096]))
        content = bytes(length) if rng.random() < 0.5 else rng.randbytes(length)
        os.pwrite(file.fileno(), content, at)


def empty(path: Path, rng: random.Random, image: Path) -> None:
    """Leave nothing of it but the name, as a new file."""
    _replace(path, b"")


def garbage(path: Path, rng: random.Random, image: Path) -> None:
    """Put garbage in its place."""
    _replace(path, rng.randbytes(rng.choice([1, 100, 4096, 70_000, 600_000])))


def huge(path: Path, rng: random.Random, image: Path) -> None:
    """Put a file of a terabyte in its place, all of it a hole, with the content in front."""
    _replace(path, path.read_bytes() if path.exists() else b"")
    os.truncate(path, 2**40)


def other(path: Path, rng: random.Random, image: Path) -> None:
    """Put the same file of another store in its place, or the other's database."""
    source = image / path.name
    _replace(path, (source if source.exists() else image / "a.db").read_bytes())


def foreign(path: Path, rng: random.Random, image: Path) -> None:
    """Put a database of another program in its place."""
    path.unlink(missing_ok=True)
    beside = path.with_name("foreign")
    with closing(sqlite3.connect(beside)) as connection:
        connection.execute("CREATE TABLE sessions (host TEXT)")
    os.rename(beside, path)


def gone(path: Path, rng: random.Random, image: Path) -> None:
    """Take it away."""
    path.unlink(missing_ok=True)


def folder(path: Path, rng: random.Random, image: Path) -> None:
    """Put a folder in its place."""
    path.unlink(missing_ok=True)
    path.mkdir()


def link(path: Path, rng: random.Random, image: Path) -> None:
    """Move it, and leave a symlink to where it is."""
    target = path.with_name("moved")
    if path.exists():
        os.rename(path, target)
    path.symlink_to(target)


def dangling(path: Path, rng: random.Random, image: Path) -> None:
    """Put a symlink that leads nowhere in its place."""
    path.unlink(missing_ok=True)
    path.symlink_to(path.with_name("nowhere") / "nothing")


def loop(path: Path, rng: random.Random, image: Path) -> None:
    """Put a symlink to itself in its place."""
    path.unlink(missing_ok=True)
    path.symlink_to(path)


def fifo(path: Path, rng: random.Random, image: Path) -> None:
    """Put a named pipe in its place, at which nobody writes."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def null(path: Path, rng: random.Random, image: Path) -> None:
    """Put a symlink to /dev/null in its place."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/null")


def full(path: Path, rng: random.Random, image: Path) -> None:
    """Put a symlink to /dev/full in its place."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/full")


def _replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


Damage = Callable[[Path, random.Random, Path], None]
CONTENT: list[Damage] = [cut, flip, block]
SWAPS: list[Damage] = [
    *(empty, garbage, huge, other, foreign, gone),
    *(folder, link, dangling, loop, fifo, null, full),
]
SEVERAL = ["garbage", "garbage", "garbage"]  # more of these, since they come in sizes
KINDS = {damage.__name__: damage for damage in (*CONTENT, *SWAPS)}

# -- What is done with a damaged file --------------------------------------------------------------


class Verdict(NamedTuple):
    """What became of a case: what was wrong, how many calls worked, and how many were refused."""

    wrong: list[str]
    worked: int
    refused: int
    was_opened: bool


class Trial:
    """Makes the calls of a case, and judges what they return."""

    def __init__(self, database: Path, known: Known, exact: bool, open_to_all: bool) -> None:
        self._manager = SessionManager(database, **SETTINGS)
        self._known = known
        self._exact = exact
        self._open_to_all = open_to_all
        self._wrong: list[str] = []
        self._worked = self._refused = 0
        self._acknowledged = ""

    async def open(self) -> bool:
        """Open the file, and say whether that was refused."""
        return await self._call("open", self._manager.open()) is None

    async def touch(self) -> None:
        """Write a little, so that there is a WAL."""
        for id_ in self._known.sessions:
            await self._call("update_activity", self._manager.update_activity(id_))

    async def use(self) -> None:
        """Read all that there is in all ways, and write in all ways."""
        sessions = self._manager
        for id_ in self._known.sessions:
            found = await self._call("get_session", sessions.get_session(id_))
            if found == (None,) and self._exact:
                self._wrong.append("a session is missing")
            elif found and found[0] is not None:
                self._judge(found)
        child = next(iter(self._known.sessions.values()))[0]
        for listing in (
            sessions.get_active_sessions(),
            sessions.list_sessions(limit=1_000),
            sessions.get_sessions_for_child(child),
            _collect(sessions),
        ):
            for found in await self._call("a list", listing) or ():
                self._judge(found)
        await self._call("get_session_stats", sessions.get_session_stats())
        first, second, third, *_ = self._known.sessions
        await self._call("update_activity", sessions.update_activity(first))
        await self._call("update_session", sessions.update_session(first, {"more": "y" * 5_000}))
        created = await self._call("create_session", sessions.create_session("new", {"version": 0}))
        if created is not None:
            self._acknowledged = created[0]
            self._known.sessions[created[0]] = "new", [0]
            self._judge(await self._call("get_session", sessions.get_session(created[0])) or [])
        await self._call("end_session", sessions.end_session(second))
        await self._call("delete_session", sessions.delete_session(third))
        await self._call("cleanup", sessions.cleanup_inactive_sessions())
        await self._call("purge", sessions.purge_ended_sessions(10**8))

    async def close(self) -> Verdict:
        """Close the file, and see that what was acknowledged is in it."""
        await self._call("close", self._manager.close())
        if self._acknowledged and not self._open_to_all:
            await self._call("open again", self._manager.open())
            found = await self._call("get again", self._manager.get_session(self._acknowledged))
            if found == (None,):
                self._wrong.append("a session whose creation was acknowledged is gone")
            await self._call("close again", self._manager.close())
        was_opened = self._worked > 1
        return Verdict(self._wrong, self._worked, self._refused, was_opened)

    async def _call(self, name: str, call: Any) -> tuple[Any] | None:
        """Return what a call returned, in a tuple; None if it raised one of our errors."""
        try:
            result = await call
        except SessionStoreError:
            self._refused += 1
            return None
        except Exception as error:
            self._wrong.append(f"{name} raised {error!r}")
            return None
        self._worked += 1
        return (result,)

    def _judge(self, found: Any) -> None:
        for session in found:
            if session is None:
                self._wrong.append("a session that was just written is missing")
                continue
            try:
                admitted = self._known.admits(session, self._exact)
                str((session.status, session.started_at, session.ended_at, session.metadata))
                str((session.end_reason, session.duration, session.expires_at, session))
            except SessionStoreError:
                self._refused += 1
            except Exception as error:
                self._wrong.append(f"a field of a session raised {error!r}")
            else:
                if not admitted and not self._open_to_all:
                    self._wrong.append(f"{session} of {session.child_id} shows what nobody wrote")


async def _collect(sessions: SessionManager) -> list[Session]:
    return [session async for session in sessions.iter_active_sessions()]


async def try_cases(line: Line) -> None:
    """Make the calls of one case after the other."""
    while (task := line.hear()) is not None:
        database, known, exact, open_to_all, while_open = task
        trial = Trial(database, known, exact, open_to_all)
        if while_open:
            await trial.open()
            await trial.touch()
            line.say()
            line.hear()  # the damage is done now
            await trial.use()
        elif await trial.open():
            line.say(True)
            line.hear()
        else:
            line.say(False)
            line.hear()
            await trial.use()
        line.say(await trial.close())


def head(path: Path) -> bytes:
    """Return the content of a file; of a huge one, what there is of it."""
    with open(path, "rb") as file:
        return file.read(2**20)


def digests(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Return what there is in a folder: of each file its mode, its size and its content.

    The index of the WAL is left out, which SQLite makes anew, and so are a WAL without content and
    the words of the lock file, which each process changes that opens the database.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        status = path.lstat()
        if path.name.endswith("-shm") or (path.name.endswith("-wal") and not status.st_size):
            continue
        content = b""
        if stat.S_ISREG(status.st_mode) and not path.name.endswith("-lock"):
            content = head(path)
        found[path.name] = status.st_mode, status.st_size, hashlib.sha256(content).hexdigest()
    return found


def contents(folder: Path) -> list[str]:
    """Return what SQLite makes of a database and the log beside it, or what is wrong with them."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as copy:
        for path in (folder / "a.db", folder / "a.db-wal"):
            if path.is_file():
                Path(copy, path.name).write_bytes(head(path))
        try:
            with closing(sqlite3.connect(Path(copy, "a.db"))) as connection:
                return list(connection.iterdump())
        except (sqlite3.Error, UnicodeDecodeError) as error:
            return [str(error)]


class Bench:
    """Runs cases in a process that is replaced when one of them kills it."""

    def __init__(self, images: dict[str, Image], scratch: Path) -> None:
        self._images = images
        self._scratch = scratch
        self._child: Child | None = None

    def run(self, case: Case, known: Known | None = None) -> Verdict:
        """Run one case, and judge it by what is known to have been written."""
        rng = random.Random(repr(case))
        image = self._images["killed" if case.moment == "killed" else "closed"]
        if known is None:
            is_other = (case.target, case.kind, case.moment) == ("database", "other", "closed")
            known = (self._images["other"] if is_other else image).known
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        for path in image.folder.iterdir():
            shutil.copy2(path, folder)
        path = folder / f"a.db{SUFFIXES[case.target]}"
        damage = KINDS[case.kind]
        while_open = case.moment == "open"
        if not while_open:
            damage(path, rng, self._images["other"].folder)
        before = digests(folder)
        # What is left in the log of a crashed process goes into its database, refused or not.
        has_log = case.moment == "killed" and case.target != "wal"
        contents_before = contents(folder) if has_log else []
        line = self._line()
        try:
            line.say((folder / "a.db", known, case.exact, bool(case.open_to_all), while_open))
            refused = line.hear()
            if while_open:
                damage(path, rng, self._images["other"].folder)
            after = digests(folder)
            line.say()
            verdict: Verdict = line.hear()
        except (EOFError, ConnectionError):
            assert self._child is not None
            verdict = Verdict([f"the process died of {self._child.join()}"], 0, 0, False)
            self.close()
        except TimeoutError:
            verdict = Verdict(["the process hung"], 0, 0, False)
            self.close()
        else:
            if refused and has_log and contents(folder) == contents_before:
                after = before
            # What SQLite notices only when it writes, it notices after the log was copied in.
            late = case.open_to_all and case.moment == "killed"
            if refused and before != after and not late:
                changed = sorted(
                    name
                    for name in before.keys() | after.keys()
                    if before.get(name) != after.get(name)
                )
                verdict.wrong.append(f"the file was refused, and {changed} changed")
        shutil.rmtree(folder)
        return verdict

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.__exit__()
            self._child = None

    def _line(self) -> Line:
        if self._child is None:
            self._child = Child(try_cases)
        return self._child.line


@pytest.fixture(scope="module")
def bench(images: dict[str, Image]) -> Iterator[Bench]:
    """Yield what runs cases."""
    with scratch() as folder:
        made = Bench(images, folder)
        yield made
        made.close()


# -- The cases -------------------------------------------------------------------------------------


def grid() -> list[Case]:
    """Return each damage to each file at each moment, but for what is assumed not to happen."""
    cases: list[Case] = []
    for target in SUFFIXES:
        for moment in ("killed", "closed", "open"):
            for kind in [*KINDS, *SEVERAL]:
                case = Case(target, kind, moment, len(cases))
                is_missing = moment == "closed" and target in ("wal", "shm")
                if not (is_missing and KINDS[kind] in CONTENT) and not is_assumed_away(case):
                    cases.append(case)
    return cases


def is_assumed_away(case: Case) -> bool:
    """Return whether it cuts off what is mapped, which kills, or writes into a lock file in use."""
    changes = ("cut", "flip", "block") if case.target == "sidecar" else ("cut",)
    return case.moment == "open" and case.target in ("shm", "sidecar") and case.kind in changes


@pytest.mark.parametrize("target", SUFFIXES)
def test_every_damage_to_every_file_is_borne(bench: Bench, target: str) -> None:
    """Before opening, after a crash and while open: our errors or right answers, and no change."""
    failed = {}
    for case in grid():
        if case.target == target and (verdict := bench.run(case)).wrong:
            failed[case] = verdict.wrong
    assert not failed, "\n".join(f"{case}: {wrong}" for case, wrong in failed.items())


def random_cases(number: int, seed: int) -> Iterator[Case]:
    """Yield damages to contents, each of which is different each time."""
    rng = random.Random(seed)
    places = [
        *((target, moment) for target in SUFFIXES for moment in ("killed", "open")),
        *((target, "closed") for target in ("database", "sidecar")),
    ]
    weights = [4 if target in ("database", "wal") else 1 for target, _ in places]
    while number:
        ((target, moment),) = rng.choices(places, weights)
        case = Case(target, rng.choice(CONTENT).__name__, moment, rng.randrange(2**32))
        if not is_assumed_away(case):
            number -= 1
            yield case


@pytest.mark.parametrize(
    "number", [40, pytest.param(2_000, marks=[pytest.mark.torture])], ids=["quick", "torture"]
)
def test_random_damage_to_contents_is_borne(bench: Bench, number: int) -> None:
    """Cut, flipped or overwritten anywhere: our errors or right answers, and no other end."""
    seed = random.SystemRandom().randrange(2**32)
    failed = {}
    worked = refused = opened = 0
    for case in random_cases(number, seed):
        verdict = bench.run(case)
        worked, refused = worked + verdict.worked, refused + verdict.refused
        opened += verdict.was_opened
        if verdict.wrong:
            failed[case] = verdict.wrong
    print(
        f"seed {seed}: {number} damages, {opened} files opened; {worked} calls worked,"
        f" {refused} were refused"
    )
    assert not failed, f"seed {seed}\n" + "\n".join(f"{c}: {wrong}" for c, wrong in failed.items())
    assert opened
    assert refused


def test_what_nobody_wrote_is_noticed(bench: Bench, images: dict[str, Image]) -> None:
    """The check of these tests finds a foreign session, a lost one, and a process that dies."""
    swapped = Case("database", "other", "closed", 0)
    verdict = bench.run(swapped, known=images["closed"].known)
    assert "shows what nobody wrote" in str(verdict.wrong)
    more = Known({**images["closed"].known.sessions, "lost": ("closed-0", [0])})
    verdict = bench.run(Case("sidecar", "gone", "closed", 0), known=more)
    assert verdict.wrong == ["a session is missing"]
    fatal = Case("sidecar", "cut", "open", 0)
    assert is_assumed_away(fatal)
    assert bench.run(fatal).wrong == [f"the process died of {-signal.SIGBUS}"]


# -- A lock file that is cut off, or gone, while it is in use --------------------------------------


async def read_one(line: Line, database: Path) -> None:
    """Make sessions, and read one of them when told."""
    async with SessionManager(database, **SETTINGS) as sessions:
        ids = [await sessions.create_session("lina", {"version": 0}) for _ in range(20)]
        line.say(ids)
        line.hear()
        await sessions.get_session(ids[0])


async def test_a_lock_file_that_is_cut_off_kills_its_reader_and_nothing_else(
    database: Path,
) -> None:
    """The system kills a process that reads a mapping beyond the file's end; its work is there."""
    with Child(read_one, database) as child:
        ids = child.line.hear()
        os.truncate(f"{database}-lock", 0)
        child.line.say()
        assert child.join() == -signal.SIGBUS
    async with SessionManager(database, **SETTINGS) as sessions:
        for id_ in ids:
            assert await sessions.update_activity(id_)
            session = await sessions.get_session(id_)
            assert session is not None
            assert session.interaction_count == 1


@pytest.mark.parametrize("kind", ["folder", "fifo", "null", "full", "dangling", "loop"])
async def test_without_a_lock_no_write_goes_through(database: Path, kind: str) -> None:
    """While something else has its name, each write is refused, and reads go on, until it goes."""
    lock = database.with_name(f"{database.name}-lock")
    async with SessionManager(database, **SETTINGS) as sessions:
        id_ = await sessions.create_session("lina")
        KINDS[kind](lock, random.Random(0), database)
        for _ in range(3):
            with pytest.raises(StorageError):
                await sessions.update_activity(id_)
            session = await sessions.get_session(id_)
            assert session is not None
            assert session.interaction_count == 0
        os.rmdir(lock) if kind == "folder" else os.remove(lock)
        assert await sessions.update_activity(id_)
    assert not is_locked(database)


# -- A database that is moved, deleted or replaced while it is open --------------------------------


@pytest.mark.parametrize("kind", ["gone", "other", "empty", "garbage", "folder", "dangling"])
async def test_no_write_is_acknowledged_that_would_be_lost(
    database: Path, images: dict[str, Image], kind: str
) -> None:
    """If the file at the path is not the one that is open, each write says so, and none is lost.

    Back in its place, it takes writes again.
    """
    async with SessionManager(database, **SETTINGS) as sessions:
        id_ = await sessions.create_session("lina")
        kept = database.with_name("kept")
        os.link(database, kept)
        KINDS[kind](database, random.Random(0), images["other"].folder)
        for write in (
            sessions.create_session("lina"),
            sessions.update_activity(id_),
            sessions.delete_session(id_),
            sessions.cleanup_inactive_sessions(),
        ):
            with pytest.raises(StorageError, match="replaced"):
                await write
        if kind == "folder":
            os.rmdir(database)
        os.replace(kept, database)
        assert await sessions.update_activity(id_)
    async with SessionManager(database, **SETTINGS) as sessions:
        [session] = await sessions.get_active_sessions()
        assert session.interaction_count == 1


async def test_close_bears_that_its_folder_is_gone(tmp_path: Path) -> None:
    """A program whose folder was deleted ends like any other, with a line in the log."""
    folder = tmp_path / "deep"
    async with SessionManager(folder / "a.db", **SETTINGS) as sessions:
        await sessions.create_session("lina")
        shutil.rmtree(folder)
    assert not folder.exists()


# -- What may not be written -----------------------------------------------------------------------

MODES = {  # of the folder, the database, the WAL and the sidecar; None: it is not there
    "file": (0o700, 0o400, None, 0o600),
    "file and folder": (0o500, 0o400, None, 0o600),
    "all": (0o500, 0o400, None, 0o400),
    "folder": (0o500, 0o600, None, 0o600),
    "folder without sidecar": (0o500, 0o600, None, None),
    "sidecar": (0o700, 0o600, None, 0o400),
    "log": (0o700, 0o600, 0o400, 0o600),
    "unreadable file": (0o700, 0o000, None, 0o600),
    "unreadable log": (0o700, 0o600, 0o000, 0o600),
    "unreadable sidecar": (0o700, 0o600, None, 0o000),
    "unreadable folder": (0o000, 0o600, None, 0o600),
}


async def try_without_rights(line: Line, database: Path, known: Known) -> None:
    """Make the calls of a case as somebody whom the modes of files bind: root is not, else."""
    if os.getuid() == 0:
        version_3, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
        assert ctypes.CDLL(None).capset(version_3, nothing) == 0
    trial = Trial(database, known, exact=False, open_to_all=False)
    line.say(await trial.open())
    await trial.use()
    line.say(await trial.close())


@pytest.mark.skipif(sys.platform != "linux", reason="the rights of root are dropped as on Linux")
@pytest.mark.parametrize("name", MODES)
def test_what_may_not_be_written_is_refused(
    tmp_path: Path, images: dict[str, Image], name: str
) -> None:
    """With any of the files, or the folder, read-only or shut, each write gets an error of ours.

    If SQLite can read the file, so can the store. The database and its WAL do not change.
    """
    of_folder, *of_files = MODES[name]
    image = images["closed" if of_files[1] is None else "killed"]
    folder = tmp_path / "deep"
    shutil.copytree(image.folder, folder)
    paths = [folder / f"a.db{suffix}" for suffix in ("", "-wal", "-lock")]
    if of_files[2] is None:
        paths[2].unlink()
    before = digests(folder)
    modes = {path: path.stat().st_mode for path in [*paths, folder] if path.exists()}
    for path, mode in zip([*paths, folder], [*of_files, of_folder], strict=True):
        if mode is not None:
            path.chmod(mode)
    with Child(try_without_rights, folder / "a.db", image.known) as child:
        refused = child.line.hear()
        verdict: Verdict = child.line.hear()
    folder.chmod(modes[folder])
    for path, mode in modes.items():
        path.chmod(mode)
    assert verdict.wrong == []
    assert verdict.refused >= 5  # the calls that change a session, and more if it is shut
    after = digests(folder)
    if not refused:
        del before["a.db-lock"], after["a.db-lock"]
    assert after == before


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("name", ["killed", "closed", "new"])
def test_a_read_only_mount_is_refused(tmp_path: Path, images: dict[str, Image], name: str) -> None:
    """On a file system that is mounted read-only, a file and its WAL are refused with an error."""
    folder = tmp_path / "mounted"
    if name == "new":
        folder.mkdir()
    else:
        shutil.copytree(images[name].folder, folder)
    before = digests(folder)
    script = """
        import asyncio, sys
        from sessionstore import SessionManager, StorageError

        try:
            asyncio.run(SessionManager(sys.argv[1] + "/a.db").open())
        except StorageError as error:
            print(error)
        """
    mount = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'
    unshare = shutil.which("unshare")
    attempt = [unshare or "", "-m", "sh", "-c", mount, "sh", str(folder)]
    if unshare is None or subprocess.run(attempt).returncode:
        pytest.skip("mounting is not allowed here")
    command = f'{mount} && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        [*attempt[:4], command, "sh", str(folder), sys.executable, textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    assert digests(folder) == before
