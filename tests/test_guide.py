"""The guide's jobs, as they are written: killed while they read, resumed, and compared with what the source holds.

`CHECKPOINT_GUIDE_KILLS` is how often each shape is killed (3), `CHECKPOINT_GUIDE_RUNS` its healthy runs (2),
`CHECKPOINT_GUIDE_ROWS` how many rows its source begins with (400), `CHECKPOINT_SEED` where randomness begins. `-s`
prints what was found.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from datetime import timedelta

import pytest
from sources import GUIDE, Database, Runner, Source, blocks

from checkpoint import Checkpointer, MemoryStore

KILLS = int(os.environ.get("CHECKPOINT_GUIDE_KILLS", "2"))
RUNS = int(os.environ.get("CHECKPOINT_GUIDE_RUNS", "1"))
ROWS = int(os.environ.get("CHECKPOINT_GUIDE_ROWS", "400"))
SEED = int(os.environ.get("CHECKPOINT_SEED", "0"))

SETUP = blocks("README.md")[0]
JOBS = {
    "sorted": ("sorted.md", 0),
    "tokens": ("tokens.md", 0),
    "newest-first": ("newest-first.md", 0),
    "ask-again": ("ask-again.md", 0),
    "capped": ("ask-again.md", 1),
    "hubspot": ("ask-again.md", 2),
    "keyset": ("keyset.md", 0),
    "backfill": ("backfill.md", 0),
    "partitions": ("partitions.md", 0),
    "delta-tokens": ("delta-tokens.md", 0),
    "change-log": ("change-log.md", 0),
    "dataframes": ("dataframes.md", 0),
}


class World:
    """A source, a job of the guide, and what its sink got."""

    def __init__(self, shape, folder, seed=SEED, count=ROWS):
        if shape == "dataframes":
            pytest.importorskip("polars")
            pytest.importorskip("pyarrow")
        self.shape, self.folder = shape, folder
        self.rng = random.Random(f"{shape} {seed}")
        page, number = JOBS[shape]
        self.code = f"{SETUP}\n{blocks(page)[number]}"
        if shape == "capped" and count > ROWS:
            count = 12_500
        self.source = Source(seed, count)
        self.database = Database(folder / "source.db", seed, count) if shape == "keyset" else None

    def __enter__(self):
        self.source.__enter__()
        self.runner = Runner(self.folder, self.source.url, self.code).__enter__()
        self.source.heard = self.runner.event
        if self.database:
            self.runner.heard = self.database.change
        return self

    def __exit__(self, *_):
        self.runner.__exit__()
        self.source.__exit__()
        if self.database:
            self.database.connection.close()

    def busy(self):
        """Change many rows at the source, as between two nightly runs."""
        for _ in range(self.rng.randrange(40)):
            self.source.table.change()
            self.source.millis.change()
            self.source.append()
            if self.database:
                self.database.change()

    def quiet(self):
        self.source.changing = False
        if self.database:
            self.database.changing = False
            self.database.change()

    def truth(self):
        if self.database:
            return self.database.truth()
        if self.shape == "change-log":
            return self.source.log_truth()
        if self.shape == "delta-tokens":
            return self.source.feed_truth()
        table = self.source.millis if self.shape in ("capped", "hubspot") else self.source.table
        return {str(key) if self.shape == "hubspot" else key: version for key, version in table.truth().items()}

    def sink(self):
        """Return what an upsert has made of the rows that were written."""
        state = {}
        for key, version in self.runner.written():
            if key is None:  # a snapshot replaces what was there
                state.clear()
            elif version is None:
                state.pop(key, None)
            else:
                state[key] = max(version, state.get(key, 0)) if self.shape == "change-log" else version
        return state

    def twice(self):
        return sum(count - 1 for count in Counter(self.runner.written()).values())

    def finish(self):
        """Run twice in peace, and return the rows that are missing."""
        self.quiet()
        for later in (60, 600):
            assert self.runner.run(later=later)
        found = self.sink()
        return {key: version for key, version in self.truth().items() if found.get(key) != version}


@pytest.fixture
def world(request, tmp_path):
    with World(request.param, tmp_path) as world:
        yield world


every_shape = pytest.mark.parametrize("world", JOBS, indirect=True)


@every_shape
def test_nothing_is_missing_after_kills_at_random_points(world):
    killed = 0
    for _ in range(KILLS * 4):
        if killed == KILLS:
            break
        if world.rng.random() < 0.3:
            world.busy()
        if world.rng.random() < 0.1:
            world.source.snapshots.clear()  # tokens expire
        if world.database:  # its pages are read too fast to be killed from outside
            died = not world.runner.run(die_after=world.rng.randrange(1, 12))
        else:
            died = not world.runner.run(kill_at=world.rng.randrange(1, 10), delay=world.rng.random() * 0.01)
        killed += died
        if not died:  # everything was read: more to do
            world.busy()
    assert killed
    assert world.finish() == {}
    assert set(world.sink()) == set(world.truth())
    print(f"\n{world.shape}: {killed} kills, {len(world.runner.written())} rows written, {world.twice()} of them twice")


@every_shape
def test_healthy_runs_say_nothing_and_miss_nothing(world):
    for _ in range(RUNS):
        world.busy()
        assert world.runner.run()
    assert world.finish() == {}
    assert world.runner.warnings() == []


def test_newest_first_killed_every_3000_rows(tmp_path):
    count, every = (100_000, 3_000) if KILLS > 3 else (4_000, 600)
    with World("newest-first", tmp_path, count=count) as world:
        runs = 1
        while not world.runner.run(die_after=every):
            runs += 1
        assert world.finish() == {}
        print(f"\n{count} rows, killed every {every}: {runs} runs, {world.twice()} rows twice")
        assert runs <= count // every + 5
        assert world.twice() <= runs * 200


def test_expired_tokens_cost_a_reading_and_no_rows(tmp_path):
    with World("tokens", tmp_path) as world:
        assert not world.runner.run(kill_at=7)
        world.source.snapshots.clear()
        assert world.runner.run()
        assert world.finish() == {}


def test_expired_delta_link_starts_again(tmp_path):
    with World("delta-tokens", tmp_path) as world:
        assert world.runner.run()
        world.busy()
        world.source.forgotten = len(world.source.changes)
        world.source.append()
        assert world.finish() == {}


def test_cut_log_is_read_again_from_a_snapshot(tmp_path):
    with World("change-log", tmp_path) as world:
        assert world.runner.run()
        for _ in range(40):
            world.source.append()
        world.source.cut(len(world.source.log) - 5)
        assert world.finish() == {}
        assert [key for key, _ in world.runner.written()].count(None) == 2


def test_an_account_that_fails_holds_up_no_other(tmp_path):
    with World("partitions", tmp_path) as world:
        world.source.limited = False
        route = world.source.route
        first = min(route("/accounts", {})[1]["rows"])
        world.source.route = lambda path, query: (503, {}) if query.get("account") == first else route(path, query)
        with pytest.raises(AssertionError, match=f"accounts that failed: {first} "):
            world.runner.run()
        read = len(world.sink())
        assert 0 < read < len(world.truth())
        world.source.route = route
        assert world.finish() == {}


def test_capped_search_reads_past_its_cap(tmp_path):
    with World("capped", tmp_path, count=12_500) as world:
        assert world.runner.run()
        assert world.finish() == {}
        assert len(world.sink()) >= 12_500


@pytest.mark.parametrize("shape", ["capped", "hubspot"])
def test_a_change_among_equal_times_hides_no_row(shape, tmp_path):
    """All rows share one time. The first one changes after the first page that was asked for by that time."""
    with World(shape, tmp_path) as world:
        world.source.changing = world.source.limited = False
        table, route = world.source.millis, world.source.route
        at = table.order[0][0]
        table.rows = dict.fromkeys(table.rows, (1, at))
        table.order = [(at, number, 1) for number in table.rows]

        def change_once(path, query):
            answer = route(path, query)
            if world.source.served == 2:
                table.rows[0] = (2, table.now())
                table.order = [*table.order[1:], (table.rows[0][1], 0, 2)]
            return answer

        world.source.route = change_once
        assert world.runner.run()
        assert world.finish() == {}


@pytest.mark.parametrize(
    ("name", "text", "lookback", "earlier"),
    [
        ("lsn", "16/B374D848", 0x48, "16/B374D800"),
        ("rfc_2822", "Wed, 01 May 2024 10:00:00 GMT", timedelta(hours=1), "Wed, 01 May 2024 09:00:00 GMT"),
        ("week_date", "2024-W18-3", timedelta(days=7), "2024-W17-3"),
        ("ulid_time", "01HWT3V7M0ABCDEFGHJKMNPQRS", timedelta(minutes=1), "01HWT3SD100000000000000000"),
    ],
)
def test_a_format_of_the_guide_allows_a_lookback(name, text, lookback, earlier):
    formats = {}
    exec(blocks("values.md")[0], formats)
    store = MemoryStore()
    with Checkpointer("crm", store) as cp:
        stream = cp.incremental("rows", "at", row_order="asc", cursor_format=formats[name])
        assert stream.filter([{"at": text}]) == [{"at": text}]
    with Checkpointer("crm", store) as cp:
        stream = cp.incremental("rows", "at", row_order="asc", cursor_format=formats[name], lookback=lookback)
        assert stream.start_value == earlier


def test_every_block_of_the_guide_is_run():
    pages = sorted(path.name for path in GUIDE.glob("*.md"))
    known = Counter(page for page, _ in JOBS.values()) + Counter(["README.md", "values.md"])
    assert {page: len(blocks(page)) for page in pages if blocks(page)} == known


def test_links_between_pages_lead_somewhere():
    for path in GUIDE.glob("*.md"):
        for target, _, anchor in re.findall(r"\]\(([a-z-]+\.md)(#)?([a-z0-9-]*)\)", path.read_text("utf-8")):
            text = (GUIDE / target).read_text("utf-8")
            headings = {
                re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
                for line in text.splitlines()
                if line.startswith("#")
            }
            assert not anchor or anchor in headings, f"{path.name}: {target}#{anchor}"
