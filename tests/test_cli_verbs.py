"""The verbs of the command: their screens at 80 columns, their documents, and what they store."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from base64 import b64encode
from contextlib import closing
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from platform import python_version
from xml.etree import ElementTree as ET

import click
import pytest
from cli_screens import UNDO, document, error, run, screen
from click.testing import CliRunner
from freezegun import freeze_time

from checkpoint import Checkpointer, MemoryStore, SQLiteStore, TrutoStore
from checkpoint.cli import care
from checkpoint.cli.change import patched
from checkpoint.cli.command import checkpoint
from checkpoint.codec import encode
from checkpoint.entries import Writer, head_key, member_key
from checkpoint.errors import LeaseLost
from checkpoint.run import lease
from checkpoint.stores.base import host
from checkpoint.testing import Answer, ApiServer

FIRST = '{"updated_at":"2024-05-01T10:00:00Z"}'
SECOND = '{"updated_at":"2024-05-02T10:00:00Z","note":"[red]é"}'
VALUE_1, VALUE_2 = (b64encode(text.encode()).decode() for text in (FIRST, SECOND))


@pytest.fixture
def store(url: str) -> MemoryStore:
    """A namespace whose history is: contacts, then an opaque key and the library's own, then contacts again."""
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-01T12:00:00Z") as clock:
        store.commit("job", {"contacts": VALUE_1}, run_id="nightly-1")
        clock.move_to("2024-05-02T12:00:00Z")
        store.commit("job", {"previous_run_date": "2024-05-01T00:00:00.000Z", "__lease__": "held"})
        clock.move_to("2024-05-03T11:58:00Z")
        store.commit("job", {"contacts": VALUE_2}, run_id="nightly-2")
    return store


def values(store: MemoryStore | SQLiteStore, namespace: str = "job") -> dict[str, str]:
    return {key: entry.value for key, entry in store.load(namespace).items() if not key.startswith("__")}


BOTH = {"contacts": VALUE_2, "previous_run_date": "2024-05-01T00:00:00.000Z"}


# list, get


def test_list_of_namespaces(store):
    store.commit("only ours", {"__lease__": "held"})
    with freeze_time("2024-03-01T12:00:00Z"):
        store.commit("a much longer namespace", {str(number): "1" for number in range(1234)})
    assert screen("list") == (
        "   namespace                 keys      lag   age  last run\n"
        "!  a much longer namespace  1,234        -  63 d  -\n"
        "!  job                          2  1 d 2 h   1 d  -\n"
        "! 2 namespaces: 2 behind by more than a day ('a much longer namespace' 63 d,\n"
        "'job' 1 d 2 h).\n"
    )
    assert [row["namespace"] for row in document("list", "--all", "--json")] == [
        "a much longer namespace",
        "job",
        "only ours",
    ]
    assert document("list", "--json")[1] == {
        "namespace": "job",
        "keys": 2,
        "updated_at": "2024-05-03T11:58:00.000Z",
        "run_id": "nightly-2",
        "lag": 26 * 3600.0,
        "slowest": {"key": "contacts"},
        "age": 86_400.0,
        "last_run": None,
        "held_by": None,
    }


def test_list_of_keys(store):
    assert screen("list", "job") == (
        "key                cursor                                 lag    age  written by\n"
        'contacts           {"updated_at":"2024-05-02T10:00:…  1 d 2 h  2 min  nightly-2\n'
        'previous_run_date  "2024-05-01T00:00:00.000Z"               -    1 d  -\n'
    )
    assert screen("list", "job", "--all").splitlines()[1].split() == ["__lease__", '"held"', "-", "1", "d", "-"]


def test_long_names_leave_room_for_the_cursor(store):
    """As Airflow's are: the name of the run is cut first, then that of the key, and the cursor can be read."""
    run_id = "scheduled__2024-05-01T02:00:00+00:00"
    store.commit("dag", {f"load[2]/{run_id}/cursor": encode({"value": "2024-05-01"})}, run_id=f"dag/load/{run_id}")
    assert screen("list", "dag").splitlines()[1] == (
        'load[2]/schedul…00+00:00/cursor  {"value":"2024-05-0…    -  in 940 d  dag/l…0:00'
    )


def test_list_of_keys_as_a_document(store):
    assert document("list", "job", "--json") == [
        {
            "namespace": "job",
            "key": "contacts",
            "value": VALUE_2,
            "cursor": {"updated_at": "2024-05-02T10:00:00Z", "note": "[red]é"},
            "created_at": "2024-05-01T12:00:00.000Z",
            "updated_at": "2024-05-03T11:58:00.000Z",
            "run_id": "nightly-2",
            "version": 3,
            "lag": 26 * 3600.0,
            "age": 120.0,
        },
        {
            "namespace": "job",
            "key": "previous_run_date",
            "value": "2024-05-01T00:00:00.000Z",
            "cursor": None,
            "created_at": "2024-05-02T12:00:00.000Z",
            "updated_at": "2024-05-02T12:00:00.000Z",
            "run_id": None,
            "version": 2,
            "lag": None,
            "age": 86_400.0,
        },
    ]


def test_lists_of_nothing(url):
    assert screen("list") == "MemoryStore() holds nothing.\n"
    assert document("list", "--json") == []
    for words in (["list", "job"], ["list", "job", "--json"]):
        assert error(*words) == "Error: 'job' holds nothing in MemoryStore()"


def test_what_a_terminal_would_obey_is_shown_and_not_obeyed(store):
    with freeze_time("2024-05-03T11:59:00Z"):
        store.commit("other", {"key": "\x1b[31m\x9b\u202e"}, run_id="\x1b]0;title\x07")
        store.commit("cursors", {"\u061c": encode({"\x9b": "\u2066"})}, run_id="\u061c")
    assert screen("list", "other") == (
        "key  cursor                    lag    age  written by\n"
        'key  "\\u001b[31m\\u009b\\u202e"    -  1 min  \\u001b]0;title\\u0007\n'
    )
    cursor = '{"\\u009b":"\\u2066"}'
    assert screen("list", "cursors") == (
        f"key     cursor               lag    age  written by\n\\u061c  {cursor}    -  1 min  \\u061c\n"
    )
    assert screen("diff", "cursors", "nosuch", status=1) == f"- \\u061c  {cursor}\n"
    assert screen("history", "cursors").splitlines()[1] == f"+ \\u061c  {cursor}"
    assert screen("get", "cursors", "\u061c") == f"{cursor}\n"
    for verb in (["export", "cursors"], ["list", "cursors", "--json"], ["history", "cursors", "--json"]):
        assert not re.search("[\x7f-\x9f\u061c\u2066]", screen(*verb))
    assert document("export", "cursors") == {"\u061c": {"\x9b": "\u2066"}}


def test_get(store):
    assert screen("get", "job", "contacts") == SECOND + "\n"
    assert screen("get", "job", "contacts", "--raw") == VALUE_2 + "\n"
    assert screen("get", "job", "previous_run_date", "--raw") == "2024-05-01T00:00:00.000Z\n"
    assert screen("get", "job", "__lease__", "--raw") == "held\n"
    assert document("get", "job", "contacts", "--json") == document("list", "job", "--json")[0]


def test_get_of_what_is_not_there_or_no_cursor(store):
    assert error("get", "job", "nosuch") == "Error: there is no 'nosuch' in 'job': see `checkpoint list job`"
    assert error("get", "nosuch", "key") == "Error: 'nosuch' holds nothing in MemoryStore()"
    assert error("clear", "nosuch", "key") == "Error: 'nosuch' holds nothing in MemoryStore()"
    assert error("get", "job", "previous_run_date") == (
        "Error: 'previous_run_date' in 'job' holds no cursor (it is not base64): --raw reads and sets it as text"
    )
    assert error("get", "job", "contacts", "--raw", "--json", status=2) == ("Error: give --raw or --json, not both")


