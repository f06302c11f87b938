# SPDX-License-Identifier: MIT
"""A disk that fails or is full: StorageError or done, never a false word, and well again after it.

failing.py has the process whose calls to the disk fail, and what is checked in each trial. Here are
the trials, the sidecar's own troubles, and a file system that is really full.
"""

import asyncio
import errno
import itertools
import json
import mmap
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sessionstore import SessionManager, StorageError

from ..children import is_locked
from ..sqlite.tools import lock_of, longest_gap, quiet, the_session
from . import disk, failing
from .disk import Kind
from .failing import Fault

# How many calls of a kind one life makes, about; the torture goes on until a fault is not reached.
CALLS = {
    Kind.WRITE: 370,
    Kind.SYNC: 42,
    Kind.OPEN: 26,
    Kind.TRUNCATE: 11,
    Kind.UNLINK: 4,
    Kind.MKDIR: 1,
    Kind.MAP: 4,
    Kind.READ: 210,
    Kind.STAT: 200,
    Kind.LOCK: 28,
}
ERRORS = [errno.EIO, errno.ENOSPC]
QUICK_TRIALS = 4  # of each kind
HANG = 0.6  # seconds


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return disk.c, compiled."""
    return disk.build(tmp_path_factory.mktemp("disk"))


@pytest.fixture(scope="module")
def patient(library: Path) -> Iterator[failing.Patient]:
    """Yield a process whose disk can be made to fail."""
    with disk.scratch() as folder, failing.Patient(library, folder) as process:
        yield process


@pytest.fixture
def odd_patient(library: Path) -> Iterator[failing.Patient]:
    """Yield one that nobody uses afterwards: what is broken in it, or set, stays so."""
    with disk.scratch() as folder, failing.Patient(library, folder) as process:
        yield process


class Tally:
    """What trials came to."""

    def __init__(self) -> None:
        self.trials = self.failed = self.raised = self.returned = 0
        self.longest_gap = 0.0

    def add(self, account: failing.Account) -> None:
        """Count a trial."""
        self.trials += 1
        self.failed += account.failed
        self.raised += account.raised
        self.returned += account.returned
        self.longest_gap = max(self.longest_gap, account.longest_gap)

    def __str__(self) -> str:
        return (
            f"{self.trials} trials, {self.failed} failing calls to the disk: {self.raised} calls "
            f"raised, {self.returned} returned, longest gap {self.longest_gap * 1_000:.0f} ms"
        )


@pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.name)
def test_a_failing_disk_is_told_and_outlived(patient: failing.Patient, kind: Kind) -> None:
    """Each call is done or raises StorageError; reads go on; well again without reopening."""
    tally = Tally()
    for lasting in itertools.islice(itertools.cycle((False, True)), QUICK_TRIALS):
        number = random.randrange(CALLS[kind]) + 1
        fault = Fault(kind, number, random.choice(ERRORS), lasting)
        account = patient.endure(fault)
        assert not account.violations, (str(fault), account.violations)
        tally.add(account)
    print(kind.name, tally)
    if kind is Kind.STAT and not tally.failed:
        pytest.skip("this Python does not look at files by the stat64 of the C library")
    assert tally.failed
    assert tally.returned > 100 * tally.trials


@pytest.mark.torture
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: errno.errorcode[error])
@pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.name)
def test_a_disk_that_fails_at_any_call(
    patient: failing.Patient, kind: Kind, error: int, lasting: bool
) -> None:
    """The same for the first, second, third call, until none is left that could fail."""
    tally = Tally()
    for number in itertools.count(1):
        fault = Fault(kind, number, error, lasting)
        account = patient.endure(fault)
        assert not account.violations, (str(fault), account.violations)
        tally.add(account)
        if not account.failed:
            break
    print(fault, tally)
    assert tally.raised


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.SYNC], ids=lambda kind: kind.name)
def test_a_disk_that_hangs_does_not_stop_the_event_loop(
    patient: failing.Patient, kind: Kind
) -> None:
    """While a call to the disk hangs, and then fails, the loop turns."""
    fault = Fault(kind, CALLS[kind] // 2, errno.EIO, hang=HANG)
    gaps = []
    for _ in range(3):  # the whole machine may stand still at times, too
        account = patient.endure(fault)
        assert not account.violations, (str(fault), account.violations)
        assert account.failed
        gaps.append(account.longest_gap)
        if gaps[-1] < HANG / 2:
            break
    print(f"{fault}: longest gaps {gaps} s")
    assert min(gaps) < HANG / 2


def assert_the_index_need_not_grow(patient: failing.Patient, kind: Kind, numbers: range) -> None:
    """Demand the same if it is the index of a long WAL that finds no room."""
    tally = Tally()
    for number in numbers:
        fault = Fault(kind, number, errno.ENOSPC, lasting=True, long_wal=True)
        account = patient.endure(fault)
        assert not account.violations, (str(fault), account.violations)
        tally.add(account)
    print(kind.name, tally)
    assert tally.failed
    assert tally.raised


def test_a_long_wal_whose_index_cannot_grow(odd_patient: failing.Patient) -> None:
    """If the index of the WAL needs its second 32 KB and gets none, no process dies of it."""
    assert_the_index_need_not_grow(odd_patient, Kind.MAP, range(2, 3))


@pytest.mark.torture
@pytest.mark.parametrize("kind", [Kind.MAP, Kind.WRITE], ids=lambda kind: kind.name)
def test_a_long_wal_whose_index_cannot_grow_at_any_call(
    odd_patient: failing.Patient, kind: Kind
) -> None:
    """The same for each call that could fail."""
    assert_the_index_need_not_grow(odd_patient, kind, range(1, 4 if kind is Kind.MAP else 200))


# -- That the check catches what it must -----------------------------------------------------------


def test_a_store_that_lies_is_caught(odd_patient: failing.Patient) -> None:
    """If a write that failed counts as done, the file gives it away."""
    fault = Fault(Kind.WRITE, CALLS[Kind.WRITE] // 2, errno.EIO, lasting=True, broken="lies")
    assert any("in the file" in violation for violation in odd_patient.endure(fault).violations)


def test_a_store_that_does_not_recover_is_caught(odd_patient: failing.Patient) -> None:
    """If open() takes what SQLite could only open to read, one failing call makes many raise."""
    found: list[str] = []
    for number in range(CALLS[Kind.OPEN], 0, -1):
        found += odd_patient.endure(Fault(Kind.OPEN, number, errno.EIO, broken="no try")).violations
        if found:
            break
    assert any("on a sound disk" in violation for violation in found)


def test_an_event_loop_that_stops_is_caught(patient: failing.Patient) -> None:
    """A write in the loop's own thread shows in the gap."""
    fault = Fault(Kind.OPEN, CALLS[Kind.OPEN], errno.EIO, hang=HANG, broken="in the loop")
    assert patient.endure(fault).longest_gap > HANG / 2


