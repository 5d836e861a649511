"""One run over one namespace: load its cursors, change them, commit what changed.

A key is held in up to three layers, the upper hiding the lower; the lower two are the `Ledger`'s:

    draft    what the job has read as a dict, set or deleted; live, and nobody's business yet
    claimed  snapshots that the job said are safe, on their way to the store
    known    the entries as the store is known to hold them

Claiming takes the differences of the drafts down into `claimed`; a flush takes `claimed` to the store and, once it is
confirmed there, into `known`. The draft of a key that a live stream or group holds is made by it, when it is claimed.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from checkpoint import codec
from checkpoint.codec import Cursor
from checkpoint.errors import CheckpointError, CorruptState, StateMissing
from checkpoint.run.groups import MAX_SHARDS, Group, shards_of, steps
from checkpoint.run.ledger import Changes, Ledger
from checkpoint.run.ledger import Commit as Commit  # noqa: PLC0414 - its public home is here
from checkpoint.run.worker import Worker
from checkpoint.stores import open_store, shown
from checkpoint.stores.base import KeepsHistory, Store, Warms, check_changes, check_name, joined

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from datetime import timedelta, tzinfo
    from decimal import Decimal
    from types import TracebackType
    from typing import TypeGuard

    from typing_extensions import Self

    from checkpoint.entries import Change, Entry
    from checkpoint.streams.incremental import Incremental

logger = logging.getLogger("checkpoint")

LARGE = 1_000_000
"""Characters of a stored value from which on a warning is logged: 1 MB."""

RESERVED = "__"
"""What the keys begin with that are not the job's."""


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
        exclusive: one run at a time: `Locked` where another run holds the namespace, `LeaseLost` at a commit where one
            took it over after this one was silent for 15 s. Advisory on the HTTP API, which cannot refuse a write.
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
        exclusive: bool = False,
        min_interval: float = 0.0,
        stop_signals: Iterable[int] = (),
        run_id: str | None = None,
    ) -> None:
        check_name("state_key", state_key)
        if not (store is None or isinstance(store, (str, Store))):
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
        self._missing = missing
        self._exclusive = exclusive
        self._min_interval = min_interval
        self._stop_signals = tuple(dict.fromkeys(signal.Signals(number) for number in stop_signals))
        self._run_id = run_id
        self._stops: list[int] = []  # signals that came; streams look at it too
        self._handlers: dict[int, Any] = {}
        self._taken = ExitStack()  # what entering took, and leaving lets go
        self._ledger = Ledger(state_key, overwrite=on_conflict == "overwrite", run_id=run_id, steps=self._steps)
        self._phase: Literal["new", "open", "closed"] = "new"

        self._streams: dict[str, Incremental[Any]] = {}  # by the key they hold; some are detached by now
        self._groups: dict[str, Group] = {}  # likewise, by name
        self._layouts: dict[str, int] = {}  # in how many shards each group was last claimed, whatever it is opened in
        self._held: frozenset[str] = frozenset()  # keys of commits that came too soon, which go out with the next
        self._draft: dict[str, Cursor | str | None] = {}  # a dict that was read and is live, a value set, None: deleted
        self._spelled: dict[str, str] = {}  # the values that drafts which were set, and then read, were set to

        self._warm: Callable[[int], None] = lambda _keys: None
        self._worker = Worker(f"checkpoint {state_key}")
        self._soon = False  # a background flush is queued and has not begun
        self._failure: BaseException | None = None  # of a background flush, not yet raised
        if joined(store) is not None and (exclusive or min_interval):
            raise ValueError("with connection= the caller's transaction commits: no exclusive, no min_interval")

    def __repr__(self) -> str:
        store = self._ledger.store
        given = shown(self._given) if isinstance(self._given, str) else self._given
        return f"Checkpointer({self.state_key!r}, {store if store is not None else given!r})"

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
            self._worker.stop()  # what it failed with it may tell a moment after its flush has ended
            self._tell_failure(exc)
        except BaseException as error:
            self._worker.stop()
            self._tell_failure(error)
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
        started = time.monotonic()
        store = self._given if isinstance(self._given, Store) else open_store(self._given)
        self._ledger.open(store)
        if store is not self._given:
            self._taken.callback(store.close)
        if self._exclusive:
            from checkpoint.run.lease import Lease  # most runs need none

            lease = self._ledger.lease = Lease(store, self.state_key, self._run_id)
            self._taken.callback(lease.release)
            lease.acquire()
        if isinstance(store, Warms):
            self._warm = store.warm
        self._ledger.known = store.load(self.state_key)
        if self._missing == "raise" and not len(self):
            raise StateMissing(self.state_key, repr(store))
        if logger.isEnabledFor(logging.INFO):  # counting takes time where there are many
            seconds = time.monotonic() - started
            logger.info("%r: loaded keys=%d seconds=%.3f store=%r", self.state_key, len(self), seconds, store)

    def _leave(self, error: BaseException | None) -> None:
        """Send what is to be sent at the end of the block; `error` is what ended it, None for a clean end."""
        if error is None:
            try:
                with self._ledger.lock:
                    for stream in self._live_streams():
                        stream.leave()
                    self._ledger.refresh()
                    self._claim(self._scope(()))
                    self._phase = "closed"
                    self._need_transaction(self._ledger.claimed)
            except (TypeError, ValueError, RuntimeError, CheckpointError) as refused:
                self._leave(refused)  # what was claimed before is still safe to say
                raise
            self._ledger.flush(frozenset(self._ledger.claimed))
            return
        self._phase = "closed"
        for stream in self._live_streams():
            stream.detach()
        try:
            if self._ledger.joined is None:
                self._ledger.flush()
        except Exception as failure:  # noqa: BLE001 - the block's own error goes on, with this one told beside it
            add_note(error, f"checkpoint: {self.state_key!r} was not committed either: {failure}")

    def _tell_failure(self, error: BaseException | None) -> None:
        """Tell of a background failure that nobody has seen yet, beside the error that goes on; None: raise it."""
        if error is None:
            self._raise_failure()
            return
        with self._ledger.lock:
            failure, self._failure = self._failure, None
        if failure is not None and failure is not error:
            add_note(error, f"checkpoint: {self.state_key!r} was not committed either: {failure}")

    def _end(self) -> None:
        """Let go of everything that entering took."""
        with ExitStack() as ending:  # each of them, whatever the others raise
            ending.callback(self._restore_signals)
            ending.callback(_entered.pop, id(self), None)
            ending.callback(self._taken.close)
            ending.callback(self._worker.stop)
            self._phase = "closed"
            for group in self._groups.values():
                group.detach()

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
            value = self._value(key) if self._shows(key) else None
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
        self._warn_of_size(key, value)
        with self._open():
            self._check_free(key)
            self._spelled.pop(key, None)
            below = self._ledger.below(key)
            certain = not (self._ledger.doubts(key) or self._ledger.may_be_undone(key))
            if below is not None and certain and codec.same(value, below):
                self._draft.pop(key, None)
            else:
                self._draft[key] = value
                self._warm(len(self._draft))

    def __delitem__(self, key: str) -> None:
        with self._open():
            if key not in self:
                raise KeyError(key)
            self._check_free(key)
            self._spelled.pop(key, None)
            self._draft[key] = None

    def __contains__(self, key: object) -> bool:
        with self._open():
            if not self._shows(key):
                return False
            return (self._draft[key] if key in self._draft else self._ledger.below(key)) is not None

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
            keys = list(self)
            for key in keys:
                self._check_free(key)
            for key in keys:
                del self[key]

    @property
    def raw(self) -> MutableMapping[str, str]:
        """The same namespace as value strings: for entries that are not cursors, such as a sync job's placeholders."""
        return _Raw(self)

    def entry(self, key: str) -> Entry | None:
        """Return the entry of a key as the store is known to hold it, None where it holds none."""
        with self._open():
            return self._ledger.known.get(key)

    @property
    def changed(self) -> set[str]:
        """The keys that were set, changed or deleted, and are not flushed; of a group, its name."""
        with self._open():
            groups = self._live_groups()
            keys = {*self._ledger.claimed, *(key for key, draft in self._draft.items() if self._differs(key, draft))}
            named = {next((group.name for group in groups if group.owns(key)), key) for key in keys}
            return named.union(group.name for group in groups if group.changed())

    def history(self, key: str | None = None, *, limit: int | None = None) -> list[Change]:
        """Return what the latest commits changed, newest first: of one key, or of all; at most `limit` changes.

        Raises:
            TypeError: the store keeps no history.
            StoreError: the store refused or failed.

        """
        with self._open():
            store = self._ledger.opened
        if not isinstance(store, KeepsHistory):
            raise TypeError(f"{store!r} keeps no history")
        return store.history(self.state_key, key, limit=limit)

    def restore(self, key: str, version: int) -> Commit:
        """Commit to a key the value that the commit of this version gave it; what was since stays in the history.

        Raises:
            ValueError: the history has no such commit of the key, or a stream or group holds it.
            As `history` and `commit`.

        """
        with self._open():
            self._check_free(key)
        changes = {change.version: change for change in self.history(key)}
        if version not in changes:
            kept = ", ".join(map(str, changes)) or "none"
            raise ValueError(f"the history of {key!r} has no version {version}; it has {kept}")
        value = changes[version].after
        if value is not None:
            self.raw[key] = value
        elif key in self:
            del self[key]
        return self.commit(key)

    # Groups

    def group(self, name: str, shards: int = 1) -> Group:
        """Open the group whose members are stored together under `name`; see `checkpoint.run.groups.Group`.

        One that is stored in another number of shards is moved by the next commit. Opening it again detaches the
        earlier one.

        Args:
            name: the key of its entry, and with several shards the beginning of their keys.
            shards: over how many entries the members are spread: a commit writes those that changed.

        Raises:
            CorruptState: some of its entries are missing.
            TypeError, ValueError: the arguments.

        """
        _check_key(name)
        if not isinstance(shards, int) or isinstance(shards, bool):
            raise TypeError(f"shards must be an int, not {type(shards).__name__}")
        if not 1 <= shards <= MAX_SHARDS:
            raise ValueError(f"shards must be from 1 to {MAX_SHARDS}, not {shards}")
        with self._open():
            for other in self._live_groups():
                if other.name != name and (other.owns(name) or shards_of(name, other.name)):
                    raise ValueError(f"{name!r} would share entries with the group {other.name!r}: name it otherwise")
            group = Group(self.state_key, name, shards, self._stored_of(name), key_by_key=not self._ledger.atomic)
            if earlier := self._groups.get(name):
                earlier.detach()
            for key, stream in self._live().items():
                if group.owns(key):
                    stream.detach()
            for key in [key for key in self._draft if group.owns(key)]:
                del self._draft[key]
                self._spelled.pop(key, None)
            self._groups[name] = group
            return group

    def _stored_of(self, name: str) -> dict[str, str]:
        """Return the values of a group's entries, of whatever layout, as the job sees them."""
        keys = dict.fromkeys((*self._ledger.known, *self._ledger.claimed, *self._draft))  # in one order, as members are
        values = {key: self._value(key) for key in keys if shards_of(name, key)}
        return {key: value for key, value in values.items() if value is not None}

    def _group_of(self, group: Group | str) -> Group:
        """Return the live group that a stream is opened in; one not opened yet has the shards it is stored in."""
        name = group if isinstance(group, str) else group.name
        live = next((one for one in self._live_groups() if one.name == name), None)
        if isinstance(group, Group) and live is not group:
            raise ValueError(f"{group!r} is not a live group of this run")
        if live is not None:
            return live
        return self.group(name, max((shards_of(name, key) for key in self._stored_of(name)), default=1))

    def _live_groups(self) -> list[Group]:
        return [group for group in self._groups.values() if group.live]

    def _steps(self, batch: Changes) -> Iterable[Changes]:
        """Cut a batch into what must land one after the other, where a store writes key by key."""
        return steps(self.state_key, batch, self._ledger.known, self._layouts, self._ledger.doubts)

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
        group: Group | str | None = None,
    ) -> Incremental[Any]:
        """Open the stream whose cursor is stored under `key`; see `checkpoint.streams.incremental.Incremental`.

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
            group: the group, or its name, that keeps the cursor as its member `key`; None: it is a key of its own.

        Raises:
            CursorExpired: the stored position is before `oldest_available`.
            CorruptState: what is stored is no cursor.
            ValueError, TypeError: the arguments, or what is stored, do not fit together.

        """
        from checkpoint.streams.incremental import Incremental  # a job without streams needs it not
        from checkpoint.streams.options import Options

        options = Options(
            cursor_field, initial_value, end_value, lookback, primary_key, row_order, range_start,
            on_cursor_value_missing, timezone, oldest_available, max_seen,
        )  # fmt: skip
        with self._open():
            if group is not None:
                owner = self._group_of(group)
                member: Incremental[Any] = Incremental(key, options, owner.cursor(key), self._stops)
                owner.hold(member)
                return member
            _check_key(key)
            self._check_ungrouped(key)
            value = self._value(key)
            stream: Incremental[Any] = Incremental(key, options, self._decode(key, value), self._stops)
            if earlier := self._live().get(key):
                earlier.detach()
            if key in self._draft:
                self._draft[key] = value  # no longer to be changed in place
            self._streams[key] = stream
            self._warm(len(self._streams))
            return stream

    def _live(self) -> dict[str, Incremental[Any]]:
        """Return the streams that commits claim, by the keys they hold."""
        return {key: stream for key, stream in self._streams.items() if stream.live}

    def _live_streams(self) -> list[Incremental[Any]]:
        """Return the live streams, those that hold members of groups too."""
        return [*self._live().values(), *(stream for group in self._live_groups() for stream in group.streams())]

    def _check_free(self, key: str) -> None:
        self._check_ungrouped(key)
        if key in self._live():
            raise ValueError(f"{key!r} is held by a live stream, which sets it: open it again after it, or rewind it")

    def _check_ungrouped(self, key: str) -> None:
        for group in self._live_groups():
            if group.owns(key):
                raise ValueError(f"{key!r} holds the group {group.name!r}: set its members")

    # Committing

    def commit(self, *only: str | Incremental[Any] | Group) -> Commit:
        """Claim what changed, and flush it: once this returns, the store has it.

        Call it when the rows behind the cursors are safe in their sink: all that streams have handed out is then said
        to be delivered. What has not changed is not sent; where nothing has, there is no request. A commit is a
        snapshot taken at the call.

        Args:
            only: the keys, streams or groups to commit; none: all of them.

        Raises:
            TypeError, ValueError: a cursor changed in place is none any more; nothing was sent.
            Conflict: another writer changed a key (see there).
            PartialCommit: some keys landed, others did not (HTTP only).
            CommitUnknown: nobody could tell whether it landed; commit again.
            StoreError: the store refused or failed.

        """
        keys = self._begin_commit(only)
        return Commit() if keys is None else self._ledger.flush(keys)

    def commit_soon(self, *only: str | Incremental[Any] | Group) -> None:
        """Claim what changed and return at once; the run's worker thread flushes it.

        Snapshots that wait are coalesced: the newest of a key is the one that is sent. A failure raises at the next
        `commit`, `commit_soon`, `flush` or exit.

        Raises:
            As `commit`, for an earlier background flush.

        """
        with self._open():
            self._raise_failure()
            if self._ledger.joined is not None:
                raise ValueError("with connection= a commit belongs to the open transaction: use commit()")
            self._claim(self._scope(only))
            if self._ledger.claimed and not self._soon and self._due():
                self._soon = True
                self._worker.submit(self._flush_soon)

    def flush(self) -> None:
        """Wait until everything claimed so far is stored, what was held back or had failed included.

        Raises:
            As `commit`.

        """
        with self._open():
            self._raise_failure()
            keys = frozenset(self._ledger.claimed)
            self._need_transaction(keys)
        self._ledger.flush(keys)
        self._raise_failure()

    def discard(self) -> None:
        """Drop what was set and not committed; after a `Conflict`, adopt what was found.

        What `commit_soon` or `min_interval` still hold stays claimed. Groups and streams go back to what the mapping
        then says, as if they were opened again. With `connection=` the namespace is read again, for the transaction
        may have been rolled back.

        Raises:
            CorruptState: what is stored for a stream is no cursor any more; the others went back.

        """
        with self._open():
            self._drop()
            if self._ledger.joined is not None:
                self._ledger.adopt(self._ledger.opened.load(self.state_key))
            self._take_back()

    def _drop(self) -> None:
        self._draft.clear()
        self._spelled.clear()
        self._ledger.discard()

    def _take_back(self) -> None:
        """Let groups and streams go back, all of them; one that cannot is detached, and told of at the end."""
        failure: Exception | None = None
        holders: list[Group | Incremental[Any]] = [*self._live_groups(), *self._live().values()]
        for one in holders:
            try:
                if isinstance(one, Group):
                    one.back(self._stored_of(one.name))
                else:
                    one.back(self._decode(one.key, self._value(one.key)))
            except (CheckpointError, TypeError, ValueError) as error:  # noqa: PERF203 - the others go back all the same
                if not isinstance(one, Group):  # which says itself how much of it cannot go on
                    one.detach()
                failure = failure or error
        if failure is not None:
            raise failure

    def reload(self) -> None:
        """Discard, and list the namespace again.

        A key claimed and not yet flushed keeps the base it was claimed on, so that a foreign change to it is still a
        `Conflict` and not overwritten.
        """
        with self._open():
            store = self._ledger.opened
        with self._ledger.flushing:
            loaded = store.load(self.state_key)
            with self._ledger.lock:
                self._drop()
                self._ledger.adopt(loaded)
                self._take_back()

    def _begin_commit(self, only: tuple[str | Incremental[Any] | Group, ...]) -> frozenset[str] | None:
        """Claim, and return the keys to flush; None where they are held back."""
        with self._open():
            self._raise_failure()
            scope = self._scope(only)
            self._ledger.refresh()
            keys = self._claim(scope)
            self._need_transaction(keys)
            self._held |= keys
            if not self._due():
                return None
            keys, self._held = self._held, frozenset()
            return keys

    def _need_transaction(self, keys: Iterable[str]) -> None:
        """Refuse to flush keys into a transaction that the caller has not begun."""
        joined = self._ledger.joined
        claimed = sorted(key for key in keys if key in self._ledger.claimed)
        if joined is not None and claimed and not joined.in_transaction:
            self._ledger.fail(claimed)
            raise RuntimeError(
                f"no transaction is open on the connection, so {', '.join(map(repr, claimed))} cannot be committed: "
                "begin one, write the rows and call commit() in it"
            )

    def _scope(self, only: tuple[str | Incremental[Any] | Group, ...]) -> _Scope:
        """Return what a commit is asked for: the keys, and of which groups which members."""
        if not only:
            return _Scope(None, {group.name: None for group in self._live_groups()})
        keys: set[str] = set()
        groups: dict[str, set[str] | None] = {}
        for one in only:
            if isinstance(one, str):
                if any(group.name == one for group in self._live_groups()):
                    groups[one] = None
                else:
                    self._check_no_member(one)
                    keys.add(one)
            elif isinstance(one, Group):
                if not any(group is one for group in self._live_groups()):
                    raise ValueError(f"{one!r} is not a live group of this run")
                groups[one.name] = None
            elif one in self._live().values():
                keys.add(one.key)
            else:
                owner = next((group for group in self._live_groups() if one in group.streams()), None)
                if owner is None:
                    raise ValueError(f"{one!r} is no key, and not a live stream of this run")
                members = groups.setdefault(owner.name, set())
                if members is not None:
                    members.add(one.key)
        return _Scope(keys, groups)

    def _check_no_member(self, key: str) -> None:
        """Refuse to commit by its name what only a group has, for the mapping has no such key to send."""
        if key in self or key in self._live() or key in self._ledger.known or key in self._draft:
            return
        for group in self._live_groups():
            if any(stream.key == key for stream in group.streams()):
                raise ValueError(f"{key!r} is a member of the group {group.name!r}: commit the stream, or the group")

    # Layers

    def _claim(self, scope: _Scope) -> frozenset[str]:
        """Take the differences of the drafts, all or none, down to the claimed; return the scope's claimed keys."""
        ledger = self._ledger
        with ledger.lock:
            groups = [(self._groups[name], members) for name, members in scope.groups.items()]
            streams = {key: one for key, one in self._live().items() if scope.keys is None or key in scope.keys}
            drafts = self._drafts(scope, streams, groups)
            differences: Changes = {}
            for key, draft in drafts.items():
                if self._differs(key, draft):
                    differences[key] = draft if not isinstance(draft, dict) else self._value(key)
            mine = (
                None
                if scope.keys is None
                else scope.keys.union(
                    key for group, _ in groups for key in (*ledger.claimed, *differences) if group.owns(key)
                )
            )
            ledger.claim(differences, mine)
            for name in [name for name in self._layouts if any(shards_of(name, key) for key in differences)]:
                del self._layouts[name]  # set through the mapping, they are no group's
            for group, _ in groups:
                group.claimed()
                self._layouts[group.name] = group.shards
            for key, stream in streams.items():
                stream.claimed()
                self._draft.pop(key, None)
            for key, value in differences.items():
                self._spelled.pop(key, None)
                if not isinstance(self._draft.get(key, {}), dict):
                    del self._draft[key]
                elif key not in self._draft and key not in streams and value is not None:
                    self._warn_of_size(key, value)
            return frozenset(ledger.claimed if mine is None else mine)

    def _drafts(
        self, scope: _Scope, streams: dict[str, Incremental[Any]], groups: list[tuple[Group, set[str] | None]]
    ) -> dict[str, Cursor | str | None]:
        """Return what a scope's keys are to hold, as the job, its streams and its groups say."""
        asked = self._draft if scope.keys is None else scope.keys
        drafts = {key: self._draft[key] for key in asked if key in self._draft and key not in streams}
        claims: Changes = {key: self._claim_of(stream) for key, stream in streams.items()}
        for group, members in groups:
            entries = group.claim(members)
            drafts.update(entries)
            if group.streams():
                claims.update(entries)
        self._check_undone(claims)
        drafts.update(claims)
        return drafts

    def _check_undone(self, claims: Changes) -> None:
        """Refuse what streams claim on top of rows that the caller rolled back; the same rows may go in again."""
        for key, value in claims.items():
            undone = self._ledger.undone.get(key, value)
            if undone != value and (undone is None or value is None or not codec.same(undone, value)):
                raise RuntimeError(
                    f"the transaction that {key!r} was last committed in was rolled back, and its rows with it: call "
                    "discard(), and ask the source again from start_value"
                )

    def _differs(self, key: str, draft: Cursor | str | None) -> bool:
        """Tell whether a draft would change the layers below it."""
        below = self._ledger.below(key)
        if not isinstance(draft, dict):
            return draft != below or self._ledger.doubts(key)
        return below is None or key in self._spelled or not codec.same(_encoded(draft), below)

    def _claim_of(self, stream: Incremental[Any]) -> str | None:
        """Return what a stream's key is to hold; where that is no change, as it is spelled."""
        cursor, below = stream.claim(), self._ledger.below(stream.key)
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

    def _shows(self, key: object) -> TypeGuard[str]:
        """Tell whether a key is the mapping's: no reserved one, and no group's."""
        if not isinstance(key, str) or key.startswith(RESERVED):
            return False
        return not any(group.owns(key) for group in self._live_groups())

    def _value(self, key: str) -> str | None:
        """Return the value of a key as the job sees it, None where it is absent or deleted."""
        below = self._ledger.below(key)
        if key not in self._draft:
            return below
        draft = self._draft[key]
        if not isinstance(draft, dict):
            return draft
        value = codec.encode(draft)
        spelled = self._spelled.get(key, below)
        return spelled if spelled is not None and codec.same(value, spelled) else value

    def _keys(self) -> list[str]:
        with self._open():
            keys = dict.fromkeys(self._ledger.known)
            for layer in (self._ledger.claimed, self._draft):
                for key, value in layer.items():
                    if value is None:
                        keys.pop(key, None)
                    else:
                        keys[key] = None
            if self._live_groups():
                return [key for key in keys if self._shows(key)]
            return [key for key in keys if not key.startswith(RESERVED)]

    # Flushing in the background

    def _flush_soon(self) -> None:
        with self._ledger.lock:
            self._soon = False
        try:
            self._ledger.flush()
        except BaseException as error:  # noqa: BLE001 - raised in the job's thread, see commit_soon
            with self._ledger.lock:
                if self._failure is None:
                    self._failure = error
                else:
                    add_note(self._failure, f"checkpoint: {self.state_key!r} failed again: {error}")

    def _raise_failure(self) -> None:
        with self._ledger.lock:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _due(self) -> bool:
        """Tell whether the last flush is long enough ago; a clock that went back, as tests' do, holds nothing back."""
        self._ledger.claimed_at = time.monotonic()
        return not 0 <= self._ledger.claimed_at - self._ledger.flushed_at < self._min_interval

    def _warn_of_size(self, key: str, value: str) -> None:
        if len(value) >= LARGE:
            logger.warning(
                "%r: the value of %r is %d bytes; a cursor should be small (and a group have more shards)",
                self.state_key, key, len(value),
            )  # fmt: skip

    @contextmanager
    def _open(self) -> Generator[None]:
        """Hold the lock over the layers of a run that is under way."""
        with self._ledger.lock:
            if self._phase != "open":
                raise RuntimeError(f"a Checkpointer is used inside its with block; this one is {self._phase}")
            yield

    def _forked(self) -> None:
        """Start over in a forked child: no lock held by a thread that is gone, nothing queued."""
        self._restore_signals()
        self._worker = Worker(f"checkpoint {self.state_key}")
        self._soon, self._failure = False, None
        self._ledger.forked()
        for group in self._groups.values():
            group.forked()


class _Scope(NamedTuple):
    """What a commit is asked for."""

    keys: set[str] | None
    """Keys, those of streams too; None: all."""
    groups: dict[str, set[str] | None]
    """Groups by name, with the members asked for; None: all of them."""


class _Raw(MutableMapping[str, str]):
    """The value strings of a Checkpointer's namespace."""

    def __init__(self, cp: Checkpointer) -> None:
        self._cp = cp

    def __getitem__(self, key: str) -> str:
        with self._cp._open():
            value = self._cp._value(key) if self._cp._shows(key) else None
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: str) -> None:
        _check_key(key)
        check_changes(self._cp.state_key, {key: value})
        with self._cp._open():
            self._cp._check_free(key)
            self._cp._spelled.pop(key, None)
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
    error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined,unused-ignore]  # Python 3.10 has no add_note


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


# Runs under way, so that a fork finds them. By identity: a mapping has no hash.
_entered: weakref.WeakValueDictionary[int, Checkpointer] = weakref.WeakValueDictionary()


def _after_fork() -> None:
    for cp in list(_entered.values()):
        cp._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
