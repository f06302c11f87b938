# SPDX-License-Identifier: MIT
"""Checks of what callers hand in.

A check takes one argument and returns it in the form that the package uses, or raises
InvalidArgumentError with what was wrong and, for data, where. No message repeats a value. What
cannot be the id of a session is no error: there is no such session.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from .errors import InvalidArgumentError, StorageError
from .session import UNREADABLE, Session, SessionStatus, position

MAX_DEPTH = 64
MAX_ID_LENGTH = 36
MAX_TEXT = 255
MAX_KEY_SHOWN = 40

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_MICROSECOND = timedelta(microseconds=1)


def check_text(name: str, value: object) -> str:
    """Return a text of 1 to 255 characters that every other program can read, too."""
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be a str, not {type(value).__name__}")
    if not 1 <= len(value) <= MAX_TEXT:
        raise InvalidArgumentError(
            f"{name} must have 1 to {MAX_TEXT} characters; it has {len(value)}"
        )
    problem = _problem_of_text(value)
    if problem:
        raise InvalidArgumentError(f"{name} {problem}")
    return value


def check_owner(value: object) -> str:
    """Return the id of whoever owns a session: a text, or a UUID as text."""
    return check_text("child_id", str(value) if isinstance(value, UUID) else value)


def check_session_id(value: object) -> str | None:
    """Return an id that may be in the store, or None for what cannot be one."""
    if isinstance(value, str):
        return value if value.isprintable() and 1 <= len(value) <= MAX_ID_LENGTH else None
    return str(value) if isinstance(value, UUID) else None


def check_spared_id(value: object) -> str | None:
    """Return the id of the session to spare. What is no str or UUID is refused: it spares none."""
    if value is None or isinstance(value, str | UUID):
        return check_session_id(value)
    raise InvalidArgumentError(f"except_id must be a str, not {type(value).__name__}")


def check_micros(name: str, value: object, *, minimum: int = 1) -> int:
    """Return a length of time, given as a timedelta or in seconds, in microseconds."""
    if isinstance(value, bool) or not isinstance(value, timedelta | int | float):
        raise InvalidArgumentError(f"{name} must be a timedelta, or a number of seconds")
    try:
        length = value if isinstance(value, timedelta) else timedelta(seconds=value)
    except (ValueError, OverflowError) as error:  # NaN, infinity, or beyond a timedelta
        raise InvalidArgumentError(f"{name} must be within the range of a timedelta") from error
    micros = length // _MICROSECOND
    if micros < minimum:
        raise InvalidArgumentError(f"{name} must be {'positive' if minimum else 'zero or more'}")
    return micros


def check_optional_micros(name: str, value: object, *, minimum: int = 1) -> int | None:
    """Return a length of time in microseconds, or None for None."""
    return None if value is None else check_micros(name, value, minimum=minimum)


def check_count(name: str, value: object, *, minimum: int = 0) -> int:
    """Return a whole number of at least minimum, below 2**63."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < 2**63:
        raise InvalidArgumentError(f"{name} must be a whole number of at least {minimum}")
    return value


def check_switch(name: str, value: object) -> bool:
    """Return True or False, which nothing else stands for."""
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{name} must be True or False")
    return value


def check_status(value: object) -> str:
    """Return the status with this text."""
    if not isinstance(value, str) or value not in list(SessionStatus):
        raise InvalidArgumentError(f"status must be one of {', '.join(SessionStatus)}")
    return str(value)


def check_position(value: object) -> tuple[int, str]:
    """Return where the last session of a page stands: its started_at and its id."""
    if not isinstance(value, Session):
        raise InvalidArgumentError("after must be a Session, the last one of the page before")
    return position(value)


