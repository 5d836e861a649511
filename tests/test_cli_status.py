"""`checkpoint status` and `runs`: whether last night's data is there, told by exit statuses."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone

import pytest
from cli_screens import UNDO, document, error, run, screen
from click.testing import CliRunner
from freezegun import freeze_time

from checkpoint import Checkpointer, MemoryStore
from checkpoint.cli.command import checkpoint
from checkpoint.codec import encode
from checkpoint.entries import RUN_KEY, head_key, member_key
from checkpoint.errors import StoreError
from checkpoint.run import lease
from checkpoint.run.forms import ENTRIES
from checkpoint.run.runs import recorded
from checkpoint.stores.sqlite import SQLiteStore


@pytest.fixture
def store(url: str) -> MemoryStore:
    """Two keys: one written two minutes ago and an hour behind, and one that is a day old and no time."""
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-02T12:00:00Z") as clock:
        store.commit("crm", {"ids": encode({"id": 7})})
        clock.move_to("2024-05-03T11:58:00Z")
        store.commit("crm", {"contacts": encode({"updated_at": "2024-05-03T11:00:00Z"})}, run_id="nightly")
    return store


def exit_status(*arguments: str) -> int:
    return run("status", *arguments).exit_code


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], 0),
        (["crm"], 0),
        (["--max-age", "2d"], 0),
        (["--max-age", "1h"], 1),
        (["crm", "contacts", "--max-age", "1h"], 0),
        (["crm", "--max-lag", "2h"], 0),
        (["crm", "--max-lag", "59 min"], 1),
        (["crm", "ids", "--max-lag", "1h"], 3),
        (["crm", "ids", "--max-age", "1h", "--max-lag", "1h"], 1),
        (["crm", "nosuch", "--max-age", "1h"], 3),
        (["nosuch", "--max-age", "1h"], 3),
        (["nosuch_*"], 3),
        (["cr*", "--max-age", "2d"], 0),
        (["--max-age", "soon"], 2),
        (["--member", "a1"], 2),
        (["--store", "nosuch://x"], 3),
    ],
)
def test_the_exit_status_is_the_answer(store, arguments, status):
    assert exit_status(*arguments) == status


def test_each_stale_key_is_named(store):
    assert screen("status", "--max-age", "1h", status=1) == (
        "       namespace  key         age  lag\n"
        "STALE  crm        ids         1 d    -\n"
        "fresh  crm        contacts  2 min  1 h\n"
        "2 keys: 1 stale.\n"
    )
    assert screen("status", "crm") == (
        "   namespace  key         age  lag\n"
        "-  crm        contacts  2 min  1 h\n"
        "-  crm        ids         1 d    -\n"
        "2 keys. Give --max-age or --max-lag to judge them.\n"
    )
    assert screen("status", "crm", "--max-lag", "2h").splitlines()[-1] == "2 keys: 1 whose position is not a time."
    assert screen("status", "crm", "contacts", "--max-lag", "2h").splitlines()[-1] == "1 key: all fresh."


def test_status_as_a_document(store):
    told = document("status", "crm", "--max-age", "1h", "--json", status=1)
    assert told["status"] == "stale"
    assert told["keys"][1] == {
        "namespace": "crm",
        "key": "ids",
        "status": "stale",
        "age": 86_400.0,
        "lag": None,
        "why": "neither written nor read to its end for 1 d",
    }
    assert told["namespaces"] == [{"namespace": "crm", "held_by": None, "last_run": None}]
    assert told["damaged"] == []
    assert document("status", "crm", "ids", "--max-lag", "1h", "--json", status=3)["keys"][0]["why"] == (
        "its position is not a time"
    )


def test_status_says_why_it_cannot_tell(url):
    MemoryStore.from_url(url).commit("crm", {"ids": encode({"id": 1_714_730_400})})
    assert screen("status", "crm", "ids", "--max-lag", "1h", status=3).splitlines()[2:] == [
        "ids: its position is not a time; if it counts time, add --cursor-format epoch_s.",
        "1 key: 1 unknown.",
    ]


def test_nothing_that_could_be_judged_is_not_fresh(url):
    MemoryStore.from_url(url).commit("ids", {"ids": encode({"id": 7})})
    assert exit_status("ids", "--max-lag", "1h") == 3


def test_a_store_that_is_not_reached_is_unknown(url, tmp_path):
    assert error("status", "--store", f"sqlite:///{tmp_path}/none.db", status=3).startswith("Error: there is no ")
    assert error("status", "crn", status=3) == "Error: 'crn' holds nothing in MemoryStore()"


@pytest.mark.parametrize(
    ("arguments", "status", "judged"),
    [
        ([], 3, ["-  contacts", "-  ids"]),
        (["--max-age", "2d"], 3, ["fresh  contacts", "fresh  ids"]),
        (["--max-age", "1h"], 1, ["STALE  ids", "fresh  contacts"]),
        (["[ab]*", "--max-age", "1h"], 3, []),
        (["billing"], 3, []),
    ],
)
def test_fault_41_status_judges_the_others_beside_a_damaged_one(store, arguments, status, judged):
    for name in ("ads", "billing"):
        store.commit(name, {head_key("crm"): "no head", "a": encode({"id": 7})})
    done = run("status", *arguments)
    assert done.exit_code == status
    rows = [line.split() for line in done.stdout.splitlines()[1:-2]]
    assert done.stdout.splitlines()[-1:] == ["2 namespaces could not be read."] * bool(judged)
    assert [f"{row[0]}  {row[2]}" for row in rows] == judged
    named = ["billing"] if arguments == ["billing"] else ["ads", "billing"]
    assert [line.partition(" cannot be read (")[0] for line in done.stderr.splitlines()] == [
        f"Error: the group 'crm' in {name!r}" for name in named
    ]
    told = json.loads(run("status", *arguments, "--json").stdout)
    assert told["status"] == {1: "stale", 3: "unknown"}[status]
    assert [(one["namespace"], f"Error: {one['why']}") for one in told["damaged"]] == [
        *zip(named, done.stderr.splitlines(), strict=True)
    ]


def test_fault_41_a_list_names_each_damaged_namespace(store):
    for name in ("ads", "billing"):
        store.commit(name, {head_key("crm"): "no head"})
    done = run("list")
    assert (done.exit_code, [line.split()[0] for line in done.stdout.splitlines()]) == (1, ["namespace", "crm"])
    assert [line.split(" in ")[1].split()[0] for line in done.stderr.splitlines()] == ["'ads'", "'billing'"]


def test_a_run_that_found_nothing_keeps_its_streams_fresh(url):
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-01T12:00:00Z") as clock:
        for day in (1, 2, 3):
            clock.move_to(f"2024-05-0{day}T11:00:00Z")
            with Checkpointer("crm", store, record_run=True) as cp:
                rows = [{"updated_at": "2024-05-01T10:00:00Z"}] if day == 1 else []
                for _ in cp.incremental("contacts", "updated_at", row_order="asc").pages([rows]):
                    pass
        store.commit("crm", {"other": store.load("crm")["contacts"].value})
        clock.move_to("2024-05-03T11:30:00Z")
        with pytest.raises(ValueError), Checkpointer("crm", store, record_run=True):
            raise ValueError
    assert store.load("crm")["contacts"].updated_at < "2024-05-02"
    assert exit_status("crm", "contacts", "--max-age", "2h") == 0
    assert exit_status("crm", "contacts", "--max-age", "59 min") == 1
    failed = "The last run of 'crm' failed 30 min ago (ValueError).\n"
    assert failed in run("status", "crm").stdout
    assert run("list", "crm").stdout.endswith(failed)
    assert '"contacts"' in screen("list", "crm", "--json")
    with freeze_time("2024-04-01T00:00:00Z"):
        store.commit("crm", {"never read": encode({"updated_at": "2024-04-01T00:00:00Z"})})
    assert exit_status("crm", "never read", "--max-age", "2h") == 1


ROWS = [{"updated_at": "2024-05-01T10:00:00Z"}]


def last_run(store):
    return recorded(store.history("crm", RUN_KEY))[0]


def read_it(stream, rows):
    for _ in stream.pages([rows]):
        pass


def leave_it(stream, rows):
    with suppress(OSError), stream:
        for _ in stream.pages([rows, rows]):
            raise OSError


def break_off(stream, rows):
    for _ in stream.pages([rows, rows]):
        break


def say_it_is_unfinished(stream, rows):
    read_it(stream, rows)
    stream.unfinished()


def open_it(stream, rows):
    pass


def feed_it(stream, rows):
    stream.filter(rows)


def feed_it_and_finish(stream, rows):
    stream.filter(rows)
    stream.finish()


def hold_it_elsewhere(stream, rows):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(next, stream.pages([rows, rows])).result()


def cut_it(stream, rows, last=9):
    for number, window in enumerate(stream.windows(timedelta(hours=1), until="2024-05-01T12:00:00Z")):
        if number == last:
            break
        with window:
            for _ in window.pages([rows]):
                pass


def cut_it_and_stop_early(stream, rows):
    cut_it(stream, rows, last=1)


@pytest.mark.parametrize("row_order", ["asc", None])
@pytest.mark.parametrize(
    ("read", "is_read"),
    [
        (read_it, True),
        (feed_it_and_finish, True),
        (leave_it, False),
        (break_off, False),
        (say_it_is_unfinished, False),
        (open_it, False),
        (feed_it, False),
        (hold_it_elsewhere, False),
    ],
)
def test_only_a_stream_read_to_its_end_is_fresh_unwritten(url, row_order, read, is_read):
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-01T12:00:00Z") as clock:
        with Checkpointer("crm", store, record_run=True) as cp:
            read_it(cp.incremental("contacts", "updated_at", row_order=row_order), ROWS)
        clock.move_to("2024-05-03T11:00:00Z")
        with Checkpointer("crm", store, record_run=True) as cp:
            read(cp.incremental("contacts", "updated_at", row_order=row_order), ROWS)
        done = last_run(store)
    assert (done.outcome, done.read) == ("done", ("contacts",) if is_read else ())
    assert exit_status("crm", "contacts", "--max-age", "2h") == (0 if is_read else 1)


@pytest.mark.parametrize(("read", "is_read"), [(cut_it, True), (cut_it_and_stop_early, False)])
def test_a_stream_in_windows_is_read_where_all_of_them_are(url, read, is_read):
    store = MemoryStore.from_url(url)
    with Checkpointer("crm", store, record_run=True) as cp:
        read(cp.incremental("contacts", "updated_at", initial_value="2024-05-01T10:00:00Z"), [])
    assert last_run(store).read == (("contacts",) if is_read else ())
    with Checkpointer("crm", store, record_run=True) as cp:
        cut_it(cp.incremental("contacts", "updated_at", initial_value="2024-05-01T10:00:00Z"), [])
    with Checkpointer("crm", store, record_run=True) as cp:  # where nothing is left to cut
        cut_it(cp.incremental("contacts", "updated_at", initial_value="2024-05-01T10:00:00Z"), [])
    assert last_run(store).read == ("contacts",)


def test_a_member_is_read_where_the_run_tells_so(url):
    """Also one that had nothing new; one that the job left out, and a key that it sets itself, count their writes."""
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-01T12:00:00Z") as clock:
        for day, members in ((1, ["alive", "dead", "quiet"]), (3, ["alive", "quiet"])):
            clock.move_to(f"2024-05-0{day}T11:00:00Z")
            with Checkpointer("crm", store, record_run=True) as cp:
                for member in members:
                    rows = [{"updated_at": f"2024-05-0{day if member == 'alive' else 1}T10:00:00Z"}]
                    read_it(cp.incremental(member, "updated_at", group="accounts"), rows)
                if day == 1:
                    cp["cursor"] = {"page": 1}
    told = document("status", "crm", "--max-age", "2h", "--json", status=1)
    assert {one.get("member"): one["status"] for one in told["keys"]} == {
        "alive": "fresh",
        "quiet": "fresh",
        "dead": "stale",
        None: "stale",
    }
    assert {one["member"]: one["age"] for one in document("list", "crm", "accounts", "--json")} == {
        "alive": 3_600,
        "quiet": 3_600,
        "dead": 49 * 3_600,
    }
    assert document("list", "--json")[0]["age"] == 49 * 3_600


def test_of_packed_members_writing_another_one_tells_nothing(url):
    """A member that stands still beside one that is written is not fresh, and stale once neither is written."""
    store = MemoryStore.from_url(url)
    head, shard = head_key("accounts"), f"{head_key('accounts')}.00"
    with freeze_time("2024-05-01T12:00:00Z") as clock:
        store.commit("crm", {head: encode({"shards": 1}), shard: encode({"dead": {"a": 1}, "alive": {"a": 1}})})
        clock.move_to("2024-05-03T11:00:00Z")
        store.commit("crm", {shard: encode({"dead": {"a": 1}, "alive": {"a": 2}})})
    assert exit_status("crm", "--max-age", "2h") == 3
    assert exit_status("crm", "--max-age", "30 min") == 1
    assert screen("status", "crm", "accounts", "dead", "--max-age", "2h", status=3).splitlines()[2:] == [
        "accounts / dead: when it was written is not known: members share an entry.",
        "1 key: 1 unknown.",
    ]
    reads = {"accounts": {"at": "2024-05-03T11:00:00Z", "but": []}}
    store.commit("crm", {RUN_KEY: encode({"reads": reads})})
    assert exit_status("crm", "--max-age", "2h") == 0


def test_what_only_an_earlier_record_tells_counts(url):
    """A run that overlapped another one, or one of the form that had no members, is found in the history."""
    store = MemoryStore.from_url(url)
    old = {"host": "h", "process": 1, "started": "2024-05-03T11:30:00Z"}
    ended = {"ended": "2024-05-03T11:40:00Z", "outcome": "done"}
    with freeze_time("2024-05-01T12:00:00Z") as clock:
        store.commit("crm", {"contacts": encode({"a": 1}), "deals": encode({"a": 1}), "other": encode({"a": 1})})
        clock.move_to("2024-05-03T11:40:00Z")
        store.commit("crm", {"__run__": encode({"run_id": "a", **old, **ended, "read": ["contacts"]})})
        reads = {"deals": {"at": "2024-05-03T11:40:00Z"}}
        store.commit("crm", {"__run__": encode({"run_id": "b", **old, **ended, "reads": reads})})
        store.commit("crm", {"__run__": encode({"run_id": "c", **old})})
    told = document("status", "crm", "--max-age", "1h", "--json", status=1)
    assert {one["key"]: one["status"] for one in told["keys"]} == {
        "contacts": "fresh",
        "deals": "fresh",
        "other": "stale",
    }


def test_a_job_that_failed_before_its_first_key_is_not_fresh(url):
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-03T11:30:00Z"):
        store.commit("crm_a", {"contacts": encode({"updated_at": "2024-05-03T11:00:00Z"})})
        with suppress(OSError), Checkpointer("crm_b", store, record_run=True):
            raise OSError
        with Checkpointer("crm_c", store, record_run=True):
            pass
    assert screen("status", "--max-age", "2h", status=3) == (
        "       namespace  key          age  lag\n"
        "fresh  crm_a      contacts  30 min  1 h\n"
        "The last run of 'crm_b' failed 30 min ago (OSError).\n"
        "'crm_b' holds no keys.\n"
        "1 key: all fresh.\n"
    )
    assert document("status", "crm_*", "--max-lag", "2h", "--json", status=3)["status"] == "unknown"
    assert (exit_status(), exit_status("crm_[ac]", "--max-age", "2h"), exit_status("--max-age", "1 min")) == (0, 0, 1)


@pytest.mark.parametrize(
    "told",
    [{"process": None}, {"read": None}, {"read": 5}, {"ended": 5}, {"streams": [1]}, {"commits": None}, {"started": 1}],
)
def test_a_record_of_another_form_is_left_out(url, told):
    """It is no traceback, whose exit status would say that something is stale."""
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-03T11:00:00Z"):
        store.commit("crm", {"contacts": encode({"a": 1})})
        run_told = {"run_id": "r", "host": "h", "process": 1, "started": "2024-05-03T10:00:00Z"}
        store.commit("crm", {RUN_KEY: encode({**run_told, **told})})
    assert screen("runs", "crm") == "No runs of 'crm' are recorded in MemoryStore().\n"
    assert exit_status("crm", "--max-age", "2h") == 0
    assert screen("list").splitlines()[1].split() == ["crm", "1", "-", "1", "h", "-"]
    without = {name: value for name, value in run_told.items() if name not in told}
    store.commit("crm", {RUN_KEY: encode(without)})
    assert exit_status("crm", "--max-age", "30 min") == 1


def test_a_list_tells_how_the_last_run_ended(url):
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-03T09:00:00Z"):
        for name in ("a_done", "b_failed", "c_going"):
            with suppress(OSError), Checkpointer(name, store, record_run=True) as cp:
                cp["key"] = {"updated_at": "2024-05-03T08:00:00Z"}
                cp.commit()
                if name == "b_failed":
                    raise OSError
        run = {"run_id": "r", "host": "h", "process": 1, "started": "2024-05-03T11:30:00Z"}
        store.commit("c_going", {"__run__": encode(run)})
    assert screen("list") == (
        "   namespace  keys  lag  age  last run\n"
        "   a_done        1  4 h  3 h  done 3 h ago\n"
        "!  b_failed      1  4 h  3 h  failed 3 h ago, OSError\n"
        "!  c_going       1  4 h  3 h  no end, began 30 min ago\n"
        "! 3 namespaces: 1 failed ('b_failed'); 1 without an end ('c_going').\n"
    )


def test_epochs_have_a_lag_in_lists_where_a_format_is_given(url):
    store = MemoryStore.from_url(url)
    members = {"b": "1714730400", "a": "1714734000.5", "c": "99"}
    entries = {member_key("events", member): encode({"at": at}) for member, at in members.items()}
    with freeze_time("2024-05-03T11:58:00Z"):
        store.commit("crm", {head_key("events"): encode({"members": "entries"}), **entries})
    assert screen("list", "crm") == (
        "key     cursor                          lag    age  written by\n"
        "events  3 members: slowest c, newest a    -  2 min  -\n"
    )
    store.commit("crm", {member_key("events", "c"): None})
    assert screen("list", "crm", "--cursor-format", "epoch_s") == (
        "key     cursor                          lag    age  written by\n"
        "events  2 members: slowest b, newest a  2 h  2 min  -\n"
    )


def test_members_are_named_where_they_are_stale(url):
    store = MemoryStore.from_url(url)
    cursors = {f"a{n:02}": {"updated_at": f"2024-05-03T{n % 12:02}:00:00Z"} for n in range(12)}
    entries = {member_key("accounts", member): encode(cursor) for member, cursor in cursors.items()}
    with freeze_time("2024-05-03T11:58:00Z"):
        store.commit("crm", {head_key("accounts"): encode({"members": "entries"}), **entries})
    assert screen("status", "--max-lag", "11h", status=1) == (
        "       namespace  key                     age   lag\n"
        "STALE  crm        accounts / a00        2 min  12 h\n"
        "fresh  crm        accounts: 11 members  2 min  11 h\n"
        "12 keys: 1 stale.\n"
    )
    assert exit_status("crm", "accounts", "--member", "a11", "--max-lag", "2h") == 0
    assert exit_status("crm", "accounts", "--member", "a00", "--max-lag", "2h") == 1
    assert exit_status("crm", "accounts", "--member", "zz", "--max-lag", "2h") == 3


def test_of_many_stale_members_the_worst_are_named(url):
    """After the keys, which would be lost among them; the document has all."""
    store = MemoryStore.from_url(url)
    cursors = {f"a{n:03}": {"updated_at": f"2024-05-02T{n % 24:02}:{n // 24:02}:00Z"} for n in range(100)}
    entries = {member_key("accounts", member): encode(cursor) for member, cursor in cursors.items()}
    with freeze_time("2024-05-03T11:58:00Z"):
        store.commit("crm", {head_key("accounts"): encode({"members": "entries"}), **entries})
        store.commit("crm", {"zz": encode({"updated_at": "2024-05-01T12:00:00Z"})})
    lines = screen("status", "--max-lag", "11h", status=1).splitlines()
    assert lines[1].split()[:3] == ["STALE", "crm", "zz"]
    assert [line.split()[4] for line in lines[2:6]] == ["a000", "a024", "a048", "a072"]
    assert lines[22:] == [
        "STALE  crm        accounts: 80 more members  2 min   1 d 8 h",
        "101 keys: 101 stale.",
    ]
    assert len(document("status", "--max-lag", "11h", "--json", status=1)["keys"]) == 101


def test_epochs_lag_where_their_format_is_given(url):
    MemoryStore.from_url(url).commit("crm", {"events": encode({"at": 1_714_730_400})})
    assert exit_status("crm", "events", "--max-lag", "3h") == 3
    assert exit_status("crm", "events", "--max-lag", "3h", "--cursor-format", "epoch_s") == 0
    assert exit_status("crm", "events", "--max-lag", "1h", "--cursor-format", "epoch_s") == 1
    assert error("status", "--cursor-format", "epoch", status=2).startswith(
        "Error: Invalid value for '--cursor-format': 'epoch' is not a cursor format: epoch_s, "
    )


@pytest.mark.parametrize("form", ["epoch_s", "epoch_ms", "number", "text", "%d/%m/%Y", "%Y-%m-%dT%H:%M:%SZ"])
def test_iso_8601_lags_whatever_the_format_of_the_others_is(url, form):
    store = MemoryStore.from_url(url)
    store.commit("crm", {"contacts": encode({"updated_at": "2024-05-01T12:00:00Z"})})
    store.commit("crm", {"deals": encode({"updated_at": "2024-05-03T11:00:00+00:00", "id": 7})})
    for key, status in (("contacts", 1), ("deals", 0)):
        assert exit_status("--max-lag", "1d", "--cursor-format", form) == 1
        assert exit_status("crm", key, "--max-lag", "1d", "--cursor-format", form) == status
    store.commit("crm", {"events": encode({"at": 1_714_730_400})})
    told = document("status", "--max-lag", "1d", "--cursor-format", "epoch_s", "--json", status=1)
    assert {one["key"]: one["lag"] for one in told["keys"]} == {"contacts": 172_800, "deals": 3_600, "events": 7_200}
    store.commit("two", {"times": encode({"a": "2024-05-03T11:00:00Z", "b": "2020-05-03T11:00:00Z", "id": 7})})
    assert exit_status("two", "times", "--max-lag", "1d", "--cursor-format", form) == 3


def test_status_and_list_say_who_holds_the_lease(store, url, monkeypatch):
    held = lease.LeaseState("host, process 1, run 2, b2352623", "2024-05-03T11:00:00.000Z", 4, 7)
    said = "'crm' is held by host, process 1, run 2 since 2024-05-03T11:00:00.000Z"
    fields = {"owner": "host, process 1, run 2, b2352623", "since": "2024-05-03T11:00:00.000Z"}
    takes_over = "The next exclusive run takes over by itself. To release it now: checkpoint unlock crm"
    for renewed, life in (
        ("11:59:50", "It is alive: it renewed its lease 10 s ago."),
        ("11:40:00", f"It is probably dead: it has not renewed its lease for 20 min. {takes_over}"),
    ):
        with freeze_time(f"2024-05-03T{renewed}Z"):
            store.commit("crm", {lease.KEY: held.value()})
        for verb in (["status"], ["list"], ["list", "crm"]):
            assert f"{said}. {life}" in " ".join(screen(*verb).split())
            monkeypatch.delenv("CHECKPOINT_STORE")
            assert screen(*verb, "--store", url).count(f"unlock crm --store {url}\n") == ("dead" in life)
            monkeypatch.setenv("CHECKPOINT_STORE", url)
        told = {"renewed": f"2024-05-03T{renewed}.000Z", "probably_dead": "dead" in life}
        assert document("list", "--json")[0]["held_by"] == fields | told


def test_a_write_under_an_exclusive_runs_feet_says_so_first(store):
    held = lease.LeaseState("host, process 1, run 2", "2024-05-03T11:00:00.000Z", 4, 7)
    store.commit("crm", {lease.KEY: held.value()})
    said = (
        "'crm' is held by host, process 1, run 2 since 2024-05-03T11:00:00.000Z. It is alive: it renewed its lease "
        "0 s ago. If that run is alive, its next commit of these keys ends with Conflict: stop it first.\n"
    )
    for verb in (
        ["set", "crm", "contacts", '{"updated_at": "2024-05-03T10:00:00Z"}'],
        ["merge", "crm", "contacts", '{"updated_at": "2024-05-03T09:00:00Z"}'],
        ["rewind", "crm", "contacts", "--by", "1h"],
        ["restore", "crm", "contacts", "--to", "2", "--yes"],
        ["clear", "crm", "contacts", "--yes"],
    ):
        done = run(*verb)
        assert (done.exit_code, re.sub(UNDO, "", done.stderr)) == (0, said), verb
    assert run("set", "crm", "contacts", "{}", "--dry-run").stderr == said


def test_runs(url):
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-03T09:00:00Z") as clock:
        for number in range(3):
            try:
                with Checkpointer("crm", store, run_id=f"nightly-{number}", record_run=True) as cp:
                    pages = [[{"updated_at": f"2024-05-0{number + 1}T10:00:00Z"}]]
                    for _ in cp.incremental("contacts", "updated_at", row_order="asc").pages(pages):
                        cp.commit()
                    clock.tick(90)
                    if number == 1:
                        raise OSError
            except OSError:
                pass
            clock.tick(3_510)
        cp = Checkpointer("crm", store, run_id="killed", record_run=True)
        cp.__enter__()
        shown = screen("runs", "crm")
        told = document("runs", "crm", "--json", "--limit", "2")
        last = document("status", "crm", "--json")["namespaces"][0]["last_run"]
        cp.__exit__(None, None, None)
    assert shown == (
        "began (UTC)             took  ended   commits  seen  delivered  run\n"
        "2024-05-03 12:00           -  no end        -     -          -  killed\n"
        "2024-05-03 11:00  1 min 30 s  done          1     1          1  nightly-2\n"
        "2024-05-03 10:00  1 min 30 s  failed        1     1          1  nightly-1\n"
        "2024-05-03 09:00  1 min 30 s  done          1     1          1  nightly-0\n"
        "Run nightly-1 failed with OSError; the message is in the job's log.\n"
        "Run killed: still running, or killed: it has no lease that would show which.\n"
    )
    assert [run["run_id"] for run in told] == ["killed", "nightly-2"]
    assert told[1]["streams"]["contacts"]["seen"] == 1
    assert [told[0][what] for what in ("ended", "commits", "streams", "read")] == [None] * 4
    assert last == told[0]
    assert error("runs", "cmr") == "Error: 'cmr' holds nothing in MemoryStore(): did you mean 'crm'?"
    store.commit("other", {"key": "1"})
    assert screen("runs", "other") == "No runs of 'other' are recorded in MemoryStore().\n"


def test_the_store_may_stand_before_the_verb(store, url, monkeypatch):
    monkeypatch.setenv("CHECKPOINT_STORE", "nosuch://x")
    assert screen("--store", url, "get", "crm", "ids") == '{"id":7}\n'
    assert screen("--store", "nosuch://y", "get", "crm", "ids", "--store", url) == '{"id":7}\n'
    assert error("get", "crm", "ids").startswith("Error: no store opens 'nosuch://x'")


# Many at once


def test_more_than_a_hundred_namespaces_come_slowest_first(url):
    store = MemoryStore.from_url(url)
    for number in range(101):
        store.commit(f"tenant-{number:03}", {"contacts": encode({"at": f"2024-05-0{1 + number % 2}T00:00:00Z"})})
    *lines, first, last = screen("list", "--limit", "101").splitlines()[1:]
    names = [line.split()[1] for line in lines]
    told = "! 101 namespaces: 101 behind by more than a day ('tenant-000' 2 d 12 h, 'tenant-002' 2 d 12 h, 99 more)."
    assert f"{first} {last}" == told
    assert names[:2] == ["tenant-000", "tenant-002"]
    assert names[50:52] == ["tenant-100", "tenant-001"]
    assert names != sorted(names)
    by_name = [line.split()[1] for line in screen("list", "--order", "name", "--limit", "101").splitlines()[1:-2]]
    assert by_name == sorted(names)


def test_members_are_listed_by_pattern_and_order(url):
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-03T11:00:00Z"), Checkpointer("crm", store) as cp:
        cp.group("accounts").update({f"a{n}": {"at": f"2024-05-0{3 - n}T00:00:00Z"} for n in range(3)})

    def members(*options):
        return [line.split()[0] for line in screen("list", "crm", "accounts", *options).splitlines()[1:]]

    assert members() == ["a0", "a1", "a2"]
    assert members("--order", "slowest") == ["a2", "a1", "a0"]
    assert members("--member", "a[12]") == ["a1", "a2"]
    assert error("list", "crm", "accounts", "--member", "b*") == (
        "Error: no member of 'accounts' in 'crm' matches 'b*'"
    )
    assert "needs GROUP" in error("list", "crm", "--member", "a*", status=2)


def test_fresh_keys_are_summed_up_where_there_are_many(url):
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-03T11:00:00Z"):
        store.commit("crm", {f"key-{number:02}": encode({"at": number}) for number in range(21)})
    with freeze_time("2024-05-01T11:00:00Z"):
        store.commit("crm", {"old": encode({"at": 1})})
    with freeze_time("2024-04-01T11:00:00Z"):
        store.commit("crm", {"z-older": encode({"at": 1})})
    lines = screen("status", "--max-age", "1d", status=1).splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["STALE", "crm", "z-older"], ["STALE", "crm", "old"]]
    assert " ".join(lines[3].split()) == "fresh 21 keys outside groups 1 h -"


def test_a_position_ahead_of_the_clock_is_not_fresh(url):
    store = MemoryStore.from_url(url)
    for at, status in (("2024-05-03T12:04:00Z", 0), ("2024-05-09T12:00:00Z", 1)):
        with freeze_time("2024-05-03T11:00:00Z"):
            store.commit("crm", {"contacts": encode({"at": at})})
        for limits in (["--max-age", "2d"], ["--max-lag", "2d"], []):
            assert run("status", "crm", *limits).exit_code == status
    assert screen("status", status=1) == (
        "       namespace  key       age     lag\n"
        "STALE  crm        contacts  1 h  in 6 d\n"
        "'contacts' in 'crm' is 6 d ahead of the clock. Rows until then may not be\n"
        "delivered.\n"
        "1 key: 1 stale. Give --max-age or --max-lag to judge them.\n"
    )
    assert document("status", "crm", "--max-age", "2d", "--json", status=1)["keys"][0]["why"] == (
        "its position is 6 d ahead of the clock: rows until then may not be delivered"
    )


@pytest.mark.parametrize("verb", ["list", "status"])
def test_a_position_that_was_moved_ahead_is_restored(tmp_path, verb):
    """Two days before now is after the last good position: the rows of eight days would be skipped."""
    store = SQLiteStore(tmp_path / "state.db")
    for at in ("2024-04-23T00:00:00Z", "2024-06-03T00:00:00Z", "2024-07-03T00:00:00Z"):
        store.commit("crm", {"contacts": encode({"at": at})})
    asked = [verb, "crm", "--store", f"sqlite:///{tmp_path}/state.db"]
    (said,) = run(*asked).stderr.splitlines()
    assert said.startswith("To undo the commit that moved it there: checkpoint restore crm contacts --to 1 --store ")
    assert run(*shlex.split(said.partition(": checkpoint ")[2]), "--yes").exit_code == 0
    assert store.load("crm")["contacts"].value == encode({"at": "2024-04-23T00:00:00Z"})
    store.commit("crm", {"deals": encode({"at": "2024-06-03T00:00:00Z"})})  # it never was anywhere else
    rewind, beside = run(*asked).stderr.splitlines()
    assert rewind.startswith("To read again from two days before now: checkpoint rewind crm deals --to 2024-05-01T")
    assert beside == "Rows between the last good position and that moment are not read again, unless --to is older."


def test_a_damaged_value_is_not_fresh(tmp_path):
    """Text that never was a cursor is another program's."""
    path, good = tmp_path / "state.db", encode({"at": "2024-05-03T11:00:00Z"})
    store, there = SQLiteStore(path), ["--store", f"sqlite:///{path}"]
    with freeze_time("2024-05-03T11:00:00Z"):
        store.commit("crm", {"a": good, "note": "free text", member_key("g", "m"): good, head_key("g"): ENTRIES})
        store.commit("crm", {"a": encode({"at": "2024-05-03T11:30:00Z"})})
    assert run("status", "crm", "--max-age", "1d", *there).exit_code == 0
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "UPDATE checkpoint_entries SET value = 'garbage!!' WHERE key IN ('a', ?)", [member_key("g", "m")]
        )
    done = run("status", "crm", "--max-age", "1d", *there)
    assert done.exit_code == 3
    assert [line.split()[:3] for line in done.stdout.splitlines()[1:4]] == [
        ["DAMAGED", "crm", "a"],
        ["DAMAGED", "crm", "g"],
        ["fresh", "crm", "note"],
    ]
    assert done.stdout.endswith("3 keys: 2 damaged.\n")
    assert json.loads(run("status", "crm", "a", "--json", *there).stdout)["keys"][0]["status"] == "damaged"
    assert re.search(
        r"^!  crm .*\n! 1 namespace: 1 with a damaged value \('crm' a\)\.$", run("list", *there).stdout, re.MULTILINE
    )
    listed = run("list", "crm", *there)
    assert [line[:6] for line in listed.stdout.splitlines()[1:4]] == ["!  a  ", "!  g  ", "   not"]
    commands = [line.partition(": checkpoint ")[2] for line in listed.stderr.splitlines()]
    assert commands == [line.partition(": checkpoint ")[2] for line in done.stderr.splitlines()]
    assert [command.partition(" --store")[0] for command in commands] == [
        "restore crm a --to 2",
        "restore crm g --member m --to 1",
    ]
    for command in commands:
        assert run(*shlex.split(command), "--yes").exit_code == 0
    assert screen("status", "crm", "--max-age", "1d", *there).endswith("3 keys: all fresh.\n")


