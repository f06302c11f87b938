# SPDX-License-Identifier: MIT
"""Opening and closing: when a store answers, and what it then still holds."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sessionstore import StoreClosedError
from sessionstore.store import Store

from .engines import NOW, Engine, Mirror, a_record, at, contents, seen

VERBS: dict[str, Callable[[Store], Awaitable[Any]]] = {
    "create": lambda store: store.create(a_record()),
    "touch": lambda store: store.touch("id", at()),
    "edit": lambda store: store.edit("id", at(), lambda record: record),
    "end": lambda store: store.end("id", at(), "ended", "manual"),
    "end_all": lambda store: store.end_all("lina", at(), "ended", "manual", None),
    "erase": lambda store: store.erase("id"),
    "time_out": lambda store: store.time_out(at(), 10),
    "purge": lambda store: store.purge(NOW, 10),
    "tidy": lambda store: store.tidy(at()),
    "load": lambda store: store.load("id"),
    "list_active": lambda store: store.list_active(at(), None, None, None),
    "list_of_child": lambda store: store.list_of_child("lina", 10),
    "search": lambda store: store.search(at(), None, None, 10),
    "count": lambda store: store.count(at()),
}


async def is_closed(store: Store) -> bool:
    """Return whether each verb raises StoreClosedError; some may not."""
    refused = 0
    for call in VERBS.values():
        try:
            await call(store)
        except StoreClosedError:
            refused += 1
    assert refused in (0, len(VERBS))
    return refused > 0


def test_every_verb_is_among_them() -> None:
    """So that none is forgotten here."""
    public = {name for name in dir(Store) if not name.startswith("_")}
    assert public - {"open", "close", "versions"} == VERBS.keys()


async def test_a_store_answers_only_while_it_is_open(engine: Engine) -> None:
    """Before and after, each verb raises StoreClosedError, and there are no versions."""
    store = engine.make()
    assert store.versions is None
    assert await is_closed(store)
    for _ in range(2):
        await store.open(Mirror(), NOW)
        assert store.versions is not None
        assert not await is_closed(store)
        await store.close()
        assert store.versions is None
        assert await is_closed(store)


async def test_closing_what_is_not_open_does_nothing(engine: Engine) -> None:
    """Before it was opened, and twice."""
    store = engine.make()
    await store.close()
    await store.open(Mirror(), NOW)
    await store.close()
    await store.close()


async def test_a_store_answers_only_in_the_event_loop_that_opened_it(store: Store) -> None:
    """In another one each verb raises StoreClosedError, and nothing is written."""
    assert await asyncio.to_thread(lambda: asyncio.run(is_closed(store)))
    assert await contents(store) == {}
    assert not await is_closed(store)


def test_a_store_is_opened_again_in_another_event_loop(engine: Engine) -> None:
    """The loop before may be gone."""
    store = engine.make()

    async def use() -> None:
        await store.open(Mirror(), NOW)
        assert not await is_closed(store)
        await store.close()

    asyncio.run(use())
    asyncio.run(use())


async def test_what_was_written_is_there_after_reopening(shared_engine: Engine) -> None:
    """By the same store and by another one."""
    store = shared_engine.make()
    record = a_record()
    await store.open(Mirror(), NOW)
    await store.create(record)
    assert await store.touch(record.id, at())
    await store.close()
    for reopened in (store, shared_engine.make()):
        await reopened.open(Mirror(), NOW)
        assert await contents(reopened) == {record.id: seen(record._replace(interaction_count=1))}
        await reopened.close()


async def test_what_was_accepted_is_finished_at_close(shared_engine: Engine) -> None:
    """Writes and reads that were under way return as ever, and their commits are told."""
    store, mirror = shared_engine.make(), Mirror()
    await store.open(mirror, NOW)
    record = a_record()
    await store.create(record)
    touches = [asyncio.ensure_future(store.touch(record.id, at())) for _ in range(700)]
    loads = [asyncio.ensure_future(store.load(record.id)) for _ in range(10)]
    await asyncio.sleep(0)
    await store.close()
    assert all(await asyncio.gather(*touches))
    assert [load and load.id for load in await asyncio.gather(*loads)] == [record.id] * 10
    await store.open(Mirror(), NOW)
    try:
        assert await contents(store) == mirror.sessions
        assert mirror.sessions[record.id]["interaction_count"] == 700
    finally:
        await store.close()


async def test_what_comes_while_closing_is_refused(store: Store) -> None:
    """It was not accepted, so nothing of it is written."""
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    with pytest.raises(StoreClosedError):
        await store.create(a_record())
    await closing
