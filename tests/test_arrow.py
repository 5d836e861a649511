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
                found.append(inc.stats)
            found.append(decode(store.load("run")["s"].value))
        answers.append(found)
    assert answers[0] == answers[1]


def plain(batch):
    from checkpoint.streams.arrow import rows

    return rows(batch)


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
        cp.incremental("s", "at").filter(pa.table({"at": values}))
    assert decode(memory.load("run")["s"].value) == {"at": "2024-05-01 10:00:00.123456789Z"}


def test_a_table_without_the_column_has_rows_without_a_value():
    with Checkpointer("run", MemoryStore()) as cp, pytest.raises(ValueError, match="has no 'at'"):
        cp.incremental("s", "at").filter(pa.table({"id": [1]}))
