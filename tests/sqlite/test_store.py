# SPDX-License-Identifier: MIT
"""The operations on the table by themselves, where the manager shows too little of them."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionstore.session import Expiry, SessionRow
from sessionstore.sqlite import store
from sessionstore.sqlite.schema import migrate
from sessionstore.sqlite.times import micros_to_text
from sessionstore.sqlite.writer import NO_CHANGE, Change

from .test_query_plans import steps_of

NOON = 1_700_049_600_000_000  # 2023-11-15 12:00:00 UTC, in microseconds
SECOND = 1_000_000
EXPIRY = Expiry(60 * SECOND)
LIMITED = Expiry(60 * SECOND, max_lifetime=100 * SECOND)
IDS = ["plain", 'a"b', "a\\u0022", "{}", "łódka", "🙂", "not there"]  # as JSON has them, and not


@pytest.fixture
def connection(database: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection to a new file with today's schema, in WAL mode as the package has it."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        migrate(connection, str(database), micros_to_text(NOON))
        yield connection


def add(connection: sqlite3.Connection, id_: str, last_activity: int = NOON) -> None:
    """Add an active session."""
    moment = micros_to_text(last_activity)
    row = SessionRow(id_, "lina", "active", moment, None, moment, "{}", "{}", 0)
    store.insert_session(connection, row)


def test_a_full_chunk_of_live_sessions_is_not_the_last(connection: sqlite3.Connection) -> None:
    """However small a chunk is, a sweep that has moved something on goes on to the next one."""
    for id_ in "abc":
        add(connection, id_)
    connection.execute(
        "UPDATE sessions SET last_activity = ?", [micros_to_text(NOON + 30 * SECOND)]
    )
    now = NOON + 60 * SECOND
    chunks = [store.time_out_sessions(connection, EXPIRY, now, 1) for _ in range(4)]
    assert [chunk.is_all for chunk in chunks] == [False, False, False, True]
    assert not any(chunk.rows for chunk in chunks)


def test_purge_takes_what_ended_first(connection: sqlite3.Connection) -> None:
    """Where a chunk cannot hold all, the oldest go first, whatever index finds them."""
    connection.execute("DROP INDEX idx_sessions_ended_at")
    for number, id_ in enumerate("dacb"):
        add(connection, id_)
        cutoffs = EXPIRY.cutoffs(NOON + (10 - number) * SECOND)
        assert store.end_session(connection, id_, "manual", cutoffs).rows
    cutoff = micros_to_text(NOON + 60 * SECOND)
    first = store.purge_sessions(connection, cutoff, 3)
    assert (set(first.erased), first.is_all) == ({"b", "c", "a"}, False)
    last = store.purge_sessions(connection, cutoff, 3)
    assert (list(last.erased), last.is_all) == (["d"], True)


def test_statistics_are_of_one_moment(connection: sqlite3.Connection, database: Path) -> None:
    """What another connection commits between two of their statements is in none of them."""
    now = NOON + 60 * SECOND
    add(connection, "a", NOON)
    add(connection, "b", now)
    seen: list[str] = []
    with closing(sqlite3.connect(database, isolation_level=None)) as other:

        def commit_between(statement: str) -> None:
            if "SELECT" not in statement:
                return
            seen.append(statement)
            if len(seen) > 1:  # the first one is what the moment begins with
                store.time_out_sessions(other, EXPIRY, now, 10)
                add(other, f"new {len(seen)}", now)

        connection.set_trace_callback(commit_between)
        counts = store.count_sessions(connection, EXPIRY.cutoffs(now))
        connection.set_trace_callback(None)
        after = store.count_sessions(connection, EXPIRY.cutoffs(now))
    assert len(seen) == 3
    assert counts.by_status == {"active": 1, "ended": 0, "timeout": 1, "error": 0}
    assert after.by_status == {"active": 3, "ended": 0, "timeout": 1, "error": 0}


def test_what_has_timed_out_counts_once_swept_or_not(connection: sqlite3.Connection) -> None:
    """A timeout that a sweep has marked and one that it has not are two timeouts."""
    add(connection, "swept", NOON)
    assert store.time_out_sessions(connection, EXPIRY, NOON + 60 * SECOND, 10).rows
    for number in range(3):
        add(connection, f"unswept {number}", NOON + SECOND)
    add(connection, "live", NOON + 2 * SECOND)
    counts = store.count_sessions(connection, EXPIRY.cutoffs(NOON + 61 * SECOND))
    assert counts.by_status == {"active": 1, "ended": 0, "timeout": 4, "error": 0}
    assert counts.started_today == 5


Touch = tuple[Change, Expiry, int]


def touch(id_: str, expiry: Expiry = EXPIRY, now: int = NOON + SECOND) -> Touch:
    """Return what the store takes for one touch."""
    return Change((), id_, micros_to_text(now)), expiry, now


def touch_all(connection: sqlite3.Connection, touches: list[Touch]) -> list[Change]:
    """Touch the sessions together, and by themselves those that are left."""
    changes = store.touch_sessions(connection, touches)
    pairs = zip(touches, changes, strict=True)
    return [change or store.touch_session(connection, *call) for call, change in pairs]


def everything(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    """Return all rows, swept_activity included."""
    return connection.execute("SELECT * FROM sessions ORDER BY id").fetchall()


def table(kinds: list[str], ages: list[int]) -> sqlite3.Connection:
    """Return a table with the sessions of IDS, but for the last one, each of a kind and an age."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, ":memory:", micros_to_text(NOON))
    for id_, kind, age in zip(IDS, kinds, ages, strict=False):
        add(connection, id_, NOON - age * SECOND)
        if kind == "ended":
            store.end_session(connection, id_, "manual", Expiry(10**12).cutoffs(NOON))
        if kind == "marked":
            connection.execute(
                "UPDATE sessions SET swept_activity = ? WHERE id = ?",
                [micros_to_text(NOON - 20 * SECOND)[:25], id_],
            )
    return connection


