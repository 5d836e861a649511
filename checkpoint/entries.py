"""What stores hold and return: entries, receipts of commits, and changes in the history."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

RESERVED = "__"
"""Prefix of reserved keys."""

LEASE_KEY = "__lease__"
"""Key of the lease of an exclusive run."""
RUN_KEY = "__run__"
"""Key of the entry about the last run. The history of this entry is the list of runs."""

GROUP_PREFIX = "__group__."
"""Prefix of the entries of groups: `__group__.NAME` is a group's head, `__group__.NAME/MEMBER` one of its members."""


# Tuples, not dataclasses: with them a namespace of 100 000 keys is read in two thirds of the time. Dataclasses also
# import `inspect`, which takes a sixth of the time of `import checkpoint`.
class Entry(NamedTuple):
    """One stored key of a namespace, and its value."""

    key: str
    """Unique in its namespace."""
    value: str
    """Any text. A cursor is stored as `checkpoint.codec.encode` returns it."""
    created_at: str | None = None
    """When the key was first written, by the store's clock: ISO 8601 with `Z`. None: the store does not say."""
    updated_at: str | None = None
    """When the value was last written, by the store's clock: ISO 8601 with `Z`. None: the store does not say."""
    sync_job_run_id: str | None = None
    """The id of the run that wrote it. None: the run gave no id, or the store does not keep it."""
    version: int | None = None
    """Grows with every commit of the namespace and is never reused. None: the store keeps no versions."""


class Receipt(NamedTuple):
    """What a commit did."""

    entries: Mapping[str, Entry] = MappingProxyType({})
    """The written keys, and their entries as they are stored now. Deleted keys are left out."""
    requests: int = 0
    """The number of requests sent, with retries. 0: the store needs none."""
    retries: int = 0
    """The number of requests that were sent again after a failure."""
    unsettled: frozenset[str] = frozenset()
    """Written keys of which an earlier attempt had no known outcome, and may still be applied."""


class Writer(NamedTuple):
    """Who commits, as the history shows it."""

    host: str
    """The name of the machine."""
    process: int
    """The process id on that machine."""
    by: str | None = None
    """The name of the client's token, if a server commits for a client. None: it has no name, or there is no server."""


class Change(NamedTuple):
    """What one commit did to one key, or to one member of a group."""

    key: str
    """The key. For a member of a group, the name of the group."""
    before: str | None
    """The value before the commit. None: the key did not exist."""
    after: str | None
    """The value after the commit. None: the key was deleted."""
    version: int
    """The version of the namespace after this commit; the same for all keys of the commit."""
    at: str
    """The time of the commit: ISO 8601 with `Z`, by the clock of the host that committed."""
    run_id: str | None
    """The id of the run that committed. None: it gave no id."""
    host: str
    """The name of the machine that committed."""
    process: int
    """The process id on that machine."""
    member: str | None = None
    """The member of the group `key`. None: the key does not belong to a group."""
    reason: str | None = None
    """The reason for a rewind, a reset or a restore. None: no reason was given."""
    by: str | None = None
    """The name of the token that committed through a server. None: it has no name, or there is no server."""

    @property
    def cursor_before(self) -> dict[str, Any] | None:
        """The cursor in `before`. None: there is no value, or it is not a cursor."""
        return _cursor(self.before)

    @property
    def cursor_after(self) -> dict[str, Any] | None:
        """The cursor in `after`. None: there is no value, or it is not a cursor."""
        return _cursor(self.after)


def _cursor(value: str | None) -> dict[str, Any] | None:
    from checkpoint import codec

    try:
        return None if value is None else codec.decode(value)
    except ValueError:
        return None


def head_key(group: str) -> str:
    """Return the key of a group's head."""
    # The slash separates group and member, so a slash in the group's name is escaped.
    return GROUP_PREFIX + group.replace("%", "%25").replace("/", "%2F")


def member_key(group: str, member: str) -> str:
    """Return the key of the entry that holds a member of a group."""
    return f"{head_key(group)}/{member}"


def named(key: str) -> tuple[str, str | None]:
    """Return the names in a stored key: the group and the member, or the key itself and None."""
    group, slash, member = key.removeprefix(GROUP_PREFIX).partition("/")
    if not (slash and key.startswith(GROUP_PREFIX)):
        return key, None
    return group.replace("%2F", "/").replace("%25", "%"), member


def has_history(key: str) -> bool:
    """Return whether changes of a stored key are kept in the history: plain keys, groups, and the list of runs."""
    return not key.startswith(RESERVED) or key == RUN_KEY or key.startswith(GROUP_PREFIX)


def check_text(what: str, text: str) -> None:
    """Refuse text that not every store can hold.

    Raises:
        TypeError: it is not a str.
        ValueError: it holds a NUL or a lone surrogate.

    """
    check_unicode(what, text)
    if "\0" in text:
        raise ValueError(f"{what} must not hold a NUL")


def check_unicode(what: str, text: str) -> None:
    """Refuse what is not text, and lone surrogates; raises what `check_text` raises, and allows a NUL."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, not {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} must not hold lone surrogates") from error
