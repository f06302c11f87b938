# SPDX-License-Identifier: MIT
"""What can be typed on the command line, and what would spoil a long run at its end."""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from . import chart
from .measure import Results
from .plan import FULL, QUICK, TINY
from .rivals import RIVALS
from .scenarios import SCENARIOS


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure sessionstore side by side with the rivals that are installed here.",
    )
    edition = parser.add_mutually_exclusive_group()
    edition.set_defaults(plan=FULL)
    edition.add_argument(
        "--quick", dest="plan", action="store_const", const=QUICK,
        help="show each scenario within about a minute; the figures are rough",
    )  # fmt: skip
    edition.add_argument(
        "--tiny", dest="plan", action="store_const", const=TINY,
        help="only show that everything runs; the figures mean nothing",
    )  # fmt: skip
    parser.add_argument(
        "--scenario", nargs="+", metavar="NAME", choices=[each.name for each in SCENARIOS],
        help="run only these",
    )  # fmt: skip
    parser.add_argument(
        "--rival", nargs="+", metavar="KEY", choices=[each.key for each in RIVALS],
        help="compare only with these",
    )  # fmt: skip
    parser.add_argument("--repeats", type=positive, metavar="N", help="rounds of each case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    parser.add_argument(
        "--chart", type=Path, metavar="PREFIX", help="draw PREFIX.svg and PREFIX.png (matplotlib)"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE",
        help="measure nothing; show what --json wrote",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), metavar="FOLDER",
        help="where to put the files, on a disk (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--uvloop", action="store_true", help="use uvloop, but in child processes")
    parser.add_argument("--list", action="store_true", help="list the scenarios and the rivals")
    return parser


def positive(text: str) -> int:
    """Return the number, which argparse names by this function where it is none."""
    count = int(text)
    if count < 1:
        raise ValueError
    return count


def find_problem(options: argparse.Namespace) -> str | None:
    """Return what would make the run useless in the end, or None."""
    targets = [options.json] if options.json else []
    if options.chart:
        targets += chart.paths(options.chart)
        if chart.find_missing():
            return chart.find_missing()
    if options.uvloop and find_loop() is None:
        return "uvloop is not installed"
    if options.source:
        try:
            load(options.source)
        except (OSError, ValueError, LookupError, TypeError) as error:
            return f"{options.source} is no file that --json has written: {error}"
    if not options.folder.is_dir():
        return f"{options.folder} is no folder"
    problems = (find_obstacle(target) for target in targets)
    return next((problem for problem in problems if problem), None)


def load(source: Path) -> Results:
    """Return what a run has written."""
    return Results.from_json(json.loads(source.read_text()))


def find_obstacle(target: Path) -> str | None:
    """Return why the file cannot be written, or None. What is in it stays."""
    is_new = not target.exists()
    try:
        target.open("a").close()
    except OSError as error:
        return f"{target} cannot be written: {error.strerror}"
    if is_new:
        target.unlink()
    return None


def find_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes a loop of uvloop, if it is installed."""
    try:
        new_loop: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    except ImportError:
        return None
    return new_loop
