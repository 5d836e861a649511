"""The object store: S3 over HTTP, what may become of a put, objects found in any state, other processes, secrets."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha1
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from urllib.parse import quote, urlsplit

import pytest
from freezegun import freeze_time

from checkpoint import Entry, ObjectStore, open_store
from checkpoint.errors import (
    CheckpointError,
    CommitUnknown,
    Conflict,
    StoreError,
    StoreUnavailable,
    Unauthorized,
    ValueTooLarge,
)
from checkpoint.stores import bucket
from checkpoint.stores import objects as module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOW = "2024-05-01T10:00:00.000Z"
KEPT = "and was left unchanged: replace it by a good copy, or move it away to start over"

in_parallel = multiprocessing.get_context("fork")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Request:
    """A request that came to the proxy, and that a fault answers."""

    def __init__(self, handler: BaseHTTPRequestHandler, server: str) -> None:
        self.method, self.path = handler.command, handler.path
        self.body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.headers = dict(handler.headers)
        self.handler = handler
        self._server = server

    def apply(self) -> Answer:
        """Let the server do it, and return its answer unsent."""
        connection = HTTPConnection(urlsplit(self._server).netloc, timeout=30)
        try:
            connection.request(self.method, self.path, self.body, self.headers)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def send(self, answer: Answer, cut: int = 0) -> None:
        """Send an answer, without its last bytes where it is to be cut."""
        self.handler.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                self.handler.send_header(name, value)
        self.handler.send_header("Content-Length", str(len(answer.body)))
        self.handler.end_headers()
        self.handler.wfile.write(answer.body[: len(answer.body) - cut])

    def drop(self) -> None:
        self.handler.close_connection = True


class Proxy:
    """Stands between the store and S3; each request takes the next fault of its method, else the one that stays."""

    def __init__(self, server: str) -> None:
        self.calls: list[str] = []
        self.signed: list[str] = []
        """The Authorization header of each request."""
        self.errors: list[BaseException | None] = []
        self.faults: dict[str, list[Callable[[Request], object]]] = {}
        self.forever: dict[str, Callable[[Request], object]] = {}
        self.closing = Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with suppress(ConnectionError):
                    super().handle_one_request()

            def do_GET(self) -> None:
                request = Request(self, server)
                proxy.calls.append(request.method)
                proxy.signed.append(self.headers.get("Authorization", ""))
                faults = proxy.faults.get(request.method)
                fault = faults.pop(0) if faults else proxy.forever.get(request.method, passed)
                fault(request)

            do_PUT = do_GET  # noqa: N815 - http.server's name

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                if not isinstance(
                    error := sys.exc_info()[1], ConnectionError | ssl.SSLError
                ):  # else the client has gone
                    proxy.errors.append(error)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def script(self, method: str, *faults: Callable[[Request], object]) -> None:
        self.faults[method] = list(faults)

    def hang(self, request: Request) -> None:
        """Give no answer, and keep the connection."""
        self.closing.wait(60)
        request.drop()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


def passed(request: Request) -> None:
    request.send(request.apply())


def dropped(request: Request) -> None:
    request.drop()


def applied_and_dropped(request: Request) -> None:
    request.apply()
    request.drop()


def repeated(request: Request) -> None:
    """As a gateway does that got no answer the first time."""
    request.apply()
    request.send(request.apply())


def answers(status: int, code: str = "", text: str = "", *, applied: bool = False) -> Callable[[Request], None]:
    def answer(request: Request) -> None:
        if applied:
            request.apply()
        body = f"<Error><Code>{code}</Code><Message>{text}</Message></Error>" if code else text
        request.send(Answer(status, {"Content-Type": "text/html"}, body.encode()))

    return answer


def after(hook: Callable[[], object], fault: Callable[[Request], object] = passed) -> Callable[[Request], None]:
    def answer(request: Request) -> None:
        hook()
        fault(request)

    return answer


@pytest.fixture
def proxy(s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.close()
    assert proxy.errors == []


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the bucket for one that was seen to keep conditions; row 87 has the tests of that."""
    monkeypatch.setattr(bucket.Bucket, "checked", True)


@pytest.fixture
def store(s3: str) -> ObjectStore:
    return ObjectStore(f"{s3}/state")


@pytest.fixture
def other(s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """Another process's store, past the proxy."""
    store = ObjectStore(f"{s3}/state")
    with monkeypatch.context() as context:
        context.setenv("AWS_ENDPOINT_URL", s3_server)
        store.load("job")
    return store


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 3)


@pytest.fixture
def raw(s3: str, s3_server: str) -> Callable[..., bytes]:
    """Read an object below the store's prefix, write it or delete it."""

    def access(name: str = "job.json", data: bytes | None = None, *, delete: bool = False) -> bytes:
        connection = HTTPConnection(urlsplit(s3_server).netloc, timeout=30)
        method = "DELETE" if delete else "GET" if data is None else "PUT"
        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=any/20240501/us-east-1/s3/aws4_request"}
        connection.request(method, f"/{s3.removeprefix('s3://')}/state/{quote(name)}", data, signed)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        assert response.status == (204 if delete else 200), body
        return body

    return access


def values(store: ObjectStore, state_key: str = "job") -> dict[str, str]:
    return {key: entry.value for key, entry in store.load(state_key).items()}


def in_children(count: int, work: Callable[[int], object]) -> None:
    """Run the work in so many forked processes."""
    children = [in_parallel.Process(target=work, args=(number,)) for number in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        child.kill()  # one that hangs must not outlive the test
        child.join()
    assert [child.exitcode for child in children] == [0] * count


# What it is called


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my.bucket-1/a/b c/%20/é/", "s3://my.bucket-1/a/b c/%20/é"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("az://container/a", "az://container/a"),
    ],
)
def test_the_url_names_bucket_and_prefix(url: str, shown: str) -> None:
    pytest.importorskip("obstore")
    assert repr(open_store(url)) == f"ObjectStore({shown!r})"


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "s3:",
            "s3://",
            "s3:///a",
            "bucket/a",
            "file:///a",
            "s3://bucket/a#b",
        ),
        *("s3://bu cket", "S3://bucket", "s3://bucket:80/a"),
    ],
)
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as caught:
        ObjectStore(url)
    assert str(caught.value) == (
        "an object store's URL is s3://bucket/prefix, gs://bucket/prefix or az://container/prefix, "
        f"optionally followed by ?deadline=60, not {url!r}"
    )


