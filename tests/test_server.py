"""The server of the state API over real sockets: its calls, its switches, its limits, and scripted faults."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import count
from urllib.parse import quote

import httpx
import pytest
from freezegun import freeze_time

from checkpoint.errors import CheckpointError, StoreError, StoreUnavailable, ValueTooLarge
from checkpoint.server import DEFAULTS, Switches, create_app, serve
from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import Answer, ApiServer, Cut, Delay, Drip, Drop, Hang, Hook, Pass, Raw

PATH = "/sync-job-run-state"
NS = {"state_key": "job"}
OLD = "1970-01-01T00:00:00.000Z"


def stamp(second):
    return f"2023-01-01T10:00:{second:02}.000Z"


def entry(key, value, created=0, updated=None):
    """The entry as the API answers it, written in the given seconds."""
    times = {"created_at": stamp(created), "updated_at": stamp(created if updated is None else updated)}
    return {"key": key, "value": value, **times, "sync_job_run_id": None}


def problem(status, message):
    """Return the expected refusal; the name of a status differs between versions of Python."""
    return status, {"statusCode": status, "error": http.client.responses[status], "message": message}


def answer(response):
    return response.status_code, response.json()


@pytest.fixture(autouse=True)
def _stamps(monkeypatch):
    """Give the n-th commit the n-th second as its time."""
    seconds = count()
    monkeypatch.setattr("checkpoint.stores.memory.utc_now", lambda: stamp(next(seconds)))


@pytest.fixture
def server():
    with ApiServer() as server:
        yield server


@pytest.fixture
def client(server):
    with connect(server) as client:
        yield client


def connect(server, verify=False):
    headers = {"Authorization": f"Bearer {server.token}"}
    return httpx.Client(base_url=server.url, headers=headers, params=NS, trust_env=False, verify=verify)


def ask(server, method, target, body=None, headers=None):
    """Send a request whose target stays as it is; return the status and the answer's JSON."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    try:
        connection.request(method, target, body, {"Authorization": f"Bearer {server.token}", **(headers or {})})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def eventually(happened):
    deadline = time.monotonic() + 5
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# The calls


def test_an_entry_is_created_read_listed_updated_and_deleted(client):
    assert answer(client.post(PATH, json={"key": "a", "value": "1"})) == (200, entry("a", "1"))
    assert answer(client.get(f"{PATH}/a")) == (200, entry("a", "1"))
    assert answer(client.patch(f"{PATH}/a", json={"value": "2"})) == (200, entry("a", "2", 0, 1))
    assert answer(client.post(PATH, json={"key": "b", "value": ""})) == (200, entry("b", "", 2))
    assert answer(client.get(PATH)) == (200, {"result": [entry("a", "2", 0, 1), entry("b", "", 2)]})
    assert answer(client.delete(f"{PATH}/a")) == (200, entry("a", "2", 0, 1))
    assert answer(client.get(PATH)) == (200, {"result": [entry("b", "", 2)]})


def test_namespaces_are_apart(client):
    client.post(PATH, json={"key": "a", "value": "1"})
    assert answer(client.get(PATH, params={"state_key": "other"})) == (200, {"result": []})


@pytest.mark.parametrize(("method", "body"), [("GET", None), ("PATCH", {"value": "1"}), ("DELETE", None)])
def test_a_missing_key_is_not_found(client, method, body):
    assert answer(client.request(method, f"{PATH}/a", json=body)) == problem(404, "'a' does not exist")


def test_the_run_that_wrote_an_entry_is_named(server, client):
    server.store.commit("job", {"a": "1"}, run_id="run-1")
    assert client.get(f"{PATH}/a").json() == {**entry("a", "1"), "sync_job_run_id": "run-1"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body must be JSON"),
        (b"{", 400, "the body must be JSON"),
        (b"[]", 400, "the body must be a JSON object"),
        (b"{}", 400, "key is required"),
        (b'{"key": "a"}', 400, "value is required"),
        (b'{"key": 1, "value": "1"}', 422, "key must be a string"),
        (b'{"key": "a", "value": {}}', 422, "value must be a string"),
        (b'{"key": "a", "value": null}', 422, "value must be a string"),
        (b'{"key": "..", "value": ""}', 400, "key must not be '..'"),
        (b'{"key": "a\\u0000", "value": ""}', 400, r"key must not hold control characters or lone surrogates: 'a\x00'"),
    ],
)
def test_a_bad_body_is_refused(server, client, body, status, message):
    assert answer(client.post(PATH, content=body)) == problem(status, message)
    assert server.store.load("job") == {}


@pytest.mark.parametrize(
    "body", [b'{"key": "\xff", "value": "1"}', b'{"key": "a", "value": "\\ud800"}', b'{"key": NaN}']
)
def test_a_body_that_is_not_json_text_is_refused(server, client, body):
    assert answer(client.post(PATH, content=body)) == problem(400, "the body must be JSON")
    assert server.store.load("job") == {}


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", PATH), ("POST", PATH), ("GET", f"{PATH}/a"), ("PATCH", f"{PATH}/a"), ("DELETE", f"{PATH}/a")],
)
def test_every_call_needs_a_state_key(server, method, target):
    assert ask(server, method, target) == problem(400, "state_key is required")
    assert ask(server, method, f"{target}?state_key=") == problem(400, "state_key must not be ''")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (f"{PATH}/%zz?state_key=a", "the URL is not percent-encoded"),
        (f"{PATH}/a%?state_key=a", "the URL is not percent-encoded"),
        (f"{PATH}/a%2?state_key=a", "the URL is not percent-encoded"),
        (f"{PATH}/%ff?state_key=a", "the URL is not percent-encoded UTF-8"),
        (f"{PATH}/%ED%A0%80?state_key=a", "the URL is not percent-encoded UTF-8"),
        (f"{PATH}/a?state_key=%C0%AF", "the URL is not percent-encoded UTF-8"),
        (f"{PATH}?state_key=%", "the URL is not percent-encoded"),
        (f"{PATH}?state_key=a&state_key=b", "state_key is given twice"),
        (f"{PATH}?state_key=..", "state_key must not be '..'"),
        (f"{PATH}/.?state_key=a", "key must not be '.'"),
        (f"{PATH}/%2E%2E?state_key=a", "key must not be '..'"),
        (f"{PATH}/a%0A?state_key=a", r"key must not hold control characters or lone surrogates: 'a\n'"),
        (f"{PATH}?state_key=a&limit=0", "limit must be a positive integer"),
        (f"{PATH}?state_key=a&limit=ten", "limit must be a positive integer"),
        (f"{PATH}?state_key=a&next_cursor=x", "'x' is not a cursor of this list"),
    ],
)
def test_a_bad_url_is_refused(server, target, message):
    assert ask(server, "GET", target) == problem(400, message)


NAMES = [
    "a/b",
    "a%2Fb",
    "a%252Fb",
    "?",
    "#",
    ";",
    "a;b=c",
    "+",
    " ",
    "a b",
    "a+b",
    "%",
    "&",
    "=",
    ":@",
    "'\"",
    "\\",
    "é",
    "e\u0301",
]
NAMES += ["日本", "🙂", "...", "a.", "..a", "__lease__", "\u2028", "a" * 2000]


def test_no_two_names_share_an_entry(server):
    for name in NAMES:
        encoded = quote(name, safe="")
        server.store.commit(name, {name: "-"})
        body = json.dumps({"value": name})
        status, written = ask(server, "PATCH", f"{PATH}/{encoded}?state_key={encoded}", body)
        assert (status, written["key"], written["value"]) == (200, name, name)
    for name in NAMES:
        encoded = quote(name, safe="")
        status, read = ask(server, "GET", f"{PATH}?state_key={encoded}")
        assert (status, [(row["key"], row["value"]) for row in read["result"]]) == (200, [(name, name)])
        assert ask(server, "DELETE", f"{PATH}/{encoded}?state_key={encoded}")[0] == 200
    assert [call.key for call in server.requests if call.method == "PATCH"] == NAMES
    assert [call.state_key for call in server.requests if call.method == "PATCH"] == NAMES


def test_forms_write_a_space_as_plus(server):
    server.store.commit("a b", {"k": "1"})
    assert ask(server, "GET", f"{PATH}?state_key=a+b") == (200, {"result": [entry("k", "1")]})


@pytest.mark.parametrize("target", ["/", f"{PATH}/", f"{PATH}/a/b", f"/x{PATH}", "/docs", "/sync%2Djob-run-state"])
def test_other_routes_are_not_taken_for_missing_entries(server, target):
    status, fields = ask(server, "GET", f"{target}?state_key=a")
    assert (status, sorted(fields), fields["error"]) == (404, ["error", "message"], "no such path")
    with (
        closing(TrutoStore(f"{server.url}/prefix", server.token)) as store,
        pytest.raises(StoreError, match="gateway"),
    ):
        store.load("a")


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [("PUT", PATH, "GET, POST"), ("DELETE", PATH, "GET, POST"), ("POST", f"{PATH}/a", "DELETE, GET, PATCH")],
)
def test_other_methods_are_not_allowed(client, method, target, allow):
    response = client.request(method, target)
    assert answer(response) == problem(405, f"this path takes {allow}")
    assert response.headers["Allow"] == allow


# Who may


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic test-token", "test-token", "Bearer \xe9"]
)
@pytest.mark.parametrize("target", [PATH, f"{PATH}/%zz", "/nowhere"])
def test_nothing_is_looked_at_without_the_token(server, header, target):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.request("POST", target, b"{", {} if header is None else {"Authorization": header})
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())) == problem(401, "a valid bearer token is required")
    assert response.headers["WWW-Authenticate"] == 'Bearer, Basic realm="checkpoint", charset="UTF-8"'
    connection.close()


def test_the_scheme_is_read_in_any_case(server):
    assert ask(server, "GET", f"{PATH}?state_key=a", headers={"Authorization": "bearer test-token"})[0] == 200


@pytest.mark.parametrize("token", ["", " ", "a ", "a\nb", "é"])
def test_a_token_that_no_header_carries_is_refused_unshown(token):
    with pytest.raises(ValueError, match=r"^the token must be printable ASCII without spaces, and not empty$"):
        create_app(MemoryStore(), token)


# Limits


