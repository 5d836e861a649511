"""The memory of delivered rows that the source is asked for again: what it knows, and how far it grows."""

from __future__ import annotations

import time
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from checkpoint import Checkpointer
from checkpoint.codec import decode
from checkpoint.stores.memory import MemoryStore

UTC = timezone.utc
AT = "2024-05-01T10:00:00Z"

# What version 1 stored after it handed out `rows_at(value)`.
VERSION_1 = {
    "iso": ("2024-05-01T10:00:00.500Z", ["b405b7b399ef88e5", "ea62195b5496181a"], {}),
    "offset": ("2024-05-01T12:00:00+02:00", ["cf2d73d1a7ea532c", "435c2bf522d37388"], {}),
    "naive": ("2024-05-01 10:00:00", ["dfdee42f6a46e5ea", "87dc8c382e5960be"], {}),
    "day": ("2024-05-01", ["007475aa03a1284c", "cea09218356e7be4"], {}),
    "datetime": (datetime(2024, 5, 1, 10, 0, 0, 250_000, tzinfo=UTC), ["c0722940799fd004", "04292f71041e0603"], {}),
    "date": (date(2024, 5, 1), ["26d3150b40161796", "8c4bdf8d761e815f"], {}),
    "int": (7, ["02dec34df92d9584", "75822d668c93e993"], {}),
    "float": (2.5, ["a3b8612a121ab1cb", "9dfc4553ff7cb9c7"], {}),
    "decimal": (Decimal("1.50"), ["9f3b35cf1b21b72c", "57115f0e0a6cc819"], {}),
    "text": ("x001", ["bc74e79377a58f5a", "372c1eb953260e19"], {"cursor_format": "text"}),
    "epoch": (7, ["02dec34df92d9584", "75822d668c93e993"], {"cursor_format": "epoch_s"}),
}


def rows_at(value, *, more=0):
    return [{"id": "a", "at": value, "n": 1 + more}, {"id": "b", "at": value, "n": [None, {"x": 2.5}]}]


@pytest.mark.parametrize("kind", VERSION_1)
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_what_version_1_remembered_is_known(kind, order):
    value, digests, options = VERSION_1[kind]
    stored = value.isoformat() if isinstance(value, date) else str(value) if isinstance(value, Decimal) else value
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        cp["s"] = {"at": stored, "seen": {"at": stored, "rows": digests}}
    for expected in ([], []):
        with Checkpointer("run", store) as cp:
            stream = cp.incremental("s", "at", primary_key="id", row_order=order, **options)
            assert [*stream.pages([rows_at(value)])] == expected
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("s", "at", primary_key="id", row_order=order, **options)
        assert [*stream.pages([rows_at(value, more=1)])] == [rows_at(value, more=1)[:1]]
    [*digests] = decode(store.load("run")["s"].value)["seen"]["rows"]
    assert [len(digest) for digest in digests[-2:]] == [24, 24]


@pytest.mark.parametrize("versions", [("etag",), None])
def test_fault_68_the_memory_grows_with_rows_and_not_with_runs(versions):
    """Signed URLs change at every run; `version_fields` tell that the rows are the same all the same."""
    store, delivered = MemoryStore(), 0
    for run in range(500 if versions else 60):
        with Checkpointer("run", store) as cp:
            stream = cp.incremental("s", "at", primary_key="id", version_fields=versions)
            page = [{"id": n, "at": AT, "etag": "x", "url": f"https://files/{n}?signed={run}"} for n in range(3)]
            delivered += sum(map(len, stream.pages([page])))
        assert len(decode(store.load("run")["s"].value)["seen"]["rows"]) == 3
    assert delivered == (3 if versions else 180)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"version_fields": ("etag",)}, ValueError), ({"version_fields": "etag", "primary_key": "id"}, TypeError),
        ({"version_fields": (), "primary_key": "id"}, TypeError),
        ({"version_fields": (5,), "primary_key": "id"}, TypeError),
        ({"primary_key": 5}, TypeError), ({"primary_key": []}, TypeError), ({"primary_key": ["id", 5]}, TypeError),
    ],
)  # fmt: skip
def test_names_of_fields_are_judged_at_opening(options, error):
    with Checkpointer("run", MemoryStore()) as cp, pytest.raises(error, match="version_fields|primary_key"):
        cp.incremental("s", "at", **options)


def test_fault_67_a_row_without_fields_is_refused_at_once():
    class Opaque:
        __slots__ = ()
        at, id = AT, 1

    for how in ("pages", "track", "observe"):
        with Checkpointer("run", MemoryStore()) as cp:
            stream = cp.incremental("s", "at", primary_key="id")
            with pytest.raises(TypeError, match=r"'s', 'at': .*version_fields=\('etag',\)"):
                if how == "observe":
                    stream.observe(Opaque())
                else:
                    [*getattr(stream, how)([[Opaque()]] if how == "pages" else [Opaque()])]
            assert stream.stats.delivered == 0
            stream.unfinished()


