# SPDX-License-Identifier: MIT
"""The demo: children's conversations, side by side, through the whole life of a session.

The store is a real one, in a real file. Only the time is the demo's own, and it is fast: a minute
passes in MINUTE real seconds. Two rules make that safe:

1. The clock moves only while every conversation pauses, and never past the end of a pause. So no
   session in which somebody talks can time out, however slow the machine is.
2. The clock starts so far back that it does not reach the present. So the demo times out no session
   of others in the same file before its idle timeout has really passed.

A store's own sweeper leaves itself out when the clock gains on real time as this one does, so the
demo sweeps by itself: it calls cleanup_inactive_sessions, which believes any clock.

Nothing is printed here.
"""

import asyncio
import heapq
import itertools
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from .. import Session, SessionManager, SessionStats

MINUTE = 0.07  # real seconds that a minute of the demo's clock takes, at least
SWEEP_INTERVAL = 0.2  # real seconds
REPORT_INTERVAL = 0.1  # real seconds
TIMEOUT = 30  # minutes
ARRIVAL = 15  # minutes within which the first children come
TURNS = (3, 6)  # in a conversation, at least and at most
PAUSE = (1, 6)  # minutes between two turns, at least and at most
PATIENCE = 10  # minutes past the timeout that the demo waits for the sweeper
AT_ONCE = 1_000  # conversations that run side by side, at most

# How conversations end, in turn. Two devices of one child are ended together.
ENDINGS = ("manual", "error", "everywhere", "left", "goodbye", "left", "manual", "left", "bedtime")

TOPICS: list[dict[str, Any]] = [
    {"language": "en", "topic": "dinosaurs", "story": "The Smallest Stegosaurus"},
    {"language": "ar", "topic": "القمر", "story": "الأرنب الذي زار القمر"},
    {"language": "de", "topic": "Vögel", "story": "Der Spatz, der nicht singen wollte"},
    {"language": "ja", "topic": "うみ", "story": "くじらのうた"},
]
MOODS = ("curious", "happy", "sleepy", "excited")


class Progress(NamedTuple):
    """How far the demo has come."""

    sessions: int  # that it will create
    created: int
    ended: int  # in whichever way
    now: datetime  # by the demo's clock


class Result(NamedTuple):
    """What became of the demo's sessions."""

    outcomes: Counter[str]  # of its own sessions, by their final status
    missing: int  # sessions that have not ended, or that somebody has deleted
    writes: int  # calls that wrote, and were acknowledged
    working_seconds: float  # real seconds in which a conversation was under way, without pauses
    stats: SessionStats  # of the whole file


class DemoClock:
    """A clock that stands still while anyone is awake, and otherwise runs to the next alarm."""

    def __init__(self, start: float, minute: float) -> None:
        self._now = start
        self._pace = minute / 60
        self._alarms: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._awake = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped_at = time.monotonic()
        self.stopped_seconds = 0.0  # real seconds in which somebody was awake

    def __call__(self) -> float:
        """Return seconds since the epoch, as a store's clock does."""
        return self._now

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep the clock from moving, but for the block's own sleeps."""
        self._wake(1)
        try:
            yield
        finally:
            self._rest()

    async def sleep(self, minutes: float) -> None:
        """Let the clock move by some minutes. Call it only in a block of stopped()."""
        alarm: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._alarms, (self._now + minutes * 60, next(self._order), alarm))
        self._rest()
        await alarm

    def _wake(self, count: int) -> None:
        if self._awake == 0:
            self._stopped_at = time.monotonic()
            if self._timer is not None:
                self._timer.cancel()
        self._awake += count

    def _rest(self) -> None:
        self._awake -= 1
        if self._awake:
            return
        worked = time.monotonic() - self._stopped_at
        self.stopped_seconds += worked
        if self._alarms:
            delay = max(0.0, (self._alarms[0][0] - self._now) * self._pace - worked)
            self._timer = asyncio.get_running_loop().call_later(delay, self._ring)

    def _ring(self) -> None:
        self._now = self._alarms[0][0]
        due = []
        while self._alarms and self._alarms[0][0] <= self._now:
            due.append(heapq.heappop(self._alarms)[2])
        self._wake(len(due))
        for alarm in due:
            if not alarm.done():  # its sleeper was cancelled: the demo is being stopped
                alarm.set_result(None)


async def run(
    database: str, count: int, report: Callable[[Progress], None], *, minute: float = MINUTE
) -> Result:
    """Run `count` sessions through their whole life in the file; return what became of them.

    `report` is called now and then, and at the end; an exception in it stops the demo. `minute` is
    the real time, in seconds, that a minute of the demo's clock takes.
    """
    longest = TURNS[1] * PAUSE[1] + 1
    minutes = ARRIVAL + (count / AT_ONCE + 1) * longest + TIMEOUT + 2 * PATIENCE
    clock = DemoClock(time.time() - minutes * 60, minute)
    cast = _Cast(count, clock)
    sessions = SessionManager(
        database,
        timeout=timedelta(minutes=TIMEOUT),
        sweep_interval=None,
        on_end=cast.note_end,
        clock=clock,
    )
    async with sessions:
        await _side_by_side(
            [cast.play(sessions), cast.keep_sweeping(sessions), cast.keep_reporting(report)]
        )
        stats = await sessions.get_session_stats()
    return Result(cast.outcomes, len(cast.open), cast.writes, clock.stopped_seconds, stats)


