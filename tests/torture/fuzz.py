# SPDX-License-Identifier: MIT
"""A fuzzer that is guided by coverage: python -m tests.torture.fuzz --seconds 60

It needs atheris (pip install ".[test,fuzz]"), which keeps each input that reaches a new branch of
the package, and goes on from there. The first byte of an input chooses a target. Each target checks
what comes out against an oracle that shares no code with the package, or against SQLite itself. An
input that fails is written to a file, and `python -m tests.torture.fuzz FILE` runs it again. With
--planted there is a bug to find that random inputs would not meet in years, and with --broken one
in a check.
"""

import argparse
import contextlib
import io
import json
import math
import os
import sqlite3
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["sessionstore"]):
    from sessionstore import InvalidArgumentError, Session, StorageError, arguments
    from sessionstore.cli import terminal, usage
    from sessionstore.expiry import Expiry
    from sessionstore.session import EARLIEST, LATEST
    from sessionstore.sqlite import connection, queries, rows, schema, times

from ..core.hostile import RefusedError, Size, expected_data, expected_text, is_harmless, spelled

MOST = 600  # bytes of data
LONGEST = 1_500  # bytes of an input
NOW = 1_700_000_000_000_000


class Input:
    """The bytes of one input, taken from the front, as whatever is asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def number(self, below: int) -> int:
        """Return a number from 0 on; 0 at the end of the input."""
        data = self.take(1 if below <= 256 else 8)
        return int.from_bytes(data, "big") % below

    def take(self, size: int) -> bytes:
        """Return up to so many bytes."""
        data = self._data[self._position : self._position + size]
        self._position += len(data)
        return data

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self._data))

    def text(self, size: int | None = None) -> str:
        """Return a text of so many bytes at most; lone surrogates may be in it."""
        data = self.rest() if size is None else self.take(size)
        return data.decode("utf-8", "surrogateescape")

    def value(self, depth: int = 0) -> Any:
        """Return a value of JSON, or nearly one."""
        kind = self.number(16)
        if kind < 3:
            return self.text(self.number(12))
        if kind < 6 and depth < 80:
            keys = [self.text(self.number(5)) for _ in range(self.number(4))]
            pairs = {key: self.value(depth + 1) for key in keys}
            return OrderedDict(pairs) if kind == 5 else pairs
        if kind < 8 and depth < 80:
            return [self.value(depth + 1) for _ in range(self.number(4))]
        if kind == 8:
            value: Any = {}
            for _ in range(self.number(80)):
                value = [value]
            return value
        makers: list[Callable[[], Any]] = [
            lambda: int.from_bytes(self.take(self.number(10)), "big", signed=True),
            lambda: float.fromhex(f"{self.number(256) - 128}p{self.number(2**16) % 2200 - 1100}"),
            lambda: [None, True, False, math.nan, math.inf, -0.0, 5e-324][self.number(7)],
            lambda: [(), b"", object(), {1}, 2**63, -(2**63) - 1][self.number(6)],
            lambda: [Size.BIG, (1, 2), {"a": ()}][self.number(3)],
            lambda: int.from_bytes(self.take(9), "big", signed=True),
            lambda: {self.value(80): self.number(9)} if self.number(2) else {1: 2},
            lambda: self.text(self.number(256)) * self.number(8),
        ]
        return makers[kind % len(makers)]()


class Oracle:
    """A connection with the schema of a store and a session, to ask SQLite itself."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        schema.migrate(self.connection, ":memory:", NOW)
        self.connection.execute(
            "INSERT INTO sessions (id, child_id, started_at, last_activity)"
            " VALUES ('id', 'c', :now, :now)",
            {"now": times.to_text(NOW)},
        )
        self.parser = usage.make_parser()

    def is_object(self, text: str) -> bool:
        """Return whether the table would take the text as data."""
        valid = "SELECT CASE WHEN json_valid(:text) THEN json_type(:text) = 'object' ELSE 0 END"
        try:
            return bool(self.connection.execute(valid, {"text": text}).fetchone()[0])
        except (sqlite3.Error, UnicodeError):
            return False


def check_data(given: Input, oracle: Oracle) -> None:
    """Data is refused where it should be, and comes back equal where not."""
    try:
        value = given.value()
    except (TypeError, OverflowError):  # a key that cannot be one; a float beyond all
        return
    try:
        expected: Any = spelled(expected_data(value, MOST))
    except RefusedError:
        expected = None
    try:
        text: Any = arguments.encode_object("data", value, MOST)
    except InvalidArgumentError:
        text = None
    assert (text is None) == (expected is None), (text, expected)
    if text is not None:
        assert spelled(json.loads(text)) == expected
        assert oracle.is_object(text)


