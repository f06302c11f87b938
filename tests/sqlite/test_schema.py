# SPDX-License-Identifier: MIT
"""How a file gets today's tables: new, from an earlier release, or not at all.

A later release is made here by copying the package and adding migrations to it, so that the upgrade
of a real file is tested before there is one. What is refused must be left byte for byte.
"""

import asyncio
import importlib
import json
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sessionstore
from sessionstore import SchemaError, Session, StorageError
from sessionstore.sqlite import queries
from sessionstore.sqlite.schema import MIGRATIONS, SCHEMA, migrate

from ..children import Child, Line
from ..conftest import FakeClock
from .tools import NOON, connect, quiet, the_session

PACKAGE = Path(sessionstore.__file__).parent
NOW = "2024-01-01 00:00:00.000000"
VERSIONS = [migration.version for migration in MIGRATIONS]

DEVICES = """
CREATE TABLE session_devices (
    session_id VARCHAR(36) NOT NULL REFERENCES sessions (id),
    device     TEXT NOT NULL
);
CREATE INDEX idx_session_devices ON session_devices (session_id);
"""

ENDINGS = """
-- A trigger has semicolons of its own.
CREATE TRIGGER session_devices_gone AFTER UPDATE OF status ON sessions WHEN new.status <> 'active'
BEGIN
    DELETE FROM session_devices WHERE session_id = new.id;
END;
"""


def dump(path: Path) -> list[str]:
    """Return the whole contents of a file as SQL."""
    with connect(path) as connection:
        return list(connection.iterdump())


def schema(path: Path) -> dict[tuple[str, str, str], str]:
    """Return all that sqlite_master has, without comments, and with one space for each gap."""
    with connect(path) as connection:
        rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    return {
        (kind, name, table): " ".join(re.sub(r"--.*", "", sql or "").split())
        for kind, name, table, sql in rows
    }


def applied(path: Path) -> list[tuple[int, str]]:
    """Return the bookkeeping rows, the oldest migration first."""
    with connect(path) as connection:
        return connection.execute(
            "SELECT version, name FROM sessionstore_migrations ORDER BY version"
        ).fetchall()


def make_file_of_version(path: Path, version: int) -> None:
    """Make the file that the release of this migration made."""
    with connect(path) as connection:
        connection.execute(queries.CREATE_MIGRATIONS)
        for migration in MIGRATIONS[:version]:
            connection.executescript(migration.script)
            row = {"version": migration.version, "name": migration.name, "applied_at": NOW}
            connection.execute(queries.INSERT_MIGRATION, row)


async def open_and_close(path: Path) -> None:
    """Do what makes, upgrades or refuses a file, and nothing else."""
    async with quiet(path):
        pass


def settle(path: Path, journal_mode: str) -> bytes:
    """Give a file its journal mode and nothing beside it; return its bytes."""
    with connect(path) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
    assert beside(path) == []
    return path.read_bytes()


def contents(path: Path) -> bytes:
    """Return the bytes of a file that nobody has open."""
    return path.read_bytes()


def beside(path: Path) -> list[str]:
    """Return what stands beside a database, its journals and copies of it, but for the sidecar."""
    expected = {path, path.with_name(f"{path.name}-lock")}
    return sorted(other.name for other in path.parent.iterdir() if other not in expected)


def journal_mode(path: Path) -> str:
    """Return the journal mode that is written in the file."""
    with connect(path) as connection:
        mode: str = connection.execute("PRAGMA journal_mode").fetchone()[0]
    return mode


