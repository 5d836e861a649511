"""Sources that go on changing while they are read, in random worlds: every kind of value, every shape, crashes, clocks.

A world has a source whose rows get the time of its own clock whenever they change, and a job in one of the guide's
shapes that dies here and there and is started again. At the end the sink must have the last version of every row; and
where no run died and there is a primary key, each version once. Clocks are frozen: ceilings matter, and so does a job's
clock that differs from the source's by up to two minutes.

`CHECKPOINT_STREAMS` sets how many worlds there are, `CHECKPOINT_SEED` where they begin; `-s` prints what came twice.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime, parsedate_to_datetime
from zoneinfo import ZoneInfo

import pytest
from freezegun import freeze_time

from checkpoint import Checkpointer, CursorFormat
from checkpoint.stores.memory import MemoryStore

WORLDS = int(os.environ.get("CHECKPOINT_STREAMS", "800"))
SEED = int(os.environ.get("CHECKPOINT_SEED", "0"))
PARTS = 20

UTC = timezone.utc
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BEGIN = datetime(2024, 2, 28, 22, tzinfo=UTC)
BEFORE_WINTER = datetime(2024, 10, 27, 0, 20, tzinfo=UTC)  # in Berlin and Paris, an hour that is shown twice
TICK = 20  # seconds of one unit of the source's time
TIE = 4  # rows of one instant, at the most
PAGE = 8


def moment(t):
    return BEGIN + timedelta(seconds=t * TICK)


def unit(when):
    return round((when - BEGIN).total_seconds() / TICK)


def since_epoch(t, scale=1):
    return int((moment(t) - EPOCH).total_seconds()) * scale


def from_epoch(value, scale=1):
    return unit(EPOCH + timedelta(seconds=int(value) // scale))


def iso(text):
    return unit(datetime.fromisoformat(text.replace("Z", "+00:00")))


def zulu(t):
    return moment(t).strftime("%Y-%m-%dT%H:%M:%SZ")


def wall_before_winter(zone, pattern):
    """Spell what a clock shows whose hour from 02:00 to 03:00 comes twice; rows are sorted by that."""
    zone = ZoneInfo(zone)

    def shown(t):
        return (BEFORE_WINTER + timedelta(seconds=t * TICK)).astimezone(zone).replace(tzinfo=None)

    def rank(t):
        return unit(shown(t).replace(tzinfo=UTC))

    def spell(t):
        return shown(t).strftime(pattern) if pattern else shown(t).replace(fold=0)

    def read(value):
        shown_then = datetime.strptime(f"{value} +0000", f"{pattern} %z") if pattern else value.replace(tzinfo=UTC)
        return unit(shown_then)

    return spell, read, rank


def spellings(t):
    """Spell an instant in one of the ways of ISO 8601 that sources mix."""
    return (
        zulu(t),
        moment(t).isoformat(timespec="milliseconds"),
        moment(t).astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat(),
        zulu(t).replace("Z", ",000000000Z"),
        moment(t).strftime("%Y-%m-%d %H:%M:%S.0 +0000"),
    )[t * 7919 % 5]


def unspell(text):
    return iso(text.replace(",000000000", "").replace(".0 +0000", "+00:00"))


def wall(zone, pattern):
    zone = ZoneInfo(zone)
    return (
        lambda t: moment(t).astimezone(zone).strftime(pattern),
        lambda text: unit(datetime.strptime(text, pattern).replace(tzinfo=zone)),
    )


lsn = CursorFormat(
    lambda text: int(text.split("/")[0], 16) << 32 | int(text.split("/")[1], 16),
    lambda number: f"{number >> 32:X}/{number & 0xFFFFFFFF:X}",
)
rfc_2822 = CursorFormat(parsedate_to_datetime, lambda when: format_datetime(when.astimezone(UTC), usegmt=True))

LSN_STEP = 0x4000_0000

# name: (spell, read back, options, whether it has a clock)
KINDS = {
    "zulu": (zulu, iso, {}, True),
    "iso, mixed": (spellings, unspell, {}, True),
    "naive text": (*wall("Asia/Kolkata", "%Y-%m-%dT%H:%M:%S"), {"timezone": "Asia/Kolkata"}, True),
    "datetime": (moment, unit, {}, True),
    "naive datetime": (
        lambda t: moment(t).astimezone(ZoneInfo("America/New_York")).replace(tzinfo=None),
        lambda when: unit(when.replace(tzinfo=ZoneInfo("America/New_York"))),
        {"timezone": "America/New_York"},
        True,
    ),
    "epoch_s": (since_epoch, from_epoch, {"cursor_format": "epoch_s"}, True),
    "epoch_s, text": (
        lambda t: f"{since_epoch(t)}.000100",
        lambda text: from_epoch(text.partition(".")[0]),
        {"cursor_format": "epoch_s"},
        True,
    ),
    "epoch_ms, text": (
        lambda t: str(since_epoch(t, 1000)),
        lambda text: from_epoch(text, 1000),
        {"cursor_format": "epoch_ms"},
        True,
    ),
    "epoch_us": (
        lambda t: since_epoch(t, 10**6), lambda value: from_epoch(value, 10**6), {"cursor_format": "epoch_us"}, True,
    ),
    "epoch_ns, text": (
        lambda t: str(since_epoch(t, 10**9)),
        lambda text: from_epoch(text, 10**9),
        {"cursor_format": "epoch_ns"},
        True,
    ),
    "pattern": (
        *wall("Asia/Kolkata", "%d.%m.%Y %H:%M:%S"),
        {"cursor_format": "%d.%m.%Y %H:%M:%S", "timezone": "Asia/Kolkata"},
        True,
    ),
    "pattern with zone": (
        lambda t: moment(t).strftime("%b %d %Y %H:%M:%S %z"),
        lambda text: unit(datetime.strptime(text, "%b %d %Y %H:%M:%S %z")),
        {"cursor_format": "%b %d %Y %H:%M:%S %z"},
        True,
    ),
    "rfc 2822": (
        lambda t: format_datetime(moment(t), usegmt=True),
        lambda text: unit(parsedate_to_datetime(text)),
        {"cursor_format": rfc_2822},
        True,
    ),
    "lsn": (
        lambda t: lsn.format(t * LSN_STEP), lambda text: lsn.parse(text) // LSN_STEP, {"cursor_format": lsn}, False,
    ),
    "int": (int, int, {}, False),
    "number": (str, int, {"cursor_format": "number"}, False),
    "text": (lambda t: f"{t:08}", int, {"cursor_format": "text"}, False),
}  # fmt: skip

TWICE = {
    "twice, text": wall_before_winter("Europe/Berlin", "%Y-%m-%dT%H:%M:%S"),
    "twice, pattern": wall_before_winter("Europe/Paris", "%d/%m/%Y %H:%M:%S"),
    "twice, datetime": wall_before_winter("Europe/Berlin", None),
}
KINDS |= {
    "twice, text": (*TWICE["twice, text"][:2], {"timezone": "Europe/Berlin"}, True),
    "twice, pattern": (
        *TWICE["twice, pattern"][:2],
        {"timezone": "Europe/Paris", "cursor_format": "%d/%m/%Y %H:%M:%S"},
        True,
    ),
    "twice, datetime": (*TWICE["twice, datetime"][:2], {"timezone": "Europe/Berlin"}, True),
}

SHAPES = {
    "pages": ("asc", None, "desc"),
    "track": ("asc", None, "desc"),
    "again": ("asc",),
    "keyset": ("asc",),
    "offset": ("asc",),
    "sorted tokens": ("asc",),
    "tokens": (None,),
    "numbered": ("desc",),
    "before": ("desc",),
}


class Crash(BaseException):
    pass


class World:
    def __init__(self, seed):
        rng = self.rng = random.Random(seed)
        self.shape = rng.choice(list(SHAPES))
        self.order = rng.choice(SHAPES[self.shape])
        # Of numbers nobody knows when "now" is: what changes while an unsorted source is read is the source's loss.
        kinds = [kind for kind, (*_, clock) in KINDS.items() if clock or self.order is not None]
        if self.shape == "offset":  # rows of the second pass come in between, so all others move
            kinds = [kind for kind in kinds if kind not in TWICE]
        self.kind = rng.choice(kinds)
        self.spell, self.read, self.options, self.clock = KINDS[self.kind]
        self.rank = TWICE[self.kind][2] if self.kind in TWICE else int  # what the source sorts by
        self.begin = BEFORE_WINTER if self.kind in TWICE else BEGIN
        self.tie = TIE // 2 if self.kind in TWICE else TIE  # both passes tie
        self.keyed = rng.random() < 0.8 or self.shape == "numbered"  # pages that shift repeat rows
        self.initial = rng.random() < 0.7 or self.kind == "text"
        self.skew = timedelta(seconds=rng.randrange(-120, 121)) if self.clock else timedelta()
        self.now = 1
        self.rows, self.crowd = {}, Counter()
        self.snapshots = []
        self.sink = []
        self.store = MemoryStore()
        self.crashes = 0
        self.quiet = False

    def __str__(self):
        return f"{self.kind}, {self.shape} {self.order}, keyed {self.keyed}, initial {self.initial}, skew {self.skew}"

    # The source

    def change(self, most):
        for _ in range(self.rng.randrange(most + 1)):
            if self.crowd[self.now] >= self.tie or not self.clock:
                self.now += 1
            number = self.rng.randrange(len(self.rows) + 2)
            if self.shape == "offset":  # nobody pages by offsets over rows that move
                number = len(self.rows)
            self.rows[number] = (self.rows.get(number, (0, 0))[0] + 1, self.now)
            self.crowd[self.now] += 1

    def tick(self, frozen, units):
        self.now += units
        frozen.move_to(self.begin + timedelta(seconds=self.now * TICK) + self.skew)

    def row(self, number):
        version, t = self.rows[number]
        return {"id": number, "version": version, "at": self.spell(t)}

    def found(self, low=0, high=1 << 60):
        ranked = ((self.rank(t), number) for number, (_, t) in self.rows.items())
        return sorted(one for one in ranked if low <= one[0] < high)

    def answers(self, stream, frozen):
        """Return what the source is asked by: a function of a place, as `fetch` takes it."""
        rng, start = self.rng, stream.start_value
        if isinstance(start, str) and "datetime" in self.kind:  # without an initial value, as it is stored
            start = datetime.fromisoformat(start)
        start = 0 if start is None else self.read(start)

        def live():
            """Time passes at each request, and things change; what is read is of a moment that is over."""
            if not self.quiet:
                self.change(2)
                self.tick(frozen, rng.randrange(1, 3))

        def again(t):
            live()
            rows = self.found(start if t is None else t)[:PAGE]
            return rows, rows[-1][0] if len(rows) == PAGE else None

        def keyset(place):
            live()
            low = (start, -1) if place is None else tuple(place)
            rows = [row for row in self.found(high=self.rank(self.now)) if row > low][:PAGE]
            return rows, rows[-1] if len(rows) == PAGE else None

        def tokens(token):
            live()
            if token is None:
                ids = [number for _, number in self.found(start)]
                rng.shuffle(ids)
                self.snapshots.append(ids)
                token = [len(self.snapshots) - 1, 0]
            ids, at = self.snapshots[token[0]], token[1]
            rows = [(None, number) for number in ids[at : at + PAGE]]
            return rows, [token[0], at + PAGE] if at + PAGE < len(ids) else None

        def offset(place):
            live()
            rows = self.found(start)[place or 0 :][:PAGE]
            return rows, (place or 0) + PAGE if len(rows) == PAGE else None

        def sorted_tokens(token):
            live()
            if token is None:
                self.snapshots.append([self.row(number) for _, number in self.found(start)])
                token = [len(self.snapshots) - 1, 0, start]
            assert token[2] == start, "400: the page token belongs to another query"
            rows, at = self.snapshots[token[0]], token[1]
            return rows[at : at + PAGE], [token[0], at + PAGE, start] if at + PAGE < len(rows) else None

        def numbered(page):
            live()
            page = page or 0
            rows = self.found()[::-1][page * PAGE : (page + 1) * PAGE]
            return rows, page + 1 if len(rows) == PAGE else None

        def before(t):
            live()
            rows = self.found(high=1 << 60 if t is None else t + 1)[::-1][:PAGE]
            return rows, rows[-1][0] if len(rows) == PAGE else None

        plain = {"asc": again, "desc": before, None: tokens}[self.order]
        ask = {"again": again, "keyset": keyset, "tokens": tokens, "numbered": numbered, "before": before}
        ask |= {"offset": offset, "sorted tokens": sorted_tokens}
        chosen = ask.get(self.shape, plain)

        def page(place):
            rows, following = chosen(place)
            return [row if isinstance(row, dict) else self.row(row[1]) for row in rows], following

        return page

    # The job

    def run(self, frozen, crash):
        """Run once; die after `crash` rows, -1: do not. Return whether it came to its end."""
        left = crash

        def write(rows):
            nonlocal left
            for row in rows:
                if left == 0:
                    raise Crash
                left -= 1
                self.sink.append((row["id"], row["version"]))

        try:
            with Checkpointer("ns", self.store) as cp:
                stream = cp.incremental(
                    "rows", "at", row_order=self.order, primary_key="id" if self.keyed else None,
                    initial_value=self.spell(0) if self.initial else None, max_seen=10_000, **self.options,
                )  # fmt: skip
                page = self.answers(stream, frozen)
                if self.shape == "track":
                    for row in stream.track(row for rows in following(page, self.order) for row in rows):
                        write([row])
                        if self.rng.random() < 0.3:
                            cp.commit()
                else:
                    pages = stream.pages(following(page, self.order)) if self.shape == "pages" else stream.fetch(page)
                    for rows in pages:
                        write(rows)
                        if self.rng.random() < 0.7:
                            cp.commit()
                if left == 0:
                    raise Crash
        except Crash:
            self.crashes += 1
            return False
        return True

    def check(self):
        last = dict(self.sink)
        missing = {number: row for number, row in self.rows.items() if last.get(number) != row[0]}
        assert not missing, f"missing {missing}"
        if self.keyed and not self.crashes:
            assert self.twice() == 0, [row for row, count in Counter(self.sink).items() if count > 1]

    def twice(self):
        return sum(count - 1 for count in Counter(self.sink).values())


def following(page, order):
    """Yield the pages of a source without `fetch`; rows that two pages share come once in ascending order."""
    place, before = None, []
    while True:
        rows, place = page(place)
        yield [row for row in rows if row not in before]
        before = rows
        if place is None:
            return


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.filterwarnings("ignore:Parsing dates involving a day of month:DeprecationWarning")
def test_the_last_version_of_every_row_arrives(part, caplog):
    rows, twice, crashes = 0, 0, 0
    with freeze_time(moment(0)) as frozen:
        for seed in range(SEED + part, SEED + WORLDS, PARTS):
            world = World(seed)
            try:
                world.tick(frozen, 0)
                world.change(12)
                for _ in range(world.rng.randrange(1, 6)):
                    world.tick(frozen, world.rng.choice([1, 3, 30]))
                    world.run(frozen, world.rng.choice([-1, -1, *range(30)]))
                    world.change(12)
                world.quiet = True
                for _ in range(2):
                    world.tick(frozen, 180)
                    assert world.run(frozen, -1)
                world.check()
            except Exception as error:
                raise AssertionError(f"world {seed}, {world}: {type(error).__name__}: {error}") from error
            rows, twice, crashes = rows + len(world.sink), twice + world.twice(), crashes + world.crashes
    print(f"\npart {part}: {crashes} crashes, {rows} rows delivered, {twice} of them twice")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []
