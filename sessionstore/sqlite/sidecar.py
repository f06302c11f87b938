# SPDX-License-Identifier: MIT
"""The lock file beside a database: the lock of all writers, and the versions of sessions.

`<database>-lock` is locked by each write batch, checkpoint and close, so that writers of all
processes take turns and no checkpoint runs beside a write: SQLite before 3.51.3 can lose commits
then (the WAL-reset bug, sqlite.org/wal.html). The file is an array of 64-bit words, which every
process maps: 65,536 slots, one for each hash of session ids, and a revision. Holding the lock, a
batch raises the revision r by one, sets the slots of what it changes to 2r + 1 right before COMMIT,
and to 2r after it.

Why no cache hit is stale. A reader notes a slot's word w before its SELECT and keeps the row with
it if w is even and still there; a hit counts while the slot still has w. Let C be any commit to the
session that was acknowledged before the hit began.

1. Words change under the lock only, and the revision only grows. So a slot never has an even word
   twice, and w was there without a break from the noting to the hit.
2. C set the slot to its own odd word before COMMIT, and to its even one before it was acknowledged.
   So w is the word of C, or of a later commit.
3. w is even, so it was set after the COMMIT of its batch; it was noted after that, and the SELECT
   came after the noting. Each SELECT begins a new snapshot, since no statement is left open, so it
   saw that commit and all before it, C among them.
4. So the row is what C wrote, or something later. A row that a writer keeps by itself is the one
   that it committed under w.

A writer that dies in between leaves an odd word: that slot is not cached until the next write to
it. Two sessions in one slot cost each other a miss. At opening, the revision becomes at least the
time in microseconds, and at least half of the largest word, whatever a power cut left in the file;
so does that of a new file, which begins beyond all that an old one has reached.

What is assumed: a local file system, where flock and shared mappings are coherent; that nobody cuts
off, overwrites or replaces the file while it is in use (a deleted one is noticed at each process's
next write or sweep); that an aligned load or store of 64 bits is one instruction, and that a store
is visible to other processors once COMMIT's system calls have returned, as on x86-64 and arm64.

Without fcntl (Windows) one process at a time may have the file open.
"""

import mmap
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from zlib import crc32

from ..errors import StoreBusyError

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None  # type: ignore[assignment]

SLOTS = 65_536
_SIZE = 8 * (SLOTS + 1)
_REVISION = SLOTS  # the index of the last word
_LIMIT = 2**60  # what is not below it is no revision, but garbage

Identity = tuple[int, int]  # what tells a file from one that takes its place: device and inode


def _identity_and_size(file: str | int) -> tuple[Identity | None, int]:
    try:
        status = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None, 0
    return (status.st_dev, status.st_ino), status.st_size


