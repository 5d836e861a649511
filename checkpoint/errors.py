"""The errors of this library; every one that is not a programmer's mistake is a `CheckpointError`.

    CheckpointError
    ├── StateMissing        missing="raise", and the namespace holds nothing
    ├── CorruptState        stored, but not a cursor
    ├── Conflict            somebody else changed the key meanwhile
    ├── Locked              exclusive: another run holds the namespace
    ├── LeaseLost           exclusive: another run took it meanwhile
    ├── CommitUnknown       sent, and nobody could tell whether it was written
    ├── PartialCommit       some keys landed, others did not
    ├── StoreError          the store refused or failed
    │   ├── Unauthorized
    │   ├── ValueTooLarge
    │   └── StoreUnavailable
    ├── CursorRegressed     a sorted stream went back
    ├── CursorStuck         a paged source does not get past one place
    └── CursorExpired       the stored position is older than the source reaches

Each carries its evidence as attributes, says what to do, and survives pickling. Bad keys and cursors are the
built-in `ValueError` and `TypeError`, raised when they are set.
"""

from __future__ import annotations

import logging
import re
import signal
from typing import TYPE_CHECKING, Any

from checkpoint.entries import named

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from checkpoint.entries import Entry

# Control characters, what turns or ends a line in Unicode, and halves of surrogate pairs.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text in which whatever a terminal or a log would obey is escaped, as JSON escapes it."""
    return text if text.isprintable() else _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def is_of_handler(error: BaseException) -> bool:
    """Tell whether a signal handler raised an error, which looks like one of a file or a library but is the job's."""
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    functions = [one if hasattr(one, "__code__") else type(one).__call__ for one in handlers if callable(one)]
    codes = {getattr(one, "__code__", None) for one in functions}
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in codes:
            return True
        traceback = traceback.tb_next
    return False


def _show_printable(record: logging.LogRecord) -> bool:
    """Escape what stores, services and job names bring into our log records."""
    message = record.getMessage()
    if not message.isprintable():
        record.msg, record.args = printable(message), None
    return True


logging.getLogger("checkpoint").addFilter(_show_printable)


