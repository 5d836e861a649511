"""The tables of `checkpoint.stores.sqlite`: their forms, how an earlier one is read, and the statements on them."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from contextlib import suppress
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

from checkpoint.entries import Entry, head_key
from checkpoint.errors import CorruptState, StoreError, ValueTooLarge
from checkpoint.stores.history import Memory, answers, change_of, check_keep, forgotten
from checkpoint.stores.rows import (
    CHANGE,
    ENTRY,
    MAX_VERSION,
    Columns,
    check_row,
    entries_by_key,
    is_version,
    refuse_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from checkpoint.entries import Change

FORMAT = 3
"""The form of our tables, kept in one of them: `PRAGMA user_version` belongs to whoever else uses the file.

Forms 1 and 2 are those of release 0.1. A later form may add tables and columns; a release that can read and write it
all the same finds `readable_from` no higher than its own FORMAT.
"""

READABLE_FROM = 3
"""The lowest FORMAT of a release that may use what this one writes."""

RELEASE = "0.2"
"""The first release with FORMAT, for the error that an earlier one shows."""

UNUSABLE = (
    "{path} is not a usable checkpoint database ({said}), and was left unchanged: "
    "replace it by a good copy, or move it away to start over"
)

# Every statement names `main`: the caller's connection may have temporary tables and other files attached. Columns are
# named where rows are written, for a later form may have more.
# `keep` and `keep_days` are those of the last commit; None: nobody said.
_NAMESPACES_TABLE = """CREATE TABLE main.checkpoint_namespaces (
    state_key TEXT PRIMARY KEY, version INTEGER NOT NULL, keep INTEGER, keep_days INTEGER
) WITHOUT ROWID"""
# No further index, and the values last: a commit writes one page of it, and the times are read without the values.
_CHANGES_TABLE = """CREATE TABLE main.checkpoint_changes (
    state_key TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, at TEXT NOT NULL, run_id TEXT,
    host TEXT NOT NULL, process INTEGER NOT NULL, reason TEXT, changed_by TEXT, before TEXT, after TEXT,
    PRIMARY KEY (state_key, key, version)
) WITHOUT ROWID"""
_TABLES = (
    "CREATE TABLE main.checkpoint_schema (version INTEGER NOT NULL, readable_from INTEGER, release TEXT)",
    f"INSERT INTO main.checkpoint_schema VALUES ({FORMAT}, {READABLE_FROM}, '{RELEASE}')",  # noqa: S608 - our own
    """CREATE TABLE main.checkpoint_entries (
        state_key TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL, sync_job_run_id TEXT, version INTEGER NOT NULL, PRIMARY KEY (state_key, key)
    ) WITHOUT ROWID""",
    _NAMESPACES_TABLE,
    _CHANGES_TABLE,
)
_NAMESPACES_UPDATED = (
    "ALTER TABLE main.checkpoint_namespaces ADD COLUMN keep INTEGER",
    "ALTER TABLE main.checkpoint_namespaces ADD COLUMN keep_days INTEGER",
)
_UPDATED = (
    "ALTER TABLE main.checkpoint_schema ADD COLUMN readable_from INTEGER",
    "ALTER TABLE main.checkpoint_schema ADD COLUMN release TEXT",
    f"UPDATE main.checkpoint_schema SET version = {FORMAT}, readable_from = {READABLE_FROM}, release = '{RELEASE}'",  # noqa: S608 - our own
)

# REPLACE of rows computed here instead of RETURNING, which came with SQLite 3.35: systems in support link older ones.
_SCHEMA = "SELECT * FROM main.checkpoint_schema"
_CURRENT = [(FORMAT, READABLE_FROM, RELEASE)]
_OURS = "SELECT 1 FROM main.sqlite_master WHERE name = 'checkpoint_entries'"
_LOAD = """SELECT key, value, created_at, updated_at, sync_job_run_id, version
    FROM main.checkpoint_entries WHERE state_key = ?"""
_WRITE = """REPLACE INTO main.checkpoint_entries
    (state_key, key, value, created_at, updated_at, sync_job_run_id, version) VALUES (?, ?, ?, ?, ?, ?, ?)"""
_DELETE = "DELETE FROM main.checkpoint_entries WHERE state_key = ? AND key = ?"
_COUNTED = "SELECT version, keep, keep_days FROM main.checkpoint_namespaces WHERE state_key = ?"
_COUNT = "REPLACE INTO main.checkpoint_namespaces (state_key, version, keep, keep_days) VALUES (?, ?, ?, ?)"
_TELL = """REPLACE INTO main.checkpoint_changes
    (state_key, key, before, after, version, at, run_id, host, process, reason, changed_by)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_TIMES = "SELECT version, at FROM main.checkpoint_changes WHERE state_key = ? AND key = ? ORDER BY version DESC"