class Sidecar:
    """The lock and the versions of one database, for one connection that writes.

    `versions` may be read by any thread; all else is for the thread of that connection.
    """

    def __init__(self, database: str | None, on_move: Callable[[], object] = lambda: None) -> None:
        """Take the resolved path of the database, or None for one in memory, which has no file.

        on_move is called when another file has become the lock file.
        """
        self._database = database
        self._on_move = on_move
        self._path = f"{database}-lock"
        self._descriptor = -1
        self._opened: Identity | None = None  # the file of the descriptor
        self._mapped: Identity | None = None
        self._words = memoryview(bytearray(_SIZE)).cast("Q")
        self._revision = 0
        self._marked: dict[str, int] = {}  # the slots, by session
        self.versions: Sequence[int] = self._words[:SLOTS]

    def try_lock(self) -> bool:
        """Take the lock if it is free, and map the file that is at the path now."""
        if self._database is None:
            return True
        if fcntl is None:
            return self._lock_for_life()
        while True:
            if self._descriptor < 0:
                self._descriptor = self._open(self._database)
                self._opened, _ = _identity_and_size(self._descriptor)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            identity, size = _identity_and_size(self._path)
            if identity == self._opened:
                break
            self.close()  # it was deleted or replaced: the one at the path is the lock
        if identity != self._mapped or size < _SIZE or not self._words:
            try:
                self._map(size)
            except BaseException:
                self.close()
                raise
            if self._mapped is not None:
                self._on_move()
            self._mapped = identity
        return True

    def database_identity(self) -> Identity | None:
        """Return what tells the database from a file in its place; None if in memory or gone."""
        return None if self._database is None else _identity_and_size(self._database)[0]

    def revision(self) -> int:
        """Return a number that grows with each batch of any process."""
        return self._words[_REVISION] if self._words else 0

    def unlock(self) -> None:
        """Let go of the lock. Explicitly: the mapping's own descriptor would hold it."""
        if self._descriptor >= 0 and fcntl is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def mark(self, session_ids: Iterable[str]) -> dict[str, int]:
        """Make the versions odd, right before COMMIT; return those of before, by session."""
        slots = {id_: crc32(id_.encode()) % SLOTS for id_ in session_ids}
        before = {id_: self._words[slot] for id_, slot in slots.items()}
        revision = max(self._words[_REVISION], self._revision) + 1
        if self._mapped is not None:
            # By a system call before any store into the mapping: on a file system that is frozen
            # it waits without the GIL, where a store would stop the whole process.
            os.pwrite(self._descriptor, revision.to_bytes(8, sys.byteorder), 8 * _REVISION)
        else:
            self._words[_REVISION] = revision
        self._revision = revision
        self._marked = slots
        self._set(revision << 1 | 1)
        return before

    def settle(self) -> int:
        """Give what was marked its new version, after COMMIT or its failure, and return it."""
        version = self._revision << 1
        self._set(version)
        return version

    def close(self) -> None:
        """Let go of the file, of its mapping, and of the lock if it is held."""
        self.unlock()
        self.disown()

    def disown(self) -> None:
        """Let go in a child process, without unlocking: the lock is of the file that both share.

        Of the mapping, too: its own descriptor would keep the lock of a parent that has died.
        """
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._words = memoryview(b"")
        self.versions = self._words

    def __del__(self) -> None:
        self.disown()  # of a store that was never closed, in an event loop that is gone

    def _set(self, version: int) -> None:
        words = self._words
        for slot in self._marked.values():
            words[slot] = version

    def _open(self, database: str) -> int:
        """Open the lock file; make it with the owner and mode of the database if it is missing."""
        while True:
            with suppress(FileNotFoundError):
                return os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            status = os.stat(database)
            try:
                descriptor = os.open(
                    self._path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, 0o600
                )
            except FileExistsError:
                if os.path.islink(self._path):
                    raise
                continue
            with suppress(PermissionError):  # not every file system has modes
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & 0o666)
            with suppress(PermissionError):  # only root may give a file away, as SQLite does, too
                os.fchown(descriptor, status.st_uid, status.st_gid)
            return descriptor

    def _map(self, size: int) -> None:
        """Map the locked file, and have its revision begin beyond all that it has reached."""
        is_whole = size >= _SIZE
        while size < _SIZE:
            # Written, and not truncated: a store into a hole kills when the disk is full.
            size += os.pwrite(self._descriptor, bytes(_SIZE - size), size)
        words = memoryview(mmap.mmap(self._descriptor, _SIZE)).cast("Q")
        reached = max(words[_REVISION], max(words[:SLOTS]) // 2)
        revision = max(time.time_ns() // 1_000, self._revision) + 1
        if is_whole and 0 < reached < _LIMIT:
            revision = max(revision, reached + 1)
        else:  # new, cut off, or garbage: no word of before is met again
            words[:SLOTS] = memoryview((revision << 1).to_bytes(8, sys.byteorder) * SLOTS).cast("Q")
        words[_REVISION] = self._revision = revision
        self._words = words
        self.versions = words[:SLOTS]

    def _lock_for_life(self) -> bool:
        """Keep every other process from the file until close."""
        if self._descriptor < 0:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            except OSError as error:
                os.close(descriptor)
                raise StoreBusyError("another process has the database open") from error
            self._descriptor = descriptor
        return True
