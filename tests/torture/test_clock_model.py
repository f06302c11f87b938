# SPDX-License-Identifier: MIT
"""Several managers and processes on one file, each by a clock of its own that jumps either way.

Hypothesis makes the calls; a Ledger reads the file after each. In the end the clocks agree and stay
as they are: then every session must end by itself. That all this can fail is tested, too, by
breaking the package's promises one by one.

last_activity never moves back, with one exception: once a process has seen sessions ahead of its
clock by more than the timeout for a whole timeout of uptime, a sweep brings them back to now.
"""

import asyncio
import itertools
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from sessionstore import Session, SessionManager
from sessionstore.expiry import Expiry
from sessionstore.sqlite import SQLiteStore, queries
from sessionstore.sweeper import MAX_JUMP, ClockWatch, Sweeper

from ..children import Child, Line
from ..clocks import DAY, HOUR, MINUTE, TIMEOUT, YEAR, Times, micros, text
from ..seeds import draw_seed

T = TypeVar("T")

SIZES = [1.0, MINUTE, MAX_JUMP, MAX_JUMP + 1, TIMEOUT - 1, TIMEOUT, HOUR, DAY, YEAR, 10 * YEAR]
JUMPS = (st.sampled_from(SIZES) | st.integers(1, int(10 * YEAR)).map(float)).flatmap(
    lambda size: st.sampled_from([size, -size])
)
PAUSES = st.sampled_from([0.25, MINUTE, 10 * MINUTE, TIMEOUT - 1, TIMEOUT])
MANAGERS = st.sampled_from([0, 0, 1, 2])
CHANGES = ["update_activity", "update_session", "end_session"]
CALLERS = st.tuples(MANAGERS, st.just(0.0) | JUMPS)  # a manager, and a jump before its call

SWEEP = 5 * MINUTE  # between two sweeps, at the end
# Of a session that is ahead of the clock. A sweep looks at it a timeout after the activity that the
# sweep before knew, which may be ahead by a timeout itself. If the session is still too far ahead
# then, it is brought back after one more timeout, and times out after another one.
LONGEST_LIFE = 4 * TIMEOUT


# -- What must hold --------------------------------------------------------------------------------


class Row(NamedTuple):
    """What the file says of a session."""

    status: str
    started_at: str
    ended_at: str | None
    last_activity: str


class Ledger:
    """Remembers what the file said of each session, and finds what must never be."""

    def __init__(self, database: Path, lifetime: float | None = None) -> None:
        self._connection = sqlite3.connect(database)
        self._lifetime = lifetime
        self._rows: dict[str, Row] = {}  # as they were when the file was read last
        self._gone: set[str] = set()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def check(self, brought_back_to: float | None = None) -> bool:
        """Read the file: nothing has come back to life, and no last_activity has moved back.

        But to a time that is given, if it was ahead of that by more than the timeout. Returns
        whether one has.
        """
        has_moved_back = False
        query = "SELECT id, status, started_at, ended_at, last_activity FROM sessions"
        rows = {id_: Row(*columns) for id_, *columns in self._connection.execute(query).fetchall()}
        for id_, row in rows.items():
            assert id_ not in self._gone, f"{id_} was erased, and is back"
            before = self._rows.get(id_, row)
            if before.status != "active":
                assert row == before, f"{id_} had ended as {before}; now {row}"
            if row.ended_at is not None and row.status != "timeout":
                assert row.ended_at >= row.last_activity, f"{id_} ended before its last activity"
            if row.last_activity < before.last_activity:
                moved = f"last_activity of {id_} was {before.last_activity}: {row.last_activity}"
                assert brought_back_to is not None, moved
                assert row.last_activity == text(brought_back_to), moved
                assert before.last_activity > text(brought_back_to + TIMEOUT), moved
                has_moved_back = True
        self._gone |= self._rows.keys() - rows.keys()
        self._rows = rows
        return has_moved_back

    def has_sessions_ahead(self, now: float) -> bool:
        """Return whether there are sessions that a sweep at this time may find too far ahead."""
        born_before = "" if self._lifetime is None else text(now - self._lifetime)
        return any(
            row.status == "active"
            and row.last_activity > text(now + TIMEOUT)
            and row.started_at > born_before
            for row in self._rows.values()
        )

    def check_snapshot(self, session_id: str, session: Session | None) -> None:
        """Compare a manager's answer with what was in the file when it was asked."""
        if session is None:
            assert session_id in self._gone, f"{session_id} is not found, but was not erased"
            return
        assert session_id not in self._gone, f"{session_id} was erased, and is shown"
        row = self._rows[session_id]
        if row.status != "active":
            assert session.status == row.status, f"{session_id} has ended, and is shown as active"
        shown = text(session.last_activity.timestamp())
        assert shown >= row.last_activity, f"last_activity of {session_id}: {shown}"

    def check_change(self, session_id: str, changed: object) -> None:
        """Compare what a call that needs an active session returned with the file before it."""
        if session_id in self._gone or self._rows[session_id].status != "active":
            assert changed is False, f"{session_id} had ended, and was changed"

    def known(self) -> set[str]:
        """Return the ids of all sessions that were ever in the file."""
        return self._rows.keys() | self._gone

    def ended(self) -> list[str]:
        """Return the ids of all sessions that were seen ended."""
        return sorted(id_ for id_, row in self._rows.items() if row.status != "active")

    def statuses(self) -> dict[str, str]:
        """Return the status of each row of the file."""
        return {id_: row.status for id_, row in self._rows.items()}


