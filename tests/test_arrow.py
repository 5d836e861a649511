"""pyarrow tables and batches: the answers of rows."""

from __future__ import annotations

import random
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from checkpoint import Checkpointer, CursorRegressed
from checkpoint.codec import decode
from checkpoint.stores.memory import MemoryStore

pa = pytest.importorskip("pyarrow", reason="the extra arrow is not installed")

START = datetime(2024, 5, 1, tzinfo=timezone.utc)

COLUMNS = {
    "zulu": (lambda n: f"2024-05-01T10:{n:02}:00Z", pa.string()),
    "mixed": (lambda n: f"2024-05-01T10:{n:02}:00" + (".5Z" if n % 3 else "Z"), pa.string()),
    "text": (lambda n: f"x{n:03}", pa.large_string()),
    "int": (int, pa.int64()),
    "float": (lambda n: n / 4, pa.float64()),
    "decimal": (lambda n: Decimal(n) / 4, pa.decimal128(10, 2)),
    "date": (lambda n: date(2024, 5, 1) + timedelta(n), pa.date32()),
    "naive": (lambda n: datetime(2024, 5, 1) + timedelta(seconds=n), pa.timestamp("us")),
    "utc": (lambda n: START + timedelta(seconds=n), pa.timestamp("us", "UTC")),
    "nanos": (lambda n: START + timedelta(seconds=n), pa.timestamp("ns", "UTC")),
    "berlin": (lambda n: START + timedelta(seconds=n), pa.timestamp("us", "Europe/Berlin")),
}


def table(kind, numbers, ids):
    make, type_ = COLUMNS[kind]
    values = [None if number is None else make(number) for number in numbers]
    return pa.table({"id": pa.array(ids), "at": pa.array(values, type_)})


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("seed", range(12))
def test_tables_give_the_answers_of_rows(kind, seed):
    rng = random.Random(seed)
    order = rng.choice([None, "asc"])
    numbers = [rng.randrange(50) for _ in range(60)]
    if order == "asc":
        numbers.sort()
    elif rng.random() < 0.3:
        numbers[7] = None
    whole = table(kind, numbers, list(range(60)))
    options = {
        "primary_key": rng.choice([None, "id"]), "row_order": order, "on_cursor_value_missing": "include",
        "timezone": "UTC",
        "lookback": rng.choice([None, None, 2]) if kind in ("int", "float", "decimal") else None,
        "cursor_format": "text" if kind == "text" else None,
    }  # fmt: skip
    size = rng.choice([5, 20])
    answers = []
    for columns in (True, False):
        store, found = MemoryStore(), []
        for _ in range(2):
            with Checkpointer("run", store) as cp:
                inc = cp.incremental("s", "at", **options)
                for batch in whole.to_batches(size):
                    page = batch if columns else plain(batch)
                    kept = inc.filter(page)
                    found.append(kept["id"].to_pylist() if columns else [record["id"] for record in kept])
                    cp.commit()
                inc.finish()
                found.append(inc.stats)
            found.append(decode(store.load("run")["s"].value))
        answers.append(found)
    assert answers[0] == answers[1]


def plain(batch):
    return [dict(row) for row in whole_rows(batch)]


def test_pages_of_tables():
    memory = MemoryStore()
    whole = table("int", range(10), range(10))
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value=3)
        assert [page.num_rows for page in inc.pages([whole.slice(0, 2), whole.slice(2, 4), whole.slice(6)])] == [3, 4]
        assert isinstance(inc.filter(whole), pa.Table)
        assert isinstance(inc.filter(whole.to_batches()[0]), pa.RecordBatch)


def test_a_table_out_of_order_is_regressed_and_nothing_observed():
    with Checkpointer("run", MemoryStore()) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        inc.filter(table("int", [1, 2], [1, 2]))
        with pytest.raises(CursorRegressed):
            inc.filter(table("int", [3, 5, 4], [3, 4, 5]))
        assert inc.last_value == 2


