"""What a store is: the contract every store keeps, and the small pieces the stores share."""

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
            ValueError, TypeError: the state_key is not one (see `check_name`).
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
        """Write the changed keys, and only those; a change to None deletes its key, a missing one is no error.

        Every key named in `base` is compared first, whether it is changed or not; a key not named is not checked. None
        means that the key must be absent. An `Entry` must still be stored as it was, with its version and `updated_at`
        (a restored backup counts versions again): a difference is a conflict, also where the stored value happens to
        be the one being written. On a store without versions values are compared, and the stored value being the one
        being written is no difference.

        `run_id` is recorded with the written entries where the store can.

        Raises:
            ValueError, TypeError: a name or a value is not one; nothing was written.
            Conflict: a key in `base` was changed elsewhere; nothing was written, where the store can promise that.
            PartialCommit: some keys landed and some did not, on a store that writes key by key.
            CommitUnknown: nobody could tell whether the changes landed.
            StoreError: the store refused or failed.

        """
        ...

    def close(self) -> None:
        """Release connections and files; closing twice is no error."""
        ...


@runtime_checkable
class Atomic(Protocol):
    """A store whose commits are all or nothing; one that is not this writes key by key."""

    atomic: bool
    """True."""


@runtime_checkable
class HasDeadline(Protocol):
    """A store that limits how long a load or a commit may take."""

    @property
    def deadline(self) -> float:
        """Seconds for one load, and for one commit or each key of it, with all retries; nothing is sent after them."""
        ...


@runtime_checkable
class ListsNamespaces(Protocol):
    """A store that can tell which namespaces it holds."""

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
            ValueError, TypeError: the state_key or a key is not one.
            StoreError: the store refused or failed.

        """
        ...


@runtime_checkable
class KeepsHistory(Store, Protocol):
    """A store that remembers what commits changed, for each key alone: see `checkpoint.stores.history`.

    Plain keys have a history, the members of groups, the heads of groups, and `__run__`; other reserved keys have none.
    The deletion of a key that is not there is no change.
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

        `reasons` holds why a key is changed, by its key as in `changes`; a key that is not among them has none.
        `writer` is who changes them, where a server commits for a client; None: this process. Both are kept in the
        history alone.
        """
        ...

    def history(self, state_key: str, key: str | None = None, *, limit: int | None = None) -> list[Change]:
        """Return what was changed, newest first, at most `limit` changes.

        None as `key` stands for all plain keys and members; a name for the plain key and for all members of the group
        so called; the key of an entry, such as `__run__` or that of a member (`entries.member_key`), for it alone.

        The changes of one commit are in the order of their stored keys. An unknown namespace or key is `[]`.

        Raises:
            ValueError, TypeError: the state_key or key is not one, or the limit is not a number from 0 on.
            StoreError: the store refused or failed.

        """
        ...


@runtime_checkable
class MayKeepHistory(KeepsHistory, Protocol):
    """A store that keeps history where the one behind it does, which only a server can tell."""

    @property
    def keeps_history(self) -> bool | None:
        """Whether it does; None: nothing was asked yet."""
        ...


@runtime_checkable
class TellsTime(Protocol):
    """A store on a machine of its own, whose clock may be another than ours."""

    def clock(self) -> datetime:
        """Return the time by the store's clock, in UTC, good to a second.

        Raises:
            StoreError: the store refused or failed, or it does not tell.

        """
        ...


@runtime_checkable
class TellsFacts(Protocol):
    """A store that tells what whoever looks after it may want to know."""

    def facts(self) -> dict[str, str]:
        """Return versions, modes and sizes, each by what it is called; nothing secret.

        Raises:
            StoreError: the store refused or failed.

        """
        ...


@runtime_checkable
class HasTables(Protocol):
    """A store over a database that others use too, whose tables are made once, and by whoever may."""

    def init(self) -> None:
        """Make the tables, or turn those of an earlier release into this one's; doing so twice is no error.

        Raises:
            Unauthorized: the role may not.
            StoreError: the store refused or failed.

        """
        ...

    def ddl(self, role: str) -> str:
        """Return the SQL that makes the tables and lets a role use them, for a database administrator."""
        ...


@runtime_checkable
class JoinsTransactions(ReadsKeys, Protocol):
    """A store that can read and write inside a transaction of the caller's own."""

    @property
    def joined(self) -> bool:
        """Whether it does: it was made with `connection=`."""
        ...

    @property
    def in_transaction(self) -> bool:
        """Whether the caller has a transaction open."""
        ...


def history_of(store: object) -> KeepsHistory | None:
    """Return a store that keeps history, None for any other, as far as is known."""
    if isinstance(store, MayKeepHistory) and store.keeps_history is False:
        return None
    return store if isinstance(store, KeepsHistory) else None


def joined(store: object) -> JoinsTransactions | None:
    """Return a store that writes inside the caller's transactions, None for any other."""
    return store if isinstance(store, JoinsTransactions) and store.joined else None


def check_name(what: str, name: str) -> None:
    """Refuse a key or state_key that not every store can hold and every URL can carry.

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
        TypeError, ValueError: as `check_name`, or a value or the run id is neither text that UTF-8 can carry nor None;
            a run id with a NUL.

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
        Conflict: for the first key of `base` that differs; where there are no versions, unless it holds the value being
            written already.

    """
    for key, expected in base.items():
        found = stored.get(key)
        if unchanged(expected, found):
            continue
        if is_versioned(expected) or is_versioned(found) or not (key in changes and holds(found, changes[key])):
            raise Conflict(state_key, key, expected, found)


def unchanged(expected: Entry | None, found: Entry | None) -> bool:
    """Tell whether a key is still stored as it was: by version and time, by value where one has no version."""
    if expected is None or found is None:
        return expected is found
    if expected.value != found.value:
        return False
    if expected.version is None or found.version is None:
        return True
    # Versions count from 1 again where a file or an object was taken away, or from an older one where it was restored.
    return expected.version == found.version and expected.updated_at == found.updated_at


def is_versioned(entry: Entry | None) -> bool:
    """Tell whether an entry is that of a store with versions; None, of which nobody knows, is not."""
    return entry is not None and entry.version is not None


def holds(found: Entry | None, value: str | None) -> bool:
    """Tell whether a stored entry holds a value; None stands for absent on both sides."""
    return (found.value if found is not None else None) == value


def entries_of(
    changes: Mapping[str, str | None], stored: Mapping[str, Entry], now: str, run_id: str | None, version: int
) -> dict[str, Entry]:
    """Return the entries that a commit writes: a key that is stored already keeps its `created_at`."""
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
    from platform import node  # as slow to import as the rest of a store

    return node()


def time_text(moment: datetime) -> str:
    """Return a time in UTC in the API's form."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
