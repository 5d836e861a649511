"""What a run holds of its namespace: drafts, claims, doubts, and what it recognises."""

from __future__ import annotations

import datetime as dt
import inspect
import itertools
import signal
import sqlite3
import sys
import time
import tracemalloc
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from freezegun import freeze_time

from checkpoint import Checkpointer, Conflict, MemoryStore, SQLiteStore, TrutoStore, codec
from checkpoint.entries import Entry
from checkpoint.run import drafts
from checkpoint.run.doubts import Doubts
from checkpoint.run.layers import Layers
from checkpoint.streams.incremental import Incremental
from checkpoint.testing import Drop

A, B, C, D = ({"at": letter} for letter in "abcd")


def put(store, **cursors):
    store.commit("run", {key: codec.encode(cursor) for key, cursor in cursors.items()})


# What was read


NESTED = {"n": 1, "f": 1.0, "t": True, "x": None, "s": "text", "l": [1, [2.5, {"d": "e"}], "m"], "o": {"p": {"q": [0]}}}


@pytest.mark.parametrize(
    "change",
    [
        lambda cursor: cursor.update(n=1.0),
        lambda cursor: cursor.update(n=True),
        lambda cursor: cursor.update(f=1),
        lambda cursor: cursor.update(t=1),
        lambda cursor: cursor.update(x=0),
        lambda cursor: cursor.update(new=None),
        lambda cursor: cursor.pop("x"),
        lambda cursor: cursor["l"].append(2),
        lambda cursor: cursor["l"][1].__setitem__(0, -2.5),
        lambda cursor: cursor["l"][1][1].update(d="f"),
        lambda cursor: cursor["o"]["p"]["q"].__setitem__(0, False),
        lambda cursor: cursor["o"]["p"]["q"].__setitem__(0, -0.0),
        lambda cursor: cursor["o"].update(p=({"q": (0, 1)},)),
    ],
    ids=range(13),
)
def test_every_change_in_place_is_found(change):
    store = MemoryStore()
    put(store, a=NESTED)
    with Checkpointer("run", store) as cp:
        change(cp["a"])
        assert cp.changed == {"a"}
        assert cp.commit().keys == ("a",)
        assert cp.changed == set()
        cp["a"]["n"] = 99
    assert codec.decode(store.load("run")["a"].value)["n"] == 99


@pytest.mark.parametrize(
    "change",
    [
        lambda cursor: None,
        lambda cursor: cursor.update(l=tuple(cursor["l"])),
        lambda cursor: cursor.update(n=cursor.pop("n")),  # another order
        lambda cursor: cursor.update(f=float("1")),
    ],
    ids=["nothing", "tuple", "order", "equal"],
)
def test_an_equal_cursor_is_no_change(change):
    store = MemoryStore()
    put(store, a=NESTED)
    with Checkpointer("run", store) as cp:
        change(cp["a"])
        assert cp.changed == set()
        assert cp.commit().keys == ()


def test_what_is_inside_a_tuple_is_looked_at_too():
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        inner = {"at": 1}
        cp["a"] = {"x": [0]}
        cp["a"]["x"] = (inner,)
        cp.commit()
        inner["at"] = 2
        assert cp.commit().keys == ("a",)
    assert codec.decode(store.load("run")["a"].value) == {"x": [{"at": 2}]}


class Odd:
    def __eq__(self, other):
        raise OverflowError

    __hash__ = None


@pytest.mark.parametrize(
    "value", [float("nan"), uuid.UUID(int=1), dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc), {1}, Odd()], ids=type
)
def test_a_commit_refuses_in_place_what_setting_refuses(value):
    store = MemoryStore()
    put(store, a={"at": None, "b": "c"})
    with Checkpointer("run", store) as cp:
        cp["a"]["at"] = value
        assert cp.changed == {"a"}
        with pytest.raises((TypeError, ValueError), match="JSON"):
            cp.commit()
        cp["a"]["at"] = None


def test_reading_every_key_encodes_none_of_them(monkeypatch):
    """A commit compares what was read with a copy; encoding each key would take five times as long."""
    store = MemoryStore()
    put(store, **{f"k{number}": {"at": str(number), "n": number} for number in range(1_000)})
    encoded = []
    encode = codec.encode
    with Checkpointer("run", store) as cp:
        for key in cp:
            assert cp[key]
        monkeypatch.setattr(drafts.codec, "encode", lambda cursor: encoded.append(cursor) or encode(cursor))
        for _ in range(3):
            assert cp.commit().keys == ()
        assert encoded == []
        cp["k7"]["n"] = 8
        assert cp.commit().keys == ("k7",)
        assert len(encoded) <= 2


