"""The tables of `checkpoint.stores.sqlite`: their forms, how an earlier one is read, and the statements on them."""

from __future__ import annotations

import gc
import json
import sqlite3
from contextlib import suppress
from datetime import datetime, timezone
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from checkpoint.entries import Entry, head_key
from checkpoint.errors import StoreError, ValueTooLarge
from checkpoint.stores.history import answers, change_of, forgotten, is_passed_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

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
    "{path} is not a usable checkpoint database ({said}); it is kept as it is: "
    "put a good copy in its place, or move it away to start over"
)

# Every statement names `main`: the caller's connection may have temporary tables and other files attached. Columns are
# named where rows are written, for a later form may have more.
_NAMESPACES_TABLE = """CREATE TABLE main.checkpoint_namespaces (
    state_key TEXT PRIMARY KEY, version INTEGER NOT NULL
) WITHOUT ROWID"""
_CHANGES_TABLE = (
    """CREATE TABLE main.checkpoint_changes (
        state_key TEXT NOT NULL, version INTEGER NOT NULL, key TEXT NOT NULL, before TEXT, after TEXT, at TEXT NOT NULL,
        run_id TEXT, host TEXT NOT NULL, process INTEGER NOT NULL, reason TEXT, changed_by TEXT,
        PRIMARY KEY (state_key, version, key)
    ) WITHOUT ROWID""",
    "CREATE INDEX main.checkpoint_changes_of_key ON checkpoint_changes (state_key, key, version, at)",
)
_TABLES = (
    "CREATE TABLE main.checkpoint_schema (version INTEGER NOT NULL, readable_from INTEGER, release TEXT)",
    f"INSERT INTO main.checkpoint_schema VALUES ({FORMAT}, {READABLE_FROM}, '{RELEASE}')",  # noqa: S608 - our own
    """CREATE TABLE main.checkpoint_entries (
        state_key TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL, sync_job_run_id TEXT, version INTEGER NOT NULL, PRIMARY KEY (state_key, key)
    ) WITHOUT ROWID""",
    _NAMESPACES_TABLE,
    *_CHANGES_TABLE,
)
_UPDATED = (
    "ALTER TABLE main.checkpoint_schema ADD COLUMN readable_from INTEGER",
    "ALTER TABLE main.checkpoint_schema ADD COLUMN release TEXT",
    f"UPDATE main.checkpoint_schema SET version = {FORMAT}, readable_from = {READABLE_FROM}, release = '{RELEASE}'",  # noqa: S608 - our own
)

# REPLACE of rows computed here instead of RETURNING, which came with SQLite 3.35: systems in support link older ones.
_SCHEMA = "SELECT * FROM main.checkpoint_schema"
_OURS = "SELECT 1 FROM main.sqlite_master WHERE name = 'checkpoint_entries'"
_LOAD = """SELECT key, value, created_at, updated_at, sync_job_run_id, version
    FROM main.checkpoint_entries WHERE state_key = ?"""
_WRITE = """REPLACE INTO main.checkpoint_entries
    (state_key, key, value, created_at, updated_at, sync_job_run_id, version) VALUES (?, ?, ?, ?, ?, ?, ?)"""