@given(
    kinds=st.lists(st.sampled_from(["live", "live", "ended", "marked"]), min_size=6, max_size=6),
    # In seconds; below zero the session is ahead of the clock, and 58 to 62 is about the timeout.
    ages=st.lists(st.integers(-5, 5) | st.integers(58, 62), min_size=6, max_size=6),
    touches=st.lists(st.tuples(st.sampled_from(IDS), st.integers(-3, 3)), min_size=2, max_size=12),
    expiry=st.sampled_from([EXPIRY, LIMITED]),
)
@settings(max_examples=300)
def test_touches_together_are_what_they_are_one_by_one(
    kinds: list[str], ages: list[int], touches: list[tuple[str, int]], expiry: Expiry
) -> None:
    """Live, ended, timed out, ahead, marked or absent, once or often: the rows are the same."""
    calls = [touch(id_, expiry, NOON + second * SECOND) for id_, second in touches]
    with closing(table(kinds, ages)) as together, closing(table(kinds, ages)) as one_by_one:
        joint = touch_all(together, calls)
        single = [store.touch_session(one_by_one, *call) for call in calls]
        assert joint == single
        assert everything(together) == everything(one_by_one)


def steps_of_touches(connection: sqlite3.Connection, ids: list[str]) -> int:
    """Touch all that are there, and return how many steps SQLite's virtual machine takes."""
    changes: list[Change | None] = []
    calls = [touch(id_) for id_ in ids]
    steps = steps_of(connection, lambda: changes.extend(store.touch_sessions(connection, calls)))
    there = {row[0] for row in everything(connection)}
    assert [change is not None for change in changes] == [id_ in there for id_ in ids]
    return steps


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("missing", [0, 1])
def test_touching_many_reads_no_others(
    connection: sqlite3.Connection, analyzed: bool, missing: int
) -> None:
    """The steps of SQLite for ten sessions are as many among a thousand as among a hundred.

    So it is where SQLite believes what ANALYZE has found when there was one session, and where not
    all are found, so that it must say which.
    """
    if analyzed:
        add(connection, f"{0:036}")
        connection.execute("ANALYZE")
        add(connection, f"{1:036}")
    steps = []
    for count in (100, 1_000):
        for number in range(len(everything(connection)), count):
            add(connection, f"{number:036}")
        ids = [f"{number:036}" for number in range(40, 50)]
        steps.append(steps_of_touches(connection, ids + ["not there"] * missing))
    assert steps[1] < steps[0] + 50  # a page more or less


def test_touching_many_more_is_no_more_work_for_each(connection: sqlite3.Connection) -> None:
    """The steps of SQLite for four hundred sessions are four times those for a hundred."""
    for number in range(500):
        add(connection, f"{number:036}")
    ids = [f"{number:036}" for number in range(500)]
    hundred = steps_of_touches(connection, ids[:100])
    assert steps_of_touches(connection, ids[100:]) < 5 * hundred


def test_a_trigger_that_passes_a_session_by_is_not_taken_for_a_touch(
    connection: sqlite3.Connection,
) -> None:
    """It is left to be touched by itself, which the trigger passes by, too."""
    for id_ in "abc":
        add(connection, id_)
    connection.execute(
        "CREATE TRIGGER host BEFORE UPDATE ON sessions WHEN old.id = 'b'"
        " BEGIN SELECT RAISE(IGNORE); END"
    )
    calls = [touch(id_) for id_ in "abc"]
    assert [change is not None for change in store.touch_sessions(connection, calls)] == [
        True,
        False,
        True,
    ]
    assert store.touch_session(connection, *calls[1]) == NO_CHANGE
