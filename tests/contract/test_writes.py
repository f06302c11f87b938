# SPDX-License-Identifier: MIT
"""What each verb that writes does to a session, and what it leaves as it is."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sessionstore import StorageError
from sessionstore.expiry import Expiry, Moment
from sessionstore.session import Record, new_id
from sessionstore.store import Store

from .engines import (
    ALL,
    EXPIRY,
    NOW,
    SECOND,
    TIMEOUT,
    Mirror,
    a_record,
    at,
    contents,
    ended_record,
    seen,
)

Write = Callable[[Store, str, Moment], Awaitable[Any]]

# What writes to a session only while it is live. end_all ends those of the child "lina".
WRITES_TO_LIVE: dict[str, Write] = {
    "touch": lambda store, id_, moment: store.touch(id_, moment),
    "edit": lambda store, id_, moment: store.edit(id_, moment, spoil),
    "end": lambda store, id_, moment: store.end(id_, moment, "ended", "manual"),
    "end_all": lambda store, id_, moment: store.end_all("lina", moment, "ended", "manual", None),
}

# What is not live at NOW if sessions live for two timeouts.
DEAD = [
    ended_record(),
    ended_record(status="timeout"),
    ended_record(status="error"),
    a_record(last_activity=NOW - TIMEOUT),
    a_record(started_at=NOW - 2 * TIMEOUT),
]


def spoil(record: Record) -> Record:
    """Change a record."""
    return record._replace(data='{"spoilt":true}', metadata="{}")


class RefusedError(Exception):
    """What a function that was handed to edit raises."""


def refuse(record: Record) -> Record:
    """Refuse every change."""
    raise RefusedError


async def test_a_session_is_kept_as_it_was_created(store: Store) -> None:
    """Whatever its fields, alone or together with others."""
    records = [
        a_record(),
        a_record(data='{"a":"é\\u2028\\"","b":[1,2.5,null,{"c":{}}]}', metadata="{}"),
        a_record(child_id="سارة" * 50, interaction_count=2**62, last_activity=NOW + 1),
        a_record(data='{"large":"' + "x" * 100_000 + '"}'),
        a_record(data='{"big":123456789012345678901234567890}'),
        ended_record(NOW + 7),
        ended_record(NOW, "timeout"),
        ended_record(NOW, "error"),
    ]
    for record in records:
        await store.create(record)
        assert seen(await store.load(record.id)) == seen(record)
    together = [record._replace(id=new_id(NOW)) for record in records]
    await asyncio.gather(*map(store.create, together))
    loaded = await asyncio.gather(*(store.load(record.id) for record in together))
    assert list(map(seen, loaded)) == list(map(seen, together))


async def test_no_id_is_used_twice(store: Store) -> None:
    """The second session is refused, and the first stays."""
    record = a_record()
    await store.create(record)
    with pytest.raises(StorageError):
        await store.create(record._replace(child_id="omar"))
    assert seen(await store.load(record.id)) == seen(record)


async def test_a_touch_moves_the_last_activity_and_counts(store: Store) -> None:
    """Everything else stays."""
    record = a_record()
    await store.create(record)
    assert await store.touch(record.id, at(5))
    assert await store.touch(record.id, at(9))
    expected = record._replace(last_activity=NOW + 9 * SECOND, interaction_count=2)
    assert seen(await store.load(record.id)) == seen(expected)


async def test_an_edit_writes_data_and_metadata_and_moves_the_last_activity(store: Store) -> None:
    """Nothing else: neither what `change` makes of other fields, nor an interaction."""

    def change(before: Record) -> Record:
        assert seen(before) == seen(record)
        return ended_record(data='{"a":1}', metadata='{"b":2}', child_id="omar", started_at=0)

    record = a_record(interaction_count=3)
    await store.create(record)
    assert await store.edit(record.id, at(5), change)
    expected = record._replace(data='{"a":1}', metadata='{"b":2}', last_activity=NOW + 5 * SECOND)
    assert seen(await store.load(record.id)) == seen(expected)


@pytest.mark.parametrize("verb", ["touch", "edit"])
async def test_the_last_activity_never_moves_backwards(store: Store, verb: str) -> None:
    """Though the call is of an earlier moment."""
    record = a_record()
    await store.create(record)
    assert await WRITES_TO_LIVE[verb](store, record.id, at(-60))
    loaded = await store.load(record.id)
    assert loaded is not None
    assert loaded.last_activity == NOW
    assert loaded.interaction_count == (verb == "touch")


async def test_what_a_change_raises_is_raised_and_nothing_is_written(
    store: Store, mirror: Mirror
) -> None:
    """Not even the last activity."""
    record = a_record()
    await store.create(record)
    version = mirror.commits[-1].version
    with pytest.raises(RefusedError):
        await store.edit(record.id, at(5), refuse)
    assert seen(await store.load(record.id)) == seen(record)
    assert mirror.commits[-1].version == version


@pytest.mark.parametrize(
    ("status", "reason"), [("ended", "بيت"), ("error", "error"), ("timeout", "timeout")]
)
async def test_an_end_sets_the_status_the_reason_and_the_time(
    store: Store, status: str, reason: str
) -> None:
    """Everything else stays."""
    record = a_record(metadata='{"end_reason":"mine","é":[1.5,null]}')
    await store.create(record)
    assert await store.end(record.id, at(5), status, reason)
    expected = record._replace(status=status, ended_at=NOW + 5 * SECOND, end_reason=reason)
    assert seen(await store.load(record.id)) == seen(expected)


@pytest.mark.parametrize("verb", ["end", "end_all"])
async def test_no_session_ends_before_its_last_activity(store: Store, verb: str) -> None:
    """The clock may have been set back since."""
    record = a_record(last_activity=NOW + 60 * SECOND)
    await store.create(record)
    assert await WRITES_TO_LIVE[verb](store, record.id, at(5))
    loaded = await store.load(record.id)
    assert loaded is not None
    assert loaded.ended_at == NOW + 60 * SECOND


async def test_end_all_ends_the_live_sessions_of_a_child_but_one(
    store: Store, mirror: Mirror
) -> None:
    """In one commit, and no other session."""
    ended, spared, of_another, idle, over = sessions = [
        a_record(),
        a_record(),
        a_record(child_id="omar"),
        a_record(last_activity=NOW - TIMEOUT),
        ended_record(),
    ]
    second = a_record()
    for record in [*sessions, second]:
        await store.create(record)
    commits = len(mirror.commits)
    assert await store.end_all("lina", at(5), "error", "error", spared.id) == 2
    assert len(mirror.commits) == commits + 1
    for record in (spared, of_another, idle, over):
        assert seen(await store.load(record.id)) == seen(record)
    for record in (ended, second):
        expected = record._replace(status="error", ended_at=NOW + 5 * SECOND, end_reason="error")
        assert seen(await store.load(record.id)) == seen(expected)
    assert await store.end_all("lina", at(5), "error", "error", None) == 1
    assert await store.end_all("nobody", at(5), "error", "error", None) == 0


@pytest.mark.parametrize("verb", WRITES_TO_LIVE)
async def test_what_is_not_live_is_not_changed(store: Store, mirror: Mirror, verb: str) -> None:
    """What is absent, has ended, or has timed out; and its caller is told so."""
    for record in DEAD:
        await store.create(record)
    before, commits = await contents(store), len(mirror.commits)
    for record in [a_record(), *DEAD]:
        moment = at(expiry=Expiry(TIMEOUT, 2 * TIMEOUT))
        assert not await WRITES_TO_LIVE[verb](store, record.id, moment)
    assert await contents(store) == before
    assert len(mirror.commits) == commits


async def test_an_erased_session_is_gone(store: Store) -> None:
    """Whatever its status; only the first caller hears that it was there."""
    other = a_record()
    await store.create(other)
    for record in [a_record(), *DEAD]:
        await store.create(record)
        assert await store.erase(record.id)
        assert await store.load(record.id) is None
        assert not await store.erase(record.id)
    assert await contents(store) == {other.id: seen(other)}


async def test_a_session_times_out_as_of_when_it_expired(store: Store) -> None:
    """By its idle time or its age, whichever is over first; what is live stays."""
    expiry = Expiry(TIMEOUT, 3 * TIMEOUT)
    idle = a_record(last_activity=NOW - TIMEOUT - 123_457)
    just_idle = a_record(last_activity=NOW - TIMEOUT)
    aged = a_record(started_at=NOW - 3 * TIMEOUT, last_activity=NOW - 1)
    both = a_record(started_at=NOW - 3 * TIMEOUT - 7, last_activity=NOW - TIMEOUT - 5)
    live = a_record(started_at=NOW - 3 * TIMEOUT + 1, last_activity=NOW - TIMEOUT + 1)
    over = ended_record(last_activity=0)
    for record in (idle, just_idle, aged, both, live, over):
        await store.create(record)
    assert await store.time_out(at(expiry=expiry), 10) == (4, False)
    expected = [*(expiry.timed_out(record) for record in (idle, just_idle, aged, both)), live, over]
    assert await contents(store) == {record.id: seen(record) for record in expected}
    assert seen(await store.load(idle.id))["ended_at"] == NOW - 123_457
    assert seen(await store.load(both.id))["ended_at"] == NOW - 7
    assert await store.time_out(at(expiry=expiry), 10) == (0, False)


async def test_timeouts_come_in_chunks_until_there_is_no_more(store: Store) -> None:
    """No chunk does more than its limit, and the last one leaves nothing."""
    for due in (0, 1, 2, 3, 4, 7):
        await _time_out_in_chunks(store, due)


async def _time_out_in_chunks(store: Store, due: int) -> None:
    expiry = Expiry(TIMEOUT, 2 * TIMEOUT)
    for number in range(due):  # every other one by its age
        if number % 2:
            await store.create(a_record(last_activity=NOW - TIMEOUT - number))
        else:
            await store.create(a_record(started_at=NOW - 2 * TIMEOUT - number))
    live = a_record()
    await store.create(live)
    before = (await store.count(at(expiry=expiry))).by_status
    assert (before["active"], before["timeout"]) == (1, due)
    total, has_more = 0, True
    for _ in range(due + 2):
        if has_more:
            timed_out, has_more = await store.time_out(at(expiry=expiry), 2)
            assert timed_out <= 2
            total += timed_out
    assert not has_more
    assert total == due
    statuses = [each["status"] for each in (await contents(store)).values()]
    assert sorted(statuses) == ["active"] + ["timeout"] * due
    assert await store.erase(live.id)
    assert await store.purge(NOW, ALL) == due


async def test_a_purge_erases_what_ended_at_or_before_then(store: Store) -> None:
    """Never what is active, however old."""
    early, exact, late = ended_record(NOW - 1), ended_record(NOW), ended_record(NOW + 1, "error")
    timed_out = ended_record(NOW - 1, "timeout")
    active = a_record(started_at=0, last_activity=0)
    for record in (early, exact, late, timed_out, active):
        await store.create(record)
    assert await store.purge(NOW, 10) == 3
    assert await contents(store) == {record.id: seen(record) for record in (late, active)}
    assert await store.purge(NOW, 10) == 0


async def test_a_purge_erases_no_more_than_its_limit(store: Store) -> None:
    """Fewer than the limit means that nothing is left."""
    for _ in range(5):
        await store.create(ended_record(NOW))
    assert [await store.purge(NOW, 2) for _ in range(4)] == [2, 2, 1, 0]
    assert await contents(store) == {}


async def test_tidying_up_changes_no_session(store: Store) -> None:
    """If the clock was never set back."""
    for record in (a_record(), a_record(last_activity=0), ended_record()):
        await store.create(record)
    before = await contents(store)
    for _ in range(3):
        await store.tidy(at(expiry=EXPIRY))
    assert await contents(store) == before
