# SPDX-License-Identifier: MIT
"""The benchmark measures what it says: turns, counts, ratios, aims, its command line.

No test here asserts a speed. All scenarios run once, as small as they can be, with the rivals that
need nothing installed.
"""

import asyncio
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.aims import Aim, judge
from benchmarks.bench import OURS, QUICK, Bench, Run
from benchmarks.children import Begin, ChildError, run_children
from benchmarks.figures import Figure, Reading, Results, Unit, quotients, spread
from benchmarks.rivals import CLASSES, load
from benchmarks.rivals.base import Durability
from benchmarks.rivals.plain_sqlite import PlainSqlite
from benchmarks.scenarios import SCENARIOS, busy, gap, processes
from benchmarks.work import (
    SMALL,
    Store,
    UnacknowledgedError,
    call_all,
    gets,
    mix,
    time_calls,
    touches,
)

from ..leaks import watch

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds until a process that should have ended counts as hung
HERE = ("sessionstore", "sqlite3", "sqlite3-one-transaction", "aiosqlite")
CONCURRENT = {"sessionstore", "aiosqlite"}

TINY = replace(
    QUICK,
    length=0.001,
    window=0.1,
    tasks=(1, 5),
    crowd=5,
    sessions=100,
    tables=(50,),
    sizes=(100, 300),
    batch=20,
    listed=500,
    singles=3,
    many=10,
    payloads=(100,),
    writers=2,
    processes=(1,),
    patience=PATIENCE,
)


def make_bench(folder: Path, **changes: Any) -> Bench:
    """Return a bench with the rivals that need nothing installed."""
    return Bench(replace(TINY, **changes), folder, {key: load(key) for key in HERE})


@pytest.fixture(autouse=True)
def _no_secret_is_told() -> Iterator[None]:
    """Let the rivals tell: aiosqlite, used as usual, logs each statement with its values."""
    yield
    watch.take()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Return what all scenarios have measured."""
    folder = tmp_path_factory.mktemp("benchmark")
    bench = make_bench(folder)
    for name, scenario in SCENARIOS.items():
        asyncio.run(bench.run(name, scenario))
    assert list(folder.iterdir()) == []
    return bench.results


# -- Arithmetic ------------------------------------------------------------------------------------


def test_spread_is_of_the_median_and_the_extremes() -> None:
    """A spread has the middle sample, or the mean of two, the least and the greatest."""
    assert spread([5, 1, 3]) == (3, 1, 5)
    assert spread([4, 1, 2, 3]) == (2.5, 1, 4)


def test_ratio_is_formed_within_a_round() -> None:
    """A ratio is the median of the rounds' ratios, and not the ratio of the medians."""
    assert quotients([10, 30, 20], [1, 10, 20]) == [10, 3, 1]
    assert quotients([10, 30], [1]) == [10]
    assert quotients([1], [0]) == [math.inf]


# -- Turns -----------------------------------------------------------------------------------------


async def test_subjects_take_turns(tmp_path: Path) -> None:
    """Each round runs every subject once, and begins with another one; some have fewer rounds."""
    order = []

    def runs(subject: str) -> Run:
        async def run() -> list[Reading]:
            order.append(subject)
            return [Reading("case", subject, Unit.RATE, len(order))]

        return run

    bench = make_bench(tmp_path)
    await bench.alternate("turns", {subject: runs(subject) for subject in "abc"}, 4, {"b": 2})
    assert "".join(order) == "abcbcacaac"
    samples = {subject: figure.samples for (_, _, subject), figure in bench.results.figures.items()}
    assert samples == {"a": [1, 6, 8, 9], "b": [2, 4], "c": [3, 5, 7, 10]}