@pytest.mark.parametrize("reason", [[], ["--reason", "a disk was broken"]], ids=["", "reason"])
@pytest.mark.parametrize(("key", "words"), [("a", "crm a"), ("__group__.g/m", "crm g --member m")])
def test_a_damaged_row_is_replaced(tmp_path, key, words, reason):
    path, there = tmp_path / "state.db", ["--store", f"sqlite:///{tmp_path}/state.db"]
    store = SQLiteStore(path)
    for number in (1, 2):
        value = encode({"at": number})
        store.commit("crm", {"a": value, "b": value, "__group__.g/m": value, head_key("g"): ENTRIES})
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE checkpoint_entries SET value = x'ff00' WHERE key = ?", [key])
    for verb, status in (
        (("list",), 1),
        (("get", "crm", "b"), 1),
        (("status", "crm"), 3),
        (("status", "crm", "--json"), 3),
    ):
        done = run(*verb, *there)
        assert done.exit_code == status
        error, how = done.stderr.splitlines()
        assert "is damaged (its value is bytes, not text)" in error
        assert how.startswith(f"To replace it by its last readable value: checkpoint restore {words} --to 2 --store ")
    command = shlex.split(how.partition(": checkpoint ")[2])
    assert run("restore", "crm", "b", "--to", "1", "--yes", *there).exit_code == 1
    assert document(*command, "--dry-run", "--json")["changes"][0]["after"]["cursor"] == {"at": 2}
    assert run(*command).exit_code == 2  # nobody answers its question
    assert run(*command, "--yes", *reason).exit_code == 0
    stored = store.load("crm")
    assert stored[key].value == encode({"at": 2})
    assert stored[key].version == stored["b"].version + 1
    assert store.history("crm", limit=1)[0].reason == (reason[1] if reason else "restored to 2")
    with pytest.raises(StoreError, match="is not damaged"):
        store.replace("crm", key, encode({"at": 3}))


