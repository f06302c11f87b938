# SPDX-License-Identifier: MIT
"""What is told in logs, in texts and causes of errors, and by repr: no id in full, and no data.

The watch of leaks.py searches all that the suite logs and raises. These tests show that it finds
what there is to find, and lead the store to where it has most to tell.
"""

import asyncio
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from sessionstore import (
    InvalidArgumentError,
    SessionManager,
    SessionStoreError,
    StorageError,
    manager,
)
from sessionstore.session import Record, new_id, short_id

from ..clocks import Watched
from ..conftest import FakeClock
from ..leaks import ID, watch
from ..sqlite.test_predecessor import make_file, old_row

SECRET = "the child's own words, 7f3a"  # noqa: S105  # no password
ID_4 = "9d1c1a54-7a1e-4f0c-9a53-5b8e6a0f4c11"
ID_7 = new_id(1_700_000_000_000_000)


# -- The watch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sessionstore.manager", "aiosqlite", "asyncio"])
@pytest.mark.parametrize("text", [f"session {ID_4}", f"session {ID_7}", f"it said {SECRET}"])
def test_it_finds_a_log_line_that_tells(name: str, text: str) -> None:
    """At whatever level, in the text of a line and in its traceback, of each of the loggers."""
    watch.tell(SECRET)
    logger = logging.getLogger(name)
    logger.debug("%s", text)
    try:
        raise ValueError(text)
    except ValueError:
        logger.debug("it failed", exc_info=True)
    logger.debug("session %s", short_id(ID_7))
    assert len(watch.take()) == 2


def raise_from(cause: BaseException | None) -> None:
    """Raise an error of ours with a cause, or with one that it does not show."""
    try:
        raise cause or sqlite3.OperationalError(SECRET)
    except Exception as error:
        if cause is None:
            raise StorageError("refused") from None
        raise StorageError("refused") from error


