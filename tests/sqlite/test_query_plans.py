# SPDX-License-Identifier: MIT
"""How SQLite finds what each statement of queries.py asks for.

The tables below say which index serves which statement, and which statements read everything on
purpose. A new statement must be entered in one of them. A plan names only the first column of a
range, so what must not grow with the table is also counted in steps of SQLite's virtual machine.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from sessionstore.session import Expiry, SessionRow
from sessionstore.sqlite import queries, store
from sessionstore.sqlite.times import micros_from_text, micros_to_text

SCHEMA = (Path(queries.__file__).parent / "schema.sql").read_text()

BY_ID = "sqlite_autoindex_sessions_1 (id=?)"
BY_STARTING = "idx_sessions_status (status=? AND (started_at,id)>(?,?))"
DUE = "idx_sessions_activity (*swept_activity<?)"
ACTIVE_OF_CHILD = "idx_sessions_child_id (child_id=? AND status=?*)"
PAST_LIFETIME = "idx_sessions_status (status=? AND started_at<?)"

# The searches that each statement must make, as patterns of the index with its constraint. It may
# make no others, but for rows by their id.
EXPECTED: dict[str, set[str]] = {
    "UPDATE_SESSIONS_ACTIVITY": {BY_ID},
    "SELECT_SESSIONS_TOUCHED": {BY_ID},
    "UPDATE_SESSION_ACTIVITY": {BY_ID},
    "UPDATE_SESSION_MARKED": {BY_ID},
    "SELECT_LIVE_SESSION_BY_ID": {BY_ID},
    "UPDATE_SESSION_DATA": {BY_ID},
    "UPDATE_SESSION_ENDED": {BY_ID},
    "UPDATE_SESSIONS_ENDED_BY_CHILD": {ACTIVE_OF_CHILD},
    "SELECT_SESSIONS_DUE": {DUE, PAST_LIFETIME},
    "UPDATE_SESSION_TIMED_OUT": {BY_ID},
    "UPDATE_SESSION_SWEPT": {BY_ID},
    "UPDATE_SESSIONS_AHEAD": {BY_ID, "idx_sessions_activity (*swept_activity>?)"},
    "DELETE_SESSION": {BY_ID},
    "DELETE_SESSIONS_ENDED_BEFORE": {BY_ID, "idx_sessions_ended_at (ended_at<?)"},
    "SELECT_SESSIONS_BY_IDS": {BY_ID},
    "SELECT_ACTIVE_SESSIONS": {BY_STARTING},
    "SELECT_ACTIVE_SESSIONS_BY_CHILD": {
        "idx_sessions_child_id (child_id=? AND status=? AND (started_at,id)>(?,?))"
    },
    "SELECT_SESSIONS_BY_CHILD": {"idx_sessions_child_id (child_id=? AND status=?)"},
    "COUNT_SESSIONS_TIMED_OUT": {DUE, PAST_LIFETIME},
}

# The whole plan of each statement that reads everything.
WHOLE_TABLE: dict[str, list[str]] = {
    # A list for an operator, by any filter, sorted afterwards.
    "SELECT_SESSIONS_BY_FILTER": ["SCAN sessions", "USE TEMP B-TREE FOR ORDER BY"],
    # An adoption takes all rows along.
    "CREATE_PREDECESSOR_ROWS": ["SCAN main.sessions"],
    # These look nothing up.
    "INSERT_SESSION": [],
    "DROP_SESSIONS": [],
}

START = micros_from_text("2024-01-01 00:00:00.000000")
MINUTE = 60_000_000
COUNT = 3_000
CHILDREN = 100


def text_at(minute: int) -> str:
    """Return the time so many minutes after the first session started."""
    return micros_to_text(START + minute * MINUTE)


def fill(connection: sqlite3.Connection, statuses: str) -> None:
    """Add a session a minute, whose statuses are those of the letters in turn."""
    names = {"a": "active", "e": "ended", "t": "timeout", "r": "error"}
    for number in range(COUNT):
        status = names[statuses[number % len(statuses)]]
        row = SessionRow(
            id=f"{number * 7_919 % COUNT:036}",
            child_id=f"child-{number % CHILDREN}",
            status=status,
            started_at=text_at(number),
            ended_at=None if status == "active" else text_at(number + 40),
            last_activity=text_at(number + 10),
            data="{}",
            metadata="{}",
            interaction_count=0,
        )
        store.insert_session(connection, row)
    connection.execute("ANALYZE")


@pytest.fixture(
    scope="module",
    params=["", "aeeet", "eeeeeeeeeeeeetra", "a"],
    ids=["new", "some active", "few active", "all active"],
)
def connection(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[sqlite3.Connection]:
    """Yield a database that is new, or has sessions and knows their statistics."""
    path = tmp_path_factory.mktemp("plans") / "sessions.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(SCHEMA)
        if request.param:
            connection.execute("BEGIN")
            fill(connection, request.param)
            connection.execute("COMMIT")
        yield connection


@pytest.fixture(scope="module")
def active(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """Yield a database in which all sessions are active."""
    path = tmp_path_factory.mktemp("steps") / "sessions.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(SCHEMA)
        connection.execute("BEGIN")
        fill(connection, "a")
        connection.execute("COMMIT")
        yield connection


def statements() -> dict[str, str]:
    """Return the public statements of queries.py that name the table."""
    on_sessions = re.compile(r"\b(FROM|INTO|UPDATE|JOIN|TABLE|INDEX|ON)\s+(main\.)?sessions\b")
    return {
        name: text
        for name, text in vars(queries).items()
        if not name.startswith("_") and isinstance(text, str) and on_sessions.search(text)
    }


def plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    """Return the steps that SQLite means to take, in the words of its newer releases."""
    parameters = dict.fromkeys(re.findall(r":([a-z_]+)", statement), "")
    rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
    return [detail.replace("TABLE sessions", "sessions") for _, _, _, detail in rows]


def steps_of(connection: sqlite3.Connection, job: Callable[[], object]) -> int:
    """Return how many steps SQLite's virtual machine takes for a job."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection.set_progress_handler(count, 1)
    try:
        job()
    finally:
        connection.set_progress_handler(None, 1)
    return steps


