"""`checkpoint copy`, `move`, `export` and `import`: take state from one place to another."""

from __future__ import annotations

import json
from contextlib import nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from checkpoint.cli import screen
from checkpoint.cli.documents import NAMESPACES, VALUES, document_of, names_in, positions_in
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
        click.option("--to", "target", metavar="URL", help="The store to write to. Default: the same one."),
        click.option("--as", "name", metavar="NAME", callback=checked, help="The name of the copy. Default: the same."),
        click.option("--all", "every", is_flag=True, help="Every namespace of the store."),
        click.option("--overwrite", is_flag=True, help="Replace keys that hold something else there."),
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

    Reads back what it wrote, and compares. If it is interrupted, start it again and it continues. If a key holds
    something else at the target, nothing is written, unless --overwrite is given. Times, versions and history start
    anew there; reserved keys are not copied.
    """
    _carry("copy", copying.copy, **options)


@click.command()
@_options
def move(**options: Any) -> None:
    """Copy a namespace, compare, and delete it here.

    Like `checkpoint copy`. A key that was changed here meanwhile is not deleted.
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
        raise click.UsageError("name one NAMESPACE, or give --all")
    if every and name is not None:
        raise click.UsageError("--as is for one NAMESPACE")
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
    _report(verb, plans, dry_run=dry_run, as_json=as_json)


def _other(target: str | None, store: Store) -> AbstractContextManager[Store]:
    return nullcontext(store) if target is None else using(target)


def _ask(verb: str, plans: list[Copy], *, overwrite: bool, yes: bool) -> None:
    """Ask before something is lost: values replaced at the target, or deleted here by a move."""
    total = sum(each.total for each in plans)
    replaced = sum(len(each.replaced) for each in plans)
    if overwrite and replaced:
        confirm(f"Replace {words.count(replaced, 'key')} there?", sure=yes)
    if verb == "move":
        confirm(f"Delete {words.count(total, 'key')} here once copied?", sure=yes)


def _report(verb: str, plans: list[Copy], *, dry_run: bool, as_json: bool) -> None:
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
    columns = ("namespace", "there", "new", "replaced", "equal")
    screen.show_table(columns, rows, wide="there", right=columns[2:])
    total = words.count(sum(each.total for each in plans), "key")
    if dry_run:
        screen.say(f"{total} to {verb}; nothing was written.")
    elif verb == "move":
        screen.say(f"{total} there, compared, and deleted here.")
    else:
        screen.say(f"{total} there, and compared.")


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
@click.option("--overwrite", is_flag=True, help="Replace FILE.")
@store_option()
def export(namespace: str, file: Path, form: str, *, overwrite: bool, url: str | None) -> None:
    """Write a namespace as a document.

    To FILE, or to standard output. The format json writes a value that is not a cursor, such as a placeholder of a sync
    job, as its text; the formats of other systems hold cursors only. Members of groups are under __group__, by name. If
    NAMESPACE is a pattern, 'crm_*', the namespaces are under __namespaces__, by name.
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
    help="Take the positions out of this tool's state, for streams that go on where it stopped.",
)
@click.option("--overwrite", is_flag=True, help="Replace keys that hold something else.")
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

    From FILE, or from standard input. If a key holds something else, nothing is written, unless --overwrite is given.
    If NAMESPACE is a pattern, 'crm_*', the document must be one that `checkpoint export` wrote with a pattern, and only
    the namespaces that match are stored.
    """
    documents = _documents_in(file.read(), namespace, form)
    if tool is not None:
        documents = {name: positions_in(document, tool) for name, document in documents.items()}
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
            if not (replaced or gone):
                return None
            return f"Replace {counted(replaced)} and delete {counted(gone)} of {namespace!r}?"

        carry_out(plans, namespace, dry_run=dry_run, as_json=as_json, ask=ask, yes=yes)


def _documents_in(text: bytes, namespace: str, form: str) -> dict[str, Any]:
    """Return the documents in a text by namespace, or end with a one-sentence error."""
    try:
        document: Any = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"this is no document of the format {form}: {error}") from error
    several = _namespaces_in(document)
    if not is_pattern(namespace):
        if several is not None:
            raise click.ClickException(
                f"this is a document of namespaces ({words.some([*several])}), not of one: "
                "import it with a pattern of their names, such as '*'"
            )
        return {namespace: document}
    document = document if several is None else several
    if not isinstance(document, dict):
        raise click.ClickException(f"the pattern {namespace!r} needs a document with namespaces by name")
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
            f"{there.state_key!r} holds {words.some([name.said for name in differing])} otherwise, and nothing was "
            "written: --overwrite replaces, and shows what with --dry-run"
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
