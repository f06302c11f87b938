# SPDX-License-Identifier: MIT
"""What nobody should hand to a store, and what the README says of each: the oracle of its checks.

`expected_data` says what comes back for data that is handed in, and raises RefusedError if it must
be refused. It is written from the README and shares no code with the package. Subclasses whose
methods lie are not among it: code that runs in the same process is no attacker.
"""

import json
import math
import sys
import uuid
from collections import ChainMap, OrderedDict, UserDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction
from types import MappingProxyType
from typing import Any, cast

from hypothesis import strategies as st

LEVELS = 64
SURROGATES = range(0xD800, 0xE000)
DIGITS = sys.get_int_max_str_digits()  # of the largest number that Python makes a text of


class MischiefError(Exception):
    """What an odd object raises."""


class Odd:
    """An object that cannot be shown, measured or hashed."""

    def _fail(self, *_: Any) -> Any:
        raise MischiefError

    __str__ = __repr__ = __len__ = __bool__ = __index__ = __float__ = _fail
    __hash__ = None  # type: ignore[assignment]


class Colour(StrEnum):
    """A str with a name."""

    RED = "red"


class Size(IntEnum):
    """An int with a name."""

    BIG = 2**40


def nested(levels: int, wrap: Callable[[Any], Any] = lambda inner: {"a": inner}) -> Any:
    """Return an empty dict in so many levels, its own among them."""
    value: Any = {}
    for _ in range(levels - 1):
        value = wrap(value)
    return value


