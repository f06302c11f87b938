# SPDX-License-Identifier: MIT
"""How SQLite finds what each statement of queries.py asks for.

The tables below say which index serves which statement, and which statements read everything on
purpose. A new statement must be entered in one of them. A plan names only the first column of a
range, so what must not grow with the table is also counted in steps of SQLite's virtual machine,
through the verbs of the store.
"""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from sessionstore.expiry import Expiry
from sessionstore.session import Record
from sessionstore.sqlite import SQLiteStore, queries
from sessionstore.sqlite.rows import to_row
from sessionstore.sqlite.schema import migrate

from .tools import NOON, SECOND, connect, moment, new_record, opened

BY_ID = "sqlite_autoindex_sessions_1 (id=?)"
BY_STARTING = "idx_sessions_status (status=? AND (started_at,id)>(?,?))"
DUE = "idx_sessions_activity (*swept_activity<?)"
AHEAD = "idx_sessions_activity (*swept_activity>?)"
ACTIVE_OF_CHILD = "idx_sessions_child_id (child_id=? AND status=?*)"
AGED = "idx_sessions_status (status=? AND started_at<?)"

# The searches that each statement must make, as patterns of the index with its constraint. It may
# make no others, but for rows by their id.
EXPECTED: dict[str, set[str]] = {
    "UPDATE_SESSION_TOUCHED": {BY_ID},
    "UPDATE_SESSIONS_TOUCHED": {BY_ID},
    "SELECT_LIVE_IDS": {BY_ID},
    "SELECT_LIVE_SESSION": {BY_ID},
    "UPDATE_SESSION_EDITED": {BY_ID},
    "UPDATE_SESSION_ENDED": {BY_ID},
    "UPDATE_SESSIONS_ENDED_BY_CHILD": {ACTIVE_OF_CHILD},
    "SELECT_SESSIONS_IDLE": {DUE},
    "SELECT_SESSIONS_AGED": {AGED},
    "UPDATE_SESSIONS_TIMED_OUT": {BY_ID},
    "UPDATE_SESSIONS_SWEPT": {BY_ID},
    "SELECT_SESSION_AHEAD": {AHEAD},
    "UPDATE_SESSIONS_AHEAD": {BY_ID, AHEAD},
    "DELETE_SESSION": {BY_ID},
    "DELETE_SESSIONS_ENDED_BEFORE": {BY_ID, "idx_sessions_ended_at (ended_at<?)"},
    "SELECT_SESSION": {BY_ID},
    "SELECT_SMALL_SESSIONS": {BY_ID},
    "SELECT_SESSIONS_ACTIVE": {BY_STARTING},
    "SELECT_SESSIONS_ACTIVE_BY_CHILD": {
        "idx_sessions_child_id (child_id=? AND status=? AND (started_at,id)>(?,?))"
    },
    "SELECT_SESSIONS_BY_CHILD": {"idx_sessions_child_id (child_id=? AND status=?)"},
    "COUNT_SESSIONS_TIMED_OUT": {DUE, AGED},
}

# The whole plan of each statement that reads everything, or nothing of the table.
WHOLE_PLANS: dict[str, list[str]] = {
    # A list for an operator, by any filter, sorted afterwards.
    "SELECT_SESSIONS_BY_FILTER": ["SCAN sessions*", "USE TEMP B-TREE FOR ORDER BY"],
    # The statistics count all sessions, in an index alone.
    "COUNT_SESSIONS_BY_STATUS": ["SCAN sessions USING COVERING INDEX idx_sessions_status"],
    # An adoption takes all rows along.
    "CREATE_PREDECESSOR_ROWS": ["SCAN main.sessions"],
    "SELECT_PREDECESSOR_ROWS": ["SCAN temp.predecessor_sessions"],
    # New rows.
    "INSERT_SESSION": [],
    "INSERT_SESSIONS": ["SCAN json_each VIRTUAL TABLE INDEX 1:"],
    "DELETE_MIGRATION_NONE": ["SEARCH sessionstore_migrations USING INTEGER PRIMARY KEY (rowid=?)"],
    "INSERT_MIGRATION": [],
    # Once at each opening, a few rows.
    "SELECT_MIGRATION_VERSIONS": ["SCAN sessionstore_migrations"],
}

# What is about the file, the connection or the transaction, and about no session.
OTHERS = re.compile(r"(BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE|PRAGMA|DROP TABLE|CREATE TABLE)\b")
OF_THE_FILE = re.compile(r"FROM (sqlite_master|pragma_\w+)")

MINUTE = 60 * SECOND
COUNT = 3_000
CHILDREN = 100


def sessions_in(statuses: str, count: int) -> Iterator[Record]:
    """Yield a session a minute, whose statuses are those of the letters in turn."""
    names = {"a": "active", "e": "ended", "t": "timeout", "r": "error"}
    for number in range(count):
        status = names[statuses[number % len(statuses)]]
        started_at = NOON + number * MINUTE
        yield new_record(
            id=f"{number * 7_919 % COUNT:036}",
            child_id=f"child-{number % CHILDREN}",
            status=status,
            started_at=started_at,
            ended_at=None if status == "active" else started_at + 40 * MINUTE,
            last_activity=started_at + 10 * MINUTE,
        )


def fill(path: Path, statuses: str, count: int = COUNT) -> None:
    """Make a file with so many sessions."""
    with connect(path) as connection:
        migrate(connection, str(path), NOON)
        connection.execute("BEGIN")
        for record in sessions_in(statuses, count):
            connection.execute(queries.INSERT_SESSION, to_row(record))
        connection.execute("COMMIT")


TABLES = {
    # name: the statuses of the sessions, how many, and when ANALYZE has seen them
    "empty": ("a", 0, "never"),
    "small": ("ae", 10, "never"),
    "big, few active": ("eeeeeeeeeeeeeetra", COUNT, "at the end"),
    "big, all active": ("a", COUNT, "at the end"),
    "big, analyzed never": ("aeeet", COUNT, "never"),
    "big, analyzed when it was empty": ("aeeet", COUNT, "at 0"),
    "big, analyzed with one row": ("aeeet", COUNT, "at 1"),
}


