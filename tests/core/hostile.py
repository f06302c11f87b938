# SPDX-License-Identifier: MIT
"""What nobody should hand to a store, and what the README says of each: the oracle of its checks.

`expected` says what comes back for data that is handed in, or None where it must be refused. It is
written from the README and shares no code with the package. Values of hostile classes behave like
their built-in ones until they are `armed`: then each of their methods acts up.
"""

import json
import math
import uuid
from collections import ChainMap, OrderedDict, UserDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction
from types import MappingProxyType
from typing import Any, cast

from hypothesis import strategies as st

from sessionstore import Session

Act = Callable[[Any, str], Any]

LEVELS = 64
SURROGATES = range(0xD800, 0xE000)


class MischiefError(Exception):
    """What a hostile method raises."""


class Mischief:
    """What all hostile methods do now, and which of them were called."""

    act: Act | None = None
    called: list[str] = []  # noqa: RUF012  # there is one for all


@contextmanager
def armed(act: Act) -> Iterator[list[str]]:
    """Let the hostile methods act up during the block; yield the names of those called."""
    Mischief.called = []
    Mischief.act = act
    try:
        yield Mischief.called
    finally:
        Mischief.act = None


def fail(_: Any, name: str) -> Any:
    """Raise what no library expects."""
    raise MischiefError(name)


def lie(_: Any, name: str) -> Any:
    """Return what no caller of the method expects."""
    return {"__len__": 0, "__hash__": 7, "__eq__": True, "__bool__": False}.get(name, "lie")


def empty(self: Any, name: str) -> Any:
    """Change the value while it is looked at."""
    for kind in (dict, list):
        if issubclass(type(self), kind):
            kind.clear(self)
    return lie(self, name)


ACTS = [fail, lie, empty]

# What a class cannot do without, and what Python itself calls at the end.
_SPARED = {"__new__", "__init__", "__init_subclass__", "__subclasshook__", "__class__", "__del__"}


def _hostile(base: type) -> type:
    def method(name: str) -> Any:
        original = getattr(base, name)

        def misbehave(self: Any, *arguments: Any, **keywords: Any) -> Any:
            if Mischief.act is None:
                return original(self, *arguments, **keywords)
            Mischief.called.append(name)
            return Mischief.act(self, name)

        return misbehave

    names = [name for name in dir(base) if callable(getattr(base, name)) and name not in _SPARED]
    return type(f"Hostile{base.__name__.title()}", (base,), {name: method(name) for name in names})


HOSTILE: dict[type, Any] = {
    kind: _hostile(kind) for kind in (dict, list, str, int, float, timedelta)
}


