# SPDX-License-Identifier: MIT
"""The one rule of when a session has timed out.

A session times out at `last_activity + timeout`, or at `started_at + max_lifetime` if that is set
and earlier, whoever notices it and whenever. Times are integers of microseconds since the epoch,
UTC. Engines apply the rule as two cutoffs, Python as a moment; a property test holds them together.
"""

from collections.abc import Callable
from typing import NamedTuple

from .errors import InvalidArgumentError
from .session import EARLIEST, LATEST, Record, Session, SessionStatus


class Expiry(NamedTuple):
    """The idle timeout and, if there is one, the maximum lifetime, in microseconds."""

    timeout: int
    max_lifetime: int | None = None

    def expiration(self, started_at: int, last_activity: int) -> int:
        """Return when a session with these times expires."""
        idle = last_activity + self.timeout
        return idle if self.max_lifetime is None else min(idle, started_at + self.max_lifetime)

    def expires_at(self, record: Record) -> int:
        """Return when the session expires without further activity."""
        return self.expiration(record.started_at, record.last_activity)

    def session(self, record: Record, now: int) -> Session:
        """Return the session as it is at `now`: timed out from expires_at on, swept or not."""
        expires_at = self.expires_at(record)
        if now >= expires_at and record.status == "active":
            record = self.timed_out(record)
        return Session(record, expires_at)

    def timed_out(self, record: Record) -> Record:
        """Return the record of an active session as it is once it has timed out."""
        return record._replace(
            status=str(SessionStatus.TIMEOUT),
            ended_at=min(self.expires_at(record), LATEST),
            end_reason="timeout",
        )


class Moment(NamedTuple):
    """The time of a call, with the rule of expiry: from it come both cutoffs.

    A session is live at a moment if its status is active, its last_activity is after idle_cutoff
    and its started_at after lifetime_cutoff.
    """

    now: int
    expiry: Expiry

    @property
    def idle_cutoff(self) -> int:
        """The last_activity at or before which a session has timed out."""
        return self.now - self.expiry.timeout

    @property
    def lifetime_cutoff(self) -> int:
        """The started_at at or before which a session has timed out; before all times if none."""
        lifetime = self.expiry.max_lifetime
        return EARLIEST - 1 if lifetime is None else self.now - lifetime


def read_clock(clock: Callable[[], float]) -> int:
    """Return the clock's seconds since the epoch as microseconds, within the years 1 to 9999.

    Raises:
        InvalidArgumentError: the clock returned something that is no time.
    """
    try:
        micros = round(clock() * 1_000_000)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgumentError("the clock must return seconds since the epoch") from error
    return max(EARLIEST, min(micros, LATEST))
