"""Commands that repair a store, quoted for a shell."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from checkpoint.entries import named
from checkpoint.errors import command_line, quoted
from checkpoint.overview.namespaces import Name
from checkpoint.overview.past import before_damage
from checkpoint.overview.positions import before_now, is_ahead, position_of
from checkpoint.overview.words import cursor_of
from checkpoint.streams.stored import BESIDE, is_value
from checkpoint.streams.values import epoch_named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from checkpoint.errors import CorruptState
    from checkpoint.stores.base import Store

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")

_NAMED = 5
"""A command names at most this many keys; with more, it applies to the namespace."""

BACK_DAYS = 2
BACK = f"{BACK_DAYS}d"
"""The default distance of a rewind."""


class Commands:
    """The commands for one store.

    Args:
        url: the store, as for `--store`; None: the option is not needed. If the URL may
            hold a secret, the commands use the variable `CHECKPOINT_STORE` instead.

    """

    def __init__(self, url: str | None = None) -> None:
        # The URL of a file holds no secret.
        secret = url is not None and not url.startswith("sqlite:") and any(letter in url for letter in "@?=")
        self._store = [] if url is None else ["--store", '"$CHECKPOINT_STORE"' if secret else quoted(url)]

    def unlock(self, namespace: str) -> str:
        """Return the command that releases the lease of a namespace."""
        return self._line("unlock", [namespace])

    def restore(self, namespace: str, to: str, name: Name | None = None) -> str:
        """Return the command that restores a key or member to a version or moment; None: the whole namespace."""
        words = [namespace] if name is None else [namespace, name.key]
        return self._line("restore", words, [*_member(name), "--to", to])

    def replace(self, store: Store, error: CorruptState) -> str | None:
        """Return the command that replaces a damaged row by its last readable value; None: the history has none."""
        version = before_damage(store, error)
        return None if version is None else self.restore(error.state_key, str(version), Name(*named(error.key)))

    def undo(self, namespace: str, version: int, names: Sequence[Name], *, added: bool) -> str:
        """Return the command that undoes a commit.

        Args:
            namespace: the namespace of the commit.
            version: the version of the commit.
            names: the keys and members that the commit changed.
            added: whether it created some of them.

        """
        keys = [*dict.fromkeys(name.key for name in names)]
        only = names[0] if len(names) == 1 else None
        options = [*_member(only), "--to", str(version - 1), *(["--delete"] if added else [])]
        return self._line("restore", [namespace, *(keys if len(keys) <= _NAMED else [])], options)

    def differences(self, namespace: str, since: str) -> str:
        """Return the command that shows what has changed in a namespace since a version or moment."""
        return self._line("diff", [namespace], ["--since", since])

    def rewind(self, namespace: str, name: Name, value: str, before: Any = None, form: str | None = None) -> str | None:
        """Return the command that rewinds a position: a time by two days, any other to its previous value.

        A position ahead of the clock goes to two days before now.

        Args:
            namespace: its namespace.
            name: the key or member.
            value: the stored value.
            before: the last position that differed from the current one; None: unknown.
            form: the cursor format that a run recorded; the command reads it from the record too.

        Returns None if there is no position, or no value to go back to.

        """
        cursor, found = cursor_of(value) or {}, position_of(value, form)
        fields = [field for field, part in cursor.items() if field not in BESIDE and is_value(part)]
        field = found.field if found is not None else fields[0] if len(fields) == 1 else None
        if field is None or (how := _how_far(found and found.kind, cursor[field], before, form)) is None:
            return None
        if found is not None and is_ahead(found.lag) and (earlier := before_now(found, form, BACK_DAYS)) is not None:
            how = ["--to", earlier]
        named = ["--field", field] if len(fields) > 1 else []
        return self._line("rewind", [namespace, name.key], [*_member(name), *how, *named])

    def _line(self, verb: str, words: Sequence[str], options: Sequence[str] = ()) -> str:
        """Return a command line; names that begin with a dash go after `--`."""
        return command_line(verb, words, [*map(quoted, options), *self._store])


def _how_far(kind: str | None, position: Any, before: Any, form: str | None) -> list[str] | None:
    """Return the options for how far a position goes back; None: unknown."""
    if kind in {"instant", "wall"}:
        return ["--by", BACK]
    if form is None and isinstance(position, int | float) and (epoch := epoch_named(position)) is not None:
        return ["--by", BACK, "--cursor-format", epoch]
    if before is None or type(before) is not type(position):
        return None
    if isinstance(position, int | float) or _NUMBER.fullmatch(position):
        return ["--to", str(before)]
    named = [] if form is not None else ["--cursor-format", "text"]
    return ["--to", before, *named] if before < position else None


def _member(name: Name | None) -> list[str]:
    return [] if name is None or name.member is None else ["--member", name.member]