def test_no_command_replaces_a_damaged_reserved_row(tmp_path):
    store = SQLiteStore(tmp_path / "state.db")
    store.commit("crm", {head_key("g"): ENTRIES})
    with closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
        connection.execute("UPDATE checkpoint_entries SET value = x'ff00'")
    done = run("list", "--store", f"sqlite:///{store.path}")
    assert (done.exit_code, "is damaged" in done.stderr, "checkpoint restore" in done.stderr) == (1, True, False)


@pytest.mark.parametrize(
    ("minutes", "ended", "said"),
    [
        (0, "running", "Run r: running: it renewed its lease 0 s ago."),
        (9, "killed", "Run r: probably killed: it has not renewed its lease for 9 min."),
        (None, "unlocked", "Run r: its lease was released by hand 0 s ago."),
    ],
)
def test_the_lease_tells_of_a_run_without_an_end(url, minutes, ended, said):
    store = MemoryStore.from_url(url)
    moment = datetime(2024, 5, 3, 12, tzinfo=timezone.utc) - timedelta(minutes=minutes or 0)
    with freeze_time(moment):
        begun = {"run_id": "r", "host": "h", "process": 1, "started": "2024-05-03T11:00:00Z"}
        held = lease.LeaseState("h, process 1, run r, 1234", "2024-05-03T11:00:00.000Z", 1, 1)
        store.commit("crm", {"contacts": encode({"at": 1}), "__run__": encode(begun), lease.KEY: held.value()})
    if minutes is None:
        assert run("unlock", "crm", "--yes").exit_code == 0
    lines = screen("runs", "crm").splitlines()
    assert (re.split("  +", lines[1])[2], lines[2]) == (ended, said)
    lines = screen("runs", "crm", "--streams").splitlines()
    assert (re.split("  +", lines[1])[1], lines[2]) == (ended, said)
    assert f"{ended}, began 1 h ago" in screen("list")


