# SPDX-License-Identifier: MIT
"""The checks of what callers hand in.

Each function takes one argument with its name and returns it in the form that the package uses, or
raises InvalidArgumentError with what was wrong. What is returned is built from exact built-in types
only: of a subclass the built-in content is taken, and no method that it overrides is called. No
message repeats the data. Nothing is queued or written before these checks have passed.
"""

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from itertools import islice
from typing import Any

from .errors import InvalidArgumentError
from .session import Session, SessionStatus, position

MAX_DEPTH = 64
MAX_ID_LENGTH = 36
MAX_TEXT = 255

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_URL_SCHEMES = ("sqlite://", "sqlite+aiosqlite://")
_MICROSECOND = timedelta(microseconds=1)
_name_of = type.__dict__["__name__"].__get__  # of a class, whatever its metaclass says


def check_text(name: str, value: object) -> str:
    """Return a text of 1 to 255 characters that every other program can read, too."""
    if not issubclass(type(value), str):
        raise InvalidArgumentError(f"{name} must be a str, not {_name_of(type(value))}")
    text = str.__str__(value)
    if not 1 <= len(text) <= MAX_TEXT:
        raise InvalidArgumentError(
            f"{name} must have 1 to {MAX_TEXT} characters; it has {len(text)}"
        )
    _check_characters(name, text)
    return text


def check_session_id(value: object) -> str | None:
    """Return an id that may be in the table, or None for what cannot be one."""
    if not issubclass(type(value), str):
        return None
    text = str.__str__(value)
    if not 1 <= len(text) <= MAX_ID_LENGTH:
        return None
    return text if text.isprintable() else None  # no NUL, and no lone surrogate


def check_micros(name: str, value: object, *, minimum: int = 1) -> int:
    """Return a length of time, given as a timedelta or in seconds, in microseconds."""
    try:
        micros: int = timedelta.__floordiv__(_length(value), _MICROSECOND)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgumentError(
            f"{name} must be a timedelta, or seconds within the range of one"
        ) from error
    if micros < minimum:
        raise InvalidArgumentError(f"{name} must be {'positive' if minimum else 'zero or more'}")
    return micros


def _length(value: Any) -> timedelta:
    kind = type(value)
    if issubclass(kind, timedelta):
        length: timedelta = value
        return length
    if kind is bool:
        raise TypeError("a bool is no length of time")
    return timedelta(
        seconds=float.__float__(value) if issubclass(kind, float) else int.__int__(value)
    )


def check_count(name: str, value: Any, *, minimum: int = 0) -> int:
    """Return a whole number of at least minimum that SQLite can hold."""
    kind = type(value)
    number = int.__int__(value) if issubclass(kind, int) and kind is not bool else -1
    if not minimum <= number < 2**63:
        raise InvalidArgumentError(f"{name} must be a whole number of at least {minimum}")
    return number


def check_switch(name: str, value: object) -> bool:
    """Return True or False, which nothing else stands for."""
    if type(value) is not bool:
        raise InvalidArgumentError(f"{name} must be True or False")
    return value


def check_status(value: object) -> str:
    """Return the status with this text."""
    text = str.__str__(value) if issubclass(type(value), str) else ""
    if text not in list(SessionStatus):
        raise InvalidArgumentError(f"status must be one of {', '.join(SessionStatus)}")
    return text


def check_spared_id(value: object) -> str | None:
    """Return the id of the session to spare. What is no str is refused: it would spare none."""
    if value is not None and not issubclass(type(value), str):
        raise InvalidArgumentError(f"except_id must be a str, not {_name_of(type(value))}")
    return check_session_id(value)


def check_position(value: object) -> tuple[str, str]:
    """Return where the last session of a page stands: its started_at as text, and its id."""
    if type(value) is not Session or not hasattr(value, "_source"):
        raise InvalidArgumentError("after must be a Session, the last one of the page before")
    return position(value)


def check_keys(name: str, value: Iterable[str], limit: int) -> tuple[str, ...]:
    """Return the keys of an iterable of strings. One bare string is refused: it is many keys."""
    if issubclass(type(value), str | bytes):
        raise InvalidArgumentError(f"{name} must be several keys, such as a list, not one")
    try:
        keys = tuple(islice(value, min(limit, sys.maxsize - 1) + 1))
    except Exception as error:  # an iterable's own methods may raise anything
        raise InvalidArgumentError(f"{name} must be an iterable of keys") from error
    if len(keys) > limit:  # it may have no end
        raise InvalidArgumentError(f"{name} must not hold more than {limit} keys")
    if not all(issubclass(type(key), str) for key in keys):
        raise InvalidArgumentError(f"{name} must hold str keys only")
    return tuple(str.__str__(key) for key in keys)