_DELETE = "DELETE FROM main.checkpoint_entries WHERE state_key = ? AND key = ?"
_VERSION = "SELECT version FROM main.checkpoint_namespaces WHERE state_key = ?"
_COUNT = "REPLACE INTO main.checkpoint_namespaces (state_key, version) VALUES (?, ?)"
_TELL = """REPLACE INTO main.checkpoint_changes
    (state_key, version, key, before, after, at, run_id, host, process, reason, changed_by)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_PASSED = """SELECT version, at FROM main.checkpoint_changes WHERE state_key = ? AND key = ?
    ORDER BY version DESC LIMIT 3 OFFSET ?"""
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
_NAMESPACES = """WITH RECURSIVE named(state_key) AS (
        SELECT min(state_key) FROM main.checkpoint_entries
        UNION ALL
        SELECT (SELECT min(state_key) FROM main.checkpoint_entries WHERE state_key > named.state_key)
        FROM named WHERE named.state_key IS NOT NULL
    ) SELECT state_key FROM named WHERE state_key IS NOT NULL"""

_CHUNK = 500  # keys in one statement; older SQLite takes 999 parameters (sqlite.org/limits.html)
_WITH_COMMITS = 2  # the form whose history is one row a commit

Told: TypeAlias = "tuple[Any, ...]"
"""A row of `_CHANGE`: see `history.change_of`."""


def form_of(cursor: sqlite3.Cursor, name: str) -> int:
    """Return the form of our tables, as far as this release knows it; 0: there are none.

    Raises:
        StoreError: only a later release can read them.

    """
    try:
        # Sorted by the database, the one row that there is costs twice as much, and each operation reads it.
        row: tuple[Any, ...] | None = max(cursor.execute(_SCHEMA), default=None, key=itemgetter(0))
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error) or cursor.execute(_OURS).fetchone():
            raise
        return 0
    form: int | None
    form, readable_from, release = (*(row or (None,)), None, None)[:3]
    if form is None:
        raise StoreError(UNUSABLE.format(path=name, said="its tables do not say which form they have"))
    lowest = form if readable_from is None else readable_from
    if lowest > FORMAT:
        since = f", by checkpoint-store {release} or later" if release else ""
        raise StoreError(
            f"{name} has form {form}, to be read from form {lowest} on{since}, and this release knows form {FORMAT}: "
            "upgrade checkpoint-store; the file is kept as it is"
        )
    return min(form, FORMAT)


def bring_up_to_date(cursor: sqlite3.Cursor, form: int) -> None:
    """Take our tables from a form to FORMAT; 0: create them."""
    if form == FORMAT:
        return
    if not form:
        _execute_all(cursor, _TABLES)
        return
    _execute_all(cursor, _CHANGES_TABLE)
    if form == _WITH_COMMITS:
        cursor.execute(_NAMESPACES_TABLE)
        namespaces = cursor.execute("SELECT state_key, max(version) FROM main.checkpoint_commits GROUP BY 1").fetchall()
        cursor.executemany(_COUNT, namespaces)
        for state_key, _ in namespaces:
            cursor.executemany(_TELL, [_row(state_key, change) for change in _changes_of_2(cursor, state_key, None)])
        cursor.execute("DROP TABLE main.checkpoint_commits")
    _execute_all(cursor, _UPDATED)


def _execute_all(cursor: sqlite3.Cursor, statements: Iterable[str]) -> None:
    for statement in statements:
        cursor.execute(statement)


def load(cursor: sqlite3.Cursor, state_key: str) -> dict[str, Entry]:
    """Return the entries of a namespace."""
    return _entries(cursor.execute(_LOAD, (state_key,)))


def read(cursor: sqlite3.Cursor, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
    """Return the entries of these keys, as far as they exist."""
    wanted = [*keys]
    if len(wanted) == 1:
        return _entries(cursor.execute(f"{_LOAD} AND key = ?", (state_key, *wanted)))
    stored: dict[str, Entry] = {}
    for start in range(0, len(wanted), _CHUNK):
        some = wanted[start : start + _CHUNK]
        stored |= _entries(cursor.execute(f"{_LOAD} AND key IN ({','.join('?' * len(some))})", (state_key, *some)))
    return stored


def _entries(rows: Iterable[tuple[Any, ...]]) -> dict[str, Entry]:
    """Return the entries of rows of `_LOAD` by their key, fast: there may be hundreds of thousands."""
    collecting = gc.isenabled()
    try:
        gc.disable()  # entries are in no cycles, and looking for some takes a sixth of the time
        return {row[0]: Entry._make(row) for row in rows}
    finally:
        if collecting:
            gc.enable()


def version_of(cursor: sqlite3.Cursor, state_key: str) -> int:
    """Return the version of a namespace's last commit, 0 before the first."""
    row: tuple[int] | None = cursor.execute(_VERSION, (state_key,)).fetchone()
    return row[0] if row else 0


def write(
    cursor: sqlite3.Cursor, state_key: str, version: int, written: Mapping[str, Entry], deleted: Iterable[str]
) -> None:
    """Write and delete entries, and count the commit.

    Raises:
        ValueTooLarge: a value is past SQLITE_MAX_LENGTH, or past what a C int counts.

    """
    cursor.execute(_COUNT, (state_key, version))
    try:
        cursor.executemany(_WRITE, [(state_key, *entry) for entry in written.values()])
    except (sqlite3.DataError, OverflowError) as error:
        largest = max(written.values(), key=lambda entry: len(entry.value))
        raise ValueTooLarge(largest.key, len(largest.value.encode())) from error
    gone = [(state_key, key) for key in deleted]
    if gone:
        cursor.executemany(_DELETE, gone)


