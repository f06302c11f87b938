# SPDX-License-Identifier: MIT
"""Samples and their sums. A figure has one sample a round, in the order of the rounds.

A ratio is formed within a round, of samples taken one shortly after the other, and only then
summed up by its median. Units are those of the SI.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any, NamedTuple


class Unit(StrEnum):
    """What a sample counts."""

    RATE = "calls/s"
    SECONDS = "s"
    BYTES = "bytes"
    SHARE = "share"
    COUNT = "count"


class Spread(NamedTuple):
    """The median of some samples, the least and the greatest."""

    median: float
    least: float
    greatest: float


class Reading(NamedTuple):
    """One sample: in which case, of whom, in which unit."""

    case: str
    subject: str
    unit: Unit
    value: float


class Figure(NamedTuple):
    """The samples of one subject in one case."""

    unit: Unit
    samples: list[float]


@dataclass
class Results:
    """All figures of a run by scenario, case and subject, in the order in which they were begun."""

    environment: dict[str, Any] = field(default_factory=dict)
    figures: dict[tuple[str, str, str], Figure] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)  # what could not be measured, and why

    def add(self, scenario: str, readings: Iterable[Reading]) -> None:
        """Add a sample to each reading's figure, which may be a new one."""
        for case, subject, unit, value in readings:
            figure = self.figures.setdefault((scenario, case, subject), Figure(unit, []))
            figure.samples.append(value)

    def cases(self, scenario: str) -> dict[str, dict[str, Figure]]:
        """Return the figures of a scenario by case and subject."""
        cases: dict[str, dict[str, Figure]] = {}
        for (name, case, subject), figure in self.figures.items():
            if name == scenario:
                cases.setdefault(case, {})[subject] = figure
        return cases

    def samples(self, scenario: str, case: str, subject: str) -> list[float]:
        """Return the samples of a figure, or none."""
        figure = self.figures.get((scenario, case, subject))
        return figure.samples if figure else []

    def ratios(self, scenario: str, case: str, above: str, below: str) -> list[float]:
        """Divide the samples of one subject by those of another one, round by round."""
        return quotients(self.samples(scenario, case, above), self.samples(scenario, case, below))

    def to_json(self) -> dict[str, Any]:
        """Return all of it."""
        figures = [
            {"scenario": scenario, "case": case, "subject": subject}
            | figure._asdict()
            | spread(figure.samples)._asdict()
            for (scenario, case, subject), figure in self.figures.items()
        ]
        return {"environment": self.environment, "figures": figures, "failures": self.failures}


def spread(samples: Sequence[float]) -> Spread:
    """Sum up one sample or more."""
    return Spread(median(samples), min(samples), max(samples))


def quotients(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Divide round by round, as far as both go. Anything is infinitely many times nothing."""
    return [a / b if b else math.inf for a, b in zip(above, below, strict=False)]
