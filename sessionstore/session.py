# SPDX-License-Identifier: MIT
"""What a session is, as a row of the table and as the snapshot that callers get.

Rows are immutable and shared (by the cache, among others); a Session wraps one row and decodes its
JSON only when asked, for its one owner. The rule "has timed out" stands here once for Python
(Expiry.session), and in queries.py once for SQL. No I/O here, and the clock is not read.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, TypedDict, TypeVar, cast

from .errors import StorageError
from .sqlite.times import (
    EARLIEST,
    LATEST,
    UNREADABLE,
    micros_from_text,
    micros_to_text,
    time_from_text,
)

Value = TypeVar("Value")


def _read(convert: Callable[[str], Value], text: str) -> Value:
    try:
        return convert(text)
    except (TypeError, ValueError, RecursionError):
        raise StorageError(UNREADABLE) from None


class SessionStatus(StrEnum):
    """Name the state of a session. All but ACTIVE are final."""

    ACTIVE = "active"
    ENDED = "ended"
    TIMEOUT = "timeout"
    ERROR = "error"


class SessionStats(TypedDict):
    """Hold the counts of get_session_stats, all of one moment."""

    active_sessions: int
    sessions_today: int  # started since 00:00 UTC
    total_sessions: int
    by_status: dict[str, int]
    memory_cache_size: int  # sessions in this process's cache
    cache_hits: int
    cache_misses: int
    session_timeout_minutes: float
    database_bytes: int
    sqlite_version: str


# A row as SQLite gives it: the values of a SessionRow. Long lists are made of these. The garbage
# collector soon takes no more notice of plain tuples of texts and numbers, unlike named ones, and
# would stop the event loop for tens of milliseconds to look through a hundred thousand.
Row = tuple[str, str, str, str, str | None, str, str, str, int]


class SessionRow(NamedTuple):
    """Hold one row as the table has it, the columns in their order, but for swept_activity."""

    id: str
    child_id: str
    status: str
    started_at: str
    ended_at: str | None
    last_activity: str
    data: str
    metadata: str
    interaction_count: int

    def touched(self, moment: str) -> "SessionRow":
        """Return what queries.UPDATE_SESSION_ACTIVITY makes of the row at that moment."""
        before, data, metadata, count = self[:5], self.data, self.metadata, self.interaction_count
        return SessionRow(*before, max(self.last_activity, moment), data, metadata, count + 1)


class Context(NamedTuple):
    """Hold what a snapshot has beside its row. One is shared by all that have decoded nothing."""

    expiry: "Expiry"
    data: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class Session:
    """An immutable snapshot of one session at the moment of the call that returned it.

    Times are aware UTC datetimes. data and metadata are plain dicts of the caller's own: changing
    them changes nothing else. Snapshots with equal fields are equal.
    """

    # Two and no more, since the garbage collector looks through those of a long list, too.
    __slots__ = ("_context", "_source")

    _source: Row
    _context: Context

    @property
    def _row(self) -> SessionRow:
        return SessionRow._make(self._source)

    @property
    def id(self) -> str:
        """The session's id, a UUID4 of 36 characters."""
        return self._row.id

    @property
    def child_id(self) -> str:
        """The id of whoever owns the session."""
        return self._row.child_id

    @property
    def status(self) -> SessionStatus:
        """The state of the session; a session past its expires_at is TIMEOUT, swept or not."""
        return _read(SessionStatus, self._row.status)

    @property
    def is_active(self) -> bool:
        """Whether the session was active when the snapshot was taken."""
        return self._row.status == "active"

    @property
    def started_at(self) -> datetime:
        """When the session was created."""
        return time_from_text(self._row.started_at)

    @property
    def ended_at(self) -> datetime | None:
        """When the session ended or timed out; None while it is active."""
        return None if self._row.ended_at is None else time_from_text(self._row.ended_at)

    @property
    def last_activity(self) -> datetime:
        """When the session was last created, touched or updated."""
        return time_from_text(self._row.last_activity)

    @property
    def expires_at(self) -> datetime:
        """When the session times out, or would have, without further activity."""
        return time_from_text(micros_to_text(min(LATEST, self._expires_at)))

    @property
    def data(self) -> dict[str, Any]:
        """The application's data: a dict that belongs to this snapshot alone."""
        if self._context.data is None:
            self._context = self._context._replace(data=_read(json.loads, self._row.data))
        return cast("dict[str, Any]", self._context.data)

    @property
    def metadata(self) -> dict[str, Any]:
        """The data about the session: a dict that belongs to this snapshot alone."""
        if self._context.metadata is None:
            self._context = self._context._replace(metadata=_read(json.loads, self._row.metadata))
        return cast("dict[str, Any]", self._context.metadata)

    @property
    def interaction_count(self) -> int:
        """How many calls of update_activity the session has counted."""
        return self._row.interaction_count

    @property
    def end_reason(self) -> str | None:
        """The reason that ended the session, "timeout" included; None while it is active."""
        reason = None if self.is_active else _read(json.loads, self._row.metadata).get("end_reason")
        return reason if isinstance(reason, str) else None

    @property
    def duration(self) -> timedelta:
        """The time from start to end, or to the last activity while active; never negative."""
        return max(timedelta(0), (self.ended_at or self.last_activity) - self.started_at)

    @property
    def _expires_at(self) -> int:
        return self._context.expiry.expires_at(self._source)

    def _scalars(self) -> tuple[Any, ...]:
        return (*self._row[:6], self._row.interaction_count, self._expires_at)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        return (
            self._scalars() == other._scalars()
            and self.data == other.data
            and self.metadata == other.metadata
        )

    def __hash__(self) -> int:
        return hash(self._scalars())

    def __repr__(self) -> str:
        return f"<Session {self.id[:8]} {self._row.status} interactions={self.interaction_count}>"


