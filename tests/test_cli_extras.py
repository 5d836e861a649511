"""The command without an extra: one sentence says what to install, whichever verb needs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import closing

import pytest

from checkpoint import SQLiteStore
from checkpoint.cli.command import TROUBLE, checkpoint
from checkpoint.codec import encode

WITHOUT_AN_EXTRA = """
import json, sys
for missing in sys.argv[1:]:
    sys.modules[missing] = None
from click.testing import CliRunner
from checkpoint.cli.command import checkpoint

def end(*arguments):
    done = CliRunner().invoke(checkpoint, arguments, "{}", prog_name="checkpoint")
    return done.exit_code, done.stdout, done.stderr, repr(done.exception)

print(json.dumps([(arguments, *end(*arguments)) for arguments in json.load(sys.stdin)]))
"""

VERBS_WITH_A_STORE = [
    ["list"], ["get", "n", "k"], ["set", "n", "k", "{}"], ["merge", "n", "k", "{}"], ["edit", "n", "k"],
    ["clear", "n", "--yes"], ["status"], ["runs", "n"], ["history", "n"], ["diff", "n", "other"],
    ["rewind", "n", "k", "--by", "1"], ["restore", "n", "--to", "1", "--yes"], ["plot", "n", "k"],
    ["copy", "n", "--as", "other"], ["move", "n", "--as", "other", "--yes"], ["export", "n"], ["import", "n"], ["init"],
    ["doctor"], ["reshard", "n", "g", "--shards", "2"], ["unlock", "n", "--yes"],
    ["singer-run", "n", "--tap", "tap", "--target", "target"], ["ui", "--no-browser"], ["serve", "--token", "t"],
    ["demo"],
]  # fmt: skip


@pytest.mark.parametrize(
    ("missing", "schemes", "said"),
    [
        (["psycopg"], ["postgres", "postgresql"], "PostgresStore needs psycopg (import of psycopg halted; "),
        (
            ["psycopg_c", "psycopg_binary", "psycopg.pq.pq_ctypes"],
            ["postgresql"],
            "PostgresStore needs psycopg (no pq wrapper available. Attempts made: ",
        ),
        (["obstore"], ["s3", "gs", "az"], "an object store needs obstore: pip install "),
    ],
)
def test_a_store_without_its_extra_is_one_sentence_of_every_verb(tmp_path, missing, schemes, said):
    assert {words[0] for words in VERBS_WITH_A_STORE} | {"demo-child", "token"} == {*checkpoint.commands}
    here = f"sqlite:///{tmp_path}/state.db"
    with closing(SQLiteStore(tmp_path / "state.db")) as store:
        store.commit("n", {"k": encode({"id": 1})})
    asked = [[*words, "--store", f"{scheme}://host/n"] for scheme in schemes for words in VERBS_WITH_A_STORE]
    for option in (["copy", "n", "--to"], ["move", "n", "--yes", "--to"], ["diff", "n", "--with"]):
        asked += [[*option, f"{scheme}://host/n", "--store", here] for scheme in schemes]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_AN_EXTRA, *missing],
        input=json.dumps(asked), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    for words, status, stdout, stderr, exception in json.loads(done.stdout):
        assert (status, exception) == ((TROUBLE.get(words[0], 1)), f"SystemExit({status})"), words
        if words[0] == "doctor":
            assert re.search(rf"^WRONG  store +{re.escape(said)}.*\n\Z", stdout, re.MULTILINE)
            assert stderr == ""
        else:
            assert (stdout, stderr.count("\n")) == ("", 1), words
            assert stderr.startswith(f"Error: {said}")
