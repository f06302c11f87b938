# SPDX-License-Identifier: MIT
"""Adoption of a file that the SQLAlchemy predecessor made.

Such a file has a table `sessions` with the columns of today (metadata is session_metadata in its
later version), nullable, without our bookkeeping; data and metadata hold str(dict). Adoption runs
inside the write transaction of schema.py, which makes the new table. Nothing is lost: a copy of
the whole file is made first, what cannot be read as a dict is kept whole under the key "legacy",
and a row that cannot be kept at all stops the adoption and leaves the file as it was.
"""

import ast
import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..arguments import check_count, check_session_id, check_text
from ..errors import SchemaError
from ..session import Record, SessionStatus
from . import queries
from .connection import make_file
from .rows import to_row
from .times import from_text

logger = logging.getLogger(__name__)

# Of a table that will never change, whatever becomes of ours.
_TIMES = {"started_at", "ended_at", "last_activity"}
_COMMON_COLUMNS = {"id", "child_id", "status", "data", "interaction_count", *_TIMES}
_METADATA_COLUMNS = ("metadata", "session_metadata")


def is_predecessor(columns: list[str]) -> bool:
    """Say whether a table with these columns is one that the predecessor made."""
    return any({*columns} == _COMMON_COLUMNS | {metadata} for metadata in _METADATA_COLUMNS)


@contextmanager
def adopting(connection: sqlite3.Connection, now: int) -> Iterator[None]:
    """Move the predecessor's rows out of the way of a block that makes the new table, and back."""
    connection.execute(queries.CREATE_PREDECESSOR_ROWS)
    connection.execute(queries.DROP_SESSIONS)
    yield
    _bring_back(connection, now)
    connection.execute(queries.DROP_PREDECESSOR_ROWS)


@contextmanager
def copied(path: str) -> Iterator[None]:
    """Make a copy of the file, and take it away again if the block, an adoption, fails."""
    copy = _copy_beside(path)
    try:
        yield
    except BaseException:
        Path(copy).unlink(missing_ok=True)
        raise
    logger.warning("adopted the sessions of an earlier system; a copy of the file is %s", copy)


def _bring_back(connection: sqlite3.Connection, now: int) -> None:
    """Write the rows that were set aside into the new table."""
    factory = connection.text_factory
    connection.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
    try:
        cursor = connection.execute(queries.SELECT_PREDECESSOR_ROWS)
        columns = [description[0] for description in cursor.description]
        for number, values in enumerate(cursor, start=1):
            record = _convert(dict(zip(columns, values, strict=True)), number, now)
            try:
                connection.execute(queries.INSERT_SESSION, to_row(record))
            except sqlite3.IntegrityError as error:
                raise _refusal(
                    number, "has the id of another row, or data that SQLite refuses"
                ) from error
    finally:
        connection.text_factory = factory


def _copy_beside(path: str) -> str:
    """Copy the database with SQLite's own backup, and give the copy its name once it is whole."""
    copy, number = f"{path}.before-sessionstore", 1
    part = f"{copy}.part"
    Path(part).unlink(missing_ok=True)  # left by an adoption that was cut off
    make_file(part)
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(part)) as target:
            source.backup(target)
        while os.path.lexists(copy):
            number += 1
            copy = f"{path}.before-sessionstore-{number}"
        os.rename(part, copy)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return copy


def _convert(old: dict[str, Any], number: int, now: int) -> Record:
    """Turn a row of the predecessor into one of ours, filling what it left null."""
    try:
        last_activity = _time(old["last_activity"])
        started = _first(_time(old["started_at"]), last_activity, now)
        last_activity = _first(last_activity, started)
        ended_at = _time(old["ended_at"])
        count = check_count("interaction_count", max(0, int(old["interaction_count"] or 0)))
        child_id = check_text("child_id", str(old["child_id"] or "unknown"))
    except (TypeError, ValueError, OverflowError):  # which may quote what it read
        raise _refusal(number, "has a time, a count or a child_id that cannot be read") from None
    if check_session_id(old["id"]) is None:
        raise _refusal(number, "has no id that fits")
    metadata = _object(old["metadata"] if "metadata" in old else old["session_metadata"])
    status = _status(old["status"], ended_at, metadata)
    return Record(
        id=old["id"],
        child_id=child_id,
        status=status,
        started_at=started,
        ended_at=None if status == "active" else _first(ended_at, last_activity),
        last_activity=last_activity,
        data=json.dumps(_object(old["data"]), ensure_ascii=False),
        metadata=json.dumps(metadata, ensure_ascii=False),
        interaction_count=count,
        end_reason=None,  # it is in the metadata, if anywhere
    )


def _first(*times: int | None) -> int:
    """Return the first of the times that is there."""
    return next(time for time in times if time is not None)


def _refusal(number: int, problem: str) -> SchemaError:
    return SchemaError(f"row {number} of the predecessor's table {problem}; the file is unchanged")


def _time(value: object) -> int | None:
    """Read the predecessor's time, naive or not; raise if it is none."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return from_text(moment.isoformat(" ", "microseconds"))


def _status(value: object, ended_at: int | None, metadata: dict[str, Any]) -> str:
    """Return the status of today; one that is unknown becomes an error and is kept in metadata."""
    status = str(value or "active").lower()
    if status not in set(SessionStatus):
        metadata["legacy_status"] = str(value)
        return "error"
    return "ended" if status == "active" and ended_at is not None else status


def _object(value: object) -> dict[str, Any]:
    """Read a JSON object, or what str(dict) wrote; keep any other text whole."""
    if value is None:
        return {}
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
            if found is None:
                return {}
            if isinstance(found, dict):
                # JSON has no tuples and no numbers for keys; what it lacks altogether raises.
                text_found = json.dumps(found, allow_nan=False)
                plain: dict[str, Any] = json.loads(text_found, object_pairs_hook=_unique)
                json.dumps(plain, ensure_ascii=False).encode()
                return plain
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
    return {"legacy": text} if text.strip() else {}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that would lose a key: the number 1 and the text "1" are one in JSON."""
    plain = dict(pairs)
    if len(plain) != len(pairs):
        raise ValueError
    return plain