_FORGET = "DELETE FROM main.checkpoint_changes WHERE state_key = ? AND key = ? AND version = ?"
_FORGET_KEY = "DELETE FROM main.checkpoint_changes WHERE state_key = ? AND key = ?"
_CHANGE = """SELECT key, before, after, version, at, run_id, host, process, reason, changed_by
    FROM main.checkpoint_changes WHERE state_key = ?"""
_HISTORY = f"{_CHANGE} ORDER BY version DESC"
# Each half by the index on keys; sorted is only what they find.
_HISTORY_OF_KEY = f"{_CHANGE} AND key = ? UNION ALL {_CHANGE} AND key > ? AND key < ? ORDER BY version DESC"
_COMMITS_OF_2 = """SELECT before, version, at, run_id, host, process FROM main.checkpoint_commits
    WHERE state_key = ? AND at IS NOT NULL AND number >= (
        SELECT first FROM main.checkpoint_commits WHERE state_key = ? ORDER BY number DESC, version DESC LIMIT 1)
    ORDER BY number DESC"""
# From one to the next: DISTINCT would read every entry.
# In the order of the index: NULL, numbers, text, bytes (sqlite.org/datatype3.html, 4.1).
_UNNAMED = """SELECT 1 FROM main.checkpoint_entries
    WHERE state_key IS NULL OR state_key < '' OR state_key >= x'' LIMIT 1"""
_NAMESPACES = """WITH RECURSIVE named(state_key) AS (
        SELECT min(state_key) FROM main.checkpoint_entries
        UNION ALL
        SELECT (SELECT min(state_key) FROM main.checkpoint_entries WHERE state_key > named.state_key)
        FROM named WHERE named.state_key IS NOT NULL
    ) SELECT state_key FROM named WHERE state_key IS NOT NULL"""

_CHUNK = 500  # keys in one statement; older SQLite takes 999 parameters (sqlite.org/limits.html)
_WITH_COMMITS = 2  # the form whose history is one row a commit

Bound: TypeAlias = "tuple[int, int]"
"""`keep` and `keep_days` of `checkpoint.stores.history`."""

Told: TypeAlias = "tuple[Any, ...]"
"""A row of `_CHANGE`: see `history.change_of`."""


def form_of(cursor: sqlite3.Cursor, name: str) -> int:
    """Return the form of our tables, as far as this release knows it; 0: there are none.

    Raises:
        StoreError: only a later release can read them.

    """
    try:
        rows: list[tuple[Any, ...]] = cursor.execute(_SCHEMA).fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error) or cursor.execute(_OURS).fetchone():
            raise
        return 0
    if rows == _CURRENT:  # read by each operation
        return FORMAT
    sound = rows and all(is_version(row[0]) and (len(row) < 2 or row[1] is None or is_version(row[1])) for row in rows)
    form: int | None
    form, readable_from, release = (*max(rows, key=itemgetter(0)), None, None)[:3] if sound else (None, None, None)
    if form is None:
        raise StoreError(UNUSABLE.format(path=name, said="its tables do not say which form they have"))
    lowest = form if readable_from is None else readable_from
    if lowest > FORMAT:
        since = f" (checkpoint-store {release} or later)" if release else ""
        raise StoreError(
            f"{name} has form {form}, which needs a release that knows form {lowest}{since}, and this one knows form "
            f"{FORMAT}: upgrade checkpoint-store; the file was left unchanged"
        )
    return min(form, FORMAT)


