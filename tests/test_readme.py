"""Every Python block of the README runs as it stands, but for the address of the API."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from checkpoint import Checkpointer
from checkpoint.stores import open_store
from checkpoint.testing import ApiServer

README = Path(__file__).parent.parent / "README.md"
TEXT, _, RECIPES = README.read_text("utf-8").partition("## Recipes")  # these have tests of their own
TEXT_AND_REST = README.read_text("utf-8")
RESULTS = README.parent / "benchmarks" / "results"
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
    with Checkpointer("sync_job_123", "sqlite:///state.db") as cp:
        cp["contacts"] = {"pages": 1}
    with ApiServer() as server:
        monkeypatch.setenv("TRUTO_API_TOKEN", server.token)
        yield {"api": Contacts(), "sink": Sink(), "server": server}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: next(line for line in block.splitlines() if "with" in line))
def test_block_runs(block, names):
    exec(compile(block.replace("https://api.truto.one", names["server"].url), str(README), "exec"), names)


def test_the_first_block_syncs_once_and_then_only_what_is_new(names):
    exec(BLOCKS[0], names)
    assert [row for page in names["sink"] for row in page] == list(Contacts.rows)
    names["sink"].clear()
    exec(BLOCKS[0], names)
    assert names["sink"] == []
    store = open_store()
    assert len(store.load("sync_job_123")) == 1
    store.close()


def test_the_figures_are_those_that_the_benchmarks_wrote():
    rows = []
    for name in ("flush", "flush_overwrite", "commit"):
        for case in json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["cases"]:
            ours, peer = case["figures"].items()
            rows.append(
                f"| {case['name']} | {ours[1]['median'] * 1000:.2f} ms | {peer[1]['median'] * 1000:.2f} ms, {peer[0]} "
                f"| {peer[1]['ratio']:.2f} |"
            )
    assert [row for row in TEXT_AND_REST.splitlines() if " ms |" in row] == rows