class Sweeps:
    """What the sweeps of one process may do: nothing after a jump, and no healing too early."""

    def __init__(self, offset: float) -> None:
        self._offset = offset  # of its clock, at the sweep before
        self._ahead_since: float | None = None  # by uptime

    def check(self, ledger: Ledger, now: float, offset: float, uptime: float) -> None:
        """Read the file after a sweep, which was made at this time, and judge it."""
        has_jumped = abs(offset - self._offset) > MAX_JUMP
        self._offset = offset
        if has_jumped:
            before = ledger.statuses()
            ledger.check()
            assert ledger.statuses() == before, "a sweep has believed a clock that jumped"
        elif not ledger.has_sessions_ahead(now):
            self._ahead_since = None
            ledger.check()
        elif self._ahead_since is None or uptime - self._ahead_since < TIMEOUT:
            if self._ahead_since is None:
                self._ahead_since = uptime
            ledger.check()
        elif ledger.check(brought_back_to=now):
            self._ahead_since = None


class Process:
    """A manager and the sweeps of its store, as one process has them, by clocks of the test's."""

    def __init__(
        self,
        database: Path,
        times: Times,
        lifetime: float | None,
        cache_size: int,
        uptime: Callable[[], float] | None = None,
    ) -> None:
        store = SQLiteStore(database, uptime=uptime or times.monotonic)
        self.sessions = SessionManager(
            store,
            clock=times.wall,
            timeout=TIMEOUT,
            max_lifetime=lifetime,
            cache_size=cache_size,
            sweep_interval=None,
        )
        expiry = Expiry(micros(TIMEOUT), None if lifetime is None else micros(lifetime))
        self.sweeper = Sweeper(store, times.wall, expiry, None, uptime=times.monotonic)

    async def get_all(self, ids: list[str]) -> list[Session | None]:
        """Return a snapshot of each session."""
        return await asyncio.gather(*map(self.sessions.get_session, ids))


# -- Managers in one process -----------------------------------------------------------------------


