# SPDX-License-Identifier: MIT
"""The command: `python -m benchmarks`, in a checkout.

Exit codes: 0; 1 where something failed; 2 for wrong usage, before anything is measured; 130 when
interrupted. What a goal says about this machine changes no exit code.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from sessionstore.cli.terminal import flush, give_up_output, say, set_up, table

from . import chart, report
from .bench import Bench, Scenario
from .environment import describe
from .goals import judge
from .measure import Results
from .options import find_loop, find_problem, load, make_parser
from .plan import Plan
from .progress import Progress
from .rivals import RIVALS
from .scenarios import SCENARIOS

FAILED = 1
INTERRUPTED = 130
OURS = RIVALS[0].key


def main(arguments: list[str] | None = None) -> int:
    """Do what was asked for, and return the exit code."""
    set_up()
    parser = make_parser()
    options = parser.parse_args(arguments)
    problem = find_problem(options)
    if problem is not None:
        parser.error(problem)
    try:
        code = list_all() if options.list else run(options)
        flush()
    except (KeyboardInterrupt, asyncio.CancelledError):
        complain("interrupted")
        return INTERRUPTED
    except OSError as error:
        give_up_output()
        if not isinstance(error, BrokenPipeError):
            complain(str(error))
        return FAILED
    return code


def complain(problem: str) -> None:
    """Print one line on standard error."""
    sys.stderr.write(f"benchmarks: {problem}\n")


def list_all() -> int:
    """Print what there is to choose from."""
    say("scenarios", *(f"  {scenario.name}" for scenario in SCENARIOS), "rivals")
    missing = {kind.key: kind().missing() for kind in RIVALS}
    say(
        *table(
            (f"  {kind.key}", kind.name, f"needs {missing[kind.key]}" if missing[kind.key] else "")
            for kind in RIVALS
        )
    )
    return 0


def run(options: argparse.Namespace) -> int:
    """Measure, or take up what was measured, and report it."""
    if options.source:
        results = load(options.source)
        say(*report.head(results.environment))
        for scenario in SCENARIOS:
            say(*report.scenario(results, scenario))
    else:
        with asyncio.Runner(loop_factory=find_loop() if options.uvloop else None) as runner:
            results = runner.run(measure(options))
    outcomes = judge(results)
    say(*report.goals(outcomes), *report.failures(results.failures))
    if options.json:
        document = {**results.to_json(), "goals": [outcome.to_json() for outcome in outcomes]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.chart:
        chart.draw(results, options.chart)
    return FAILED if results.failures else 0


async def measure(options: argparse.Namespace) -> Results:
    """Run the scenarios, and print the figures of each when it is done."""
    if (task := asyncio.current_task()) is not None:
        for ending in (signal.SIGTERM, signal.SIGHUP):  # as when the terminal's window is closed
            asyncio.get_running_loop().add_signal_handler(ending, task.cancel)
    plan: Plan = options.plan
    if options.repeats:
        plan = replace(plan, repeats=options.repeats, long_repeats=options.repeats)
    wanted = [kind for kind in RIVALS if kind.key in (OURS, *(options.rival or [kind.key]))]
    missing = {kind.key: what for kind in wanted if (what := kind().missing())}
    rivals = [kind for kind in wanted if kind.key not in missing]
    with tempfile.TemporaryDirectory(
        prefix="sessionstore-", dir=options.folder, ignore_cleanup_errors=True
    ) as folder:
        bench = Bench(plan, Path(folder), rivals, Progress())
        bench.results.environment = {
            **describe(Path(folder), rivals),
            "missing": missing,
            "plan": asdict(plan),
        }
        say(*report.head(bench.results.environment))
        chosen = [each for each in SCENARIOS if each.name in (options.scenario or [each.name])]
        for number, scenario in enumerate(chosen, 1):
            bench.progress.stage = f"{scenario.name} ({number} of {len(chosen)})"
            await run_scenario(bench, scenario)
    return bench.results


async def run_scenario(bench: Bench, scenario: Scenario) -> None:
    """Run one scenario, and print its figures."""
    flush()
    try:
        with bench.guarding(scenario.name, "all", "the scenario"):
            await scenario.run(bench)
    finally:
        bench.progress.clear()
    say(*report.scenario(bench.results, scenario))


if __name__ == "__main__":
    sys.exit(main())
