# SPDX-License-Identifier: MIT
"""Lives that end by SIGKILL, and what must be in the file afterwards.

A life is a process that opens a store, writes from several tasks as fast as it can, and closes. Its
tasks write to a log what they call before they call it, and the result after the call has returned.
Each task but two has sessions of its own, so that its log tells exactly what these must be like:
they show all calls that have returned, and the one that has not either whole or not at all.

The other two: one creates sessions in batches and ends each batch by one call, and one times out
and purges old sessions, 500 in a transaction. Of what one call or chunk changes there must be all
or none.
"""

import asyncio
import itertools
import json
import logging
import os
import random
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from sessionstore import SessionManager, SessionStoreError, StoreClosedError
from sessionstore.expiry import Expiry, Moment
from sessionstore.sqlite import SQLiteStore, operations, queries, schema, store, writer
from sessionstore.sqlite.lane import Call as LaneCall
from sessionstore.sqlite.lane import Done, Lane
from sessionstore.sqlite.operations import Changes
from sessionstore.sweeper import CHUNK

OWNERS = 4  # tasks of a life that have sessions of their own
BATCH = 40  # sessions that are created at once
OLD = 2 * CHUNK + 100  # sessions that have ended long ago, and as many that are idle
IDLE, ENDED = "idle", "ended long ago"  # their owners
DAY = 86_400.0  # seconds
OPERATIONS = {"create": 3, "touch": 6, "update": 4, "end": 2, "delete": 1, "end all": 1}
MOST_IDS = 20  # that an owner has
NO_RESULT = "no result"  # of a call that had not returned

Row = tuple[str, dict[str, Any], dict[str, Any], int]  # status, data, metadata, count


@dataclass(frozen=True)
class Life:
    """What one process is to do."""

    name: str
    database: Path
    seed: int
    seconds: float = 60.0  # until it closes
    checkpoints: bool = False  # whether the log is emptied again and again
    broken: str = ""  # a key of BREAKS

    @property
    def log(self) -> Path:
        """Where it writes down what it calls."""
        return self.database.with_name(f"{self.name}.log")


class Log:
    """What the tasks of a life call and hear, a line each, written at once."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, *fields: object) -> None:
        """Write a line. Only the last one of a file can be cut off."""
        os.write(self._descriptor, json.dumps(fields).encode() + b"\n")

    @contextmanager
    def mark(self, what: str) -> Iterator[None]:
        """Write down that something lasts for the block."""
        self.write("mark", what)
        yield
        self.write("mark", "")


async def live(line: Any, life: Life) -> None:
    """Be a process of that life, and tell of its stages. It waits, at the end, to be killed."""
    with Log(life.log) as log:
        if life.broken:
            logging.disable()
            BREAKS[life.broken]()
        line.say("opening")
        engine = SQLiteStore(life.database)
        sessions = SessionManager(engine, sweep_interval=None)
        await sessions.open()
        line.say("open")
        tasks = [asyncio.create_task(task) for task in traffic(sessions, life, log)]
        if life.checkpoints:
            tasks.append(asyncio.create_task(empty_the_log(engine, log)))
        await asyncio.wait(tasks, timeout=life.seconds, return_when=asyncio.FIRST_EXCEPTION)
        line.say("closing")
        await sessions.close()
        for task in tasks:
            await task
        line.say("closed")
        line.hear()


def traffic(sessions: SessionManager, life: Life, log: Log) -> Iterator[Coroutine[Any, Any, None]]:
    """Yield what the tasks of a life do until the store closes."""
    chance = random.Random(life.seed)
    for number in range(OWNERS):
        own = random.Random(chance.random())
        yield own_sessions(sessions, log, f"{life.name}-{number}", own)
    yield create_batches(sessions, log, f"{life.name}-batch")
    yield clear_away(sessions, log)


async def own_sessions(
    sessions: SessionManager, log: Log, owner: str, chance: random.Random
) -> None:
    """Create sessions of one owner, and do to them whatever can be done, until the store closes."""
    ids: list[str] = []
    for number in itertools.count():
        operation, id_ = choose(chance, ids)
        log.write(owner, operation, id_, number)
        try:
            result = await perform(sessions, owner, operation, id_, number)
        except StoreClosedError:
            log.write(owner, "refused")
            return
        log.write(owner, result)
        keep_ids(ids, operation, id_, result)


def choose(chance: random.Random, ids: list[str]) -> tuple[str, str]:
    """Return what to do next to an owner's sessions, and to which of them."""
    if not ids or len(ids) > MOST_IDS:
        return ("delete", ids[0]) if ids else ("create", "")
    (operation,) = chance.choices([*OPERATIONS], [*OPERATIONS.values()])
    return operation, chance.choice(ids)


