"""`checkpoint copy`, `move`, `export` and `import`: take state from one place to another."""

from __future__ import annotations

import json
from contextlib import nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from checkpoint.cli import screen
from checkpoint.cli.documents import NAMESPACES, VALUES, document_of, names_in, tool_positions
from checkpoint.cli.judging import check_settable
from checkpoint.cli.options import (
    as_json,
    checked,
    complete_namespace,
    confirm,
    dry_run,
    namespace,
    reading,
    store_option,
    using,
    yes,
)
from checkpoint.cli.writing import carry_out, counted, planned
from checkpoint.neighbours import copying
from checkpoint.neighbours.documents import FORMATS
from checkpoint.neighbours.positions import TOOLS
from checkpoint.overview import words
from checkpoint.overview.namespaces import Namespace, is_pattern, matching, nothing
from checkpoint.stores.base import check_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from checkpoint.cli.writing import Plan
    from checkpoint.copying import Copy
    from checkpoint.neighbours.positions import Tool
    from checkpoint.overview.namespaces import Name
    from checkpoint.stores.base import Store


def _options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments and options that `copy` and `move` share."""
    options: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
        click.argument("namespace", required=False, callback=checked, shell_complete=complete_namespace),
        click.option("--to", "target", metavar="URL", help="The store to write to. Default: the same store."),
        click.option(
            "--as", "name", metavar="NAME", callback=checked, help="The name at the target. Default: the same name."
        ),
        click.option("--all", "every", is_flag=True, help="All namespaces of the store."),
        click.option("--overwrite", is_flag=True, help="Replace keys that have another value at the target."),
        yes,
        dry_run,
        as_json,
        store_option(),
    ]
    for option in reversed(options):
        verb = option(verb)
    return verb


@click.command()
@_options
def copy(**options: Any) -> None:
    """Copy a namespace to another store or another name.

    What it wrote is read back and compared. If it was interrupted, run it again and it continues. If a key has
    another value at the target, nothing is written, unless --overwrite is given. Times, versions and history start
    anew at the target. Reserved keys are not copied.

    Example: checkpoint copy crm_acme --as crm_backup
    """
    _carry("copy", copying.copy, **options)


@click.command()
@_options
def move(**options: Any) -> None:
    """Copy a namespace, compare, and delete the original.

    It works like `checkpoint copy`, and asks before it deletes. A key that changes in the original meanwhile is not
    deleted.

    Example: checkpoint move crm_acme --as crm_acme_old
    """
    _carry("move", copying.move, **options)


def _carry(
    verb: str,
    carry: Callable[..., list[Copy]],
    *,
    namespace: str | None,
    target: str | None,
    name: str | None,
    every: bool,
    overwrite: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    url: str | None,
) -> None:
    if (namespace is None) != every:
        raise click.UsageError("give one NAMESPACE, or --all")
    if every and name is not None:
        raise click.UsageError("--as goes with one NAMESPACE, not with --all")
    if target is None and name in {None, namespace}:
        raise click.UsageError("where to? Give --to URL, or --as another NAME")
    with reading(url) as store, _other(target, store) as other:
        try:
            plans = copying.plan(store, other, namespace, name=name)
            if not any(each.total for each in plans):
                raise click.ClickException(nothing(store, namespace) if namespace else f"{store!r} holds nothing")
            if not dry_run:
                _ask(verb, plans, overwrite=overwrite, yes=yes)
                with screen.progress(verb) as progress:
                    plans = carry(store, other, namespace, name=name, overwrite=overwrite, progress=progress)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
    _report(verb, plans, overwrite=overwrite, dry_run=dry_run, as_json=as_json)


def _other(target: str | None, store: Store) -> AbstractContextManager[Store]:
    return nullcontext(store) if target is None else using(target)


def _ask(verb: str, plans: list[Copy], *, overwrite: bool, yes: bool) -> None:
    """Ask before something is lost: values replaced at the target, or deleted here by a move."""
    total = sum(each.total for each in plans)
    replaced = sum(len(each.replaced) for each in plans)
    if overwrite and replaced:
        confirm(f"Replace {words.count(replaced, 'key')} at the target?", sure=yes)
    if verb == "move":
        confirm(f"Delete {words.count(total, 'key')} of the original after copying?", sure=yes)


def _report(verb: str, plans: list[Copy], *, overwrite: bool, dry_run: bool, as_json: bool) -> None:
    if as_json:
        told = [
            {
                "namespace": each.state_key,
                "name": each.name,
                "new": list(each.new),
                "replaced": list(each.replaced),
                "equal": list(each.equal),
            }
            for each in plans
        ]
        screen.document({"dry_run": dry_run, "namespaces": told})
        return
    rows = [
        (each.state_key, each.name, *(f"{len(keys):,}" for keys in (each.new, each.replaced, each.equal)))
        for each in plans
    ]
    columns = ("namespace", "target", "new", "replaced", "equal")
    screen.show_table(columns, rows, wide="target", right=columns[2:])
    total = words.count(sum(each.total for each in plans), "key")
    if dry_run:
        written, replaced = sum(len(each.new) for each in plans), sum(len(each.replaced) for each in plans)
        screen.say(f"{words.count(written + replaced, 'key')} would be written; nothing was written.")
        if replaced and not overwrite:
            screen.say(
                f"Of these, {replaced:,} {'has' if replaced == 1 else 'have'} another value at the target: "
                "that needs --overwrite."
            )
    elif verb == "move":
        screen.say(f"{total} copied, compared, and deleted in the original.")
    else:
        screen.say(f"{total} copied and compared.")


_FORMAT = click.Choice([*FORMATS, VALUES])


@click.command("export")
@namespace
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), default="-")
@click.option(
    "--format",
    "form",
    type=_FORMAT,
    default="json",
    show_default=True,
    help="json: the cursor of each key. values: the stored texts. The others: the state document of that system.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@store_option()
def export(namespace: str, file: Path, form: str, *, overwrite: bool, url: str | None) -> None:
    """Write a namespace as a document.

    It goes to FILE, or to standard output. The format json has members of groups under __group__, by name, and a
    value that is not a cursor as its text. The formats of other systems hold cursors only. If NAMESPACE is a
    pattern such as 'crm_*', the namespaces are under __namespaces__, by name.

    Example: checkpoint export crm_acme crm.json
    """
    if file.is_file() and not overwrite:
        raise click.ClickException(f"{file} exists, and nothing was written: --overwrite replaces it")
    with reading(url) as store:
        found = {name: Namespace(store, name) for name in matching(store, namespace)}
        several = [*found] != [namespace]
        spaces = {name: there for name, there in found.items() if there.names} or found  # some hold only runs
        documents = {name: _exported(there, form) for name, there in spaces.items()}
    text = words.json_of({NAMESPACES: documents} if several else documents[namespace], indent=2)
    if file == Path("-"):
        screen.write_text(text)
        return
    screen.write_file(file, f"{text}\n".encode())
    if not file.is_file():  # a pipe or device, such as /dev/stdout, gets only the document
        return
    what = counted([name for there in spaces.values() for name in there.names])
    of = words.count(len(spaces), "namespace") if several else repr(namespace)
    screen.say(f"{what} of {of} written to {file}.")


def _exported(there: Namespace, form: str) -> Any:
    if not there.names:
        raise click.ClickException(nothing(there.store, there.state_key))
    return document_of(there, form)


@click.command("import")
@namespace
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--format",
    "form",
    type=_FORMAT,
    default="json",
    show_default=True,
    help="The format of the document; see `checkpoint export`.",
)
@click.option(
    "--from",
    "tool",
    type=click.Choice(TOOLS),
    help="Take the positions from this tool's state, for streams that continue where it stopped.",
)
@click.option("--overwrite", is_flag=True, help="Replace keys that have another value.")
@click.option("--delete", is_flag=True, help="Delete keys that the document does not have.")
@yes
@dry_run
@as_json
@store_option()
def import_(
    namespace: str,
    file: Any,
    form: str,
    tool: Tool | None,
    *,
    overwrite: bool,
    delete: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Store a document in a namespace.

    It comes from FILE, or from standard input. If a key has another value, nothing is written, unless --overwrite
    is given. If NAMESPACE is a pattern such as 'crm_*', the document must be one that `checkpoint export` wrote
    with a pattern, and only the namespaces that match are stored.

    Example: checkpoint import crm_acme crm.json --dry-run
    """
    documents = _documents_in(file.read(), namespace, form)
    if tool is not None:
        documents = {name: tool_positions(document, tool) for name, document in documents.items()}
    with using(url) as store:
        plans = [
            _import_plan(Namespace(store, name), names_in(document, form), overwrite=overwrite, delete=delete)
            for name, document in documents.items()
        ]

        def ask(_: int) -> str | None:
            replaced = [
                n for plan in plans for n, value in plan.changes.items() if value is not None and plan.there.entry(n)
            ]
            gone = [n for plan in plans for n, value in plan.changes.items() if value is None]
            does = [f"{verb} {counted(names)}" for verb, names in (("replace", replaced), ("delete", gone)) if names]
            return f"{' and '.join(does).capitalize()} of {namespace!r}?" if does else None

        carry_out(plans, namespace, dry_run=dry_run, as_json=as_json, ask=ask, yes=yes)


