# SPDX-License-Identifier: MIT
"""The exceptions of the package, under one root.

Absence is no exception: a session that is not there is None, False or 0. An exception is for what
the caller must fix (InvalidArgumentError, StoreClosedError, SchemaError) or cannot help
(StoreBusyError, StorageError). A message says what was wrong and what to do, and quotes no data.
"""


class SessionStoreError(Exception):
    """Base class of all exceptions raised by this package."""


class InvalidArgumentError(SessionStoreError, ValueError):
    """An argument is invalid. Nothing has been written."""


class StoreClosedError(SessionStoreError, RuntimeError):
    """The store is not open, or not open in this event loop or process."""


class StoreBusyError(SessionStoreError):
    """Another process or program has held a lock for too long. Nothing has been written."""


class SchemaError(SessionStoreError):
    """The tables are of a newer release or of another program. They are as they were."""


class StorageError(SessionStoreError):
    """The database or the disk refused: a full disk, an I/O error, a damaged file."""