@pytest.mark.parametrize("kind", ["entries", "packed", "version 1", "version 1 in one"])
def test_get_of_a_member_of_a_group(store, kind):
    cursors = {f"a{number}": {"id": number} for number in range(40)}
    entries = {
        "entries": {
            "__group__.accounts": {"members": "entries"},
            **{f"__group__.accounts/{member}": cursor for member, cursor in cursors.items()},
        },
        "packed": {"__group__.accounts": {"shards": 1}, "__group__.accounts.00": cursors},
        "version 1": {"accounts.02-00": cursors, "accounts.02-01": {}},
        "version 1 in one": {"accounts": cursors},
    }[kind]
    store.commit("acc", {key: encode(value) for key, value in entries.items()})
    assert screen("get", "acc", "accounts", "a17") == '{"id":17}\n'
    told = document("get", "acc", "accounts", "a17", "--json")
    assert (told["value"], told["cursor"]) == (encode({"id": 17}), {"id": 17})
    assert screen("get", "acc", "accounts", "--member", "a17") == '{"id":17}\n'
    assert screen("get", "acc", "accounts", "a17", "--raw") == f"{encode({'id': 17})}\n"
    assert error("get", "acc", "accounts", "xyz") == "Error: 'accounts' in 'acc' has no member 'xyz'"
    assert error("get", "acc", "accounts", "a41").startswith("Error: 'accounts' in 'acc' has no member 'a41': did you")
    assert error("get", "acc", "account", "a17") == "Error: there is no 'account' in 'acc': did you mean 'accounts'?"
    assert (
        error("get", "acc", "accounts", "a17", "--member", "a1", status=2)
        == "Error: the member is given twice: as MEMBER and as --member"
    )


def test_get_of_a_group_tells_how_it_is_read(store):
    with Checkpointer("acc", store) as cp:
        cp.group("accounts", shards=16)["a17"] = {"id": 17}
    assert error("get", "acc", "accounts") == (
        "Error: 'accounts' in 'acc' is a group of 1 member: name one with --member, such as a17"
    )
    assert error("get", "acc", "a17") == (
        "Error: there is no key 'a17' in 'acc', but a group has a member of this name: accounts --member a17"
    )


# set, merge, edit, clear


def test_set(store):
    assert screen("set", "job", "contacts", '{"updated_at": "2024-05-03"}') == (
        f"- contacts  {SECOND}\n"
        '+ contacts  {"updated_at":"2024-05-03"}\n'
        "1 key of 'job' changed.\n"
    )  # fmt: skip
    assert store.load("job")["contacts"][:2] == ("contacts", encode({"updated_at": "2024-05-03"}))
    assert store.load("job")["contacts"].sync_job_run_id == "checkpoint set"
    assert screen("set", "job", "new", "--raw", "text") == "+ new  \"text\"\n1 key of 'job' changed.\n"


def test_set_of_what_is_stored_already_writes_nothing(store):
    before = store.load("job")
    assert screen("set", "job", "contacts", f" {SECOND}\n") == "Nothing to change in 'job'.\n"
    assert document("set", "job", "contacts", SECOND, "--json") == {"namespace": "job", "dry_run": False, "changes": []}
    assert store.load("job") == before


def test_set_as_a_document(store):
    told = document("set", "job", "contacts", FIRST, "--json", "--dry-run")
    assert told == {
        "namespace": "job",
        "dry_run": True,
        "changes": [
            {
                "key": "contacts",
                "before": {"value": VALUE_2, "cursor": json.loads(SECOND)},
                "after": {"value": VALUE_1, "cursor": json.loads(FIRST)},
            }
        ],
    }
    assert document("set", "job", "new", FIRST, "--json")["changes"][0]["before"] is None
    assert values(store) == {**BOTH, "new": VALUE_1}


@pytest.mark.parametrize(
    "value",
    [
        VALUE_2,
        "eyJhIjogMX0=",  # {"a": 1}, with a space
        "",
        "\n",
        "text",
        "two\r\nlines\n\n",
        " \u2028é\U0001f600\x00",
        encode({"n": 2**70, "f": 1e300, "é": [None, True, {}]}),
    ],
)
def test_get_into_set_round_trips_byte_for_byte(store, value):
    store.commit("job", {"key": value})
    raw = run("get", "--raw", "job", "key").stdout_bytes
    assert run("set", "--raw", "job", "copy", "-", stdin=raw).exit_code == 0
    assert values(store)["copy"] == value
    before = store.load("job")
    assert run("set", "--raw", "job", "key", "-", stdin=raw).exit_code == 0
    plain = run("get", "job", "key")
    if plain.exit_code == 0:
        assert run("set", "job", "key", "-", stdin=plain.stdout_bytes).stdout == "Nothing to change in 'job'.\n"
    assert store.load("job") == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[1]", "it is a JSON array, not an object"),
        ('{"a": NaN}', "it is not JSON: NaN"),
        ('{"a": 1, "a": 2}', "its JSON has duplicate keys"),
        (b"\xff", "it is not UTF-8 text"),
    ],
)
def test_what_is_no_cursor_is_refused(store, text, reason):
    hint = '; a cursor is a JSON object, such as {"updated_at": "2024-05-01"}'
    assert error("set", "job", "key", "-", stdin=text) == f"Error: the value for 'key' is no cursor: {reason}{hint}"
    assert error("merge", "job", "key", "-", stdin=text) == f"Error: the patch is no cursor: {reason}{hint}"
    assert values(store) == BOTH


def test_raw_text_must_be_text(store):
    assert error("set", "job", "key", "-", "--raw", stdin=b"\xff") == "Error: the value for 'key' is not UTF-8 text"


def test_names_are_checked_before_anything_is_opened(monkeypatch, url):
    monkeypatch.setenv("CHECKPOINT_STORE", "nosuch://")
    ours = "'__lease__' is reserved: keys that begin with __ belong to the library."
    for verb in (["set", "job", "__lease__", "{}"], ["merge", "job", "__lease__", "{}"], ["edit", "job", "__lease__"]):
        assert error(*verb, status=2) == f"Error: Invalid value for 'KEY': {ours}"
    for verb in ("clear", "restore"):
        assert error(verb, "job", "__lease__", status=2) == f"Error: Invalid value for '[KEY]...': {ours}"
    assert error("get", "..", "key", status=2) == "Error: Invalid value for 'NAMESPACE': namespace must not be '..'"
    assert error("list", "", status=2) == "Error: Invalid value for '[NAMESPACE]': namespace must not be ''"
    assert error("copy", "job", "--as", "a\tb", status=2) == (
        "Error: Invalid value for '--as': namespace must not hold control characters or lone surrogates: 'a\\tb'"
    )


def test_merge(store):
    assert screen("merge", "job", "contacts", '{"note": null, "seen": {"a": 1, "b": null}}', "--dry-run") == (
        f"- contacts  {SECOND}\n"
        '+ contacts  {"updated_at":"2024-05-02T10:00:00Z","seen":{"a":1}}\n'
        "1 key of 'job' would change; nothing was written.\n"
    )
    assert values(store) == BOTH
    screen("merge", "job", "contacts", '{"note": null}')
    screen("merge", "job", "new", '{"a": {"b": 1}}')
    after = {"contacts": encode({"updated_at": "2024-05-02T10:00:00Z"}), "new": encode({"a": {"b": 1}})}
    assert values(store) == {**BOTH, **after}
    assert error("merge", "job", "previous_run_date", "{}").startswith("Error: 'previous_run_date' in 'job' holds no")


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [  # RFC 7396, appendix A, as far as a patch is an object
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_is_that_of_the_rfc(target, patch, result):
    assert patched(target, patch) == result


def editor(tmp_path, monkeypatch, script: str) -> None:
    file = tmp_path / "editor"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(file))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def drafts(tmp_path) -> list[str]:
    return [file.read_text("utf-8") for file in tmp_path.glob("checkpoint-*")]


def test_edit(store, tmp_path, monkeypatch):
    editor(tmp_path, monkeypatch, f'cp "$1" {tmp_path}/seen; sed -i s/05-02/05-09/ "$1"')
    assert screen("edit", "job", "contacts").splitlines()[-1] == "1 key of 'job' changed."
    assert (tmp_path / "seen").read_text("utf-8") == (
        '{\n  "updated_at": "2024-05-02T10:00:00Z",\n  "note": "[red]é"\n}\n'
    )
    assert values(store)["contacts"] == b64encode(SECOND.replace("05-02", "05-09").encode()).decode()
    assert screen("edit", "job", "contacts") == "Nothing to change in 'job'.\n"
    assert drafts(tmp_path) == []


