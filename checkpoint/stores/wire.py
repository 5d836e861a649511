"""The protocol between our own server and its store: paths, fields and error codes.

Every response is a JSON object. A list has `result`. An error has `statusCode`, `error` and `message`, as in the
vendor's API, and a `code` if clients need to tell it apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast, get_type_hints

from checkpoint.entries import Change, Entry

if TYPE_CHECKING:
    from collections.abc import Mapping

ABOUT: Final = "/v1"
"""GET: facts about the server."""
STATE: Final = "/v1/state"
"""GET, or POST with a body: all entries of a namespace, or those of some keys."""
COMMIT: Final = "/v1/commit"
"""POST: one commit."""
HISTORY: Final = "/v1/history"
"""GET, or POST with a body: the history."""
NAMESPACES: Final = "/v1/namespaces"
"""GET: the namespaces that hold a key."""

TIME: Final = "checkpoint-time"
"""Header of every response: the time by the server's clock, ISO 8601 with `Z`."""
KEEPS_HISTORY: Final = "checkpoint-history"
"""Header of every response: `kept`, or `none` if the store behind the server keeps no history."""

CONFLICT: Final = "conflict"
"""409: `key` is the first key that differs from `base`, `found` the stored entry or null."""
TOO_LARGE: Final = "value_too_large"
"""413: `key` is the key, `size` the size of its value in bytes."""
UNAVAILABLE: Final = "unavailable"
"""503: the store cannot be reached at the moment; nothing was written."""
UNKNOWN: Final = "unknown"
"""500: the outcome of the commit is unknown."""
REFUSED: Final = "refused"
"""500: the store refused, and a retry would not help."""
UNSUPPORTED: Final = "unsupported"
"""501: the store behind the server cannot do this."""


def entry_fields(entry: Entry) -> dict[str, Any]:
    """Return an entry as a JSON object."""
    return entry._asdict()


def entry_from(fields: object) -> Entry:
    """Return the entry in a JSON object; unknown fields are ignored.

    Raises:
        ValueError: it is invalid.

    """
    told = _object(fields)
    return _stored(told, told.get("value"))


def _stored(told: Mapping[str, Any], value: object) -> Entry:
    try:
        times_and_run = told["created_at"], told["updated_at"], told["sync_job_run_id"]
        return _entry(told.get("key"), value, told["version"], times_and_run)
    except KeyError as missing:
        raise ValueError(f"an entry must have the field {missing}") from missing


def _entry(key: object, value: object, version: object, times_and_run: tuple[Any, Any, Any]) -> Entry:
    if not (isinstance(key, str) and isinstance(value, str) and (version is None or type(version) is int)):
        raise ValueError("an entry must have a key and a value that are text, and a version that is an integer or null")
    return Entry(key, value, *times_and_run, version)


def expected_fields(entry: Entry | None) -> dict[str, Any] | None:
    """Return the fields of an entry that a commit compares, None for a key that must be absent."""
    if entry is None:
        return None
    return {"value": entry.value, "updated_at": entry.updated_at, "version": entry.version}


def expected_of(key: str, fields: object) -> Entry | None:
    """Return the entry that a commit expects under a key; see `expected_fields`.

    Raises:
        ValueError: it is neither null nor an object with the value.

    """
    if fields is None:
        return None
    told = _object(fields)
    return _entry(key, told.get("value"), told.get("version"), (None, told.get("updated_at"), None))


def written_fields(entry: Entry) -> dict[str, Any]:
    """Return the fields of an entry that its writer does not know: all but the value."""
    key, _, created, updated, run_id, version = entry
    return {"key": key, "created_at": created, "updated_at": updated, "sync_job_run_id": run_id, "version": version}


def written_of(fields: object, changes: Mapping[str, str | None]) -> Entry:
    """Return an entry that a commit wrote; see `written_fields`.

    Raises:
        ValueError: it does not belong to these changes.

    """
    told = _object(fields)
    key = told.get("key")
    return _stored(told, changes.get(key) if isinstance(key, str) else None)


def change_fields(change: Change) -> dict[str, Any]:
    """Return a change of the history as a JSON object."""
    return change._asdict()


_CHANGE: Mapping[str, Any] = get_type_hints(Change)


def change_from(fields: object) -> Change:
    """Return the change that a JSON object describes.

    Raises:
        ValueError: it is invalid.

    """
    told = _object(fields)
    if wrong := [name for name, kind in _CHANGE.items() if not isinstance(told.get(name), kind)]:
        raise ValueError(f"the {wrong[0]} of a change has the wrong type")
    return Change(**{name: told[name] for name in _CHANGE})


def _object(fields: object) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise ValueError("it must be a JSON object")
    return cast("dict[str, Any]", fields)
