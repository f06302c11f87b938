# SPDX-License-Identifier: MIT
"""Times as the table has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionstore.session import EARLIEST, LATEST
from sessionstore.sqlite.times import from_text, to_text

MOMENTS = st.integers(EARLIEST, LATEST)


@given(MOMENTS, MOMENTS)
def test_times_survive_as_text_and_sort_as_text(one: int, other: int) -> None:
    """The text of a time has 26 characters, reads back as the same time, and sorts like it."""
    assert len(to_text(one)) == 26
    assert from_text(to_text(one)) == one
    assert (one < other) == (to_text(one) < to_text(other))


@given(st.integers())
def test_what_is_beyond_all_times_sorts_beyond_them(micros: int) -> None:
    """A cutoff may be before the year 1, or after the year 9999."""
    if micros < EARLIEST:
        assert to_text(micros) < to_text(EARLIEST)
    elif micros > LATEST:
        assert to_text(micros) == to_text(LATEST)


@pytest.mark.parametrize(
    "text", ["", "2023", "2023-11-14", "no time", "2023-02-31 00:00:00.000000"]
)
def test_what_is_no_time_is_an_error(text: str) -> None:
    """As only another program writes."""
    with pytest.raises(ValueError, match=r"\w"):
        from_text(text)
