# SPDX-License-Identifier: MIT
"""The benchmark measures what it says: turns, counts, ratios, goals, its command line.

No test here asserts a speed. All scenarios run once, as small as they can be, with the rivals that
need nothing installed.
"""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks import goals, report
from benchmarks.__main__ import main
from benchmarks.bench import Bench, Scenario
from benchmarks.children import Child, ChildError
from benchmarks.measure import Figure, Reading, Results, Unit, advantages, quotients, spread
from benchmarks.plan import TINY
from benchmarks.progress import Progress
from benchmarks.rivals import RIVALS
from benchmarks.rivals.plain_sqlite import PlainSqlite
from benchmarks.scenarios import SCENARIOS
from benchmarks.work import (
    SMALL,
    Store,
    UnacknowledgedError,
    call_all,
    draw_hits,
    draw_misses,
    draw_mix,
    time_calls,
)

from ..leaks import watch

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0  # seconds until a process that should have ended counts as hung
HERE = ("sessionstore", "sqlite3", "aiosqlite")

PLAN = replace(TINY, patience=PATIENCE)


def make_bench(folder: Path, **changes: Any) -> Bench:
    """Return a bench with the rivals that need nothing installed."""
    rivals = [kind for kind in RIVALS if kind.key in HERE]
    return Bench(replace(PLAN, **changes), folder, rivals, Progress())


async def run_all(bench: Bench) -> Results:
    """Run all scenarios."""
    for scenario in SCENARIOS:
        await scenario.run(bench)
    return bench.results


@pytest.fixture(autouse=True)
def _no_secret_is_told() -> Iterator[None]:
    """Let the rivals tell: aiosqlite, used as usual, logs each statement with its values."""
    yield
    watch.take()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Return what all scenarios have measured."""
    return asyncio.run(run_all(make_bench(tmp_path_factory.mktemp("benchmark"))))


def cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
    )


# -- Arithmetic ------------------------------------------------------------------------------------


def test_spread_is_of_the_median_and_the_extremes() -> None:
    """A spread has the middle sample, or the mean of two, the least and the greatest."""
    assert spread([5, 1, 3]) == (3, 1, 5)
    assert spread([4, 1, 2, 3]) == (2.5, 1, 4)


def test_ratio_is_formed_within_a_round() -> None:
    """A ratio is the median of the rounds' ratios, and not the ratio of the medians."""
    assert quotients([10, 30, 20], [1, 10, 20]) == [10, 3, 1]
    assert spread(quotients([10, 30, 20], [1, 10, 20])).median == 3


def test_more_calls_and_less_time_are_better() -> None:
    """Twice the rate and half the time are both better by two."""
    for unit, better, worse in ((Unit.RATE, 20, 10), (Unit.SECONDS, 1, 2), (Unit.BYTES, 1, 2)):
        one, other = Figure("s", "c", "a", unit, [better]), Figure("s", "c", "b", unit, [worse])
        assert advantages(one, other) == [2]
        assert advantages(other, one) == [0.5]


def test_rate_of_nothing_breaks_no_report() -> None:
    """A rival that got nothing done is beaten infinitely, in the table and in valid JSON."""
    bench_results = made_up({("busy", "c", "sessionstore"): [2.0], ("busy", "c", "other"): [0.0]})
    assert bench_results.times_better("busy", "c", "sessionstore", "other") == [math.inf]
    assert "inf" in "\n".join(report.scenario(bench_results, scenario("busy")))
    json.dumps(bench_results.to_json(), allow_nan=False)


# -- Turns -----------------------------------------------------------------------------------------


async def test_subjects_take_turns(tmp_path: Path) -> None:
    """Each round runs every subject once, and begins with another one."""
    order = []

    def runs(subject: str) -> Any:
        async def run() -> list[Reading]:
            order.append(subject)
            return [Reading("case", subject, Unit.RATE, len(order))]

        return run

    bench = make_bench(tmp_path)
    await bench.alternate("mix", "turns", {subject: runs(subject) for subject in "abc"}, 4)
    assert "".join(order) == "abcbcacababc"
    assert [figure.samples for figure in bench.results.figures] == [
        [1, 6, 8, 10],
        [2, 4, 9, 11],
        [3, 5, 7, 12],
    ]


