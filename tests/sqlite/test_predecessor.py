# SPDX-License-Identifier: MIT
"""What becomes of a file that the SQLAlchemy predecessor made.

The files are made with raw SQL, as SQLAlchemy's DDL reads, in both of its versions, and filled with
what Python's str(dict) wrote. Everything must come back, or else nothing may change.
"""

import asyncio
import json
import logging
import sqlite3
import stat
import sys
import tempfile
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionstore import (
    SchemaError,
    Session,
    SessionManager,
    SessionStatus,
    StorageError,
    StoreBusyError,
)
from sessionstore.sqlite import queries

from ..conftest import START, FakeClock

ROOT = Path(__file__).parents[2]
VERSIONS = ["metadata", "session_metadata"]

DDL = """
CREATE TABLE sessions (
	id VARCHAR(36) NOT NULL PRIMARY KEY,
	child_id VARCHAR(36),
	status VARCHAR(20),
	started_at DATETIME,
	ended_at DATETIME,
	last_activity DATETIME,
	data TEXT,
	{metadata} TEXT,
	interaction_count INTEGER
);
CREATE INDEX idx_sessions_child_id ON sessions (child_id);
CREATE INDEX idx_sessions_status ON sessions (status);
CREATE INDEX idx_sessions_activity ON sessions (last_activity);
CREATE INDEX ix_sessions_started_at ON sessions (started_at);
"""  # with tabs, as SQLAlchemy writes them

EARLY, LATE, ENDED = (
    "2023-11-14 22:00:00.000000",
    "2023-11-14 22:10:00.250000",
    "2023-11-14 22:11:00.000001",
)
DEFAULTS: dict[str, Any] = {
    "id": "00000000-0000-4000-8000-000000000001",
    "child_id": "lina",
    "status": "active",
    "started_at": EARLY,
    "ended_at": None,
    "last_activity": LATE,
    "data": "{}",
    "metadata": "{}",
    "interaction_count": 3,
}


def old_row(**changes: object) -> tuple[object, ...]:
    """Return a row of the predecessor's table, an active one but for the changes."""
    return tuple({**DEFAULTS, **changes}.values())


