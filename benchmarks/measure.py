# SPDX-License-Identifier: MIT
"""What was measured, and the arithmetic on it: medians, spreads, ratios. Nothing is run here.

A figure has one sample for each round. A ratio is formed within a round, of samples that were taken
one after the other, and only then summed up by its median. Units are those of the SI.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any, NamedTuple, Self


class Unit(StrEnum):
    """What a sample counts."""

    RATE = "calls/s"
    SECONDS = "s"
    BYTES = "bytes"
    SHARE = "share"

    @property
    def more_is_better(self) -> bool:
        """Whether the greater of two samples is the better one."""
        return self in (Unit.RATE, Unit.SHARE)


class Spread(NamedTuple):
    """The median of some samples, the least and the greatest."""

    median: float
    low: float
    high: float


def spread(samples: Sequence[float]) -> Spread:
    """Sum up one sample or more."""
    return Spread(median(samples), min(samples), max(samples))


def quotients(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Divide round by round. Infinitely better than nothing is what everything is."""
    return [a / b if b else math.inf for a, b in zip(above, below, strict=True)]


class Reading(NamedTuple):
    """One sample: of whom, in which case, in which unit."""

    case: str
    subject: str
    unit: Unit
    value: float


@dataclass
class Figure:
    """The samples of one subject in one case, in the order of the rounds."""

    scenario: str
    case: str
    subject: str
    unit: Unit
    samples: list[float] = field(default_factory=list)


class Failure(NamedTuple):
    """What could not be measured, and why."""

    scenario: str
    subject: str
    doing: str
    error: str


@dataclass
class Results:
    """All figures of one run, in the order in which they were begun, and what failed."""

    environment: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, scenario: str, readings: Iterable[Reading]) -> None:
        """Add a sample to each reading's figure, which may be a new one."""
        for case, subject, unit, value in readings:
            figure = self.find(scenario, case, subject)
            if figure is None:
                figure = Figure(scenario, case, subject, unit)
                self.figures.append(figure)
            figure.samples.append(value)

    def find(self, scenario: str, case: str, subject: str) -> Figure | None:
        """Return the figure of the subject, if there is one."""
        for figure in self.figures:
            if (figure.scenario, figure.case, figure.subject) == (scenario, case, subject):
                return figure
        return None

    def discard(self, scenario: str, subject: str, cases: Iterable[str]) -> None:
        """Drop the figures of a subject that failed: half a comparison is none."""
        dropped = {(scenario, case, subject) for case in cases}
        self.figures = [
            figure
            for figure in self.figures
            if (figure.scenario, figure.case, figure.subject) not in dropped
        ]

    def cases(self, scenario: str) -> dict[str, list[Figure]]:
        """Return the figures of a scenario by case."""
        cases: dict[str, list[Figure]] = {}
        for figure in self.figures:
            if figure.scenario == scenario:
                cases.setdefault(figure.case, []).append(figure)
        return cases

    def times_better(self, scenario: str, case: str, one: str, other: str) -> list[float] | None:
        """Return by how many times one subject is better than the other, for each round."""
        figures = self.find(scenario, case, one), self.find(scenario, case, other)
        if figures[0] is None or figures[1] is None:
            return None
        return advantages(figures[0], figures[1])

    def to_json(self) -> dict[str, Any]:
        """Return all of it, with the sums and the ratios to the first subject of each case."""
        bases = {(each.scenario, each.case): each for each in reversed(self.figures)}
        return {
            "environment": self.environment,
            "figures": [
                {
                    **asdict(figure),
                    **spread(figure.samples)._asdict(),
                    "first_is_better_by": [
                        ratio if math.isfinite(ratio) else None
                        for ratio in advantages(bases[figure.scenario, figure.case], figure)
                    ],
                }
                for figure in self.figures
            ],
            "failures": [failure._asdict() for failure in self.failures],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Take up what a run has written."""
        figures = [
            Figure(
                each["scenario"], each["case"], each["subject"], Unit(each["unit"]), each["samples"]
            )
            for each in document["figures"]
        ]
        failures = [Failure(**each) for each in document["failures"]]
        return cls(document["environment"], figures, failures)


def advantages(one: Figure, other: Figure) -> list[float]:
    """Return by how many times one figure is better than the other, for each round."""
    if one.unit.more_is_better:
        return quotients(one.samples, other.samples)
    return quotients(other.samples, one.samples)
