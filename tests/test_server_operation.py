"""The server in operation: limits, locked files, stopping, health, metrics, workers, and gateways."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from checkpoint import Checkpointer, SQLiteStore
from checkpoint.codec import encode
from checkpoint.errors import StoreUnavailable
from checkpoint.server import health, limits, metrics, serve, serving
from checkpoint.server.access import Access
from checkpoint.server.calls import Calls, UnderWay
from checkpoint.server.vendor import Switches
from checkpoint.stores.memory import MemoryStore
from checkpoint.testing import ApiServer

PATH = "/sync-job-run-state"
TOKEN = "a-token-nobody-may-see"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
NS = {"state_key": "job"}
HEAD = f"Host: x\r\nAuthorization: Bearer {TOKEN}\r\n"
UPLOAD = f"PATCH {PATH}/a?state_key=job HTTP/1.1\r\n{HEAD}Content-Length: 100\r\n\r\n{{".encode()

SERVE = """
import json, resource, sys
from checkpoint.server import limits, serving
from checkpoint.cli import main
if descriptors := int(sys.argv.pop(1)):
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
for name, value in json.loads(sys.argv.pop(1)).items():
    setattr(serving if hasattr(serving, name) else limits, name, value)
main()
"""


@contextmanager
def running(*arguments, descriptors=0, **shorter):
    """Run `checkpoint serve` with shorter limits and few file descriptors; yield its process and a client."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CHECKPOINT_")}
    with subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            SERVE,
            str(descriptors),
            json.dumps(shorter),
            "serve",
            "--port",
            "0",
            *arguments,
        ],
        env={**environment, "CHECKPOINT_SERVER_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            url = process.stdout.readline().rpartition(" ")[2].strip()
            if not url:
                raise AssertionError(process.stderr.read())
            with httpx.Client(base_url=url, headers=HEADERS, params=NS, trust_env=False, timeout=30) as client:
                yield process, client
        finally:
            process.kill()


def ended(process, number=signal.SIGTERM):
    """Stop the server; return its exit status, its output, and how many seconds this took."""
    began = time.monotonic()
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    return process.returncode, output + errors, time.monotonic() - began


def connected(client):
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=20)


def descriptors_of(process):
    return len([*Path(f"/proc/{process.pid}/fd").iterdir()])


def eventually(happened, seconds=20):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_all(connection):
    """Return what the server sends until it closes or resets the connection."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


@contextmanager
def locked(path):
    """Hold the write lock of a SQLite file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


# Requests that do not come whole


@pytest.mark.parametrize("part", ["head", "body"])
def test_fault_100_half_sent_requests_by_the_hundred(part):
    half = f"GET {PATH}?state_key=job HTTP/1.1\r\nHost: x\r\nX-".encode() if part == "head" else UPLOAD
    with running("--store", "memory://x", descriptors=256, HEAD=2.0, BODY=2.0) as (process, client):
        assert client.get(PATH).status_code == 200
        before = descriptors_of(process)
        connections = []
        for _ in range(300):
            connections.append(connected(client))
            connections[-1].sendall(half)
            if len(connections) % 50 == 0:
                with httpx.Client(base_url=client.base_url, headers=HEADERS, params=NS, trust_env=False) as honest:
                    assert honest.get(PATH).status_code == 200
        told = [read_all(connection) for connection in connections]
        for connection in connections:
            connection.close()
        eventually(lambda: descriptors_of(process) <= before)
        assert client.get(PATH).status_code == 200
        assert ended(process)[:2] == (0, "")
    answers = {answer.partition(b"\r\n")[0] for answer in told}
    assert answers == {b"", b"HTTP/1.1 408 Request Timeout"}  # closed for a newer one; too late
    assert f'"the {part} of a request must not take longer than 2 s"'.encode() in told[-1]


def test_fault_100_the_times_are_those_of_the_contract():
    assert (limits.HEAD, limits.BODY) == (10.0, 30.0)
    assert health.SECONDS < 5
    assert serving.DRAIN + 0.5 < 9 < serving.KILL == 10


