# SPDX-License-Identifier: MIT
"""on_end: once for each session that ends, with its final snapshot, whatever else happens."""

import asyncio
import gc
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sessionstore import Session, SessionManager, StoreBusyError, StoreClosedError, endings

from ..conftest import FakeClock


def manager(path: Path, clock: FakeClock, on_end: Callable[[Session], Any]) -> SessionManager:
    """Return a manager without a sweeper."""
    return SessionManager(path, clock=clock, on_end=on_end, sweep_interval=None)


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_each_way_of_ending_is_told_once(database: Path, clock: FakeClock, kind: str) -> None:
    """Ends, timeouts and purges of timeouts are told, with the final snapshot; deletion is not."""
    told: list[Session] = []

    async def tell(session: Session) -> None:
        await asyncio.sleep(0)
        told.append(session)

    async with manager(database, clock, told.append if kind == "plain" else tell) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(3)]
        other = await sessions.create_session("omar")
        assert await sessions.end_session(ids[0], "bye")
        assert [session.id for session in told] == [ids[0]]
        assert told[0] == await sessions.get_session(ids[0])
        assert told[0].end_reason == "bye"
        assert not await sessions.end_session(ids[0])
        assert await sessions.end_sessions("lina", except_id=ids[2]) == 1
        assert await sessions.delete_session(ids[2])
        clock.turn(1_800)
        assert await sessions.cleanup_inactive_sessions() == 1
        late = await sessions.create_session("lina")
        clock.turn(3_600)
        assert await sessions.purge_ended_sessions(0) == 4
        assert [session.id for session in told] == [ids[0], ids[1], other, late]
        assert [str(s.status) for s in told] == ["ended", "ended", "timeout", "timeout"]
        assert all(session.ended_at is not None for session in told)


async def test_it_comes_after_commit_and_outside_the_transaction(
    database: Path, clock: FakeClock
) -> None:
    """In the callback another connection sees the end, and the store can be used."""
    seen: list[Any] = []

    async def tell(session: Session) -> None:
        with closing(sqlite3.connect(database)) as shell:
            seen.append(shell.execute("SELECT status FROM sessions").fetchone())
        seen.append(await sessions.create_session(session.child_id))

    async with manager(database, clock, tell) as sessions:
        await sessions.end_session(await sessions.create_session("lina"))
        assert seen[0] == ("ended",)
        assert await sessions.update_activity(seen[1])


@pytest.mark.parametrize("error", [ValueError("broken"), asyncio.CancelledError()])
async def test_an_error_in_it_is_logged_and_changes_nothing(
    database: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """The session has ended, its caller hears True, and the others are told."""
    told: list[str] = []

    def tell(session: Session) -> None:
        told.append(session.id)
        raise error

    async with manager(database, clock, tell) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(3)]
        assert await sessions.end_session(ids[0]) is True
        assert await sessions.end_sessions("lina") == 2
    assert sorted(told) == sorted(ids)
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(records) == 3
    assert ids[0][-8:] in caplog.text
    assert ids[0] not in "".join(record.getMessage() for record in records)


async def test_it_is_called_once_whichever_process_ends(database: Path, clock: FakeClock) -> None:
    """Of two managers that end the same sessions, and sweep, one hears of each."""
    told: list[str] = []

    def tell(session: Session) -> None:
        told.append(session.id)

    async with manager(database, clock, tell) as one, manager(database, clock, tell) as other:
        ids = [await one.create_session("lina") for _ in range(20)]
        ended = await asyncio.gather(
            *(sessions.end_session(id_) for id_ in ids[:10] for sessions in (one, other))
        )
        clock.turn(1_800)
        swept = await asyncio.gather(
            *(sessions.cleanup_inactive_sessions() for sessions in (one, other))
        )
    assert (sum(ended), sum(swept)) == (10, 10)
    assert sorted(told) == sorted(ids)


async def test_a_session_erased_in_the_same_breath_is_told(
    database: Path, clock: FakeClock
) -> None:
    """An end that was acknowledged is told, also if the session is gone in the same commit."""
    told: list[str] = []
    async with manager(database, clock, lambda session: told.append(session.id)) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(20)]
        results = await asyncio.gather(
            *(call(id_) for id_ in ids for call in (sessions.end_session, sessions.delete_session))
        )
    ended = [id_ for id_, has_ended in zip(ids, results[::2], strict=True) if has_ended]
    assert sorted(told) == sorted(ended)


async def test_a_cancelled_caller_loses_no_call(database: Path, clock: FakeClock) -> None:
    """Whoever ended a session may give up waiting: on_end is called if, and only if, it ended."""
    told: list[str] = []

    async def tell(session: Session) -> None:
        await asyncio.sleep(0.001)
        told.append(session.id)

    async with manager(database, clock, tell) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(60)]
        for number, id_ in enumerate(ids):
            call = asyncio.create_task(sessions.end_session(id_))
            for _ in range(number % 6):
                await asyncio.sleep(0)
            if number % 2:
                await asyncio.sleep(number / 20_000)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
    async with manager(database, clock, tell) as sessions:
        ended = await sessions.list_sessions(status="ended")
    assert len(ended) > 10
    assert sorted(told) == sorted(session.id for session in ended)


