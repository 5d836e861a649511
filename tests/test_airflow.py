"""Airflow's state in our stores, and the recipes for DAGs: the real package, with a metadata database of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from contextlib import closing
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from click.testing import CliRunner
from recipes import TABLES, FileSink, Page, expected, source

from checkpoint import Checkpointer, CorruptState, codec
from checkpoint.cli.command import checkpoint
from checkpoint.run import lease
from checkpoint.stores import open_store
from checkpoint.testing import ApiServer

if find_spec("airflow") is None:
    pytest.skip("needs the extra airflow", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # Airflow's own, and those of what it is made of

RECIPES = Page("orchestrators.md")
EVER = datetime(9999, 1, 1, tzinfo=timezone.utc)
VALUES = [
    *("2024-05-01T10:00:00+00:00", "", "ä\n", 3, 2**70, 0.1, -0.0, True, False, [], [1, {"a": None}], {}, {"at": 1}),
    *({"value": 3}, {"$airflow": {"expires_at": "x"}}, {"value": {"value": None}, "more": 1}),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Make Airflow's folder and database; no part of Airflow may have been imported before."""
    folder = tmp_path_factory.mktemp("airflow")
    (folder / "dags").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AIRFLOW_HOME": str(folder),
            "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
            "AIRFLOW__STATE_STORE__BACKEND": "checkpoint.airflow.CheckpointBackend",
            "PYTHONPATH": str(Path(__file__).parent),
        }.items():
            patch.setenv(name, value)
        from airflow.utils.db import initdb

        initdb()
        yield folder


@pytest.fixture
def store(request, tmp_path, monkeypatch):
    """Return the URL of a store, named in Airflow's configuration."""
    kind = getattr(request, "param", "sqlite")
    if kind in {"http", "server"}:
        api = request.getfixturevalue("api")
        url = api.url if kind == "http" else f"server+{api.url}"
        monkeypatch.setenv("TRUTO_API_TOKEN" if kind == "http" else "CHECKPOINT_TOKEN", api.token)
    elif kind == "sqlite":
        url = f"sqlite:///{tmp_path}/state.db"
    else:
        url = request.getfixturevalue({"postgres": "postgres_url", "s3": "s3"}[kind])
    monkeypatch.setenv("AIRFLOW__CHECKPOINT__STORE", url)
    monkeypatch.setenv("CHECKPOINT_STORE", url)  # of the command
    return url


@pytest.fixture
def backend(home, store, monkeypatch):
    """Return what Airflow's own factory makes."""
    import airflow.state

    monkeypatch.setattr(airflow.state, "_backend_instance", None)
    backend = airflow.state.get_state_backend()
    yield backend
    backend._store.close()


@pytest.fixture
def asset(home):
    """Return an asset of the metadata database."""
    from airflow.models.asset import AssetActive, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    with create_session() as session:
        model = AssetModel(name="orders/daily", uri="s3://warehouse/orders/daily")
        session.add_all([model, AssetActive.for_asset(model)])
        session.flush()
        session.expunge(model)
    yield model
    with create_session() as session:
        session.execute(delete(AssetActive).where(AssetActive.name == "orders/daily"))
        session.execute(delete(AssetModel).where(AssetModel.name == "orders/daily"))


@pytest.fixture
def client(backend):
    """Return Airflow's client of its API, which runs in this process."""
    from airflow.sdk.api.client import Client
    from airflow.sdk.execution_time.supervisor import in_process_api_server

    class Once(Client):
        def request(self, *args, **more):
            return super().request.__wrapped__(self, *args, **more)  # without its waits before another try

    transport = in_process_api_server().transport
    with Once(base_url="http://in-process.invalid./", token="", dry_run=False, transport=transport) as client:
        yield client


def task_scope(task_id="load", run_id="manual__1", **more):
    from airflow.state import TaskScope

    return TaskScope(dag_id="crm", run_id=run_id, task_id=task_id, **more)


