# SPDX-License-Identifier: MIT
"""An asynchronous session manager on one SQLite file.

What is imported here is the public API; all else may change. The only dependency is aiosqlite.
"""

from .errors import (
    InvalidArgumentError,
    SchemaError,
    SessionStoreError,
    StorageError,
    StoreBusyError,
    StoreClosedError,
)
from .manager import SessionManager
from .session import Session, SessionStats, SessionStatus

__all__ = [
    "InvalidArgumentError",
    "SchemaError",
    "Session",
    "SessionManager",
    "SessionStats",
    "SessionStatus",
    "SessionStoreError",
    "StorageError",
    "StoreBusyError",
    "StoreClosedError",
]

__version__ = "0.5.0"
