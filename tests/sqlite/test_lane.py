# SPDX-License-Identifier: MIT
"""A lane by itself: how calls are gathered into batches, on a thread that the test runs."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import pytest

from sessionstore import StorageError, StoreBusyError, StoreClosedError
from sessionstore.sqlite import lane as lane_module
from sessionstore.sqlite.lane import (
    BATCH_BYTES,
    BATCH_LIMIT,
    BATCH_WHOLE,
    Call,
    ClosedLane,
    Done,
    Guard,
    Lane,
    Operation,
)
from sessionstore.store import Commit

from .tools import longest_gap

COMMIT = Commit({}, [], [], [], {}, 2)
PATIENT = 60.0  # seconds


@dataclass(slots=True)
class Number(Operation[int]):
    """Asks for the double of a number."""

    value: int


class HandDriven:
    """A thread that does its next work when the test says so, in the event loop's own."""

    def __init__(self) -> None:
        self.queued: deque[Callable[[], None]] = deque()

    def queue(self, function: Callable[[], None]) -> None:
        """Keep the function."""
        self.queued.append(function)

    async def work(self) -> None:
        """Do what was queued first, and let the event loop hear of it."""
        self.queued.popleft()()
        await asyncio.sleep(0)

    async def work_off(self) -> None:
        """Work until nothing is queued."""
        while self.queued:
            await self.work()


class Working:
    """A real thread."""

    def __init__(self) -> None:
        self._queued: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def queue(self, function: Callable[[], None]) -> None:
        """Run the function after what was queued before."""
        self._queued.put(function)

    def stop(self) -> None:
        """End the thread after what was queued."""
        self._queued.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (function := self._queued.get()) is not None:
            function()


@pytest.fixture
def thread() -> HandDriven:
    """Return a thread that the test runs."""
    return HandDriven()


@pytest.fixture
def real_thread() -> Iterator[Working]:
    """Yield a real thread."""
    working = Working()
    yield working
    working.stop()