class ClockMachine(RuleBasedStateMachine):
    """Drives three managers, each at its own time, and reads the file after each call."""

    ids = Bundle("ids")
    uptime: Callable[[], float] | None = None  # of the stores, if it is not the sweepers'

    @initialize(
        lifetime=st.sampled_from([None, None, HOUR]), cache_size=st.sampled_from([0, 2, 1_000])
    )
    def open(self, lifetime: float | None, cache_size: int) -> None:
        """Open the managers."""
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.lifetime, self.cache_size = lifetime, cache_size
        self.times = [Times() for _ in range(3)]
        self.offsets = [0.0] * 3
        self.sweeps = [Sweeps(0.0) for _ in range(3)]
        self.processes = [self._process(times) for times in self.times]
        for process in self.processes:
            self.run(process.sessions.open())
        self.ledger = Ledger(self.folder / "a.db", lifetime)

    def _process(self, times: Times) -> Process:
        database = self.folder / "a.db"
        return Process(database, times, self.lifetime, self.cache_size, self.uptime)

    def _jumped(self, caller: tuple[int, float]) -> SessionManager:
        by, seconds = caller
        self.jump(by, seconds)
        return self.processes[by].sessions

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a call to its end."""
        return self.runner.run(coroutine)

    @rule(target=ids, caller=CALLERS)
    def create(self, caller: tuple[int, float]) -> str:
        """Start a session."""
        return self.run(self._jumped(caller).create_session("lina"))

    @rule(id_=ids, caller=CALLERS, call=st.sampled_from(["update_activity", "update_session"]))
    def use(self, id_: str, caller: tuple[int, float], call: str) -> None:
        """Be active in a session."""
        self.ledger.check_change(id_, self.run(getattr(self._jumped(caller), call)(id_)))

    @rule(id_=ids, caller=CALLERS)
    def end(self, id_: str, caller: tuple[int, float]) -> None:
        """End a session."""
        self.ledger.check_change(id_, self.run(self._jumped(caller).end_session(id_)))

    @rule(id_=ids, caller=CALLERS)
    def delete(self, id_: str, caller: tuple[int, float]) -> None:
        """Erase a session."""
        self.run(self._jumped(caller).delete_session(id_))

    @rule(caller=CALLERS)
    def sweep(self, caller: tuple[int, float]) -> None:
        """Let the background loop come round, after a jump or not."""
        self._jumped(caller)
        by = caller[0]
        times = self.times[by]
        self.run(self.processes[by].sweeper.sweep())
        self.sweeps[by].check(self.ledger, times.wall.now, self.offsets[by], times.monotonic.now)

    @rule(by=MANAGERS)
    def reopen(self, by: int) -> None:
        """Let another process take over, which knows nothing of the clock before."""
        self.run(self.processes[by].sessions.close())
        self.processes[by] = self._process(self.times[by])
        self.run(self.processes[by].sessions.open())
        self.sweeps[by] = Sweeps(self.offsets[by])

    @rule(seconds=PAUSES)
    def pass_by(self, seconds: float) -> None:
        """Let time pass for all."""
        for times in self.times:
            times.pass_by(seconds)

    def jump(self, by: int, seconds: float) -> None:
        """Set one clock."""
        self.times[by].jump(seconds)
        self.offsets[by] += seconds

    @rule(seconds=JUMPS)
    def jump_all(self, seconds: float) -> None:
        """Set all clocks, as where one machine's is set."""
        for by in range(3):
            self.jump(by, seconds)

    @rule(by=MANAGERS)
    def correct(self, by: int) -> None:
        """Set one clock right."""
        self.jump(by, -self.offsets[by])

    @invariant()
    def file_is_sound(self) -> None:
        """Read the file, and then each session by each manager."""
        if not hasattr(self, "ledger"):
            return
        self.ledger.check()
        ids = sorted(self.ledger.known())
        for process in self.processes:
            for id_, session in zip(ids, self.run(process.get_all(ids)), strict=True):
                self.ledger.check_snapshot(id_, session)

    def teardown(self) -> None:
        """Set the clocks right, and let time pass until everything must have ended."""
        if not hasattr(self, "ledger"):
            return
        try:
            self._settle()
        finally:
            self.ledger.close()
            for process in self.processes:
                self.run(process.sessions.close())
            self.runner.close()
            shutil.rmtree(self.folder)

    def _settle(self) -> None:
        for id_ in self.ledger.ended():  # nobody can use it
            for by in range(3):
                self.use(id_, (by, 0.0), "update_activity")
                self.end(id_, (by, 0.0))
        self.ledger.check()
        for by in range(3):
            self.correct(by)
            self.sweep((by, 0.0))
        for _ in range(int(LONGEST_LIFE / SWEEP) + 2):
            self.pass_by(SWEEP)
            self.sweep((0, 0.0))
        assert "active" not in self.ledger.statuses().values(), "a session has outlived its time"


