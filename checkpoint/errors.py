"""The errors of this library: every failure to read or write state is a `CheckpointError`.

    CheckpointError
    ├── StateMissing        missing="raise", and the namespace holds nothing
    ├── CorruptState        the stored value is not a cursor
    ├── Conflict            another writer changed the key meanwhile
    ├── Locked              exclusive: another run holds the namespace
    ├── LeaseLost           exclusive: another run took it meanwhile
    ├── CommitUnknown       sent, but it is unknown whether it was written
    ├── PartialCommit       some keys were written, others were not
    ├── StoreError          the store refused or failed
    │   ├── Unauthorized
    │   ├── ValueTooLarge
    │   └── StoreUnavailable
    ├── CursorRegressed     a row came out of order in a sorted stream
    ├── CursorStuck         a paged source does not get past one place
    └── CursorExpired       the stored position is older than what the source still has

Each error has its evidence as attributes, says what to do, and can be pickled. Bad keys, cursors and arguments raise
the built-in `ValueError` and `TypeError` at once.
"""

from __future__ import annotations

import logging
import re
import signal
from typing import TYPE_CHECKING, Any

from checkpoint.entries import LEASE_KEY, RESERVED, named

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from checkpoint.entries import Entry

# Control characters, Unicode characters that end a line or change its direction, and lone surrogates.
# Few runs compile it, which takes a fiftieth of the import.
_OBEYED = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"


def printable(text: str) -> str:
    """Return a text in which characters that control a terminal or a log are escaped, as in JSON."""
    return text if text.isprintable() else re.sub(_OBEYED, lambda found: f"\\u{ord(found[0]):04x}", text)


def command_line(verb: str, words: Sequence[str], options: Iterable[str] = ()) -> str:
    """Return a command line of `checkpoint`, as a shell takes it; names that begin with a dash come after `--`.

    Args:
        verb: what it does.
        words: names of namespaces, keys and the like, as they are.
        options: as they stand in the line.

    """
    named, chosen = [*map(quoted, words)], [*options]
    ordered = [*chosen, "--", *named] if any(word.startswith("-") for word in words) else [*named, *chosen]
    return " ".join(["checkpoint", verb, *ordered])


def quoted(word: str) -> str:
    """Return a word as a shell takes it, exactly, and as people see it: what is not printable is escaped."""
    if word.isprintable():
        from shlex import quote  # wanted by an error at most

        return quote(word)
    # `$'…'` of POSIX 2024, in octal bytes: neither the locale nor what follows changes what they are.
    return "$'" + "".join(map(_escaped, word)) + "'"


def _escaped(letter: str) -> str:
    # A shell that knows no `$'…'`, such as dash, ends the word at the first quote, and would obey what follows.
    return (
        letter if letter.isprintable() and letter not in "\\'" else "".join(f"\\{byte:03o}" for byte in letter.encode())
    )


def is_of_handler(error: BaseException) -> bool:
    """Return whether a signal handler raised an error: it may look like one of a file or a library."""
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
    """Escape control characters in log records; they may come from stores, services and names of jobs."""
    message = record.getMessage()
    if not message.isprintable():
        record.msg, record.args = printable(message), None
    return True


logging.getLogger("checkpoint").addFilter(_show_printable)