class Doubler:
    """Works off batches of numbers, and remembers them."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, lane: Lane, calls: Sequence[Call]) -> list[Done]:
        """Answer with the doubles, and with an error for what is negative."""
        self.batches.append([call.operation.value for call in calls])
        outcomes = [(call, double(call.operation.value)) for call in calls]
        return [Done(outcomes, COMMIT)]


def double(value: int) -> object:
    """Return the double, or an error for what is negative."""
    return StorageError(str(value)) if value < 0 else 2 * value


def make(thread: Any, work: Any, **settings: Any) -> Lane:
    """Return a lane in front of a thread."""
    guard = Guard(asyncio.get_running_loop())
    return Lane(thread, work, guard, **{"busy_timeout": PATIENT, **settings})


async def hear(*futures: "asyncio.Future[Any]") -> list[Any]:
    """Return what has become of calls, which must be done."""
    async with asyncio.timeout(10):
        return await asyncio.gather(*futures, return_exceptions=True)


# -- Gathering -------------------------------------------------------------------------------------


async def test_what_gathers_while_a_batch_is_at_work_is_the_next_batch(thread: HandDriven) -> None:
    """Calls keep their order, and each caller gets the result of its own."""
    double_all = Doubler()
    later: list[asyncio.Future[Any]] = []

    def work(_: Lane, calls: Sequence[Call]) -> list[Done]:
        if not later:
            later.extend(lane.submit(Number(number)) for number in (3, 4))
        return double_all(lane, calls)

    lane = make(thread, work)
    first = [lane.submit(Number(number)) for number in (1, 2)]
    await thread.work()
    assert await hear(*first) == [2, 4]
    assert not any(future.done() for future in later)
    await thread.work()
    assert await hear(*later) == [6, 8]
    assert double_all.batches == [[1, 2], [3, 4]]
    assert lane.is_resting


async def test_a_lane_queues_one_job_however_many_call(thread: HandDriven) -> None:
    """So no call waits behind work that has nothing to do any more."""
    lane = make(thread, Doubler())
    for _ in range(3):
        futures = [lane.submit(Number(number)) for number in range(10)]
        assert len(thread.queued) == 1
        await thread.work()
        assert await hear(*futures) == [2 * number for number in range(10)]
        assert lane.is_resting


async def test_a_batch_has_a_limit_of_calls(thread: HandDriven) -> None:
    """What is beyond it is the next batch, in order."""
    work = Doubler()
    lane = make(thread, work)
    futures = [lane.submit(Number(number)) for number in range(3 * BATCH_LIMIT)]
    await thread.work_off()
    sizes = [len(batch) for batch in work.batches]
    assert sizes[:3] == [BATCH_LIMIT, BATCH_LIMIT, BATCH_LIMIT // 2]
    assert await hear(*futures) == [2 * number for number in range(3 * BATCH_LIMIT)]


async def test_of_many_calls_half_are_taken(thread: HandDriven) -> None:
    """So that the callers of one half are served while the other half is at work."""
    work = Doubler()
    lane = make(thread, work)
    futures = [lane.submit(Number(number)) for number in range(4 * BATCH_WHOLE)]
    await thread.work()
    served = await hear(*futures[: 2 * BATCH_WHOLE])
    assert not any(future.done() for future in futures[2 * BATCH_WHOLE :])
    await thread.work_off()
    assert [len(batch) for batch in work.batches] == [2 * BATCH_WHOLE, BATCH_WHOLE, BATCH_WHOLE]
    assert [*served, *await hear(*futures[len(served) :])] == [
        2 * number for number in range(4 * BATCH_WHOLE)
    ]


async def test_a_lane_that_holds_back_serves_callers_once_the_next_batch_has_begun(
    thread: HandDriven,
) -> None:
    """Not before, but also if that batch fails, and at once if nothing else has gathered."""
    begins: list[str] = []

    def work(lane: Lane, calls: Sequence[Call]) -> list[Done]:
        (call,) = calls
        begins.append(f"{call.operation.value}, served {served()}")
        if call.operation.value == 1:
            lane.hand_over()
        if call.operation.value == 2:
            raise OSError(5, "broken")
        return [Done([(call, 0)])]

    def served() -> int:
        return sum(future.done() for future in futures)

    lane = make(thread, work, batch_limit=1, holds_back=True)
    futures = [lane.submit(Number(number)) for number in range(4)]
    await thread.work()
    assert served() == 0
    await thread.work()
    assert served() == 1
    await thread.work()
    assert served() == 2
    await thread.work()
    assert served() == 4
    assert begins == ["0, served 0", "1, served 0", "2, served 1", "3, served 2"]
    assert [type(result) for result in await hear(*futures)] == [int, int, StorageError, int]
    assert lane.is_resting


async def test_a_lane_that_holds_back_does_not_while_it_waits_for_a_lock(
    real_thread: Working,
) -> None:
    """What was committed is told, however long another process keeps the next batch waiting."""
    may_lock = threading.Event()

    def work(lane: Lane, calls: Sequence[Call]) -> list[Done]:
        (call,) = calls
        if call.operation.value == 1:
            calls = lane.wait(calls, may_lock.is_set)
        return [Done([(call, 0) for call in calls])]

    lane = make(real_thread, work, batch_limit=1, holds_back=True)
    first, second = lane.submit(Number(0)), lane.submit(Number(1))
    assert await hear(first) == [0]
    assert not second.done()
    may_lock.set()
    assert await hear(second) == [0]


async def test_all_who_wait_hear_if_the_lane_is_abandoned(thread: HandDriven) -> None:
    """Whether they have gathered, are at work, or are done and held back."""

    def work(lane: Lane, calls: Sequence[Call]) -> list[Done]:
        if calls[0].operation.value == 1:
            lane.abandon()  # as close() does it, from the event loop, meanwhile
        return [Done([(call, 0) for call in calls])]

    lane = make(thread, work, batch_limit=1, holds_back=True)
    futures = [lane.submit(Number(number)) for number in range(3)]
    await thread.work_off()
    assert [type(result) for result in await hear(*futures)] == [StorageError] * 3


async def test_a_batch_has_a_limit_of_bytes(thread: HandDriven) -> None:
    """It ends with the call that reaches it; one that is larger by itself is a batch."""
    work = Doubler()
    lane = make(thread, work)
    sizes = [BATCH_BYTES // 2, BATCH_BYTES // 2, 1, 2 * BATCH_BYTES, 1]
    futures = [lane.submit(Number(number, weight=size)) for number, size in enumerate(sizes)]
    await thread.work_off()
    assert work.batches == [[0, 1], [2, 3], [4]]
    assert await hear(*futures) == [0, 2, 4, 6, 8]


async def test_cancelled_calls_are_left_out(thread: HandDriven) -> None:
    """A caller that gives up before its batch begins takes its call along, and nobody else's."""
    work = Doubler()
    lane = make(thread, work)
    futures = [lane.submit(Number(number)) for number in range(6)]
    for number in (0, 3, 5):
        futures[number].cancel()
    await thread.work_off()
    assert work.batches == [[1, 2, 4]]
    results = await hear(*futures)
    assert [result for result in results if isinstance(result, int)] == [2, 4, 8]
    assert [type(results[number]) for number in (0, 3, 5)] == [asyncio.CancelledError] * 3


