"""Moments and lengths of time, as options of the command line."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import click

from checkpoint.overview.moments import When, instant, seconds_in


def when_given(_ctx: click.Context, _param: click.Parameter, value: str | None) -> When | None:
    """Parse a moment: a version (`12`), a time (`2024-05-01T10:00Z`) or an age (`2h`)."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,18}", value):
        return When(value, version=int(value))
    seconds = seconds_in(value)
    try:
        at = instant(value) if seconds is None else datetime.now(timezone.utc) - timedelta(seconds=seconds)
    except OverflowError:  # before the first year
        at = None
    if at is None:
        raise click.BadParameter(f"{value!r} is not a version (12), a time (2024-05-01T10:00Z) or an age (2h).")
    return When(value, at=at)


def age_given(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Parse an age such as `2h` into seconds."""
    if value is None:
        return None
    seconds = seconds_in(value)
    if seconds is None:
        raise click.BadParameter(f"{value!r} is not an age such as 90min, 2h or 1d.")
    return float(seconds)