def check_database(database: object) -> str:
    """Return the path that a path or URL names, or ":memory:"."""
    is_text = issubclass(type(database), str)
    try:
        text = str.__str__(database if is_text else os.fsdecode(database))  # type: ignore[arg-type]
        os.fsencode(text)  # a lone surrogate is no byte of a path, but for those of fsdecode
    except Exception as error:  # a path's own methods may raise anything
        raise InvalidArgumentError("database must be a path or a sqlite:/// URL") from error
    scheme, separator, path = text.partition("://")
    if separator and is_text:
        if scheme + separator not in _URL_SCHEMES:
            raise InvalidArgumentError("database URL must start with sqlite:///")
        if path and not path.startswith("/"):
            raise InvalidArgumentError("database URL has a host; write sqlite:/// with 3 slashes")
        if "?" in path:
            raise InvalidArgumentError("database URL must not have parameters")
        text = path[1:] or ":memory:"
    if not text or "\0" in text:
        raise InvalidArgumentError("database must be a path: not empty, and without NUL")
    return text


def encode_object(name: str, value: object, max_bytes: int) -> str:
    """Return a mapping as a JSON object that decodes to an equal dict."""
    if value is None:
        return "{}"
    try:
        if not issubclass(type(value), dict):
            value = _read(name, value, max_bytes)
        plain = _Copier(name, max_bytes).copy(value, MAX_DEPTH)
    except InvalidArgumentError:
        raise
    except Exception as error:  # a mapping's own methods may raise anything
        raise InvalidArgumentError(f"{name} could not be read") from error
    return dump_object(name, plain, max_bytes)


def _read(name: str, mapping: object, max_bytes: int) -> dict[object, object]:
    """Return a mapping as a dict; of one without end, as much as is too much."""
    if not isinstance(mapping, Mapping):
        raise InvalidArgumentError(f"{name} must be a mapping, not {_name_of(type(mapping))}")
    keys = islice(mapping.keys(), min(max_bytes, sys.maxsize - 1) + 1)
    return {key: mapping[key] for key in keys}


def dump_object(name: str, plain: dict[str, Any], max_bytes: int) -> str:
    """Return a dict that has been checked before as JSON, if it is not too large."""
    return check_size(name, _ENCODER.encode(plain), max_bytes)


def check_size(name: str, text: str, max_bytes: int) -> str:
    """Return JSON that is text, if it is not too large."""
    if _check_characters(name, text) > max_bytes:
        raise _too_large(name, max_bytes)
    return text


def _check_characters(name: str, text: str) -> int:
    """Return the length in UTF-8, in bytes."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # which holds the text
        raise InvalidArgumentError(f"{name} must not hold a lone surrogate") from None
    if "\0" in text:
        raise InvalidArgumentError(f"{name} must not hold NUL")
    return size


def _too_large(name: str, max_bytes: int) -> InvalidArgumentError:
    return InvalidArgumentError(f"{name} must not exceed {max_bytes} bytes as JSON in UTF-8")


class _Copier:
    """Copies JSON values into plain ones, within a budget of bytes.

    The budget bounds the work, too: a list that holds itself twice, and so on, is small in memory
    and endless to walk.
    """

    def __init__(self, name: str, max_bytes: int) -> None:
        self._name = name
        self._max_bytes = max_bytes
        self._left = max_bytes

    def copy(self, value: object, depth: int) -> Any:
        kind = type(value)
        if issubclass(kind, str):
            return self._text(str.__str__(value))
        self._spend(1)
        if value is None or kind is bool:
            return value
        if issubclass(kind, int):
            return self._integer(int.__int__(value))  # type: ignore[arg-type]
        if issubclass(kind, float):
            return self._number(float.__float__(value))  # type: ignore[arg-type]
        if issubclass(kind, dict):
            self._descend(depth)
            return self._object(list(dict.items(value)), depth - 1)  # type: ignore[arg-type]
        if issubclass(kind, list):
            self._descend(depth)
            items: Iterator[object] = list.__iter__(value)  # type: ignore[arg-type]
            return [self.copy(item, depth - 1) for item in items]
        raise self._refusal(f"must hold JSON values only, not {_name_of(kind)}")

    def _object(self, pairs: list[tuple[object, object]], depth: int) -> dict[str, Any]:
        plain = {self._key(key): self.copy(item, depth) for key, item in pairs}
        if len(plain) != len(pairs):
            raise self._refusal("must not hold two keys of the same text")
        return plain

    def _key(self, key: object) -> str:
        if not issubclass(type(key), str):
            raise self._refusal("must have str keys only, at every depth")
        return self._text(str.__str__(key))

    def _text(self, text: str) -> str:
        self._spend(len(text) + 2)
        if "\0" in text:
            raise self._refusal("must not hold NUL")
        return text

    def _integer(self, number: int) -> int:
        if not -(2**63) <= number < 2**63:
            raise self._refusal("must not hold an integer beyond 64 bits")
        return number

    def _number(self, number: float) -> float:
        if not math.isfinite(number):
            raise self._refusal("must not hold NaN or infinity")
        return number

    def _descend(self, depth: int) -> None:
        if depth == 0:
            raise self._refusal(f"must not be nested deeper than {MAX_DEPTH} levels")

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _too_large(self._name, self._max_bytes)

    def _refusal(self, problem: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self._name} {problem}")
