# SPDX-License-Identifier: MIT
"""What each way to keep sessions must offer to be measured.

A rival is a small adapter, written as its own documentation and most of its users would. It answers
each call only when the work is done: when it returns True or an id, that counts as acknowledged.
"""

import sqlite3
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar


class Durability(StrEnum):
    """What a commit survives: a power cut (FULL), or a crash of the process only (NORMAL)."""

    FULL = "FULL"
    NORMAL = "NORMAL"


class Rival:
    """One way to keep sessions. Its constructor does nothing."""

    name: ClassVar[str]  # for people
    distributions: ClassVar[tuple[str, ...]] = ()  # that it needs
    is_concurrent: ClassVar[bool] = True  # False: it blocks the event loop
    is_shareable: ClassVar[bool] = True  # whether several processes may have its folder open

    @classmethod
    def check_needs(cls, release: Path | None) -> None:
        """Raise ImportError if something that it needs is not installed."""
        for distribution in cls.distributions:
            metadata.version(distribution)

    @classmethod
    def version(cls) -> str:
        """Return the names and versions of what it uses."""
        versions = [f"{name} {metadata.version(name)}" for name in cls.distributions]
        return ", ".join([*versions, f"SQLite {sqlite3.sqlite_version}"])

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Open or make the store in the folder, which may hold one from before.

        If several have it open at once, the first of them closes it last. Without a cache of
        its own it ignores cache_size (sessions).
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Close it, and stop whatever was started for it."""
        raise NotImplementedError

    async def fill(self, count: int, data: dict[str, Any]) -> list[str]:
        """Put in that many active sessions, by whatever way is fast; return their ids."""
        raise NotImplementedError

    async def create(self, child_id: str, data: dict[str, Any]) -> str:
        """Create a session and return its id."""
        raise NotImplementedError

    async def get(self, session_id: str) -> object | None:
        """Return the session, decoded as far as the library does that by itself, or None."""
        raise NotImplementedError

    async def touch(self, session_id: str) -> bool:
        """Set the last activity to now and count an interaction; False if it is not active."""
        raise NotImplementedError

    async def update(self, session_id: str, data: dict[str, Any]) -> bool:
        """Merge the data into the session's; False if it is not active."""
        raise NotImplementedError

    async def end(self, session_id: str) -> bool:
        """End the session; False if it is not active."""
        raise NotImplementedError

    async def settle(self) -> None:
        """Make sure of what was returned but is not committed yet. Most have nothing to do."""