def tell(cursor: sqlite3.Cursor, state_key: str, changes: Iterable[Told], keep: int, keep_days: int) -> None:
    """Add the changes of a commit to the history of their keys, and drop what that is to keep no longer."""
    rows = [_row(state_key, change) for change in changes]
    if not keep:
        cursor.executemany(_FORGET_KEY, [(state_key, row[2]) for row in rows])
        return
    try:
        cursor.executemany(_TELL, rows)
    except (sqlite3.DataError, OverflowError):
        for row in rows:
            with suppress(sqlite3.DataError, OverflowError):  # more than a row can hold: both values are in it
                cursor.execute(_TELL, row)
    if rows and rows[0][1] > keep:  # before, no key can have so many changes
        for row in rows:
            _forget(cursor, state_key, row[2], keep, keep_days)


def _forget(cursor: sqlite3.Cursor, state_key: str, key: str, keep: int, keep_days: int) -> None:
    """Drop what the newest change of a key pushes out.

    Usually that is the one behind the last `keep`, or nothing. All the rest is judged only when one stays beyond them,
    or when another `keep` was in force: once an hour at most, however busy the key is.
    """
    found: list[tuple[int, str]] = cursor.execute(_PASSED, (state_key, key, keep - 1)).fetchall()
    if len(found) < 2:
        return
    times = [at for _, at in found]
    if is_passed_by(times[1], times[0]) and not any(is_passed_by(earlier, times[1]) for earlier in times[2:]):
        gone = [found[1][0]]
    else:
        every = cursor.execute(_TIMES, (state_key, key)).fetchall()
        gone = [*forgotten(every, keep, keep_days, datetime.now(timezone.utc))]
    cursor.executemany(_FORGET, [(state_key, key, version) for version in gone])


def _row(state_key: str, change: Told) -> Told:
    key, before, after, version, *rest = change
    return state_key, version, key, before, after, *rest


def history(cursor: sqlite3.Cursor, form: int, state_key: str, key: str | None) -> Iterator[Change]:
    """Yield the changes of a namespace, or those that a key stands for, the newest first."""
    if form < _WITH_COMMITS:
        return
    if form == _WITH_COMMITS:
        rows: Iterable[Told] = _changes_of_2(cursor, state_key, key)
    elif key is None:
        rows = cursor.execute(_HISTORY, (state_key,))
    else:
        members = head_key(key)
        rows = cursor.execute(_HISTORY_OF_KEY, (state_key, key, state_key, f"{members}/", f"{members}0"))
    for _, commit in groupby(rows, itemgetter(3)):
        # In Python's order: that of the database is another where its encoding is UTF-16.
        for row in sorted(commit, key=itemgetter(0)):
            if answers(row[0], key):
                yield change_of(row)


def _changes_of_2(cursor: sqlite3.Cursor, state_key: str, key: str | None) -> Iterator[Told]:
    """Yield the changes that form 2 has: the newest first, all of them or those of one key.

    Its rows are commits. `before` is a JSON object: the keys that one changed, and the values they had. What they got
    is in the next row that names them, else in the entries.

    Raises:
        StoreError: a row is damaged.

    """
    commits = cursor.execute(_COMMITS_OF_2, (state_key, state_key)).fetchall()
    try:
        found = [(cast("dict[str, str | None]", json.loads(text)), told) for text, *told in commits]
    except ValueError as error:
        raise StoreError(UNUSABLE.format(path="the database", said=f"its history: {error}")) from error
    keys = {name for past, _ in found for name in past} if key is None else {key}
    after = {name: entry.value for name, entry in read(cursor, state_key, keys).items()}
    for past, told in found:
        for name in past if key is None else {key} & {*past}:
            yield name, past[name], after.get(name), *told, None, None
            if (before := past[name]) is None:
                after.pop(name, None)
            else:
                after[name] = before


def namespaces(cursor: sqlite3.Cursor) -> list[str]:
    """Return the namespaces that hold a key, sorted."""
    # In Python's order, as above.
    return sorted(state_key for (state_key,) in cursor.execute(_NAMESPACES))


def is_ours_alone(cursor: sqlite3.Cursor) -> bool:
    """Tell whether a database holds our tables and nobody else's."""
    names = cursor.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall()
    return any(names) and all(name.startswith(("checkpoint_", "sqlite_")) for (name,) in names)
