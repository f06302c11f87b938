# SPDX-License-Identifier: MIT
"""The commands: what they print, what they do to the file, and their exit codes.

Most are called in this process. One of its own is for what needs it: a pipe, a terminal, a signal.
"""

import asyncio
import json
import logging
import os
import pty
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

import sessionstore
from sessionstore import SessionManager, __version__
from sessionstore.cli import demo
from sessionstore.cli.main import main
from sessionstore.cli.terminal import OneLineFormatter, table

from ..conftest import FakeClock

ROOT = Path(sessionstore.__file__).parents[1]
COMMAND = [sys.executable, "-m", "sessionstore"]
# A name that tries to break a table, to colour a terminal, and to turn the text round.
HOSTILE = "eve\n\x1b[31m\x9b1m\u202e"
# Letters that an encoding may lack: in Latin-1, in the basic plane, and beyond it.
STORY = "é الأرنب الذي زار القمر 🐰"

Output = pytest.CaptureFixture[str]


class Sessions(NamedTuple):
    """The ids of the sessions in the file, by what has become of them."""

    stale: str  # timed out hours ago, but not swept
    error: str
    ended: str
    active: str


@pytest.fixture
def filled(database: Path) -> Sessions:
    """Fill the database with one session of each kind, and return their ids."""

    async def fill() -> Sessions:
        clock = FakeClock(time.time() - 36_000)
        async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
            stale = await sessions.create_session("adam")
            clock.turn(35_400)
            error = await sessions.create_session("子供")
            await sessions.end_session(error, "error")
            clock.turn(60)
            ended = await sessions.create_session(HOSTILE, {"name": HOSTILE})
            await sessions.end_session(ended, "bedtime")
            clock.turn(60)
            active = await sessions.create_session("adam", {"story": STORY}, metadata={"v": 1})
            for _ in range(12):
                await sessions.update_activity(active)
            return Sessions(stale, error, ended, active)

    return asyncio.run(fill())


@contextmanager
def start(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command as a process of its own that hears Ctrl-C, even if the tests do not."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("environment", {})}
    environment.pop("PYTHONUNBUFFERED", None)
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, **options
        )
    finally:
        signal.signal(signal.SIGINT, ours)
    with process:
        try:
            yield process
        finally:
            process.kill()


def run(*arguments: object, **options: Any) -> tuple[int, str, str]:
    """Run a command as a process of its own; return its exit code, its output and its errors."""
    with start(*arguments, stdout=subprocess.PIPE, **options) as process:
        output, errors = process.communicate(timeout=60)
    return process.returncode, output.decode(), errors.decode()