# -- The sidecar -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["open", "stat", "pwrite", "mmap"])
async def test_a_lock_file_that_cannot_be_made_anew_is_not_believed(
    database: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A write raises meanwhile; from the next write of each on, all hear of each other."""

    def refuse(*arguments: object) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with quiet(database) as one, quiet(database) as other:
        id_, own = await one.create_session("lina"), await one.create_session("ben")
        assert (await the_session(one, id_)).is_active
        lock_of(database).unlink()
        with monkeypatch.context() as patch:
            patch.setattr(mmap if call == "mmap" else os, call, refuse)
            with pytest.raises(StorageError, match="No space left"):
                await one.update_activity(own)
        lock_of(database).touch()
        assert not is_locked(database)
        assert await one.update_activity(own)
        assert (await the_session(one, id_)).is_active
        assert await other.end_session(id_)
        assert not (await the_session(one, id_)).is_active


async def test_a_lock_is_not_kept_when_its_file_cannot_be_looked_at(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails once it has the lock lets the others go on."""
    stat = os.stat

    def refuse(path: Any, *arguments: Any, **more: Any) -> os.stat_result:
        if path == str(lock_of(database)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, *arguments, **more)

    async with quiet(database) as sessions:
        id_ = await sessions.create_session("lina")
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", refuse)
            with pytest.raises(StorageError):
                await sessions.update_activity(id_)
        assert not is_locked(database)
        assert await sessions.update_activity(id_)


# -- Opening ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, opens",
    [(errno.EIO, False), (errno.ENOSPC, False), (errno.EINVAL, True), (errno.EACCES, True)],
    ids=lambda value: errno.errorcode[value] if value in errno.errorcode else str(value),
)
async def test_a_new_folder_is_made_certain_or_the_store_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, opens: bool
) -> None:
    """Only a folder that cannot be synced at all is left to the file system."""
    synced: list[bool] = []

    def sync(descriptor: int) -> None:
        synced.append(os.path.samestat(os.fstat(descriptor), os.stat(tmp_path)))
        raise OSError(error, os.strerror(error))

    sessions = quiet(tmp_path / "new" / "sessions.db")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        if opens:
            await sessions.open()
        else:
            with pytest.raises(StorageError):
                await sessions.open()
    assert synced == [True]
    assert ("new" in os.listdir(tmp_path)) == opens  # or else the next open() would believe in it
    async with sessions:
        assert await sessions.create_session("lina")


async def test_a_faulty_trigger_of_the_hosts_keeps_nobody_from_reading(database: Path) -> None:
    """That no session can be changed does not count as a disk that cannot be written."""
    async with quiet(database) as sessions:
        id_ = await sessions.create_session("lina")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(
            "CREATE TRIGGER faulty AFTER UPDATE ON sessions"
            " BEGIN INSERT INTO nowhere VALUES (new.id); END"
        )
    async with quiet(database) as sessions:
        assert (await the_session(sessions, id_)).is_active
        with pytest.raises(StorageError):
            await sessions.update_activity(id_)