def test_rows_at_one_instant_cost_the_same_each():
    """Twice the rows at one instant, a commit a page, take about twice the time."""

    def spent(count):
        rows = [{"id": n, "at": AT} for n in range(count)]
        with Checkpointer("run", MemoryStore()) as cp:
            stream = cp.incremental("s", "at", primary_key="id", row_order="asc", max_seen=500)
            begin = time.process_time()
            for _ in stream.pages(rows[start : start + 50] for start in range(0, count, 50)):
                cp.commit()
            return time.process_time() - begin

    spent(500)
    ratios = sorted(spent(12_000) / spent(6_000) for _ in range(5))
    assert ratios[2] < 3


@pytest.mark.parametrize("reach", ["lookback", "ceiling"])
def test_rows_that_are_not_remembered_are_counted(reach):
    now = datetime.now(UTC)
    ago = timedelta(minutes=30) if reach == "lookback" else timedelta(minutes=-30)
    rows = [{"id": n, "at": (now - ago + timedelta(seconds=n)).isoformat()} for n in range(8)]
    options = {"lookback": timedelta(hours=1)} if reach == "lookback" else {}
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("s", "at", primary_key="id", max_seen=5, **options)
        assert [*stream.pages([rows])] == [rows]
        stream.finish()
        cp.commit()
        assert stream.stats.unremembered == 3


@pytest.mark.parametrize("how", ["pages", "filter", "track", "observe"])
@pytest.mark.parametrize("order", ["asc", "desc", None])
@pytest.mark.parametrize("count", [3, 4, 5])
def test_as_many_rows_as_max_seen_are_remembered(caplog, how, order, count):
    """At one instant: up to four rows no word and no row twice; of five one warning, and one row twice."""
    store, rows = MemoryStore(), [{"id": n, "at": AT} for n in range(count)]
    delivered = []
    for _ in range(2):
        with Checkpointer("run", store) as cp:
            stream = cp.incremental("s", "at", primary_key="id", row_order=order, max_seen=4)
            if how == "observe":
                delivered.append([row for row in rows if stream.observe(row)])
            elif how == "filter":
                delivered.append(stream.filter(rows))
            elif how == "track":
                delivered.append([*stream.track(rows)])
            else:
                delivered.append([row for page in stream.pages([rows]) for row in page])
            stream.finish()
            cp.commit()
            assert stream.stats.unremembered == 0
    assert delivered == [rows, rows[: max(count - 4, 0)]]
    assert len(decode(store.load("run")["s"].value)["seen"]["rows"]) == min(count, 4)
    told = [record.checkpoint_event for record in caplog.records if record.levelname == "WARNING"]
    assert told == (["many_at_once"] * 2 if count > 4 else [])


@pytest.mark.parametrize("count", [4, 5])
def test_rows_at_a_position_that_remembers_none_are_counted(caplog, count):
    """Somebody set the position by hand."""
    store, rows = MemoryStore(), [{"id": n, "at": AT} for n in range(count)]
    with Checkpointer("run", store) as cp:
        cp["s"] = {"at": AT}
    delivered = []
    for _ in range(2):
        with Checkpointer("run", store) as cp:
            stream = cp.incremental("s", "at", primary_key="id", row_order="asc", max_seen=4)
            delivered.append(stream.filter(rows))
            stream.finish()
    assert delivered == [rows, rows[4:]]  # the first ones are kept, and the position stays
    told = [record.checkpoint_event for record in caplog.records if record.levelname == "WARNING"]
    assert told == (["many_at_once"] * 2 if count > 4 else [])


@pytest.mark.parametrize("how", ["pages", "observe"])
@pytest.mark.parametrize("reach", ["lookback", "ceiling"])
@pytest.mark.parametrize("count", [4, 5, 6, 7])
def test_one_row_more_than_max_seen_is_counted(reach, count, how):
    now = datetime.now(UTC)
    begin = now - timedelta(minutes=30) if reach == "lookback" else now + timedelta(minutes=30)
    rows = [{"id": n, "at": (begin + timedelta(seconds=n)).isoformat()} for n in range(count)]
    options = {"lookback": timedelta(hours=1)} if reach == "lookback" else {}
    store, delivered = MemoryStore(), []
    for _ in range(2):
        with Checkpointer("run", store) as cp:
            stream = cp.incremental("s", "at", primary_key="id", max_seen=5, **options)
            if how == "observe":
                delivered.append([row for row in rows if stream.observe(row)])
            else:
                delivered.append([row for page in stream.pages([rows]) for row in page])
            stream.finish()
            cp.commit()
            assert stream.stats.unremembered == max(count - 5, 0)
    # The highest are kept of a lookback, the first ones above the ceiling.
    assert delivered == [rows, rows[: max(count - 5, 0)] if reach == "lookback" else rows[5:]]


