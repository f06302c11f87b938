# SPDX-License-Identifier: MIT
"""What sessionstore wants to reach, and what a run says about it.

An aim is held against the median of its samples, or against the worst of them if it says "always".
One that the run has no samples for is not measured.
"""

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, NamedTuple

from .bench import OURS, RELEASE
from .figures import Results, Spread, Unit, quotients, spread
from .scenarios import busy, gap, processes
from .scenarios.operations import BARE


class Outcome(NamedTuple):
    """An aim, and what was measured for it: nothing if `of` is None."""

    what: str
    demand: str
    bound: float
    unit: Unit | None  # of the bound; a ratio has none
    of: Spread | None
    is_met: bool | None
    note: str

    def to_json(self) -> dict[str, Any]:
        """Return it in words and numbers."""
        return {**self._asdict(), "of": self.of and self.of._asdict()}


def judge(results: Results) -> list[Outcome]:
    """Return what the results say about each aim."""
    return [
        *_operations(results),
        *_creates(results),
        _at_least(
            "mix, 100 tasks", 1.15, RELEASE, results.ratios("mix", "mix, 100 tasks", OURS, RELEASE)
        ),
        *_busy(results),
        *_processes(results),
        *_growth(results),
        _gap(results),
    ]


def _operations(results: Results) -> Iterable[Outcome]:
    hit = results.ratios("operations", "get hit", BARE, OURS)
    yield _at_most("get hit", 7, f"times the time of {BARE}", hit)
    for case, bound, rival in (
        ("get hit", 100, "redis"),
        ("get miss, 1 task", 1.4, "aiosqlite"),
        ("get miss, 100 tasks", 7, "aiosqlite"),
        ("activity, 1 task", 1, "aiosqlite"),
        ("activity, 100 tasks", 3, "aiosqlite"),
        ("activity, 1,000 tasks", 4, "aiosqlite"),
        ("activity, 100 tasks", 2.5, "sqlite3"),
        ("activity, 100 tasks", 0.4, "sqlite3-one-transaction"),
        ("activity, 100 tasks", 4, "redis"),
    ):
        yield _at_least(case, bound, rival, results.ratios("operations", case, OURS, rival))


def _creates(results: Results) -> Iterable[Outcome]:
    for case, bound in (
        ("create, 1 task, 3,000 sessions", 0.85),
        ("create, 100 tasks, 3,000 sessions", 1.5),
        ("create, 100 tasks, 300,000 sessions", 2),
    ):
        ratios = results.ratios("create", case, OURS, "aiosqlite")
        yield _at_least(case, bound, "aiosqlite", ratios)


def _busy(results: Results) -> Iterable[Outcome]:
    for seconds in busy.SLICES:
        case = f"{seconds * 1000:g} ms slices"
        waits = results.samples("busy", f"p99 wait, {case}", OURS)
        yield _at_most(f"busy, {case}, p99", 0.05, "always", waits, Unit.SECONDS, judged=max)
        kept = results.ratios("busy", f"other work, {case}", OURS, busy.ALONE)
        lost = [1 - share for share in kept]
        yield _at_most(
            f"busy, {case}, lost", 0.15, "of other work, always", lost, Unit.SHARE, judged=max
        )


def _processes(results: Results) -> Iterable[Outcome]:
    case = f"{processes.CREW} processes, {processes.HOT} sessions, 5 % writes"
    stale = results.samples("processes", f"{processes.STALE}, {case}", OURS)
    yield _at_most(f"{case}, stale", 0, "always", stale, Unit.COUNT, judged=max)
    hits = results.samples("processes", f"{processes.HITS}, {case}", OURS)
    yield _at_least(f"{case}, hits", 0.95, "", hits, Unit.SHARE)
    case = f"{processes.FAIRNESS}, 8 writing processes"
    fairness = results.samples("processes", case, OURS)
    yield _at_least(case, 0.75, "", fairness, Unit.SHARE)


def _growth(results: Results) -> Iterable[Outcome]:
    cases = {
        case: {subject: figure.samples for subject, figure in figures.items()}
        for case, figures in results.cases("growth").items()
    }
    sizes = list(next(iter(cases.values()), {}))
    small, large = (sizes[0], sizes[-1]) if sizes else ("fewest", "most")
    for what, words in (("operations", ("task",)), ("pages", ("page",)), ("sweeps", ("sweep",))):
        ratios = {
            case: quotients(samples[large], samples[small])
            for case, samples in cases.items()
            if any(word in case for word in words)
        }
        yield _worst(f"growth, {what}, {large}", 2, f"times that of {small}", ratios)
    statistics = cases.get("statistics", {}).get(large, [])
    count = int(large.split()[0].replace(",", "")) if sizes else 1
    each = [seconds / count for seconds in statistics]
    yield _at_most("growth, statistics", 0.5e-6, "a session", each, Unit.SECONDS)
    longest = cases.get("longest get beside statistics", {}).get(large, [])
    yield _at_most("growth, longest get beside statistics", 0.02, "", longest, Unit.SECONDS)


def _gap(results: Results) -> Outcome:
    figures = results.cases("gap").get(gap.CASE, {})
    samples = {
        name: figure.samples for name, figure in figures.items() if name not in (gap.IDLE, gap.LIST)
    }
    return _worst("loop gap", 0.02, "but in a list in one piece", samples, Unit.SECONDS)


def _worst(
    what: str, bound: float, demand: str, cases: dict[str, list[float]], unit: Unit | None = None
) -> Outcome:
    """Aim at an upper bound for the case with the greatest median, and name it."""
    name = max(cases, key=lambda case: median(cases[case]), default="")
    return _at_most(what, bound, demand, cases.get(name, []), unit)._replace(note=name)


def _at_least(
    what: str, bound: float, demand: str, samples: list[float], unit: Unit | None = None
) -> Outcome:
    times = f"times {demand}" if unit is None else demand
    of = spread(samples) if samples else None
    return Outcome(what, f"at least|{times}", bound, unit, of, of and of.median >= bound, "")


def _at_most(
    what: str,
    bound: float,
    demand: str,
    samples: list[float],
    unit: Unit | None = None,
    judged: Callable[[list[float]], float] = median,
) -> Outcome:
    of = spread(samples) if samples else None
    return Outcome(what, f"at most|{demand}", bound, unit, of, of and judged(samples) <= bound, "")