def test_edit_of_a_new_key_and_of_text(store, tmp_path, monkeypatch):
    editor(tmp_path, monkeypatch, """echo '{"a": 1}' > "$1" """)
    assert screen("edit", "job", "new", "--dry-run").splitlines()[0] == '+ new  {"a":1}'
    assert values(store) == BOTH
    editor(tmp_path, monkeypatch, 'sed -i s/05-01/05-07/ "$1"')
    screen("edit", "job", "previous_run_date", "--raw")
    assert values(store)["previous_run_date"] == "2024-05-07T00:00:00.000Z"


@pytest.mark.parametrize("options", [(), ("--raw",)])
def test_edit_makes_no_key_that_nobody_wrote(store, tmp_path, monkeypatch, options):
    editor(tmp_path, monkeypatch, "exit 0")
    assert screen("edit", "job", "mistyped", *options) == "Nothing to change in 'job'.\n"
    assert values(store) == BOTH
    assert drafts(tmp_path) == []


def test_edit_keeps_what_could_not_be_stored(store, tmp_path, monkeypatch):
    editor(tmp_path, monkeypatch, """echo '{"a": ' > "$1" """)
    done = run("edit", "job", "contacts")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("Error: what you wrote is no cursor: it is not JSON: ")
    assert drafts(tmp_path) == ['{"a": \n']
    assert values(store) == BOTH
    assert done.stderr.startswith(f"What you wrote is in {next(tmp_path.glob('checkpoint-*'))}\n")


def test_edit_finds_a_key_that_was_changed_meanwhile(tmp_path, monkeypatch, url):
    monkeypatch.setenv("CHECKPOINT_STORE", f"sqlite:///{tmp_path}/state.db")
    with closing(SQLiteStore(tmp_path / "state.db")) as store:
        store.commit("job", {"contacts": VALUE_1})
        other = sys.executable + """ -m checkpoint.cli set job contacts '{"by": "another"}' >/dev/null"""
        editor(tmp_path, monkeypatch, f"""{other}; echo '{{"a": 1}}' > "$1" """)
        done = run("edit", "job", "contacts")
        found = store.load("job")["contacts"]
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == (
        f"Error: 'contacts' in 'job' was changed meanwhile by another writer at {found.updated_at} (run checkpoint "
        "set), and was not overwritten: look at it, then try again"
    )
    assert found.value == encode({"by": "another"})
    assert drafts(tmp_path) == ['{"a": 1}\n']


def test_clear(store):
    assert error("clear", "job", "contacts", "nosuch").startswith("Error: there is no 'nosuch' in 'job'")
    assert screen("clear", "job", "contacts", "--dry-run") == (
        f"- contacts  {SECOND}\n1 key of 'job' would change; nothing was written.\n"
    )
    done = run("clear", "job")
    assert done.exit_code == 2
    assert (
        done.stderr.splitlines()[-1]
        == "Error: Delete 2 keys of 'job'? There is no terminal to ask on, so nothing was written: add --yes."
    )
    assert values(store) == BOTH
    assert screen("clear", "job", "contacts", "--yes").splitlines()[-1] == "1 key of 'job' changed."
    assert screen("clear", "job", "--yes").splitlines()[-1] == "1 key of 'job' changed."
    assert list(store.load("job")) == ["__lease__"]
    assert screen("clear", "job") == "Nothing to change in 'job'.\n"


# history, restore, diff, plot


def test_history(store):
    where = f"{host()} process {os.getpid()}"
    assert screen("history", "job") == (
        f"version 3, 2024-05-03T11:58:00.000Z, run nightly-2, {where}\n"
        f"- contacts  {FIRST}\n"
        f"+ contacts  {SECOND}\n"
        "\n"
        f"version 2, 2024-05-02T12:00:00.000Z, {where}\n"
        '+ previous_run_date  "2024-05-01T00:00:00.000Z"\n'
        "\n"
        f"version 1, 2024-05-01T12:00:00.000Z, run nightly-1, {where}\n"
        f"+ contacts  {FIRST}\n"
    )
    assert screen("history", "job", "contacts", "--limit", "1").splitlines()[1:] == [
        f"- contacts  {FIRST}",
        f"+ contacts  {SECOND}",
        "",
        "1 more change: --limit 2 shows all.",
    ]
    assert error("history", "job", "nosuch") == "Error: there is no 'nosuch' in 'job': see `checkpoint list job`"
    assert error("history", "job", "contract") == "Error: there is no 'contract' in 'job': did you mean 'contacts'?"
    assert error("history", "jbo") == "Error: 'jbo' holds nothing in MemoryStore(): did you mean 'job'?"
    assert document("history", "job", "--json", "--limit", "1") == [
        {
            "version": 3,
            "at": "2024-05-03T11:58:00.000Z",
            "run_id": "nightly-2",
            "host": host(),
            "process": os.getpid(),
            "member": None,
            "reason": None,
            "by": None,
            "key": "contacts",
            "before": {"value": VALUE_1, "cursor": json.loads(FIRST)},
            "after": {"value": VALUE_2, "cursor": json.loads(SECOND)},
        }
    ]


MOMENTS = [
    ("0", {}),
    ("1", {"contacts": VALUE_1}),
    ("2", {**BOTH, "contacts": VALUE_1}),
    ("3", BOTH),
    ("2024-05-01", {}),
    ("2024-05-01T12:00Z", {"contacts": VALUE_1}),
    ("2024-05-02T13:59:59+02:00", {"contacts": VALUE_1}),
    ("2024-05-02T12:00:00", {**BOTH, "contacts": VALUE_1}),
    ("1d", {**BOTH, "contacts": VALUE_1}),
    ("3 min", {**BOTH, "contacts": VALUE_1}),
    ("1m", BOTH),
]


@pytest.mark.parametrize(("moment", "then"), MOMENTS)
def test_restore_brings_back_what_was(store, moment, then):
    kept = store.history("job")
    assert run("restore", "job", "--to", moment, "--yes", "--delete").exit_code == 0
    assert values(store) == then
    assert store.load("job")["__lease__"].value == "held"
    assert store.history("job")[-len(kept) :] == kept


def test_restore_of_one_key(store):
    assert screen("restore", "job", "contacts", "--to", "1", "--dry-run") == (
        "as of version 1, 2024-05-01T12:00:00.000Z: contacts\n"
        f"- contacts  {SECOND}\n+ contacts  {FIRST}\n1 key of 'job' would change; nothing was written.\n"
    )
    assert run("restore", "job", "contacts", "--to", "1").exit_code == 2
    assert values(store) == BOTH
    screen("restore", "job", "contacts", "--to", "1", "--yes")
    assert values(store) == {**BOTH, "contacts": VALUE_1}
    assert store.load("job")["contacts"].sync_job_run_id == "checkpoint restore"
    assert error("restore", "job", "nosuch", "--to", "1") == "Error: there is no 'nosuch' in 'job', now or at version 1"
    for moment in ("soon", "999999w"):
        assert error("restore", "job", "--to", moment, status=2) == (
            f"Error: Invalid value for '--to': '{moment}' is not a version (12), a time (2024-05-01T10:00Z) or an "
            "age (2h)."
        )


def test_a_history_that_does_not_reach_back_is_an_error(url):
    store = MemoryStore.from_url(url)
    assert error("restore", "job", "--to", "1") == (
        "Error: 'job' holds nothing in MemoryStore(), and has no history there"
    )
    with freeze_time("2024-05-01T12:00:00Z"):
        for number in range(103):
            store.commit("job", {"key": str(number)})
    begins = "the history of 'key' in 'job' begins with version 4, 2024-05-01T12:00:00.000Z, so its value"
    assert error("restore", "job", "--to", "2") == f"Error: {begins} at version 2 is not known"
    assert error("diff", "job", "--since", "2024-04-01", status=2) == f"Error: {begins} at 2024-04-01 is not known"
    assert run("restore", "job", "--to", "3", "--yes").exit_code == 0
    assert values(store) == {"key": "2"}