def bring_up_to_date(cursor: sqlite3.Cursor, form: int) -> None:
    """Take our tables from a form to FORMAT; 0: create them."""
    if form == FORMAT:
        return
    if not form:
        _execute_all(cursor, _TABLES)
        return
    cursor.execute(_CHANGES_TABLE)
    if form == _WITH_COMMITS:
        cursor.execute(_NAMESPACES_TABLE)
        namespaces = cursor.execute(
            "SELECT state_key, max(version), NULL, NULL FROM main.checkpoint_commits GROUP BY 1"
        ).fetchall()
        cursor.executemany(_COUNT, namespaces)
        for state_key, *_ in namespaces:
            cursor.executemany(_TELL, [(state_key, *change) for change in _changes_of_2(cursor, state_key, None)])
        cursor.execute("DROP TABLE main.checkpoint_commits")
    else:
        _execute_all(cursor, _NAMESPACES_UPDATED)
    _execute_all(cursor, _UPDATED)


def _execute_all(cursor: sqlite3.Cursor, statements: Iterable[str]) -> None:
    for statement in statements:
        cursor.execute(statement)


def load_entries(cursor: sqlite3.Cursor, state_key: str) -> dict[str, Entry]:
    """Return the entries of a namespace.

    Raises:
        CorruptState: a row is damaged.
        StoreError: nothing is there, and there are rows whose namespace cannot be told.

    """
    entries = _entries(cursor, state_key, _LOAD, (state_key,))
    if not entries and cursor.execute(_UNNAMED).fetchone():
        raise _nameless(cursor)
    return entries