# What is recognised


@pytest.mark.parametrize(("seconds", "known"), [(10, True), (125, False)])
def test_fault_80_an_own_value_is_recognised_while_it_may_land(api, seconds, known):
    """Two deadlines after its last attempt a value that was not answered is anybody's."""
    with freeze_time("2024-05-01") as clock, closing(TrutoStore(api.url, api.token)) as store:
        put(store, a=A)
        with Checkpointer("run", store) as cp:
            cp["a"] = B
            api.script(Drop(applied=False), method="PATCH")
            cp.commit()
            cp["a"] = C
            cp.commit()
            clock.tick(seconds)
            put(api.store, a=B)  # the late write, or an operator who sets the key back
            cp["a"] = D
            if known:
                cp.commit()
            else:
                with pytest.raises(Conflict):
                    cp.commit()
                cp.discard()
                assert cp["a"] == B


class Unanswered(MemoryStore):
    """A store whose next commit is written and not answered."""

    lose = False

    def commit(self, state_key, changes, base={}, *, run_id=None, **more):
        receipt = super().commit(state_key, changes, base, run_id=run_id, **more)
        if self.lose:
            self.lose = False
            raise KeyboardInterrupt
        return receipt


@pytest.mark.parametrize(("by", "seconds", "known"), [("me", 1, True), ("other", 1, False), ("me", 125, False)])
def test_fault_80_where_runs_are_recorded_only_an_own_value_is(by, seconds, known):
    store = Unanswered()
    put(store, a=A)
    with freeze_time("2024-05-01") as clock, Checkpointer("run", store, run_id="me") as cp:
        cp["a"] = B
        store.lose = True
        with pytest.raises(KeyboardInterrupt):
            cp.commit()
        store.commit("run", {"a": codec.encode(B)}, run_id=by)
        clock.tick(seconds)
        cp["a"] = C
        if known:
            assert cp.commit().keys == ("a",)
        else:
            with pytest.raises(Conflict):
                cp.commit()
            cp.discard()


def test_what_recognises_a_rollback_is_bounded_in_bytes(tmp_path):
    """300 commits of 134 KB in transactions of the caller's keep hashes of what was, not the entries."""
    with closing(sqlite3.connect(tmp_path / "sink.db", isolation_level=None)) as connection:
        store = SQLiteStore(connection=connection)
        with Checkpointer("run", store) as cp:
            big = "x" * 100_000
            cp["a"] = {"n": 0, "x": big}
            connection.execute("BEGIN")
            cp.commit()
            connection.execute("COMMIT")
            tracemalloc.start()
            for number in range(1, 300):
                cp["a"] = {"n": number, "x": big}
                connection.execute("BEGIN")
                cp.commit()
                connection.execute("COMMIT")
            kept, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert kept < 2_000_000


# repr


def test_repr_says_where_a_run_stands():
    store = MemoryStore()
    put(store, a=A, b={"secret": "never shown"})
    cp = Checkpointer("run", store)
    assert repr(cp) == "Checkpointer('run', MemoryStore(), new)"
    with cp:
        assert repr(cp) == "Checkpointer('run', MemoryStore(), 2 keys, uncommitted: nothing)"
        cp["c"] = {"secret": "never shown"}
        stream = cp.incremental("s", "at")
        assert repr(cp) == f"Checkpointer('run', MemoryStore(), 3 keys, uncommitted: 'c', streams: {stream!r})"
        assert "never shown" not in repr(cp)
    assert repr(cp) == "Checkpointer('run', MemoryStore(), closed)"


# After the run


ROWS = [{"id": number, "at": f"2024-05-0{number}T00:00:00Z"} for number in range(1, 5)]


class Stopped(Exception):
    """What ends a block."""


def run_once(store, error):
    """Run over a stream, windows and groups, and return all of them after the run."""
    try:
        with Checkpointer("run", store) as cp:
            stream = cp.incremental("s", "at", initial_value="2024-04-01T00:00:00Z", row_order="asc")
            reading = stream.track(iter(ROWS))
            assert next(reading) == ROWS[0]
            assert stream.filter(ROWS) == ROWS
            cp.commit()
            sliced = cp.incremental("w", "at", initial_value="2024-05-01T00:00:00Z")
            windows = [*sliced.windows(dt.timedelta(days=1), until="2024-05-04T00:00:00Z")]
            windows[0].__enter__()
            group = cp.group("g")
            group["m"] = A
            member = cp.incremental("n", "at", group=group, row_order="asc")
            if error is not None:
                raise error
    except Stopped:
        pass
    return stream, reading, sliced, windows, group, member


