# SPDX-License-Identifier: MIT
"""The whole manager against a plain dict, over every engine.

The model below keeps what each session should be and knows one rule of time. Hypothesis drives both
through the same calls, one by one and several at once, with a clock that jumps both ways, caches of
every size, sweeps, callers that are cancelled, two managers on one database, and managers that are
closed and opened again. Calls that come at once must be explained by some order of them. What is in
the database must be as modelled after each step, and so must be whatever a manager returns.
"""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
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
    run_state_machine_as_test,
)

from sessionstore import InvalidArgumentError, Session, SessionManager

from ..conftest import FakeClock
from .engines import ENGINES

T = TypeVar("T")

TIMEOUT = 1_800
MAX_BYTES = 100  # of data and of metadata
CHILDREN = st.sampled_from(["lina", "omar", "سارة"])
KEYS = st.sampled_from(["topic", "mood", "step", "end_reason", "é", "e\u0301", ""])
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
    st.text("x", min_size=60, max_size=110),
    st.lists(st.integers(0, 9), max_size=2),
    st.dictionaries(KEYS, st.integers(0, 9), max_size=2),
)
KEY_LISTS = st.lists(KEYS, max_size=2)
DATA = st.dictionaries(KEYS, VALUES, max_size=3)
REASONS = st.sampled_from(["manual", "timeout", "error", "بيت"])
# Quarters of a second are exact as floats.
STEPS = st.sampled_from([0.25, 1.0, 60.0, 300.0, TIMEOUT, 86_400.0]) | (
    st.integers(0, 4 * TIMEOUT).map(lambda quarters: quarters / 4)
)
MANAGERS = st.integers(0, 1)  # of two, which may be the same one
REFUSED = "refused"  # what an InvalidArgumentError is here


@dataclass(frozen=True)
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
    """A manager that keeps its sessions in a dict, and tells a list of what has ended."""

    lifetime: float | None = None
    now: float = 0.0
    stored: dict[str, Modelled] = field(default_factory=dict)
    told: list[Modelled] = field(default_factory=list)

    def copy(self) -> "Model":
        """Return another one, to try something."""
        return replace(self, stored=dict(self.stored), told=list(self.told))

    def seen(self) -> list[Modelled]:
        """Return all sessions as of now, in the order of starting."""
        sessions = [stored.at(self.now, self.lifetime) for stored in self.stored.values()]
        return sorted(sessions, key=lambda session: (session.started_at, session.id))

    def active(self, child: str | None = None) -> list[Modelled]:
        """Return the active sessions, of a child or of all."""
        return [
            session
            for session in self.seen()
            if session.status == "active" and child in (None, session.child_id)
        ]

    def get(self, id_: str) -> Modelled | None:
        """Return a session as of now."""
        stored = self.stored.get(id_)
        return None if stored is None else stored.at(self.now, self.lifetime)

    def touch(self, id_: str) -> bool:
        """Count an interaction."""
        live = self._live(id_)
        if live is not None:
            last_activity = max(live.last_activity, self.now)
            self.stored[id_] = replace(live, last_activity=last_activity, count=live.count + 1)
        return live is not None

    def update(self, id_: str, data: Any, metadata: Any, remove: list[str]) -> bool | str:
        """Merge and remove keys."""
        if is_too_large(data) or is_too_large(metadata):
            return REFUSED
        live = self._live(id_)
        if live is None:
            return False
        merged = {**live.data, **(data or {})}
        for key in remove:
            merged.pop(key, None)
        merged_metadata = {**live.metadata, **(metadata or {})}
        if is_too_large(merged) or is_too_large(merged_metadata):
            return REFUSED
        last_activity = max(live.last_activity, self.now)
        self.stored[id_] = replace(
            live, last_activity=last_activity, data=merged, metadata=merged_metadata
        )
        return True

    def end(self, id_: str, reason: str) -> bool:
        """End a session."""
        live = self._live(id_)
        if live is not None:
            status = reason if reason in ("timeout", "error") else "ended"
            ended_at = max(self.now, live.last_activity)
            self.stored[id_] = live.finished(status, ended_at, reason)
            self.told.append(self.stored[id_])
        return live is not None

    def end_all(self, child: str, kept: str | None, reason: str) -> int:
        """End all active sessions of a child but one."""
        return sum(self.end(each.id, reason) for each in self.active(child) if each.id != kept)

    def delete(self, id_: str) -> bool:
        """Erase a session."""
        return self.stored.pop(id_, None) is not None

    def sweep(self) -> int:
        """Record the timeouts that are due."""
        due = [each for each in self.seen() if each != self.stored[each.id]]
        self.stored |= {session.id: session for session in due}
        self.told += due
        return len(due)

    def purge(self, age: float) -> int:
        """Erase what ended so long ago; what is due for a timeout is timed out first."""
        self.sweep()
        limit = self.now - age
        kept = {
            id_: stored
            for id_, stored in self.stored.items()
            if stored.ended_at is None or stored.ended_at > limit
        }
        purged, self.stored = len(self.stored) - len(kept), kept
        return purged

    def _live(self, id_: str) -> Modelled | None:
        seen = self.get(id_)
        return seen if seen is not None and seen.status == "active" else None