def check_text(given: Input, oracle: Oracle) -> None:
    """A text, an id and keys are what they are, or refused."""
    size = given.number(2)
    text = given.text() * (200 if size else 1)
    try:
        expected: str | None = expected_text(text, 255)
    except RefusedError:
        expected = None
    try:
        assert arguments.check_text("it", text) == expected
    except InvalidArgumentError:
        assert expected is None
    assert arguments.check_session_id(text) in (None, text)
    assert arguments.check_keys("it", [text]) == (text,)


def check_time(given: Input, oracle: Oracle) -> None:
    """What the table takes for a time is read as one, and written in the same way, or refused."""
    text = given.text(40)
    change = "UPDATE sessions SET last_activity = :text WHERE id = 'id'"
    try:
        oracle.connection.execute(change, {"text": text})
    except (sqlite3.Error, UnicodeError):
        return
    try:
        time = times.from_text(text)
    except ValueError:
        return
    if text[20:26].isdecimal() and text.isascii():
        assert times.to_text(time) == text.partition("\0")[0]


def check_database(given: Input, oracle: Oracle) -> None:
    """A path stays what it is; a URL names what stands behind its third slash."""
    text = given.text()
    is_url = "://" in text
    try:
        path = connection.path_of(text)
    except InvalidArgumentError:
        scheme, _, rest = text.partition("://")
        wrong = scheme not in ("sqlite", "sqlite+aiosqlite") or "?" in rest or rest[:1] not in "/"
        assert not text or "\0" in text or (is_url and wrong)
        return
    assert path
    assert "\0" not in path
    os.fsencode(path)
    assert path == (text if not is_url else text.partition("://")[2][1:] or ":memory:")
    for form in (f"sqlite:///{path}", Path(path), os.fsencode(path)):
        if "?" not in path:
            same = os.fspath(Path(path)) if isinstance(form, Path) else path
            assert connection.path_of(form) == same


def check_row(given: Input, oracle: Oracle) -> None:
    """Whatever bytes the table takes in a row, the row can be read, shown and timed out."""
    columns = {
        name: given.take(given.number(64))
        for name in ("id", "child_id", "started_at", "last_activity", "metadata")
    }
    columns["data"] = given.rest()
    database = oracle.connection
    database.execute("BEGIN")
    try:
        database.execute(
            "INSERT INTO sessions (id, child_id, started_at, last_activity, metadata, data) VALUES"
            " (CAST(iif(:id = '', 'x', :id) AS TEXT), CAST(:child_id AS TEXT),"
            "  iif(:started_at = x'', :now, CAST(:started_at AS TEXT)),"
            "  iif(:last_activity = x'', :now, CAST(:last_activity AS TEXT)),"
            "  iif(:metadata = x'', '{}', CAST(:metadata AS TEXT)),"
            "  iif(:data = x'', '{}', CAST(:data AS TEXT)))",
            {**columns, "now": times.to_text(NOW)},
        )
        database.text_factory = lambda data: str(data, "utf-8", "replace")
        query = queries.SELECT_SESSIONS_BY_FILTER
        everything = {"child_id": None, "status": None, "limit": -1, "now": times.to_text(NOW)}
        cutoffs = {"idle_cutoff": "", "lifetime_cutoff": ""}
        found = database.execute(query, {**everything, **cutoffs}).fetchall()
    except sqlite3.Error:
        return
    finally:
        database.text_factory = str
        database.execute("ROLLBACK")
    for row in found:
        for now in (EARLIEST, LATEST):
            with contextlib.suppress(StorageError):  # nobody could read it
                look_at(Expiry(60_000_000, 10**9).session(rows.from_row(row), now))


def look_at(session: Session) -> None:
    """Read every field. Only JSON that Python cannot read may fail, and only where it is asked."""
    assert session.expires_at >= session.last_activity or session.expires_at >= session.started_at
    assert session.duration.total_seconds() >= 0
    assert session.is_active == (session.ended_at is None)
    assert repr(session)
    for line in terminal.table([(session.id, terminal.shorten(session.child_id, 36))]):
        assert terminal.printable(line) == line
    with contextlib.suppress(StorageError):
        assert isinstance(session.end_reason, str | None)
        assert isinstance(session.data, dict)
        lines = terminal.json_lines([session.data, session.metadata])
        assert all(map(str.isprintable, map(terminal.printable, lines)))


