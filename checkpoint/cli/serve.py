"""`checkpoint serve`: the state API over any store."""

from __future__ import annotations

import errno
import re

import click

from checkpoint.cli.options import opened, store_option


def rate_of(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, float] | None:
    """Return the numbers of `N/SECONDS`, such as 500/10."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+(?:\.\d+)?)", value)
    if match is None or not (int(match[1]) and float(match[2])):
        raise click.BadParameter(f"{value!r} is not requests/seconds, such as 500/10.")
    return int(match[1]), float(match[2])


@click.command()
@store_option("a SQLite file in your state folder")
@click.option(
    "--port", metavar="N", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one."
)
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--token",
    envvar="CHECKPOINT_SERVER_TOKEN",
    help="The token that clients send. Better set $CHECKPOINT_SERVER_TOKEN: the list of processes shows arguments.",
)
@click.option("--page-size", type=click.IntRange(min=1), metavar="N", help="List at most N entries a page.")
@click.option(
    "--rate",
    metavar="N/SECONDS",
    callback=rate_of,
    help="Allow N requests in any span of SECONDS, such as 500/10. More get 429.",
)
@click.option(
    "--max-body",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="Refuse larger requests. Default: 16 MiB; 64 MiB for a commit.",
)
def serve(
    *,
    url: str | None,
    port: int,
    host: str,
    token: str | None,
    page_size: int | None,
    rate: tuple[int, float] | None,
    max_body: int | None,
) -> None:
    """Serve the state API over any store, to clients with the token.

    Prints the URL when it listens. SIGTERM and Ctrl-C stop it, after the requests under way are answered.
    """
    if not token:
        raise click.UsageError("a token is needed: set $CHECKPOINT_SERVER_TOKEN, or give --token")
    try:
        from checkpoint import server  # fastapi and uvicorn are an extra
    except ModuleNotFoundError as error:
        raise click.ClickException(f"serving needs {error.name}: pip install 'checkpoint-store[server]'") from error
    default = server.DEFAULTS
    options = server.Switches(
        page_size=page_size,
        rate=rate,
        max_body=max_body or default.max_body,
        max_commit=max_body or default.max_commit,
    )
    store = opened(url)
    try:
        store.load("checkpoint serve")  # a store that cannot be used is told now, not to every client
        server.serve(store, token, host, port, options, ready=lambda base: click.echo(f"Listening on {base}"))
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        other = "--port" if error.errno in {errno.EADDRINUSE, errno.EACCES} else "--host"
        raise click.ClickException(f"{host}:{port} cannot be listened on, so try another {other}: {error}") from error