def read_entries(cursor: sqlite3.Cursor, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
    """Return the entries of these keys, as far as they exist; raises CorruptState as `load_entries`."""
    wanted = [*keys]
    if len(wanted) == 1:
        return _entries(cursor, state_key, f"{_LOAD} AND key = ?", (state_key, *wanted))
    stored: dict[str, Entry] = {}
    for start in range(0, len(wanted), _CHUNK):
        some = wanted[start : start + _CHUNK]
        sql = f"{_LOAD} AND key IN ({','.join('?' * len(some))})"
        stored |= _entries(cursor, state_key, sql, (state_key, *some))
    return stored


def _entries(cursor: sqlite3.Cursor, state_key: str, sql: str, values: tuple[str, ...]) -> dict[str, Entry]:
    """Return the entries of rows of `_LOAD` by their key."""
    try:
        entries = entries_by_key(cursor.execute(sql, values))
    except sqlite3.OperationalError as error:
        if not undecodable(error):
            raise
        entries = None
    if entries is None:
        _name_damaged(cursor, state_key, sql, values, ENTRY)
    return entries


def _name_damaged(
    cursor: sqlite3.Cursor, state_key: str, sql: str, values: tuple[str, ...], columns: Columns
) -> NoReturn:
    """Raise the error for the first damaged one of some rows, with text that is not UTF-8 too; see `refuse_rows`."""
    connection, where = cursor.connection, _file_of(cursor)
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    try:
        refuse_rows(where, state_key, cursor.execute(sql, values).fetchall(), columns)
    finally:
        connection.text_factory = str


def undecodable(error: sqlite3.Error) -> str:
    """Return the column that an error names because its text is not UTF-8; empty for other errors."""
    found = re.match("Could not decode to UTF-8 column '([a-z_]+)'", str(error))
    return "" if found is None else found[1]


def _file_of(cursor: sqlite3.Cursor) -> str:
    """Return the path of the database."""
    files = (file for _, name, file in cursor.execute("PRAGMA database_list").fetchall() if name == "main")
    return next(files, "") or "the connection's database"


def _nameless(cursor: sqlite3.Cursor) -> StoreError:
    said = "in checkpoint_entries, the state_key of a row is not text"
    return StoreError(UNUSABLE.format(path=_file_of(cursor), said=said))


def write_entries(cursor: sqlite3.Cursor, state_key: str, written: Mapping[str, Entry], deleted: Iterable[str]) -> None:
    """Write and delete entries.

    Raises:
        ValueTooLarge: a value is past SQLITE_MAX_LENGTH, or past what a C int counts.

    """
    try:
        cursor.executemany(_WRITE, [(state_key, *entry) for entry in written.values()])
    except (sqlite3.DataError, OverflowError) as error:
        largest = max(written.values(), key=lambda entry: len(entry.value))
        raise ValueTooLarge(largest.key, len(largest.value.encode())) from error
    gone = [(state_key, key) for key in deleted]
    if gone:
        cursor.executemany(_DELETE, gone)


def delete_damaged(cursor: sqlite3.Cursor, state_key: str, key: str) -> None:
    """Delete the row of a key, which must be damaged.

    Raises:
        StoreError: it is not.

    """
    try:
        read_entries(cursor, state_key, [key])
    except CorruptState:
        cursor.execute(_DELETE, (state_key, key))
    else:
        raise StoreError(f"the stored row of {key!r} in {state_key!r} is not damaged, and was left unchanged")


def count_commit(cursor: sqlite3.Cursor, state_key: str, bound: Bound) -> tuple[int, bool]:
    """Count a commit of a namespace, which bounds its history from now on; return its version, and whether it did."""
    version, *before = _counted(cursor, state_key) or (0, *bound)
    cursor.execute(_COUNT, (state_key, version + 1, *bound))
    return version + 1, (*before,) == bound


def _counted(cursor: sqlite3.Cursor, state_key: str) -> tuple[int, int | None, int | None] | None:
    """Return a namespace's version, and the bound of its history as far as one is set; None: nothing was committed.

    Raises:
        StoreError: one is not a number, or out of range.

    """
    row = cursor.execute(_COUNTED, (state_key,)).fetchone()
    if row is None:
        return None
    version, keep, keep_days = row
    try:
        check_keep(keep or 0, keep_days or 0)
        if version == 0 or (is_version(version) and version <= MAX_VERSION):
            return version, keep, keep_days
        said = "its version cannot be counted up"
    except (TypeError, ValueError) as error:
        said = str(error)
    said = f"in checkpoint_namespaces, the row of {state_key!r}: {said}"
    raise StoreError(UNUSABLE.format(path=_file_of(cursor), said=said))


def add_to_history(
    cursor: sqlite3.Cursor,
    state_key: str,
    changes: list[Told],
    stored: Mapping[str, Entry],
    bound: Bound,
    *,
    may_wait: bool,
) -> None:
    """Add the changes of a commit to the history of their keys, and drop changes that are no longer kept.

    `stored` are the entries before it. What is dropped may wait for a later change of its key: see `_is_due`.
    """
    keep, _ = bound
    rows = [(state_key, *change) for change in changes]
    if not keep:
        cursor.executemany(_FORGET_KEY, [row[:2] for row in rows])
        return
    try:
        cursor.executemany(_TELL, rows)
    except (sqlite3.DataError, OverflowError):
        for row in rows:
            with suppress(sqlite3.DataError, OverflowError):  # more than a row can hold: both values are in it
                cursor.execute(_TELL, row)
    for key, _, _, version, *_ in changes:
        before = stored[key].version if key in stored else None
        if version > keep and (_is_due(before or 0, version, keep) or not may_wait):
            _forget(cursor, state_key, key, bound)


def _forget(cursor: sqlite3.Cursor, state_key: str, key: str, bound: Bound) -> None:
    """Drop the changes of a key that are no longer kept."""
    gone = forgotten(cursor.execute(_TIMES, (state_key, key)).fetchall(), *bound)
    cursor.executemany(_FORGET, [(state_key, key, version) for version in gone])


def _is_due(before: int, version: int, keep: int) -> bool:
    """Tell whether old changes of a key are dropped with this change; `before` is the last one.

    Not with each one, for that costs a tenth of a commit: between two times a key gains `keep / 2` changes at most, and
    `history` leaves out what waits.
    """
    every = keep // 2 + 1
    return before // every < version // every


def history(cursor: sqlite3.Cursor, form: int, state_key: str, key: str | None) -> Iterator[Change]:
    """Yield the changes of a namespace, or those that a key stands for, the newest first."""
    if form < _WITH_COMMITS:
        return
    bound = _counted(cursor, state_key) if form == FORMAT else None
    keep, keep_days = (each or 0 for each in (bound or (0, 0, 0))[1:])
    if form == _WITH_COMMITS:
        rows: Iterable[Told] = _changes_of_2(cursor, state_key, key)
    elif key is None:
        rows = _changes(cursor, state_key, _HISTORY, (state_key,))
    else:
        members = head_key(key)
        rows = _changes(cursor, state_key, _HISTORY_OF_KEY, (state_key, key, state_key, f"{members}/", f"{members}0"))
    kept: dict[str, Callable[[str], bool]] = {}  # by key
    for _, commit in groupby(rows, itemgetter(3)):
        # In Python's order: that of the database is another where its encoding is UTF-16.
        for row in sorted(commit, key=itemgetter(0)):
            stored_key, at = row[0], row[4]
            if stored_key not in kept:
                # 0: of a form without bounds, of one that was brought up to date, or of a commit that keeps none.
                kept[stored_key] = Memory(keep or sys.maxsize, keep_days, at).keeps
            if answers(stored_key, key) and kept[stored_key](at):
                yield change_of(row)


def _changes(cursor: sqlite3.Cursor, state_key: str, sql: str, values: tuple[str, ...]) -> Iterator[Told]:
    """Yield rows of `_CHANGE`.

    Raises:
        CorruptState: one is damaged.

    """
    where = _file_of(cursor)
    try:
        for row in cursor.execute(sql, values):
            check_row(where, state_key, row, CHANGE)
            yield row
    except sqlite3.OperationalError as error:
        if not undecodable(error):
            raise
        _name_damaged(cursor, state_key, sql, values, CHANGE)


def _changes_of_2(cursor: sqlite3.Cursor, state_key: str, key: str | None) -> Iterator[Told]:
    """Yield the changes that form 2 has: the newest first, all of them or those of one key.

    Its rows are commits. `before` is a JSON object: the keys that one changed, and the values they had. What they got
    is in the next row that names them, else in the entries.

    Raises:
        StoreError: a row is damaged.

    """
    commits = cursor.execute(_COMMITS_OF_2, (state_key, state_key)).fetchall()
    where = _file_of(cursor)
    try:
        found = [(_object(text), told) for text, *told in commits]
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(UNUSABLE.format(path=where, said=f"its history: {error}")) from error
    keys = {name for past, _ in found for name in past} if key is None else {key}
    after = {name: entry.value for name, entry in read_entries(cursor, state_key, keys).items()}
    for past, told in found:
        for name in past if key is None else {key} & {*past}:
            row = name, past[name], after.get(name), *told, None, None
            check_row(where, state_key, row, CHANGE)
            yield row
            if (before := past[name]) is None:
                after.pop(name, None)
            else:
                after[name] = before


def _object(text: str) -> dict[str, str | None]:
    found: object = json.loads(text)
    if not isinstance(found, dict):
        raise TypeError("a row is not a JSON object")
    return cast("dict[str, str | None]", found)


def list_namespaces(cursor: sqlite3.Cursor) -> list[str]:
    """Return the namespaces that hold a key, sorted.

    Raises:
        StoreError: the name of one is not text.

    """
    if cursor.execute(_UNNAMED).fetchone():
        raise _nameless(cursor)
    # In Python's order, as above.
    return sorted(state_key for (state_key,) in cursor.execute(_NAMESPACES))


def is_ours_alone(cursor: sqlite3.Cursor) -> bool:
    """Tell whether a database holds our tables and nobody else's."""
    names = cursor.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall()
    return any(names) and all(name.startswith(("checkpoint_", "sqlite_")) for (name,) in names)