def run_here(output: Output, *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code, its output and its errors."""
    code = main([str(argument) for argument in arguments])
    return code, *output.readouterr()


def is_one_line(text: str) -> bool:
    """Return whether a complaint is one line, and no traceback."""
    return text.count("\n") == 1 and text.startswith("sessionstore: ")


def test_list_shows_every_session_with_its_whole_id_in_aligned_columns(
    database: Path, filled: Sessions, capsys: Output
) -> None:
    """Sessions stand under one another, started last first, whatever their names are."""
    code, output, errors = run_here(capsys, "list", database)
    head, *rows = output.splitlines()
    assert (code, errors) == (0, "")
    assert [row.split()[0] for row in rows] == [*reversed(filled)]
    assert [re.findall("active|ended|error|timeout", row)[-1] for row in rows] == [
        "active",
        "ended",
        "error",
        "timeout",
    ]
    assert rows[0].endswith("12")
    assert rows[0].index("active") == rows[1].index("ended") == head.index("STATUS")
    assert len(rows[0]) == len(rows[1]) == len(head)
    assert rows[2].index("error") == head.index("STATUS") - 2  # its name takes two columns each


def test_no_name_breaks_the_table_or_commands_the_terminal(
    database: Path, filled: Sessions, capsys: Output
) -> None:
    """What cannot be printed is escaped, in tables, in documents, and in JSON."""
    for arguments in ["list"], ["show", filled.ended], ["show", filled.ended, "--json"]:
        _, output, _ = run_here(capsys, arguments[0], database, *arguments[1:])
        assert r"eve\n\u001b[31m\u009b1m\u202e" in output
        assert output.replace("\n", "").isprintable()


def test_a_long_name_is_cut_in_the_list_and_whole_in_show(database: Path, capsys: Output) -> None:
    """A name of 255 characters leaves the list readable."""

    async def fill() -> str:
        async with SessionManager(database, sweep_interval=None) as sessions:
            return await sessions.create_session("名" * 255)

    session_id = asyncio.run(fill())
    _, listed, _ = run_here(capsys, "list", database)
    _, shown, _ = run_here(capsys, "show", database, session_id)
    assert "名" * 16 + "...  active" in listed
    assert "名" * 255 in shown


def test_list_filters_by_child_status_and_limit(
    database: Path, filled: Sessions, capsys: Output
) -> None:
    """The filters go together, and a limit that cuts something off says so."""

    def ids(*options: str) -> list[str]:
        _, output, _ = run_here(capsys, "list", database, "--json", *options)
        return [session["id"] for session in json.loads(output)]

    assert ids("--child", "adam") == [filled.active, filled.stale]
    assert ids("--child", "adam", "--status", "timeout") == [filled.stale]
    assert ids("--status", "error") == [filled.error]
    assert ids("--limit", "0") == []
    assert len(ids("--limit", str(2**63 - 1))) == 4
    _, output, errors = run_here(capsys, "list", database, "--limit", "3")
    assert len(output.splitlines()) == 4
    assert is_one_line(errors)
    assert "more than 3" in errors


def test_json_has_all_fields_with_times_in_utc_and_durations_in_seconds(
    database: Path, filled: Sessions, capsys: Output
) -> None:
    """What show prints as JSON is what the library says, and list prints the same."""

    async def read() -> sessionstore.Session | None:
        async with SessionManager(database, sweep_interval=None) as sessions:
            return await sessions.get_session(filled.stale)

    session = asyncio.run(read())
    assert session is not None
    assert session.ended_at is not None
    code, output, errors = run_here(capsys, "show", database, filled.stale, "--json")
    assert (code, errors) == (0, "")
    shown = json.loads(output)
    assert shown == {
        "id": filled.stale,
        "child_id": "adam",
        "status": "timeout",
        "is_active": False,
        "started_at": session.started_at.isoformat(),
        "last_activity": session.last_activity.isoformat(),
        "expires_at": session.expires_at.isoformat(),
        "ended_at": session.ended_at.isoformat(),
        "end_reason": "timeout",
        "duration": 1800,
        "interaction_count": 0,
        "data": {},
        "metadata": {"end_reason": "timeout"},
    }
    assert datetime.fromisoformat(shown["started_at"]).utcoffset() == timedelta(0)
    _, output, _ = run_here(capsys, "list", database, "--json")
    assert json.loads(output)[-1] == shown


def test_show_prints_data_for_a_person(database: Path, filled: Sessions, capsys: Output) -> None:
    """Data stands indented and in its own letters, and what is not there as a dash."""
    code, output, errors = run_here(capsys, "show", database, filled.active)
    assert (code, errors) == (0, "")
    assert f'data\n  {{\n    "story": "{STORY}"\n  }}\n' in output
    assert 'metadata\n  {\n    "v": 1\n  }\n' in output
    assert re.search(r"^ended_at +-$", output, re.MULTILINE)
    assert re.search(r"^interaction_count +12$", output, re.MULTILINE)


def test_stats_counts_by_the_timeout_that_it_is_given(
    database: Path, filled: Sessions, capsys: Output
) -> None:
    """A session counts as active within --timeout, which is 30 minutes by default."""
    code, output, errors = run_here(capsys, "stats", database)
    assert (code, errors) == (0, "")
    figures = dict(re.findall(r"^ *(.+?)  +([\d,]+)$", output, re.MULTILINE))
    assert (figures["sessions"], figures["active"], figures["timeout"]) == ("4", "1", "1")
    _, output, _ = run_here(capsys, "stats", database, "--json", "--timeout", "86400")
    stats = json.loads(output)
    assert stats["by_status"] == {"active": 2, "ended": 1, "timeout": 0, "error": 1}
    assert set(stats) == set(sessionstore.SessionStats.__annotations__)


def test_looking_changes_nothing(database: Path, filled: Sessions, capsys: Output) -> None:
    """A look with another timeout times out no session."""
    for command in ["list"], ["stats"], ["show", filled.active]:
        assert run_here(capsys, command[0], database, *command[1:], "--timeout", "0.001")[0] == 0
    _, output, _ = run_here(capsys, "list", database, "--status", "active", "--json")
    assert [session["id"] for session in json.loads(output)] == [filled.active]


def test_end_ends_a_session_once(database: Path, filled: Sessions, capsys: Output) -> None:
    """The first end succeeds and keeps its reason; the second says what has become of it."""
    code, output, errors = run_here(capsys, "end", database, filled.active, "--reason", "lost")
    assert (code, errors) == (0, "")
    assert filled.active in output
    _, output, _ = run_here(capsys, "show", database, filled.active, "--json")
    assert (json.loads(output)["status"], json.loads(output)["end_reason"]) == ("ended", "lost")
    code, output, errors = run_here(capsys, "end", database, filled.active)
    assert (code, output) == (1, "")
    assert is_one_line(errors)
    assert "ended since" in errors


def test_end_obeys_the_timeout(database: Path, filled: Sessions, capsys: Output) -> None:
    """A session that has timed out cannot be ended, until a longer timeout says that it has not."""
    assert run_here(capsys, "end", database, filled.stale)[0] == 1
    assert run_here(capsys, "end", database, filled.stale, "--timeout", "86400")[0] == 0


def test_cleanup_records_the_timeouts(database: Path, filled: Sessions, capsys: Output) -> None:
    """What has timed out by the timeout given is marked as such, and counted."""
    assert run_here(capsys, "cleanup", database, "--timeout", "86400")[1].endswith(": 0\n")
    assert run_here(capsys, "cleanup", database)[1].endswith(": 1\n")
    _, output, _ = run_here(
        capsys, "list", database, "--status", "timeout", "--timeout", "86400", "--json"
    )
    assert [session["id"] for session in json.loads(output)] == [filled.stale]


@pytest.mark.parametrize("command", [["show"], ["end"]])
def test_a_session_that_is_not_there_is_1(
    command: list[str], database: Path, filled: Sessions, capsys: Output
) -> None:
    """So is an id that cannot be one, and the answer is one line that the terminal can bear."""
    for session_id in (filled.active[::-1], "x", "\x1b[31m\n"):
        code, output, errors = run_here(capsys, *command, database, session_id)
        assert (code, output) == (1, "")
        assert is_one_line(errors)
        assert errors[:-1].isprintable()


FILE_COMMANDS = [["stats"], ["list"], ["show", "x"], ["end", "x"], ["cleanup"]]


@pytest.mark.parametrize("command", FILE_COMMANDS)
def test_no_command_makes_a_file(command: list[str], tmp_path: Path, capsys: Output) -> None:
    """A file that does not exist is 1, in one line, and does not exist afterwards."""
    for path in (tmp_path / "none.db", tmp_path / "none" / "none.db"):
        code, output, errors = run_here(capsys, command[0], path, *command[1:])
        assert (code, output) == (1, "")
        assert is_one_line(errors)
        assert "No such file" in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", FILE_COMMANDS)
def test_a_file_that_cannot_be_used_is_1(
    command: list[str], tmp_path: Path, capsys: Output
) -> None:
    """A folder, a device, garbage and files without our sessions are refused in one line."""
    garbage, empty = tmp_path / "garbage.db", tmp_path / "empty.db"
    foreign, host = tmp_path / "foreign.db", tmp_path / "host.db"
    garbage.write_bytes(bytes(range(256)) * 16)
    empty.touch()
    for path, name in (foreign, "sessions"), (host, "orders"):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"CREATE TABLE {name} (token TEXT)")
    files = [garbage, empty, foreign, host]
    before = [path.read_bytes() for path in files]
    for path in (tmp_path, Path(os.devnull), *files):
        code, output, errors = run_here(capsys, command[0], path, *command[1:])
        assert (code, output) == (1, "")
        assert is_one_line(errors)
        assert str(path) in errors
        assert ("it is not a file" in errors) == (path not in files)
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize(
    "change",
    [
        "data = '{\"a\": 1e999}'",
        "data = '[]'",
        f"data = '{{\"a\": {'[' * 990}{']' * 990}}}'",
        "last_activity = '0000-00-00 00:00:00.000000'",
        "child_id = x'00ff'",
        "interaction_count = 'many'",
    ],
)
def test_a_session_that_cannot_be_read_is_1(
    change: str, database: Path, filled: Sessions, capsys: Output
) -> None:
    """What only a foreign program can have written is answered in one line, too."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(f"UPDATE sessions SET {change} WHERE id = ?", [filled.active])
    for command in ["list"], ["show", filled.active]:
        code, output, errors = run_here(capsys, command[0], database, *command[1:], "--json")
        assert (code, output) == (1, "")
        assert is_one_line(errors)


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "dance",
        "stats",
        "show PATH",
        "list PATH --limit -1",
        "list PATH --limit many",
        "list PATH --status asleep",
        "list :memory:",
        "list sqlite:///:memory:",
        "list sqlite://",
        "list sqlite:///PATH?mode=ro",
        "list sqlite://host/path",
        "list postgresql:///PATH",
        "stats PATH --timeout soon",
        "demo --sessions 0",
        "demo --sessions some",
        "demo --database :memory:",
    ],
)
def test_wrong_usage_is_2(arguments: str, database: Path, capsys: Output) -> None:
    """What was typed wrongly is told apart from what is not there, and no file is made."""
    words = arguments.replace("PATH", str(database)).split()
    code, output, errors = run_here(capsys, *words)
    assert (code, output) == (2, "")
    assert errors.startswith("usage: ")
    assert "error: " in errors.splitlines()[-1]
    assert not database.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["stats", "--timeout", "0"],
        ["stats", "--timeout", "-1"],
        ["stats", "--timeout", "nan"],
        ["stats", "--timeout", "1e300"],
        ["list", "--child", ""],
        ["list", "--child", "x" * 256],
        ["end", "ACTIVE", "--reason", ""],
        ["end", "ACTIVE", "--reason", "x" * 256],
    ],
    ids=lambda arguments: " ".join(arguments)[:20],
)
def test_what_the_library_refuses_is_2(
    arguments: list[str], database: Path, filled: Sessions, capsys: Output
) -> None:
    """An argument that only the library knows to be wrong is one line, and changes nothing."""
    command, *options = [word.replace("ACTIVE", filled.active) for word in arguments]
    code, output, errors = run_here(capsys, command, database, *options)
    assert (code, output) == (2, "")
    assert is_one_line(errors)
    assert "must" in errors
    _, listed, _ = run_here(capsys, "list", database, "--status", "active")
    assert filled.active in listed


