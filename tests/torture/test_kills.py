# SPDX-License-Identifier: MIT
"""SIGKILL at random moments: what was acknowledged is there, nothing is half there, and it goes on.

kills.py has the lives and what must be true of the file after them. Each kill is aimed at a stage
of a life; one that came too late for it is checked like all others, and does not count.
"""

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sessionstore import SessionManager, SessionStoreError

from ..children import ROOT, Child, Line
from ..conftest import FakeClock
from ..seeds import draw_seed
from . import kills
from .disk import scratch
from .kills import DAY, ENDED, IDLE, OLD, Call, Found, Ledger, Life, Row
from .old_files import CHILD, OLD_ID, PREDECESSORS, RELEASES, Maker, copies, dump

FOUND_ROWS = 100  # in a file that is to be upgraded
KILLS, MANY_KILLS = 3, 72  # in each of seven stages
LIVES = 4  # that a file has at most
FRESH_FOR = 300.0  # seconds in which no session of a template can time out
TRIES = 12  # lives for each kill that hits its stage


def make_nothing(_: Path) -> None:
    """Leave a file to be made."""


def made_by(maker: Maker) -> Callable[[Path], None]:
    """Return what makes a file with sessions that no sweep of a life finds: they are of now."""

    def make(path: Path) -> None:
        maker(path, FOUND_ROWS, str(datetime.now(UTC).replace(microsecond=1, tzinfo=None)))

    return make


def make_old(path: Path) -> None:
    """Make a file of today with sessions that a sweep times out and purges."""
    asyncio.run(make_old_sessions(path))


async def make_old_sessions(path: Path) -> None:
    """Create those that have ended two days ago, and those that are idle for two hours."""
    clock = FakeClock(time.time() - 2 * DAY)
    async with SessionManager(path, clock=clock, sweep_interval=None) as sessions:
        await asyncio.gather(*(sessions.create_session(ENDED) for _ in range(OLD)))
        await sessions.end_sessions(ENDED)
        clock.now = time.time() - 7_200
        await asyncio.gather(*(sessions.create_session(IDLE) for _ in range(OLD)))


# What the file of a stage is at first; after which word of its life a kill is due, and within how
# many seconds at first; and with which word the stage is over.
STAGES: dict[str, tuple[Callable[[Path], None], str, float, str]] = {
    "open": (make_nothing, "opening", 0.03, "open"),
    "0.1.0": (made_by(RELEASES["0.1.0"]), "opening", 0.05, "open"),
    "0.4.1": (made_by(RELEASES["0.4.1"]), "opening", 0.05, "open"),
    "adoption": (made_by(PREDECESSORS["predecessor"]), "opening", 0.1, "open"),
    "writing": (make_old, "open", 0.2, "closing"),
    "checkpoint": (make_nothing, "open", 0.1, "closing"),
    "close": (make_nothing, "closing", 0.01, "closed"),
}
EACH_STAGE = pytest.mark.parametrize("stage", STAGES)


