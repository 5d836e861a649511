"""The HTTP store against the API's server over real sockets: the protocol's open questions, and its faults."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import pytest
from freezegun import freeze_time

from checkpoint import (
    Checkpointer,
    CommitUnknown,
    Conflict,
    PartialCommit,
    ServerStore,
    StoreError,
    StoreUnavailable,
    Unauthorized,
)
from checkpoint.codec import decode, encode
from checkpoint.entries import Entry
from checkpoint.stores import open_store
from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.network import Single
from checkpoint.stores.service import _work_off
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import Answer, ApiServer, Cut, Delay, Drop, Hang, Hook, Raw

A, B, C = {"at": 1}, {"at": 2}, {"at": 3}


def calls(api):
    return [(call.method, call.key) for call in api.requests]


def methods(api):
    return [call.method for call in api.requests]


def held(api, state_key="run"):
    return {key: decode(entry.value) for key, entry in api.store.load(state_key).items()}


def seed(api, **cursors):
    api.store.commit("run", {key: encode(cursor) for key, cursor in cursors.items()})


@pytest.fixture
def impatient(api):
    stores = []

    def make(deadline=1.0, timeout=0.3):
        stores.append(TrutoStore(api.url, api.token, deadline=deadline, timeout=timeout))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


# What is sent


def test_the_reference_example_goes_out_as_the_reference_has_it(api, truto):
    api.store.commit("sync_job_123", {"last_processed_id": encode({"id": "12345"})})
    with Checkpointer("sync_job_123", truto) as cp:
        cp["last_processed_id"] = {"id": "67890", "timestamp": "2023-02-01T00:00:00Z"}
    patch = api.requests[-1]
    assert (patch.method, patch.path, patch.query) == (
        "PATCH",
        "/sync-job-run-state/last_processed_id",
        "state_key=sync_job_123",
    )
    assert patch.body == (b'{"value":"eyJpZCI6IjY3ODkwIiwidGltZXN0YW1wIjoiMjAyMy0wMi0wMVQwMDowMDowMFoifQ=="}')
    assert patch.headers["authorization"] == "Bearer test-token"
    assert patch.headers["content-type"] == "application/json"


def test_a_run_that_changes_nothing_is_one_get(api, truto):
    seed(api, a=A)
    with Checkpointer("run", truto) as cp:
        cp["a"] = dict(cp["a"])
    assert [(call.method, call.path, call.query) for call in api.requests] == [
        ("GET", "/sync-job-run-state", "state_key=run")
    ]


def test_one_changed_key_of_twenty_is_one_patch(api, truto):
    seed(api, **{f"k{n}": {"n": n} for n in range(20)})
    with Checkpointer("run", truto) as cp:
        for key in cp:
            cp[key] = cp[key] | ({"n": -1} if key == "k7" else {})
        commit = cp.commit()
    assert (commit.keys, commit.requests, commit.retries) == (("k7",), 2, 0)
    assert calls(api) == [("GET", None), ("GET", "k7"), ("PATCH", "k7")]


def test_a_new_key_is_posted_at_once(api, truto):
    with Checkpointer("run", truto) as cp:
        cp["a"] = A
    assert calls(api) == [("GET", None), ("GET", "a"), ("POST", "a")]
    assert api.requests[-1].body == b'{"key":"a","value":"%s"}' % encode(A).encode()


def test_overwriting_skips_the_look(api, truto):
    seed(api, a=A)
    with Checkpointer("run", truto, on_conflict="overwrite") as cp:
        cp["a"] = B
        cp["b"] = B
    assert sorted(calls(api)[1:]) == [("PATCH", "a"), ("POST", "b")]


def test_many_keys_are_looked_at_with_one_list(api, truto):
    seed(api, **{f"k{n}": {"n": n} for n in range(30)})
    with Checkpointer("run", truto) as cp:
        for key in cp:
            cp[key] = {"n": -1}
        assert cp.commit().requests == 31
    assert methods(api).count("GET") == 2


def test_requests_go_in_parallel_up_to_concurrency(api):
    seed(api, **{f"k{n}": {"n": n} for n in range(12)})
    together = threading.Barrier(4, timeout=10)
    api.script(Hook(before=together.wait), method="PATCH", forever=True)
    store = TrutoStore(api.url, api.token, concurrency=4)
    with Checkpointer("run", store) as cp:
        for key in cp:
            cp[key] = {"n": -1}
        assert len(cp.commit().keys) == 12
    assert together.n_waiting == 0
    store.close()


def test_a_single_key_needs_no_pool_of_threads(api, truto):
    before = set(threading.enumerate())
    with Checkpointer("run", truto) as cp:
        cp["a"] = A
        cp.commit()
        assert [thread.name for thread in set(threading.enumerate()) - before if "asyncio" not in thread.name] == [
            "checkpoint-calls"  # the main thread's, where no signal handler runs
        ]


def test_connections_are_kept(api, truto):
    accepted = len(api._transports)
    with Checkpointer("run", truto) as cp:
        for at in range(5):
            cp["a"] = {"at": at}
            cp.commit()
        assert len(api._transports) - accepted == 1


def test_a_commit_opens_a_connection_a_key_and_keeps_them(api, truto):
    seed(api, **{f"k{n}": {"n": n} for n in range(4)})
    accepted = len(api._transports)
    together = threading.Barrier(4, timeout=10)
    api.script(Hook(before=together.wait), method="PATCH", forever=True)
    with Checkpointer("run", truto) as cp:
        for number in range(3):
            for key in cp:
                cp[key] = {"n": number - 9}
            assert len(cp.commit().keys) == 4
    assert len(api._transports) - accepted == 4


@pytest.mark.parametrize("closed", [False, True])
def test_a_first_commit_opens_connections_during_its_look(api, truto, closed):
    """What the service has closed before the look ends is opened again, and no write is in doubt."""
    seed(api, a=A, b=A, c=A)
    accepted = {*api._transports}

    def look():
        ends = time.monotonic() + 10
        while len(opened := {*api._transports} - accepted) < 3 and time.monotonic() < ends:
            time.sleep(0.001)
        seen.append(len(opened))
        for one in [each for each in opened if closed and each not in first]:
            api._loop.call_soon_threadsafe(api._transports[one].close)
        while closed and len({*api._transports} - accepted) > 1:
            time.sleep(0.001)

    seen = []
    with Checkpointer("run", truto) as cp:
        first = {*api._transports}
        api.script(Hook(before=look), method="GET")
        for key in cp:
            cp[key] = B
        commit = cp.commit()
    assert seen == [3]
    assert (len(commit.keys), commit.requests, commit.retries) == (3, 4, 0)


def test_a_connection_opened_ahead_is_not_waited_for_too_long(api, monkeypatch):
    """The service accepts, and nothing is heard of the second connection."""
    seed(api, a=A, b=A)
    api.set(latency=0.2)  # neither key's turn on the first connection comes before the other key has begun
    opened = threading.Event()

    def open_ahead(_):
        opened.wait(10)

    monkeypatch.setattr(Single, "open_ahead", open_ahead)
    store = TrutoStore(api.url, api.token, deadline=1, timeout=1)
    with closing(store), Checkpointer("run", store) as cp:
        cp["a"], cp["b"] = B, B
        begun = time.monotonic()
        with pytest.raises(PartialCommit, match="timed out"):
            cp.commit()
        took = time.monotonic() - begun
        api.set(latency=0)
        opened.set()
        cp.commit()
    assert took < 5


def test_a_closed_idle_connection_is_not_written_to(api, truto):
    seed(api, a=A)
    with Checkpointer("run", truto) as cp:
        cp["a"] = B
        for transport in list(api._transports.values()):
            api._loop.call_soon_threadsafe(transport.close)
        while api._transports:
            time.sleep(0.001)
        assert cp.commit().retries == 0
        assert methods(api) == ["GET", "GET", "PATCH"]


def test_an_open_idle_connection_is_used_again_over_tls_too(tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", cert)
    with ApiServer(ssl_certfile=cert, ssl_keyfile=key) as api:
        store = TrutoStore(api.url, api.token)
        for _ in range(3):
            store.load("run")  # with the first answer come tickets for later sessions
        assert len(api._transports) == 1
        for _ in range(3):
            store.commit("run", {"a": "x", "b": "x"})
        assert len(api._transports) <= 3
        store.close()


# The protocol's open questions


@pytest.mark.parametrize("existing", ["overwrites", 409, 400])
@pytest.mark.parametrize("missing", [404, "creates"])
def test_overwriting_lands_whatever_post_and_patch_do(api, truto, existing, missing):
    api.set(post_existing=existing, patch_missing=missing)
    seed(api, gone=A)
    with Checkpointer("run", truto, on_conflict="overwrite") as cp:
        api.store.commit("run", {"new": encode(A), "gone": None})
        cp["new"] = B
        cp["gone"] = B
    assert held(api) == {"new": B, "gone": B}


@pytest.mark.parametrize("answer", ["empty", 404])
def test_an_unknown_namespace_is_no_state(api, truto, answer):
    api.set(unknown_namespace=answer)
    assert truto.load("nowhere") == {}


def test_a_stale_list_does_not_outweigh_our_own_writes(api, truto):
    seed(api, a=A, b=A)
    api.set(stale_list=True)
    with Checkpointer("run", truto) as cp:
        for at in range(5, 8):
            cp["a"], cp["b"] = {"at": at}, {"at": at}
            cp.commit()
    assert held(api) == {"a": {"at": 7}, "b": {"at": 7}}


@pytest.mark.parametrize("answer", [404, 200])
def test_deleting_what_is_gone_is_success(api, truto, answer):
    api.set(delete_missing=answer)
    seed(api, a=A)
    with Checkpointer("run", truto, on_conflict="overwrite") as cp:
        api.store.commit("run", {"a": None})
        del cp["a"]
        assert cp.commit().keys == ("a",)


def test_a_concurrent_writer_is_detected_and_nothing_is_written(api, truto):
    seed(api, a=A, b=A, c=A)
    with Checkpointer("run", truto) as cp:
        cp["a"] = cp["b"] = cp["c"] = B
        seed(api, b=C)
        with pytest.raises(Conflict) as caught:
            cp.commit()
        assert (caught.value.key, caught.value.expected.value, caught.value.found.value) == ("b", encode(A), encode(C))
        cp.discard()
    assert held(api) == {"a": A, "b": C, "c": A}


# Faults


@pytest.mark.parametrize("fault", [Drop(), Drop(reset=True), Cut(5), Cut(5, chunked=True), Raw(b"nonsense\r\n\r\n")])
def test_a_broken_answer_to_a_read_is_asked_for_again(api, truto, fault):
    seed(api, a=A)
    api.script(fault)
    assert {key: decode(entry.value) for key, entry in truto.load("run").items()} == {"a": A}
    assert len(api.requests) == 2


@pytest.mark.parametrize(
    "fault",
    [Drop(), Drop(reset=True), Drop(applied=True), Drop(applied=True, reset=True), Cut(5), Cut(5, chunked=True)],
)
@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_a_write_without_an_answer_is_read_back_first(api, truto, method, fault):
    if method != "POST":
        seed(api, a=A)
    with Checkpointer("run", truto) as cp:
        if method == "DELETE":
            del cp["a"]
        else:
            cp["a"] = B
        api.script(fault, method=method)
        commit = cp.commit()
        assert (commit.keys, commit.retries) == (("a",), 1)
        assert cp.changed == set()
    assert held(api) == ({} if method == "DELETE" else {"a": B})
    after = methods(api)[3:]
    landed = isinstance(fault, Cut) or fault.applied
    assert after == (["GET"] if landed else ["GET", method])


def test_overwriting_resends_an_unanswered_write_anyway(api, truto):
    seed(api, a=A)
    with Checkpointer("run", truto, on_conflict="overwrite") as cp:
        cp["a"] = B
        api.script(Hook(before=lambda: seed(api, a=C), then=Drop()), method="PATCH")
        cp.commit()
    assert held(api) == {"a": B}


def test_a_silent_service_is_given_up_within_the_deadline(api, impatient):
    store = impatient()
    api.script(Hang(), forever=True)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="ReadTimeout"):
        store.load("run")
    assert time.monotonic() - began < 3


def test_a_slow_answer_delays_one_key_and_not_the_others(api, truto):
    seed(api, **{f"k{n}": {"n": n} for n in range(8)})
    with Checkpointer("run", truto) as cp:
        for key in cp:
            cp[key] = {"n": -1}
        api.script(*[Delay(1.0)] * 8, method="PATCH")
        assert cp.commit().seconds < 6  # one after the other it is 8


# The rate


def test_the_rate_of_a_token_is_kept_without_a_single_429(api):
    api.set(rate=(20, 1.0))
    stores = [TrutoStore(api.url, api.token, rate=(20, 1.0)) for _ in range(2)]
    began = time.monotonic()
    for store in stores:
        with Checkpointer("run", store, on_conflict="overwrite") as cp:
            for n in range(25):
                cp[f"k{n}"] = {"store": id(store)}
    assert time.monotonic() - began >= 2
    assert {call.status for call in api.requests} == {200}
    for store in stores:
        store.close()


def test_a_commit_longer_than_a_window_warns(api, caplog):
    store = TrutoStore(api.url, api.token, rate=(10, 0.3))
    with caplog.at_level(logging.WARNING, "checkpoint"), Checkpointer("run", store) as cp:
        for n in range(30):
            cp[f"k{n}"] = {"n": n}
    assert [message.partition(" take")[0] for message in caplog.messages] == ["30 requests"]
    store.close()


# Construction, secrets, processes


def test_the_token_comes_from_the_environment(api, monkeypatch):
    monkeypatch.delenv("TRUTO_API_TOKEN", raising=False)
    with pytest.raises(ValueError, match="no API token: set TRUTO_API_TOKEN, or pass token="):
        TrutoStore(api.url)
    monkeypatch.setenv("TRUTO_API_TOKEN", api.token)
    with Checkpointer("run", api.url) as cp:
        cp["a"] = A
    assert held(api) == {"a": A}
    monkeypatch.setenv("TRUTO_API_TOKEN", "old")
    for token, origin in ((None, r" from \$TRUTO_API_TOKEN"), ("old", "")):
        with (
            closing(TrutoStore(api.url, token)) as store,
            pytest.raises(Unauthorized, match=f"refused the token{origin}: 401 "),
        ):
            store.load("run")


@pytest.mark.parametrize(
    "url", ["ftp://x", "https://", "api.truto.one", "https://u:p@x", "https://x?a=1", "https://x#a"]
)
def test_a_bad_base_url_is_refused(url):
    with pytest.raises(ValueError, match="the API's base URL"):
        TrutoStore(url, "token")


SECONDS = ("timeout", "deadline")
VALUES = [
    *[(name, value) for name in SECONDS for value in (0, -1.0, math.nan, math.inf, 1e300, 10**40)],
    *[("concurrency", value) for value in (0, -1)],
    *[("rate", value) for value in ((0, 1), (1, 0), (1, math.nan), (1, math.inf))],
]
TYPES = [
    *[(name, value) for name in (*SECONDS, "concurrency") for value in (True, None, "5", [5])],
    *[("concurrency", value) for value in (2.5, math.nan)],
    *[("rate", value) for value in ((2.5, 1), (True, 1), (1, "s"), (1, True), 5, None, (1, 2, 3))],
]


@pytest.mark.parametrize(
    ("error", "name", "value"), [*[(ValueError, *each) for each in VALUES], *[(TypeError, *each) for each in TYPES]]
)
def test_bad_numbers_are_refused(error, name, value):
    for kind in (TrutoStore, ServerStore) if name in SECONDS else (TrutoStore,):
        with pytest.raises(error, match=rf"\b{name} must be ") as caught:
            kind("https://api.invalid", token="token", **{name: value})
        assert type(caught.value) is error


@pytest.mark.parametrize("value", [10, 2.5, Fraction(5, 2)])
def test_numbers_of_any_type_are_taken(api, value):
    for kind in (TrutoStore, ServerStore):
        with closing(kind(api.url, token=api.token, timeout=value, deadline=4 * value)) as store:
            assert (store.load("run"), store.deadline) == ({}, 4 * value)


@pytest.mark.parametrize("url", [None, Path("/srv"), b"https://api.invalid", 5])
def test_a_base_url_that_is_no_text_is_refused(url):
    for kind, example in (TrutoStore, "https://api.truto.one"), (ServerStore, "server+https://checkpoint.example.com"):
        with pytest.raises(TypeError, match=re.escape(f" must be a str such as {example!r}, not {type(url).__name__}")):
            kind(url, "token")


def test_a_base_url_may_have_a_path(api):
    with TrutoStoreAt(f"{api.url}/prefix/", api.token) as store, pytest.raises(StoreError, match="404"):
        store.commit("run", {"a": encode(A)})
    assert api.requests[0].path == "/prefix/sync-job-run-state"


class TrutoStoreAt(TrutoStore):
    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_fault_43_a_child_forked_mid_count_counts_its_own(truto):
    throttle = truto._service._pace(truto._service._token.current())
    with throttle._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if throttle._lock.acquire(timeout=5) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fault_43_after_a_fork_both_have_own_connections(tmp_path):
    job = """
