# SPDX-License-Identifier: MIT
"""The figures as tables for a terminal. Nothing is computed here but what measure.py offers."""

import shutil
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from sessionstore.cli.terminal import table

from .bench import Scenario
from .goals import Outcome
from .measure import Failure, Figure, Results, Spread, Unit, advantages, spread

MEMORY = ("tmpfs", "ramfs")  # file systems that a power cut leaves nothing of
RULES = (
    "The runs of a case alternate, and each round begins with another one. A figure is the median"
    " over the rounds, with the least and the greatest; the ratio of the first line to another one"
    " is formed within a round, and says by how many times the first is better. Garbage is"
    " collected before each run; in it the collector is on, for what the run itself makes."
)
WIDEST = 100  # columns of running text
SCALES: dict[Unit, tuple[tuple[float, str], ...]] = {
    Unit.SECONDS: ((1, "s"), (1e-3, "ms"), (1e-6, "µs")),
    Unit.BYTES: ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")),
    Unit.SHARE: ((0.01, "%"),),
}


def number(value: float) -> str:
    """Return the number with three digits, or all before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def short_number(value: float) -> str:
    """Return a number of few digits as a person writes it."""
    return f"{value:.3g}"


def quantity(
    value: float, unit: Unit | None = None, show: Callable[[float], str] = number
) -> tuple[str, str]:
    """Return the number in the scale of the unit that fits it, and the scale with a space."""
    scales = SCALES.get(unit) if unit else None
    if scales is None:
        return show(value), ""
    scale, name = next((each for each in scales if abs(value) >= each[0]), scales[-1])
    return show(value / scale), f" {name}"


def extent(of: Spread, unit: Unit | None) -> str:
    """Return the least and the greatest sample, with their scale once where it is the same."""
    (low, low_scale), (high, high_scale) = quantity(of.low, unit), quantity(of.high, unit)
    return f"{low}{low_scale if low_scale != high_scale else ''} to {high}{high_scale}"


def head(environment: dict[str, Any]) -> Iterable[str]:
    """Yield where the figures come from, and whose they are."""
    plan = environment["plan"]
    flush = "".join(quantity(environment["flush"], Unit.SECONDS))
    yield from table(
        [
            ("machine", environment["machine"]),
            ("Python", f"{environment['python']}, event loop: {environment['loop']}"),
            ("files", f"in {environment['folder']}, on {environment['filesystem']}"),
            ("fsync", f"{flush} (median)"),
            ("rounds", f"{plan['repeats']}, or {plan['long_repeats']} of what takes long"),
            ("date", environment["date"]),
        ]
    )
    if environment["filesystem"] in MEMORY:
        yield "The files are in memory, where synchronous=FULL costs nothing: see --folder."
    yield ""
    yield from table(environment["rivals"].items())
    for key, what in environment["missing"].items():
        yield f"{key} is not measured: it needs {what}"
    yield ""
    yield from wrapped(RULES)


def scenario(results: Results, of: Scenario) -> Iterable[str]:
    """Yield a table for each case of a scenario that was run, with ratios to its first line."""
    cases = results.cases(of.name)
    if cases:
        yield ""
        yield f"== {of.name} =="
        yield from wrapped(of.rules)
    for case, figures in cases.items():
        rates = figures[0].unit is Unit.RATE
        rows = [(case, "calls/s" if rates else "", "least to greatest", "first is better by")]
        rows += [row(figure, figures[0]) for figure in figures]
        yield ""
        yield from table(rows, {1, 2, 3})


def row(figure: Figure, base: Figure) -> tuple[str, str, str, str]:
    """Return the line of a figure, with the ratio of the base to it."""
    of = spread(figure.samples)
    ratio = spread(advantages(base, figure))
    versus = "" if figure is base else f"{number(ratio.median)} ({extent(ratio, None)})"
    middle = "".join(quantity(of.median, figure.unit))
    return figure.subject, middle, extent(of, figure.unit), versus


def goals(outcomes: Iterable[Outcome]) -> Iterable[str]:
    """Yield what the library wants to reach, and whether it did on this machine."""
    yield ""
    yield "== goals, on this machine =="
    yield from table(map(goal, outcomes), {2})


def goal(outcome: Outcome) -> tuple[str, str, str, str]:
    """Return the line of a goal."""
    aim = outcome.goal
    bound = "".join(quantity(aim.target, aim.unit, short_number))
    demand = f"{'≥' if aim.at_least else '≤'} {bound} {aim.against}"
    if outcome.of is None:
        return "-", aim.what, "not measured", demand
    measured = "".join(quantity(outcome.of.median, aim.unit))
    extremes = extent(outcome.of, aim.unit)
    note = f" ({outcome.note})" if outcome.note else ""
    verdict = "met" if outcome.is_met else "NOT met"
    return verdict, aim.what, f"{measured} ({extremes})", demand + note


def failures(all_: Iterable[Failure]) -> Iterable[str]:
    """Yield what could not be measured."""
    for name, subject, doing, error in all_:
        yield f"failed: {name}, {subject}, {doing}: {error}"


def wrapped(text: str) -> list[str]:
    """Return the text in lines that the terminal can hold."""
    return textwrap.wrap(text, min(WIDEST, shutil.get_terminal_size().columns - 1))
