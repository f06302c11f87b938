# SPDX-License-Identifier: MIT
"""A wall clock that jumps beside one that does not, and a manager that goes by both."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sessionstore import SessionManager
from sessionstore.expiry import Expiry
from sessionstore.sqlite import SQLiteStore
from sessionstore.sweeper import Sweeper

from .conftest import FakeClock

MINUTE, HOUR, DAY, YEAR = 60.0, 3_600.0, 86_400.0, 31_556_952.0  # seconds
TIMEOUT = 30 * MINUTE


class Watched(SessionManager):
    """A manager whose monotonic clock is the test's, and whose sweep a test calls."""

    def __init__(
        self,
        database: Path,
        clock: FakeClock,
        monotonic: FakeClock,
        *,
        timeout: float = TIMEOUT,
        max_lifetime: float | None = None,
        retention: float | None = None,
        **settings: Any,
    ) -> None:
        """Take lengths of time in seconds; there is no background sweep."""
        store = SQLiteStore(database, uptime=monotonic)
        super().__init__(
            store,
            clock=clock,
            timeout=timeout,
            max_lifetime=max_lifetime,
            sweep_interval=None,
            **settings,
        )
        expiry = Expiry(micros(timeout), None if max_lifetime is None else micros(max_lifetime))
        self.sweeper = Sweeper(
            store, clock, expiry, None if retention is None else micros(retention), uptime=monotonic
        )

    async def sweep(self) -> None:
        """Do what the background loop does after each pause."""
        await self.sweeper.sweep()


class Times:
    """A wall clock and a monotonic one: time passes on both, and a jump moves the first only."""

    def __init__(self) -> None:
        self.wall = FakeClock()
        self.monotonic = FakeClock(1_000.0)

    def pass_by(self, seconds: float) -> None:
        """Let time pass."""
        self.wall.turn(seconds)
        self.monotonic.turn(seconds)

    def jump(self, seconds: float) -> None:
        """Set the wall clock."""
        self.wall.turn(seconds)


def micros(seconds: float) -> int:
    """Return seconds as microseconds."""
    return round(seconds * 1_000_000)


def text(seconds: float) -> str:
    """Return seconds since the epoch as the table has them."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