def test_a_body_announced_too_long_is_refused(server, client):
    server.set(max_body=30)
    assert client.post(PATH, content=b'{"key":"a","value":"12345678"}').status_code == 200
    refused = client.post(PATH, content=b'{"key":"a","value":"123456789"}')
    assert answer(refused) == problem(413, "the body must not be longer than 30 bytes")
    assert client.get(f"{PATH}/a").json()["value"] == "12345678"


def test_an_endless_body_is_refused_while_it_comes(server):
    server.set(max_body=1000)
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection(address, timeout=5) as connection:
        head = f"POST {PATH}?state_key=a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(b"384\r\n" + b"x" * 900 + b"\r\n384\r\n" + b"x" * 900 + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_leaves_amid_its_body_does_no_harm(server, client, caplog):
    with socket.create_connection(server.url.removeprefix("http://").split(":")) as connection:
        head = f"POST {PATH}?state_key=job HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        eventually(lambda: [call.body for call in server.requests] == [b"{"])
    eventually(lambda: server.requests[0].status is not None)
    assert client.get(PATH).json() == {"result": []}
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []


def test_a_value_too_long_is_refused_by_its_bytes(server, client):
    server.set(max_value=4)
    server.store.commit("job", {"a": ""})
    message = "the value of 'a' is too large for the store: 6 bytes; store less in one cursor"
    refused = problem(413, message)
    assert answer(client.post(PATH, json={"key": "a", "value": "ééé"})) == refused
    assert answer(client.patch(f"{PATH}/a", json={"value": "ééé"})) == refused
    assert client.patch(f"{PATH}/a", json={"value": "éé"}).status_code == 200


def test_the_rate_is_enforced_and_says_when_to_come_back(server, client):
    server.set(rate=(2, 0.1))
    assert [client.get(PATH).status_code for _ in range(2)] == [200, 200]
    refused = client.get(PATH)
    assert answer(refused) == problem(429, "more than 2 requests in 0.1 s")
    assert refused.headers["Retry-After"] == "1"
    eventually(lambda: client.get(PATH).status_code == 200)


def test_the_rate_is_a_sliding_window(server, client):
    server.set(rate=(3, 30.0))
    assert [client.get(PATH).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    assert client.get(PATH).headers["Retry-After"] == "30"


# Stores


class Failing(MemoryStore):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def load(self, state_key):
        raise self.error

    def read(self, state_key, keys):
        raise self.error


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (ValueTooLarge("a", 9), problem(413, str(ValueTooLarge("a", 9)))),
        (StoreUnavailable("no answer"), problem(503, "no answer")),
        (StoreError("disk full"), problem(500, "disk full")),
        (CheckpointError("odd"), problem(500, "odd")),
        (ValueError("bad name"), problem(400, "bad name")),
        (TypeError("bad type"), problem(400, "bad type")),
        (RuntimeError("secret"), problem(500, "the server failed")),
    ],
)
@pytest.mark.parametrize("in_threads", [True, False])
def test_a_failing_store_answers_in_the_apis_form(error, refused, in_threads):
    with ApiServer(Failing(error), in_threads=in_threads) as server:
        assert ask(server, "GET", f"{PATH}?state_key=a") == refused
        assert ask(server, "PATCH", f"{PATH}/a?state_key=a", b'{"value":"1"}') == refused


def test_a_slow_store_does_not_hold_up_others():
    entered, go_on = threading.Event(), threading.Event()

    class Slow(MemoryStore):
        def load(self, state_key):
            if state_key == "job":
                entered.set()
                go_on.wait(5)
            return super().load(state_key)

    with ApiServer(Slow()) as server, connect(server) as client, ThreadPoolExecutor() as pool:
        slow = pool.submit(client.get, PATH)
        entered.wait(5)
        assert answer(client.get(PATH, params={"state_key": "other"})) == (200, {"result": []})
        go_on.set()
        assert answer(slow.result()) == (200, {"result": []})


class Raced(MemoryStore):
    """A store in which another writer commits, so many times, between the server's read and its write."""

    def __init__(self, *others):
        super().__init__()
        self.others = list(others)

    def commit(self, state_key, changes, base={}, *, run_id=None):
        if base and self.others:
            super().commit(state_key, self.others.pop(0))
        return super().commit(state_key, changes, base, run_id=run_id)


def raced(method, target, body, *others, **switches):
    store = Raced(*others)
    with ApiServer(store, **switches) as server, connect(server) as client:
        store.commit("job", {"a": "0"})
        response = client.request(method, target, json=body)
        return response.status_code, response.json(), {key: found.value for key, found in store.load("job").items()}


def test_a_patch_among_other_writers_wins_or_is_told():
    patch = ("PATCH", f"{PATH}/a", {"value": "ours"})
    assert raced(*patch, {"a": "1"}, {"a": "2"}) == (200, entry("a", "ours", 0, 3), {"a": "ours"})
    missing = problem(404, "'a' does not exist")
    assert raced(*patch, {"a": None}) == (*missing, {})


def test_a_delete_among_other_writers_answers_what_it_deleted():
    delete = ("DELETE", f"{PATH}/a", None)
    assert raced(*delete, {"a": "1"}) == (200, entry("a", "1", 0, 1), {})


def test_of_two_creators_one_is_told():
    create = ("POST", PATH, {"key": "b", "value": "ours"})
    refused = problem(409, "'b' exists")
    assert raced(*create, {"b": "theirs"}, post_existing=409) == (*refused, {"a": "0", "b": "theirs"})


