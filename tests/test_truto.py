"""The HTTP store against the API's server over real sockets: the protocol's open questions, and its faults."""

from __future__ import annotations

import gzip
import logging
import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from freezegun import freeze_time

from checkpoint import (
    Checkpointer,
    CommitUnknown,
    Conflict,
    PartialCommit,
    StoreError,
    StoreUnavailable,
    Unauthorized,
    ValueTooLarge,
)
from checkpoint.codec import decode, encode
from checkpoint.stores import http, open_store
from checkpoint.stores.base import Entry
from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import Answer, ApiServer, Cut, Delay, Drip, Drop, Hang, Hook, Raw

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


def test_requests_of_a_commit_go_in_parallel_and_never_more_than_concurrency_at_once(api):
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


def test_a_single_key_needs_no_thread(api, truto):
    before = set(threading.enumerate())
    with Checkpointer("run", truto) as cp:
        cp["a"] = A
        cp.commit()
        assert [thread.name for thread in set(threading.enumerate()) - before if "asyncio" not in thread.name] == []


def test_connections_are_kept(api, truto):
    accepted = len(api._transports)
    with Checkpointer("run", truto) as cp:
        for at in range(5):
            cp["a"] = {"at": at}
            cp.commit()
        assert len(api._transports) - accepted == 1


def test_connections_are_opened_before_they_are_needed_and_no_more_than_that():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        store = TrutoStore(f"http://127.0.0.1:{listener.getsockname()[1]}", "token", concurrency=4)
        for keys in (0, 1, 3, 2, 3, 9, 9):  # one alone needs none; never more than `concurrency`
            store.warm(keys)
        opened = [listener.accept()[0] for _ in range(4)]
        for connection in opened:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):  # nothing was sent
                connection.recv(1)
            connection.close()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        store.close()


@pytest.mark.parametrize("early", [True, False])
def test_a_commit_takes_the_connections_that_were_opened_for_it(api, truto, early):
    seed(api, **{f"k{n}": {"n": n} for n in range(4)})
    accepted = len(api._transports)
    with Checkpointer("run", truto) as cp:
        for key in cp:
            cp[key] = {"n": -1}
        if early:
            truto.warm(4)
        together = threading.Barrier(4, timeout=10)
        api.script(Hook(before=together.wait), method="PATCH", forever=True)
        assert len(cp.commit().keys) == 4
    assert len(api._transports) - accepted == 4


def test_a_connection_that_cannot_be_opened_early_fails_the_commit_and_nothing_before():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    store = TrutoStore(f"http://127.0.0.1:{port}", "token", deadline=0.2)
    store.warm(3)
    with pytest.raises(StoreUnavailable, match="ConnectError"):
        store.load("run")
    store.close()


def sockets(store):
    return [client._network.socket for client in store._service._clients._made[os.getpid()]]


def test_an_idle_connection_that_the_service_has_closed_is_not_written_to(api, truto, monkeypatch):
    monkeypatch.setattr(http, "TRUSTED", -1.0)
    seed(api, a=A)
    with Checkpointer("run", truto) as cp:
        cp["a"] = B
        (old,) = sockets(truto)
        for transport in list(api._transports.values()):
            api._loop.call_soon_threadsafe(transport.close)
        select.select([old], [], [], 10)
        assert cp.commit().retries == 0
        assert old not in sockets(truto)
        assert methods(api) == ["GET", "GET", "PATCH"]