def test_more_rows_than_the_memory_holds_between_two_claims():
    """A deep memory lets its lowest rows go when there are twice `max_seen` and a thousand; all are counted."""
    store, rows = MemoryStore(), [{"id": n, "at": n} for n in range(1_020)]
    for most in (9, 10, 11):
        with Checkpointer(f"run {most}", store) as cp:
            stream = cp.incremental("s", "at", primary_key="id", row_order="asc", lookback=5_000, max_seen=most)
            assert [*stream.pages([rows])] == [rows]
            cp.commit()
            assert stream.stats.unremembered == 1_020 - most
        assert len(decode(store.load(f"run {most}")["s"].value)["seen"]["rows"]) == most


@pytest.mark.parametrize("order", ["asc", "desc", None])
@pytest.mark.parametrize("primary", ["no", ("id", "no"), lambda row: row.get("no")])
def test_a_first_row_without_its_primary_key_is_refused(order, primary):
    """Two rows at one instant would be taken for one, and the second one dropped."""
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", primary_key=primary, row_order=order)
        with pytest.raises(ValueError, match="a row has no .* primary_key needs to tell rows apart"):
            list(stream.pages([[{"id": 1, "none": None, "at": 5}, {"id": 2, "none": None, "at": 5}]]))
        assert stream.stats.seen == 0
        assert stream.filter([]) == []  # nothing was covered, so it goes on


@pytest.mark.parametrize("fields", [None, ("etag",)])
@pytest.mark.parametrize("order", ["asc", "desc", None])
def test_later_rows_without_a_primary_key_are_all_handed_out(order, fields):
    """Nothing tells them apart: rather twice than not at all."""
    rows = [{"id": 1, "at": 5, "etag": 1}, {"id": None, "at": 5, "etag": 2, "n": 1}, {"at": 5, "etag": 2, "n": 2}]
    store = MemoryStore()

    def run():
        with (
            Checkpointer("run", store) as cp,
            cp.incremental("s", "at", primary_key="id", row_order=order, version_fields=fields) as stream,
        ):
            return [row for page in stream.fetch(lambda at: (rows, None)) for row in page]

    assert run() == rows
    rows.append({"at": 5, "etag": 2, "n": 3})
    assert rows[-1] in run()


def test_rows_remembered_with_another_position_come_again():
    """Somebody who sets the position back wants its rows again, also those inside the lookback that were delivered."""
    store, page = MemoryStore(), [{"id": "a", "at": 2}, {"id": "b", "at": 4}, {"id": "c", "at": 5}]
    options = {"initial_value": 0, "lookback": 3, "primary_key": "id", "row_order": "asc"}
    with Checkpointer("run", store) as cp:
        assert [*cp.incremental("s", "at", **options).pages([page])] == [page]
    with Checkpointer("run", store) as cp:
        assert len(cp["s"]["seen"]["rows"]) == 3
        cp["s"]["at"] = 4
    with Checkpointer("run", store) as cp:
        assert [*cp.incremental("s", "at", **options).pages([page])] == [page]


def test_a_refused_page_leaves_nothing_remembered():
    """Its rows were not handed out, and come with the next run."""
    store = MemoryStore()

    def stream(cp):
        return cp.incremental("s", "at", row_order="asc", primary_key=lambda row: int(row["id"]), version_fields=["at"])

    with Checkpointer("run", store) as cp:
        inc = stream(cp)
        inc.filter([{"id": 1, "at": 20}])
        cp.commit()
        with pytest.raises(ValueError, match="invalid literal"):
            inc.filter([{"id": 2, "at": 20}, {"id": "x", "at": 20}])
    with Checkpointer("run", store) as cp:
        assert [row["id"] for row in stream(cp).filter([{"id": n, "at": 20} for n in (1, 2, 3)])] == [2, 3]


def test_a_key_that_a_row_lacks_is_told_at_the_row():
    """And not at the commit, when the sink has it."""
    with Checkpointer("run", MemoryStore()) as cp:
        inc = cp.incremental("s", "at", row_order="asc", primary_key=lambda row: row["id"])
        assert inc.observe({"id": 1, "at": 1})
        with pytest.raises(KeyError):
            inc.observe({"at": 1})
        assert cp.commit()
