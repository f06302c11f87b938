# SPDX-License-Identifier: MIT
"""The command line: look into a database file, end sessions in it, and watch the demo.

Everything goes through SessionManager. Only the demo makes a file. Exit codes: 0 done; 1 not there,
or a file that cannot be used; 2 wrong usage; 130 interrupted. An error is one line on standard
error, with argparse's usage before it if argparse has found it, and never a traceback.
"""

import argparse
import asyncio
import functools
import os
import shlex
import stat
import sys
import tempfile
from datetime import datetime
from typing import Any

from .. import InvalidArgumentError, Session, SessionManager, SessionStats, SessionStoreError
from . import demo
from .terminal import (
    Meter,
    complain,
    flush,
    give_up_output,
    json_lines,
    say,
    set_up,
    shorten,
    table,
)
from .usage import make_parser

FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = 130
CHILD_WIDTH = 36  # columns of a child's id in a list; show prints all of it


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code. argv is that of the process by default."""
    try:
        set_up()
        code = _run(argv)
        flush()
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except ValueError:  # what Python raises for a stream that was closed
        complain("the output is closed")
        return FAILED
    except OSError as error:
        give_up_output()
        if not isinstance(error, BrokenPipeError):  # a reader who has seen enough
            what = error.filename or "the output cannot be written"
            complain(f"{what}: {error.strerror or error}")
        return FAILED
    return code


def _run(argv: list[str] | None) -> int:
    try:
        options = make_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help, or what was wrong
        return stop.code if isinstance(stop.code, int) else 0
    try:
        asyncio.run(_COMMANDS[options.command](options))
    except InvalidArgumentError as error:  # what argparse let through
        complain(str(error))
        return WRONG_USAGE
    except _FailureError as failure:
        complain(str(failure))
    except SessionStoreError as error:
        complain(f"{options.path}: {error}")
    except (ValueError, RecursionError) as error:  # JSON that is infinite or nested too deep
        complain(f"{options.path}: a session in it cannot be read: {error}")
    else:
        return 0
    return FAILED


class _FailureError(Exception):
    """A file or session is not there, or not in the state that the command needs."""


async def _demo(options: argparse.Namespace) -> None:
    if options.path is None:
        options.path = _temporary_path()
    say(f"sessions of children, on a fast clock: {options.sessions:,}, in {options.path}")
    flush()
    meter = Meter()
    try:
        result = await demo.run(
            options.path, options.sessions, functools.partial(_show_progress, meter)
        )
    finally:
        meter.end()
    _report(result, options.sessions)
    file = shlex.quote(options.path)
    command = f"{shlex.quote(sys.executable)} -m {__name__.removesuffix('.cli.main')}"
    say(
        "",
        "Look into the file:",
        f"  {command} list {file} --limit 10",
        f"  {command} stats {file}",
        f'  sqlite3 {file} "SELECT status, count(*) FROM sessions GROUP BY status"',  # noqa: S608  # shown, not run
    )
    if result.missing:
        raise _FailureError(f"{result.missing} sessions have not ended, or were deleted meanwhile")


async def _stats(options: argparse.Namespace) -> None:
    async with _manager(options) as sessions:
        stats = await sessions.get_session_stats()
    say(*(json_lines(stats) if options.json else table(_stats_rows(stats), {1})))


async def _list(options: argparse.Namespace) -> None:
    async with _manager(options) as sessions:
        found = await sessions.list_sessions(
            child_id=options.child,
            status=options.status,
            limit=options.limit + 1,  # to know whether there are more
        )
    shown = found[: options.limit]
    if options.json:
        say(*json_lines([_fields(session) for session in shown]))
    else:
        head = ("ID", "CHILD", "STATUS", "STARTED (UTC)", "LAST ACTIVITY", "INTERACTIONS")
        say(*table([head, *map(_list_row, shown)], {5}))
    if len(found) > len(shown) > 0:
        complain(f"there are more than {len(shown)}; --limit shows more of them")


async def _show(options: argparse.Namespace) -> None:
    async with _manager(options) as sessions:
        session = await sessions.get_session(options.id)
    if session is None:
        raise _FailureError(f"there is no session {options.id}")
    fields = _fields(session)
    if options.json:
        say(*json_lines(fields))
        return
    documents = {name: json_lines(fields.pop(name)) for name in ("data", "metadata")}
    fields["duration"] = session.duration
    say(*table([name, "-" if value is None else str(value)] for name, value in fields.items()))
    for name, lines in documents.items():
        say(name, *(f"  {line}" for line in lines))


async def _end(options: argparse.Namespace) -> None:
    async with _manager(options) as sessions:
        ended = await sessions.end_session(options.id, options.reason)
        session = await sessions.get_session(options.id)
    if ended:
        say(f"session {options.id} has ended: {options.reason}")
    elif session is None:
        raise _FailureError(f"there is no session {options.id}")
    else:
        raise _FailureError(
            f"session {options.id} is not active: {session.status} since {session.ended_at}"
        )


async def _cleanup(options: argparse.Namespace) -> None:
    async with _manager(options) as sessions:
        number = await sessions.cleanup_inactive_sessions()
    say(f"sessions timed out: {number:,}")


_COMMANDS = {
    "demo": _demo,
    "stats": _stats,
    "list": _list,
    "show": _show,
    "end": _end,
    "cleanup": _cleanup,
}


def _manager(options: argparse.Namespace) -> SessionManager:
    """Return a manager of the sessions in the file. It must be there: none is made by looking."""
    sessions = SessionManager(
        options.path, timeout=options.timeout, sweep_interval=None, cache_size=0, create=False
    )
    try:
        mode = os.stat(options.path).st_mode
    except OSError as error:
        raise _FailureError(f"{options.path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise _FailureError(f"{options.path}: it is not a file")
    return sessions


def _temporary_path() -> str:
    try:
        folder = tempfile.mkdtemp(prefix="sessionstore-demo-")
    except OSError as error:
        raise _FailureError(f"there is no folder for the demo: {error}") from error
    return os.path.join(folder, "sessions.db")


def _show_progress(meter: Meter, progress: demo.Progress) -> None:
    active = progress.created - progress.ended
    meter.show(
        progress.ended / progress.sessions,
        f"{progress.ended:,} of {progress.sessions:,} ended, {active:,} active,"
        f" {progress.now:%H:%M} UTC",
    )


def _report(result: demo.Result, count: int) -> None:
    outcomes = ", ".join(
        f"{number:,} {status}" for status, number in sorted(result.outcomes.items())
    )
    say(f"{count - result.missing:,} of {count:,} sessions are accounted for: {outcomes}", "")
    rows = _stats_rows(result.stats)
    rows.append(("cache hits", f"{result.stats['cache_hits']:,}"))
    rows.append(("cache misses", f"{result.stats['cache_misses']:,}"))
    say(*table(rows, {1}), "")
    say(
        f"{result.writes:,} calls to create, touch, update and end sessions were acknowledged",
        f"in {result.working_seconds:.2f} s: {result.writes / result.working_seconds:,.0f} a"
        " second. Time in which all children paused is not counted.",
    )


def _stats_rows(stats: SessionStats) -> list[tuple[str, str]]:
    counts = {
        "sessions": stats["total_sessions"],
        **{f"  {status}": number for status, number in stats["by_status"].items()},
        "started today (UTC)": stats["sessions_today"],
        "bytes": stats["database_bytes"],
    }
    rows = [(name, f"{number:,}") for name, number in counts.items()]
    return [*rows, ("idle timeout (minutes)", f"{stats['session_timeout_minutes']:,g}")]


def _fields(session: Session) -> dict[str, Any]:
    """Return all that there is to know of a session, as JSON: its duration is in seconds."""
    return {
        "id": session.id,
        "child_id": session.child_id,
        "status": str(session.status),
        "is_active": session.is_active,
        "started_at": session.started_at.isoformat(),
        "last_activity": session.last_activity.isoformat(),
        "expires_at": session.expires_at.isoformat(),
        "ended_at": None if session.ended_at is None else session.ended_at.isoformat(),
        "end_reason": session.end_reason,
        "duration": session.duration.total_seconds(),
        "interaction_count": session.interaction_count,
        "data": session.data,
        "metadata": session.metadata,
    }


def _list_row(session: Session) -> tuple[str, ...]:
    return (
        session.id,
        shorten(session.child_id, CHILD_WIDTH),
        str(session.status),
        _to_seconds(session.started_at),
        _to_seconds(session.last_activity),
        str(session.interaction_count),
    )


def _to_seconds(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(" ", "seconds")