async def test_close_waits_for_it(database: Path, clock: FakeClock) -> None:
    """A callback under way when the store is closed ends first; calls from it are refused."""
    refused: list[Exception] = []
    started = asyncio.Event()

    async def tell(session: Session) -> None:
        started.set()
        await asyncio.sleep(0.05)
        try:
            await sessions.get_session(session.id)
        except StoreClosedError as error:
            refused.append(error)

    sessions = manager(database, clock, tell)
    await sessions.open()
    ending_call = asyncio.create_task(sessions.end_session(await sessions.create_session("lina")))
    await started.wait()
    await sessions.close()
    assert len(refused) == 1
    assert await ending_call is True


async def test_close_gives_up_on_one_that_hangs(
    database: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A callback that never returns is cancelled after a grace, and its session has ended."""
    monkeypatch.setattr(endings, "GRACE", 0.05)
    sessions = manager(database, clock, lambda _: asyncio.Event().wait())
    await sessions.open()
    call = asyncio.create_task(sessions.end_session(await sessions.create_session("lina")))
    await asyncio.sleep(0.02)
    await sessions.close()
    assert "on_end has not returned" in caplog.text
    assert await call is True
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("how", ["directly", "twice at once", "by a task"])
async def test_it_may_close_the_store(database: Path, clock: FakeClock, how: str) -> None:
    """A callback that closes the store does not wait for itself, whichever way it does so."""

    async def tell(_: Session) -> None:
        if how == "directly":
            await sessions.close()
        elif how == "twice at once":
            await asyncio.gather(sessions.close(), sessions.close())
        else:
            await asyncio.create_task(sessions.close())

    sessions = manager(database, clock, tell)
    await sessions.open()
    async with asyncio.timeout(2):
        assert await sessions.end_session(await sessions.create_session("lina")) is True
    with pytest.raises(StoreClosedError):
        await sessions.get_session_stats()


async def test_what_one_call_does_to_its_task_harms_no_other(
    database: Path, clock: FakeClock
) -> None:
    """A callback that cancels its own task, or raises what is no Exception, is called for each."""
    told: list[str] = []

    async def tell(session: Session) -> None:
        told.append(session.id)
        task = asyncio.current_task()
        assert task is not None
        if len(told) % 2:
            task.cancel()
            await asyncio.sleep(0)
        raise GeneratorExit

    async with manager(database, clock, tell) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(4)]
        assert await sessions.end_sessions("lina") == 4
    assert sorted(told) == sorted(ids)


async def test_a_hanging_call_stops_no_sweep(database: Path, clock: FakeClock) -> None:
    """While one callback never returns, the sweeper goes on timing sessions out."""
    told: asyncio.Queue[Session] = asyncio.Queue()

    async def tell(session: Session) -> None:
        told.put_nowait(session)
        await asyncio.Event().wait()

    sessions = SessionManager(database, clock=clock, on_end=tell, sweep_interval=0.01)
    await sessions.open()
    for _ in range(3):
        await sessions.create_session("lina")
        clock.turn(1_800)
        async with asyncio.timeout(5):
            await told.get()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endings, "GRACE", 0.01)
        await sessions.close()


async def test_close_waits_for_a_write_that_waits_for_a_lock(
    database: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grace is for callbacks: an accepted end that gets the lock is committed, and told."""
    monkeypatch.setattr(endings, "GRACE", 0.05)
    told: list[Session] = []
    sessions = manager(database, clock, told.append)
    await sessions.open()
    id_ = await sessions.create_session("lina")
    shell = sqlite3.connect(database, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    ending_call = asyncio.create_task(sessions.end_session(id_))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.3, shell.execute, "ROLLBACK")
    await sessions.close()
    assert await ending_call is True
    assert [session.id for session in told] == [id_]
    shell.close()


async def test_close_stops_a_sweep_between_two_of_its_chunks(
    database: Path, clock: FakeClock
) -> None:
    """What a cleanup ended before close() is told before close() returns; the rest is not ended."""
    told: list[str] = []

    async def tell(session: Session) -> None:
        told.append(session.id)
        await asyncio.sleep(0)

    async with manager(database, clock, tell) as sessions:
        await asyncio.gather(*(sessions.create_session("lina") for _ in range(1_200)))
        clock.turn(1_800)
        cleaning = asyncio.create_task(sessions.cleanup_inactive_sessions())
        while not told:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0)
    assert isinstance((await asyncio.gather(cleaning, return_exceptions=True))[0], StoreClosedError)
    with closing(sqlite3.connect(database)) as shell:
        query = "SELECT id FROM sessions WHERE ended_at NOTNULL"
        ended = [id_ for (id_,) in shell.execute(query)]
    assert sorted(told) == sorted(ended)
    assert len(ended) in (500, 1_000)


async def test_an_end_that_nobody_waits_for_fails_in_silence(
    database: Path, clock: FakeClock
) -> None:
    """Where the caller was cancelled, and the write then fails, asyncio has nothing to log."""
    logged: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
    async with SessionManager(
        database, clock=clock, on_end=lambda _: None, busy_timeout=0.05, sweep_interval=None
    ) as sessions:
        id_ = await sessions.create_session("lina")
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            ending = asyncio.create_task(sessions.end_session(id_))
            await asyncio.sleep(0.01)
            ending.cancel()
            await asyncio.wait({ending})
            with pytest.raises(StoreBusyError):  # so that the end before it has failed, too
                await sessions.update_activity(id_)
            other.execute("ROLLBACK")
        gc.collect()
        assert logged == []
        assert await sessions.update_activity(id_)