def test_what_was_typed_commands_no_terminal(database: Path, capsys: Output) -> None:
    """An argument that nobody asked for is named with its escapes escaped."""
    code, _, errors = run_here(capsys, "stats", database, "\x1b[31mred")
    assert code == 2
    assert errors.endswith("unrecognized arguments: \\u001b[31mred\n")


def test_help_and_version_are_0(capsys: Output) -> None:
    """Both are answers, and not errors."""
    code, output, errors = run_here(capsys, "--help")
    assert (code, errors) == (0, "")
    commands = ("demo", "stats", "list", "show", "end", "cleanup")
    assert all(f"\n    {name} " in output for name in commands)
    assert run_here(capsys, "--version") == (0, f"sessionstore {__version__}\n", "")


def test_a_url_names_the_file(database: Path, filled: Sessions, capsys: Output) -> None:
    """PATH may be all that the library takes for a file."""
    assert run_here(capsys, "list", f"sqlite:///{database}", "--limit", "9")[0] == 0
    assert run_here(capsys, "list", f"sqlite:///{database}.none")[0] == 1


def test_an_output_in_ascii_gets_escapes(database: Path, filled: Sessions) -> None:
    """An encoding that lacks letters costs the letters, not the output; JSON stays the same."""
    environment = {"PYTHONIOENCODING": "ascii"}
    code, output, errors = run("list", database, environment=environment)
    assert (code, errors) == (0, "")
    assert r"\u5b50\u4f9b" in output
    code, output, errors = run("show", database, filled.active, "--json", environment=environment)
    assert (code, errors) == (0, "")
    assert json.loads(output)["data"] == {"story": STORY}


