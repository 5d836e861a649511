"""One run over one namespace: load its cursors, change them, commit what changed.

A key is held in up to three layers, the upper hiding the lower:

    draft    what the job has read as a dict, set or deleted; live, and nobody's business yet
    claimed  snapshots that the job said are safe, on their way to the store
    known    the entries as the store is known to hold them

Claiming takes the differences of the drafts down into `claimed`; a flush takes `claimed` to the store and, once it is
confirmed there, into `known`. The draft of a key that a live stream holds is made by the stream, when it is claimed.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from checkpoint import codec
from checkpoint.codec import Cursor
from checkpoint.errors import (
    CheckpointError,
    CommitUnknown,
    Conflict,
    CorruptState,
    PartialCommit,
    StateMissing,
    StoreError,
)
from checkpoint.stores import open_store
from checkpoint.stores.base import Entry, Store, check_changes, check_name
from checkpoint.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from datetime import timedelta, tzinfo
    from decimal import Decimal
    from types import TracebackType

    from typing_extensions import Self

    from checkpoint.incremental import Incremental

logger = logging.getLogger("checkpoint")

LARGE = 1_000_000
"""Characters of a stored value from which on a warning is logged: 1 MB."""

LATE_WRITES = 3
"""How many late writes of its own, beside one a key, a flush puts up with before it calls them a conflict."""

RESERVED = "__"
"""What the keys begin with that are not the job's."""

Changes: TypeAlias = dict[str, str | None]


class Commit(NamedTuple):
    """What a commit sent; falsy when it sent nothing."""

    keys: tuple[str, ...] = ()
    """The keys that were written or deleted."""
    requests: int = 0
    """Requests to the service, retries included; 0 for a local store."""
    retries: int = 0
    """Requests sent again after a failure."""
    seconds: float = 0.0
    """Time from the first request to the last answer."""

    def __bool__(self) -> bool:
        return bool(self.keys)


