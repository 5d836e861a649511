"""What a stream reads of a row of any kind: a field, and what tells that it changed."""

from __future__ import annotations

import dataclasses
import sqlite3
import subprocess
import sys
from collections import UserDict, namedtuple
from decimal import Decimal
from types import MappingProxyType, SimpleNamespace
from uuid import UUID

import pytest
from pydantic import BaseModel

from checkpoint.streams.rows import Fingerprint, fields_of, getter


@dataclasses.dataclass
class Declared:
    at: object
    id: object = 1
    nested: object = None


class Model(BaseModel):
    at: object = None
    id: object = 1
    nested: object = None


class Slotted:
    __slots__ = ("_private", "at", "id", "nested")

    def __init__(self, **fields):
        for name, value in fields.items():
            setattr(self, name, value)


class Plain:
    def __init__(self, **fields):
        self.__dict__.update(fields)
        self._loader = object()


Named = namedtuple("Named", ["at", "id", "nested"])  # noqa: PYI024 - as a driver makes it


class Item:
    """Columns by name and nothing else, as some database drivers have them."""

    def __init__(self, **columns):
        self._columns = columns

    def keys(self):
        return self._columns.keys()

    def __getitem__(self, name):
        return self._columns[name]


def sqlite_row(**columns):
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    names = ", ".join(f"? AS {name}" for name in columns)
    row = connection.execute(f"SELECT {names}", [*columns.values()]).fetchone()
    connection.close()
    return row


def fields(at, **more):
    return {"at": at, "id": 1, "nested": None, **more}


KINDS = {
    "dict": fields,
    "mapping": lambda at, **more: UserDict(fields(at, **more)),
    "proxy": lambda at, **more: MappingProxyType(fields(at, **more)),
    "columns": lambda at, **more: Item(**fields(at, **more)),
    "sqlite": lambda at, **more: sqlite_row(**fields(at, **more)),
    "dataclass": Declared,
    "pydantic": lambda at, **more: Model(at=at, **more),
    "slots": lambda at, **more: Slotted(**fields(at, **more)),
    "object": lambda at, **more: Plain(**fields(at, **more)),
    "namespace": lambda at, **more: SimpleNamespace(**fields(at, **more)),
    "namedtuple": lambda at, **more: Named(**fields(at, **more)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_is_read_of_rows_of_every_kind(kind):
    make = KINDS[kind]
    get = getter("at", make("x"))
    assert [get(make("y")), get(make(None))] == ["y", None]
    assert getter("at")(make("z")) == "z"


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_is_read_through_rows_of_every_kind(kind):
    if kind == "sqlite":
        pytest.skip("has no nested rows")
    make = KINDS[kind]
    get = getter("nested.at", make(1, nested=make("x")))
    assert [get(make(1, nested=make("y"))), get(make(1, nested={"at": "z"})), get(make(1))] == ["y", "z", None]


def test_a_name_with_dots_goes_before_the_path():
    get = getter("a.b", {"a.b": 1})
    assert [get({"a.b": 1, "a": {"b": 2}}), get({"a": {"b": 2}}), get({"a": {}}), get({})] == [1, 2, None, None]
    assert getter("a.b.c", {})({"a": {"b": {"c": 1}, "c": 2}}) == 1


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("then", KINDS)
def test_rows_of_another_kind_are_read_as_what_they_are(first, then):
    assert getter("at", KINDS[first](1))(KINDS[then](2)) == 2


@pytest.mark.parametrize("kind", ["dict", "mapping", "sqlite", "columns", "object", "namespace"])
def test_a_later_row_without_the_field_has_no_value(kind):
    make = KINDS[kind]
    without = {
        "dict": {}, "mapping": UserDict(), "columns": Item(), "object": Plain(), "sqlite": sqlite_row(other=1),
        "namespace": SimpleNamespace(),
    }  # fmt: skip
    assert getter("at", make(1))(without[kind]) is None


@pytest.mark.parametrize("row", ["text", ["at"], ("at",), None, 5, object(), b"at", Plain.__new__(Plain)])
@pytest.mark.parametrize("field", ["at", "at.x"])
def test_fault_67_what_is_no_row_is_refused_at_the_first(row, field):
    with pytest.raises(TypeError, match=f"has no key, column or attribute '{field}'"):
        getter(field, row)
    with pytest.raises(TypeError, match="has no key, column or attribute"):
        getter(field, {"at": {"x": 1}})(row)


# Fingerprints


@pytest.mark.parametrize("kind", KINDS)
def test_fault_67_rows_of_every_kind_are_remembered(kind):
    make = KINDS[kind]
    mark = Fingerprint("id")
    same, again = mark.snapshot(make("x")), mark.snapshot(make("x"))
    changed, other = mark.snapshot(make("x", nested="y")), mark.snapshot(make("x", id=2))
    digests = [mark.digest(snapshot, "1.") for snapshot in (same, again, changed, other)]
    assert [len(digest) for digest in digests] == [24] * 4
    assert digests[0] == digests[1] != digests[2]
    assert digests[0][:16] == digests[2][:16] != digests[3][:16]
    assert mark.digest(same, "2.")[:16] != digests[0][:16]


@pytest.mark.parametrize("kind", ["dict", "mapping", "dataclass", "pydantic", "slots", "object", "namespace"])
def test_a_snapshot_is_of_the_row_as_it_was_handed_out(kind):
    make = KINDS[kind]
    mark, row = Fingerprint(["id", "at"]), make("x")
    before = mark.snapshot(row)
    if kind in ("dict", "mapping"):
        row["nested"] = "y"
    else:
        row.nested = "y"
    assert mark.digest(before, "") == mark.digest(mark.snapshot(make("x")), "")


FIELDS = [
    memoryview(b"abc"), bytearray(b"abc"), b"abc", {1, 2}, Decimal("1.50"), UUID(int=5), 2**80, "\ud800", float("nan"),
    Slotted(at=1), Model(), {"x": [Declared(2**70)]}, {(1, 2): 3},
]  # fmt: skip


@pytest.mark.parametrize("value", FIELDS, ids=lambda value: type(value).__name__)
def test_fault_67_fields_of_every_kind_are_compared(value):
    mark = Fingerprint("id")
    again = memoryview(bytes(value)) if isinstance(value, memoryview) else value
    digests = {mark.digest(mark.snapshot({"id": 1, "x": x}), "") for x in (value, again, 0, [value])}
    assert len(digests) == 3


def test_fault_67_objects_that_hold_each_other_are_compared():
    def family(name):
        parent, child = Plain(id=1, at=name), Plain(at="child")
        parent.nested, child.nested = [child], parent
        return parent

    mark = Fingerprint("id")
    one, same, other = (mark.digest(mark.snapshot(family(name)), "") for name in ("a", "a", "b"))
    assert one == same != other
    row = {"id": 1}
    row["self"] = row
    assert mark.digest(mark.snapshot(row), "")


def test_relations_and_private_attributes_are_not_the_rows():
    sqlalchemy = pytest.importorskip("sqlalchemy")
    from sqlalchemy.orm import DeclarativeBase, relationship

    class Base(DeclarativeBase):
        pass

    class Parent(Base):
        __tablename__ = "parent"
        id = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)
        at = sqlalchemy.Column(sqlalchemy.String)
        children = relationship("Child", back_populates="parent")

    class Child(Base):
        __tablename__ = "child"
        id = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)
        parent_id = sqlalchemy.Column(sqlalchemy.ForeignKey("parent.id"))
        parent = relationship("Parent", back_populates="children")

    parent = Parent(id=1, at="x")
    Child(id=2, parent=parent)
    assert fields_of(parent) == {"id": 1, "at": "x"}
    assert getter("at", parent)(parent) == "x"
    mark = Fingerprint("id")
    assert mark.digest(mark.snapshot(parent), "") == mark.digest(mark.snapshot(Parent(id=1, at="x")), "")


