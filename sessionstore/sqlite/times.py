# SPDX-License-Identifier: MIT
"""Microseconds since the epoch to the table's text, and back.

The text is UTC, always exactly YYYY-MM-DD HH:MM:SS.ffffff, so that times compare as text.
"""

from datetime import datetime, timedelta
from functools import lru_cache

from ..session import EARLIEST, LATEST

_EPOCH = datetime(1970, 1, 1)
_SECOND = timedelta(seconds=1)


def to_text(micros: int) -> str:
    """Return the table's text of a time, which is the last one there is at most.

    Of one before all times it is '', which sorts before all.
    """
    if micros < EARLIEST:
        return ""
    second, fraction = divmod(min(micros, LATEST), 1_000_000)
    return f"{_second_to_text(second)}.{fraction:06}"


def from_text(text: str) -> int:
    """Return the time that the table's text stands for.

    Raises:
        ValueError, TypeError: it is none.
    """
    # Text that goes on is another program's: SQLite's checks stop at a NUL behind 26 characters.
    return _second_from_text(text[:19]) * 1_000_000 + int(text[20:26])


# Calls that come together mostly ask for the same few seconds.
@lru_cache
def _second_to_text(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat(" ", "seconds")


@lru_cache
def _second_from_text(text: str) -> int:
    return (datetime.fromisoformat(text) - _EPOCH) // _SECOND
