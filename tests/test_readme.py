"""Every Python block of the README runs as it stands, but for the address of the API."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from checkpoint import Checkpointer, Conflict
from checkpoint.codec import decode, encode
from checkpoint.stores import open_store
from checkpoint.testing import Answer, ApiServer, Drop

README = Path(__file__).parent.parent / "README.md"
sys.path.insert(0, str(README.parent / "benchmarks"))
import table  # noqa: E402 - a script, not installed

TEXT, _, RECIPES = README.read_text("utf-8").partition("## Recipes")  # these have tests of their own
TEXT_AND_REST = README.read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT + RECIPES.partition("\n## ")[2], re.DOTALL | re.MULTILINE)


class Contacts:
    """A source of 90 contacts, three of the same second, ten a page."""

    rows = tuple({"id": n, "updated_at": f"2024-05-01T10:00:{n // 3:02}Z"} for n in range(90))

    def contacts(self, updated_since):
        rows = [row for row in self.rows if row["updated_at"] >= updated_since]
        return (rows[first : first + 10] for first in range(0, len(rows), 10))


class Sink(list):
    """Pages that were written."""

    write = list.append


@pytest.fixture
def names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHECKPOINT_STORE", f"sqlite:///{tmp_path}/default.db")
    with ApiServer() as server:
        monkeypatch.setenv("TRUTO_API_TOKEN", server.token)
        yield {"api": Contacts(), "sink": Sink(), "server": server}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: next(line for line in block.splitlines() if "with" in line))
def test_block_runs(block, names):
    exec(compile(block.replace("https://api.truto.one", names["server"].url), str(README), "exec"), names)


def test_the_blocks_run_one_after_the_other_and_again(names):
    for block in BLOCKS * 2:
        exec(compile(block.replace("https://api.truto.one", names["server"].url), str(README), "exec"), dict(names))


def test_the_first_block_syncs_once_and_then_only_what_is_new(names):
    exec(BLOCKS[0], names)
    assert [row for page in names["sink"] for row in page] == list(Contacts.rows)
    names["sink"].clear()
    exec(BLOCKS[0], names)
    assert names["sink"] == []
    store = open_store()
    assert len(store.load("sync_job_123")) == 1
    store.close()


def test_the_crash_test_shown_passes(names, crash_and_resume):
    (block,) = [block for block in BLOCKS if "crash_and_resume" in block]
    exec(block, names)
    names["test_contacts"](crash_and_resume)


def test_every_room_is_in_the_table():
    table = TEXT_AND_REST.partition("## Where things are")[2]
    package = README.parent / "checkpoint"
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert {name for name in rooms if f"`{name}`" not in table} == set()


def at(day):
    return {"updated_at": f"2024-05-{day:02}"}


@pytest.fixture
def commit(names):
    (block,) = [block for block in BLOCKS if "def commit(cp):" in block]
    exec(block, names)
    return names["commit"]


@pytest.mark.parametrize("theirs", [at(3), at(2), at(1), None])
def test_the_commit_shown_goes_on_from_another_runs_later_position(commit, names, theirs):
    server = names["server"]
    server.store.commit("job", {"a": encode(at(0))})
    with Checkpointer("job", server.url) as cp:
        cp["a"] = at(2)
        server.store.commit("job", {"a": theirs and encode(theirs)})
        if theirs in (at(3), at(2)):
            commit(cp)
            assert cp["a"] == theirs
        else:
            with pytest.raises(Conflict):
                commit(cp)
    assert {key: decode(entry.value) for key, entry in server.store.load("job").items()} == (
        {} if theirs is None else {"a": theirs}
    )


def test_the_commit_shown_sends_less_of_what_is_too_large(commit, names):
    server = names["server"]
    server.set(max_value=200)
    with Checkpointer("job", server.url) as cp:
        cp["a"], cp["b"] = {**at(1), "seen": ["x" * 300]}, at(1)
        commit(cp)
        assert cp.changed == set()
    assert {key: decode(entry.value) for key, entry in server.store.load("job").items()} == {"a": at(1), "b": at(1)}


@pytest.mark.parametrize("applied", [True, False])
def test_the_commit_shown_finds_out_what_became_of_an_unanswered_write(commit, names, applied):
    server = names["server"]
    server.script(Drop(applied=applied), method="POST")
    server.script(None, Answer(400), method="GET", key="a")  # looked at, sent, and refused to be read back
    with Checkpointer("job", server.url) as cp:
        cp["a"] = at(1)
        commit(cp)
        assert cp.changed == set()
    assert decode(server.store.load("job")["a"].value) == at(1)
    assert server.pending == 0


def test_the_figures_are_those_that_the_benchmarks_wrote():
    found = table.read()
    assert [result["benchmark"] for result in found] == list(table.NAMES)
    shown = TEXT_AND_REST.partition(table.BEGIN)[2].partition(table.END)[0]
    assert shown == table.summary(found)


def test_the_pictures_shown_are_there():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", TEXT_AND_REST)
    assert pictures
    assert [picture for picture in pictures if not (README.parent / picture).is_file()] == []
