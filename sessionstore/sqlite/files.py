# SPDX-License-Identifier: MIT
"""How the files of the package are made: for their owner alone, since the data may be a child's.

A file that is there is never touched here, not even opened: closing it would drop the locks that
SQLite holds on it for this process. Nothing is known here of what the files are for.
"""

import errno
import os
import threading
from contextlib import suppress

# No thread may give a file to SQLite while another one that has just made it has yet to close it.
_making = threading.Lock()


# A folder that may be written but not read, or any on Windows; and one on an odd file system.
_CANNOT_SYNC = (errno.EACCES, errno.EINVAL)


def make_folder(folder: str) -> None:
    """Make a folder, and those above it, so that they are still there after a power cut.

    SQLite syncs the folder of its files, and not what that folder is in.
    """
    if os.path.isdir(folder):
        return
    above = os.path.dirname(folder)
    if above != folder:  # else a drive that is not there
        make_folder(above)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not os.path.isdir(folder):  # else another process was first
            raise
    try:
        _sync(above)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            with suppress(OSError):
                os.rmdir(folder)  # so that whoever opens next makes it, and syncs it, anew
            raise


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_private(path: str) -> int:
    """Make a file with mode 0600, whatever the umask, and return its descriptor.

    Raises FileExistsError where there is one, be it a symlink that leads nowhere.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    if hasattr(os, "fchmod"):
        with suppress(PermissionError):  # not every file system has modes
            os.fchmod(descriptor, 0o600)
    return descriptor


def make_private(path: str) -> None:
    """Make an empty file with mode 0600 where there is none."""
    with _making, suppress(FileExistsError):
        os.close(create_private(path))


def identity(status: os.stat_result) -> tuple[int, int]:
    """Return what tells a file from one that takes its place: its device and inode."""
    return status.st_dev, status.st_ino


def identity_at(path: str) -> tuple[int, int] | None:
    """Return the identity of the file at the path, or None where there is none."""
    try:
        return identity(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def size_at(path: str) -> int:
    """Return the bytes of the file at the path; 0 where there is none that can be looked at."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


if hasattr(os, "register_at_fork"):  # a child must not inherit the lock from a thread it lacks
    os.register_at_fork(
        before=_making.acquire, after_in_parent=_making.release, after_in_child=_making.release
    )