def test_an_open_idle_connection_is_used_again_over_tls_too(tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", cert)
    monkeypatch.setattr(http, "TRUSTED", -1.0)
    with ApiServer(ssl_certfile=cert, ssl_keyfile=key) as api:
        store = TrutoStore(api.url, api.token)
        connect = store._service._clients.lacking(1)
        for call in connect:
            call()
        (opened,) = sockets(store)
        select.select([opened], [], [], 10)  # tickets for later sessions have come
        store.load("run")
        store.load("run")
        assert sockets(store) == [opened]
        assert len(api._transports) == 1
        store.close()


@pytest.mark.parametrize("name", ["a/b", "a%2Fb", "a?b", "a#b", "a;b", "a:b", "a@b", "a+b", "a b", "...", "ü€😀", "~"])
def test_every_character_of_a_name_arrives(api, truto, name):
    with Checkpointer(name, truto) as cp:
        cp[name] = A
        cp.commit()
        cp[name] = B
    assert {key: decode(entry.value) for key, entry in api.store.load(name).items()} == {name: B}
    with Checkpointer(name, truto) as cp:
        assert dict(cp) == {name: B}
        del cp[name]
    assert api.store.load(name) == {}


# The protocol's open questions


@pytest.mark.parametrize("answer", [200, 201, 204, "empty"])
def test_any_2xx_is_success_with_or_without_an_echo(api, truto, answer):
    api.set(write_answer=answer)
    with Checkpointer("run", truto) as cp:
        cp["a"] = A
        cp.commit()
        cp["a"] = B
        cp["b"] = B
        cp.commit()
        del cp["b"]
        cp.commit()
        assert cp.entry("a").value == encode(B)
    assert held(api) == {"a": B}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (answer, "wrote 'a', and the service answered with another key or value")
        for answer in ("wrong key", "wrong value")
    ],
)
def test_an_echo_of_something_else_is_an_error(api, truto, answer, text):  # row 17
    api.set(write_answer=answer)
    with Checkpointer("run", truto) as cp:
        cp["a"] = A
        with pytest.raises(StoreError, match=text):
            cp.commit()
        assert cp.changed == {"a"}
        api.set(write_answer=200)
        cp["a"] = B
        cp.commit()  # what had landed behind the wrong echo is ours, and no conflict
    assert held(api) == {"a": B}


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


@pytest.mark.parametrize("existing", [409, 400])
def test_a_refused_post_is_a_conflict_unless_it_is_ours(api, truto, existing):  # row 13
    api.set(post_existing=existing)
    with Checkpointer("run", truto) as cp:
        cp["a"] = A
        api.script(Hook(before=lambda: seed(api, a=B)), method="POST")
        with pytest.raises(Conflict) as caught:
            cp.commit()
        assert (caught.value.expected, caught.value.found.value) == (None, encode(B))
        cp.discard()
        cp["b"] = B
        api.script(Hook(before=lambda: seed(api, b=B)), method="POST")
        assert cp.commit().keys == ("b",)
    assert held(api) == {"a": B, "b": B}


def test_a_post_refused_for_another_reason_says_the_services_reason(api, truto):  # row 10
    api.script(Answer(400, {"statusCode": 400, "error": "Bad Request", "message": "value is odd"}), method="POST")
    with Checkpointer("run", truto) as cp:
        cp["a"] = A
        with pytest.raises(StoreError) as caught:
            cp.commit()
        assert str(caught.value) == f"{api.url} refused 'a': 400 Bad Request: value is odd"
        cp.discard()
    assert methods(api).count("POST") == 1


def test_a_patch_that_finds_nothing_is_a_conflict(api, truto):  # row 13
    seed(api, a=A)
    with Checkpointer("run", truto) as cp:
        cp["a"] = B
        api.script(Hook(before=lambda: api.store.commit("run", {"a": None})), method="PATCH")
        with pytest.raises(Conflict, match="was deleted by another writer") as caught:
            cp.commit()
        assert (caught.value.expected.value, caught.value.found) == (encode(A), None)
        cp.discard()
    assert held(api) == {}


def test_a_404_page_of_a_proxy_is_an_error_and_not_a_missing_entry(api, truto):  # row 12
    seed(api, a=A)
    page = Answer(404, "<html>not here</html>", {"Content-Type": "text/html"})
    with Checkpointer("run", truto) as cp:
        cp["a"] = B
        for method in ("GET", "PATCH"):
            api.script(page, method=method)
            with pytest.raises(StoreError, match=r"404 \(text/html\) '<html>not here</html>'"):
                cp.commit()
    api.script(page)
    with pytest.raises(StoreError, match="404"), Checkpointer("run", truto):
        pass
    assert held(api) == {"a": B}