def test_fault_90_restore_takes_the_newest_kept_state_by_then(url):
    """Of a key that is committed every 20 s; never a later state, and it says which."""
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-03T06:00:00Z") as clock:
        store.commit("job", {"quiet": "1"})
        for number in range(6 * 180):
            store.commit("job", {"busy": str(number)})
            clock.tick(20)
        store.commit("job", {"late": "1"})
    # Before the deploy at 10:00: the last change of the hour before.
    as_of = {"version": 721, "at": "2024-05-03T09:59:40.000Z"}
    back = ["restore", "job", "--to", "2024-05-03T10:00:10Z", "--json", "--dry-run"]
    done = run(*back)
    assert done.stderr == "'late' did not exist at 2024-05-03T10:00:10Z: left as it is; --delete deletes it.\n"
    assert [change["key"] for change in json.loads(done.stdout)["changes"]] == ["busy"]
    done = run(*back, "--delete")
    assert done.stderr == "'late' did not exist at 2024-05-03T10:00:10Z: this deletes 1 key.\n"
    busy, late = json.loads(done.stdout)["changes"]
    assert (busy["key"], busy["after"]["value"], busy["as_of"]) == ("busy", "719", as_of)
    assert (late["key"], late["after"]) == ("late", None)
    shown = screen("restore", "job", "busy", "--to", "2024-05-03T10:00:10Z", "--yes")
    assert shown.splitlines()[0] == "as of version 721, 2024-05-03T09:59:40.000Z: busy"
    assert values(store) == {"quiet": "1", "late": "1", "busy": "719"}
    lines = screen("history", "job", "busy", "--limit", "1").splitlines()
    assert lines[1] == "reason: restored to 2024-05-03T10:00:10Z"
    run("restore", "job", "busy", "--to", "1075", "--yes", "--reason", "the job was right")
    assert screen("history", "job", "busy", "--limit", "1").splitlines()[1] == "reason: the job was right"


@pytest.mark.parametrize("name", ["crm", "a/b"])
def test_members_are_shown_and_restored_with_their_group(url, name):
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-01T12:00:00Z"):
        store.commit("job", {head_key(name): "{}", member_key(name, "one"): "1", member_key(name, "two"): "1"})
        one = member_key(name, "one")
        store.commit("job", {one: "2"}, reasons={one: "why"}, writer=Writer("elsewhere", 7, "ops"))
        store.commit("job", {head_key(name): None, member_key(name, "one"): None, member_key(name, "two"): None})
    lines = screen("history", "job", name).splitlines()
    assert lines[:2] == ["version 3, 2024-05-01T12:00:00.000Z, " + lines[0].split(", ")[2], f'- {name} / one  "2"']
    assert lines[4].startswith("version 2, 2024-05-01T12:00:00.000Z, by ops, ")
    assert lines[5:8] == ["reason: why", f'- {name} / one  "1"', f'+ {name} / one  "2"']
    newest = document("history", "job", "--json", "--limit", "3")[2]
    assert (newest["key"], newest["member"], newest["reason"], newest["by"]) == (name, "one", "why", "ops")
    screen("restore", "job", name, "--to", "2", "--yes")
    assert {key: entry.value for key, entry in store.load("job").items()} == {
        head_key(name): encode({"members": "entries"}),
        member_key(name, "one"): "2",
        member_key(name, "two"): "1",
    }


def test_a_namespace_whose_history_was_not_kept_is_an_error(tmp_path, url):
    with closing(SQLiteStore(tmp_path / "state.db", keep=0)) as store:
        store.commit("job", {"key": "1"})
        assert error("restore", "job", "--to", "1", "--store", f"sqlite:///{tmp_path}/state.db") == (
            f"Error: 'job' has no history in {store!r}, so its state at version 1 is not known"
        )


def test_a_version_that_is_not_there_yet_is_an_error(store):
    for moment in ("4", "2030"):
        sentence = f"Error: 'job' has no version {moment}: the newest is 3"
        assert error("restore", "job", "--to", moment) == sentence
        assert error("diff", "job", "--since", moment, status=2) == sentence
    store.commit("job", {"__lease__": None})
    store.commit("job", {"__lease__": "held"})  # of which history does not tell
    assert screen("restore", "job", "--to", "5") == "Nothing to change in 'job'.\n"
    assert error("restore", "job", "--to", "6") == "Error: 'job' has no version 6: the newest is 5"


@pytest.mark.parametrize(
    ("keys", "moment", "said"),
    [
        ((), "9d", "'contacts', 'previous_run_date' did not exist 9d ago: this deletes all 2 keys."),
        ((), "0", "'contacts', 'previous_run_date' did not exist at version 0: this deletes all 2 keys."),
        (("contacts",), "9d", "'contacts' did not exist 9d ago: this deletes 1 key."),
    ],
)
def test_restore_says_that_there_was_nothing_yet(store, keys, moment, said):
    verb = ["restore", "job", *keys, "--to", moment]
    before = values(store)
    left = "all 2 keys are left as they are; --delete deletes them"
    left = "left as it is; --delete deletes it" if keys else left
    sentence = f"{said.partition(': ')[0]}: {left}. Nothing was written."
    assert error(*verb, "--yes") == f"Error: {sentence}"
    assert values(store) == before
    verb.append("--delete")
    assert run(*verb, "--dry-run").stderr == f"{said}\n"
    number = len(keys) or 2
    assert run(*verb).stderr.splitlines()[-1] == (
        f"Error: {said} Change {number} key{'s' * (number > 1)} of 'job'? There is no terminal to ask on, so "
        "nothing was written: add --yes."
    )
    assert values(store) == BOTH
    assert re.sub(UNDO, "", run(*verb, "--yes").stderr) == f"{said}\n"
    assert len(values(store)) == 2 - number
    run("restore", "job", "--to", moment, "--yes", "--delete")
    assert screen("restore", "job", "--to", moment, "--yes") == "Nothing to change in 'job'.\n"


def test_diff_of_moments_and_namespaces(store):
    store.commit(
        "other", {"contacts": b64encode(b'{"note": "[red]\\u00e9", "updated_at": "2024-05-02T10:00:00Z"}').decode()}
    )
    assert screen("diff", "job", "--since", "1", status=1) == (
        f"- contacts           {FIRST}\n"
        f"+ contacts           {SECOND}\n"
        '+ previous_run_date  "2024-05-01T00:00:00.000Z"\n'
    )
    assert screen("diff", "job", "--since", "1", "--until", "2", status=1) == (
        '+ previous_run_date  "2024-05-01T00:00:00.000Z"\n'
    )
    assert screen("diff", "job", "other", status=1) == '- previous_run_date  "2024-05-01T00:00:00.000Z"\n'
    assert screen("diff", "job", "--since", "3") == ""
    assert document("diff", "other", "job", "--json", status=1) == {
        "namespace": "other",
        "other": "job",
        "changes": [
            {
                "key": "previous_run_date",
                "before": None,
                "after": {"value": "2024-05-01T00:00:00.000Z", "cursor": None},
            }
        ],
    }
    assert screen("diff", "job", "nosuch", status=1).count("\n") == 2
    assert error("diff", "nosuch", "neither", status=2) == (
        "Error: 'nosuch' holds nothing in MemoryStore(), nor does 'neither' in MemoryStore()"
    )
    assert error("diff", "job", status=2) == "Error: compare with what? Give OTHER, --with URL or --since MOMENT"


def test_diff_of_stores(store, tmp_path):
    there = f"sqlite:///{tmp_path}/state.db"
    screen("copy", "job", "--to", there)
    assert screen("diff", "job", "--with", there) == ""
    screen("set", "job", "contacts", FIRST, "--store", there)
    assert screen("diff", "job", "--with", there, status=1) == f"- contacts  {SECOND}\n+ contacts  {FIRST}\n"
    assert error("diff", "job", "--with", "nosuch://x", status=2).startswith("Error: no store opens 'nosuch://x'")
    assert error("diff", "job", "--with", f"sqlite:///{tmp_path}/none/x.db", status=2) == (
        f"Error: {tmp_path}/none/x.db cannot be created, because its folder does not exist: create the folder"
    )