@pytest.mark.parametrize("failing", ["raises", "hangs"])
async def test_subject_that_fails_is_out(tmp_path: Path, failing: str) -> None:
    """A failure is written down, what the subject had measured is dropped, and the others go on."""

    async def good() -> list[Reading]:
        return [Reading("case", "good", Unit.RATE, 1)]

    async def bad() -> list[Reading]:
        if bench.results.find("mix", "case", "bad"):
            if failing == "hangs":
                await asyncio.Event().wait()
            raise ExceptionGroup("of tasks", [UnacknowledgedError("no\nand more")])
        return [Reading("case", "bad", Unit.RATE, 1)]

    bench = make_bench(tmp_path, patience=0.2)
    await bench.alternate("mix", "turns", {"bad": bad, "good": good}, 3)
    assert [(each.subject, each.samples) for each in bench.results.figures] == [("good", [1] * 3)]
    error = {"raises": "UnacknowledgedError: no", "hangs": "TimeoutError"}[failing]
    assert bench.results.failures == [("mix", "bad", "turns", error)]


@pytest.mark.parametrize("then", ["goes on", "fails"])
async def test_interrupt_stops_whoever_swallows_it(tmp_path: Path, then: str) -> None:
    """A library that takes an interrupt for an error of its own does not keep the run going."""
    begun = asyncio.Event()

    async def deaf() -> list[Reading]:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if then == "fails":
                raise RuntimeError from None
        return []

    bench = make_bench(tmp_path)
    task = asyncio.create_task(bench.alternate("mix", "turns", {"deaf": deaf}, 2))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Pipe:
    """The end of a pipe that takes questions and forgets them."""

    def write(self, _: bytes) -> None:
        """Forget it."""

    async def drain(self) -> None:
        """Have nothing to wait for."""


async def test_answer_that_nobody_waited_for_is_skipped() -> None:
    """After a question that was given up, the next one gets its own answer, or its own error."""
    answers = asyncio.StreamReader()
    child = Child(cast(asyncio.StreamWriter, Pipe()), answers)
    given_up = asyncio.create_task(child.ask("one"))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    answers.feed_data(b'[1, "one", ""]\n[2, "two", ""]\n[3, null, "broken"]\n')
    answers.feed_eof()
    assert await child.ask("two") == "two"
    with pytest.raises(ChildError, match="broken"):
        await child.ask("three")
    with pytest.raises(ChildError, match="ended"):
        await child.ask("four")


