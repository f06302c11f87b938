# SPDX-License-Identifier: MIT
"""Django's session backend cached_db: a table in SQLite, and the local-memory cache before it.

Django's settings belong to the process, so only one of these may be open in it at a time.
"""

import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from .document import new_document
from .installed import find_missing, versions
from .protocol import Durability, Rival
from .table import BUSY_TIMEOUT, FILE, now, pragmas

LIFETIME = timedelta(days=1)

# The table of Django's own model, and the form in which it writes times.
INSERT_SESSION = """
INSERT INTO django_session (session_key, session_data, expire_date)
VALUES (?, ?, ?)
"""
TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"
LOCAL_MEMORY = "django.core.cache.backends.locmem.LocMemCache"
NO_CACHE = "django.core.cache.backends.dummy.DummyCache"


class DjangoSessions(Rival):
    """Loads, changes and saves a session as an asynchronous view does.

    The whole session is one signed text, written back without a lock: of two touches of a session
    at once one is lost, and so may be its end. The cache belongs to the process: get does not see
    what another one has changed.

    All calls share one thread and one connection here. Under ASGI each request has both to itself,
    made anew, which is slower.
    """

    key: ClassVar = "django"
    name: ClassVar = "Django, cached_db"
    durabilities: ClassVar = frozenset(Durability)
    is_concurrent: ClassVar = True
    has_cache: ClassVar = True
    is_shareable: ClassVar = True

    def missing(self) -> str | None:
        """Return Django where it is not installed."""
        return find_missing("django")

    def version(self) -> str:
        """Return the versions of Django and SQLite."""
        return f"{versions('Django')}, SQLite {sqlite3.sqlite_version}"

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Point Django to the file, and make its table."""
        from asgiref.sync import sync_to_async

        self._path = folder / FILE
        _configure()
        _point_to(self._path, durability, cache_size)
        await sync_to_async(_make_table)()

    async def close(self) -> None:
        """Close the connection and empty the cache. The thread stays, asgiref's for the process."""
        from asgiref.sync import sync_to_async
        from django.core.cache import caches
        from django.db import connections

        caches["default"].clear()
        await sync_to_async(connections.close_all)()

    async def fill(self, count: int, data: dict[str, Any]) -> list[str]:
        """Insert rows with one and the same content, past the ORM."""
        from django.contrib.sessions.backends.base import VALID_KEY_CHARS
        from django.utils.crypto import get_random_string

        ids = [str(get_random_string(32, VALID_KEY_CHARS)) for _ in range(count)]
        content = _store(None).encode(new_document("child", data))
        expires = (datetime.now(UTC) + LIFETIME).strftime(TIME_FORMAT)
        with closing(sqlite3.connect(self._path, timeout=BUSY_TIMEOUT)) as connection:
            with connection:
                connection.executemany(INSERT_SESSION, [(id_, content, expires) for id_ in ids])
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return ids

    async def create(self, child_id: str, data: dict[str, Any]) -> str:
        """Fill a new session and save it."""
        store = _store(None)
        await store.aupdate(new_document(child_id, data))
        await store.asave()
        return str(store.session_key)

    async def get(self, session_id: str) -> object | None:
        """Load the session; Django decodes it."""
        return await _store(session_id).aload() or None

    async def touch(self, session_id: str) -> bool:
        """Load, count, save."""
        store = _store(session_id)
        if await store.aget("status") != "active":
            return False
        count = await store.aget("interaction_count")
        await store.aupdate({"last_activity": now(), "interaction_count": count + 1})
        await store.asave()
        return True

    async def update(self, session_id: str, data: dict[str, Any]) -> bool:
        """Load, merge, save."""
        store = _store(session_id)
        if await store.aget("status") != "active":
            return False
        merged = {**await store.aget("data"), **data}
        await store.aupdate({"last_activity": now(), "data": merged})
        await store.asave()
        return True

    async def end(self, session_id: str) -> bool:
        """Load, mark as ended, save."""
        store = _store(session_id)
        if await store.aget("status") != "active":
            return False
        await store.aupdate({"status": "ended", "ended_at": now()})
        await store.asave()
        return True


def _store(session_id: str | None) -> Any:
    """Return what a request calls request.session."""
    from django.contrib.sessions.backends.cached_db import SessionStore

    return SessionStore(session_id)


def _configure() -> None:
    """Set Django up, once in a process. What differs between stores is set by _point_to."""
    import django
    from django.conf import settings

    if settings.configured:
        return
    settings.configure(
        SECRET_KEY="benchmarks",  # noqa: S106 - it signs made-up sessions only
        INSTALLED_APPS=["django.contrib.sessions"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "CONN_MAX_AGE": None}},
        SESSION_COOKIE_AGE=int(LIFETIME.total_seconds()),
        USE_TZ=True,
        LOGGING_CONFIG=None,
    )
    django.setup()


def _point_to(path: Path, durability: Durability, cache_size: int) -> None:
    """Change the settings that connections are made from; none is open now."""
    from django.core.cache import caches
    from django.db import connections

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


def _make_table() -> None:
    from django.contrib.sessions.models import Session
    from django.db import connection

    if Session._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Session)
