# SPDX-License-Identifier: MIT
"""A disk that is watched, cut off and made to fail.

disk.c, preloaded into a process, records what the process does to the files of one folder, and
makes calls fail. Disk replays such a record, and tells what the folder may look like after a power
cut in the middle of it.

The model of the disk. What was written to a file before its last sync is there. Each write and
truncation after that was carried out or not, by itself, in whatever order; a write may also be
torn, each of its sectors of 512 bytes there or not. If a file had grown, its new part may hold
zeros or garbage, and so may files that are mapped. A change of a folder (a file or folder made,
renamed or unlinked) is certain when the folder was synced; those after that were carried out or
not, each by itself.
"""

import ctypes
import os
import platform
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).with_name("disk.c")
ROOT = SOURCE.parents[2]
SECTOR = 512  # bytes
MAPPED = ("-shm", "-lock")  # changed through memory, which nobody records: they may hold anything

_HEADER = struct.Struct("=iiqqq")
_IS_NEW = 1 << 32


class Kind(IntEnum):
    """The kinds of calls, numbered as in disk.c."""

    OPEN = 0
    WRITE = 1
    TRUNCATE = 2
    SYNC = 3
    UNLINK = 4
    RENAME = 5
    MKDIR = 6
    MAP = 7
    READ = 8
    STAT = 9
    LOCK = 10


@cache
def build(folder: Path) -> Path:
    """Compile disk.c into the folder, once, or skip the test if that cannot be done."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        pytest.skip("disk.c is preloaded into a process, which needs Linux with glibc")
    if compiler is None:
        pytest.skip("disk.c needs a C compiler, cc or gcc")
    library = folder / "disk.so"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = [compiler, "-O1", *warnings, "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)
    return library


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder for files that are made and removed often, in memory if possible."""
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(os.path.realpath(folder))


def environment(library: Path, folder: Path, log: Path | None = None) -> dict[str, str]:
    """Return the environment of a process whose calls on files below the folder are watched."""
    watched = {"LD_PRELOAD": str(library), "DISK_FOLDER": os.path.realpath(folder)}
    return {**os.environ, **watched, **({} if log is None else {"DISK_LOG": str(log)})}


# -- Calls that fail, for the process itself -------------------------------------------------------


def fail(kind: Kind, number: int, error: int, *, lasting: bool = False, hang: float = 0.0) -> None:
    """Make the n-th call of a kind from now on fail, after `hang` seconds; if lasting, all later.

    A write that fails has written its first half.
    """
    hang_ms = ctypes.c_long(int(hang * 1_000))
    ctypes.CDLL(None).disk_fail(int(kind), ctypes.c_long(number), error, int(lasting), hang_ms)


def heal() -> int:
    """Let all calls through again, and return how many failed."""
    failed: int = ctypes.CDLL(None).disk_heal()
    return failed


# -- The record ------------------------------------------------------------------------------------


class Record(NamedTuple):
    """One call, as disk.c recorded it."""

    kind: Kind
    descriptor: int
    offset: int  # of a write, -1 for the end; the size of a truncation; the flags of an open
    content: bytes  # of a write; or the path; or both paths, with NUL between them
    time: int  # nanoseconds


def read_log(path: Path) -> Iterator[Record]:
    """Yield the calls in the order in which they happened."""
    with open(path, "rb") as file:
        while header := file.read(_HEADER.size):
            kind, descriptor, offset, length, time = _HEADER.unpack(header)
            yield Record(Kind(kind), descriptor, offset, file.read(length), time)