import os
from checkpoint.stores import http
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import ApiServer
import subprocess, sys
url, token = sys.argv[1:]
store = TrutoStore(url, token)
store.commit("run", {f"k{n}": "parent" for n in range(8)})
child = os.fork()
me = "child" if child == 0 else "parent"
for n in range(20):
    store.commit(me, {f"k{m}": f"{me} {n}" for m in range(8)})
    assert {entry.value for entry in store.load(me).values()} == {f"{me} {n}"}
store.close()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    with ApiServer() as api:
        subprocess.run([sys.executable, "-W", "ignore", "-c", job, api.url, api.token], check=True, timeout=60)
        assert {entry.value for entry in api.store.load("child").values()} == {"child 19"}


def test_fault_45_an_interrupted_commit_can_be_repeated(api, truto):
    seed(api, **{f"k{n}": {"n": n} for n in range(5)})
    with Checkpointer("run", truto) as cp:
        for key in cp:
            cp[key] = {"n": -1}
        api.script(Hook(after=lambda: os.kill(os.getpid(), 2)), method="PATCH")
        with pytest.raises(KeyboardInterrupt):
            cp.commit()
        assert truto._service._pools
        for key in cp:
            cp[key] = {"n": -2}
        cp.commit()
    assert held(api) == {f"k{n}": {"n": -2} for n in range(5)}


