"""Guarantee 8: whatever a store waits for, one WARNING names the store and what it waits for, after three seconds.

The three seconds are a third of one here; each wait is real, and ends when the test says so.
"""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest
from test_objects import Proxy, answers

from checkpoint import CheckpointError, ServerStore, open_store
from checkpoint.stores import retrying, sqlite_file
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import Answer, ApiServer, Hang

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from checkpoint import Store

SILENCE = 0.3


class Wait(NamedTuple):
    """A store of which the next commit waits."""

    store: Store
    where: str
    """What the store is called in the WARNING."""
    why: str
    """What it says that it waits for."""
    end: Callable[[], object]
    """Ends the wait."""
    lands: bool = True
    """Whether the commit lands after that; else its deadline passes."""


def locked_file(request, tmp_path) -> Iterator[Wait]:
    """Another process holds the SQLite file."""
    path = tmp_path / "state.db"
    store = open_store(f"sqlite:///{path}")
    store.commit("job", {"a": "1"})
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE')"
    holding = f"{code}; print('held', flush=True); sys.stdin.read(); c.close()"
    command = [sys.executable, "-c", holding, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        why = "other connections keep it locked"
        yield Wait(store, str(path), why, process.stdin.close)
    store.close()


def locked_row(request, tmp_path) -> Iterator[Wait]:
    """Another transaction holds the namespace's row in PostgreSQL."""
    url = request.getfixturevalue("postgres_url")
    import psycopg

    plain, _, schema = url.partition("schema=")
    store = open_store(url)
    store.commit("job", {"a": "1"})
    with psycopg.connect(plain.rstrip("?&")) as other:
        other.execute(f"SELECT * FROM {schema}.checkpoint_namespaces FOR UPDATE")
        why = "no answer yet, others may hold its locks"
        yield Wait(store, "PostgreSQL (host=", why, other.rollback)
    store.close()


def silent_database(request, tmp_path) -> Iterator[Wait]:
    """Something takes connections to PostgreSQL, and never says a word."""
    pytest.importorskip("psycopg")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        store = open_store(f"postgresql://me@127.0.0.1:{port}/db?deadline=2.5&sslmode=disable")
        where = f"PostgreSQL (host=127.0.0.1 port={port} dbname=db user=me)"
        yield Wait(store, where, "the server does not answer yet", listener.close, lands=False)
    store.close()


def bucket(request, fault, why) -> Iterator[Wait]:
    pytest.importorskip("obstore")
    url = request.getfixturevalue("s3")
    proxy = Proxy(request.getfixturevalue("s3_server"))
    request.getfixturevalue("monkeypatch").setenv("AWS_ENDPOINT_URL", proxy.url)
    store = open_store(f"{url}/some")
    store.commit("job", {"a": "1"})
    proxy.forever["GET"] = fault(proxy)

    def end() -> None:
        del proxy.forever["GET"]
        proxy.closing.set()

    yield Wait(store, f"{url}/some/job.json", why, end)
    proxy.close()
    store.close()


def silent_bucket(request, tmp_path) -> Iterator[Wait]:
    """An object storage that does not answer."""
    yield from bucket(request, lambda proxy: proxy.hang, "the service does not answer yet")


def busy_bucket(request, tmp_path) -> Iterator[Wait]:
    """An object storage that answers 503."""
    yield from bucket(request, lambda _: answers(503, "SlowDown", "later"), r"http://.* answered 503 SlowDown: later")


def service(why, *script, **options) -> Iterator[Wait]:
    with ApiServer() as api:
        store = TrutoStore(api.url, api.token, deadline=20.0, **options)
        api.store.commit("job", {"a": "1"})
        if script:
            api.script(*script, forever=True)
        yield Wait(store, store._base_url, why, api.clear)
        store.close()


def silent_service(request, tmp_path) -> Iterator[Wait]:
    """An HTTP service that does not answer."""
    yield from service("no answer yet", Hang(), timeout=1.0)


def busy_service(request, tmp_path) -> Iterator[Wait]:
    """An HTTP service that answers 503."""
    yield from service("503 Busy: later", Answer(503, {"statusCode": 503, "error": "Busy", "message": "later"}))


def limited_service(request, tmp_path) -> Iterator[Wait]:
    """An HTTP service that says when to come again."""
    said = Answer(429, {"statusCode": 429, "error": "Slow", "message": "down"}, {"Retry-After": "1"})
    yield from service(r"429 Slow: down \(it asks to wait 1 s\)", said)


def shut_gate(request, tmp_path) -> Iterator[Wait]:
    """An HTTP service that told another operation of this process when to come again."""
    for wait in service("the service asked to wait"):
        wait.store._service._pace(wait.store._service._token.current()).shut(1.0, 20.0)
        yield wait


def silent_name_server(request, tmp_path) -> Iterator[Wait]:
    """A name that takes its time to be looked up."""
    found, real = threading.Event(), socket.getaddrinfo

    def look_up(host, port, *rest, **more):
        if host == "slow.example":
            found.wait(20)
            host = "127.0.0.1"
        return real(host, port, *rest, **more)

    request.getfixturevalue("monkeypatch").setattr(socket, "getaddrinfo", look_up)
    with ApiServer() as api:
        store = TrutoStore(api.url.replace("127.0.0.1", "slow.example"), api.token, deadline=20.0)
        yield Wait(store, store._base_url, "slow.example cannot be reached yet", found.set)
        found.set()
        store.close()


def silent_handshake(request, tmp_path) -> Iterator[Wait]:
    """Something takes connections for TLS, over which HTTP/1.1 would be spoken, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        store = TrutoStore(f"https://127.0.0.1:{listener.getsockname()[1]}", "token", timeout=1.0, deadline=2.0)
        store._service._clients._multiplexes = False
        why = "127.0.0.1 cannot be reached yet"
        yield Wait(store, store._base_url, why, listener.close, lands=False)
        store.close()


def silent_server(request, tmp_path) -> Iterator[Wait]:
    """Our own server, which takes a commit and does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        store = ServerStore(f"server+{url}", "token", timeout=1.0, deadline=2.0)
        yield Wait(store, url, "no answer yet", listener.close, lands=False)
        store.close()


WAITS = [
    locked_file,
    locked_row,
    silent_database,
    silent_bucket,
    busy_bucket,
    silent_service,
    busy_service,
    limited_service,
    shut_gate,
    silent_name_server,
    silent_handshake,
    silent_server,
]


class Told(logging.Handler):
    """Keeps the WARNINGs of the library, and lets a test wait for the first."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self.first = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        self.first.set()


@pytest.fixture
def told():
    handler, logger = Told(), logging.getLogger("checkpoint")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def wait(request, tmp_path):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        request.getfixturevalue("monkeypatch").delenv(name, raising=False)
        request.getfixturevalue("monkeypatch").delenv(name.upper(), raising=False)
    yield from request.param(request, tmp_path)


@contextmanager
def committing(store):
    """Commit in a thread of its own; yield where what it ended with comes."""
    ended: list[object] = []

    def commit() -> None:
        try:
            ended.append(store.commit("job", {"a": "2"}))
        except CheckpointError as error:
            ended.append(error)

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        yield ended
    finally:
        thread.join()


@pytest.mark.parametrize("wait", WAITS, indirect=True, ids=lambda wait: wait.__name__)
def test_a_wait_of_three_seconds_is_told(wait, told, monkeypatch):
    monkeypatch.setattr(retrying, "SILENCE", SILENCE)
    monkeypatch.setattr(sqlite_file, "SILENCE", SILENCE)
    with committing(wait.store) as ended:
        assert told.first.wait(15)
        assert ended == []  # while it waits, not once it has
        wait.end()
    assert len(told.texts) == 1
    said = rf"{re.escape(wait.where)}.*: no usable answer yet, trying for up to \d+ s: {wait.why}"
    assert re.match(said, told.texts[0])
    assert isinstance(ended[0], CheckpointError) != wait.lands


def test_what_takes_no_three_seconds_is_not_told(every_store, told):
    every_store.commit("job", {"a": "1"})
    assert told.texts == []


def test_it_is_three_seconds():
    assert retrying.SILENCE == 3.0
