"""The command in this process: what its verbs show at 80 columns, and how they end."""

from __future__ import annotations

import json
import re

from click.testing import CliRunner, Result
from freezegun import freeze_time

from checkpoint.cli.command import checkpoint

UNDO = (
    r"To (?:undo it|undo the commit that moved it there|see what has changed since it began|"
    r"read again from two days before now): checkpoint .*\n"
    r"|Rows between the last good position and that moment are not read again, unless --to is older\.\n"
)
"""Commands to copy, which verbs say beside what they show."""


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    with freeze_time("2024-05-03T12:00:00Z"):
        return CliRunner().invoke(checkpoint, arguments, stdin, prog_name="checkpoint")


def screen(*arguments: str, status: int = 0) -> str:
    """Return what a verb shows."""
    done = run(*arguments)
    assert (done.exit_code, re.sub(UNDO, "", done.stderr)) == (status, "")
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if line[:1] not in {"+", "-"})
    assert not re.search(" $", done.stdout, re.MULTILINE)
    return done.stdout


def error(*arguments: str, status: int = 1, stdin: str | bytes | None = None) -> str:
    """Return the one sentence that a verb ends with."""
    done = run(*arguments, stdin=stdin)
    assert (done.exit_code, done.stdout) == (status, "")
    if status == 1:
        assert done.stderr.count("\n") == 1
    return done.stderr.splitlines()[-1]


def document(*arguments: str, status: int = 0) -> object:
    done = run(*arguments)
    assert (done.exit_code, done.stderr) == (status, "")
    return json.loads(done.stdout)
