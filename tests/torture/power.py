# SPDX-License-Identifier: MIT
"""A store on a watched disk, power cuts in the middle of its life, and what must be left then.

The store lives in a process of its own. It says what it does in a file on the same disk, so that
one record has, in one order, the calls to the disk, the commits with a digest of all sessions, and
what was acknowledged to whom. After a cut at any point of the record the sessions must be as some
commit left them, and no commit may be missing that was acknowledged and is durable by our promise.

What a commit did is what the store tells its listener: the digest is of the records that add up
from that, and is compared with the rows of the file. So it is checked, too, that nothing is told
that was not done, and nothing done that was not told.
"""

import asyncio
import hashlib
import json
import logging
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sessionstore import SessionManager
from sessionstore.session import Record as SessionRecord
from sessionstore.sqlite import SQLiteStore, queries, rows, schema
from sessionstore.sqlite import connection as connecting
from sessionstore.store import Commit, Listener

from ..conftest import FakeClock
from .disk import Disk, Fate, Kind, Record, environment, read_log, run

MARKS = "marks"
DATABASE = Path("new", "folder", "sessions.db")
EMPTY = "empty"  # the digest of no sessions
AHEAD = 3  # commits that may be in the file before the event loop has heard of them
DURABLE = {"active", "ended", "error", "erased"}  # what a session may become, but for timed out

SELECT_ALL = """
SELECT id, child_id, status, started_at, ended_at, last_activity, data, metadata, interaction_count
  FROM sessions
"""


@dataclass
class Life:
    """What the process does."""

    seed: int
    lives: int = 4  # from open to close
    tasks: int = 5
    sessions: int = 5  # of each task and life
    checkpoint_pages: int = 40
    quiet: float = 0.0  # seconds of each life with nothing but activity; 0 for short times of it
    broken: str = ""  # what to break on purpose: see BREAKS


# -- In the process that is watched ----------------------------------------------------------------