def test_nanoseconds_are_kept():
    memory = MemoryStore()
    values = pa.array([1714557600123456789], pa.timestamp("ns", "UTC"))
    with Checkpointer("run", memory) as cp:
        list(cp.incremental("s", "at").pages([pa.table({"at": values})]))
    assert decode(memory.load("run")["s"].value) == {"at": "2024-05-01 10:00:00.123456789Z"}


def test_a_table_without_the_column_has_rows_without_a_value():
    with Checkpointer("run", MemoryStore()) as cp, pytest.raises(ValueError, match="has no 'at'"):
        cp.incremental("s", "at").filter(pa.table({"id": [1]}))


NANOS = 1_714_557_600_123_456_789
ODD = {
    "time64": lambda: pa.array([1, None, 86_399_999_999_999], pa.time64("ns")),
    "duration": lambda: pa.array([1, 2**62, None], pa.duration("ns")),
    "timestamps in a list": lambda: pa.array([[NANOS], [], None], pa.list_(pa.timestamp("ns", "UTC"))),
    "times in a struct": lambda: pa.array([{"t": 1}, {"t": None}, None], pa.struct([("t", pa.time64("ns"))])),
    "times in a map": lambda: pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.time64("ns"))),
    "year 9999 with a zone": lambda: pa.array([253402300799 * 10**6, 0, None], pa.timestamp("us", "America/New_York")),
    "year 20000": lambda: pa.array([2**59, -(2**59), 0], pa.timestamp("us")),
    "nanoseconds": lambda: pa.array([NANOS, None, 0], pa.timestamp("ns", "Europe/Berlin")),
    "dictionary": lambda: pa.array(["a", "b", None]).dictionary_encode(),
    "binary": lambda: pa.array([b"\xff", b"", None]),
    "decimal256": lambda: pa.array([Decimal(10) ** 70, None, Decimal(1)], pa.decimal256(76)),
    "interval": lambda: pa.array([(1, 2, 3), None, (0, 0, 1)], pa.month_day_nano_interval()),
    "null": lambda: pa.nulls(3),
    "run ends": lambda: pa.RunEndEncodedArray.from_arrays(pa.array([1, 3], pa.int32()), pa.array(["x", "y"])),
    "views": lambda: pa.array(["a", "b", None], pa.string_view()),
    "strings that are no UTF-8": lambda: pa.array([b"\xff", b"a", None]).view(pa.string()),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("batches", [True, False])
def test_fault_71_other_columns_do_not_matter(kind, batches):
    store = MemoryStore()
    whole = pa.table({"id": [1, 2, 3], "at": [1, 5, 5], "odd": ODD[kind]()})
    for expected in ([[2, 3]], []):
        with Checkpointer("run", store) as cp:
            stream = cp.incremental("s", "at", primary_key="id", initial_value=2)
            pages = [*stream.pages(whole.to_batches() if batches else [whole])]
            assert [page.column(0).to_pylist() for page in pages] == expected
            assert all(isinstance(page, pa.RecordBatch if batches else pa.Table) for page in pages)
    changed = whole.set_column(2, "odd", pa.array(["new", "new", "new"]))
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("s", "at", primary_key="id", initial_value=2)
        assert [page["id"].to_pylist() for page in stream.pages([changed])] == [[2, 3]]


def test_fault_71_a_cursor_that_datetime_does_not_hold():
    values = pa.array([253402300799 * 10**6, 0, None], pa.timestamp("us", "America/New_York"))
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", on_cursor_value_missing="exclude", initial_value="2000-01-01T00:00:00Z")
        assert stream.filter(pa.table({"at": values})).num_rows == 1