def test_every_statement_on_sessions_has_an_expected_plan() -> None:
    """Each statement on the table is in one of the tables above, and none is in both."""
    assert sorted(statements()) == sorted([*EXPECTED, *WHOLE_TABLE])


@pytest.mark.parametrize("name", EXPECTED)
def test_statement_searches_the_index_that_serves_it(
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


@pytest.mark.parametrize("name", WHOLE_TABLE)
def test_statement_that_reads_everything_is_one_that_may(
    connection: sqlite3.Connection, name: str
) -> None:
    """A statement that reads the whole table on purpose does it in the way that was meant."""
    assert plan(connection, statements()[name]) == WHOLE_TABLE[name]


@pytest.mark.parametrize("child_id", [None, "child-7"], ids=["all", "one child"])
@pytest.mark.parametrize("max_lifetime", [None, 10 * COUNT * MINUTE], ids=["idle", "lifetime"])
def test_late_page_costs_no_more_than_the_first(
    active: sqlite3.Connection, child_id: str | None, max_lifetime: int | None
) -> None:
    """A page of active sessions starts where the page before ended, however many came before."""
    cutoffs = Expiry(10 * COUNT * MINUTE, max_lifetime).cutoffs(START + COUNT * MINUTE)

    def cost(after: tuple[str, str]) -> int:
        def page() -> None:
            found = store.select_active_sessions(active, child_id, after, 3, cutoffs)
            assert len(list(found)) == 3

        return steps_of(active, page)

    assert cost((text_at(COUNT * 8 // 10), "")) <= cost(("", "")) * 1.2


def test_sweep_with_nothing_due_reads_no_session(active: sqlite3.Connection) -> None:
    """A sweep, and the count of what it would find, cost nothing where no session is due."""
    expiry = Expiry(2 * COUNT * MINUTE, 2 * COUNT * MINUTE)
    now = START + COUNT * MINUTE
    assert store.time_out_sessions(active, expiry, now, 500).rows == []
    sweep = steps_of(active, lambda: store.time_out_sessions(active, expiry, now, 500))
    count = steps_of(
        active,
        lambda: active.execute(queries.COUNT_SESSIONS_TIMED_OUT, expiry.cutoffs(now)).fetchall(),
    )
    assert max(sweep, count) < COUNT / 10


def test_purge_with_nothing_due_reads_no_session(connection: sqlite3.Connection) -> None:
    """A purge costs nothing where no session ended long enough ago."""
    purge = steps_of(connection, lambda: store.purge_sessions(connection, text_at(-1), 500))
    assert purge < COUNT / 10


def test_a_childs_list_costs_no_more_where_it_has_more_sessions(
    active: sqlite3.Connection,
) -> None:
    """The lists of a child's sessions of every status are merged no further than the limit."""

    def cost(child_id: str, limit: int) -> int:
        return steps_of(
            active, lambda: list(store.select_sessions_of_child(active, child_id, limit))
        )

    few = cost("child-1", 3)
    active.execute("BEGIN")
    active.execute("UPDATE sessions SET child_id = 'child-1' WHERE child_id LIKE 'child-2%'")
    assert cost("child-1", 3) <= few * 1.2
    active.execute("ROLLBACK")


def test_a_sweep_reads_no_data_of_what_is_due(active: sqlite3.Connection) -> None:
    """Most of what is due may be alive, with data of a megabyte each."""
    read: set[str] = set()

    def note(action: int, table: str | None, column: str | None, *_: object) -> int:
        if action == sqlite3.SQLITE_READ and table == "sessions" and column is not None:
            read.add(column)
        return sqlite3.SQLITE_OK

    active.set_authorizer(note)
    try:
        cutoffs = {"idle_cutoff": "", "lifetime_cutoff": "", "limit": 1}
        active.execute(f"EXPLAIN {queries.SELECT_SESSIONS_DUE}", cutoffs)
    finally:
        active.set_authorizer(None)
    assert "swept_activity" in read
    assert not read & {"data", "metadata"}
