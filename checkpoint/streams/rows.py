"""What a stream reads from a row: its cursor value, its primary key, and the fields that show a change.

A row has fields by name (`row["at"]`: any Mapping, `sqlite3.Row`, named columns of database drivers) or as attributes
(dataclasses, named tuples, pydantic and ORM objects). Which, the first row decides; a row of another kind among them is
looked at on its own.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from operator import attrgetter, itemgetter
from secrets import token_hex
from typing import Any, TypeAlias, cast

import orjson

Field: TypeAlias = str | Callable[[Any], Any]
Primary: TypeAlias = str | Sequence[str] | Callable[[Any], Any]
Get: TypeAlias = Callable[[Any], Any]
Snapshot: TypeAlias = Any
"""What is kept of a delivered row: a copy of a dict, or its primary key and what is compared."""

_NOTHING: Any = object()
IDENTITY, CONTENT = 8, 4
"""Bytes of the two parts of a digest."""


# Reading a field


def getter(field: Field, first: Any = _NOTHING) -> Get:
    """Return what reads a field of rows, quickest of rows like `first`; it returns None where a row has none.

    With dots a field is a name first, then a path.

    Raises:
        TypeError: the field cannot be read of the first row, or later of another, as it has neither names nor the
            attribute.

    """
    if callable(field):
        return field
    path = field.split(".")
    if first is _NOTHING or _has_names(first):
        get = _by_name(field) if len(path) == 1 else _by_path(field, path)
    else:
        _read_any(first, field)  # or it is no row
        get = _by_attribute(field, first)
    return get


def quick_getter(field: Field, first: Any) -> Get:
    """Return what reads a field of rows like `first`, and raises where a row has none or is another kind of row."""
    if callable(field) or (_has_names(first) and "." in field):
        return getter(field, first)
    return _item(field) if _has_names(first) else attrgetter(field)


@lru_cache(maxsize=256)  # thousands of streams read the same few names
def _item(field: str) -> Get:
    return itemgetter(field)


@lru_cache(maxsize=256)  # thousands of streams read the same few names
def _by_name(field: str) -> Get:
    def get(row: Any) -> Any:
        try:
            return row[field]
        except KeyError:
            return None
        except (TypeError, LookupError):
            return _read_any(row, field)

    return get


def _by_path(field: str, path: list[str]) -> Get:
    head, *middle, last = path

    def get(row: Any) -> Any:
        try:
            if field in row:
                return row[field]
            inner = row[head]
            for name in middle:
                inner = inner[name]
            return inner[last]
        except (TypeError, LookupError):
            return _read_any(row, field)

    return get


def _by_attribute(field: str, first: Any) -> Get:
    of = cast("Any", type(first))
    read = attrgetter(field)

    def get(row: Any) -> Any:
        try:
            return read(row)
        except AttributeError:
            return _read_any(row, field, known=of)

    return get


def _read_any(row: Any, field: str, known: Any = None) -> Any:
    """Read a field of a row of any kind; one of a `known` type is a row, though it may not have the field."""
    value = _step(row, field)
    if value is not _NOTHING:
        return value
    head, *rest = field.split(".")
    value = _step(row, head) if rest else _NOTHING
    if value is _NOTHING and type(row) is not known and not _has_names(row):
        raise TypeError(no_row(row, field))
    for name in rest:
        if value is None or value is _NOTHING:
            return None
        value = _step(value, name)
    return None if value is _NOTHING else value


def _step(row: Any, name: str) -> Any:
    if _has_names(row):
        try:
            return row[name]
        except LookupError:
            return _NOTHING
        except TypeError:  # a database's row that takes numbers only
            pass
    return getattr(row, name, _NOTHING)


def _has_names(row: Any) -> bool:
    """Tell whether a row has its fields as `row[name]`."""
    of = cast("Any", type(row))
    return isinstance(row, Mapping) or (hasattr(of, "keys") and hasattr(of, "__getitem__"))


def no_row(record: Any, field: str) -> str:
    """Return the text of the error for an object that is no row."""
    return (
        f"a {type(record).__name__} ({reprlib.repr(record)}) has no key, column or attribute {field!r}: pages() takes "
        "batches of rows, filter() one batch, track() rows and observe() one row; for rows of another kind, pass a "
        "callable"
    )


def nested_path(record: Any, field: str) -> str | None:
    """Return the dotted path of a field of this name one or two levels down in a row; None: there is none."""
    paths = list(_items(record).items())
    paths += [(f"{path}.{name}", value) for path, outer in paths for name, value in _items(outer).items()]
    found = (f"{path}.{field}" for path, value in paths if _items(value).get(field) is not None)
    return next(found, None)


def _items(value: Any) -> Mapping[str, Any]:
    """Return the fields of a mapping that a dotted path can name; none of what is no mapping."""
    if not isinstance(value, Mapping):
        return {}
    fields = cast("Any", value)
    return {name: inner for name, inner in fields.items() if isinstance(name, str) and "." not in name}


def primary_getter(primary: Primary, first: Any = _NOTHING) -> Get:
    """Return what reads the primary key of rows, quickest of rows like `first`; None where they have none."""
    if callable(primary) or isinstance(primary, str):
        return getter(primary, first)
    getters = [getter(name, first) for name in primary]

    def get_all(record: Any) -> list[Any] | None:
        found = [get(record) for get in getters]
        return found if any(part is not None for part in found) else None

    return get_all


def check_primary(primary: Primary, record: Any) -> None:
    """Check that the first row has the primary key; without it all rows would count as the same row.

    Raises:
        ValueError: a field of the key is missing, or the key is None.

    """
    lacking = [] if callable(primary) else [name for name in _primary_names(primary) if _lacks(record, name)]
    if lacking or (callable(primary) and primary(record) is None):
        name = repr(lacking[0]) if lacking else "primary key" if callable(primary) else repr(primary)
        raise ValueError(
            f"a row has no {name}, which primary_key needs to tell rows apart: name a field that all rows have, or "
            "leave out primary_key (each run then delivers the rows at the position again)"
        )


def _primary_names(primary: str | Sequence[str]) -> Sequence[str]:
    return [primary] if isinstance(primary, str) else primary


def _lacks(record: Any, name: str) -> bool:
    return _step(record, name) is _NOTHING and getter(name, record)(record) is None


UNREAD = (LookupError, TypeError, AttributeError)
"""What `FieldReader.quick` raises where a row has to be read with care."""


class FieldReader:
    """Reads the cursor field of a stream's rows; the first row decides how.

    Args:
        field: a name, a path, or a callable of the row.
        where: the stream, as errors name it.
        primary: what tells rows apart, which the first row must have; None: nothing.

    """

    __slots__ = ("_field", "_primary", "_read", "_where", "quick")

    def __init__(self, field: Field, where: str, primary: Primary | None = None) -> None:
        self._field = field
        self._where = where
        self._primary = primary
        self._read: Get | None = None
        self.quick: Any = None
        """Reads rows like the first one, and raises one of `UNREAD` for others; None until there was one."""

    def read(self, row: Any) -> Any:
        """Return the field of a row of any kind; None: it has none.

        Raises:
            TypeError: it is no row.
            ValueError: it is the first one, and has no primary key.

        """
        try:
            if self._read is not None:
                return self._read(row)
            read = getter(self._field, row)
            value = read(row)
        except TypeError as error:
            if callable(self._field):
                raise
            raise TypeError(f"{self._where}: {error}") from error
        self._check(row)
        self._read, self.quick = read, quick_getter(self._field, row)
        return value

    def _check(self, row: Any) -> None:
        """Refuse a first row that has no primary key."""
        if self._primary is not None:
            try:
                check_primary(self._primary, row)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{self._where}: {error}") from error

    def read_all(self, rows: Sequence[Any]) -> list[Any]:
        """Return the field of each row; raises as `read`."""
        if rows and self._read is None:
            self.read(rows[0])
        try:
            return list(map(self.quick, rows))
        except UNREAD:
            return [self.read(row) for row in rows]


# Listing the fields of a row


def fields_of(row: Any) -> dict[Any, Any] | None:
    """Return all fields of a row by name; None where it cannot list them.

    Of an object these are the fields that it declares, else its public attributes: what an ORM or a library keeps with
    it, relations to other rows included, is not the row's.
    """
    if isinstance(row, Mapping):
        return dict(cast("Mapping[Any, Any]", row))  # type: ignore[redundant-cast]  # pyright needs it
    if _has_names(row):
        return {name: row[name] for name in row.keys()}  # noqa: SIM118 - a database's row iterates over its values
    names = _declared(row)
    if names is None:
        names = [name for name in _attributes(row) if not name.startswith("_")]
    found = {name: getattr(row, name, None) for name in names}
    return found or None


def _declared(row: Any) -> list[str] | None:
    """Return the names of the fields that the row's class declares; None where it declares none."""
    of = cast("Any", type(row))
    if dataclasses.is_dataclass(of):
        return [field.name for field in dataclasses.fields(of)]
    for where, name in _DECLARATIONS.items():
        try:
            fields = attrgetter(where)(of)
        except AttributeError:
            continue
        return [str(getattr(field, name)) for field in fields]
    # named tuples; msgspec; pydantic, of version 2 and 1
    for attribute in ("_fields", "__struct_fields__", "model_fields", "__fields__"):
        names = getattr(of, attribute, None)
        if isinstance(names, property):  # SQLAlchemy's rows
            names = getattr(row, attribute)
        if isinstance(names, Mapping | tuple | list):
            return [*map(str, cast("Sequence[Any]", names)), *(getattr(row, "model_extra", None) or ())]
    return None


