# SPDX-License-Identifier: MIT
"""What is accepted comes back equal; everything else is refused before anything is queued."""

import json
import math
from collections import OrderedDict, UserDict, defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionstore import InvalidArgumentError, SessionManager
from sessionstore.arguments import check_micros, encode_object
from sessionstore.sqlite.connection import path_of

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


def nested(levels: int) -> dict[str, Any]:
    """Return a dict of so many levels."""
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


class Number(IntEnum):
    """An int with a name."""

    SEVEN = 7


class Letter(StrEnum):
    """A str with a name."""

    A = "a"


@given(st.dictionaries(TEXT, JSON, max_size=6))
def test_what_is_accepted_comes_back_equal(value: dict[str, Any]) -> None:
    """Any JSON object decodes to an equal dict, types and all."""
    decoded = json.loads(encode_object("data", value, 10**7))
    assert decoded == value
    assert repr(decoded) == repr(value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, {}),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(int, a=1), {"a": 1}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (UserDict(a=[OrderedDict(b=2)]), {"a": [{"b": 2}]}),
        ({"a": Number.SEVEN}, {"a": 7}),
        ({Letter.A: Letter.A}, {"a": "a"}),
        (nested(64), nested(64)),
        ({"a": nested(63)}, {"a": nested(63)}),
        ({"a": [[] for _ in range(100)]}, {"a": [[] for _ in range(100)]}),
        ({"a": "[{" * 100}, {"a": "[{" * 100}),
        ({"a": "\\u0000"}, {"a": "\\u0000"}),
        ({"a": 2**64, "b": -(10**300), "c": -0.0}, {"a": 2**64, "b": -(10**300), "c": -0.0}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_equal_to_plain_data_is_taken_for_it(value: Any, plain: dict[str, Any]) -> None:
    """Mappings, enums and large numbers are accepted, and so is text that looks like nesting."""
    assert json.loads(encode_object("data", value, 10_000)) == plain


@pytest.mark.parametrize(
    "value",
    [
        [],
        "text",
        7,
        {1: "a"},
        {None: "a"},
        {"a": {2: 3}},
        {"a": (1, 2)},
        {"a": {1, 2}},
        {"a": b"bytes"},
        {"a": object()},
        {"a": math.nan},
        {"a": [math.inf]},
        {"a": -math.inf},
        {"a": "\ud800"},
        {"\udfff": 1},
        {"a": "x\0y"},
        {"\0": 1},
        {"a": 10**5000},
        {"a": Decimal(1)},
        {"a": datetime(2024, 1, 1, tzinfo=UTC)},
        {"a": UserDict(b=1)},
        {"a": [(), 1]},
        nested(65),
        {"a": nested(64)},
        {"a": [nested(63)]},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    """Each of these would come back changed, or not at all."""
    with pytest.raises(InvalidArgumentError, match=r"^(a key of )?data[ \[]"):
        encode_object("data", value, 10_000)


def test_circular_data_is_refused() -> None:
    """A dict inside itself has no end, and a list neither."""
    circle: dict[str, Any] = {}
    circle["self"] = circle
    ring: list[Any] = []
    ring.append(ring)
    for value in (circle, {"a": ring}):
        with pytest.raises(InvalidArgumentError, match="nested"):
            encode_object("data", value, 10_000)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            {"cart": [1, 2, 3, {"when": datetime(2024, 1, 1, tzinfo=UTC)}]},
            "data['cart'][3]['when'] is a datetime; store text, such as isoformat()",
        ),
        ({"a": {"b": {1, 2}}}, "data['a']['b'] is a set; store a list"),
        ({"a": (1, 2)}, "data['a'] is a tuple; store a list"),
        ({"a": UserDict()}, "data['a'] is a UserDict; store a dict"),
        ({"a": b"x"}, "data['a'] is a bytes; store text, numbers, True, False, None, lists and"),
        ({"a": [math.nan]}, "data['a'][0] is NaN, infinite or too large; store text, or None"),
        ({"a": [{1: 2}]}, "data['a'][0] has a key that is a int; keys must be str"),
        ({"a": ["x\0"]}, "data['a'][0] must not hold NUL"),
        ({"a": "\ud800"}, "data['a'] must not hold a lone surrogate"),
        ({"a": {"\0": 1}}, "a key of data['a'] must not hold NUL"),
        ({"a": nested(64)}, "data is nested deeper than 64 levels, or holds itself"),
        ({"k" * 41: {"b": ()}}, "data[…]['b'] is a tuple; store a list"),
        ({"\x1b[2J": ()}, "data[…] is a tuple; store a list"),
        ({"a'b": ()}, 'data["a\'b"] is a tuple; store a list'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refusal_names_the_place(value: Any, problem: str) -> None:
    """The message says where in the data the first problem is, and what to store instead."""
    with pytest.raises(InvalidArgumentError) as caught:
        encode_object("data", value, 10_000)
    assert str(caught.value).startswith(problem)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("text", ["x" * 92, "é" * 46, "\n" * 46, '"' * 46])
def test_the_limit_counts_bytes_of_json_in_utf8(text: str) -> None:
    """Data of exactly the limit is accepted, and with one byte more it is refused."""
    assert len(encode_object("data", {"a": text}, 100).encode()) == 100
    with pytest.raises(InvalidArgumentError, match="99 bytes"):
        encode_object("data", {"a": text}, 99)


def test_no_message_repeats_the_data() -> None:
    """What is refused is not shown: it may be a child's."""
    for value in (
        {"a": "secret\ud800"},
        {"a": "secret\0"},
        {"a": "secret" * 1000},
        {"a": b"secret"},
        {"a": {"secret"}},
        {"secret\0": 1},
        {"secret" * 7: math.nan},
        {"\x1bsecret": math.nan},
        "secret",
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            encode_object("data", value, 1_000)
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("database", "path"),
    [
        ("sessions.db", "sessions.db"),
        (Path("folder") / "sessions.db", "folder/sessions.db"),
        (":memory:", ":memory:"),
        ("sqlite:///relative.db", "relative.db"),
        ("sqlite:////var/lib/absolute.db", "/var/lib/absolute.db"),
        ("sqlite+aiosqlite:///data/sessions.db", "data/sessions.db"),
        ("sqlite:///:memory:", ":memory:"),
        ("sqlite://", ":memory:"),
    ],
)
def test_a_database_is_a_path_or_a_url(database: Any, path: str) -> None:
    """Paths go as they are; URLs name paths like SQLAlchemy's."""
    assert path_of(database) == path


@pytest.mark.parametrize(
    "database",
    [
        "",
        "a\0b",
        "a\ud800",
        None,
        7,
        "postgresql://host/db",
        "sqlite://host/db",
        "sqlite:///a.db?mode=ro",
    ],
)
def test_a_database_that_is_neither_is_refused(database: Any) -> None:
    """A wrong database is refused by the constructor."""
    with pytest.raises(InvalidArgumentError, match="database"):
        SessionManager(database)


@pytest.mark.parametrize(
    ("length", "micros"),
    [(timedelta(minutes=30), 1_800_000_000), (30, 30_000_000), (0.5, 500_000), (1e-6, 1)],
)
def test_lengths_of_time_are_timedeltas_or_seconds(length: Any, micros: int) -> None:
    """Both forms give microseconds."""
    assert check_micros("timeout", length) == micros


@pytest.mark.parametrize(
    "setting",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": math.nan},
        {"timeout": math.inf},
        {"timeout": 10**400},
        {"timeout": "30"},
        {"timeout": None},
        {"timeout": True},
        {"max_lifetime": 0},
        {"retention": -1},
        {"sweep_interval": 0},
        {"cache_size": -1},
        {"cache_size": 1.5},
        {"cache_size": True},
        {"max_data_bytes": 1},
        {"busy_timeout": 0},
        {"create": 1},
        {"on_end": "call me"},
        {"clock": 7},
    ],
    ids=str,
)
def test_bad_settings_are_refused_by_the_constructor(setting: dict[str, Any]) -> None:
    """A setting of a wrong type or out of range is named in the error."""
    with pytest.raises(InvalidArgumentError, match=next(iter(setting))):
        SessionManager("sessions.db", **setting)


def test_settings_can_be_read_and_are_exact() -> None:
    """session_timeout is the timeout, as a timedelta, whichever form it was given in."""
    assert SessionManager("sessions.db").session_timeout == timedelta(minutes=30)
    assert SessionManager("sessions.db", timeout=90).session_timeout == timedelta(seconds=90)
