"""`checkpoint serve` and `checkpoint token`: a store over HTTP, and who may use it."""

from __future__ import annotations

import errno
import logging
import re
import sys

import click

from checkpoint.cli.options import opened, server_library, store_option


def rate_of(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, float] | None:
    """Parse a rate `N/SECONDS`, such as 500/10."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+(?:\.\d+)?)", value)
    if match is None or not (int(match[1]) and float(match[2])):
        raise click.BadParameter(f"{value!r} is not requests/seconds, such as 500/10.")
    return int(match[1]), float(match[2])


@click.command()
@store_option("a SQLite file in your state folder")
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="The port to listen on; 0 takes a free one.",
)
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--token",
    help="A token to read and write. Better set $CHECKPOINT_SERVER_TOKEN: the list of processes shows arguments.",
)
@click.option(
    "--host-name",
    "host_names",
    metavar="NAME",
    multiple=True,
    help="A name by which browsers reach the page under /ui, such as that of a gateway; may be repeated.",
)
@click.option(
    "--root-path", metavar="PATH", default="", help="The path under which a gateway offers the server, such as /state."
)
@click.option(
    "--workers", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="The number of processes."
)
@click.option("--page-size", type=click.IntRange(min=1), metavar="N", help="List at most N entries per page.")
@click.option(
    "--rate",
    metavar="N/SECONDS",
    callback=rate_of,
    help="Allow N requests in any SECONDS, such as 500/10; further ones get 429.",
)
@click.option(
    "--max-body",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="Refuse larger requests. Default: 16 MiB; 64 MiB for a commit.",
)
@click.option("--access-log", is_flag=True, help="Write a line for each request, without values or tokens.")
def serve(
    *,
    url: str | None,
    port: int,
    host: str,
    token: str | None,
    host_names: tuple[str, ...],
    root_path: str,
    workers: int,
    page_size: int | None,
    rate: tuple[int, float] | None,
    max_body: int | None,
    access_log: bool,
) -> None:
    """Serve a store over HTTP, to clients with a token.

    A token is needed: $CHECKPOINT_SERVER_TOKEN may read and write, $CHECKPOINT_SERVER_READ_TOKEN may read. For
    several tokens, $CHECKPOINT_SERVER_TOKENS names a file with the lines that `checkpoint token` prints; it is read
    again when it changes.

    It prints its URL once it listens. SIGTERM and Ctrl-C stop it within 10 seconds, after requests under way are
    answered.

    Example: checkpoint serve --store sqlite:///state.db
    """
    server = server_library()
    try:
        access = server.Access.of_token(token) if token else server.Access.of_environment()
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    default = server.DEFAULTS
    options = server.Switches(
        page_size=page_size,
        rate=rate,
        max_body=max_body or default.max_body,
        max_commit=max_body or default.max_commit,
    )
    if access_log:
        _log_requests()
    store = opened(url)
    try:
        store.load("checkpoint serve")  # report an unusable store now, rather than to every client
        server.serve(
            store,
            access,
            host,
            port,
            options,
            page=server.Shown(host_names),
            root_path=root_path,
            workers=workers,
            ready=_listening,
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        other = "--port" if error.errno in {errno.EADDRINUSE, errno.EACCES} else "--host"
        raise click.ClickException(f"cannot listen on {host}:{port}: {error}; try another {other}") from error


@click.command()
@click.argument("name")
@click.argument("access", metavar="ACCESS", type=click.Choice(["read", "write"]))
@click.argument("prefix")
def token(*, name: str, access: str, prefix: str) -> None:
    """Make a token for `checkpoint serve`.

    It prints the line for the file that $CHECKPOINT_SERVER_TOKENS names, and on stderr the token itself, which is
    shown only once. NAME is stored with each commit. ACCESS is read or write; write includes reading. PREFIX is the
    beginning of the namespaces that the token reaches, '*' for all.

    Example: checkpoint token etl write crm_ >> tokens
    """
    try:
        secret, line = server_library().new_token(name, access, prefix)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"The token of {name}, shown only once: {secret}", err=True)
    click.echo(line)


def _listening(base: str) -> None:
    click.echo(f"Listening on {base}")


def _log_requests() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("checkpoint.access")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