def test_plot_in_the_terminal(store):
    with freeze_time("2024-05-03T12:00:00Z"):
        store.commit("job", {"contacts": encode({"updated_at": "2024-05-03T11:00:00Z", "seen": []})})
    assert screen("plot", "job", "contacts") == (
        "job contacts\n"
        "\n"
        "position\n"
        "2024-05-03 11:00 │                                                             ●\n"
        "                 │\n"
        "                 │\n"
        "                 │\n"
        "                 │                                                             ●\n"
        "                 │\n"
        "                 │\n"
        "2024-05-01 10:00 │●─────────────────────────────────────────────────────────────\n"
        "                  2024-05-01 12:00                              2024-05-03 12:00\n"
        "\n"
        "lag\n"
        "2 d 1 h │                                                                  ─────\n"
        "        │                                                       ───────────\n"
        "        │                                              ─────────\n"
        "        │                                   ───────────                        ●\n"
        "        │                          ─────────\n"
        "        │               ───────────\n"
        "        │      ─────────\n"
        "    0 s │●─────                                                                ●\n"
        "         2024-05-01 12:00                                       2024-05-03 12:00\n"
    )
    assert document("plot", "job", "contacts", "--json")[0] == {
        "version": 1,
        "at": "2024-05-01T12:00:00.000Z",
        "position": "2024-05-01T10:00:00Z",
        "scale": 1714557600.0,
        "is_time": True,
        "lag": 7200.0,
    }


def test_a_position_to_come_does_not_flatten_a_plot(url):
    """It is cut off a day ahead of the clock, in both charts, and that is said."""
    store = MemoryStore.from_url(url)
    for day, at in ((1, "2024-04-30"), (2, "2999-04-30"), (3, "2024-05-02")):
        with freeze_time(f"2024-05-0{day}T00:00:00Z"):
            store.commit("crm", {"contacts": encode({"at": f"{at}T00:00:00Z"})})
    lines = screen("plot", "crm", "contacts").splitlines()
    said = ", cut off a day ahead of the clock: it went to 2999-04-30 00:00"
    assert [line for line in lines if "cut off" in line] == [f"position{said}", f"lag{said}"]
    labels = [line.partition("│")[0].strip() for line in lines if "│" in line]
    assert [each for each in labels if each] == ["2024-05-04 12:00", "2024-04-30 00:00", "2 d", "1 d ahead"]


def test_plot_of_numbers_has_no_lag(store):
    for number in (10, 12.5, 40):
        store.commit("ids", {"events": encode({"id": number, "page": 1})})
    assert error("plot", "ids", "events") == (
        "Error: which field of 'events' is to be drawn? id, page: choose one with --field"
    )
    shown = screen("plot", "ids", "events", "--field", "id")
    assert shown.startswith("ids events\n\nposition\n40 │")
    assert "lag" not in shown
    assert [step["lag"] for step in document("plot", "ids", "events", "--field", "id", "--json")] == [None] * 3


def test_plot_of_large_numbers_and_on_a_narrow_screen(store, monkeypatch):
    for number in (10**60, 2 * 10**60, 10**400):
        store.commit("ids", {"large": encode({"id": number})})
    assert error("plot", "ids", "large") == ("Error: 'large' has no field that can be drawn: a number, a time or text")
    lines = screen("plot", "ids", "large", "--field", "id").splitlines()
    assert (lines[3][:7], lines[10][:7]) == ("2e+60 │", "1e+60 │")
    for day in (1, 2):
        with freeze_time(f"2024-05-0{day}T12:00:00Z"):
            store.commit("ids", {"small": encode({"id": day})})
    monkeypatch.setenv("COLUMNS", "30")
    lines = screen("plot", "ids", "small").splitlines()
    assert lines[-2:] == [f"1 │●{'─' * 12}", "   2024-05-01 12:00"]
    assert lines[3] == f"2 │{' ' * 13}●{'─' * 13}"  # it stands still until now