@pytest.mark.parametrize("failing", ["raises", "hangs"])
async def test_subject_that_fails_is_out(tmp_path: Path, failing: str) -> None:
    """A failure is written down, what the subject had measured is dropped, and the others go on."""
    turns = itertools.count()

    async def good() -> list[Reading]:
        return [Reading("case", "good", Unit.RATE, 1)]

    async def bad() -> list[Reading]:
        if next(turns):
            if failing == "hangs":
                await asyncio.Event().wait()
            raise ExceptionGroup("of tasks", [UnacknowledgedError("no\nand more")])
        return [Reading("case", "bad", Unit.RATE, 1)]

    bench = make_bench(tmp_path, patience=0.2)
    bench.scenario = "mix"
    await bench.alternate("turns", {"bad": bad, "good": good}, 3)
    assert bench.results.figures == {("mix", "case", "good"): Figure(Unit.RATE, [1, 1, 1])}
    error = {"raises": "UnacknowledgedError: no", "hangs": "TimeoutError: "}[failing]
    assert bench.results.failures == [f"mix, bad, turns: {error}"]


async def test_rival_that_cannot_be_opened_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails at its start is written down, and the others are opened."""

    async def refuse(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(PlainSqlite, "open", refuse)
    bench = make_bench(tmp_path)
    async with bench.stores(Durability.NORMAL, 10) as stores:
        assert set(stores) == CONCURRENT
    assert bench.results.failures == [
        f", {key}, opening it: OSError: no" for key in ("sqlite3", "sqlite3-one-transaction")
    ]


# -- Calls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [None, False])
async def test_refused_call_is_an_error(answer: object) -> None:
    """A call that is answered with no is never counted."""

    async def call(_: str) -> object:
        return answer

    with pytest.raises(UnacknowledgedError):
        await call_all([(call, "id")])


@pytest.mark.parametrize("tasks", [1, 3, 20])
async def test_each_call_is_made_once(tasks: int) -> None:
    """However many tasks share the calls, each is made once."""
    made: list[str] = []

    async def call(argument: str) -> object:
        await asyncio.sleep(0)
        made.append(argument)
        return {}  # an answer that is empty says yes

    arguments = [str(number) for number in range(10)]
    await time_calls(zip(itertools.repeat(call), arguments), tasks)
    assert sorted(made) == arguments


class Recorder(PlainSqlite):
    """A rival that only notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    async def get(self, session_id: str) -> object:
        """Note it."""
        self.calls.append(("get", session_id))
        return self

    async def touch(self, session_id: str) -> bool:
        """Note it."""
        self.calls.append(("touch", session_id))
        return True

    async def create(self, child_id: str, data: dict[str, Any]) -> str:
        """Note it."""
        self.calls.append(("create", child_id))
        return "new"

    async def end(self, session_id: str) -> bool:
        """Note it."""
        self.calls.append(("end", session_id))
        return True


def store_of(rival: Recorder, sessions: int) -> Store:
    """Return the rival as a store with so many sessions."""
    return Store(rival, Path(), [str(number) for number in range(sessions)], SMALL)


async def test_misses_always_miss() -> None:
    """Between two gets of a session all others are got, in another order than that of the ids."""
    rival = Recorder()
    await call_all(itertools.islice(gets(store_of(rival, 100)), 300))
    ids = [id_ for _, id_ in rival.calls]
    assert all(len(set(ids[start : start + 100])) == 100 for start in range(200))
    assert ids[:100] != [str(number) for number in range(100)]


async def test_activity_is_drawn_from_all_sessions() -> None:
    """No session is left out, and no order is kept."""
    rival = Recorder()
    await call_all(itertools.islice(touches(store_of(rival, 100)), 2_000))
    counts = Counter(id_ for _, id_ in rival.calls)
    assert len(counts) == 100
    assert max(counts.values()) > min(counts.values())


async def test_mix_has_its_proportions() -> None:
    """100 calls are 90 gets, 9 activities, and a creation that is ended; a few sessions lead."""
    rival = Recorder()
    await call_all(itertools.islice(mix(store_of(rival, 1_000)), 3_000))
    assert Counter(kind for kind, _ in rival.calls) == {
        "get": 2_700,
        "touch": 270,
        "create": 30,
        "end": 30,
    }
    (_, most), *_ = Counter(id_ for kind, id_ in rival.calls if kind == "get").most_common()
    assert most > 2_700 / 15  # Zipf: 1 / (1 + 1/2 + ... + 1/1000) = 1 / 7.5


