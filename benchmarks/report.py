# SPDX-License-Identifier: MIT
"""Where the figures come from, and the figures as tables for a terminal."""

import os
import platform
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .aims import Aim
from .figures import Figure, Results, Unit, quotients, spread

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


def describe(folder: Path) -> dict[str, Any]:
    """Return what a reader must know of the machine, and how long its disk takes to sync a page."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(20):
            file.write(bytes(4096))
            file.flush()
            begun = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begun)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "fsync": median(times),
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


def extent(samples: Sequence[float], unit: Unit | None = None) -> str:
    """Return the least and the greatest sample."""
    return f"{quantity(min(samples), unit)} to {quantity(max(samples), unit)}"


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
    yield from ("", f"== {name} ==", *textwrap.wrap(rules, WIDTH))
    for case, figures in results.cases(name).items():
        base = next(iter(figures.values()))
        unit = "calls/s" if base.unit is Unit.RATE else ""
        rows = [(case, unit, "least to greatest", "first is better by")]
        rows += [row(subject, figure, base) for subject, figure in figures.items()]
        yield ""
        yield from table(rows)


def row(subject: str, figure: Figure, base: Figure) -> tuple[str, str, str, str]:
    """Return the line of a figure, with the ratio of the base to it."""
    pair = (base.samples, figure.samples)
    ratios = quotients(*(pair if base.unit in (Unit.RATE, Unit.SHARE) else pair[::-1]))
    ratio = "" if figure is base else f"{quantity(median(ratios))} ({extent(ratios)})"
    middle = quantity(median(figure.samples), figure.unit)
    return subject, middle, extent(figure.samples, figure.unit), ratio


def aim(of: Aim) -> tuple[str, str, str, str]:
    """Return the line of an aim: whether it is met on this machine."""
    bound = f"at {'least' if of.at_least else 'most'} {quantity(of.bound, of.unit)} {of.of}"
    if of.is_met is None:
        return "-", of.what, "not measured", bound
    middle = quantity(spread(of.samples).median, of.unit)
    verdict = "met" if of.is_met else "MISSED"
    return verdict, of.what, f"{middle} ({extent(of.samples, of.unit)})", bound


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the rows with their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for each in rows:
        cells = (cell.ljust(width) for cell, width in zip(each, widths, strict=True))
        yield "  ".join(cells).rstrip()
