"""`checkpoint rewind`: how far, what goes with it, and what is refused."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from cli_screens import UNDO, document, error, run, screen
from freezegun import freeze_time

from checkpoint import Checkpointer, MemoryStore
from checkpoint.codec import decode, encode
from checkpoint.entries import RUN_KEY

POSITION = "2024-05-03T10:00:00.000Z"
STREAM = {
    "updated_at": POSITION,
    "seen": {"at": POSITION, "rows": ["abc"]},
    "windows": [["2024-06-01T00:00:00Z", "2024-07-01T00:00:00Z"]],
    "resume": {"at": "token", "field": "updated_at", "start": None, "end": None, "ceiling": None, "high": None},
}


@pytest.fixture
def store(url: str) -> MemoryStore:
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-03T11:00:00Z"):
        store.commit("crm", {"contacts": encode(STREAM)}, run_id="nightly")
    return store


def stored(store: MemoryStore, key: str = "contacts", namespace: str = "crm") -> dict | None:
    entry = store.load(namespace).get(key)
    return None if entry is None else decode(entry.value)


def test_rewind_by_age_keeps_spelling_and_drops_old_memory(store):
    shown = screen("rewind", "crm", "contacts", "--by", "2d", "--reason", "the source lost rows")
    assert shown.splitlines()[1:] == [
        '+ contacts  {"updated_at":"2024-05-01T10:00:00.000Z"}',
        "1 key of 'crm' changed.",
        "That leaves 'contacts' at '2024-05-01T10:00:00.000Z', 2 d 2 h behind the clock.",
    ]
    assert stored(store) == {"updated_at": "2024-05-01T10:00:00.000Z"}
    assert screen("history", "crm", "contacts", "--limit", "1").splitlines()[1] == "reason: the source lost rows"
    assert store.load("crm")["contacts"].sync_job_run_id == "checkpoint rewind"


def test_what_rewind_leaves_is_what_a_stream_leaves(store):
    """Its own `rewind`, of the same stream by the same amount."""
    from datetime import timedelta

    store.commit("other", {"contacts": encode(STREAM)})
    with Checkpointer("other", store) as cp:
        contacts = cp.incremental("contacts", "updated_at", row_order="asc", primary_key="id")
        contacts.rewind(by=timedelta(days=2), reason="the same")
    run("rewind", "crm", "contacts", "--by", "2d")
    assert stored(store) == stored(store, namespace="other")


def test_rewind_by_nothing_forgets_only_the_place(store):
    run("rewind", "crm", "contacts", "--by", "0")
    assert stored(store) == {name: value for name, value in STREAM.items() if name != "resume"}
    assert screen("rewind", "crm", "contacts", "--by", "0d") == "Nothing to change in 'crm'.\n"
    store.commit("crm", {"new": encode({"resume": STREAM["resume"]})})
    run("rewind", "crm", "new", "--by", "0")
    assert "new" not in store.load("crm")


@pytest.mark.parametrize(
    ("position", "arguments", "left"),
    [
        (POSITION, ["--to", "2024-05-02T00:00:00+02:00"], "2024-05-02T00:00:00+02:00"),
        ("2024-05-03", ["--by", "1w"], "2024-04-26"),
        ("2024-05-03", ["--by", "2 weeks"], "2024-04-19"),
        ("2024-05-03", ["--by", "2days"], "2024-05-01"),
        ("3d", ["--to", "2d", "--cursor-format", "text"], "2d"),
        ("2024-05-03T10:00:00", ["--to", "2024-05-03 09:00:00"], "2024-05-03 09:00:00"),
        (1_000, ["--by", "10"], 990),
        (1_000, ["--to", "7"], 7),
        (12.5, ["--by", "0.5"], 12.0),
        ("00012", ["--by", "3"], "00009"),
        ("10", ["--to", "9"], "9"),
        (1_714_730_400, ["--by", "1h", "--cursor-format", "epoch_s"], 1_714_726_800),
        ("1714730400000", ["--by", "1h", "--cursor-format", "epoch_ms"], "1714726800000"),
        (1_714_730_400, ["--to", "2024-05-03T09:00:00Z", "--cursor-format", "epoch_s"], 1_714_726_800),
        ("05/03/2024", ["--by", "3d", "--cursor-format", "%m/%d/%Y"], "04/30/2024"),
        ("05/03/2024", ["--to", "12/31/2023", "--cursor-format", "%m/%d/%Y"], "12/31/2023"),
        ("01HX", ["--to", "01AA", "--cursor-format", "text"], "01AA"),
    ],
)
def test_rewind_of_positions_of_every_kind(url, position, arguments, left):
    store = MemoryStore.from_url(url)
    store.commit("crm", {"contacts": encode({"at": position})})
    assert run("rewind", "crm", "contacts", *arguments).exit_code == 0
    assert json.dumps(stored(store)) == json.dumps({"at": left})


FORMATS = (
    "name its format with --cursor-format: epoch_s (or _ms, _us, _ns), number, text, or a pattern such as %m/%d/%Y"
)


@pytest.mark.parametrize(
    ("position", "arguments", "said"),
    [
        (
            POSITION,
            ["--to", "2024-05-04T00:00:00Z"],
            (f"'2024-05-04T00:00:00Z' is after the position '{POSITION}', and rewind only moves back; `checkpoint set` "
            "stores any position"),
        ),
        (
            POSITION,
            ["--to", "2024-05-01"],
            f"the position '{POSITION}' has a time zone: write '2024-05-01T00:00:00+00:00', if UTC is meant",
        ),
        (POSITION, ["--to", "2d"], "'2d' is an age: give it with --by, not with --to"),
        (
            "2024-05-03T10:00:00",
            ["--to", "2024-05-01T00:00:00Z"],
            "the position '2024-05-03T10:00:00' has no time zone, and '2024-05-01T00:00:00Z' has one: leave it out",
        ),
        (
            1_714_730_400_000,
            ["--to", "1714644000", "--cursor-format", "epoch_ms"],
            ("1714644000 looks like epoch_s, and the position 1714730400000 is epoch_ms: write it in that unit, or as "
            "a time such as 2024-05-01T10:00Z"),
        ),
        (POSITION, ["--by", "10"], f"the position '{POSITION}' is a time: give --by an age such as 2d"),
        (
            1_000,
            ["--by", "2d"],
            f"the position 1000 is not known to be a time, so it cannot go back by 2 d: {FORMATS}",
        ),
        (1_000, ["--to", "2024-05-01"], "'2024-05-01' is not a number, and the position 1000 is one"),
        (1_000, ["--to", "2000"], ("2000 is after the position 1000, and rewind only moves back; `checkpoint set` "
                                  "stores any position")),
        (
            "05/03/2024",
            ["--to", "12/31/2023"],
            "'contacts' in 'crm': the position '05/03/2024' is text without a known format, so it cannot be compared. "
            "N" + FORMATS[1:],
        ),
    ],
)  # fmt: skip
def test_what_is_no_rewind_is_refused(url, position, arguments, said):
    store = MemoryStore.from_url(url)
    store.commit("crm", {"contacts": encode({"at": position})})
    assert error("rewind", "crm", "contacts", *arguments) == f"Error: {said}"
    assert stored(store) == {"at": position}


@pytest.mark.parametrize(
    ("position", "form", "why"),
    [
        (1_714_730_400, "epoch_ms", (
            "1714730400 is 1970-01-20 in epoch_ms, but 2024-05-03 in epoch_s: is that its format?")),
        ("1714730400000", "epoch_s", (
            "1714730400000 is an impossible time in epoch_s, but 2024-05-03 in epoch_ms: is that its format?")),
        ("05/04/2024", "%m/%d/%Y", "'04/25/2024', its value in version 1"),
        ("06/05/2024", "%m/%d/%Y", "06/05/2024 is 2024-06-05 in %m/%d/%Y, which is in the future"),
    ],
)  # fmt: skip
def test_a_wrong_format_is_not_believed(url, position, form, why):
    """Another unit makes a probable time of it, an earlier position is not read, or it is still to come."""
    store = MemoryStore.from_url(url)
    if "version 1" in why:
        form = "%d/%m/%Y"
        store.commit("crm", {"contacts": encode({"at": "04/25/2024"})})
        why = f"{form} does not match {why}"
    store.commit("crm", {"contacts": encode({"at": position})})
    asked = ["crm", "contacts", "--cursor-format", form]
    assert error("rewind", *asked, "--by", "2d") == f"Error: 'contacts' in 'crm': {why}"
    assert stored(store) == {"at": position}
    if "version 1" not in why:
        told = document("status", *asked, "--max-lag", "1h", "--json", status=3)["keys"][0]
        assert (told["lag"], told["why"]) == (None, f"its position is not a time; {why}")


def test_what_the_job_says_of_its_format_counts(url):
    store = MemoryStore.from_url(url)
    with Checkpointer("crm", store, record_run=True) as cp:
        stream = cp.incremental("contacts", "at", row_order="asc", cursor_format="epoch_ms")
        for _ in stream.pages([[{"at": 1_714_730_400_000}]]):
            pass
    assert error("rewind", "crm", "contacts", "--by", "2d", "--cursor-format", "epoch_s") == (
        "Error: the job reads 'contacts' in 'crm' as epoch_ms, not epoch_s: leave --cursor-format out"
    )
    assert run("status", "crm", "--max-lag", "3h").exit_code == 0
    assert run("status", "crm", "--max-lag", "1h").exit_code == 1
    assert document("list", "crm", "--json")[0]["lag"] == document("list", "--json")[0]["lag"] == 7_200
    assert [step["is_time"] for step in document("plot", "crm", "contacts", "--json")] == [True]
    assert run("rewind", "crm", "contacts", "--by", "2d").exit_code == 0
    assert stored(store) == {"at": 1_714_557_600_000}


def test_rewind_asks_how_far_and_of_what(store):
    far = "Error: how far? Give --to VALUE, or --by AMOUNT such as 2d"
    assert error("rewind", "crm", "contacts", status=2) == far
    assert error("rewind", "crm", "contacts", "--by", "1d", "--to", "x", status=2) == (
        "Error: give --to VALUE or --by AMOUNT, not both"
    )
    assert error("rewind", "crm", "contacts", "--by", "-1d", status=2) == (
        "Error: Invalid value for '--by': '-1d' is neither an age such as 2d nor a number such as 1000."
    )
    assert error("rewind", "crm", "contact", "--by", "1d") == (
        "Error: there is no 'contact' in 'crm': did you mean 'contacts'?"
    )
    assert error("rewind", "cmr", "contacts", "--by", "1d") == (
        "Error: 'cmr' holds nothing in MemoryStore(): did you mean 'crm'?"
    )
    store.commit("crm", {"two": encode({"a": 1, "b": 2}), "text": "x", "none": encode({"next": None})})
    assert error("rewind", "crm", "two", "--by", "1") == (
        "Error: which field of 'two' in 'crm' is its position? It has a, b: choose one with --field"
    )
    assert error("rewind", "crm", "none", "--by", "1") == (
        "Error: 'none' in 'crm' has no field that could be a position"
    )
    assert error("rewind", "crm", "text", "--by", "1") == (
        "Error: 'text' in 'crm' holds no cursor, so it has no position to move back"
    )
    run("rewind", "crm", "two", "--by", "1", "--field", "b")
    assert stored(store, "two") == {"a": 1, "b": 1}


def test_rewind_of_one_account_among_many(store):
    with Checkpointer("crm", store) as cp:
        accounts = cp.group("accounts")
        for number in range(100):
            accounts[f"a{number}"] = {"updated_at": POSITION}
    assert screen("rewind", "crm", "accounts", "--member", "a17", "--by", "2d") == (
        f'- accounts / a17  {{"updated_at":"{POSITION}"}}\n'
        '+ accounts / a17  {"updated_at":"2024-05-01T10:00:00.000Z"}\n'
        "1 member of 'crm' changed.\n"
        "That leaves 'a17' of 'accounts' at '2024-05-01T10:00:00.000Z', 2 d 2 h behind\n"
        "the clock.\n"
    )
    done = run("rewind", "crm", "accounts", "--to", "2024-05-02T00:00:00Z")
    assert done.exit_code == 2
    assert done.stdout.splitlines()[0] == "1 member already before 2024-05-02T00:00:00Z: not changed."
    assert done.stderr.splitlines()[-1] == (
        "Error: Rewind 99 members of 'crm' to 2024-05-02T00:00:00Z? There is no terminal to ask on, so "
        "nothing was written: add --yes."
    )
    assert run("rewind", "crm", "accounts", "--to", "2024-05-02T00:00:00Z", "--yes").exit_code == 0
    with Checkpointer("crm", store) as cp:
        found = {cursor["updated_at"] for cursor in cp.group("accounts").values()}
    assert found == {"2024-05-01T10:00:00.000Z", "2024-05-02T00:00:00Z"}


def test_rewind_of_namespaces_like_a_pattern(store):
    for name in ("crm_a", "crm_b", "crm_c", "erp"):
        store.commit(name, {"contacts" if name != "crm_c" else "other": encode({"updated_at": POSITION})})
    told = document("rewind", "crm_*", "contacts", "--by", "1d", "--yes", "--json")
    assert [plan["namespace"] for plan in told] == ["crm_a", "crm_b"]
    moved = {"updated_at": "2024-05-02T10:00:00.000Z"}
    assert [stored(store, namespace=name) for name in ("crm_a", "crm_b", "erp")] == [
        moved,
        moved,
        {"updated_at": POSITION},
    ]
    assert error("rewind", "nosuch_*", "contacts", "--by", "1d") == (
        "Error: no namespace of MemoryStore() matches 'nosuch_*': see `checkpoint list`"
    )
    assert error("rewind", "crm_*", "nosuch", "--by", "1d").startswith("Error: there is no 'nosuch' in 'crm_a'")


def test_a_dry_run_writes_nothing(store):
    assert screen("rewind", "crm", "contacts", "--by", "2d", "--dry-run").splitlines()[-2] == (
        "1 key of 'crm' would change; nothing was written."
    )
    assert stored(store) == STREAM


# What comes back with restore


def test_restore_leaves_an_old_page_token_out_and_says_so(store):
    now = {"updated_at": "2024-05-03T11:30:00.000Z"}
    with freeze_time("2024-05-03T11:30:00Z"):
        store.commit("crm", {"contacts": encode(now)})
    shown = screen("restore", "crm", "contacts", "--to", "1", "--yes")
    assert shown.splitlines()[:2] == [
        "as of version 1, 2024-05-03T11:00:00.000Z: contacts",
        "without the page token of an interrupted reading, which is old: contacts",
    ]
    assert stored(store) == {name: value for name, value in STREAM.items() if name != "resume"}


def test_restore_of_a_place_alone_says_it_starts_over(store):
    store.commit("crm", {"deals": encode({"resume": STREAM["resume"]})})
    store.commit("crm", {"deals": encode({"updated_at": POSITION})})
    shown = screen("restore", "crm", "deals", "--to", "2", "--yes")
    assert shown.splitlines()[1:3] == [
        "without the page token of an interrupted reading, which is old: deals",
        "without any value, so that the next run starts over: deals",
    ]
    assert "deals" not in store.load("crm")


# What may be stored by hand


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ({"at": POSITION}, {"at": None}, "its 'at' is not a cursor value: None"),
        ({"at": POSITION}, {"at": "NaN"}, "its 'at' is not a cursor value: 'NaN'"),
        ({"at": POSITION}, {"at": "yesterday"}, f"its 'at' was a time, '{POSITION}', and 'yesterday' is not one"),
        ({"at": POSITION}, {"at": 7}, f"its 'at' was a time, '{POSITION}', and 7 is not one"),
        ({"at": 7}, {"at": "seven"}, "its 'at' was a number, 7, and 'seven' is not one"),
        ({"at": "05/03/2024"}, {"at": 7}, "its 'at' was text, and is not text now"),
        ({"at": POSITION}, {}, "it has no position; `checkpoint clear` deletes the key"),
        (None, {"at": POSITION, "seen": [1]}, "its 'seen' is not an object"),
        (None, {"at": POSITION, "windows": 5}, "its 'windows' is not a list"),
        (None, {"at": POSITION, "resume": {"at": None}}, "its 'resume' is not a place to resume"),
        (None, {"windows": [[1]]}, "its 'windows' are not all pairs of values"),
    ],
)
def test_set_and_merge_refuse_what_a_stream_could_not_read(url, before, after, why):
    store = MemoryStore.from_url(url)
    if before is not None:
        store.commit("crm", {"contacts": encode(before)})
    said = f"Error: the job's stream could not read this as 'contacts': {why}; nothing was written"
    assert error("set", "crm", "contacts", json.dumps(after)) == said
    patch = {**dict.fromkeys(before or {}), **after}
    if all(value is not None for value in after.values()):
        assert error("merge", "crm", "contacts", json.dumps(patch)) == said
    assert stored(store) == before


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"at": POSITION}, {"at": "2024-05-03"}),  # timezone= may say whose clock it is
        ({"at": 7}, {"at": 7.5}),
        ({"at": "7"}, {"at": "8"}),
        ({"at": "05/03/2024"}, {"at": "05/02/2024"}),
        ({"page": 3, "of": "x"}, {"page": "three"}),
        ({"next": None}, {"next": "token"}),
        ({"at": POSITION}, STREAM),
        (None, {"anything": [1, {"else": None}]}),
        ({"a": 1}, {"b": 1}),
    ],
)
def test_set_takes_what_a_job_could_have_stored(url, before, after):
    store = MemoryStore.from_url(url)
    if before is not None:
        store.commit("crm", {"contacts": encode(before)})
    done = run("set", "crm", "contacts", json.dumps(after))
    assert (done.exit_code, re.sub(UNDO, "", done.stderr)) == (0, "")
    assert stored(store) == after


def test_a_namespace_that_may_be_misspelt_is_asked_about(store):
    done = run("set", "erp", "contacts", "{}")
    assert (done.exit_code, re.sub(UNDO, "", done.stderr)) == (0, "")
    store.commit("contacts_of_crm", {"key": "1"})
    done = run("set", "contacts_of_cmr", "contacts", "{}")
    assert (done.exit_code, re.sub(UNDO, "", done.stderr)) == (
        0,
        "'contacts_of_cmr' is new: did you mean 'contacts_of_crm'?\n",
    )


def test_list_counts_what_a_stream_remembers(store, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    seen = {"at": POSITION, "rows": ["a", "b"], "ahead": {"from": POSITION, "to": POSITION, "rows": ["c"]}}
    store.commit("crm", {"contacts": encode({"updated_at": POSITION, "seen": seen}), "other": encode({"seen": 5})})
    lines = run("list", "crm").stdout.splitlines()
    assert '{"updated_at":"2024-05-03T10:00:00.000Z","seen":3}' in lines[1]
    assert '{"seen":5}' in lines[2]


# Several namespaces at once


def test_export_and_import_of_namespaces_like_a_pattern(store, tmp_path):
    for name in ("crm_a", "crm_b"):
        store.commit(name, {"contacts": encode({"name": name})})
    file = tmp_path / "all.json"
    run("export", "crm_*", str(file))
    namespaces = {name: {"contacts": {"name": name}} for name in ("crm_a", "crm_b")}
    assert json.loads(file.read_text()) == {"__namespaces__": namespaces}
    run("clear", "crm_a", "--yes")
    assert [plan["namespace"] for plan in document("import", "crm_*", str(file), "--json")] == ["crm_a", "crm_b"]
    assert (stored(store, namespace="crm_a"), stored(store)) == ({"name": "crm_a"}, STREAM)
    assert error("import", "erp_*", str(file)) == "Error: no namespace in the document matches 'erp_*'"
    run("clear", "crm_a", "--yes")
    file.write_text(json.dumps(namespaces))  # by hand
    assert [plan["namespace"] for plan in document("import", "crm_*", str(file), "--json")] == ["crm_a", "crm_b"]
    assert stored(store, namespace="crm_a") == {"name": "crm_a"}


@pytest.mark.parametrize("form", ["json", "values", "singer", "airbyte", "meltano"])
@pytest.mark.parametrize("names", [["crm_a"], ["crm_a", "crm_b"]])
def test_a_document_of_several_namespaces_is_not_imported_as_one(url, form, names):
    store = MemoryStore.from_url(url)
    for name in names:
        store.commit(name, {"contacts": encode({"name": name})})
    written = run("export", "crm_*", "--format", form).stdout
    assert error("import", "new", "--format", form, "--overwrite", "--delete", stdin=written) == (
        f"Error: this document holds namespaces by name ({', '.join(map(repr, names))}): import it with a pattern that "
        "matches them, such as '*'"
    )
    assert store.load("new") == {}
    for name in names:
        store.commit(name, {"contacts": None})
    assert run("import", "*", "--format", form, stdin=written).exit_code == 0
    assert [stored(store, namespace=name) for name in names] == [{"name": name} for name in names]


def test_restore_of_namespaces_like_a_pattern(store):
    for name in ("crm_a", "crm_b"):
        store.commit(name, {"contacts": encode({"at": 1})})
        store.commit(name, {"contacts": encode({"at": 2})})
    run("restore", "crm_*", "--to", "1", "--yes")
    assert [stored(store, namespace=name) for name in ("crm_a", "crm_b")] == [{"at": 1}] * 2


def test_a_pattern_fits_what_has_no_keys(store):
    """A job whose only run failed has a record of it and no key; from another somebody deleted the key."""
    for name in ("crm_a", "crm_b"):
        store.commit(name, {"contacts": encode({"at": 1}), "deals": encode({"at": 1})})
    store.commit("crm_a", {"contacts": None})
    for name in ("crm_a", "crm_failed"):
        store.commit(name, {RUN_KEY: encode({"run_id": "r", "started": "2024-05-03T10:00:00Z"})})
    told = document("restore", "crm_*", "contacts", "--to", "1", "--yes", "--json")
    assert {plan["namespace"]: len(plan["changes"]) for plan in told} == {"crm_a": 1, "crm_b": 0}
    run("clear", "crm_a", "--yes")
    assert json.loads(run("export", "crm_*").stdout)["__namespaces__"].keys() == {"crm_b"}
    told = document("restore", "crm_*", "--to", "1", "--yes", "--json")
    assert {plan["namespace"]: len(plan["changes"]) for plan in told} == {"crm_a": 2, "crm_b": 0}
    assert error("export", "crm_f*").startswith("Error: 'crm_failed' holds nothing in MemoryStore()")
    assert error("restore", "crm_f*", "--to", "1").startswith("Error: 'crm_failed' holds nothing in MemoryStore()")


# Plots


def test_plot_of_text_is_in_its_order(url):
    store = MemoryStore.from_url(url)
    for text in ("01HA", "01HC", "01HB"):
        store.commit("crm", {"events": encode({"id": text})})
    lines = screen("plot", "crm", "events").splitlines()
    assert (lines[3][:6], lines[10][:6]) == ("01HC │", "01HA │")
    assert [step["scale"] for step in document("plot", "crm", "events", "--json")] == [0, 2, 1]
    for text in ("9", "10"):
        store.commit("crm", {"digits": encode({"id": text})})
    assert [step["scale"] for step in document("plot", "crm", "digits", "--json")] == [9.0, 10.0]


def test_plot_of_epochs_is_a_time_where_their_format_is_given(url):
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-03T12:00:00Z"):
        store.commit("crm", {"events": encode({"at": 1_714_730_400})})
    lines = screen("plot", "crm", "events", "--cursor-format", "epoch_s").splitlines()
    assert lines[10].startswith("2024-05-03 10:00 │")
    assert "lag" in lines
    done = run("plot", "crm", "events")
    assert done.stderr == "1714730400 is drawn as a number: if 1714730400 counts time, add --cursor-format epoch_s\n"


@pytest.mark.parametrize("keys", [("contacts",), ("accounts", "--member", "a1"), ("accounts",)])
@pytest.mark.parametrize("verb", [("rewind", "--by", "1d"), ("clear",), ("restore", "--to", "1", "--delete")])
def test_what_takes_back_or_away_says_how_to_undo_it(url, keys, verb):
    store = MemoryStore.from_url(url)
    for day in (1, 2):
        with Checkpointer("crm", store) as cp:
            at = {"at": f"2024-05-0{day}T00:00:00Z"}
            cp["contacts"] = at
            cp.group("accounts").update({f"a{number}": at for number in range(3)})
        if day == 1:
            version = max(entry.version for entry in store.load("crm").values())
    before = {key: entry.value for key, entry in store.load("crm").items()}
    name, *how = [str(version) if word == "1" else word for word in verb]
    done = run(name, "crm", *keys, *how, "--yes")
    assert {key: entry.value for key, entry in store.load("crm").items()} != before
    (line,) = re.findall(UNDO, done.stderr)
    assert run(*shlex.split(line)[4:], "--yes").exit_code == 0
    assert {key: entry.value for key, entry in store.load("crm").items()} == before


def test_undo_names_the_store_wherever_it_was_named(tmp_path, monkeypatch):
    """Also one of the environment, which another shell may not have, and a file by its whole path."""
    monkeypatch.chdir(tmp_path)
    path = f"sqlite:///{tmp_path}/state.db"
    run("set", "crm", "contacts", '{"at": "2024-05-02T00:00:00Z"}', "--store", path)
    for line, given, named in (
        (["--store", path, "rewind"], None, path),
        (["rewind", "--store", "sqlite:///state.db"], None, path),
        (["rewind"], path, path),
        (["rewind"], "sqlite:///state.db?keep=9", f"'{path}?keep=9'"),
    ):
        monkeypatch.setenv("CHECKPOINT_STORE", given) if given else monkeypatch.delenv(
            "CHECKPOINT_STORE", raising=False
        )
        done = run(*line, "crm", "contacts", "--by", "1d")
        (store,) = re.fullmatch(
            r"To undo it: checkpoint restore crm contacts --to \d --store (.*)\n", done.stderr
        ).groups()
        assert store == named


def test_a_rewind_tells_where_the_position_stands(url):
    MemoryStore.from_url(url).commit("crm", {"contacts": encode({"at": "2024-05-03T12:00:00Z"})})
    for dry in (["--dry-run"], []):
        said = screen("rewind", "crm", "contacts", "--by", "2d", *dry).splitlines()[-1]
        assert said == "That leaves 'contacts' at '2024-05-01T12:00:00Z', 2 d behind the clock."


@pytest.mark.parametrize(
    ("cursor", "form", "earlier"),
    [
        ({"at": "2999-05-03T10:00:00+02:00"}, [], "2024-05-01T10:00:00+02:00"),
        ({"at": 32_479_617_600}, ["--cursor-format", "epoch_s"], "1714564800"),
    ],
)
def test_a_rewind_that_ends_ahead_of_the_clock_says_how_to(url, cursor, form, earlier):
    """`--by 2d` of a position of the year 2999 repairs nothing."""
    store = MemoryStore.from_url(url)
    store.commit("crm", {"contacts": encode(cursor)})
    said = " ".join(screen("rewind", "crm", "contacts", "--by", "2d", *form).split())
    assert "ahead of the clock. Rows until then may not be delivered." in said
    (to,) = re.findall(r"--to VALUE takes a position back to a time: --to (.*) is two days before now\.", said)
    assert to == earlier
    said = " ".join(screen("rewind", "crm", "contacts", "--to", *shlex.split(to), *form).split())
    assert re.search(r"[23] d.* behind the clock\.$", said)


def test_members_that_stay_ahead_of_the_clock_are_counted(url):
    store = MemoryStore.from_url(url)
    with Checkpointer("crm", store) as cp:
        accounts = cp.group("accounts")
        for number, year in enumerate((2024, 2998, 2999)):
            accounts[f"a{number}"] = {"at": f"{year}-05-03T00:00:00Z"}
    said = " ".join(screen("rewind", "crm", "accounts", "--by", "1d", "--yes").split())
    assert "That leaves 'a2' of 'accounts' at '2999-05-02T00:00:00Z'" in said
    assert "ahead of the clock, and 1 member ahead of it too." in said
