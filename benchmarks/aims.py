# SPDX-License-Identifier: MIT
"""What sessionstore wants to reach, and what a run says about it.

An aim is held against the median of its samples, or against the worst of them if it says "always".
One that the run has no samples for is not measured.
"""

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, NamedTuple

from .bench import OURS, RELEASE
from .figures import Results, Unit, quotients, spread
from .scenarios import busy, gap, processes
from .scenarios.operations import BARE

RATES = (  # scenario, case, at least so many times the calls a second of a rival
    ("operations", "get hit", 100, "redis"),
    ("operations", "get miss, 1 task", 1.4, "aiosqlite"),
    ("operations", "get miss, 100 tasks", 7, "aiosqlite"),
    ("operations", "activity, 1 task", 1, "aiosqlite"),
    ("operations", "activity, 100 tasks", 3, "aiosqlite"),
    ("operations", "activity, 1,000 tasks", 4, "aiosqlite"),
    ("operations", "activity, 100 tasks", 2.5, "sqlite3"),
    ("operations", "activity, 100 tasks", 0.4, "sqlite3-one-transaction"),
    ("operations", "activity, 100 tasks", 4, "redis"),
    ("create", "create, 1 task, 3,000 sessions", 0.85, "aiosqlite"),
    ("create", "create, 100 tasks, 3,000 sessions", 1.5, "aiosqlite"),
    ("create", "create, 100 tasks, 300,000 sessions", 2, "aiosqlite"),
    ("mix", "mix, 100 tasks", 1.15, RELEASE),
)
HOT = f"{processes.CREW} processes, {processes.HOT} sessions, 5 % writes"
WRITERS = f"{processes.FAIRNESS}, 8 writing processes"


class Aim(NamedTuple):
    """A bound, and the samples that are held against it."""

    what: str
    samples: list[float]
    bound: float
    of: str  # what the bound is a multiple of, or other words that follow it
    unit: Unit | None = None  # of the bound; a ratio has none
    at_least: bool = False
    judged: Callable[[list[float]], float] = median

    @property
    def is_met(self) -> bool | None:
        """Whether the bound is kept; None if there are no samples."""
        if not self.samples:
            return None
        value = self.judged(self.samples)
        return value >= self.bound if self.at_least else value <= self.bound

    def to_json(self) -> dict[str, Any]:
        """Return it in words and numbers."""
        measured = spread(self.samples)._asdict() if self.samples else None
        bound = {"at_least" if self.at_least else "at_most": self.bound}
        return {"what": self.what, **bound, "of": self.of, "of_it": measured, "met": self.is_met}


def judge(results: Results) -> Iterable[Aim]:
    """Yield all aims."""
    hit = results.ratios("operations", "get hit", BARE, OURS)
    yield Aim("get hit", hit, 7, f"times as long as {BARE}")
    for scenario, case, bound, rival in RATES:
        ratios = results.ratios(scenario, case, OURS, rival)
        yield Aim(case, ratios, bound, f"times {rival}", at_least=True)
    for case in map(busy.named, busy.SLICES):
        waits = results.samples("busy", f"p99 wait, {case}", OURS)
        yield Aim(f"busy, {case}, p99", waits, 0.05, "always", Unit.SECONDS, judged=max)
        kept = results.ratios("busy", f"other work, {case}", OURS, busy.ALONE)
        lost = [1 - share for share in kept]
        yield Aim(f"busy, {case}, lost", lost, 0.15, "always", Unit.SHARE, judged=max)
    for what, bound, at_least, judged in (
        (f"{processes.STALE}, {HOT}", 0, False, max),
        (f"{processes.HITS}, {HOT}", 0.95, True, median),
        (WRITERS, 0.75, True, median),
    ):
        samples = results.samples("processes", what, OURS)
        yield Aim(what, samples, bound, "", Unit.SHARE, at_least, judged)
    yield from _growth(results)
    gaps = {name: each.samples for name, each in results.cases("gap").get(gap.CASE, {}).items()}
    for name in (gap.IDLE, gap.LIST):
        gaps.pop(name, None)
    yield _worst("loop gap", gaps, 0.02, "but in a list in one piece", Unit.SECONDS)


def _growth(results: Results) -> Iterable[Aim]:
    cases = results.cases("growth")
    sizes = list(cases.get("file", ()))
    small, large = (sizes[0], sizes[-1]) if sizes else ("", "")
    for word, what in (("task", "operations"), ("page", "a page"), ("sweep", "a sweep")):
        ratios = {
            case: quotients(figures[large].samples, figures[small].samples)
            for case, figures in cases.items()
            if word in case
        }
        yield _worst(f"growth, {what}", ratios, 2, f"times as long at {large} as at {small}")
    count = int(large.split()[0].replace(",", "")) if large else 1
    each = [seconds / count for seconds in results.samples("growth", "statistics", large)]
    yield Aim("growth, statistics", each, 0.5e-6, "a session", Unit.SECONDS)
    longest = results.samples("growth", "longest get beside statistics", large)
    yield Aim("growth, longest get beside statistics", longest, 0.02, "", Unit.SECONDS)


def _worst(
    what: str, cases: dict[str, list[float]], bound: float, of: str, unit: Unit | None = None
) -> Aim:
    """Aim at an upper bound for the case with the greatest median, and name it."""
    name = max(cases, key=lambda case: median(cases[case]), default="")
    return Aim(f"{what}: {name}" if name else what, cases.get(name, []), bound, of, unit)