@pytest.mark.parametrize(
    "query", ["a=b", "deadline", "deadline=0", "deadline=x", "deadline=inf", "deadline=5&deadline=6"]
)
def test_an_option_it_does_not_have_is_refused(query: str) -> None:
    with pytest.raises(ValueError, match="only the option deadline|store's URL cannot be read|occurs twice"):
        ObjectStore(f"s3://bucket/a?{query}")


@pytest.mark.parametrize("prefix", ["a//b", "a/../b", ".", "a/./b", "a\nb"])
def test_a_prefix_that_names_another_place_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="each part of an object store's prefix must not"):
        ObjectStore(f"s3://bucket/{prefix}")


def test_a_url_with_credentials_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="not one with credentials: those come from the environment") as caught:
        ObjectStore("s3://key:hidden@bucket/a")
    assert "hidden" not in str(caught.value)


def test_without_obstore_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_libraries", {})
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreError) as caught:
        ObjectStore("s3://bucket")
    assert str(caught.value) == "an object store needs obstore: pip install 'checkpoint-store[objects]'"


def test_every_namespace_has_an_object_of_its_own(store: ObjectStore, raw: Callable[..., bytes]) -> None:
    names = {
        "job": "job.json",
        "JOB": "JOB.json",
        "job.json": "job.json.json",
        "a/b": "a%2Fb.json",
        "a%2Fb": "a%252Fb.json",
        "é~_-.": "%C3%A9~_-..json",
        "a?b#c": "a%3Fb%23c.json",
    }
    for state_key in names:
        store.commit(state_key, {"a": state_key})
    assert {state_key: json.loads(raw(name))["entries"]["a"]["value"] for state_key, name in names.items()} == {
        state_key: state_key for state_key in names
    }
    assert store.namespaces() == sorted(names)


def test_a_name_too_long_for_an_object_is_refused_at_once(s3: str, proxy: Proxy) -> None:
    store = ObjectStore(f"{s3}/état")
    longest = "x" * (1024 - len("état/.json".encode()))
    store.commit(longest, {"a": "1"})
    assert values(store, longest) == {"a": "1"}
    proxy.calls.clear()
    for state_key, size in ((longest + "x", 1025), ("é" * 500, 3011)):
        for call in (store.load, lambda key: store.commit(key, {"a": "1"})):
            with pytest.raises(ValueError, match=f"would have {size:,} bytes, and at most 1,024"):
                call(state_key)
    assert proxy.calls == []


def test_without_a_prefix_the_bucket_is_the_store(s3: str) -> None:
    store = ObjectStore(s3)
    store.commit("job", {"a": "1"})
    ObjectStore(f"{s3}/job.json").commit("elsewhere", {"a": "1"})
    assert (values(store), store.namespaces()) == ({"a": "1"}, ["job"])
    assert store.load("elsewhere") == {}


# What is stored


def test_a_person_can_read_the_object(store: ObjectStore, raw: Callable[..., bytes]) -> None:
    with freeze_time(NOW):
        store.commit("job", {"deals": '{"é": 1}', "contacts": "b"}, run_id="run-1")
        store.commit("job", {"contacts": "c"})
    text = raw().decode()
    first, second = re.findall(r"\b[0-9a-f]{16}\b", text)
    assert (
        text
        == f"""\
{{
  "format": 1,
  "state_key": "job",
  "version": 2,
  "commits": "{first} {second}",
  "entries": {{
    "contacts": {{
      "value": "c",
      "created_at": "{NOW}",
      "updated_at": "{NOW}",
      "sync_job_run_id": null,
      "version": 2
    }},
    "deals": {{
      "value": "{{\\"é\\": 1}}",
      "created_at": "{NOW}",
      "updated_at": "{NOW}",
      "sync_job_run_id": "run-1",
      "version": 1
    }}
  }}
}}"""
    )


def test_an_object_that_a_person_edited_is_read(store: ObjectStore, raw: Callable[..., bytes]) -> None:
    entries = store.commit("job", {"a": "1"}).entries
    raw(data=json.dumps(json.loads(raw())).encode())
    assert store.load("job") == entries
    assert store.commit("job", {"a": "2"}, entries).entries == store.load("job")


def test_deleting_every_key_keeps_the_counter(store: ObjectStore, raw: Callable[..., bytes]) -> None:
    store.commit("job", {"a": "1"})
    store.commit("job", {"a": None})
    assert json.loads(raw()) | {"commits": ""} == {
        "format": 1,
        "state_key": "job",
        "version": 2,
        "commits": "",
        "entries": {},
    }
    assert store.commit("job", {"a": "1"}, {"a": None}).entries["a"].version == 3


def test_of_many_commits_the_latest_are_named(store: ObjectStore, raw: Callable[..., bytes]) -> None:
    for number in range(module.REMEMBERED + 2):
        store.commit("job", {"a": str(number)})
    named = json.loads(raw())["commits"].split()
    assert len(set(named)) == len(named) == module.REMEMBERED
    store.commit("job", {"a": "again"})
    assert json.loads(raw())["commits"].split()[:-1] == named[1:]