def keep_ids(ids: list[str], operation: str, id_: str, result: object) -> None:
    """Note which sessions there are after a call that has returned."""
    if operation == "create":
        ids.append(str(result))
    elif operation == "delete":
        ids.remove(id_)


async def perform(
    sessions: SessionManager, owner: str, operation: str, id_: str, number: int
) -> object:
    """Call the store; what `carry_out` says of the same call is what must come of it."""
    stamp = {"n": number}
    if operation == "create":
        return await sessions.create_session(owner, stamp, metadata=stamp)
    if operation == "touch":
        return await sessions.update_activity(id_)
    if operation == "update":
        return await sessions.update_session(id_, stamp, metadata=stamp)
    if operation == "end":
        return await sessions.end_session(id_)
    if operation == "delete":
        return await sessions.delete_session(id_)
    return await sessions.end_sessions(owner)


async def create_batches(sessions: SessionManager, log: Log, owner: str) -> None:
    """Create sessions in batches, and end each batch at once, until the store closes."""
    for number in itertools.count():
        batch = f"{owner}-{number}"
        log.write(batch, "batch", "", number)
        calls = (sessions.create_session(batch) for _ in range(BATCH))
        results = await asyncio.gather(*calls, return_exceptions=True)
        if any(isinstance(result, SessionStoreError) for result in results):
            return
        log.write(batch, len(set(results)))
        log.write(batch, "end all", "", number)
        try:
            log.write(batch, await sessions.end_sessions(batch))
        except StoreClosedError:
            log.write(batch, "refused")
            return


async def clear_away(sessions: SessionManager, log: Log) -> None:
    """Time out what is idle, and purge what has ended long ago."""
    try:
        log.write("sweep", "cleanup", "", 0)
        log.write("sweep", await sessions.cleanup_inactive_sessions())
        log.write("sweep", "purge", "", 0)
        log.write("sweep", await sessions.purge_ended_sessions(DAY))
    except StoreClosedError:
        return