async def test_a_batch_of_cancelled_calls_is_no_work(thread: HandDriven) -> None:
    """If all have given up, nothing is worked off, and the lane rests."""
    work = Doubler()
    lane = make(thread, work)
    lane.submit(Number(1)).cancel()
    await thread.work_off()
    assert work.batches == []
    assert lane.is_resting


async def test_nobody_can_cancel_the_batches(real_thread: Working) -> None:
    """If somebody cancels all tasks that there are, the next callers are served as ever."""
    lane = make(real_thread, Doubler())

    async def call(number: int) -> int:
        doubled: int = await lane.submit(Number(number))
        return doubled

    for steps in (0, 1, 5):
        calls = [asyncio.create_task(call(number)) for number in range(3)]
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        assert await asyncio.wait_for(lane.submit(Number(7)), 10) == 14
        await asyncio.gather(*calls, return_exceptions=True)
    await lane.rest()


async def test_rest_waits_for_all_that_was_accepted(real_thread: Working) -> None:
    """Also for what was accepted while it waited."""

    def work(_: Lane, calls: Sequence[Call]) -> list[Done]:
        time.sleep(0.002)
        return [Done([(call, 2 * call.operation.value) for call in calls])]

    lane = make(real_thread, work, batch_limit=1)
    await lane.rest()  # there is nothing to wait for
    futures = [lane.submit(Number(number)) for number in range(3)]
    futures[0].add_done_callback(lambda _: futures.append(lane.submit(Number(3))))
    async with asyncio.timeout(10):
        await lane.rest()
    assert [future.result() for future in futures] == [0, 2, 4, 6]


async def test_lanes_of_one_thread_take_turns(thread: HandDriven) -> None:
    """However much one of them has gathered, another is served after a batch."""
    work = Doubler()
    one, other = make(thread, work, batch_limit=2), make(thread, work, batch_limit=2)
    many = [one.submit(Number(number)) for number in range(6)]
    few = [other.submit(Number(number)) for number in range(10, 13)]
    await thread.work_off()
    assert work.batches == [[0, 1], [10, 11], [2, 3], [12], [4, 5]]
    assert await hear(*many, *few) == [0, 2, 4, 6, 8, 10, 20, 22, 24]


# -- Errors ----------------------------------------------------------------------------------------


async def test_an_error_reaches_only_its_own_caller(thread: HandDriven) -> None:
    """A batch with one bad call gives the others their results."""
    lane = make(thread, Doubler())
    futures = [lane.submit(Number(number)) for number in (1, -1, 2)]
    await thread.work_off()
    one, bad, two = await hear(*futures)
    assert (one, two) == (2, 4)
    assert isinstance(bad, StorageError)


@pytest.mark.parametrize("error", [OSError(5, "broken"), MemoryError(), SystemExit(1)])
async def test_an_error_of_the_whole_batch_reaches_all_its_callers(
    thread: HandDriven, error: BaseException
) -> None:
    """Each of them hears of it, and the next batch runs."""
    errors = [error]
    work = Doubler()

    def fail_once(_: Lane, calls: Sequence[Call]) -> list[Done]:
        if errors:
            raise errors.pop()
        return work(lane, calls)

    lane = make(thread, fail_once)
    futures = [lane.submit(Number(number)) for number in (1, 2)]
    await thread.work_off()
    expected = StorageError if isinstance(error, OSError) else type(error)
    assert [type(future.exception()) for future in futures] == [expected] * 2
    future = lane.submit(Number(3))
    await thread.work_off()
    assert await hear(future) == [6]


@pytest.mark.parametrize("error", [StopIteration(1), ValueError("no"), KeyError("x")])
async def test_whatever_a_call_raises_the_others_are_served(
    thread: HandDriven, error: Exception
) -> None:
    """Even an exception that no future can hold leaves nobody waiting."""

    def work(_: Lane, calls: Sequence[Call]) -> list[Done]:
        return [Done([(call, error if call.operation.value == 2 else 1) for call in calls])]

    lane = make(thread, work)
    futures = [lane.submit(Number(number)) for number in (1, 2, 3)]
    await thread.work_off()
    first, second, third = await hear(*futures)
    assert (first, third) == (1, 1)
    assert isinstance(second, Exception)
    assert lane.is_resting


