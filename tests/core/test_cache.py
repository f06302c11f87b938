# SPDX-License-Identifier: MIT
"""The cache against a small store with versions: no hit is stale, and the capacity holds."""

import math
import random
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionstore.cache import Cache, Ticket
from sessionstore.expiry import Expiry
from sessionstore.session import Record
from sessionstore.store import Commit, Touch

from ..seeds import draw_seed
from .records import NOW, record

SLOTS = 4  # few: sessions share them
EXPIRY = Expiry(1_800_000_000)
IDS = "abcdef"
FEW = "abc"  # so that what happens to one of them happens often


def slot_of(session_id: str) -> int:
    """Return where the version of a session stands."""
    return crc32(session_id.encode()) % SLOTS


class FakeStore:
    """What the cache sees of a store: the versions; and the records, which tests read by hand."""

    def __init__(self) -> None:
        self.versions: list[int] | None = [2] * SLOTS
        self.records: dict[str, Record] = {}
        self._version = 2

    def begin(self, *ids: str) -> dict[str, int]:
        """Make the versions of sessions odd; return those of before."""
        assert self.versions is not None
        before = {id_: self.versions[slot_of(id_)] for id_ in ids}
        for id_ in ids:
            self.versions[slot_of(id_)] = self._version + 1
        return before

    def finish(self, *ids: str) -> int:
        """Give them their next version, and return it."""
        assert self.versions is not None
        self._version += 2
        for id_ in ids:
            self.versions[slot_of(id_)] = self._version
        return self._version

    def write(self, *records: Record) -> Commit:
        """Write records; return what the process that did so is told."""
        ids = [each.id for each in records]
        before = self.begin(*ids)
        self.records.update({each.id: each for each in records})
        return Commit({}, records, [], [], before, self.finish(*ids))

    def erase(self, session_id: str) -> Commit:
        """Erase a session."""
        before = self.begin(session_id)
        self.records.pop(session_id, None)
        return Commit({}, [], [session_id], [], before, self.finish(session_id))

    def touch(self, session_id: str, times: int, moment: int) -> Commit:
        """Touch a session that is there."""
        before = self.begin(session_id)
        old = self.records[session_id]
        self.records[session_id] = old._replace(
            last_activity=max(old.last_activity, moment),
            interaction_count=old.interaction_count + times,
        )
        touched = {session_id: Touch(times, moment)}
        return Commit(touched, [], [], [], before, self.finish(session_id))


def make(capacity: int = 10) -> tuple[FakeStore, Cache]:
    """Return a store and a cache of it."""
    store = FakeStore()
    return store, Cache(store, EXPIRY, capacity)  # type: ignore[arg-type]


def load(store: FakeStore, cache: Cache, session_id: str) -> None:
    """Do what a miss does."""
    ticket = cache.ticket(session_id)
    cache.keep(store.records[session_id], ticket)


def test_a_record_that_was_loaded_is_a_hit() -> None:
    """It is given back as it is, with when it expires, until somebody writes to its slot."""
    store, cache = make()
    store.write(record("a"))
    assert cache.get("a") is None
    load(store, cache, "a")
    entry = cache.get("a")
    assert entry is not None
    assert entry.record == record("a")
    assert entry.expires_at == NOW + EXPIRY.timeout
    assert (cache.hits, cache.misses, len(cache)) == (1, 1, 1)
    store.write(record("a", interaction_count=1))  # by another process: nobody tells
    assert cache.get("a") is None


def test_an_active_record_is_true_until_shortly_before_it_expires() -> None:
    """By a float of seconds, which is not exact; what has ended is true for ever."""
    store, cache = make()
    store.write(record("a"), record("b", status="ended", ended_at=NOW))
    for id_ in "ab":
        load(store, cache, id_)
    active, ended = cache.get("a"), cache.get("b")
    assert active is not None
    assert ended is not None
    assert 0 < active.expires_at - active.true_until * 1_000_000 <= 5
    assert ended.true_until == math.inf


def test_nothing_is_kept_that_was_written_meanwhile() -> None:
    """A write between the ticket and the record, or one that is under way, keeps it out."""
    store, cache = make()
    store.write(record("a"))
    ticket, old = cache.ticket("a"), store.records["a"]
    store.write(record("a", data='{"new":1}'))
    cache.keep(old, ticket)
    assert cache.get("a") is None
    store.begin("a")
    assert cache.ticket("a") is None
    cache.keep(old, cache.ticket("a"))
    assert len(cache) == 0


def test_forget_drops_entries_and_loads_under_way() -> None:
    """What was asked for before is not kept after."""
    store, cache = make()
    store.write(record("a"), record("b"))
    load(store, cache, "a")
    ticket = cache.ticket("b")
    cache.forget()
    cache.keep(store.records["b"], ticket)
    assert len(cache) == 0
    assert cache.get("a") is None
    load(store, cache, "a")
    assert cache.get("a") is not None


def test_without_versions_there_are_no_hits() -> None:
    """While the store is closed, or if it can tell nothing, nothing is kept or given."""
    store, cache = make()
    commit = store.write(record("a"))
    load(store, cache, "a")
    ticket = cache.ticket("a")
    store.versions = None
    assert cache.get("a") is None
    assert cache.ticket("a") is None
    cache.keep(record("b"), ticket)
    cache.on_commit(commit)
    assert len(cache) == 1


def test_other_versions_are_asked_for_at_each_use() -> None:
    """The object may be replaced by one in which no earlier version stands."""
    store, cache = make()
    store.write(record("a"))
    load(store, cache, "a")
    store.versions = [1_000] * SLOTS
    assert cache.get("a") is None
    load(store, cache, "a")
    assert cache.get("a") is not None


