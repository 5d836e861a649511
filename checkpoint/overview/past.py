"""The history of a namespace: the changes of its keys and members, and their values at a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint.entries import RESERVED, member_key, named
from checkpoint.errors import CheckpointError, CorruptState
from checkpoint.overview.namespaces import AbsentError, Name, nothing, unfolded
from checkpoint.overview.positions import is_ahead, lag_of
from checkpoint.overview.words import cursor_of
from checkpoint.run.runs import Did
from checkpoint.stores.base import KeepsHistory, ReplacesRows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from checkpoint.entries import Change
    from checkpoint.overview.moments import When
    from checkpoint.overview.namespaces import Layout, Namespace
    from checkpoint.run.runs import Run
    from checkpoint.stores.base import Store


def keeping(store: Store) -> KeepsHistory:
    """Return the store, checked to keep history.

    Raises:
        AbsentError: it keeps none.

    """
    if isinstance(store, KeepsHistory):
        return store
    raise AbsentError(f"{store!r} keeps no history")


def changes_of(there: Namespace, key: str | None = None, member: str | None = None) -> list[Change]:
    """Return the changes, newest first, of a whole namespace, a key, a group or one member."""
    store = keeping(there.store)
    if key is None:
        packed = [layout for layout in there.groups.values() if layout.shards and not layout.is_version_1]
        found = store.history(there.state_key)
        for layout in packed:
            found += unfolded(_shared(there, layout), layout)
    else:
        found = store.history(there.state_key, key if member is None else member_key(key, member))
        if key in there.groups:
            found = _with_shared(there, there.groups[key], found, member)
    wanted = (change for change in found if member is None or (change.key, change.member) == (key, member))
    return sorted(wanted, key=lambda change: -change.version)


def past_of(there: Namespace, name: Name) -> list[Change] | None:
    """Return the changes of one name, newest first; None: the store keeps no history."""
    if not isinstance(there.store, KeepsHistory):
        return None
    try:
        return [change for change in changes_of(there, *name) if (change.key, change.member) == name]
    except CheckpointError:  # a server whose store keeps no history
        return None


def last_good(past: Sequence[Change], is_good: Callable[[str], bool]) -> int | None:
    """Return the version of the newest good value since a name was last created; None: the history has none."""
    for change in past:
        if change.after is None:
            return None
        if is_good(change.after):
            return change.version
        if change.before is not None and is_good(change.before):
            return change.version - 1
    return None


def is_damaged(there: Namespace, name: Name, value: str) -> bool:
    """Tell whether the value of a name is not a cursor, but was one before its last change or after it.

    Other text is another program's: it never was a cursor.
    """
    if is_cursor(value) or not isinstance(there.store, KeepsHistory):
        return False
    key = name.key if name.member is None else member_key(name.key, name.member)
    try:
        newest = there.store.history(there.state_key, key, limit=1)
    except CheckpointError:  # a server whose store keeps no history
        return False
    known = [text for change in newest for text in (change.after, change.before) if text is not None]
    return any(map(is_cursor, known))


def is_cursor(value: str) -> bool:
    """Tell whether a stored value is a cursor."""
    return cursor_of(value) is not None


def before_damage(store: Store, error: CorruptState) -> int | None:
    """Return the version with the newest readable value of a damaged row that can be replaced; None: there is none."""
    if error.where is None or named(error.key)[0].startswith(RESERVED):  # `restore` takes no reserved key
        return None
    if not (isinstance(store, ReplacesRows) and isinstance(store, KeepsHistory)):
        return None
    try:
        return last_good(past_of_row(store, error), is_cursor)
    except (CheckpointError, ValueError):  # the history is damaged too, or the key is no name
        return None


def past_of_row(store: KeepsHistory, error: CorruptState) -> list[Change]:
    """Return the changes of the damaged row that an error names, newest first."""
    name = named(error.key)
    return [change for change in store.history(error.state_key, error.key) if (change.key, change.member) == name]


def before_ahead(past: Sequence[Change], form: str | None) -> int | None:
    """Return the version with the newest position of a name that is not ahead of the clock; None: not known."""
    return last_good(past, lambda value: not is_ahead(lag_of(value, form)))


def _with_shared(there: Namespace, layout: Layout, found: list[Change], member: str | None) -> list[Change]:
    """Return the changes of a group, including those of its shared entries.

    In a group of version 1 they are changes of keys, unless one member is asked for.
    """
    shared = _shared(there, layout)
    changes = [change for change in found if change.member is not None or change not in shared] + shared
    return changes if member is None and layout.is_version_1 else unfolded(changes, layout)


def _shared(there: Namespace, layout: Layout) -> list[Change]:
    """Return the changes of a group's shared entries."""
    store = keeping(there.store)
    keys = layout.shared_keys()
    return [change for key in keys for change in store.history(there.state_key, key) if change.key == key]