class CheckpointError(Exception):
    """Whatever keeps a checkpoint from being read or written.

    `committed` maps the keys that had landed before the error ended their commit to the entries they left, None for a
    deleted one; it is empty where nothing was written. `unsettled` names the keys of which an attempt, its outcome
    never seen, may have landed or may land yet.
    """

    committed: Mapping[str, Entry | None] = {}
    unsettled: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return printable(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception.__reduce__ calls the class with `args`, which must therefore stay the constructor's own arguments;
        # attributes set later (notes, `committed`) travel in the dict.
        return type(self), self.args, self.__dict__


class StateMissing(CheckpointError):
    """The namespace holds no state, and the run asked for `missing="raise"`; `store` says where, None: unknown."""

    def __init__(self, state_key: str, store: str | None = None) -> None:
        super().__init__(state_key, store)
        self.state_key = state_key
        self.store = store

    def __str__(self) -> str:
        where = f" in {printable(self.store)}" if self.store is not None else ""
        return (
            f"nothing is stored under {self.state_key!r}{where}: check state_key and store, "
            "or pass missing='new' to start over"
        )


class CorruptState(CheckpointError):
    """What is stored under a key is not a cursor; `value` is the stored string, untouched.

    A value that somebody else wrote for another purpose counts too: read it through `Checkpointer.raw`. `value` is None
    where an entry of a group is missing.
    """

    def __init__(self, state_key: str, key: str, value: str | None) -> None:
        super().__init__(state_key, key, value)
        self.state_key = state_key
        self.key = key
        self.value = value

    def __str__(self) -> str:
        if self.value is None:
            return (
                f"{self.key!r} is missing in {self.state_key!r}{_reason(self)}; what is there is kept as it is: "
                "put the missing entries back, or delete the others to start over"
            )
        name, member = named(self.key)
        if member is not None:
            return (
                f"the value of {member!r} of the group {name!r} in {self.state_key!r} is not a cursor{_reason(self)}; "
                "it is kept as it is: set the member to replace it"
            )
        return (
            f"the value of {self.key!r} in {self.state_key!r} is not a cursor{_reason(self)}; "
            f"it is kept as it is: read it with cp.raw[{self.key!r}], or set the key to replace it"
        )


class Conflict(CheckpointError):
    """Another writer changed the key since it was last known; nothing of it was written.

    `expected` is the entry this run knew, None where it knew of none; `found` is the entry stored now, None where the
    key was deleted elsewhere. Of a group `key` is its name and `member` the member, the first one that differs; both
    entries are then as they are stored.
    """

    def __init__(
        self, state_key: str, key: str, expected: Entry | None, found: Entry | None, member: str | None = None
    ) -> None:
        super().__init__(state_key, key, expected, found, *(() if member is None else (member,)))
        self.state_key = state_key
        self.key = key
        self.expected = expected
        self.found = found
        self.member = member

    def __str__(self) -> str:
        if self.found is None:
            what = "was deleted by another writer"
        else:
            what = "was created by another writer" if self.expected is None else "was changed by another writer"
            if self.found.updated_at:
                what += f" at {printable(self.found.updated_at)}"
            if self.found.sync_job_run_id:
                what += f" (run {printable(self.found.sync_job_run_id)})"
        name = repr(self.key) if self.member is None else f"{self.member!r} of the group {self.key!r}"
        return (
            f"{name} in {self.state_key!r} {what} after this run had read it: does the job run twice? Stop one; "
            "cp.discard() adopts what is stored, on_conflict='overwrite' replaces it"
        )


class Locked(CheckpointError):
    """Another run holds the namespace: `owner` names it, `since` is when it got in (ISO 8601)."""

    def __init__(self, state_key: str, owner: str, since: str) -> None:
        super().__init__(state_key, owner, since)
        self.state_key = state_key
        self.owner = owner
        self.since = since

    def __str__(self) -> str:
        return (
            f"{self.state_key!r} is held by {printable(self.owner)} since {printable(self.since)}: "
            "wait for that run to end; "
            f"if it is stuck, stop it, or let it go with `checkpoint unlock {self.state_key}`"
        )


class LeaseLost(CheckpointError):
    """Another run took the namespace while this one was silent, or it was released by hand; nothing was written."""

    def __init__(self, state_key: str) -> None:
        super().__init__(state_key)
        self.state_key = state_key

    def __str__(self) -> str:
        return (
            f"another run took over {self.state_key!r} meanwhile, or its lease was released by hand: "
            "nothing was written; stop, and start again"
        )


class CommitUnknown(CheckpointError):
    """Writes were sent, and whether they landed is unknown; `keys` names them.

    They stay changed: committing again is safe, and takes either outcome as its base.
    """

    def __init__(self, state_key: str, keys: Iterable[str]) -> None:
        self.state_key = state_key
        self.keys: tuple[str, ...] = tuple(keys)
        super().__init__(state_key, self.keys)

    def __str__(self) -> str:
        return (
            f"whether {listed(self.keys)} in {self.state_key!r} was written is unknown{_reason(self)}: "
            "commit again (safe in both cases), or let the next run find out"
        )


class PartialCommit(CheckpointError):
    """Some keys of a commit failed; `committed` landed, `pending` did not and stay changed.

    `errors` maps each pending key to its own error where it has one; a key without was not sent.
    """

    def __init__(
        self,
        committed: Mapping[str, Entry | None],
        pending: Iterable[str],
        errors: Mapping[str, CheckpointError],
    ) -> None:
        self.committed: Mapping[str, Entry | None] = dict(committed)
        self.pending: tuple[str, ...] = tuple(pending)
        self.errors: dict[str, CheckpointError] = dict(errors)
        super().__init__(self.committed, self.pending, self.errors)

    def __str__(self) -> str:
        landed = f"{listed(self.committed)} committed" if self.committed else "nothing committed"
        failed = "; ".join(f"{key!r}: {error}" for key, error in self.errors.items())
        return f"{landed}, {listed(self.pending)} pending and still changed: commit again sends only those: {failed}"


class StoreError(CheckpointError):
    """The store refused or failed; the text carries what it said."""


class Unauthorized(StoreError):
    """The service refused the token (401) or what it may do (403); nothing more was sent."""


class ValueTooLarge(StoreError):
    """The store refused a value for its size: `size` bytes under `key`."""

    def __init__(self, key: str, size: int) -> None:
        super().__init__(key, size)
        self.key = key
        self.size = size

    def __str__(self) -> str:
        return f"the value of {self.key!r} is too large for the store: {self.size:,} bytes; store less in one cursor"


class StoreUnavailable(StoreError):
    """The store could not be reached in the time and attempts allowed, and nothing can have been written."""


class CursorRegressed(CheckpointError):
    """A stream said to be sorted went back: `new` came after `last`."""

    def __init__(self, key: str, last: Any, new: Any, row_order: str = "asc") -> None:
        super().__init__(key, last, new, row_order)
        self.key = key
        self.last = last
        self.new = new
        self.row_order = row_order

    def __str__(self) -> str:
        new, last = _cut(self.new), _cut(self.last)
        what = f"{self.key!r} is not sorted as row_order={self.row_order!r} says: {new} came after {last}. "
        if self.row_order == "desc":
            return what + (
                "Its position did not move, so nothing is lost: read it again in order, or without row_order; with "
                "pages that move on while they are read, name a primary_key"
            )
        return what + (
            f"Rows may have been passed: where its position lies after {new}, rewind to {new} or before it, to where "
            "the source was in order for certain; a source that does not sort is opened without row_order after that"
        )


class CursorStuck(CheckpointError):
    """A paged source does not get on: the page asked for by `at` held nothing new, and named itself as the next."""

    def __init__(self, key: str, at: Any) -> None:
        super().__init__(key, at)
        self.key = key
        self.at = at

    def __str__(self) -> str:
        return (
            f"{self.key!r} does not get past {_cut(self.at)}: the page asked for by it held nothing new and names it "
            "as the next one: more rows share a value than fit a page; ask for larger pages, or page by a value that "
            "tells such rows apart: a token, an offset, or (value, id)"
        )


class CursorExpired(CheckpointError):
    """The stored `position` is older than the `oldest` the source still answers for."""

    def __init__(self, key: str, position: Any, oldest: Any) -> None:
        super().__init__(key, position, oldest)
        self.key = key
        self.position = position
        self.oldest = oldest

    def __str__(self) -> str:
        return (
            f"{self.key!r} stopped at {self.position!r}, and its source reaches back to {self.oldest!r} only: "
            "rows in between are gone; a full refresh is needed"
        )


def _reason(error: BaseException) -> str:
    return f" ({printable(str(error.__cause__))})" if error.__cause__ is not None else ""


def listed(keys: Iterable[str], most: int = 10) -> str:
    """Name up to `most` keys, and count the rest."""
    named = [repr(key) for key in keys]
    if len(named) > most:
        named[most:] = [f"{len(named) - most} more"]
    return ", ".join(named)


def _cut(value: Any, most: int = 40) -> str:
    """Return a value of a row as it may stand in a text: its first characters."""
    shown = repr(value)
    return shown if len(shown) <= most else shown[:most] + "…"
