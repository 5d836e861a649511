"""Detects that the caller rolled back, for stores that write in the caller's transactions.

The library is not notified of a rollback. Before a commit the keys that the run has written are read again: an entry
that equals its state before one of the run's own commits shows that this commit was rolled back.

    past     key → digests of the entries it had before each commit of this run
    undone   key → the value that a commit gave it which was rolled back, until the key is committed again
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from typing import TYPE_CHECKING

from checkpoint import codec
from checkpoint.entries import named
from checkpoint.run.claims import value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from checkpoint.entries import Entry
    from checkpoint.run.claims import Changes, Claims
    from checkpoint.stores.base import JoinsTransactions

REMEMBERED = 1_000
"""Number of earlier entries of a key that are recognised; each takes 16 bytes."""


class Rollback:
    """The keys that a run has written in the caller's transactions, and those that were rolled back."""

    def __init__(self, store: JoinsTransactions, state_key: str) -> None:
        self._store = store
        self._state_key = state_key
        self._past: dict[str, deque[bytes]] = {}
        self._undone: Changes = {}

    def is_written(self, key: str) -> bool:
        """Whether a key was written in a transaction that may still be rolled back."""
        return key in self._past

    def wrote(self, before: Mapping[str, Entry | None]) -> None:
        """Note that keys were written, with the entries that they had before."""
        for key, entry in before.items():
            self._past.setdefault(key, deque(maxlen=REMEMBERED)).append(_digest(entry))
            self._undone.pop(key, None)

    def look(self, claims: Claims, note: Callable[[list[str]], object]) -> None:
        """Correct the known entries of keys whose commit was rolled back, after passing the keys to `note`."""
        if not self._past:
            return
        found = self._store.read(self._state_key, list(self._past))
        undone = [
            key
            for key, past in self._past.items()
            if found.get(key) != claims.known.get(key) and _digest(found.get(key)) in past
        ]
        self._undone.update((key, value_of(claims.known.get(key))) for key in undone)
        note(undone)
        claims.know({key: found.get(key) for key in undone})

    def check_claims(self, claims: Mapping[str, str | None]) -> None:
        """Refuse claims that build on rolled-back rows; the same rows may be claimed again.

        Raises:
            RuntimeError: a claim continues from a value that was rolled back.

        """
        for key, value in claims.items():
            undone = self._undone.get(key, value)
            if undone != value and (undone is None or value is None or not codec.same(undone, value)):
                name, member = named(key)
                what = repr(name) if member is None else f"{member!r} of the group {name!r}"
                raise RuntimeError(
                    f"the transaction in which {what} was last committed was rolled back, together with its rows: call "
                    "cp.discard(), and ask the source again from start_value"
                )

    def need_transaction(self, keys: Iterable[str]) -> None:
        """Refuse to flush keys if the caller has not begun a transaction.

        Raises:
            RuntimeError: there are keys, and no transaction is open.

        """
        if (named := sorted(keys)) and not self._store.in_transaction:
            raise RuntimeError(
                f"no transaction is open on the connection, so {', '.join(map(repr, named))} cannot be committed: "
                "begin one, write the rows and call commit() in it"
            )

    def discard(self) -> None:
        """Forget what was rolled back: the job continues from the stored values."""
        self._undone.clear()


def _digest(entry: Entry | None) -> bytes:
    return blake2b(repr(entry).encode("utf-8", "surrogatepass"), digest_size=16).digest()
