# SPDX-License-Identifier: MIT
"""What is accepted comes back equal; everything else is refused before anything is queued."""

import json
import math
from collections import OrderedDict, UserDict, defaultdict
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionstore import InvalidArgumentError, SessionManager
from sessionstore.arguments import check_database, check_micros, encode_object

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
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


class HostileDict(dict[str, Any]):
    """A dict whose methods lie or fail."""

    def items(self) -> Any:
        """Fail."""
        raise RuntimeError("items")

    def __iter__(self) -> Any:
        raise RuntimeError("iter")

    def __getitem__(self, key: str) -> Any:
        return "lie"


class HostileStr(str):
    """A str whose methods lie or fail."""

    __slots__ = ()

    def __str__(self) -> str:
        return "lie"

    def __len__(self) -> int:
        raise RuntimeError("len")

    def encode(self, *_: Any) -> bytes:
        """Fail."""
        raise RuntimeError("encode")


class Pretender:
    """An object that claims to be a dict."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return dict


class BadMapping(UserDict[str, Any]):
    """A mapping that cannot be read."""

    def __iter__(self) -> Any:
        raise RuntimeError("iter")


@given(st.dictionaries(TEXT, JSON))
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
        (HostileDict(a=1), {"a": 1}),
        ({"x": HostileDict(a=1)}, {"x": {"a": 1}}),
        ({HostileStr("k"): HostileStr("v")}, {"k": "v"}),
        (nested(64), nested(64)),
        ({"a": 2**63 - 1, "b": -(2**63), "c": -0.0}, {"a": 2**63 - 1, "b": -(2**63), "c": -0.0}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_subclasses_are_taken_for_their_content(value: Any, plain: dict[str, Any]) -> None:
    """Of a subclass the built-in content counts, and none of its own methods is called."""
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
        {"a": 2**63},
        {"a": -(2**63) - 1},
        {"a": 10**5000},
        nested(65),
        {"a": Pretender()},
        Pretender(),
        BadMapping(a=1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    """Each of these would come back changed, or not at all."""
    with pytest.raises(InvalidArgumentError, match=r"^data "):
        encode_object("data", value, 10_000)


def test_circular_data_and_data_that_multiplies_is_refused_at_once() -> None:
    """A dict inside itself, and lists that hold themselves twice over, end at a limit."""
    circle: dict[str, Any] = {}
    circle["self"] = circle
    with pytest.raises(InvalidArgumentError, match="nested"):
        encode_object("data", circle, 10_000)
    twice: list[Any] = []
    for _ in range(60):
        twice = [twice, twice]
    with pytest.raises(InvalidArgumentError, match="10000 bytes"):
        encode_object("data", {"a": twice}, 10_000)


@pytest.mark.parametrize("text", ["x" * 92, "é" * 46, "\n" * 46, '"' * 46])
def test_the_limit_counts_bytes_of_json_in_utf8(text: str) -> None:
    """Data of exactly the limit is accepted, and with one byte more it is refused."""
    assert len(encode_object("data", {"a": text}, 100).encode()) == 100
    with pytest.raises(InvalidArgumentError, match="99 bytes"):
        encode_object("data", {"a": text}, 99)


def test_no_message_repeats_the_data() -> None:
    """What is refused is not shown: it may be a child's."""
    for value in ({"secret": math.nan}, {"a": "secret\ud800"}, {"a": "secret" * 1000}):
        with pytest.raises(InvalidArgumentError) as caught:
            encode_object("data", value, 1_000)
        assert "secret" not in str(caught.value)
        assert "secret" not in str(caught.value.__cause__)


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
    assert check_database(database) == path


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
