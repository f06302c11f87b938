# SPDX-License-Identifier: MIT
"""The engines that the suite runs over, and what its tests are made of.

A new engine is added to ENGINES, and has then to pass every test of this folder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from sessionstore.expiry import Expiry, Moment
from sessionstore.session import Record, decode_object, new_id
from sessionstore.sqlite import SQLiteStore
from sessionstore.store import Commit, Store, Touch

from .dict_store import Database, DictStore

SECOND = 1_000_000  # microseconds
NOW = 1_700_000_000 * SECOND  # 2023-11-14 22:13:20 UTC
TIMEOUT = 1_800 * SECOND
EXPIRY = Expiry(TIMEOUT)
ALL = 100_000  # more sessions than a test makes


@dataclass(frozen=True)
class Engine:
    """One database: its stores share what is in it."""

    make: Callable[[], Store]
    is_shared: bool  # whether several stores may be open at once, and find all after they close


Uptime = Callable[[], float]


def _dict(folder: Path, uptime: Uptime) -> Engine:
    database = Database()
    return Engine(lambda: DictStore(database), is_shared=True)


def _sqlite_file(folder: Path, uptime: Uptime) -> Engine:
    return Engine(lambda: SQLiteStore(folder / "sessions.db", uptime=uptime), is_shared=True)


def _sqlite_memory(folder: Path, uptime: Uptime) -> Engine:
    return Engine(lambda: SQLiteStore(":memory:", uptime=uptime), is_shared=False)


# Each takes an empty folder, and a clock that nobody sets.
ENGINES: dict[str, Callable[[Path, Uptime], Engine]] = {
    "dict": _dict,
    "sqlite": _sqlite_file,
    "sqlite in memory": _sqlite_memory,
}


class Mirror:
    """A listener that knows a store by its commits alone, and checks each of them.

    If several stores share their sessions, what it knows is only what its own store has written.
    """

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.times_forgotten = 0
        self.problems: list[str] = []
        self._records: dict[str, Record] = {}
        self._past: set[tuple[str, int]] = set()  # ids with the versions that their slots have left

    def on_commit(self, commit: Commit) -> None:
        """Follow what a commit did."""
        self.commits.append(commit)
        written = [record.id for record in commit.written]
        ids = [*commit.touched, *written, *commit.erased]
        self._expect(len(ids) == len(set(ids)), "touched, written and erased share an id")
        self._expect(len(ids) > 0, "a commit that did nothing")
        self._expect(set(ids) == set(commit.versions_before), "other ids than have versions")
        for record in commit.ended:
            self._expect(record.status != "active", "ended, and active")
            self._expect(record.id in written or record.id in commit.erased, "ended only")
        for id_, before in commit.versions_before.items():
            self._past.add((id_, before))
            self._expect((id_, commit.version) not in self._past, "a version came back")
        self._expect(commit.version % 2 == 0, "an odd version after a commit")
        for id_, touch in commit.touched.items():
            self._expect(touch.times > 0, "touched no times")
            if id_ in self._records:
                self._records[id_] = touched(self._records[id_], touch)
            else:
                self._expect(False, "touched what nobody has written")
        self._records |= {record.id: record for record in commit.written}
        for id_ in commit.erased:
            self._records.pop(id_, None)

    def forget(self) -> None:
        """Note that nothing can be believed."""
        self.times_forgotten += 1

    @property
    def sessions(self) -> dict[str, dict[str, Any]]:
        """What should be in the store."""
        return {id_: seen(record) for id_, record in self._records.items()}

    def _expect(self, is_right: bool, problem: str) -> None:
        if not is_right:  # what a listener raises is logged only
            self.problems.append(problem)


async def contents(store: Store) -> dict[str, dict[str, Any]]:
    """Return all that is in a store."""
    return {each.id: seen(each) for each in await store.search(at(), None, None, ALL)}


def at(seconds: float = 0, expiry: Expiry = EXPIRY, *, micros: int = 0) -> Moment:
    """Return the moment so many seconds after NOW."""
    return Moment(NOW + round(seconds * SECOND) + micros, expiry)


def a_record(**fields: Any) -> Record:
    """Return the record of a session that was created at NOW, but for the fields given."""
    record = Record(
        id=new_id(NOW),
        child_id="lina",
        status="active",
        started_at=NOW,
        ended_at=None,
        last_activity=NOW,
        data='{"topic":"stars"}',
        metadata='{"device":"robot"}',
        interaction_count=0,
        end_reason=None,
    )
    return record._replace(**fields)


def ended_record(ended_at: int = NOW, status: str = "ended", **fields: Any) -> Record:
    """Return the record of a session that has ended."""
    reason = "manual" if status == "ended" else status
    return a_record(status=status, ended_at=ended_at, end_reason=reason, **fields)


def seen(record: Record | None) -> dict[str, Any]:
    """Return what callers see of a record. An engine may keep end_reason in the metadata, too."""
    assert record is not None
    metadata = decode_object(record.metadata)
    if record.end_reason is not None:
        metadata["end_reason"] = record.end_reason
    return {**record._asdict(), "data": decode_object(record.data), "metadata": metadata}


def touched(record: Record, touch: Touch) -> Record:
    """Return a record as a touch leaves it."""
    return record._replace(
        last_activity=max(record.last_activity, touch.at),
        interaction_count=record.interaction_count + touch.times,
    )


def version_of(store: Store, session_id: str) -> int:
    """Return the version of a session's slot."""
    assert store.versions is not None
    return store.versions[crc32(session_id.encode()) % len(store.versions)]
