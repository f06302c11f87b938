# SPDX-License-Identifier: MIT
"""What a manager believes of its memory, with a store in a dict."""

import asyncio
from collections.abc import Sequence

from sessionstore import SessionManager

from ..conftest import FakeClock
from .dict_store import Database, DictStore


class Forgetful(DictStore):
    """A store without versions: nothing tells whether memory is still true."""

    @property
    def versions(self) -> Sequence[int] | None:
        """Show none."""
        return None

    @versions.setter
    def versions(self, versions: Sequence[int] | None) -> None:
        pass


async def sizes(manager: SessionManager) -> tuple[int, int]:
    """Return how many sessions are in memory, and how often one was found there."""
    stats = await manager.get_session_stats()
    return stats["memory_cache_size"], stats["cache_hits"]


async def test_all_is_forgotten_when_the_store_says_so(clock: FakeClock) -> None:
    """Loads under way are not kept either; afterwards memory works as before."""
    store = DictStore()
    async with SessionManager(store, clock=clock, sweep_interval=None) as manager:
        ids = [await manager.create_session("lina") for _ in range(3)]
        assert await sizes(manager) == (3, 0)
        store.listener.forget()
        assert await sizes(manager) == (0, 0)
        loads = [asyncio.ensure_future(manager.get_session(id_)) for id_ in ids]
        await asyncio.sleep(0)
        store.listener.forget()
        assert all(await asyncio.gather(*loads))
        assert await sizes(manager) == (0, 0)
        for _ in range(2):
            assert await manager.get_session(ids[0])
        assert await sizes(manager) == (1, 1)


async def test_nothing_is_kept_of_a_store_without_versions(clock: FakeClock) -> None:
    """Each call asks the store, and sees what another manager wrote."""
    database = Database()
    async with (
        SessionManager(Forgetful(database), clock=clock, sweep_interval=None) as manager,
        SessionManager(Forgetful(database), clock=clock, sweep_interval=None) as other,
    ):
        session_id = await manager.create_session("lina")
        for count in range(1, 4):
            assert await other.update_activity(session_id)
            session = await manager.get_session(session_id)
            assert session is not None
            assert session.interaction_count == count
        assert await sizes(manager) == (0, 0)


async def test_what_another_manager_wrote_is_seen_at_once(clock: FakeClock) -> None:
    """Though it was in memory; what nobody wrote stays there."""
    database = Database()
    async with (
        SessionManager(DictStore(database), clock=clock, sweep_interval=None) as manager,
        SessionManager(DictStore(database), clock=clock, sweep_interval=None) as other,
    ):
        session_id = await manager.create_session("lina")
        assert await manager.get_session(session_id)
        assert await sizes(manager) == (1, 1)
        assert await other.update_session(session_id, {"seen": True})
        session = await manager.get_session(session_id)
        assert session is not None
        assert session.data == {"seen": True}
        assert await other.delete_session(session_id)
        assert await manager.get_session(session_id) is None
