# SPDX-License-Identifier: MIT
"""A lane: calls on their way to a connection's thread, gathered into batches.

The calls that come while a batch is at work are the next batch: there is no timer, and no task that
somebody could cancel. The thread takes what has gathered, works it off, hands the outcome to the
event loop, and puts itself at the end of the connection's queue if more has come; so several lanes
of one connection take turns. Of many calls it takes half: the callers of one half are served while
the other half is at work. What a batch does is the affair of writer.py and reader.py.
"""

import asyncio
import logging
import math
import random
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import StorageError, StoreBusyError, StoreClosedError
from ..store import Commit
from .connection import Connection, ours, unless_busy

logger = logging.getLogger(__name__)

BATCH_LIMIT = 200  # calls: the event loop serves so many at once
BATCH_WHOLE = 50  # calls: of more than so many, half is taken
BATCH_BYTES = 4_194_304

PAUSE = (0.000_1, 0.000_5)  # seconds between two tries to get a lock, at least and at most
PAUSE_LATER = (0.002, 0.005)  # once nobody has written for so long:
PAUSE_LATER_FROM = 0.2

GUARD_INTERVAL = 0.005  # seconds: CPython's switch interval
GUARD_HOLD = 0.002  # seconds
GUARD_PATIENCE = 8  # intervals, while the thread waits for a lock and seldom needs the GIL


Result = TypeVar("Result")


@dataclass(slots=True)
class Operation(Generic[Result]):
    """What a call asks for; its parameter is the type of what it gives."""

    weight: int = field(default=0, kw_only=True)  # about how many bytes it adds to its batch


@dataclass(slots=True)
class Run(Operation[Result]):
    """Asks for what a function does, alone; it is run again if another's lock was in the way."""

    function: Callable[..., Result]  # of the connection and the arguments
    arguments: tuple[Any, ...] = ()


class Call(NamedTuple):
    """One call: what it asks for, who waits for it, and until when it may wait for a lock."""

    operation: Any
    future: "asyncio.Future[Any]"
    deadline: float  # by time.monotonic()


class Done(NamedTuple):
    """What became of calls: a result or an exception each, and the commit that did it, if any."""

    outcomes: Sequence[tuple[Call, object]]
    commit: Commit | None = None