async def empty_the_log(engine: SQLiteStore, log: Log) -> None:
    """Have the log copied into the database again and again, and mark when that is asked for."""
    while True:
        moment = Moment(time.time_ns() // 1_000, Expiry(1_800_000_000))
        try:
            with log.mark("checkpoint"):
                await engine.tidy(moment)
        except StoreClosedError:
            return


# The promises, broken on purpose, in the life alone: what the checks must catch.


def commit_late() -> None:
    """Acknowledge what is written, and commit it when the next batch comes."""
    begin = writer.Writer._begin

    def commit_and_begin(
        self: writer.Writer, lane: Lane, calls: Sequence[LaneCall]
    ) -> Sequence[LaneCall]:
        if self._connection.in_transaction:
            self._connection.execute(queries.COMMIT)
        return begin(self, lane, calls)

    def acknowledge(self: writer.Writer, calls: Sequence[LaneCall]) -> Done:
        return Done(writer._apply(self._connection, calls, Changes()))

    writer.Writer._begin = commit_and_begin  # type: ignore[method-assign]
    writer.Writer._commit = acknowledge  # type: ignore[method-assign]
    writer.Writer._roll_back = lambda self: None  # type: ignore[method-assign]


def end_each() -> None:
    """Commit the ends of a child's sessions one by one."""

    def end_alone(
        connection: sqlite3.Connection,
        changes: Changes,
        child_id: str,
        moment: Moment,
        status: str,
        reason: str,
        except_id: str | None,
    ) -> int:
        select = "SELECT id FROM sessions WHERE child_id = ? AND status = 'active'"
        ids = connection.execute(select, (child_id,)).fetchall()
        for (id_,) in ids:
            operations.end(connection, changes, id_, moment, status, reason)
            connection.execute(queries.COMMIT)
            connection.execute(queries.BEGIN_WRITE)
        return len(ids)

    operations.end_all = end_alone


def migrate_bit_by_bit() -> None:
    """Bring a file to today's schema without a transaction, and slowly."""

    @contextmanager
    def no_transaction(connection: sqlite3.Connection) -> Iterator[None]:
        connection.set_trace_callback(lambda _: time.sleep(0.001))
        connection.execute("PRAGMA synchronous = OFF")
        yield
        connection.set_trace_callback(None)

    schema._transaction = no_transaction


def write_without_log() -> None:
    """Write into the database itself, without any journal."""

    def set_no_wal(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA cache_size = 1")

    store.set_up_writer = set_no_wal  # type: ignore[attr-defined]


BREAKS = {
    "acknowledged before COMMIT": commit_late,
    "ended one by one": end_each,
    "migrated without a transaction": migrate_bit_by_bit,
    "written without a journal": write_without_log,
}


class Call(NamedTuple):
    """What a task called, and what it heard."""

    operation: str
    id: str
    number: int
    result: Any = NO_RESULT


def read_log(path: Path) -> tuple[dict[str, list[Call]], str]:
    """Return the calls of each task, and the mark that stood when the life ended."""
    calls: defaultdict[str, list[Call]] = defaultdict(list)
    mark = ""
    for text in path.read_bytes().split(b"\n")[:-1]:  # what follows the last newline was cut off
        task, *fields = json.loads(text)
        if task == "mark":
            (mark,) = fields
        elif len(fields) == 3:
            calls[task].append(Call(*fields))
        elif fields == ["refused"]:
            calls[task].pop()
        else:
            calls[task][-1] = calls[task][-1]._replace(result=fields[0])
    return calls, mark


@dataclass
class Found:
    """What a file has, as a plain connection of SQLite reads it."""

    tables: set[str] = field(default_factory=set)
    versions: list[int] = field(default_factory=list)
    rows: defaultdict[str, dict[str, Row]] = field(default_factory=lambda: defaultdict(dict))
    faults: list[str] = field(default_factory=list)

    @property
    def is_ours(self) -> bool:
        """Whether it has had a migration."""
        return bool(self.versions)


def read(database: Path) -> Found:
    """Read a file and check what must hold of it whatever was called."""
    found = Found()
    if not database.exists():
        return found
    with closing(sqlite3.connect(database)) as connection:
        try:
            integrity = [text for (text,) in connection.execute("PRAGMA integrity_check")]
        except sqlite3.DatabaseError as error:
            integrity = [str(error)]
        if integrity != ["ok"]:
            found.faults.append(f"integrity_check: {integrity[:3]}")
            return found
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        found.tables = {name for (name,) in names}
        if "sessionstore_migrations" not in found.tables:
            return found
        applied = connection.execute("SELECT version FROM sessionstore_migrations ORDER BY 1")
        found.versions = [version for (version,) in applied]
        if "sessions" not in found.tables:
            found.faults.append(f"half a migration: {found.versions}, {found.tables}")
            return found
        select = "SELECT child_id, id, status, data, metadata, interaction_count FROM sessions"
        for child, id_, status, data, metadata, count in connection.execute(select):
            found.rows[child][id_] = status, json.loads(data), json.loads(metadata), count
        found.faults += _odd_times(connection)
        if ("sessionstore_counts" in found.tables) != (found.versions == [1, 2]):
            found.faults.append(f"half a migration: {found.versions}, {found.tables}")
    return found


def _odd_times(connection: sqlite3.Connection) -> Iterator[str]:
    select = """SELECT id, started_at, last_activity, ended_at FROM sessions
                 WHERE last_activity < started_at OR ended_at < last_activity
                    OR last_activity > strftime('%Y-%m-%d %H:%M:%f999', 'now')
                    OR (status = 'active') <> (ended_at IS NULL)"""
    for row in connection.execute(select):
        yield f"times out of order: {row}"


class Ledger:
    """What the sessions of one file must be like, after all lives that it has had."""

    def __init__(self, old: int = 0) -> None:
        """Take how many old sessions of each kind it had at first."""
        self.acknowledged = 0
        self._old = old
        self._owners: dict[str, dict[str, Row]] = {}
        self._batches: dict[str, Counter[str]] = {}
        self._acknowledged_sweeps: set[str] = set()

    def settle(self, logs: Iterable[dict[str, list[Call]]], found: Found) -> list[str]:
        """Compare the file with what these lives have called; return what is wrong.

        What a call that had not returned has done is known from then on.
        """
        faults = list(found.faults)
        for log in logs:
            for task, calls in log.items():
                self.acknowledged += sum(call.result != NO_RESULT for call in calls)
                if task == "sweep":
                    acknowledged = {c.operation for c in calls if c.result != NO_RESULT}
                    self._acknowledged_sweeps |= acknowledged
                elif calls and calls[0].operation == "batch":
                    faults += self._settle_batch(task, calls, _by_status(found, task))
                elif calls:
                    faults += self._settle_owner(task, calls, found.rows[task])
        if found.is_ours:
            faults += self._missing(found)
            faults += _half_chunks(found, self._old, self._acknowledged_sweeps)
        elif self.acknowledged:
            faults.append(f"{self.acknowledged} calls were acknowledged, and the file is not ours")
        return faults

    def _settle_batch(self, batch: str, calls: list[Call], found: Counter[str]) -> Iterator[str]:
        create, *end = calls
        count = found.total()
        if count > BATCH or (count < BATCH and create.result != NO_RESULT):
            yield f"{batch} ({create.result}): {count} of {BATCH} sessions are there"
        possible = (0, BATCH) if end else (0,)
        if found["ended"] not in (possible if not end or end[0].result == NO_RESULT else (BATCH,)):
            yield f"{batch} ({end}): {found['ended']} of {BATCH} sessions have ended"
        self._batches[batch] = found

    def _settle_owner(self, owner: str, calls: list[Call], found: dict[str, Row]) -> Iterator[str]:
        rows: dict[str, Row] = {}
        for call in calls:
            if call.result == NO_RESULT:
                continue
            rows, result = carry_out(rows, call)
            if call.result != result:
                yield f"{owner}: {call} should have returned {result}"
        last = calls[-1]
        possible = [rows]
        if last.result == NO_RESULT:
            new = [id_ for id_ in found if id_ not in rows]  # of a session that nobody heard of
            created = last._replace(result=new[0] if new else "")
            possible.append(carry_out(rows, created)[0])
        if found not in possible:
            yield f"{owner}: {_difference(rows, found)}; the last call was {last}"
        self._owners[owner] = found

    def _missing(self, found: Found) -> Iterator[str]:
        """Yield what was there after an earlier life, and is not any more."""
        for owner, rows in self._owners.items():
            if found.rows[owner] != rows:
                yield f"{owner}: {_difference(rows, found.rows[owner])}, after it was settled"
        for batch, before in self._batches.items():
            if _by_status(found, batch) != before:
                yield f"{batch}: {_by_status(found, batch)}, after there were {before}"


def carry_out(rows: dict[str, Row], call: Call) -> tuple[dict[str, Row], object]:
    """Return what a call makes of an owner's sessions, and what it returns."""
    stamp = {"n": call.number}
    if call.operation == "create":
        return {**rows, call.result: ("active", stamp, stamp, 0)}, call.result
    if call.operation == "delete":
        return {id_: row for id_, row in rows.items() if id_ != call.id}, call.id in rows
    if call.operation == "end all":
        active = [id_ for id_, row in rows.items() if row[0] == "active"]
        return {**rows, **{id_: _ended(rows[id_]) for id_ in active}}, len(active)
    status, data, metadata, count = row = rows[call.id]
    if status != "active":
        return rows, False
    if call.operation == "touch":
        row = status, data, metadata, count + 1
    elif call.operation == "update":
        row = status, {**data, **stamp}, {**metadata, **stamp}, count
    else:
        row = _ended(row)
    return {**rows, call.id: row}, True


def _by_status(found: Found, owner: str) -> Counter[str]:
    return Counter(status for status, *_ in found.rows[owner].values())


def _ended(row: Row) -> Row:
    _, data, metadata, count = row
    return "ended", data, {**metadata, "end_reason": "manual"}, count


def _difference(expected: dict[str, Row], found: dict[str, Row]) -> str:
    ids = [id_ for id_ in {**expected, **found} if expected.get(id_) != found.get(id_)]
    return "; ".join(f"{id_} is {found.get(id_)}, not {expected.get(id_)}" for id_ in ids)


def _half_chunks(found: Found, old: int, acknowledged: set[str]) -> Iterator[str]:
    """Yield a fault if sweeps have not touched whole chunks, or not all that they said."""
    timed_out = [row for row in found.rows[IDLE].values() if row[0] == "timeout"]
    left = {
        "timed out": (len(timed_out), bool(acknowledged)),
        "purged": (old - len(found.rows[ENDED]), "purge" in acknowledged),
    }
    for what, (count, all_of_them) in left.items():
        if count != old and (all_of_them or count % CHUNK):
            yield f"{count} of {old} sessions are {what}; acknowledged: {acknowledged}"
    if any(metadata != {"end_reason": "timeout"} for _, _, metadata, _ in timed_out):
        yield "a session has timed out, and does not say so"
