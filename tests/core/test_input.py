# SPDX-License-Identifier: MIT
"""Anything at all, as any argument of any call: equal on the way back, or refused.

hostile.py has what is handed in, and the oracle. Each bad call is made in one breath with good
ones, which must succeed. The controls break a check on purpose, and see the test fail.
"""

import asyncio
import json
import math
import os
import random
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sessionstore import (
    InvalidArgumentError,
    Session,
    SessionManager,
    SessionStoreError,
    StoreBusyError,
    arguments,
    manager,
)
from sessionstore.sqlite import writer

from ..conftest import FakeClock
from . import hostile
from .hostile import Handed, Odd, expected_data, expected_text, spelled

MOST = 4_096  # bytes of data; little, so that many texts are near it
REFUSED = "refused"

Call = Callable[[SessionManager, str, Any], Awaitable[Any]]


async def _iterate(sessions: SessionManager, child_id: Any) -> list[Session]:
    return [session async for session in sessions.iter_active_sessions(child_id)]


# Every argument of every method, but for the numbers and the id of the session that is at hand.
CALLS: dict[str, Call] = {
    "create_session(child_id)": lambda to, id_, value: to.create_session(value),
    "create_session(initial_data)": lambda to, id_, value: to.create_session("c", value),
    "create_session(metadata)": lambda to, id_, value: to.create_session("c", metadata=value),
    "get_session(session_id)": lambda to, id_, value: to.get_session(value),
    "update_activity(session_id)": lambda to, id_, value: to.update_activity(value),
    "update_session(session_id)": lambda to, id_, value: to.update_session(value, {"a": 1}),
    "update_session(data)": lambda to, id_, value: to.update_session(id_, value),
    "update_session(metadata)": lambda to, id_, value: to.update_session(id_, metadata=value),
    "update_session(remove)": lambda to, id_, value: to.update_session(id_, remove=value),
    "end_session(session_id)": lambda to, id_, value: to.end_session(value),
    "end_session(reason)": lambda to, id_, value: to.end_session(id_, value),
    "end_sessions(child_id)": lambda to, id_, value: to.end_sessions(value),
    "end_sessions(except_id)": lambda to, id_, value: to.end_sessions("c", except_id=value),
    "end_sessions(reason)": lambda to, id_, value: to.end_sessions("c", reason=value),
    "delete_session(session_id)": lambda to, id_, value: to.delete_session(value),
    "get_active_sessions(child_id)": lambda to, id_, value: to.get_active_sessions(value),
    "get_active_sessions(limit)": lambda to, id_, value: to.get_active_sessions(limit=value),
    "get_active_sessions(after)": lambda to, id_, value: to.get_active_sessions(after=value),
    "iter_active_sessions(child_id)": lambda to, id_, value: _iterate(to, value),
    "get_sessions_for_child(child_id)": lambda to, id_, value: to.get_sessions_for_child(value),
    "get_sessions_for_child(limit)": lambda to, id_, value: to.get_sessions_for_child("c", value),
    "list_sessions(child_id)": lambda to, id_, value: to.list_sessions(child_id=value),
    "list_sessions(status)": lambda to, id_, value: to.list_sessions(status=value),
    "list_sessions(limit)": lambda to, id_, value: to.list_sessions(limit=value),
    "purge_ended_sessions(older_than)": lambda to, id_, value: to.purge_ended_sessions(value),
}
SETTINGS = [
    *("timeout", "max_lifetime", "retention", "sweep_interval", "cache_size", "max_data_bytes"),
    *("on_end", "clock", "busy_timeout", "create", "database"),
]