class Killing:
    """Kills lives at one stage and checks the file after each kill."""

    def __init__(self, stage: str, folder: Path, seed: int, broken: str = "") -> None:
        self.stage = stage
        self.hits = self.lives = self.files = self.acknowledged = 0
        self._make, self._begin, self._span, self._end = STAGES[stage]
        self._chance = random.Random(seed)
        self._folder = folder
        self._broken = broken
        self._pairs = 0.0 if broken else 0.3  # share of the times when two live together
        self.template = folder / "template.db"
        self._make_template()

    def __str__(self) -> str:
        return (
            f"{self.stage}: {self.hits} kills in it, {self.lives} lives on {self.files} files,"
            f" {self.acknowledged:,} acknowledged calls"
        )

    def kill(self, hits: int) -> list[str]:
        """Kill until so many hits, or until a fault; return the faults."""
        tries = hits * TRIES
        while self.hits < hits:
            self.files += 1
            folder = self._folder / f"{self.stage}-{self.files}"
            folder.mkdir()
            faults = self._use_up(folder, hits)
            if faults:
                return [f"{self}: {fault}" for fault in faults]
            shutil.rmtree(folder)
            assert self.lives < tries, f"the aim is bad: {self}"
        return []

    def _make_template(self) -> None:
        self.template.unlink(missing_ok=True)
        self._make(self.template)
        self._made_at = time.monotonic()
        self._original = dump(self.template) if self.stage == "adoption" else []

    def _use_up(self, folder: Path, hits: int) -> list[str]:
        """Give one file some lives, and end each of them."""
        database = folder / "sessions.db"
        if time.monotonic() - self._made_at > FRESH_FOR:
            self._make_template()
        if self.template.exists():
            shutil.copy(self.template, database)
        ledger = Ledger(OLD if self.stage == "writing" else 0)
        try:
            for number in range(self._chance.randint(1, LIVES)):
                lives = [
                    Life(
                        name=f"life-{number}-{name}",
                        database=database,
                        seed=self._chance.getrandbits(32),
                        seconds=self._chance.uniform(0.005, 0.03) if self._closes else 60.0,
                        checkpoints=self.stage == "checkpoint",
                        broken=self._broken,
                    )
                    for name in ("ab" if self._chance.random() < self._pairs else "a")
                ]
                is_hit = self._end_by_force(lives)
                self.hits += is_hit
                faults = self.check(database, lives, ledger)
                if faults or self.hits == hits:
                    return faults
                if not is_hit and self._end == "open":
                    break  # the file is as it is to be: opening it is another stage
            return []
        finally:
            self.acknowledged += ledger.acknowledged

    @property
    def _closes(self) -> bool:
        return self._begin == "closing"

    def _end_by_force(self, lives: list[Life]) -> bool:
        """Start processes, kill each at a moment of the stage, and say whether one was in it."""
        is_hit = False
        with ExitStack() as stack:
            children = [stack.enter_context(Child(kills.live, life)) for life in lives]
            self.lives += len(children)
            for child in children:
                while child.line.hear() != self._begin:
                    pass
            for child, life in zip(children, lives, strict=True):
                time.sleep(self._chance.uniform(0.0, self._span))
                child.kill()
                assert child.join() == -signal.SIGKILL, "a life has ended by itself"
                is_over = self._end in read_to_the_end(child.line)
                if self._begin != "open":  # learn how long the stage takes here
                    self._span *= 0.9 if is_over else 1.05
                if self.stage == "checkpoint":
                    is_over = kills.read_log(life.log)[1] != "checkpoint"
                is_hit |= not is_over
        return is_hit

    def check(self, database: Path, lives: list[Life], ledger: Ledger) -> list[str]:
        """Return what is wrong with a file after the lives that have ended."""
        logs = [kills.read_log(life.log)[0] for life in lives]
        faults: list[str] = []
        if self._chance.random() < 0.5:  # else our own open is the one that recovers the file
            faults += self._check_upgrade(database, kills.read(database))
        try:
            started = time.monotonic()
            asyncio.run(visit(database))
            if time.monotonic() - started > 5:
                faults.append("the next open was slow")
        except SessionStoreError as error:
            faults.append(f"the next open failed: {error!r}")
            return faults
        found = kills.read(database)
        faults += self._check_upgrade(database, found)
        faults += ledger.settle(logs, found)
        beside = {path.name for path in database.parent.iterdir()}
        faults += [f"{name} is left" for name in beside if name.endswith(LEFTOVERS)]
        return faults

    def _check_upgrade(self, database: Path, found: Found) -> Iterator[str]:
        """Yield what is wrong with the rows that the file had, and with the copies of it."""
        if found.faults or self._end != "open" or self.stage == "open":
            yield from found.faults
            return
        if found.is_ours:
            expected: dict[str, Row] = {
                OLD_ID(n): ("active", {"n": n}, {}, 0) for n in range(FOUND_ROWS)
            }
            if found.rows[CHILD] != expected:
                yield f"{len(found.rows[CHILD])} of {FOUND_ROWS} rows, or others, were found"
        elif dump(database) != self._original:
            yield "the original is damaged"
        if self.stage == "adoption" and found.is_ours and not copies(database):
            yield "there is no copy of the original"
        for copy in copies(database):
            if dump(copy) != self._original:
                yield f"{copy.name} is not whole"


def read_to_the_end(line: Line) -> list[Any]:
    """Return what a process had said before it was killed."""
    said = []
    while True:
        try:
            said.append(line.hear())
        except ConnectionResetError:  # it had not heard all
            continue
        except EOFError:
            return said


LEFTOVERS = ("-wal", "-shm", "-journal", ".part")