class Marks:
    """The file in which the process says what it does."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._descriptor = os.open(folder / MARKS, flags, 0o600)

    def say(self, what: str, **fields: object) -> None:
        """Add a line."""
        os.write(self._descriptor, f"{json.dumps({'what': what, **fields})}\n".encode())


def digest(records: Iterable[SessionRecord]) -> str:
    """Return a short text for sessions, whatever their order and the layout of their JSON."""
    plain = sorted(
        [*record[:6], json.loads(record.data), json.loads(record.metadata), *record[8:]]
        for record in records
    )
    return hashlib.blake2b(repr(plain).encode(), digest_size=8).hexdigest() if plain else EMPTY


def digest_of_file(connection: sqlite3.Connection) -> str:
    """Return the same for the sessions of a file."""
    return digest(map(rows.from_row, connection.execute(SELECT_ALL)))


class Telling:
    """A listener that says what was committed before it passes that on.

    `records` are the sessions as all commits so far have left them.
    """

    def __init__(self, listener: Listener, records: dict[str, SessionRecord], marks: Marks) -> None:
        self._listener = listener
        self._records = records
        self._marks = marks

    def on_commit(self, commit: Commit) -> None:
        """Add a commit to what is there, and say what has become of which session."""
        records = self._records
        for id_, touch in commit.touched.items():
            before = records[id_]
            records[id_] = before._replace(
                last_activity=max(before.last_activity, touch.at),
                interaction_count=before.interaction_count + touch.times,
            )
        records.update((record.id, record) for record in commit.written)
        for id_ in commit.erased:
            records.pop(id_, None)  # it may have come in the same commit
        became = dict.fromkeys(commit.touched, "touched")
        became |= {record.id: record.status for record in commit.written}
        became |= dict.fromkeys(commit.erased, "erased")
        self._marks.say("commit", digest=digest(records.values()), became=became)
        self._listener.on_commit(commit)

    def forget(self) -> None:
        """Pass it on."""
        self._listener.forget()


class TellingStore(SQLiteStore):
    """A store that says what it commits."""

    def __init__(self, path: Path, records: dict[str, SessionRecord], marks: Marks) -> None:
        super().__init__(path)
        self._told = records, marks

    async def open(self, listener: Listener, now: int) -> None:
        """Listen, too."""
        await super().open(Telling(listener, *self._told), now)


def break_synchronous(how: str) -> None:
    """Commit everything with another setting than the promised ones."""
    queries.SET_SYNCHRONOUS_NORMAL = f"PRAGMA synchronous = {how}"
    queries.SET_SYNCHRONOUS_FULL = f"PRAGMA synchronous = {how}"


def break_upgrades() -> None:
    """Make and upgrade a file without a sync."""
    migrate = schema.migrate

    def migrate_unsafely(connection: sqlite3.Connection, path: str, now: int) -> None:
        connection.execute("PRAGMA synchronous = OFF")
        migrate(connection, path, now)

    schema.migrate = migrate_unsafely


def break_folders() -> None:
    """Make folders that no sync has made certain."""
    connecting._make_folder = partial(os.makedirs, exist_ok=True)


BREAKS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "synchronous=OFF": partial(break_synchronous, "OFF"),
    "synchronous=NORMAL": partial(break_synchronous, "NORMAL"),
    "no sync of folders": break_folders,
    "no sync of upgrades": break_upgrades,
}


class Play:
    """Tasks that lead sessions through their life, and say what was acknowledged."""

    def __init__(self, life: Life, folder: Path) -> None:
        self._life = life
        self._path = folder / DATABASE
        self._marks = Marks(folder)
        self._random = random.Random(life.seed)
        self._clock = FakeClock()
        self._is_quiet = life.quiet > 0  # nothing but activity
        self._records: dict[str, SessionRecord] = {}

    async def run(self) -> None:
        """Open, live and close, several times."""
        for _ in range(self._life.lives):
            async with (
                SessionManager(
                    TellingStore(self._path, self._records, self._marks),
                    clock=self._clock,
                    sweep_interval=None,
                    cache_size=20,
                ) as sessions,
                asyncio.TaskGroup() as group,
            ):
                workers = [
                    group.create_task(self._work(sessions, f"child {number}"))
                    for number in range(self._life.tasks)
                ]
                group.create_task(self._keep_house(sessions, workers))

    async def _work(self, sessions: SessionManager, child: str) -> None:
        for number in range(self._life.sessions):
            id_ = await sessions.create_session(
                child, {"text": "x" * self._random.randrange(3_000)}
            )
            self._acknowledge(id_, "active")
            for step in range(self._random.randrange(20)):
                await self._touch(sessions, id_)
                if step % 5 == 4 and not self._is_quiet:
                    changes = {"number": number, "step": step}
                    update = sessions.update_session(id_, changes, remove=["text"])
                    await self._tell(id_, "active", update)
            while self._is_quiet:
                await self._touch(sessions, id_)
            fate = self._random.random()
            if fate < 0.4:
                await self._tell(id_, "ended", sessions.end_session(id_, "logout"))
            elif fate < 0.6:
                await self._tell(id_, "erased", sessions.delete_session(id_))

    async def _keep_house(
        self, sessions: SessionManager, workers: "list[asyncio.Task[None]]"
    ) -> None:
        """Time out and purge, and stop all but activity now and then."""
        while not all(worker.done() for worker in workers):
            self._clock.turn(240)
            await asyncio.sleep(0.004)
            if await sessions.cleanup_inactive_sessions():
                self._acknowledge("", "timeout")
            self._is_quiet = True
            await asyncio.sleep(self._life.quiet or self._random.choice((0, 0.005, 0.02)))
            self._is_quiet = False
            if self._random.random() < 0.3 and await sessions.purge_ended_sessions(1_800):
                self._acknowledge("", "erased")

    async def _touch(self, sessions: SessionManager, id_: str) -> None:
        await self._tell(id_, "touched", sessions.update_activity(id_))

    async def _tell(self, id_: str, became: str, call: Coroutine[Any, Any, bool]) -> None:
        if await call:
            self._acknowledge(id_, became)

    def _acknowledge(self, id_: str, became: str) -> None:
        """Say what has become of a session, or of some sessions, by a call that has returned."""
        self._marks.say("acknowledged", id=id_, became=became)


# -- What must be left -----------------------------------------------------------------------------


@dataclass
class Lost:
    """What was lost of the activity that had been acknowledged before a cut."""

    commits: int
    calls: int
    seconds: float  # from the acknowledgement of the first one that is lost to the cut


@dataclass
class Report:
    """What a run, and the cuts in it, came to."""

    cuts: int = 0
    commits: int = 0
    calls: int = 0  # to the disk
    acknowledged: int = 0
    corrupt: int = 0
    no_prefix: int = 0
    lost_durable: int = 0  # cuts after which some acknowledged commit was missing
    activity: list[Lost] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lost = sorted(self.activity, key=lambda lost: lost.seconds)
        some = sum(bool(each.calls) for each in lost)
        most = max((each.calls for each in lost), default=0)
        longest = lost[-1].seconds * 1_000 if lost else 0
        return (
            f"{self.cuts} cuts in {self.calls} calls to the disk, {self.commits} commits and "
            f"{self.acknowledged} acknowledgements: {self.corrupt} corrupt, {self.no_prefix} no "
            f"prefix, {self.lost_durable} lost what is durable; {some} lost activity, "
            f"at most {self.lost_commits} commits, {most} calls and {longest:.1f} ms of it"
        )

    @property
    def lost_commits(self) -> int:
        """How many commits were lost, at most."""
        return max((each.commits for each in self.activity), default=0)


class Witness:
    """Knows, at each point of the record, what was committed and acknowledged."""

    def __init__(self, lines: Sequence[dict[str, Any]]) -> None:
        """Take all lines that the process said, for the digests."""
        commits = [line["digest"] for line in lines if line["what"] == "commit"]
        self.numbers: dict[str, list[int]] = {}
        for number, found in enumerate([EMPTY, *commits]):
            self.numbers.setdefault(found, []).append(number)
        self.commits = len(commits)
        self.committed = 0
        self.acknowledged = 0
        # The last commit in which a session, or "" for some session, became something.
        self._number_of: dict[tuple[str, str], int] = {}
        self.durable = 0  # the last commit of which a durable acknowledgement was given
        self.activity: list[tuple[int, int]] = []  # the commit and the time of each that is not

    def hear(self, line: dict[str, Any], time: int) -> None:
        """Take the next line."""
        if line["what"] == "commit":
            self.committed += 1
            for id_, became in line["became"].items():
                self._number_of[id_, became] = self._number_of["", became] = self.committed
            return
        self.acknowledged += 1
        number = self._commit_of(line["id"], line["became"])
        if line["became"] in DURABLE:
            self.durable = max(self.durable, number)
        else:
            self.activity.append((number, time))

    def _commit_of(self, id_: str, became: str) -> int:
        if became == "touched":  # or updated in the same commit
            found = [self._number_of.get((id_, each)) for each in ("touched", "active")]
            return max(number for number in found if number is not None)
        return self._number_of[id_, became]

    def lost_activity(self, recovered: int, now: int) -> Lost:
        """Say what the commits after the recovered one had acknowledged."""
        times = []
        for number, time in reversed(self.activity):
            if number <= recovered:
                break
            times.append(time)
        commits = max(0, self.committed - recovered)
        return Lost(commits, len(times), (now - min(times)) / 1e9 if times else 0.0)


def recover(path: Path) -> tuple[str, str]:
    """Open what is left as any program would; return its digest, and what is wrong with it."""
    if not path.exists():
        return EMPTY, ""
    try:
        with closing(sqlite3.connect(path)) as connection:
            problems = connection.execute("PRAGMA integrity_check").fetchall()
            if problems != [("ok",)]:
                return EMPTY, f"integrity_check: {problems[:3]}"
            if not connection.execute(queries.SELECT_TABLES).fetchall():
                return EMPTY, ""
            return digest_of_file(connection), ""
    except sqlite3.Error as error:
        return EMPTY, f"{type(error).__name__}: {error}"


async def go_on(path: Path) -> None:
    """Use what is left: the store must open it and keep what it is given."""
    async with SessionManager(path, sweep_interval=None) as sessions:
        id_ = await sessions.create_session("ada")
        assert await sessions.update_activity(id_)
        assert await sessions.end_session(id_)


def live(library: Path, folder: Path, life: Life, *, upgrade: bool = False) -> list[Record]:
    """Run a process on the disk in the folder, and return the record of it."""
    (folder / "disk").mkdir(exist_ok=True)
    command = "upgrade" if upgrade else "live"
    with tempfile.TemporaryDirectory() as logs:
        log = Path(logs, "disk.log")
        watched = environment(library, folder / "disk", log)
        run(__name__, command, str(folder / "disk"), json.dumps(asdict(life)), watched_by=watched)
        return list(read_log(log))


def replay(disk: Disk, records: Iterable[Record]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Apply the record call by call; yield its time each time, and what the process said by it."""
    for record in records:
        disk.apply(record)
        said = record.kind is Kind.WRITE and disk.name_of(record) == MARKS
        yield record.time, json.loads(record.content) if said else None


