# SPDX-License-Identifier: MIT
"""A row of the table to a Record, and back.

The end_reason stands in the metadata. What another program has written may be unreadable.
"""

import json
from typing import Any

from ..errors import StorageError
from ..session import UNREADABLE, Record, SessionStatus
from .times import from_text, to_text

_STATUSES = frozenset(map(str, SessionStatus))


def from_row(row: tuple[Any, ...]) -> Record:
    """Return the record of a row with the columns of queries.py.

    Raises:
        StorageError: the row cannot be read; nothing of it is quoted.
    """
    id_, child_id, status, started_at, ended_at, last_activity, data, metadata, count = row
    try:
        if not isinstance(id_, str) or not isinstance(child_id, str) or status not in _STATUSES:
            raise TypeError
        return Record(
            id_,
            child_id,
            status,
            from_text(started_at),
            None if ended_at is None else from_text(ended_at),
            from_text(last_activity),
            data,
            metadata,
            int(count),
            None if status == "active" else _end_reason(metadata),
        )
    except (TypeError, ValueError, OverflowError):
        raise StorageError(UNREADABLE) from None


def to_row(record: Record) -> dict[str, Any]:
    """Return the columns of a record's row, by name."""
    return {
        "id": record.id,
        "child_id": record.child_id,
        "status": record.status,
        "started_at": to_text(record.started_at),
        "ended_at": None if record.ended_at is None else to_text(record.ended_at),
        "last_activity": to_text(record.last_activity),
        "data": record.data,
        "metadata": _with_end_reason(record),
        "interaction_count": record.interaction_count,
    }


def _end_reason(metadata: str) -> str | None:
    try:
        reason = json.loads(metadata).get("end_reason")
    except (AttributeError, ValueError, RecursionError):
        return None
    return reason if isinstance(reason, str) else None


def _with_end_reason(record: Record) -> str:
    if record.end_reason is None:
        return record.metadata
    metadata = {**json.loads(record.metadata), "end_reason": record.end_reason}
    return json.dumps(metadata, ensure_ascii=False)
