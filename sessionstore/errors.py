# SPDX-License-Identifier: MIT
"""The exceptions of the package.

One root, SessionStoreError, for whoever wants to catch them all. Absence is never an exception:
a session that is not there is None, False or 0. An exception is for what the caller must fix
(InvalidArgumentError, StoreClosedError, SchemaError) or cannot help (StoreBusyError, StorageError).
Nothing is raised here, and nothing is imported.
"""


class SessionStoreError(Exception):
    """Be the root of every exception that the package raises."""


class InvalidArgumentError(SessionStoreError, ValueError):
    """Refuse an argument. Nothing was queued and nothing was written."""


class StoreClosedError(SessionStoreError, RuntimeError):
    """Refuse a call on a store that is not open, or not open in this event loop."""


class StoreBusyError(SessionStoreError):
    """Give up waiting for a lock that another program holds on the file. Nothing was written."""


class SchemaError(SessionStoreError):
    """Refuse a file whose tables this release cannot read. The file was left as it was."""


class StorageError(SessionStoreError):
    """Report what SQLite or the disk refused: a full disk, an I/O error, a damaged file."""
