# SPDX-License-Identifier: MIT
"""Django's session backend cached_db: a table in SQLite, and the local-memory cache before it.

Django's settings belong to the process, so only one of these may be open in it at a time.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import django
from asgiref.sync import sync_to_async
from django.conf import settings

from .base import Durability
from .document import Document, DocumentRival, new_document
from .table import BUSY_TIMEOUT, FILE, insert_rows, pragmas

LIFETIME = timedelta(days=1)

if not settings.configured:  # what differs between stores is set by _point_to
    settings.configure(
        SECRET_KEY="benchmarks",  # noqa: S106  # it signs made-up sessions only
        INSTALLED_APPS=["django.contrib.sessions"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "CONN_MAX_AGE": None}},
        SESSION_COOKIE_AGE=int(LIFETIME.total_seconds()),
        USE_TZ=True,
        LOGGING_CONFIG=None,
    )
    django.setup()

from django.contrib.sessions.backends.base import VALID_KEY_CHARS  # noqa: E402  # needs settings
from django.contrib.sessions.backends.cached_db import SessionStore  # noqa: E402
from django.core.cache import caches  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connections  # noqa: E402
from django.utils.crypto import get_random_string  # noqa: E402

# The table of Django's own model, and the form in which it writes times.
INSERT_SESSION = """
INSERT INTO django_session (session_key, session_data, expire_date)
VALUES (?, ?, ?)
"""
TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"
LOCAL_MEMORY = "django.core.cache.backends.locmem.LocMemCache"
NO_CACHE = "django.core.cache.backends.dummy.DummyCache"


class DjangoSessions(DocumentRival):
    """Loads, changes and saves a session as an asynchronous view does.

    The whole session is one signed text, written back without a lock: of two touches of a session
    at once one is lost, and so may be its end. The cache belongs to the process: get does not see
    what another one has changed.

    All calls share one thread and one connection here. Under ASGI each request has both to itself,
    made anew, which is slower.
    """

    name: ClassVar = "Django, cached_db"
    distributions: ClassVar = ("Django",)

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Point Django to the file, and make its table."""
        self._path = folder / FILE
        _point_to(self._path, durability, cache_size)
        await sync_to_async(call_command)("migrate", verbosity=0)

    async def close(self) -> None:
        """Close the connection and empty the cache. The thread stays, asgiref's for the process."""
        caches["default"].clear()
        await sync_to_async(connections.close_all)()

    async def fill(self, count: int, data: dict[str, Any]) -> list[str]:
        """Insert rows with one and the same content, past the ORM."""
        ids = [str(get_random_string(32, VALID_KEY_CHARS)) for _ in range(count)]
        content = SessionStore().encode(new_document("child", data))
        expires = (datetime.now(UTC) + LIFETIME).strftime(TIME_FORMAT)
        insert_rows(self._path, INSERT_SESSION, [(id_, content, expires) for id_ in ids])
        return ids

    async def create(self, child_id: str, data: dict[str, Any]) -> str:
        """Fill a new session and save it."""
        store = SessionStore()
        await store.aupdate(new_document(child_id, data))
        await store.asave()
        return str(store.session_key)

    async def get(self, session_id: str) -> object | None:
        """Load the session; Django decodes it."""
        return await SessionStore(session_id).aload() or None

    async def _change(self, session_id: str, change: Callable[[Document], Document]) -> bool:
        store = SessionStore(session_id)
        if await store.aget("status") != "active":
            return False
        change_of = change(dict(await store.aitems()))
        await store.aupdate({"last_activity": self.now(), **change_of})
        await store.asave()
        return True


def _point_to(path: Path, durability: Durability, cache_size: int) -> None:
    """Change the settings that connections are made from; none is open now."""
    connections.settings["default"]["NAME"] = str(path)
    connections.settings["default"]["OPTIONS"] = {
        "init_command": "; ".join(pragmas(durability)),
        "transaction_mode": "IMMEDIATE",
        "timeout": BUSY_TIMEOUT,
    }
    caches.settings["default"] = {
        "BACKEND": LOCAL_MEMORY if cache_size else NO_CACHE,
        "LOCATION": str(path),
        "OPTIONS": {"MAX_ENTRIES": cache_size},
    }
    with suppress(AttributeError):  # none was made yet
        del caches["default"]
