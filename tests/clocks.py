# SPDX-License-Identifier: MIT
"""A wall clock that jumps beside one that does not, and what must hold whatever they do.

A Ledger looks into the file after each call of whoever uses it, and knows what was there before.
"""

import sqlite3
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sessionstore import Session, SessionManager
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
            store,
            clock,
            expiry,
            None if retention is None else micros(retention),
            uptime=monotonic,
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


class Ledger:
    """Remembers what the file said of each session, and finds what must never be.

    `read_clocks` returns the seconds that the clocks of all managers show. What is ahead of one of
    them by more than the timeout may be brought back to it; else no last_activity moves back.
    """

    def __init__(self, database: Path, read_clocks: Callable[[], Iterable[float]] = tuple) -> None:
        self._connection = sqlite3.connect(database)
        self._read_clocks = read_clocks
        self._final: dict[str, tuple[str, str]] = {}  # status and ended_at of what has ended
        self._last_activity: dict[str, str] = {}
        self._gone: set[str] = set()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def check(self) -> None:
        """Read the file: nothing has come back to life, and no last_activity has moved back."""
        rows = self._connection.execute(
            "SELECT id, status, ended_at, last_activity FROM sessions"
        ).fetchall()
        for id_, status, ended_at, last_activity in rows:
            assert id_ not in self._gone, f"{id_} was erased, and is back"
            ended = self._final.get(id_)
            if ended is not None:
                assert (status, ended_at) == ended, f"{id_} had ended as {ended}; now {status}"
            elif status != "active":
                self._final[id_] = status, ended_at
            before = self._last_activity.get(id_, "")
            assert last_activity >= before or self._was_ahead(before, last_activity), (
                f"last_activity of {id_} was {before}: {last_activity}"
            )
            self._last_activity[id_] = last_activity
        self._gone |= self._last_activity.keys() - {id_ for id_, *_ in rows}

    def _was_ahead(self, before: str, after: str) -> bool:
        return any(
            after == text(now) and before > text(now + TIMEOUT) for now in self._read_clocks()
        )

    def check_snapshot(self, session_id: str, session: Session | None) -> None:
        """Hold an answer of a manager against what was in the file when it was asked."""
        if session is None:
            assert session_id in self._gone, f"{session_id} is not found, but was not erased"
            return
        assert session_id not in self._gone, f"{session_id} was erased, and is shown"
        if session_id in self._final:
            assert not session.is_active, f"{session_id} has ended, and is shown as active"
            assert str(session.status) == self._final[session_id][0]
        shown = text(session.last_activity.timestamp())
        assert shown >= self._last_activity[session_id], f"last_activity of {session_id}: {shown}"

    def check_change(self, session_id: str, changed: object) -> None:
        """Hold what a call that needs an active session returned against the file before it."""
        if session_id in self._final or session_id in self._gone:
            assert changed is False, f"{session_id} had ended, and was changed"

    def known(self) -> set[str]:
        """Return the ids of all sessions that were ever in the file."""
        return set(self._last_activity)

    def ended(self) -> list[str]:
        """Return the ids of all sessions that were seen ended."""
        return sorted(self._final)

    def by_status(self) -> dict[str, int]:
        """Count the rows of the file."""
        query = "SELECT status, count(*) FROM sessions GROUP BY status"
        return dict(self._connection.execute(query).fetchall())


def micros(seconds: float) -> int:
    """Return seconds as microseconds."""
    return round(seconds * 1_000_000)


def text(seconds: float) -> str:
    """Return seconds since the epoch as the table has them."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