@pytest.fixture(scope="module", params=TABLES)
def connection(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[sqlite3.Connection]:
    """Yield a connection to each of the tables."""
    statuses, count, analyzed = TABLES[request.param]
    path = tmp_path_factory.mktemp("plans") / "sessions.db"
    with connect(path) as connection:
        migrate(connection, str(path), NOON)
        connection.execute("BEGIN")
        for number, record in enumerate(sessions_in(statuses, count)):
            if analyzed == f"at {number}":
                connection.execute("ANALYZE")
            connection.execute(queries.INSERT_SESSION, to_row(record))
        if analyzed == "at the end":
            connection.execute("ANALYZE")
        connection.execute("COMMIT")
    with connect(path) as connection:  # which knows what ANALYZE has found
        yield connection


def statements() -> dict[str, str]:
    """Return the statements of queries.py by name."""
    return {
        name: text
        for name, text in vars(queries).items()
        if name.isupper() and not name.startswith("_") and isinstance(text, str)
    }


def plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    """Return the steps that SQLite means to take, in the words of its newer releases."""
    parameters = dict.fromkeys(re.findall(r":([a-z_]+)", statement), "")
    rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
    return [detail.replace("TABLE sessions", "sessions") for _, _, _, detail in rows]


def test_every_statement_has_a_plan_that_is_tested() -> None:
    """Each statement is in one of the tables above, or about no session at all."""
    rest = {
        name
        for name, text in statements().items()
        if not OTHERS.match(text.strip()) and not OF_THE_FILE.search(text)
    }
    assert not EXPECTED.keys() & WHOLE_PLANS.keys()
    assert rest | {"CREATE_PREDECESSOR_ROWS"} == EXPECTED.keys() | WHOLE_PLANS.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_statement_searches_the_index_that_serves_it(
    connection: sqlite3.Connection, name: str
) -> None:
    """A hot statement searches the indexes named for it, reads no whole table, and sorts none."""
    steps = plan(connection, statements()[name])
    found = [
        re.sub(r"^SEARCH (main\.)?sessions USING (COVERING )?INDEX ", "", step)
        for step in steps
        if re.match(r"SEARCH (main\.)?sessions\b", step)
    ]
    for search in set(found) - {BY_ID}:
        assert any(fnmatchcase(search, pattern) for pattern in EXPECTED[name]), steps
    for pattern in EXPECTED[name]:
        assert any(fnmatchcase(search, pattern) for search in found), steps
    assert not [step for step in steps if re.match(r"SCAN (main\.)?sessions\b", step)]
    assert not [step for step in steps if step.startswith("USE TEMP B-TREE")]


@pytest.mark.parametrize("name", WHOLE_PLANS)
def test_a_statement_that_reads_everything_is_one_that_may(
    connection: sqlite3.Connection, name: str
) -> None:
    """A statement that reads the whole table on purpose does it in the way that was meant."""
    if name == "SELECT_PREDECESSOR_ROWS":
        connection.execute("CREATE TEMP TABLE IF NOT EXISTS predecessor_sessions (id)")
    steps = plan(connection, statements()[name])
    connection.execute("DROP TABLE IF EXISTS temp.predecessor_sessions")
    assert len(steps) == len(WHOLE_PLANS[name])
    assert all(map(fnmatchcase, steps, WHOLE_PLANS[name])), steps


# -- What must not grow with the table -------------------------------------------------------------


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have the connections that are made from now on count the steps of their virtual machines."""
    steps = [0]
    connect_plainly = sqlite3.connect

    def count() -> int:
        steps[0] += 1
        return 0

    def connect_counting(*arguments: Any, **settings: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect_plainly(*arguments, **settings)
        connection.set_progress_handler(count, 1)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_counting)
    return steps


Cost = Callable[[Awaitable[object]], Awaitable[int]]


@pytest_asyncio.fixture
async def active(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[SQLiteStore, Cost]]:
    """Yield a store with many sessions, all active, and what counts the steps of a call."""
    fill(database, "a")
    with monkeypatch.context() as patch:
        steps = count_steps(patch)
        async with opened(database) as (store, _):

            async def cost(call: Awaitable[object]) -> int:
                before = steps[0]
                await call
                return steps[0] - before

            yield store, cost


@pytest.mark.parametrize("child_id", [None, "child-7"], ids=["all", "one child"])
@pytest.mark.parametrize("max_lifetime", [None, 10 * COUNT * MINUTE], ids=["idle", "lifetime"])
async def test_a_late_page_costs_no_more_than_the_first(
    active: tuple[SQLiteStore, Cost], child_id: str | None, max_lifetime: int | None
) -> None:
    """A page of active sessions starts where the page before ended, however many came before."""
    store, cost = active
    now = moment(60 * COUNT, Expiry(10 * COUNT * MINUTE, max_lifetime))
    late = NOON + COUNT * 8 // 10 * MINUTE
    assert len(await store.list_active(now, child_id, (late, ""), 3)) == 3
    first = await cost(store.list_active(now, child_id, None, 3))
    assert await cost(store.list_active(now, child_id, (late, ""), 3)) <= first * 1.2


async def test_a_sweep_with_nothing_due_reads_no_session(active: tuple[SQLiteStore, Cost]) -> None:
    """A sweep with all that belongs to it costs nothing if no session is due."""
    store, cost = active
    now = moment(60 * COUNT, Expiry(2 * COUNT * MINUTE, 2 * COUNT * MINUTE))
    assert await store.time_out(now, 500) == (0, False)
    for call in (store.time_out(now, 500), store.purge(NOON - 1, 500), store.tidy(now)):
        assert await cost(call) < COUNT / 10


async def test_a_sweep_looks_at_what_is_alive_once_a_timeout(
    active: tuple[SQLiteStore, Cost],
) -> None:
    """What was touched comes due once more, is found alive, and is left alone until it may be."""
    store, cost = active
    expiry = Expiry(COUNT * MINUTE)
    touched = moment(60 * COUNT, expiry)
    ids = [record.id for record in sessions_in("a", 1_000)]
    for id_ in ids[:-1]:
        await store.touch(id_, touched)
    due = moment(2 * 60 * COUNT - 120, expiry)
    while (await store.time_out(due, 500)).has_more:
        pass
    active_by_now = (await store.count(due)).by_status["active"]
    assert active_by_now == 999 + 11  # those that were touched, and those that started last
    assert await cost(store.time_out(due, 500)) < COUNT / 10


async def test_a_childs_list_costs_no_more_if_it_has_more_sessions(
    active: tuple[SQLiteStore, Cost], database: Path
) -> None:
    """The lists of a child's sessions of every status are merged no further than the limit."""
    store, cost = active
    few = await cost(store.list_of_child("child-1", 3))
    with connect(database) as connection:
        connection.execute("UPDATE sessions SET child_id = 'child-1' WHERE child_id > 'child-2'")
    assert await cost(store.list_of_child("child-1", 3)) <= few * 1.2


@pytest.mark.parametrize("missing", [0, 1])
async def test_touching_many_reads_no_others(
    database: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    """Ten touches at once are as many steps among thousands of sessions as among a hundred.

    So it is if not all are found, so that SQLite must say which.
    """
    costs = []
    for count in (100, COUNT):
        path = database.with_name(f"{count}.db")
        fill(path, "a", count)
        ids = [record.id for record in sessions_in("a", 50)][40:] + ["not there"] * missing
        with monkeypatch.context() as patch:
            steps = count_steps(patch)
            async with opened(path) as (store, _):
                before = steps[0]
                now = moment(60, Expiry(10 * COUNT * MINUTE))
                live = await asyncio.gather(*(store.touch(id_, now) for id_ in ids))
                costs.append(steps[0] - before)
        assert live == [True] * 10 + [False] * missing
    assert costs[1] < costs[0] + 50  # a page more or less
