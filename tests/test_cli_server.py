"""Every verb of the command over our own server does and says what it does over the file behind it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cli_screens import run
from freezegun import freeze_time

from checkpoint import Checkpointer, SQLiteStore
from checkpoint.codec import encode
from checkpoint.run.lease import KEY, LeaseState
from checkpoint.stores.base import host
from checkpoint.testing import ApiServer

AT = ["2024-05-01T10:00:00Z", "2024-05-02T10:00:00Z"]
CURSOR = json.dumps({"updated_at": AT[1]})
DOCUMENT = json.dumps({"contacts": {"updated_at": AT[0]}, "new": {"updated_at": AT[0]}})
STEPS: list[tuple[str, ...]] = [
    ("list",),
    ("list", "job"),
    ("list", "job", "accounts", "--json"),
    ("list", "jbo"),
    ("get", "job", "contacts"),
    ("get", "job", "accounts", "one"),
    ("get", "jbo", "contacts"),
    ("set", "job", "deals", CURSOR),
    ("merge", "job", "deals", '{"note": "é"}'),
    ("clear", "job", "deals", "--yes"),
    ("status", "job", "--max-age", "1d"),
    ("status", "*", "--max-age", "90d", "--json"),
    ("runs", "job"),
    ("history", "job"),
    ("history", "job", "accounts", "--member", "one", "--json"),
    ("diff", "job", "other"),
    ("diff", "job", "--to", "2024-05-01T13:00:00Z"),
    ("rewind", "job", "contacts", "--by", "1d", "--reason", "why", "--yes"),
    ("restore", "job", "contacts", "--to", "2024-05-02T13:00:00Z", "--yes"),
    ("plot", "job", "contacts"),
    ("export", "job"),
    ("import", "job", "-", "--overwrite", "--yes"),
    ("copy", "job", "--as", "copied", "--yes"),
    ("move", "copied", "--as", "moved", "--yes"),
    ("list", "moved", "--json"),
    ("init",),
    ("reshard", "job", "accounts", "--shards", "4"),
    ("unlock", "held", "--yes"),
    ("unlock", "held", "--yes"),
    ("clear", "moved", "--yes"),
    ("list", "--json"),
]


def filled(path):
    """Return a file that holds what runs and another program left there."""
    store = SQLiteStore(path)
    for day, at in enumerate(AT, 1):
        with freeze_time(f"2024-05-0{day}T12:00:00Z"), Checkpointer("job", store, run_id=f"run {day}") as cp:
            cp["contacts"] = {"updated_at": at}
            group = cp.group("accounts")
            group["one"], group["two"] = {"updated_at": at}, {"updated_at": AT[0]}
    with freeze_time("2024-05-03T11:00:00Z"):
        store.commit("other", {"contacts": encode({"updated_at": AT[0]}), "opaque": "text"})
        store.commit("held", {"a": encode({"at": 1}), KEY: LeaseState("a run", "2024-05-03T11:00:00Z", 1, 0).value()})
    return store


@pytest.mark.usefixtures("recorded")
def test_every_verb_is_as_over_the_file_behind_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    direct, behind = filled(tmp_path / "direct.db"), filled(tmp_path / "behind.db")
    with ApiServer(behind) as api:
        monkeypatch.setenv("CHECKPOINT_TOKEN", api.token)
        for step in STEPS:
            told = []
            for url, shown in (
                (f"sqlite:///{tmp_path}/direct.db", f"SQLiteStore('{tmp_path}/direct.db')"),
                (f"server+{api.url}", f"ServerStore('{api.url}')"),
            ):
                done = run(*step, "--store", url, stdin=DOCUMENT if step[0] == "import" else None)
                assert done.exception is None or isinstance(done.exception, SystemExit), (step, done.exception)
                said = " ".join(f"{done.stdout}\n{done.stderr}".split())
                told.append((done.exit_code, said.replace(shown, "STORE").replace(url, "URL")))
            assert told[1] == told[0], step
        assert run("doctor", "--store", f"server+{api.url}").exit_code == 0
    kept = [{state_key: store.load(state_key) for state_key in store.namespaces()} for store in (direct, behind)]
    assert kept[0] == kept[1]
    for store in (direct, behind):
        store.close()


def test_doctor_tells_what_the_server_is(api, monkeypatch):
    monkeypatch.setenv("CHECKPOINT_TOKEN", api.token)
    done = run("doctor", "--write", "--json", "--store", f"server+{api.url}")
    checks = {check["check"]: check["said"] for check in json.loads(done.stdout)["checks"]}
    assert checks["store"] == f"ServerStore('{api.url}')"
    assert checks["server"].endswith("over MemoryStore")
    assert checks["compare"] == "a change by another writer is noticed"
    assert (checks["history"], checks["namespaces"]) == ("kept", "can be listed")
    assert done.exit_code == (0 if "clock" in checks else 1)
    monkeypatch.setenv("CHECKPOINT_TOKEN", "another")
    done = run("doctor", "--json", "--store", f"server+{api.url}")
    (wrong,) = [check for check in json.loads(done.stdout)["checks"] if check["good"] is False]
    assert (done.exit_code, wrong["check"]) == (1, "token")


def test_a_namespace_is_copied_between_a_server_and_a_file(api, tmp_path, monkeypatch):
    monkeypatch.setenv("CHECKPOINT_TOKEN", api.token)
    with Checkpointer("job", api.store) as cp:
        cp["a"] = {"at": 1}
        cp.group("accounts")["one"] = {"at": 2}
    file, server = f"sqlite:///{tmp_path}/state.db", f"server+{api.url}"
    assert run("copy", "job", "--store", server, "--to", file, "--yes").exit_code == 0
    assert run("copy", "job", "--store", file, "--to", server, "--as", "back", "--yes").exit_code == 0
    with Checkpointer("back", api.store) as cp:
        assert (cp["a"], dict(cp.group("accounts"))) == ({"at": 1}, {"one": {"at": 2}})


def test_a_tap_runs_through_a_server_before_another_one(api, tmp_path):
    """`serve` over a server, and `singer-run` through both, as processes."""
    environment = {**os.environ, "CHECKPOINT_SERVER_TOKEN": "outer", "CHECKPOINT_TOKEN": api.token}
    checkpoint = [sys.executable, "-m", "checkpoint"]
    command = [*checkpoint, "serve", "--store", f"server+{api.url}", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().removeprefix("Listening on ").strip()
            told = [singer_run(f"server+{url}", {**environment, "CHECKPOINT_TOKEN": "outer"}, tmp_path) for _ in "12"]
        finally:
            server.terminate()
            server.wait()
    assert [done.returncode for done in told] == [0, 0], told
    with Checkpointer("job", api.store) as cp:
        assert cp["orders"]["id"] == 5
    history = api.store.history("job", "orders")
    assert (history[0].host, history[0].process) != (host(), os.getpid())  # the tap's, through two servers


def singer_run(store, environment, folder):
    """Run a tap of five rows into a target."""
    words = []
    for name, config in (
        ("tap", {"rows": 5, "calls": str(folder / "calls"), "go": str(folder / "go")}),
        ("target", {"rows": str(folder / "rows")}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(config))
        script = Path(__file__).parent / "singer" / f"{name}.py"
        words.append(shlex.join([sys.executable, str(script), "--config", str(folder / f"{name}.json")]))
    command = [sys.executable, "-m", "checkpoint", "singer-run", "job", "--store", store]
    return subprocess.run(
        [*command, "--tap", words[0], "--target", words[1]],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