class Checkpointer(MutableMapping[str, Cursor]):
    """The cursors of one namespace for the length of one run: a mapping of key → cursor, and a context manager.

        with Checkpointer("sync_job_123") as cp:
            since = cp.get("contacts", {"updated_at": "1970-01-01T00:00:00Z"})["updated_at"]
            for page in api.contacts(updated_since=since):
                sink.write(page)
                cp["contacts"] = {"updated_at": page[-1]["updated_at"]}
                cp.commit()

    Entering loads the namespace; leaving cleanly commits what changed; leaving by an exception sends what was claimed
    before and drops the rest. It is used once, and may be used from several threads.

    Args:
        state_key: the namespace.
        store: a `Store`, the URL of one (see `open_store`), or None: `$CHECKPOINT_STORE`, else a SQLite file in the
            platform's user state folder. A store given as such is left open.
        on_conflict: `"raise"` a `Conflict` where another writer changed a key meanwhile, or `"overwrite"` it.
        missing: `"raise"` `StateMissing` for a namespace without state, for a job that must not start over; `"new"`
            starts with an empty mapping.
        min_interval: seconds between two flushes; commits that come sooner are held back, and go out with a later one
            or at exit.
        stop_signals: signals such as SIGTERM that set `stopping` instead of ending the process; a second one raises
            KeyboardInterrupt. Main thread only.
        run_id: recorded with every written entry, where the store can.

    Raises:
        TypeError, ValueError: the arguments; the mapping, for bad keys and cursors, when they are set.
        RuntimeError: entered twice, or used outside its block.

    """

    def __init__(
        self,
        state_key: str,
        store: Store | str | None = None,
        *,
        on_conflict: Literal["raise", "overwrite"] = "raise",
        missing: Literal["new", "raise"] = "new",
        min_interval: float = 0.0,
        stop_signals: Iterable[int] = (),
        run_id: str | None = None,
    ) -> None:
        check_name("state_key", state_key)
        if not (store is None or isinstance(store, (str, Store))):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"store must be a Store, a URL such as 'sqlite:///state.db', or None, not {type(store).__name__}"
            )
        if on_conflict not in ("raise", "overwrite"):
            raise ValueError(f"on_conflict must be 'raise' or 'overwrite', not {on_conflict!r}")
        if missing not in ("new", "raise"):
            raise ValueError(f"missing must be 'new' or 'raise', not {missing!r}")
        if not min_interval >= 0:
            raise ValueError(f"min_interval must be seconds, 0 or more, not {min_interval!r}")
        self.state_key = state_key
        """The namespace of this run."""
        self._given = store
        self._on_conflict = on_conflict
        self._missing = missing
        self._min_interval = min_interval
        self._stop_signals = tuple(signal.Signals(number) for number in stop_signals)
        self._run_id = run_id
        self._stops: list[int] = []  # signals that came; streams look at it too
        self._handlers: dict[int, Any] = {}
        self._store: Store | None = None
        self._phase: Literal["new", "open", "closed"] = "new"

        self._streams: dict[str, Incremental[Any]] = {}  # by the key they hold; some are detached by now
        self._draft: dict[str, Cursor | str | None] = {}  # a dict that was read and is live, a value set, None: deleted
        self._spelled: dict[str, str] = {}  # the values that drafts which were set, and then read, were set to
        self._claimed: Changes = {}  # None deletes
        self._known: dict[str, Entry] = {}
        self._failed: set[str] = set()  # claimed keys whose last flush failed: sent again only when asked
        self._found: dict[str, Entry | None] = {}  # what conflicts found, for discard() to adopt
        self._unsettled: dict[str, set[str | None]] = {}  # own values that may have landed, or may yet
        self._doubtful: set[str] = set()  # keys of which `known` may be wrong, for the last send was not confirmed

        self._lock = threading.RLock()  # guards the layers; never held during a request
        self._flushing = threading.Lock()  # held by the one flush under way; taken before _lock
        self._worker = Worker(f"checkpoint {state_key}")
        self._soon = False  # a background flush is queued and has not begun
        self._failure: BaseException | None = None  # of a background flush, not yet raised
        self._flushed_at = self._claimed_at = float("-inf")

    def __repr__(self) -> str:
        return f"Checkpointer({self.state_key!r}, {self._store if self._store is not None else self._given!r})"

    @property
    def stopping(self) -> bool:
        """Whether a stop signal came: finish the page in hand, then leave."""
        return bool(self._stops)

    # Entering and leaving

    def __enter__(self) -> Self:
        self._enter_once()
        try:
            self._watch_signals()
            self._load()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._leave(exc)
        except BaseException as error:
            self._worker.stop()
            self._note_failure(error)
            raise
        finally:
            self._end()

    def _enter_once(self) -> None:
        if self._phase != "new":
            raise RuntimeError("a Checkpointer is entered once: make a new one for the next run")
        self._phase = "open"
        _entered[id(self)] = self

    def _watch_signals(self) -> None:
        if self._stop_signals and threading.current_thread() is not threading.main_thread():
            raise ValueError("stop_signals work in the main thread only")
        for number in self._stop_signals:
            self._handlers[number] = signal.signal(number, self._on_signal)

    def _load(self) -> None:
        self._store = self._given if isinstance(self._given, Store) else open_store(self._given)
        self._known = self._store.load(self.state_key)
        if self._missing == "raise" and not len(self):
            raise StateMissing(self.state_key)
        logger.info("%r: %d keys in %r", self.state_key, len(self), self._store)

    def _leave(self, error: BaseException | None) -> None:
        """Send what is to be sent at the end of the block; `error` is what ended it, None for a clean end."""
        if error is None:
            try:
                with self._lock:
                    for stream in self._live().values():
                        stream.leave()
                    self._claim(())
                    self._phase = "closed"
            except (TypeError, ValueError) as refused:
                self._leave(refused)  # what was claimed before is still safe to say
                raise
            self._flush(frozenset(self._claimed))
            self._raise_failure()
            return
        self._phase = "closed"
        for stream in self._live().values():
            stream.detach()
        try:
            self._flush()
        except Exception as failure:  # noqa: BLE001 - the block's own error goes on, with this one told beside it
            add_note(error, f"checkpoint: {self.state_key!r} was not committed either: {failure}")
        self._note_failure(error)

    def _note_failure(self, error: BaseException) -> None:
        """Tell of a background failure that nobody has seen yet beside the error that goes on."""
        with self._lock:
            failure, self._failure = self._failure, None
        if failure is not None and failure is not error:
            add_note(error, f"checkpoint: {self.state_key!r} was not committed either: {failure}")

    def _end(self) -> None:
        """Let go of everything that entering took."""
        try:
            self._worker.stop()
            if self._store is not None and self._store is not self._given:
                self._store.close()
        finally:
            self._phase = "closed"
            _entered.pop(id(self), None)
            self._restore_signals()

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers.clear()

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._stops:
            raise KeyboardInterrupt(f"second {signal.Signals(number).name}")
        self._stops.append(number)

    # The mapping

    def __getitem__(self, key: str) -> Cursor:
        with self._open():
            draft = self._draft.get(key)
            if isinstance(draft, dict):
                return draft
            value = self._value(key)
            if value is None:
                raise KeyError(key)
            cursor: Cursor = self._decode(key, value)
            if key not in self._live():  # of whose cursor this is a copy
                if draft is not None:
                    self._spelled[key] = value
                self._draft[key] = cursor
            return cursor

    def __setitem__(self, key: str, cursor: Cursor) -> None:
        _check_key(key)
        value = codec.encode(cursor)
        if len(value) >= LARGE:
            logger.warning(
                "%r: the cursor of %r is %d bytes; a cursor should be small", self.state_key, key, len(value)
            )
        with self._open():
            self._check_free(key)
            below = self._below(key)
            if below is not None and key not in self._doubtful and codec.same(value, below):
                self._draft.pop(key, None)
            else:
                self._draft[key] = value

    def __delitem__(self, key: str) -> None:
        with self._open():
            if key not in self:
                raise KeyError(key)
            self._check_free(key)
            self._draft[key] = None

    def __contains__(self, key: object) -> bool:
        with self._open():
            if not isinstance(key, str) or key.startswith(RESERVED):
                return False
            return (self._draft[key] if key in self._draft else self._below(key)) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    def setdefault(self, key: str, default: Cursor) -> Cursor:  # pyright: ignore[reportIncompatibleMethodOverride] - None is no cursor
        """Return the cursor of a key, set to `default` first where the key is absent; changing it is a change."""
        with self._open():
            if key not in self:
                self[key] = default
            return self[key]

    def clear(self) -> None:
        """Delete every key, decoding none."""
        with self._open():
            for key in self:
                del self[key]

    @property
    def raw(self) -> MutableMapping[str, str]:
        """The same namespace as value strings: for entries that are not cursors, such as a sync job's placeholders."""
        return _Raw(self)

    def entry(self, key: str) -> Entry | None:
        """Return the entry of a key as the store is known to hold it, None where it holds none."""
        with self._open():
            return self._known.get(key)

    @property
    def changed(self) -> set[str]:
        """The keys that were set, changed or deleted, and are not flushed."""
        with self._open():
            return {*self._claimed, *(key for key, draft in self._draft.items() if self._differs(key, draft))}

    # Streams

    def incremental(
        self,
        key: str,
        cursor_field: str | Callable[[Any], Any],
        *,
        initial_value: Any = None,
        end_value: Any = None,
        lookback: timedelta | float | Decimal | None = None,
        primary_key: str | Sequence[str] | Callable[[Any], Any] | None = None,
        row_order: Literal["asc", "desc"] | None = None,
        range_start: Literal["closed", "open"] = "closed",
        on_cursor_value_missing: Literal["raise", "include", "exclude"] = "raise",
        timezone: str | tzinfo | None = None,
        oldest_available: Any = None,
        max_seen: int = 1_000,
    ) -> Incremental[Any]:
        """Open the stream whose cursor is stored under `key`; see `checkpoint.incremental.Incremental`.

        The key is the stream's until it is opened again, which detaches the earlier one, or left by an exception. It
        reads as the last claim, and setting it is a ValueError.

        Args:
            key: the key in the mapping.
            cursor_field: what rows are ordered by: a name, a dotted path, or a callable of the row (stored as
                `"cursor"`). int, float, Decimal, date, datetime, or text; ISO 8601 text compares as the instant it is.
            initial_value: where to start when nothing is stored, and the floor of the lookback; None: everywhere.
            end_value: rows at it or after it are left out. None: there is no end.
            lookback: how far before the position to ask again, for rows that appear late: a timedelta or a number.
            primary_key: what tells rows apart: a name or path, several, or a callable. Rows at the position that were
                delivered are then remembered, and dropped when they come again unchanged.
            row_order: `"asc"` where the source sorts by the cursor field: the position follows the rows. Otherwise it
                moves when the stream is finished. `"desc"`: newest first; reading ends at what is known.
            range_start: whether the source's answer has rows at `start_value` (`"closed"`) or only after it.
            on_cursor_value_missing: what to do with a row that has no cursor value.
            timezone: whose clock naive times and dates are: a tzinfo, or a name such as `"Europe/Berlin"`.
            oldest_available: what the source reaches back to.
            max_seen: how many boundary rows are remembered at most.

        Raises:
            CursorExpired: the stored position is before `oldest_available`.
            CorruptState: what is stored is no cursor.
            ValueError, TypeError: the arguments, or what is stored, do not fit together.

        """
        from checkpoint.incremental import Incremental, Options  # noqa: PLC0415 - a job without streams needs it not

        _check_key(key)
        options = Options(
            cursor_field, initial_value, end_value, lookback, primary_key, row_order, range_start,
            on_cursor_value_missing, timezone, oldest_available, max_seen,
        )  # fmt: skip
        with self._open():
            value = self._value(key)
            stream: Incremental[Any] = Incremental(key, options, self._decode(key, value), self._stops)
            if earlier := self._live().get(key):
                earlier.detach()
            if key in self._draft:
                self._draft[key] = value  # no longer to be changed in place
            self._streams[key] = stream
            return stream

    def _live(self) -> dict[str, Incremental[Any]]:
        """Return the streams that commits claim, by the keys they hold."""
        return {key: stream for key, stream in self._streams.items() if stream.live}

    def _check_free(self, key: str) -> None:
        if key in self._live():
            raise ValueError(f"{key!r} is held by a live stream, which sets it: open it again after it, or rewind it")

    # Committing

    def commit(self, *only: str | Incremental[Any]) -> Commit:
        """Claim what changed, and flush it: once this returns, the store has it.

        Call it when the rows behind the cursors are safe in their sink: all that streams have handed out is then said
        to be delivered. What has not changed is not sent; where nothing has, there is no request. A commit is a
        snapshot taken at the call.

        Args:
            only: the keys or streams to commit; none: all of them.

        Raises:
            TypeError, ValueError: a cursor changed in place is none any more; nothing was sent.
            Conflict: another writer changed a key (see there).
            PartialCommit: some keys landed, others did not (HTTP only).
            CommitUnknown: nobody could tell whether it landed; commit again.
            StoreError: the store refused or failed.

        """
        keys = self._begin_commit(only)
        return Commit() if keys is None else self._flush(keys)

    def commit_soon(self, *only: str | Incremental[Any]) -> None:
        """Claim what changed and return at once; the run's worker thread flushes it.

        Snapshots that wait are coalesced: the newest of a key is the one that is sent. A failure raises at the next
        `commit`, `commit_soon`, `flush` or exit.

        Raises:
            As `commit`, for an earlier background flush.

        """
        with self._open():
            self._raise_failure()
            self._claim(self._keys_of(only))
            if self._claimed and not self._soon and self._due():
                self._soon = True
                self._worker.submit(self._flush_soon)

    def flush(self) -> None:
        """Wait until everything claimed so far is stored, what was held back or had failed included.

        Raises:
            As `commit`.

        """
        with self._open():
            self._raise_failure()
            keys = frozenset(self._claimed)
        self._flush(keys)
        self._raise_failure()

    def discard(self) -> None:
        """Drop what was set and not committed; after a `Conflict`, adopt what was found.

        What `commit_soon` or `min_interval` still hold stays claimed. Streams go back to what the mapping then says,
        as if they were opened again.
        """
        with self._open():
            self._draft.clear()
            self._spelled.clear()
            for key in self._failed:
                self._claimed.pop(key, None)
            self._failed.clear()
            self._know(self._found)
            self._found.clear()
            self._take_back()

    def _take_back(self) -> None:
        for key, stream in self._live().items():
            stream.back(self._decode(key, self._value(key)))

    def reload(self) -> None:
        """Discard, and list the namespace again.

        A key claimed and not yet flushed keeps the base it was claimed on, so that a foreign change to it is still a
        `Conflict` and not overwritten.
        """
        with self._open():
            store = self._opened()
        with self._flushing:
            loaded = store.load(self.state_key)
            with self._lock:
                self.discard()
                waiting = {key: self._known.get(key) for key in self._claimed}
                self._known = loaded
                self._know(waiting)
                self._doubtful.intersection_update(waiting)
                self._take_back()

    def _begin_commit(self, only: tuple[str | Incremental[Any], ...]) -> frozenset[str] | None:
        """Claim, and return the keys to flush; None where they are held back."""
        with self._open():
            self._raise_failure()
            keys = self._keys_of(only)
            self._claim(keys)
            return frozenset(keys or self._claimed) if self._due() else None

    def _keys_of(self, only: tuple[str | Incremental[Any], ...]) -> tuple[str, ...]:
        for one in only:
            if not isinstance(one, str) and self._live().get(one.key) is not one:
                raise ValueError(f"{one!r} is not a live stream of this run")
        return tuple(one if isinstance(one, str) else one.key for one in only)

    # Layers

    def _claim(self, only: Collection[str]) -> None:
        """Take the differences of the drafts, all or none, down into `_claimed`."""
        with self._lock:
            streams = {key: stream for key, stream in self._live().items() if not only or key in only}
            drafts = {key: self._draft[key] for key in only or self._draft if key in self._draft and key not in streams}
            drafts.update((key, self._claim_of(stream)) for key, stream in streams.items())
            differences: Changes = {}
            for key, draft in drafts.items():
                if self._differs(key, draft):
                    differences[key] = draft if not isinstance(draft, dict) else self._value(key)
            self._claimed.update(differences)
            self._failed.difference_update(only or list(self._claimed))
            for key, stream in streams.items():
                stream.claimed()
                self._draft.pop(key, None)
            for key in differences:
                self._spelled.pop(key, None)
                if not isinstance(self._draft.get(key, {}), dict):
                    del self._draft[key]

    def _differs(self, key: str, draft: Cursor | str | None) -> bool:
        """Tell whether a draft would change the layers below it."""
        below = self._below(key)
        if not isinstance(draft, dict):
            return draft != below or key in self._doubtful
        return below is None or key in self._spelled or not codec.same(_encoded(draft), below)

    def _claim_of(self, stream: Incremental[Any]) -> str | None:
        """Return what a stream's key is to hold; where that is no change, as it is spelled."""
        cursor, below = stream.claim(), self._below(stream.key)
        if cursor is None:
            return None
        value = codec.encode(cursor)
        return below if below is not None and codec.same(value, below) else value

    def _decode(self, key: str, value: str | None) -> Any:
        """Return the cursor in a value, None for None."""
        try:
            return None if value is None else codec.decode(value)
        except ValueError as reason:
            raise CorruptState(self.state_key, key, value or "") from reason

    def _value(self, key: object) -> str | None:
        """Return the value of a key as the job sees it, None where it is absent, reserved or deleted."""
        if not isinstance(key, str) or key.startswith(RESERVED):
            return None
        below = self._below(key)
        if key not in self._draft:
            return below
        draft = self._draft[key]
        if not isinstance(draft, dict):
            return draft
        value = codec.encode(draft)
        spelled = self._spelled.get(key, below)
        return spelled if spelled is not None and codec.same(value, spelled) else value

    def _below(self, key: str) -> str | None:
        if key in self._claimed:
            return self._claimed[key]
        return _value_of(self._known.get(key))

    def _keys(self) -> dict[str, None]:
        with self._open():
            keys = dict.fromkeys(self._known)
            for layer in (self._claimed, self._draft):
                for key, value in layer.items():
                    if value is None:
                        keys.pop(key, None)
                    else:
                        keys[key] = None
            return {key: None for key in keys if not key.startswith(RESERVED)}

    def _know(self, entries: Mapping[str, Entry | None]) -> None:
        for key, entry in entries.items():
            if entry is None:
                self._known.pop(key, None)
            else:
                self._known[key] = entry

    # Flushing

    def _flush(self, only: frozenset[str] | None = None) -> Commit:
        """Send these claimed keys; None: all but those whose last flush failed."""
        with self._flushing:
            with self._lock:
                store = self._opened()
                batch = {
                    key: value
                    for key, value in self._claimed.items()
                    if (key in only if only is not None else key not in self._failed)
                }
                for key in [key for key, value in batch.items() if self._holds(key, value)]:
                    del batch[key], self._claimed[key]  # taken back before it was ever sent
                    self._failed.discard(key)
                base = {key: self._known.get(key) for key in batch} if self._on_conflict == "raise" else {}
                due_at = self._claimed_at
            if not batch:
                return Commit()
            started, keys = time.monotonic(), tuple(batch)
            requests, retries = self._send(store, batch, base)
            self._flushed_at = due_at
            commit = Commit(keys, requests, retries, time.monotonic() - started)
            logger.debug(
                "%r: committed %d keys, %d requests, %d retries, %.3f s",
                self.state_key, len(keys), requests, retries, commit.seconds,
            )  # fmt: skip
            return commit

    def _send(self, store: Store, batch: Changes, base: dict[str, Entry | None]) -> tuple[int, int]:
        """Commit a batch, taking own writes that landed late for what they are; return requests and retries."""
        rounds = LATE_WRITES + len(batch)
        while True:
            rounds -= 1
            try:
                receipt = store.commit(self.state_key, batch, base, run_id=self._run_id)
            except CheckpointError as error:
                with self._lock:
                    self._unsettle({key: batch[key] for key in error.unsettled})
                    self._settle(batch, error.committed)
                    batch = {key: value for key, value in batch.items() if key not in error.committed}
                    conflicts = self._blame(batch, error)
                    if conflicts is not None and rounds:
                        self._know(conflicts)
                        base = {key: conflicts.get(key, base[key]) for key in batch}
                        continue
                    self._failed.update(key for key, value in batch.items() if self._claimed.get(key, "") == value)
                raise
            except BaseException:
                with self._lock:  # interrupted half-way: any of it may have landed
                    self._failed.update(batch)
                    self._unsettle(batch)
                    self._doubtful.update(batch)
                raise
            with self._lock:
                self._unsettle({key: batch[key] for key in receipt.unsettled})
                self._settle(batch, {key: receipt.entries.get(key) for key in batch})
            return receipt.requests, receipt.retries

    def _settle(self, batch: Changes, landed: Mapping[str, Entry | None]) -> None:
        """Move keys that the store confirmed from `_claimed` to `_known`, unless a newer claim is waiting."""
        self._know(landed)
        for key in landed:
            self._found.pop(key, None)
            self._doubtful.discard(key)
            if key in self._claimed and self._claimed[key] == batch[key]:
                del self._claimed[key]
                self._failed.discard(key)

    def _blame(self, batch: Changes, error: CheckpointError) -> dict[str, Entry | None] | None:
        """Remember what an error found and what it leaves open.

        Return what was found where the error is nothing but own writes that landed late, None where there is more.
        """
        errors = error.errors if isinstance(error, PartialCommit) else dict.fromkeys(batch, error)
        conflicts = {one.key: one.found for one in errors.values() if isinstance(one, Conflict)}
        if all(isinstance(one, Conflict) for one in errors.values()) and all(
            _value_of(found) in self._unsettled.get(key, ()) for key, found in conflicts.items()
        ):
            return conflicts
        self._found.update(conflicts)
        # What a store says of a failure it has no name for leaves open whether anything was written.
        doubtful = {key: batch[key] for key, one in errors.items() if type(one) in {StoreError, CommitUnknown}}
        self._unsettle(doubtful)
        self._doubtful.update(key for key in batch if key in doubtful or key in error.unsettled)
        return None

    def _unsettle(self, batch: Changes) -> None:
        """Remember values of our own that may have landed, or may yet."""
        for key, value in batch.items():
            self._unsettled.setdefault(key, set()).add(value)

    def _flush_soon(self) -> None:
        with self._lock:
            self._soon = False
        try:
            self._flush()
        except BaseException as error:  # noqa: BLE001 - raised in the job's thread, see commit_soon
            with self._lock:
                if self._failure is None:
                    self._failure = error
                else:
                    add_note(self._failure, f"checkpoint: {self.state_key!r} failed again: {error}")

    def _raise_failure(self) -> None:
        with self._lock:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _due(self) -> bool:
        self._claimed_at = time.monotonic()
        return self._claimed_at - self._flushed_at >= self._min_interval

    def _holds(self, key: str, value: str | None) -> bool:
        return key not in self._doubtful and _value_of(self._known.get(key)) == value

    @contextmanager
    def _open(self) -> Generator[None]:
        """Hold the lock over the layers of a run that is under way."""
        with self._lock:
            if self._phase != "open":
                raise RuntimeError(f"a Checkpointer is used inside its with block; this one is {self._phase}")
            yield

    def _opened(self) -> Store:
        if self._store is None:
            raise RuntimeError("a Checkpointer is used inside its with block")
        return self._store

    def _forked(self) -> None:
        """Start over in a forked child: no lock held by a thread that is gone, nothing queued.

        What the parent has claimed it will send: here it counts as known already.
        """
        self._lock, self._flushing = threading.RLock(), threading.Lock()
        self._restore_signals()
        self._worker = Worker(f"checkpoint {self.state_key}")
        self._soon, self._failure = False, None
        for key, value in self._claimed.items():
            if value is None:
                self._known.pop(key, None)
            else:
                self._known[key] = self._known.get(key, Entry(key, value))._replace(value=value)
        self._claimed.clear()
        self._failed.clear()