def check_known(there: Namespace, changes: list[Change], key: str | None, member: str | None = None) -> None:
    """Check that the store or the history knows a key.

    Raises:
        AbsentError: neither does.

    """
    if changes or (key is None and there.names):
        return
    if key is None:
        raise AbsentError(f"{nothing(there.store, there.state_key)}")
    if not there.under(key) or (member is not None and there.entry(Name(key, member)) is None):
        raise AbsentError(there.absent(key, member))


class Kept(NamedTuple):
    """A state kept in the history."""

    value: str | None
    """None: the key did not exist."""
    version: int = 0
    """The version of the commit that made it; 0: no commit had made one yet."""
    at: str | None = None


def values_at(there: Namespace, moment: When | None, member: str | None = None) -> dict[Name, str]:
    """Return the values of a namespace, or of a member of its groups, at a moment; None means now.

    Raises:
        AbsentError: the history does not reach back to the moment.

    """
    if moment is None:
        return {name: entry.value for name, entry in there.names.items()}
    members = [Name(group, member) for group in there.groups] if member is not None else []
    # Read only the member's history: that of the namespace has the changes of all members.
    kept = {
        name: kept_of_member(there, name, moment)
        for name in members
        if there.entry(name) is not None or changes_of(there, *name)
    } or kept_at(there, moment, lambda name: member in {None, name.member})
    return {name: state.value for name, state in kept.items() if state.value is not None}


def kept_at(there: Namespace, moment: When, wanted: Callable[[Name], bool]) -> dict[Name, Kept]:
    """Return the newest kept state at or before a moment, for each key and member that is wanted.

    Commits made after the namespace was loaded are ignored.
    """
    changes = changes_of(there)
    _check_reached(there, changes, moment)
    past: dict[Name, list[Change]] = {name: [] for name in there.names}
    for change in changes:
        past.setdefault(Name(change.key, change.member), []).append(change)
    return {name: _state(there, name, of_name, moment) for name, of_name in past.items() if wanted(name)}


def kept_of_member(there: Namespace, name: Name, moment: When) -> Kept:
    """Return the newest kept state of one member at or before a moment, also in a group of version 1."""
    changes = changes_of(there, *name)
    if not changes:
        there.existing(name)
    # The newest change gives the namespace's version; loading all would include every other member's.
    newest = keeping(there.store).history(there.state_key, limit=1) if changes else changes_of(there)
    _check_reached(there, newest or changes, moment)
    return _state(there, name, changes, moment)


def _check_reached(there: Namespace, changes: list[Change], moment: When) -> None:
    """Check that a namespace has history and, if the moment is a version, that it has reached it.

    Raises:
        AbsentError: it has no history, or has not reached the version.

    """
    if not changes:
        where = f"{there.state_key!r} has no history in {there.store!r}, so its state {moment.said} is not known"
        raise AbsentError(
            where if there.names else f"{nothing(there.store, there.state_key)}, and has no history there"
        )
    newest = max(changes[0].version, *(entry.version or 0 for entry in there.stored.values()), 0)
    if moment.version is not None and moment.version > newest:
        raise AbsentError(f"{there.state_key!r} has no version {moment.version}: the newest is {newest}")


def _state(there: Namespace, name: Name, past: list[Change], moment: When) -> Kept:
    """Return the newest kept state at or before a moment, from the changes of one name, the newest first."""
    for change in past:
        if moment.is_reached_by(change.version, change.at):
            return Kept(change.after, change.version, change.at)
    oldest, entry = past[-1] if past else None, there.entry(name)
    where = f"{name.quoted} in {there.state_key!r}"
    if oldest is None:
        # Written before the store kept history.
        if entry is not None and moment.is_reached_by(entry.version, entry.updated_at):
            return Kept(entry.value, entry.version or 0, entry.updated_at)
        raise AbsentError(f"the history of {where} is empty, so its value {moment.said} is not known")
    if oldest.before is None:
        return Kept(None)  # the key was created later
    if moment.version is not None and oldest.version == moment.version + 1:
        return Kept(oldest.before, moment.version)  # the value that the next commit replaced
    begins = f"begins with version {oldest.version}, {oldest.at}"
    raise AbsentError(f"the history of {where} {begins}, so its value {moment.said} is not known")


def run_fields(run: Run) -> dict[str, Any]:
    """Return a run as a document; its results are recorded at its end, and unknown before."""
    return run._asdict() | ({} if run.ended is not None else dict.fromkeys(Did._fields))