class Stage:
    """Two managers on one file in an event loop, and sessions that good calls are made on."""

    def __init__(self, database: Path) -> None:
        self._runner = asyncio.Runner()
        self._clock = FakeClock()
        self.here, self.there = (
            SessionManager(database, clock=self._clock, sweep_interval=None, max_data_bytes=MOST)
            for _ in range(2)
        )
        for store in (self.here, self.there):
            self.run(store.open())
        self._good = self.run(self.here.create_session("good", {"n": 0}))
        self._count = 0

    def close(self) -> None:
        """Close both managers and the event loop."""
        for store in (self.here, self.there):
            self.run(store.close())
        self._runner.close()

    def run(self, awaitable: Awaitable[Any]) -> Any:
        """Run something to its end."""

        async def wait() -> Any:
            return await awaitable

        return self._runner.run(wait())

    def attempt(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Return a call's result, or that it was refused; good calls round it must succeed."""
        return self.run(self._attempt(call))

    async def _attempt(self, call: Callable[[], Awaitable[Any]]) -> Any:
        async def guarded() -> Any:
            try:
                return await call()
            except InvalidArgumentError:
                return REFUSED

        self._count += 1
        before, new, bad, after, seen = await asyncio.gather(
            self.here.update_activity(self._good),
            self.here.create_session("good", {"n": self._count}),
            guarded(),
            self.here.update_session(self._good, {"n": self._count}),
            self.here.get_session(self._good),
        )
        session = await self.there.get_session(self._good)
        assert (before, after) == (True, True)
        assert session is not None
        assert seen is not None
        assert (session.data, session.interaction_count) == ({"n": self._count}, self._count)
        assert await self.here.delete_session(new)
        return bad


@pytest.fixture
def stage(database: Path) -> Iterator[Stage]:
    """Yield a stage, and close it."""
    stage = Stage(database)
    yield stage
    stage.close()


def quickly_or_long(quick: int, long: int) -> pytest.MarkDecorator:
    """Run a test with few examples, and under the marker with many."""
    return pytest.mark.parametrize(
        "examples", [quick, pytest.param(long, marks=pytest.mark.torture)]
    )


def examine(
    check: Callable[..., None], examples: int, *strategies: Any, shrink: bool = True
) -> None:
    """Run a check over examples. Hypothesis prints the one that fails, and how to repeat it."""
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]

    @st.composite
    def hand(draw: st.DrawFn) -> tuple[Handed, ...]:
        return tuple(Handed(draw(strategy)) for strategy in strategies)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        print_blob=True,
        report_multiple_bugs=False,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    @given(hand())
    def run(handed: tuple[Handed, ...]) -> None:
        check(*(each.value for each in handed))

    run()


# -- Equal on the way back, or refused -------------------------------------------------------------


def check_data(stage: Stage, name: str, value: Any) -> None:
    """Hand in data in one of four ways, and compare what comes back with the oracle."""
    try:
        expected: Any = expected_data(value, MOST)
    except hostile.RefusedError:
        expected = REFUSED
    here, there = stage.here, stage.there
    field = "metadata" if "metadata" in name else "data"
    if "update" in name:
        id_ = stage.run(here.create_session("c", {"z": 1}, metadata={"z": 1}))
        if expected != REFUSED:
            expected = {"z": 1, **expected}
            if len(json.dumps(expected, ensure_ascii=False, separators=(",", ":")).encode()) > MOST:
                expected = REFUSED
    else:
        id_ = ""
    result = stage.attempt(lambda: CALLS[name](here, id_, value))
    assert (result == REFUSED) == (expected == REFUSED), name
    if result == REFUSED:
        return
    id_ = id_ or result
    for store in (here, here, there, there):
        session = stage.run(store.get_session(id_))
        found = getattr(session, field)
        assert spelled(found) == spelled(expected)
        found.clear()
        found["changed"] = 1
    assert stage.run(here.end_session(id_, "over"))
    session = stage.run(there.get_session(id_))
    if field == "metadata":
        expected = {**expected, "end_reason": "over"}
    assert spelled(getattr(session, field)) == spelled(expected)
    assert session.end_reason == "over"
    assert stage.run(here.delete_session(id_))


DATA_CALLS = [name for name in CALLS if "data)" in name]


@quickly_or_long(30, 4_000)
def test_data_comes_back_equal_or_is_refused(stage: Stage, examples: int) -> None:
    """From the same manager, from another one, and after the end, whatever the caller changes."""
    examine(
        partial(check_data, stage),
        examples,
        st.sampled_from(DATA_CALLS),
        hostile.DATA | hostile.GOOD_DATA,
    )