class Handed:
    """A value that is handed in, for Hypothesis to show: it may not be able to show itself."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        try:
            return repr(self.value)[:1_000]
        except Exception:
            return "a value that cannot be shown"


# -- Texts -----------------------------------------------------------------------------------------

SQL_FRAGMENTS = [
    "'",
    '"',
    "''; DROP TABLE sessions; --",
    "' OR '1'='1",
    "%' --",
    "x'; UPDATE sessions SET status='ended' WHERE '1'='1",
    "1); DELETE FROM sessions; SELECT (1",
    ":id",
    "?1",
    "@id",
    "$.end_reason",
    "NULL",
    "\\",
    "\\u0000",
    "%s",
    "{0}",
    "_",
    "[]",
    "`sessions`",
]
KEYS = [
    "",
    "__proto__",
    "constructor",
    "end_reason",
    "$",
    "$.a",
    "a.b",
    'a"b',
    "a\\",
    "[0]",
    "a[0]",
    "e\u0301",
    "\xe9",
    "\ufb01",
    "fi",
    "\ufeff",
    "\u2028",
    "\x7f",
    "NaN",
    "1e999",
    "null",
    "18446744073709551616",
]
ESCAPES = ["\x1b[31m", "\x1b]0;title\x07", "\x9b2J", "\r", "\n", "\t", "\b", "\u202e", "\u200f"]
BROKEN = ["\0", "a\0b", "\ud800", "\udfff", "\udc80", "ok\ud83d", "\udc00\ud83d"]


def _made(makers: Mapping[str, Callable[[], Any]]) -> st.SearchStrategy[Any]:
    """Make one of them, known by its name: not all can be shown."""
    return st.sampled_from(sorted(makers)).map(lambda name: makers[name]())


LONG = _made(
    {
        "the most": lambda: "x" * 255,
        "one more": lambda: "x" * 256,
        "beyond the plane": lambda: "\U0001f430" * 255,
        "combined": lambda: "e\u0301" * 127,
        "a megabyte": lambda: "x" * 2**20,
        "a megabyte beyond": lambda: "\U0001f430" * 2**18,
    }
)

GOOD_TEXTS = st.sampled_from([*SQL_FRAGMENTS, *KEYS, *ESCAPES]) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40
)
TEXTS = GOOD_TEXTS | LONG | st.sampled_from(BROKEN) | st.text(st.characters(), max_size=40)

EDGES: list[Any] = [
    *(sign * 2**63 + step for sign in (-1, 1) for step in (-1, 0, 1)),
    *(0, -0.0, 5e-324, 1e308, -1e308, 0.1, 2.0**63, 10**400),
    *(math.nan, math.inf, -math.inf, True, False, None, Size.BIG, Colour.RED),
]


_MISFITS = _made(
    {
        "tuple": lambda: (1, 2),
        "set": lambda: {1, 2},
        "bytes": lambda: b"bytes",
        "complex": lambda: 1j,
        "object": object,
        "class": lambda: Odd,
        "odd": Odd,
        "range": lambda: range(3),
        "timedelta": lambda: timedelta(1),
        "datetime": lambda: datetime(2024, 1, 1, tzinfo=UTC),
        "mapping": lambda: MappingProxyType({"a": 1}),
        "decimal": lambda: Decimal("sNaN"),
        "fraction": lambda: Fraction(1, 3),
        "huge": lambda: -(10**5000),
        "uuid": uuid.uuid4,
    }
)
_LEAVES = st.one_of(st.sampled_from(EDGES), TEXTS, st.integers(), st.floats())
_GOOD_LEAVES = st.one_of(
    st.sampled_from([*EDGES[:6], -0.0, 5e-324, 1e308, 2.0**63, 10**400, Size.BIG, Colour.RED]),
    GOOD_TEXTS,
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans() | st.none(),
)


def _containers(inner: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> Any:
    lists = st.lists(inner, max_size=4)
    dicts = st.dictionaries(keys, inner, max_size=4)
    return st.one_of(
        lists,
        dicts,
        dicts.map(OrderedDict),
        inner.map(lambda value: [value, value]),  # shared
    )


_GOOD_VALUES = st.recursive(
    _GOOD_LEAVES, lambda inner: _containers(inner, GOOD_TEXTS), max_leaves=12
)
_ANY_KEYS = TEXTS | st.sampled_from([1, None, True, (), 2.5])
_VALUES = st.recursive(
    _LEAVES | _MISFITS, lambda inner: _containers(inner, _ANY_KEYS), max_leaves=12
)


def _circular() -> dict[str, Any]:
    circle: dict[str, Any] = {}
    circle["a"] = [circle]
    return circle


_DEPTHS = _made(
    {
        "all levels": lambda: nested(LEVELS),
        "a level more": lambda: nested(LEVELS + 1),
        "lists": lambda: {"a": nested(LEVELS - 1, lambda inner: [inner])},
        "lists, a level more": lambda: {"a": nested(LEVELS, lambda inner: [inner])},
        "circle": _circular,
        "bottomless": lambda: nested(5_000),
        "many levels": lambda: nested(500),
    }
)

_MAPPINGS = st.dictionaries(GOOD_TEXTS, _GOOD_VALUES, max_size=6)
GOOD_DATA = st.one_of(
    _MAPPINGS,
    _MAPPINGS.map(MappingProxyType),
    _MAPPINGS.map(UserDict),
    _MAPPINGS.map(lambda mapping: ChainMap({}, mapping)),
)
SMALL_DATA = st.one_of(_LEAVES.map(lambda leaf: {"a": leaf}), _DEPTHS)
DATA = st.one_of(GOOD_DATA, SMALL_DATA, st.dictionaries(_ANY_KEYS, _VALUES, max_size=6), _VALUES)

# Anything at all, for an argument of any type.
ANYTHING = st.one_of(DATA, TEXTS, _LEAVES, _MISFITS, st.timedeltas())


# -- The oracle ------------------------------------------------------------------------------------


class RefusedError(Exception):
    """What must be answered with InvalidArgumentError."""


def expected_text(value: object, most: int | None = None) -> str:
    """Return what a text comes back as."""
    if not isinstance(value, str):
        raise RefusedError
    text = "".join(value)
    if "\0" in text or any(ord(character) in SURROGATES for character in text):
        raise RefusedError
    if most is not None and not 0 < len(text) <= most:
        raise RefusedError
    return text


def expected_data(value: object, max_bytes: int) -> dict[str, Any]:
    """Return what data comes back as, or raise RefusedError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RefusedError
    plain = _expected(dict(value), LEVELS)
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > max_bytes:
        raise RefusedError
    return cast("dict[str, Any]", plain)


def _expected(value: Any, levels: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return expected_text(value)
    if isinstance(value, int) and abs(value) < 10**DIGITS:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    if levels and isinstance(value, list):
        return [_expected(item, levels - 1) for item in value]
    if levels and isinstance(value, dict):
        return {expected_text(key): _expected(item, levels - 1) for key, item in value.items()}
    raise RefusedError


def spelled(value: Any) -> str:
    """Return a text that is the same for what is equal, and of the same types, all through."""
    if type(value) is dict:
        items = sorted((spelled(key), spelled(item)) for key, item in value.items())
        return f"{{{', '.join(': '.join(item) for item in items)}}}"
    if type(value) is list:
        return f"[{', '.join(map(spelled, value))}]"
    return f"{type(value).__name__} {value!r}"


def is_harmless(text: str) -> bool:
    """Say whether a terminal can bear it: lines of characters that can be printed."""
    return text.replace("\n", "").isprintable()


# Of files, on a file system that takes any bytes: what is no UTF-8 is a surrogate in a str.
FILE_NAMES = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=40),
    st.sampled_from(
        [*SQL_FRAGMENTS, *"?*#%:&=+~!\x1b\n\udcff", ":memory: ", "file:a?mode=ro", "-"]
    ),
)
