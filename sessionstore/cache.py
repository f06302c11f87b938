# SPDX-License-Identifier: MIT
"""Records by id in memory, each believed while its version stands.

The store tells of its commits and shows a version for each slot of sessions; the contract of both
stands in store.py. An entry was true when its slot had the version that it notes. While that is
still the version of the slot, nobody has written to the session. The store's versions are asked for
at each use, since the object may be another one; while the store is closed there are none, and so
no hits.
"""

import math
from collections import OrderedDict
from typing import NamedTuple
from zlib import crc32

from .expiry import Expiry
from .session import Record
from .store import Commit, Store


class Entry(NamedTuple):
    """A record, and the version of its slot under which it is true."""

    record: Record
    expires_at: int
    true_until: float  # seconds by the clock, from which on an active session may have timed out
    slot: int
    version: int


class Ticket(NamedTuple):
    """What was noted before a record was asked for, so that it may be kept afterwards."""

    slot: int
    version: int
    era: int


class Cache:
    """The records that were used last, up to a capacity."""

    def __init__(self, store: Store, expiry: Expiry, capacity: int) -> None:
        self._store = store
        self._expiry = expiry
        self._capacity = capacity
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._era = 0  # that ends when all is forgotten
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, session_id: str) -> Entry | None:
        """Return the entry of a session if it is there and its version stands: a hit.

        What is no id is not there.
        """
        try:
            entry = self._entries[session_id]
            _, _, _, slot, version = entry
            if self._store.versions[slot] == version:  # type: ignore[index]
                self._entries.move_to_end(session_id)
                self.hits += 1
                return entry
        except (KeyError, TypeError):  # not there; or no versions, and so nothing true
            pass
        return None

    def ticket(self, session_id: str) -> Ticket | None:
        """Note the version of a session before its record is asked for: a miss.

        None: the record is not to be kept.
        """
        self.misses += 1
        versions = self._store.versions
        if versions is None or self._capacity == 0:
            return None
        slot = crc32(session_id.encode()) % len(versions)
        version = versions[slot]
        return None if version & 1 else Ticket(slot, version, self._era)

    def keep(self, record: Record, ticket: Ticket | None) -> None:
        """Keep a record that was asked for with the ticket, if it is still true."""
        versions = self._store.versions
        if (
            ticket is not None
            and versions is not None
            and ticket.era == self._era
            and versions[ticket.slot] == ticket.version
        ):
            self._put(record, ticket.slot, ticket.version)

    def on_commit(self, commit: Commit) -> None:
        """Take over what a commit did to the sessions."""
        versions = self._store.versions
        if versions is None or self._capacity == 0:
            return
        for record in commit.written:
            if record.status == "active":
                slot = crc32(record.id.encode()) % len(versions)
                self._put(record, slot, commit.version)
            else:
                self._entries.pop(record.id, None)
        for session_id in commit.erased:
            self._entries.pop(session_id, None)
        for session_id, touch in commit.touched.items():
            entry = self._entries.get(session_id)
            if entry is not None and entry.version == commit.versions_before[session_id]:
                self._put(entry.record.touched(*touch), entry.slot, commit.version)

    def forget(self) -> None:
        """Drop all entries, and keep nothing of the loads that are under way."""
        self._entries.clear()
        self._era += 1

    def _put(self, record: Record, slot: int, version: int) -> None:
        expires_at = self._expiry.expires_at(record)
        # A float of seconds is not exact to the microsecond.
        true_until = (expires_at - 2) / 1_000_000 if record.status == "active" else math.inf
        self._entries[record.id] = Entry(record, expires_at, true_until, slot, version)
        self._entries.move_to_end(record.id)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
