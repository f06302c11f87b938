# SPDX-License-Identifier: MIT
"""A watch over all that the suite logs and raises: no session id in full, and no data.

While it is on, the loggers of the package, of aiosqlite and of asyncio log everything, whatever
their level, and each record is searched; those below the level go no further. Each of our errors is
searched when it goes out of use, with all that it is chained to and that a report would show. It
knows what an id looks like, and is told of child ids, reasons and data as they pass the checks.
"""

import logging
import re
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import sessionstore.sqlite  # whose loggers are to be there
from sessionstore import SessionStoreError, manager

LOGGERS = ("sessionstore", "aiosqlite", "asyncio")
# A UUID of version 4 or 7.
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[47][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
SHORTEST = 8  # characters: what is shorter, such as "lina", may be in a text by chance
REMEMBERED = 40  # of what was handed in last
LONGEST = 60  # characters of data that are looked for
# Names and words of the package's own, "child_id" for one, which its texts hold anyway.
OWN = "".join(path.read_text() for path in Path(sessionstore.__file__).parent.rglob("*.py"))


class Watch(logging.Filter):
    """Searches records and errors, and keeps what it found."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.searched = 0  # records and errors
        self._formatter = logging.Formatter()
        self._secrets: deque[str] = deque(maxlen=REMEMBERED)

    def tell(self, secret: str) -> None:
        """Take note of data, or of a text that may be a name."""
        if len(secret) >= SHORTEST and secret not in OWN:
            self._secrets.append(secret.strip("{}")[:LONGEST])

    def take(self) -> list[str]:
        """Return what was found, and begin anew."""
        found, self.found = self.found, []
        self._secrets.clear()
        return found

    def filter(self, record: logging.LogRecord) -> bool:
        """Search a record as any handler would write it; let it on where its level says so."""
        self._search(f"{record.name} logs", self._formatter.format(record))
        return record.levelno >= logging.getLogger().getEffectiveLevel()

    def search_error(self, error: SessionStoreError) -> None:
        """Search an error and its chain: their texts, and the documents that they carry along."""
        link: BaseException | None = error
        while link is not None:
            carried = [str(getattr(link, name, "")) for name in ("doc", "object")]
            shown = [*traceback.format_exception_only(link), repr(link), *carried]
            self._search(f"{type(link).__name__} says", "\n".join(shown))
            link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)

    def _search(self, where: str, text: str) -> None:
        self.searched += 1
        if ID.search(text) or any(secret in text for secret in self._secrets):
            self.found.append(f"{where}: {text}")

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watch during the block."""
        names = [name for name in logging.root.manager.loggerDict if name.startswith(LOGGERS)]
        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                logger = logging.getLogger(name)
                patch.setattr(logger, "filters", [*logger.filters, self])
                patch.setattr(logger, "level", logging.DEBUG)
            logging.root.manager._clear_cache()  # type: ignore[attr-defined]  # of what is enabled
            patch.setattr(
                SessionStoreError, "__del__", lambda error: self.search_error(error), raising=False
            )
            for name in ("check_owner", "check_text", "encode_object"):
                patch.setattr(manager, name, self._noting(getattr(manager, name)))
            yield
        logging.root.manager._clear_cache()  # type: ignore[attr-defined]

    def _noting(self, check: Callable[..., str]) -> Callable[..., str]:
        def checked(*arguments: Any) -> str:
            text = check(*arguments)
            self.tell(text)
            return text

        return checked


watch = Watch()
