# SPDX-License-Identifier: MIT
"""The sidecar file of a database: the lock that all writers take, and the words of the generations.

Each database file has `<database>-lock` beside it, which every process of ours locks and maps. An
exclusive flock on it is held by each write job, checkpoint and close, so that writers of all
processes queue in the kernel. The file is an array of 64-bit words: a revision, and a slot for each
of 65,536 hashes of session ids. For each COMMIT a write job, holding the lock, raises the revision
r by one, sets the slot of each session that it may change to 2r + 1 (in flight), and to 2r after
it. A reader that misses notes the slot's word before its SELECT and keeps the row with that word,
unless it was odd. A hit counts only while the slot's word is still the one that was noted.

Why no hit is stale, step by step. Let E be a row that was kept with the word w, and let a hit find
w in the slot again. Let C be any commit to the session that was acknowledged before the hit began.

1. Words change under the lock only, and the revision only grows; so a slot never has the same even
   word twice, and w was there without a break from the noting to the hit.
2. C set the slot to its own odd word before COMMIT, and to its even one before it was acknowledged.
   So the word that the hit finds, w, is that of C or of a later write job.
3. w is even, so it was set after the COMMIT of its job. It was noted after that, and the SELECT
   came after the noting. So the SELECT saw that commit and all before it, C among them. A row that
   the writer keeps by itself is the one that it committed under w.
4. So E holds what C wrote, or something later.

A writer that dies in flight leaves an odd word: the slot's sessions are not cached until the next
write to it. One that dies between COMMIT and the second word does, too, and nothing else: its
callers never heard of the commit. Two sessions in one slot cost each other a miss.

The file may be replaced: somebody deletes a "stale" lock. Each write job compares the file at the
path with the one that it has locked, and moves to the new one, under its lock. A new file's words
begin at the time in microseconds, which is beyond every revision that an old file has reached, so
that no word is ever met again. The first who notices marks all slots of the old file as in flight,
under its lock: whoever still has it mapped finds no hit any more, until it writes or sweeps and
moves, too. Who finds at the end of a write job that its file was replaced meanwhile gives all slots
of the new one a new word before it acknowledges anything. So a hit can be stale only between the
deletion and the next write job of anybody who has the old file.

The file may be cut off or overwritten. The system then kills (SIGBUS) who touches what is beyond
its end, as it does with SQLite's own index of the WAL, and no check can come before each load; but
the next write job of anybody gives the file its length again. A revision that was overwritten goes
on from the time, or from what this process has reached. An old copy in its place brings old words
back, and hits with them, until the next write or sweep of who wrote after the copy was made.

What is assumed. Nobody puts an old copy of the file in its place while the database is in use: who
opens it next raises the revision to the time, and nobody sees what it was. A local file system:
flock and shared mappings are coherent on it, and not on NFS. An aligned 64-bit store or load is one
machine instruction on x86-64 and arm64, so words are never torn. A store is visible to other
processors before the system calls that follow it, COMMIT's among them, have returned: x86-64 keeps
stores in order, and on arm64 the kernel's locks, and the barriers of SQLite's WAL index, order
them. Between threads, the GIL does.

A ":memory:" database has no file: its words are memory of the process, and its one thread is its
lock. Nothing is known here of sessions, SQL or the cache.
"""

import errno
import mmap
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ..errors import StoreBusyError
from .files import create_private, identity
from .jobs import Turn

try:
    import fcntl
except ImportError:  # Windows: one process at a time may have the file open
    import msvcrt

    fcntl = None  # type: ignore[assignment]

SLOTS = 65_536
SHARED_FOR = 0.1  # seconds for which a write of another process lets us expect more of them
_SIZE = 8 * (SLOTS + 1)
_REVISION = SLOTS  # the revision is the last word, and the last one that is written at first
_LIMIT = 2**58  # what is not below it is no revision
_IN_FLIGHT = memoryview(b"\xff" * 8 * SLOTS).cast("Q")
_NO_WORDS = memoryview(bytes(_SIZE)).cast("Q")  # of a file that is not open


def slot_of(session_id: str) -> int:
    """Return the slot of a session, the same in every process."""
    return zlib.crc32(session_id.encode()) % SLOTS