class RaisingFilter(logging.Filter):
    """A filter of the host's that has a fault."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Raise."""
        raise ZeroDivisionError


@pytest.mark.parametrize("filters", [[], [RaisingFilter()]], ids=["logged", "logging raises"])
async def test_callers_go_on_if_what_hears_of_commits_raises(
    thread: HandDriven, monkeypatch: pytest.MonkeyPatch, filters: list[logging.Filter]
) -> None:
    """All callers of all commits are served, whatever logging makes of it, and the lane rests."""
    monkeypatch.setattr(logging.getLogger("sessionstore.sqlite.lane"), "filters", filters)
    told: list[Commit] = []

    def hear_and_raise(commit: Commit) -> None:
        told.append(commit)
        raise RuntimeError

    def work(_: Lane, calls: Sequence[Call]) -> list[Done]:
        return [Done([(call, 2 * call.operation.value)], COMMIT) for call in calls]

    lane = make(thread, work, on_commit=hear_and_raise)
    futures = [lane.submit(Number(number)) for number in range(3)]
    await thread.work_off()
    assert await hear(*futures) == [0, 2, 4]
    assert told == [COMMIT] * 3
    assert lane.is_resting


async def test_commits_are_told_before_their_callers_go_on(thread: HandDriven) -> None:
    """In their order, and also if all callers were cancelled meanwhile."""
    seen: list[str] = []

    def work(_: Lane, calls: Sequence[Call]) -> list[Done]:
        futures[1].cancel()
        return [Done([(call, 0)], COMMIT._replace(version=call.operation.value)) for call in calls]

    lane = make(thread, work, on_commit=lambda commit: seen.append(f"commit {commit.version}"))
    futures = [lane.submit(Number(number)) for number in range(2)]

    async def call(future: "asyncio.Future[Any]", number: int) -> None:
        await future
        seen.append(f"caller {number}")

    caller = asyncio.create_task(call(futures[0], 0))
    await asyncio.sleep(0)
    await thread.work_off()
    await caller
    assert seen == ["commit 0", "commit 1", "caller 0"]


# -- Waiting for a lock ----------------------------------------------------------------------------


class Locked:
    """Work that needs a lock which the test lets go."""

    def __init__(self) -> None:
        self.is_free = False
        self.served: list[int] = []

    def __call__(self, lane: Lane, calls: Sequence[Call]) -> list[Done]:
        """Wait for the lock, and serve the calls that still want it."""
        waiting = lane.wait(calls, lambda: self.is_free)
        self.served += [call.operation.value for call in waiting]
        return [Done([(call, 2 * call.operation.value) for call in waiting])]


async def test_each_call_has_its_own_deadline(real_thread: Working) -> None:
    """An old call fails when its time is over; a younger one of the same batch waits on."""
    work = Locked()
    lane = make(real_thread, work, busy_timeout=0.25)
    blocker = lane.submit(Number(0))  # so that the next ones are gathered into one batch
    await asyncio.sleep(0.01)
    old = lane.submit(Number(1))
    await asyncio.sleep(0.15)
    young = lane.submit(Number(2))
    started = time.monotonic()
    assert isinstance((await hear(old))[0], StoreBusyError)
    assert time.monotonic() - started < 0.2
    assert isinstance((await hear(blocker))[0], StoreBusyError)
    assert not young.done()
    work.is_free = True
    assert await hear(young) == [4]
    assert work.served == [2]


async def test_a_batch_takes_along_what_came_while_it_waited(real_thread: Working) -> None:
    """So batches are larger where many processes write."""
    may_lock = threading.Event()
    batches: list[list[int]] = []

    def work(lane: Lane, calls: Sequence[Call]) -> list[Done]:
        calls = lane.wait(calls, may_lock.is_set, lambda: 0)
        batches.append([call.operation.value for call in calls])
        return [Done([(call, 0) for call in calls])]

    lane = make(real_thread, work)
    futures = [lane.submit(Number(0))]
    await asyncio.sleep(0.05)
    futures += [lane.submit(Number(number)) for number in range(1, 2 * BATCH_WHOLE)]
    may_lock.set()
    await hear(*futures)
    assert batches == [[*range(2 * BATCH_WHOLE)]]