class _Cast:
    """The children, what they do, and the count of what became of their sessions."""

    def __init__(self, count: int, clock: DemoClock) -> None:
        self._count = count
        self._clock = clock
        self._plans = _plans(count)
        self._playing = True
        self._created = 0
        self.open: set[str] = set()  # ids of sessions that have not ended
        self.outcomes: Counter[str] = Counter()
        self.writes = 0

    async def play(self, sessions: SessionManager) -> None:
        """Run all conversations, then wait until the sweeper has found those left alone."""
        await _side_by_side([self._converse(sessions) for _ in range(min(self._count, AT_ONCE))])
        with self._clock.stopped():
            for _ in range(TIMEOUT + PATIENCE):
                if self.open:
                    await self._clock.sleep(1)
        for session_id in sorted(self.open):  # ended by another program, which on_end is not told
            session = await sessions.get_session(session_id)
            if session is not None and not session.is_active:
                self.note_end(session)
        self._playing = False

    async def keep_sweeping(self, sessions: SessionManager) -> None:
        """Time out the sessions that are due, again and again until all is over."""
        while self._playing:
            await sessions.cleanup_inactive_sessions()
            await asyncio.sleep(SWEEP_INTERVAL)

    async def keep_reporting(self, report: Callable[[Progress], None]) -> None:
        """Report the progress again and again until all is over, and once more then."""
        while self._playing:
            report(self._progress())
            await asyncio.sleep(REPORT_INTERVAL)
        report(self._progress())

    def note_end(self, session: Session) -> None:
        """Count a session of the demo's own that has ended: this is the store's on_end."""
        if session.id in self.open:
            self.open.remove(session.id)
            self.outcomes[session.status] += 1

    def _progress(self) -> Progress:
        now = datetime.fromtimestamp(self._clock(), UTC)
        return Progress(self._count, self._created, self.outcomes.total(), now)

    async def _converse(self, sessions: SessionManager) -> None:
        """Hold one conversation after the other, as long as there are children waiting."""
        with self._clock.stopped():
            await self._clock.sleep(random.randint(0, min(ARRIVAL, self._count // 10)))
            for child, devices, ending in self._plans:
                await self._talk(sessions, child, devices, ending)
                await self._clock.sleep(1)

    async def _talk(
        self, sessions: SessionManager, child: str, devices: Sequence[str], ending: str
    ) -> None:
        """Take one child through a conversation, from its first word to its end."""
        topic = random.choice(TOPICS)
        ids = [await self._start(sessions, child, device, topic) for device in devices]
        for turn in range(random.randint(*TURNS)):
            await self._clock.sleep(random.randint(*PAUSE))
            for session_id in ids:
                await self._take_turn(sessions, session_id, turn)
        if ending == "left":
            return
        if ending == "everywhere":
            await sessions.end_sessions(child, reason="parent said good night")
        else:
            await sessions.end_session(ids[0], reason=ending)
        self.writes += 1

    async def _start(
        self, sessions: SessionManager, child: str, device: str, topic: dict[str, Any]
    ) -> str:
        session_id = await sessions.create_session(
            child, topic, metadata={"device": device, "app_version": "2.4.1"}
        )
        self.open.add(session_id)
        self._created += 1
        self.writes += 1
        return session_id

    async def _take_turn(self, sessions: SessionManager, session_id: str, turn: int) -> None:
        """Do what an application does when the child has said something."""
        if not await sessions.update_activity(session_id):
            return  # somebody else has ended it
        self.writes += 1
        session = await sessions.get_session(session_id)
        if session is None:
            return
        words = session.data.get("words_spoken", 0) + random.randint(3, 40)
        mood = random.choice(MOODS)
        data = {"words_spoken": words, "mood": mood, "last_turn": {"number": turn, "seconds": 4.5}}
        if await sessions.update_session(session_id, data):
            self.writes += 1


def _plans(count: int) -> Iterator[tuple[str, Sequence[str], str]]:
    """Yield a child, its devices and its ending, until there are `count` sessions.

    The names are of this run alone: ending all sessions of a child must end nobody else's.
    """
    run_name = secrets.token_hex(3)
    endings = itertools.cycle(ENDINGS)
    for number in itertools.count(1):
        if count <= 0:
            return
        ending = next(endings)
        devices = ("tablet", "speaker")[: min(count, 2) if ending == "everywhere" else 1]
        yield f"demo-{run_name}-{number:04}", devices, ending
        count -= len(devices)


async def _side_by_side(coroutines: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all of them as tasks; if one fails or the caller is cancelled, stop the others."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
