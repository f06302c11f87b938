# SPDX-License-Identifier: MIT
"""What the scenarios share: the rivals, opened and filled; and rounds in which they take turns.

Whatever fails in one rival is written down, and the others go on.
"""

import asyncio
import gc
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .measure import Failure, Reading, Results, Unit
from .plan import Plan
from .progress import Progress
from .rivals.protocol import Durability, Rival
from .work import Store, Work

Subject = TypeVar("Subject")
Run = Callable[[], Coroutine[Any, Any, list[Reading]]]  # one subject's turn in one round


@dataclass
class Bench:
    """One run of the benchmark."""

    plan: Plan
    folder: Path  # for all files
    rivals: list[type[Rival]]  # those that can run here; sessionstore is the first
    progress: Progress
    results: Results = field(default_factory=Results)

    async def alternate(
        self, scenario: str, doing: str, runs: Mapping[str, Run], repeats: int
    ) -> None:
        """Let each subject run once a round, each time beginning with another one.

        A subject that fails is out, and its samples are dropped.
        """
        runs = dict(runs)
        cases: dict[str, set[str]] = {}
        for number in range(repeats):
            for subject in rotated(list(runs), number):
                self.progress.show(f"{doing}, round {number + 1} of {repeats}, {subject}")
                gc.unfreeze()
                gc.collect()
                gc.freeze()  # so that none pays for the objects of the others
                readings = None
                with self.guarding(scenario, subject, doing):
                    async with asyncio.timeout(self.plan.patience):
                        # A task of its own, or TaskGroup would spoil our count of cancellations.
                        readings = await asyncio.create_task(runs[subject]())
                if readings is None:
                    del runs[subject]
                    self.results.discard(scenario, subject, cases.get(subject, ()))
                    continue
                self.results.add(scenario, readings)
                cases.setdefault(subject, set()).update(reading.case for reading in readings)

    async def compare(
        self, scenario: str, case: str, works: Mapping[str, Work], repeats: int
    ) -> None:
        """Let subjects take turns in one kind of work, and note how fast each is."""

        async def run(subject: str, work: Work) -> list[Reading]:
            return [Reading(case, subject, Unit.RATE, await work.measure(self.plan.length))]

        runs = {subject: partial(run, subject, work) for subject, work in works.items()}
        await self.alternate(scenario, case, runs, repeats)

    @asynccontextmanager
    async def stores(
        self,
        scenario: str,
        durability: Durability,
        data: dict[str, Any],
        count: int,
        rivals: Iterable[type[Rival]] | None = None,
    ) -> AsyncIterator[dict[str, Store]]:
        """Open all rivals that know the durability, and put so many sessions into each.

        A tenth of the sessions fits into a cache.
        """
        stores: dict[str, Store] = {}
        async with AsyncExitStack() as stack:
            for kind in self.rivals if rivals is None else rivals:
                if durability not in kind.durabilities:
                    continue
                self.progress.show(f"putting {count:,} sessions into {kind.key}")
                with self.guarding(scenario, kind.key, "opening it"):
                    folder = stack.enter_context(self.temporary_folder())
                    rival = kind()
                    await rival.open(folder, durability, count // 10)
                    stack.push_async_callback(self._close, scenario, rival)
                    stores[kind.key] = Store(rival, folder, await rival.fill(count, data), data)
            yield stores

    async def _close(self, scenario: str, rival: Rival) -> None:
        with self.guarding(scenario, rival.key, "closing it"):
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
    def guarding(self, scenario: str, subject: str, doing: str) -> Iterator[None]:
        """Write down what fails in the block, and go on after it, unless interrupted meanwhile."""
        try:
            yield
        except Exception as error:
            self.results.failures.append(Failure(scenario, subject, doing, explain(error)))
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # a library may have swallowed it
            raise asyncio.CancelledError


class Scenario(Protocol):
    """A question, and the runs that answer it."""

    name: str
    rules: str  # for the reader of the figures

    async def run(self, bench: Bench) -> None:
        """Add the figures to the results."""


def rotated(subjects: list[Subject], number: int) -> list[Subject]:
    """Return all subjects in their order, but beginning with another one each time."""
    start = number % max(1, len(subjects))
    return subjects[start:] + subjects[:start]


def counted(count: int, one: str, many: str) -> str:
    """Return the number of things, with the word that fits it."""
    return f"{count:,} {one if count == 1 else many}"


def explain(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