def test_plot_as_an_image(store, tmp_path):
    store.commit("a&b", {"<key>": VALUE_1})
    file = tmp_path / "lag.svg"
    done = run("plot", "job", "contacts", "--out", str(file))
    assert (done.exit_code, done.stdout) == (0, f"2 commits of job contacts drawn in {file}.\n")
    root = ET.fromstring(file.read_text("utf-8"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == [
        "job contacts",
        *("position", "2024-05-02 10:00", "2024-05-01 10:00", "2024-05-01 12:00", "2024-05-03 12:00"),
        *("lag", "2 d 1 h", "0 s", "2024-05-01 12:00", "2024-05-03 12:00"),
    ]
    run("plot", "a&b", "<key>", "--out", str(file))
    assert ET.fromstring(file.read_text("utf-8"))[0][1].text == "a&b <key>"
    assert error("plot", "job", "contacts", "--out", "lag.pdf", status=2) == (
        "Error: lag.pdf is neither SVG nor PNG: give --out a name that ends in .svg or .png"
    )


def test_plot_as_a_png_draws_what_the_svg_does(store, tmp_path):
    from PIL import Image

    file = tmp_path / "lag.png"
    done = run("plot", "job", "contacts", "--out", str(file))
    assert (done.exit_code, done.stdout) == (0, f"2 commits of job contacts drawn in {file}.\n")
    with Image.open(file) as image:
        assert (image.format, image.size) == ("PNG", (1600, 960))
        colors = {color for _, color in image.getcolors(1 << 20)}
        blue, left = (37, 99, 235), 2 * 150
        assert {(255, 255, 255), (0, 0, 0), (136, 136, 136), blue} <= colors
        assert image.getpixel((left, 2 * 200)) == blue  # the first commit, at the bottom of the first chart
        assert image.getpixel((2 * 780, 2 * 40)) == blue  # the last one, at its top


def test_plot_as_a_png_names_the_package_that_lacks(store, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert error("plot", "job", "contacts", "--out", str(tmp_path / "lag.png")) == (
        "Error: A PNG image needs Pillow: pip install 'checkpoint-store[png]'"
    )
    assert not [*tmp_path.iterdir()]


def test_plot_of_what_cannot_be_drawn(store):
    store.commit("job", {"token": encode({"next": [1]})})
    assert error("plot", "job", "token") == ("Error: 'token' has no field that can be drawn: a number, a time or text")
    assert error("plot", "job", "token", "--field", "next") == (
        "Error: the history of 'token' in 'job' has no position to draw"
    )
    assert error("plot", "job", "nosuch") == "Error: there is no 'nosuch' in 'job': see `checkpoint list job`"
    assert error("plot", "job", "previous_run_date") == (
        "Error: there is no cursor of 'previous_run_date' in the history"
    )


def test_a_store_without_history_says_so(api: ApiServer, monkeypatch, url):
    monkeypatch.setenv("CHECKPOINT_STORE", api.url)
    monkeypatch.setenv("TRUTO_API_TOKEN", api.token)
    for verb in (["history", "job"], ["restore", "job", "--to", "1"], ["plot", "job", "key"]):
        assert error(*verb) == f"Error: TrutoStore('{api.url}') keeps no history"
    assert error("diff", "job", "--since", "1", status=2) == f"Error: TrutoStore('{api.url}') keeps no history"
    assert error("list") == f"Error: TrutoStore('{api.url}') cannot list its namespaces: name one"


# copy, move, export, import


def test_copy(store, tmp_path):
    there = f"sqlite:///{tmp_path}/state.db"
    assert screen("copy", "job", "--to", there, "--dry-run") == (
        "namespace  target  new  replaced  equal\n"
        "job        job       2         0      0\n"
        "2 keys would be written; nothing was written.\n"
    )
    assert screen("copy", "job", "--to", there).splitlines()[-1] == "2 keys copied and compared."
    screen("set", "job", "contacts", FIRST, "--store", there)
    assert error("copy", "job", "--to", there) == (
        "Error: the target has another value for 'contacts' in 'job', so the namespace was not written: overwrite it "
        "(--overwrite), or choose another name (--as)"
    )
    assert error("copy", "job", "--to", there, "--overwrite", status=2) == (
        "Error: Replace 1 key at the target? There is no terminal to ask on, so nothing was written: add --yes."
    )
    assert document("copy", "--all", "--to", there, "--overwrite", "--yes", "--json") == {
        "dry_run": False,
        "namespaces": [
            {
                "namespace": "job",
                "name": "job",
                "new": [],
                "replaced": ["contacts"],
                "equal": ["previous_run_date"],
            }
        ],
    }
    with closing(SQLiteStore(tmp_path / "state.db")) as copied:
        assert values(copied) == BOTH == values(store)


def test_move(store):
    assert error("move", "job", "--as", "new", status=2) == (
        "Error: Delete 2 keys of the original after copying? There is no terminal to ask on, so nothing was "
        "written: add --yes."
    )
    assert values(store) == BOTH
    assert screen("move", "job", "--as", "new", "--yes").splitlines()[-1] == (
        "2 keys copied, compared, and deleted in the original."
    )
    assert (values(store), values(store, "new")) == ({}, BOTH)
    assert error("move", "job", "--as", "new", "--yes") == "Error: 'job' holds nothing in MemoryStore()"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to", "memory://x"], "give one NAMESPACE, or --all"),
        (["job", "--all"], "give one NAMESPACE, or --all"),
        (["--all", "--to", "memory://x", "--as", "y"], "--as goes with one NAMESPACE, not with --all"),
        (["job"], "where to? Give --to URL, or --as another NAME"),
        (["job", "--as", "job"], "where to? Give --to URL, or --as another NAME"),
    ],
)
@pytest.mark.parametrize("verb", ["copy", "move"])
def test_where_to(store, verb, arguments, sentence):
    assert error(verb, *arguments, status=2) == f"Error: {sentence}"


def test_export_and_import_of_values_lose_nothing(store, tmp_path):
    store.commit("job", {"spaced": "eyJhIjogMX0="})
    file = tmp_path / "job.json"
    there = str(file)
    shown = run("export", "job", there, "--format", "values").stdout
    assert shown == f"3 keys of 'job' written to {file}.\n"
    assert error("export", "job", there) == f"Error: {file} exists, and nothing was written: --overwrite replaces it"
    assert run("export", "job", there, "--format", "values", "--overwrite").exit_code == 0
    assert json.loads(file.read_text("utf-8")) == {**BOTH, "spaced": "eyJhIjogMX0="}
    assert screen("import", "new", str(file), "--format", "values").splitlines()[-1] == "3 keys of 'new' changed."
    assert values(store, "new") == {**BOTH, "spaced": "eyJhIjogMX0="}


def test_export_of_cursors(store):
    assert error("export", "job", "--format", "singer") == (
        "Error: 'previous_run_date' in 'job' holds no cursor, and the format singer holds nothing else: "
        "export --format values"
    )
    text = run("export", "job").stdout
    assert json.loads(text) == {"contacts": json.loads(SECOND), "previous_run_date": "2024-05-01T00:00:00.000Z"}
    assert run("import", "placeholders", stdin=text).exit_code == 0
    assert values(store, "placeholders") == BOTH
    assert error("export", "nosuch") == "Error: 'nosuch' holds nothing in MemoryStore()"
    screen("clear", "job", "previous_run_date", "--yes")
    assert document("export", "job") == {"contacts": json.loads(SECOND)}
    assert document("export", "job", "--format", "singer") == {"bookmarks": {"contacts": json.loads(SECOND)}}
    for form in ("json", "singer", "airbyte", "meltano"):
        text = run("export", "job", "--format", form).stdout
        assert run("import", form, "--format", form, stdin=text).exit_code == 0
        assert run("export", form, "--format", form).stdout == text


def test_import_replaces_and_deletes_only_when_told(store, tmp_path):
    file = tmp_path / "job.json"
    file.write_text(json.dumps({"contacts": {"a": 1}, "new": {"b": 2}}))
    assert error("import", "job", str(file)) == (
        "Error: 'contacts' in 'job' has another value, and nothing was written: --overwrite replaces it, and with "
        "--dry-run only shows the change"
    )
    everything = ["import", "job", str(file), "--overwrite", "--delete"]
    assert screen(*everything, "--dry-run") == (
        f"- contacts           {SECOND}\n"
        '+ contacts           {"a":1}\n'
        '+ new                {"b":2}\n'
        '- previous_run_date  "2024-05-01T00:00:00.000Z"\n'
        "3 keys of 'job' would change; nothing was written.\n"
    )
    done = run(*everything)
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (
        2,
        (
            "Error: Replace 1 key and delete 1 key of 'job'? There is no terminal to ask on, so nothing was written: "
            "add --yes."
        ),
    )
    assert values(store) == BOTH
    assert document(*everything, "--yes", "--json")["dry_run"] is False
    assert values(store) == {"contacts": encode({"a": 1}), "new": encode({"b": 2})}
    assert store.load("job")["__lease__"].value == "held"


@pytest.mark.parametrize(
    ("form", "text", "reason"),
    [
        ("json", "{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("json", '{"a": {}, "a": {}}', "it has duplicate keys"),
        ("json", '{"a": 1}', None),
        ("values", '{"a": 1}', "its values must be texts"),
        ("values", "[]", "its values must be texts"),
        ("values", '{"__lease__": "x"}', "'__lease__' is reserved"),
        ("values", '{"": "x"}', "key must not be ''"),
        ("values", '{"a": "\\ud800"}', "the value of 'a' must not hold lone surrogates"),
    ],
)
def test_import_of_what_is_no_such_document(store, form, text, reason):
    said = error("import", "job", "--format", form, stdin=text)
    assert said.startswith(f"Error: this is not a document of the format {form}: {reason or ''}")
    assert values(store) == BOTH


LOOKING = [
    ["list"],
    ["list", "job"],
    ["get", "job", "key"],
    ["clear", "job", "--yes"],
    ["history", "job"],
    ["restore", "job", "--to", "1"],
    ["plot", "job", "key"],
    ["copy", "job", "--to", "memory://x"],
    ["move", "--all", "--to", "memory://x"],
    ["export", "job"],
    ["unlock", "job"],
]


@pytest.mark.parametrize("verb", LOOKING, ids=" ".join)
def test_looking_makes_no_store(tmp_path, monkeypatch, url, verb):
    there = tmp_path / "state" / "checkpoint" / "state.db"
    monkeypatch.delenv("CHECKPOINT_STORE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    hint = "check --store (a job creates it at its first run)"
    assert error(*verb) == f"Error: there is no {there}: {hint}"
    assert error(*verb, "--store", f"sqlite:///{tmp_path}/nope.db") == f"Error: there is no {tmp_path}/nope.db: {hint}"
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_diff_and_doctor_make_no_store(store, tmp_path):
    there = f"sqlite:///{tmp_path}/nope.db"
    for option, arguments in (("--store", ["job", "other"]), ("--with", ["job"])):
        assert error("diff", *arguments, option, there, status=2) == (
            f"Error: there is no {tmp_path}/nope.db: check {option} (a job creates it at its first run)"
        )
    done = run("doctor", "--store", there)
    assert done.exit_code == 1
    assert done.stdout.splitlines()[1:] == [
        f"ok     store         SQLiteStore('{tmp_path}/nope.db')",
        f"WRONG  reach         there is no {tmp_path}/nope.db: check --store (a job creates it at its first run)",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "verb", [["set", "job", "key", "{}"], ["merge", "job", "key", "{}"], ["import", "job"]], ids=" ".join
)
def test_writing_makes_the_store(tmp_path, url, verb):
    there = f"sqlite:///{tmp_path}/state.db"
    assert run(*verb, "--store", there, stdin='{"key": {}}').exit_code == 0
    assert screen("get", "job", "key", "--store", there) == "{}\n"


def test_the_verbs_work_over_http(api: ApiServer, store, monkeypatch):
    monkeypatch.setenv("TRUTO_API_TOKEN", api.token)
    assert screen("copy", "job", "--to", api.url).splitlines()[-1] == "2 keys copied and compared."
    there = ["--store", api.url]
    assert screen("get", "job", "contacts", *there) == SECOND + "\n"
    assert screen("set", "job", "contacts", FIRST, *there).splitlines()[-1] == "1 key of 'job' changed."
    assert screen("diff", "job", "--with", api.url, status=1) == f"- contacts  {SECOND}\n+ contacts  {FIRST}\n"
    assert error("list", *there) == f"Error: TrutoStore('{api.url}') cannot list its namespaces: name one"
    assert error("move", "--all", "--yes", "--to", "memory://x", *there).startswith("Error: TrutoStore(")
    screen("clear", "job", "--yes", *there)
    assert error("list", "job", *there) == f"Error: 'job' holds nothing in TrutoStore('{api.url}')"
    monkeypatch.delenv("TRUTO_API_TOKEN")
    assert error("list", "job", *there) == "Error: no API token: set TRUTO_API_TOKEN, or pass token="


# doctor, unlock


def test_doctor_of_sqlite(tmp_path, url):
    screen("set", "job", "key", "{}", "--store", f"sqlite:///{tmp_path}/state.db")
    done = run("doctor", "--store", f"sqlite:///{tmp_path}/state.db", "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["healthy"] is True
    assert [check["check"] for check in told["checks"]] == [
        *("checkpoint", "store", "reach", "SQLite", "journal mode", "file", "namespaces", "history")
    ]
    said = {check["check"]: check["said"] for check in told["checks"]}
    assert said["journal mode"] in {"truncate", "wal"}
    assert re.fullmatch(r"answers (in \d+\.\d|within 0\.1) ms \(median of 5\)", said["reach"])


def test_doctor(store):
    lines = screen("doctor").splitlines()
    assert lines == [
        f"ok     checkpoint    {version('checkpoint-store')}, Python {python_version()}",
        "ok     store         MemoryStore()",
        "ok     reach         answers within 0.1 ms (median of 5)",
        "ok     namespaces    can be listed",
        "ok     history       kept",
    ]


def test_doctor_that_writes_leaves_nothing_behind(store):
    lines = screen("doctor", "--write").splitlines()
    assert lines[-2:] == [
        "ok     compare       a change by another writer is noticed",
        "ok     slashes       keys with a slash arrive as they are",
    ]
    assert store.load("__doctor__") == {}


def test_doctor_finds_a_store_that_overwrites(store, monkeypatch):
    commit = type(store).commit
    monkeypatch.setattr(type(store), "commit", lambda self, key, changes, base=(), **named: commit(self, key, changes))
    done = run("doctor", "--write")
    assert done.exit_code == 1
    assert "WRONG  compare       a change by another writer is NOT noticed" in done.stdout
    assert store.load("__doctor__") == {}


def test_init_of_a_store_that_needs_none(store):
    assert screen("init") == "MemoryStore() needs no init: jobs create what is missing.\n"


def test_doctor_of_a_store_that_cannot_be_used(tmp_path, url):
    done = run("doctor", "--store", f"sqlite:///{tmp_path}/none/x.db")
    said = f"{tmp_path}/none/x.db cannot be created, because its folder does not exist: create the folder"
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (1, f"WRONG  reach         {said}")
    assert document("doctor", "--store", "nosuch://x", "--json", status=1)["checks"][-1]["check"] == "store"


def doctor_of(api: ApiServer, monkeypatch, token: str) -> dict[str, tuple[bool | None, str]]:
    """Return what the doctor says, under the clock of the server."""
    monkeypatch.setenv("TRUTO_API_TOKEN", token)
    done = CliRunner().invoke(checkpoint, ["doctor", "--store", api.url, "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == (0 if told["healthy"] else 1)
    assert token not in done.output
    return {check["check"]: (check["good"], check["said"]) for check in told["checks"]}


def test_doctor_tries_the_token(api: ApiServer, monkeypatch, url):
    said = doctor_of(api, monkeypatch, api.token)
    assert {name for name, (good, _) in said.items() if not good} == {"namespaces", "history"}
    assert (said["namespaces"], said["history"]) == ((None, "cannot be listed"), (None, "not kept"))
    assert run("doctor", "--store", api.url).stdout.splitlines()[-2:] == [
        "-      namespaces    cannot be listed",
        "-      history       not kept",
    ]
    refused = doctor_of(api, monkeypatch, "another-token")
    assert [name for name, (good, _) in refused.items() if good is False] == ["token"]


@pytest.mark.parametrize(
    ("date", "good", "said"),
    [
        ("Fri, 03 May 2024 12:00:01 GMT", True, "agrees with the store's to the second"),
        ("Fri, 03 May 2024 12:00:30 GMT", True, "30 s apart from the store's"),
        ("Fri, 03 May 2024 13:00:00 GMT", False, "1 h behind the store's: set this machine's clock"),
        ("Fri, 03 May 2024 11:50:00 GMT", False, "10 min ahead of the store's: set this machine's clock"),
    ],
)
def test_doctor_compares_the_clocks(date, good, said):
    now = datetime(2024, 5, 3, 12, tzinfo=timezone.utc)
    told = datetime.strptime(date, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=timezone.utc)
    assert care.judged_clock((told - now).total_seconds()) == care.Check("clock", good, said)


def test_the_service_tells_its_time(api: ApiServer, truto: TrutoStore):
    answer = Answer(200, {"result": []}, headers={"Date": "Fri, 03 May 2024 12:00:00 GMT"})
    api.script(answer, method="GET")
    assert truto.clock() == datetime(2024, 5, 3, 12, tzinfo=timezone.utc)


def test_doctor_judges_a_404_that_is_not_the_services_own(api: ApiServer, monkeypatch, url):
    """Of a key that is not there: a gateway's page would be taken for a missing state."""
    monkeypatch.setenv("TRUTO_API_TOKEN", api.token)
    assert (
        "ok     missing       a missing key is told apart from a wrong address"
        in run("doctor", "--store", api.url).stdout
    )
    listed = Answer(200, {"result": []})
    api.script(*[listed] * 6, Answer(404, "<html>no such page</html>"), method="GET")
    done = run("doctor", "--store", api.url)
    assert done.exit_code == 1
    assert "a gateway or proxy answers in place of the API" in done.stdout


def test_doctor_tells_a_404_to_the_list(api: ApiServer, monkeypatch, url):
    monkeypatch.setenv("TRUTO_API_TOKEN", api.token)
    own = Answer(404, {"statusCode": 404, "message": "Not Found"})
    api.script(*[own] * 6, method="GET")
    lines = run("doctor", "--store", api.url).stdout.splitlines()
    assert (
        lines[3] == f"-      warning       {api.url} answered 404 for '__doctor__', so it holds no state yet: check "
        "the base URL if "
        "it should"
    )


HELD = lease.LeaseState("host, process 1, run 2", "2024-05-03T11:00:00.000Z", 4, 7)
TAKES_OVER = "The next exclusive\nrun takes over by itself.\n"
TOLD = "'job' is held by host, process 1, run 2 since 2024-05-03T11:00:00.000Z.\n"


@pytest.mark.parametrize(
    ("renewed", "dead", "said"),
    [
        ("2024-05-03T11:59:50.000Z", False, "It is alive: it renewed its lease 10 s ago.\n"),
        (
            "2024-05-03T11:00:00.000Z",
            True,
            f"It is probably dead: it has not renewed its lease for 1 h. {TAKES_OVER}",
        ),
        (
            "unreadable",
            None,
            "Whether that run is alive is not known: the store does not tell when it renewed\nits lease.\n",
        ),
    ],
)
def test_unlock_says_whether_the_holder_is_alive(tmp_path, monkeypatch, renewed, dead, said):
    monkeypatch.setenv("CHECKPOINT_STORE", f"sqlite:///{tmp_path}/state.db")
    monkeypatch.setenv("COLUMNS", "80")
    with closing(SQLiteStore(tmp_path / "state.db")) as store:
        store.commit("job", {lease.KEY: HELD.value()})
        with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as file:
            file.execute("UPDATE checkpoint_entries SET updated_at = ?", [renewed])
        hint = "To release it now: checkpoint unlock job\n" if dead else ""
        assert screen("unlock", "job", "--dry-run") == f"{TOLD}{said}{hint}Nothing was written.\n"
        done = run("unlock", "job")
        assert (done.exit_code, done.stdout) == (2, f"{TOLD}{said}")
        assert (
            done.stderr
            == "Error: Release the lease of 'job'? There is no terminal to ask on, so nothing was written: add --yes.\n"
        )
        assert lease.lease_state("job", store.load("job")[lease.KEY]) == HELD
        assert document("unlock", "job", "--dry-run", "--json")["probably_dead"] is dead
        assert screen("unlock", "job", "--yes") == f"{TOLD}{said}The lease of 'job' is released.\n"
        assert lease.lease_state("job", store.load("job")[lease.KEY])[:4] == (None, None, 5, 0)


def test_a_lease_released_by_hand_says_so(store):
    with freeze_time("2024-05-03T12:00:00Z"):
        store.commit("job", {lease.KEY: HELD.value()})
    assert document("unlock", "job", "--yes", "--json") == {
        "namespace": "job",
        "dry_run": False,
        "owner": "host, process 1, run 2",
        "since": "2024-05-03T11:00:00.000Z",
        "renewed": "2024-05-03T12:00:00.000Z",
        "probably_dead": False,
    }
    said = (
        f"'job' is not held: its lease was released by hand 0 s ago ({host()}, process {os.getpid()}). "
        "It was held by host, process 1, run 2."
    )
    for verb in ("unlock", "list"):
        assert said in " ".join(screen(verb, "job").split())
    assert document("unlock", "job", "--json")["owner"] is None


def test_unlock_takes_the_lease_of_a_living_run(tmp_path):
    """As its help says."""
    url = f"sqlite:///{tmp_path}/state.db"
    with pytest.raises(LeaseLost), Checkpointer("job", SQLiteStore(tmp_path / "state.db"), exclusive=True) as cp:
        cp["a"] = {"at": 1}
        cp.commit()
        assert run("unlock", "job", "--yes", "--store", url).exit_code == 0
        cp["a"] = {"at": 2}
    said = " ".join(run("unlock", "--help").stdout.split())
    assert "after it has seen no renewal for 15 seconds" in said
    assert "its next commit then ends with LeaseLost" in said


def test_unlock_of_what_is_no_lease(store):
    said = "'job' is held by something that is not a lease.\nThe lease of 'job' is released.\n"
    assert screen("unlock", "job", "--yes") == said
    assert lease.lease_state("job", store.load("job")[lease.KEY]).owner is None
    assert screen("unlock", "job") == "'job' is not held.\n"


@pytest.mark.parametrize(
    "words",
    [
        ["list", "jbo"], ["list", "jbo", "--json"], ["list", "jbo", "contacts"], ["get", "jbo", "contacts"],
        ["status", "jbo"], ["runs", "jbo"], ["history", "jbo"], ["history", "jbo", "contacts"], ["diff", "jbo", "job"],
        ["rewind", "jbo", "contacts", "--by", "1d"], ["restore", "jbo", "--to", "1h"], ["plot", "jbo", "contacts"],
        ["copy", "jbo", "--as", "new"], ["move", "jbo", "--as", "new", "--yes"], ["export", "jbo"],
        ["clear", "jbo", "--yes"], ["clear", "jbo", "contacts", "--yes"],
        ["edit", "jbo", "contacts"], ["reshard", "jbo", "accounts", "--shards", "2"], ["unlock", "jbo", "--yes"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_misspelt_namespace_is_an_error(store, words):
    done = run(*words)
    assert done.exit_code in {1, 3}
    assert "did you mean 'job'?" in done.stderr
    assert store.namespaces() == ["job"]


# What is documented


PAGE = (Path(__file__).parent.parent / "docs" / "operating" / "commands.md").read_text("utf-8")
VERBS = {name: verb for name, verb in checkpoint.commands.items() if not verb.hidden}
COMMON = {"--store", "--json", "--dry-run", "--yes", "--help"}


def documented() -> dict[str, tuple[str, set[str]]]:
    """Return the arguments and options of each verb, as the page about commands shows them."""
    block = PAGE.partition("```text\n")[2].partition("```")[0]
    verbs = {}
    for entry in block.split("\ncheckpoint "):
        usage = " ".join(line[:51] for line in entry.replace("checkpoint ", "", 1).split("\n"))
        name, _, rest = usage.strip().partition(" ")
        arguments = takewhile(lambda word: re.fullmatch(r"\[?[A-Z]+\]?(\.\.\.)?", word), rest.split())
        verbs[name] = (" ".join(arguments), set(re.findall(r"--[a-z-]+", usage)))
    return verbs


def test_the_page_names_every_verb_argument_and_option():
    actual = {}
    for name, verb in VERBS.items():
        context = click.Context(verb)
        arguments = [param.make_metavar(context) for param in verb.params if isinstance(param, click.Argument)]
        options = {opt for param in verb.params if isinstance(param, click.Option) for opt in param.opts}
        actual[name] = (" ".join(arguments), options - COMMON)
    assert documented() == actual


def options_of(verb: click.Command) -> set[str]:
    return {opt for param in verb.params for opt in param.opts}


def test_the_options_in_common_are_where_the_page_says():
    where = {option: {name for name, verb in VERBS.items() if option in options_of(verb)} for option in COMMON}
    assert where["--store"] == set(VERBS) - {"token"}
    assert where["--json"] == set(VERBS) - {"export", "init", "singer-run", "ui", "serve", "token", "demo"}
    assert where["--yes"] == {"clear", "rewind", "restore", "copy", "move", "import", "unlock"}
    assert where["--dry-run"] == where["--yes"] | {"set", "merge", "edit"}
    assert all(f"`{name}`" in PAGE for name in where["--yes"])


@pytest.mark.parametrize("name", VERBS)
def test_every_help_fits_the_screen_and_explains_each_option(name):
    shown = screen(name, "--help")
    assert shown.startswith(f"Usage: checkpoint {name} [OPTIONS]")
    for param in VERBS[name].params:
        if isinstance(param, click.Option):
            assert param.help, param.name
            assert param.opts[0] in shown
    assert "..." not in shown.partition("\n")[2]


# Completion


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["checkpoint", "mo"], ["move"]),
        (["checkpoint", "list", "j"], ["job"]),
        (["checkpoint", "get", "job", ""], ["contacts", "previous_run_date"]),
        (["checkpoint", "get", "job", "c"], ["contacts"]),
        (["checkpoint", "clear", "job", "contacts", "p"], ["previous_run_date"]),
        (["checkpoint", "list", "--store", "nosuch://", ""], []),
        (["checkpoint", "get", "..", ""], []),
    ],
)
def test_completion(store, words, found):
    environment = {
        "_CHECKPOINT_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = CliRunner().invoke(checkpoint, [], env=environment, prog_name="checkpoint")
    assert isinstance(done.exception, SystemExit | None)
    assert [line.partition(",")[2] for line in done.stdout.splitlines() if line] == found


def test_a_reader_that_has_gone_stops_no_change(tmp_path):
    """`checkpoint clear … | head -1`: what was asked for is done, and said on standard error."""
    url = f"sqlite:///{tmp_path}/state.db"
    with closing(SQLiteStore(tmp_path / "state.db")) as store:
        store.commit("job", {f"key-{number:05}": encode({"at": "x" * 100}) for number in range(3_000)})
    reader, writer = os.pipe()
    os.close(reader)
    verb = [sys.executable, "-m", "checkpoint.cli", "clear", "job", "--yes", "--store", url]
    done = subprocess.run(verb, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    undo = f"To undo it: checkpoint restore job --to 1 --store {url}\n"
    assert (done.returncode, done.stderr) == (0, f"3,000 keys of 'job' changed.\n{undo}")
    with closing(SQLiteStore(tmp_path / "state.db")) as store:
        assert store.load("job") == {}


def test_history_says_what_its_limit_leaves_out(url):
    store = MemoryStore.from_url(url)
    store.commit("job", {"a": "1", "b": "1"})
    store.commit("job", {"a": "2", "b": "2", "c": "2"})
    assert screen("history", "job", "--limit", "2").splitlines()[-1] == (
        "3 more changes, 1 of them of version 2: --limit 5 shows all."
    )
    assert screen("history", "job", "--limit", "4").splitlines()[-1] == (
        "1 more change, 1 of them of version 1: --limit 5 shows all."
    )
    assert "more change" not in screen("history", "job", "--limit", "5")


def test_history_counts_remembered_rows(url):
    store = MemoryStore.from_url(url)
    seen = [{"at": "2024-05-01T00:00:00Z", "rows": [["a" * 11, "b" * 6]] * count} for count in (1, 3)]
    other = {"at": "2024-05-01T00:00:00Z", "rows": [["c" * 11, "b" * 6]] * 3}
    for rows in (*seen, other):
        store.commit("job", {"a": encode({"at": "2024-05-01T00:00:00Z", "seen": rows})})
    lines = [line for line in screen("history", "job").splitlines() if line[:1] in {"+", "-"}]
    one, three = (f'{{"at":"2024-05-01T00:00:00Z","seen":{count}}}' for count in (1, 3))
    assert lines == [f"- a  {three}", f"+ a  {three}  (other rows)", f"- a  {one}", f"+ a  {three}", f"+ a  {one}"]


def test_a_large_change_is_shown_in_part(url):
    store = MemoryStore.from_url(url)
    store.commit("job", {f"key-{number:03}": "1" for number in range(60)})
    lines = run("clear", "job", "--yes").stdout.splitlines()
    assert (len(lines), lines[-2]) == (52, "… and 10 more (--json tells all).")
