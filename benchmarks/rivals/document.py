# SPDX-License-Identifier: MIT
"""A session as one dict, for libraries that keep it whole: loaded, changed, and written back."""

from collections.abc import Callable
from typing import Any

from .base import Rival
from .table import now

Document = dict[str, Any]


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


class DocumentRival(Rival):
    """Changes a dict; a subclass loads and saves it."""

    def now(self) -> object:
        """Return the time as it is written."""
        return now()

    async def _change(self, session_id: str, change: Callable[[Document], Document]) -> bool:
        """Add to an active session what `change` makes of it, and the time; False if none is."""
        raise NotImplementedError

    async def touch(self, session_id: str) -> bool:
        """Load, count, save."""

        def count(session: Document) -> Document:
            return {"interaction_count": session["interaction_count"] + 1}

        return await self._change(session_id, count)

    async def update(self, session_id: str, data: dict[str, Any]) -> bool:
        """Load, merge, save."""
        return await self._change(session_id, lambda session: {"data": {**session["data"], **data}})

    async def end(self, session_id: str) -> bool:
        """Load, mark as ended, save."""
        return await self._change(session_id, lambda _: {"status": "ended", "ended_at": self.now()})
