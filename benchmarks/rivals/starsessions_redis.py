# SPDX-License-Identifier: MIT
"""starsessions, the sessions of Starlette and FastAPI, on its RedisStore."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from starlette.requests import HTTPConnection
from starsessions import JsonSerializer
from starsessions.session import SessionHandler, generate_session_id
from starsessions.stores.redis import RedisStore

from .base import Durability
from .document import Document, DocumentRival, new_document
from .redis_hash import CHUNK, LIFETIME, RedisRival, connect
from .redis_server import RedisServer


class StarsessionsRedis(RedisRival, DocumentRival):
    """Loads, changes and saves a session with the library's handler, as its middleware does.

    The whole session is one JSON text, written back without a lock: of two touches of a session at
    once one is lost, and so may be its end.
    """

    name: ClassVar = "starsessions on Redis"
    distributions: ClassVar = ("starsessions", "starlette", "redis")

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Start or find the server and connect."""
        self._server = RedisServer(folder, durability)
        self._client = connect(self._server)
        self._store = RedisStore(connection=self._client)
        self._serializer = JsonSerializer()

    async def close(self) -> None:
        """Disconnect and stop the server."""
        try:
            await self._client.aclose()
        finally:
            self._server.stop()

    async def fill(self, count: int, data: dict[str, Any]) -> list[str]:
        """Write what the handler would, in pipelines."""
        ids = [str(generate_session_id()) for _ in range(count)]
        at = time.time()
        metadata = {"lifetime": LIFETIME, "created": at, "last_access": at}
        text = json.dumps({**new_document("child", data), "__metadata__": metadata})
        for start in range(0, count, CHUNK):
            pipeline = self._client.pipeline(transaction=False)
            for id_ in ids[start : start + CHUNK]:
                pipeline.set(self._store.prefix(id_), text, ex=LIFETIME)
            await pipeline.execute()
        return ids

    async def create(self, child_id: str, data: dict[str, Any]) -> str:
        """Fill a new session and save it."""
        handler = await self._load(None)
        handler.connection.session.update(new_document(child_id, data))
        return str(await handler.save(LIFETIME))

    async def get(self, session_id: str) -> object | None:
        """Load the session; the library decodes it."""
        handler = await self._load(session_id)
        return None if handler.is_empty else handler.connection.session

    async def _change(self, session_id: str, change: Callable[[Document], Document]) -> bool:
        handler = await self._load(session_id)
        session = handler.connection.session
        if session.get("status") != "active":
            return False
        session.update(change(session), last_activity=self.now())
        await handler.save(LIFETIME)
        return True

    async def _load(self, session_id: str | None) -> Any:
        """Return a handler as the middleware makes one for each request, loaded."""
        request = HTTPConnection({"type": "http"})
        handler = SessionHandler(request, session_id, self._store, self._serializer, LIFETIME)
        await handler.load()
        return handler
