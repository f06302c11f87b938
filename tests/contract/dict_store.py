# SPDX-License-Identifier: MIT
"""A store in a dict: the seam in its simplest form.

It shows what an engine has to do, and lets the manager be tested without one. Each verb does its
work in one piece, since only one event loop is meant, and then lets others run before it returns.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from sessionstore.errors import StorageError, StoreClosedError
from sessionstore.expiry import Moment
from sessionstore.session import Record, SessionStatus
from sessionstore.store import Commit, Counts, Listener, Swept, Touch

logger = logging.getLogger(__name__)

SLOTS = 4  # so few that sessions share them
DAY = 86_400_000_000  # microseconds


@dataclass
class Database:
    """What several stores share, as processes share a file."""

    records: dict[str, Record] = field(default_factory=dict)
    versions: list[int] = field(default_factory=lambda: [0] * SLOTS)
    revision: int = 0


class DictStore:
    """The sessions in a dict, which other stores may share."""

    def __init__(self, database: Database | None = None) -> None:
        self._database = database or Database()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.versions: Sequence[int] | None = None

    async def open(self, listener: Listener, now: int) -> None:
        """Show what is there."""
        self.listener = listener
        self._loop = asyncio.get_running_loop()
        self.versions = self._database.versions

    async def close(self) -> None:
        """Show nothing any more."""
        self._loop = self.versions = None

    async def create(self, record: Record) -> None:
        """Add a session."""
        if record.id in self._records():
            raise StorageError("the id is there already")
        await self._commit(written=[record])

    async def touch(self, session_id: str, moment: Moment) -> bool:
        """Move the last_activity of a live session, and count an interaction."""
        live = self._live(session_id, moment)
        if live is not None:
            await self._commit(touched={live.id: Touch(1, moment.now)})
        return live is not None

    async def edit(
        self, session_id: str, moment: Moment, change: Callable[[Record], Record]
    ) -> bool:
        """Write the data and metadata that `change` makes of those of a live session."""
        live = self._live(session_id, moment)
        if live is not None:
            changed = change(live)
            live = _touched(live, Touch(0, moment.now))
            live = live._replace(data=changed.data, metadata=changed.metadata)
            await self._commit(written=[live])
        return live is not None

    async def end(self, session_id: str, moment: Moment, status: str, reason: str) -> bool:
        """End a live session."""
        live = self._live(session_id, moment)
        if live is not None:
            await self._commit(ended=[_ended(live, moment, status, reason)])
        return live is not None

    async def end_all(
        self, child_id: str, moment: Moment, status: str, reason: str, except_id: str | None
    ) -> int:
        """End all live sessions of a child but one."""
        ended = [
            _ended(record, moment, status, reason)
            for record in self._records().values()
            if _is_live(record, moment) and record.child_id == child_id and record.id != except_id
        ]
        await self._commit(ended=ended)
        return len(ended)

    async def erase(self, session_id: str) -> bool:
        """Delete a session, whatever its status."""
        erased = [session_id] if session_id in self._records() else []
        await self._commit(erased=erased)
        return bool(erased)

    async def time_out(self, moment: Moment, limit: int) -> Swept:
        """End up to `limit` sessions that have timed out."""
        records = self._records().values()
        due = [each for each in records if each.status == "active" and not _is_live(each, moment)]
        ended = [moment.expiry.timed_out(record) for record in due[:limit]]
        await self._commit(ended=ended)
        return Swept(len(ended), has_more=len(due) > limit)

    async def purge(self, ended_before: int, limit: int) -> int:
        """Erase up to `limit` sessions that ended at or before then."""
        records = self._records().values()
        old = [r.id for r in records if r.ended_at is not None and r.ended_at <= ended_before]
        await self._commit(erased=old[:limit])
        return len(old[:limit])

    async def tidy(self, moment: Moment) -> None:
        """Do nothing: there is no log, and no other program."""
        self._records()

    async def load(self, session_id: str) -> Record | None:
        """Return a session, whatever its status."""
        record = self._records().get(session_id)
        await asyncio.sleep(0)
        return record

    async def list_active(
        self, moment: Moment, child_id: str | None, after: tuple[int, str] | None, limit: int | None
    ) -> list[Record]:
        """Return live sessions in the order of starting."""
        return sorted(
            (
                record
                for record in self._records().values()
                if _is_live(record, moment)
                and child_id in (None, record.child_id)
                and (after is None or _position(record) > after)
            ),
            key=_position,
        )[:limit]

    async def list_of_child(self, child_id: str, limit: int) -> list[Record]:
        """Return the sessions of a child, started last first."""
        records = [each for each in self._records().values() if each.child_id == child_id]
        return sorted(records, key=_position, reverse=True)[:limit]

    async def search(
        self, moment: Moment, child_id: str | None, status: str | None, limit: int
    ) -> list[Record]:
        """Return sessions by child and status, started last first."""
        records = [
            record
            for record in self._records().values()
            if child_id in (None, record.child_id) and status in (None, _status(record, moment))
        ]
        return sorted(records, key=_position, reverse=True)[:limit]

    async def count(self, moment: Moment) -> Counts:
        """Count the sessions."""
        records = self._records().values()
        by_status = dict.fromkeys(map(str, SessionStatus), 0)
        for record in records:
            by_status[_status(record, moment)] += 1
        midnight = moment.now // DAY * DAY
        started_today = sum(record.started_at >= midnight for record in records)
        return Counts(by_status, started_today, database_bytes=0, engine_version="dict")

    def _records(self) -> dict[str, Record]:
        if self._loop is not asyncio.get_running_loop():
            raise StoreClosedError("the store is not open in this event loop")
        return self._database.records

    def _live(self, session_id: str, moment: Moment) -> Record | None:
        record = self._records().get(session_id)
        return record if record is not None and _is_live(record, moment) else None

    async def _commit(
        self,
        *,
        touched: Mapping[str, Touch] = {},  # never written to
        written: Sequence[Record] = (),
        erased: Iterable[str] = (),
        ended: Sequence[Record] = (),
    ) -> None:
        """Do what the arguments say, tell the listener, and let others run."""
        records, versions = self._database.records, self._database.versions
        written, erased = [*written, *ended], list(erased)
        ids = [*touched, *(record.id for record in written), *erased]
        slots = {id_: crc32(id_.encode()) % SLOTS for id_ in ids}
        if slots:
            before = {id_: versions[slot] for id_, slot in slots.items()}
            self._database.revision += 2  # even: none is ever seen under way
            for slot in slots.values():
                versions[slot] = self._database.revision
            records |= {id_: _touched(records[id_], touch) for id_, touch in touched.items()}
            records |= {record.id: record for record in written}
            for id_ in erased:
                del records[id_]
            commit = Commit(touched, written, erased, ended, before, self._database.revision)
            try:
                self.listener.on_commit(commit)
            except Exception:
                logger.exception("what hears of commits has failed; the callers go on")
        await asyncio.sleep(0)


def _is_live(record: Record, moment: Moment) -> bool:
    return (
        record.status == "active"
        and record.last_activity > moment.idle_cutoff
        and record.started_at > moment.lifetime_cutoff
    )


def _status(record: Record, moment: Moment) -> str:
    is_final = record.status != "active" or _is_live(record, moment)
    return record.status if is_final else "timeout"


def _touched(record: Record, touch: Touch) -> Record:
    return record._replace(
        last_activity=max(record.last_activity, touch.at),
        interaction_count=record.interaction_count + touch.times,
    )


def _ended(record: Record, moment: Moment, status: str, reason: str) -> Record:
    ended_at = max(record.last_activity, moment.now)
    return record._replace(status=status, ended_at=ended_at, end_reason=reason)


def _position(record: Record) -> tuple[int, str]:
    return record.started_at, record.id