def test_many_threads_at_once(server):
    def write(number):
        with connect(server) as client:
            for turn in range(10):
                body = {"key": f"{number}-{turn}", "value": str(number)}
                assert client.post(PATH, json=body).status_code == 200

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert {key: found.value for key, found in server.store.load("job").items()} == {
        f"{number}-{turn}": str(number) for number in range(8) for turn in range(10)
    }


# The switches


def test_the_switches_can_be_changed_while_it_runs(server, client):
    assert server.options == replace(DEFAULTS, in_threads=False)
    server.set(latency=0.05)
    started = time.monotonic()
    assert client.get(PATH).status_code == 200
    assert time.monotonic() - started >= 0.05
    server.options = Switches(unknown_namespace=404)
    assert client.get(PATH).status_code == 404


def test_a_missing_key_may_be_created_by_patch(server, client):
    server.set(patch_missing="creates")
    assert answer(client.patch(f"{PATH}/a", json={"value": "1"})) == (200, entry("a", "1"))


@pytest.mark.parametrize("status", [409, 400])
@pytest.mark.parametrize("value", ["0", "1"])
def test_an_existing_key_may_be_refused(server, client, status, value):
    server.set(post_existing=status)
    server.store.commit("job", {"a": "0"})
    refused = problem(status, "'a' exists")
    assert answer(client.post(PATH, json={"key": "a", "value": value})) == refused
    assert client.get(f"{PATH}/a").json() == entry("a", "0")
    assert client.post(PATH, json={"key": "b", "value": "1"}).json() == entry("b", "1", 1)


def test_deleting_a_missing_key_may_be_fine(server, client):
    server.set(delete_missing=200)
    assert answer(client.delete(f"{PATH}/a")) == (200, {})


def test_a_namespace_without_entries_may_be_unknown(server, client):
    server.set(unknown_namespace=404)
    assert answer(client.get(PATH)) == problem(404, "'job' holds no entries")


@pytest.mark.parametrize(
    ("switch", "status", "body"),
    [
        (201, 201, entry("a", "2", 0, 1)),
        (204, 204, None),
        ("empty", 200, None),
        ("wrong key", 200, {**entry("a", "2", 0, 1), "key": "wrong"}),
        ("wrong value", 200, {**entry("a", "2", 0, 1), "value": "wrong"}),
    ],
)
def test_a_write_may_be_answered_otherwise(server, client, switch, status, body):
    server.store.commit("job", {"a": "1"})
    server.set(write_answer=switch)
    created = client.post(PATH, json={"key": "a", "value": "2"})
    assert (created.status_code, created.json() if created.content else None) == (status, body)
    assert client.patch(f"{PATH}/a", json={"value": "3"}).status_code == status
    assert client.delete(f"{PATH}/a").status_code == status
    assert server.store.load("job") == {}


def pages(client, **params):
    """Read a list to its end, at most ten pages; return the keys of each page."""
    found = []
    while len(found) < 10:
        page = client.get(PATH, params={**NS, **params}).json()
        found.append([row["key"] for row in page["result"]])
        if not page.get("next_cursor"):
            break
        params["next_cursor"] = page["next_cursor"]
    return found


@pytest.fixture
def five(server):
    server.store.commit("job", dict.fromkeys("abcde", "1"))


@pytest.mark.usefixtures("five")
def test_a_list_pages(server, client):
    assert pages(client) == [["a", "b", "c", "d", "e"]]
    assert pages(client, limit=2) == [["a", "b"], ["c", "d"], ["e"]]
    server.set(page_size=3)
    assert pages(client) == [["a", "b", "c"], ["d", "e"]]
    assert pages(client, limit=5) == [["a", "b", "c"], ["d", "e"]]
    last = client.get(PATH, params={**NS, "next_cursor": "3"}).json()
    assert last == {"result": [entry("d", "1"), entry("e", "1")], "next_cursor": None}


@pytest.mark.usefixtures("five")
def test_a_deletion_between_two_pages_hides_a_key(server, client):
    server.set(page_size=2)
    server.script(None, Hook(before=lambda: server.store.commit("job", {"a": None})))
    assert pages(client) == [["a", "b"], ["d", "e"]]


@pytest.mark.usefixtures("five")
def test_an_empty_page_may_come_between(server, client):
    server.set(page_size=2, empty_page=True)
    assert pages(client) == [["a", "b"], [], ["c", "d"], [], ["e"]]


@pytest.mark.usefixtures("five")
def test_a_cursor_may_repeat_itself(server, client):
    server.set(page_size=2, repeated_cursor=True)
    assert pages(client) == [["a", "b"], *[["c", "d"]] * 9]


@pytest.mark.usefixtures("five")
def test_a_list_may_be_shuffled(server, client):
    server.set(shuffled=True)
    (order,) = pages(client)
    assert (sorted(order), order != sorted(order)) == (list("abcde"), True)
    assert [key for page in pages(client, limit=2) for key in page] == order


def test_a_list_may_hold_older_duplicates(server, client):
    server.store.commit("job", {"a": "1", "b": "2"})
    server.set(duplicates=True)
    older = [{**entry(key, ""), "updated_at": OLD} for key in "ab"]
    assert client.get(PATH).json() == {"result": [*older, entry("a", "1"), entry("b", "2"), *older]}