def run_machine(examples: int, *, seed_only: bool = False) -> None:
    """Run the machine; with seed_only, stop at the first failure, and look for no smaller one."""
    phases = (Phase.generate,) if seed_only else tuple(Phase)
    run_state_machine_as_test(
        ClockMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            phases=phases,
            database=None,
            derandomize=seed_only,
            report_multiple_bugs=not seed_only,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_nothing_is_immortal_nor_comes_back() -> None:
    """Whatever the clocks of three managers do, what has ended has, and the rest ends."""
    run_machine(10)


@pytest.mark.torture
def test_nothing_is_immortal_nor_comes_back_for_long() -> None:
    """The same, for some minutes."""
    run_machine(1_000)


@pytest.mark.parametrize(
    "broken",
    ["no watch", "no healing", "healed at once", "no max", "ended twice", "activity after the end"],
)
def test_the_machine_catches(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promise that is broken does not go unseen."""

    def rewrite(name: str, old: str, new: str) -> None:
        query = getattr(queries, name)
        assert old in query
        monkeypatch.setattr(queries, name, query.replace(old, new))

    match broken:
        case "no watch":
            monkeypatch.setattr(ClockWatch, "has_jumped", lambda *_: False)
            found = "has believed a clock that jumped"
        case "no healing":
            rewrite("UPDATE_SESSIONS_AHEAD", "> :latest", "> 'later'")
            found = "outlived"
        case "healed at once":
            uptime = itertools.count(step=DAY)
            monkeypatch.setattr(ClockMachine, "uptime", staticmethod(lambda: next(uptime)))
            found = "last_activity of"
        case "no max":
            rewrite("UPDATE_SESSION_TOUCHED", "max(last_activity, :now)", ":now")
            found = "last_activity of"
        case "ended twice":
            rewrite("UPDATE_SESSION_ENDED", "status = 'active'", "status <> 'none'")
            found = "had ended"
        case _:
            rewrite("UPDATE_SESSION_TOUCHED", "status = 'active'", "status <> 'none'")
            found = "was changed"
    with pytest.raises(AssertionError, match=found):
        run_machine(400, seed_only=True)


# -- Processes -------------------------------------------------------------------------------------


async def test_a_clock_set_back_again_right_after_a_healing_is_watched_anew(database: Path) -> None:
    """What is ahead of the clock is brought back after a whole timeout, each time."""
    times = Times()
    process = Process(database, times, None, 0)
    async with process.sessions as sessions:
        id_ = await sessions.create_session("lina")
        for _ in range(2):
            times.jump(-DAY)
            await process.sweeper.sweep()  # is left out
            before = times.monotonic.now
            while await is_ahead(sessions, id_, times):
                await process.sweeper.sweep()
                times.pass_by(SWEEP)
            assert times.monotonic.now - before >= TIMEOUT


async def is_ahead(sessions: SessionManager, id_: str, times: Times) -> bool:
    """Return whether a session was active in the future."""
    session = await sessions.get_session(id_)
    assert session is not None
    return session.last_activity.timestamp() > times.wall.now


async def serve(line: Line, database: Path, cache_size: int, broken: bool) -> None:
    """Make the calls that the test asks for, each at a clock that is off by so many seconds."""
    if broken:
        moved_back = queries.UPDATE_SESSION_TOUCHED.replace("max(last_activity, :now)", ":now")
        queries.UPDATE_SESSION_TOUCHED = moved_back
    times = Times()
    process = Process(database, times, None, cache_size)
    async with process.sessions:
        line.say(times.wall.now)
        while (order := line.hear()) is not None:
            uptime, now, method, arguments = order
            times.monotonic.now, times.wall.now = uptime, now
            owner = process.sweeper if method == "sweep" else process.sessions
            line.say(await getattr(owner, method)(*arguments))


class Cluster:
    """Three processes on one file, and the time that has passed for all of them, in seconds."""

    def __init__(self, database: Path, children: list[Child]) -> None:
        self.ledger = Ledger(database)
        self.children = children
        self.times = Times()  # of a clock that is right
        self.offsets = [0.0] * len(children)
        self.sweeps = [Sweeps(0.0) for _ in children]

    def call(self, by: int, method: str, *arguments: object) -> Any:
        """Have a process make a call, and return its answer."""
        line = self.children[by].line
        now = self.times.wall.now + self.offsets[by]
        line.say((self.times.monotonic.now, now, method, arguments))
        return line.hear()

    def sweep(self, by: int) -> None:
        """Have a process sweep, and judge what it has done."""
        self.call(by, "sweep")
        now = self.times.wall.now + self.offsets[by]
        self.sweeps[by].check(self.ledger, now, self.offsets[by], self.times.monotonic.now)


def play(cluster: Cluster, seed: int, calls: int) -> None:
    """Make random calls by random processes, with a jump of one clock or of all before most."""
    chance = random.Random(seed)
    ids: list[str] = []
    for _ in range(calls):
        by = chance.randrange(len(cluster.children))
        jump = chance.choice(SIZES) * chance.choice([1, -1])
        for moved in [by] if chance.random() < 0.5 else range(len(cluster.children)):
            cluster.offsets[moved] = chance.choice([0.0, cluster.offsets[moved], jump])
        cluster.times.pass_by(chance.choice([0.25, MINUTE, 10 * MINUTE]))
        method = chance.choice(["create_session", "sweep", "get_session", *CHANGES, *CHANGES])
        if method == "sweep":
            cluster.sweep(by)
        elif method == "create_session" or not ids:
            ids.append(cluster.call(by, "create_session", "lina"))
        else:
            id_ = chance.choice(ids[-5:])
            answer = cluster.call(by, method, id_)
            if method == "get_session":
                cluster.ledger.check_snapshot(id_, answer)
            else:
                cluster.ledger.check_change(id_, answer)
        cluster.ledger.check()


def settle(cluster: Cluster) -> None:
    """Set all clocks right, and let the processes sweep until everything must have ended."""
    cluster.offsets = [0.0] * len(cluster.children)
    for _ in range(int(LONGEST_LIFE / SWEEP) + 4):
        for by in range(len(cluster.children)):
            cluster.sweep(by)
        cluster.times.pass_by(SWEEP)
    assert "active" not in cluster.ledger.statuses().values(), "a session has outlived its time"


def run_cluster(database: Path, seed: int, calls: int, *, broken: bool = False) -> int:
    """Run three processes, and return how many sessions there were."""
    with ExitStack() as stack:
        children = []
        for cache_size in (0, 2, 1_000):  # one after the other: the first makes the file
            children.append(stack.enter_context(Child(serve, database, cache_size, broken)))
            children[-1].line.hear()
        cluster = Cluster(database, children)
        stack.callback(cluster.ledger.close)
        play(cluster, seed, calls)
        settle(cluster)
        for child in children:
            child.line.say(None)
            assert child.join() == 0
        return len(cluster.ledger.known())


def test_processes_with_clocks_of_their_own(database: Path) -> None:
    """Three processes whose clocks jump between their calls bring nothing back, nor keep it."""
    assert run_cluster(database, draw_seed(), 600) > 50


def test_the_ledger_catches_a_process_that_moves_activity_back(database: Path) -> None:
    """The check above sees what it must."""
    with pytest.raises(AssertionError, match="last_activity of"):
        run_cluster(database, 7, 600, broken=True)


@pytest.mark.torture
def test_processes_with_clocks_of_their_own_for_long(tmp_path: Path) -> None:
    """The same, with more calls."""
    for number in range(20):
        assert run_cluster(tmp_path / f"{number}.db", draw_seed(), 2_000) > 200
