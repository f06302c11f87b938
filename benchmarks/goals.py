# SPDX-License-Identifier: MIT
"""What sessionstore wants to reach, and what a run says about it.

A goal is a statement about medians of one run. One that the run has no samples for is not measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from .measure import Results, Spread, Unit, spread
from .scenarios.busy import ALONE
from .scenarios.operations import BARE
from .watcher import IDLE

OURS = "sessionstore"
LISTED = 100_000  # sessions at once, beside which the loop must go on
SMALLEST, LARGEST = "1,000 sessions", "1,000,000 sessions"

Samples = list[float] | None
Measure = Callable[[Results], tuple[Samples, str]]  # the samples, and what they are of


@dataclass(frozen=True)
class Goal:
    """A bound, and what is held against it."""

    what: str
    at_least: bool
    target: float
    against: str  # what the target is a multiple of, or nothing
    measure: Measure
    unit: Unit | None = None  # of the target; a ratio has none
    rival: str = ""  # that has to be there


@dataclass(frozen=True)
class Outcome:
    """What a run says about a goal; `of` is None where it says nothing."""

    goal: Goal
    of: Spread | None
    note: str

    @property
    def is_met(self) -> bool | None:
        """Whether the median keeps to the bound."""
        if self.of is None:
            return None
        if self.goal.at_least:
            return self.of.median >= self.goal.target
        return self.of.median <= self.goal.target

    def to_json(self) -> dict[str, Any]:
        """Return it in words and numbers."""
        return {
            "what": self.goal.what,
            "at_least" if self.goal.at_least else "at_most": self.goal.target,
            "against": self.goal.against,
            "measured": self.of and self.of._asdict(),
            "of": self.note,
            "is_met": self.is_met,
        }


def judge(results: Results) -> list[Outcome]:
    """Return what the results say about each goal."""
    outcomes = []
    for goal in GOALS:
        samples, note = goal.measure(results)
        outcomes.append(Outcome(goal, spread(samples) if samples else None, note))
    return outcomes


def better(scenario: str, case: str, one: str, other: str) -> Measure:
    """Measure by how many times one subject is better than the other."""
    return lambda results: (results.times_better(scenario, case, one, other), "")


def value(scenario: str, case: str, subject: str) -> Measure:
    """Measure what a figure says."""

    def measure(results: Results) -> tuple[Samples, str]:
        figure = results.find(scenario, case, subject)
        return figure.samples if figure else None, ""

    return measure


def lost(case: str) -> Measure:
    """Measure which share of the other work was not done."""

    def measure(results: Results) -> tuple[Samples, str]:
        ratios = results.times_better("busy", case, OURS, ALONE)
        return [1 - ratio for ratio in ratios] if ratios else None, ""

    return measure


def worst_growth(concerns: Callable[[str], bool]) -> Measure:
    """Measure by how many times as long the worst of some calls takes in the largest store."""

    def measure(results: Results) -> tuple[Samples, str]:
        cases = [case for case in results.cases("growth") if concerns(case)]
        ratios = {
            case: results.times_better("growth", case, SMALLEST, LARGEST) or [] for case in cases
        }
        return greatest({case: samples for case, samples in ratios.items() if samples})

    return measure


def longest_gap(results: Results) -> tuple[Samples, str]:
    """Measure the longest gap of all activities with very many sessions."""
    figures = results.cases("gap").get("longest gap", [])
    samples = {each.subject: each.samples for each in figures if each.subject != IDLE}
    return greatest(samples if f"list of {LISTED:,}" in samples else {})


def greatest(samples: dict[str, list[float]]) -> tuple[Samples, str]:
    """Return the samples with the greatest median, and their name."""
    if not samples:
        return None, ""
    name = max(samples, key=lambda each: median(samples[each]))
    return samples[name], name


def faster(case: str, factor: float, rival: str) -> Goal:
    """Aim at a multiple of a rival's calls a second."""
    measure = better("operations", case, OURS, rival)
    return Goal(case, True, factor, f"x {rival}", measure, rival=rival)


def busy(slices: str) -> list[Goal]:
    """Aim at short waits, and at little lost, in a loop that is kept busy."""
    wait = f"p99 wait, {slices}"
    what = f"busy, {slices.removesuffix(' slices')}"
    return [
        Goal(f"{what}, p99", False, 0.05, "", value("busy", wait, OURS), Unit.SECONDS),
        Goal(
            f"{what}, p99",
            True,
            4,
            "x below aiosqlite",
            better("busy", wait, OURS, "aiosqlite"),
            rival="aiosqlite",
        ),
        Goal(
            f"{what}, lost", False, 0.15, "of other work", lost(f"other work, {slices}"), Unit.SHARE
        ),
    ]


def grown(what: str, concerns: Callable[[str], bool]) -> Goal:
    """Aim at a time that hardly rises with the size of the store."""
    return Goal(f"growth, {what}", False, 2, "x at 1,000", worst_growth(concerns))


HIT = "get hit, 1,000 ids"

GOALS: tuple[Goal, ...] = (
    Goal(HIT, False, 4, f"x the time of {BARE}", better("operations", HIT, BARE, OURS)),
    faster(HIT, 100, "redis"),
    faster("get miss, 1 task", 1.3, "aiosqlite"),
    faster("get miss, 100 tasks", 6, "aiosqlite"),
    faster("activity, 1 task", 1, "aiosqlite"),
    faster("activity, 100 tasks", 4, "aiosqlite"),
    faster("activity, 1,000 tasks", 4.5, "aiosqlite"),
    faster("activity, 100 tasks", 10, "aiosqlite-locked"),
    faster("activity, 100 tasks", 1.5, "sqlite3"),
    faster("activity, 100 tasks", 0.4, "sqlite3-one-transaction"),
    faster("activity, 100 tasks", 50, "sqlalchemy"),
    faster("activity, 100 tasks", 4, "redis"),
    faster("create, 1 task", 1, "aiosqlite"),
    faster("create, 100 tasks", 3, "aiosqlite"),
    *busy("0.2 ms slices"),
    *busy("2 ms slices"),
    grown("operations", lambda case: "task" in case and "log" not in case),
    grown("cleanup", lambda case: case.startswith("cleanup")),
    grown("a page", lambda case: case.endswith("page")),
    Goal(
        "growth, statistics",
        False,
        0.005,
        f"at {LARGEST}",
        value("growth", "statistics", LARGEST),
        Unit.SECONDS,
    ),
    Goal("longest loop gap", False, 0.02, "", longest_gap, Unit.SECONDS),
    Goal(
        "memory, cached session",
        False,
        1_000,
        "",
        value("growth", "memory of a cached session", LARGEST),
        Unit.BYTES,
    ),
    Goal(
        "memory, iteration",
        False,
        20e6,
        "",
        value("growth", "memory of iter_active_sessions", LARGEST),
        Unit.BYTES,
    ),
)
