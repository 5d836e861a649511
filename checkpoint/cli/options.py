"""Shared by several verbs: arguments and options, opening the store, and asking before something is lost."""

from __future__ import annotations

import os
import sys
from contextlib import closing, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar
from urllib.parse import quote

import click
from click.core import ParameterSource

from checkpoint.entries import GROUP_PREFIX, RESERVED, named
from checkpoint.errors import CheckpointError, CorruptState
from checkpoint.overview.commands import Commands
from checkpoint.overview.namespaces import Namespace, names_of_namespaces
from checkpoint.stores import open_store
from checkpoint.stores.base import check_name
from checkpoint.streams.keys import Clock
from checkpoint.streams.spellings import UNITS, spelling

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import ModuleType

    from checkpoint.stores.base import Store

STATE_FOLDER = "a SQLite file in your state folder"


def store_option(default: str = STATE_FOLDER) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option `--store`, which sets a verb's `url`; `default` describes what None stands for."""
    return click.option(
        "--store",
        "url",
        envvar="CHECKPOINT_STORE",
        metavar="URL",
        callback=_store_given,
        help=f"The store: sqlite:///state.db, https://api.truto.one … Default: $CHECKPOINT_STORE, else {default}.",
    )


def _store_given(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return the URL given after the verb, else the one before it, else that of the environment."""
    if ctx.parent is None or ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE:
        return value
    before: str | None = ctx.parent.params.get("url")
    return value if before is None else before


def store_named(url: str | None, store: Store) -> str | None:
    """Return a store's URL for a command to copy, valid in any folder; None: it is the default store."""
    path: object = getattr(store, "path", None)
    if url is None or not isinstance(path, Path):
        return url
    _, mark, options = url.partition("?")
    return f"sqlite:///{quote(str(path.absolute()))}{mark}{options}"


def opened(url: str | None) -> Store:
    """Return the store of a URL, or end with a one-sentence error."""
    try:
        return open_store(url)
    except (ValueError, ImportError) as error:  # ImportError: the store's library is an extra
        raise click.ClickException(" ".join(str(error).split())) from error  # psycopg's message has several lines


@contextmanager
def using(url: str | None) -> Generator[Store]:
    """Open the store of a URL, and close it afterwards; create it if it does not exist."""
    with closing(opened(url)) as store:
        yield store


@contextmanager
def reading(url: str | None, option: str = "--store") -> Generator[Store]:
    """Open the store of a URL given by this option, and close it afterwards; end with an error if it does not exist."""
    with using(url) as store:
        if said := missing(store, option):
            raise click.ClickException(said)
        try:
            yield store
        except CorruptState as error:
            if (command := commands_for(url, store).replace(store, error)) is None:
                raise
            raise click.ClickException(f"{error}\n{REPLACE} {command}") from error


REPLACE = "To replace it by its last readable value:"


def commands_for(url: str | None, store: Store) -> Commands:
    """Return the commands for a store of this URL; without `--store` if the environment names it."""
    return Commands(None if url == os.environ.get("CHECKPOINT_STORE") else store_named(url, store))


def server_library() -> ModuleType:
    """Return `checkpoint.server`, or end with the error that its extra is not installed."""
    try:
        from checkpoint import server  # fastapi and uvicorn are an extra
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]  # the import may fail at a submodule
        raise click.ClickException(f"serving needs {name}: pip install 'checkpoint-store[server]'") from error
    return server


def missing(store: Store, option: str = "--store") -> str | None:
    """Return the message that there is no store yet; None if there is one.

    Opening a file creates it, so a mistyped path would look like an empty store. If the folder is missing too, the
    store reports that itself and creates nothing.
    """
    path: object = getattr(store, "path", None)
    with suppress(OSError):  # the store's own message is better
        if isinstance(path, Path) and path.parent.is_dir() and not path.exists():
            return f"there is no {path}: check {option} (a job creates it at its first run)"
    return None