def check_texts(stage: Stage, text: Any) -> None:
    """Hand in a child's id and a reason, and compare what comes back with the oracle."""
    here, there = stage.here, stage.there
    try:
        expected: Any = expected_text(text, 255)
    except hostile.RefusedError:
        expected = REFUSED
    result = stage.attempt(lambda: here.create_session(text))
    assert (result == REFUSED) == (expected == REFUSED)
    if result != REFUSED:
        for store in (here, there):
            session = stage.run(store.get_session(result))
            assert spelled(session.child_id) == spelled(expected)
            assert stage.run(store.get_sessions_for_child(text)) == [session]
            assert session in stage.run(store.list_sessions(child_id=text))
            assert stage.run(store.get_active_sessions(text)) == [session]
        assert stage.run(here.end_sessions(text, reason=text)) == 1
        session = stage.run(there.get_session(result))
        assert spelled(session.end_reason) == spelled(expected)
        assert stage.run(here.delete_session(result))
    id_ = stage.run(here.create_session("c"))
    ended = REFUSED if expected == REFUSED else True
    assert stage.attempt(lambda: here.end_session(id_, text)) == ended
    assert stage.run(here.delete_session(id_))


@quickly_or_long(15, 2_000)
def test_texts_come_back_equal_or_are_refused(stage: Stage, examples: int) -> None:
    """A child's id and a reason are found again by the same text, and by no other."""
    examine(partial(check_texts, stage), examples, hostile.TEXTS)


def check_anything(stage: Stage, name: str, value: Any) -> None:
    """Hand in anything, as anything: a result of the right kind, or refused."""
    id_ = stage.run(stage.here.create_session("c"))
    result = stage.attempt(lambda: CALLS[name](stage.here, id_, value))
    assert type(result) in (str, bool, int, list, Session, type(None)), name
    stage.run(stage.here.delete_session(id_))
    if name.startswith("create_session") and result != REFUSED:
        assert stage.run(stage.here.delete_session(result))
    if name.endswith("session_id)"):  # what cannot be an id is simply not there
        assert result in (None, False)


@quickly_or_long(60, 8_000)
def test_anything_gives_a_result_or_is_refused(stage: Stage, examples: int) -> None:
    """No other exception, no harm to the calls beside it, and the store goes on."""
    examine(
        partial(check_anything, stage), examples, st.sampled_from(sorted(CALLS)), hostile.ANYTHING
    )


_dicts: dict[str, dict[str, Any]] = {}
_data: Any = Session.__dict__["data"]


def _unchecked(name: str, value: Any, most: int) -> str:
    return json.dumps({} if value is None else value)


def _shared(session: Session) -> dict[str, Any]:
    return _dicts.setdefault(session.id, _data.fget(session))


