"""Keep Airflow's task and asset state in a store: the class for `[state_store] backend` of Airflow 3.3 and later.

    [state_store]
    backend = checkpoint.airflow.CheckpointBackend

    [checkpoint]
    store = postgresql://airflow@db/state

The store is the one in `[checkpoint] store` (`$AIRFLOW__CHECKPOINT__STORE`), else in `$CHECKPOINT_STORE`, else the
default of `checkpoint`. The API server, the triggerer and `airflow dags test` use this class; tasks ask the API server.

    asset   namespace `airflow.asset.NAME`   key `KEY`
    task    namespace `airflow.dag.DAG`      key `TASK/RUN/KEY`, of a mapped task `TASK[INDEX]/RUN/KEY`

Names become keys as in `checkpoint.formats.key_of`. A value that is a JSON object is stored as a cursor. Any other
value, and an object that has a member `value` or `$airflow`, is stored as the member `value` of a cursor. The member
`$airflow` holds the time when a value of a task expires.

As with Airflow's own backend the last write wins: nothing is compared, so there is no `Conflict`.
"""

from __future__ import annotations

import json
import logging
import re
from asyncio import to_thread
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from airflow.configuration import conf
from airflow.models.asset import AssetModel
from airflow.state import AssetScope, BaseStoreBackend
from airflow.utils.session import create_session
from fastapi import HTTPException
from sqlalchemy import select

from checkpoint import codec
from checkpoint.entries import RESERVED
from checkpoint.errors import (
    CheckpointError,
    CommitUnknown,
    Conflict,
    CorruptState,
    PartialCommit,
    StoreError,
    StoreUnavailable,
)
from checkpoint.neighbours.documents import key_of
from checkpoint.stores import open_store
from checkpoint.stores.base import ListsNamespaces, ReadsKeys

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from airflow.state import StoreScope
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from checkpoint.entries import Entry

logger: logging.Logger = logging.getLogger("checkpoint")

ASSETS, DAGS = "airflow.asset.", "airflow.dag."
"""Prefixes of the namespaces of assets and of DAGs."""

VALUE, BESIDE = "value", "$airflow"
"""Members of a cursor: a value that is not an object itself, and the facts about a value."""


class _Place(NamedTuple):
    """Where the state of a scope is stored."""

    namespace: str
    task: str = ""
    """The task, as it is written in keys. Empty: the scope is an asset, which has a namespace of its own."""
    map_index: int = -1
    """The index of a mapped task. -1: the task is not mapped."""
    run: str = ""
    run_id: str | None = None
    """The id of the run that is stored with written entries."""

    @property
    def prefix(self) -> str:
        """The prefix of the scope's keys."""
        mapped = f"[{self.map_index}]" if self.map_index >= 0 else ""
        return f"{self.task}{mapped}/{self.run}/" if self.task else ""

    def key(self, name: str) -> str:
        """Return the key of an entry of the scope."""
        return self.prefix + key_of(name)

    def has(self, key: str, *, all_map_indices: bool) -> bool:
        """Return whether a key belongs to the scope, or to the same task with any map index."""
        if all_map_indices and self.task:
            return re.match(rf"{re.escape(self.task)}(\[\d+\])?/{re.escape(self.run)}/", key) is not None
        return key.startswith(self.prefix) and not key.startswith(RESERVED)


