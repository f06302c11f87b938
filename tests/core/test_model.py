# SPDX-License-Identifier: MIT
"""The whole manager against a plain dict.

The model below keeps what each session should be and knows one rule of time. Hypothesis drives both
through the same calls, with a clock that jumps both ways, caches of every size, sweeps, several
calls at once, two managers on one file, and managers that are closed and opened again; after each
step, what a caller of either can see must be equal.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from sessionstore import Session, SessionManager

from ..conftest import FakeClock

T = TypeVar("T")

TIMEOUT = 1_800
CHILDREN = st.sampled_from(["lina", "omar", "سارة"])
KEYS = st.sampled_from(["topic", "mood", "step", "end_reason", "é", "e\u0301", ""])
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
    st.lists(st.integers(0, 9), max_size=2),
    st.dictionaries(KEYS, st.integers(0, 9), max_size=2),
)
DATA = st.dictionaries(KEYS, VALUES, max_size=3)
REASONS = st.sampled_from(["manual", "timeout", "error", "بيت"])
# Quarters of a second are exact as floats.
STEPS = st.sampled_from([0.25, 300.0, TIMEOUT, 86_400.0]) | (
    st.integers(0, 4 * TIMEOUT).map(lambda quarters: quarters / 4)
)


def moment(seconds: float) -> datetime:
    """Return the aware datetime of a clock's reading."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


@dataclass
class Modelled:
    """What a session should be."""

    id: str
    child_id: str
    started_at: float
    last_activity: float
    data: dict[str, Any]
    metadata: dict[str, Any]
    count: int = 0
    status: str = "active"
    ended_at: float | None = None

    def expires_at(self, lifetime: float | None) -> float:
        """Return when the session times out."""
        idle = self.last_activity + TIMEOUT
        return idle if lifetime is None else min(idle, self.started_at + lifetime)

    def finished(self, status: str, ended_at: float, reason: str) -> "Modelled":
        """Return the session as it is once it has ended."""
        metadata = {**self.metadata, "end_reason": reason}
        return replace(self, status=status, ended_at=ended_at, metadata=metadata)

    def at(self, now: float, lifetime: float | None) -> "Modelled":
        """Return the session as a reader should see it."""
        expires_at = self.expires_at(lifetime)
        if self.status == "active" and now >= expires_at:
            return self.finished("timeout", expires_at, "timeout")
        return self


@dataclass
class Model:
    """A store in a dict."""

    lifetime: float | None = None
    stored: dict[str, Modelled] = field(default_factory=dict)

    def seen(self, now: float) -> list[Modelled]:
        """Return all sessions as of now, in the order of starting."""
        sessions = [stored.at(now, self.lifetime) for stored in self.stored.values()]
        return sorted(sessions, key=lambda session: (session.started_at, session.id))

    def live(self, session_id: str, now: float) -> Modelled | None:
        """Return the session to change, or None where it can no longer be changed."""
        stored = self.stored.get(session_id)
        if stored is None or stored.at(now, self.lifetime).status != "active":
            return None
        return stored

    def sweep(self, now: float) -> list[str]:
        """Record the timeouts that are due and return their ids."""
        due = [
            session.id for session in self.seen(now) if self.stored[session.id].status == "active"
        ]
        timed_out = [
            id_ for id_ in due if self.stored[id_].at(now, self.lifetime).status == "timeout"
        ]
        for id_ in timed_out:
            self.stored[id_] = self.stored[id_].at(now, self.lifetime)
        return timed_out


def as_modelled(session: Session) -> Modelled:
    """Return what a snapshot says, in the model's terms."""
    return Modelled(
        session.id,
        session.child_id,
        session.started_at.timestamp(),
        session.last_activity.timestamp(),
        session.data,
        session.metadata,
        session.interaction_count,
        str(session.status),
        None if session.ended_at is None else session.ended_at.timestamp(),
    )