def _documents_in(text: bytes, namespace: str, form: str) -> dict[str, Any]:
    """Return the documents in a text by namespace, or end with a one-sentence error."""
    try:
        document: Any = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"this is not a document of the format {form}: {error}") from error
    several = _namespaces_in(document)
    if not is_pattern(namespace):
        if several is not None:
            raise click.ClickException(
                f"this document holds namespaces by name ({words.some([*several])}): "
                "import it with a pattern that matches them, such as '*'"
            )
        return {namespace: document}
    document = document if several is None else several
    if not isinstance(document, dict):
        raise click.ClickException(f"the pattern {namespace!r} needs a document that was exported with a pattern")
    found = {name: each for name, each in cast("dict[str, Any]", document).items() if fnmatchcase(name, namespace)}
    if not found:
        raise click.ClickException(f"no namespace in the document matches {namespace!r}")
    try:
        for name in found:
            check_name("namespace", name)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    return found


def _namespaces_in(document: Any) -> dict[str, Any] | None:
    """Return the namespaces of a document exported with a pattern; None for any other document."""
    if not isinstance(document, dict):
        return None
    members = cast("dict[str, Any]", document)
    found: Any = members.get(NAMESPACES)
    return cast("dict[str, Any]", found) if isinstance(found, dict) and len(members) == 1 else None


def _import_plan(there: Namespace, values: dict[Name, str], *, overwrite: bool, delete: bool) -> Plan:
    differing = [name for name in values if there.entry(name) and name in planned(there, values).changes]
    if differing and not overwrite:
        raise click.ClickException(
            f"{words.some([name.said for name in differing])} in {there.state_key!r} "
            f"{'has another value' if len(differing) == 1 else 'have other values'}, and nothing was written: "
            f"--overwrite replaces {'it' if len(differing) == 1 else 'them'}, and with --dry-run only shows the change"
        )
    for name, value in values.items():
        check_settable(there, name, value, raw=True)
    gone = [name for name in there.names if delete and name not in values]
    return planned(there, {**values, **dict.fromkeys(gone)})


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("it has duplicate keys")
    return members
