# SPDX-License-Identifier: MIT
"""A session as one dict, for the libraries that keep it whole: made, and changed in place."""

from collections.abc import Callable
from typing import Any

from .table import now

Document = dict[str, Any]
Change = Callable[[Document], None]


def new_document(child_id: str, data: dict[str, Any]) -> Document:
    """Return an active session."""
    at = now()
    return {
        "child_id": child_id,
        "status": "active",
        "started_at": at,
        "last_activity": at,
        "interaction_count": 0,
        "data": data,
    }


def is_active(session: Document | None) -> bool:
    """Tell whether there is a session, and it has not ended."""
    return session is not None and session.get("status") == "active"


def touch(session: Document) -> None:
    """Set the time and raise the count."""
    session["last_activity"] = now()
    session["interaction_count"] += 1


def merge(data: dict[str, Any]) -> Change:
    """Return the change that merges the data in."""

    def change(session: Document) -> None:
        session["last_activity"] = now()
        session["data"] = {**session["data"], **data}

    return change


def end(session: Document) -> None:
    """Mark it as ended."""
    session["status"] = "ended"
    session["ended_at"] = now()
