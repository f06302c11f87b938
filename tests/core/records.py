# SPDX-License-Identifier: MIT
"""Records for tests that need no store."""

from typing import Any

from sessionstore.session import Record

NOW = 1_700_000_000_000_000  # microseconds


def record(session_id: str = "id", **fields: Any) -> Record:
    """Return the record of an active session that has just been created, but for the fields."""
    plain = Record(session_id, "lina", "active", NOW, None, NOW, "{}", "{}", 0, None)
    return plain._replace(**fields)
