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
from importlib.util import find_spec
from pathlib import Path

from . import report
from .aims import judge
from .bench import FULL, OURS, QUICK, RELEASE, Bench
from .rivals import CLASSES, load
from .rivals.base import Rival
from .scenarios import SCENARIOS

FAILED = 1
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Measure and report, and return the exit code."""
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
    add("--release", type=Path, metavar="PATH", help="a folder with the package of another release")
    options = parser.parse_args(arguments)
    for path in filter(None, (options.json, options.chart)):
        if not path.parent.is_dir():
            parser.error(f"{path.parent} is no folder")
    if options.chart and find_spec("matplotlib") is None:
        parser.error("matplotlib has to be installed to draw a chart")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return measure(options)
    except KeyboardInterrupt:
        sys.stderr.write("benchmarks: interrupted\n")
        return INTERRUPTED


def positive(text: str) -> int:
    """Return the number, which argparse names by this function if it is none."""
    if int(text) < 1:
        raise ValueError
    return int(text)


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
            **report.describe(bench.folder),
            "rivals": {key: f"{rival.name}: {rival.version()}" for key, rival in rivals.items()},
            "missing": missing,
            "plan": asdict(plan),
        }
        report.say(report.head(results.environment))
        for name in options.scenario or SCENARIOS:
            asyncio.run(bench.run(name, SCENARIOS[name]))
            report.say(report.scenario(results, name, SCENARIOS[name].RULES))
    aims = list(judge(results))
    report.say(["", "== aims, on this machine ==", *report.table([*map(report.aim, aims)])])
    report.say(f"FAILED: {failure}" for failure in results.failures)
    if options.json:
        document = {**results.to_json(), "aims": [aim.to_json() for aim in aims]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.chart:
        from .chart import draw

        draw(results, options.chart)
    return FAILED if results.failures else 0


def find_rivals(options: argparse.Namespace) -> tuple[dict[str, type[Rival]], dict[str, str]]:
    """Return the rivals that are asked for and can run here, and what the others need."""
    rivals: dict[str, type[Rival]] = {}
    missing: dict[str, str] = {}
    wanted = {OURS, *(options.rival or CLASSES), *([RELEASE] if options.release else [])}
    for key in CLASSES:
        if key in wanted:
            try:
                rivals[key] = load(key, options.release)
            except PackageNotFoundError as error:
                missing[key] = error.name
            except ImportError as error:
                missing[key] = error.name or str(error)
    return rivals, missing


if __name__ == "__main__":
    sys.exit(main())