def test_fault_45_ctrl_c_waits_for_the_answer_to_a_single_write(api, truto):
    seed(api, a=A)
    with Checkpointer("run", truto) as cp:
        cp["a"] = B
        api.script(Hook(before=interrupt, then=Delay(0.2)), method="PATCH")
        with pytest.raises(KeyboardInterrupt):
            cp.commit()
        assert held(api) == {"a": B}
        assert methods(api) == ["GET", "GET", "PATCH"]
        cp["a"] = C
        assert cp.commit().keys == ("a",)
    assert held(api) == {"a": C}


def test_fault_45_a_second_ctrl_c_does_not_wait(api):
    store = TrutoStore(api.url, api.token, timeout=30)
    seed(api, a=A)
    with Checkpointer("run", store) as cp:
        cp["a"] = B

        def twice():
            interrupt()
            time.sleep(0.3)
            interrupt()

        api.script(Hook(before=twice, then=Hang()), method="PATCH")
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            cp.commit()
        assert time.monotonic() - began < 20
        cp.commit()
    assert held(api) == {"a": B}
    store.close()


def test_fault_95_a_signal_that_another_thread_got_comes_out(api):
    """It does not end the main thread's wait, and is noticed all the same."""

    def interrupted_elsewhere():
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    store = TrutoStore(api.url, api.token, timeout=30, deadline=30)
    api.script(Hook(before=interrupted_elsewhere, then=Hang()), method="GET")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        store.load("run")
    assert time.monotonic() - began < 20
    store.close()