@pytest.mark.parametrize("answer", ["empty", 404])
def test_an_unknown_namespace_is_no_state(api, truto, answer):
    api.set(unknown_namespace=answer)
    assert truto.load("nowhere") == {}


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_never_no_state(api, truto, status):
    api.script(Answer(status))
    with pytest.raises(Unauthorized, match=f"refused the token: {status}"):
        truto.load("run")
    assert len(api.requests) == 1


def test_lists_are_followed_page_by_page(api, truto):  # row 23
    cursors = {f"k{n}": {"n": n} for n in range(7)}
    seed(api, **cursors)
    api.set(page_size=3, empty_page=True, shuffled=True, duplicates=True, extra_fields=True)
    with Checkpointer("run", truto) as cp:
        assert dict(cp) == cursors
    assert all("state_key=run" in call.query for call in api.requests)
    assert len(api.requests) > 3


def test_a_repeated_page_is_an_error(api, truto):  # row 23
    seed(api, **{f"k{n}": {"n": n} for n in range(7)})
    api.set(page_size=3, repeated_cursor=True)
    with pytest.raises(StoreError, match="the list of 'run' repeats its page"):
        truto.load("run")


def test_a_key_that_a_paged_list_missed_is_no_new_key(api, truto):  # row 23
    seed(api, a=A, b=B, c=C)
    api.set(page_size=2)
    api.script(None, Answer(200, {"result": [], "next_cursor": None}))
    with Checkpointer("run", truto) as cp:
        missed = ({"a", "b", "c"} - set(cp)).pop()
        cp[missed] = {"at": 0}
        with pytest.raises(Conflict, match=f"'{missed}' in 'run' was created by another writer"):
            cp.commit()
        cp.discard()
        assert cp[missed] == held(api)[missed]


@pytest.mark.parametrize("envelope", [[], None, "x", {}, {"result": None}, {"result": {}}, {"data": []}])
def test_a_wrong_envelope_is_an_error_and_never_empty(api, truto, envelope):  # row 3
    api.set(envelope=envelope)
    with pytest.raises(StoreError, match="not the JSON object that was expected|has no 'result' list"):
        truto.load("run")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer(200, '{"result": [', {"Content-Type": "application/json"}), r"200 \(application/json\)"),
        (Answer(200, "<html>log in</html>", {"Content-Type": "text/html"}), r"200 \(text/html\) '<html>log in</html>'"),
        (Answer(200, '{"result": []}', {"Content-Type": "text/plain"}), r"200 \(text/plain\)"),
        (Answer(204), "204"),
        (Answer(200, {"result": [{"value": "x"}]}), "not an entry"),
        (Answer(200, {"result": [{"key": "x"}]}), "not an entry"),
        (Answer(200, {"result": ["x"]}), "not an entry"),
    ],
)
def test_what_is_no_list_of_entries_is_an_error_naming_what_came(api, truto, answer, text):  # row 3
    api.script(answer)
    with pytest.raises(StoreError, match=text):
        truto.load("run")
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("value", "raw"),
    [("2024-05-01T10:00:00Z", "2024-05-01T10:00:00Z"), ("", ""), ({"at": 1}, '{"at":1}'), (None, "null"), (7, "7")],
)
def test_an_opaque_value_is_readable_as_its_raw_string(api, truto, value, raw):  # row 34
    seed(api, a=A)
    entries = [{"key": "odd", "value": value}, {"key": "a", "value": encode(A)}]
    api.script(Answer(200, {"result": entries}))
    with Checkpointer("run", truto) as cp:
        assert (cp.raw["odd"], cp["a"]) == (raw, A)
        cp["a"] = B
    assert held(api) == {"a": B}


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
def test_a_broken_answer_to_a_read_is_asked_for_again(api, truto, fault):  # rows 1, 2
    seed(api, a=A)
    api.script(fault)
    assert {key: decode(entry.value) for key, entry in truto.load("run").items()} == {"a": A}
    assert len(api.requests) == 2


@pytest.mark.parametrize(
    "fault",
    [Drop(), Drop(reset=True), Drop(applied=True), Drop(applied=True, reset=True), Cut(5), Cut(5, chunked=True)],
)
@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_a_write_without_an_answer_is_read_back_first(api, truto, method, fault):  # rows 1, 2, 4
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