class Guard:
    """What lends the threads of a store the GIL when a busy event loop would starve them.

    A thread needs the GIL between any two steps. A loop that always has something ready lets go of
    it in each pass, and takes it back before the thread has woken up. So while a lane is at work
    the loop looks every 5 ms, and if no batch has ended since, it blocks on a queue for at most
    2 ms: that really hands the GIL over.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lanes: list[Lane] = []
        self._ended: SimpleQueue[None] = SimpleQueue()  # an item for each batch
        self._is_watching = False
        self._looks = 0

    def add(self, lane: "Lane") -> None:
        """Look after a lane, too."""
        self._lanes.append(lane)

    def remove(self, lane: "Lane") -> None:
        """Look after a lane no more."""
        self._lanes.remove(lane)

    def watch(self) -> None:
        """Look after the lanes until all of them rest. For the event loop."""
        if not self._is_watching:
            self._is_watching = True
            self._loop.call_later(GUARD_INTERVAL, self._look)

    def note_end(self) -> None:
        """Note that a batch has ended. For the threads."""
        self._ended.put(None)

    def _look(self) -> None:
        at_work = [lane for lane in self._lanes if not lane.is_resting]
        self._is_watching = bool(at_work)
        if not at_work:
            self._drain()
            return
        self._looks += 1
        if not all(lane.is_waiting for lane in at_work) or self._looks % GUARD_PATIENCE == 0:
            with suppress(Empty):
                self._ended.get(timeout=GUARD_HOLD)
        self._drain()
        self._loop.call_later(GUARD_INTERVAL, self._look)

    def _drain(self) -> None:
        with suppress(Empty):
            while True:
                self._ended.get_nowait()


class Lane:
    """A queue of calls in front of a connection's thread, in one event loop."""

    def __init__(
        self,
        connection: Connection,
        work: "Work",
        guard: Guard,
        *,
        busy_timeout: float,
        batch_limit: int = BATCH_LIMIT,
        on_commit: Callable[[Commit], None] = lambda commit: None,
        holds_back: bool = False,
    ) -> None:
        """Take the connection, what works off a batch on its thread, and how long a call may wait.

        A lane that holds back hands the outcome of a batch over once the next one has begun, for
        which that calls hand_over(): till then the event loop would be in the way.
        """
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._work = work
        self._guard = guard
        self._busy_timeout = busy_timeout
        self._batch_limit = batch_limit
        self._on_commit = on_commit
        self._holds_back = holds_back
        self._gathered: deque[Call] = deque()
        self._taken: Sequence[Call] = ()  # the batch at work
        self._held: Sequence[Done] = ()  # the outcome of the batch before, not yet handed over
        self._at_rest: asyncio.Future[None] | None = None  # what rest() waits for
        self._give_up_at = math.inf  # an upper bound of all deadlines
        self._random = random.Random()  # of its own: the host may seed the other
        self._is_disowned = False
        self.is_resting = True
        self.is_waiting = False  # for a lock; set by its thread
        guard.add(self)

    def submit(self, operation: Operation[Result]) -> "asyncio.Future[Result]":
        """Have the operation done in the next batch; return the future of its result."""
        self.check_loop()
        future: asyncio.Future[Result] = self._loop.create_future()
        self._gathered.append(Call(operation, future, time.monotonic() + self._busy_timeout))
        if self.is_resting:
            self._start()
        return future

    def disown(self) -> None:
        """Serve nobody any more: the thread is of the process that this one was forked from."""
        self._gathered.clear()
        self._is_disowned = True

    def abandon(self) -> None:
        """Let all who wait hear that the disk does not answer."""
        self._guard.remove(self)
        at_work = [*self._taken, *list(self._gathered)]
        for call in (*at_work, *(call for done in self._held for call, _ in done.outcomes)):
            if not call.future.done():
                call.future.set_exception(
                    StorageError("the disk does not answer; it is unknown what was written")
                )

    async def rest(self) -> None:
        """Wait until all that was accepted is done."""
        while not self.is_resting:
            if self._at_rest is None:
                self._at_rest = self._loop.create_future()
            await asyncio.wait({self._at_rest})

    def check_loop(self) -> None:
        """Raise StoreClosedError in another event loop than the lane's own."""
        if asyncio.get_running_loop() is not self._loop:
            raise StoreClosedError("the store was opened in another event loop; use one for each")

    def hurry(self, seconds: float) -> None:
        """Have no call wait for a lock longer than for so many seconds from now."""
        self._give_up_at = time.monotonic() + seconds

    def wait(
        self,
        calls: Sequence[Call],
        attempt: Callable[[], bool],
        progress: Callable[[], int] | None = None,
    ) -> Sequence[Call]:
        """Try until the attempt succeeds, and return the calls that still want it. For the thread.

        A call whose deadline is over fails with StoreBusyError, even if it has only gathered, and
        the others wait on. If none is left, the attempt may have succeeded or not.

        `progress` is for the lock of all processes: a number that changes while others write. Then
        the lock is tried often, and the batch takes along what came while it had to wait, so that
        batches are larger where many processes write.
        """
        seen_at = time.monotonic()
        seen = progress() if progress else 0
        try:
            while True:
                is_done = attempt()
                calls = [call for call in calls if not call.future.done()]
                if is_done and calls and progress and self.is_waiting:
                    calls += self._take(self._batch_limit - len(calls))
                    self._taken = calls
                if is_done or not calls:
                    return calls
                self.hand_over()
                self.is_waiting = True
                now, give_up_at = time.monotonic(), self._give_up_at
                late = [call for call in calls if min(call.deadline, give_up_at) <= now]
                calls = [call for call in calls if min(call.deadline, give_up_at) > now]
                # Those that have gathered meanwhile wait for the lock, too.
                while self._gathered and min(self._gathered[0].deadline, give_up_at) <= now:
                    late.append(self._gathered.popleft())
                if late:
                    self._post([Done([(call, _busy()) for call in late])], False)
                if not calls:
                    return calls
                if progress and progress() != seen:
                    seen, seen_at = progress(), now
                is_stuck = now - seen_at > PAUSE_LATER_FROM
                time.sleep(self._random.uniform(*(PAUSE_LATER if is_stuck else PAUSE)))
        finally:
            self.is_waiting = False

    def run(self, connection: sqlite3.Connection, call: Call) -> Done:
        """Do what a Run asks for. For the thread."""
        results: list[object] = []
        operation = call.operation
        attempt = unless_busy(
            lambda: results.append(operation.function(connection, *operation.arguments))
        )
        try:
            waiting = self.wait([call], attempt)
        except Exception as error:
            return failed([call], error)
        return Done([(each, results[0]) for each in waiting])

    def hand_over(self) -> None:
        """Hand the outcome of the batch before over, if that was not done yet. For the thread."""
        if self._held:
            held, self._held = self._held, ()
            self._post(held, False)

    def _start(self) -> None:
        self.is_resting = False
        self._connection.queue(self._run_batch)
        self._guard.watch()

    def _run_batch(self) -> None:
        """Work off what has gathered, on the connection's thread."""
        self._taken = self._take(max(BATCH_WHOLE, len(self._gathered) // 2))
        try:
            done = self._work(self, self._taken) if self._taken else []
        except BaseException as error:
            done = [failed(self._taken, error)]
        self.hand_over()
        rests = not self._gathered
        if self._holds_back and not rests:
            self._held = done
        else:
            self._post(done, rests)
        self._taken = ()
        if not rests:
            self._connection.queue(self._run_batch)
        self._guard.note_end()

    def _take(self, limit: int) -> list[Call]:
        taken: list[Call] = []
        weight = 0
        limit = min(limit, self._batch_limit)
        while self._gathered and len(taken) < limit and weight < BATCH_BYTES:
            call = self._gathered.popleft()
            if not call.future.done():  # else its caller has gone
                taken.append(call)
                weight += call.operation.weight
        return taken

    def _post(self, done: Sequence[Done], rests: bool) -> None:
        with suppress(RuntimeError):  # the event loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._serve, done, rests)

    def _serve(self, done: Sequence[Done], rests: bool) -> None:
        """Tell of the commits and serve their callers, in the event loop, whatever happens."""
        if self._is_disowned:
            return
        for outcomes, commit in done:
            if commit is not None:
                self._tell(commit)
            for call, result in outcomes:
                if call.future.done():
                    continue
                if isinstance(result, StopIteration):  # which no future can hold
                    call.future.set_exception(RuntimeError("a function raised StopIteration"))
                elif isinstance(result, BaseException):
                    call.future.set_exception(result)
                else:
                    call.future.set_result(result)
        if rests:
            self.is_resting = True
            if self._gathered:
                self._start()
            elif self._at_rest is not None:
                at_rest, self._at_rest = self._at_rest, None
                at_rest.set_result(None)

    def _tell(self, commit: Commit) -> None:
        try:
            self._on_commit(commit)
        except Exception:
            with suppress(Exception):  # a filter of the host's logging may raise, too
                logger.exception("what hears of commits has failed; the callers go on")


# What works off a batch, on the connection's thread.
Work = Callable[[Lane, Sequence[Call]], Sequence[Done]]


class ClosedLane:
    """What stands where a lane will be or was: it refuses each call, for a reason."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def submit(self, operation: Operation[Result]) -> "asyncio.Future[Result]":
        """Raise StoreClosedError."""
        raise StoreClosedError(self._reason)


def failed(calls: Sequence[Call], error: BaseException) -> Done:
    """Let all of the calls hear of an error; of SQLite's or the system's, as one of ours."""
    return Done([(call, ours(error)) for call in calls])


def _busy() -> StoreBusyError:
    return StoreBusyError("another process or program holds the database's lock; try again")
