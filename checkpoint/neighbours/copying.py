"""Copy or move namespaces from one store to another, or to another name.

Values are copied as they are, opaque ones too. Times, versions, runs and history are not copied: the target makes its
own. Keys that begin with `__`, such as the lease, are not copied, except groups. These are written in the form in which
the target stores them: an entry for each member, or packed.

If a copy is interrupted, start it again: what the target already holds is not written a second time.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from itertools import chain
from secrets import token_hex
from typing import TYPE_CHECKING, NamedTuple

from checkpoint.entries import GROUP_PREFIX, RESERVED, named
from checkpoint.errors import StoreError
from checkpoint.run import forms
from checkpoint.stores import open_store
from checkpoint.stores.base import Atomic, ListsNamespaces, Store, check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from checkpoint.entries import Entry

CHUNK = 500
"""Keys of one commit to a store that writes key by key. Other stores get the whole namespace in one commit."""

MARK = "__move__"
"""A reserved key. A move writes it to find out whether source and target are the same place."""


class Copy(NamedTuple):
    """What a copy does to one namespace, or did."""

    state_key: str
    """The namespace at the source."""
    name: str
    """The namespace at the target."""
    new: tuple[str, ...]
    """Keys that the target does not have."""
    replaced: tuple[str, ...]
    """Keys that have another value at the target."""
    equal: tuple[str, ...]
    """Keys that have the same value at the target."""

    @property
    def total(self) -> int:
        """The number of keys."""
        return len(self.new) + len(self.replaced) + len(self.equal)


def plan(
    source: Store | str, target: Store | str, state_key: str | None = None, *, name: str | None = None
) -> list[Copy]:
    """Return what `copy` would do, without writing anything; the arguments and errors are those of `copy`."""
    with ExitStack() as stack:
        source = _opened(source, stack)  # the same name: so no rendered traceback shows the URL, with its password
        target = _opened(target, stack)
        return _plan(source, target, state_key, name)


def copy(
    source: Store | str,
    target: Store | str,
    state_key: str | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Copy]:
    """Copy a namespace, or all of them, and return what was done to each.

    What was written is read back and compared. Keys that only the target has are left as they are.

    Args:
        source: the store to read from, or its URL.
        target: the store to write to, or its URL.
        state_key: the namespace; None: all namespaces that the source lists.
        name: the name of the namespace at the target; None: the same as at the source.
        overwrite: replace keys that have another value at the target, instead of refusing.
        progress: called after each commit with the number of keys done, the number of all keys, and the namespace.

    Raises:
        ValueError: the source cannot list namespaces; a `name` without a `state_key`; a URL or a name is invalid; a
            key has another value at the target and `overwrite` is not given. That namespace was not written.
        Conflict: the target was changed meanwhile.
        StoreError: a store refused or failed, or the target does not hold what was written. Copy again.

    """
    with ExitStack() as stack:
        source = _opened(source, stack)  # see `plan`
        target = _opened(target, stack)
        return [found.copy for found in _copies(source, target, state_key, name, progress, overwrite=overwrite)]


def move(
    source: Store | str,
    target: Store | str,
    state_key: str | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Copy]:
    """Copy, then delete at the source what was copied and compared; the arguments are those of `copy`.

    Each namespace is deleted as soon as it is copied. A key that was changed meanwhile is not deleted.

    Raises:
        Conflict: the source was changed meanwhile: the namespace is copied, and what was changed is not deleted.
        ValueError: as `copy`, or source and target are the same place.
        StoreError: as `copy`.

    """
    with ExitStack() as stack:
        source = _opened(source, stack)  # see `plan`
        target = _opened(target, stack)
        done: list[Copy] = []
        for found in _copies(source, target, state_key, name, progress, overwrite=overwrite, apart=True):
            for keys in chunks(source, list(found.entries)):
                base = {key: found.entries[key] for key in keys}
                source.commit(found.copy.state_key, dict.fromkeys(keys), base, run_id="checkpoint move")
            done.append(found.copy)
        return done


def _opened(store: Store | str, stack: ExitStack) -> Store:
    return stack.enter_context(closing(open_store(store))) if isinstance(store, str) else store


def _plan(source: Store, target: Store, state_key: str | None, name: str | None) -> list[Copy]:
    if name is not None:
        check_name("name", name)
    if state_key is not None:
        return [_compared(source, target, state_key, name or state_key).copy]
    if name is not None:
        raise ValueError("name is for one namespace: pass its state_key too")
    plans = (_compared(source, target, each, each).copy for each in namespaces(source))
    return [each for each in plans if each.total]


def namespaces(store: Store) -> list[str]:
    """Return the namespaces of a store, sorted.

    Raises:
        ValueError: it cannot list them.
        StoreError: it refused or failed.

    """
    if isinstance(store, ListsNamespaces):
        return store.namespaces()
    raise ValueError(f"{store!r} cannot list its namespaces: name one")


class _Compared(NamedTuple):
    """What will be done to a namespace, and what both stores hold of it."""

    copy: Copy
    entries: dict[str, Entry]
    """The entries at the source."""
    values: dict[str, str]
    """The values that the target will hold."""
    there: dict[str, Entry]
    """The entries at the target."""


def _compared(source: Store, target: Store, state_key: str, name: str) -> _Compared:
    entries = {key: entry for key, entry in source.load(state_key).items() if _is_copied(key)}
    there = target.load(name)
    stored = forms.stored_groups(name, {key: entry.value for key, entry in there.items()})
    values = {key: entry.value for key, entry in entries.items()}
    values = forms.laid_out(state_key, values, atomic=isinstance(target, Atomic), there=stored)
    new: list[str] = []
    replaced: list[str] = []
    equal: list[str] = []
    for key, value in values.items():
        kind = new if key not in there else equal if there[key].value == value else replaced
        kind.append(key)
    return _Compared(Copy(state_key, name, tuple(new), tuple(replaced), tuple(equal)), entries, values, there)


def _is_copied(key: str) -> bool:
    return not key.startswith(RESERVED) or key.startswith(GROUP_PREFIX)


def _copies(
    source: Store,
    target: Store,
    state_key: str | None,
    name: str | None,
    progress: Callable[[int, int, str], None] | None,
    *,
    overwrite: bool,
    apart: bool = False,
) -> Iterator[_Compared]:
    """Copy one namespace after the other, and yield each when it is copied; `apart` refuses a copy onto itself."""
    plans = _plan(source, target, state_key, name)
    if not overwrite:
        _check_nothing_differs(plans)
    for each in plans if apart else ():
        _check_apart(source, target, each)
    done, total = 0, sum(each.total for each in plans)
    for each in plans:
        # Compared again, because keeping all that was compared for the plans would take the memory of the whole store.
        found = _compared(source, target, each.state_key, each.name)
        if not overwrite:
            _check_nothing_differs([found.copy])
        for keys in chain([found.copy.equal], _written_chunks(target, found)):
            done += len(keys)
            if keys and progress is not None:
                progress(done, max(done, total), each.state_key)
        _verify(target, found)
        yield found


def _written_chunks(target: Store, found: _Compared) -> Iterator[Sequence[str]]:
    """Write the new and the replaced keys, and yield the keys of each commit."""
    for keys in chunks(target, [*found.copy.new, *found.copy.replaced]):
        changes = {key: found.values[key] for key in keys}
        target.commit(found.copy.name, changes, {key: found.there.get(key) for key in keys}, run_id="checkpoint copy")
        yield keys


def _verify(target: Store, found: _Compared) -> None:
    if not (found.copy.new or found.copy.replaced):
        return
    there = target.load(found.copy.name)
    for key, value in found.values.items():
        if key not in there or there[key].value != value:
            raise StoreError(
                f"{said_of(key)} in {found.copy.name!r} is not what was written to {target!r}: copy it again"
            )


def _check_nothing_differs(plans: list[Copy]) -> None:
    differing = [f"{said_of(key)} in {each.name!r}" for each in plans for key in each.replaced]
    if differing:
        others = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise ValueError(
            f"the target has another value for {differing[0]}{others}, so the namespace was not written: overwrite it "
            "(--overwrite), or choose another name (--as)"
        )


def _check_apart(source: Store, target: Store, each: Copy) -> None:
    """Refuse a move of a namespace onto itself, which would delete it; two URLs may name the same place."""
    if each.state_key != each.name:
        return
    mark = token_hex(16)
    target.commit(each.name, {MARK: mark}, run_id="checkpoint move")
    try:
        seen = source.load(each.state_key).get(MARK)
    finally:
        target.commit(each.name, {MARK: None}, run_id="checkpoint move")
    if seen is not None and seen.value == mark:
        raise ValueError(f"source and target of {each.name!r} are the same place: choose another name")


def chunks(store: Store, keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Divide the keys of a namespace into commits; one commit if the store is atomic."""
    size = len(keys) if isinstance(store, Atomic) else CHUNK
    return (keys[start : start + size] for start in range(0, len(keys), size or 1))


def said_of(key: str) -> str:
    """Return the name of a key for messages; the entries of a group are named as users know them."""
    group, member = named(key)
    if member is not None:
        return f"{member!r} of {group!r}"
    if not key.startswith(GROUP_PREFIX):
        return repr(key)
    head, _, number = key.rpartition(".")
    is_shard = number.isdecimal() and head.startswith(GROUP_PREFIX)
    return f"the group {named(f'{head if is_shard else key}/')[0]!r}"
