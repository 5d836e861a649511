"""The contract that every store keeps, and small helpers that the stores share."""

from __future__ import annotations

import unicodedata
from datetime import datetime, timezone
from functools import cache
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from checkpoint.entries import Entry, check_text, check_unicode
from checkpoint.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from checkpoint.entries import Change, Receipt, Writer


@runtime_checkable
class Store(Protocol):
    """Where state lives: namespaces (`state_key`) of entries (`key` → `value`).

    A store may be used from several threads and after a fork, by any number of runs.
    """

    def load(self, state_key: str) -> dict[str, Entry]:
        """Return every entry of a namespace by its key; an unknown namespace is `{}`.

        Raises:
            ValueError, TypeError: the state_key is invalid (see `check_name`).
            StoreError: the store refused or failed.

        """
        ...

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        *,
        run_id: str | None = None,
    ) -> Receipt:
        """Write the changed keys, and only those; None deletes a key; deleting a missing key is not an error.

        Every key named in `base` is compared first, whether it is changed or not; a key not named is not checked. None
        means that the key must be absent. An `Entry` must still be stored as it was, with its version and `updated_at`
        (a restored backup counts versions again): any difference is a conflict, even if the stored value equals the new
        one. A store without versions compares values, and a stored value that equals the new one is not a conflict.

        `run_id` is recorded with the written entries where the store can.

        Raises:
            ValueError, TypeError: a name or a value is invalid; nothing was written.
            Conflict: a key in `base` was changed elsewhere; nothing was written, where the store can promise that.
            PartialCommit: some keys landed and some did not, on a store that writes key by key.
            CommitUnknown: whether the changes landed could not be determined.
            StoreError: the store refused or failed.

        """
        ...

    def close(self) -> None:
        """Release connections and files; closing twice is allowed."""
        ...


@runtime_checkable
class Atomic(Protocol):
    """A store whose commits are all or nothing; any other store writes key by key."""

    atomic: bool
    """True."""


@runtime_checkable
class HasDeadline(Protocol):
    """A store that limits how long a load or a commit may take."""

    @property
    def deadline(self) -> float:
        """Seconds for one load, and for one commit or each key of it, including retries; later no request is sent."""
        ...


@runtime_checkable
class ListsNamespaces(Protocol):
    """A store that can list its namespaces."""

    def namespaces(self) -> list[str]:
        """Return the namespaces that hold at least one key, sorted.

        Raises:
            StoreError: the store refused or failed.

        """
        ...


@runtime_checkable
class ReadsKeys(Protocol):
    """A store that can read some keys of a namespace, at a cost that does not depend on the others."""

    def read(self, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
        """Return the entries of these keys, as far as they exist.

        Raises:
            ValueError, TypeError: the state_key or a key is invalid.
            StoreError: the store refused or failed.

        """
        ...


@runtime_checkable
class KeepsHistory(Store, Protocol):
    """A store that keeps a history of each key; see `checkpoint.stores.history`.

    Plain keys, members of groups, heads of groups and `__run__` have a history; other reserved keys have none. Deleting
    a missing key is not a change.
    """

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        *,
        run_id: str | None = None,
        reasons: Mapping[str, str] = {},
        writer: Writer | None = None,
    ) -> Receipt:
        """Write the changed keys, as `Store.commit`.

        `reasons` maps keys of `changes` to the reason of the change; it may leave keys out. `writer` is the client for
        which a server commits; None: this process. Both are stored in the history only.
        """
        ...

    def history(self, state_key: str, key: str | None = None, *, limit: int | None = None) -> list[Change]:
        """Return the changes, newest first, at most `limit`.

        A `key` of None selects all plain keys and members; a name selects the plain key and all members of the group of
        that name; the key of an entry, such as `__run__` or a member's (`entries.member_key`), selects only that entry.
        The changes of one commit are in the order of their stored keys. An unknown namespace or key is `[]`.

        Raises:
            ValueError, TypeError: the state_key or key is invalid, or the limit is not an int of at least 0.
            StoreError: the store refused or failed.

        """
        ...


@runtime_checkable
class MayKeepHistory(KeepsHistory, Protocol):
    """A store behind a server, which keeps history if the store of that server does."""

    @property
    def keeps_history(self) -> bool | None:
        """Whether it keeps history; None: unknown before the first response."""
        ...


@runtime_checkable
class TellsTime(Protocol):
    """A store on another machine, with its own clock."""

    def clock(self) -> datetime:
        """Return the time by the store's clock, in UTC, accurate to a second.

        Raises:
            StoreError: the store refused or failed, or did not return a time.

        """
        ...


@runtime_checkable
class TellsFacts(Protocol):
    """A store that reports facts for its operator."""

    def facts(self) -> dict[str, str]:
        """Return versions, modes and sizes by name, without secrets.

        Raises:
            StoreError: the store refused or failed.

        """
        ...


