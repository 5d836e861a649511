"""The verbs of the command with groups: by member, however a group is stored."""

from __future__ import annotations

import json
from contextlib import closing
from time import perf_counter

import pytest
from cli_screens import document, error, run, screen
from freezegun import freeze_time

from checkpoint import Checkpointer, MemoryStore, SQLiteStore, TrutoStore
from checkpoint.codec import decode, encode
from checkpoint.entries import head_key, member_key
from checkpoint.overview.moments import When
from checkpoint.overview.namespaces import AbsentError, Name, Namespace
from checkpoint.overview.past import kept_of_member
from checkpoint.run import forms
from checkpoint.stores import open_store

MEMBERS = {f"a{number}": {"updated_at": f"2024-05-{number:02}T00:00:00Z"} for number in range(1, 4)}
MANY = {f"a{number}": {"id": number} for number in range(40)}


def packed(name: str, members: dict, shards: int) -> dict[str, dict]:
    """Return the shards of a group."""
    packs: dict[int, dict] = {}
    for member, cursor in members.items():
        packs.setdefault(forms.index_of(member, shards), {})[member] = cursor
    return {forms.shard_key(name, index): pack for index, pack in packs.items()}


def stored_as(kind: str, members: dict) -> dict[str, str]:
    """Return the entries of the group `accounts`, stored as a kind of store or release does."""
    entries = {
        "entries": {head_key("accounts"): {"members": "entries"}}
        | {member_key("accounts", member): cursor for member, cursor in members.items()},
        "packed": {head_key("accounts"): {"shards": 4}, **packed("accounts", members, 4)},
        "version 1": {
            f"accounts.02-{index:02}": {m: c for m, c in members.items() if forms.index_of(m, 2) == index}
            for index in range(2)
        },
        "version 1 in one": {"accounts": members},
    }[kind]
    return {key: encode(value) for key, value in entries.items()}


