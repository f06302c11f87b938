# SPDX-License-Identifier: MIT
"""The rule of when a session has timed out: expiry.py and each engine say the same.

Around the microsecond of the boundary, with and without a maximum lifetime, in all the years that
there are.
"""

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessionstore.expiry import Expiry, Moment
from sessionstore.session import EARLIEST, LATEST, Record
from sessionstore.store import Store

from .engines import ALL, NOW, a_record, seen

DAY = 86_400_000_000  # microseconds
VERBS = ("touch", "edit", "end", "end_all", "time_out")

TIMES = st.integers(NOW - DAY, NOW + DAY) | st.integers(EARLIEST, LATEST)
LENGTHS = st.integers(1, 3) | st.integers(1, 2 * DAY) | st.integers(1, LATEST - EARLIEST)
OFFSETS = st.integers(-2, 2) | st.integers(-DAY, DAY)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Expiry, int, int, int]:
    """Return a rule, started_at, last_activity and a moment close to when the session expires."""
    expiry = Expiry(draw(LENGTHS), draw(st.none() | LENGTHS))
    started_at = draw(TIMES)
    last_activity = draw(st.just(started_at) | TIMES)
    boundary = draw(
        st.sampled_from(
            [
                expiry.expiration(started_at, last_activity),
                last_activity + expiry.timeout,
                started_at + (expiry.max_lifetime or 0),
            ]
        )
    )
    now = min(max(boundary + draw(OFFSETS), EARLIEST), LATEST)
    return expiry, started_at, last_activity, now


@given(case=cases())
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_an_engine_draws_the_line_where_expiry_does(
    store: Store, case: tuple[Expiry, int, int, int]
) -> None:
    """For each verb, and in each list and count."""
    expiry, started_at, last_activity, now = case
    moment = Moment(now, expiry)
    records = {
        verb: a_record(child_id=verb, started_at=started_at, last_activity=last_activity)
        for verb in VERBS
    }
    await asyncio.gather(*map(store.create, records.values()))
    session = expiry.session(records["touch"], now)
    ids = sorted(record.id for record in records.values())

    listed = await store.list_active(moment, None, None, None)
    of_child = await store.list_active(moment, "touch", None, None)
    found = await store.search(moment, None, str(session.status), ALL)
    counts = (await store.count(moment)).by_status
    assert [record.id for record in listed] == (ids if session.is_active else [])
    assert len(of_child) == session.is_active
    assert sorted(record.id for record in found) == ids
    assert counts == {"active": 0, "ended": 0, "timeout": 0, "error": 0} | {
        str(session.status): len(records)
    }

    def empty(record: Record) -> Record:
        return record._replace(data="{}")

    # Those that end a session last: time_out meets what the others have left.
    assert await store.touch(records["touch"].id, moment) == session.is_active
    assert await store.edit(records["edit"].id, moment, empty) == session.is_active
    assert await store.end(records["end"].id, moment, "ended", "bye") == session.is_active
    assert await store.end_all("end_all", moment, "ended", "bye", None) == session.is_active
    swept = await store.time_out(moment, ALL)
    assert swept == (0 if session.is_active else len(records), False)
    loaded = await store.load(records["time_out"].id)
    if session.is_active:
        assert seen(loaded) == seen(records["time_out"])
    else:
        assert seen(loaded) == seen(expiry.timed_out(records["time_out"]))
    for record in records.values():
        assert await store.erase(record.id)