@pytest.mark.parametrize("row", [{"id": 1, "x": object()}, {"id": 1, "x": [object]}, {"id": 1, "x": iter(())}])
def test_fault_67_incomparable_values_are_refused_at_once(row):
    if row["x"] == [object]:
        assert Fingerprint("id").snapshot(row)  # a class tells what it is
        return
    with pytest.raises(TypeError, match="has no fields and no repr|cannot list"):
        Fingerprint("id").snapshot(row)
    mark = Fingerprint("id")
    mark.snapshot({"id": 1})
    assert mark.digest(mark.snapshot(row), "")  # later ones: such a row is never the same


def test_fault_67_a_row_without_a_list_needs_version_fields():
    class Opaque:
        def __init__(self, columns):
            self._columns = columns

        def __getattr__(self, name):
            try:
                return self.__dict__["_columns"][name]
            except KeyError:
                raise AttributeError(name) from None

    row = Opaque({"id": 1, "at": 2, "etag": "a"})
    with pytest.raises(TypeError, match=r"an? Opaque cannot list its fields.*version_fields=\('etag',\)"):
        Fingerprint("id").snapshot(row)
    mark = Fingerprint("id", ["etag"])
    assert mark.digest(mark.snapshot(row), "") == mark.digest(mark.snapshot({"id": 1, "etag": "a"}), "")


@pytest.mark.parametrize("kind", KINDS)
def test_fault_68_version_fields_alone_tell_that_a_row_changed(kind):
    make = KINDS[kind]
    mark = Fingerprint("id", ["nested"])
    one, url, changed = (
        mark.digest(mark.snapshot(make(at, nested=nested)), "") for at, nested in [(1, "a"), (2, "a"), (1, "b")]
    )
    assert one == url != changed


def test_digests_are_the_same_in_every_process():
    row = {"id": "ä", "at": 1, "big": 2**70, "tags": {"b", "a"}, "deep": {"z": 1, "a": [Decimal("1.0")]}}
    mark = Fingerprint("id")
    here = mark.digest(mark.snapshot(row), "5.")
    code = (
        "from decimal import Decimal; from checkpoint.streams.rows import Fingerprint\n"
        f"mark = Fingerprint('id'); print(mark.digest(mark.snapshot({row!r}), '5.'))"
    )
    for seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        assert ran.stdout.strip() == here


def test_what_version_1_stored_of_a_row_is_known():
    """The digest of this row was written by version 1."""
    mark = Fingerprint("id")
    row = {"id": 7, "at": "2024-05-01T10:00:00Z", "n": 1.5, "tags": ["a", None]}
    assert "a6bf61ba46347888" in mark.legacy(mark.snapshot(row), ["1714557600.", row["at"]])
