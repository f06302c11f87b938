# SPDX-License-Identifier: MIT
"""Several managers and processes on one file, each by a clock of its own that jumps either way.

Hypothesis makes the calls; a Ledger reads the file after each. In the end the clocks agree and stay
as they are: then every session must end by itself. That all this can fail is tested, too, by
breaking the package's promises one by one.
"""

import asyncio
import random
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

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

from sessionstore.sqlite import queries, store
from sessionstore.sqlite.writer import Change
from sessionstore.sweeper import MAX_JUMP, ClockWatch

from ..children import Child, Line
from ..clocks import DAY, HOUR, MINUTE, TIMEOUT, YEAR, Ledger, Times, Watched

T = TypeVar("T")

SIZES = [1.0, MINUTE, MAX_JUMP, MAX_JUMP + 1, TIMEOUT - 1, TIMEOUT, HOUR, DAY, YEAR, 10 * YEAR]
JUMPS = (st.sampled_from(SIZES) | st.integers(1, int(10 * YEAR)).map(float)).flatmap(
    lambda size: st.sampled_from([size, -size])
)
PAUSES = st.sampled_from([0.25, MINUTE, 10 * MINUTE, TIMEOUT - 1, TIMEOUT])
MANAGERS = st.sampled_from([0, 0, 1, 2])
CHANGES = ["update_activity", "update_session", "end_session"]
CALLERS = st.tuples(MANAGERS, st.just(0.0) | JUMPS)  # a manager, and a jump before its call


class ClockMachine(RuleBasedStateMachine):
    """Drives three managers, each at its own time, and reads the file after each call."""

    ids = Bundle("ids")

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
        self.swept_offsets = [0.0] * 3  # at each one's last sweep
        self.managers = [self._manager(times) for times in self.times]
        for manager in self.managers:
            self.run(manager.open())
        self.ledger = Ledger(self.folder / "a.db")

    def _manager(self, times: Times) -> Watched:
        return Watched(
            self.folder / "a.db",
            times.wall,
            times.monotonic,
            timeout=TIMEOUT,
            max_lifetime=self.lifetime,
            cache_size=self.cache_size,
        )

    def _jumped(self, caller: tuple[int, float]) -> Watched:
        by, seconds = caller
        self.jump(by, seconds)
        return self.managers[by]

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
        before = self.ledger.by_status()
        self.run(self.managers[by].sweep())
        if abs(self.offsets[by] - self.swept_offsets[by]) > MAX_JUMP:
            assert self.ledger.by_status() == before, "a sweep has believed a clock that jumped"
        self.swept_offsets[by] = self.offsets[by]

    @rule(by=MANAGERS)
    def reopen(self, by: int) -> None:
        """Let another process take over, which knows nothing of the clock before."""
        self.run(self.managers[by].close())
        self.managers[by] = self._manager(self.times[by])
        self.run(self.managers[by].open())
        self.swept_offsets[by] = self.offsets[by]

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
        for id_ in list(self.ledger.known()):
            for manager in self.managers:
                self.ledger.check_snapshot(id_, self.run(manager.get_session(id_)))

    def teardown(self) -> None:
        """Set the clocks right, and let time pass until everything must have ended."""
        if not hasattr(self, "ledger"):
            return
        try:
            self._settle()
        finally:
            self.ledger.close()
            for manager in self.managers:
                self.run(manager.close())
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
        for _ in range(int(2 * TIMEOUT / (5 * MINUTE)) + 2):
            self.pass_by(5 * MINUTE)
            self.sweep((0, 0.0))
            self.ledger.check()
        assert "active" not in self.ledger.by_status(), "a session has outlived two timeouts"


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
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_nothing_is_immortal_nor_comes_back() -> None:
    """Whatever the clocks of three managers do, what has ended has, and the rest ends."""
    run_machine(30)


@pytest.mark.torture
def test_nothing_is_immortal_nor_comes_back_for_long() -> None:
    """The same, for some minutes."""
    run_machine(1_000)


