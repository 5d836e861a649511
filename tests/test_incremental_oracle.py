"""Random streams, crashed and resumed, against an oracle that knows every row's instant as a plain integer.

Values may be of a clock that shows an hour twice, and sources paged by tokens that are worth nothing beside another
question: `fetch` goes on with those. At least once always; exactly once for rows that a commit covered and that lie at
its position or inside the lookback, where there is a primary key. `CHECKPOINT_STREAMS` sets how many streams are run,
`CHECKPOINT_SEED` where they begin.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest

from checkpoint import Checkpointer, CursorFormat
from checkpoint.codec import decode
from checkpoint.stores.memory import MemoryStore

STREAMS = int(os.environ.get("CHECKPOINT_STREAMS", "800"))
SEED = int(os.environ.get("CHECKPOINT_SEED", "0"))
PARTS = 20

EPOCH = datetime(2024, 2, 28, 23, 59, 50, tzinfo=timezone.utc)
BERLIN_WINTER = timezone(timedelta(hours=1))


def zulu(micros):
    return moment(micros).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment(micros):
    return EPOCH + timedelta(microseconds=micros)


def shortest(micros):
    return moment(micros).isoformat()  # leaves out a fraction of zero


def offset(micros):
    zone = timezone(timedelta(hours=micros % 5 - 2, minutes=30 * (micros % 2)))
    return moment(micros).astimezone(zone).isoformat(timespec="microseconds")


def mixed(micros):
    return (zulu, shortest, offset, nanos, spaced)[micros * 7919 % 5](micros)


def nanos(micros):
    return zulu(micros)[:-1] + "000Z"


def spaced(micros):
    return zulu(micros).replace("T", " ")


def whole(micros):
    return zulu(micros // 1_000_000 * 1_000_000)[:-8] + "Z"


FIRST, SECOND = 12, 24  # where the first pass begins of an hour that a clock shows twice, and the second one


def twice(shown):
    """Spell what a clock in Berlin shows, in units of five minutes, in the night in which 02:00 comes twice."""
    return (datetime(2024, 10, 27, 1) + timedelta(minutes=5 * shown)).isoformat()


def numbers(micros):
    return (micros, float(micros), Decimal(micros))[micros % 3]


def epoch_us(micros):
    return (EPOCH - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1) + micros


def epoch_s(micros):
    whole, rest = divmod(epoch_us(micros), 1_000_000)
    return f"{whole}.{rest:06}"


LSN = CursorFormat(
    lambda text: int(text.split("/")[0], 16) << 32 | int(text.split("/")[1], 16),
    lambda number: f"{number >> 32:X}/{number & 0xFFFFFFFF:X}",
)


def lsn(micros):
    return LSN.format((1 << 36) - 6 + micros)  # the digits grow, before the slash and behind it


def pattern(form):
    return lambda micros: moment(micros).strftime(form)


KINDS = {
    "zulu": (zulu, zulu(-1)),
    "shortest": (shortest, shortest(-1)),
    "offset": (offset, offset(-1)),
    "mixed": (mixed, zulu(-1)),
    "datetime": (moment, moment(-1)),
    "zoned": (lambda micros: moment(micros).astimezone(BERLIN_WINTER), moment(-1)),
    "naive": (lambda micros: moment(micros).replace(tzinfo=None), moment(-1).replace(tzinfo=None)),
    "twice": (twice, twice(-1)),
    "int": (int, -1),
    "float": (float, -1.0),
    "decimal": (Decimal, Decimal(-1)),
    "numbers": (numbers, -1),
    "text": (lambda micros: f"{micros:012}", "!"),
    "number": (str, "-1"),
    "epoch_us": (epoch_us, epoch_us(-1)),
    "epoch_s": (epoch_s, epoch_s(-1)),
    "epoch_ns": (lambda micros: str(epoch_us(micros) * 1000), str(epoch_us(-1) * 1000)),
    "pattern": (pattern("%d.%m.%Y %H:%M:%S.%f"), pattern("%d.%m.%Y %H:%M:%S.%f")(-1)),
    "pattern with zone": (pattern("%b %d %Y %H:%M:%S.%f %z"), moment(-1)),
    "lsn": (lsn, lsn(-1)),
}
FORMATS = {
    "naive": {"timezone": "UTC"},
    "twice": {"timezone": "Europe/Berlin"},
    "text": {"cursor_format": "text"},
    "number": {"cursor_format": "number"},
    "epoch_us": {"cursor_format": "epoch_us"},
    "epoch_s": {"cursor_format": "epoch_s"},
    "epoch_ns": {"cursor_format": "epoch_ns"},
    "pattern": {"cursor_format": "%d.%m.%Y %H:%M:%S.%f", "timezone": "UTC"},
    "pattern with zone": {"cursor_format": "%b %d %Y %H:%M:%S.%f %z"},
    "lsn": {"cursor_format": LSN},
}


@dataclass
class Stream:
    """A source, a sink and what is known of them."""

    rng: random.Random
    rows: list = field(default_factory=list)
    sink: list = field(default_factory=list)
    covered: set = field(default_factory=set)  # delivered rows that a commit spoke for
    expected: set = field(default_factory=set)
    at: int | None = None  # the position, as the oracle knows it
    top: int = 0

    def __post_init__(self):
        rng = self.rng
        self.kind = rng.choice(list(KINDS))
        self.spell, self.initial = KINDS[self.kind]
        if rng.random() < 0.3:
            self.initial = None
        self.order = rng.choice(["asc", "asc", None, "desc"])
        self.open = rng.random() < 0.2
        self.keyed = rng.random() < 0.7
        self.lookback = rng.choice([0, 0, 3, 10]) if self.kind != "text" else 0
        self.missing = rng.choice(["include", "exclude"])
        self.how = rng.choice(["pages", "filter", "track", "observe", "fetch"])
        self.store = MemoryStore()
        self.snapshots = []  # answers that are given by tokens, each with what was asked

    def grow(self):
        """New rows, ties at the top, rows that changed, and late ones inside the lookback."""
        rng = self.rng
        for _ in range(rng.randrange(12)):
            if self.rows and rng.random() < 0.15:  # changed
                row = rng.choice(self.rows)
                self.rows.remove(row)
                self.top += rng.randrange(3)
                self.rows.append({**row, "at": self.shown(self.top), "version": row["version"] + 1})
            elif rng.random() < 0.1:
                self.rows.append({"id": len(self.rows) + 1000 * rng.randrange(1000), "at": None, "version": 0})
            else:
                late = rng.random() < 0.2
                self.top += rng.choice([0, 0, 1, 2])
                at = max(self.shown(self.top) - rng.randrange(12), self.floor()) if late else self.shown(self.top)
                self.rows.append({"id": rng.randrange(10**9), "at": at, "version": 0})
        for row in self.rows:
            if row["at"] is not None and row["at"] >= self.floor():
                self.expected.add(identity(row))

    def floor(self):
        """Return the lowest place at which a new row is still found by the next run, or by the one after it."""
        at = self.at
        pending = self.pending()
        if pending and not (self.order == "asc" and self.at is not None and self.reaches_back()):
            at = max([row["at"] for row in pending if row["at"] is not None] + ([] if at is None else [at]), default=at)
        if at is None:
            return 0
        return max(self.back(at) + (self.open and not self.is_shown_twice(self.back(at))), 0)

    def back(self, at):
        """Return where the source is asked from."""
        if self.kind != "twice":
            return at - self.lookback
        instant = at if at < SECOND else at + SECOND - FIRST
        start = self.shown(instant - self.lookback)
        return FIRST if self.is_shown_twice(start) else start

    def is_shown_twice(self, at):
        return self.kind == "twice" and FIRST <= at < SECOND

    def reaches_back(self):
        return self.lookback > 0 or self.is_shown_twice(self.at)

    def shown(self, at):
        """Return what the source's clock shows at an instant; rows are sorted by that."""
        return at if self.kind != "twice" or at < SECOND else at - SECOND + FIRST

    def pending(self):
        """Return the answer that an interrupted `fetch` goes on with."""
        place = (self.stored() or {}).get("resume")
        return [] if place is None else self.snapshots[place["at"][0]][1]

    def stored(self):
        entry = self.store.load("ns").get("rows")
        return None if entry is None else decode(entry.value)

    def answer(self, start):
        """Return what the source has from `start` on, spelled."""
        rows = [row for row in self.rows if row["at"] is None or start is None or self.is_in(row["at"], start)]
        self.rng.shuffle(rows)
        if self.order is not None:
            rows.sort(key=lambda row: -1 if row["at"] is None else row["at"], reverse=self.order == "desc")
        return [{**row, "updated_at": None if row["at"] is None else self.spell(row["at"])} for row in rows]

    def is_in(self, at, start):
        return at > start if self.open and not self.is_shown_twice(start) else at >= start

    def options(self):
        step = timedelta(minutes=5 * self.lookback) if self.kind == "twice" else timedelta(microseconds=self.lookback)
        numeric = self.kind in ("int", "float", "decimal", "numbers", "number", "lsn")
        return {
            "initial_value": self.initial,
            "lookback": None if not self.lookback else self.lookback if numeric else step,
            "primary_key": "id" if self.keyed else None,
            "row_order": self.order,
            "range_start": "open" if self.open else "closed",
            "on_cursor_value_missing": self.missing,
            **FORMATS.get(self.kind, {}),
        }