async def visit(database: Path) -> None:
    """Open the file, write, and close it, as the next process does."""
    async with SessionManager(database, sweep_interval=None, busy_timeout=5) as sessions:
        id_ = await sessions.create_session("visitor")
        assert await sessions.update_activity(id_)
        assert await sessions.delete_session(id_)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder in memory, where a life writes far more until it is killed."""
    with scratch() as path:
        yield path


def kill_and_check(stage: str, folder: Path, number: int) -> None:
    """Kill so many lives in their stage and demand that nothing was lost."""
    killing = Killing(stage, folder, draw_seed())
    faults = killing.kill(number)
    print(killing)
    assert faults == []
    assert killing.hits == number


@EACH_STAGE
def test_nothing_is_lost_by_a_kill(folder: Path, stage: str) -> None:
    """What was acknowledged is there, nothing is half there, and the next open needs no help."""
    kill_and_check(stage, folder, KILLS)


@pytest.mark.torture
@EACH_STAGE
def test_nothing_is_lost_by_hundreds_of_kills(folder: Path, stage: str) -> None:
    """The same as above, 504 times."""
    kill_and_check(stage, folder, MANY_KILLS)


CALLS = "pwrite64,ftruncate,fdatasync,fsync,unlink,rename,mkdir,mknod,mknodat,fchmod,fchown"
TRACED = """
import asyncio, pathlib, types
from tests.torture import kills

