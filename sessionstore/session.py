# SPDX-License-Identifier: MIT
"""What a session is: as callers see it, and as it is stored.

A Record is immutable and shared, by the cache among others. A Session wraps one record and decodes
its JSON only when asked, for its one owner. No I/O here, and no clock is read.
"""

import json
import os
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

from .errors import StorageError

# The times of a record lie between the first and the last microsecond that datetime knows.
EARLIEST = -62_135_596_800_000_000  # 0001-01-01 00:00:00
LATEST = 253_402_300_799_999_999  # 9999-12-31 23:59:59.999999

UNREADABLE = "a session in the store cannot be read; mend it, delete it, or restore a backup"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SessionStatus(StrEnum):
    """The state of a session. All but ACTIVE are final."""

    ACTIVE = "active"
    ENDED = "ended"
    TIMEOUT = "timeout"
    ERROR = "error"


class SessionStats(TypedDict):
    """The figures of get_session_stats, all of one moment."""

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


class Record(NamedTuple):
    """A session as it is stored. Times are microseconds since the epoch, UTC.

    data and metadata are JSON objects. end_reason is None while the session is active; an engine
    may keep it in the metadata, too.
    """

    id: str
    child_id: str
    status: str
    started_at: int
    ended_at: int | None
    last_activity: int
    data: str
    metadata: str
    interaction_count: int
    end_reason: str | None

    def touched(self, times: int, at: int) -> "Record":
        """Return the record after so many interactions, the last one at that time."""
        return self._replace(
            last_activity=max(self.last_activity, at),
            interaction_count=self.interaction_count + times,
        )


class Session:
    """An immutable snapshot of one session at the moment of the call that returned it.

    Times are aware datetimes in UTC. data and metadata are plain dicts of the caller's own:
    changing them changes nothing else. Snapshots with equal fields are equal.
    """

    __slots__ = ("_data", "_expires_at", "_metadata", "_record")

    def __init__(self, record: Record, expires_at: int) -> None:
        self._record = record
        self._expires_at = expires_at

    @property
    def id(self) -> str:
        """The session's id: a UUID in its form of 36 characters."""
        return self._record.id

    @property
    def child_id(self) -> str:
        """The id of whoever owns the session."""
        return self._record.child_id

    @property
    def status(self) -> SessionStatus:
        """The state of the session; from expires_at on it is TIMEOUT, swept or not."""
        return SessionStatus(self._record.status)

    @property
    def is_active(self) -> bool:
        """Whether the session was active when the snapshot was taken."""
        return self._record.status == "active"

    @property
    def started_at(self) -> datetime:
        """When the session was created."""
        return _to_datetime(self._record.started_at)

    @property
    def ended_at(self) -> datetime | None:
        """When the session ended or timed out; None while it is active."""
        ended_at = self._record.ended_at
        return None if ended_at is None else _to_datetime(ended_at)

    @property
    def last_activity(self) -> datetime:
        """When the session was last created, touched or updated."""
        return _to_datetime(self._record.last_activity)

    @property
    def expires_at(self) -> datetime:
        """When the session times out, or would have, without further activity."""
        return _to_datetime(min(self._expires_at, LATEST))

    @property
    def data(self) -> dict[str, Any]:
        """The application's data: a dict that belongs to this snapshot alone.

        Raises:
            StorageError: another program has written what is no JSON object of Python's.
        """
        try:
            return self._data
        except AttributeError:
            self._data: dict[str, Any] = decode_object(self._record.data)
            return self._data

    @property
    def metadata(self) -> dict[str, Any]:
        """The data about the session, likewise; of one that has ended, with its "end_reason"."""
        try:
            return self._metadata
        except AttributeError:
            self._metadata: dict[str, Any] = decode_object(self._record.metadata)
            if self._record.end_reason is not None:
                self._metadata["end_reason"] = self._record.end_reason
            return self._metadata

    @property
    def interaction_count(self) -> int:
        """How many calls of update_activity the session has counted."""
        return self._record.interaction_count

    @property
    def end_reason(self) -> str | None:
        """The reason that ended the session, "timeout" included; None while it is active."""
        return self._record.end_reason

    @property
    def duration(self) -> timedelta:
        """The time from start to end, or to the last activity while active; never negative."""
        return max(timedelta(0), (self.ended_at or self.last_activity) - self.started_at)

    def _identity(self) -> tuple[Any, ...]:
        record = self._record
        return (*record[:6], record.interaction_count, record.end_reason, self._expires_at)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        return (
            self._identity() == other._identity()
            and self.data == other.data
            and self.metadata == other.metadata
        )

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        record = self._record
        return f"<Session …{short_id(record.id)} {record.status} {record.interaction_count}>"


def position(session: Session) -> tuple[int, str]:
    """Return where the session stands in the order of starting: its started_at and its id."""
    return session._record.started_at, session._record.id


def decode_object(text: str) -> dict[str, Any]:
    """Return the dict that a stored JSON object stands for.

    Raises:
        StorageError: it is none; the message quotes nothing of it.
    """
    try:
        decoded = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        raise StorageError(UNREADABLE)
    return decoded


def new_id(now: int) -> str:
    """Return a new UUID of version 7 (RFC 9562, section 5.7) as text of 36 characters.

    48 bits are the milliseconds of `now`, so that new rows are neighbours in an index; 74 bits come
    from the operating system's random source.
    """
    milliseconds = max(0, now // 1_000) & 0xFFFF_FFFF_FFFF
    random = int.from_bytes(os.urandom(10), "big")
    high, low = random >> 68, random & 0x3FFF_FFFF_FFFF_FFFF
    return str(UUID(int=milliseconds << 80 | 0x7000 << 64 | high << 64 | 1 << 63 | low))


def short_id(session_id: str) -> str:
    """Return the end of an id, for logs. Ids of one minute share their first characters."""
    return session_id[-8:]


def _to_datetime(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)