BREAKS: dict[str, tuple[object, str, Any]] = {
    "no check of data": (manager, "encode_object", _unchecked),
    "one level more": (arguments, "MAX_DEPTH", 65),
    "shared snapshots": (Session, "data", property(_shared)),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_the_check_of_data_can_fail(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """With a check that is broken on purpose, the same examples fail."""
    monkeypatch.setattr(*BREAKS[broken])
    with pytest.raises((AssertionError, TypeError, ValueError, RecursionError, SessionStoreError)):
        examine(
            partial(check_data, stage),
            500,
            st.sampled_from(DATA_CALLS),
            hostile.SMALL_DATA,
            shrink=False,
        )


def test_the_check_of_texts_can_fail(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child's id that is cut somewhere on its way does not come back equal."""
    monkeypatch.setattr(manager, "check_owner", lambda value: str(value)[:200])
    with pytest.raises((AssertionError, SessionStoreError, UnicodeError)):
        examine(partial(check_texts, stage), 1_000, hostile.TEXTS, shrink=False)


async def test_an_id_of_a_wrong_type_spares_nobody_in_silence(database: Path) -> None:
    """What is no id is refused as except_id, and does not end the session that it was to spare."""
    async with SessionManager(database, sweep_interval=None) as sessions:
        kept = await sessions.create_session("c")
        for wrong in (kept.encode(), 7, [kept], Odd()):
            with pytest.raises(InvalidArgumentError, match="except_id"):
                await sessions.end_sessions("c", except_id=wrong)  # type: ignore[arg-type]
        assert await sessions.end_sessions("c", except_id=kept) == 0


# -- What is read through its methods --------------------------------------------------------------


class Acting(Mapping[str, Any]):
    """A mapping that does something when it is read."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def __getitem__(self, key: str) -> Any:
        return self._act()

    def __iter__(self) -> Iterator[str]:
        return iter(("a", "b"))

    def __len__(self) -> int:
        return 2


class StopEverythingError(BaseException):
    """As KeyboardInterrupt is: nobody's business but that of whoever raised it."""


async def test_data_may_call_back_into_the_store(database: Path) -> None:
    """A mapping that starts calls while it is read harms neither these nor its own."""
    async with SessionManager(database, sweep_interval=None) as sessions:
        started: list[asyncio.Task[str]] = []

        def call_back() -> str:
            started.append(asyncio.create_task(sessions.create_session("inner")))
            return "value"

        id_ = await sessions.create_session("outer", Acting(call_back))
        assert await sessions.update_session(id_, Acting(call_back), metadata=Acting(call_back))
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.data == session.metadata == {"a": "value", "b": "value"}
        assert len({await task for task in started}) == 6
        assert len(await sessions.get_active_sessions("inner")) == 6


@pytest.mark.parametrize("error", [KeyError("k"), hostile.MischiefError(), StopEverythingError()])
async def test_what_data_raises_is_heard_by_its_caller_only(
    database: Path, error: BaseException
) -> None:
    """A mapping, or keys, that cannot be read raise what they raise, and nothing is written."""

    def fail() -> Any:
        raise error

    def keys() -> Iterator[str]:
        yield "a"
        raise error

    async with SessionManager(database, sweep_interval=None) as sessions:
        id_ = await sessions.create_session("c", {"a": 1})
        touching = asyncio.create_task(sessions.update_activity(id_))
        await asyncio.sleep(0)
        for call in (
            sessions.create_session("c", Acting(fail)),
            sessions.update_session(id_, Acting(fail)),
            sessions.update_session(id_, metadata=Acting(fail)),
            sessions.update_session(id_, remove=keys()),
        ):
            with pytest.raises(type(error)):
                await call
        assert await touching
        session = await sessions.get_session(id_)
        assert session is not None
        assert (session.data, len(await sessions.list_sessions())) == ({"a": 1}, 1)


# -- Limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", ["x", "é", "\U0001f430", '"', "\x01"])
async def test_data_may_have_the_very_size_that_is_allowed(database: Path, character: str) -> None:
    """A megabyte to the byte comes back equal, in data, in metadata and merged; a byte more not."""
    most = 2**20
    size = len(json.dumps(character, ensure_ascii=False).encode()) - 2
    text = character * ((most - len('{"a":""}')) // size)
    text += "y" * (most - len('{"a":""}') - len(text) * size)
    async with (
        SessionManager(database, sweep_interval=None) as one,
        SessionManager(database, sweep_interval=None) as other,
    ):
        whole = await one.create_session("c", {"a": text}, metadata={"a": text})
        merged = await one.create_session("c", {"a": 1, "b": 2}, metadata={"a": "", "b": 2})
        with pytest.raises(InvalidArgumentError, match=str(most)):
            await one.update_session(merged, {"a": text})
        assert await one.update_session(merged, {"a": text}, remove=["b"])
        with pytest.raises(InvalidArgumentError, match=str(most)):
            await one.update_session(merged, metadata={"a": text})
        for call in (
            one.create_session("c", {"a": text + "y"}),
            one.create_session("c", metadata={"a": text + "y"}),
            one.update_session(whole, {"a": text + "y"}),
            one.update_session(whole, {"b": 1}),
        ):
            with pytest.raises(InvalidArgumentError, match=str(most)):
                await call
        for store in (one, other):
            for id_ in (whole, merged):
                session = await store.get_session(id_)
                assert session is not None
                assert session.data == {"a": text}
        assert await other.end_session(whole, "\U0001f430" * 255)
        session = await one.get_session(whole)
        assert session is not None
        assert session.metadata == {"a": text, "end_reason": "\U0001f430" * 255}


async def test_what_looks_the_same_stays_apart(database: Path) -> None:
    """Keys and children that differ by composition, case or width are told apart."""
    looks = ["\xe9", "e\u0301", "E\u0301", "\ufb01", "fi", "\uff46\uff49", "a", "a ", "a\u200b"]
    looks += ["\ufeffa", "\u0430", "ß", "ss", "I", "i", "\u0131", "\u0130", "1", "1.0", "01"]
    async with SessionManager(database, sweep_interval=None) as sessions:
        data = {look: number for number, look in enumerate(looks)}
        ids = [await sessions.create_session(look, data) for look in looks]
        for look, id_ in zip(looks, ids, strict=True):
            (session,) = await sessions.get_sessions_for_child(look)
            assert (session.id, session.data) == (id_, data)
            assert await sessions.update_session(id_, {look: "new"}, remove=[looks[0]])
            changed = {**data, look: "new"}
            del changed[looks[0]]
            again = await sessions.get_session(id_)
            assert again is not None
            assert again.data == changed
            assert await sessions.end_sessions(look) == 1
        assert await sessions.get_active_sessions() == []


async def test_a_reason_of_the_callers_own_is_data_until_the_end(database: Path) -> None:
    """A key "end_reason" in metadata is no reason while active, and gives way to the real one."""
    async with SessionManager(database, sweep_interval=None) as sessions:
        for mine in ("mine", {"deep": [1]}, None, 7):
            id_ = await sessions.create_session("c", metadata={"end_reason": mine, "a": 1})
            session = await sessions.get_session(id_)
            assert session is not None
            assert (session.end_reason, session.metadata["end_reason"]) == (None, mine)
            assert await sessions.end_session(id_, "real")
            session = await sessions.get_session(id_)
            assert session is not None
            assert session.end_reason == "real"
            assert session.metadata == {"end_reason": "real", "a": 1}


# -- Settings --------------------------------------------------------------------------------------


def check_setting(stage: Stage, name: str, value: Any) -> None:
    """Make a manager with a setting: refused, or it works. A path is only looked at."""

    async def live(store: SessionManager) -> None:
        async with store as sessions:
            id_ = await sessions.create_session("c", {})
            session = await sessions.get_session(id_)
            assert session is not None
            assert await sessions.delete_session(id_)

    try:
        if name == "database":
            SessionManager(value)
            return
        stage.run(live(SessionManager(":memory:", **{name: value})))
    except InvalidArgumentError:
        pass
    except StoreBusyError:
        assert name == "busy_timeout"


@quickly_or_long(80, 4_000)
def test_any_setting_works_or_is_refused(stage: Stage, examples: int) -> None:
    """By the constructor; what a clock returns, by the calls."""
    examine(
        partial(check_setting, stage),
        examples,
        st.sampled_from(SETTINGS),
        st.one_of(hostile.ANYTHING, st.integers(-2, 2), st.floats(1e-6, 1e12), st.timedeltas()),
    )


@pytest.mark.parametrize(
    "longest", [timedelta.max, 86_399_999_999_999.0, timedelta(microseconds=1)]
)
async def test_the_longest_and_the_shortest_times_work(database: Path, longest: Any) -> None:
    """Nothing overflows on the way down to SQLite and to the system's calls."""
    names = ("timeout", "max_lifetime", "retention", "sweep_interval")
    async with SessionManager(database, **dict.fromkeys(names, longest)) as sessions:
        id_ = await sessions.create_session("c")
        await sessions.cleanup_inactive_sessions()
        assert isinstance(await sessions.purge_ended_sessions(longest), int)
        await sessions.delete_session(id_)
    if longest != timedelta(microseconds=1):
        async with SessionManager(database, busy_timeout=longest) as sessions:
            assert await sessions.update_activity(await sessions.create_session("c"))


@pytest.mark.parametrize(
    "reading",
    [*("now", None, [], math.nan, math.inf, -math.inf, 1j, b"", Decimal("NaN"), Odd())],
    ids=lambda reading: type(reading).__qualname__,
)
async def test_a_clock_that_tells_no_time_is_told_so(database: Path, reading: Any) -> None:
    """By every call, and when it goes right again so does the store."""
    now: Any = 1e9
    async with SessionManager(database, clock=lambda: now, sweep_interval=None) as sessions:
        id_ = await sessions.create_session("c")
        await sessions.get_session(id_)
        now = reading
        for call in (sessions.create_session("c"), sessions.update_activity(id_)):
            with pytest.raises(InvalidArgumentError, match="clock"):
                await call
        now = 1e9
        assert await sessions.update_activity(id_)


def check_file_name(folder: Path, stage: Stage, name: str, form: str) -> None:
    """Make a store in a file of this name, as a path of this form, and find it again there."""

    async def live(database: Any, known: str | None) -> str | None:
        async with SessionManager(database, sweep_interval=None) as sessions:
            if known is None:
                return await sessions.create_session("c", {"name": ascii(name)})
            session = await sessions.get_session(known)
            assert session is not None
            assert session.data == {"name": ascii(name)}
            return None

    path = folder / name
    database: Any = {
        "str": str(path),
        "path": path,
        "bytes": os.fsencode(path),
        "url": f"sqlite:///{path}",
    }[form]
    if name in (".", "..") or len(os.fsencode(name)) > 240 or (form == "url" and "?" in name):
        return
    known = stage.run(live(database, None))
    assert path.is_file()
    assert stage.run(live(database, known)) is None
    for left in (path, path.with_name(f"{name}-lock")):
        left.unlink()
    assert list(folder.iterdir()) == []


@quickly_or_long(8, 1_000)
def test_any_name_of_a_file_is_taken_as_it_is(tmp_path: Path, stage: Stage, examples: int) -> None:
    """No character of a path is a parameter, a wildcard, or a statement."""
    folder = tmp_path / "folder %20#'\u202e"
    folder.mkdir()
    examine(
        partial(check_file_name, folder, stage),
        examples,
        hostile.FILE_NAMES,
        st.sampled_from(["str", "path", "bytes", "url"]),
    )


# -- One caller's bad input ------------------------------------------------------------------------

UNFIT: list[Any] = [
    *("\ud800", "a\0b", "", "x" * 256, None, 7, b"bytes", [], {}, object(), Odd(), 10**400),
    *(math.nan, ("a",)),
]


async def breathe(
    sessions: SessionManager,
    rng: random.Random,
    calls: int,
    refusal: type[Exception] = InvalidArgumentError,
) -> int:
    """Make good and bad calls in one breath; return how many bad ones failed. No good one may."""
    good = [await sessions.create_session("good", {"n": 0}) for _ in range(3)]
    bad: list[int] = []
    waiting: list[Awaitable[Any]] = []
    counts = [0, 0, 0]
    for number in range(calls):
        which = rng.randrange(3)
        if rng.random() < 0.4:
            bad.append(number)
            unfit = rng.choice(UNFIT)
            to_end = rng.random() < 0.5
            waiting.append(
                sessions.end_sessions(unfit) if to_end else sessions.create_session(unfit)
            )
        elif rng.random() < 0.5:
            counts[which] += 1
            waiting.append(sessions.update_activity(good[which]))
        else:
            waiting.append(sessions.update_session(good[which], {str(number): number}))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    failed = [number for number, result in enumerate(results) if isinstance(result, Exception)]
    assert set(failed) <= set(bad)
    assert all(isinstance(results[number], refusal) for number in failed)
    for which, id_ in enumerate(good):
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.interaction_count == counts[which]
    assert {results[number] for number in range(calls) if number not in bad} == {True}
    return len(failed)


ROUNDS = pytest.mark.parametrize("rounds", [3, pytest.param(200, marks=pytest.mark.torture)])


@ROUNDS
async def test_bad_input_fails_nobody_elses_call(database: Path, rounds: int) -> None:
    """Hundreds of calls in one breath, four in ten of them bad: all bad ones are refused."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    async with SessionManager(database, sweep_interval=None) as sessions:
        for _ in range(rounds):
            assert await breathe(sessions, rng, 200) > 40


@ROUNDS
async def test_bad_input_that_reaches_a_batch_fails_nobody_elses_call(
    database: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """Where a check is missing, the replay of the batch still tells whose fault it is."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    monkeypatch.setattr(manager, "check_owner", lambda value: value)
    async with SessionManager(database, sweep_interval=None) as sessions:
        for _ in range(rounds):
            assert await breathe(sessions, rng, 200, Exception) > 20


async def test_the_check_of_a_breath_can_fail(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the replay, what reaches a batch fails all who are in it, and the test sees that."""
    monkeypatch.setattr(manager, "check_owner", lambda value: value)
    monkeypatch.setattr(writer, "is_of_the_store", lambda error: True)
    async with SessionManager(database, sweep_interval=None) as sessions:
        with pytest.raises(AssertionError):
            await breathe(sessions, random.Random(1), 200, Exception)


# -- What other programs write ---------------------------------------------------------------------


def write(database: Path, statement: str, *values: object) -> None:
    """Write as another program does."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement, values)


@pytest.mark.parametrize(
    "document",
    ['{"a":1e999}', '{"a":"\\ud83d"}', ' {\n "end_reason" : "mine" } \t', "{ }"],
    ids=range(4),
)
async def test_foreign_documents_are_in_nobodys_way(
    database: Path, clock: FakeClock, document: str
) -> None:
    """Whatever SQLite takes for JSON: its session is listed, times out and ends like others."""
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        ids = [await sessions.create_session("c") for _ in range(3)]
        write(database, "UPDATE sessions SET data = ?, metadata = ?", document, document)
        await sessions.cleanup_inactive_sessions()  # it looks for what others have written
        assert await sessions.end_session(ids[0], "over")
        assert await sessions.update_activity(ids[1])
        clock.turn(1_000)
        assert len(await sessions.get_active_sessions()) == 2
        clock.turn(1_000)
        unswept = [await sessions.get_session(id_) for id_ in ids]
        assert [s and str(s.status) for s in unswept] == ["ended", "timeout", "timeout"]
        assert len(await sessions.list_sessions(status="timeout")) == 2
        assert len(await sessions.get_sessions_for_child("c")) == 3
        assert await sessions.cleanup_inactive_sessions() == 2
        swept = [await sessions.get_session(id_) for id_ in ids]
    assert [s and s.end_reason for s in swept] == ["over", "timeout", "timeout"]
    assert unswept == swept


async def test_a_foreign_time_that_goes_on_behind_nul_is_in_nobodys_way(
    database: Path, clock: FakeClock
) -> None:
    """SQLite's checks end at a NUL, as a program in C may write; what stands before it counts."""
    async with SessionManager(database, clock=clock, sweep_interval=None) as sessions:
        ids = [await sessions.create_session("c") for _ in range(3)]
        before = [await sessions.get_session(id_) for id_ in ids]
        write(
            database,
            "UPDATE sessions SET started_at = started_at || char(0), last_activity ="
            " last_activity || char(0) || '+05:00'",
        )
        await sessions.cleanup_inactive_sessions()
        found = await asyncio.gather(*map(sessions.get_session, ids))
        for one, other in zip(before, found, strict=True):
            assert one is not None
            assert other is not None
            assert (one.started_at, one.last_activity) == (other.started_at, other.last_activity)
        assert len(await sessions.get_active_sessions()) == 3
        assert await sessions.update_activity(ids[0])
        assert await sessions.end_session(ids[1])
        clock.turn(10_000)
        assert len(await sessions.list_sessions(status="timeout")) == 2
        assert await sessions.cleanup_inactive_sessions() == 2
        assert await sessions.purge_ended_sessions(0) == 3
