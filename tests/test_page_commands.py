"""The commands that the page shows: what a shell makes of them."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from freezegun import freeze_time

from checkpoint import codec
from checkpoint.overview.commands import Commands, quoted
from checkpoint.overview.namespaces import Name

NAMES = [
    "plain", "two words", "it's", '"quoted"', "$HOME", "$(touch /tmp/x)", "`id`", "a;b|c&d>e", "back\\slash", "*", "~",
    "#", "ü", "日本", "line\u2028end", "turned\u202eback", "both'\u202e\\", "!history", "\u202e0777", "-dash",
    "--store",
    "a=b",
]  # fmt: skip


SHELLS = [(shell, name) for name in NAMES for shell in ("bash", "sh") if shell == "bash" or name.isprintable()]
"""dash reads no `$'…'` yet."""


@pytest.mark.parametrize(("shell", "name"), SHELLS)
def test_a_shell_reads_each_name_exactly(shell, name):
    printed = subprocess.run([shell, "-c", f"printf %s {quoted(name)}"], capture_output=True, check=True).stdout
    assert printed.decode() == name
    assert quoted(name).isprintable()


def test_an_older_shell_obeys_nothing_in_a_name():
    word = quoted("'; echo obeyed >&2; '\u202e")
    assert subprocess.run(["sh", "-c", f"printf %s {word}"], capture_output=True, check=True).stderr == b""


def words(line):
    return shlex.split(line)


def test_each_command_names_what_it_is_about():
    commands, member = Commands("sqlite:////var/lib/state.db"), Name("accounts", "a 17")
    store = ["--store", "sqlite:////var/lib/state.db"]
    assert words(commands.unlock("crm")) == ["checkpoint", "unlock", "crm", *store]
    assert words(commands.restore("crm", "12", Name("contacts"))) == [
        *("checkpoint", "restore", "crm", "contacts", "--to", "12"), *store
    ]  # fmt: skip
    assert words(commands.restore("crm", "12", member)) == [
        *("checkpoint", "restore", "crm", "accounts", "--member", "a 17", "--to", "12"), *store
    ]  # fmt: skip
    assert words(commands.restore("crm", "2024-05-01T10:00:00Z")) == [
        *("checkpoint", "restore", "crm", "--to", "2024-05-01T10:00:00Z"), *store
    ]  # fmt: skip
    assert words(commands.differences("crm", "2d")) == ["checkpoint", "diff", "crm", "--since", "2d", *store]


def test_a_name_that_begins_with_a_dash_comes_after_the_options():
    assert Commands().unlock("-crm") == "checkpoint unlock -- -crm"
    assert Commands().restore("crm", "3", Name("-k")) == "checkpoint restore --to 3 -- crm -k"


@pytest.mark.parametrize(
    "url", ["postgresql://me:secret@db/state", "s3://bucket?secret_access_key=s", "https://api.truto.one?rate=50/10"]
)
def test_the_stores_url_is_left_out_where_it_may_hold_a_secret(url):
    assert Commands(url).unlock("crm") == 'checkpoint unlock crm --store "$CHECKPOINT_STORE"'


def test_a_namespace_called_like_the_variable_is_quoted():
    assert words(Commands("a@b").unlock("$CHECKPOINT_STORE"))[2] == "$CHECKPOINT_STORE"
    assert "'$CHECKPOINT_STORE'" in Commands().unlock("$CHECKPOINT_STORE")


EPOCH = 1_714_600_000


@pytest.mark.parametrize(
    ("cursor", "before", "how"),
    [
        ({"updated_at": "2024-05-01T10:00:00Z"}, None, "--by 2d"),
        ({"updated_at": "2024-05-01 10:00"}, None, "--by 2d"),
        ({"updated_at": "2024-05-01T10:00:00Z", "page": 3}, None, "--by 2d --field updated_at"),
        ({"updated_at": "2024-05-03T23:59:00Z"}, None, "--by 2d"),
        ({"updated_at": "2024-06-03T00:00:00Z"}, None, "--to 2024-05-01T00:00:00Z"),  # to two days before now
        ({"at": EPOCH}, None, "--by 2d --cursor-format epoch_s"),
        ({"id": 500}, 400, "--to 400"),
        ({"id": 500}, None, None),
        ({"id": 500}, "400", None),
        ({"id": "500"}, "400", "--to 400"),
        ({"id": "01HV9"}, "01HV8", "--to 01HV8 --cursor-format text"),
        ({"id": "01HV8"}, "01HV9", None),
        ({"id": True}, None, None),
        ({"a": 1, "b": 2}, None, None),
        ({}, None, None),
    ],
)
def test_a_rewind_goes_back_by_time_or_to_the_value_before(cursor, before, how):
    expected = None if how is None else f"checkpoint rewind n k {how}"
    with freeze_time("2024-05-03"):
        assert Commands().rewind("n", Name("k"), codec.encode(cursor), before) == expected


def test_text_that_is_no_cursor_has_no_position():
    assert Commands().rewind("n", Name("k"), "opaque") is None
