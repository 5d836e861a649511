"""What a store is: the contract every store keeps, and the small pieces the stores share."""

from __future__ import annotations

import unicodedata
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from checkpoint.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from checkpoint.entries import Change, Entry, Receipt

KEEP = 100
"""Commits of a namespace that a store with history remembers where it is told nothing else."""

RESERVED = "__"
"""What the keys begin with that are the library's own."""


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

        Every key named in `base` is compared first, whether it is changed or not: an `Entry` must still be stored as it
        was (its version and value; its value where it has no version), None means that the key must be absent. A key
        not named is not checked. A difference is no conflict where the stored value is the one being written.

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
class Warms(Protocol):
    """A store whose commits go faster when it is told of them early."""

    def warm(self, keys: int) -> None:
        """Get ready for a commit of so many keys: open connections, in the background, and return at once.

        To be called as often as one likes: what is ready stays so. Nothing is read or written, and nothing is raised: a
        service that cannot be reached fails the commit.
        """
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
class KeepsHistory(Protocol):
    """A store that remembers what its latest commits changed.

    It keeps a bounded number of commits for each namespace, or those of a bounded time; older ones are dropped by the
    commits that follow. Keys beginning with `__` leave no trace, and no commit is dropped for theirs; neither does the
    deletion of a key that is not there.
    """

    def history(self, state_key: str, key: str | None = None, *, limit: int | None = None) -> list[Change]:
        """Return what was changed, newest first: of one key, or of all where none is named; at most `limit` of them.

        The changes of one commit are in the order of their keys. An unknown namespace or key is `[]`.

        Raises:
            ValueError, TypeError: the state_key or key is not one, or the limit is not a number from 0 on.
            StoreError: the store refused or failed.

        """
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
class JoinsTransactions(Protocol):
    """A store that can write inside a transaction of the caller's own."""

    @property
    def joined(self) -> bool:
        """Whether it does: it was made with `connection=`."""
        ...

    @property
    def in_transaction(self) -> bool:
        """Whether the caller has a transaction open."""
        ...

    def read(self, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
        """Return the entries of these keys, as far as they exist, as the open transaction sees them.

        Raises:
            StoreError: the store refused or failed.

        """
        ...


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
            _check_text(f"the value of {key!r}", value)
    if run_id is not None:
        _check_text("run_id", run_id)
        if "\0" in run_id:
            raise ValueError("run_id must not hold a NUL")


def _check_text(what: str, text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, not {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} must not hold lone surrogates") from error


def check_base(
    state_key: str,
    changes: Mapping[str, str | None],
    base: Mapping[str, Entry | None],
    stored: Mapping[str, Entry],
) -> None:
    """Compare what a commit expects with what is stored.

    Raises:
        Conflict: for the first key of `base` that differs and does not hold the value being written already.

    """
    for key, expected in base.items():
        found = stored.get(key)
        if not unchanged(expected, found) and not (key in changes and holds(found, changes[key])):
            raise Conflict(state_key, key, expected, found)


def unchanged(expected: Entry | None, found: Entry | None) -> bool:
    """Tell whether a key is still stored as it was: by version and value, by value where there is no version."""
    if expected is None or found is None:
        return expected is found
    # Versions count from 1 again where a file or an object was taken away, or from an older one where it was restored.
    versions = {expected.version, found.version}
    return expected.value == found.value and (len(versions) == 1 or None in versions)


def holds(found: Entry | None, value: str | None) -> bool:
    """Tell whether a stored entry holds a value; None stands for absent on both sides."""
    return (found.value if found is not None else None) == value


def check_keep(keep: int | timedelta) -> None:
    """Refuse what bounds no history.

    Raises:
        TypeError: it is neither an int nor a timedelta.
        ValueError: it is a negative number, or an age that is not positive.

    """
    if isinstance(keep, timedelta):
        if keep <= timedelta(0):
            raise ValueError(f"keep must be an age greater than 0, not {keep!r}; to keep no history: 0")
    elif not isinstance(keep, int) or isinstance(keep, bool):
        raise TypeError(f"keep must be a number of commits or a timedelta, not {type(keep).__name__}")
    elif keep < 0:
        raise ValueError(f"keep must be a number of commits from 0 on, not {keep}")


def check_history(state_key: str, key: str | None, limit: int | None) -> None:
    """Refuse what asks for no history.

    Raises:
        TypeError, ValueError: as `check_name`, or the limit is not a number from 0 on.

    """
    check_name("state_key", state_key)
    if key is not None:
        check_name("key", key)
    if limit is not None:
        if not isinstance(limit, int) or isinstance(limit, bool):
            raise TypeError(f"limit must be an int, not {type(limit).__name__}")
        if limit < 0:
            raise ValueError(f"limit must be a number from 0 on, not {limit}")


def before(changes: Mapping[str, str | None], stored: Mapping[str, Entry]) -> dict[str, str | None]:
    """Return what history remembers of a commit: each key it changes and the value it had, None where it had none."""
    return {
        key: stored[key].value if key in stored else None
        for key, value in sorted(changes.items())
        if not key.startswith(RESERVED) and (value is not None or key in stored)
    }


def utc_now() -> str:
    """Return the time in the API's form, such as `2023-01-01T10:00:00.000Z`."""
    return _timestamp(datetime.now(timezone.utc))


def kept_since(age: timedelta) -> str:
    """Return the time, as `utc_now` would have told it, before which everything is older than an age."""
    now = datetime.now(timezone.utc)
    return _timestamp(now - min(age, now - datetime.min.replace(tzinfo=timezone.utc)))


@cache
def host() -> str:
    """Return the name of this machine."""
    from platform import node  # as slow to import as the rest of a store

    return node()


def _timestamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