def check_keys(name: str, value: Iterable[str]) -> tuple[str, ...]:
    """Return the keys of an iterable of strings. One bare string is refused: it is many keys."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InvalidArgumentError(f"{name} must be several keys, such as a list, not one")
    keys = tuple(value)
    if not all(isinstance(key, str) for key in keys):
        raise InvalidArgumentError(f"{name} must hold str keys only")
    return keys


def encode_object(name: str, value: object, max_bytes: int) -> str:
    """Return a mapping as a JSON object that decodes to an equal dict.

    Raises:
        InvalidArgumentError: it would not come back equal, has more than 64 levels, holds NUL or a
            lone surrogate, or has more than max_bytes in UTF-8.
    """
    if value is None:
        return "{}"
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"{name} must be a mapping, not {type(value).__name__}")
    plain = value if isinstance(value, dict) else dict(value)
    try:
        text = _ENCODER.encode(plain)
        is_equal = json.loads(text) == plain
    except (TypeError, ValueError, OverflowError, RecursionError):
        # From None: the error's text may quote the data.
        raise _refusal(name, plain) from None
    if not is_equal:
        raise _refusal(name, plain)
    # Cheap signs, which may be false: only a walk through the data tells.
    if "\\u0000" in text or text.count("[") + text.count("{") > MAX_DEPTH:
        problem = _first_problem(name, plain)
        if problem:
            raise InvalidArgumentError(problem)
    try:
        return check_size(name, text, max_bytes)
    except UnicodeEncodeError:  # which holds the text
        raise _refusal(name, plain) from None


def check_size(name: str, text: str, max_bytes: int) -> str:
    """Return JSON of at most max_bytes in UTF-8. A lone surrogate is a UnicodeEncodeError."""
    size = len(text) if text.isascii() else len(text.encode())
    if size > max_bytes:
        raise InvalidArgumentError(f"{name} must not exceed {max_bytes} bytes as JSON in UTF-8")
    return text


def encode_merged(name: str, merged: dict[str, Any], max_bytes: int) -> str:
    """Return stored data, with checked data merged into it, as JSON of at most max_bytes.

    Raises:
        InvalidArgumentError: it is too large.
        StorageError: another program has stored what cannot be written as JSON in UTF-8.
    """
    try:
        return check_size(name, _ENCODER.encode(merged), max_bytes)
    except InvalidArgumentError:  # a ValueError, too
        raise
    except (ValueError, RecursionError):  # which may hold the text
        raise StorageError(UNREADABLE) from None


def _refusal(name: str, value: object) -> InvalidArgumentError:
    problem = _first_problem(name, value)
    return InvalidArgumentError(problem or f"{name} must hold JSON values only")


def _first_problem(place: str, value: object, depth: int = 0) -> str | None:
    """Return what is wrong with a value, and where, or None if nothing is."""
    if isinstance(value, str):
        problem = _problem_of_text(value)
        return f"{place} {problem}" if problem else None
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return _problem_of_number(place, value)
    if not isinstance(value, dict | list):
        return f"{place} is a {type(value).__name__}; {_advice(value)}"
    if depth == MAX_DEPTH:
        return (
            f"{place.partition('[')[0]} is nested deeper than {MAX_DEPTH} levels, or holds itself"
        )
    problems = (_first_problem(there, item, depth + 1) for there, item in _items(place, value))
    return _problem_of_keys(place, value) or next(filter(None, problems), None)


def _items(place: str, value: dict[Any, Any] | list[Any]) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            is_shown = isinstance(key, str) and len(key) <= MAX_KEY_SHOWN and key.isprintable()
            yield f"{place}[{key!r}]" if is_shown else f"{place}[…]", item
    else:
        for index, item in enumerate(value):
            yield f"{place}[{index}]", item


def _problem_of_keys(place: str, value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    for key in value:
        if not isinstance(key, str):
            return f"{place} has a key that is a {type(key).__name__}; keys must be str"
        problem = _problem_of_text(key)
        if problem:
            return f"a key of {place} {problem}"
    return None


def _problem_of_text(text: str) -> str | None:
    if "\0" in text:
        return "must not hold NUL"
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        return "must not hold a lone surrogate"
    return None


def _problem_of_number(place: str, number: float) -> str | None:
    try:
        if json.loads(_ENCODER.encode(number)) == number:
            return None
    except (ValueError, OverflowError):  # NaN, infinity, or more digits than Python converts
        pass
    return f"{place} is NaN, infinite or too large; store text, or None"


def _advice(value: object) -> str:
    if hasattr(value, "isoformat"):
        return "store text, such as isoformat()"
    if isinstance(value, tuple | set | frozenset):
        return "store a list"
    if isinstance(value, Mapping):
        return "store a dict"
    return "store text, numbers, True, False, None, lists and dicts"