def test_a_commit_of_our_own_is_taken_over() -> None:
    """What is written is kept if active, what ends or is erased goes, and touches are added."""
    store, cache = make()
    cache.on_commit(store.write(record("a"), record("b")))
    cache.on_commit(store.touch("a", 3, NOW + 10))
    entry = cache.get("a")
    assert entry is not None
    assert (entry.record.interaction_count, entry.record.last_activity) == (3, NOW + 10)
    assert entry.expires_at == NOW + 10 + EXPIRY.timeout
    cache.on_commit(store.touch("a", 1, NOW - 10))  # a clock that was set back
    entry = cache.get("a")
    assert entry is not None
    assert (entry.record.interaction_count, entry.record.last_activity) == (4, NOW + 10)
    cache.on_commit(store.write(record("a", status="ended", ended_at=NOW + 20)))
    assert cache.get("a") is None
    cache.on_commit(store.write(record("b")))
    cache.on_commit(store.erase("b"))
    assert len(cache) == 0


def test_a_touch_is_not_added_to_what_was_stale() -> None:
    """If another process has written in between, our own touch does not make the entry true."""
    store, cache = make()
    cache.on_commit(store.write(record("a")))
    store.write(record("a", data='{"new":1}'))
    cache.on_commit(store.touch("a", 1, NOW))
    assert cache.get("a") is None


@pytest.mark.parametrize("nothing", [None, 7, ["a"], {}, b"a", "unknown"])
def test_what_is_no_id_is_not_there(nothing: object) -> None:
    """Whatever is asked for, there is an answer."""
    _, cache = make()
    assert cache.get(nothing) is None  # type: ignore[arg-type]
    assert cache.hits == cache.misses == 0


STEPS = st.lists(st.tuples(st.sampled_from(["get", "load", "touch"]), st.sampled_from(IDS)))


@given(capacity=st.integers(0, 4), steps=STEPS)
def test_the_least_recently_used_goes_first(capacity: int, steps: list[tuple[str, str]]) -> None:
    """Whatever is done, the cache holds the sessions that were used last."""
    store, cache = make(capacity)
    store.versions = [2] * SLOTS
    for id_ in IDS:
        store.records[id_] = record(id_)
    order: list[str] = []
    for action, id_ in steps:
        is_known = id_ in order
        if is_known:
            order.remove(id_)
        if action == "get":
            assert (cache.get(id_) is not None) == is_known
        elif action == "load":
            load(store, cache, id_)
            is_known = True
        else:
            # Without a new version, so that those in the same slot stay true.
            cache.on_commit(Commit({id_: Touch(1, NOW)}, [], [], [], {id_: 2}, 2))
        if is_known:
            order = [*order, id_][max(0, len(order) + 1 - capacity) :]
        assert len(cache) == len(order)
    assert [id_ for id_ in IDS if cache.get(id_) is not None] == sorted(order)


class Process:
    """A process with a cache, the commits that it is still to hear of, and loads under way."""

    def __init__(self, store: FakeStore, capacity: int) -> None:
        self.store = store
        self.cache = Cache(store, EXPIRY, capacity)  # type: ignore[arg-type]
        self.told: list[Commit] = []
        self.loads: list[tuple[Ticket | None, Record]] = []

    def write(self, session_id: str, number: int) -> None:
        """Create, edit, or make anew."""
        self.told.append(self.store.write(record(session_id, data=f'{{"n":{number}}}')))

    def end(self, session_id: str, _: int) -> None:
        """End a session."""
        self.told.append(self.store.write(record(session_id, status="ended", ended_at=NOW)))

    def touch(self, session_id: str, number: int) -> None:
        """Touch a session if it is active."""
        if getattr(self.store.records.get(session_id), "status", "") == "active":
            self.told.append(self.store.touch(session_id, 1, NOW + number % 3 - 1))

    def erase(self, session_id: str, _: int) -> None:
        """Erase a session."""
        self.told.append(self.store.erase(session_id))

    def hear(self, *_: object) -> None:
        """Hear of the next commit."""
        if self.told:
            self.cache.on_commit(self.told.pop(0))

    def ask(self, session_id: str, _: int) -> None:
        """Note the version, and read the record."""
        ticket = self.cache.ticket(session_id)
        if session_id in self.store.records:
            self.loads.append((ticket, self.store.records[session_id]))

    def keep(self, _: str, number: int) -> None:
        """Keep what was read some time ago."""
        if self.loads:
            ticket, found = self.loads.pop(number % len(self.loads))
            self.cache.keep(found, ticket)

    def forget(self, *_: object) -> None:
        """Forget all."""
        self.cache.forget()


ACTIONS = [*["write", "touch", "touch", "ask", "keep", "hear", "hear", "hear"] * 3]
ACTIONS += ["end", "erase", "forget"]


def test_no_hit_is_ever_stale() -> None:
    """Whatever two processes write, hear and load, in whichever order, a hit is the truth."""
    chance = random.Random(draw_seed())
    for _ in range(400):
        store = FakeStore()
        capacity = chance.choice([0, 2, 6])
        processes = [Process(store, capacity) for _ in range(2)]
        for number in range(60):
            getattr(chance.choice(processes), chance.choice(ACTIONS))(chance.choice(FEW), number)
            for process in processes:
                assert len(process.cache) <= capacity
                for id_ in FEW:
                    entry = process.cache.get(id_)
                    assert entry is None or entry.record == store.records.get(id_)