@pytest.mark.parametrize("error", [None, Stopped()], ids=["clean", "failed"])
def test_fault_73_after_the_block_nothing_is_fed(error):
    """One indent too few: what is fed after the run would never be committed."""
    stream, reading, sliced, windows, group, member = run_once(MemoryStore(), error)
    refused = [
        lambda: stream.filter(ROWS),
        lambda: [*stream.pages([ROWS])],
        lambda: [*stream.track(ROWS)],
        lambda: next(reading),
        lambda: stream.observe(ROWS[0]),
        stream.finish,
        lambda: stream.rewind("2024-04-02T00:00:00Z", "a reason"),
        lambda: stream.reset("a reason"),
        stream.__enter__,
        lambda: sliced.windows(dt.timedelta(days=1), until="2024-05-04T00:00:00Z"),
        lambda: windows[0].filter(ROWS),
        windows[1].__enter__,
        lambda: group["m"],
        lambda: group.update(m=B),
        lambda: group.pop("m"),
        lambda: group.setdefault("z", A),
        lambda: [*group],
        lambda: len(group),
        lambda: member.filter(ROWS),
    ]
    for number, call in enumerate(refused):
        with pytest.raises(RuntimeError):
            pytest.fail(f"call {number} returned {call()!r}")


def test_fault_73_what_a_stream_can_tell_stays_readable():
    stream, *_ = run_once(MemoryStore(), None)
    assert (stream.start_value, stream.end_value, stream.last_value, stream.stats.delivered) == (
        "2024-04-01T00:00:00Z",
        None,
        "2024-05-04T00:00:00Z",
        5,
    )