def test_a_write_that_nobody_answered_does_not_erase_somebody_elses(api, truto):  # row 1
    seed(api, a=A)
    with Checkpointer("run", truto) as cp:
        cp["a"] = B
        api.script(Hook(before=lambda: seed(api, a=C), then=Drop()), method="PATCH")
        with pytest.raises(Conflict) as caught:
            cp.commit()
        assert caught.value.found.value == encode(C)
        cp.discard()
    assert held(api) == {"a": C}


def test_overwriting_sends_an_unanswered_write_again_whatever_is_found(api, truto):
    seed(api, a=A)
    with Checkpointer("run", truto, on_conflict="overwrite") as cp:
        cp["a"] = B
        api.script(Hook(before=lambda: seed(api, a=C), then=Drop()), method="PATCH")
        cp.commit()
    assert held(api) == {"a": B}


def test_a_write_that_lands_late_is_unknown_and_never_failed(api, impatient):  # row 5
    seed(api, a=A)
    store = impatient()
    with Checkpointer("run", store) as cp:
        cp["a"] = B
        api.script(Drop(late=2.0), *[Drop()] * 20, method="PATCH")
        with pytest.raises(CommitUnknown) as caught:
            cp.commit()
        assert (caught.value.state_key, caught.value.keys) == ("run", ("a",))
        assert str(caught.value).startswith("whether 'a' in 'run' was written is unknown (http://127.0.0.1:")
        assert cp.changed == {"a"}
        api.clear()
        seed(api, a=B)  # it lands, after all
        cp["a"] = C
        assert cp.commit().keys == ("a",)
    assert held(api) == {"a": C}


def test_an_own_late_write_over_a_newer_one_is_sent_over_again(api, truto):  # row 21
    seed(api, a=A)
    with Checkpointer("run", truto) as cp:
        cp["a"] = B
        api.script(Drop(), method="PATCH")
        cp.commit()
        cp["a"] = C
        cp.commit()
        seed(api, a=B)  # the first attempt arrives now
        cp["a"] = {"at": 4}
        cp.commit()
    assert held(api) == {"a": {"at": 4}}


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_dripping_answer_meets_the_deadline(api, part, impatient):  # row 6
    seed(api, a=A)
    store = impatient()
    api.script(Drip(0.05, part), forever=True)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="gave up after 1 attempt in"):
        store.load("run")
    assert 0.8 < time.monotonic() - began < 3


def test_a_service_that_never_answers_is_given_up_within_the_deadline(api, impatient):
    store = impatient()
    api.script(Hang(), forever=True)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="ReadTimeout"):
        store.load("run")
    assert time.monotonic() - began < 3


def test_a_429_shuts_the_gate_for_all_requests(api, truto):  # row 7
    seed(api, **{f"k{n}": {"n": n} for n in range(6)})
    with Checkpointer("run", truto) as cp:
        for key in cp:
            cp[key] = {"n": -1}
        api.script(Answer(429, headers={"Retry-After": "1"}), method="PATCH")
        commit = cp.commit()
    assert commit.retries == 1
    assert commit.seconds >= 1
    assert held(api) == {f"k{n}": {"n": -1} for n in range(6)}


@pytest.mark.parametrize(
    ("headers", "least"),
    [
        ({"Retry-After": "1"}, 1.0),
        ({"Retry-After": "Wed, 01 May 2024 10:00:01 GMT", "Date": "Wed, 01 May 2024 10:00:00 GMT"}, 1.0),
        ({}, 1.0),
        ({"Retry-After": "soon"}, 1.0),
        ({"Retry-After": "-5"}, 1.0),
        ({"Retry-After": "0"}, 0.0),
    ],
)
def test_retry_after_is_honoured(api, truto, headers, least):  # rows 7, 8
    api.script(Answer(429, headers=headers))
    began = time.monotonic()
    assert truto.load("run") == {}
    assert least <= time.monotonic() - began < least + 3


def test_a_retry_after_past_the_deadline_fails_at_once(api, impatient):  # row 8
    store = impatient(deadline=2.0)
    api.script(Answer(429, headers={"Retry-After": "31536000"}))
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="gave up after 1 attempt in .*: 429 Too Many Requests"):
        store.load("run")
    assert time.monotonic() - began < 1
    with pytest.raises(StoreUnavailable, match="asked to wait 2 s, past the deadline"):
        impatient().load("run")