def test_a_reader_that_has_gone_is_no_error_to_speak_of(database: Path, filled: Sessions) -> None:
    """`list | head -1` ends without a traceback, or a word."""
    a_demo = ["demo", "--sessions", 1, "--database", database]
    for arguments in ["list", database], ["stats", database], ["--help"], a_demo:
        reading, writing = os.pipe()
        os.close(reading)
        with start(*arguments, stdout=writing) as process:
            os.close(writing)
            _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (1, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_an_output_that_is_full_is_one_line(database: Path, filled: Sessions) -> None:
    """What could not be written is told on standard error."""
    with open("/dev/full", "wb") as full, start("list", database, stdout=full) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert is_one_line(errors.decode())


def test_warnings_of_the_library_are_one_line(tmp_path: Path) -> None:
    """The adoption of a predecessor's file is told, in the form of all else."""
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TABLE sessions (id, child_id, status, started_at, ended_at, last_activity,"
            " data, metadata, interaction_count)"
        )
    code, _, errors = run("stats", path)
    assert code == 0
    assert is_one_line(errors)
    assert "sessionstore: warning: adopt" in errors


def test_a_warning_with_an_exception_is_one_line() -> None:
    """Of an exception the message is shown, and no traceback."""
    try:
        raise OSError("no\nroom")
    except OSError:
        record = logging.makeLogRecord(
            {"levelname": "ERROR", "msg": "failed", "exc_info": sys.exc_info()}
        )
    assert OneLineFormatter().format(record) == r"sessionstore: error: failed (no\nroom)"


def test_cells_are_measured_as_they_are_printed() -> None:
    """An escaped cell is as wide as its escapes."""
    assert list(table([("a\n", "b"), ("long", "c"), ("é", "d")])) == [
        r"a\n   b",
        "long  c",
        "é     d",
    ]


def test_demo_accounts_for_every_session_in_a_few_lines(database: Path, filled: Sessions) -> None:
    """On a pipe, and in a file with other sessions, which it leaves as they are."""
    code, output, errors = run("demo", "--sessions", 10, "--database", database)
    assert (code, errors) == (0, "")
    assert len(output.splitlines()) < 30
    assert "\r" not in output
    assert len(re.findall("^\\d+ of 10 ended, \\d+ active", output, re.MULTILINE)) >= 3
    assert "10 of 10 sessions are accounted for: 6 ended, 1 error, 3 timeout\n" in output
    assert re.search(r"^sessions +14$", output, re.MULTILINE)
    assert re.search(
        r"^[\d,]+ calls to create, touch, update and end sessions", output, re.MULTILINE
    )
    assert f'sqlite3 {database} "SELECT ' in output
    _, listed, _ = run("list", database, "--json")
    sessions = json.loads(listed)
    assert Counter(
        session["status"] for session in sessions if session["child_id"].startswith("demo-")
    ) == {"ended": 6, "error": 1, "timeout": 3}
    assert {session["id"]: session["status"] for session in sessions}[filled.active] == "active"


def test_demo_keeps_the_file_that_it_made(tmp_path: Path) -> None:
    """Without --database the file is in a temporary folder, and the command shown lists it."""
    code, output, _ = run("demo", "--sessions", 1, environment={"TMPDIR": str(tmp_path)})
    assert code == 0
    (path,) = tmp_path.glob("*/sessions.db")
    (command,) = re.findall(r"^  (.+ -m sessionstore list .+)$", output, re.MULTILINE)
    words = shlex.split(command)
    assert words[0] == sys.executable
    assert str(path) in words
    listed = subprocess.run([*words, "--json"], capture_output=True, check=True).stdout
    assert len(json.loads(listed)) == 1


def test_demo_draws_one_bar_on_a_terminal(database: Path) -> None:
    """The bar stays on its line, within the width of the terminal, and ends full."""
    ours, theirs = pty.openpty()
    environment = {"COLUMNS": "60", "LINES": "20"}
    arguments = ("demo", "--sessions", 2, "--database", database)
    with start(*arguments, stdout=theirs, environment=environment) as process:
        os.close(theirs)
        output = b"".join(iter(lambda: _read(ours), b"")).decode()
        assert process.wait(60) == 0
    os.close(ours)
    drawn = [line for line in output.split("\r") if "of 2 ended" in line]
    assert len(drawn) > 3
    assert all(len(line) < 60 for line in drawn)
    assert drawn[0].startswith("[-----")
    assert re.match(r"\[#+\] 2 of 2 ended, 0 active", drawn[-1])
    assert "\x1b" not in output


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so when the other side has been closed
        return b""


def test_demo_stops_at_ctrl_c_and_closes_the_file(database: Path) -> None:
    """The exit code is 130, without a traceback, and SQLite has tidied up its files."""
    with start("demo", "--database", database, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while b" ended, " not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"sessionstore: interrupted\n")
    assert not database.with_name("sessions.db-wal").exists()


def test_demo_in_a_place_where_it_cannot_write_is_1(tmp_path: Path, capsys: Output) -> None:
    """A folder in the place of the file, or a file in that of the folder, is one line."""
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "sessions.db"):
        code, _, errors = run_here(capsys, "demo", "--database", path)
        assert code == 1
        assert is_one_line(errors)