def asset_scope(**how):
    from airflow.state import AssetScope

    return AssetScope(**how)


def stored(url):
    """Return what is stored: namespace → key → cursor."""
    store = open_store(url)
    try:
        return {
            name: {key: codec.decode(entry.value) for key, entry in store.load(name).items()}
            for name in store.namespaces()
        }
    finally:
        store.close()


def command(*arguments):
    """Run `checkpoint`, and return what it prints."""
    done = CliRunner().invoke(checkpoint, arguments)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("store", ["sqlite", "http", "server", "postgres", "s3"], indirect=True)
def test_values_come_back_as_they_were(backend, asset):
    for scope in (asset_scope(asset_id=asset.id), task_scope()):
        assert backend.get(scope, "at") is None
        for value in VALUES:
            for expires_at in (None, EVER):
                backend.set(scope, "at", json.dumps(value), expires_at=expires_at)
                assert backend.get(scope, "at") == json.dumps(value)
        backend.set(scope, "other", "1")
        backend.delete(scope, "at")
        backend.delete(scope, "at")
        assert [backend.get(scope, name) for name in ("at", "other")] == [None, "1"]
        backend.clear(scope)
        backend.clear(scope)
        assert backend.get(scope, "other") is None


def test_the_page_leads_to_each_value(backend, asset, store):
    """From the namespaces to every asset and task: each screen can be read, and each link on it works."""
    from test_page import answer, seen

    backend.set(asset_scope(asset_id=asset.id), "watermark", '"2024-05-01T10:00:00+00:00"')
    backend.set(asset_scope(asset_id=asset.id), "a/b c?#%", '{"page": 3}')
    for run_id in ("manual__1", "scheduled__2024-05-01T02:00:00+00:00"):
        backend.set(task_scope(run_id=run_id), "cursor", '"2024-05-01T01:00:00+00:00"', expires_at=EVER)
        backend.set(task_scope("load.inner", run_id, map_index=2), "rows", "70")
    with closing(open_store(store)) as opened, ApiServer(opened) as server:
        todo, visited = [""], {}
        while todo:
            path = todo.pop()
            page = visited[path] = seen(server, path)
            links = (link.removeprefix("./") for link in page.links if not link.startswith("#"))
            todo += {link for link in links if link not in visited and link not in todo and "sort=" not in link}
        names = [(name, key) for name, entries in sorted(stored(store).items()) for key in entries]
        assert len(names) == 6
        for name, key in names:
            path = f"key?{urlencode({'namespace': name, 'key': key}, quote_via=quote, safe='')}"
            assert f"{key} · {name} · checkpoint" in visited[path].text
            assert (
                "Undo this change: delete the key This change created the key. Without it, the stream starts over: "
                "checkpoint restore" in visited[path].text
            )
            if key.endswith("/cursor"):
                assert "Position 2024-05-01T01:00:00+00:00 value Lag" in visited[path].text
        first = visited[""].text
        for name, keys in (("airflow.dag.crm", 4), ("airflow.asset.orders/daily", 2)):
            assert re.search(rf"{re.escape(name)} not recorded .*? {keys} ", first), first
        assert answer(server, "namespace?namespace=airflow.dag.crm&like=load*").status == 200


@pytest.mark.parametrize("store", ["sqlite", "http", "server", "postgres", "s3"], indirect=True)
def test_values_come_back_asynchronously(backend, asset):
    from airflow.utils.session import create_session_async

    async def use(scope, session):
        assert await backend.aget(scope, "at", session=session) is None
        await backend.aset(scope, "at", '"2024"', expires_at=EVER, session=session)
        await backend.aset(scope, "other", "1", session=session)
        assert backend.get(scope, "at") == await backend.aget(scope, "at", session=session) == '"2024"'
        await backend.adelete(scope, "at", session=session)
        assert await backend.aget(scope, "at", session=session) is None
        await backend.aclear(scope, session=session)
        assert await backend.aget(scope, "other", session=session) is None

    async def with_and_without_a_session():
        from airflow import settings

        for scope in (asset_scope(asset_id=asset.id), task_scope()):
            await use(scope, None)
            async with create_session_async() as session:
                await use(scope, session)
        await settings.async_engine.dispose()

    asyncio.run(with_and_without_a_session())