def test_a_503_storm_ends_after_bounded_attempts(api, impatient):  # row 9
    store = impatient(deadline=3.0)
    api.script(Answer(503), forever=True)
    with pytest.raises(StoreUnavailable, match=r"gave up after \d attempts in \d\.\d s: 503 Service Unavailable"):
        store.load("run")
    assert 2 <= len(api.requests) <= 8


def test_a_refused_write_that_cannot_have_landed_is_unavailable(api, impatient):  # row 9
    seed(api, a=A)
    store = impatient()
    api.script(Answer(503), method="PATCH", forever=True)
    with Checkpointer("run", store) as cp:
        cp["a"] = B
        with pytest.raises(StoreUnavailable, match="503"):
            cp.commit()
        assert cp.changed == {"a"}
        cp.discard()


@pytest.mark.parametrize("status", [400, 404, 405, 409, 422, 501])
def test_what_is_refused_for_good_is_not_tried_again(api, truto, status):  # row 10
    seed(api, a=A)
    with Checkpointer("run", truto) as cp:
        cp["a"] = B
        api.script(Answer(status), method="PATCH")
        with pytest.raises(StoreError, match=f"refused 'a': {status} "):
            cp.commit()
        cp.discard()
    assert methods(api).count("PATCH") == 1
    assert held(api) == {"a": A}


def test_a_token_refused_half_way_stops_the_commit(api):  # row 11
    seed(api, **{f"k{n}": {"n": n} for n in range(40)})
    store = TrutoStore(api.url, api.token, concurrency=1)
    with Checkpointer("run", store) as cp:
        for key in cp:
            cp[key] = {"n": -1}
        api.script(None, Answer(401), method="PATCH")
        with pytest.raises(Unauthorized) as caught:
            cp.commit()
        assert len(caught.value.committed) == 1
        assert len(cp.changed) == 39
        assert methods(api).count("PATCH") == 2
        assert cp.commit().keys == tuple(f"k{n}" for n in range(40) if f"k{n}" not in caught.value.committed)
    assert {decode(entry.value)["n"] for entry in api.store.load("run").values()} == {-1}
    store.close()


def test_a_value_too_large_names_its_key_and_the_others_land(api, truto):  # rows 14, 22
    api.set(max_value=200)
    with Checkpointer("run", truto) as cp:
        cp["a"], cp["b"], cp["c"] = A, {"x": "x" * 300}, C
        with pytest.raises(PartialCommit) as caught:
            cp.commit()
        assert set(caught.value.committed) == {"a", "c"}
        assert caught.value.pending == ("b",)
        error = caught.value.errors["b"]
        assert isinstance(error, ValueTooLarge)
        assert (error.key, error.size) == ("b", len(encode({"x": "x" * 300})))
        assert str(caught.value) == (
            "'a', 'c' committed, 'b' pending and still changed: commit again sends only those: "
            "'b': the value of 'b' is too large for the store: 412 bytes; store less in one cursor"
        )
        assert cp.changed == {"b"}
        cp["b"] = B
        assert cp.commit().keys == ("b",)
    assert held(api) == {"a": A, "b": B, "c": C}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(api, truto, status):  # row 15
    with ApiServer() as other:
        for target in (api.url, other.url):
            api.script(Answer(status, headers={"Location": f"{target}/elsewhere"}))
            with pytest.raises(StoreError, match=rf"redirects \({status}\), which is not followed"):
                truto.load("run")
        assert other.requests == []
    assert len(api.requests) == 2


def test_a_gzip_bomb_is_stopped_at_the_cap(api, truto):  # row 18
    bomb = gzip.compress(b" " * (http.MAX_BODY + 1))
    api.script(Answer(200, bomb, {"Content-Type": "application/json", "Content-Encoding": "gzip"}))
    with pytest.raises(StoreError, match="the answer is larger than 67,108,864 bytes"):
        truto.load("run")
    assert len(api.requests) == 1


