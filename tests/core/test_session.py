# SPDX-License-Identifier: MIT
"""Clocks and the rule of expiry, snapshots, and ids."""

import copy
import math
import pickle
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sessionstore import InvalidArgumentError, Session, SessionManager, StorageError
from sessionstore.expiry import Expiry, Moment, read_clock
from sessionstore.session import EARLIEST, LATEST, Record, new_id, short_id

from ..conftest import FakeClock
from .records import NOW, record

MOMENTS = st.integers(EARLIEST, LATEST)
HOUR = Expiry(3_600_000_000)


def snapshot(of: Record, expiry: Expiry = HOUR) -> Session:
    """Return a session as it is stored."""
    return Session(of, expiry.expires_at(of))


# -- Time ------------------------------------------------------------------------------------------


@given(st.floats())
def test_a_clock_is_read_within_the_years_of_datetime(seconds: float) -> None:
    """A reading is clamped to the years 1 to 9999; one that overflows or is NaN is refused."""
    if not math.isfinite(seconds * 1_000_000):
        with pytest.raises(InvalidArgumentError, match="clock"):
            read_clock(lambda: seconds)
    else:
        assert EARLIEST <= read_clock(lambda: seconds) <= LATEST


@pytest.mark.parametrize(
    ("seconds", "micros"),
    [
        (0.000_002_9, 3),
        (-0.000_002_9, -3),
        (-1e15, EARLIEST),
        (1e15, LATEST),
        (EARLIEST / 1e6 - 1, EARLIEST),
        (LATEST / 1e6 + 1, LATEST),
    ],
)
def test_a_clock_is_read_to_the_nearest_microsecond(seconds: float, micros: int) -> None:
    """A float is rounded, not cut off, and one beyond the years counts as their first or last."""
    assert read_clock(lambda: seconds) == micros


def test_a_clock_that_tells_no_number_is_refused() -> None:
    """A clock that returns a text gets a clear error."""
    with pytest.raises(InvalidArgumentError, match="seconds since the epoch"):
        read_clock(lambda: "now")  # type: ignore[arg-type, return-value]


LENGTHS = st.integers(1, 10**12) | st.just(86_400_000_000 * 999_999_999)


@given(
    last=MOMENTS,
    age=st.integers(0, 10**12),
    timeout=LENGTHS,
    lifetime=st.none() | LENGTHS,
    offset=st.integers(-2, 2),
    by_lifetime=st.booleans(),
)
@example(last=NOW, age=0, timeout=10**6, lifetime=None, offset=0, by_lifetime=False)
@example(last=NOW, age=10**6, timeout=10**7, lifetime=10**6 + 5, offset=0, by_lifetime=True)
@example(last=EARLIEST, age=0, timeout=1, lifetime=1, offset=0, by_lifetime=False)
@example(last=LATEST, age=0, timeout=1, lifetime=None, offset=0, by_lifetime=False)
def test_the_cutoffs_and_the_moment_of_expiry_are_one_rule(
    last: int, age: int, timeout: int, lifetime: int | None, offset: int, by_lifetime: bool
) -> None:
    """Around the boundary, a microsecond at a time, both forms of the rule say the same."""
    expiry = Expiry(timeout, lifetime)
    started = max(EARLIEST, last - age)
    active = record(started_at=started, last_activity=last)
    boundary = last + timeout if by_lifetime else expiry.expires_at(active)
    now = max(EARLIEST, min(LATEST, boundary + offset))
    moment = Moment(now, expiry)
    is_live = last > moment.idle_cutoff and started > moment.lifetime_cutoff
    shown = expiry.session(active, now)
    assert shown.is_active == is_live == (now < expiry.expires_at(active))
    if not is_live:
        assert (shown.status, shown.end_reason) == ("timeout", "timeout")
        assert shown.ended_at == shown.expires_at
        assert shown == expiry.session(expiry.timed_out(active), now)


def test_what_has_ended_does_not_time_out() -> None:
    """All states but active are final."""
    for status in ("ended", "timeout", "error"):
        ended = record(status=status, ended_at=NOW + 1, end_reason="bye")
        assert HOUR.session(ended, LATEST) == snapshot(ended)


# -- Snapshots -------------------------------------------------------------------------------------