CHUNKED = "POST /v1/commit HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
NOT_HTTP = {
    "noise": b"\x16\x03\x01\x02\x00\x01\x00\xfc\r\n\r\n",
    "no host": b"GET /v1 HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a path that is not ASCII": f"GET /v1/state?state_key=\u00e9 HTTP/1.1\r\n{HEAD}\r\n".encode(),
    "a length that is none": f"POST /v1/commit HTTP/1.1\r\n{HEAD}Content-Length: x\r\n\r\n".encode(),
    "a chunk that is none": f"{CHUNKED}Authorization: Bearer {TOKEN}\r\n\r\nzz\r\n".encode(),
    "a long head": b"GET /v1 HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
}


def test_what_is_not_http_is_refused_in_one_form():
    with running("--store", "memory://x") as (process, client):
        for what, request in NOT_HTTP.items():
            with connected(client) as connection:
                connection.sendall(request)
                head, _, body = read_all(connection).partition(b"\r\n\r\n")
                assert (head.split(b"\r\n")[0], json.loads(body)["error"]) == (
                    b"HTTP/1.1 400 Bad Request",
                    "Bad Request",
                ), what
        status, said, _ = ended(process)
    assert (status, {*said.splitlines()}) == (0, {"Invalid HTTP request received."})


def test_a_bad_chunk_after_the_answer_ends_the_connection():
    with running("--store", "memory://x") as (process, client), connected(client) as connection:
        connection.sendall(f"{CHUNKED}\r\n".encode())
        answer = connection.recv(65536)  # 401, before the body has come
        connection.sendall(b"zz\r\n")
        answer += read_all(connection)
        status, said, _ = ended(process)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert (status, said) == (0, "Invalid HTTP request received.\n")


def test_a_connection_that_asks_nothing_is_closed_without_a_word():
    with running("--store", "memory://x", HEAD=0.5) as (_, client), connected(client) as connection:
        assert read_all(connection) == b""


def test_a_kept_connection_may_wait_longer_than_a_head():
    with running("--store", "memory://x", HEAD=0.2) as (_, client), connected(client) as connection:
        question = f"GET {PATH}?state_key=job HTTP/1.1\r\n{HEAD}\r\n".encode()
        for _ in range(2):
            connection.sendall(question)
            answer = b""
            while not answer.endswith(b'{"result":[]}'):
                answer += connection.recv(65536)
            with connected(client) as other:
                read_all(other)  # ended after the time that heads have
        connection.sendall(question[:20])
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_does_not_read_is_left():
    with running("--store", "memory://x", UNREAD=0.5) as (process, client):
        assert client.post(PATH, json={"key": "a", "value": "x" * 12_000_000}).status_code == 200
        before = descriptors_of(process)
        with connected(client) as connection:
            connection.sendall(f"GET {PATH}/a?state_key=job HTTP/1.1\r\n{HEAD}\r\n".encode())
            assert connection.recv(10) == b"HTTP/1.1 2"
            eventually(lambda: descriptors_of(process) <= before)
        assert len(client.get(f"{PATH}/a").json()["value"]) == 12_000_000


# A file that others keep locked


def test_fault_100_a_locked_file_stops_no_reads(tmp_path):
    path = tmp_path / "state.db"
    with running("--store", f"sqlite:///{path}") as (process, client):
        assert client.post(PATH, json={"key": "a", "value": "1"}).status_code == 200
        with ThreadPoolExecutor(20) as pool:
            with locked(path):
                body = {"value": "2"}
                writes = [pool.submit(client.patch, f"{PATH}/a", json=body) for _ in range(20)]
                for _ in range(5):
                    assert client.get(f"{PATH}/a", timeout=5).json()["value"] == "1"
                    assert client.get(PATH, timeout=5).status_code == 200
                    assert client.get("/healthz", timeout=5).json() == {"status": "ok"}
                    assert "checkpoint_keys" in client.get("/metrics", timeout=5).text
                assert not any(write.done() for write in writes)
            assert [write.result().status_code for write in writes] == [200] * 20
        assert ended(process)[:2] == (0, "")


# Ending


def test_fault_100_a_stalled_upload_holds_up_no_end():
    with running("--store", "memory://x", DRAIN=0.5) as (process, client), connected(client) as upload:
        assert client.get(PATH).status_code == 200
        upload.sendall(UPLOAD)
        with connected(client) as half:
            half.sendall(UPLOAD[:20])
            status, said, seconds = ended(process)
        answer = read_all(upload)
    assert (status, said) == (0, "")
    assert seconds < 10
    assert answer.startswith(b"HTTP/1.1 503 ")