def test_runs_by_stream_tell_the_errors_too(url):
    store = MemoryStore.from_url(url)
    with suppress(OSError), Checkpointer("crm", store, run_id="nightly", record_run=True):
        raise OSError
    said = screen("runs", "crm", "--streams").splitlines()[-1]
    assert said == "Run nightly failed with OSError; the message is in the job's log."


def test_the_moments_of_runs_are_never_cut(url):
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-03T09:00:00Z"), Checkpointer("crm", store, run_id="nightly " * 4, record_run=True) as cp:
        for _ in cp.incremental("contacts of the whole team", "at", row_order="asc").pages([[{"at": 1}]]):
            pass
    line = screen("runs", "crm", "--streams").splitlines()[1]
    assert re.match("2024-05-03 09:00  done   conta…team ", line)


def test_runs_by_stream_name_those_without_rows(url):
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-03T09:00:00Z"), Checkpointer("crm", store, run_id="nightly", record_run=True) as cp:
        for key, rows in (("contacts", [{"at": 1}, {"at": 2}]), ("deals", [])):
            with cp.incremental(key, "at", row_order="asc") as stream:
                for _ in stream.pages([rows]):
                    pass
    assert screen("runs", "crm", "--streams") == (
        "began (UTC)       ended  stream    seen  delivered  dropped  late  run\n"
        "2024-05-03 09:00  done   contacts     2          2        0     0  nightly\n"
        "2024-05-03 09:00  done   deals        0          0        0     0  nightly\n"
    )


