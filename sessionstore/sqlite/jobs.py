# SPDX-License-Identifier: MIT
"""A job: one function on its way to a connection's thread and back, and what watches over it.

While a job is under way the event loop looks after it every few milliseconds: it lends the thread
the GIL, and where the job still waits for a lock when its time is over, it lets the callers go. A
job that gets its lock after that finds that its turn was given up, and does nothing. Nothing is
known here of SQLite.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

from ..errors import StoreBusyError
from .concurrency import Outcome

Result = TypeVar("Result")

GUARD_DELAY = 0.005  # seconds: CPython's switch interval
GUARD_DELAY_WAITING = 0.02  # seconds, while the job waits for a lock and needs no GIL
GUARD_HOLD = 0.001  # seconds


class Turn:
    """A job's turn to write: claimed by its job, or given up by its callers, but never both."""

    def __init__(self, patience: float) -> None:
        self.patience = patience  # seconds
        self.announces = False  # whether the job will call announce() in time
        self.waiting = False  # for a lock, without need of the GIL
        self.before: Job[Any] | None = None  # whose end is still to be announced
        self._decided = threading.Lock()
        self._claimed = False

    def wait(self) -> None:
        """Say that a lock is waited for. For the job; for SQLite's it does so 0.1 s late."""
        self.waiting = True
        self.announce()

    def announce(self) -> None:
        """Announce the end of the job before, if that is still to be done. For the job.

        Best right before SQLite works for long: it lets go of the GIL, so that the event loop can
        serve the callers of that job meanwhile. Without this, each would wait for the other.
        """
        before, self.before = self.before, None
        if before is not None:
            before.announce()

    def claim(self) -> None:
        """Begin for good; raise StoreBusyError where nobody waits any more. For the job."""
        if not self._claimed and not self._decided.acquire(blocking=False):
            raise StoreBusyError("given up before the lock was free")
        self._claimed = True

    @property
    def is_over(self) -> bool:
        """Whether it was given up. For the job, to know when to stop trying."""
        return self._decided.locked() and not self._claimed

    def give_up(self) -> bool:
        """Stop waiting, and return whether that was in time. For the event loop."""
        return self._decided.acquire(blocking=False)


class Errand:
    """What a connection's thread is given: a job, to be run once.

    An object of its own and not a partial: aiosqlite logs what it runs, and a partial would show
    the arguments, which are sessions' data. It lets go of the job, since the thread keeps its last
    errand: where the event loop was closed before it heard of the outcome, the job would keep its
    callers alive, and with them the store, for as long as the process lives.
    """

    def __init__(self, job: "Job[Any]") -> None:
        self._jobs = [job]

    def __call__(self) -> None:
        """Run the job on the connection's thread."""
        self._jobs.pop().run()


class Job(Generic[Result]):
    """One function, its outcome, and the guard.

    The outcome goes to `on_end`, in the event loop; nothing is held on to after that. The end is
    announced to the event loop by the job itself, or by the next one if that offers to.
    """

    def __init__(
        self,
        function: Callable[[], Result],
        on_end: Callable[[Outcome[Result]], object],
        turn: Turn | None = None,
        before: "Job[Any] | None" = None,
    ) -> None:
        """Take the function, its turn if it needs a lock, and the job before it on the thread."""
        self._before = before
        self._loop = asyncio.get_running_loop()
        self._function = function
        self._on_end: Callable[[Outcome[Result]], object] | None = on_end
        self._turn = turn
        self._deadline = self._loop.time() + turn.patience if turn is not None else None
        self._has_ended = False
        self._outcome: Outcome[Result] | None = None  # while it is not announced
        self._is_announced_by_next = False
        if before is not None and turn is not None and turn.announces:
            turn.before = before
            before._is_announced_by_next = True
        self._done = threading.Lock()
        self._done.acquire()
        self._guard = self._loop.call_later(GUARD_DELAY, self._watch)

    def run(self) -> None:
        """Run on the connection's thread."""
        self._outcome = self._run()
        if self._turn is not None:
            self._turn.announce()
        if not self._is_announced_by_next:
            self.announce()
        self._has_ended = True
        self._done.release()

    def announce(self) -> None:
        """Tell the event loop of the outcome, once. For the connection's thread."""
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            with suppress(RuntimeError):  # the event loop was closed: nobody waits for the outcome
                self._loop.call_soon_threadsafe(self._settle, outcome)

    @property
    def is_under_way(self) -> bool:
        """Whether it has not ended yet."""
        return not self._has_ended

    @property
    def _is_held_up(self) -> bool:
        """Whether it waits for something else than the end of jobs that work."""
        job = self._before
        while job is not None and job.is_under_way:
            if job._turn is not None and (job._turn.waiting or job._turn.is_over):
                return True
            job = job._before
        return self._before is None or not self._before.is_under_way

    def give_up(self) -> bool:
        """Let the callers go, if the job has not claimed its turn; return whether it is so."""
        if self._turn is None or not self._turn.give_up():
            return False
        busy = StoreBusyError("another process or program holds the database's lock; try again")
        self._settle(partial(_raise, busy))
        return True

    def hurry(self, patience: float) -> None:
        """Wait for a lock for so many seconds more, at most."""
        if self._deadline is not None and self._turn is not None:
            self._deadline = min(self._deadline, self._loop.time() + patience)
            self._turn.patience = min(self._turn.patience, patience)

    def _run(self) -> Outcome[Result]:
        function = self._function
        del self._function
        try:
            result = function()
        except BaseException as error:
            return partial(_raise, error)
        return lambda: result

    def _settle(self, outcome: Outcome[Result]) -> None:
        self._guard.cancel()
        self._before = None
        on_end, self._on_end = self._on_end, None
        if on_end is not None:  # else it was given up
            on_end(outcome)

    def _watch(self) -> None:
        """Give up where time is over; else give the thread the GIL where a busy loop starves it.

        Between any two steps of SQLite the thread needs the GIL. A loop that always has callbacks
        ready lets go of it in each pass, and takes it back before the thread has woken up. Only
        blocking on a lock really hands it over. Of several jobs only the first is looked after, or
        the loop would do nothing else. A job that waits for another process needs the GIL only when
        it has got the lock, and cannot say so before it has the GIL: the guard comes rarer.
        """
        is_over = self._deadline is not None and self._loop.time() > self._deadline
        if is_over and self._is_held_up and self.give_up():
            return
        if self._before is not None and self._before.is_under_way:
            self._guard = self._loop.call_later(GUARD_DELAY, self._watch)
        elif not self._done.acquire(timeout=GUARD_HOLD):
            waiting = self._turn is not None and self._turn.waiting
            delay = GUARD_DELAY_WAITING if waiting else GUARD_DELAY
            self._guard = self._loop.call_later(delay, self._watch)


def _raise(error: BaseException) -> NoReturn:
    raise error