async def stumble(begin: Begin, how: str) -> str:
    """Be a child that begins, or fails."""
    if how == "raises":
        raise ValueError("broken")
    await begin()
    return how


async def test_children_answer_together_or_fail() -> None:
    """Each child's answer comes in its order; what one raises is an error here."""
    assert await run_children(stumble, [("one",), ("two",)]) == ["one", "two"]
    with pytest.raises(ChildError, match="ValueError: broken"):
        await run_children(stumble, [("one",), ("raises",)])


# -- Scenarios -------------------------------------------------------------------------------------


def test_nothing_fails(results: Results) -> None:
    """Every scenario runs with every rival, and has finite samples."""
    assert results.failures == []
    assert {scenario for scenario, _, _ in results.figures} == set(SCENARIOS)
    for key, figure in results.figures.items():
        assert figure.samples, key
        assert all(math.isfinite(sample) for sample in figure.samples), key
        if key[0] != "busy" and figure.unit is not Unit.COUNT:
            assert min(figure.samples) > 0, key


HOT = f"{processes.CREW} processes, {processes.HOT} sessions, 5 % writes"


@pytest.mark.parametrize(
    ("name", "case", "subjects"),
    [
        ("operations", "get hit", {*HERE, "a dict"}),
        *(
            ("operations", f"{kind}, {tasks}", {*HERE})
            for kind in ("get miss", "activity", "update", "end")
            for tasks in ("1 task", "5 tasks")
        ),
        *(("create", f"create, {tasks}, 50 sessions", {*HERE}) for tasks in ("1 task", "5 tasks")),
        ("mix", "mix, 5 tasks", {*HERE}),
        ("busy", "activity, 0.2 ms slices", CONCURRENT),
        ("busy", "p99 wait, 2 ms slices", CONCURRENT),
        ("busy", "other work, 2 ms slices", {*CONCURRENT, busy.ALONE}),
        *(
            ("growth", case, {"100 sessions", "300 sessions"})
            for case in ("get, 1 task", "end, 5 tasks", "first page", "statistics", "sweep of 20")
        ),
        ("processes", "mix, 1 process", {"sessionstore", "sqlite3"}),
        ("processes", f"{processes.STALE}, {HOT}", {"sessionstore"}),
        ("processes", f"{processes.FAIRNESS}, 2 writing processes", {"sessionstore"}),
        ("payload", "update, 100 bytes", {*HERE}),
    ],
)
def test_scenario_measures_its_subjects(
    results: Results, name: str, case: str, subjects: set[str]
) -> None:
    """A case has a figure of each subject, sessionstore's first."""
    found = list(results.cases(name)[case])
    assert set(found) == subjects
    assert OURS not in subjects or found[0] == OURS


# -- Aims ------------------------------------------------------------------------------------------


def made_up(unit: Unit, samples: dict[tuple[str, str, str], list[float]]) -> Results:
    """Return results with these samples of a scenario, a case and a subject."""
    return Results(figures={key: Figure(unit, values) for key, values in samples.items()})


def find(results: Results, what: str, bound: float) -> Aim:
    """Return one aim."""
    (aim,) = (aim for aim in judge(results) if (aim.what, aim.bound) == (what, bound))
    return aim


@pytest.mark.parametrize(("ours", "is_met"), [([29, 30, 90], True), ([29, 29.9, 90], False)])
def test_aim_for_a_rate(ours: list[float], is_met: bool) -> None:
    """An aim for a rate is met from its bound on, by the median of the ratios."""
    case = ("operations", "activity, 100 tasks")
    made = made_up(Unit.RATE, {(*case, OURS): ours, (*case, "aiosqlite"): [10, 10, 10]})
    assert find(made, case[1], 3).is_met is is_met
    assert find(made, case[1], 2.5).is_met is None  # against a rival that is not there


