# SPDX-License-Identifier: MIT
"""sessionstore itself, and another release of it, each through its public methods."""

import sqlite3
import sys
from contextlib import closing
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from uuid import UUID

import sessionstore
from sessionstore.session import new_id as new_uuid7

from .base import Durability, Rival
from .table import FILE, insert_rows, new_id, starts

TIMEOUT = timedelta(days=1)  # that no measurement reaches
TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"  # the table is documented for other programs
UUID7 = 7


class Sessionstore(Rival):
    """Runs without a sweeper. Its calls are the manager's own methods, as users call them.

    It decides by itself what a commit survives: FULL for create, update and end, NORMAL for touch.
    So it is measured against both, and ignores which.
    """

    name: ClassVar = "sessionstore"
    distributions: ClassVar = ("aiosqlite",)
    package: ClassVar[ModuleType] = sessionstore

    @classmethod
    def version(cls) -> str:
        """Return the release, too."""
        return f"{cls.package.__name__} {cls.package.__version__}, {super().version()}"

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Open a manager, and put its methods in the place of those of the class."""
        self._path = folder / FILE
        self.manager = self.package.SessionManager(
            self._path, timeout=TIMEOUT, sweep_interval=None, cache_size=cache_size
        )
        await self.manager.open()
        vars(self).update(  # the methods themselves: a coroutine around each would cost time
            create=self.manager.create_session,
            get=self.manager.get_session,
            touch=self.manager.update_activity,
            update=self.manager.update_session,
            end=self.manager.end_session,
        )

    async def close(self) -> None:
        """Close the manager."""
        await self.manager.close()

    async def fill(self, count: int, data: dict[str, Any]) -> list[str]:
        """Create one session, and insert rows like it, each with an id and times of its own."""
        model_id = await self.create("model", data)
        with closing(sqlite3.connect(self._path)) as connection:
            connection.row_factory = sqlite3.Row
            select = "SELECT * FROM sessions WHERE id = ?"
            model = dict(connection.execute(select, (model_id,)).fetchone())
        await self.manager.delete_session(model_id)
        created_at = model["started_at"]
        rows = []
        for start in starts(count):
            id_ = new_id()
            if UUID(model_id).version == UUID7:
                id_ = new_uuid7(int(start.timestamp() * 1_000_000))
            at = start.strftime(TIME_FORMAT)
            row = {name: at if value == created_at else value for name, value in model.items()}
            rows.append(tuple((row | {"id": id_, "child_id": f"child-{id_[-8:]}"}).values()))
        marks = ", ".join("?" * len(model))
        insert = f"INSERT INTO sessions ({', '.join(model)}) VALUES ({marks})"  # noqa: S608
        insert_rows(self._path, insert, rows)
        return [row[list(model).index("id")] for row in rows]


class Release(Sessionstore):
    """Another release, from a folder that holds its package under another name."""

    name: ClassVar = "sessionstore, another release"

    @classmethod
    def check_needs(cls, release: Path | None) -> None:
        """Import the package."""
        if release is None:
            raise ImportError("--release, the folder of the package of another release")
        folder = release.resolve()
        sys.path.insert(0, str(folder.parent))
        try:
            cls.package = import_module(folder.name)
        finally:
            sys.path.remove(str(folder.parent))
        if not hasattr(cls.package, "SessionManager"):
            raise ImportError(f"{release} holds no release")