@pytest.mark.parametrize(
    "cause",
    [
        sqlite3.OperationalError(f"near {SECRET}"),
        UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, "no"),
        KeyError(ID_4),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_it_finds_an_error_that_tells(cause: Exception) -> None:
    """In the text of an error, in that of its cause, and in what the cause carries along."""
    watch.tell(SECRET)
    with pytest.raises(StorageError):
        raise_from(cause)
    assert len(watch.take()) == 1
    with pytest.raises(StorageError):
        raise_from(None)
    assert watch.take() == []


async def test_it_knows_what_the_store_was_given(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that somebody adds for debugging, with the row in it, does not get through."""

    def talkative(**fields: Any) -> Any:
        logging.getLogger("sessionstore.manager").debug("new record: %s", fields["data"])
        return Record(**fields)

    monkeypatch.setattr(manager, "Record", talkative)
    async with SessionManager(database, sweep_interval=None) as sessions:
        await sessions.create_session("lina", {"said": SECRET})
    assert len(watch.take()) == 1


async def test_it_finds_what_aiosqlite_tells(database: Path) -> None:
    """Used as usual, aiosqlite logs each value that it binds; the package hands it functions."""
    watch.tell(SECRET)
    async with aiosqlite.connect(database) as connection:
        await connection.execute("SELECT :data", {"data": SECRET})
    assert watch.take()


# -- Where there is most to tell -------------------------------------------------------------------


async def test_a_debugging_event_loop_tells_nothing(database: Path, clock: FakeClock) -> None:
    """With asyncio's debug mode on, and each callback called slow, a whole life tells nothing."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0
    searched = watch.searched
    try:
        async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
            await lead_a_life(sessions, clock)
    finally:
        loop.set_debug(False)
    assert watch.searched > searched + 100
    assert watch.take() == []


async def lead_a_life(sessions: SessionManager, clock: FakeClock) -> None:
    """Make each call once at least."""
    child = "the name of a child, 81c2"
    ids = [await sessions.create_session(child, {"said": SECRET}) for _ in range(5)]
    await asyncio.gather(*map(sessions.update_activity, ids), *map(sessions.get_session, ids))
    await sessions.update_session(ids[0], {"more": SECRET * 2}, metadata={"kept": SECRET})
    await sessions.end_session(ids[1], "a reason, and a long one")
    assert len(await sessions.get_active_sessions(child)) == 4
    assert len(await sessions.get_sessions_for_child(child)) == 5
    assert len([session async for session in sessions.iter_active_sessions()]) == 4
    await sessions.delete_session(ids[2])
    await sessions.end_sessions(child, except_id=ids[3])
    clock.turn(10**6)
    await sessions.cleanup_inactive_sessions()
    await sessions.purge_ended_sessions(0)
    await sessions.get_session_stats()


DAMAGES = {
    "data that is no UTF-8": "data = CAST(X'7b22' || CAST(:secret AS BLOB) || X'ff' AS TEXT)",
    "metadata that is no UTF-8": "metadata = CAST(CAST(:secret AS BLOB) || X'ff' AS TEXT)",
    "data that is no JSON": "data = :secret",
    "metadata that is no JSON": "metadata = :secret",
    "a time that is none": "last_activity = :secret",
    "a start that is none": "started_at = :secret",
    "a status that is none": "status = :secret",
    "a time that is a number": "last_activity = 7",
    "data that is nothing": "data = X''",
}


@pytest.mark.parametrize("cache_size", [0, 100])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_row_is_told_without_what_it_holds(
    database: Path, clock: FakeClock, damage: str, cache_size: int
) -> None:
    """Each call on it works or raises one of our errors, and neither they nor a sweep quote it."""
    watch.tell(SECRET)
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        id_ = await sessions.create_session("lina")
        other = await sessions.create_session("omar")
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        update = f"UPDATE sessions SET {DAMAGES[damage]} WHERE id = :id"
        connection.execute(update, {"id": id_, "secret": SECRET})
    refused = 0
    async with Watched(database, clock, clock, cache_size=cache_size) as sessions:
        for call in (
            lambda: read(sessions, id_),
            lambda: sessions.update_activity(id_),
            lambda: sessions.update_session(id_, {"a": 1}),
            lambda: read(sessions, id_),
            lambda: sessions.list_sessions(),
            lambda: sessions.get_active_sessions("lina"),
            lambda: sessions.get_session_stats(),
            lambda: clock.turn(10**6) or sessions.cleanup_inactive_sessions(),  # type: ignore[func-returns-value]
            sessions.sweep,
            lambda: sessions.end_session(id_),
            lambda: sessions.purge_ended_sessions(10**9),
        ):
            try:
                await call()
            except SessionStoreError:
                refused += 1
        assert await sessions.get_session(other) is not None
        assert await sessions.delete_session(id_)
    assert refused
    assert watch.take() == []


async def read(sessions: SessionManager, id_: str) -> None:
    """Read a session in all its fields."""
    session = await sessions.get_session(id_)
    if session is not None:
        str((session.status, session.started_at, session.data, session.metadata, session))
        str((session.end_reason, session.duration, session.expires_at, session == session))


@pytest.mark.parametrize(
    "column", ["started_at", "last_activity", "ended_at", "interaction_count", "id", "child_id"]
)
async def test_an_adoption_that_fails_does_not_quote_the_row(database: Path, column: str) -> None:
    """What a row of the predecessor holds where a time or a number should be is not told."""
    watch.tell(SECRET)
    make_file(database, [old_row(**{column: SECRET * 10})])
    with pytest.raises(SessionStoreError):
        await SessionManager(database).open()
    assert watch.take() == []


@pytest.mark.parametrize("text", [SECRET + "\ud800", SECRET + "\0", SECRET * 100])
async def test_what_is_refused_is_not_quoted(database: Path, text: str) -> None:
    """Neither the text nor the cause of a refusal holds the argument."""
    watch.tell(SECRET)
    async with SessionManager(database, sweep_interval=None, max_data_bytes=500) as sessions:
        for call in (
            lambda: sessions.create_session(text),
            lambda: sessions.create_session("lina", {"a": text}),
            lambda: sessions.create_session("lina", {text: float("nan")}),
            lambda: sessions.end_sessions("lina", reason=text),
            lambda: sessions.get_sessions_for_child(text),
        ):
            with pytest.raises(InvalidArgumentError):
                await call()
    assert watch.take() == []


async def test_repr_shows_no_data(database: Path, clock: FakeClock) -> None:
    """Of all that a caller is handed, repr and str show the last characters of an id at most."""
    child = "the name of a child, 81c2"
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        id_ = await sessions.create_session(child, {"said": SECRET}, metadata={"kept": SECRET})
        found = await sessions.get_session(id_)
        [listed] = await sessions.get_active_sessions()
        await sessions.end_session(id_, SECRET)
        ended = await sessions.get_session(id_)
        stats = await sessions.get_session_stats()
        shown = [sessions, found, listed, ended, stats, type(sessions)]
        text = "\n".join(f"{one!r} {one}" for one in shown)
    assert short_id(id_) in text
    assert not ID.search(text)
    assert SECRET not in text
    assert child not in text
