# SPDX-License-Identifier: MIT
"""The command: `python -m benchmarks`, in a checkout.

Exit codes: 0; 1 if something failed; 2 for wrong usage, before anything is measured; 130 when
interrupted. Whether an aim is met on this machine changes no exit code.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from . import chart, report
from .aims import judge
from .bench import FULL, OURS, QUICK, RELEASE, Bench
from .environment import describe
from .rivals import CLASSES, load
from .rivals.base import Rival
from .scenarios import SCENARIOS

FAILED = 1
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Measure and report, and return the exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    problem = find_problem(options)
    if problem is not None:
        parser.error(problem)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return measure(options)
    except KeyboardInterrupt:
        sys.stderr.write("benchmarks: interrupted\n")
        return INTERRUPTED


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure sessionstore side by side with the rivals that are installed here.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="show each scenario; the figures are rough")
    add("--scenario", nargs="+", metavar="NAME", choices=SCENARIOS, help=", ".join(SCENARIOS))
    add("--rival", nargs="+", metavar="NAME", choices=CLASSES, help=", ".join(CLASSES))
    add("--repeats", type=positive, metavar="N", help="rounds of each case")
    add("--json", type=Path, metavar="PATH", help="write all samples")
    add("--chart", type=Path, metavar="PREFIX", help="draw PREFIX.svg and PREFIX.png (matplotlib)")
    add(
        "--release", type=Path, metavar="PATH",
        help="compare with another release: a folder with its package, under a name of its own",
    )  # fmt: skip
    return parser


def positive(text: str) -> int:
    """Return the number, which argparse names by this function if it is none."""
    count = int(text)
    if count < 1:
        raise ValueError
    return count


def find_problem(options: argparse.Namespace) -> str | None:
    """Return what would make the run useless in the end, or None."""
    files = [options.json] if options.json else []
    if options.chart:
        files += chart.paths(options.chart)
        if missing := chart.find_missing():
            return missing
    for file in files:
        if not file.parent.is_dir() or file.is_dir():
            return f"{file} cannot be written"
    if options.release:
        try:
            load(RELEASE, options.release)
        except ImportError as error:
            return f"{options.release} cannot be imported: {error}"
    return None


def find_rivals(options: argparse.Namespace) -> tuple[dict[str, type[Rival]], dict[str, str]]:
    """Return the rivals that are asked for and can run here, and what the others need."""
    rivals: dict[str, type[Rival]] = {}
    missing: dict[str, str] = {}
    for key in CLASSES:
        if key in (OURS, *(options.rival or CLASSES)) or (key == RELEASE and options.release):
            try:
                rivals[key] = load(key, options.release)
            except PackageNotFoundError as error:
                missing[key] = error.name
            except ImportError as error:
                missing[key] = error.name or str(error)
    return rivals, missing


def measure(options: argparse.Namespace) -> int:
    """Run the scenarios, and print the figures of each when it is done, then the aims."""
    plan = QUICK if options.quick else FULL
    if options.repeats:
        rounds = ("rounds", "long_rounds", "busy_rounds", "writer_rounds")
        plan = replace(plan, **dict.fromkeys(rounds, options.repeats))
    rivals, missing = find_rivals(options)
    with tempfile.TemporaryDirectory(prefix="sessionstore-", ignore_cleanup_errors=True) as folder:
        bench = Bench(plan, Path(folder), rivals, options.release)
        results = bench.results
        results.environment = {
            **describe(Path(folder)),
            "rivals": {key: f"{rival.name}: {rival.version()}" for key, rival in rivals.items()},
            "missing": missing,
            "plan": asdict(plan),
        }
        report.say(report.head(results.environment))
        for name in options.scenario or SCENARIOS:
            asyncio.run(run_scenario(bench, name))
    outcomes = judge(results)
    report.say([*report.aims(outcomes), *report.failures(results.failures)])
    if options.json:
        document = {**results.to_json(), "aims": [outcome.to_json() for outcome in outcomes]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.chart:
        chart.draw(results, options.chart)
    return FAILED if results.failures else 0


async def run_scenario(bench: Bench, name: str) -> None:
    """Run one scenario, and print its figures."""
    bench.scenario = name
    with bench.guarding("all", "the scenario"):
        await SCENARIOS[name].run(bench)
    report.say(report.scenario(bench.results, name, SCENARIOS[name].RULES))


if __name__ == "__main__":
    sys.exit(main())