def test_gzip_is_read_and_damaged_gzip_is_asked_for_again(api, truto):  # row 19
    listed = gzip.compress(b'{"result": [{"key": "a", "value": "x"}]}')
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    api.script(
        Answer(200, listed[:-9], headers), Answer(200, b"\x1f\x8b" + b"?" * 40, headers), Answer(200, listed, headers)
    )
    assert truto.load("run") == {"a": Entry("a", "x")}
    assert len(api.requests) == 3


def test_a_refused_connection_is_tried_again_and_then_unavailable():  # row 1
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    store = TrutoStore(f"http://127.0.0.1:{port}", "token", timeout=0.3, deadline=1.0)
    with pytest.raises(
        StoreUnavailable, match=rf"http://127.0.0.1:{port}: gave up after \d+ attempts? in .*ConnectError"
    ):
        store.load("run")
    store.close()


def test_an_unknown_host_is_unavailable():  # row 21
    store = TrutoStore("http://nowhere.invalid", "token", deadline=0.5)
    with pytest.raises(StoreUnavailable, match="ConnectError"):
        store.load("run")
    store.close()


def test_a_slow_answer_delays_one_key_and_not_the_others(api, truto):
    seed(api, **{f"k{n}": {"n": n} for n in range(8)})
    with Checkpointer("run", truto) as cp:
        for key in cp:
            cp[key] = {"n": -1}
        api.script(*[Delay(0.4)] * 8, method="PATCH")
        assert cp.commit().seconds < 1.6


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


@pytest.mark.parametrize("token", ["", "two\nlines", "with space", "ümlaut", "\0"])
def test_a_bad_token_is_refused_and_not_shown(token):  # row 26
    with pytest.raises(ValueError, match="it is not shown here") as caught:
        TrutoStore(token=token)
    assert not token.strip() or token not in str(caught.value)


def test_the_token_comes_from_the_environment(api, monkeypatch):
    monkeypatch.delenv("TRUTO_API_TOKEN", raising=False)
    with pytest.raises(ValueError, match="no API token: set TRUTO_API_TOKEN, or pass token="):
        TrutoStore(api.url)
    monkeypatch.setenv("TRUTO_API_TOKEN", api.token)
    with Checkpointer("run", api.url) as cp:
        cp["a"] = A
    assert held(api) == {"a": A}


@pytest.mark.parametrize(
    "url", ["ftp://x", "https://", "api.truto.one", "https://u:p@x", "https://x?a=1", "https://x#a"]
)
def test_a_bad_base_url_is_refused(url):
    with pytest.raises(ValueError, match="the API's base URL"):
        TrutoStore(url, "token")


@pytest.mark.parametrize("argument", [{"timeout": 0}, {"deadline": -1}, {"concurrency": 0}, {"rate": (0, 1)}])
def test_bad_numbers_are_refused(argument):
    with pytest.raises(ValueError, match="must be greater than 0"):
        TrutoStore(token="token", **argument)