GOOD = {
    "format": 1,
    "state_key": "job",
    "version": 1,
    "commits": "0",
    "entries": {"a": {"value": "1", "created_at": NOW, "updated_at": NOW, "sync_job_run_id": None, "version": 1}},
}
ENTRY = GOOD["entries"]["a"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", ""),
        (b"\x00" * 100, ""),
        (b"<html>", ""),
        (json.dumps(GOOD, indent=2).encode()[:-1], ""),
        (json.dumps(GOOD).replace('"1"', '"\\ud800"').encode(), ""),
        (json.dumps(GOOD).encode("utf-16"), ""),
        (b"[" * 100_000, ""),
        (
            b"[" * 1_020 + b"]" * 1_020,
            "the document does not have the fields format, state_key, version, commits, entries",
        ),
        (json.dumps(GOOD).replace("{", f'{{"format": {"[" * 1_020}{"]" * 1_020}, ', 1).encode(), ""),
        (b"[]", "the document does not have the fields format, state_key, version, commits, entries"),
        (b"{}", "the document does not have the fields format, state_key, version, commits, entries"),
        (GOOD | {"more": 1}, "the document does not have the fields format, state_key, version, commits, entries"),
        (GOOD | {"format": 2}, "its format is 2, and this release reads format 1: upgrade checkpoint-store"),
        ({"format": 2}, "its format is 2, and this release reads format 1: upgrade checkpoint-store"),
        (GOOD | {"format": True}, "the format of the document is a bool"),
        (GOOD | {"version": "1"}, "the version of the document is a str"),
        (GOOD | {"version": 2**70}, "the version of the document is a float"),
        (GOOD | {"commits": None}, "the commits of the document is a NoneType"),
        (GOOD | {"entries": []}, "the entries of the document is a list"),
        (GOOD | {"version": -1}, "the version of the document is out of range"),
        (GOOD | {"version": 2**63 - 1}, "the version of the document is out of range"),
        (GOOD | {"version": 2**64 - 1}, "the version of the document is out of range"),
        (GOOD | {"state_key": "JOB"}, "it belongs to the namespace 'JOB'"),
        (GOOD | {"entries": {"": ENTRY}}, "key must not be ''"),
        (json.dumps(GOOD).replace('{"a"', f'{{"a": {json.dumps(ENTRY)}, "a"').encode(), "a key occurs twice"),
        (json.dumps(GOOD).replace('"value"', '"value": "0", "value"').encode(), "a key occurs twice"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_fault_41_what_cannot_be_read_is_an_error_and_kept(
    store: ObjectStore, raw: Callable[..., bytes], s3: str, data: Any, said: str
) -> None:
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    raw(data=data)
    for call in (
        lambda: store.load("job"),
        lambda: store.commit("job", {"b": "1"}),
        lambda: store.commit("job", {"a": "1"}, {"a": None}),
    ):
        with pytest.raises(StoreError) as caught:
            call()
        assert type(caught.value) is StoreError
        assert re.fullmatch(
            rf"{s3}/state/job\.json is not a usable checkpoint object \({re.escape(said) or '.+'}\), {KEPT}",
            str(caught.value),
        )
    assert raw() == data
    assert store.namespaces() == (["job"])


def test_objects_of_others_are_no_namespaces(store: ObjectStore, raw: Callable[..., bytes]) -> None:
    store.commit("job", {"a": "1"})
    for name in ("readme.txt", "a b.json", "%2f.json", "%00.json", "..json", ".json", "below/job-2.json"):
        raw(name, b"theirs")
    assert store.namespaces() == ["job"]


def test_a_large_namespace_is_listed_without_being_read(s3: str, proxy: Proxy) -> None:
    store = ObjectStore(s3)
    store.commit("small", {"a": "1"})
    store.commit("large", {"a": "1" * 20_000})
    proxy.calls.clear()
    assert store.namespaces() == ["large", "small"]
    assert proxy.calls == ["GET"] * 2


def test_a_namespace_that_cannot_be_read_ends_the_list(
    store: ObjectStore, proxy: Proxy, raw: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *args: Any, **kwargs: Any) -> None:
            failed.set()
            super().shutdown(*args, **kwargs)

    def look(request: Request) -> None:
        if not request.path.endswith("/0.json"):
            failed.wait(60)
        answers(403, "AccessDenied")(request)

    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    for number in range(50):
        raw(f"{number}.json", b"{}")
    proxy.script("GET", passed)
    proxy.forever["GET"] = look
    with pytest.raises(Unauthorized):
        store.namespaces()
    assert len(proxy.calls) <= 1 + 16 + 1


def test_what_is_too_large_is_refused_and_nothing_is_written(
    store: ObjectStore, raw: Callable[..., bytes], s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit("job", {"a": "1" * 500, "b": "1"})
    before = raw()
    monkeypatch.setattr(bucket, "MAX_OBJECT", len(before) + 10)
    with pytest.raises(ValueTooLarge) as caught:
        store.commit("job", {"c": "é" * 50, "b": "2"})
    assert caught.value.args == ("c", 100)
    assert raw() == before
    monkeypatch.setattr(bucket, "MAX_OBJECT", len(before) - 1)
    with pytest.raises(StoreError) as caught:
        store.load("job")
    assert str(caught.value) == (f"{s3}/state/job.json: it has {len(before)} bytes; at most {len(before) - 1} are read")


def test_a_large_value_is_written_in_one_put(store: ObjectStore, proxy: Proxy) -> None:
    value = "é" * 4_000_000  # obstore uploads 5 MB and more in parts where it may
    entry = store.commit("job", {"a": value}, {"a": None}).entries["a"]
    store.commit("job", {"b": "1"})
    assert store.load("job")["a"] == entry
    assert proxy.calls == ["GET", "PUT"] * 2 + ["GET"]


def test_a_value_that_the_service_finds_too_large(store: ObjectStore, proxy: Proxy) -> None:
    for answer in (answers(413), answers(400, "EntityTooLarge")):
        proxy.script("PUT", answer)
        with pytest.raises(ValueTooLarge) as caught:
            store.commit("job", {"a": "1", "b": "22"})
        assert caught.value.args == ("b", 2)


# Other writers


def test_another_key_changed_meanwhile_is_no_conflict(store: ObjectStore, proxy: Proxy, other: ObjectStore) -> None:
    base = store.commit("job", {"a": "1", "b": "1"}).entries
    proxy.calls.clear()
    proxy.script("PUT", after(lambda: other.commit("job", {"b": "2"})), after(lambda: other.commit("job", {"c": "2"})))
    receipt = store.commit("job", {"a": "2"}, {"a": base["a"]})
    assert proxy.calls == ["GET", "PUT", "GET", "PUT", "GET", "GET", "PUT"]  # after the second one there is a pause
    assert (receipt.requests, receipt.retries) == (7, 2)
    assert receipt.entries["a"].version == 4
    assert values(store) == {"a": "2", "b": "2", "c": "2"}
    assert receipt.entries["a"] == store.load("job")["a"]


def test_a_crowd_of_writers_all_get_their_turn(s3: str) -> None:
    def write(number: int) -> int:
        store = ObjectStore(s3)
        return sum(store.commit("job", {f"{number}": f"{count}"}).retries for count in range(40))

    ObjectStore(s3).commit("job", {"0": "0"})
    with ThreadPoolExecutor(8) as pool:
        retries = sum(pool.map(write, range(8)))
    assert retries > 0
    assert values(ObjectStore(s3)) == {f"{number}": "39" for number in range(8)}


def test_whoever_never_gets_a_turn_is_told_what_to_do(store: ObjectStore, proxy: Proxy) -> None:
    store._deadline = 3.0
    proxy.forever["PUT"] = answers(412)
    with pytest.raises(StoreUnavailable) as caught:
        store.commit("job", {"a": "1"})
    found = re.fullmatch(
        r".*/job\.json: gave up after \d+ attempts in \d\.\d s: no time was left to write; another run wrote the "
        r"namespace first, (\d+) times: commit with commit_soon, which lets others go first, give each worker a "
        r"namespace of its own, or add \?deadline=180 to the store's URL",
        str(caught.value),
    )
    assert found is not None, caught.value
    assert int(found[1]) == proxy.calls.count("PUT") > 4  # the pauses stay short beside what a put takes


def test_the_first_object_of_a_namespace_is_created_once(store: ObjectStore, proxy: Proxy, other: ObjectStore) -> None:
    proxy.script("PUT", after(lambda: other.commit("job", {"b": "1"})))
    store.commit("job", {"a": "1"}, {"a": None})
    assert {key: entry.version for key, entry in store.load("job").items()} == {"a": 2, "b": 1}


def ignoring(*headers: str) -> Callable[[Request], None]:
    """Return a fault that drops conditions, as some services and proxies do."""

    def fault(request: Request) -> None:
        for name in [name for name in request.headers if name.lower() in headers]:
            del request.headers[name]
        passed(request)

    return fault


@pytest.mark.parametrize("ignored", [("if-match",), ("if-none-match",), ("if-match", "if-none-match")])
def test_fault_87_a_bucket_that_ignores_conditions_is_refused(
    store: ObjectStore, proxy: Proxy, other: ObjectStore, monkeypatch: pytest.MonkeyPatch, ignored: tuple[str, ...]
) -> None:
    monkeypatch.setattr(bucket.Bucket, "checked", False)
    proxy.forever["PUT"] = ignoring(*ignored)
    header = "If-Match" if "if-match" in ignored else "If-None-Match"
    with pytest.raises(StoreError, match=f"the service ignores {header}, so runs could overwrite"):
        store.commit("job", {"a": "1"}, {"a": None})
    if header == "If-Match":
        assert other.load("job") == {}


def test_fault_87_a_bucket_is_checked_once(store: ObjectStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket.Bucket, "checked", False)
    base = store.commit("job", {"a": "1"}).entries
    assert proxy.calls == ["GET", "PUT", "PUT", "PUT"]
    store.commit("job", {"a": "2"}, base)
    store.commit("other", {"a": "1"}, {"a": None})
    assert proxy.calls[4:] == ["GET", "PUT", "GET", "PUT"]
    assert values(store) == {"a": "2"}


# Credentials


def test_a_credential_provider_is_asked_and_its_failure_told(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    asked: list[str] = []

    def provide() -> dict[str, Any]:
        asked.append("once")
        return {"access_key_id": "me", "secret_access_key": "secret-of-mine", "expires_at": None}

    store = ObjectStore(s3, credential_provider=provide)
    store.commit("job", {"a": "1"})
    assert (values(store), asked) == ({"a": "1"}, ["once"])
    assert "secret-of-mine" not in repr(store)

    def fail() -> dict[str, Any]:
        raise LookupError("secret-of-mine")

    with pytest.raises(Unauthorized, match="the credential provider failed with LookupError; it is called") as caught:
        ObjectStore(s3, credential_provider=fail).load("job")
    assert "secret-of-mine" not in "".join(traceback.format_exception(caught.value))


def test_the_profile_of_boto3_gives_the_credentials(
    s3: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "credentials"
    file.write_text("[elsewhere]\naws_access_key_id = theprofile\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "elsewhere")
    store = ObjectStore(s3)
    store.commit("job", {"a": "1"})
    assert values(store) == {"a": "1"}
    assert all("Credential=theprofile/" in request for request in proxy.signed)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(Unauthorized, match="the AWS profile cannot be used: .*nobody"):
        ObjectStore(s3).load("job")


class Portal(BaseHTTPRequestHandler):
    """The portal of an AWS single sign-on: it gives the credentials of a role to whoever has signed in."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        signed_in = self.headers["x-amz-sso_bearer_token"] == "signed-in"
        role = {"accessKeyId": "thesso", "secretAccessKey": "secret", "sessionToken": "session", "expiration": 4e12}
        body = json.dumps({"roleCredentials": role} if signed_in else {"message": "Session token not found"}).encode()
        self.send_response(200 if signed_in else 401)
        self.send_header("Content-Type", "application/json")
        if not signed_in:
            self.send_header("x-amzn-ErrorType", "UnauthorizedException")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def portal() -> Iterator[str]:
    Portal.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Portal) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("token", ["signed-in", "ended", None])
def test_a_single_sign_on_gives_the_credentials(
    s3: str, proxy: Proxy, portal: str, tmp_path: Path, token: str | None
) -> None:
    """In a process of its own: botocore remembers the home folder from when it is imported."""
    pytest.importorskip("boto3")
    cache = tmp_path / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    (tmp_path / ".aws" / "config").write_text(
        "[profile work]\nsso_session = company\nsso_account_id = 111122223333\nsso_role_name = Sync\n"
        "[sso-session company]\nsso_start_url = https://company.awsapps.com/start\nsso_region = us-east-1\n"
        "sso_registration_scopes = sso:account:access\n"
    )
    if token is not None:
        name = sha1(b"company", usedforsecurity=False).hexdigest()
        session = {"accessToken": token, "expiresAt": "2999-01-01T00:00:00Z"}
        (cache / f"{name}.json").write_text(json.dumps(session))
    environment = {name: value for name, value in os.environ.items() if "ACCESS_KEY" not in name}
    environment |= {"HOME": str(tmp_path), "AWS_PROFILE": "work", "AWS_ENDPOINT_URL_SSO": portal}
    job = """
        import sys
        from checkpoint import ObjectStore, Unauthorized
        try:
            ObjectStore(sys.argv[1]).commit("job", {"a": "1"})
        except Unauthorized as error:
            print(error)
        else:
            print("committed")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(job), s3],
        env=environment, check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if token == "signed-in":
        assert done.stdout == "committed\n"
        assert Portal.asked == ["/federation/credentials?role_name=Sync&account_id=111122223333"]
        assert proxy.signed
        assert all("Credential=thesso/" in request for request in proxy.signed)
    else:
        assert re.search("the credential provider failed with (Unauthorized)?SSOToken.*`aws sso login`", done.stdout)
        assert not proxy.signed
    assert "secret" not in done.stdout + done.stderr
    assert "ended" not in done.stdout


def test_a_profile_without_boto3_says_what_to_install(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "elsewhere")
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(StoreError, match="AWS_PROFILE is set, and profiles need boto3: pip install boto3"):
        ObjectStore(s3).load("job")


def test_a_deadline_in_the_url_bounds_a_load(s3: str, proxy: Proxy) -> None:
    proxy.forever["GET"] = answers(503)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="gave up after"):
        ObjectStore(f"{s3}/a?deadline=2").load("job")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("theirs", ["2", None])
def test_the_same_key_changed_meanwhile_is_a_conflict(
    store: ObjectStore, proxy: Proxy, other: ObjectStore, theirs: str | None
) -> None:
    base = store.commit("job", {"a": "1", "b": "1"}).entries
    proxy.script("PUT", after(lambda: other.commit("job", {"a": theirs})))
    with pytest.raises(Conflict) as caught:
        store.commit("job", {"a": "3", "b": "3"}, base)
    found = other.load("job")
    assert caught.value.args == ("job", "a", base["a"], found.get("a"))
    assert found["b"] == base["b"]


def test_an_object_taken_away_meanwhile_is_created_again(
    store: ObjectStore, proxy: Proxy, raw: Callable[..., bytes]
) -> None:
    def take_away() -> None:
        raw(delete=True)

    store.commit("job", {"a": "1"})
    proxy.script("PUT", after(take_away))
    store.commit("job", {"b": "1"})
    assert values(store) == {"b": "1"}
    proxy.script("PUT", after(take_away))
    with pytest.raises(Conflict) as caught:
        store.commit("job", {"b": "2"}, store.load("job"))
    assert caught.value.found is None
    assert store.load("job") == {}
    assert store.commit("job", {"a": "2"}, {"a": None}).entries["a"].version == 1


def test_an_object_made_anew_meanwhile_is_another_one(
    store: ObjectStore, raw: Callable[..., bytes], other: ObjectStore
) -> None:
    base = store.commit("job", {"a": "1"}).entries
    raw(delete=True)
    found = other.commit("job", {"a": "theirs"}).entries["a"]
    assert found.version == base["a"].version
    with pytest.raises(Conflict) as caught:
        store.commit("job", {"a": "2"}, base)
    assert caught.value.args == ("job", "a", base["a"], found)
    assert values(store) == {"a": "theirs"}


def test_ctrl_c_waits_for_no_look_at_an_object(store: ObjectStore, proxy: Proxy, other: ObjectStore) -> None:
    for number in range(3):
        other.commit(f"job {number}", {"a": "1"})
    real, looked = proxy.hang, Event()

    def look(request: Request) -> None:
        if "list-type" in request.path:
            passed(request)
        else:
            looked.set()
            real(request)

    proxy.forever["GET"] = look
    main = threading.main_thread().ident
    Thread(target=lambda: looked.wait(30) and signal.pthread_kill(main, signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        store.namespaces()
    assert time.monotonic() - began < 10  # a look has 15 s
    proxy.closing.set()
    del proxy.forever["GET"]
    assert store.namespaces() == ["job 0", "job 1", "job 2"]


def test_fault_42_no_update_of_several_processes_is_lost(store: ObjectStore) -> None:
    def count(worker: int) -> None:
        for number in range(4):
            written = False
            while not written:
                entry = store.load("job").get("count")
                total = int(entry.value.split()[0]) + 1 if entry else 1
                with suppress(Conflict):
                    changes = {"count": f"{total} by {worker}", f"own {worker}": str(number)}
                    store.commit("job", changes, {"count": entry})
                    written = True

    store.load("job")
    in_children(8, count)
    found = values(store)
    assert found.pop("count").startswith("32 by ")
    assert found == {f"own {worker}": "3" for worker in range(8)}


# What became of a put


REFUSED = [answers(409, "ConditionalRequestConflict"), answers(412, "PreconditionFailed")]


@pytest.mark.parametrize(
    "fault",
    [
        *REFUSED,
        *(answers(status) for status in (408, 429, 500, 502, 503, 504)),
        dropped,
    ],
)
def test_a_put_that_was_not_done_is_sent_again(store: ObjectStore, proxy: Proxy, fault: Any) -> None:
    base = store.commit("job", {"a": "1"}).entries
    proxy.calls.clear()
    proxy.script("PUT", fault, fault)
    receipt = store.commit("job", {"a": "2"}, base)
    looked = ["GET"] if fault in REFUSED else []  # after the second refusal, before the pause
    assert proxy.calls == ["GET", "PUT", "GET", "PUT", *looked, "GET", "PUT"]
    assert receipt == ({"a": store.load("job")["a"]}, len(proxy.calls) - 1, 2, frozenset())
    assert receipt.entries["a"].version == 2


@pytest.mark.parametrize(
    "fault",
    [
        applied_and_dropped,
        repeated,
        *(answers(status, applied=True) for status in (408, 409, 412, 429, 500, 502, 503, 504)),
    ],
)
@pytest.mark.parametrize("existing", [True, False])
def test_a_put_that_was_done_is_recognised(store: ObjectStore, proxy: Proxy, fault: Any, existing: bool) -> None:
    base = store.commit("job", {"a": "1"}).entries if existing else {"a": None}
    proxy.calls.clear()
    proxy.script("PUT", fault)
    receipt = store.commit("job", {"a": "2", "gone": None}, base)
    assert proxy.calls == ["GET", "PUT", "GET"]
    assert receipt == (store.load("job"), 3, 1, frozenset())
    assert receipt.entries["a"].version == (2 if existing else 1)


def test_a_put_whose_answer_never_comes_is_recognised(
    store: ObjectStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "TIMEOUT", 0.5)

    def applied_and_hanging(request: Request) -> None:
        request.apply()
        proxy.hang(request)

    proxy.script("PUT", applied_and_hanging)
    receipt = store.commit("job", {"a": "1"}, {"a": None})
    assert receipt.entries == store.load("job")
    assert receipt.retries == 1


def test_a_put_that_was_done_and_overwritten_is_no_conflict(
    store: ObjectStore, proxy: Proxy, other: ObjectStore
) -> None:
    base = store.commit("job", {"count": "1"}).entries

    def count_on(request: Request) -> None:
        request.apply()
        found = other.load("job")
        other.commit("job", {"count": "3"}, found)
        request.drop()

    proxy.script("PUT", count_on)
    receipt = store.commit("job", {"count": "2"}, base)
    assert (receipt.entries["count"].value, receipt.entries["count"].version) == ("2", 2)
    assert values(store) == {"count": "3"}


def test_a_put_that_lands_after_it_was_looked_for_is_recognised(store: ObjectStore, proxy: Proxy) -> None:
    base = store.commit("job", {"a": "1"}).entries
    late: list[Request] = []

    def keep(request: Request) -> None:
        late.append(request)
        request.drop()

    def look_and_land(request: Request) -> None:
        answer = request.apply()
        assert late[0].apply().status == 200
        request.send(answer)

    proxy.calls.clear()
    proxy.script("PUT", keep)
    proxy.script("GET", passed, look_and_land)
    receipt = store.commit("job", {"a": "2"}, base)
    assert proxy.calls == ["GET", "PUT", "GET", "PUT", "GET"]
    assert receipt.entries == store.load("job")
    assert receipt.entries["a"].version == 2


def test_a_put_that_too_many_others_followed_is_unknown(store: ObjectStore, proxy: Proxy, other: ObjectStore) -> None:
    def overtaken(count: int) -> Callable[[Request], None]:
        def fault(request: Request) -> None:
            request.apply()
            for number in range(count):
                other.commit("job", {"b": str(number)})
            request.drop()

        return fault

    proxy.script("PUT", overtaken(module.REMEMBERED - 1))
    assert store.commit("job", {"a": "1"}).entries["a"] == store.load("job")["a"]
    proxy.script("PUT", overtaken(module.REMEMBERED))
    with pytest.raises(CommitUnknown) as caught:
        store.commit("job", {"a": "2"})
    assert str(caught.value.__cause__).endswith(
        "/state/job.json: too many commits followed to find out whether this one was written"
    )
    proxy.script("PUT", after(lambda: [other.commit("job", {"b": "0"}) for _ in range(40)], answers(412)))
    with pytest.raises(CommitUnknown):
        store.commit("job", {"a": "3"})


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("looks", [answers(503), answers(403, "AccessDenied"), dropped, answers(404, "NoSuchBucket")])
def test_a_put_that_cannot_be_read_back_is_unknown(store: ObjectStore, proxy: Proxy, looks: Any) -> None:
    base = store.commit("job", {"a": "1", "b": "1"}).entries
    proxy.script("GET", passed)
    proxy.script("PUT", applied_and_dropped)
    proxy.forever["GET"] = looks
    with pytest.raises(CommitUnknown) as caught:
        store.commit("job", {"a": "2", "b": None}, base)
    assert (caught.value.keys, caught.value.unsettled) == (("a", "b"), {"a", "b"})
    assert isinstance(caught.value.__cause__, StoreError)
    proxy.forever.clear()
    assert values(store) == {"a": "2"}


@pytest.mark.usefixtures("impatient")
def test_a_put_that_may_land_yet_is_unknown(store: ObjectStore, proxy: Proxy) -> None:
    store.load("job")
    proxy.forever["PUT"] = dropped
    with pytest.raises(CommitUnknown) as caught:
        store.commit("job", {"a": "1"})
    assert re.search(r"gave up after \d+ attempts? in \d\.\d s", str(caught.value))


@pytest.mark.usefixtures("impatient")
def test_a_put_that_can_land_no_more_was_not_written(store: ObjectStore, proxy: Proxy, other: ObjectStore) -> None:
    proxy.script("PUT", after(lambda: other.commit("job", {"b": "1"}), dropped))
    proxy.forever["PUT"] = answers(403, "AccessDenied")
    with pytest.raises(Unauthorized):
        store.commit("job", {"a": "1"})
    assert values(store) == {"b": "1"}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_service_that_goes_on_refusing_is_unavailable(store: ObjectStore, proxy: Proxy, s3: str, method: str) -> None:
    proxy.forever[method] = answers(503, "SlowDown", "Reduce your request rate.")
    with pytest.raises(StoreUnavailable) as caught:
        store.commit("job", {"a": "1"})
    assert re.fullmatch(
        rf"{s3}/state/job\.json: gave up after 3 attempts in \d\.\d s: "
        rf"{proxy.url} answered 503 SlowDown: Reduce your request rate\.",
        str(caught.value),
    )
    assert proxy.calls == (["GET"] * 3 if method == "GET" else ["GET", "PUT"] * 3 + ["GET"])


def test_what_became_of_the_last_put_is_looked_for(
    store: ObjectStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    for number, fault in enumerate((applied_and_dropped, repeated, answers(503, applied=True))):
        proxy.calls.clear()
        proxy.script("PUT", fault)
        receipt = store.commit("job", {"a": str(number)})
        assert proxy.calls == ["GET", "PUT", "GET"]
        assert receipt == (store.load("job"), 3, int(fault is repeated), frozenset())
    for kind, *faults in (
        (StoreUnavailable, answers(503)),
        (StoreUnavailable, answers(412), answers(412)),
        (CommitUnknown, dropped),
    ):
        proxy.calls.clear()
        proxy.script("PUT", *faults)
        with pytest.raises(kind):
            store.commit("job", {"a": "not written"})
        assert proxy.calls == ["GET", "PUT"] * len(faults) + ["GET"]
    assert values(store) == {"a": "2"}


def test_the_deadline_keeps_the_time_for_a_look(
    store: ObjectStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ObjectStore, "_timeout", 15.0)
    store._deadline = 30.0
    with pytest.raises(StoreUnavailable, match=r"gave up after 1 attempt in \d\.\d s: no time was left to write"):
        store.commit("job", {"a": "1"})
    assert proxy.calls == ["GET"]
    store._deadline = 15.0
    proxy.forever["GET"] = answers(503)
    with pytest.raises(StoreUnavailable, match="gave up after 1 attempt in"):
        store.load("job")
    assert proxy.calls == ["GET"] * 2


def test_attempts_are_bounded(store: ObjectStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    assert module.DEADLINE == 60
    proxy.forever["GET"] = answers(500)
    with pytest.raises(StoreUnavailable, match="gave up after 1000 attempts"):
        store.load("job")
    assert proxy.calls == ["GET"] * 1000


@pytest.mark.usefixtures("impatient")
def test_a_service_that_cannot_be_reached_is_unavailable(
    store: ObjectStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.close()
    for call in (lambda: store.load("job"), lambda: store.commit("job", {"a": "1"}), store.namespaces):
        with pytest.raises(StoreUnavailable, match="error sending request: Connection refused"):
            call()


@pytest.mark.usefixtures("impatient")
def test_a_service_that_never_answers_is_given_up(
    store: ObjectStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "TIMEOUT", 0.1)
    proxy.forever["GET"] = proxy.hang
    with pytest.raises(StoreUnavailable, match="TimedOut"):
        store.load("job")
    with pytest.raises(StoreUnavailable, match="TimedOut"):
        store.commit("job", {"a": "1"})
    assert set(proxy.calls) == {"GET"}


def test_a_cut_off_answer_is_asked_for_again(store: ObjectStore, proxy: Proxy, other: ObjectStore) -> None:
    entries = other.commit("job", {"a": "1"}).entries

    def cut(request: Request) -> None:
        request.send(request.apply(), cut=2)
        request.drop()

    proxy.script("GET", cut)
    assert store.load("job") == entries
    assert proxy.calls == ["GET", "GET"]


# What is refused


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (answers(404, "NoSuchBucket", "It does not exist"), "answered 404 NoSuchBucket: It does not exist"),
        (answers(404, text="<html>a proxy's"), 'answered 404 "<html>a proxy\'s"'),
        (answers(404), "answered 404 ''"),
        (answers(400, "InvalidRequest", "no"), "answered 400 InvalidRequest: no"),
        (answers(501, "NotImplemented", "no"), "answered 501 NotImplemented: no"),
    ],
)
def test_a_refusal_is_an_error_at_once(store: ObjectStore, proxy: Proxy, s3: str, answer: Any, said: str) -> None:
    store.load("job")
    for method, call in (("GET", store.load), ("PUT", lambda key: store.commit(key, {"a": "1"}))):
        proxy.calls.clear()
        proxy.script(method, answer)
        with pytest.raises(StoreError) as caught:
            call("job")
        assert type(caught.value) is StoreError
        assert str(caught.value) == f"{s3}/state/job.json: {proxy.url} {said}"
        assert proxy.calls == (["GET"] if method == "GET" else ["GET", "PUT"])
    assert store.load("job") == {}


def test_a_missing_bucket_is_an_error_and_not_empty(s3: str) -> None:
    store = ObjectStore("s3://no-such-bucket/state")
    calls = (lambda: store.load("job"), lambda: store.commit("job", {"a": "1"}), store.namespaces)
    for call, name in zip(calls, ("job.json", "job.json", ""), strict=True):
        with pytest.raises(StoreError) as caught:
            call()
        assert str(caught.value).startswith(f"s3://no-such-bucket/state/{name}: ")
        assert "404" in str(caught.value)
        assert "NoSuchBucket" in str(caught.value)


@pytest.mark.parametrize("answer", [answers(401), answers(403, "AccessDenied", "no"), answers(400, "ExpiredToken")])
def test_missing_permission_is_told_at_once(store: ObjectStore, proxy: Proxy, answer: Any) -> None:
    store.load("job")
    for method, call in (("GET", store.load), ("PUT", lambda key: store.commit(key, {"a": "1"}))):
        proxy.calls.clear()
        proxy.script(method, answer)
        with pytest.raises(Unauthorized, match="check the credentials and their permissions"):
            call("job")
        assert proxy.calls == (["GET"] if method == "GET" else ["GET", "PUT"])


def test_an_answer_without_an_etag_is_refused(store: ObjectStore, proxy: Proxy) -> None:
    proxy.script("GET", lambda request: request.send(Answer(200, {}, b"{}")))
    with pytest.raises(StoreError, match="the service sent no ETag, which is needed to detect other writers"):
        store.load("job")


def test_half_a_credential_is_told(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError) as caught:
        store.load("job")
    assert str(caught.value) == f"{s3}/state/job.json: Generic S3 error: Missing SecretAccessKey"


def test_plain_http_must_be_allowed(store: ObjectStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreError, match="BadScheme"):
        store.load("job")
    assert proxy.calls == []


def test_a_certificate_that_is_not_trusted_is_told_at_once(
    store: ObjectStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pytest.importorskip("trustme").CA().issue_cert("127.0.0.1").configure_cert(context)
    proxy.server.socket = context.wrap_socket(proxy.server.socket, server_side=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url.replace("http:", "https:"))
    with pytest.raises(StoreError, match="error sending request: UnknownIssuer$") as caught:
        store.load("job")
    assert type(caught.value) is StoreError
    assert proxy.calls == []


# Secrets


def everything(error: BaseException | None) -> str:
    """Return what an error and all those behind it show: texts, pickles, and the locals of the library's frames."""
    seen: list[object] = []
    behind: set[int] = set()
    while error is not None and id(error) not in behind:
        behind.add(id(error))
        seen += ["".join(traceback.format_exception(error)), repr(error)]
        seen += [pickle.dumps(error)] if isinstance(error, CheckpointError) else []
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        seen += [repr(frame.f_locals) for frame in frames if "/checkpoint/stores/" in frame.f_code.co_filename]
        error = error.__cause__ or error.__context__
    return repr(seen)


@pytest.mark.usefixtures("impatient")
def test_credentials_are_shown_nowhere(
    s3: str,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    secrets = {name: f"hidden-{name.lower()}" for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")}
    for name, value in secrets.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    echo = " and ".join(secrets.values())
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    for answer in (
        passed,
        answers(403, "SignatureDoesNotMatch", echo),
        answers(400, text=echo),
        answers(503, text=echo),
        answers(404, text=echo),
        dropped,
    ):
        store = ObjectStore(f"{s3}/state")
        proxy.forever["GET"] = answer
        for call in (lambda store: store.load("job"), lambda store: store.commit("job", {"a": "1"})):
            try:
                call(store)
            except CheckpointError as error:
                seen.append(everything(error))
        seen.append(repr(store))
    assert len(seen) == 6 + 10
    captured = capfd.readouterr()
    assert "hidden" not in "".join([*seen, caplog.text, captured.out, captured.err])


# Forks


def test_fault_43_each_forked_process_has_its_connections(store: ObjectStore) -> None:
    store.commit("job", {"parent": "1"})

    def grandchild(number: int) -> None:
        store.commit("job", {f"grandchild {number}": "1"})
        assert "parent" in store.load("job")

    def child(number: int) -> None:
        store.commit("job", {f"child {number}": "1"})
        in_children(1, lambda _: grandchild(number))
        again = ObjectStore(repr(store).split("'")[1])
        again.commit("job", {f"child {number}": "2"})
        store.close()
        assert store.load("job")[f"child {number}"].value == "2"

    in_children(2, child)
    store.commit("job", {"parent": "2"})
    assert values(store) == {
        "parent": "2",
        **{f"child {number}": "2" for number in range(2)},
        **{f"grandchild {number}": "1" for number in range(2)},
    }


def test_a_forked_process_in_which_it_cannot_work_says_so(store: ObjectStore) -> None:
    store.load("job")

    def child(_: int) -> None:
        tempfile.tempdir = os.path.devnull
        with pytest.raises(StoreError, match="does not work in a forked process") as caught:
            store.load("job")
        assert str(caught.value).endswith("the start method 'spawn'")

    in_children(1, child)
    assert store.load("job") == {}


# Google and Azure


class Cloud(Proxy):
    """As much of Google's and Azure's protocols as the store asks for, with their own conditions."""

    def __init__(self) -> None:
        super().__init__("")
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.conditions: list[str] = []
        self.forever = {"GET": self.get, "PUT": self.put}

    def get(self, request: Request) -> None:
        path = request.path.partition("?")[0]
        if path not in self.objects:
            answers(404, "BlobNotFound" if "/container/" in path else "NoSuchKey")(request)
            return
        version, body = self.objects[path]
        request.send(Answer(200, self.headers(version), body))

    def put(self, request: Request) -> None:
        path = request.path.partition("?")[0]
        version = self.objects[path][0] if path in self.objects else 0
        sent = {name.lower(): value for name, value in request.headers.items()}
        conditions = {
            f"{name}: {sent[name]}"
            for name in ("if-match", "if-none-match", "x-goog-if-generation-match")
            if name in sent
        }
        self.conditions += sorted(conditions)
        holds = {f'if-match: "{version}"', f"x-goog-if-generation-match: {version}"}
        if not conditions & (holds | (set() if version else {"if-none-match: *"})):
            answers(412, "ConditionNotMet")(request)
            return
        self.objects[path] = (version + 1, request.body)
        request.send(Answer(201, self.headers(version + 1), b""))

    def headers(self, version: int) -> dict[str, str]:
        modified = {"Last-Modified": "Wed, 01 May 2024 10:00:00 GMT"}
        return {"ETag": f'"{version}"', "x-goog-generation": str(version), **modified}


@contextmanager
def cloud(monkeypatch: pytest.MonkeyPatch, url: str) -> Iterator[tuple[Cloud, ObjectStore]]:
    pytest.importorskip("obstore")
    server = Cloud()
    key = "aGlkZGVu"  # of no account
    for name, value in {
        "GOOGLE_BASE_URL": server.url,
        "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(
            {
                "gcs_base_url": server.url,
                "disable_oauth": True,
                "client_email": "",
                "private_key": "",
                "private_key_id": "",
            }
        ),
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_STORAGE_ACCOUNT_KEY": key,
        "AZURE_STORAGE_ENDPOINT": server.url,
        "GOOGLE_ALLOW_HTTP": "true",
        "AZURE_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        yield server, ObjectStore(url)
    finally:
        server.close()


@pytest.mark.parametrize(
    ("url", "created", "replaced"),
    [
        ("gs://bucket/state", "x-goog-if-generation-match: 0", "x-goog-if-generation-match: 1"),
        ("az://container/state", "if-none-match: *", 'if-match: "1"'),
    ],
)
def test_google_and_azure_write_on_condition_too(
    monkeypatch: pytest.MonkeyPatch, url: str, created: str, replaced: str
) -> None:
    with cloud(monkeypatch, url) as (server, store):
        assert store.load("job") == {}
        with freeze_time(NOW):
            base = store.commit("job", {"a": "1"}, {"a": None}).entries
        assert base == {"a": Entry("a", "1", NOW, NOW, None, 1)}
        store.commit("job", {"a": "2"}, base)
        assert values(store) == {"a": "2"}
        with pytest.raises(Conflict):
            store.commit("job", {"a": "3"}, base)
        assert server.conditions == [created, replaced]


def test_a_signature_in_an_address_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with cloud(monkeypatch, "az://container/state") as (server, store):
        monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=2024-01-01&sig=hidden%2Bsignature")
        monkeypatch.setattr(module, "ATTEMPTS", 1)
        asked: list[str] = []
        for fault in (answers(403, "AuthorizationFailure"), answers(404, text="no"), dropped):
            server.script("GET", lambda request, fault=fault: asked.append(request.path) or fault(request))
            with pytest.raises(StoreError) as caught:
                store.load("job")
            assert "hidden" not in everything(caught.value)
        assert ["sig=hidden%2Bsignature" in path for path in asked] == [True] * 3
