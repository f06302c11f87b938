# SPDX-License-Identifier: MIT
"""What a store tells its listener of each commit, and how versions show that memory is old."""

import asyncio
import logging

import pytest

from sessionstore.session import Record
from sessionstore.store import Commit, Store, Touch

from .engines import (
    NOW,
    SECOND,
    TIMEOUT,
    Engine,
    Mirror,
    a_record,
    at,
    contents,
    ended_record,
    seen,
    version_of,
)


class Recorder(Mirror):
    """A mirror that writes down what happens, in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def on_commit(self, commit: Commit) -> None:
        """Note the commit."""
        super().on_commit(commit)
        self.events.append("commit")


class BrokenError(Exception):
    """What a broken listener raises."""


class Broken(Mirror):
    """A listener that fails after it has noted the commit."""

    def on_commit(self, commit: Commit) -> None:
        """Fail."""
        super().on_commit(commit)
        raise BrokenError


def empty(record: Record) -> Record:
    """Return a record without data."""
    return record._replace(data="{}")


async def test_a_commit_tells_what_was_done(store: Store, mirror: Mirror) -> None:
    """Touches by number and moment, everything else as the records that they became."""
    record = a_record()
    await store.create(record)
    assert [*map(seen, mirror.commits[-1].written)] == [seen(record)]
    await store.touch(record.id, at(5))
    assert mirror.commits[-1].touched == {record.id: Touch(1, NOW + 5 * SECOND)}
    await store.edit(record.id, at(6), empty)
    assert [*map(seen, mirror.commits[-1].written)] == [seen(await store.load(record.id))]
    await store.end(record.id, at(7), "ended", "manual")
    assert [*map(seen, mirror.commits[-1].written)] == [seen(await store.load(record.id))]
    assert [*map(seen, mirror.commits[-1].ended)] == [seen(await store.load(record.id))]
    await store.erase(record.id)
    assert list(mirror.commits[-1].erased) == [record.id]
    assert len(mirror.commits) == 5
    assert [len(commit.ended) for commit in mirror.commits] == [0, 0, 0, 1, 0]


async def test_a_commit_of_a_sweep_tells_of_each_session(store: Store, mirror: Mirror) -> None:
    """Those that timed out have ended; those that are purged were told of before."""
    records = [a_record(last_activity=NOW - TIMEOUT - number) for number in range(5)]
    await asyncio.gather(*map(store.create, records))
    mirror.commits.clear()
    assert await store.time_out(at(), 10) == (5, False)
    ended = [record for commit in mirror.commits for record in commit.ended]
    assert {each.id: seen(each) for each in ended} == {
        record.id: seen(at().expiry.timed_out(record)) for record in records
    }
    mirror.commits.clear()
    assert await store.purge(NOW, 10) == 5
    assert not any(commit.ended for commit in mirror.commits)
    erased = [id_ for commit in mirror.commits for id_ in commit.erased]
    assert sorted(erased) == sorted(record.id for record in records)


async def test_what_changes_nothing_is_no_commit(store: Store, mirror: Mirror) -> None:
    """Nobody hears of it, and no version changes."""
    over = ended_record()
    await store.create(over)
    commits, version = len(mirror.commits), version_of(store, over.id)
    assert not await store.touch(over.id, at())
    assert not await store.edit(over.id, at(), empty)
    assert not await store.end(over.id, at(), "ended", "manual")
    assert await store.end_all("lina", at(), "ended", "manual", None) == 0
    assert not await store.erase("absent")
    assert await store.time_out(at(), 10) == (0, False)
    assert await store.purge(0, 10) == 0
    assert len(mirror.commits) == commits
    assert version_of(store, over.id) == version


async def test_a_commit_is_told_before_its_callers_go_on(engine: Engine) -> None:
    """In the event loop."""
    store, recorder = engine.make(), Recorder()
    await store.open(recorder, NOW)
    record = a_record()
    events = recorder.events
    try:
        for _ in range(20):
            await store.create(record)
            events.append("create")
            await store.touch(record.id, at())
            events.append("touch")
            await store.erase(record.id)
            events.append("erase")
    finally:
        await store.close()
    assert events == ["commit", "create", "commit", "touch", "commit", "erase"] * 20


async def test_a_listener_that_fails_is_logged_and_the_callers_go_on(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """So do those of the commits to come."""
    store, broken = engine.make(), Broken()
    await store.open(broken, NOW)
    records = [a_record() for _ in range(3)]
    try:
        with caplog.at_level(logging.ERROR):
            await asyncio.gather(*map(store.create, records))
            assert all(await asyncio.gather(*(store.touch(each.id, at()) for each in records)))
        assert await contents(store) == broken.sessions
    finally:
        await store.close()
    assert len(caplog.records) == len(broken.commits)
    assert all(log.exc_info and log.exc_info[0] is BrokenError for log in caplog.records)


async def test_a_commit_is_told_even_if_all_of_its_callers_were_cancelled(
    store: Store, mirror: Mirror
) -> None:
    """Whether it happened is open; if it did, it was told."""
    record = a_record()
    await store.create(record)
    for turns in range(60):  # to be cancelled before, while, and after it is done
        calls = [asyncio.ensure_future(store.touch(record.id, at())) for _ in range(3)]
        for _ in range(turns // 2):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(each is True or isinstance(each, asyncio.CancelledError) for each in results)
    await store.erase("absent")  # those before are over then
    assert await contents(store) == mirror.sessions


async def test_a_version_changes_with_each_write_and_never_comes_back(
    store: Store, mirror: Mirror
) -> None:
    """It has changed when the write is acknowledged, and is even at rest."""
    assert store.versions is not None
    record = a_record()
    versions = [version_of(store, record.id)]
    await store.create(record)
    versions.append(version_of(store, record.id))
    for _ in range(20):
        await store.touch(record.id, at())
        versions.append(version_of(store, record.id))
        await store.edit(record.id, at(), empty)
        versions.append(version_of(store, record.id))
    await store.end(record.id, at(), "ended", "manual")
    versions.append(version_of(store, record.id))
    await store.erase(record.id)
    versions.append(version_of(store, record.id))
    assert len(set(versions)) == len(versions)
    assert not any(version % 2 for version in versions)
    assert versions[1:] == [commit.version for commit in mirror.commits]
    assert versions[:-1] == [commit.versions_before[record.id] for commit in mirror.commits]


async def test_reading_changes_no_version(store: Store) -> None:
    """Else no memory would ever be believed."""
    record = a_record()
    await store.create(record)
    version = version_of(store, record.id)
    await store.load(record.id)
    await store.list_active(at(), None, None, None)
    await store.list_of_child("lina", 10)
    await store.search(at(), None, None, 10)
    await store.count(at())
    assert version_of(store, record.id) == version


async def test_a_version_changes_for_every_store_before_a_write_is_acknowledged(
    shared_engine: Engine,
) -> None:
    """Whichever of them wrote; after reopening, too, none comes back."""
    first, second = shared_engine.make(), shared_engine.make()
    await first.open(Mirror(), NOW)
    await second.open(Mirror(), NOW)
    record = a_record()
    versions = [version_of(second, record.id)]
    try:
        await first.create(record)
        for count in range(10):
            assert version_of(first, record.id) == version_of(second, record.id)
            versions.append(version_of(second, record.id))
            writing = (first, second)[count % 2]
            assert await writing.touch(record.id, at())
            if count % 3 == 0:
                await first.close()
                await first.open(Mirror(), NOW)
        versions.append(version_of(second, record.id))
        assert len(set(versions)) == len(versions)
        assert not any(version % 2 for version in versions)
    finally:
        await first.close()
        await second.close()