def test_only_the_cursor_column_and_boundary_rows_become_objects(monkeypatch):
    from checkpoint.streams import arrow

    looked = []
    values = arrow._python_values
    monkeypatch.setattr(arrow, "_python_values", lambda column: looked.append(len(column)) or values(column))
    whole = pa.table({"id": range(1000), "at": range(1000), "more": ["x"] * 1000})
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", row_order="asc", primary_key="id")
        for start in range(0, 1000, 100):
            assert stream.filter(whole.slice(start, 100)).num_rows == 100
        cp.commit()
    assert looked.count(100) == 10
    assert sum(looked) - 1000 <= 10 * 2 * 3  # two looks at three fields of the last row of each page


@pytest.mark.parametrize("kind", ["utc", "berlin"])
def test_of_times_in_order_only_the_ends_are_made(monkeypatch, kind):
    from checkpoint.streams import arrow

    made = []
    after = arrow._after
    monkeypatch.setattr(arrow, "_after", lambda epoch, count: made.append(count) or after(epoch, count))
    whole, last = table(kind, range(1000), range(1000)), START + timedelta(seconds=999)
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", row_order="asc")
        assert [page.num_rows for page in stream.pages(whole.slice(n, 100) for n in range(0, 1000, 100))] == [100] * 10
        assert (stream.last_value, stream.last_value.utcoffset()) == (last, whole["at"][0].as_py().utcoffset())
        with pytest.raises(CursorRegressed):
            stream.filter(table(kind, [999, 1001, 1000], [1, 2, 3]))
        assert stream.last_value == last
    assert len(made) <= 10 * 40


@pytest.mark.parametrize("chunked", [True, False])
def test_columns_inside_structs_and_callables(chunked):
    whole = pa.table({"meta": [{"at": 1}, {"at": 3}, None], "x": [1, 2, 3]})
    if chunked:
        whole = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    for field in ("meta.at", lambda row: (row["meta"] or {}).get("at")):
        with Checkpointer("run", MemoryStore()) as cp:
            stream = cp.incremental("s", field, initial_value=2, on_cursor_value_missing="exclude")
            assert stream.filter(whole).to_pylist() == [{"meta": {"at": 3}, "x": 2}]
    with Checkpointer("run", MemoryStore()) as cp, pytest.raises(ValueError, match="has no 'meta.none'"):
        cp.incremental("s", "meta.none").filter(whole)


@pytest.mark.parametrize("library", ["polars", "pandas"])
def test_data_frames_come_back_as_tables(library):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame({"id": [1, 2, 3], "at": ["2024-05-01T10:00:00Z", "2024-05-02T10:00:00Z", None]})
    if not hasattr(frame, "__arrow_c_stream__"):
        pytest.skip("has no PyCapsule interface")
    store = MemoryStore()
    for expected in ([[1, 2]], []):
        with Checkpointer("run", store) as cp:
            stream = cp.incremental("s", "at", primary_key="id", on_cursor_value_missing="exclude")
            pages = [*stream.pages([frame, frame[:0], frames.DataFrame([])])]
            assert [page["id"].to_pylist() for page in pages] == expected
            assert all(isinstance(page, pa.Table) for page in pages)
            stream.finish()
    assert decode(store.load("run")["s"].value)["at"] == "2024-05-02T10:00:00Z"


def test_what_is_no_table_is_a_typeerror():
    class Broken:
        def __arrow_c_stream__(self, requested_schema=None):
            raise ValueError("no stream today")

    for batch in (Broken(), pa.array([1, 2])):
        with Checkpointer("run", MemoryStore()) as cp, pytest.raises(TypeError, match="is not a table of rows"):
            cp.incremental("s", "at").filter(batch)


def test_tables_and_rows_of_one_stream_are_remembered_alike():
    store = MemoryStore()
    whole = table("nanos", [3, 5, 5], [1, 2, 3])
    rows = [dict(row) for row in whole_rows(whole)]
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("s", "at", primary_key="id", row_order="asc")
        assert stream.filter(whole).num_rows == 3
    with Checkpointer("run", store) as cp:
        assert cp.incremental("s", "at", primary_key="id", row_order="asc").filter(rows[1:]) == []


def whole_rows(batch):
    from checkpoint.streams.arrow import TablePage

    return TablePage(batch)
