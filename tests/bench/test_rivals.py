# SPDX-License-Identifier: MIT
"""What the benchmark relies on, of each rival that can run here.

Most of them need libraries that the tests do not install; those are skipped with what is missing.
"""

import asyncio
import os
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import sessionstore
from benchmarks.rivals import CLASSES, load
from benchmarks.rivals.base import Durability, Rival

from ..leaks import watch

DATA = {"topic": "قمر", "step": 1}
CACHE_SIZE = 50
# Another release would be a copy under another name.
RELEASE = Path(sessionstore.__file__).parent


@pytest.fixture(autouse=True)
def _no_secret_is_told() -> Iterator[None]:
    """Let the rivals tell: aiosqlite, used as usual, logs each statement with its values."""
    yield
    watch.take()


@pytest.fixture(params=CLASSES)
def closed(request: pytest.FixtureRequest) -> Rival:
    """Return each rival in turn, not opened, or skip it."""
    try:
        return load(request.param, RELEASE)()
    except ImportError as error:
        pytest.skip(f"not installed: {error}")


@pytest.fixture
async def rival(closed: Rival, tmp_path: Path) -> AsyncIterator[Rival]:
    """Yield each rival in turn, open."""
    await closed.open(tmp_path, Durability.NORMAL, CACHE_SIZE)
    yield closed
    await closed.close()


def count_of(session: Any) -> int:
    """Return the interactions of a session, in whatever form a rival returns one."""
    if isinstance(session, tuple):
        return int(session[-1])
    if isinstance(session, dict):
        return int(session["interaction_count"])
    return int(session.interaction_count)


def children() -> set[str]:
    """Return the ids of the main thread's children, where the system shows them in a file."""
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(path.read_text().split()) if path.exists() else set()


def test_it_tells_its_version(closed: Rival) -> None:
    """Each names its libraries, with numbers, before it is opened."""
    assert any(character.isdigit() for character in closed.version())


async def test_a_session_lives(rival: Rival) -> None:
    """A session is created, found, touched, counted, updated, and ended once."""
    id_ = await rival.create("lina", DATA)
    assert await rival.get(id_)
    assert await rival.touch(id_) is True
    assert await rival.touch(id_) is True
    assert await rival.update(id_, {"step": 2}) is True
    assert count_of(await rival.get(id_)) == 2
    assert await rival.end(id_) is True
    assert await rival.end(id_) is False
    assert await rival.touch(id_) is False
    assert await rival.update(id_, {"step": 3}) is False
    assert count_of(await rival.get(id_)) == 2


async def test_an_unknown_session_is_a_value(rival: Rival) -> None:
    """An id that nobody has is None or False."""
    id_ = str(uuid.uuid4())
    assert await rival.get(id_) is None
    assert await rival.touch(id_) is False
    assert await rival.update(id_, DATA) is False
    assert await rival.end(id_) is False


async def test_touches_of_many_tasks_count(rival: Rival) -> None:
    """100 tasks touch a session each; all are acknowledged and counted."""
    ids = await asyncio.gather(*(rival.create("lina", DATA) for _ in range(100)))
    assert len(set(ids)) == 100
    assert await asyncio.gather(*map(rival.touch, ids)) == [True] * 100
    sessions = await asyncio.gather(*map(rival.get, ids))
    assert [count_of(session) for session in sessions] == [1] * 100


async def test_what_fills_it_can_be_used(rival: Rival) -> None:
    """Sessions that were put in are found and active, also beside those created."""
    await rival.create("lina", DATA)
    ids = await rival.fill(150, DATA)
    assert len(set(ids)) == 150
    assert all(await asyncio.gather(*map(rival.get, ids)))
    assert await asyncio.gather(*map(rival.touch, ids)) == [True] * 150
    assert await rival.end(ids[0]) is True


async def test_sessions_persist(closed: Rival, tmp_path: Path) -> None:
    """What was settled is there when the folder is opened again, with either durability."""
    ids: list[str] = []
    for durability in Durability:
        await closed.open(tmp_path, durability, CACHE_SIZE)
        assert [count_of(await closed.get(id_)) for id_ in ids] == [1] * len(ids)
        ids.append(await closed.create("lina", DATA))
        await closed.touch(ids[-1])
        await closed.settle()
        await closed.close()
    await closed.open(tmp_path, durability, 0)
    assert [count_of(await closed.get(id_)) for id_ in ids] == [1] * len(ids)
    await closed.close()


async def test_two_may_share_a_folder(closed: Rival, tmp_path: Path) -> None:
    """One that comes later sees what the first has created, and leaves it alone when closing."""
    if not closed.is_shareable or type(closed).__name__ == "DjangoSessions":
        pytest.skip("it is alone in the folder, or in the process")
    other = type(closed)()
    await closed.open(tmp_path, Durability.NORMAL, CACHE_SIZE)
    await other.open(tmp_path, Durability.NORMAL, CACHE_SIZE)
    id_ = await closed.create("lina", DATA)
    assert await other.touch(id_) is True
    await other.close()
    assert await closed.touch(id_) is True
    await closed.close()


async def test_close_leaves_nothing_running(closed: Rival, tmp_path: Path) -> None:
    """Opening and closing leaves no child process, and the second time no thread."""
    processes = children()
    for _ in range(2):
        threads = set(threading.enumerate())
        await closed.open(tmp_path, Durability.NORMAL, CACHE_SIZE)
        assert await closed.touch(await closed.create("lina", DATA))
        await closed.close()
    assert children() <= processes
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)
        assert not thread.is_alive()