KINDS = ["entries", "packed", "version 1", "version 1 in one"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """A way in which a group is stored."""
    return request.param


@pytest.fixture
def store(url: str, kind: str) -> MemoryStore:
    """A namespace with a group of three members, and a key."""
    store = MemoryStore.from_url(url)
    with freeze_time("2024-05-03T10:00:00Z"):
        store.commit("crm", {**stored_as(kind, MEMBERS), "contacts": encode({"page": 1})}, run_id="nightly")
    return store


def members(store) -> dict[str, dict]:
    """Return what a job finds in the group."""
    with Checkpointer("crm", store, record_run=False) as cp:
        return dict(cp.group("accounts").items())


def test_list_has_one_line_for_a_group(store, kind):
    age = "2 h" if kind == "entries" else "  -"  # of members that share entries nobody told
    assert screen("list", "crm") == (
        "key       cursor                                 lag  age  written by\n"
        f"accounts  3 members: slowest a1, newest a3  2 d 12 h  {age}  nightly\n"
        'contacts  {"page":1}                               -  2 h  nightly\n'
    )
    (row,) = document("list", "--json")
    assert (row["keys"], row["lag"]) == (4, 2.5 * 86_400)
    group, _ = document("list", "crm", "--json")
    assert (group["key"], group["members"], group["newest"]["member"]) == ("accounts", 3, "a3")
    assert (group["slowest"]["member"], group["slowest"]["cursor"]) == ("a1", MEMBERS["a1"])


def test_list_of_a_group_has_its_members(store, kind):
    age = "2 h" if kind == "entries" else "  -"
    assert screen("list", "crm", "accounts") == (
        "member  cursor                                      lag  age  written by\n"
        f'a1      {{"updated_at":"2024-05-01T00:00:00Z"}}  2 d 12 h  {age}  nightly\n'
        f'a2      {{"updated_at":"2024-05-02T00:00:00Z"}}  1 d 12 h  {age}  nightly\n'
        f'a3      {{"updated_at":"2024-05-03T00:00:00Z"}}      12 h  {age}  nightly\n'
    )
    assert [entry["member"] for entry in document("list", "crm", "accounts", "--json")] == ["a1", "a2", "a3"]
    assert error("list", "crm", "contacts") == ("Error: 'contacts' in 'crm' is not a group: `checkpoint get` prints it")
    assert error("list", "crm", "account") == "Error: there is no 'account' in 'crm': did you mean 'accounts'?"


def test_set_merge_and_clear_of_a_member(store):
    assert screen("set", "crm", "accounts", '{"updated_at":"2024-05-09T00:00:00Z"}', "--member", "a2") == (
        '- accounts / a2  {"updated_at":"2024-05-02T00:00:00Z"}\n'
        '+ accounts / a2  {"updated_at":"2024-05-09T00:00:00Z"}\n'
        "1 member of 'crm' changed.\n"
    )
    told = document("merge", "crm", "accounts", '{"note": 1}', "--member", "new", "--json")
    assert told["changes"][0] == {
        "key": "accounts",
        "member": "new",
        "before": None,
        "after": {"value": encode({"note": 1}), "cursor": {"note": 1}},
    }
    assert screen("clear", "crm", "accounts", "--member", "a1", "--yes").splitlines()[-1] == (
        "1 member of 'crm' changed."
    )
    expected = {"a2": {"updated_at": "2024-05-09T00:00:00Z"}, "a3": MEMBERS["a3"], "new": {"note": 1}}
    assert json.loads(screen("get", "crm", "accounts", "new")) == {"note": 1}
    assert members(store) == expected
    assert error("clear", "crm", "accounts", "--member", "a9", "--yes").startswith(
        "Error: 'accounts' in 'crm' has no member 'a9'"
    )


def test_set_of_a_groups_name_is_refused(store):
    before = store.load("crm")
    said = "Error: 'accounts' in 'crm' is a group of 3 members: name one with --member, such as a1"
    assert error("set", "crm", "accounts", '{"updated_at": "2024-05-09"}') == said
    assert error("set", "crm", "accounts", "text", "--raw") == said
    assert error("set", "crm", "contacts", "{}", "--member", "a1") == (
        "Error: 'contacts' in 'crm' is not a group: leave --member out"
    )
    assert store.load("crm") == before


@pytest.mark.parametrize("kind", ["entries", "packed"], indirect=True)
def test_merge_and_import_over_a_groups_name_are_refused(store):
    said = "Error: 'accounts' in 'crm' is a group of 3 members: name one with --member, such as a1"
    assert error("merge", "crm", "accounts", "{}") == said
    assert error("import", "crm", stdin='{"accounts": {"a": 1}}') == said


def test_the_stored_spelling_is_refused_with_what_to_write(store):
    for verb in (["list", "crm"], ["list", "crm", "--all"], ["history", "crm"], ["history", "crm", "accounts"]):
        assert "__group__" not in run(*verb).output
    for member in ("/a1", ""):
        shown = error("set", "crm", f"__group__.accounts{member}", "{}", status=2)
        assert "is how a group is stored: give its name" in shown
        assert ("accounts --member a1" in shown) == bool(member)


def test_clear_of_a_group_deletes_all_of_it(store):
    done = run("clear", "crm", "accounts")
    assert done.exit_code == 2
    assert (
        "members of 'crm'? There is no terminal to ask on, so nothing was written: add --yes." in done.stderr
        or "keys of" in done.stderr
        or ("Delete 1 key of 'crm'?" in done.stderr)
    )
    assert run("clear", "crm", "accounts", "--yes").exit_code == 0
    assert list(store.load("crm")) == ["contacts"]


def test_history_of_a_member(store):
    screen("set", "crm", "accounts", '{"updated_at":"2024-05-09T00:00:00Z"}', "--member", "a2")
    lines = screen("history", "crm", "accounts", "--member", "a2").splitlines()
    assert [line for line in lines if line[:1] in {"+", "-"}] == [
        '- accounts / a2  {"updated_at":"2024-05-02T00:00:00Z"}',
        '+ accounts / a2  {"updated_at":"2024-05-09T00:00:00Z"}',
        '+ accounts / a2  {"updated_at":"2024-05-02T00:00:00Z"}',
    ]
    told = document("history", "crm", "accounts", "--json", "--limit", "1")
    assert [(change["key"], change["member"]) for change in told] == [("accounts", "a2")]
    assert error("history", "crm", "accounts", "--member", "zz") == ("Error: 'accounts' in 'crm' has no member 'zz'")


class Asked(MemoryStore):
    """A store that notes what of its history was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str | None, int | None]] = []

    def history(self, state_key, key=None, *, limit=None):
        self.asked.append((key, limit))
        return super().history(state_key, key, limit=limit)


def test_restore_of_a_member_reads_no_history_of_others():
    store = Asked()
    for number in (1, 2, 3):
        store.commit("crm", {member_key("accounts", f"a{number}"): encode({"id": number})})
    there = Namespace(store, "crm")
    assert kept_of_member(there, Name("accounts", "a2"), When("2", version=2)).version == 2
    assert kept_of_member(there, Name("accounts", "a2"), When("3", version=3)).version == 2
    with pytest.raises(AbsentError, match="'crm' has no version 4: the newest is 3"):
        kept_of_member(there, Name("accounts", "a2"), When("4", version=4))
    store.commit("crm", {member_key("accounts", "a1"): None})  # of which nothing is stored
    assert kept_of_member(there, Name("accounts", "a2"), When("4", version=4)).version == 2
    assert (None, None) not in store.asked


def test_restore_of_a_member(store):
    screen("set", "crm", "accounts", '{"updated_at":"2024-05-09T00:00:00Z"}', "--member", "a2")
    screen("set", "crm", "accounts", '{"updated_at":"2024-05-09T00:00:00Z"}', "--member", "a3")
    words = ["restore", "crm", "accounts", "a2", "--to", "1"]
    shown = screen(*words, "--dry-run")
    assert shown.replace("would change; nothing was written", "changed") == screen(
        *words[:3], "--member", "a2", *words[4:], "--yes"
    )
    assert "'a9'" in error("restore", "crm", "accounts", "a9", "--to", "1")
    assert shown.splitlines()[0] == "as of version 1, 2024-05-03T10:00:00.000Z: accounts / a2"
    assert members(store) == {**MEMBERS, "a3": {"updated_at": "2024-05-09T00:00:00Z"}}
    assert run("restore", "crm", "accounts", "--to", "1", "--yes").exit_code == 0
    assert members(store) == MEMBERS


def test_diff_and_plot_of_a_member(store, kind):
    screen("set", "crm", "accounts", '{"updated_at":"2024-05-03T11:00:00Z"}', "--member", "a2")
    assert screen("plot", "crm", "accounts", "--member", "a2").startswith("crm accounts / a2\n\nposition\n2024-05-03")
    if kind in {"entries", "packed"}:
        assert error("plot", "crm", "accounts").startswith("Error: 'accounts' in 'crm' is a group of 3 members")
        assert screen("diff", "crm", "--since", "1", "--member", "a2", status=1) == (
            '- accounts / a2  {"updated_at":"2024-05-02T00:00:00Z"}\n'
            '+ accounts / a2  {"updated_at":"2024-05-03T11:00:00Z"}\n'
        )
        assert screen("diff", "crm", "--since", "1", "--member", "a3") == ""
        assert "has a member 'zz'" in error("diff", "crm", "--since", "1", "--member", "zz", status=2)


@pytest.mark.parametrize("kind", ["entries", "packed"], indirect=True)
def test_export_shows_members_and_import_brings_them_back(store):
    document_ = {"contacts": {"page": 1}, "__group__": {"accounts": {**MEMBERS}}}
    assert document("export", "crm") == document_
    text = run("export", "crm", "--format", "values").stdout
    assert json.loads(text)["__group__"]["accounts"]["a1"] == encode(MEMBERS["a1"])
    for form, written in (("json", json.dumps(document_)), ("values", text)):
        assert run("import", form, "--format", form, stdin=written).exit_code == 0
        assert screen("diff", "crm", form) == ""
        with Checkpointer(form, store, record_run=False) as cp:
            assert dict(cp.group("accounts").items()) == MEMBERS
    assert error("export", "crm", "--format", "singer") == (
        "Error: 'accounts' in 'crm' is a group, and the format singer has none: export --format json"
    )
    del document_["__group__"]["accounts"]["a1"]
    run("import", "crm", "--delete", "--yes", stdin=json.dumps(document_))
    assert sorted(members(store)) == ["a2", "a3"]


def test_a_version_1_group_is_exported_and_copied_as_stored(url):
    store = MemoryStore.from_url(url)
    store.commit("crm", {"cursor": encode({"position": {"lsn": 5}, "other": {"lsn": 6}})})
    text = run("export", "crm").stdout
    run("import", "other", stdin=text)
    assert store.load("other")["cursor"].value == store.load("crm")["cursor"].value


@pytest.mark.parametrize("shards", [1, 3])
def test_the_verbs_reach_members_on_the_api(api, url, monkeypatch, shards):
    """Between an entry a member and packed entries, both ways."""
    monkeypatch.setenv("TRUTO_API_TOKEN", api.token)
    with closing(TrutoStore(api.url, api.token)) as truto, Checkpointer("crm", truto) as cp:
        group = cp.group("accounts", shards=shards)
        for member, cursor in MANY.items():
            group[member] = cursor
    there = ["--store", api.url]
    assert "40 members" in screen("list", "crm", *there)
    screen("set", "crm", "accounts", '{"id": 7000}', "--member", "a7", *there)
    assert screen("get", "crm", "accounts", "a7", *there) == '{"id":7000}\n'
    screen("clear", "crm", "accounts", "--member", "a8", "--yes", *there)
    assert screen("copy", "crm", "--to", url, *there).endswith("copied and compared.\n")
    store = MemoryStore.from_url(url)
    assert member_key("accounts", "a7") in store.load("crm")
    assert screen("diff", "crm", "--with", url, *there) == ""
    expected = {**MANY, "a7": {"id": 7000}}
    del expected["a8"]
    assert members(store) == expected
    text = run("export", "crm").stdout
    run("clear", "crm", "--yes", *there)
    assert run("import", "crm", *there, stdin=text).exit_code == 0
    with closing(TrutoStore(api.url, api.token)) as truto, Checkpointer("crm", truto) as cp:
        assert dict(cp.group("accounts").items()) == expected


def test_a_changed_shard_is_a_conflict_by_the_groups_name(api, url, monkeypatch):
    monkeypatch.setenv("TRUTO_API_TOKEN", api.token)
    with closing(TrutoStore(api.url, api.token)) as truto:
        truto.commit("crm", stored_as("packed", MEMBERS))
        from checkpoint.overview.namespaces import Name, Namespace

        there = Namespace(truto, "crm")
        key = there.groups["accounts"].entry_key("a2")
        written = there.entries_for({Name("accounts", "a2"): encode({"id": 1})})
        assert set(written) == {key}
        assert set(there.base_for(written)) == {key, head_key("accounts")}


@pytest.mark.parametrize("name", ["accounts", "a/b", "50%"])
def test_members_on_sqlite_and_postgres(postgres_url, tmp_path, url, name):
    for place in (f"sqlite:///{tmp_path}/state.db", postgres_url):
        with closing(open_store(place)) as store, Checkpointer("crm", store) as cp:
            cp.group(name)["x/y"] = {"id": 1}
        there = ["--store", place]
        assert "1 member: slowest x/y, newest x/y" in run("list", "crm", *there).stdout
        run("set", "crm", name, '{"id": 2}', "--member", "x/y", *there)
        assert json.loads(run("get", "crm", name, "x/y", *there).stdout) == {"id": 2}
        told = json.loads(run("history", "crm", name, "--member", "x/y", "--json", *there).stdout)
        assert [change["after"]["cursor"] for change in told] == [{"id": 2}, {"id": 1}]
        run("restore", "crm", name, "--member", "x/y", "--to", str(told[1]["version"]), "--yes", *there)
        assert json.loads(run("get", "crm", name, "x/y", *there).stdout) == {"id": 1}


def test_set_makes_a_group_that_is_new(url):
    assert screen("set", "crm", "accounts", '{"id": 1}', "--member", "a1") == (
        "+ accounts / a1  {\"id\":1}\n1 member of 'crm' changed.\n"
    )
    store = MemoryStore.from_url(url)
    assert members(store) == {"a1": {"id": 1}}
    run("clear", "crm", "--yes")
    assert store.load("crm") == {}


def test_ten_thousand_members_are_listed_within_a_second(tmp_path, url):
    cursors = {f"a{n:05}": {"updated_at": f"2024-05-01T{n % 24:02}:00:00Z"} for n in range(10_000)}
    with freeze_time("2024-05-03T10:00:00Z"), closing(SQLiteStore(tmp_path / "state.db")) as store:
        store.commit("crm", stored_as("entries", cursors))
    began = perf_counter()
    shown = screen("list", "crm", "--store", f"sqlite:///{tmp_path}/state.db")
    took = perf_counter() - began
    assert shown.splitlines()[1].startswith("accounts  10,000 members: slowest a00000, newest a09")
    assert len(shown.splitlines()) == 2
    assert took < 1 or pytest.skip(f"a loaded machine: {took:.2f} s")


def test_a_group_that_cannot_be_read_hides_no_other_namespace(url):
    store = MemoryStore.from_url(url)
    store.commit("good", {"key": encode({"id": 1})})
    store.commit("bad", {head_key("accounts"): "junk", "key": encode({"id": 1})})
    done = run("list")
    assert (done.exit_code, done.stdout.splitlines()[1].split()[0]) == (1, "good")
    assert done.stderr.startswith("Error: the group 'accounts' in 'bad' cannot be read (")
    assert decode(store.load("bad")["key"].value) == {"id": 1}


@pytest.mark.parametrize("kind", ["entries", "packed"], indirect=True)
def test_a_copy_that_differs_names_the_member_or_its_group(store, tmp_path):
    there = f"sqlite:///{tmp_path}/state.db"
    run("copy", "crm", "--to", there)
    run("set", "crm", "accounts", '{"id": 1}', "--member", "a2", "--store", there)
    assert error("copy", "crm", "--to", there) == (
        "Error: the target has another value for 'a2' of 'accounts' in 'crm', so the namespace was not written: "
        "overwrite it (--overwrite), or choose another name (--as)"
    )


def test_edit_of_a_member(store, tmp_path, monkeypatch):
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i s/05-02/05-09/ "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    assert screen("edit", "crm", "accounts", "--member", "a2").splitlines()[-1] == "1 member of 'crm' changed."
    assert members(store)["a2"] == {"updated_at": "2024-05-09T00:00:00Z"}


def test_an_entry_of_version_1_stays_where_its_last_member_goes(url):
    """Without it the group would be taken for one that lost an entry."""
    both = {f"a{number}": {"id": number} for number in range(6)}
    first = {member for member in both if forms.index_of(member, 2) == 0}
    store = MemoryStore.from_url(url)
    store.commit("crm", stored_as("version 1", both))
    for member in first:
        run("clear", "crm", "accounts", "--member", member, "--yes")
    assert len(first) in range(1, 6)
    assert members(store) == {member: cursor for member, cursor in both.items() if member not in first}


def test_a_member_is_a_third_word_of_every_verb_that_has_room(store):
    for verb in (["get"], ["status"], ["history"], ["plot"], ["rewind", "--by", "1d", "--dry-run"]):
        word, *options = verb
        said = run(word, "crm", "accounts", "a2", *options)
        assert (said.exit_code, said.stdout) == (0, run(word, "crm", "accounts", "--member", "a2", *options).stdout)
        assert error(word, "crm", "accounts", "a2", "--member", "a1", *options, status=2) == (
            "Error: the member is given twice: as MEMBER and as --member"
        )