class Call(NamedTuple):
    """A call of a manager, and of the model."""

    ask: Callable[[SessionManager], Coroutine[Any, Any, Any]]
    answer: Callable[[Model], Any]


def touching(id_: str) -> Call:
    """Return a call that counts an interaction."""
    return Call(lambda manager: manager.update_activity(id_), lambda model: model.touch(id_))


def updating(id_: str, data: Any, metadata: Any, remove: list[str]) -> Call:
    """Return a call that merges and removes keys."""

    async def ask(manager: SessionManager) -> bool | str:
        try:
            return await manager.update_session(id_, data, metadata=metadata, remove=remove)
        except InvalidArgumentError:
            return REFUSED

    return Call(ask, lambda model: model.update(id_, data, metadata, remove))


def ending(id_: str, reason: str) -> Call:
    """Return a call that ends a session."""
    return Call(
        lambda manager: manager.end_session(id_, reason), lambda model: model.end(id_, reason)
    )


def ending_all(child: str, kept: str | None, reason: str) -> Call:
    """Return a call that ends the sessions of a child."""
    return Call(
        lambda manager: manager.end_sessions(child, except_id=kept, reason=reason),
        lambda model: model.end_all(child, kept, reason),
    )


def deleting(id_: str) -> Call:
    """Return a call that erases a session."""
    return Call(lambda manager: manager.delete_session(id_), lambda model: model.delete(id_))


def sweeping() -> Call:
    """Return a call that records timeouts."""
    return Call(lambda manager: manager.cleanup_inactive_sessions(), lambda model: model.sweep())


def purging(age: float) -> Call:
    """Return a call that erases what ended long ago."""
    return Call(lambda manager: manager.purge_ended_sessions(age), lambda model: model.purge(age))


def getting(id_: str) -> Call:
    """Return a call that reads a session."""

    async def ask(manager: SessionManager) -> Modelled | None:
        session = await manager.get_session(id_)
        return None if session is None else as_modelled(session)

    return Call(ask, lambda model: model.get(id_))


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


def is_too_large(data: dict[str, Any] | None) -> bool:
    """Return whether data has more bytes than a manager takes."""
    text = json.dumps(data or {}, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode()) > MAX_BYTES