@runtime_checkable
class ReplacesRows(Protocol):
    """A store that can replace a damaged row, which no commit touches."""

    def replace(self, state_key: str, key: str, value: str, *, run_id: str | None = None, reason: str = "") -> Receipt:
        """Write a value in place of the damaged row of a key, in one transaction.

        Raises:
            ValueError, TypeError: as `Store.commit`.
            StoreError: the row of the key is not damaged; the store refused or failed.

        """
        ...


@runtime_checkable
class HasTables(Protocol):
    """A store in a shared database, whose tables are created once, by a role with the right to do so."""

    def init(self) -> None:
        """Create the tables, or migrate those of an earlier release; calling it twice is allowed.

        Raises:
            Unauthorized: the role lacks the right.
            StoreError: the store refused or failed.

        """
        ...

    def ddl(self, role: str) -> str:
        """Return the SQL that creates the tables and grants their use to a role, for a database administrator."""
        ...


@runtime_checkable
class JoinsTransactions(ReadsKeys, Protocol):
    """A store that can read and write inside the caller's transaction."""

    @property
    def joined(self) -> bool:
        """Whether it does so: it was created with `connection=`."""
        ...

    @property
    def in_transaction(self) -> bool:
        """Whether the caller has a transaction open."""
        ...


def history_of(store: object) -> KeepsHistory | None:
    """Return the store if it keeps history, as far as is known, else None."""
    if isinstance(store, MayKeepHistory) and store.keeps_history is False:
        return None
    return store if isinstance(store, KeepsHistory) else None


def joined(store: object) -> JoinsTransactions | None:
    """Return the store if it writes inside the caller's transactions, else None."""
    return store if isinstance(store, JoinsTransactions) and store.joined else None


def check_name(what: str, name: str) -> None:
    """Refuse a key or state_key that some store cannot hold or a URL cannot contain.

    Raises:
        TypeError: it is not a str.
        ValueError: it is empty, `.` or `..`, or holds a control character or a lone surrogate.

    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a str, not {type(name).__name__}")
    if name in {"", ".", ".."}:
        raise ValueError(f"{what} must not be {name!r}")
    if not (name.isascii() and name.isprintable()) and any(unicodedata.category(c) in {"Cc", "Cs"} for c in name):
        raise ValueError(f"{what} must not hold control characters or lone surrogates: {name!r}")


def check_changes(state_key: str, changes: Mapping[str, str | None], run_id: str | None = None) -> None:
    """Refuse bad names, values and run ids of a commit before anything is written.

    Raises:
        TypeError, ValueError: as `check_name`; a value or the run id is neither None nor a str that UTF-8 can encode,
            or the run id contains a NUL.

    """
    check_name("state_key", state_key)
    for key, value in changes.items():
        check_name("key", key)
        if value is not None and not (type(value) is str and value.isascii()):
            check_unicode(f"the value of {key!r}", value)
    if run_id is not None:
        check_text("run_id", run_id)


def check_base(
    state_key: str,
    changes: Mapping[str, str | None],
    base: Mapping[str, Entry | None],
    stored: Mapping[str, Entry],
) -> None:
    """Compare what a commit expects with what is stored.

    Raises:
        Conflict: for the first key of `base` that differs; without versions, a key that already holds the new value
            does not count.

    """
    for key, expected in base.items():
        found = stored.get(key)
        if unchanged(expected, found):
            continue
        if is_versioned(expected) or is_versioned(found) or not (key in changes and holds(found, changes[key])):
            raise Conflict(state_key, key, expected, found)


def unchanged(expected: Entry | None, found: Entry | None) -> bool:
    """Whether a key is unchanged: by version and time, or by value if one of the entries has no version."""
    if expected is None or found is None:
        return expected is found
    if expected.value != found.value:
        return False
    if expected.version is None or found.version is None:
        return True
    # Versions start at 1 again after a file or object was removed, or at an older one after it was restored.
    return expected.version == found.version and expected.updated_at == found.updated_at


def is_versioned(entry: Entry | None) -> bool:
    """Whether an entry comes from a store with versions; False for None, which shows no version."""
    return entry is not None and entry.version is not None


def holds(found: Entry | None, value: str | None) -> bool:
    """Whether a stored entry holds a value; None means absent on both sides."""
    return (found.value if found is not None else None) == value


def entries_of(
    changes: Mapping[str, str | None], stored: Mapping[str, Entry], now: str, run_id: str | None, version: int
) -> dict[str, Entry]:
    """Return the entries that a commit writes; an existing key keeps its `created_at`."""
    return {
        key: Entry(key, value, stored[key].created_at if key in stored else now, now, run_id, version)
        for key, value in changes.items()
        if value is not None
    }


def utc_now() -> str:
    """Return the time in the API's form, such as `2023-01-01T10:00:00.000Z`."""
    return time_text(datetime.now(timezone.utc))


@cache
def host() -> str:
    """Return the name of this machine."""
    from platform import node  # takes as long to import as the rest of a store

    return node()


def time_text(moment: datetime) -> str:
    """Format a UTC time as the API does."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
