"""`checkpoint set`, `merge`, `edit` and `clear`: change stored values by hand."""

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
from checkpoint.cli.judging import check_settable
from checkpoint.cli.options import (
    as_json,
    dry_run,
    key,
    keys,
    member,
    member_or_word,
    namespace,
    reading,
    store_option,
    using,
    yes,
)
from checkpoint.cli.writing import carry_out, counted, planned
from checkpoint.errors import CheckpointError
from checkpoint.overview import words
from checkpoint.overview.namespaces import Name, Namespace, cursor_in, near_namespace, nothing

if TYPE_CHECKING:
    from collections.abc import Generator

    from checkpoint.cli.options import Decorator

raw: Decorator = click.option("--raw", is_flag=True, help="Store the text as it is, without one newline at its end.")


@click.command("set")
@namespace
@key
@click.argument("value")
@member
@raw
@dry_run
@as_json
@store_option()
def set_(
    namespace: str,
    key: str,
    value: str,
    *,
    member: str | None,
    raw: bool,
    dry_run: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Store a cursor, given as a JSON object.

    With - as VALUE, it is read from standard input. It takes what `checkpoint get` prints, and what `get --raw`
    prints with --raw. If the stored cursor is equal, nothing is written. A cursor that the job's stream could not
    read is refused.

    Example: checkpoint set crm_acme deals '{"updated_at": "2024-05-01"}'
    """
    text = sys.stdin.buffer.read() if value == "-" else os.fsencode(value)
    name = Name(key, member)
    stored = value_given(text, raw=raw, what=f"the value for {name.quoted}")
    with using(url) as store:
        there = Namespace(store, namespace)
        check_settable(there, name, stored, raw=raw)
        _warn_if_new(there)
        carry_out([planned(there, {name: stored})], namespace, dry_run=dry_run, as_json=as_json)


@click.command()
@namespace
@key
@click.argument("patch")
@member
@dry_run
@as_json
@store_option()
def merge(
    namespace: str, key: str, patch: str, *, member: str | None, dry_run: bool, as_json: bool, url: str | None
) -> None:
    """Change fields of a cursor with a JSON merge patch (RFC 7396).

    With - as PATCH, it is read from standard input. The fields of the patch replace those of the cursor, at every
    level; null removes a field. A missing key is created.

    Example: checkpoint merge crm_acme offset '{"page": 3}'
    """
    change = _cursor_given(sys.stdin.buffer.read() if patch == "-" else os.fsencode(patch), "the patch")
    name = Name(key, member)
    with using(url) as store:
        there = Namespace(store, namespace)
        entry = there.entry(name)
        value = codec.encode(patched({} if entry is None else cursor_in(namespace, name, entry), change))
        check_settable(there, name, value)
        _warn_if_new(there)
        carry_out([planned(there, {name: value})], namespace, dry_run=dry_run, as_json=as_json)


def patched(target: Any, patch: Any) -> Any:
    """Return a value with a merge patch applied (RFC 7396, section 2)."""
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
@member_or_word
@click.option("--raw", is_flag=True, help="Edit the stored text as it is. One newline at its end is not stored.")
@dry_run
@as_json
@store_option()
def edit(
    namespace: str, key: str, *, member: str | None, raw: bool, dry_run: bool, as_json: bool, url: str | None
) -> None:
    """Edit a cursor in $VISUAL or $EDITOR.

    Nothing is stored if the text is not a valid cursor, or if another run wrote the key meanwhile; the error then
    names the file that has your text. A new key begins as an empty cursor.

    Example: checkpoint edit crm_acme contacts
    """
    name = Name(key, member)
    with using(url) as store:
        there = Namespace(store, namespace)
        check_settable(there, name, None)
        _warn_if_new(there)
        entry = there.entry(name)
        if raw:
            text = "" if entry is None else entry.value
        else:
            text = words.json_of({} if entry is None else cursor_in(namespace, name, entry), indent=2)
        draft = text.encode() + b"\n"
        file = _draft(name, draft, ".txt" if raw else ".json")
        try:
            value = _edited(file, there, name, raw=raw)
            changes = {} if file.read_bytes() == draft else {name: value}  # a new key left empty is not created
            carry_out([planned(there, changes)], namespace, dry_run=dry_run, as_json=as_json)
        except (CheckpointError, click.ClickException, click.Abort, KeyboardInterrupt) as error:
            click.echo(f"What you wrote is in {file}", err=True)
            raise error from None
        file.unlink()


def _draft(name: Name, text: bytes, suffix: str) -> Path:
    shown = "".join(letter if letter.isalnum() else "-" for letter in name.said)[:40]
    number, path = tempfile.mkstemp(suffix, f"checkpoint-{shown}-")
    with os.fdopen(number, "wb") as file:
        file.write(text)
    return Path(path)


def _edited(file: Path, there: Namespace, name: Name, *, raw: bool) -> str:
    """Open the file in an editor, again while it is invalid and the user agrees; return the value."""
    while True:
        with _unbroken():
            click.edit(filename=str(file))
        try:
            value = value_given(file.read_bytes(), raw=raw, what="what you wrote")
            check_settable(there, name, value, raw=raw)
            return value
        except click.ClickException as error:
            if not sys.stdin.isatty():
                raise
            error.show()
            if not click.confirm(f"Edit {name.quoted} again?", default=True, err=True):
                raise


@contextmanager
def _unbroken() -> Generator[None]:
    """Leave Ctrl-C to the editor, which handles it itself."""
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)  # the editor would inherit an ignored signal
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@click.command()
@namespace
@keys
@member
@yes
@dry_run
@as_json
@store_option()
def clear(
    namespace: str,
    keys: tuple[str, ...],
    *,
    member: str | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Delete keys of a namespace, or all of them.

    It shows what it deletes, and asks. A KEY that is a group stands for all of its members. Jobs that read these
    keys start over. Reserved keys, which begin with __, stay.

    Example: checkpoint clear crm_acme contacts deals
    """
    if member is not None and len(keys) != 1:
        raise click.UsageError("--member needs KEY: the name of its group")
    with reading(url) as store:
        there = Namespace(store, namespace)
        if not there.stored:
            raise click.ClickException(nothing(store, namespace))
        gone = dict.fromkeys(named_by(there, keys, member) if keys else there.names)

        def ask(_number: int) -> str:
            return f"Delete {counted(gone)} of {namespace!r}?"

        carry_out([planned(there, gone)], namespace, dry_run=dry_run, as_json=as_json, ask=ask, yes=yes)


def named_by(there: Namespace, keys: tuple[str, ...], member: str | None) -> list[Name]:
    """Return the names that keys stand for, a group for all of its members; end with an error if one is missing."""
    if member is not None:
        there.existing(Name(keys[0], member))
        return [Name(keys[0], member)]
    for each in keys:
        if each not in there.groups:
            there.existing(Name(each))
    return [name for each in keys for name in there.under(each)]


def _warn_if_new(there: Namespace) -> None:
    """Warn when a namespace is empty and its name is close to an existing one: it may be misspelt."""
    if not there.names and (near := near_namespace(there.store, there.state_key)):
        screen.warn(f"{there.state_key!r} is new{near}")


def value_given(text: bytes, *, raw: bool, what: str) -> str:
    """Parse a text into the value to store, or end with a one-sentence error."""
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