class CheckpointError(Exception):
    """A failure to read or write state.

    `committed` maps the keys that the failed commit has written to their entries, None for a deleted key. It is empty
    if nothing was written. `unsettled` names the keys of which an attempt had no known outcome: it may have been
    applied, and may still be.
    """

    committed: Mapping[str, Entry | None] = {}
    unsettled: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return printable(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        # Unpickling calls the class with `args`, so these must be the constructor's arguments. Attributes that were set
        # later (notes, `committed`) are in the dict.
        return type(self), self.args, self.__dict__


class StateMissing(CheckpointError):
    """The namespace holds no state, and the run asked for `missing="raise"`; `store` names the store, None: unknown."""

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
    """The stored value of a key is not a cursor; `value` is the stored text, unchanged.

    This includes a value that somebody wrote for another purpose: read it through `Checkpointer.raw`. `value` is None
    if an entry of a group is missing.

    `where` is set if the stored row itself is damaged: it names the file, table or object that holds the row.
    `value` is then None unless it is text.
    """

    def __init__(self, state_key: str, key: str, value: str | None, where: str | None = None) -> None:
        super().__init__(state_key, key, value, *(() if where is None else (where,)))
        self.state_key = state_key
        self.key = key
        self.value = value
        self.where = where

    def __str__(self) -> str:
        if self.where is not None:
            return (
                f"the stored row of {self.key!r} in {self.state_key!r} is damaged{_reason(self)}, and was left "
                f"unchanged: repair or delete it in {printable(self.where)}, or restore a backup"
            )
        if self.value is None:
            how = " with the store's commit()" if self.key.startswith(RESERVED) else ""
            return (
                f"{self.key!r} is missing in {self.state_key!r}{_reason(self)}; the other entries were left unchanged: "
                f"restore the missing ones, or delete the others{how} to start over"
            )
        name, member = named(self.key)
        what = repr(self.key) if member is None else f"{member!r} of the group {name!r}"
        return (
            f"the value of {what} in {self.state_key!r} is not a cursor{_reason(self)}, and was left unchanged: "
            f"{self._advice(member)}"
        )

    def _advice(self, member: str | None) -> str:
        if member is not None:
            return "set the member to replace it"
        if self.key == LEASE_KEY:
            return f"when no run holds the lease, release it with `{command_line('unlock', [self.state_key])}`"
        if self.key.startswith(RESERVED):  # neither in the mapping nor in `raw`
            commit = f"store.commit({self.state_key!r}, {{{self.key!r}: value}})"
            return f"restore its value with {commit}, or delete it with None as value"
        return f"read it with cp.raw[{self.key!r}], or set the key to replace it"


class Conflict(CheckpointError):
    """Another writer changed a key after this run had read it; the key was not written.

    `expected` is the entry that this run knew, None if it knew of none. `found` is the entry that is stored now, None
    if the key was deleted. For a member of a group, `key` is the name of the group and `member` the first member that
    differs; the two entries are the stored ones, in which members may be packed.
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
            f"{name} in {self.state_key!r} {what} after this run had read it, and was not overwritten: if the job runs "
            "twice, stop one run; cp.discard() adopts what is stored, on_conflict='overwrite' replaces it"
        )


class Locked(CheckpointError):
    """Another run holds the namespace: `owner` names it, `since` is when it took the lease (ISO 8601)."""

    def __init__(self, state_key: str, owner: str, since: str) -> None:
        super().__init__(state_key, owner, since)
        self.state_key = state_key
        self.owner = owner
        self.since = since

    def __str__(self) -> str:
        return (
            f"{self.state_key!r} has been held by {printable(self.owner)} since {printable(self.since)}: "
            "wait for that run to end; "
            f"if it is stuck, stop it, or release its lease with `{command_line('unlock', [self.state_key])}`"
        )


class LeaseLost(CheckpointError):
    """The run has lost its lease: it did not renew it in time, or somebody released it; nothing was written."""

    def __init__(self, state_key: str) -> None:
        super().__init__(state_key)
        self.state_key = state_key

    def __str__(self) -> str:
        return (
            f"this run lost its lease of {self.state_key!r}: another run took it, or somebody released it; nothing was "
            "written: stop, and start the job again"
        )


class CommitUnknown(CheckpointError):
    """Writes were sent, and it is unknown whether they were applied; `keys` names the keys.

    The keys stay changed. Committing again is safe: it reads them back, and writes what is missing.
    """

    def __init__(self, state_key: str, keys: Iterable[str]) -> None:
        self.state_key = state_key
        self.keys: tuple[str, ...] = tuple(keys)
        super().__init__(state_key, self.keys)

    def __str__(self) -> str:
        return (
            f"it is unknown whether {listed(self.keys)} in {self.state_key!r} was written{_reason(self)}: "
            "commit again (safe in both cases), or let the next run find out"
        )


class PartialCommit(CheckpointError):
    """Some keys of a commit failed; those in `committed` are written, those in `pending` are not and stay changed.

    `errors` maps pending keys to their errors. A pending key without an error was not sent.
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
        return f"{landed}, {listed(self.pending)} pending: commit again to send only what is pending: {failed}"


class StoreError(CheckpointError):
    """The store refused or failed; the text repeats what it said."""


class Unauthorized(StoreError):
    """The service refused the token (401), or what the token asked for (403); nothing more was sent."""


class ValueTooLarge(StoreError):
    """The store refused the value of `key` because of its size, `size` bytes."""

    def __init__(self, key: str, size: int) -> None:
        super().__init__(key, size)
        self.key = key
        self.size = size

    def __str__(self) -> str:
        return f"the value of {self.key!r} is too large for the store: {self.size:,} bytes; store less in one cursor"


class StoreUnavailable(StoreError):
    """The store could not be reached before the deadline, and nothing was written."""


class CursorRegressed(CheckpointError):
    """A row came out of order in a stream with a `row_order`: `new` came after `last`."""

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
                "Its position did not move, so nothing is lost: read it again in order, or without row_order; if rows "
                "move between pages while they are read, pass a primary_key"
            )
        return what + (
            f"Rows may have been skipped: if its position lies after {new}, rewind to {new} or earlier, to a value up "
            "to which the source was in order; if the source does not sort, then open it without row_order"
        )


class CursorStuck(CheckpointError):
    """A paged source does not advance: the page at the place `at` held nothing new, and leads back to itself."""

    def __init__(self, key: str, at: Any) -> None:
        super().__init__(key, at)
        self.key = key
        self.at = at

    def __str__(self) -> str:
        return (
            f"{self.key!r} does not get past {_cut(self.at)}: that page held nothing new and leads back to "
            "itself, usually because more rows share a value than fit on a page; ask for larger pages, or page by a "
            "value that tells such rows apart: a token, an offset, or (value, id)"
        )


class CursorExpired(CheckpointError):
    """The stored `position` is older than `oldest`, the oldest value that the source still has."""

    def __init__(self, key: str, position: Any, oldest: Any) -> None:
        super().__init__(key, position, oldest)
        self.key = key
        self.position = position
        self.oldest = oldest

    def __str__(self) -> str:
        return (
            f"{self.key!r} stopped at {self.position!r}, and its source reaches back only to {self.oldest!r}: the rows "
            "in between are gone; for a full refresh, delete the key and open the stream again"
        )


def _reason(error: BaseException) -> str:
    return f" ({printable(str(error.__cause__))})" if error.__cause__ is not None else ""


def listed(keys: Iterable[str], most: int = 10) -> str:
    """Return a text that names up to `most` keys, and counts the rest."""
    named = [repr(key) for key in keys]
    if len(named) > most:
        named[most:] = [f"{len(named) - most} more"]
    return ", ".join(named)


def _cut(value: Any, most: int = 40) -> str:
    """Return the first characters of a value of a row, for a message."""
    shown = repr(value)
    return shown if len(shown) <= most else shown[:most] + "…"