def choose_points(rng: random.Random, records: Sequence[Record], cuts: int) -> Counter[int]:
    """Choose at which calls the power is cut, and how often at each."""
    return Counter(rng.randrange(len(records)) for _ in range(cuts))


def cut(
    folder: Path,
    records: Sequence[Record],
    cuts: int,
    seed: int,
    *,
    worst: bool = False,
    tamper: str = "",
) -> Report:
    """Cut the power at that many points of the record, and look at what is left each time.

    In the worst case all goes that was not synced. A statement may tamper with what is left.
    """
    rng = random.Random(seed)
    points = choose_points(rng, records, cuts)
    lines = [line for _, line in replay(Disk(folder / "disk"), records) if line]
    witness = Witness(lines)
    report = Report(calls=len(records), commits=witness.commits)
    disk, left = Disk(folder / "disk"), folder / "left"
    for position, (now, line) in enumerate(replay(disk, records)):
        if line:
            witness.hear(line, now)
        for _ in range(points[position]):
            disk.cut(Fate(rng, worst=worst), left)
            if tamper and (left / DATABASE).exists():
                _tamper(left / DATABASE, tamper)
            _look(left / DATABASE, witness, now, report)
            shutil.rmtree(left)
    report.acknowledged = witness.acknowledged
    return report