def test_fault_100_a_write_that_waits_holds_up_no_end(tmp_path):
    path = tmp_path / "state.db"
    with running("--store", f"sqlite:///{path}", DRAIN=0.5) as (process, client), ThreadPoolExecutor() as pool:
        assert client.post(PATH, json={"key": "a", "value": "1"}).status_code == 200
        with locked(path):
            write = pool.submit(client.patch, f"{PATH}/a", json={"value": "2"})
            eventually(lambda: client.get("/metrics").text.count("_request_seconds_count") >= 2)
            status, said, seconds = ended(process)
            assert (write.result().status_code, write.result().json()["message"][:22]) == (
                504,
                "the server is stopping",
            )
    assert (status, said) == (0, "")
    assert seconds < 10


@pytest.mark.parametrize("path", ["/v1/state", PATH])
def test_a_client_that_does_not_read_holds_up_no_end(path):
    with running("--store", "memory://x", DRAIN=0.5) as (process, client):
        changes = {str(number): "x" * 1_000 for number in range(20_000)}
        assert client.post("/v1/commit", json={"state_key": "job", "changes": changes}).status_code == 200
        with connected(client) as connection:
            connection.sendall(f"GET {path}?state_key=job HTTP/1.1\r\n{HEAD}\r\n".encode())
            assert connection.recv(10) == b"HTTP/1.1 2"
            assert ended(process)[:2] == (0, "")