def test_namespaces_and_keys_can_be_read(backend, asset, store):
    backend.set(asset_scope(asset_id=asset.id), "watermark", '"2024-05-01"')
    backend.set(asset_scope(name=asset.name), "cursor", '{"updated_at": "2024-05-01"}')
    backend.set(asset_scope(uri=asset.uri), "rows", "3")
    backend.set(task_scope(), "page", "7")
    backend.set(task_scope(map_index=0), "page", "[8]", expires_at=datetime(2024, 6, 1, tzinfo=timezone.utc))
    assert stored(store) == {
        "airflow.asset.orders/daily": {
            "watermark": {"value": "2024-05-01"},
            "cursor": {"updated_at": "2024-05-01"},
            "rows": {"value": 3},
        },
        "airflow.dag.crm": {
            "load/manual__1/page": {"value": 7},
            "load[0]/manual__1/page": {"value": [8], "$airflow": {"expires_at": "2024-06-01T00:00:00+00:00"}},
        },
    }
    for how in ({"asset_id": asset.id}, {"name": asset.name}, {"uri": asset.uri}):
        assert backend.get(asset_scope(**how), "rows") == "3"


@pytest.mark.parametrize("store", ["sqlite", "http"], indirect=True)
def test_any_text_is_a_name(backend):
    names = ["", ".", "..", "__lease__", "$airflow", "%41", "a/b?c#d", "a/../b", "ä\n", "[0]", "[0]/manual__1/x"]
    scopes = [asset_scope(name=name or "-") for name in names]
    scopes += [task_scope(name or "-") for name in names]
    scopes += [task_scope(run_id=name or "-", map_index=1) for name in names]
    scopes += [
        task_scope("load[1]", "1"),
        task_scope("load", "1", map_index=1),
        task_scope("load/x", "y"),
        task_scope("load", "x/y"),
    ]
    for number, scope in enumerate(scopes):
        for name in names:
            backend.set(scope, name, json.dumps([number, name]))
    for number, scope in enumerate(scopes):
        assert [json.loads(backend.get(scope, name)) for name in names] == [[number, name] for name in names]


def test_clearing_one_task_leaves_the_others(backend):
    mapped = [task_scope(map_index=index) for index in (-1, 0, 1, 10)]
    others = [task_scope("loa"), task_scope("load2"), task_scope(run_id="manual__12"), asset_scope(name="load")]
    for scope in mapped + others:
        backend.set(scope, "at", "1")
        backend.set(scope, "a/b", "2")
    backend.clear(mapped[2])
    assert [backend.get(scope, "a/b") for scope in mapped + others] == ["2", "2", None, "2"] + ["2"] * 4
    backend.clear(mapped[3], all_map_indices=True)
    assert [backend.get(scope, "at") for scope in mapped + others] == [None] * 4 + ["1"] * 4
    backend._store.commit("airflow.asset.load", {"__run__": "of a Checkpointer"})
    backend.clear(others[3], all_map_indices=True)
    assert [backend.get(scope, "at") for scope in others] == ["1"] * 3 + [None]
    assert backend._store.load("airflow.asset.load").keys() == {"__run__"}


def test_cleanup_deletes_what_has_expired(backend, store):
    past, to_come = (datetime.now(timezone.utc) + timedelta(hours=hours) for hours in (-1, 1))
    for name, expires_at in {"gone": past, "kept": to_come, "for ever": None}.items():
        backend.set(task_scope(), name, "1", expires_at=expires_at)
    backend.set(asset_scope(name="orders"), "gone", '{"$airflow": {"expires_at": "2024-06-01T00:00:00+00:00"}}')
    with Checkpointer("airflow.dag.crm", store) as cp:
        cp["other"] = {"$airflow": "of somebody else"}
    backend.cleanup()
    assert stored(store)["airflow.dag.crm"].keys() >= {"load/manual__1/kept", "load/manual__1/for ever", "other"}
    assert backend.get(task_scope(), "gone") is None
    assert backend.get(asset_scope(name="orders"), "gone") is not None