def _tamper(path: Path, statement: str) -> None:
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def _look(path: Path, witness: Witness, now: int, report: Report) -> None:
    found, problem = recover(path)
    latest = witness.committed + AHEAD
    number = max((n for n in witness.numbers.get(found, []) if n <= latest), default=None)
    report.cuts += 1
    if problem:
        report.corrupt += 1
    elif number is None:
        report.no_prefix += 1
        problem = "the table is as no commit left it"
    elif number < witness.durable:
        report.lost_durable += 1
        problem = f"commit {witness.durable} was acknowledged, {number} is the last one there"
    else:
        report.activity.append(witness.lost_activity(number, now))
        if report.cuts % 20 == 0:
            asyncio.run(go_on(path))
            problem = recover(path)[1]
    if problem:
        report.violations.append(f"cut {report.cuts}, after commit {witness.committed}: {problem}")


# -- Upgrades --------------------------------------------------------------------------------------

OLD = Path("sessions.db")
NEW = SessionRecord(
    id="00000000-0000-4000-8000-00000000abcd",
    child_id="after the upgrade",
    status="active",
    started_at=0,
    ended_at=None,
    last_activity=0,
    data="{}",
    metadata="{}",
    interaction_count=0,
    end_reason=None,
)


async def upgrade(path: Path, say: Callable[[str], object] | None) -> None:
    """Open a file from before this release and, if there is whom to tell, add a session."""
    store = SQLiteStore(path)
    async with SessionManager(store, clock=FakeClock(), sweep_interval=None):
        if say is not None:
            say("opened")
            await store.create(NEW)
            say("created")


def main() -> None:
    """Be the process that is watched."""
    command, folder, life = sys.argv[1], Path(sys.argv[2]), Life(**json.loads(sys.argv[3]))
    BREAKS[life.broken]()
    queries.SET_WAL_AUTOCHECKPOINT = f"PRAGMA wal_autocheckpoint = {life.checkpoint_pages}"
    if command == "upgrade":
        logging.disable(logging.WARNING)  # of an adoption
        asyncio.run(upgrade(folder / OLD, Marks(folder).say))
    else:
        asyncio.run(Play(life, folder).run())


if __name__ == "__main__":
    main()