def test_snapshots_with_equal_fields_are_equal() -> None:
    """Equality goes by the fields, the decoded dicts among them, and hashes agree with it."""
    one = snapshot(record(data='{"a":1,"b":2}'))
    same = snapshot(record(data='{"b": 2, "a": 1}'))
    assert one == same
    assert hash(one) == hash(same)
    assert hash(one) != hash(snapshot(record("other", data='{"a":1,"b":2}')))
    assert one != snapshot(record(data='{"a":1}'))
    assert one != snapshot(record(data='{"a":1,"b":2}', metadata='{"a":1}'))
    assert one != snapshot(record(data='{"a":1,"b":2}'), Expiry(HOUR.timeout + 1))
    assert one != snapshot(record(data='{"a":1,"b":2}', interaction_count=1))
    assert one != "one"
    same.data["a"] = 2
    assert one != same


def test_snapshots_are_immutable_and_can_be_copied() -> None:
    """No field can be set; copies, also by pickle, are equal."""
    session = snapshot(record(data='{"a":[1]}'))
    for name in ("status", "data", "anything"):
        with pytest.raises(AttributeError):
            setattr(session, name, "ended")
    assert copy.deepcopy(session) == pickle.loads(pickle.dumps(session)) == session  # noqa: S301


def test_repr_shows_no_data_and_no_whole_id() -> None:
    """What may end up in a log names a session by its last characters and shows nothing of it."""
    session = snapshot(record("0123456789abcdef", data='{"secret":1}', child_id="lina"))
    assert repr(session) == "<Session …89abcdef active 0>"


def test_duration_is_never_negative() -> None:
    """A session that another program ended before it started lasted no time."""
    ended = record(status="ended", ended_at=NOW - 10)
    assert snapshot(ended).duration == timedelta(0)


def test_expires_at_stays_within_the_years_of_datetime() -> None:
    """A timeout beyond the year 9999 is shown as the end of that year."""
    assert snapshot(record(), Expiry(LATEST)).expires_at == datetime.max.replace(tzinfo=UTC)


def test_json_is_decoded_only_when_asked_for() -> None:
    """What is no JSON object is in the way of nobody but whoever asks for it; a dict is kept."""
    session = snapshot(record(data="[1]", metadata='{"a":1}'))
    assert (session.id, session.is_active, session.duration) == ("id", True, timedelta(0))
    assert session.metadata == {"a": 1}
    assert session.metadata is session.metadata
    for text in ("[1]", "no JSON", '"text"', '{"a":', "[" * 100_000):
        with pytest.raises(StorageError, match="cannot be read"):
            _ = snapshot(record(data=text)).data


def test_the_reason_of_the_end_stands_in_the_metadata() -> None:
    """Wherever an engine keeps it: and a key of the caller's own is no reason."""
    ended = record(status="ended", ended_at=NOW, metadata='{"a":1}', end_reason="bye")
    assert snapshot(ended).metadata == {"a": 1, "end_reason": "bye"}
    active = snapshot(record(metadata='{"end_reason":"mine"}'))
    assert (active.end_reason, active.metadata) == (None, {"end_reason": "mine"})


async def test_a_foreign_end_reason_that_is_no_text_is_none(
    database: Path, clock: FakeClock
) -> None:
    """end_reason is a str or None, whatever another program wrote into metadata."""
    async with SessionManager(database, clock=clock, cache_size=0) as sessions:
        id_ = await sessions.create_session("lina")
        with closing(sqlite3.connect(database)) as shell, shell:
            shell.execute(
                "UPDATE sessions SET status = 'ended', ended_at = started_at,"
                """ metadata = '{"end_reason":[1]}'"""
            )
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.end_reason is None
        assert session.metadata == {"end_reason": [1]}


# -- Ids -------------------------------------------------------------------------------------------


@given(MOMENTS)
def test_an_id_is_a_uuid_of_version_7(now: int) -> None:
    """It begins with the milliseconds since 1970, as RFC 9562 says, whatever the clock shows."""
    id_ = uuid.UUID(new_id(now))
    assert (id_.version, id_.variant) == (7, uuid.RFC_4122)
    assert id_.int >> 80 == max(0, now // 1_000)
    assert len(new_id(now)) == 36


def test_ids_of_one_moment_differ_where_they_are_shown() -> None:
    """The last eight characters are random."""
    shown = {short_id(new_id(NOW)) for _ in range(1_000)}
    assert {len(text) for text in shown} == {8}
    assert len(shown) > 995