def test_cleanup_leaves_what_was_written_again(backend, store):
    past = datetime(2024, 1, 1, tzinfo=timezone.utc)
    for name in ("again", "gone"):
        backend.set(task_scope(), name, "1", expires_at=past)
    seen = backend._store.load("airflow.dag.crm")
    backend.set(task_scope(), "again", "2", expires_at=past)
    backend._delete_unchanged("airflow.dag.crm", seen)  # what cleanup() does with what it has read
    assert [backend.get(task_scope(), name) for name in ("again", "gone")] == ["2", None]


def test_the_last_write_counts_and_history_has_all(backend, store):
    """Airflow compares nothing: two tries that overlap both write, and neither is refused."""
    import airflow.state

    other = airflow.state.resolve_state_backend()()
    for number in range(3):
        backend.set(task_scope(), "page", str(number))
        other.set(task_scope(), "page", str(number * 10))
    assert backend.get(task_scope(), "page") == "20"
    with Checkpointer("airflow.dag.crm", store, record_run=False) as cp:
        changes = cp.history("load/manual__1/page")
    assert [change.cursor_after for change in changes] == [{"value": n} for n in (20, 2, 10, 1, 0, 0)]
    assert {change.run_id for change in changes} == {"crm/load/manual__1"}
    other._store.close()


def test_the_page_of_an_asset_through_the_api(client, asset, store):
    assert client.asset_state_store.get("watermark", name=asset.name).error.value == "ASSET_STORE_NOT_FOUND"
    client.asset_state_store.set("watermark", "2024-05-01T00:00:00+00:00", name=asset.name)
    client.asset_state_store.set("watermark", {"at": [1]}, uri=asset.uri)
    assert client.asset_state_store.get("watermark", name=asset.name).value == {"at": [1]}
    client.asset_state_store.delete("watermark", uri=asset.uri)
    client.asset_state_store.set("more", 1, name=asset.name)
    client.asset_state_store.clear(name=asset.name)
    assert stored(store) == {}


def test_corrupt_state_is_no_fresh_start(client, asset, store):
    from airflow.sdk.api.client import ServerResponseError

    there = open_store(store)
    there.commit("airflow.asset.orders/daily", {"watermark": "not base64!"})
    with pytest.raises(ServerResponseError) as caught:
        client.asset_state_store.get("watermark", name=asset.name)
    assert caught.value.response.status_code == 422
    assert caught.value.detail["reason"] == CorruptState.__name__
    assert "'watermark' in 'airflow.asset.orders/daily' is not a cursor" in caught.value.detail["message"]
    assert there.load("airflow.asset.orders/daily")["watermark"].value == "not base64!"
    there.close()


def test_a_store_that_is_away_is_asked_again(home, asset, client, monkeypatch):
    import airflow.state
    from airflow.sdk.api.client import ServerResponseError, _should_retry_api_request

    with ApiServer() as server:
        url = server.url
    monkeypatch.setenv("TRUTO_API_TOKEN", "token")
    monkeypatch.setenv("AIRFLOW__CHECKPOINT__STORE", f"{url}?deadline=1")
    monkeypatch.setattr(airflow.state, "_backend_instance", None)
    for use in (client.asset_state_store.get, lambda key, **name: client.asset_state_store.set(key, 1, **name)):
        with pytest.raises(ServerResponseError) as caught:
            use("watermark", name=asset.name)
        assert caught.value.response.status_code == 503
        assert _should_retry_api_request(caught.value)
        assert url in caught.value.detail["message"]
    airflow.state.get_state_backend()._store.close()