def test_long_names_are_cut_in_the_middle(url, monkeypatch):
    store = MemoryStore.from_url(url)
    name = "tenants/europe/" + "x" * 80 + "/production"
    store.commit(name, {"contacts": encode({"at": "2024-05-03T11:00:00Z"})})
    line = screen("list").splitlines()[1]
    assert re.match(r"tenants/europe/x+…x+/production ", line)
    monkeypatch.delenv("COLUMNS")
    assert name in run("list").stdout  # a file has no edge
    monkeypatch.setenv("COLUMNS", "80")
    store.commit(name, {"contacts": encode({"at": "2024-04-03T11:00:00Z"})})
    assert re.match(r"!  tenants/europe/x+…x+/production ", screen("list").splitlines()[1])


def test_what_is_behind_is_named_slowest_first_with_its_lag(url):
    """Also where something else is wrong with another one, which the line names already."""
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-02T10:00:00Z"), suppress(OSError), Checkpointer("failed", store, record_run=True) as cp:
        cp["a"] = {"at": "2024-05-02T10:00:00Z"}
        cp.commit()
        raise OSError
    with freeze_time("2024-05-03T11:00:00Z"):
        store.commit("slow", {"a": encode({"at": "2024-04-28T04:00:00Z"})})
        ahead = {"a": encode({"at": "2024-06-11T12:00:00Z"}), "b": encode({"at": "2024-05-03T11:00:00Z"})}
        store.commit("ahead", ahead)
    assert screen("list") == (
        "   namespace  keys      lag      age  last run\n"
        "!  ahead         2  in 39 d      1 h  -\n"
        "!  failed        1  1 d 2 h  1 d 2 h  failed 1 d 2 h ago, OSError\n"
        "!  slow          1  5 d 8 h      1 h  -\n"
        "! 3 namespaces: 1 failed ('failed'); 1 with a position ahead of the clock\n"
        "('ahead' a by 39 d); 2 behind by more than a day ('slow' 5 d 8 h, 'failed' 1 d 2\n"
        "h).\n"
    )