def identity(row):
    return row["id"], row["version"], row["at"]


class Crash(Exception):
    pass


def run(stream, crash):
    """One run of a job, which dies after `crash` rows; return whether it came to its end."""
    rng = stream.rng
    written, pending = 0, []

    def write(rows):
        nonlocal written
        for row in rows:
            if written == crash:
                raise Crash
            written += 1
            stream.sink.append(row)
            pending.append(row)

    def commit(hand=None):
        cp.commit()
        said = [row for row in pending if row is not hand]
        stream.covered.update(identity(row) for row in said)
        if stream.order == "asc":
            advance(stream, said, top_is_safe=hand)
        pending[:] = [hand] if hand is not None else []

    try:
        with Checkpointer("ns", stream.store) as cp:
            inc = cp.incremental("rows", "updated_at", **stream.options())
            before = stream.at
            start = None if before is None else stream.back(before)
            if start is not None and stream.initial is not None:
                start = max(start, -1)
            source = stream.answer(start)
            check = checker(stream, before)
            size = rng.randrange(1, 6)
            asked = str(inc.start_value)

            def page(token):
                nonlocal source
                index, first = (len(stream.snapshots), 0) if token is None else token
                if token is None:
                    stream.snapshots.append((asked, source))
                question, source = stream.snapshots[index]
                assert question == asked, "400: the page token belongs to another question"
                return source[first : first + size], [index, first + size] if first + size < len(source) else None

            batches = [source[index : index + size] for index in range(0, len(source), size)]
            if stream.how == "pages":
                for rows in inc.pages(batches):
                    check(rows)
                    write(rows)
                    if rng.random() < 0.5:
                        commit()
            elif stream.how == "fetch":
                for rows in inc.fetch(page):
                    check(rows)
                    write(rows)
                    if rng.random() < 0.5:
                        commit()
            elif stream.how == "filter":
                for batch in batches:
                    rows = inc.filter(batch)
                    check(rows)
                    write(rows)
                    if rng.random() < 0.5:
                        commit()
            elif stream.how == "track":
                for row in inc.track(source):
                    check([row])
                    write([row])
                    if rng.random() < 0.3:
                        commit(row)
            else:
                for row in source:
                    if inc.observe(row):
                        check([row])
                        write([row])
                    if rng.random() < 0.3:
                        commit()
            if crash == written:
                raise Crash
            if stream.how in ("filter", "observe"):
                inc.finish()  # which alone says that this was all
    except Crash:
        return False
    stream.covered.update(identity(row) for row in pending)
    highest = [row["at"] for row in source if row["at"] is not None]
    stream.at = max([at for at in (stream.at, *highest) if at is not None], default=None)
    return True