async def test_rival_that_cannot_be_opened_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails at its start is written down, and the others are opened."""

    async def refuse(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(PlainSqlite, "open", refuse)
    bench = make_bench(tmp_path)
    durability = next(iter(PlainSqlite.durabilities))
    async with bench.stores("mix", durability, SMALL, 10) as stores:
        assert set(stores) == set(HERE) - {"sqlite3", "sqlite3-one-transaction"}
    assert {failure.subject for failure in bench.results.failures} == set(HERE) - set(stores)


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
    """However many tasks share the calls, each is made once, and settled after the last."""
    made: list[str] = []

    async def call(argument: str) -> object:
        await asyncio.sleep(0)
        made.append(argument)
        return {}  # an answer that is empty says yes

    async def settle() -> None:
        made.append("settled")

    arguments = [str(number) for number in range(10)]
    await time_calls(([call] * 10, arguments), tasks, settle)
    assert sorted(made[:-1]) == arguments
    assert made[-1] == "settled"


class Recorder(PlainSqlite):
    """A rival that only notes its calls, with a cache that tells hits from misses."""

    def __init__(self, cache_size: int = 0) -> None:
        self.calls: list[tuple[str, str]] = []
        self.hits = 0
        self._cache: OrderedDict[str, None] = OrderedDict()
        self._cache_size = cache_size

    async def get(self, session_id: str) -> object:
        """Look into the cache."""
        self.calls.append(("get", session_id))
        self.hits += session_id in self._cache
        self._cache[session_id] = None
        self._cache.move_to_end(session_id)
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
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

    async def settle(self) -> None:
        """Have nothing to do."""


def store_of(rival: Recorder, sessions: int) -> Store:
    """Return the rival as a store with so many sessions."""
    return Store(rival, Path(), [str(number) for number in range(sessions)], SMALL)


async def test_misses_always_miss() -> None:
    """Runs of any length, one after the other, never find a session in the cache."""
    rival = Recorder(cache_size=10)
    draw = draw_misses(store_of(rival, 100))
    for count in (1, 7, 95, 100, 250):
        await call_all(zip(*await draw(count), strict=True))
    assert rival.hits == 0


async def test_hits_always_hit() -> None:
    """From the first timed call on, every session is in the cache."""
    rival = Recorder(cache_size=10)
    calls = await draw_hits(store_of(rival, 100), 10)(50)
    assert rival.hits == 0
    await call_all(zip(*calls, strict=True))
    assert rival.hits == 50


async def test_mix_has_its_proportions() -> None:
    """100 calls are 90 gets, 9 activities, and a creation that is ended; a few sessions lead."""
    rival = Recorder()
    draw = draw_mix(store_of(rival, 1_000))
    await call_all(zip(*await draw(3_000), strict=True))
    assert Counter(kind for kind, _ in rival.calls) == {
        "get": 2_700,
        "touch": 270,
        "create": 30,
        "end": 30,
    }
    often = Counter(id_ for kind, id_ in rival.calls if kind == "get")
    assert often["0"] > often["9"] > often["99"]
    assert often["0"] > 2_700 / 15  # Zipf: 1 / (1 + 1/2 + ... + 1/1000) = 1 / 7.5


# -- Scenarios -------------------------------------------------------------------------------------


def scenario(name: str) -> Scenario:
    """Return the scenario of a name."""
    return next(each for each in SCENARIOS if each.name == name)


def test_nothing_fails(results: Results) -> None:
    """Every scenario runs with every rival."""
    assert results.failures == []


def test_each_round_gives_a_sample(results: Results) -> None:
    """Every figure has one sample for each round, and samples are finite."""
    assert {figure.scenario for figure in results.figures} == {each.name for each in SCENARIOS}
    short = {"operations", "mix"}
    for figure in results.figures:
        rounds = PLAN.repeats if figure.scenario in short else PLAN.long_repeats
        assert len(figure.samples) == rounds, figure
        assert all(math.isfinite(sample) for sample in figure.samples), figure
        if figure.scenario != "busy" and "memory" not in figure.case:
            assert min(figure.samples) > 0, figure


CONCURRENT = {kind.key for kind in RIVALS if kind.is_concurrent} & {*HERE}
SHAREABLE = {kind.key for kind in RIVALS if kind.is_shareable} & {*HERE}


GROWTH = (
    *("file", "get miss, 1 task", "end, 5 tasks", "cleanup of 50", "log, activity, 1 task"),
    *("first page", "middle page", "statistics"),
)


@pytest.mark.parametrize(
    ("name", "case", "subjects"),
    [
        ("operations", "get hit, 20 ids", {*HERE, "a dict"}),
        ("operations", "get hit, one id", {*HERE, "a dict"}),
        *(
            ("operations", f"{kind}, {tasks}", {*HERE})
            for kind in ("get miss", "activity", "create", "update", "end")
            for tasks in ("1 task", "5 tasks")
        ),
        ("mix", "mix, 5 tasks", {*HERE}),
        ("busy", "activity, 0.2 ms slices", CONCURRENT),
        ("busy", "p99 wait, 2 ms slices", CONCURRENT),
        ("busy", "other work, 2 ms slices", {*CONCURRENT, "no clients"}),
        *(("growth", case, {"100 sessions", "300 sessions"}) for case in GROWTH),
        *(("processes", f"mix, {count}", SHAREABLE) for count in ("1 process", "2 processes")),
        *(("payload", f"update, {size} bytes", {*HERE}) for size in ("100", "1,000")),
    ],
)
def test_scenario_measures_its_subjects(
    results: Results, name: str, case: str, subjects: set[str]
) -> None:
    """A case has a figure of each subject, sessionstore's first."""
    found = [figure.subject for figure in results.cases(name)[case]]
    assert set(found) == subjects
    assert len(found) == len(subjects)
    assert "sessionstore" not in subjects or found[0] == "sessionstore"


