# SPDX-License-Identifier: MIT
"""What the tests share: a clock that they set, a path, and an open manager.

Tests use real files and never wait for time to pass: they turn the clock.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from sessionstore import SessionManager

from .leaks import watch

# A busy machine makes an example slow, and no test fail.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

START = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


class FakeClock:
    """A clock that stands still until a test turns it, in seconds, either way."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the seconds since the epoch, UTC."""
        return self.now

    def turn(self, seconds: float) -> None:
        """Move the clock forward, or back."""
        self.now += seconds


@pytest.fixture(scope="session", autouse=True)
def _watching() -> Iterator[None]:
    with watch.on():
        yield


@pytest.fixture(autouse=True)
def _no_secret_is_told(_watching: None) -> Iterator[None]:
    """Fail a test in which a log line or an error held an id in full, or data."""
    watch.take()
    yield
    assert watch.take() == []


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands at START."""
    return FakeClock()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Return the path of a database that does not exist yet."""
    return tmp_path / "sessions.db"


@pytest.fixture(params=[0, 2, 10_000], ids=["no cache", "cache of 2", "large cache"])
async def sessions(
    request: pytest.FixtureRequest, database: Path, clock: FakeClock
) -> AsyncIterator[SessionManager]:
    """Yield an open manager without a sweeper, with each size of cache in turn."""
    async with SessionManager(
        database, clock=clock, cache_size=request.param, sweep_interval=None
    ) as manager:
        yield manager