class HostileMapping(Mapping[str, Any]):
    """A mapping that is no dict, and whose methods must be called to read it."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def __getitem__(self, key: str) -> Any:
        return fail(self, "__getitem__")

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return -1


class Endless(Mapping[str, Any]):
    """A mapping with one more key, always."""

    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return endless()

    def __len__(self) -> int:
        return 1


def endless() -> Iterator[str]:
    """Yield keys for ever."""
    number = 0
    while True:
        yield str(number)
        number += 1


class Impostor:
    """An object that claims to be of another class, or fails when it is asked."""

    def __init__(self, claim: type | None) -> None:
        self._claim = claim

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        if self._claim is None and Mischief.act is not None:
            raise MischiefError("__class__")
        return self._claim or Impostor


class _HostileMeta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise MischiefError("__name__")


class Nameless(metaclass=_HostileMeta):
    """An object whose class does not tell its name."""


class Odd:
    """An object whose every answer is a failure."""

    def _fail(self, *_: Any) -> Any:
        raise MischiefError

    __index__ = __int__ = __float__ = __str__ = __repr__ = __len__ = __iter__ = __bool__ = _fail
    __fspath__ = __eq__ = __lt__ = __le__ = __mul__ = __rmul__ = __hash__ = _fail


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


def _hostile_text(text: str) -> Any:
    return HOSTILE[str](text)


_MISFITS = _made(
    {
        "tuple": lambda: (1, 2),
        "set": lambda: {1, 2},
        "bytes": lambda: b"bytes",
        "complex": lambda: 1j,
        "object": object,
        "class": lambda: Odd,
        "odd": Odd,
        "nameless": Nameless,
        "impostor": lambda: Impostor(None),
        "no dict": lambda: Impostor(dict),
        "no str": lambda: Impostor(str),
        "no int": lambda: Impostor(int),
        "no float": lambda: Impostor(float),
        "no timedelta": lambda: Impostor(timedelta),
        "no session": lambda: Impostor(Session),
        "empty session": Session,
        "range": lambda: range(3),
        "timedelta": lambda: timedelta(1),
        "mapping": lambda: HostileMapping({"a": 1}),
        "decimal": lambda: Decimal("sNaN"),
        "fraction": lambda: Fraction(1, 3),
        "huge": lambda: -(10**5000),
        "uuid": uuid.uuid4,
    }
)
_LEAVES = st.one_of(
    st.sampled_from(EDGES),
    TEXTS,
    GOOD_TEXTS.map(_hostile_text),
    st.integers(),
    st.floats(),
    st.integers(-(2**63), 2**63 - 1).map(HOSTILE[int]),
    st.floats(allow_nan=False).map(HOSTILE[float]),
)
_GOOD_LEAVES = st.one_of(
    st.sampled_from([*EDGES[1:4], -0.0, 5e-324, 1e308, 2.0**63, Size.BIG, Colour.RED]),
    GOOD_TEXTS,
    GOOD_TEXTS.map(_hostile_text),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans() | st.none(),
)


def _containers(inner: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> Any:
    lists = st.lists(inner, max_size=4)
    dicts = st.dictionaries(keys, inner, max_size=4)
    return st.one_of(
        lists,
        dicts,
        lists.map(HOSTILE[list]),
        dicts.map(HOSTILE[dict]),
        dicts.map(OrderedDict),
        inner.map(lambda value: [value, value]),  # shared
    )


_GOOD_KEYS = GOOD_TEXTS | GOOD_TEXTS.map(_hostile_text)
_GOOD_VALUES = st.recursive(
    _GOOD_LEAVES, lambda inner: _containers(inner, _GOOD_KEYS), max_leaves=12
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
        "hostile": lambda: HOSTILE[dict](nested(LEVELS)),
        "endless": Endless,
    }
)

_MAPPINGS = st.dictionaries(_GOOD_KEYS, _GOOD_VALUES, max_size=6)
# These are read through their methods, which look keys up: hostile ones would fail.
_PLAIN_MAPPINGS = st.dictionaries(GOOD_TEXTS, _GOOD_VALUES, max_size=6)
GOOD_DATA = st.one_of(
    _MAPPINGS,
    _MAPPINGS.map(HOSTILE[dict]),
    _PLAIN_MAPPINGS.map(MappingProxyType),
    _PLAIN_MAPPINGS.map(UserDict),
    _PLAIN_MAPPINGS.map(lambda mapping: ChainMap({}, mapping)),
)
SMALL_DATA = st.one_of(_LEAVES.map(lambda leaf: {"a": leaf}), _DEPTHS)
DATA = st.one_of(
    GOOD_DATA,
    SMALL_DATA,
    st.dictionaries(_ANY_KEYS, _VALUES, max_size=6),
    _VALUES,
    _MAPPINGS.filter(bool).map(HostileMapping),
)

# Anything at all, for an argument of any type.
ANYTHING = st.one_of(
    DATA,
    TEXTS,
    _LEAVES,
    _MISFITS,
    st.timedeltas(),
    st.timedeltas().map(
        lambda length: HOSTILE[timedelta](microseconds=length // timedelta.resolution)
    ),
    _made({"endless keys": endless}),
)


# -- The oracle ------------------------------------------------------------------------------------


class RefusedError(Exception):
    """What must be answered with InvalidArgumentError."""


def expected_text(value: object, most: int | None = None) -> str:
    """Return what a text comes back as."""
    if str not in type(value).__mro__:
        raise RefusedError
    text = "".join(chr(ord(character)) for character in str.__iter__(cast("str", value)))
    if "\0" in text or any(ord(character) in SURROGATES for character in text):
        raise RefusedError
    if most is not None and not 0 < len(text) <= most:
        raise RefusedError
    return text


def expected_data(value: object, max_bytes: int) -> dict[str, Any]:
    """Return what data comes back as, or raise RefusedError."""
    if value is None:
        return {}
    if dict not in type(value).__mro__:
        if not isinstance(value, MappingProxyType | UserDict | ChainMap):
            raise RefusedError
        value = dict(value)
    plain = _expected(value, LEVELS)
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > max_bytes:
        raise RefusedError
    return cast("dict[str, Any]", plain)


def _expected(value: Any, levels: int) -> Any:
    kinds = type(value).__mro__
    if value is None or bool in kinds:
        return value
    if str in kinds:
        return expected_text(value)
    if int in kinds and -(2**63) <= int.__add__(value, 0) < 2**63:
        return int.__add__(value, 0)
    if float in kinds and math.isfinite(float.__mul__(value, 1.0)):
        return float.__mul__(value, 1.0)
    if levels and list in kinds:
        return [_expected(item, levels - 1) for item in list.__iter__(value)]
    if levels and dict in kinds:
        pairs = [
            (expected_text(key), _expected(item, levels - 1)) for key, item in dict.items(value)
        ]
        if len(dict(pairs)) == len(pairs):
            return dict(pairs)
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
