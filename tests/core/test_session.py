# SPDX-License-Identifier: MIT
"""Times, the rule of time in both its forms, and snapshots."""

import copy
import json
import math
import pickle
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sessionstore import InvalidArgumentError, queries, store
from sessionstore.session import Expiry, SessionRow
from sessionstore.sqlite.schema import migrate
from sessionstore.sqlite.times import EARLIEST, LATEST, micros_from_text, micros_to_text, read_clock

MOMENTS = st.integers(EARLIEST, LATEST)
NOW = 1_700_000_000_000_000
HOUR = Expiry(3_600_000_000)


def row(started: int = NOW, last: int = NOW, **columns: Any) -> SessionRow:
    """Return the row of an active session."""
    plain = SessionRow(
        "id", "lina", "active", micros_to_text(started), None, micros_to_text(last), "{}", "{}", 0
    )
    return plain._replace(**columns)


@given(MOMENTS, MOMENTS)
def test_times_survive_as_text_and_sort_as_text(one: int, other: int) -> None:
    """The text of a time has 26 characters, reads back as the same time, and sorts like it."""
    assert len(micros_to_text(one)) == 26
    assert micros_from_text(micros_to_text(one)) == one
    assert (one < other) == (micros_to_text(one) < micros_to_text(other))


@given(st.floats())
def test_a_clock_is_read_within_the_years_that_text_can_hold(seconds: float) -> None:
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
def test_sql_and_python_agree_when_a_session_has_timed_out(
    last: int, age: int, timeout: int, lifetime: int | None, offset: int, by_lifetime: bool
) -> None:
    """Around the boundary, a microsecond at a time, both forms of the rule say the same."""
    expiry = Expiry(timeout, lifetime)
    session = row(max(EARLIEST, last - age), last)
    boundary = expiry.expires_at(session) if not by_lifetime else last + timeout
    now = max(EARLIEST, min(LATEST, boundary + offset))
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, ":memory:", micros_to_text(NOW))
    store.insert_session(connection, session)
    live = connection.execute(
        queries.SELECT_LIVE_SESSION_BY_ID, {"id": "id", **expiry.cutoffs(now)}
    ).fetchall()
    timed_out = store.time_out_sessions(connection, expiry, now, 10).rows
    connection.close()
    in_python = expiry.session(session, now)
    assert in_python.is_active == bool(live) == (not timed_out)
    if timed_out:
        swept = expiry.snapshot(timed_out[0])
        assert swept == in_python
        assert swept.ended_at == swept.expires_at


def test_snapshots_with_equal_fields_are_equal() -> None:
    """Equality goes by the fields, the decoded dicts among them, and hashes agree with it."""
    one = HOUR.snapshot(row(data='{"a":1,"b":2}'))
    same = HOUR.snapshot(row(data='{"b": 2, "a": 1}'))
    assert one == same
    assert hash(one) == hash(same)
    assert hash(one) != hash(HOUR.snapshot(row(data='{"a":1,"b":2}', id="other")))
    assert one != HOUR.snapshot(row(data='{"a":1}'))
    assert one != Expiry(HOUR.timeout + 1).snapshot(row(data='{"a":1,"b":2}'))
    assert one != HOUR.snapshot(row(data='{"a":1,"b":2}', interaction_count=1))
    assert one != "one"
    same.data["a"] = 2
    assert one != same


def test_snapshots_are_immutable_and_can_be_copied() -> None:
    """No field can be set; copies, also by pickle, are equal."""
    session = HOUR.snapshot(row(data='{"a":[1]}'))
    for name in ("status", "data", "anything"):
        with pytest.raises(AttributeError):
            setattr(session, name, "ended")
    assert copy.deepcopy(session) == pickle.loads(pickle.dumps(session)) == session  # noqa: S301


def test_repr_shows_no_data_and_no_whole_id() -> None:
    """What may end up in a log names a session by eight characters and shows nothing of it."""
    session = HOUR.snapshot(row(id="0123456789abcdef", data='{"secret":1}', child_id="lina"))
    assert repr(session) == "<Session 01234567 active interactions=0>"


def test_duration_is_never_negative() -> None:
    """A session that a clock set back ended before it started lasted no time."""
    ended = row(status="ended", ended_at=micros_to_text(NOW - 10))
    assert HOUR.snapshot(ended).duration == timedelta(0)


def test_expires_at_stays_within_the_years_of_datetime() -> None:
    """A timeout beyond the year 9999 is shown as the end of that year."""
    session = Expiry(LATEST).snapshot(row())
    assert session.expires_at == datetime.max.replace(tzinfo=UTC)


def test_a_foreign_end_reason_that_is_no_text_is_none() -> None:
    """end_reason is a str or None, whatever another program wrote into metadata."""
    ended = row(status="ended", ended_at=micros_to_text(NOW), metadata='{"end_reason":[1]}')
    assert HOUR.snapshot(ended).end_reason is None


def test_json_is_decoded_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot whose dicts nobody reads never decodes them, and decodes each once."""
    decoded: list[str] = []
    loads = json.loads

    def counting(text: str) -> Any:
        decoded.append(text)
        return loads(text)

    monkeypatch.setattr(json, "loads", counting)
    session = HOUR.session(row(data='{"a":1}'), NOW)
    assert (session.is_active, session.expires_at, decoded) == (True, session.expires_at, [])
    data, metadata = session.data, session.metadata
    assert (session.data, session.metadata) == ({"a": 1}, {})
    assert session.data is data
    assert session.metadata is metadata
    assert decoded == ['{"a":1}', "{}"]