@pytest.mark.parametrize(
    "broken",
    ["no watch", "no mark", "no max", "ended twice", "activity after the end"],
)
def test_the_machine_catches(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promise that is broken does not go unseen."""

    def rewrite(name: str, old: str, new: str) -> None:
        text = getattr(queries, name)
        assert old in text
        monkeypatch.setattr(queries, name, text.replace(old, new))

    match broken:
        case "no watch":
            monkeypatch.setattr(ClockWatch, "has_jumped", lambda *_: False)
            found = "has believed a clock that jumped"
        case "no mark":
            monkeypatch.setattr(store, "mark_sessions_ahead", lambda *_: Change())
            found = "outlived"
        case "no max":
            for name in ("UPDATE_SESSION_ACTIVITY", "UPDATE_SESSION_DATA"):
                rewrite(name, "max(last_activity, :now)", ":now")
            found = "last_activity of"
        case "ended twice":
            rewrite("UPDATE_SESSION_ENDED", "status = 'active'", "status <> 'none'")
            found = "had ended"
        case _:
            rewrite("UPDATE_SESSION_ACTIVITY", "status = 'active'", "status <> 'none'")
            found = "was changed"
    with pytest.raises(AssertionError, match=found):
        run_machine(400, seed_only=True)


async def serve(line: Line, database: Path, cache_size: int, broken: bool) -> None:
    """Make the calls that the test asks for, each at a clock that is off by so many seconds."""
    if broken:
        moved_back = queries.UPDATE_SESSION_ACTIVITY.replace("max(last_activity, :now)", ":now")
        queries.UPDATE_SESSION_ACTIVITY = moved_back
    times = Times()
    manager = Watched(database, times.wall, times.monotonic, cache_size=cache_size)
    start = times.wall.now
    async with manager:
        line.say()
        while (order := line.hear()) is not None:
            passed, offset, method, arguments = order
            times.monotonic.now = passed
            times.wall.now = start + passed + offset
            line.say(await getattr(manager, method)(*arguments))


class Cluster:
    """Three processes on one file, and the time that has passed for all of them, in seconds."""

    def __init__(self, database: Path, children: list[Child]) -> None:
        self.ledger = Ledger(database)
        self.children = children
        self.passed = 0.0
        self.offsets = [0.0] * len(children)

    def call(self, by: int, method: str, *arguments: object) -> Any:
        """Have a process make a call; look into the file before, for what may come of it."""
        line = self.children[by].line
        line.say((self.passed, self.offsets[by], method, arguments))
        return line.hear()


def play(cluster: Cluster, seed: int, calls: int) -> None:
    """Make random calls by random processes, with a jump of one clock or of all before most."""
    chance = random.Random(seed)
    ids: list[str] = []
    for _ in range(calls):
        by = chance.randrange(len(cluster.children))
        jump = chance.choice(SIZES) * chance.choice([1, -1])
        for moved in [by] if chance.random() < 0.5 else range(len(cluster.children)):
            cluster.offsets[moved] = chance.choice([0.0, cluster.offsets[moved], jump])
        cluster.passed += chance.choice([0.25, MINUTE, 10 * MINUTE])
        method = chance.choice(["create_session", "sweep", "get_session", *CHANGES, *CHANGES])
        if method == "sweep":
            cluster.call(by, method)
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
    for _ in range(int(2 * TIMEOUT / (5 * MINUTE)) + 4):
        for by in range(len(cluster.children)):
            cluster.call(by, "sweep")
        cluster.passed += 5 * MINUTE
        cluster.ledger.check()
    assert "active" not in cluster.ledger.by_status(), "a session has outlived two timeouts"


def run_cluster(database: Path, seed: int, calls: int, *, broken: bool = False) -> int:
    """Run three processes, and return how many sessions there were."""
    print(f"seed {seed}")
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
    assert run_cluster(database, random.randrange(2**32), 600) > 50


def test_the_ledger_catches_a_process_that_moves_activity_back(database: Path) -> None:
    """The check above sees what it must."""
    with pytest.raises(AssertionError, match="last_activity of"):
        run_cluster(database, 7, 600, broken=True)


@pytest.mark.torture
def test_processes_with_clocks_of_their_own_for_long(tmp_path: Path) -> None:
    """The same, with more calls."""
    for number in range(20):
        seed = random.randrange(2**32)
        assert run_cluster(tmp_path / f"{number}.db", seed, 2_000) > 200