def test_fault_74_a_member_that_setdefault_gave_is_live(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("g")
        group.setdefault("m", {"at": 1})["at"] = 2
        group["n"] = {"at": 1}
        group.setdefault("n", {})["at"] = 3
        assert cp.changed == {"g"}
    with Checkpointer("run", store) as cp:
        assert dict(cp.group("g")) == {"m": {"at": 2}, "n": {"at": 3}}


# What a commit asks of streams


def row(number, at="2024-05-01T10:00:00Z"):
    return {"id": number, "at": at}


@pytest.fixture
def claims(monkeypatch):
    """The keys of the streams that commits asked for their claim, in order."""
    asked = []
    claim = Incremental.claim

    def counted(stream):
        asked.append(stream.key)
        return claim(stream)

    monkeypatch.setattr(Incremental, "claim", counted)
    return asked


@pytest.mark.parametrize("group", [None, "crm"], ids=["keys", "members"])
@pytest.mark.parametrize("how", ["commit", "commit_soon", "held back"])
def test_a_commit_asks_the_streams_that_changed(claims, group, how):
    """A page and a commit a stream: each is asked once when it is new, and once or twice for its page."""
    interval = 3_600.0 if how == "held back" else 0.0
    with Checkpointer("run", MemoryStore(), min_interval=interval) as cp:
        streams = [cp.incremental(f"s{n}", "at", primary_key="id", row_order="asc", group=group) for n in range(300)]
        commit = cp.commit_soon if how == "commit_soon" else cp.commit
        for number, stream in enumerate(streams):
            for _ in stream.pages([[row(number)]]):
                commit()
        assert len(claims) <= 3 * len(streams)
        claims.clear()
        cp.commit()
        cp.commit()
        assert len(claims) <= 1
        claims.clear()
        streams[0].unfinished()
    assert len(claims) == len(streams)  # leaving asks all of them


def fetched(stream):
    return next(iter(stream.fetch(lambda at: ([row(1)], "next"))))


def finished_window(stream):
    next(stream.windows(dt.timedelta(days=1), until="2024-05-03T00:00:00Z")).finish()


def left_window(stream):
    with next(stream.windows(dt.timedelta(days=1), until="2024-05-03T00:00:00Z")) as window:
        assert [*window.pages([[row(1, "2024-04-30T10:00:00Z")]])]


@pytest.mark.parametrize(
    "change",
    [
        lambda stream: stream.filter([row(1)]),
        lambda stream: stream.filter([row(1, at="2000-01-01T00:00:00Z"), row(2)]),
        lambda stream: stream.observe(row(1)),
        lambda stream: next(stream.pages([[row(1)]])),
        lambda stream: [*stream.track([row(1)])],
        fetched,
        lambda stream: stream.rewind("2024-04-01T00:00:00Z", "late rows"),
        lambda stream: stream.reset("all again"),
        finished_window,
        left_window,
    ],
    ids=["filter", "judged", "observe", "pages", "track", "fetch", "rewind", "reset", "window", "left"],
)
def test_whatever_changes_a_stream_is_asked_for(claims, change):
    store = MemoryStore()
    put(store, s={"at": "2024-04-30T00:00:00Z"})
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("s", "at", initial_value="2024-04-30T00:00:00Z", primary_key="id", row_order="asc")
        cp.commit()
        claims.clear()
        cp.commit()
        assert claims == []
        change(stream)
        before = cp.entry("s")
        cp.commit()
        assert claims == ["s"]
        assert cp.entry("s") != before


def test_finishing_after_the_last_commit_is_claimed():
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at")
        stream.filter([row(1)])
        assert cp.commit().keys == ()
        stream.finish()
        assert cp.commit().keys == ("s",)


def test_a_row_that_lay_ahead_moves_the_position_later():
    """Above the ceiling when it was handed out, it counts once the clock has passed it, without another row."""
    with freeze_time("2024-05-01T09:00:00Z") as clock, Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", row_order="asc")
        stream.filter([row(1, "2024-05-01T08:00:00Z"), row(2)])
        cp.commit()
        assert cp["s"] == {"at": "2024-05-01T08:00:00Z"}
        clock.move_to("2024-05-01T10:01:00Z")
        cp.commit()
        assert cp["s"] == {"at": "2024-05-01T10:00:00Z"}


def test_what_a_refused_commit_did_not_claim_the_next_one_does():
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", row_order="asc")
        stream.filter([row(1)])
        cp["a"] = {"at": 1}
        cp["a"]["at"] = {1}
        with pytest.raises(TypeError, match="JSON"):
            cp.commit()
        cp["a"] = {"at": 1}
        assert set(cp.commit().keys) == {"a", "s"}


def test_rows_fed_while_a_batch_is_made_are_claimed():
    """A commit inside the iterable that `filter` reads covers what came before, and the next one the batch itself."""
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", row_order="asc")

        def batch():
            yield row(1)
            cp.commit()
            yield row(2)

        stream.filter(batch())
        assert cp.commit().keys == ("s",)


def test_a_stream_is_free_once_its_reading_was_broken_off():
    """The commit after the `break` takes note of it, so that another thread may commit the stream."""
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", row_order="asc")
        pages = stream.pages([[row(1)], [row(2)]])
        next(pages)
        cp.commit()
        pages.close()
        cp.commit()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(cp.commit, stream).result()


def test_an_unchanged_stream_is_claimed_again_after_a_rollback(tmp_path):
    with closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None)) as connection:
        with Checkpointer("run", SQLiteStore(connection=connection)) as cp:
            stream = cp.incremental("s", "at", row_order="asc")
            connection.execute("BEGIN")
            stream.filter([row(1)])
            assert cp.commit().keys == ("s",)
            connection.execute("ROLLBACK")
            connection.execute("BEGIN")
            assert cp.commit().keys == ("s",)  # the same rows, in a transaction that is not rolled back
            connection.execute("COMMIT")
        with closing(SQLiteStore(tmp_path / "app.db")) as store:
            assert codec.decode(store.load("run")["s"].value) == {"at": row(1)["at"]}


def test_fault_47_an_unanswered_write_ignores_the_wall_clock(monkeypatch):
    wall, doubted = time.time, Doubts("run")
    doubted.send({"a": "1"})
    entry = Entry("a", "1", sync_job_run_id="run", version=3)
    for days in (-1, 0, 1):
        monkeypatch.setattr(time, "time", lambda days=days: wall() + days * 86_400)
        assert doubted.is_own("a", entry)


# What an exception of a signal handler leaves


class SoftLimit(Exception):
    """What a handler raises."""


def interrupted_at(code, line):
    """Return a trace function that raises when a line of this code is reached the second time."""
    left = [2]

    def trace(frame, event, _):
        if frame.f_code is code and event == "line" and frame.f_lineno == line:
            left[0] -= 1
            if not left[0]:
                raise SoftLimit
        return trace if frame.f_code is code else None

    return trace