def checked(_ctx: click.Context, param: click.Parameter, value: Names) -> Names:
    """Return one or several names, checked to be valid in every store."""
    what = "key" if param.name in {"key", "keys"} else "namespace"
    try:
        for name in (value,) if isinstance(value, str) else value or ():
            check_name(what, name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value


def checked_keys(ctx: click.Context, param: click.Parameter, value: Names) -> Names:
    """Return one or several keys, checked not to be reserved."""
    for name in (value,) if isinstance(value, str) else value or ():
        if name.startswith(GROUP_PREFIX):
            group, member = named(name)
            raise click.BadParameter(
                f"{name!r} is how a group is stored: give its name"
                + (f" and the member, {group} --member {member}." if member is not None else ".")
            )
        if name.startswith(RESERVED):
            raise click.BadParameter(f"{name!r} is reserved: keys that begin with {RESERVED} belong to the library.")
    return checked(ctx, param, value)


def complete_namespace(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the namespaces with this prefix; none if the store cannot list them."""
    with suppress(CheckpointError, click.ClickException, ValueError), reading(ctx.params.get("url")) as store:
        return [name for name in names_of_namespaces(store) if name.startswith(incomplete)]
    return []


def complete_key(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the keys of the namespace with this prefix."""
    name = ctx.params["namespace"]
    if name is None:  # the given name is not valid
        return []
    with suppress(CheckpointError, click.ClickException, ValueError), reading(ctx.params.get("url")) as store:
        there = Namespace(store, name)
        return sorted({each.key for each in there.names if each.key.startswith(incomplete)})
    return []


def complete_member(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the members of the group with this prefix."""
    name, group = ctx.params.get("namespace"), ctx.params.get("key")
    if name is None or group is None:
        return []
    with suppress(CheckpointError, click.ClickException, ValueError), reading(ctx.params.get("url")) as store:
        layout = Namespace(store, name).groups.get(group)
        return [] if layout is None else [each for each in layout.members if each.startswith(incomplete)]
    return []


def checked_member(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Return the name of a member, checked to be valid in every store."""
    try:
        if value is not None:
            check_name("a member", value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value


F = TypeVar("F", bound="Callable[..., Any] | click.Command")


class Decorator(Protocol):
    """The type of what `click.option` and `click.argument` return: adds a parameter to a verb's function."""

    def __call__(self, function: F, /) -> F:
        """Return the function, with the parameter."""
        ...


Names: TypeAlias = "str | tuple[str, ...] | None"

namespace: Decorator = click.argument("namespace", callback=checked, shell_complete=complete_namespace)
key: Decorator = click.argument("key", callback=checked_keys, shell_complete=complete_key)
keys: Decorator = click.argument(
    "keys", metavar="[KEY]...", nargs=-1, callback=checked_keys, shell_complete=complete_key
)
member: Decorator = click.option(
    "--member",
    metavar="NAME",
    callback=checked_member,
    shell_complete=complete_member,
    help="The member, if KEY is a group.",
)


def member_or_word(verb: Callable[..., None]) -> Callable[..., None]:
    """Add `--member`, also accepted as a third word: for verbs with no other argument after KEY."""

    @click.argument("word", metavar="[MEMBER]", required=False, callback=checked_member, shell_complete=complete_member)
    @member
    @wraps(verb)
    def called(*args: Any, word: str | None, member: str | None, **options: Any) -> None:
        if word is not None and member is not None:
            raise click.UsageError("the member is given twice: as MEMBER and as --member")
        verb(*args, member=member if word is None else word, **options)

    return called


as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="Print one JSON document, for programs.")
dry_run: Decorator = click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
yes: Decorator = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


class UnaskedError(click.ClickException):
    """A verb has to ask, but the input is not a terminal and the command line lacks the answer."""

    exit_code = 2


def confirm(question: str, *, sure: bool) -> None:
    """Ask before something is lost; refuse if the input is not a terminal."""
    if sure:
        return
    if not sys.stdin.isatty():
        raise UnaskedError(f"{question} There is no terminal to ask on, so nothing was written: add --yes.")
    click.confirm(question, abort=True, err=True)


def format_given(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Return the name of a cursor format, or a pattern, in the form of `cursor_format=`."""
    if value is not None:
        try:
            spelling(value, Clock(None))
        except ValueError as error:
            raise click.BadParameter(
                f"{value!r} is not a cursor format: {', '.join(UNITS)}, number, text, or a pattern such as %m/%d/%Y."
            ) from error
    return value


cursor_format: Decorator = click.option(
    "--cursor-format",
    "cursor_format",
    metavar="FORMAT",
    callback=format_given,
    help="The format of the position, as in the job's cursor_format: epoch_s, epoch_ms, number, text, %d.%m.%Y …",
)