def position(session: Session) -> tuple[str, str]:
    """Return where the session stands in the order of starting: started_at as text, and id."""
    return session._source[3], session._source[0]


@dataclass(frozen=True, slots=True)
class Expiry:
    """Say when sessions time out: after an idle time, and after a lifetime if there is one.

    Both are in microseconds. For SQL the rule is a pair of cutoffs, for Python a moment.
    """

    timeout: int
    max_lifetime: int | None = None
    context: Context = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make the context of the snapshots."""
        object.__setattr__(self, "context", Context(self))

    def expires_at(self, row: Row) -> int:
        """Return the moment at which the row's session times out."""
        return self.moment(started_at=row[3], last_activity=row[5])

    def moment(self, started_at: str, last_activity: str) -> int:
        """Return the moment at which a session with these times times out."""
        idle = micros_from_text(last_activity) + self.timeout
        if self.max_lifetime is None:
            return idle
        return min(idle, micros_from_text(started_at) + self.max_lifetime)

    def cutoffs(self, now: int) -> dict[str, str]:
        """Return the parameters that every statement with the rule in it needs."""
        lifetime_cutoff = "" if self.max_lifetime is None else _cutoff(now - self.max_lifetime)
        return {
            "now": micros_to_text(now),
            "idle_cutoff": _cutoff(now - self.timeout),
            "lifetime_cutoff": lifetime_cutoff,
        }

    def snapshot(self, row: Row) -> Session:
        """Return the snapshot of a row. A constructor would take twice as long where it matters."""
        session = Session()
        session._source = row
        session._context = self.context
        return session

    def session(self, row: Row, now: int) -> Session:
        """Return the snapshot of the row at now: timed out from expires_at on, swept or not."""
        expires_at = self.expires_at(row)
        if now >= expires_at and (unswept := SessionRow._make(row)).status == "active":
            metadata = {**_read(json.loads, unswept.metadata), "end_reason": "timeout"}
            row = unswept._replace(
                status="timeout",
                ended_at=micros_to_text(expires_at),
                metadata=json.dumps(metadata, ensure_ascii=False),
            )
        return self.snapshot(row)


def _cutoff(micros: int) -> str:
    """Turn a moment into text; one before all times into '', which sorts before all texts."""
    return micros_to_text(micros) if micros >= EARLIEST else ""
