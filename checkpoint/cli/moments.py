"""Moments and lengths of time on the command line: `2024-05-01T10:00Z`, `2h`."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

import click

from checkpoint.cli import screen

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}


class When(NamedTuple):
    """A point in a namespace's history: after the commit of a version, or at a time."""

    text: str
    version: int | None = None
    at: datetime | None = None

    def is_reached_by(self, version: int | None, at: str | None) -> bool:
        """Tell whether the commit of a version, made at a time, was made by then."""
        if self.version is not None:
            return (version or 0) <= self.version
        then = screen.instant(at)
        return then is not None and self.at is not None and then <= self.at


def seconds_in(text: str) -> int | None:
    """Return the seconds of a length of time such as `2h`; None: it is none."""
    found = re.fullmatch(rf"([0-9]{{1,6}}) ?({'|'.join(_UNITS)})", text)
    return None if found is None else int(found[1]) * _UNITS[found[2]]


def when_given(_ctx: click.Context, _param: click.Parameter, value: str | None) -> When | None:
    """Return the moment that a version (`12`), a time (`2024-05-01T10:00Z`) or an age (`2h`) names."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,18}", value):
        return When(value, version=int(value))
    seconds = seconds_in(value)
    try:
        at = screen.instant(value) if seconds is None else datetime.now(timezone.utc) - timedelta(seconds=seconds)
    except OverflowError:  # before the first year
        at = None
    if at is None:
        raise click.BadParameter(f"{value!r} is no version (12), time (2024-05-01T10:00Z) or age (2h).")
    return When(value, at=at)


def age_given(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds of an age such as `2h`."""
    if value is None:
        return None
    seconds = seconds_in(value)
    if seconds is None:
        raise click.BadParameter(f"{value!r} is no age, such as 90 min, 2h or 1d.")
    return float(seconds)
