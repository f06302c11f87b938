# SPDX-License-Identifier: MIT
"""Processes that open, upgrade, sweep and close one file at the same moment, or die doing so.

A later release is the package under another name with one migration more, and the predecessor's
file is the one that tests/sqlite has.
"""

import asyncio
import importlib
import os
import random
import shutil
import sqlite3
import sys
import time
from contextlib import ExitStack, closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sessionstore import Session, SessionManager
from sessionstore.sqlite.schema import MIGRATIONS

from ..children import ROOT, Child, Line
from ..sqlite import test_predecessor, test_schema

LATER = "sessionstore_of_later"
OLD_ROWS = 40
IDLE = 1.0  # seconds until a session has timed out
NUMBER = len(MIGRATIONS)


def make_nothing(database: Path, _: Path) -> str:
    """Leave a file to be made."""
    return "sessionstore"


def make_older_file(database: Path, folder: Path) -> str:
    """Make a file of today's release and a release that has a migration for it."""
    package = folder / LATER
    if not package.exists():
        shutil.copytree(ROOT / "sessionstore", package)
        migration = package / "sqlite" / "migrations" / f"{NUMBER + 1:04}_devices.sql"
        migration.write_text(test_schema.DEVICES)
        with (package / "sqlite" / "schema.sql").open("a") as file:
            file.write(test_schema.DEVICES)
    asyncio.run(test_schema.open_and_close(database))
    return LATER


def make_predecessors_file(database: Path, _: Path) -> str:
    """Make a file that is to be adopted."""
    rows = [test_predecessor.old_row(id=f"{n:036}", data=str({"n": n})) for n in range(OLD_ROWS)]
    test_predecessor.make_file(database, rows)
    return "sessionstore"


def make_file(database: Path, _: Path) -> str:
    """Make a file that is of today."""
    asyncio.run(test_schema.open_and_close(database))
    return "sessionstore"


KINDS = {
    "new": make_nothing,
    "older": make_older_file,
    "predecessor's": make_predecessors_file,
    "today's": make_file,
}
LONG = pytest.mark.torture
EACH_KIND = pytest.mark.parametrize(
    "kind", ["older", *(pytest.param(kind, marks=LONG) for kind in KINDS if kind != "older")]
)


async def live(line: Line, database: Path, folder: Path, package: str) -> None:
    """Open at a sign, create a session, tell its id, read it, close, and tell that."""
    sys.path.insert(0, str(folder))
    manager = importlib.import_module(package).SessionManager(database, sweep_interval=None)
    line.say()
    line.hear()
    await manager.open()
    id_ = await manager.create_session("lina")
    line.say(id_)
    assert (await manager.get_session(id_)).is_active
    await manager.close()
    line.say("closed")


def assert_is_whole(database: Path, kind: str, ids: list[str]) -> None:
    """Demand that the work was done once, that the sessions are there, and that nothing is left."""
    names = [path.name for path in database.parent.iterdir()]
    assert [name for name in names if name.endswith(("-wal", "-shm", "-journal", ".part"))] == []
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = {id_ for (id_,) in connection.execute("SELECT id FROM sessions")}
        assert set(ids) <= found
        if kind == "predecessor's":
            assert {f"{n:036}" for n in range(OLD_ROWS)} <= found
        versions = connection.execute("SELECT version FROM sessionstore_migrations ORDER BY 1")
        assert len(versions.fetchall()) == NUMBER + (kind == "older")


@EACH_KIND
def test_processes_that_open_at_once_all_succeed(tmp_path: Path, database: Path, kind: str) -> None:
    """Eight that come at one moment to a file, whatever it needs, live on it; one does the work."""
    package = KINDS[kind](database, tmp_path)
    with ExitStack() as stack:
        children = [stack.enter_context(Child(live, database, tmp_path, package)) for _ in range(8)]
        lines = [child.line for child in children]
        for line in lines:
            line.hear()
        for line in lines:
            line.say()
        ids = [line.hear() for line in lines]
        assert [line.hear() for line in lines] == ["closed"] * 8
        assert [child.join() for child in children] == [0] * 8
    assert_is_whole(database, kind, ids)
    copies = test_predecessor.copies(database)
    assert copies == [f"{database.name}.before-sessionstore"] * (kind == "predecessor's")


def read_to_the_end(line: Line) -> list[Any]:
    """Return what a process had said before it was killed."""
    said = []
    while True:
        try:
            said.append(line.hear())
        except ConnectionResetError:  # it had not heard all
            continue
        except EOFError:
            return said


@LONG
@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_dies_leaves_nothing_to_be_done_by_hand(tmp_path: Path, kind: str) -> None:
    """Killed at any moment between open and close, it is made up for by the next open."""
    chance = random.Random(4)
    duration = 0.0
    unfinished = 0
    for number in range(16):
        database = tmp_path / str(number) / "sessions.db"
        database.parent.mkdir()
        package = KINDS[kind](database, tmp_path)
        with Child(live, database, tmp_path, package) as child:
            child.line.hear()
            started = time.monotonic()
            child.line.say()
            if number == 0:
                child.line.hear()
                assert child.line.hear() == "closed"
                duration = time.monotonic() - started
                continue
            time.sleep(duration * 1.3 * chance.random())
            child.kill()
            ids = read_to_the_end(child.line)
        if "closed" in ids:
            duration *= 0.7  # the first one was a slow one
        else:
            unfinished += 1
        ids = [said for said in ids if said != "closed"]
        with Child(live, database, tmp_path, package) as child:
            child.line.hear()
            child.line.say()
            ids.append(child.line.hear())
            assert child.line.hear() == "closed"
        assert_is_whole(database, kind, ids)
    assert unfinished > 3


async def sweep(line: Line, database: Path) -> None:
    """Sweep until told to end, and write down of which sessions on_end has heard."""
    with open(f"{database}.log", "ab", buffering=0) as log:  # noqa: ASYNC230  # O_APPEND

        def on_end(session: Session) -> None:
            log.write(f"{os.getpid()} {session.id}\n".encode())

        async with SessionManager(database, timeout=IDLE, sweep_interval=0.05, on_end=on_end):
            line.say()
            await asyncio.to_thread(line.hear)
    line.say()


async def make_sessions(database: Path, count: int) -> list[str]:
    """Create sessions, one after the other."""
    async with SessionManager(database, sweep_interval=None) as manager:
        return [await manager.create_session("lina") for _ in range(count)]


def test_sweepers_of_many_processes_share_the_work(database: Path) -> None:
    """Four that sweep one file time each session out once, and one of them hears of its end."""
    asyncio.run(make_sessions(database, 0))
    log = Path(f"{database}.log")
    with ExitStack() as stack:
        lines = [stack.enter_context(Child(sweep, database)).line for _ in range(4)]
        for line in lines:
            line.hear()
        ids = asyncio.run(make_sessions(database, 300))
        deadline = time.monotonic() + 20
        while len(log.read_bytes().splitlines()) < len(ids):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)  # some sweeps more, which must find nothing
        for line in lines:
            line.say()
        for line in lines:
            line.hear()
    heard = [text.split() for text in log.read_text().splitlines()]
    assert sorted(id_ for _, id_ in heard) == sorted(ids)
    assert len({process for process, _ in heard}) > 1
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT status, last_activity, ended_at FROM sessions").fetchall()
    assert [status for status, _, _ in rows] == ["timeout"] * len(ids)
    for _, last_activity, ended_at in rows:
        idle = datetime.fromisoformat(ended_at) - datetime.fromisoformat(last_activity)
        assert idle == timedelta(seconds=IDLE)