def test_an_asset_that_nobody_knows_is_an_error(backend):
    from fastapi import HTTPException

    with pytest.raises(HTTPException) as caught:
        backend.get(asset_scope(asset_id=10**6), "watermark")
    assert caught.value.status_code == 422
    assert (
        caught.value.detail["message"]
        == "Airflow knows no asset like AssetScope(asset_id=1000000, name=None, uri=None)"
    )


def test_a_bad_configuration_is_one_sentence(home, monkeypatch):
    import airflow.state

    monkeypatch.setattr(airflow.state, "_backend_instance", None)
    monkeypatch.setenv("AIRFLOW__CHECKPOINT__STORE", "redis://host")
    with pytest.raises(ValueError, match="no store opens 'redis://host'"):
        airflow.state.get_state_backend()
    monkeypatch.setenv("AIRFLOW__CHECKPOINT__STORE", "memory://state")
    monkeypatch.setenv("AIRFLOW__WORKERS__STATE_STORE_BACKEND", "checkpoint.airflow.CheckpointBackend")
    with pytest.raises(ValueError, match="and no .workers. state_store_backend"):
        airflow.state.get_state_backend()


def test_without_an_option_the_variable_names_the_store(home, monkeypatch, tmp_path):
    import airflow.state

    monkeypatch.setattr(airflow.state, "_backend_instance", None)
    monkeypatch.delenv("AIRFLOW__CHECKPOINT__STORE", raising=False)
    monkeypatch.setenv("CHECKPOINT_STORE", f"sqlite:///{tmp_path}/by-variable.db")
    airflow.state.get_state_backend().set(task_scope(), "page", "1")
    assert stored(f"sqlite:///{tmp_path}/by-variable.db") == {"airflow.dag.crm": {"load/manual__1/page": {"value": 1}}}
    airflow.state.get_state_backend()._store.close()


# DAGs


class Shop:
    """Writes DAG files, and runs their DAGs."""

    def __init__(self, home, api, folder, store):
        self.home, self.api, self.sink, self.store = home, api, FileSink(folder / "rows"), store
        self.path = home / "dags" / "shop.py"

    def says(self, code):
        names = f"api, sink, STORE = Api({self.api.url!r}, {{}}), FileSink({str(self.sink.path)!r}), {self.store!r}"
        self.path.write_text(f"from recipes import Api, FileSink\n{names}\n{RECIPES.imports}\n{code}")

    def run(self, dag_id):
        """Run a DAG in this process, and return the states of its tasks by their names."""
        from airflow.dag_processing.dagbag import DagBag

        bag = DagBag(str(self.path))
        assert bag.import_errors == {}
        run = bag.dags[dag_id].test()
        return run.state, sorted((task.task_id, task.map_index, task.state) for task in run.get_task_instances())

    def test(self, dag_id, **environment):
        """Run `airflow dags test`, and return its exit status."""
        airflow = [sys.executable, "-m", "airflow", "dags", "test", dag_id]
        done = subprocess.run(airflow, env={**os.environ, **environment}, capture_output=True, check=False)
        return done.returncode, done.stdout.decode() + done.stderr.decode()


@pytest.fixture
def shop(home, backend, tmp_path, store):
    with source() as api:
        shop = Shop(home, api, tmp_path, store)
        yield shop
        shop.path.unlink()


def test_a_dag_goes_on_where_it_was_killed(shop, store):
    shop.says(RECIPES.recipe("As an Airflow DAG"))
    status, _ = shop.test("crm", SINK_ROOM="37")
    assert status == -9
    assert len(shop.sink.rows) == 30
    status, printed = shop.test("crm")
    assert status == 0, printed
    assert shop.sink.counts == expected(TABLES["contacts"])
    with Checkpointer("crm", store, record_run=False) as cp:
        wrote = {change.run_id: change.cursor_after["updated_at"] for change in reversed(cp.history("contacts"))}
        runs = [(run.run_id, run.outcome) for run in cp.runs()]
    assert list(wrote.values()) == [row["updated_at"] for row in (TABLES["contacts"][29], TABLES["contacts"][-1])]
    assert [run_id.split("manual__")[0] for run_id in wrote] == ["crm/contacts/"] * 2
    assert runs == list(zip(reversed(wrote), ("done", None), strict=True))