def make_file(
    path: Path, rows: Iterable[tuple[object, ...]], metadata: str = "metadata", ddl: str = DDL
) -> None:
    """Make a file as the predecessor did."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(ddl.format(metadata=metadata))
        connection.executemany("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.commit()


def dump(path: Path) -> list[str]:
    """Return the whole contents of a file as SQL."""
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def copies(path: Path) -> list[str]:
    """Return the names of the copies beside a file, whole or not."""
    return sorted(other.name for other in path.parent.glob("*before-sessionstore*"))


async def adopt(path: Path) -> list[Session]:
    """Open a file, read all of its sessions one by one through the API, and close it."""
    async with SessionManager(path, clock=FakeClock(), sweep_interval=None) as sessions:
        found = [
            await sessions.get_session(session.id)
            for session in await sessions.list_sessions(limit=10_000)
        ]
    return [session for session in found if session is not None]


async def adopt_row(path: Path, **changes: object) -> Session:
    """Make a file of one row, adopt it, and return the session."""
    make_file(path, [old_row(**changes)])
    (session,) = await adopt(path)
    return session


# -- What comes back -------------------------------------------------------------------------------

TEXTS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "empty": ("{}", {}),
    "nested": (str({"a": {"b": {"c": [1, {"d": None}]}}}), {"a": {"b": {"c": [1, {"d": None}]}}}),
    "singletons": (str({"n": None, "t": True, "f": False}), {"n": None, "t": True, "f": False}),
    "numbers": (
        str({"a": 0.1, "b": -2.5e-8, "c": 1e300, "d": -(2**63), "e": -0.0}),
        {"a": 0.1, "b": -2.5e-8, "c": 1e300, "d": -(2**63), "e": -0.0},
    ),
    "Arabic": (str({"اسم": "سارة", "mood": "سعيدة 🌙"}), {"اسم": "سارة", "mood": "سعيدة 🌙"}),
    "quotes": (
        str({"a": "it's", "b": 'say "hi"', "c": 'it\'s "both"', "d": "\\n\n\t\x7f"}),
        {"a": "it's", "b": 'say "hi"', "c": 'it\'s "both"', "d": "\\n\n\t\x7f"},
    ),
    "tuples": (str({"at": (1, 2), "one": (3,)}), {"at": [1, 2], "one": [3]}),
    "keys of numbers": (str({1: "a", 2: {3: "b"}}), {"1": "a", "2": {"3": "b"}}),
    "JSON": (json.dumps({"a": [True, None], "ü": "\u2028"}), {"a": [True, None], "ü": "\u2028"}),
    "JSON not escaped": ('{"اسم": "سارة"}', {"اسم": "سارة"}),
    "NULL": (None, {}),
    "nothing": ("", {}),
    "blank": ("  \n", {}),
    "None": ("None", {}),
    "null": ("null", {}),
    "no literal": ("{'at': datetime.datetime(2023, 1, 1)}", {}),
    "cut off": ("{'a': [1, 2", {}),
    "a list": ("[1, 2]", {}),
    "a set": ("{'a': {1, 2}}", {}),
    "NaN": ("{'a': nan}", {}),
    "NaN in JSON": ('{"a": NaN}', {}),
    "infinity": ("{'a': 1e999}", {}),
    "half a character": (str({"a": "\ud83d"}), {}),
    "prose": ('the child said: "it\'s late" \\ مساء الخير', {}),
    "two keys of one text": (str({1: "a", "1": "b"}), {}),
}
UNREADABLE = [
    "no literal",
    "cut off",
    "a list",
    "a set",
    "NaN",
    "NaN in JSON",
    "infinity",
    "half a character",
    "prose",
    "two keys of one text",
]


@pytest.mark.parametrize("metadata", VERSIONS)
async def test_data_and_metadata_come_back(database: Path, metadata: str) -> None:
    """What str(dict) or JSON wrote comes back as a dict; other text is kept under "legacy"."""
    rows = []
    for kind, (text, _) in TEXTS.items():
        rows.append(old_row(id=f"data: {kind}", data=text, metadata=str({"other": 1})))
        rows.append(old_row(id=f"metadata: {kind}", data=str({"other": 2}), metadata=text))
    make_file(database, rows, metadata)
    found = {session.id: session for session in await adopt(database)}
    assert len(found) == len(rows)
    for kind, (text, read) in TEXTS.items():
        expected = {"legacy": text} if kind in UNREADABLE else read
        first, second = found[f"data: {kind}"], found[f"metadata: {kind}"]
        assert (first.data, first.metadata) == (expected, {"other": 1}), kind
        assert (second.data, second.metadata) == ({"other": 2}, expected), kind


@pytest.mark.parametrize("metadata", VERSIONS)
async def test_all_fields_come_back(database: Path, metadata: str) -> None:
    """Each column of a row that was whole means the same afterwards."""
    make_file(
        database,
        [
            old_row(
                status="ended",
                ended_at=ENDED,
                data=str({"topic": "stars"}),
                metadata=str({"end_reason": "bedtime"}),
            )
        ],
        metadata,
    )
    (session,) = await adopt(database)
    assert session.id == DEFAULTS["id"]
    assert session.child_id == "lina"
    assert session.status is SessionStatus.ENDED
    assert session.started_at == datetime(2023, 11, 14, 22, 0, tzinfo=UTC)
    assert session.ended_at == datetime(2023, 11, 14, 22, 11, 0, 1, tzinfo=UTC)
    assert session.last_activity == datetime(2023, 11, 14, 22, 10, 0, 250_000, tzinfo=UTC)
    assert session.data == {"topic": "stars"}
    assert session.end_reason == "bedtime"
    assert session.interaction_count == 3


async def test_adopted_session_goes_on(database: Path) -> None:
    """A session that was active in the predecessor is touched, updated and ended like any other."""
    make_file(database, [old_row(data=str({"step": 1}))])
    session_id = DEFAULTS["id"]
    async with SessionManager(database, clock=FakeClock(), sweep_interval=None) as sessions:
        assert [session.id for session in await sessions.get_active_sessions("lina")] == [
            session_id
        ]
        assert await sessions.update_activity(session_id)
        assert await sessions.update_session(session_id, {"mood": "calm"})
        assert await sessions.end_session(session_id)
        (session,) = await sessions.get_sessions_for_child("lina")
    assert session.data == {"step": 1, "mood": "calm"}
    assert session.interaction_count == 4


@pytest.mark.parametrize("count", [0, 1, 2_000])
async def test_every_row_comes_back(database: Path, count: int) -> None:
    """An adoption keeps all rows, however many."""
    make_file(database, (old_row(id=f"{n:036}", child_id=f"c{n % 3}") for n in range(count)))
    async with SessionManager(database, clock=FakeClock(), sweep_interval=None) as sessions:
        found = [
            session.id
            for child in range(3)
            for session in await sessions.get_sessions_for_child(f"c{child}", limit=count)
        ]
    assert sorted(found) == [f"{n:036}" for n in range(count)]


T0 = datetime(2023, 11, 14, 22, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    "text, time",
    [
        ("2023-11-14 22:00:00.000000", T0),
        ("2023-11-14 22:00:00", T0),
        ("2023-11-14T22:00:00.5", T0 + timedelta(seconds=0.5)),
        ("2023-11-15 01:00:00+03:00", T0),
        ("2023-11-14 22:00:00.000001Z", T0 + timedelta(microseconds=1)),
    ],
)
async def test_times_come_back(database: Path, text: str, time: datetime) -> None:
    """A time is read with microseconds or without, and with an offset or without, as UTC."""
    session = await adopt_row(
        database, status="ended", started_at=text, last_activity=text, ended_at=text
    )
    assert session.started_at == session.last_activity == session.ended_at == time


@pytest.mark.parametrize(
    "started_at, last_activity, expected",
    [(None, LATE, (LATE, LATE)), (EARLY, None, (EARLY, EARLY)), (None, None, None)],
)
async def test_missing_times_are_filled(
    database: Path,
    started_at: str | None,
    last_activity: str | None,
    expected: tuple[str, str] | None,
) -> None:
    """A time that is NULL becomes the other one, or else the time of the adoption."""
    session = await adopt_row(database, started_at=started_at, last_activity=last_activity)
    times = (session.started_at, session.last_activity)
    if expected is None:
        assert times == (datetime.fromtimestamp(START, UTC),) * 2
    else:
        assert times == tuple(datetime.fromisoformat(text + "+00:00") for text in expected)


@pytest.mark.parametrize(
    "status, ended_at, expected, ends",
    [
        ("active", None, "active", None),
        ("ACTIVE", None, "active", None),
        (None, None, "active", None),
        ("", None, "active", None),
        ("active", ENDED, "ended", ENDED),
        (None, ENDED, "ended", ENDED),
        ("ENDED", ENDED, "ended", ENDED),
        ("Ended", None, "ended", LATE),
        ("TIMEOUT", None, "timeout", LATE),
        ("timeout", ENDED, "timeout", ENDED),
        ("error", ENDED, "error", ENDED),
        ("paused", None, "error", LATE),
        ("PAUSED", ENDED, "error", ENDED),
    ],
)
async def test_statuses_come_back(
    database: Path, status: str | None, ended_at: str | None, expected: str, ends: str | None
) -> None:
    """A status keeps its meaning in any case, and one that is unknown becomes an error."""
    session = await adopt_row(database, status=status, ended_at=ended_at)
    assert session.status == expected
    assert session.ended_at == (ends and datetime.fromisoformat(ends + "+00:00"))


async def test_unknown_status_is_kept(database: Path) -> None:
    """A status that is unknown stands in the metadata, as it was."""
    session = await adopt_row(database, status="Paused", metadata=str({"why": "tea"}))
    assert session.metadata == {"why": "tea", "legacy_status": "Paused"}


@pytest.mark.parametrize(
    "changes, child_id, count",
    [
        ({"child_id": None}, "unknown", 3),
        ({"child_id": ""}, "unknown", 3),
        ({"child_id": "سارة"}, "سارة", 3),
        ({"interaction_count": None}, "lina", 0),
        ({"interaction_count": -4}, "lina", 0),
        ({"interaction_count": "12"}, "lina", 12),
    ],
)
async def test_missing_fields_are_filled(
    database: Path, changes: dict[str, object], child_id: str, count: int
) -> None:
    """A row without an owner, or without a count, is kept all the same."""
    session = await adopt_row(database, **changes)
    assert (session.child_id, session.interaction_count) == (child_id, count)


TEXTS_OF_JSON = st.text(st.characters(exclude_categories=["Cs"]))
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS_OF_JSON,
    lambda values: st.lists(values) | st.dictionaries(TEXTS_OF_JSON, values),
    max_leaves=8,
)


@settings(max_examples=25)
@given(st.lists(st.dictionaries(TEXTS_OF_JSON, JSON_VALUES), min_size=1, max_size=20))
def test_any_dict_comes_back(dicts: list[dict[str, Any]]) -> None:
    """Whatever dict of JSON's values str() wrote, an adoption gives back an equal one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sessions.db"
        rows = [old_row(id=str(number), data=str(d)) for number, d in enumerate(dicts)]
        make_file(path, rows)
        found = {session.id: session.data for session in asyncio.run(adopt(path))}
    for number, expected in enumerate(dicts):
        assert found[str(number)] == expected
        assert repr(found[str(number)]) == repr(expected)  # True is not 1, and -0.0 is not 0.0