@pytest.mark.parametrize(("longest", "is_met"), [(0.049, True), (0.051, False)])
def test_aim_for_all_runs(longest: float, is_met: bool) -> None:
    """In the busy loop one long wait of ten misses the aim."""
    case = ("busy", "p99 wait, 2 ms slices", OURS)
    made = made_up(Unit.SECONDS, {case: [0.01] * 9 + [longest]})
    assert find(made, "busy, 2 ms slices, p99", 0.05).is_met is is_met


def test_aim_for_what_is_lost() -> None:
    """What is lost is the share of the slices that a loop without clients does more."""
    case = ("busy", "other work, 2 ms slices")
    made = made_up(Unit.RATE, {(*case, OURS): [90], (*case, busy.ALONE): [100]})
    aim = find(made, "busy, 2 ms slices, lost", 0.15)
    assert aim.samples == pytest.approx([0.1])
    assert aim.is_met


def test_aim_for_growth_names_the_worst() -> None:
    """Of several operations the one that has grown most decides."""
    times = {"update, 1 task": (1.0, 1.5), "end, 1 task": (1.0, 2.5), "file": (1.0, 9.0)}
    made = made_up(
        Unit.SECONDS,
        {
            ("growth", case, size): [seconds]
            for case, both in times.items()
            for size, seconds in zip(("1,000 sessions", "9,000 sessions"), both, strict=True)
        },
    )
    aim = find(made, "growth, operations: end, 1 task", 2)
    assert (aim.samples, aim.is_met) == ([2.5], False)


def test_aims_and_scenarios_use_the_same_names(results: Results) -> None:
    """Each aim finds its samples in a run, if its rival was in it."""
    names = {
        "5 tasks": ("100 tasks", "1,000 tasks"),
        "50 sessions": ("3,000 sessions", "300,000 sessions"),
        "2 writing": ("8 writing",),
    }
    full = dict(results.figures)
    for small, larger in names.items():
        for (scenario, case, subject), figure in list(full.items()):
            for name in larger if small in case else ():
                full[scenario, case.replace(small, name), subject] = figure
    for aim in judge(Results(figures=full)):
        is_here = not aim.of.startswith(("times redis", "times release"))
        assert (aim.is_met is not None) == is_here, aim
    assert full["gap", gap.CASE, gap.IDLE].samples
    assert full["gap", gap.CASE, gap.LIST].samples


# -- The report ------------------------------------------------------------------------------------


def test_table_of_a_case() -> None:
    """A line has the median, the extremes, and the ratio of the first line to it."""
    case = ("mix", "mix, 100 tasks")
    made = made_up(
        Unit.RATE, {(*case, OURS): [1_000, 3_000, 2_000], (*case, "aiosqlite"): [500, 1_000, 1_000]}
    )
    assert list(report.scenario(made, "mix", ""))[-3:] == [
        "mix, 100 tasks  calls/s  least to greatest  first is better by",
        "sessionstore    2,000    1,000 to 3,000",
        "aiosqlite       1,000    500 to 1,000       2.00 (2.00 to 3.00)",
    ]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0000123, Unit.SECONDS, "12.3 µs"),
        (0.25, Unit.SECONDS, "250 ms"),
        (4_100.0, Unit.BYTES, "4.10 kB"),
        (0.125, Unit.SHARE, "12.5 %"),
        (12_345.6, Unit.RATE, "12,346"),
        (math.inf, Unit.RATE, "inf"),
    ],
)
def test_quantities_have_the_scale_that_fits(value: float, unit: Unit, text: str) -> None:
    """Three digits are shown, in the scale of the unit in which they are short."""
    assert report.quantity(value, unit) == text


# -- The command line ------------------------------------------------------------------------------


def cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_command_writes_what_it_prints(tmp_path: Path) -> None:
    """A run ends with 0, prints tables and aims, writes all samples, and leaves no other file."""
    release = tmp_path / "sessionstore_before"
    release.symlink_to(ROOT / "sessionstore")
    file = tmp_path / "results.json"
    run = cli(
        *("--quick", "--scenario", "mix", "--rival", "aiosqlite", "--repeats", "3"),
        *("--json", str(file), "--release", str(release)),
        TMPDIR=str(tmp_path),
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "\n== mix ==\n" in run.stdout
    assert "\n== aims, on this machine ==\n" in run.stdout
    document = json.loads(file.read_text())
    assert {len(figure["samples"]) for figure in document["figures"]} == {3}
    assert {figure["subject"] for figure in document["figures"]} == {OURS, "release", "aiosqlite"}
    (aim,) = (aim for aim in document["aims"] if aim["what"] == "mix, 100 tasks")
    assert aim["met"] is not None
    assert set(tmp_path.iterdir()) == {file, release}


def test_rival_that_is_missing_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not installed is named, with what it needs; so is a release that was not given."""
    monkeypatch.setenv("PATH", "")
    assert main(["--quick", "--scenario", "mix", "--rival", "redis", "release"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("NOT MEAS")]
    assert len(lines) == 2
    assert "release, which needs --release" in lines[0]
    assert "redis" in lines[1]


def test_failure_of_a_rival_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused activity is printed as a failure, beside the figures of the others."""

    async def refuse(*_: object) -> bool:
        return False

    monkeypatch.setattr(PlainSqlite, "touch", refuse)
    assert main(["--quick", "--scenario", "mix", "--rival", "sqlite3"]) == 1
    output = capsys.readouterr().out
    assert "FAILED: mix, sqlite3, mix, 100 tasks: UnacknowledgedError: refuse answered" in output
    assert "\nsessionstore  " in output


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--speed"], "unrecognized arguments: --speed"),
        (["--scenario", "none"], "invalid choice: 'none'"),
        (["--rival", "none"], "invalid choice: 'none'"),
        (["--repeats", "0"], "invalid positive value: '0'"),
        (["--json", "/no/such/folder/file"], "/no/such/folder is no folder"),
    ],
)
def test_wrong_usage_ends_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    """What is wrong is said before anything is measured."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert problem in captured.err
    assert captured.out == ""


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_chart_of_the_same_figures_is_the_same(tmp_path: Path) -> None:
    """A chart is drawn in two formats, and always the same."""
    from benchmarks.chart import draw

    made = made_up(Unit.RATE, {("operations", "activity, 100 tasks", OURS): [9.0]})
    made.environment = {"rivals": {OURS: "", "sqlite3": ""}, "machine": "", "python": ""}
    for name in ("one", "two"):
        draw(made, tmp_path / name)
    for suffix in (".svg", ".png"):
        one, two = (tmp_path / f"{name}{suffix}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_nothing_behind(tmp_path: Path, ending: signal.Signals) -> None:
    """Ctrl-C ends the command with 130, one line, and without a process or a file."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--scenario", "processes"]
    with subprocess.Popen(
        [*command, "--rival", "sqlite3", "--repeats", "100000"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_until(lambda: len(children_of(process.pid)) == 2)
            offspring = children_of(process.pid)
            process.send_signal(ending)
            _, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert (process.returncode, errors) == (130, "benchmarks: interrupted\n")
    assert not [pid for pid in offspring if Path(f"/proc/{pid}").exists()]
    assert list(tmp_path.iterdir()) == []


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children_of(parent: int) -> list[int]:
    """Return the processes that a process has started."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(parent)],  # noqa: S607  # from where it is installed
        capture_output=True,
        text=True,
    )
    return [int(line) for line in listed.stdout.split()]


def test_every_rival_has_a_class() -> None:
    """What is named on the command line is a module and a class, sessionstore's first."""
    assert next(iter(CLASSES)) == OURS
    for path in CLASSES.values():
        assert (ROOT / "benchmarks" / "rivals" / f"{path.split('.')[0]}.py").exists()