def test_scenarios_leave_nothing_behind(tmp_path: Path) -> None:
    """Each store's folder is removed when its scenario is done."""
    bench = make_bench(tmp_path, tasks=(1,), sessions=100)
    asyncio.run(scenario("operations").run(bench))
    assert bench.results.failures == []
    assert list(tmp_path.iterdir()) == []


# -- Goals -----------------------------------------------------------------------------------------


def made_up(samples: dict[tuple[str, str, str], list[float]], unit: Unit = Unit.RATE) -> Results:
    """Return results with these samples of a scenario, a case and a subject."""
    return Results(figures=[Figure(*key, unit, values) for key, values in samples.items()])


def outcome(of: Results, what: str, target: float) -> goals.Outcome:
    """Return what the results say about one goal."""
    return next(
        each for each in goals.judge(of) if (each.goal.what, each.goal.target) == (what, target)
    )


def test_goal_for_a_rate() -> None:
    """A goal for a rate is met from its target on, by the median of the ratios."""
    for ours, is_met in (([39.0, 40.0, 90.0], True), ([39.0, 39.9, 90.0], False)):
        made = made_up(
            {
                ("operations", "activity, 100 tasks", "sessionstore"): ours,
                ("operations", "activity, 100 tasks", "aiosqlite"): [10.0, 10.0, 10.0],
            }
        )
        found = outcome(made, "activity, 100 tasks", 4)
        assert found.is_met is is_met
        assert found.of is not None
        assert found.of.low == 3.9
        other = outcome(made, "activity, 100 tasks", 50)  # against a rival that is not there
        assert (other.of, other.is_met) == (None, None)


def test_goal_for_a_bound_from_above() -> None:
    """A goal for a wait is met up to its target."""
    case = "p99 wait, 2 ms slices"
    for wait, is_met in ((0.049, True), (0.051, False)):
        made = made_up({("busy", case, "sessionstore"): [wait]}, Unit.SECONDS)
        assert outcome(made, "busy, 2 ms, p99", 0.05).is_met is is_met


def test_goal_for_what_is_lost() -> None:
    """What is lost is the share of the slices that a loop without clients does more."""
    case = "other work, 2 ms slices"
    made = made_up({("busy", case, "sessionstore"): [90], ("busy", case, "no clients"): [100]})
    found = outcome(made, "busy, 2 ms, lost", 0.15)
    assert found.of is not None
    assert found.of.median == pytest.approx(0.1)
    assert found.is_met


def test_goal_for_growth_names_the_worst() -> None:
    """Of several operations the one that has grown most decides, and the log is none."""
    small, large = goals.SMALLEST, goals.LARGEST
    made = made_up(
        {
            ("growth", "update, 1 task", small): [1.0],
            ("growth", "update, 1 task", large): [1.5],
            ("growth", "end, 1 task", small): [1.0],
            ("growth", "end, 1 task", large): [2.5],
            ("growth", "log, activity, 1 task", small): [1.0],
            ("growth", "log, activity, 1 task", large): [9.0],
        },
        Unit.SECONDS,
    )
    found = outcome(made, "growth, operations", 2)
    assert (found.of, found.note, found.is_met) == ((2.5, 2.5, 2.5), "end, 1 task", False)