def test_the_token_is_shown_nowhere(api, caplog):  # row 50, in part
    caplog.set_level(logging.DEBUG)
    token = "sEcReT-0123456789"
    store = TrutoStore(api.url, token, deadline=0.5)
    api.script(Answer(401, f"who is {token}?"), Drop(), Drop(), Drop(), forever=True)
    shown = [repr(store), repr(vars(store)), repr(store._service._clients)]
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            store.load("run")
        link = caught.value
        while link is not None:
            frame = link.__traceback__
            while frame is not None:
                if "/checkpoint/" in frame.tb_frame.f_code.co_filename or link is not caught.value:
                    shown.append(repr(frame.tb_frame.f_locals))
                frame = frame.tb_next
            shown += [str(link), repr(link)]
            link = link.__cause__ or link.__context__
        shown.append(repr(pickle.dumps(caught.value)))
    with pytest.raises(TypeError):
        pickle.dumps(store)
    assert token not in "\n".join([*shown, caplog.text])
    store.close()


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
def test_after_a_fork_both_have_connections_of_their_own(tmp_path):  # row 43
    job = """
import os
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


def test_an_interrupted_commit_is_settled_and_can_be_repeated(api, truto):  # row 45
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


def test_ctrl_c_waits_for_the_answer_to_a_single_write(api, truto):  # row 45
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
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait(api):  # row 45
    store = TrutoStore(api.url, api.token, timeout=30)
    seed(api, a=A)
    with Checkpointer("run", store) as cp:
        cp["a"] = B

        def twice():
            interrupt()
            while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
                time.sleep(0.001)
            interrupt()

        api.script(Hook(before=twice, then=Hang()), method="PATCH")
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            cp.commit()
        assert time.monotonic() - began < 20
        cp.commit()
    assert held(api) == {"a": B}
    store.close()


@pytest.mark.parametrize("keys", [1, 3])
def test_ctrl_c_ends_the_wait_for_a_retry_at_once(api, keys):  # row 45
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
def test_ctrl_c_ends_the_wait_for_the_rate_at_once(api, keys, caplog):  # row 45
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


def test_a_slow_upload_meets_the_deadline():  # row 36, and the deadline of every key's write
    with socket.create_server(("127.0.0.1", 0)) as listener:
        store = TrutoStore(f"http://127.0.0.1:{listener.getsockname()[1]}", "token", timeout=0.5, deadline=1.5)
        slowed = []

        def read_slowly():
            connection, _ = listener.accept()
            slowed.append(connection)
            with suppress(OSError):
                while not done.wait(0.1):
                    connection.recv(100_000)

        done = threading.Event()
        thread = threading.Thread(target=read_slowly)
        thread.start()
        began = time.monotonic()
        with pytest.raises(CommitUnknown):
            store.commit("run", {"a": "x" * 60_000_000})
        assert time.monotonic() - began < 5
        done.set()
        thread.join()
        slowed[0].close()
        store.close()


@pytest.mark.parametrize("answer", [Answer(200, "<html>"), Answer(400), Answer(418)])
def test_a_read_back_that_is_refused_leaves_the_write_unknown(api, truto, answer):  # row 5
    seed(api, a=A)
    with Checkpointer("run", truto) as cp:
        cp["a"] = B
        api.script(Drop(applied=True), method="PATCH")
        api.script(None, answer, method="GET", key="a")
        with pytest.raises(CommitUnknown):
            cp.commit()
        cp["a"] = C
        cp.commit()
    assert held(api) == {"a": C}


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


def test_an_own_late_write_after_a_partial_commit_is_no_conflict(api, truto):  # row 21
    seed(api, a=A)
    api.set(max_value=200)
    with Checkpointer("run", truto) as cp:
        cp["a"], cp["big"] = B, {"x": "x" * 300}
        api.script(Drop(), method="PATCH")
        with pytest.raises(PartialCommit) as caught:
            cp.commit()
        assert set(caught.value.committed) == {"a"}
        del cp["big"]
        cp["a"] = C
        cp.commit("a")
        seed(api, a=B)  # the first attempt arrives now
        cp["a"] = {"at": 4}
        cp.commit("a")
    assert held(api) == {"a": {"at": 4}}


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


def test_gzip_cut_off_at_its_start_is_no_empty_answer(api, truto):  # row 19
    start = gzip.compress(b'{"result": []}')[:10]
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    api.script(Answer(200, start, headers), method="POST")
    receipt = truto.commit("run", {"a": "x"})
    assert receipt.retries == 1
    assert api.store.load("run")["a"].value == "x"


def test_a_key_that_a_paged_list_missed_is_confirmed_when_many_keys_are_committed(api, truto):  # row 23
    seed(api, **{f"k{n}": {"n": n} for n in range(9)})
    api.set(page_size=3)
    with Checkpointer("run", truto) as cp:
        for n in range(9):
            cp[f"new{n}"] = {"n": n}
        seed(api, new4=A)
        entries = [{"key": f"k{n}", "value": encode({"n": n})} for n in range(9)]
        api.script(
            Answer(200, {"result": entries[:5], "next_cursor": "5"}),
            Answer(200, {"result": entries[5:], "next_cursor": None}),
            match=lambda call: call.method == "GET" and call.key is None,
        )
        with pytest.raises(Conflict, match="'new4' in 'run' was created by another writer"):
            cp.commit()
        cp.discard()


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("2024-05-01T10:00:00.5Z", "2024-05-01T10:00:00.75Z"),
        ("2024-05-01T10:00:00Z", "2024-05-01T10:00:00.1234567Z"),
        ("2024-05-01T10:00:00+00:00", "2024-05-01T11:00:01+01:00"),
        ("never", "2024-05-01T10:00:00Z"),
        (None, "2024-05-01T10:00:00Z"),
    ],
)
def test_of_duplicates_the_newest_wins(api, truto, older, newer):  # row 23
    entries = [{"key": "a", "value": "new", "updated_at": newer}, {"key": "a", "value": "old", "updated_at": older}]
    for listed in (entries, entries[::-1]):
        api.script(Answer(200, {"result": listed}))
        assert truto.load("run")["a"].value == "new"


def test_a_404_of_the_list_is_no_state_and_is_told(api, truto, caplog):
    api.set(unknown_namespace=404)
    assert truto.load("run") == {}
    assert caplog.messages == [f"{api.url}: 404 for 'run', taken as no state: is the base URL right?"]


def test_stores_of_one_token_share_the_gate_and_the_lower_rate(api, impatient):
    one, two = TrutoStore(api.url, api.token), TrutoStore(api.url, api.token, rate=(100, 10.0))
    assert one._service._throttle is two._service._throttle
    assert one._service._throttle._pace.limit == 100
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
        with pytest.raises(StoreUnavailable, match="ReadTimeout"):
            store.load("run")
        store.close()


@pytest.mark.parametrize(
    ("scheme", "line"),
    [
        ("http", b"GET http://api.invalid/sync-job-run-state?state_key=run HTTP/1.1"),
        ("https", b"CONNECT api.invalid:443 HTTP/1.1"),
    ],
)
def test_requests_go_through_the_proxy_that_the_environment_names(monkeypatch, scheme, line):
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
        store.warm(3)
        with pytest.raises(StoreError, match="405"):
            store.load("run")
        done.set()
        socket.create_connection(proxy.getsockname()).close()
        thread.join()
        store.close()
    assert heads[0][0] == line
    assert b"Proxy-Authorization: Basic dXNlcjp3b3Jk" in heads[0]
    assert (b"Authorization: Bearer sEcReT" in heads[0]) == (scheme == "http")


def test_a_bad_token_is_in_no_frame_of_ours():  # row 26
    with pytest.raises(ValueError, match="not shown") as caught:
        TrutoStore(token="sEcReT\n")
    frame = caught.value.__traceback__.tb_next
    while frame is not None:
        assert "sEcReT" not in repr(frame.tb_frame.f_locals)
        frame = frame.tb_next


@pytest.mark.parametrize(
    "fault", [Answer(401, "x" * 70 + "sEcReT-0123456789"), Raw(b"HTTP/1.1 200 OK\r\nsEcReT-0123456789 x\r\n\r\n")]
)
def test_an_echoed_token_is_taken_out_before_the_text_is_cut(api, fault):  # row 50
    store = TrutoStore(api.url, "sEcReT-0123456789", deadline=0.5, timeout=0.3)
    api.script(fault, forever=True)
    with pytest.raises(StoreError) as caught:
        store.load("run")
    assert "sEc" not in str(caught.value)
    store.close()


def test_tls_where_none_is_spoken_fails_at_once(api):
    store = TrutoStore(api.url.replace("http:", "https:"), api.token)
    with pytest.raises(StoreError, match="no TLS is spoken there, so try http://"):
        store.load("run")
    store.close()


def test_an_interrupted_submission_begins_nothing_more(api, monkeypatch):  # row 45
    store = TrutoStore(api.url, api.token, concurrency=2)
    submitted = []

    class Pool(ThreadPoolExecutor):
        def submit(self, *args):
            if len(submitted) == 1:
                raise KeyboardInterrupt
            submitted.append(super().submit(*args))
            return submitted[-1]

    monkeypatch.setattr("checkpoint.stores.service.ThreadPoolExecutor", Pool)
    api.set(latency=0.1)
    with pytest.raises(KeyboardInterrupt):
        store.commit("run", {f"k{n}": "x" for n in range(20)})
    assert all(future.done() for future in submitted)
    assert len(api.requests) <= 4
    store.close()
