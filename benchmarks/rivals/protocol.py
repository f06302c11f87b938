# SPDX-License-Identifier: MIT
"""What each way to keep sessions must offer to be measured.

A rival is a small adapter, written as its own documentation and most of its users would. It answers
each call only when the work is done: where it returns True or an id, that counts as acknowledged.
"""

from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol


class Durability(Enum):
    """What a commit survives: a power cut (FULL), or a crash of the process only (NORMAL)."""

    FULL = "FULL"
    NORMAL = "NORMAL"


class Rival(Protocol):
    """One way to keep sessions. Its constructor does nothing and needs nothing installed."""

    key: ClassVar[str]  # for the command line and the JSON: lower case, with hyphens
    name: ClassVar[str]  # for people
    durabilities: ClassVar[frozenset[Durability]]  # those that it can be set to
    is_concurrent: ClassVar[bool]  # False: synchronous, so many tasks are the same as one
    has_cache: ClassVar[bool]  # whether `get` may answer from this process's memory
    is_shareable: ClassVar[bool]  # whether several processes may have the same folder open

    def missing(self) -> str | None:
        """Return what has to be installed before it can run here, or None if all is there."""

    def version(self) -> str:
        """Return the names and versions of the libraries and programs that it uses."""

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Open or make the store in the folder, which may hold one from before.

        Without a cache of its own it ignores cache_size (sessions).
        """

    async def close(self) -> None:
        """Close it, and stop whatever was started for it."""

    async def fill(self, count: int, data: dict[str, Any]) -> list[str]:
        """Put in that many active sessions, by whatever way is fastest; return their ids."""

    async def create(self, child_id: str, data: dict[str, Any]) -> str:
        """Create a session and return its id."""

    async def get(self, session_id: str) -> object | None:
        """Return the session, decoded as far as the library does that by itself, or None."""

    async def touch(self, session_id: str) -> bool:
        """Set the last activity to now and count an interaction; False if it is not active."""

    async def update(self, session_id: str, data: dict[str, Any]) -> bool:
        """Merge the data into the session's; False if it is not active."""

    async def end(self, session_id: str) -> bool:
        """End the session; False if it is not active."""

    async def settle(self) -> None:
        """Make sure of what was returned but is not committed yet. Most have nothing to do."""