@pytest.mark.parametrize("keys", [1, 3])
def test_fault_45_ctrl_c_ends_the_wait_for_a_retry_at_once(api, keys):
    def interrupt_later():
        while not any(call.status for call in api.requests):
            time.sleep(0.01)
        time.sleep(0.2)  # so that the answer is read
        interrupt()

    api.script(Answer(429, headers={"Retry-After": "30"}), forever=True)
    store = TrutoStore(api.url, api.token)
    thread = threading.Thread(target=interrupt_later, daemon=True)
    thread.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        store.commit("run", {f"k{n}": "x" for n in range(keys)})
    assert time.monotonic() - began < 20
    assert len(api.requests) <= keys
    thread.join()
    store.close()


@pytest.mark.parametrize("keys", [1, 3])
def test_fault_45_ctrl_c_ends_the_wait_for_the_rate_at_once(api, keys, caplog):
    class Waits(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("waiting") and not interrupts:  # several threads may say so
                interrupts.append(threading.Timer(0.2, interrupt))
                interrupts[0].start()

    store = TrutoStore(api.url, api.token, rate=(keys, 30.0))
    changes = {f"k{n}": "x" for n in range(keys)}
    store.commit("run", changes)
    caplog.set_level(logging.INFO, "checkpoint")
    interrupts, logger, waits = [], logging.getLogger("checkpoint"), Waits()
    logger.addHandler(waits)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        store.commit("run", changes)
    logger.removeHandler(waits)
    assert time.monotonic() - began < 20
    assert len(api.requests) == keys
    store.close()


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_urls_open_it(api, monkeypatch):
    monkeypatch.setenv("TRUTO_API_TOKEN", api.token)
    store = open_store(api.url + "/")
    assert repr(store) == f"TrutoStore('{api.url}')"
    store.close()


def test_an_entry_knows_when_and_by_whom_it_was_written(api, truto):
    MemoryStore.commit(api.store, "run", {"a": encode(A)}, run_id="5a0e")
    entry = truto.load("run")["a"]
    stored = api.store.load("run")["a"]
    assert entry == Entry("a", encode(A), stored.created_at, stored.updated_at, "5a0e", None)


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("status", [501, 507, 508])
def test_another_5xx_is_read_back_and_not_tried_again(api, truto, status, applied):
    seed(api, a=A)
    with Checkpointer("run", truto) as cp:
        cp["a"] = B
        api.script(Answer(status, applied=applied), method="PATCH")
        if applied:
            assert cp.commit().keys == ("a",)
        else:
            with pytest.raises(StoreError, match=f"refused 'a': {status}"):
                cp.commit()
            cp.discard()
    assert held(api) == {"a": B if applied else A}
    assert methods(api)[2:] == ["PATCH", "GET"]


@pytest.mark.parametrize("look", [Answer(429, headers={"Retry-After": "0"}), Answer(503), Drop()], ids=str)
@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_nothing_is_sent_before_a_doubt_is_read_back(api, truto, method, look):
    """Between an attempt of unknown outcome and the look that succeeds, another writer comes."""
    if method != "POST":
        seed(api, a=A)
    with Checkpointer("run", truto) as cp:
        if method == "DELETE":
            del cp["a"]
        else:
            cp["a"] = B
        api.script(Answer(507), method=method)
        api.script(None, look, Hook(before=lambda: seed(api, a=C)), method="GET", key="a")
        with pytest.raises(Conflict):
            cp.commit()
        cp.discard()
    assert held(api) == {"a": C}
    assert methods(api)[2:] == [method, "GET", "GET"]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_refusal_is_looked_up_before_anything_is_sent(api, truto, method):
    """The look is tried again, and not the write: another writer has come meanwhile."""
    if method == "PATCH":
        seed(api, a=A)
    with Checkpointer("run", truto) as cp:
        cp["a"] = B
        api.script(Answer(404 if method == "PATCH" else 409), method=method)
        api.script(
            None, Answer(429, headers={"Retry-After": "0"}), Hook(before=lambda: seed(api, a=C)), method="GET", key="a"
        )
        with pytest.raises(Conflict):
            cp.commit()
        cp.discard()
    assert held(api) == {"a": C}
    assert methods(api)[2:] == [method, "GET", "GET"]


def test_an_earlier_attempt_that_may_land_yet_stays_unknown(api):
    """The look after a refusal fails; what was sent before that has not been settled by it."""
    seed(api, a=A)
    with closing(TrutoStore(api.url, api.token, timeout=0.5, deadline=2.0)) as store:
        base = store.load("run")
        api.script(Drop(), Answer(404), method="PATCH")
        api.script(None, None, Answer(503), method="GET", key="a", forever=True)
        with pytest.raises(CommitUnknown) as caught:
            store.commit("run", {"a": "x"}, base)
        assert caught.value.unsettled == {"a"}


def test_an_attempt_refused_unclearly_may_land_after_a_late_look(api, truto):
    """Its look is tried again, finds it not done yet, and then it is sent again, in vain."""
    seed(api, a=A)
    base = truto.load("run")
    api.script(Answer(507), Answer(429, headers={"Retry-After": "3600"}), method="PATCH")
    api.script(None, Answer(503), method="GET", key="a")
    with pytest.raises(CommitUnknown) as caught:
        truto.commit("run", {"a": "x"}, base)
    assert caught.value.unsettled == {"a"}
    assert methods(api)[1:] == ["GET", "PATCH", "GET", "GET", "PATCH"]


@pytest.mark.parametrize("body", ["<html>", {"key": "b"}, {"value": "other"}], ids=str)
def test_a_write_with_an_unreadable_answer_is_unsettled(api, truto, body):
    api.script(Answer(200, body, applied=True), method="POST")
    with pytest.raises(StoreError) as caught:
        truto.commit("run", {"a": "x"})
    assert caught.value.unsettled == {"a"}


def test_after_a_refused_token_nothing_more_is_sent(api):
    seed(api, **{f"k{n}": {"n": n} for n in range(4)})
    store = TrutoStore(api.url, api.token, concurrency=4)
    together = threading.Barrier(4, timeout=10)
    api.script(
        Hook(before=together.wait, then=Answer(401)),
        *[Hook(before=together.wait, then=Delay(0.3, then=Drop()))] * 3,
        method="PATCH",
    )
    with Checkpointer("run", store) as cp:
        for key in cp:
            cp[key] = {"n": -1}
        with pytest.raises(Unauthorized) as caught:
            cp.commit()
        assert len(caught.value.unsettled) == 3
        assert methods(api)[2:] == ["PATCH"] * 4
        cp.discard()
    store.close()


@pytest.mark.parametrize("body", [{}, {"success": True}])
def test_a_json_body_that_echoes_nothing_is_success(api, truto, body):
    api.script(Answer(200, body, applied=True), method="POST")
    assert truto.commit("run", {"a": "x"}).entries == {"a": Entry("a", "x")}


def test_a_404_of_the_list_is_no_state_and_is_told(api, truto, caplog):
    api.set(unknown_namespace=404)
    assert truto.load("run") == {}
    assert caplog.messages == [
        f"{api.url} answered 404 for 'run', so it holds no state yet: check the base URL if it should"
    ]


def test_stores_of_one_token_share_the_gate_and_the_lower_rate(api, impatient):
    one, two = TrutoStore(api.url, api.token), TrutoStore(api.url, api.token, rate=(100, 10.0))
    paces = [store._service._pace(store._service._token.current()) for store in (one, two)]
    assert paces[0] is paces[1]
    assert paces[0]._pace.limit == 100
    api.script(Answer(429, headers={"Retry-After": "1"}))
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        impatient(deadline=0.5).load("run")
    two.load("run")
    assert time.monotonic() - began >= 0.4
    one.close()
    two.close()


def test_a_pause_ends_although_a_test_has_frozen_time(api, truto):
    api.script(Answer(429, headers={"Retry-After": "1"}))
    with freeze_time("2024-05-01"):
        assert truto.load("run") == {}


def test_a_key_too_long_for_a_url_is_a_store_error(api, truto):
    with pytest.raises(PartialCommit) as caught:
        truto.commit("run", {"a": "x", "k" * 70_000: None})
    assert set(caught.value.committed) == {"a"}
    assert "URL too long" in str(caught.value.errors["k" * 70_000])


def test_a_proxy_may_be_named_without_a_scheme(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        store = TrutoStore("http://api.invalid", "token", timeout=0.3, deadline=0.5)
        with pytest.raises(StoreUnavailable, match=r"timed out \(through the proxy 127\.0\.0\.1:"):
            store.load("run")
        store.close()


@pytest.mark.parametrize(
    ("scheme", "line"),
    [
        ("http", b"GET http://api.invalid/sync-job-run-state?state_key=run HTTP/1.1"),
        ("https", b"CONNECT api.invalid:443 HTTP/1.1"),
    ],
)
def test_requests_go_through_the_environments_proxy(monkeypatch, scheme, line):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://user:word@127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        heads = []

        def refuse():
            while not done.is_set():
                connection, _ = proxy.accept()
                with connection:
                    if head := connection.recv(10_000):
                        heads.append(head.split(b"\r\n"))
                        connection.sendall(b"HTTP/1.1 405 Not Here\r\nContent-Length: 0\r\n\r\n")

        done = threading.Event()
        thread = threading.Thread(target=refuse)
        thread.start()
        store = TrutoStore(f"{scheme}://api.invalid", "sEcReT", timeout=5, deadline=0.5)
        with pytest.raises(StoreError, match="405"):
            store.load("run")
        done.set()
        socket.create_connection(proxy.getsockname()).close()
        thread.join()
        store.close()
    assert heads[0][0] == line
    assert b"Proxy-Authorization: Basic dXNlcjp3b3Jk" in heads[0]
    assert (b"Authorization: Bearer sEcReT" in heads[0]) == (scheme == "http")


def test_a_bad_token_is_in_no_frame_of_ours():
    with pytest.raises(ValueError, match="not shown") as caught:
        TrutoStore(token="sEcReT\n")
    frame = caught.value.__traceback__.tb_next
    while frame is not None:
        assert "sEcReT" not in repr(frame.tb_frame.f_locals)
        frame = frame.tb_next


@pytest.mark.parametrize(
    "fault", [Answer(401, "x" * 70 + "sEcReT-0123456789"), Raw(b"HTTP/1.1 200 OK\r\nsEcReT-0123456789 x\r\n\r\n")]
)
def test_an_echoed_token_is_taken_out_before_the_text_is_cut(api, fault):
    store = TrutoStore(api.url, "sEcReT-0123456789", deadline=0.5, timeout=0.3)
    api.script(fault, forever=True)
    with pytest.raises(StoreError) as caught:
        store.load("run")
    assert "sEc" not in str(caught.value)
    store.close()


def test_tls_where_none_is_spoken_fails_at_once(api):
    store = TrutoStore(api.url.replace("http:", "https:"), api.token)
    with pytest.raises(StoreError, match="does not speak TLS: try http://"):
        store.load("run")
    store.close()


def test_an_interrupted_submission_begins_nothing_more(api, monkeypatch):
    store = TrutoStore(api.url, api.token, concurrency=2)
    submitted = []

    class Pool(ThreadPoolExecutor):
        def submit(self, call, *args):
            if call is not _work_off:  # it opens a connection
                return super().submit(call, *args)
            if len(submitted) == 1:
                raise KeyboardInterrupt
            submitted.append(super().submit(call, *args))
            return submitted[-1]

    monkeypatch.setattr("checkpoint.stores.service.ThreadPoolExecutor", Pool)
    api.set(latency=0.1)
    with pytest.raises(KeyboardInterrupt):
        store.commit("run", {f"k{n}": "x" for n in range(20)})
    assert all(future.done() for future in submitted)
    assert len(api.requests) <= 4
    store.close()