# -- A file system that is full --------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 32 MB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs, on Linux")
    folder = tmp_path / "small"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None:
        pytest.skip("mount and umount are not there")
    mounted = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=32m", "sessionstore-test", folder],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"this root cannot mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run([umount, folder], check=True)


def fill(folder: Path, room: int = 0) -> Path:
    """Write a file until nothing more fits but so many bytes, and return it."""
    ballast = folder / "ballast"
    with open(ballast, "ab", buffering=0) as file:
        for size in (4_096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        file.truncate(max(0, file.tell() - room))
    return ballast


def counts_in_a_fresh_process(database: Path) -> dict[str, tuple[str, int, int]]:
    """Return status, interactions and number of each session, as another process reads them."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sessionstore", "list", str(database)),
            *("--json", "--limit", "100000"),
        ],
        cwd=disk.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        session["id"]: (session["status"], session["interaction_count"], session["data"]["n"])
        for session in json.loads(done.stdout)
    }


class Diary:
    """What was acknowledged of sessions, and what may have happened besides."""

    def __init__(self, sessions: SessionManager) -> None:
        self._sessions = sessions
        self.acknowledged: dict[str, tuple[int, int]] = {}  # interactions and number
        self.raised = 0
        self.errors: set[str] = set()

    async def live(self, calls: int) -> None:
        """Make calls of each kind, whatever becomes of them."""
        text = "x" * 3_000
        for number in range(calls):
            try:
                id_ = await self._sessions.create_session("lina", {"n": 0, "text": text})
                self.acknowledged[id_] = 0, 0
                for some in random.sample(list(self.acknowledged), min(5, len(self.acknowledged))):
                    touches, n = self.acknowledged[some]
                    assert await self._sessions.update_activity(some)
                    self.acknowledged[some] = touches + 1, n
                assert await self._sessions.update_session(id_, {"n": number})
                self.acknowledged[id_] = self.acknowledged[id_][0], number
            except StorageError as error:
                self.raised += 1
                self.errors.add(str(error))

    async def read(self) -> None:
        """Read all that was acknowledged, cached or not: it must be there as it was."""
        for id_, (touches, number) in self.acknowledged.items():
            session = await self._sessions.get_session(id_)
            assert session is not None
            assert (session.interaction_count, session.data["n"]) == (touches, number)
        assert len(await self._sessions.get_active_sessions()) == len(self.acknowledged)
        stats = await self._sessions.get_session_stats()
        assert stats["total_sessions"] == len(self.acknowledged)


async def assert_a_full_disk_is_outlived(small_disk: Path, rounds: int) -> None:
    """Demand that writes raise, reads go on, all works when there is room, and nothing is lost."""
    database = small_disk / "sessions.db"
    longest = 0.0
    async with SessionManager(database, cache_size=10, sweep_interval=None) as sessions:
        diary = Diary(sessions)
        for number in range(rounds):
            await diary.live(2)
            ballast = fill(small_disk, room=random.randrange(100_000) if number % 2 else 0)
            raised = diary.raised
            living = asyncio.create_task(diary.live(20))
            longest = max(longest, await longest_gap(living))
            await living
            await diary.read()
            assert diary.raised > raised or number > 1  # a WAL that begins anew has its room
            ballast.unlink()
            raised = diary.raised
            await diary.live(2)
            assert diary.raised == raised
            await diary.read()
    print(
        f"full {rounds} times: {len(diary.acknowledged)} sessions, {diary.raised} calls raised, "
        f"longest gap {longest * 1_000:.0f} ms; {diary.errors}"
    )
    assert any("the disk is full" in error for error in diary.errors)
    found = counts_in_a_fresh_process(database)
    assert found == {
        id_: ("active", touches, number) for id_, (touches, number) in diary.acknowledged.items()
    }


async def test_a_full_disk_is_told_and_outlived(small_disk: Path) -> None:
    """Writes raise StorageError, reads go on, and with room again all goes on; nothing is lost."""
    await assert_a_full_disk_is_outlived(small_disk, 5)


@pytest.mark.torture
async def test_a_disk_that_is_full_a_hundred_times(small_disk: Path) -> None:
    """The same, a hundred times."""
    await assert_a_full_disk_is_outlived(small_disk, 100)


async def test_a_store_cannot_be_opened_on_a_full_disk_but_afterwards(small_disk: Path) -> None:
    """What could not be made leaves nothing that is in the way later."""
    ballast = fill(small_disk)
    sessions = SessionManager(small_disk / "new" / "sessions.db", sweep_interval=None)
    for _ in range(2):
        with pytest.raises(StorageError):
            await sessions.open()
    ballast.unlink()
    async with sessions:
        assert await sessions.create_session("lina")