# -- The copy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", VERSIONS)
async def test_copy_of_the_file_stands_beside_it(database: Path, metadata: str) -> None:
    """The predecessor's whole file, and only for its owner's eyes, is kept beside the new one."""
    make_file(database, [old_row(data=str({"a": 1}))], metadata)
    before = dump(database)
    await adopt(database)
    copy = database.with_name("sessions.db.before-sessionstore")
    assert copies(database) == [copy.name]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert dump(copy) == before
    assert f"{metadata} TEXT" in "\n".join(before)


async def test_copy_has_what_is_still_in_the_journal(database: Path) -> None:
    """A copy is SQLite's own: it has the rows that another program has not checkpointed yet."""
    make_file(database, [])
    with closing(sqlite3.connect(database)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", old_row())
        other.commit()
        assert len(await adopt(database)) == 1
    with closing(sqlite3.connect(f"{database}.before-sessionstore")) as copy:
        assert copy.execute("SELECT * FROM sessions").fetchall() == [old_row()]


async def test_second_open_adopts_nothing(database: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An adopted file is one of ours: it is opened again without a word and without a copy."""
    make_file(database, [old_row(data="no dict")])
    with caplog.at_level(logging.WARNING):
        first = await adopt(database)
        assert len(caplog.records) == 1
        copy = f"{database}.before-sessionstore"
        assert copy in caplog.text
        before = dump(database)
        assert await adopt(database) == first
        assert len(caplog.records) == 1
    assert dump(database) == before
    assert copies(database) == ["sessions.db.before-sessionstore"]


async def test_an_adoption_that_a_reader_keeps_from_committing_leaves_no_copy(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is not in WAL mode cannot be committed to meanwhile; afterwards it is adopted."""
    make_file(database, [old_row(id="a")])
    with closing(sqlite3.connect(database, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM sessions").fetchall()
        with pytest.raises(StoreBusyError):
            await SessionManager(database, busy_timeout=0.5).open()
        assert copies(database) == []
        assert "adopted" not in caplog.text
        reader.execute("ROLLBACK")
    (session,) = await adopt(database)
    assert session.id == "a"
    assert len(copies(database)) == 1


async def test_files_with_the_name_of_the_copy_are_kept(database: Path) -> None:
    """A copy takes a name that is free, and overwrites nothing."""
    first = database.with_name("sessions.db.before-sessionstore")
    first.write_text("kept")
    database.with_name("sessions.db.before-sessionstore-2").symlink_to("nowhere")
    make_file(database, [old_row()])
    before = dump(database)
    await adopt(database)
    assert first.read_text() == "kept"
    assert dump(database.with_name("sessions.db.before-sessionstore-3")) == before


async def test_half_a_copy_is_replaced(database: Path) -> None:
    """What an adoption that was cut off left of its copy does not stop the next one."""
    database.with_name("sessions.db.before-sessionstore.part").write_text("half")
    make_file(database, [old_row()])
    before = dump(database)
    await adopt(database)
    assert copies(database) == ["sessions.db.before-sessionstore"]
    assert dump(database.with_name("sessions.db.before-sessionstore")) == before


# -- What cannot be adopted ------------------------------------------------------------------------

NULLABLE = DDL.replace("VARCHAR(36) NOT NULL PRIMARY KEY", "VARCHAR(36) PRIMARY KEY")
WITHOUT_KEY = DDL.replace(" NOT NULL PRIMARY KEY", "")

REFUSED: dict[str, tuple[str, dict[str, object]]] = {
    "a start that is no time": (DDL, {"started_at": "yesterday"}),
    "a start that does not exist": (DDL, {"started_at": "2023-02-29 10:00:00.000000"}),
    "an activity that is a number": (DDL, {"last_activity": 1_700_000_000}),
    "an end that is no time": (DDL, {"ended_at": "soon"}),
    "a time beyond the calendar": (DDL, {"started_at": "0001-01-01 00:00:00+05:00"}),
    "a count that is none": (DDL, {"interaction_count": "many"}),
    "a count beyond 64 bits": (DDL, {"interaction_count": "99999999999999999999"}),
    "a count without end": (DDL, {"interaction_count": float("inf")}),
    "no id": (NULLABLE, {"id": None}),
    "an empty id": (DDL, {"id": ""}),
    "an id that is too long": (DDL, {"id": "x" * 37}),
    "an id that is no text": (DDL, {"id": b"x"}),
    "an id that is there twice": (WITHOUT_KEY, {"id": "first"}),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_row_that_cannot_be_kept_stops_the_adoption(database: Path, kind: str) -> None:
    """A row that the new table cannot hold is SchemaError, and all tables and rows stay."""
    ddl, changes = REFUSED[kind]
    make_file(database, [old_row(id="first"), old_row(**changes)], ddl=ddl)
    before = dump(database)
    for _ in range(2):
        with pytest.raises(SchemaError):
            await adopt(database)
        assert dump(database) == before
        assert copies(database) == []


async def test_status_that_is_no_text_is_kept(database: Path) -> None:
    """A status of bytes is as unknown as any other, and stops no adoption."""
    session = await adopt_row(database, status=b"\x00\xff")
    assert session.status is SessionStatus.ERROR
    assert "legacy_status" in session.metadata


async def test_text_that_is_no_utf8_is_kept(database: Path) -> None:
    """Bytes that are no UTF-8, as a text or a blob, stop no adoption, and can be read."""
    make_file(database, [old_row(id="blob", data=b"\xff{"), old_row(id="text")])
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE sessions SET data = CAST(x'ff7b' AS TEXT) WHERE id = 'text'")
        connection.commit()
    assert [session.data for session in await adopt(database)] == [{"legacy": "\\xff{"}] * 2


@pytest.mark.parametrize(
    "step",
    [
        "CREATE_PREDECESSOR_ROWS",
        "DROP_SESSIONS",
        "INSERT_MIGRATION",
        "INSERT_SESSION",
        "DROP_PREDECESSOR_ROWS",
    ],
)
async def test_interrupted_adoption_leaves_the_file(
    database: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """An adoption that fails at any step changes nothing, and the next one succeeds."""
    make_file(database, [old_row(data=str({"a": 1}))])
    before = dump(database)
    with monkeypatch.context() as patch:
        patch.setattr(queries, step, "DELETE FROM nothing")
        with pytest.raises(StorageError):
            await adopt(database)
    assert dump(database) == before
    assert copies(database) == []
    (session,) = await adopt(database)
    assert session.data == {"a": 1}


KILLED = """
import ast, asyncio, os, sys
from sessionstore import SessionManager

ast.literal_eval = lambda text: os._exit(9)
asyncio.run(SessionManager(sys.argv[1]).open())
"""


async def test_process_that_dies_in_an_adoption_leaves_the_file(database: Path) -> None:
    """A process that is killed between two rows loses nothing, and the next one adopts them all."""
    make_file(database, [old_row(id="first"), old_row(id="second", data=str({"a": 1}))])
    before = dump(database)
    command = [sys.executable, "-c", KILLED, str(database)]
    child = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    assert await child.wait() == 9
    assert dump(database) == before
    found = {session.id: session.data for session in await adopt(database)}
    assert found == {"first": {}, "second": {"a": 1}}


# -- A file that a host project shares -------------------------------------------------------------

HOST = """
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    session_id VARCHAR(36) REFERENCES sessions (id) ON DELETE CASCADE,
    text TEXT
);
CREATE TABLE log (line TEXT);
CREATE VIEW active_messages AS
    SELECT text FROM messages JOIN sessions ON sessions.id = session_id WHERE status = 'active';
CREATE TRIGGER messages_are_logged AFTER INSERT ON messages
BEGIN
    INSERT INTO log SELECT child_id FROM sessions WHERE id = new.session_id;
END;
"""


async def test_host_project_keeps_working(database: Path) -> None:
    """Tables, views, triggers and foreign keys of the host mean the adopted sessions afterwards."""
    make_file(database, [old_row(id="first"), old_row(id="second", status="ended")])
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(HOST)
        connection.execute("INSERT INTO messages VALUES (1, 'first', 'hello'), (2, 'second', 'hi')")
        connection.execute("PRAGMA user_version = 7")
        connection.commit()
    before = [line for line in dump(database) if "messages" in line or "log" in line]
    await adopt(database)
    assert [line for line in dump(database) if "messages" in line or "log" in line] == before
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("PRAGMA user_version").fetchone() == (7,)
        assert connection.execute("SELECT * FROM active_messages").fetchall() == [("hello",)]
        connection.execute("INSERT INTO messages VALUES (3, 'first', 'again')")
        assert connection.execute("SELECT * FROM log").fetchall()[-1] == ("lina",)
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute("INSERT INTO messages VALUES (4, 'nobody', 'lost')")
        connection.execute("DELETE FROM sessions WHERE id = 'first'")
        assert connection.execute("SELECT id FROM messages").fetchall() == [(2,)]


async def test_managers_that_open_at_once_adopt_once(database: Path) -> None:
    """Managers that open a predecessor's file at the same moment adopt it together, once."""
    make_file(database, [old_row(id=f"{n:036}") for n in range(50)])
    managers = [SessionManager(database, clock=FakeClock(), sweep_interval=None) for _ in range(4)]
    results = await asyncio.gather(
        *(manager.open() for manager in managers), return_exceptions=True
    )
    counts = [
        len(await manager.list_sessions())
        for manager, result in zip(managers, results, strict=True)
        if result is None
    ]
    for manager in managers:
        await manager.close()
    assert counts == [50] * 4
    assert copies(database) == ["sessions.db.before-sessionstore"]