def moment(seconds: float) -> datetime:
    """Return the aware datetime of a clock's reading."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


class ManagerMachine(RuleBasedStateMachine):
    """Drives managers on one database and the model side by side."""

    engine = ""
    ids = Bundle("ids")

    @initialize(
        cache_size=st.sampled_from([0, 2, 10_000]), lifetime=st.sampled_from([None, 600.0, 3_600.0])
    )
    def open(self, cache_size: int, lifetime: float | None) -> None:
        """Open managers with settings of any kind."""
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = FakeClock()
        self.model = Model(lifetime, self.clock.now)
        self.told: list[Session] = []
        # The uptime stands still: no sweep brings a session back to a clock that was set back.
        engine = ENGINES[self.engine](self.folder, lambda: 0.0)
        self.managers = [
            SessionManager(
                engine.make(),
                clock=self.clock,
                timeout=TIMEOUT,
                max_lifetime=lifetime,
                cache_size=cache_size,
                max_data_bytes=MAX_BYTES,
                sweep_interval=None,
                on_end=self.told.append,
            )
            for _ in range(2 if engine.is_shared else 1)
        ]
        for manager in self.managers:
            self.run(manager.open())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a call to its end."""
        return self.runner.run(coroutine)

    @precondition(lambda self: len(self.model.stored) < 5)  # so that calls meet
    @rule(
        target=ids,
        child=CHILDREN,
        data=st.none() | DATA,
        metadata=st.none() | DATA,
        by=st.lists(MANAGERS, min_size=1, max_size=3),
    )
    def create(self, child: str, data: Any, metadata: Any, by: list[int]) -> Any:
        """Create sessions at the same moment, side by side."""

        async def create_all() -> list[str]:
            creating = [
                manager.create_session(child, data, metadata=metadata)
                for manager in self._managers(by)
            ]
            return await asyncio.gather(*creating)

        if is_too_large(data) or is_too_large(metadata):
            with pytest.raises(InvalidArgumentError):
                self.run(create_all())
            return multiple()
        created = self.run(create_all())
        now = self.clock.now
        for id_ in created:
            self.model.stored[id_] = Modelled(
                id_, child, now, now, dict(data or {}), dict(metadata or {})
            )
        return multiple(*created)

    @rule(id_=ids, by=st.lists(MANAGERS, min_size=1, max_size=3))
    def touch(self, id_: str, by: list[int]) -> None:
        """Touch a session, several times at once."""
        self._call([touching(id_)] * len(by), by)

    @rule(id_=ids, data=st.none() | DATA, metadata=st.none() | DATA, remove=KEY_LISTS, by=MANAGERS)
    def update(self, id_: str, data: Any, metadata: Any, remove: list[str], by: int) -> None:
        """Merge and remove keys."""
        self._call([updating(id_, data, metadata, remove)], [by])

    @rule(id_=ids, by=MANAGERS)
    def get(self, id_: str, by: int) -> None:
        """Read a session by a manager whose memory may be old."""
        self._call([getting(id_)], [by])

    @rule(
        target=ids,
        data=st.fixed_dictionaries({"turn": st.integers()}),
        turns=st.lists(
            st.tuples(st.sampled_from(["touch", "update", "get"]), MANAGERS),
            min_size=4,
            max_size=10,
        ),
    )
    def take_turns(self, data: Any, turns: list[tuple[str, int]]) -> Any:
        """Have both managers work on a new session, so that the memory of one of them is old."""
        id_ = self.run(self.managers[0].create_session("lina"))
        now = self.clock.now
        self.model.stored[id_] = Modelled(id_, "lina", now, now, {}, {})
        calls = {
            "touch": touching(id_),
            "update": updating(id_, data, None, []),
            "get": getting(id_),
        }
        for name, by in turns:
            self._call([calls[name]], [by])
        return id_

    @rule(id_=ids, reason=REASONS, by=st.lists(MANAGERS, min_size=1, max_size=3))
    def end(self, id_: str, reason: str, by: list[int]) -> None:
        """End a session from several callers at once: one of them wins."""
        self._call([ending(id_, reason)] * len(by), by)

    @rule(child=CHILDREN, kept=st.none() | ids, reason=REASONS, by=MANAGERS)
    def end_all_of_a_child(self, child: str, kept: str | None, reason: str, by: int) -> None:
        """End all sessions of a child but one."""
        self._call([ending_all(child, kept, reason)], [by])

    @rule(id_=ids, by=MANAGERS)
    def delete(self, id_: str, by: int) -> None:
        """Erase a session, whatever its status."""
        self._call([deleting(id_)], [by])

    @rule(by=MANAGERS)
    def sweep(self, by: int) -> None:
        """Record timeouts."""
        self._call([sweeping()], [by])

    @rule(age=STEPS, by=MANAGERS)
    def purge(self, age: float, by: int) -> None:
        """Erase what ended long ago; what is due for a timeout is timed out first."""
        self._call([purging(age)], [by])

    @rule(
        id_=ids,
        other=ids,
        data=DATA,
        child=CHILDREN,
        asked=st.lists(
            st.tuples(
                st.sampled_from(["touch", "update", "end", "end all", "delete", "sweep", "get"]),
                st.booleans(),
                MANAGERS,
            ),
            min_size=2,
            max_size=4,
        ),
        cancelled=st.sets(st.integers(0, 3), max_size=2),
        turns=st.integers(0, 6),
    )
    def act_at_once(
        self,
        id_: str,
        other: str,
        data: Any,
        child: str,
        asked: list[tuple[str, bool, int]],
        cancelled: set[int],
        turns: int,
    ) -> None:
        """Make different calls at once, by either manager, and cancel some of them on their way."""
        calls: dict[str, Callable[[str], Call]] = {
            "touch": touching,
            "update": lambda id_: updating(id_, data, None, []),
            "end": lambda id_: ending(id_, "error"),
            "end all": lambda id_: ending_all(child, id_, "manual"),
            "delete": deleting,
            "sweep": lambda id_: sweeping(),
            "get": getting,
        }
        self._call(
            [calls[name](other if is_other else id_) for name, is_other, _ in asked],
            [by for _, _, by in asked],
            cancelled & set(range(len(asked))),
            turns,
        )

    def _managers(self, by: list[int]) -> list[SessionManager]:
        return [self.managers[number % len(self.managers)] for number in by]

    def _call(
        self,
        calls: Sequence[Call],
        by: list[int],
        cancelled: Set[int] = frozenset(),
        turns: int = 0,
    ) -> None:
        """Make the calls at once, and find an order of them that explains what became of them."""

        async def call_all() -> list[Any]:
            asking = [
                asyncio.ensure_future(call.ask(manager))
                for call, manager in zip(calls, self._managers(by), strict=True)
            ]
            for _ in range(turns):
                await asyncio.sleep(0)
            for number in cancelled:
                asking[number].cancel()
            results = await asyncio.gather(*asking, return_exceptions=True)
            for manager in self.managers:  # what was cancelled under way is over then
                await manager.delete_session("absent")
            on_end = asyncio.all_tasks() - {asyncio.current_task()}
            if on_end:  # of what a caller that was cancelled has ended
                await asyncio.wait(on_end, timeout=10)
            return results

        results = self.run(call_all())
        listed = [as_modelled(session) for session in self.run(self.managers[0].list_sessions())][
            ::-1
        ]
        told = sorted(map(as_modelled, self.told), key=lambda session: session.id)
        is_open = [isinstance(result, asyncio.CancelledError) for result in results]
        answers = []
        for order in _orders(is_open):
            model = self.model.copy()
            answer: list[Any] = [None] * len(calls)
            for number in order:
                answer[number] = calls[number].answer(model)
            answers.append(answer)
            if (
                all(map(lambda is_open, a, b: is_open or a == b, is_open, answer, results))
                and model.seen() == listed
                and sorted(model.told, key=lambda session: session.id) == told
            ):
                self.model = model
                return
        raise AssertionError(f"no order explains {results}, {listed}, {told}: {answers}")

    @rule(seconds=STEPS)
    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._set_clock(self.clock.now + seconds)

    @rule(seconds=STEPS)
    def turn_back(self, seconds: float) -> None:
        """Correct the clock backwards."""
        self._set_clock(self.clock.now - seconds)

    @rule(id_=ids, offset=st.sampled_from([-0.25, 0.0, 0.0, 0.25]))
    def meet_a_boundary(self, id_: str, offset: float) -> None:
        """Set the clock to the moment at which a session times out, or next to it."""
        if id_ in self.model.stored:
            self._set_clock(self.model.stored[id_].expires_at(self.model.lifetime) + offset)

    def _set_clock(self, now: float) -> None:
        self.clock.now = self.model.now = now

    @precondition(lambda self: len(self.managers) == 2)
    @rule(by=MANAGERS)
    def reopen(self, by: int) -> None:
        """Close and open again: what is in the database is all there is."""
        self.run(self.managers[by].close())
        self.run(self.managers[by].open())

    @rule(id_=ids, by=MANAGERS)
    def spoil_a_snapshot(self, id_: str, by: int) -> None:
        """Change the dicts of a snapshot: nobody else may see it."""
        session = self.run(self._managers([by])[0].get_session(id_))
        if session is not None:
            session.data["spoilt"] = True
            session.metadata.clear()

    @rule(page=st.integers(1, 3), child=st.none() | CHILDREN)
    def list_in_pages(self, page: int, child: str | None) -> None:
        """Read the active sessions page by page."""
        found: list[Session] = []
        while True:
            after = found[-1] if found else None
            sessions = self.run(
                self.managers[0].get_active_sessions(child, limit=page, after=after)
            )
            found += sessions
            if len(sessions) < page:
                break
        assert list(map(as_modelled, found)) == self.model.active(child)

    @rule(child=CHILDREN, limit=st.integers(0, 4))
    def list_of_a_child(self, child: str, limit: int) -> None:
        """Read the last sessions of a child."""
        found = self.run(self.managers[0].get_sessions_for_child(child, limit))
        seen = [session for session in self.model.seen() if session.child_id == child]
        assert list(map(as_modelled, found)) == seen[::-1][:limit]

    @rule(
        child=st.none() | CHILDREN,
        status=st.none() | st.sampled_from(["active", "ended", "timeout", "error"]),
        limit=st.integers(0, 4),
    )
    def list_by_status(self, child: str | None, status: str | None, limit: int) -> None:
        """Read the last sessions of a status."""
        found = self.run(self.managers[0].list_sessions(child_id=child, status=status, limit=limit))
        seen = [
            session
            for session in self.model.seen()
            if child in (None, session.child_id) and status in (None, session.status)
        ]
        assert list(map(as_modelled, found)) == seen[::-1][:limit]

    @rule()
    def get_all(self) -> None:
        """Read every session by each manager, all at once and then one by one from the cache."""

        async def at_once() -> list[Session | None]:
            return await asyncio.gather(*(m.get_session(id_) for m in self.managers for id_ in ids))

        async def one_by_one() -> list[Session | None]:
            return [await m.get_session(id_) for m in self.managers for id_ in ids]

        expected = self.model.seen()
        ids = [session.id for session in expected]
        sessions = self.run(at_once())
        assert sessions == self.run(one_by_one())
        for session, modelled in zip(sessions, expected * len(self.managers), strict=True):
            assert session is not None
            assert as_modelled(session) == modelled
            expires_at = self.model.stored[modelled.id].expires_at(self.model.lifetime)
            assert session.expires_at == moment(expires_at)

    @invariant()
    def lists_and_counts_agree(self) -> None:
        """Compare the lists of all, the statistics and the calls of on_end."""
        if not hasattr(self, "managers"):
            return
        seen = self.model.seen()
        listed = self.run(self.managers[0].list_sessions())
        assert list(map(as_modelled, listed)) == seen[::-1]
        active = self.run(self.managers[0].get_active_sessions())
        assert list(map(as_modelled, active)) == self.model.active()
        stats = self.run(self.managers[0].get_session_stats())
        statuses = [session.status for session in seen]
        assert stats["by_status"] == {
            status: statuses.count(status) for status in ("active", "ended", "timeout", "error")
        }
        assert stats["active_sessions"] == statuses.count("active")
        assert stats["total_sessions"] == len(seen)
        midnight = self.clock.now // 86_400 * 86_400
        assert stats["sessions_today"] == sum(s.started_at >= midnight for s in seen)

    def teardown(self) -> None:
        """Close what was opened."""
        if hasattr(self, "managers"):
            for manager in self.managers:
                self.run(manager.close())
            self.runner.close()
            shutil.rmtree(self.folder)


def _orders(is_open: Sequence[bool]) -> list[tuple[int, ...]]:
    """Return the orders in which calls may have happened, or may not, where that is open."""
    certain = [number for number, each in enumerate(is_open) if not each]
    uncertain = [number for number, each in enumerate(is_open) if each]
    return [
        order
        for length in range(len(uncertain) + 1)
        for happened in combinations(uncertain, length)
        for order in permutations([*certain, *happened])
    ]


def _run(engine: str, examples: int, steps: int) -> None:
    class Machine(ManagerMachine):
        pass

    Machine.engine = engine
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    )


@pytest.mark.parametrize(
    ("engine", "examples"), [("dict", 80), ("sqlite", 25), ("sqlite in memory", 20)]
)
def test_a_manager_does_what_the_model_says(engine: str, examples: int) -> None:
    """Over each engine."""
    _run(engine, examples, steps=40)


@pytest.mark.torture
@pytest.mark.parametrize("engine", ENGINES)
def test_a_manager_does_what_the_model_says_for_long(engine: str) -> None:
    """Over each engine, for some minutes."""
    _run(engine, examples=2_000, steps=60)