@pytest.fixture
def later_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., ModuleType]]:
    """Yield a function that makes a later release with these migrations and imports it."""
    folder = tmp_path / "later release"
    name = "sessionstore_of_later"

    def make(*scripts: str) -> ModuleType:
        shutil.copytree(PACKAGE, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for number, script in enumerate(scripts, start=max(VERSIONS) + 1):
            (folder / name / "sqlite" / "migrations" / f"{number:04}_later.sql").write_text(script)
            with (folder / name / "sqlite" / "schema.sql").open("a") as file:
                file.write(script)
        monkeypatch.syspath_prepend(folder)
        return importlib.import_module(name)

    yield make
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


# -- The two ways to one schema --------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_all_ways_lead_to_one_schema(tmp_path: Path, version: int) -> None:
    """A new file and one of any earlier release end in the same tables, bookkeeping included."""
    fresh, older = tmp_path / "fresh.db", tmp_path / "older.db"
    make_file_of_version(older, version)
    for path in (fresh, older):
        with connect(path) as connection:
            migrate(connection, str(path), NOON)
    assert schema(older) == schema(fresh)
    assert applied(older) == applied(fresh)
    assert [version for version, _ in applied(fresh)] == VERSIONS


async def test_schema_sql_is_what_a_new_file_has(tmp_path: Path, database: Path) -> None:
    """A file that a manager made has the tables of schema.sql and the bookkeeping, and no more."""
    by_hand = tmp_path / "by hand.db"
    with connect(by_hand) as connection:
        connection.executescript(SCHEMA)
        connection.executescript(queries.CREATE_MIGRATIONS.replace("IF NOT EXISTS ", ""))
    await open_and_close(database)
    assert schema(database) == schema(by_hand)


# -- A later release -------------------------------------------------------------------------------


async def test_later_release_applies_what_a_file_lacks(
    tmp_path: Path, database: Path, later_release: Callable[..., ModuleType]
) -> None:
    """A file of today gets each later migration with its row, keeps its sessions, and works."""
    async with quiet(database) as sessions:
        session_id = await sessions.create_session("lina", {"topic": "stars"})
    before = applied(database)
    later: Any = later_release(DEVICES, ENDINGS)
    async with later.SessionManager(database, sweep_interval=None) as sessions:
        session = await sessions.get_session(session_id)
        assert session is not None
        assert session.data == {"topic": "stars"}
    last = max(VERSIONS)
    assert applied(database) == [
        *before,
        (last + 1, f"{last + 1:04}_later"),
        (last + 2, f"{last + 2:04}_later"),
    ]
    fresh = tmp_path / "fresh.db"
    async with later.SessionManager(fresh, sweep_interval=None):
        pass
    assert schema(database) == schema(fresh)
    assert applied(database) == applied(fresh)
    with connect(database) as connection:
        connection.execute("INSERT INTO session_devices VALUES (?, 'lamp')", (session_id,))
    async with later.SessionManager(database, sweep_interval=None) as sessions:
        await sessions.end_session(session_id)
    with connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM session_devices").fetchone() == (0,)


async def test_failed_migration_leaves_the_file(
    database: Path, later_release: Callable[..., ModuleType]
) -> None:
    """A migration that fails in the middle is taken back whole, raises, and can be repeated."""
    await open_and_close(database)
    before = dump(database)
    later: Any = later_release(DEVICES + "INSERT INTO nothing VALUES (1);")
    for _ in range(2):
        with pytest.raises(later.SessionStoreError):
            await later.SessionManager(database, sweep_interval=None).open()
        assert dump(database) == before
    await open_and_close(database)


async def test_failed_migration_keeps_those_before_it(
    database: Path, later_release: Callable[..., ModuleType]
) -> None:
    """Each migration is a transaction of its own: those before a failed one stay."""
    await open_and_close(database)
    later: Any = later_release(DEVICES, "DROP TABLE session_devices; \n DROP TABLE nothing;\n")
    with pytest.raises(later.SessionStoreError):
        await later.SessionManager(database, sweep_interval=None).open()
    assert [version for version, _ in applied(database)] == [*VERSIONS, max(VERSIONS) + 1]
    assert ("table", "session_devices", "session_devices") in schema(database)


async def test_failed_schema_leaves_a_new_file_empty(
    database: Path, later_release: Callable[..., ModuleType]
) -> None:
    """A new file whose schema cannot be made has no table at all."""
    later: Any = later_release("INSERT INTO nothing VALUES (1);")
    with pytest.raises(later.SessionStoreError):
        await later.SessionManager(database, sweep_interval=None).open()
    assert schema(database) == {}


# -- Files that are refused ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["delete", "wal"])
async def test_file_of_a_newer_release_is_refused(database: Path, mode: str) -> None:
    """A file with a migration that this release does not know is refused, byte for byte."""
    await open_and_close(database)
    with connect(database) as connection:
        row = {"version": 999, "name": "0999_later", "applied_at": NOW}
        connection.execute(queries.INSERT_MIGRATION, row)
    before = settle(database, mode)
    with pytest.raises(SchemaError, match="newer release"):
        await open_and_close(database)
    assert beside(database) == []
    assert contents(database) == before
    assert journal_mode(database) == mode


async def test_bookkeeping_without_sessions_is_refused(database: Path) -> None:
    """A file that has lost its table is refused, and gets no empty one."""
    await open_and_close(database)
    with connect(database) as connection:
        connection.execute("DROP TABLE sessions")
    before = settle(database, "delete")
    with pytest.raises(SchemaError, match="restore a backup"):
        await open_and_close(database)
    assert contents(database) == before


OUR_COLUMNS = (
    "id, child_id, status, started_at, ended_at, last_activity, data, metadata, interaction_count"
)

FOREIGN = {
    "other columns": "CREATE TABLE sessions (session_key TEXT, session_data TEXT, expires REAL)",
    "a column more": f"CREATE TABLE sessions ({OUR_COLUMNS}, device)",
    "a column less": f"CREATE TABLE sessions ({OUR_COLUMNS.replace('data, ', '')})",
    "a view": "CREATE VIEW sessions AS SELECT * FROM host",
    "a view with our columns": f"""
        CREATE TABLE other ({OUR_COLUMNS});
        CREATE VIEW sessions AS SELECT {OUR_COLUMNS} FROM other""",
    "an index": "CREATE INDEX sessions ON host (name)",
    "upper case": "CREATE TABLE SESSIONS (session_key TEXT, session_data TEXT)",
}


@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.parametrize("script", FOREIGN.values(), ids=FOREIGN)
async def test_sessions_of_another_program_are_refused(
    database: Path, script: str, mode: str
) -> None:
    """A file in which `sessions` is something else is refused, byte for byte, and not copied."""
    with connect(database) as connection:
        connection.executescript("CREATE TABLE host (name TEXT); INSERT INTO host VALUES ('x');")
        connection.executescript(script)
    before = settle(database, mode)
    with pytest.raises(SchemaError, match="another program"):
        await open_and_close(database)
    assert beside(database) == []
    assert contents(database) == before
    assert journal_mode(database) == mode


# -- A file that a host project shares -------------------------------------------------------------

HOST = """
CREATE TABLE children (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE names (name TEXT);
CREATE INDEX children_by_name ON children (name);
CREATE VIEW short_names AS SELECT name FROM children WHERE length(name) < 5;
CREATE TRIGGER children_are_named AFTER INSERT ON children
BEGIN
    INSERT INTO names VALUES (new.name);
END;
INSERT INTO children (name) VALUES ('Lina'), ('Mohammed');
PRAGMA user_version = 7;
PRAGMA application_id = 4711;
"""


async def test_host_project_keeps_what_is_its_own(database: Path) -> None:
    """Tables, views, triggers, user_version and application_id of the host stay as they were."""
    with connect(database) as connection:
        connection.executescript(HOST)
    before, host = dump(database), schema(database)
    async with quiet(database) as sessions:
        await sessions.end_session(await sessions.create_session("lina"))
    after = dump(database)
    assert [line for line in before if line not in after] == []
    assert {key: sql for key, sql in schema(database).items() if key in host} == host
    with connect(database) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (7,)
        assert connection.execute("PRAGMA application_id").fetchone() == (4711,)
        connection.execute("INSERT INTO children (name) VALUES ('Omar')")
        assert connection.execute("SELECT count(*) FROM names").fetchone() == (3,)
        assert connection.execute("SELECT name FROM short_names").fetchall() == [
            ("Lina",),
            ("Omar",),
        ]


async def test_user_version_of_a_new_file_is_untouched(database: Path) -> None:
    """The bookkeeping is a table: user_version stays 0 for whoever wants it."""
    await open_and_close(database)
    with connect(database) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (0,)


# -- Opening again, and at once --------------------------------------------------------------------


async def test_reopening_changes_nothing(database: Path) -> None:
    """A file that has today's tables is opened and closed without a byte of change."""
    await open_and_close(database)
    before = contents(database)
    for _ in range(3):
        await open_and_close(database)
    assert contents(database) == before
    assert beside(database) == []


async def test_many_managers_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Managers that open one new file at the same moment all succeed, and migrate it once."""
    for number in range(5):
        path = tmp_path / f"{number}.db"
        managers = [quiet(path) for _ in range(8)]
        results = await asyncio.gather(
            *(manager.open() for manager in managers), return_exceptions=True
        )
        for manager in managers:
            await manager.close()
        assert results == [None] * 8
        assert [version for version, _ in applied(path)] == VERSIONS


async def test_opening_waits_for_another_program(database: Path) -> None:
    """A manager that opens a file while another program writes waits, and does not give up."""
    with connect(database) as connection:
        connection.execute("CREATE TABLE host (name TEXT)")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO host VALUES ('x')")
        manager = quiet(database)
        opening = asyncio.create_task(manager.open())
        await asyncio.wait({opening}, timeout=0.05)
        waiting = not opening.done()
        connection.execute("COMMIT")
    try:
        await opening
    finally:
        await manager.close()
    assert waiting


async def test_opening_together_with_a_later_release(
    database: Path, later_release: Callable[..., ModuleType]
) -> None:
    """Managers of a later release that open an older file at once apply each migration once."""
    await open_and_close(database)
    later: Any = later_release(DEVICES, ENDINGS)
    managers = [later.SessionManager(database, sweep_interval=None) for _ in range(4)]
    results = await asyncio.gather(
        *(manager.open() for manager in managers), return_exceptions=True
    )
    for manager in managers:
        await manager.close()
    assert results == [None] * 4
    assert [version for version, _ in applied(database)] == [
        *VERSIONS,
        max(VERSIONS) + 1,
        max(VERSIONS) + 2,
    ]


# -- The constraints of the table ------------------------------------------------------------------

VALID = {
    "id": "5c0ff7f8-21f0-4e52-8a90-2a1a9eb4b9f1",
    "child_id": "lina",
    "started_at": NOW,
    "last_activity": NOW,
}

NOT_TIMES = [
    "2024-01-01 10:00:00",
    "2024-01-01 10:00:00.000",
    "2024-01-01 10:00:00.0000000",
    "2024-01-01 10:00:00,000000",
    "2024-01-01T10:00:00.000000",
    "24-01-01 10:00:00.000000",
    "2024-01-01",
    "now",
    "",
    1_704_067_200,
    2_460_310.5,
]

NOT_JSON = ["", "{", "{'a': 1}", "{a: 1}", '{"a": 1} x']


def refused(constraint: str, *changes: Mapping[str, object]) -> list[Any]:
    """Return a parameter for each change of the valid row that a constraint must refuse."""
    return [
        pytest.param(constraint, change, id=f"{constraint}-{list(change.values())}")
        for change in changes
    ]


REFUSED = [
    *refused("sessions_id_is_text", {"id": b"x"}),
    *refused(
        "sessions_status_is_known",
        *({"status": status, "ended_at": NOW} for status in ("paused", "Ended", "ACTIVE", "")),
    ),
    *refused(
        "sessions_ended_at_is_null_exactly_while_active",
        {"status": "active", "ended_at": NOW},
        *({"status": status, "ended_at": None} for status in ("ended", "timeout", "error")),
    ),
    *refused("sessions_started_at_is_a_time", *({"started_at": time} for time in NOT_TIMES)),
    *refused(
        "sessions_ended_at_is_a_time",
        *({"status": "ended", "ended_at": time} for time in NOT_TIMES),
    ),
    *refused("sessions_last_activity_is_a_time", *({"last_activity": time} for time in NOT_TIMES)),
    *refused("sessions_data_is_json", *({"data": text} for text in NOT_JSON)),
    *refused("sessions_metadata_is_json", *({"metadata": text} for text in NOT_JSON)),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """Yield a connection to a file that has the tables of today."""
    path = tmp_path_factory.mktemp("table") / "sessions.db"
    with connect(path) as connection:
        migrate(connection, str(path), NOON)
        yield connection


def insert(connection: sqlite3.Connection, values: Mapping[str, object]) -> list[Any]:
    """Add a row as another program would, and return the table; then take it back."""
    columns, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    connection.execute("BEGIN")
    try:
        connection.execute(f"INSERT INTO sessions ({columns}) VALUES ({places})", values)
        return connection.execute(
            "SELECT status, ended_at, data, metadata, interaction_count FROM sessions"
        ).fetchall()
    finally:
        connection.execute("ROLLBACK")


@pytest.mark.parametrize("constraint, change", REFUSED)
def test_a_constraint_refuses(
    table: sqlite3.Connection, constraint: str, change: Mapping[str, object]
) -> None:
    """A row that breaks one rule is refused by the constraint that is named for it."""
    with pytest.raises(sqlite3.IntegrityError, match=rf"CHECK constraint failed: {constraint}$"):
        insert(table, {**VALID, **change})


def test_every_constraint_is_tested() -> None:
    """Each constraint of schema.sql has rows above that it refuses."""
    named = re.findall(r"CONSTRAINT (\w+)", SCHEMA)
    assert set(named) == {parameters.values[0] for parameters in REFUSED}


@pytest.mark.parametrize("column", ["id", "child_id", "started_at", "last_activity"])
def test_what_every_session_has_is_not_null(table: sqlite3.Connection, column: str) -> None:
    """A row without an id, a child or one of its two times is refused."""
    with pytest.raises(sqlite3.IntegrityError, match="NOT NULL"):
        insert(table, {**VALID, column: None})


def test_defaults_make_an_active_session(table: sqlite3.Connection) -> None:
    """A row of another tool with an id, a child and two times is an active, empty session."""
    assert insert(table, VALID) == [("active", None, "{}", "{}", 0)]


@pytest.mark.parametrize(
    "change",
    [
        {"status": "ended", "ended_at": "2024-02-29 23:59:59.999999"},
        {"started_at": "0001-01-01 00:00:00.000000"},
        {"last_activity": "9999-12-31 23:59:59.999999"},
        {"data": ' {"a": [1, null, "\u0644\u064a\u0646\u0627"]} '},
        {"child_id": "x" * 255, "interaction_count": 2**63 - 1},
        {"id": "1", "child_id": "1"},
    ],
)
def test_constraints_accept_what_is_right(
    table: sqlite3.Connection, change: dict[str, object]
) -> None:
    """A row at the edge of what is allowed is accepted."""
    assert len(insert(table, {**VALID, **change})) == 1


# The columns of the first release, by name and declared type: users open the file with other tools.
SEED = [
    ("id", "VARCHAR(36)"),
    ("child_id", "VARCHAR(36)"),
    ("status", "VARCHAR(20)"),
    ("started_at", "DATETIME"),
    ("ended_at", "DATETIME"),
    ("last_activity", "DATETIME"),
    ("data", "TEXT"),
    ("metadata", "TEXT"),
    ("interaction_count", "INTEGER"),
]


def test_the_columns_are_those_of_the_first_release(table: sqlite3.Connection) -> None:
    """They have their names, types and order; what came later stands behind them."""
    columns = table.execute("SELECT name, type FROM pragma_table_info('sessions')").fetchall()
    assert columns[: len(SEED)] == SEED


def test_sql_files_are_ascii() -> None:
    """No encoding of the machine can make another statement of them."""
    for migration in MIGRATIONS:
        assert migration.script.isascii(), migration.name
    assert SCHEMA.isascii()


# -- Files of earlier releases ---------------------------------------------------------------------

COLUMNS = (
    "id, child_id, status, started_at, ended_at, last_activity, data, metadata, interaction_count"
)
EARLY, LATE = "2023-11-14 22:00:00.000000", "2023-11-14 22:10:00.250000"
EXPIRED = "2023-11-14 22:40:00.250000"
AHEAD = "2024-11-14 22:00:00.000000"

# Rows as the releases wrote them: id, status, ended_at, last_activity, data, metadata, count.
OLD_ROWS: list[tuple[Any, ...]] = [
    ("a", "active", None, LATE, '{"topic":"stars"}', "{}", 3),
    ("b", "ended", LATE, LATE, "{}", '{"end_reason":"bedtime"}', 2**40),
    (
        "c",
        "timeout",
        EXPIRED,
        LATE,
        '{"\u0627\u0633\u0645":"\u0644\u064a"}',
        '{"end_reason":"timeout"}',
        0,
    ),
    (
        "d",
        "error",
        EARLY,
        EARLY,
        '{"n":-0.5,"big":9007199254740993}',
        '{"v":1,"end_reason":"error"}',
        1,
    ),
    ("e", "active", None, AHEAD, "{}", "{}", 1),
    ("f", "active", None, EARLY, '{"s":"\\\\ \\" \\n"}', "{}", 0),
]


def fill_old_file(path: Path, version: int) -> list[tuple[Any, ...]]:
    """Add sessions as the release of this migration did, and return them by its nine columns."""
    with connect(path) as connection:
        for id_, status, ended_at, last_activity, data, metadata, count in OLD_ROWS:
            row = (f"{id_}-{version}", "lina", status, EARLY, ended_at, last_activity)
            connection.execute(
                f"INSERT INTO sessions ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, data, metadata, count),
            )
        if version == 2:
            connection.execute("UPDATE sessions SET swept_activity = last_activity")
            # Its background sweep marked what was ahead of the clock: the time, but for a digit.
            mark = "UPDATE sessions SET swept_activity = substr(?, 1, 25) WHERE last_activity = ?"
            connection.execute(mark, [LATE, AHEAD])
        rows: list[tuple[Any, ...]] = connection.execute(
            f"SELECT {COLUMNS} FROM sessions ORDER BY rowid"
        ).fetchall()
    return rows


def fields_of(session: Session) -> tuple[Any, ...]:
    """Return what a session shows, as the table has it."""

    def text(time: Any) -> str | None:
        return None if time is None else time.strftime("%Y-%m-%d %H:%M:%S.%f")

    return (
        session.id,
        session.child_id,
        str(session.status),
        text(session.started_at),
        text(session.ended_at),
        text(session.last_activity),
        session.data,
        session.metadata,
        session.interaction_count,
    )


@pytest.mark.parametrize("version", [1, 2])
async def test_a_file_of_an_earlier_release_keeps_its_sessions(
    database: Path, version: int
) -> None:
    """Whatever 0.1.0 to 0.4.1 had written is in the table afterwards, and shown by the API."""
    make_file_of_version(database, version)
    before = fill_old_file(database, version)
    clock = FakeClock(1_700_000_000.0)  # 22:13:20: only the last one has been idle for 13 minutes
    async with quiet(database, clock=clock, timeout=600) as sessions:
        with connect(database) as connection:
            query = f"SELECT {COLUMNS} FROM sessions ORDER BY rowid"
            assert connection.execute(query).fetchall() == before
        for row in before[:-1]:
            *fields, data, metadata, count = row
            shown = fields_of(await the_session(sessions, row[0]))
            assert shown == (*fields, json.loads(data), json.loads(metadata), count)
        assert await sessions.cleanup_inactive_sessions() == 1
        assert (await the_session(sessions, before[-1][0])).status == "timeout"
        stats = await sessions.get_session_stats()
    assert stats["by_status"] == {"active": 2, "ended": 1, "timeout": 2, "error": 1}


@pytest.mark.parametrize("version", [1, 2])
async def test_sessions_of_an_earlier_release_time_out_in_time(
    database: Path, version: int
) -> None:
    """Nothing is immortal, be it ahead of the clock, marked or touched, and nothing goes early."""
    make_file_of_version(database, version)
    fill_old_file(database, version)
    clock = FakeClock(1_700_000_000.0)
    async with quiet(database, clock=clock, timeout=600) as sessions:
        assert await sessions.update_activity(f"a-{version}")
        clock.turn(599)
        assert await sessions.cleanup_inactive_sessions() == 1
        assert (await the_session(sessions, f"a-{version}")).is_active
        clock.turn(1)
        assert await sessions.cleanup_inactive_sessions() == 1
        clock.now = 1_731_621_600.0 + 599  # ten minutes, less a second, after what was ahead
        assert await sessions.cleanup_inactive_sessions() == 0
        clock.turn(1)
        assert await sessions.cleanup_inactive_sessions() == 1


HOSTS_OWN = """
CREATE TABLE notes (session_id VARCHAR(36) REFERENCES sessions (id), text TEXT);
CREATE TABLE audit (line TEXT);
CREATE INDEX host_sessions ON sessions (child_id, last_activity);
CREATE INDEX idx_sessions_of_the_host ON sessions (interaction_count) WHERE interaction_count > 2;
CREATE TRIGGER host_audit AFTER UPDATE OF status ON sessions WHEN new.status <> old.status
BEGIN
    INSERT INTO audit VALUES (new.id || ' is ' || new.status);
END;
CREATE TRIGGER note_counts AFTER INSERT ON notes
BEGIN
    UPDATE sessions SET interaction_count = interaction_count + 1 WHERE id = new.session_id;
END;
CREATE VIEW active_children AS SELECT DISTINCT child_id FROM sessions WHERE status = 'active';
"""


@pytest.mark.parametrize("version", [1, 2])
async def test_a_migration_keeps_what_the_host_has_put_on_our_table(
    database: Path, version: int
) -> None:
    """Its indexes, triggers, views and references are there afterwards, and do their work."""
    make_file_of_version(database, version)
    fill_old_file(database, version)
    with connect(database) as connection:
        before = set(schema(database))
        connection.executescript(HOSTS_OWN)
        connection.execute("INSERT INTO notes VALUES ('a', 'hello')")
    hosts = {key: sql for key, sql in schema(database).items() if key not in before}
    assert len(hosts) == 7
    async with quiet(database, clock=FakeClock()) as sessions:
        after = schema(database)
        assert {key: after.get(key) for key in hosts} == hosts
        assert await sessions.end_session(f"a-{version}")
    with connect(database) as connection:
        assert connection.execute("SELECT * FROM audit").fetchall() == [(f"a-{version} is ended",)]
        assert connection.execute("SELECT * FROM active_children").fetchall() == [("lina",)]
        connection.execute(f"INSERT INTO notes VALUES ('b-{version}', 'hi')")
        query = "SELECT interaction_count FROM sessions WHERE id = ?"
        assert connection.execute(query, [f"b-{version}"]).fetchone() == (2**40 + 1,)


@pytest.mark.parametrize("version", [1, 2])
async def test_a_column_of_the_hosts_is_not_lost(tmp_path: Path, version: int) -> None:
    """If the host project has added one to our table, the file is refused, and nothing changes."""
    path = tmp_path / "a.db"
    make_file_of_version(path, version)
    with connect(path) as connection:
        connection.execute("ALTER TABLE sessions ADD COLUMN note TEXT")
    before = dump(path)
    with pytest.raises(SchemaError, match="1 columns that are not ours"):
        await open_and_close(path)
    assert dump(path) == before


async def test_a_file_without_one_of_our_indexes_is_upgraded(tmp_path: Path) -> None:
    """Whoever has dropped an index by hand gets today's."""
    path = tmp_path / "a.db"
    make_file_of_version(path, 1)
    with connect(path) as connection:
        for name in ("child_id", "active_child", "activity"):
            connection.execute(f"DROP INDEX idx_sessions_{name}")
    await open_and_close(path)
    await open_and_close(tmp_path / "new.db")
    assert schema(path) == schema(tmp_path / "new.db")


async def test_a_name_of_ours_that_is_taken_is_told(tmp_path: Path) -> None:
    """If the host project has a table of our name, the error says so, and nothing is changed."""
    path = tmp_path / "a.db"
    make_file_of_version(path, 1)
    with connect(path) as connection:
        connection.execute("CREATE TABLE sessionstore_counts (host TEXT)")
    before = dump(path)
    with pytest.raises(SchemaError, match="sessionstore_counts already exists"):
        await open_and_close(path)
    assert dump(path) == before


async def migrate_at_a_sign(line: Line, database: Path) -> None:
    """Open a file at the same moment as others do, and say how many sessions it has."""
    line.say()
    line.hear()
    async with quiet(database) as sessions:
        line.say(len(await sessions.list_sessions()))
        line.hear()


@pytest.mark.parametrize("version", [0, 1, 2])
def test_processes_that_open_a_file_at_once_migrate_it_once(database: Path, version: int) -> None:
    """All of them succeed, with all sessions, whichever came first."""
    if version:
        make_file_of_version(database, version)
        fill_old_file(database, version)
    children = [Child(migrate_at_a_sign, database) for _ in range(4)]
    try:
        for child in children:
            child.line.hear()
        for child in children:
            child.line.say()
        found = [child.line.hear() for child in children]
        for child in children:
            child.line.say()
            assert child.join() == 0
    finally:
        for child in children:
            child.__exit__()
    assert found == [len(OLD_ROWS) if version else 0] * 4
    assert [number for number, _ in applied(database)] == VERSIONS


async def test_a_package_that_is_upgraded_on_disk_hands_out_no_new_migration(
    database: Path, later_release: Callable[..., ModuleType]
) -> None:
    """A process that has imported the engine goes on with its own SQL, whatever the files say."""
    later: Any = later_release()
    sessions = later.SessionManager(database, sweep_interval=None)
    folder = Path(later.__file__).parent / "sqlite"
    (folder / "migrations" / "0099_from_the_future.sql").write_text("CREATE TABLE future (x);")
    (folder / "schema.sql").write_text("nonsense")
    async with sessions:
        await sessions.create_session("lina")
    assert [number for number, _ in applied(database)] == VERSIONS
    await open_and_close(database)


async def test_a_file_with_a_second_name_is_refused(tmp_path: Path, database: Path) -> None:
    """A hard link would lead another program to another log: neither name opens, until one goes."""
    async with quiet(database) as sessions:
        await sessions.create_session("lina")
    link = tmp_path / "link.db"
    os.link(database, link)
    before = contents(database)
    for path in (database, link):
        with pytest.raises(StorageError, match="second name"):
            await open_and_close(path)
    assert contents(database) == before
    assert sorted(os.listdir(tmp_path)) == ["link.db", "sessions.db", "sessions.db-lock"]
    link.unlink()
    await open_and_close(database)