def test_a_list_may_be_stale(server, client):
    server.store.commit("job", {"a": "1"})
    server.set(stale_list=True)
    assert client.get(PATH).json() == {"result": [entry("a", "1")]}
    client.patch(f"{PATH}/a", json={"value": "2"})
    assert client.get(PATH).json() == {"result": [entry("a", "1")]}
    assert client.get(f"{PATH}/a").json() == entry("a", "2", 0, 1)
    server.set(stale_list=False)
    assert client.get(PATH).json() == {"result": [entry("a", "2", 0, 1)]}


def test_entries_may_carry_more(server, client):
    server.store.commit("job", {"a": "1"})
    server.set(extra_fields=True)
    times = dict.fromkeys(("created_at", "updated_at"), "2023-01-01T10:00:00.000+00:00")
    more = {"id": 3904355907, **entry("a", "1"), **times, "labels": {"origin": None}}
    assert client.get(f"{PATH}/a").json() == more
    assert client.get(PATH).json() == {"result": [more], "count": 1}


@pytest.mark.parametrize("envelope", [None, [], {"data": []}, {"result": None}, {"result": {}}, "nothing"])
def test_a_list_may_be_something_else(server, client, envelope):
    server.set(envelope=envelope)
    assert answer(client.get(PATH)) == (200, envelope)


# The faults


def test_requests_are_recorded_as_they_came(server, client):
    client.patch(f"{PATH}/a%2Fb", json={"value": "1"}, params={"state_key": "x y"}, headers={"X-One": "1"})
    (call,) = server.requests
    assert (call.method, call.path, call.status) == ("PATCH", f"{PATH}/a%2Fb", 404)
    assert (call.query, call.key, call.state_key) == ("state_key=x+y", "a/b", "x y")
    assert (call.headers["x-one"], call.headers["authorization"]) == ("1", "Bearer test-token")
    assert call.body == b'{"value":"1"}'
    server.clear()
    assert server.requests == []


def test_a_scripted_answer_takes_the_place_of_the_apis(server, client):
    server.script(
        Answer(429, headers={"Retry-After": "7"}),
        Answer(200, "<html>log in</html>", {"Content-Type": "text/html"}),
        Answer(200, {"result": 1}),
        Answer(204),
        Answer(302, headers={"Location": "http://127.0.0.1:9/"}),
        Answer(500, b"\x1f\x8bnot gzip", {"X-Kind": "bytes"}),
    )
    body = {"key": "a", "value": "1"}
    limited = client.post(PATH, json=body)
    assert answer(limited) == problem(429, limited.json()["message"])
    assert limited.headers["Retry-After"] == "7"
    page = client.post(PATH, json=body)
    assert (page.status_code, page.text, page.headers["Content-Type"]) == (200, "<html>log in</html>", "text/html")
    assert answer(client.post(PATH, json=body)) == (200, {"result": 1})
    nothing = client.post(PATH, json=body)
    assert (nothing.status_code, nothing.content) == (204, b"")
    moved = client.post(PATH, json=body)
    assert (moved.status_code, moved.headers["Location"], moved.content) == (302, "http://127.0.0.1:9/", b"")
    odd = client.post(PATH, json=body)
    assert (odd.status_code, odd.content, odd.headers["X-Kind"]) == (500, b"\x1f\x8bnot gzip", "bytes")
    assert server.store.load("job") == {}
    assert [call.status for call in server.requests] == [429, 200, 200, 204, 302, 500]
    assert {call.body for call in server.requests} == {b'{"key":"a","value":"1"}'}


def test_a_scripted_answer_may_come_after_the_effect(server, client):
    server.script(Answer(503, applied=True))
    assert client.post(PATH, json={"key": "a", "value": "1"}).status_code == 503
    assert client.get(f"{PATH}/a").json() == entry("a", "1")


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize(("reset", "error"), [(False, httpx.RemoteProtocolError), (True, httpx.ReadError)])
def test_a_connection_may_be_dropped(server, client, applied, reset, error):
    server.script(Drop(applied=applied, reset=reset))
    with pytest.raises(error):
        client.post(PATH, json={"key": "a", "value": "1"})
    assert client.get(PATH).json() == {"result": [entry("a", "1")] if applied else []}
    assert [call.status for call in server.requests] == [None, 200]


def test_a_request_may_be_applied_after_its_drop(server, client):
    server.script(Drop(late=0.05))
    with pytest.raises(httpx.RemoteProtocolError):
        client.post(PATH, json={"key": "a", "value": "1"})
    assert client.get(PATH).json() == {"result": []}
    eventually(lambda: "a" in server.store.load("job"))


@pytest.mark.parametrize("applied", [True, False])
def test_an_answer_may_never_come(server, client, applied):
    server.script(Hang(applied=applied))
    with pytest.raises(httpx.ReadTimeout):
        client.post(PATH, json={"key": "a", "value": "1"}, timeout=0.05)
    assert client.get(PATH).json() == {"result": [entry("a", "1")] if applied else []}


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_may_be_cut_off(server, client, chunked):
    server.store.commit("job", {"a": "1"})
    server.script(Cut(10, chunked=chunked))
    seen = []
    with client.stream("GET", PATH) as response:
        assert ("Content-Length" in response.headers) is not chunked
        with pytest.raises(
            httpx.RemoteProtocolError, match="incomplete chunked read" if chunked else "received 10 byt"
        ):
            seen.extend(response.iter_raw())
    assert b"".join(seen) == b'{"result":'


