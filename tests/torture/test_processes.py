# SPDX-License-Identifier: MIT
"""Several processes on one file: no call sees less than what had happened when it began.

history.py has the workers and the checker. That the checker sees what it must is tested, too: by
histories made by hand, and by workers that break the protocol on purpose.
"""

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from . import history
from .history import ACTIVE, END, ENDED, GET, NEVER, TOUCH, Call, Workload

FEW, MANY = 12, 500  # hot sessions
SHARES = READ_HEAVY, WRITE_HEAVY = 0.05, 0.6  # of writes

TOUCHED_TWICE = [
    Call("a", 0, TOUCH, 10, 20),
    Call("b", 0, TOUCH, 30, 40),
    Call("a", 0, GET, 50, 60, ACTIVE, 2),
]
ENDED_ONCE = [
    Call("a", 0, END, 10, 30),
    Call("b", 0, END, 20, 40, False),
    Call("b", 0, GET, 50, 60, ENDED),
]


def assert_is_sound(report: history.Report, operations: int = 500) -> None:
    """Demand a run without violations, with enough operations to mean something."""
    print(report)
    assert report.violations == []
    assert report.integrity == "ok"
    assert report.operations.total() > operations


QUICK = [(4, FEW, READ_HEAVY), (4, FEW, WRITE_HEAVY), (2, MANY, WRITE_HEAVY)]
ALL = [(processes, hot, share) for processes in (2, 4) for hot in (FEW, MANY) for share in SHARES]


@pytest.mark.parametrize(
    "processes, hot, write_share",
    [
        *QUICK,
        *(pytest.param(*each, marks=pytest.mark.torture) for each in ALL if each not in QUICK),
    ],
)
def test_every_call_sees_what_was_done_before_it_began(
    tmp_path: Path, processes: int, hot: int, write_share: float
) -> None:
    """An end holds at once in all processes, has one winner, and no touch is lost or unseen."""
    workload = Workload(
        processes=processes,
        hot=hot,
        write_share=write_share,
        period=0.25 if hot == FEW else 0.8,
        cache_size=1_000 if hot == FEW else 200,
    )
    report = history.run(tmp_path, workload)
    assert_is_sound(report)
    if (processes, hot, write_share) == (4, FEW, READ_HEAVY):
        assert report.hit_share >= 0.6


def test_the_others_go_on_when_a_process_is_killed(tmp_path: Path) -> None:
    """SIGKILL at any moment breaks no promise, harms no file, and holds nobody up for long."""
    workload = Workload(write_share=WRITE_HEAVY, seconds=2.0)
    report = history.run(tmp_path, workload, kill_every=0.15)
    assert_is_sound(report)
    assert report.kills >= 3
    assert report.longest_gap < 1.0


@pytest.mark.torture
@pytest.mark.parametrize("write_share", [READ_HEAVY, WRITE_HEAVY], ids=["reads", "writes"])
def test_a_minute_of_kills(tmp_path: Path, write_share: float) -> None:
    """The same as above, for a minute."""
    workload = Workload(write_share=write_share, seconds=60.0)
    report = history.run(tmp_path, workload, kill_every=0.5)
    assert_is_sound(report, 2_000)
    assert report.kills >= 60
    assert report.longest_gap < 1.0


def test_eight_writers_share_the_file_fairly(tmp_path: Path) -> None:
    """None is refused, and none is starved."""
    workload = Workload(processes=8, hot=MANY, write_share=1.0, period=0.8, seconds=2.0)
    report = history.run(tmp_path, workload)
    assert_is_sound(report)
    assert report.fairness >= 0.25


async def test_managers_of_one_event_loop_are_as_coherent(tmp_path: Path, database: Path) -> None:
    """Three managers on one file in one process keep the promises of three processes."""
    workload = Workload(write_share=0.2, tasks=4)
    ids = await history.create_sessions(workload, database)
    start = time.monotonic_ns()
    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(play_in(database, workload, ids, start, tmp_path / f"{number}.log"))
    calls = history.read_logs(tmp_path)
    assert history.check(calls, history.read_rows(database, ids)) == []
    assert len(calls) > 2_000
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def play_in(
    database: Path, workload: Workload, ids: list[str], start: int, log_path: Path
) -> None:
    """Play the workload with a manager of its own."""
    with history.Log(log_path) as log:
        async with workload.open(database) as manager:
            await history.play(manager, workload, ids, start, log)


@pytest.mark.parametrize("broken", ["no check", "noted late"])
def test_the_checker_catches_a_stale_cache(tmp_path: Path, broken: str) -> None:
    """A hit without a look at the version, and one noted after the SELECT, do not go unseen."""
    report = history.run(tmp_path, Workload(seconds=1.0, broken=broken))
    assert report.violations


def test_the_checker_catches_versions_that_change_late(tmp_path: Path) -> None:
    """Slots set only after COMMIT do not go unseen, where processes are killed in between."""
    workload = Workload(
        write_share=0.03,
        seconds=2.5,
        period=1.0,
        tasks=32,
        cache_size=FEW - 1,  # what one process still has, another one reads again
        sweep_interval=5.0,  # a sweep empties the cache where another process has committed
        broken="set late",
    )
    report = history.run(tmp_path, workload, kill_every=0.15)
    assert report.violations


@pytest.mark.parametrize(
    "calls, row",
    [
        ([], ("active", 0)),
        (TOUCHED_TWICE, ("active", 2)),
        ([*TOUCHED_TWICE, Call("c", 0, TOUCH, 45, NEVER)], ("active", 2)),
        ([*TOUCHED_TWICE, Call("c", 0, TOUCH, 45, NEVER)], ("active", 3)),
        ([*TOUCHED_TWICE, Call("c", 0, GET, 15, 35, ACTIVE, 0)], ("active", 2)),
        (ENDED_ONCE, ("ended", 0)),
        ([*ENDED_ONCE, Call("c", 0, GET, 25, 70, ACTIVE)], ("ended", 0)),
        ([Call("a", 0, END, 10, NEVER), *ENDED_ONCE[1:]], ("ended", 0)),
    ],
)
def test_a_true_history_passes(calls: list[Call], row: tuple[str, int]) -> None:
    """What overlaps may be seen either way, and what is in doubt may have happened or not."""
    assert history.check(calls, [row]) == []


@pytest.mark.parametrize(
    "calls, row",
    [
        ([*ENDED_ONCE, Call("c", 0, GET, 31, 70, ACTIVE)], ("ended", 0)),
        ([*ENDED_ONCE, Call("c", 0, TOUCH, 31, 70)], ("ended", 1)),
        ([*ENDED_ONCE[1:], Call("a", 0, END, 10, NEVER), Call("c", 0, GET, 61, 62)], ("ended", 0)),
        ([*ENDED_ONCE, Call("c", 0, END, 15, 35)], ("ended", 0)),
        ([*ENDED_ONCE, Call("c", 0, GET, 1, 5, ENDED)], ("ended", 0)),
        (ENDED_ONCE, ("active", 0)),
        (ENDED_ONCE[1:], ("ended", 0)),
        ([], ("ended", 0)),
        (TOUCHED_TWICE, ("active", 1)),
        (TOUCHED_TWICE, ("active", 3)),
        ([*TOUCHED_TWICE, Call("c", 0, GET, 45, 60, ACTIVE, 1)], ("active", 2)),
        ([*TOUCHED_TWICE, Call("c", 0, GET, 15, 25, ACTIVE, 2)], ("active", 2)),
        (
            [
                Call("a", 0, TOUCH, 10, NEVER),
                Call("b", 0, GET, 20, 30, ACTIVE, 1),
                Call("c", 0, GET, 40, 50, ACTIVE, 0),
            ],
            ("active", 1),
        ),
        ([Call("a", 0, GET, 10, 20, 0)], ("active", 0)),
    ],
    ids=[
        "seen after its end",
        "touched after its end",
        "seen active after it was seen ended",
        "two winners",
        "seen ended before it was",
        "an end lost",
        "an end in doubt that nobody invoked",
        "ended by nobody",
        "a touch lost",
        "a touch too many",
        "an acknowledged touch unseen",
        "a touch seen before it was invoked",
        "a touch unseen again",
        "absent",
    ],
)
def test_a_false_history_is_caught(calls: list[Call], row: tuple[str, int]) -> None:
    """Each rule of the checker catches what breaks it."""
    assert history.check(calls, [row])