class Coherence:
    """The lock and the words of one database, for one connection that writes."""

    def __init__(self, database: str | None) -> None:
        """Take the resolved path of the database, or None for one in memory."""
        self._path = None if database is None else f"{database}-lock"
        self._descriptor = -1
        self._identity = (-1, -1)  # of the file behind the descriptor: its device and inode
        self._revision = 0  # of the last write job of this process
        self._shared_at = 0.0  # when a write of another process was last noticed
        self._is_whole = False  # whether the file was long enough when it was last looked at
        self.words = _words_in_memory() if database is None else _NO_WORDS

    def __del__(self) -> None:
        # Of a store whose event loop has ended without close(). Plain calls only: mutmut's wrapper
        # of a method, run by the garbage collector, can make CPython 3.11 crash.
        if self._descriptor >= 0:  # pragma: no mutate
            os.close(self._descriptor)  # pragma: no mutate

    @property
    def is_open(self) -> bool:
        """Whether there is a file that was locked before."""
        return self._descriptor >= 0

    @property
    def is_alone(self) -> bool:
        """Whether no other process seems to be writing at this time."""
        return time.monotonic() - self._shared_at > SHARED_FOR

    def word(self, slot: int) -> int:
        """Return the slot's word as it is now, to be noted before a SELECT."""
        return self.words[slot]

    def is_current(self, slot: int, word: int) -> bool:
        """Say whether what was read under the noted word is still what the file holds."""
        return self.words[slot] == word and not word & 1

    def begin(self, slots: Iterable[int]) -> dict[int, int]:
        """Mark the slots as in flight, with the lock held; return their words of before."""
        known = self.words[_REVISION]
        if not 0 < known < _LIMIT:  # the file was overwritten
            known = _now()
        if known != self._revision:
            self._shared_at = time.monotonic()
        if known < self._revision:  # an old file was copied over it, and brings old words back
            self.words[:SLOTS] = _IN_FLIGHT
            slots = range(SLOTS)
        self._revision = max(known, self._revision) + 1
        self.words[_REVISION] = self._revision
        before = {slot: self.words[slot] for slot in slots}
        self._set(before, self._revision << 1 | 1)
        return before

    def settle(self, slots: Iterable[int]) -> int:
        """Give the slots a new word after COMMIT, or after its failure, and return the word."""
        word = self._revision << 1
        self._set(slots, word)
        return word

    def _set(self, slots: Iterable[int], word: int) -> None:
        for slot in slots:
            self.words[slot] = word

    @contextmanager
    def hold(self, turn: Turn) -> Iterator[None]:
        """Hold the lock during the block. Waits for as long as another process holds it.

        The waiting cannot be cut short: a caller that has given up its turn meanwhile is told of
        that by turn.claim(), in the block.
        """
        if self._path is None:
            yield
            return
        if fcntl is None:
            self._lock_for_life(self._path)
            yield
            return
        try:
            self._lock(self._path, turn)
            try:
                yield
            finally:
                self._unlock(self._path, turn)
        except OSError:  # a file in doubt is opened anew by the next one who writes
            self._let_go()
            raise

    def close(self) -> None:
        """Let go of the file. Words that were noted are worth nothing afterwards."""
        self._let_go()
        self.words = _NO_WORDS  # the mapping has a descriptor of its own, and goes with its words

    def inherit(self) -> None:
        """Let go in a child process, without unlocking: the lock is of the file that both share."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self.words = _NO_WORDS

    def _let_go(self) -> None:
        """Unlock and close the file: its mapping, which stays, would keep the lock."""
        if self._descriptor >= 0:
            if fcntl is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1

    def _lock(self, path: str, turn: Turn) -> None:
        """Lock the file that is at the path now; map it if it is another one, or was cut off."""
        while True:
            known = self._descriptor >= 0
            if not known:
                self._descriptor = _open(path)
                self._identity = identity(os.fstat(self._descriptor))
            _wait_for(self._descriptor, turn)
            if self._is_at(path):
                if not known or not self._is_whole:
                    self.words = _map(self._descriptor, self._revision)
                return
            if known:
                _fill(self._descriptor)
                self.words[:SLOTS] = _IN_FLIGHT
            self._let_go()

    def _unlock(self, path: str, turn: Turn) -> None:
        """Let go of the lock, but not before those on a file that has come meanwhile are told."""
        try:
            if not self._is_at(path):
                self._lock(path, turn)
                self.begin(range(SLOTS))
                self.settle(range(SLOTS))
        finally:
            if self._descriptor >= 0:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _is_at(self, path: str) -> bool:
        """Say whether the file that was opened is still the one at the path."""
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return False
        self._is_whole = status.st_size >= _SIZE
        return identity(status) == self._identity

    def _lock_for_life(self, path: str) -> None:
        """Keep every other process from the file until close."""
        if self._descriptor >= 0:
            return
        descriptor = _open(path)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError as error:
            os.close(descriptor)
            raise StoreBusyError("another process has the database open; one at a time") from error
        self._descriptor = descriptor
        self.words = _words_in_memory()


def _open(path: str) -> int:
    try:
        return create_private(path)
    except FileExistsError:  # or a symlink, which may lead to where it is to be made
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _now() -> int:
    """Return the time in microseconds, which no revision has reached yet if clocks are right."""
    return time.time_ns() // 1_000


def _words_in_memory() -> memoryview:
    return memoryview(bytearray(_SIZE)).cast("Q")


def _wait_for(descriptor: int, turn: Turn) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        turn.wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        turn.waiting = False


def _map(descriptor: int, reached: int) -> memoryview:
    """Map the locked file; give it its size and its first words where it has none.

    The revision is set to the time in any case: after a power cut it may be older than some words.
    """
    _fill(descriptor)
    try:
        words = memoryview(mmap.mmap(descriptor, _SIZE)).cast("Q")
    except ValueError as error:
        raise OSError(errno.EIO, "the lock file was cut off just now") from error
    now = max(_now(), reached + 1)
    # New, cut off before its last word was there, garbage, or older than what this process knows.
    if not max(reached, 1) <= words[_REVISION] < _LIMIT:
        words[:_REVISION] = memoryview((now << 1).to_bytes(8, sys.byteorder) * SLOTS).cast("Q")
        words[_REVISION] = now
    words[_REVISION] = max(words[_REVISION], now)
    return words


def _fill(descriptor: int) -> None:
    """Give the file its size, where it has none yet or was cut off: a store beyond its end kills.

    It is written, and not truncated: so does a store into a hole when the disk is full.
    """
    size = os.fstat(descriptor).st_size
    while size < _SIZE:
        size += os.pwrite(descriptor, bytes(_SIZE - size), size)