def test_a_dag_is_skipped_while_a_run_goes_on(shop, monkeypatch):
    for name, seconds in {"TIME": 3.0, "BEAT": 0.1, "LOOK": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)
    shop.says(RECIPES.recipe("As an Airflow DAG"))
    with Checkpointer("crm", shop.store, exclusive=True):
        assert shop.run("crm") == ("success", [("contacts", -1, "skipped")])
    assert shop.sink.rows == []
    assert shop.run("crm") == ("success", [("contacts", -1, "success")])
    assert shop.sink.counts == expected(TABLES["contacts"])


def test_a_backfill_reads_again_only_what_failed(shop, monkeypatch, store):
    until = [row for row in TABLES["tickets"] if row["updated_at"] < "2024-03-15"]
    code = RECIPES.recipe("A backfill in Airflow's mapped tasks").replace("@task(retries=3)", "@task")
    shop.says(code)
    monkeypatch.setenv("SINK_ROOM", "40")
    monkeypatch.setenv("SINK_FULL", "raise")
    state, tasks = shop.run("backfill")
    copies = [state for name, _, state in tasks if name == "copy"]
    assert (state, set(copies)) == ("failed", {"success", "failed"})
    before = shop.sink.rows
    monkeypatch.undo()
    monkeypatch.setenv("AIRFLOW__CHECKPOINT__STORE", store)
    state, tasks = shop.run("backfill")
    assert state == "success"
    assert len([name for name, _, _ in tasks if name == "copy"]) == copies.count("failed")
    assert shop.sink.counts == expected(until), "nothing is missing, and a window that failed had written nothing"
    assert len(before) >= 30
    with Checkpointer("crm", store) as cp:
        assert cp["tickets"] == {"updated_at": "2024-03-15T00:00:00Z"}
    assert shop.run("backfill")[0] == "success"
    assert shop.sink.counts == expected(until)


def test_watermarks_of_a_dag_have_history(shop):
    shop.says(RECIPES.recipe("Airflow's own task and asset state"))
    status, _ = shop.test("watermarks", SINK_ROOM="37")
    assert status == -9
    rows = TABLES["contacts"]
    assert stored(shop.store)["airflow.asset.contacts"] == {"watermark": {"value": rows[29]["updated_at"]}}
    assert shop.run("watermarks") == ("success", [("load", -1, "success")])
    assert set(shop.sink.counts) == set(expected(rows))
    assert stored(shop.store)["airflow.asset.contacts"] == {"watermark": {"value": rows[-1]["updated_at"]}}

    printed = command("history", "airflow.asset.contacts", "watermark")
    assert printed.count('{"value":"') >= 10
    assert f'+ watermark  {{"value":"{rows[9]["updated_at"]}"}}' in printed
    printed = command("history", "airflow.dag.watermarks")
    assert "run watermarks/load/manual__" in printed
    assert "lag" in command("list", "airflow.asset.contacts")
    late = CliRunner().invoke(checkpoint, ["status", "airflow.asset.*", "--max-lag", "1d"])
    assert late.exit_code == 1
    assert "STALE" in late.output

    command("restore", "airflow.asset.contacts", "--to", "3", "--yes")
    shop.sink.path.unlink()
    assert shop.run("watermarks")[0] == "success"
    since = rows[29]["updated_at"]
    assert shop.sink.counts == expected([row for row in rows if row["updated_at"] >= since])
    command("rewind", "airflow.asset.contacts", "watermark", "--by", "2d", "--yes")
    shop.sink.path.unlink()
    assert shop.run("watermarks")[0] == "success"
    assert 0 < len(shop.sink.rows) < 100