class _Raw(MutableMapping[str, str]):
    """The value strings of a Checkpointer's namespace."""

    def __init__(self, cp: Checkpointer) -> None:
        self._cp = cp

    def __getitem__(self, key: str) -> str:
        with self._cp._open():
            value = self._cp._value(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: str) -> None:
        _check_key(key)
        check_changes(self._cp.state_key, {key: value})
        with self._cp._open():
            self._cp._check_free(key)
            self._cp._draft[key] = value

    def __delitem__(self, key: str) -> None:
        del self._cp[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cp)

    def __len__(self) -> int:
        return len(self._cp)

    def clear(self) -> None:
        self._cp.clear()


def add_note(error: BaseException, note: str) -> None:
    """Tell of a second failure beside the error that goes on (PEP 678), and in the log for what shows no notes."""
    logger.error(note)
    error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined,unused-ignore]


def _check_key(key: str) -> None:
    check_name("key", key)
    if key.startswith(RESERVED):
        raise ValueError(f"keys beginning with {RESERVED} are reserved: {key!r}")


def _encoded(cursor: Cursor) -> str:
    """Return the value of a cursor, and of one that was spoilt in place a value that equals no other."""
    try:
        return codec.encode(cursor)
    except (TypeError, ValueError):
        return ""


def _value_of(entry: Entry | None) -> str | None:
    return entry.value if entry is not None else None


# Runs under way, so that a fork finds them. By identity: a mapping has no hash.
_entered: weakref.WeakValueDictionary[int, Checkpointer] = weakref.WeakValueDictionary()


def _after_fork() -> None:
    for cp in list(_entered.values()):
        cp._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