def check_command(given: Input, oracle: Oracle) -> None:
    """What is typed is understood, or is wrong usage; the terminal is not commanded."""
    words = [word for word in given.text().split("\x1f") if word]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            options = oracle.parser.parse_args(words)
            code: object = 0 if options.command else None
        except SystemExit as stop:
            code = stop.code
    assert code in (0, 2)
    assert is_harmless(output.getvalue())


TARGETS: list[Callable[[Input, Oracle], None]] = [
    *(check_data, check_text, check_time, check_database, check_row, check_command)
]

SEEDS: list[tuple[Callable[[Input, Oracle], None], bytes]] = [
    (check_data, b"\x03\x02\x01a\x01b\x00\x05hello\x08\x3e"),
    (
        check_data,
        b"\x04\x03\x01a\x01b\x01c\x06\x02\x0a\x01\x09\x08\x7f\xff\xff\xff\xff\xff\xff\xff",
    ),
    (check_text, b"\x00ada"),
    (check_text, b"\x01\xed\xa0\x80"),
    (check_time, b"2023-11-14 22:13:20.000000"),
    (check_time, b"0001-01-01 00:00:00.000001"),
    (check_database, b"sqlite:///a.db"),
    (check_database, b"sqlite+aiosqlite:////a/b.db?mode=ro"),
    (check_row, b"\x02id\x03ada\x00\x00\x00" + b'{"a":1}'),
    (check_row, b"\x02id\x03ada\x1a2023-11-14 22:13:20.000000\x00\x15" + b'{"end_reason":"over"}'),
    (check_command, b"list\x1fa.db\x1f--limit\x1f10\x1f--json"),
    (check_command, b"end\x1fsqlite:///a\x1fid\x1f--reason\x1fover\x1f--timeout\x1f1e3"),
    (check_command, b"demo\x1f--sessions\x1f5\x1f--database\x1fx"),
]


class PlantedError(Exception):
    """What the fuzzer must find with --planted."""


@atheris.instrument_func  # type: ignore[untyped-decorator]
def planted(data: bytes) -> None:
    """Fail for one input in 2 ** 64, which is found step by step, or not at all."""
    if len(data) < 8:
        return
    if data[0] != 0x73:
        return
    if data[1] != 0x65:
        return
    if data[2] != 0x73:
        return
    if data[3] != 0x73:
        return
    if data[4] != 0x69:
        return
    if data[5] != 0x6F:
        return
    if data[6] != 0x6E:
        return
    if data[7] == 0x3F:
        raise PlantedError("the planted bug was found")


def make_test(oracle: Oracle, with_bug: bool) -> Callable[[bytes], None]:
    """Return what runs one input."""

    def run(data: bytes) -> None:
        if with_bug:
            planted(data)
        elif data:
            TARGETS[data[0] % len(TARGETS)](Input(data[1:]), oracle)

    return run


def main() -> None:
    """Fuzz for a while. The exit code is 0, or that of libFuzzer if an input has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for how long (60)")
    parser.add_argument("--seed", type=int, default=0, help="0 is any, which is printed")
    parser.add_argument("--planted", action="store_true", help="find a bug that is there")
    parser.add_argument("--broken", action="store_true", help="let any text through")
    parser.add_argument("--failures", default=".", metavar="FOLDER", help="for what fails")
    parser.add_argument("inputs", nargs="*", metavar="FILE", help="inputs to run again")
    options = parser.parse_args()
    if options.broken:
        vars(arguments)["_problem_of_text"] = lambda text: None
    oracle = Oracle()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as corpus:
        for number, (target, seed) in enumerate(SEEDS):
            first = bytes([TARGETS.index(target)])
            Path(corpus, f"seed-{number}").write_bytes(b"?" if options.planted else first + seed)
        flags = [
            *(f"-max_total_time={options.seconds}", f"-seed={options.seed}", "-timeout=10"),
            *(f"-max_len={LONGEST}", "-print_final_stats=1", "-len_control=0", "-reload=0"),
            f"-artifact_prefix={os.path.join(options.failures, '')}",
        ]
        atheris.Setup(
            [sys.argv[0], *flags, *(options.inputs or [corpus])], make_test(oracle, options.planted)
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
