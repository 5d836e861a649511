"""One run over one namespace: load its cursors, change them, commit what changed.

`Checkpointer` is the public class. The data of a run is in `Layers`, entering and leaving in `Block`, commits in
`Commits`, stop signals in `Stops`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

from checkpoint import codec
from checkpoint.codec import Cursor
from checkpoint.entries import RUN_KEY
from checkpoint.errors import CorruptState, listed
from checkpoint.run.block import Block, Settings
from checkpoint.run.commits import Commits
from checkpoint.run.conflicts import policy
from checkpoint.run.flush import Commit
from checkpoint.run.forms import check_shards
from checkpoint.run.holders import caller
from checkpoint.run.layers import Layers
from checkpoint.run.raw import Values
from checkpoint.run.runs import Run, recorded, run_id_of
from checkpoint.run.stopping import Stops
from checkpoint.stores import complaint_of, shown
from checkpoint.stores.base import KeepsHistory, Store, check_changes, check_name, joined

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta, tzinfo
    from decimal import Decimal
    from types import TracebackType

    from typing_extensions import Self

    from checkpoint.entries import Change, Entry
    from checkpoint.run.conflicts import OnConflict
    from checkpoint.run.groups import Group
    from checkpoint.streams.incremental import Incremental
    from checkpoint.streams.options import Options
    from checkpoint.streams.spellings import CursorFormat

__all__ = ["Checkpointer", "Commit"]

SHOWN = 5
"""How many streams a repr shows."""

P = ParamSpec("P")
T = TypeVar("T")


def inside(method: Callable[Concatenate[Checkpointer, P], T]) -> Callable[Concatenate[Checkpointer, P], T]:
    """Make a method hold the lock of its run's layers, and raise outside the run's block."""

    @wraps(method)
    def call(cp: Checkpointer, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with cp._layers.lock:
            cp._layers.check_open()
            return method(cp, *args, **kwargs)

    return call


class Checkpointer(MutableMapping[str, Cursor]):
    """The cursors of one namespace for the length of one run: a mapping of key → cursor, and a context manager.

        with Checkpointer("sync_job_123") as cp:
            since = cp.get("contacts", {"updated_at": "1970-01-01T00:00:00Z"})["updated_at"]
            for page in api.contacts(updated_since=since):
                sink.write(page)
                cp["contacts"] = {"updated_at": page[-1]["updated_at"]}
                cp.commit()

    Entering loads the namespace; leaving cleanly commits what changed; leaving by an exception sends earlier claims and
    drops the rest. An instance is entered once; several threads may use it.

    Args:
        state_key: the namespace.
        store: a `Store`, the URL of one (see `open_store`), or None: `$CHECKPOINT_STORE`, else a SQLite file in the
            platform's user state folder. A `Store` that you pass stays open.
        on_conflict: `"raise"` a `Conflict` if another writer changed a key meanwhile, or `"overwrite"` it.
        missing: `"raise"` `StateMissing` for a namespace without state, for a job that must not start over; `"new"`
            starts with an empty mapping.
        exclusive: one run at a time: `Locked` if another run holds the namespace, `LeaseLost` at a commit if another
            run took it over because this one did not renew its lease for 15 s, or for this number of seconds. Advisory
            on the HTTP API, which cannot refuse a write.
        min_interval: seconds between two flushes; a commit before that is held back until a later one or exit.
        stop_signals: signals such as SIGTERM that set `stopping` instead of ending the process; a second one raises
            KeyboardInterrupt. Main thread only.
        run_id: recorded with every written entry if the store can; None: `$CHECKPOINT_RUN_ID`, else Airflow's name of
            the task's try, else a random one.
        record_run: record the run at its beginning and end if the store keeps history; see `runs`.

    Raises:
        TypeError, ValueError: the arguments; the mapping, for bad keys and cursors, when they are set.
        RuntimeError: entered twice, or used outside its block.

    """

    def __init__(
        self,
        state_key: str,
        store: Store | str | None = None,
        *,
        on_conflict: OnConflict = "raise",
        missing: Literal["new", "raise"] = "new",
        exclusive: bool | float = False,
        min_interval: float = 0.0,
        stop_signals: Iterable[int] = (),
        run_id: str | None = None,
        record_run: bool = True,
    ) -> None:
        settings = Settings(store, missing, exclusive, record_run, "")
        del store  # a URL may hold a password, and a rendered traceback shows locals
        check_name("state_key", state_key)
        if not (settings.store is None or isinstance(settings.store, (str, Store))):
            kind = type(settings.store).__name__
            raise TypeError(f"store must be a Store, a URL such as 'sqlite:///state.db', or None, not {kind}")
        if missing not in ("new", "raise"):
            raise ValueError(f"missing must be 'new' or 'raise', not {missing!r}")
        if isinstance(min_interval, bool) or not isinstance(min_interval, (int, float)) or not min_interval >= 0:
            raise ValueError(f"min_interval must be seconds, 0 or more, not {min_interval!r}")
        if isinstance(settings.store, str) and (complaint := complaint_of(settings.store)):
            raise ValueError(complaint)
        self.state_key = state_key
        """The namespace of this run."""
        if exclusive is not False:
            from checkpoint.run.lease import check_exclusive  # most runs need none

            check_exclusive(exclusive)
        if joined(settings.store) is not None and (exclusive is not False or min_interval):
            raise ValueError("with connection= the caller's transaction commits: leave out exclusive and min_interval")
        self.run_id: str = run_id_of(run_id)
        """The id of this run, recorded with every written entry if the store can."""
        self._stops = Stops(stop_signals)
        self._layers = Layers(state_key, self.run_id)
        self._commits = Commits(self._layers, policy(on_conflict), min_interval=min_interval, run_id=self.run_id)
        self._block = Block(settings._replace(run_id=self.run_id), self._layers, self._commits, self._stops)

    def __repr__(self) -> str:
        if not hasattr(self, "_block"):
            return "Checkpointer()"  # in the traceback of an error in the arguments
        given = self._block.settings.store
        with self._layers.lock:
            if self._layers.phase != "open":
                where = shown(given) if isinstance(given, str) else repr(given)
                return f"Checkpointer({self.state_key!r}, {where}, {self._layers.phase})"
            keys, streams = self._layers.changed(), self._layers.holders.streams()
            uncommitted = listed(sorted(keys)) if keys else "nothing"
            fed = f", streams: {', '.join(map(repr, streams[:SHOWN]))}" if streams else ""
            return (
                f"Checkpointer({self.state_key!r}, {self._commits.flush.store!r}, {len(self)} keys, "
                f"uncommitted: {uncommitted}{fed}{', …' if len(streams) > SHOWN else ''})"
            )

    @property
    def stopping(self) -> bool:
        """Whether a stop signal came: finish the page in hand, then leave."""
        return bool(self._stops.came)

    # Entering and leaving

    def __enter__(self) -> Self:
        self._enter_once()
        try:
            try:
                self._block.enter()
                self._block.load()
            except BaseException:
                self._block.end()
                raise
        except BaseException:
            self._block.end()  # left over after an interruption
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            try:
                self._block.leave(exc, caller())
            finally:
                self._block.end()
        except BaseException:
            self._block.end()  # left over after an interruption
            raise

    def _enter_once(self) -> None:
        if self._layers.phase != "new":
            raise RuntimeError("a Checkpointer can be entered only once: make a new one for the next run")
        self._layers.phase = "open"

    # The mapping

    @inside
    def __getitem__(self, key: str) -> Cursor:
        if not self._layers.shows(key):
            raise KeyError(key)
        return self._layers.read(key)

    def __setitem__(self, key: str, cursor: Cursor) -> None:
        self._set(key, codec.encode(cursor))

    @inside
    def _set(self, key: str, value: str, *, anyhow: bool = False) -> None:
        self._layers.put(key, value, anyhow=anyhow)

    @inside
    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._layers.check_free(key)
        self._layers.drafts.delete(key)

    @inside
    def __contains__(self, key: object) -> bool:
        return self._layers.shows(key) and self._layers.drafts.has(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    @inside
    def _keys(self) -> list[str]:
        return self._layers.keys()

    @inside
    def setdefault(self, key: str, default: Cursor) -> Cursor:  # pyright: ignore[reportIncompatibleMethodOverride] - None is not a cursor
        """Return the cursor of a key; an absent key is set to `default` first. It may be changed in place."""
        if key not in self:
            self[key] = default
        return self[key]

    @inside
    def clear(self) -> None:
        """Delete every key, without decoding any."""
        for key in (keys := self._layers.keys()):
            self._layers.check_free(key)
        for key in keys:
            self._layers.drafts.delete(key)

    @property
    def raw(self) -> MutableMapping[str, str]:
        """The same namespace as value strings: for entries that are not cursors, such as a sync job's placeholders."""
        return Values(self, self._value, self._set_raw)

    @inside
    def _value(self, key: str) -> str | None:
        return self._layers.drafts.value(key) if self._layers.shows(key) else None

    def _set_raw(self, key: str, value: str) -> None:
        check_changes(self.state_key, {key: value})
        self._set(key, value, anyhow=True)

    @inside
    def entry(self, key: str) -> Entry | None:
        """Return the last known entry of a key in the store, None without one."""
        return self._layers.claims.known.get(key)

    @property
    def changed(self) -> set[str]:
        """The keys with changes that are not flushed; a group counts by its name."""
        return self._changed()

    @inside
    def _changed(self) -> set[str]:
        return self._layers.changed()

    def history(self, key: str | None = None, *, limit: int | None = None) -> list[Change]:
        """Return the latest changes, newest first, of one key or of all; at most `limit`.

        Raises:
            TypeError: the store keeps no history.
            StoreError: the store refused or failed.

        """
        store = self._opened()
        if not isinstance(store, KeepsHistory):
            raise TypeError(f"{store!r} keeps no history")
        return store.history(self.state_key, key, limit=limit)

    def runs(self) -> list[Run]:
        """Return the runs of the namespace in its history, the latest first.

        Raises:
            As `history`.

        """
        return recorded(self.history(RUN_KEY))

    def restore(self, key: str, version: int) -> Commit:
        """Write the value that a key had in this version as a new commit; the history is kept.

        Raises:
            ValueError: the history has no such version of the key, or a stream or group holds it.
            As `history` and `commit`.

        """
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

    def group(self, name: str, shards: int | None = None) -> Group:
        """Open the group of cursors `name`; see `checkpoint.run.groups.Group`.

        Opening it again detaches the earlier one. Its storage layout is fixed when it is created. A group stored by
        version 1 is read, and moved by the first commit that changes it.

        Args:
            name: the name of the group, as a key may be.
            shards: number of entries that a new group's members are packed into on the HTTP API, where a commit writes
                the changed entries; None: 16. Other stores ignore it: each member has its own entry.

        Raises:
            CorruptState: what is stored is not a group.
            TypeError, ValueError: the arguments, or the key of this name holds a cursor.

        """
        if shards is not None:
            check_shards(shards)
        return self._open_group(name, shards)

    @inside
    def _open_group(self, name: str, shards: int | None) -> Group:
        return self._layers.open_group(name, shards)

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
        cursor_format: str | CursorFormat | None = None,
        version_fields: Sequence[str] | None = None,
        on_cursor_value_missing: Literal["raise", "include", "exclude"] = "raise",
        timezone: str | tzinfo | None = None,
        oldest_available: Any = None,
        max_seen: int = 1_000,
        group: Group | str | None = None,
    ) -> Incremental[Any]:
        """Open the stream whose cursor is stored under `key`; see `checkpoint.streams.incremental.Incremental`.

        The stream holds the key until the key is opened again, which detaches this stream, or an exception leaves the
        stream. Reading the key returns the last claim; setting it raises ValueError.

        Args:
            key: the key in the mapping.
            cursor_field: what rows are ordered by: a name, a dotted path, or a callable of the row (stored as
                `"cursor"`). int, float, Decimal, date, datetime, or ISO 8601 text; other text needs a `cursor_format`.
            initial_value: where to start when nothing is stored, and the floor of the lookback; None: from the
                beginning. Give it in the source's format or, for instants, as an aware datetime.
            end_value: rows at it or after it are left out. None: there is no end.
            lookback: how far before the position to ask again, for rows that appear late: a timedelta or a number.
            primary_key: what tells rows apart: a name or path, several, or a callable. Delivered rows at the position
                are remembered, and dropped if they come again unchanged.
            row_order: `"asc"` where the source sorts by the cursor field: the position follows the rows. Otherwise it
                moves when the stream is finished. `"desc"`: newest first; reading ends at what is known.
            range_start: whether the source returns rows at `start_value` (`"closed"`) or only after it.
            cursor_format: the format of ambiguous values: `"epoch_s"`, `"epoch_ms"`, `"epoch_us"` or
                `"epoch_ns"` for numbers or digits since 1970; `"number"` for digits as text; `"text"` for text that
                compares by code point; a pattern of `datetime.strptime` such as `"%m/%d/%Y"`; or a `CursorFormat`.
            version_fields: names or paths of the fields that show a change of a row, such as `("etag",)`; None: all
                fields.
            on_cursor_value_missing: what to do with a row that has no cursor value: None, NaN, NaT, or empty text.
            timezone: the time zone of naive times and dates: a tzinfo, or a name such as `"Europe/Berlin"`.
            oldest_available: the earliest value that the source still has.
            max_seen: the most boundary rows to remember.
            group: the group, or its name, that stores the cursor as its member `key`; None: it is a key of the mapping.

        Raises:
            CursorExpired: the stored position is before `oldest_available`.
            CorruptState: the stored value is not a cursor.
            ValueError, TypeError: the arguments, or what is stored, do not fit together.

        """
        from checkpoint.streams.options import Options

        options = Options(
            cursor_field, initial_value, end_value, lookback, primary_key, row_order, range_start,
            on_cursor_value_missing, timezone, oldest_available, max_seen, cursor_format, version_fields,
        )  # fmt: skip
        return self._open_stream(key, options, group)

    @inside
    def _open_stream(self, key: str, options: Options, group: Group | str | None) -> Incremental[Any]:
        from checkpoint.streams.incremental import Incremental
        from checkpoint.streams.stored import WrongShapeError

        layers = self._layers
        held = layers.key_of(key, group)
        cursor = layers.stored_cursor(held)
        try:
            stream: Incremental[Any] = Incremental(
                key, options, cursor, self._stops.came, alone=group is None, touch=layers.holders.toucher(held)
            )
        except WrongShapeError as reason:
            raise CorruptState(self.state_key, held, layers.drafts.value(held)) from reason
        layers.hold(stream, held)
        return stream

    @inside
    def _check_open(self) -> None:
        """Raise an error outside the block."""

    @inside
    def _check_free(self, key: str) -> None:
        self._layers.check_free(key)

    # Committing

    def commit(self, *only: str | Incremental[Any] | Group) -> Commit:
        """Claim all changes and flush them: once this returns, they are stored.

        Call it when the rows behind the cursors are safe in their sink: this marks all rows that streams have handed
        out as delivered. Only changes are sent; without a change there is no request. A commit is a snapshot taken at
        the call.

        Args:
            only: the keys, streams or groups to commit; none: all of them.

        Raises:
            TypeError, ValueError: a cursor changed in place is no longer valid; nothing was sent.
            Conflict: another writer changed a key (see there).
            PartialCommit: some keys landed, others did not (HTTP only).
            CommitUnknown: the outcome could not be determined; commit again.
            StoreError: the store refused or failed.

        """
        keys = self._begin_commit(only)
        return Commit() if keys is None else self._commits.flush(keys)

    def commit_soon(self, *only: str | Incremental[Any] | Group) -> None:
        """Claim all changes and return at once; the run's worker thread flushes them.

        Waiting snapshots are coalesced: only the newest of a key is sent. After a flush that had to be retried, for
        example because other runs wrote the namespace first, the thread rests up to ten seconds before the next flush;
        `commit`, `flush` and exit end the rest. A failure raises at the next `commit`, `commit_soon`, `flush` or exit.

        Raises:
            As `commit`, for an earlier background flush.

        """
        if self._claim_soon(only):
            self._commits.background.flush_soon()

    @inside
    def _claim_soon(self, only: tuple[str | Incremental[Any] | Group, ...]) -> bool:
        return self._commits.claim_soon(only, caller())

    def flush(self) -> None:
        """Wait until everything claimed so far is stored, including held-back and failed claims.

        Raises:
            As `commit`.

        """
        self._check_open()
        self._commits.background.wait()  # else a later commit might raise its failure again
        self._commits.flush(self._to_flush())

    @inside
    def _to_flush(self) -> frozenset[str]:
        return self._commits.waiting()

    @inside
    def discard(self) -> None:
        """Drop uncommitted changes; after a `Conflict`, adopt the stored values.

        Claims that `commit_soon` or `min_interval` still hold stay claimed. Groups and streams go back to the values of
        the mapping, as if they were opened again. With `connection=` the namespace is read again, because the
        transaction may have been rolled back.

        Raises:
            CorruptState: the stored value of a stream is no longer a cursor; the others went back.

        """
        joined_ = self._layers.rollback is not None
        self._layers.discard(self._commits.flush.store.load(self.state_key) if joined_ else None)

    def reload(self) -> None:
        """Discard, and load the namespace again.

        A key claimed and not yet flushed keeps the base it was claimed on, so that a foreign change to it is still a
        `Conflict` and not overwritten.
        """
        store = self._opened()
        with self._commits.flush.lock:
            loaded = store.load(self.state_key)
            with self._layers.lock:
                self._layers.discard(loaded)

    @inside
    def _opened(self) -> Store:
        return self._commits.flush.store

    @inside
    def _begin_commit(self, only: tuple[str | Incremental[Any] | Group, ...]) -> frozenset[str] | None:
        return self._commits.claim(only, caller())
