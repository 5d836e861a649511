"""`checkpoint ui`: show a store as a web page in the local browser."""

from __future__ import annotations

import os
import sys
import webbrowser
from secrets import token_urlsafe
from threading import Thread

import click

from checkpoint.cli import screen
from checkpoint.cli.options import missing, opened, server_library, store_named, store_option
from checkpoint.overview.commands import Commands


@click.command()
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65535),
    default=0,
    help="The port to listen on. Default: any free one.",
)
@click.option("--no-browser", is_flag=True, help="Only print the address and the password.")
@store_option()
def ui(*, url: str | None, port: int, no_browser: bool) -> None:
    """Show a store in the browser.

    It shows namespaces, keys and members, their history and runs, and the commands that repair them. Nothing can be
    changed there. It listens on this machine only, and prints a password for the browser's question; any user name
    will do. Ctrl-C stops it.

    Example: checkpoint ui --store sqlite:///state.db
    """
    server = server_library()
    store = opened(url)
    if said := missing(store):
        store.close()
        raise click.ClickException(said)
    password = token_urlsafe(12)
    access = server.Access.of_environment({"CHECKPOINT_SERVER_READ_TOKEN": password})

    def ready(base: str) -> None:
        address = f"{base}/ui/"
        screen.say(f"{store!r} is shown at {address}")
        screen.say(f"Password: {password} (any user name; Ctrl-C stops it)")
        if not no_browser and can_show():
            Thread(target=webbrowser.open, args=[address], daemon=True).start()  # some block until they are closed

    shown = server.Shown(commands=Commands(store_named(url, store)))
    try:
        server.serve(store, access, port=port, page=shown, ready=ready)
    except OSError as error:
        raise click.ClickException(f"cannot listen on port {port}: {error}; try another --port") from error


def can_show() -> bool:
    """Tell whether a graphical browser can open: a text browser would take over the terminal."""
    shown = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in {"darwin", "win32"} or any(os.environ.get(name) for name in shown)
