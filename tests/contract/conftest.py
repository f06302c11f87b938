# SPDX-License-Identifier: MIT
"""Each test of this folder that asks for a store runs over every engine."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sessionstore.store import Store

from .engines import ENGINES, NOW, Engine, Mirror, contents


@pytest.fixture(params=list(ENGINES))
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """Return each engine in turn, with nothing in it."""
    return ENGINES[request.param](tmp_path, time.monotonic)


@pytest.fixture
def shared_engine(engine: Engine) -> Engine:
    """Return each engine that several stores may share."""
    if not engine.is_shared:
        pytest.skip("its stores share nothing")
    return engine


@pytest.fixture
def mirror() -> Mirror:
    """Return what listens to the store."""
    return Mirror()


@pytest.fixture
async def store(engine: Engine, mirror: Mirror) -> AsyncIterator[Store]:
    """Yield an open store. Its commits have told all that it holds after the test."""
    store = engine.make()
    await store.open(mirror, NOW)
    try:
        yield store
        if store.versions is not None:
            assert mirror.sessions == await contents(store)
            assert mirror.problems == []
    finally:
        await store.close()
