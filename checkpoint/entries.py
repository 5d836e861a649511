"""What is stored: an entry, what a commit wrote, and what it changed."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

RESERVED = "__"
"""Prefix of reserved keys."""

LEASE_KEY = "__lease__"
"""The entry that says which exclusive run holds a namespace."""
RUN_KEY = "__run__"
"""The entry that tells of the last run; its history is the list of runs."""

GROUP_PREFIX = "__group__."
"""Prefix of the entries of groups: `__group__.NAME` is a group's head, `__group__.NAME/MEMBER` one of its members."""


# Tuples, not dataclasses: a namespace of 100 000 keys is read in two thirds of the time, and `inspect`, which
# dataclasses import, is a sixth of what `import checkpoint` costs.
class Entry(NamedTuple):
    """One key of a namespace as it is stored."""

    key: str
    """Unique in its namespace."""
    value: str
    """Any text; for a cursor, what `checkpoint.codec.encode` returns."""
    created_at: str | None = None
    """When the key was first written, as the store tells it: ISO 8601 with `Z`. None: it did not tell."""
    updated_at: str | None = None
    """When the value was last written, likewise."""
    sync_job_run_id: str | None = None
    """The run that wrote it; None where it named none."""
    version: int | None = None
    """Grows with every commit of the namespace and is never reused. None: the store keeps no versions."""


class Receipt(NamedTuple):
    """What a commit did."""

    entries: Mapping[str, Entry] = MappingProxyType({})
    """The written keys as they are stored now; deleted ones are not among them."""
    requests: int = 0
    """Requests sent, retries included; 0 where there is no network."""
    retries: int = 0
    """Requests that were sent again after a failure."""
    unsettled: frozenset[str] = frozenset()
    """Written keys of which an earlier attempt, its outcome never seen, may still land."""


class Writer(NamedTuple):
    """Who commits, as history tells it."""

    host: str
    """The name of the machine."""
    process: int
    """The process id there."""
    by: str | None = None
    """The name of the token, where a server commits for the one who bears it."""


class Change(NamedTuple):
    """What one commit did to one key, or to one member of a group."""

    key: str
    """The key; of a member, the name of its group."""
    before: str | None
    """The value it had; None: the key was absent."""
    after: str | None
    """The value it got; None: the key was deleted."""
    version: int
    """The namespace's version from this commit on: what the keys of one commit have in common."""
    at: str
    """When: ISO 8601 with `Z`, by the clock of the host that committed."""
    run_id: str | None
    """The run that committed; None where it named none."""
    host: str
    """The name of its machine."""
    process: int
    """Its process id there."""
    member: str | None = None
    """The member of the group `key`; None: the key is no group's."""
    reason: str | None = None
    """Why, where whoever changed it said so: for a rewind, a reset or a restore."""
    by: str | None = None
    """Who, where a server knows it: the name of the token."""

    @property
    def cursor_before(self) -> dict[str, Any] | None:
        """The cursor that `before` holds; None where it is absent or not a cursor."""
        return _cursor(self.before)

    @property
    def cursor_after(self) -> dict[str, Any] | None:
        """The cursor that `after` holds; None where it is absent or not a cursor."""
        return _cursor(self.after)


def _cursor(value: str | None) -> dict[str, Any] | None:
    from checkpoint import codec

    try:
        return None if value is None else codec.decode(value)
    except ValueError:
        return None


def head_key(group: str) -> str:
    """Return the key of a group's head."""
    # A group's name may hold a slash too: escaped, it does not end where its members begin.
    return GROUP_PREFIX + group.replace("%", "%25").replace("/", "%2F")


def member_key(group: str, member: str) -> str:
    """Return the key of the entry that holds a member of a group."""
    return f"{head_key(group)}/{member}"


def named(key: str) -> tuple[str, str | None]:
    """Return what a stored key is called: a group and its member, else the key itself and None."""
    group, slash, member = key.removeprefix(GROUP_PREFIX).partition("/")
    if not (slash and key.startswith(GROUP_PREFIX)):
        return key, None
    return group.replace("%2F", "/").replace("%25", "%"), member


def has_history(key: str) -> bool:
    """Tell whether stores that keep history keep that of a stored key: plain keys, groups, and the list of runs."""
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
    """Refuse what is not text, and lone surrogates; raises as `check_text`."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, not {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} must not hold lone surrogates") from error
