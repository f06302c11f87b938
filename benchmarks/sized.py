# SPDX-License-Identifier: MIT
"""Stores of sessionstore with a given number of sessions, and a clock that can be turned."""

import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sessionstore import SessionManager

from .bench import counted
from .rivals import RIVALS, Durability
from .rivals.table import FILE
from .work import SMALL

TIMEOUT = timedelta(days=1)
CACHE_SIZE = 100  # so that a get in the smallest store is a miss, too
AGAIN = 20  # times that a query is made


class Clock:
    """The time of day, turned back by some seconds."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        """Return the seconds since the epoch."""
        return time.time() + self.offset


@dataclass
class Sized:
    """A store of some size, and its sessions."""

    subject: str
    path: Path
    ids: list[str]

    def manager(self, clock: Clock | None = None) -> SessionManager:
        """Return a manager for it, whose cache does not help."""
        return SessionManager(
            self.path,
            timeout=TIMEOUT,
            sweep_interval=None,
            cache_size=CACHE_SIZE,
            clock=clock or time.time,
        )

    def file_size(self) -> int:
        """Return the bytes of the file, without its log."""
        return self.path.stat().st_size

    def log_size(self) -> int:
        """Return the bytes of its write-ahead log."""
        return Path(f"{self.path}-wal").stat().st_size


async def fill(folder: Path, size: int) -> Sized:
    """Make a store with so many active sessions."""
    rival = RIVALS[0]()
    await rival.open(folder, Durability.NORMAL, 0)
    try:
        ids = await rival.fill(size, SMALL)
    finally:
        await rival.close()
    return Sized(counted(size, "session", "sessions"), folder / FILE, ids)