line = types.SimpleNamespace(say=lambda _: None, hear=lambda: None)
life = kills.Life("life", pathlib.Path("sessions.db"), 1, seconds=0.01)
asyncio.run(kills.live(line, life))
"""


def can_trace() -> bool:
    """Return whether there is a strace that is allowed to trace."""
    strace = shutil.which("strace")
    command = [strace or "", "-qq", "-o", os.devnull, sys.executable, "-c", ""]
    return strace is not None and subprocess.run(command, check=False).returncode == 0


@pytest.mark.torture
@pytest.mark.parametrize("stage", ["open", "0.1.0", "0.4.1", "adoption"])
def test_nothing_is_lost_by_a_kill_at_any_system_call(folder: Path, stage: str) -> None:
    """Killed before its nth call that changes a file, for each n from open() to close()."""
    if not can_trace():
        pytest.skip("needs strace, and the permission to trace")
    killing = Killing(stage, folder, draw_seed())
    for number in range(1, 1_000):
        database = folder / str(number) / "sessions.db"
        database.parent.mkdir()
        if killing.template.exists():
            shutil.copy(killing.template, database)
        inject = f"inject={CALLS}:signal=SIGKILL:when={number}"
        strace = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={CALLS}", "-e", inject]
        done = subprocess.run(
            [*strace, sys.executable, "-B", "-c", TRACED],
            cwd=database.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        life = Life("life", database, 1)
        faults = killing.check(database, [life] if life.log.exists() else [], Ledger())
        assert faults == [], f"{stage}, call {number}"
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    print(f"{stage}: {number - 1} kills, one at each system call")
    assert number > 20


# -- That the checks can fail ----------------------------------------------------------------------


LOST = rf"the last call was|0 of {kills.BATCH} sessions (are there|have ended)"
HALF_BATCH = rf"\d+ of {kills.BATCH} sessions have ended|the last call was"
HALF_UPGRADE = r"the next open failed|rows, or others|half a migration|is damaged|no copy"
DAMAGE = r"integrity_check|\(SQLITE_CORRUPT"


@pytest.mark.parametrize(
    "broken, stage, symptom",
    [
        ("acknowledged before COMMIT", "writing", LOST),
        ("ended one by one", "writing", HALF_BATCH),
        ("migrated without a transaction", "0.1.0", HALF_UPGRADE),
        ("migrated without a transaction", "0.4.1", HALF_UPGRADE),
        ("migrated without a transaction", "adoption", HALF_UPGRADE),
        ("written without a journal", "writing", DAMAGE),
    ],
)
def test_a_broken_promise_is_caught(folder: Path, broken: str, stage: str, symptom: str) -> None:
    """Lives that keep a promise only as long as they are not killed do not go unseen."""
    killing = Killing(stage, folder, draw_seed(), broken)
    faults = killing.kill(100)
    print(killing, faults[:1])
    assert re.search(symptom, "\n".join(faults)), faults


STAMP = {"n": 0}
FRESH: Row = ("active", STAMP, STAMP, 0)
CREATE = Call("create", "", 0, "i")


@pytest.mark.parametrize(
    "calls, rows, is_sound",
    [
        ([CREATE], {"i": FRESH}, True),
        ([CREATE], {}, False),
        ([CREATE], {"i": FRESH, "j": FRESH}, False),
        ([CREATE], {"i": ("active", STAMP, {}, 0)}, False),
        ([CREATE, Call("create", "", 0)], {"i": FRESH}, True),
        ([CREATE, Call("create", "", 0)], {"i": FRESH, "j": FRESH}, True),
        ([CREATE, Call("create", "", 1)], {"i": FRESH, "j": FRESH}, False),
        ([CREATE, Call("touch", "i", 1, True)], {"i": (*FRESH[:3], 1)}, True),
        ([CREATE, Call("touch", "i", 1, True)], {"i": FRESH}, False),
        ([CREATE, Call("touch", "i", 1, False)], {"i": FRESH}, False),
        ([CREATE, Call("touch", "i", 1)], {"i": (*FRESH[:3], 1)}, True),
        ([CREATE, Call("touch", "i", 1)], {"i": (*FRESH[:3], 2)}, False),
        ([CREATE, Call("update", "i", 1)], {"i": ("active", {"n": 1}, {"n": 1}, 0)}, True),
        ([CREATE, Call("update", "i", 1)], {"i": ("active", {"n": 1}, STAMP, 0)}, False),
        ([CREATE, Call("delete", "i", 1, True)], {}, True),
        ([CREATE, Call("delete", "i", 1, True)], {"i": FRESH}, False),
        ([CREATE, Call("end", "i", 1, True)], {"i": FRESH}, False),
        ([CREATE, Call("end", "i", 1, True)], {"i": ("ended", STAMP, STAMP, 0)}, False),
        ([CREATE, Call("end all", "", 1, 1)], {"i": kills._ended(FRESH)}, True),
        ([CREATE, Call("end all", "", 1, 0)], {"i": kills._ended(FRESH)}, False),
    ],
)
def test_the_ledger_knows_what_must_be_there(
    calls: list[Call], rows: dict[str, Row], is_sound: bool
) -> None:
    """A file that shows a call too few, too many, or half of one is refused."""
    found = Found(versions=[1], rows=defaultdict(dict, {"lina": rows}))
    assert (Ledger().settle([{"lina": calls}], found) == []) == is_sound


def test_the_ledger_knows_whole_transactions() -> None:
    """Half a call, and chunks that are not whole, are refused, as is what comes back."""
    ids = map(str, range(OLD))
    active: Row = ("active", {}, {}, 0)
    timed_out: Row = ("timeout", {}, {"end_reason": "timeout"}, 0)
    idle = dict.fromkeys(ids, active)

    def settle(
        ledger: Ledger, timed_out_: int, batch: int, created: object, ended: int, end: object
    ) -> list[str]:
        rows = {IDLE: {id_: timed_out if int(id_) < timed_out_ else active for id_ in idle}}
        members = {str(n): kills._ended(FRESH) if n < ended else FRESH for n in range(batch)}
        rows |= {ENDED: idle, "batch": members}
        found = Found(versions=[1], rows=defaultdict(dict, rows))
        calls = [Call("batch", "", 0, created), Call("end all", "", 0, end)]
        log = {"sweep": [Call("cleanup", "", 0)], "batch": calls[: 1 + (end is not None)]}
        return ledger.settle([log], found)

    all_, open_ = kills.BATCH, kills.NO_RESULT
    assert settle(Ledger(OLD), 500, all_, all_, all_, all_) == []
    assert settle(Ledger(OLD), 0, 0, open_, 0, None) == []
    assert settle(Ledger(OLD), 0, 1, open_, 0, None) == []  # each create is a call of its own
    assert settle(Ledger(OLD), 0, all_, all_, all_, open_) == []
    for wrong in [
        (499, 0, open_, 0, None),
        (0, 0, all_, 0, None),
        (0, all_, all_, 1, open_),
        (0, all_, all_, 0, all_),
    ]:
        assert len(settle(Ledger(OLD), *wrong)) == 1
    ledger = Ledger(OLD)
    assert settle(ledger, 0, all_, open_, 0, None) == []
    assert ledger.settle([], Found(versions=[1], rows=defaultdict(dict, {ENDED: idle})))