def advance(stream, said, top_is_safe):
    """Follow the position of a sorted stream: the highest row spoken for; with an open range, of those passed."""
    stream.said = [*getattr(stream, "said", []), *(row["at"] for row in said if row["at"] is not None)]
    reached = sorted(set(stream.said))
    if stream.open:
        hand = top_is_safe["at"] if top_is_safe is not None and top_is_safe["at"] is not None else None
        if not (reached and hand is not None and hand > reached[-1]):
            reached = reached[:-1]
    if reached:
        stream.at = reached[-1] if stream.at is None else max(stream.at, reached[-1])


def checker(stream, before):
    covered = set(stream.covered)

    def check(rows):
        for row in rows:
            if row["at"] is None:
                assert stream.missing == "include"
            elif stream.keyed and before is not None and row["at"] <= before:
                assert identity(row) not in covered, f"{row} was delivered before"

    return check


@pytest.mark.parametrize("part", range(PARTS))
def test_every_row_at_least_once_and_boundary_rows_exactly_once(part):
    for number in range(SEED + part, SEED + STREAMS, PARTS):
        stream = Stream(random.Random(number))
        try:
            for _ in range(stream.rng.randrange(1, 6)):
                stream.grow()
                stream.said = []
                run(stream, stream.rng.choice([-1, -1, *range(15)]))
                check_position(stream)
            stream.said = []
            for _ in range(1 + (stream.how == "fetch")):  # the first one ends what was interrupted
                assert run(stream, -1)
                check_position(stream)
            missing = stream.expected - {identity(row) for row in stream.sink} - superseded(stream)
            assert not missing
        except AssertionError as error:
            raise AssertionError(
                f"stream {number}, {stream.kind}, {stream.options()}, {stream.how}: {error}"
            ) from error


def superseded(stream):
    """Versions of rows that changed before any run could have seen them."""
    current = {identity(row) for row in stream.rows}
    return stream.expected - current


def check_position(stream):
    stored = stream.stored()
    expected = None if stream.at is None else stream.spell(stream.at)
    found = None if stored is None else stored.get("updated_at")
    if stream.kind in ("mixed", "numbers", "offset", "shortest"):  # the first of equal ones was kept
        assert (found is None) == (expected is None)
        return
    if hasattr(expected, "isoformat"):
        expected = expected.isoformat()
    assert found == (str(expected) if isinstance(expected, Decimal) else expected)