def test_goals_and_scenarios_use_the_same_names(results: Results) -> None:
    """Each goal finds its samples in a run, where its rival and its sizes were in it."""
    subjects = {
        "100 sessions": goals.SMALLEST,
        "300 sessions": goals.LARGEST,
        "list of 1,000": f"list of {goals.LISTED:,}",
    }
    cases = {
        "get hit, 20 ids": [goals.HIT],
        **{
            f"{kind}, 5 tasks": [f"{kind}, 100 tasks", f"{kind}, 1,000 tasks"]
            for kind in ("get miss", "activity", "create")
        },
    }
    full = [
        replace(each, case=case, subject=subjects.get(each.subject, each.subject))
        for each in results.figures
        for case in cases.get(each.case, [each.case])
    ]
    for each in goals.judge(Results(figures=full)):
        is_here = each.goal.rival in ("", *HERE)
        if "memory" not in each.goal.what or sys.platform == "linux":
            assert (each.of is not None) == is_here, each


def test_goals_name_rivals_that_exist() -> None:
    """A goal against a rival has its key right, in what is printed, too."""
    assert {goal.rival for goal in goals.GOALS} <= {"", *(kind.key for kind in RIVALS)}
    for goal in goals.GOALS:
        assert goal.against.endswith(goal.rival)


# -- The report ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("filesystem", "is_told"), [("tmpfs", True), ("ext4", False)])
def test_files_in_memory_are_told_of(filesystem: str, is_told: bool) -> None:
    """Where a power cut leaves nothing, the report says that FULL is free."""
    lines = list(report.head({**HEAD, "filesystem": filesystem, "rivals": {}}))
    assert any("costs nothing" in line for line in lines) is is_told


def test_table_of_a_case() -> None:
    """A line has the median, the extremes, and the ratio of the first line to it."""
    made = made_up(
        {
            ("mix", "mix, 100 tasks", "sessionstore"): [1_000.0, 3_000.0, 2_000.0],
            ("mix", "mix, 100 tasks", "aiosqlite"): [500.0, 1_000.0, 1_000.0],
        }
    )
    assert list(report.scenario(made, scenario("mix")))[-3:] == [
        "mix, 100 tasks  calls/s  least to greatest   first is better by",
        "sessionstore      2,000     1,000 to 3,000",
        "aiosqlite         1,000       500 to 1,000  2.00 (2.00 to 3.00)",
    ]


def test_quantities_have_the_scale_that_fits() -> None:
    """Three digits are shown, in the scale of the unit in which they are short."""
    shown = {
        (0.0000123, Unit.SECONDS): "12.3 µs",
        (0.25, Unit.SECONDS): "250 ms",
        (4_100.0, Unit.BYTES): "4.10 kB",
        (-3.0, Unit.BYTES): "-3.00 B",
        (0.125, Unit.SHARE): "12.5 %",
        (12_345.6, Unit.RATE): "12,346",
    }
    for (value, unit), text in shown.items():
        assert "".join(report.quantity(value, unit)) == text


def test_goals_say_whether_they_are_met() -> None:
    """A line has the verdict, the figure and the bound; without samples it says so."""
    case = "p99 wait, 2 ms slices"
    made = made_up({("busy", case, "sessionstore"): [0.06]}, Unit.SECONDS)
    lines = [" ".join(line.split()) for line in report.goals(goals.judge(made))]
    assert "NOT met busy, 2 ms, p99 60.0 ms (60.0 to 60.0 ms) ≤ 50 ms" in lines
    assert "- longest loop gap not measured ≤ 20 ms" in lines


def test_results_survive_the_file(results: Results) -> None:
    """What is read back from JSON is what was written."""
    text = json.dumps(results.to_json(), allow_nan=False)
    assert Results.from_json(json.loads(text)) == results


# -- The command line ------------------------------------------------------------------------------


def test_command_writes_what_it_prints(tmp_path: Path) -> None:
    """A run ends with 0, prints tables and goals, says nothing else, and writes all samples."""
    file = tmp_path / "results.json"
    arguments = ("--tiny", "--scenario", "mix", "gap", "--rival", "aiosqlite", "--repeats", "3")
    run = cli(*arguments, "--json", str(file), "--folder", str(tmp_path))
    assert (run.returncode, run.stderr) == (0, "")
    assert "\n== mix ==\n" in run.stdout
    assert "\n== goals, on this machine ==\n" in run.stdout
    document = json.loads(file.read_text())
    assert {len(figure["samples"]) for figure in document["figures"]} == {3}
    assert set(document["environment"]["rivals"]) == {"sessionstore", "aiosqlite"}
    assert len(document["goals"]) == len(goals.GOALS)
    assert list(tmp_path.iterdir()) == [file]
    again = cli("--from", str(file))
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == run.stdout


def test_command_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """--list names every scenario and every rival."""
    assert main(["--list"]) == 0
    words = capsys.readouterr().out.split()
    assert {each.name for each in SCENARIOS} | {kind.key for kind in RIVALS} <= set(words)


def test_failure_of_a_rival_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A refused activity is printed as a failure, beside the figures of the others."""

    async def refuse(*_: object) -> bool:
        return False

    monkeypatch.setattr(PlainSqlite, "touch", refuse)
    arguments = ["--tiny", "--scenario", "mix", "--rival", "sqlite3", "aiosqlite"]
    assert main([*arguments, "--folder", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert (
        "failed: mix, sqlite3, mix, 5 tasks: UnacknowledgedError: refuse answered False" in output
    )
    assert "\naiosqlite  " in output


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--speed"], "unrecognized arguments: --speed"),
        (["--scenario", "none"], "invalid choice: 'none'"),
        (["--rival", "none"], "invalid choice: 'none'"),
        (["--repeats", "0"], "invalid positive value: '0'"),
        (["--quick", "--tiny"], "not allowed with"),
        (["--json", "/no/such/folder/file"], "/no/such/folder/file cannot be written"),
        (["--folder", "/no/such/folder"], "/no/such/folder is no folder"),
        (["--from", "/no/such/file"], "is no file that --json has written"),
        (["--from", __file__], "is no file that --json has written"),
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


def test_chart_without_matplotlib_says_so(tmp_path: Path) -> None:
    """A chart that cannot be drawn is refused before anything is measured."""
    (tmp_path / "matplotlib.py").write_text("raise ImportError\n")
    run = cli("--chart", str(tmp_path / "chart"), PYTHONPATH=str(tmp_path))
    assert run.returncode == 2
    assert "matplotlib has to be installed" in run.stderr
    assert run.stdout == ""


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_chart_of_the_same_figures_is_the_same(tmp_path: Path) -> None:
    """A chart is drawn from what was saved, in two formats, and always the same."""
    file = tmp_path / "results.json"
    environment = {
        "rivals": {"sessionstore": "sessionstore: 1", "sqlite3": "SQL, plain: 2"},
        "machine": "",
        "python": "",
    }
    samples = {("operations", f"{kind}, 100 tasks", "sqlite3"): [9.0] for kind in ("create", "end")}
    made = replace(made_up(samples), environment={**HEAD, **environment})
    file.write_text(json.dumps(made.to_json()))
    for name in ("one", "two"):
        run = cli("--from", str(file), "--chart", str(tmp_path / name))
        assert run.returncode == 0, run.stderr
    for suffix in (".svg", ".png"):
        one, two = (tmp_path / f"{name}{suffix}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


HEAD = {
    **dict.fromkeys(("machine", "python", "loop", "folder", "filesystem", "date"), ""),
    "flush": 1.0,
    "missing": {},
    "plan": {"repeats": 1, "long_repeats": 1},
}


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_nothing_behind(tmp_path: Path, ending: signal.Signals) -> None:
    """Ctrl-C ends the command with 130, one line, and without a process or a file."""
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--scenario", "processes"]
    command += ["--json", str(tmp_path / "results.json")]
    with subprocess.Popen(
        [*command, "--rival", "sqlite3", "--repeats", "100000", "--folder", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_until(lambda: len(children_of(process.pid)) == 4)  # two of each rival
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