@pytest.mark.parametrize("step, least, most", [(1, 50, 10_000), (0, 1, 5)])
async def test_a_lock_is_tried_often_only_while_others_write(
    real_thread: Working, monkeypatch: pytest.MonkeyPatch, step: int, least: int, most: int
) -> None:
    """However long a call waits, it is as fast as its rivals; a lock that is stuck costs little."""
    monkeypatch.setattr(lane_module, "PAUSE_LATER_FROM", 0.0)
    monkeypatch.setattr(lane_module, "PAUSE_LATER", (0.2, 0.2))
    tries = 0

    def attempt() -> bool:
        nonlocal tries
        tries += 1
        return False

    def work(lane: Lane, calls: Sequence[Call]) -> list[Done]:
        return [Done([(call, 0) for call in lane.wait(calls, attempt, lambda: step * tries)])]

    lane = make(real_thread, work, busy_timeout=0.5)
    assert [type(result) for result in await hear(lane.submit(Number(0)))] == [StoreBusyError]
    assert least <= tries <= most


async def test_all_that_were_called_at_once_hear_at_once(real_thread: Working) -> None:
    """However many batches they are, nobody waits for the time-out of those before."""
    work = Locked()
    lane = make(real_thread, work, busy_timeout=0.2, batch_limit=1)
    started = time.monotonic()
    results = await hear(*(lane.submit(Number(number)) for number in range(10)))
    assert {type(result) for result in results} == {StoreBusyError}
    assert 0.19 <= time.monotonic() - started < 0.7
    assert work.served == []


async def test_a_cancelled_call_waits_for_no_lock(real_thread: Working) -> None:
    """If all of a batch are cancelled while it waits, the thread is free for the next one."""
    work = Locked()
    lane = make(real_thread, work)
    futures = [lane.submit(Number(number)) for number in range(3)]
    await asyncio.sleep(0.01)
    for future in futures:
        future.cancel()
    async with asyncio.timeout(5):
        await lane.rest()
    assert work.served == []


async def test_hurry_brings_all_deadlines_forward(real_thread: Working) -> None:
    """Those of calls that come later, too."""
    lane = make(real_thread, Locked())
    first = lane.submit(Number(1))
    await asyncio.sleep(0.01)
    lane.hurry(0.05)
    results = await hear(first, lane.submit(Number(2)))
    assert [type(result) for result in results] == [StoreBusyError] * 2


async def test_a_lock_is_taken_soon_after_it_is_free(real_thread: Working) -> None:
    """The thread looks often, and costs the machine little meanwhile."""
    work = Locked()
    lane = make(real_thread, work)
    future = lane.submit(Number(1))
    cpu = time.process_time()
    await asyncio.sleep(0.5)
    cpu = time.process_time() - cpu
    work.is_free = True
    started = time.monotonic()
    assert await hear(future) == [2]
    assert time.monotonic() - started < 0.1
    assert cpu < 0.25


async def test_the_guard_is_quiet_while_the_lane_waits_for_a_lock(real_thread: Working) -> None:
    """The loop is blocked for a millisecond now and then, and no longer."""
    work = Locked()
    lane = make(real_thread, work)
    future = lane.submit(Number(1))
    asyncio.get_running_loop().call_later(0.2, setattr, work, "is_free", True)
    gaps = await longest_gap(future)
    assert gaps < 0.1


# -- Its end ---------------------------------------------------------------------------------------


async def test_a_lane_belongs_to_its_event_loop(thread: HandDriven) -> None:
    """A call in another one is refused, and nothing is accepted."""
    lane = make(thread, Doubler())

    def call_elsewhere() -> None:
        async def call() -> None:
            with pytest.raises(StoreClosedError, match="another event loop"):
                lane.submit(Number(1))

        asyncio.run(call())

    await asyncio.to_thread(call_elsewhere)
    assert not thread.queued


def test_a_thread_outlives_its_event_loop(thread: HandDriven) -> None:
    """If the loop is closed under a batch, the thread goes on without an error."""
    work = Doubler()

    async def submit() -> None:
        lane = make(thread, work)
        for number in range(2 * BATCH_LIMIT):
            lane.submit(Number(number))

    asyncio.run(submit())
    while thread.queued:
        thread.queued.popleft()()
    assert sum(map(len, work.batches)) == 2 * BATCH_LIMIT


async def test_a_disowned_lane_serves_nobody(thread: HandDriven) -> None:
    """As in a child process: what was accepted is forgotten, and nothing is told."""
    told: list[Commit] = []
    lane = make(thread, Doubler(), on_commit=told.append)
    future = lane.submit(Number(1))
    lane.disown()
    await thread.work_off()
    assert not future.done()
    assert told == []


def test_a_closed_lane_refuses_for_its_reason() -> None:
    """What stands where a lane was says what to do."""
    with pytest.raises(StoreClosedError, match="open it first"):
        ClosedLane("open it first").submit(Number(1))