def test_fault_95_streams_are_asked_after_an_interruption():
    source, first = inspect.getsourcelines(Layers.claim)
    (line,) = (first + number for number, text in enumerate(source) if "self.holders.untouch" in text)
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        streams = [cp.incremental(f"s{n}", "at", row_order="asc") for n in range(3)]
        for number, stream in enumerate(streams):
            stream.filter([row(number)])
        sys.settrace(interrupted_at(Layers.claim.__code__, line))
        try:
            with pytest.raises(SoftLimit):
                cp.commit()
        finally:
            sys.settrace(None)
        cp._layers.check()
        cp.commit()
        assert {*store.load("run")} >= {"s0", "s1", "s2"}


def test_fault_95_leaving_claims_what_two_interruptions_hid():
    """The second one comes where the first one is handled, before the marks are set again."""
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        streams = [cp.incremental(f"s{n}", "at", row_order="asc") for n in range(3)]
        cp.commit()
        for number, stream in enumerate(streams):
            stream.filter([row(number)])
        for holder in cp._layers.holders.touched():
            cp._layers.holders.untouch(holder)
    assert {*store.load("run")} >= {"s0", "s1", "s2"}


class Interrupting:
    """Raises where the nth line that changes a stream begins, as the exception of a handler may."""

    _FILES = ("incremental.py", "reading.py", "windows.py", "position.py", "paging.py")

    def __init__(self, place):
        self._left = place

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self._before)

    @property
    def came(self):
        return self._left <= 0

    def _trace(self, frame, event, _):
        if Path(frame.f_code.co_filename).name not in self._FILES:
            return None
        if event == "line":
            self._left -= 1
            if self._left == 0:
                raise SoftLimit
        return self._trace


OPERATIONS = {
    "finish": (None, lambda stream, _: stream.finish()),
    "rewind": ("asc", lambda stream, _: stream.rewind(row(1)["at"], reason="again")),
    "unfinished": ("desc", lambda stream, _: stream.unfinished()),
    "go on": ("asc", lambda _, rows: [*rows]),
    "observe": ("asc", lambda stream, _: stream.observe(row(9))),
    "windows": (None, lambda stream, _: [one.finish() for one in stream.windows(dt.timedelta(days=9), row(8)["at"])]),
}


@pytest.mark.parametrize(("order", "operation"), OPERATIONS.values(), ids=OPERATIONS)
def test_fault_95_leaving_asks_each_stream_that_changed(order, operation):
    """Interrupted anywhere, a stream that is not asked when its run is left would have claimed what it claimed."""

    def stored(place, *, asks_all):
        store = MemoryStore()
        with Checkpointer("run", store) as cp:
            stream = cp.incremental("s", "at", row_order=order, initial_value=row(0)["at"], primary_key="at")
            rows = stream.track(iter([row(1), row(2), row(3)]))
            if order == "desc":
                stream.filter([row(2), row(1)])
                stream.finish()
            else:
                assert [next(rows), next(rows)] == [row(1), row(2)]
            cp.commit()
            cp.commit()
            with suppress(SoftLimit), Interrupting(place) as interrupting:
                operation(stream, rows)
            if asks_all:
                cp._layers.holders.touch("s")
        return {key: entry.value for key, entry in store.load("run").items() if key == "s"}, interrupting.came

    for place in itertools.count(1):
        value, came = stored(place, asks_all=False)
        assert value == stored(place, asks_all=True)[0]
        if not came:
            break
    assert place > 3


def test_fault_96_a_comparison_swallows_no_handlers_error(monkeypatch):
    """The number that stands in a copy compares in Python, where CPython runs handlers."""

    def handler(*_):
        raise SoftLimit

    compare = drafts._Number.__eq__
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        store = MemoryStore()
        put(store, a={"n": 1})
        with Checkpointer("run", store) as cp:
            assert cp["a"] == {"n": 1}

            def interrupted(number, other):
                signal.raise_signal(signal.SIGUSR1)
                return compare(number, other)

            with monkeypatch.context() as patch:
                patch.setattr(drafts._Number, "__eq__", interrupted)
                with pytest.raises(SoftLimit):
                    cp.commit()
                with pytest.raises(SoftLimit):
                    cp.changed
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_stream_is_asked_after_unfinished_and_windows():
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", row_order="asc")
        place = iter(stream.fetch(lambda at: ([row(1)], "next")))
        next(place)
        stream.finish()
        cp.commit()
        stream.unfinished()
        assert cp._layers.holders.touched()
        cp.commit()
        cp.incremental("w", "at", initial_value=0)
        cp.commit()
        other = cp.incremental("w", "at", initial_value=0)
        cp.commit()
        list(other.windows(10, until=10))
        assert cp._layers.holders.touched()
