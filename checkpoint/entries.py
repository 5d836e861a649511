"""What is stored: an entry, what a commit wrote, and what it changed."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


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


class Change(NamedTuple):
    """What one commit did to one key."""

    key: str
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