def test_at_the_end_503_is_certain_and_504_is_not(tmp_path):
    """Of 20 commits, 16 have begun in as many threads and may still land; the other four are never made."""
    path = tmp_path / "state.db"
    with running("--store", f"sqlite:///{path}", DRAIN=0.5) as (process, client), locked(path):
        connections = [connected(client) for _ in range(20)]
        for number, connection in enumerate(connections):
            body = json.dumps({"state_key": "job", "changes": {f"key {number}": "1"}})
            connection.sendall(f"POST /v1/commit HTTP/1.1\r\n{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert client.get("/healthz").status_code == 200  # asked after them, so they were taken
        assert ended(process)[:2] == (0, "")
        answers = [read_all(connection).partition(b"\r\n")[0] for connection in connections]
        for connection in connections:
            connection.close()
    assert answers == [b"HTTP/1.1 504 Gateway Timeout"] * 16 + [b"HTTP/1.1 503 Service Unavailable"] * 4


def test_a_call_that_nobody_waits_for_is_not_begun():
    begun, made, ends, go_on = threading.Event(), [], [], threading.Event()

    def call(name):
        made.append(name)
        begun.set()
        go_on.wait(30)

    async def cancelled():
        calls = Calls("few", threads=1)

        async def waiting(name):
            try:
                await calls(call, name)
            except asyncio.CancelledError as error:
                ends.append(type(error))

        tasks = [asyncio.ensure_future(waiting(name)) for name in "ab"]
        await asyncio.to_thread(begun.wait, 30)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        assert calls.unanswered == 1
        go_on.set()
        await asyncio.to_thread(calls.stop)
        await asyncio.sleep(0)
        assert calls.unanswered == 0

    asyncio.run(cancelled())
    assert (ends, made) == ([UnderWay, asyncio.CancelledError], ["a"])


def test_a_request_to_upgrade_is_answered_without_advice():
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    with running("--store", "memory://x") as (process, client), connected(client) as connection:
        for _ in range(2):  # and the connection is kept
            connection.sendall(f"GET {PATH}?state_key=job HTTP/1.1\r\n{HEAD}{upgrade}\r\n".encode())
            answer = b""
            while not answer.endswith(b'{"result":[]}'):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")
        assert ended(process)[:2] == (0, "")


# One key among many


class Unloadable(MemoryStore):
    """A store that refuses to load a namespace which the server need not load."""

    def load(self, state_key):
        raise StoreUnavailable("a whole namespace was loaded")


@pytest.mark.parametrize("existing", ["overwrites", 409])
def test_fault_100_one_key_costs_the_same_among_any_others(existing):
    store = Unloadable()
    store.commit("job", {str(number): "1" for number in range(1_000)})
    with (
        ApiServer(store, token=TOKEN, post_existing=existing) as server,
        httpx.Client(base_url=server.url, headers=HEADERS, params=NS, trust_env=False) as client,
    ):
        assert client.get(f"{PATH}/7").json()["value"] == "1"
        assert client.get(f"{PATH}/none").status_code == 404
        assert [client.patch(f"{PATH}/{key}", json={"value": "2"}).status_code for key in range(200)] == [200] * 200
        assert client.post(PATH, json={"key": "new", "value": "1"}).status_code == 200
        assert client.delete(f"{PATH}/new").status_code == 200
        assert client.get(PATH).status_code == 503


# Health


def test_health_needs_no_token_and_tells_of_the_store():
    store = MemoryStore()
    with ApiServer(store) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        assert (client.get("/healthz").status_code, client.get("/healthz").json()) == (200, {"status": "ok"})
    store.read = lambda *_: (_ for _ in ()).throw(StoreUnavailable("no answer"))
    with ApiServer(store) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        response = client.get("/healthz")
        assert (response.status_code, response.json()) == (503, {"status": "the store does not answer"})


def test_health_asks_a_silent_store_once_and_waits_not_long(monkeypatch):
    monkeypatch.setattr(health, "SECONDS", 0.1)
    asked, go_on = [], threading.Event()

    class Silent(MemoryStore):
        def read(self, state_key, keys):
            asked.append(state_key)
            go_on.wait(30)
            return super().read(state_key, keys)

    with ApiServer(Silent()) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        assert [client.get("/healthz").status_code for _ in range(3)] == [503, 503, 503]
        assert asked == [health.NAME]
        go_on.set()
        eventually(lambda: client.get("/healthz").status_code == 200)


def test_more_calls_than_may_wait_are_refused():
    go_on = threading.Event()

    class Slow(MemoryStore):
        def load(self, state_key):
            go_on.wait(30)
            return super().load(state_key)

    with ApiServer(Slow(), token=TOKEN) as server, ThreadPoolExecutor() as pool:
        server._app.state.api.reading = Calls("few", threads=1, waiting=1)
        with httpx.Client(base_url=server.url, headers=HEADERS, params=NS, trust_env=False, timeout=30) as client:
            lists = [pool.submit(client.get, PATH) for _ in range(2)]
            eventually(lambda: server._app.state.api.reading.unanswered == 2)
            refused = client.get(PATH)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert client.get(f"{PATH}/a").status_code == 503
            assert client.post(PATH, json={"key": "a", "value": "1"}).status_code == 200
            go_on.set()
            assert [each.result().status_code for each in lists] == [200, 200]
        server._app.state.api.reading.stop()


# Metrics


NAMES = {
    "checkpoint_keys": "gauge",
    "checkpoint_slowest_age_seconds": "gauge",
    "checkpoint_slowest_lag_seconds": "gauge",
    "checkpoint_last_run_end_timestamp_seconds": "gauge",
    "checkpoint_last_success_timestamp_seconds": "gauge",
    "checkpoint_last_run_failed": "gauge",
    "checkpoint_commits_total": "counter",
    "checkpoint_conflicts_total": "counter",
    "checkpoint_request_seconds": "histogram",
}


def sampled(text):
    """Return the samples in an answer of `/metrics`, by name and labels."""
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_metrics_tell_of_namespaces_and_never_of_members(recorded):
    store = MemoryStore()
    with Checkpointer("crm", store, run_id="one") as cp:
        cp["contacts"] = {"updated_at": "2024-05-01T10:00:00Z"}
        group = cp.group("accounts")
        for member in ("a17", "b18"):
            group[member] = {"updated_at": "2024-06-01T10:00:00Z"}
    with pytest.raises(ZeroDivisionError), Checkpointer("erp", store) as cp:
        cp["items"] = {"id": 7}
        cp.commit()
        raise ZeroDivisionError
    with (
        ApiServer(store, token=TOKEN, post_existing=409) as server,
        httpx.Client(base_url=server.url, headers=HEADERS, params=NS, trust_env=False) as client,
    ):
        assert client.post(PATH, json={"key": "a", "value": "1"}).status_code == 200
        assert client.post(PATH, json={"key": "a", "value": "1"}).status_code == 409
        response = client.get("/metrics")
        assert httpx.get(f"{server.url}/metrics", trust_env=False).status_code == 401
    text, found = response.text, sampled(response.text)
    assert response.headers["content-type"].startswith("text/plain; version=")
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert kinds == NAMES
    assert "_created" not in text
    assert found['checkpoint_keys{namespace="crm"}'] == 3
    assert found['checkpoint_keys{namespace="job"}'] == 1
    assert found['checkpoint_slowest_lag_seconds{namespace="crm"}'] > 86400
    assert 0 <= found['checkpoint_slowest_age_seconds{namespace="crm"}'] < 600
    ends = [found[f'checkpoint_last_{what}_timestamp_seconds{{namespace="crm"}}'] for what in ("run_end", "success")]
    assert ends[0] == ends[1] > 1_700_000_000
    assert [found[f'checkpoint_last_run_failed{{namespace="{name}"}}'] for name in ("crm", "erp")] == [0, 1]
    assert 'checkpoint_last_success_timestamp_seconds{namespace="erp"}' not in found
    assert 'checkpoint_slowest_lag_seconds{namespace="erp"}' not in found
    assert (found["checkpoint_commits_total"], found["checkpoint_conflicts_total"]) == (1, 1)
    assert found[f'checkpoint_request_seconds_count{{method="POST",path="{PATH}",status="409"}}'] == 1
    assert "a17" not in text
    assert "contacts" not in text


def test_metrics_keep_no_methods_that_anybody_makes_up():
    with ApiServer() as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        for number in range(20):
            assert client.request(f"MADE-UP-{number}", "/healthz").status_code == 405
        text = client.get("/metrics", headers={"Authorization": f"Bearer {server.token}"}).text
    assert "MADE-UP" not in text
    counted = 'checkpoint_request_seconds_count{method="other",'
    assert sum(number for name, number in sampled(text).items() if name.startswith(counted)) == 20


def test_metrics_show_a_token_its_namespaces_alone(tmp_path):
    from checkpoint.server.access import new_token

    secret, line = new_token("crm", "read", "crm")
    (tmp_path / "tokens").write_text(line)
    store = MemoryStore()
    store.commit("crm", {"a": encode({"id": 1})})
    store.commit("erp", {"a": encode({"id": 1})})
    with ApiServer(store, token=Access([], tmp_path / "tokens")) as server:
        text = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {secret}"}, trust_env=False).text
    assert 'checkpoint_keys{namespace="crm"} 1.0' in text
    assert "erp" not in text


def test_metrics_of_two_thousand_namespaces_have_a_bound():
    """A lookup has a time limit. Namespaces that it did not reach keep their values, and come first the next time."""
    now, loads = [0.0], []

    class Slow(MemoryStore):
        def load(self, state_key):
            loads.append(state_key)
            now[0] += 0.01
            return super().load(state_key)

    store = Slow()
    for number in range(2_000):
        store.commit(f"n{number:04}", {"a": encode({"id": 1})})
    lookup = metrics.Lookup(store, lambda: now[0])
    assert len(lookup.found()) == len(loads) <= metrics.SECONDS / 0.01 + 1
    assert len(lookup.found()) == len(loads)  # asked again at once: nothing is looked up
    for _ in range(4):
        now[0] += metrics.FRESH
        lookup.found()
    assert len({*loads[:2_000]}) == 2_000
    assert len(lookup.found()) == 2_000
    store.commit("n0000", {"a": None})
    now[0] += metrics.FRESH
    assert len(lookup.found()) == 1_999


# Before a gateway


@pytest.mark.parametrize("prefix", ["", "/state/v2"])
def test_a_gateway_may_keep_its_prefix_or_remove_it(prefix):
    with running("--store", "memory://x", "--root-path", "/state/v2") as (_, client):
        assert client.post(f"{prefix}{PATH}", json={"key": "a/b", "value": "1"}).status_code == 200
        assert client.get(f"{prefix}{PATH}/a%2Fb").json()["value"] == "1"
        assert client.get(f"{prefix}/healthz").status_code == 200
        assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/state/v2"}]
        assert client.get(f"/state/v2x{PATH}").status_code == 404
        assert client.put(f"{prefix}{PATH}").headers["Allow"] == "GET, POST"


@pytest.mark.parametrize("root_path", ["state", "/", "/state/", "/a b", "//host"])
def test_a_root_path_is_a_path(root_path):
    with pytest.raises(ValueError, match=r"^a root path has the form /state, not "):
        serve(MemoryStore(), TOKEN, port=0, root_path=root_path)


def test_the_access_log_has_no_values_and_no_tokens(tmp_path):
    with running("--store", "memory://x", "--access-log") as (process, client):
        client.post(PATH, json={"key": "a", "value": "a-value"})
        client.get(f"{PATH}/a", params={"state_key": "b c", "token": "oops"})
        client.get("/healthz", headers={"Authorization": "Bearer wrong"})
        status, said, _ = ended(process)
    assert status == 0
    lines = [re.sub(r"^\S+ \S+ | [0-9.]+ ms$", "", line) for line in said.splitlines()]
    assert lines == [
        f"127.0.0.1 - POST {PATH}?state_key=job 200",
        f"127.0.0.1 - GET {PATH}/a?state_key=b+c 404",
        "127.0.0.1 - GET /healthz?state_key=job 200",
    ]


# Several processes


def children_of(process):
    return {int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}


def is_running(pid):
    """Return whether a process runs; one that has ended may stay as a zombie if its parent was killed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def several(url):
    """Serve a store with two workers: both answer, a killed one is replaced, they share counters, and all stop."""
    with running("--store", url, "--workers", "2") as (process, client):
        workers = children_of(process)
        assert len(workers) == 2
        for number in range(20):
            with httpx.Client(base_url=client.base_url, headers=HEADERS, params=NS, trust_env=False) as each:
                assert each.post(PATH, json={"key": str(number), "value": "1"}).status_code == 200
        assert len(client.get(PATH).json()["result"]) == 20
        for _ in range(2):
            with httpx.Client(base_url=client.base_url, headers=HEADERS, trust_env=False) as each:
                assert sampled(each.get("/metrics").text)["checkpoint_commits_total"] == 20
        killed = workers.pop()
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: len(children_of(process) - {killed}) == 2)
        with httpx.Client(base_url=client.base_url, headers=HEADERS, params=NS, trust_env=False) as each:
            assert each.get(f"{PATH}/7").status_code == 200
        workers = children_of(process)
        status, said, seconds = ended(process)
    assert (status, said) == (0, f"worker {killed} ended with -9: another is started\n")
    assert seconds < 10
    assert not any(map(is_running, workers))


def test_several_workers_share_a_sqlite_file(tmp_path):
    several(f"sqlite:///{tmp_path}/state.db")


def test_several_workers_share_a_database(postgres_url):
    several(postgres_url)


def test_workers_end_with_the_process_that_started_them(tmp_path):
    with running("--store", f"sqlite:///{tmp_path}/state.db", "--workers", "2") as (process, client):
        assert client.get(PATH).status_code == 200
        workers = children_of(process)
        process.kill()
        process.wait()
        eventually(lambda: not any(map(is_running, workers)))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_outlives_the_shell_that_started_it(tmp_path, workers):
    said = tmp_path / "said"
    script = '"$@" > "$said" 2>&1 & echo $!; until grep -q " on " "$said" || ! kill -0 $!; do sleep 0.1; done'
    command = [sys.executable, "-c", SERVE, "0", "{}", "serve", "--port", "0", "--workers", workers]
    started = subprocess.run(
        ["sh", "-c", script, "sh", *command, "--store", f"sqlite:///{tmp_path}/state.db"],
        env={**os.environ, "CHECKPOINT_SERVER_TOKEN": TOKEN, "said": str(said)},
        stdout=subprocess.PIPE,
        check=True,
    )
    pid, url = int(started.stdout), said.read_text().split()[-1]
    try:
        until = time.monotonic() + 2  # it looks ten times a second
        while time.monotonic() < until:
            assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGTERM)
            eventually(lambda: not is_running(pid))


def test_several_workers_are_refused_where_there_can_be_one():
    with pytest.raises(ValueError, match=r"^several workers need a store that they share: in memory each would have"):
        serve(MemoryStore(), TOKEN, port=0, workers=2)
    with pytest.raises(
        ValueError, match=r"^a rate is counted per process: with several workers, limit it in the gateway"
    ):
        serve(SQLiteStore("x.db"), TOKEN, port=0, options=Switches(rate=(1, 1.0)), workers=2)