async def test_no_demo_session_that_is_talked_in_times_out(database: Path) -> None:
    """The clock waits for the conversations, even where it runs without any limit."""
    result = await demo.run(str(database), 100, lambda progress: None, minute=0)
    assert result.outcomes == {"ended": 60, "error": 10, "timeout": 30}
    assert result.missing == 0
    assert result.stats["total_sessions"] == 100


BY_ANOTHER = """
import asyncio, sys
from sessionstore import SessionManager

async def main():
    async with SessionManager(sys.argv[1], timeout=1, sweep_interval=None) as sessions:
        for session in await sessions.list_sessions(limit=2):
            await sessions.delete_session(session.id)
        await sessions.cleanup_inactive_sessions()

asyncio.run(main())
"""


async def test_demo_counts_what_it_was_not_told_of(database: Path) -> None:
    """What another process has ended is looked up in the file; what it has deleted is missing."""
    interfered = False

    def interfere(progress: demo.Progress) -> None:
        nonlocal interfered
        if progress.created == 10 and not interfered:
            interfered = True
            command = [sys.executable, "-c", BY_ANOTHER, str(database)]
            subprocess.run(command, cwd=ROOT, check=True, timeout=60)

    with patch.object(demo, "REPORT_INTERVAL", 0.005):  # often enough to be in time
        result = await demo.run(str(database), 10, interfere, minute=0.02)
    assert result.outcomes == {"timeout": 8}
    assert result.missing == 2