_DECLARATIONS = {
    "__mapper__.column_attrs": "key",  # SQLAlchemy
    "_meta.concrete_fields": "attname",  # Django
    "__attrs_attrs__": "name",  # attrs
}
"""Where classes list their fields, and what a field has its name as."""


def _attributes(row: Any) -> list[str]:
    """Return the names of an object's attributes: those in its `__dict__`, and its slots."""
    names = [*getattr(row, "__dict__", ())]
    for of in type(row).__mro__:
        slots: Any = of.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else [*slots]
    return [name for name in dict.fromkeys(names) if hasattr(row, name)]


# Remembering a row


_copy_of_dict: Callable[[Any], Any] = getattr(dict, "copy")  # noqa: B009 - of a dict of anything, for the type checkers


class Fingerprint:
    """What boundary rows of one stream are remembered by.

    Args:
        primary: what tells rows apart.
        version_fields: what tells that a row changed; None: all of its fields.
        where: the stream, as errors name it.

    """

    __slots__ = ("_primary", "_read_primary", "_version_fields", "_versions", "_where", "quick", "snapshot")

    quick: Callable[[Any], Snapshot]
    """Returns the same of a row like the first one; it raises TypeError for others."""
    snapshot: Callable[[Any], Snapshot]
    """Returns what is to be kept of a row that is handed out, as it is now; the job may change the row.

    It raises TypeError where the first row's kind does not tell its fields, and no `version_fields` do, or where what
    it holds cannot be compared, and ValueError where the first row has no primary key.
    """

    def __init__(self, primary: Primary, version_fields: Sequence[str] | None = None, where: str = "") -> None:
        self._where = where
        self._primary = primary
        self._version_fields = version_fields
        self._versions: Sequence[Get] = ()  # their getters, once there was a row
        self._read_primary = primary_getter(primary)
        self.snapshot = self.quick = self._first

    def _first(self, record: Any) -> Snapshot:
        """Take the first snapshot, and choose by the row how they are taken; or refuse it."""
        try:
            check_primary(self._primary, record)
            take = self._decide(record)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self._where}: {error}") from error
        snapshot = take(record)
        try:
            _content(self._compared(snapshot), strict=True)
        except TypeError as error:
            raise TypeError(f"{self._where}: {error}") from error
        self.snapshot = take
        of: Any = type(snapshot)  # pyright: ignore[reportUnknownVariableType] - what a dict holds is not known
        self.quick = _copy_of_dict if of is dict else take
        return snapshot

    def _decide(self, record: Any) -> Callable[[Any], Snapshot]:
        self._read_primary = primary_getter(self._primary, record)
        if self._version_fields is not None:
            self._versions = [getter(name, record) for name in self._version_fields]
            return self._take_versions
        return self._take_copy if type(record) is dict and not callable(self._primary) else self._take_fields

    def _take_versions(self, row: Any) -> Snapshot:
        key = self._read_primary(row)
        if key is None:
            return key, token_hex(8)  # never recognised again: a repeat is better than a lost row
        return key, [get(row) for get in self._versions]

    def _take_fields(self, row: Any) -> Snapshot:
        try:
            return self._read_primary(row), _listed(row)
        except TypeError as error:
            raise TypeError(f"{self._where}: {error}") from error

    def _take_copy(self, row: Any) -> Snapshot:
        of: Any = type(row)  # pyright: ignore[reportUnknownVariableType] - what a dict holds is not known
        return row.copy() if of is dict else self._take_fields(row)

    def _compared(self, snapshot: Snapshot) -> Any:
        return (self._read_primary(snapshot), snapshot) if isinstance(snapshot, dict) else snapshot

    def digest(self, snapshot: Snapshot, instant: str) -> str:
        """Return 8 bytes of BLAKE2b over primary key and cursor instant, and 4 over what is compared, in hex."""
        primary, content = self._compared(snapshot)
        if primary is None:
            content = token_hex(8)  # never recognised again: a repeat is better than a lost row
        return _hash([primary, instant], IDENTITY) + _hash(content, CONTENT)

    def legacy(self, snapshot: Snapshot, instants: Sequence[str]) -> set[str]:
        """Return the digests that version 1 may have stored of a row: 8 bytes over all, in hex."""
        primary, content = self._compared(snapshot)
        return {_hash([primary, instant, content], IDENTITY) for instant in instants}


