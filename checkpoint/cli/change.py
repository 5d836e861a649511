"""`checkpoint set`, `merge`, `edit` and `clear`: what is stored, changed by hand."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from checkpoint import codec
from checkpoint.cli import screen
from checkpoint.cli.look import cursor_in, existing
from checkpoint.cli.options import as_json, confirm, dry_run, key, keys, namespace, reading, store_option, using, yes
from checkpoint.entries import RESERVED
from checkpoint.errors import CheckpointError
from checkpoint.stores.base import KeepsHistory

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from checkpoint.entries import Entry
    from checkpoint.stores.base import Store

raw = click.option("--raw", is_flag=True, help="Store the text unchanged, without one newline at its end.")


def write(
    store: Store,
    namespace: str,
    changes: Mapping[str, str | None],
    found: Mapping[str, Entry],
    *,
    dry_run: bool,
    as_json: bool,
    ask: Callable[[int], None] | None = None,
    reason: str | None = None,
    told: Mapping[str, Mapping[str, Any]] = {},
) -> None:
    """Commit the changes to what was found, on its base, and say what was done.

    A value that is the one found, whatever its formatting, is not written. `ask` is called with the number of changes
    before they are written; `reason` is kept in the history. `told` has what the JSON says of a key beside its change.
    """
    before = {name: found[name].value if name in found else None for name in changes}
    real = {name: value for name, value in changes.items() if not equal(before[name], value)}
    listed = [(name, before[name], value) for name, value in real.items()]
    if not as_json:
        screen.show_changes(listed)
    if real and not dry_run:
        if ask is not None:
            ask(len(real))
        run_id = f"checkpoint {click.get_current_context().info_name}"
        base = {name: found.get(name) for name in real}
        if reason is not None and isinstance(store, KeepsHistory):
            store.commit(namespace, real, base, run_id=run_id, reasons=dict.fromkeys(real, reason))
        else:
            store.commit(namespace, real, base, run_id=run_id)
    if as_json:
        changed = [{**screen.told_change(change), **told.get(change[0], {})} for change in listed]
        screen.document({"namespace": namespace, "dry_run": dry_run, "changes": changed})
    else:
        screen.say(_summary(namespace, len(real), dry_run=dry_run))


def _summary(namespace: str, changed: int, *, dry_run: bool) -> str:
    if not changed:
        return f"Nothing to change in {namespace!r}."
    done = "would change; nothing was written" if dry_run else "changed"
    return f"{screen.count(changed, 'key')} of {namespace!r} {done}."


def equal(value: str | None, other: str | None) -> bool:
    """Tell whether two values are equal, as a commit would judge it; None is equal to None alone."""
    return codec.same(value, other) if value is not None and other is not None else value is other


@click.command("set")
@namespace
@key
@click.argument("value")
@raw
@dry_run
@as_json
@store_option()
def set_(namespace: str, key: str, value: str, *, raw: bool, dry_run: bool, as_json: bool, url: str | None) -> None:
    """Store a cursor, given as a JSON object.

    `-` reads it from standard input. Takes what `checkpoint get` prints, also with --raw on both sides. A cursor equal
    to the stored one is not written again.
    """
    text = sys.stdin.buffer.read() if value == "-" else os.fsencode(value)
    stored = _value(text, raw=raw, what=f"the value for {key!r}")
    with using(url) as store:
        write(store, namespace, {key: stored}, store.load(namespace), dry_run=dry_run, as_json=as_json)


@click.command()
@namespace
@key
@click.argument("patch")
@dry_run
@as_json
@store_option()
def merge(namespace: str, key: str, patch: str, *, dry_run: bool, as_json: bool, url: str | None) -> None:
    """Change parts of a cursor by a JSON merge patch.

    `-` reads the patch (RFC 7396) from standard input. Fields of the patch replace those of the cursor, at every level;
    null removes one. A missing key is created.
    """
    change = _cursor_given(sys.stdin.buffer.read() if patch == "-" else os.fsencode(patch), "the patch")
    with using(url) as store:
        found = store.load(namespace)
        cursor = cursor_in(namespace, found[key]) if key in found else {}
        value = codec.encode(patched(cursor, change))
        write(store, namespace, {key: value}, found, dry_run=dry_run, as_json=as_json)


def patched(target: Any, patch: Any) -> Any:
    """Return what a merge patch makes of a value (RFC 7396, section 2)."""
    if not isinstance(patch, dict):
        return patch
    result: dict[str, Any] = dict(cast("dict[str, Any]", target)) if isinstance(target, dict) else {}
    for name, value in cast("dict[str, Any]", patch).items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = patched(result.get(name), value)
    return result


@click.command()
@namespace
@key
@click.option("--raw", is_flag=True, help="Edit the stored text itself. The newline at its end is the editor's.")
@dry_run
@as_json
@store_option()
def edit(namespace: str, key: str, *, raw: bool, dry_run: bool, as_json: bool, url: str | None) -> None:
    """Edit a cursor in $VISUAL or $EDITOR.

    It is stored if it is valid. If another run wrote the key meanwhile, nothing is stored. Text that could not be
    stored stays in its file, which the error names. A new key begins as an empty cursor.
    """
    with using(url) as store:
        found = store.load(namespace)
        text = found[key].value if raw and key in found else ""
        if not raw:
            text = screen.json_of(cursor_in(namespace, found[key]) if key in found else {}, indent=2)
        draft = text.encode() + b"\n"
        file = _draft(key, draft, ".txt" if raw else ".json")
        try:
            value = _edited(file, key, raw=raw)
            changes = {} if file.read_bytes() == draft else {key: value}  # a new key that nobody wrote is none
            write(store, namespace, changes, found, dry_run=dry_run, as_json=as_json)
        except (CheckpointError, click.ClickException, click.Abort, KeyboardInterrupt) as error:
            click.echo(f"What you wrote is in {file}", err=True)
            raise error from None
        file.unlink()


def _draft(key: str, text: bytes, suffix: str) -> Path:
    name = "".join(letter if letter.isalnum() else "-" for letter in key)[:40]
    number, path = tempfile.mkstemp(suffix, f"checkpoint-{name}-")
    with os.fdopen(number, "wb") as file:
        file.write(text)
    return Path(path)


def _edited(file: Path, key: str, *, raw: bool) -> str:
    """Let somebody edit the file, again while it is not valid and they want to; return the value."""
    while True:
        with _unbroken():
            click.edit(filename=str(file))
        try:
            return _value(file.read_bytes(), raw=raw, what="what you wrote")
        except click.ClickException as error:
            if not sys.stdin.isatty():
                raise
            error.show()
            if not click.confirm(f"Edit {key!r} again?", default=True, err=True):
                raise


@contextmanager
def _unbroken() -> Generator[None]:
    """Leave Ctrl-C to the editor, which has a use of its own for it."""
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)  # ignored, it would be so by the editor too
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@click.command()
@namespace
@keys
@yes
@dry_run
@as_json
@store_option()
def clear(namespace: str, keys: tuple[str, ...], *, yes: bool, dry_run: bool, as_json: bool, url: str | None) -> None:
    """Delete keys of a namespace, or all of them.

    Jobs that read them start over. Reserved keys, which begin with __, stay.
    """
    with reading(url) as store:
        found = store.load(namespace)
        for name in keys:
            existing(store, found, namespace, name)
        gone = keys or [name for name in found if not name.startswith(RESERVED)]

        def ask(number: int) -> None:
            confirm(f"Delete {screen.count(number, 'key')} of {namespace!r}?", sure=yes)

        write(store, namespace, dict.fromkeys(gone), found, dry_run=dry_run, as_json=as_json, ask=ask)


def _value(text: bytes, *, raw: bool, what: str) -> str:
    """Return the value that a text is to be stored as, or end with one sentence."""
    if not raw:
        return codec.encode(_cursor_given(text, what))
    try:
        return text.removesuffix(b"\n").decode()
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{what} is not UTF-8 text") from error


def _cursor_given(text: bytes, what: str) -> codec.Cursor:
    try:
        return codec.parse(text.strip())
    except ValueError as error:
        hint = 'a cursor is a JSON object, such as {"updated_at": "2024-05-01"}'
        raise click.ClickException(f"{what} is no cursor: {error}; {hint}") from error