async def test_demo_sweeps_by_itself(database: Path) -> None:
    """Sessions that were left alone are timed out in the file, and on_end hears of them."""
    seen: list[demo.Progress] = []
    with patch.object(demo, "SWEEP_INTERVAL", 0.02):
        result = await demo.run(str(database), 10, seen.append, minute=0.02)
    assert result.outcomes == {"ended": 6, "error": 1, "timeout": 3}
    assert any(progress.ended for progress in seen[:-1])
    with closing(sqlite3.connect(database)) as connection:
        counts = connection.execute("SELECT status, count(*) FROM sessions GROUP BY status")
        assert dict(counts.fetchall()) == result.outcomes


async def test_the_clock_of_the_demo_never_reaches_the_present(database: Path) -> None:
    """It times out no session of others early, however long the conversations take."""
    seen: list[demo.Progress] = []
    with patch.object(demo, "AT_ONCE", 1):
        await demo.run(str(database), 20, seen.append, minute=0)
    assert seen[-1].ended == 20
    assert seen[-1].now - seen[0].now > timedelta(hours=3)  # one after the other, that is
    assert seen[-1].now < datetime.now(UTC)


async def test_a_report_that_fails_stops_the_demo(database: Path) -> None:
    """As when the reader of a pipe goes away: nothing is left running."""

    def fail(progress: demo.Progress) -> None:
        if progress.created:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await demo.run(str(database), 20, fail)
    assert len(asyncio.all_tasks()) == 1
    async with SessionManager(database, timeout=timedelta(days=1)) as sessions:
        assert await sessions.get_active_sessions()