class ManagerMachine(RuleBasedStateMachine):
    """Drives a manager and the model side by side."""

    ids = Bundle("ids")

    @initialize(
        cache_size=st.sampled_from([0, 1, 2, 1000]),
        lifetime=st.sampled_from([None, 600.0, 3_600.0]),
        memory=st.booleans(),
    )
    def open(self, cache_size: int, lifetime: float | None, memory: bool) -> None:
        """Open a manager with settings of any kind."""
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = FakeClock()
        self.model = Model(lifetime)
        self.told: list[Session] = []
        self.expected_told: list[str] = []
        self.managers = [
            SessionManager(
                ":memory:" if memory else self.folder / "sessions.db",
                clock=self.clock,
                timeout=TIMEOUT,
                max_lifetime=lifetime,
                cache_size=cache_size,
                sweep_interval=None,
                on_end=self.told.append,
            )
            for _ in range(1 if memory else 2)
        ]
        for manager in self.managers:
            self.run(manager.open())
        self.manager = self.managers[0]

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a call to its end."""
        return self.runner.run(coroutine)

    @rule(
        target=ids,
        child=CHILDREN,
        data=st.none() | DATA,
        metadata=st.none() | DATA,
        number=st.integers(1, 3),
    )
    def create(self, child: str, data: Any, metadata: Any, number: int) -> Any:
        """Create sessions at the same moment, side by side."""

        async def create_all() -> list[str]:
            creating = [
                self.manager.create_session(child, data, metadata=metadata) for _ in range(number)
            ]
            return await asyncio.gather(*creating)

        created = self.run(create_all())
        for id_ in created:
            now = self.clock.now
            self.model.stored[id_] = Modelled(
                id_, child, now, now, dict(data or {}), dict(metadata or {})
            )
        return multiple(*created)

    @rule(id_=ids, times=st.integers(1, 3))
    def touch(self, id_: str, times: int) -> None:
        """Touch a session, several times at once."""

        async def touch_all() -> list[bool]:
            return await asyncio.gather(*(self.manager.update_activity(id_) for _ in range(times)))

        touched = self.run(touch_all())
        live = self.model.live(id_, self.clock.now)
        assert touched == [live is not None] * times
        if live is not None:
            live.last_activity = max(live.last_activity, self.clock.now)
            live.count += times

    @rule(id_=ids, data=st.none() | DATA, metadata=st.none() | DATA, remove=st.lists(KEYS))
    def update(self, id_: str, data: Any, metadata: Any, remove: list[str]) -> None:
        """Merge and remove keys."""
        updated = self.run(self.manager.update_session(id_, data, metadata=metadata, remove=remove))
        live = self.model.live(id_, self.clock.now)
        assert updated == (live is not None)
        if live is not None:
            live.last_activity = max(live.last_activity, self.clock.now)
            live.data = {**live.data, **(data or {})}
            live.metadata = {**live.metadata, **(metadata or {})}
            for key in remove:
                live.data.pop(key, None)

    @rule(id_=ids, reason=REASONS, callers=st.integers(1, 3))
    def end(self, id_: str, reason: str, callers: int) -> None:
        """End a session from several callers at once: one of them wins."""

        async def end_all() -> list[bool]:
            ending = [self.manager.end_session(id_, reason) for _ in range(callers)]
            return await asyncio.gather(*ending)

        ended = self.run(end_all())
        live = self.model.live(id_, self.clock.now)
        assert sum(ended) == (live is not None)
        if live is not None:
            self._end(live, reason)

    @rule(child=CHILDREN, kept=st.none() | ids, reason=REASONS)
    def end_all_of_a_child(self, child: str, kept: str | None, reason: str) -> None:
        """End all sessions of a child but one."""
        ended = self.run(self.manager.end_sessions(child, except_id=kept, reason=reason))
        live = [
            self.model.stored[session.id]
            for session in self.model.seen(self.clock.now)
            if session.status == "active" and session.child_id == child and session.id != kept
        ]
        assert ended == len(live)
        for session in live:
            self._end(session, reason)

    def _end(self, live: Modelled, reason: str) -> None:
        status = reason if reason in ("timeout", "error") else "ended"
        self.model.stored[live.id] = live.finished(status, self.clock.now, reason)
        self.expected_told.append(live.id)

    @rule(id_=ids)
    def delete(self, id_: str) -> None:
        """Erase a session, whatever its status."""
        deleted = self.run(self.manager.delete_session(id_))
        assert deleted == (self.model.stored.pop(id_, None) is not None)

    @rule()
    def sweep(self) -> None:
        """Record timeouts."""
        timed_out = self.model.sweep(self.clock.now)
        assert self.run(self.manager.cleanup_inactive_sessions()) == len(timed_out)
        self.expected_told += timed_out

    @rule(age=STEPS)
    def purge(self, age: float) -> None:
        """Erase what ended long ago; what is due for a timeout is timed out first."""
        self.expected_told += self.model.sweep(self.clock.now)
        old = [
            stored.id
            for stored in self.model.stored.values()
            if stored.ended_at is not None and stored.ended_at <= self.clock.now - age
        ]
        assert self.run(self.manager.purge_ended_sessions(age)) == len(old)
        for id_ in old:
            del self.model.stored[id_]

    @rule(seconds=STEPS)
    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.turn(seconds)

    @rule(id_=ids, offset=st.sampled_from([-0.25, 0.0, 0.0, 0.25]))
    def meet_a_boundary(self, id_: str, offset: float) -> None:
        """Set the clock to the moment at which a session times out, or next to it."""
        if id_ in self.model.stored:
            self.clock.now = self.model.stored[id_].expires_at(self.model.lifetime) + offset

    @rule(seconds=STEPS)
    def turn_back(self, seconds: float) -> None:
        """Correct the clock backwards."""
        self.clock.turn(-seconds)

    @precondition(lambda self: len(self.managers) == 2)
    @rule()
    def act_through_the_other(self) -> None:
        """Let the other manager on the file make the calls."""
        self.manager = self.managers[self.manager is self.managers[0]]

    @precondition(lambda self: len(self.managers) == 2)
    @rule()
    def reopen(self) -> None:
        """Close and open again: what is in the file is all there is."""
        self.run(self.manager.close())
        self.run(self.manager.open())

    @rule(id_=ids)
    def spoil_a_snapshot(self, id_: str) -> None:
        """Change the dicts of a snapshot: nobody else may see it."""
        session = self.run(self.manager.get_session(id_))
        if session is not None:
            session.data["spoilt"] = True
            session.metadata.clear()

    @rule(page=st.integers(1, 3), child=st.none() | CHILDREN)
    def list_in_pages(self, page: int, child: str | None) -> None:
        """Read the active sessions page by page."""
        found: list[Session] = []
        while True:
            after = found[-1] if found else None
            sessions = self.run(self.manager.get_active_sessions(child, limit=page, after=after))
            found += sessions
            if len(sessions) < page:
                break
        self._compare(found, self._active(child))

    @rule(child=CHILDREN, limit=st.integers(0, 4))
    def list_of_a_child(self, child: str, limit: int) -> None:
        """Read the last sessions of a child."""
        found = self.run(self.manager.get_sessions_for_child(child, limit))
        seen = [stored for stored in self.model.seen(self.clock.now) if stored.child_id == child]
        self._compare(found, seen[::-1][:limit])

    def _active(self, child: str | None) -> list[Modelled]:
        return [
            session
            for session in self.model.seen(self.clock.now)
            if session.status == "active" and child in (None, session.child_id)
        ]

    def _compare(self, found: list[Session], expected: list[Modelled]) -> None:
        assert [as_modelled(session) for session in found] == expected

    @invariant()
    def every_session_is_as_modelled(self) -> None:
        """Read every session by each manager, all at once and then one by one from the cache."""

        async def get_all() -> list[Session | None]:
            getting = [m.get_session(id_) for m in self.managers for id_ in ids]
            return await asyncio.gather(*getting)

        if not hasattr(self, "manager"):
            return
        expected = self.model.seen(self.clock.now)
        ids = [session.id for session in expected]
        together = self.run(get_all())
        one_by_one = [self.run(m.get_session(id_)) for m in self.managers for id_ in ids]
        assert together == one_by_one
        together = together[: len(ids)]
        assert together * len(self.managers) == one_by_one
        self._compare([session for session in together if session], expected)
        for session, modelled in zip(together, expected, strict=True):
            assert session is not None
            expires_at = self.model.stored[modelled.id].expires_at(self.model.lifetime)
            assert session.expires_at == moment(expires_at)

    @invariant()
    def lists_and_counts_agree(self) -> None:
        """Compare the lists of all, the statistics and the calls of on_end."""
        if not hasattr(self, "manager"):
            return
        seen = self.model.seen(self.clock.now)
        listed = self.run(self.manager.list_sessions())
        self._compare(listed, seen[::-1])
        self._compare(self.run(self.manager.get_active_sessions()), self._active(None))
        stats = self.run(self.manager.get_session_stats())
        statuses = [session.status for session in seen]
        assert stats["by_status"] == {
            status: statuses.count(status) for status in ("active", "ended", "timeout", "error")
        }
        assert stats["active_sessions"] == statuses.count("active")
        assert stats["total_sessions"] == len(seen)
        midnight = self.clock.now // 86_400 * 86_400
        assert stats["sessions_today"] == sum(s.started_at >= midnight for s in seen)
        assert sorted(session.id for session in self.told) == sorted(self.expected_told)
        assert all(session.ended_at is not None for session in self.told)

    def teardown(self) -> None:
        """Close what was opened."""
        if hasattr(self, "manager"):
            for manager in self.managers:
                self.run(manager.close())
            self.runner.close()
            shutil.rmtree(self.folder)


TestManager = ManagerMachine.TestCase
TestManager.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