class CheckpointBackend(BaseStoreBackend):
    """Airflow's state in a store; see the module.

    `session` is used to look up the name of an asset. A failure raises `HTTPException` with the text of our error,
    which the API server passes on to the task. The status is 503 if the store could not be reached, which Airflow tries
    again, and 422 otherwise. It is never 404, which would mean that nothing is stored.

    Raises:
        ValueError: no store opens the URL, or this class is set as `[workers] state_store_backend`.

    """

    def __init__(self) -> None:
        if conf.get("workers", "state_store_backend", fallback="") in _NAMES:
            raise ValueError("checkpoint.airflow is a [state_store] backend, and no [workers] state_store_backend")
        self._store = open_store(conf.get("checkpoint", "store", fallback=None))

    def get(self, scope: StoreScope, key: str, *, session: Session | None = None) -> str | None:
        """Return a value as JSON; None if nothing is stored."""
        with _answered():
            return self._get(_place(scope, session), key)

    def set(
        self,
        scope: StoreScope,
        key: str,
        value: str,
        *,
        expires_at: datetime | None = None,
        session: Session | None = None,
    ) -> None:
        """Store a value, given as JSON; `cleanup` deletes the value of a task after `expires_at`."""
        with _answered():
            self._set(_place(scope, session), key, value, expires_at)

    def delete(self, scope: StoreScope, key: str, *, session: Session | None = None) -> None:
        """Delete a value; a missing value is no error."""
        with _answered():
            self._delete(_place(scope, session), key)

    def clear(self, scope: StoreScope, *, all_map_indices: bool = False, session: Session | None = None) -> None:
        """Delete all values of an asset or a task instance; with `all_map_indices`, of every map index."""
        with _answered():
            self._clear(_place(scope, session), all_map_indices=all_map_indices)

    async def aget(self, scope: StoreScope, key: str, *, session: AsyncSession | None = None) -> str | None:
        """Do as `get`."""
        with _answered():
            return await to_thread(self._get, await _aplace(scope, session), key)

    async def aset(
        self,
        scope: StoreScope,
        key: str,
        value: str,
        *,
        expires_at: datetime | None = None,
        session: AsyncSession | None = None,
    ) -> None:
        """Do as `set`."""
        with _answered():
            await to_thread(self._set, await _aplace(scope, session), key, value, expires_at)

    async def adelete(self, scope: StoreScope, key: str, *, session: AsyncSession | None = None) -> None:
        """Do as `delete`."""
        with _answered():
            await to_thread(self._delete, await _aplace(scope, session), key)

    async def aclear(
        self, scope: StoreScope, *, all_map_indices: bool = False, session: AsyncSession | None = None
    ) -> None:
        """Do as `clear`."""
        with _answered():
            await to_thread(self._clear, await _aplace(scope, session), all_map_indices=all_map_indices)

    def cleanup(self) -> None:
        """Delete the expired values of tasks; a value that is written again meanwhile is kept.

        `airflow state-store clean` cleans only Airflow's own backend, so call this method from a job of your own.

        Raises:
            StoreError: the store refused or failed, or it cannot list its namespaces.

        """
        if not isinstance(self._store, ListsNamespaces):
            raise StoreError(f"{self._store!r} does not list its namespaces, so what has expired cannot be found")
        now = datetime.now(timezone.utc)
        for namespace in self._store.namespaces():
            if namespace.startswith(DAGS):
                stored = self._store.load(namespace)
                expired = {key: entry for key, entry in stored.items() if _has_expired(entry, now)}
                self._delete_unchanged(namespace, expired)

    def _delete_unchanged(self, namespace: str, entries: Mapping[str, Entry]) -> None:
        if not entries:
            return
        try:
            self._store.commit(namespace, dict.fromkeys(entries), entries, run_id="cleanup")
        except Conflict as conflict:  # this one was written again
            self._delete_unchanged(namespace, {key: each for key, each in entries.items() if key != conflict.key})
        else:
            extra = {"checkpoint_event": "expired", "checkpoint_namespace": namespace, "checkpoint_keys": len(entries)}
            logger.info("%r: %d values have expired and were deleted", namespace, len(entries), extra=extra)

    def _get(self, place: _Place, name: str) -> str | None:
        key = place.key(name)
        entry = self._entries(place.namespace, key).get(key)
        if entry is None:
            return None
        try:
            return json.dumps(_value_of(codec.decode(entry.value)))
        except ValueError as error:
            raise CorruptState(place.namespace, key, entry.value) from error

    def _entries(self, namespace: str, key: str) -> dict[str, Entry]:
        return self._store.read(namespace, [key]) if isinstance(self._store, ReadsKeys) else self._store.load(namespace)

    def _set(self, place: _Place, name: str, value: str, expires_at: datetime | None) -> None:
        written = codec.encode(_cursor_of(json.loads(value), expires_at))
        self._store.commit(place.namespace, {place.key(name): written}, run_id=place.run_id)

    def _delete(self, place: _Place, name: str) -> None:
        self._store.commit(place.namespace, {place.key(name): None}, run_id=place.run_id)

    def _clear(self, place: _Place, *, all_map_indices: bool) -> None:
        stored = self._store.load(place.namespace)
        keys = [key for key in stored if place.has(key, all_map_indices=all_map_indices)]
        if keys:
            self._store.commit(place.namespace, dict.fromkeys(keys), run_id=place.run_id)


_NAMES = frozenset(f"{module}.{CheckpointBackend.__name__}" for module in ("checkpoint.airflow", __name__))
"""The names by which a configuration may refer to the class."""


def _place(scope: StoreScope, session: Session | None) -> _Place:
    if isinstance(scope, AssetScope):
        return _Place(ASSETS + key_of(scope.name or _asset_name(scope, session)))
    dag, run, task = key_of(scope.dag_id), key_of(scope.run_id, also="/"), key_of(scope.task_id, also="/[")
    return _Place(DAGS + dag, task, scope.map_index, run, f"{dag}/{task}/{run}")


async def _aplace(scope: StoreScope, session: AsyncSession | None) -> _Place:
    if session is None:
        return await to_thread(_place, scope, None)
    return await session.run_sync(lambda plain: _place(scope, plain))


def _asset_name(scope: AssetScope, session: Session | None) -> str:
    """Return the name of an asset that is given by its id, as the API server does, or by its URI."""
    if session is None:
        with create_session() as own:
            return _asset_name(scope, own)
    known_by = AssetModel.uri == scope.uri if scope.asset_id is None else AssetModel.id == scope.asset_id
    name: str | None = session.scalar(select(AssetModel.name).where(known_by).order_by(AssetModel.id.desc()).limit(1))
    if name is None:
        raise ValueError(f"Airflow knows no asset like {scope}")
    return name


def _cursor_of(value: Any, expires_at: datetime | None) -> codec.Cursor:
    is_cursor = isinstance(value, dict) and not {VALUE, BESIDE}.intersection(cast("codec.Cursor", value))
    cursor = cast("codec.Cursor", value) if is_cursor else {VALUE: value}
    # In an object of its own: a second time beside the value would make it unclear which one is the position.
    return cursor if expires_at is None else {**cursor, BESIDE: {"expires_at": expires_at.isoformat()}}


def _value_of(cursor: codec.Cursor) -> Any:
    if VALUE in cursor:
        return cursor[VALUE]
    return {name: each for name, each in cursor.items() if name != BESIDE}


def _has_expired(entry: Entry, now: datetime) -> bool:
    try:
        return datetime.fromisoformat(codec.decode(entry.value)[BESIDE]["expires_at"]) < now
    except (LookupError, TypeError, ValueError):
        return False  # it does not expire, or another program wrote it


@contextmanager
def _answered() -> Generator[None]:
    """Turn our errors into answers of the API server, which for other exceptions does not say what is wrong."""
    try:
        yield
    except (CheckpointError, ValueError, TypeError) as error:
        again = isinstance(error, StoreUnavailable | CommitUnknown | PartialCommit)
        detail = {"reason": type(error).__name__, "message": str(error)}
        raise HTTPException(503 if again else 422, detail) from error
