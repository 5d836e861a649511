"""What several verbs share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from checkpoint.stores.base import Store


def store_option(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option `--store`, which a verb gets as `url`; None: `default` says what is taken."""
    return click.option(
        "--store",
        "url",
        envvar="CHECKPOINT_STORE",
        metavar="URL",
        help=f"Such as sqlite:///state.db or https://api.truto.one. Default: $CHECKPOINT_STORE, else {default}.",
    )


def opened(url: str | None) -> Store:
    """Return the store that a URL names, or end with one sentence."""
    from checkpoint.stores import open_store  # noqa: PLC0415 - only now is it needed

    try:
        return open_store(url)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