def test_a_body_may_be_cut_off_by_a_reset(server, client):
    server.script(Cut(5, then="reset"))
    with pytest.raises(httpx.ReadError):
        client.get(PATH)


@pytest.mark.parametrize(
    ("then", "error"),
    [("close", httpx.RemoteProtocolError), ("reset", httpx.ReadError), ("hang", httpx.ReadTimeout)],
)
def test_any_bytes_may_be_sent(server, client, then, error):
    server.script(Raw(b"HTTP/1.1 200 OK\r\nContent-Le", then))
    with pytest.raises(error):
        client.get(PATH, timeout=0.2)
    server.script(Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", applied=True))
    assert answer(client.post(PATH, json={"key": "a", "value": "1"})) == (200, {})
    assert client.get(f"{PATH}/a").json() == entry("a", "1")


@pytest.mark.parametrize("part", ["head", "body"])
def test_an_answer_may_drip(server, client, part):
    server.script(Drip(0.001, part))
    started = time.monotonic()
    assert answer(client.get(PATH)) == (200, {"result": []})
    assert time.monotonic() - started >= 0.001 * len(b'{"result":[]}')


def test_a_drip_ends_with_its_client(server, client):
    server.script(Drip(0.001, "head"))
    with socket.create_connection(server.url.removeprefix("http://").split(":")) as connection:
        connection.sendall(f"GET {PATH}?state_key=job HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(8, socket.MSG_WAITALL) == b"HTTP/1.1"
    assert client.get(PATH).status_code == 200


def test_a_request_may_be_held_up(server, client):
    server.script(Delay(0.05), Delay(0.05, then=Answer(503)))
    started = time.monotonic()
    assert [client.get(PATH).status_code for _ in range(2)] == [200, 503]
    assert time.monotonic() - started >= 0.1


def test_another_writer_may_come_before_and_after(server, client):
    def writes(value):
        return lambda: httpx.post(
            server.url + PATH,
            params=NS,
            headers={"Authorization": f"Bearer {server.token}"},
            json={"key": "a", "value": value},
            trust_env=False,
        )

    server.script(Hook(before=writes("before"), after=writes("after")), method="PATCH")
    assert answer(client.patch(f"{PATH}/a", json={"value": "ours"})) == (200, entry("a", "ours", 0, 1))
    assert client.get(f"{PATH}/a").json() == entry("a", "after", 0, 2)


def test_a_hook_goes_with_any_fault(server, client):
    server.script(Hook(after=lambda: server.store.commit("job", {"a": "theirs"}), then=Drop(applied=True)))
    with pytest.raises(httpx.RemoteProtocolError):
        client.post(PATH, json={"key": "a", "value": "ours"})
    assert client.get(f"{PATH}/a").json() == entry("a", "theirs", 0, 1)


def test_a_fault_may_be_any_coroutine_function(server, client):
    async def teapot(exchange):
        await exchange.send(Answer(418, {"was": (await exchange.apply()).status}))

    server.script(teapot)
    assert answer(client.get(PATH)) == (418, {"was": 200})


def test_faults_are_taken_by_the_requests_that_match(server, client):
    server.script(None, Answer(503), method="GET", key="a")
    server.script(Answer(500), key="b")
    server.script(Answer(502), match=lambda call: call.key is None, forever=True)
    server.store.commit("job", {"a": "1", "b": "1"})
    assert server.pending == 4
    assert [client.get(f"{PATH}/a").status_code for _ in range(3)] == [200, 503, 200]
    assert [client.post(PATH, json={"key": "b", "value": "2"}).status_code for _ in range(2)] == [500, 200]
    assert [client.get(PATH).status_code for _ in range(3)] == [502, 502, 502]
    assert server.pending == 1
    server.clear()
    assert (client.get(PATH).status_code, server.pending) == (200, 0)


# The server itself


def test_it_keeps_going_while_time_is_frozen(server, client):
    server.script(Delay(0.02, then=Drip(0.001)), None, Pass())
    with freeze_time("2020-02-02T02:02:02Z") as frozen:
        server.set(latency=0.02)
        assert client.get(PATH).json() == {"result": []}
        assert client.get(PATH).headers["Date"] == "Sun, 02 Feb 2020 02:02:02 GMT"
        frozen.tick(86400)
        assert client.get(PATH).headers["Date"] == "Mon, 03 Feb 2020 02:02:02 GMT"
        with ApiServer(latency=0.02, rate=(1, 60.0)) as other, connect(other) as second:
            assert second.get(PATH).status_code == 200
            frozen.tick(86400)
            assert second.get(PATH).headers["Retry-After"] == "60"


def test_it_serves_tls(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    with ApiServer(ssl_certfile=cert, ssl_keyfile=key) as server:
        with connect(server, verify=ssl.create_default_context(cafile=cert)) as client:
            assert server.url.startswith("https://")
            assert answer(client.get(PATH)) == (200, {"result": []})
            server.script(Drop(), Drop(reset=True))
            with pytest.raises(httpx.RemoteProtocolError):
                client.get(PATH)
            with pytest.raises(httpx.TransportError):  # OpenSSL tells FIN and RST apart as it likes
                client.get(PATH)
        with (
            connect(server, verify=True) as stranger,
            pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            stranger.get(PATH)


def test_it_can_be_stopped_and_started_again():
    server = ApiServer()
    with server:
        address = server.url.removeprefix("http://").split(":")
        server.store.commit("job", {"a": "1"})
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    with server, connect(server) as client:
        assert client.get(PATH).json() == {"result": [entry("a", "1")]}


LEAVES_NOTHING = """
import gc, httpx, threading
from checkpoint.testing import ApiServer, Drip, Drop, Hang

def ask():
    with httpx.Client(base_url=server.url, headers={"Authorization": "Bearer test-token"}, trust_env=False) as client:
        try:
            return client.get("/sync-job-run-state", params={"state_key": "a"}, timeout=60).json()
        except httpx.TransportError:
            return None

with ApiServer(in_threads=True) as server:
    assert ask() == {"result": []}
    server.script(Hang(), Drip(10), Drop(late=60))
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while server.pending:
        pass
for thread in threads:
    thread.join()
gc.collect()
assert threading.active_count() == 1
"""


def test_stopping_leaves_nothing_behind():
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", LEAVES_NOTHING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


SERVE = """
import sys
from checkpoint.server import Switches, serve
from checkpoint.stores.memory import MemoryStore
class Telling(MemoryStore):
    def commit(self, *args, **options):
        print("written", flush=True)
        return super().commit(*args, **options)
    def close(self):
        print("closed", flush=True)
serve(Telling(), "secret", port=0, options=Switches(latency=0.3), ready=lambda url: print(url, flush=True))
print("left", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_cleanly_on_a_signal(number):
    command = [sys.executable, "-W", "error", "-c", SERVE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        with ThreadPoolExecutor() as pool:
            headers = {"Authorization": "Bearer secret"}
            first = httpx.get(url + PATH, params=NS, headers=headers, trust_env=False)
            in_flight = pool.submit(
                httpx.post, url + PATH, params=NS, headers=headers, json={"key": "a", "value": "1"}, trust_env=False
            )
            assert process.stdout.readline() == "written\n"
            process.send_signal(number)
            written = in_flight.result()
        output, errors = process.communicate(timeout=10)
    assert answer(first) == (200, {"result": []})
    assert (written.status_code, written.json()["value"]) == (200, "1")
    assert (process.returncode, output, errors) == (0, "closed\nleft\n", "")


def test_serve_says_when_it_cannot_listen_and_closes_the_store():
    store, closed = MemoryStore(), []
    store.close = lambda: closed.append(True)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match=r"[Aa]ddress already in use"):
        serve(store, "secret", port=taken.getsockname()[1])
    assert closed == [True]


def test_serve_stops_for_a_signal_that_comes_at_once():
    script = SERVE.replace("print(url, flush=True)", "signal.raise_signal(signal.SIGTERM)").replace("sys", "signal")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\nleft\n", "")


def test_the_document_describes_the_five_calls(server):
    document = httpx.get(f"{server.url}/openapi.json", trust_env=False, verify=False).json()
    calls = {
        f"{method} {path}": call
        for path, methods in document["paths"].items()
        for method, call in methods.items()
        if path.startswith(PATH)
    }
    key, state_key, cursor = ("path", "id"), ("query", "state_key"), ("query", "next_cursor")
    assert {
        name: [(parameter["in"], parameter["name"]) for parameter in call["parameters"]] for name, call in calls.items()
    } == {
        f"get {PATH}": [state_key, ("query", "limit"), cursor],
        f"post {PATH}": [state_key],
        f"get {PATH}/{{id}}": [key, state_key],
        f"patch {PATH}/{{id}}": [key, state_key],
        f"delete {PATH}/{{id}}": [key, state_key],
    }
    bodies = {name: call["requestBody"]["content"] for name, call in calls.items() if "requestBody" in call}
    assert {name: body["application/json"]["schema"]["required"] for name, body in bodies.items()} == {
        f"post {PATH}": ["key", "value"],
        f"patch {PATH}/{{id}}": ["value"],
    }
    always = {"200", "400", "401", "403", "408", "429", "500", "503", "504"}
    assert {name: set(call["responses"]) - always for name, call in calls.items()} == {
        f"get {PATH}": {"404"},
        f"post {PATH}": {"409", "413", "422"},
        f"get {PATH}/{{id}}": {"404"},
        f"patch {PATH}/{{id}}": {"404", "413", "422"},
        f"delete {PATH}/{{id}}": {"404"},
    }
    assert all(always <= set(call["responses"]) for call in calls.values())
    assert all(call["security"] == [{"HTTPBearer": []}] for call in calls.values())
    assert {"Problem", "StateEntry", "StatePage"} <= document["components"]["schemas"].keys()


# The reference's examples, unchanged but for base URL, token and state_key

CURL = """
curl -X POST 'https://api.truto.one/sync-job-run-state?state_key=<state_key>' \\
  -H 'Authorization: Bearer <api_token>' \\
  -H 'Content-Type: application/json' \\
  -d '{"key": "last_processed_id", "value": "eyJpZCI6IjEifQ=="}'
echo
curl -X GET 'https://api.truto.one/sync-job-run-state/last_processed_id?state_key=<state_key>' \\
  -H 'Authorization: Bearer <api_token>' \\
  -H 'Content-Type: application/json'
echo
curl -X PATCH 'https://api.truto.one/sync-job-run-state/last_processed_id?state_key=<state_key>' \\
  -H 'Authorization: Bearer <api_token>' \\
  -H 'Content-Type: application/json' \\
  -d '{"value": "eyJpZCI6IjIifQ=="}'
echo
curl -X GET 'https://api.truto.one/sync-job-run-state?state_key=<state_key>' \\
  -H 'Authorization: Bearer <api_token>' \\
  -H 'Content-Type: application/json'
echo
curl -X DELETE 'https://api.truto.one/sync-job-run-state/last_processed_id?state_key=<state_key>' \\
  -H 'Authorization: Bearer <api_token>' \\
  -H 'Content-Type: application/json'
"""

JAVASCRIPT = """
const params = new URLSearchParams({ state_key: '<state_key>' });

async function createSyncJobRunState() {
  const body = { key: 'last_processed_id', value: 'eyJpZCI6IjEifQ==' };
  const response = await fetch('https://api.truto.one/sync-job-run-state?' + params, {
    method: 'POST',
    headers: {
      'Authorization': 'Bearer <api_token>',
      'Content-Type': 'application/json',
    },
    body: JSON.stringify(body),
  });
  const data = await response.json();
  console.log(JSON.stringify(data));
}

async function getSyncJobRunState() {
  const id = 'last_processed_id';
  const response = await fetch(`https://api.truto.one/sync-job-run-state/${id}?` + params, {
    method: 'GET',
    headers: {
      'Authorization': 'Bearer <api_token>',
      'Content-Type': 'application/json',
    },
  });
  const data = await response.json();
  console.log(JSON.stringify(data));
}

async function updateSyncJobRunState() {
  const id = 'last_processed_id';
  const body = { value: 'eyJpZCI6IjIifQ==' };
  const response = await fetch(`https://api.truto.one/sync-job-run-state/${id}?` + params, {
    method: 'PATCH',
    headers: {
      'Authorization': 'Bearer <api_token>',
      'Content-Type': 'application/json',
    },
    body: JSON.stringify(body),
  });
  const data = await response.json();
  console.log(JSON.stringify(data));
}

async function listSyncJobRunState() {
  const response = await fetch('https://api.truto.one/sync-job-run-state?' + params, {
    method: 'GET',
    headers: {
      'Authorization': 'Bearer <api_token>',
      'Content-Type': 'application/json',
    },
  });
  const data = await response.json();
  console.log(JSON.stringify(data));
}

async function deleteSyncJobRunState() {
  const id = 'last_processed_id';
  const response = await fetch(`https://api.truto.one/sync-job-run-state/${id}?` + params, {
    method: 'DELETE',
    headers: {
      'Authorization': 'Bearer <api_token>',
      'Content-Type': 'application/json',
    },
  });
  const data = await response.json();
  console.log(JSON.stringify(data));
}

createSyncJobRunState()
  .then(getSyncJobRunState)
  .then(updateSyncJobRunState)
  .then(listSyncJobRunState)
  .then(deleteSyncJobRunState);
"""

PYTHON = """
import json
import requests

def show(response):
    print(json.dumps(response.json()))

url = "https://api.truto.one/sync-job-run-state"
headers = {
    "Authorization": "Bearer <api_token>",
    "Content-Type": "application/json",
}
params = {"state_key": "<state_key>"}
body = {"key": "last_processed_id", "value": "eyJpZCI6IjEifQ=="}
response = requests.post(url, headers=headers, params=params, json=body)
show(response)

url = "https://api.truto.one/sync-job-run-state/last_processed_id"
response = requests.get(url, headers=headers, params=params)
show(response)

body = {"value": "eyJpZCI6IjIifQ=="}
response = requests.patch(url, headers=headers, params=params, json=body)
show(response)

response = requests.get("https://api.truto.one/sync-job-run-state", headers=headers, params=params)
show(response)

response = requests.delete(url, headers=headers, params=params)
show(response)
"""


@pytest.mark.parametrize(
    ("example", "command"),
    [(CURL, ["sh", "-c"]), (JAVASCRIPT, ["node", "-e"]), (PYTHON, [sys.executable, "-c"])],
    ids=["curl", "fetch", "requests"],
)
def test_the_references_examples_run_as_they_are(server, example, command):
    needed = "curl" if example is CURL else command[0]
    if shutil.which(needed) is None:
        pytest.skip(f"{needed} is not here")
    if example is PYTHON:
        pytest.importorskip("requests")
    changes = {"https://api.truto.one": server.url, "<api_token>": server.token, "<state_key>": "sync_job_123"}
    for theirs, ours in changes.items():
        example = example.replace(theirs, ours)
    done = subprocess.run([*command, example], capture_output=True, text=True, timeout=30, check=True)
    created = entry("last_processed_id", "eyJpZCI6IjEifQ==")
    updated = entry("last_processed_id", "eyJpZCI6IjIifQ==", 0, 1)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers == [created, created, updated, {"result": [updated]}, updated]
    assert server.store.load("sync_job_123") == {}