def test_status_without_a_limit_tells_how_many_are_behind(url):
    store = MemoryStore.from_url(url)
    for number in range(3):
        store.commit("crm", {f"key-{number}": encode({"at": f"2024-05-0{number + 1}T00:00:00Z"})})
    assert screen("status").splitlines()[-1] == "3 keys. 2 are more than a day behind: --max-lag 1d names them."
    assert screen("status", "crm", "key-1").splitlines()[-1] == (
        "1 key. 1 is more than a day behind: --max-lag 1d names it."
    )


def test_list_tells_when_a_standing_stream_last_moved(url):
    store = MemoryStore.from_url(url)
    for day, pages in (("2024-04-30T06:00:00Z", [[{"at": 1}]]), ("2024-05-03T11:00:00Z", [])):
        with freeze_time(day), Checkpointer("crm", store, run_id="r", record_run=True) as cp:
            for _ in cp.incremental("contacts", "at", row_order="asc").pages(pages):
                pass
    assert screen("list", "crm") == (
        'key       cursor    lag  age        moved  written by\ncontacts  {"at":1}    -  1 h  3 d 6 h ago  r\n'
    )


def test_more_than_a_hundred_members_are_limited_slowest_first(url):
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-03T11:00:00Z"), Checkpointer("crm", store) as cp:
        cp.group("accounts").update({f"a{n:03}": {"at": f"2024-05-0{1 + n % 2}T00:00:00Z"} for n in range(102)})

    def members(number, *options):
        lines = screen("list", "crm", "accounts", "--limit", str(number), *options).splitlines()
        return [line.split()[0] for line in lines[1 : 1 + number]]

    shown = screen("list", "crm", "accounts").splitlines()
    assert [line.split()[0] for line in shown[1:54]] == [*(f"a{n:03}" for n in range(0, 102, 2)), "a001", "a003"]
    assert shown[101:] == ["2 more members (slowest first): --limit 102 shows all, --member selects by name."]
    assert members(3, "--order", "name") == ["a000", "a001", "a002"]
    assert members(1, "--member", "a10*") == ["a100"]
    assert len(members(102)) == len(document("list", "crm", "accounts", "--json")) == 102


def test_members_of_one_commit_are_named_in_order(url):
    """Their ages are read at different moments, which must not decide."""
    store = MemoryStore.from_url(url)
    at = encode({"at": "2024-05-01T00:00:00Z"})
    store.commit("crm", {f"k{n}": at for n in range(5)})
    with freeze_time("2024-05-03T12:00:00Z", auto_tick_seconds=0.01):
        done = CliRunner().invoke(checkpoint, ["status", "--max-lag", "1h"], prog_name="checkpoint")
    assert [line.split()[2] for line in done.stdout.splitlines()[1:6]] == [f"k{n}" for n in range(5)]