@dataclass(eq=False)
class File:
    """What is certain of a file, and what has been done to it since."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    size: int = 0

    def write(self, offset: int, content: bytes) -> None:
        """Write at an offset, -1 for the end."""
        start = self.size if offset < 0 else offset
        self.pending.append((start, content))
        self.size = max(self.size, start + len(content))

    def truncate(self, size: int) -> None:
        """Cut the file off, or let it grow."""
        self.pending.append((size, None))
        self.size = size

    def sync(self) -> None:
        """Make all of it certain."""
        for offset, content in self.pending:
            _carry_out(self.durable, offset, content)
        self.pending.clear()

    def after_cut(self, fate: "Fate") -> bytearray:
        """Return what may be left of it."""
        left = bytearray(self.durable)
        for offset, content in self.pending:
            for start, piece in fate.of_call(offset, content):
                if content is not None and fate.garbage and start > len(left):
                    left += fate.random.randbytes(start - len(left))
                _carry_out(left, start, piece)
        return left


@dataclass(eq=False)
class Folder:
    """What a folder holds now, what it certainly holds, and how it has changed since."""

    now: "dict[str, File | Folder]" = field(default_factory=dict)
    durable: "dict[str, File | Folder]" = field(default_factory=dict)
    pending: "list[dict[str, File | Folder | None]]" = field(default_factory=list)

    def change(self, changes: "dict[str, File | Folder | None]") -> None:
        """Add, replace and take away names, all at once."""
        _rename(self.now, changes)
        self.pending.append(changes)

    def sync(self) -> None:
        """Make all changes certain."""
        self.durable = dict(self.now)
        self.pending.clear()

    def after_cut(self, fate: "Fate") -> "dict[str, File | Folder]":
        """Return what may be left in it."""
        left = dict(self.durable)
        for changes in self.pending:
            if fate.keeps():
                _rename(left, changes)
        return left


def _carry_out(content: bytearray, offset: int, written: bytes | None) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if written is None:
        del content[offset:]
    else:
        content[offset : offset + len(written)] = written


def _rename(names: dict[str, File | Folder], changes: "dict[str, File | Folder | None]") -> None:
    for name, node in changes.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


# How often a call that no sync has made certain was carried out, was not, or was torn.
WEIGHTS = [
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (0.5, 0.5, 0),
    (0.3, 0.3, 0.4),
    (0.95, 0.04, 0.01),
    (0.04, 0.95, 0.01),
]


class Fate:
    """What a power cut does to the calls that no sync has made certain."""

    def __init__(self, rng: random.Random, *, worst: bool = False) -> None:
        """Choose how bad it is; in the worst case no such call was carried out."""
        self.random = rng
        self.garbage = rng.random() < 0.5
        self._weights = (0, 1, 0) if worst else rng.choice(WEIGHTS)
        self._keeps = 0.0 if worst else rng.choice((0.0, 0.5, 1.0))

    def keeps(self) -> bool:
        """Return whether a change of a folder was carried out."""
        return self.random.random() < self._keeps

    def of_call(self, offset: int, content: bytes | None) -> Iterator[tuple[int, bytes | None]]:
        """Yield what was carried out of a call."""
        (fate,) = self.random.choices(("kept", "dropped", "torn"), self._weights)
        if fate == "kept" or (fate == "torn" and content is None):
            yield offset, content
        elif fate == "torn" and content is not None:
            start = 0
            while start < len(content):
                end = min(len(content), start + SECTOR - (offset + start) % SECTOR)
                if self.random.random() < 0.5:
                    yield offset + start, content[start:end]
                start = end


class Disk:
    """The files below a folder, as the calls of a process have left them so far."""

    def __init__(self, folder: Path, before: Path | None = None) -> None:
        """Take the folder that was watched, and a copy of what was in it, certain, at first."""
        self._root = os.path.realpath(folder)
        self._top = Folder()
        self._open: dict[int, tuple[str, File | Folder]] = {}
        if before is not None:
            for path in before.iterdir():
                content = path.read_bytes()
                self._top.now[path.name] = File(bytearray(content), size=len(content))
            self._top.sync()

    def name_of(self, record: Record) -> str:
        """Return the name of the file that a call on a descriptor was about."""
        return self._open[record.descriptor][0]

    def apply(self, record: Record) -> None:
        """Do what was recorded."""
        kind = record.kind
        if kind in (Kind.WRITE, Kind.TRUNCATE, Kind.SYNC):
            node = self._open[record.descriptor][1]
            if kind is Kind.SYNC:
                node.sync()
            elif isinstance(node, File) and kind is Kind.WRITE:
                node.write(record.offset, record.content)
            elif isinstance(node, File):
                node.truncate(record.offset)
        elif kind is Kind.RENAME:
            source, target = (os.fsdecode(path) for path in record.content.split(b"\0"))
            folder, old = self._find(source)
            same, new = self._find(target)
            assert folder is same, "renamed from one folder into another"
            folder.change({old: None, new: folder.now[old]})
        else:
            self._name(record, os.fsdecode(record.content))

    def _name(self, record: Record, path: str) -> None:
        if path == self._root:
            self._open[record.descriptor] = path, self._top
            return
        folder, name = self._find(path)
        if record.kind is Kind.UNLINK:
            folder.change({name: None})
        elif record.kind is Kind.MKDIR:
            folder.change({name: Folder()})
        else:
            # An old C library makes files by a call that is not watched.
            if record.offset & _IS_NEW or name not in folder.now:
                folder.change({name: File()})
            node = folder.now[name]
            if record.offset & os.O_TRUNC and isinstance(node, File):
                node.truncate(0)
            self._open[record.descriptor] = name, node

    def _find(self, path: str) -> tuple[Folder, str]:
        *above, name = os.path.relpath(path, self._root).split(os.sep)
        folder = self._top
        for part in above:
            found = folder.now[part]
            assert isinstance(found, Folder)
            folder = found
        return folder, name

    def cut(self, fate: Fate, target: Path) -> None:
        """Make, in a new folder, what a power cut at this moment leaves."""
        _write_out(self._top, fate, target)


def _write_out(folder: Folder, fate: Fate, target: Path) -> None:
    target.mkdir()
    for name, node in folder.after_cut(fate).items():
        if isinstance(node, Folder):
            _write_out(node, fate, target / name)
        else:
            content = node.after_cut(fate)
            if name.endswith(MAPPED) and fate.garbage:
                content = bytearray(fate.random.randbytes(len(content)))
            (target / name).write_bytes(content)


def run(module: str, *arguments: str, watched_by: dict[str, str]) -> str:
    """Run a module of the tests in a process that is watched, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=watched_by,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout
