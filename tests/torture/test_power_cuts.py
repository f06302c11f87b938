# SPDX-License-Identifier: MIT
"""What a power cut leaves: a whole file, a prefix of the commits, and all that is durable.

power.py has the process that is cut off and the checks, disk.py the disk. A failure names the seed.
"""

import asyncio
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sessionstore.sqlite.schema import MIGRATIONS
from sessionstore.sqlite.times import to_text

from ..conftest import START
from . import disk, power
from .old_files import PREDECESSORS, RELEASES, Maker, apply, copies, dump
from .power import Life

QUICK, LONG = 2, 40  # runs of the process, each with another seed
QUICK_CUTS, LONG_CUTS = 60, 500  # in a run
CONTROL_CUTS = 30
QUICK_UPGRADE_CUTS, LONG_UPGRADE_CUTS = 15, 1_000


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return disk.c, compiled."""
    return disk.build(tmp_path_factory.mktemp("disk"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder on a fast disk."""
    with disk.scratch() as path:
        yield path


def cut_off(
    library: Path, folder: Path, life: Life, cuts: int = CONTROL_CUTS, tamper: str = ""
) -> power.Report:
    """Run a process, cut it off, and return what was found."""
    folder.mkdir(exist_ok=True)
    records = power.live(library, folder, life)
    if not any(record.kind is disk.Kind.SYNC for record in records):
        pytest.skip("the SQLite of this Python does not call the C library that can be watched")
    report = power.cut(folder, records, cuts, life.seed, tamper=tamper)
    print(f"seed {life.seed}: {report}")
    return report


def assert_power_may_fail(library: Path, folder: Path, runs: int, cuts: int) -> None:
    """Demand that no cut in any of the runs breaks a promise."""
    lost = 0
    for number in range(runs):
        life = Life(random.randrange(2**32), checkpoint_pages=random.choice((10, 40, 150)))
        report = cut_off(library, folder / str(number), life, cuts)
        assert not report.violations, (life, report.violations)
        assert report.cuts == cuts
        assert report.commits > 50
        lost += sum(bool(each.calls) for each in report.activity)
        shutil.rmtree(folder / str(number))
    assert lost  # or else the cuts cut nothing off


def test_power_may_fail_at_any_moment(library: Path, folder: Path) -> None:
    """The file is whole, some commit's table is in it, and no acknowledged durable one lacks."""
    assert_power_may_fail(library, folder, QUICK, QUICK_CUTS)


@pytest.mark.torture
def test_power_may_fail_twenty_thousand_times(library: Path, folder: Path) -> None:
    """The same, 20,000 times."""
    assert_power_may_fail(library, folder, LONG, LONG_CUTS)


# -- That the check catches what it must -----------------------------------------------------------


def broken_life(broken: str = "") -> Life:
    """Return a short life in which a promise is broken."""
    return Life(random.randrange(2**32), lives=2, broken=broken)


def test_a_store_that_never_syncs_is_caught(library: Path, folder: Path) -> None:
    """With synchronous=OFF files are damaged, and acknowledged sessions are gone."""
    report = cut_off(library, folder, broken_life("synchronous=OFF"))
    assert report.corrupt
    assert report.lost_durable


def test_a_store_that_seldom_syncs_is_caught(library: Path, folder: Path) -> None:
    """With synchronous=NORMAL for all no file is damaged, but acknowledged sessions are gone."""
    report = cut_off(library, folder, broken_life("synchronous=NORMAL"))
    assert report.lost_durable
    assert not report.corrupt + report.no_prefix


def test_a_store_whose_folder_is_not_synced_is_caught(library: Path, folder: Path) -> None:
    """If the new folder itself may go, all that is in it goes."""
    report = cut_off(library, folder, broken_life("no sync of folders"))
    assert report.lost_durable
    assert not report.corrupt + report.no_prefix


def test_a_table_that_no_commit_left_is_caught(library: Path, folder: Path) -> None:
    """One row that is as it never was makes the table that of no commit."""
    changed = "UPDATE sessions SET interaction_count = 99 WHERE id = (SELECT min(id) FROM sessions)"
    report = cut_off(library, folder, broken_life(), tamper=changed)
    assert report.no_prefix > CONTROL_CUTS // 2


# -- How much activity can go ----------------------------------------------------------------------


@pytest.mark.torture
@pytest.mark.parametrize("tasks", [1, 10, 100])
def test_activity_alone_is_at_risk_until_the_next_checkpoint(
    library: Path, folder: Path, tasks: int
) -> None:
    """At worst what some thousand commits of nothing else hold is lost, and nothing durable."""
    life = Life(
        random.randrange(2**32),
        lives=1,
        tasks=tasks,
        sessions=1,
        quiet=10.0,
        checkpoint_pages=8_000,  # as the store sets it
    )
    records = power.live(library, folder, life)
    report = power.cut(folder, records, 200, life.seed, worst=True)
    print(f"seed {life.seed}: {report}")
    assert not report.violations, (life, report.violations)
    assert report.commits > 1_000
    assert report.lost_commits <= 8_000


# -- Upgrades --------------------------------------------------------------------------------------


OLD_FILES = {**RELEASES, **PREDECESSORS}
OLD_SESSIONS = 60
OLD_TIME = "2023-11-14 22:00:00.000000"


def assert_power_may_fail_in_an_upgrade(
    library: Path, folder: Path, kind: str, cuts: int, broken: str = ""
) -> None:
    """Demand that a file is as it was or wholly upgraded, wherever the power is cut."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    states = make_states(folder, OLD_FILES[kind])
    shutil.copytree(folder / "old", folder / "disk")
    records = power.live(library, folder, Life(seed, broken=broken), upgrade=True)
    points = power.choose_points(rng, records, cuts)
    points[len(records) - 1] += 1
    watched, left = disk.Disk(folder / "disk", folder / "old"), folder / "left"
    found: Counter[str] = Counter()
    said = ""
    for position, (_, line) in enumerate(power.replay(watched, records)):
        said = line["what"] if line else said
        for _ in range(points[position]):
            watched.cut(disk.Fate(rng), left)
            content = whole_dump(left / power.OLD)
            state = next((name for name, dump in states.items() if dump == content), "none")
            found[state] += 1
            assert state in (["created"] if said == "created" else states), (seed, position)
            if state != "old" and kind in PREDECESSORS:
                (copy,) = copies(left / power.OLD)
                assert whole_dump(copy) == states["old"], (seed, position)
            asyncio.run(power.go_on(left / power.OLD))
            shutil.rmtree(left)
    print(found)
    assert said == "created"
    assert found["old"]


def make_states(folder: Path, make: Maker) -> dict[str, list[str]]:
    """Return the contents of an old file: as it is, upgraded, and with a session more."""
    tell: dict[str, Callable[[str], object] | None] = {"upgraded": None, "created": str}
    (folder / "old").mkdir()
    make(folder / "old" / power.OLD, OLD_SESSIONS, OLD_TIME)
    states = {"old": dump(folder / "old" / power.OLD)}
    if make is RELEASES["0.1.0"]:  # each migration is a transaction: it may be a file of 0.4.1
        shutil.copytree(folder / "old", folder / "half way")
        with closing(sqlite3.connect(folder / "half way" / power.OLD)) as connection:
            apply(connection, MIGRATIONS[1], to_text(round(START * 1_000_000)))
        states["half way"] = dump(folder / "half way" / power.OLD)
    for state, say in tell.items():
        shutil.copytree(folder / "old", folder / state)
        asyncio.run(power.upgrade(folder / state / power.OLD, say))
        states[state] = dump(folder / state / power.OLD)
    return states


def whole_dump(path: Path) -> list[str]:
    """Return the contents of a file that must be whole."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return dump(path)


@pytest.mark.parametrize("kind", OLD_FILES)
def test_power_may_fail_in_an_upgrade(library: Path, folder: Path, kind: str) -> None:
    """The file is as it was, or upgraded; the copy of an adopted one is whole by then."""
    assert_power_may_fail_in_an_upgrade(library, folder, kind, QUICK_UPGRADE_CUTS)


@pytest.mark.torture
@pytest.mark.parametrize("kind", OLD_FILES)
def test_power_may_fail_in_an_upgrade_a_thousand_times(
    library: Path, folder: Path, kind: str
) -> None:
    """The same, a thousand times."""
    assert_power_may_fail_in_an_upgrade(library, folder, kind, LONG_UPGRADE_CUTS)


def test_an_upgrade_without_a_sync_is_caught(library: Path, folder: Path) -> None:
    """A file that is neither as it was nor upgraded does not go unseen."""
    with pytest.raises((AssertionError, sqlite3.DatabaseError)):
        assert_power_may_fail_in_an_upgrade(
            library, folder, "predecessor", QUICK_UPGRADE_CUTS, "no sync of upgrades"
        )
