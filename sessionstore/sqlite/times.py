# SPDX-License-Identifier: MIT
"""The three forms of a time: microseconds since the epoch, the table's text, an aware datetime.

Inside the package a time is an integer of microseconds, UTC. Text may come from a damaged file, or
from another program, which may have put NUL behind the 26 characters: SQLite's checks stop there.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from ..errors import InvalidArgumentError, StorageError

UNREADABLE = "a row holds what cannot be read; restore a backup"  # and no error quotes it

_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)


def micros_from_text(text: str) -> int:
    """Turn the table's text into microseconds since the epoch."""
    try:
        return _second_from_text(text[:19]) + int(text[20:26])
    except (TypeError, ValueError):
        raise StorageError(UNREADABLE) from None


def micros_to_text(micros: int) -> str:
    """Turn microseconds since the epoch into the table's text, YYYY-MM-DD HH:MM:SS.ffffff."""
    second, fraction = divmod(micros, 1_000_000)
    return f"{_second_to_text(second)}.{fraction:06}"


# Calls that come together mostly ask for the same few seconds: now, and what timed out just now.
@lru_cache
def _second_to_text(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat(" ", "seconds")


@lru_cache
def _second_from_text(text: str) -> int:
    return (datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND


EARLIEST = micros_from_text("0001-01-01 00:00:00.000000")
LATEST = micros_from_text("9999-12-31 23:59:59.999999")


def time_from_text(text: str) -> datetime:
    """Turn the table's text into the aware datetime that callers get."""
    try:
        return datetime.fromisoformat(text[:26]).replace(tzinfo=UTC)
    except (TypeError, ValueError):
        raise StorageError(UNREADABLE) from None


def read_clock(clock: Callable[[], float]) -> int:
    """Read a clock of seconds since the epoch; return microseconds, within years 1 to 9999."""
    seconds = clock()
    try:
        return max(EARLIEST, min(LATEST, round(seconds * 1_000_000)))
    except Exception as error:  # a number's own methods may raise anything, Decimal's for one
        raise InvalidArgumentError("the clock must return seconds since the epoch") from error
