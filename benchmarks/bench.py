# SPDX-License-Identifier: MIT
"""What the scenarios share: how much is measured, the rivals' stores, and rounds of turns.

Whatever fails in one rival is written down, and the others go on.
"""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from .figures import Reading, Results, Unit
from .rivals.base import Durability, Rival
from .work import SMALL, Store, Work, set_garbage_aside

OURS = "sessionstore"
RELEASE = "release"

Run = Callable[[], Coroutine[Any, Any, list[Reading]]]  # one subject's turn in one round


@dataclass(frozen=True)
class Plan:
    """How much is measured. Lengths of time are in seconds."""

    rounds: int = 5
    long_rounds: int = 3  # of what takes long
    busy_rounds: int = 10  # of sessionstore in the busy loop
    writer_rounds: int = 5
    length: float = 0.3  # of a short run: several checkpoints of activity
    window: float = 3.0  # of the busy loop, and of processes that write
    patience: float = 120.0  # until a run that does not end counts as failed
    tasks: tuple[int, ...] = (1, 10, 100, 1_000)
    crowd: int = 100  # tasks of what has only one number of them, or two with 1
    sessions: int = 10_000  # in a store; a tenth of them fits into its cache
    tables: tuple[int, ...] = (3_000, 300_000)  # sessions that are there before a create
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)  # sessions as a store grows
    batch: int = 1_000  # calls of each kind, and sessions that time out, at each of these sizes
    listed: int = 100_000  # sessions beside which the loop must go on
    singles: int = 300  # creates, or ends, of a run at one task
    many: int = 1_500  # of a run at many tasks
    payloads: tuple[int, ...] = (100, 10_000, 100_000)  # bytes
    processes: tuple[int, ...] = (1, 4)
    writers: int = 8  # processes


FULL = Plan()
QUICK = Plan(
    rounds=2,
    long_rounds=1,
    busy_rounds=1,
    writer_rounds=1,
    length=0.02,
    window=0.3,
    tasks=(1, 100),
    sessions=2_000,
    tables=(3_000,),
    sizes=(1_000, 10_000),
    batch=200,
    listed=10_000,
    singles=20,
    many=200,
    payloads=(10_000,),
    processes=(2,),
    writers=4,
)


@dataclass
class Bench:
    """One run of the benchmark."""

    plan: Plan
    folder: Path  # for all files
    rivals: Mapping[str, type[Rival]]  # those that can run here; sessionstore is the first
    release: Path | None = None  # where the package of another release is
    results: Results = field(default_factory=Results)
    scenario: str = ""  # the one that runs

    async def run(self, name: str, scenario: "Scenario") -> None:
        """Run one scenario."""
        self.scenario = name
        with self.guarding("all", "the scenario"):
            await scenario.run(self)

    async def alternate(
        self,
        what: str,
        runs: Mapping[str, Run],
        rounds: int,
        fewer: Mapping[str, int] | None = None,
    ) -> None:
        """Let each subject run once a round, each time beginning with another one.

        Some may have fewer rounds. The samples of a subject that fails are dropped.
        """
        subjects = list(runs)
        readings: dict[str, list[Reading]] = {subject: [] for subject in subjects}
        for number in range(rounds):
            start = number % max(1, len(subjects))
            for subject in subjects[start:] + subjects[:start]:
                if subject not in readings or number >= (fewer or {}).get(subject, rounds):
                    continue
                tell(f"{self.scenario}: {what}, round {number + 1} of {rounds}, {subject}")
                set_garbage_aside()  # so that none pays for the objects of the others
                samples = None
                with self.guarding(subject, what):
                    async with asyncio.timeout(self.plan.patience):
                        samples = await runs[subject]()
                if samples is None:
                    del readings[subject]
                else:
                    readings[subject] += samples
        for samples in readings.values():
            self.results.add(self.scenario, samples)
        tell("")

    async def compare(self, case: str, works: Mapping[str, Work], rounds: int) -> None:
        """Let subjects take turns in one kind of work, and note how fast each is."""

        async def run(subject: str, work: Work) -> list[Reading]:
            return [Reading(case, subject, Unit.RATE, await work.measure(self.plan.length))]

        runs = {subject: partial(run, subject, work) for subject, work in works.items()}
        await self.alternate(case, runs, rounds)

    @asynccontextmanager
    async def stores(
        self,
        durability: Durability,
        sessions: int,
        data: dict[str, Any] = SMALL,
        keys: Iterable[str] | None = None,
    ) -> AsyncIterator[dict[str, Store]]:
        """Open all rivals, or those named, and put so many sessions into each.

        A tenth of the sessions fits into a cache.
        """
        stores: dict[str, Store] = {}
        async with AsyncExitStack() as stack:
            for key in self.rivals if keys is None else keys:
                with self.guarding(key, "opening it"):
                    folder = stack.enter_context(self.temporary_folder())
                    rival = self.rivals[key]()
                    await rival.open(folder, durability, sessions // 10)
                    stack.push_async_callback(self._close, key, rival)
                    tell(f"{self.scenario}: {sessions:,} sessions for {key}")
                    stores[key] = Store(rival, folder, await rival.fill(sessions, data), data)
            yield stores

    async def _close(self, key: str, rival: Rival) -> None:
        with self.guarding(key, "closing it"):
            await rival.close()

    @contextmanager
    def temporary_folder(self) -> Iterator[Path]:
        """Make a folder of its own for a store, and remove it afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def guarding(self, subject: str, doing: str) -> Iterator[None]:
        """Write down what fails in the block, and go on after it."""
        try:
            yield
        except Exception as error:
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            line = f"{type(error).__name__}: {error}".split("\n")[0]
            self.results.failures.append(f"{self.scenario}, {subject}, {doing}: {line}")


class Scenario(Protocol):
    """A module that asks a question."""

    RULES: str  # for the reader of the figures

    async def run(self, bench: Bench) -> None:
        """Add the figures to the results."""


def counted(number: int, noun: str) -> str:
    """Return the number with its noun, in the plural if it is not one."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def tell(text: str) -> None:
    """Show what is going on, on a terminal: one line, in the place of the one before."""
    if sys.stderr.isatty():
        columns = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\x1b[K{text[:columns]}")
        sys.stderr.flush()