def _listed(row: Any) -> dict[Any, Any]:
    fields = fields_of(row)
    if fields is None:
        raise TypeError(
            f"a {type(row).__name__} cannot list its fields, so a changed row cannot be recognised: name "
            "the fields to compare, such as version_fields=('etag',)"
        )
    return fields


def digest(primary: Any, instant: str, record: Any) -> str:
    """Return 8 bytes of BLAKE2b over a row's primary key, cursor instant and content, in hex."""
    return _hash([primary, instant, record], IDENTITY)


def _hash(content: Any, size: int) -> str:
    return blake2b(_content(content), digest_size=size).hexdigest()


def _content(content: Any, *, strict: bool = False) -> bytes:
    """Return what is compared as bytes that are the same in every process.

    `strict` refuses what has no such bytes; otherwise its bytes are those of no other object.
    """
    try:
        return orjson.dumps(content, _as_json, orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except TypeError:  # integers beyond 64 bits, cycles, or what has no plain form
        return repr(_canonical(content, (), strict=strict)).encode("utf-8", "surrogatepass")


def _as_json(value: Any) -> Any:
    """Return a value as JSON can have it."""
    if isinstance(value, memoryview | bytearray):
        return str(bytes(cast("Any", value)))
    if isinstance(value, set | frozenset):
        return sorted(map(repr, cast("set[Any]", value)))
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):  # numpy
        return [str(value.dtype), str(value.tobytes())]
    fields = fields_of(value)
    if fields is not None:
        return fields
    of = cast("Any", type(value))
    if of.__str__ is object.__str__ and of.__repr__ is object.__repr__:
        raise TypeError(
            f"a {type(value).__name__} has no fields and no repr() of its own to compare: name the fields to compare "
            "in version_fields"
        )
    return str(value)


def _canonical(value: Any, inside: tuple[int, ...], *, strict: bool) -> Any:
    """Return a value as nested lists; a reference to one that it is `inside` of counts as how far up that is."""
    if isinstance(value, int | float | str | None):
        return value
    if id(value) in inside:
        return f"<{len(inside) - inside.index(id(value))} above>"
    if len(inside) > _DEEPEST:
        raise TypeError("a row is nested too deeply to be compared: name the fields to compare in version_fields")
    inside = (*inside, id(value))
    if isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)  # type: ignore[redundant-cast]  # pyright needs it
        return sorted((repr(key), repr(_canonical(item, inside, strict=strict))) for key, item in mapping.items())
    if isinstance(value, list | tuple):
        return [_canonical(item, inside, strict=strict) for item in cast("list[Any]", value)]
    try:
        plain = _as_json(value)
    except TypeError:
        if strict:
            raise
        return repr(value)
    return _canonical(plain, inside, strict=strict)


_DEEPEST = 200
