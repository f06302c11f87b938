# SPDX-License-Identifier: MIT
"""The seam: what the root asks of an engine, and the one place that names the engines.

An engine offers verbs, not queries. Times cross the seam as integers of microseconds since the
epoch, UTC; what an engine writes is its own affair. Policy (what merges, which status a reason
gives, when a session has timed out) is the root's.
"""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple, Protocol, runtime_checkable

from .errors import InvalidArgumentError
from .expiry import Moment
from .session import Record


class Touch(NamedTuple):
    """What touches did to one session in one commit."""

    times: int  # how many interactions were added
    at: int  # last_activity is now this, or what it was before if that is later


class Commit(NamedTuple):
    """What one commit did. touched, written and erased share no id: each as it was at COMMIT."""

    touched: Mapping[str, Touch]
    written: Sequence[Record]
    erased: Sequence[str]
    ended: Sequence[Record]  # what on_end hears of, even if it was erased in the same commit
    versions_before: Mapping[str, int]  # by id: the version of its slot before
    version: int  # of all those slots since


class Swept(NamedTuple):
    """What one chunk of a sweep did."""

    timed_out: int
    has_more: bool


class Counts(NamedTuple):
    """The figures of a store, all of one moment."""

    by_status: dict[str, int]  # all four; what has timed out counts as timed out
    started_today: int  # since 00:00 UTC
    database_bytes: int
    engine_version: str


class Listener(Protocol):
    """What a store tells the manager that opened it, in the event loop."""

    def on_commit(self, commit: Commit) -> None:
        """Called after each commit, before any of its callers goes on, even if all were cancelled.

        For one session in the order of its commits. What it raises is logged, and the callers go
        on.
        """

    def forget(self) -> None:
        """Called when nothing in memory can be believed any more, loads under way included."""


@runtime_checkable
class Store(Protocol):
    """An engine: sessions by id, shared by all processes that use the same database.

    Writes are atomic, each by itself. They return after COMMIT and raise only errors of errors.py.
    touch, edit, end and end_all change only what is live at their moment. create, edit, end,
    end_all, erase and purge survive a power cut; touch and time_out need survive only a crash of
    the process. A cancelled caller disturbs no other; whether its own write happens is open. A call
    that cannot know what became of it raises StorageError, says so, and is never sent twice unless
    that is harmless. Before open and after close each verb raises StoreClosedError, and so it does
    in another event loop than that of open.

    How concurrent calls are gathered is the engine's own affair.
    """

    # versions[crc32(id) % len(versions)] changes before a write to that session is acknowledged,
    # never takes an earlier value again, and is odd while one is under way. The object may be
    # another one at each use. None: nothing tells whether memory is still true, as while closed.
    versions: Sequence[int] | None

    async def open(self, listener: Listener, now: int) -> None:
        """Connect, and make or migrate the tables. All or nothing; may be called after close.

        Raises SchemaError, StorageError or StoreBusyError. It gives up soon if close is called
        meanwhile.
        """

    async def close(self) -> None:
        """Finish what was accepted, and let go of everything. Waits one second for locks at most.

        Writes that still wait for a lock then raise StoreBusyError. Does nothing if not open.
        """

    async def create(self, record: Record) -> None:
        """Add a session. StorageError if the id is there already."""

    async def touch(self, session_id: str, moment: Moment) -> bool:
        """Move last_activity to the moment, never backwards, and count one interaction.

        Of concurrent calls, a later moment may count for all that are live at it. Returns whether
        the session was live.
        """

    async def edit(
        self, session_id: str, moment: Moment, change: Callable[[Record], Record]
    ) -> bool:
        """Write the data and metadata of what `change` returns; move last_activity as touch does.

        `change` is a pure, quick function, which may be called more than once and in another
        thread. Whatever it raises is raised to its own caller, and nothing is written.
        """

    async def end(self, session_id: str, moment: Moment, status: str, reason: str) -> bool:
        """End a session at the moment, or at its last_activity if that is later."""

    async def end_all(
        self, child_id: str, moment: Moment, status: str, reason: str, except_id: str | None
    ) -> int:
        """End all live sessions of a child but one, in one commit; return how many."""

    async def erase(self, session_id: str) -> bool:
        """Delete a session, whatever its status, without a trace; return whether there was one."""

    async def time_out(self, moment: Moment, limit: int) -> Swept:
        """End up to `limit` sessions that have timed out, each as of when it expired.

        A chunk may time out none and say that there is more, or leave out what cannot be read.
        """

    async def purge(self, ended_before: int, limit: int) -> int:
        """Erase up to `limit` sessions that ended at or before then; return how many."""

    async def tidy(self, moment: Moment) -> None:
        """Do what the engine needs at each sweep."""

    async def load(self, session_id: str) -> Record | None:
        """Return a session, whatever its status. It is at least as new as the call."""

    async def list_active(
        self, moment: Moment, child_id: str | None, after: tuple[int, str] | None, limit: int | None
    ) -> list[Record]:
        """Return live sessions by (started_at, id), from behind `after` on."""

    async def list_of_child(self, child_id: str, limit: int) -> list[Record]:
        """Return the sessions of a child, whatever their status, started last first."""

    async def search(
        self, moment: Moment, child_id: str | None, status: str | None, limit: int
    ) -> list[Record]:
        """Return sessions by child and status at the moment, started last first."""

    async def count(self, moment: Moment) -> Counts:
        """Count the sessions at the moment."""


def make_store(database: object, **settings: Any) -> Store:
    """Return the store that a path or URL names, not yet open. A Store is returned as it is.

    Settings are those of the engine: see sqlite.SQLiteStore.

    Raises:
        InvalidArgumentError: no engine knows it.
    """
    if isinstance(database, Store):
        return database
    if not isinstance(database, str | bytes | PathLike):
        raise InvalidArgumentError("database must be a path or a sqlite:/// URL")
    from .sqlite import SQLiteStore

    return SQLiteStore(database, **settings)
