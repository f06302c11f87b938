# SPDX-License-Identifier: MIT
"""The figures as tables for a terminal."""

import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .aims import Outcome
from .figures import Failure, Figure, Results, Spread, Unit, advantages, spread

RULES = (
    "The runs of a case alternate, and each round begins with another one. A figure is the median"
    " over the rounds, with the least and the greatest; the ratio of the first line to another one"
    " is formed within a round, and says by how many times the first is better. Only acknowledged"
    " calls count."
)
WIDTH = 100
SCALES: dict[Unit | None, tuple[tuple[float, str], ...]] = {
    Unit.SECONDS: ((1, " s"), (1e-3, " ms"), (1e-6, " µs")),
    Unit.BYTES: ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1, " B")),
    Unit.SHARE: ((0.01, " %"),),
}


def say(lines: Iterable[str]) -> None:
    """Print the lines on standard output, at once."""
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def quantity(value: float, unit: Unit | None = None) -> str:
    """Return the number with three digits, or all before the point, in the scale that fits it."""
    scales = SCALES.get(unit, ((1, ""),))
    scale, name = next((each for each in scales if abs(value) >= each[0]), scales[-1])
    value /= scale
    digits = 0 if abs(value) >= 100 or value == 0 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}{name}"


def extent(of: Spread, unit: Unit | None) -> str:
    """Return the least and the greatest sample."""
    least, greatest = quantity(of.least, unit), quantity(of.greatest, unit)
    scale = greatest[greatest.find(" ") :] if " " in greatest else ""
    return f"{least.removesuffix(scale)} to {greatest}"


def head(environment: dict[str, Any]) -> Iterator[str]:
    """Yield where the figures come from, and whose they are."""
    yield f"{environment['machine']}; {environment['python']}; {environment['date']}"
    yield f"fsync takes {quantity(environment['fsync'], Unit.SECONDS)} (median)"
    yield ""
    yield from table([*environment["rivals"].items()])
    for key, what in environment["missing"].items():
        yield f"NOT MEASURED: {key}, which needs {what}"
    yield ""
    yield from textwrap.wrap(RULES, WIDTH)


def scenario(results: Results, name: str, rules: str) -> Iterator[str]:
    """Yield a table for each case of a scenario, with ratios to its first line."""
    yield ""
    yield f"== {name} =="
    yield from textwrap.wrap(rules, WIDTH)
    for case, figures in results.cases(name).items():
        base = next(iter(figures.values()))
        unit = "calls/s" if base.unit is Unit.RATE else ""
        yield ""
        rows = [(case, unit, "least to greatest", "first is better by")]
        rows += [row(subject, figure, base) for subject, figure in figures.items()]
        yield from table(rows)


def row(subject: str, figure: Figure, base: Figure) -> tuple[str, str, str, str]:
    """Return the line of a figure, with the ratio of the base to it."""
    of, ratios = spread(figure.samples), advantages(base, figure)
    ratio = (
        ""
        if figure is base
        else f"{quantity(spread(ratios).median)} ({extent(spread(ratios), None)})"
    )
    return subject, quantity(of.median, figure.unit), extent(of, figure.unit), ratio


def aims(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield what the library wants to reach, and whether it did on this machine."""
    yield ""
    yield "== aims, on this machine =="
    yield from table([aim(outcome) for outcome in outcomes])


def aim(outcome: Outcome) -> tuple[str, str, str, str]:
    """Return the line of an aim."""
    start, end = outcome.demand.split("|")
    demand = f"{start} {quantity(outcome.bound, outcome.unit)} {end}".rstrip()
    if outcome.of is None:
        return "-", outcome.what, "not measured", demand
    measured = f"{quantity(outcome.of.median, outcome.unit)} ({extent(outcome.of, outcome.unit)})"
    note = f" ({outcome.note})" if outcome.note else ""
    return "met" if outcome.is_met else "MISSED", outcome.what, measured, demand + note


def failures(all_: Iterable[Failure]) -> Iterator[str]:
    """Yield what could not be measured."""
    for name, subject, doing, error in all_:
        yield f"FAILED: {name}, {subject}, {doing}: {error}"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the rows with their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for each in rows:
        cells = (cell.ljust(width) for cell, width in zip(each, widths, strict=True))
        yield "  ".join(cells).rstrip()
