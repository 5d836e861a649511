"""The HTTP rows of the fault matrix: what each fault must get, over real sockets.

A test takes a `Job` and nothing else but parameters, so that the search for the token can run them all once more.
"""

from __future__ import annotations

import gzip
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache
from threading import Barrier, Event

import pytest
import trustme
from freezegun import freeze_time
from job import TOKEN, Driven, Job

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
from checkpoint.codec import encode
from checkpoint.stores import retrying, service
from checkpoint.stores.retrying import Policy, monotonic
from checkpoint.testing import Answer, ApiServer, Cut, Drip, Drop, Hang, Hook

A, B, C, D = {"at": 1}, {"at": 2}, {"at": 3}, {"at": 4}

HTML = {"Content-Type": "text/html"}
JSON = {"Content-Type": "application/json"}
GZIP = {**JSON, "Content-Encoding": "gzip"}

NO_ANSWER = "RemoteProtocolError: Server disconnected without sending a response."
UNAVAILABLE = "503 Service Unavailable: The server cannot process the request due to a high load"
BUSY = '429 Too Many Requests: The user has sent too many requests in a given amount of time ("rate limiting")'
AGAIN = "commit again (safe in both cases), or let the next run find out"
DECIDE = (
    "after this run had read it, and was not overwritten: if the job runs twice, stop one run; "
    "cp.discard() adopts what is stored, on_conflict='overwrite' replaces it"
)


@pytest.fixture(params=[Checkpointer, Driven], ids=["sync", "async"])
def job(request, tmp_path):
    with Job(tmp_path, request.param) as job:
        yield job


# 1, 2: no answer, or half of one


def test_fault_01_a_refused_connection_is_tried_again(job):
    job.seed(a=A)
    with job.run() as cp:
        cp["a"] = B
        with (
            job.away(),
            job.fails(
                StoreUnavailable,
                "URL: gave up after 3 attempts in S s: ConnectError: [Errno 111] Connection refused",
            ),
        ):
            cp.commit()
        assert cp.changed == {"a"}
        assert job.held() == {"a": A}
        assert cp.commit().keys == ("a",)
    assert job.held() == {"a": B}
    assert job.calls() == ["GET a", "PATCH a"]


def test_fault_01_an_absent_service_is_told_once_in_each_call(job):
    job.seed(a=A, b=A)
    told = []
    job.patch.setattr(retrying.logger, "warning", lambda text, *values, **_: told.append(text % values))
    said = f"{job.api.url}: no usable answer yet, trying for up to 30 s: "
    with job.away(), suppress(StoreUnavailable), job.run():
        pass
    assert told == []
    job.patch.setattr(retrying, "SILENCE", 0.0)
    for _ in range(2):
        with job.away(), suppress(StoreUnavailable), job.run():
            pass
    assert [text[: len(said)] for text in told] == [said] * 2
    job.patch.setattr(retrying, "SILENCE", 3.0)
    with job.run() as cp:
        job.patch.setattr(retrying, "SILENCE", 0.0)
        with job.away(), suppress(StoreError):
            cp["a"], cp["b"] = B, B
            cp.commit()
        assert [text[: len(said)] for text in told[2:]] == [said]
        cp.discard()


@pytest.mark.parametrize("reset", [False, True])
def test_fault_01_a_connection_closed_early_is_tried_again(job, reset):
    job.seed(a=A)
    job.api.script(Drop(reset=reset), method="GET")
    job.api.script(Drop(reset=reset), method="PATCH")
    with job.run() as cp:
        assert job.calls() == ["GET", "GET"]
        cp["a"] = B
        commit = cp.commit()
        assert commit[:3] == (("a",), 4, 1)
    assert job.calls() == ["GET a", "PATCH a", "GET a", "PATCH a"]  # the key is read before it is sent again
    assert job.held() == {"a": B}


@pytest.mark.parametrize("reset", [False, True])
def test_fault_01_after_a_close_nobody_elses_write_is_erased(job, reset):
    job.seed(a=A)
    with job.run() as cp:
        cp["a"] = B
        job.api.script(Hook(before=lambda: job.seed(a=C), then=Drop(reset=reset)), method="PATCH")
        with (
            freeze_time("2024-05-01T10:00:00Z"),
            job.fails(
                Conflict, f"'a' in 'run' was changed by another writer at 2024-05-01T10:00:00.000Z {DECIDE}"
            ) as caught,
        ):
            cp.commit()
        assert (caught.value.expected.value, caught.value.found.value) == (encode(A), encode(C))
        assert cp.changed == {"a"}
        cp.discard()
        assert cp["a"] == C
    assert job.calls() == ["GET", "GET a", "PATCH a", "GET a"]
    assert job.held() == {"a": C}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("then", ["close", "reset"])
def test_fault_02_a_cut_off_list_is_reread_a_write_read_back(job, chunked, then):
    job.seed(a=A, b=A)
    job.api.script(Cut(40, chunked, then), method="GET")
    job.api.script(Cut(20, chunked, then), method="PATCH")
    with job.run() as cp:
        assert {key: cp[key] for key in cp} == {"a": A, "b": A}
        assert job.calls() == ["GET", "GET"]
        cp["a"] = B
        assert cp.commit()[:3] == (("a",), 3, 1)
    assert job.calls() == ["GET a", "PATCH a", "GET a"]
    assert job.held() == {"a": B, "b": A}


# 3: an answer that is none


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(200, '{"result": [', JSON), """200 (application/json) '{"result": [' instead of a JSON object"""),
        (Answer(200, "<html>log in</html>", HTML), "200 (text/html) '<html>log in</html>' instead of a JSON object"),
        (Answer(200, '{"result": []}', HTML), """200 (text/html) '{"result": []}' instead of a JSON object"""),
        (Answer(200, []), "200 (application/json) '[]' instead of a JSON object"),
        (Answer(200, b"null", JSON), "200 (application/json) 'null' instead of a JSON object"),
        (Answer(200, headers=JSON), "200 (application/json, empty) instead of a JSON object"),
        (Answer(204), "204 (application/json, empty) instead of a JSON object"),
    ],
)
def test_fault_03_what_is_no_json_object_is_shown_in_the_error(job, answer, said):
    job.seed(a=A)
    job.api.script(answer)
    with job.fails(StoreError, f"URL answered {said}"), job.run():
        pass
    assert job.calls() == ["GET"]
    assert job.held() == {"a": A}


@pytest.mark.parametrize(
    ("envelope", "said"),
    [
        ({}, "the list of 'run' has no 'result' list, but []"),
        ({"data": [], "ok": True}, "the list of 'run' has no 'result' list, but ['data', 'ok']"),
        ({"result": None}, "the list of 'run' has no 'result' list, but ['result']"),
        ({"result": {}}, "the list of 'run' has no 'result' list, but ['result']"),
        *[
            (
                {"result": [entry]},
                "the service answered with something that is not an entry: it has no 'key' or no 'value'",
            )
            for entry in ({"value": "x"}, {"key": "x"}, "x", None)
        ],
    ],
)
def test_fault_03_a_wrong_envelope_is_an_error_and_never_empty(job, envelope, said):
    job.seed(a=A)
    job.api.set(envelope=envelope)
    with job.fails(StoreError, said), job.run():
        pass
    assert job.calls() == ["GET"]


@pytest.mark.parametrize("applied", [False, True])
def test_fault_03_a_login_page_is_no_success_and_no_conflict(job, applied):
    job.seed(a=A)
    job.api.script(Answer(200, "<html>log in</html>", HTML, applied=applied), method="PATCH")
    with job.run() as cp:
        cp["a"] = B
        with job.fails(StoreError, "URL answered 200 (text/html) '<html>log in</html>' instead of a JSON object"):
            cp.commit()
        assert cp.changed == {"a"}
        cp["a"] = C
        assert cp.commit().keys == ("a",)
    assert job.held() == {"a": C}
    read = ["GET a", "GET a"] if applied else ["GET a"]  # the second look has the late write as its base
    assert job.calls() == ["GET", "GET a", "PATCH a", *read, "PATCH a"]


# 4 to 6: an answer that comes late, or never


@pytest.mark.parametrize("fault", [Drop(applied=True), Drop(applied=True, reset=True), Answer(502, applied=True)])
@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_fault_04_an_applied_unanswered_write_is_confirmed(job, fault, method):
    job.seed(a=A)
    job.api.script(fault, method=method)
    key = "new" if method == "POST" else "a"
    with job.run() as cp:
        if method == "DELETE":
            del cp[key]
        else:
            cp[key] = B
        assert cp.commit()[:3] == ((key,), 3, 1)
        assert cp.changed == set()
    assert job.held() == {"POST": {"a": A, "new": B}, "PATCH": {"a": B}, "DELETE": {}}[method]
    assert job.calls() == ["GET", f"GET {key}", f"{method} {key}", f"GET {key}"]


def test_fault_04_an_applied_hanging_write_is_confirmed(job):
    job.seed(a=A)
    job.api.script(Hang(applied=True), method="PATCH")
    with job.run(job.store(timeout=1.0)) as cp:
        cp["a"] = B
        assert cp.commit()[:3] == (("a",), 3, 1)
    assert job.held() == {"a": B}


def test_fault_05_a_write_landing_after_its_check_is_unknown(job):
    job.seed(a=A)
    lands, landed = Event(), Event()

    async def late(exchange):
        await exchange.end("close")
        await exchange.run(lambda: lands.wait(20))
        await exchange.apply()
        landed.set()

    job.api.script(late, Drop(), Drop(), method="PATCH")
    with job.run() as cp:
        cp["a"] = B
        with job.fails(
            CommitUnknown,
            f"it is unknown whether 'a' in 'run' was written (URL: gave up after 3 attempts in S s: {NO_ANSWER}): "
            f"{AGAIN}",
        ) as caught:
            cp.commit()
        assert (caught.value.state_key, caught.value.keys) == ("run", ("a",))
        assert cp.changed == {"a"}
        assert job.held() == {"a": A}
        assert job.calls() == ["GET", "GET a", *["PATCH a", "GET a"] * 3]
        lands.set()
        assert landed.wait(10)
        assert job.held() == {"a": B}
        cp["a"] = C
        assert cp.commit().keys == ("a",)  # what landed late is ours, and no conflict
    assert job.held() == {"a": C}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            Answer(200, "<html>"),
            "URL answered 200 (text/plain; charset=utf-8) '<html>' instead of a JSON object",
        ),
        (Answer(400), "URL answered 400 Bad Request: Bad request syntax or unsupported method"),
    ],
)
def test_fault_05_a_write_that_may_not_be_read_back_is_unknown(job, answer, said):
    job.seed(a=A)
    with job.run() as cp:
        cp["a"] = B
        job.api.script(Drop(applied=True), method="PATCH")
        job.api.script(None, answer, method="GET", key="a")
        with job.fails(CommitUnknown, f"it is unknown whether 'a' in 'run' was written ({said}): {AGAIN}"):
            cp.commit()
        cp["a"] = C
        cp.commit()
    assert job.held() == {"a": C}
    assert job.calls() == ["GET", "GET a", "PATCH a", "GET a", "GET a", "GET a", "PATCH a"]


@pytest.mark.parametrize("part", ["head", "body"])
def test_fault_06_a_dripping_answer_meets_the_deadline(job, part):
    job.seed(a=A)
    store = job.store(deadline=1.0)
    job.api.script(Drip(0.2, part), forever=True)  # 30 s for a list, and no single byte takes long
    with (
        job.fails(StoreUnavailable, "URL: gave up after 1 attempt in S s: ReadTimeout: timed out"),
        job.run(store),
    ):
        pass
    assert job.calls() == ["GET"]


@pytest.mark.parametrize("part", ["head", "body"])
def test_fault_06_a_write_with_a_slow_answer_is_read_back(job, part):
    job.seed(a=A)
    job.api.script(Drip(0.2, part), method="PATCH")
    with job.run(job.store(deadline=2.0)) as cp:
        cp["a"] = B
        assert cp.commit()[:2] == (("a",), 3)
    assert job.held() == {"a": B}
    assert job.calls() == ["GET", "GET a", "PATCH a", "GET a"]


# 7 to 9: a busy service


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "1"}, 1),
        ({"Retry-After": "Wed, 01 May 2024 10:00:01 GMT", "Date": "Wed, 01 May 2024 10:00:00 GMT"}, 1),
        ({}, 0.4),
    ],
    ids=["seconds", "date", "none"],
)
def test_fault_07_all_workers_wait_at_one_gate(job, headers, seconds):
    job.patch.setattr(service, "PAUSE", 0.4)
    job.seed(**{f"k{n}": {"n": n} for n in range(6)})
    store, together, arrived = job.store(concurrency=2), Barrier(2, timeout=20), []

    def arrives(call, now=time.monotonic):
        if call.method == "PATCH":
            arrived.append(now())
        return False

    def until_the_gate_is_shut():
        together.wait()
        for _ in range(2_000):
            if store._service._pace(store._service._token.current())._pace.gate(monotonic()):
                break
            Event().wait(0.005)

    job.api.script(None, match=arrives)
    job.api.script(Hook(before=together.wait, then=Answer(429, headers=headers)), method="PATCH")
    job.api.script(Hook(before=until_the_gate_is_shut), method="PATCH")
    # Any other day than that of the service: a date is measured against the answer's own.
    with freeze_time("2031-01-01"), job.run(store) as cp:
        for key in cp:
            cp[key] = {"n": -1}
        assert cp.commit()[:3] == (tuple(f"k{n}" for n in range(6)), 8, 1)
    assert job.held() == {f"k{n}": {"n": -1} for n in range(6)}
    assert len(arrived) == 7
    assert min(arrived[2:]) - max(arrived[:2]) >= seconds  # the five that were not on their way yet


@pytest.mark.parametrize("retry_after", ["-5", "soon", "", "nan", "Wed, 01 May 2019 10:00:00 GMT"])
def test_fault_08_a_retry_after_that_says_nothing_counts_as_none(job, retry_after):
    job.patch.setattr(service, "PAUSE", 0.5)
    arrived = []
    job.api.script(None, match=lambda call: arrived.append(time.monotonic()))
    job.api.script(Answer(429, headers={"Retry-After": retry_after}))
    with job.run():
        pass
    assert job.calls() == ["GET", "GET"]
    assert arrived[1] - arrived[0] >= 0.5


def test_fault_08_a_retry_after_past_the_deadline_fails_at_once(job):
    job.api.script(Answer(429, headers={"Retry-After": "31536000"}))
    with (
        job.fails(StoreUnavailable, f"URL: gave up after 1 attempt in S s: {BUSY} (it asks to wait 31536000 s)"),
        job.run(),
    ):
        pass
    assert job.calls() == ["GET"]
    job.api.script(
        Answer(429, headers={"Retry-After": "Thu, 01 May 2025 10:00:00 GMT", "Date": "Wed, 01 May 2024 10:00:00 GMT"})
    )
    with (  # the next one asks again, and does not wait
        job.fails(StoreUnavailable, f"URL: gave up after 1 attempt in S s: {BUSY} (it asks to wait 31536000 s)"),
        job.run(job.store(deadline=5.0)),
    ):
        pass
    began = monotonic()
    with job.run():
        assert job.calls() == ["GET", "GET"]
    assert monotonic() - began < 10


def test_fault_08_a_pause_past_the_deadline_ends_the_commit(job):
    """Keys that wait for their turn meanwhile are not sent; the next commit sends them."""
    keys = [f"k{number}" for number in range(9)]
    job.seed(**dict.fromkeys(keys, A))
    with job.run(job.store(concurrency=1)) as cp:
        for key in keys:
            cp[key] = B
        job.calls()
        job.api.script(Answer(429, headers={"Retry-After": "3600"}), method="PATCH")
        with pytest.raises(PartialCommit) as caught:
            cp.commit()
        job.errors.append(caught.value)
        assert {type(error) for error in caught.value.errors.values()} == {StoreUnavailable}
        assert [call for call in job.calls() if "PATCH" in call] == ["PATCH k0"]
        assert len(cp.commit().keys) == 9


def test_fault_09_a_storm_of_503_ends_after_bounded_attempts(job):
    job.seed(a=A)
    with job.run() as cp:
        cp["a"] = B
        job.api.script(Answer(503), method="PATCH", forever=True)
        with job.fails(StoreUnavailable, f"URL: gave up after 3 attempts in S s: {UNAVAILABLE}"):
            cp.commit()
        assert cp.changed == {"a"}
        assert job.calls() == ["GET", "GET a", *["PATCH a", "GET a"] * 3]
        job.api.clear()
        cp.discard()
    job.api.script(Answer(503), forever=True)
    with job.fails(StoreUnavailable, f"URL: gave up after 3 attempts in S s: {UNAVAILABLE}"), job.run():
        pass
    assert job.held() == {"a": A}


def test_fault_09_a_storm_of_503_ends_with_the_deadline(job):
    job.patch.undo()  # as many attempts as it takes
    job.api.script(Answer(503), forever=True)
    with pytest.raises(StoreUnavailable) as caught, job.run(job.store(deadline=1.0)):
        pass
    job.errors.append(caught.value)
    attempts = len(job.calls())
    assert 1 <= attempts <= 20
    assert re.fullmatch(
        rf"{job.api.url}: gave up after {attempts} attempts? in \d\.\d s: {UNAVAILABLE}", str(caught.value)
    )


# 10 to 12: refusals


@pytest.mark.parametrize("status", [400, 405, 409, 422])
def test_fault_10_what_is_refused_for_good_is_not_tried_again(job, status):
    job.seed(a=A)
    refusal = Answer(status, {"statusCode": status, "error": "No", "message": "value is odd"})
    with job.run() as cp:
        for key, method in (("a", "PATCH"), ("new", "POST")):
            cp[key] = B
            job.api.script(refusal, method=method)
            job.calls()
            with job.fails(StoreError, f"URL refused {key!r}: {status} No: value is odd"):
                cp.commit()
            assert cp.changed == {key}
            read = ["GET new"] if method == "POST" and status in {400, 409} else []  # is it there, and ours?
            assert job.calls() == [f"GET {key}", f"{method} {key}", *read]
            cp.discard()
    job.api.script(refusal)
    with job.fails(StoreError, f"URL answered {status} No: value is odd"), job.run():
        pass
    assert job.calls() == ["GET"]
    assert job.held() == {"a": A}


@pytest.mark.parametrize(("status", "phrase"), [(401, "Unauthorized"), (403, "Forbidden")])
def test_fault_11_a_refused_token_stops_all_and_is_hidden(job, status, phrase):
    job.seed(**{f"k{n}": {"n": n} for n in range(5)})
    refusal = Answer(status, {"statusCode": status, "error": phrase, "message": f"who is {TOKEN}?"})
    said = f"URL refused the token: {status} {phrase}: who is ***?"
    with job.run(job.store(concurrency=1)) as cp:
        for key in cp:
            cp[key] = {"n": -1}
        job.api.script(None, refusal, method="PATCH")
        with job.fails(Unauthorized, said) as caught:
            cp.commit()
        assert list(caught.value.committed) == ["k0"]
        assert cp.changed == {"k1", "k2", "k3", "k4"}
        assert job.calls() == ["GET", "GET", "PATCH k0", "PATCH k1"]
        assert cp.commit().keys == ("k1", "k2", "k3", "k4")
    job.api.script(refusal)
    job.calls()
    with job.fails(Unauthorized, said), job.run():
        pass
    assert job.calls() == ["GET"]
    assert job.held() == {f"k{n}": {"n": -1} for n in range(5)}


def test_fault_11_the_token_is_taken_out_before_a_text_is_cut(job):
    job.api.script(Answer(401, "x" * 70 + TOKEN))
    with job.fails(Unauthorized, f"URL refused the token: 401 (text/plain; charset=utf-8) '{'x' * 70}***'"), job.run():
        pass


REWRITTEN = (
    "Correct the base URL; if it is right, a gateway or proxy answers in place of the API, or rewrites paths "
    "(decodes %2F, resolves .., drops a prefix): let it forward paths unchanged"
)


def test_fault_12_a_json_404_is_missing_an_html_404_an_error(job):
    job.seed(a=A)
    page, said = Answer(404, "<html>not here</html>", HTML), "404 (text/html) '<html>not here</html>'"
    with job.run() as cp:
        cp["a"] = B
        for method in ("GET", "PATCH"):
            job.api.script(page, method=method)
            with job.fails(
                StoreError, f"URL: the answer for 'a' was {said}, which is not in the API's own form. {REWRITTEN}"
            ):
                cp.commit()
        assert job.calls() == ["GET", "GET a", "GET a", "PATCH a"]
        job.api.store.commit("run", {"a": None})
        with job.fails(Conflict, f"'a' in 'run' was deleted by another writer {DECIDE}") as caught:
            cp.commit()
        assert (caught.value.expected.value, caught.value.found) == (encode(A), None)
        assert job.calls() == ["GET a", "GET"]
        cp.discard()
    job.api.script(page, forever=True)
    with job.fails(StoreError, f"URL: the answer for the list of 'run' was {said}, 3 times. {REWRITTEN}"), job.run():
        pass
    assert job.held() == {}


# 13: a key that is there after all, or is not


def test_fault_13_a_patch_that_finds_nothing_is_a_conflict(job):
    job.seed(a=A)
    with job.run() as cp:
        cp["a"] = B
        job.api.script(Hook(before=lambda: job.api.store.commit("run", {"a": None})), method="PATCH")
        with job.fails(Conflict, f"'a' in 'run' was deleted by another writer {DECIDE}") as caught:
            cp.commit()
        assert (caught.value.key, caught.value.expected.value, caught.value.found) == ("a", encode(A), None)
        assert job.calls() == ["GET", "GET a", "PATCH a", "GET a", "GET"]
        cp.discard()
        assert list(cp) == []
    assert job.held() == {}


def test_fault_13_a_patch_404_has_landed_if_the_value_is_ours(job):
    job.seed(a=A)
    with job.run() as cp:
        cp["a"] = B
        job.api.script(Hook(before=lambda: job.seed(a=B), then=Answer(404)), method="PATCH")
        assert cp.commit().keys == ("a",)
    assert job.calls() == ["GET", "GET a", "PATCH a", "GET a"]
    assert job.held() == {"a": B}


def test_fault_13_a_patch_404_of_a_present_key_is_not_retried(job):
    job.seed(a=A)
    with job.run() as cp:
        cp["a"] = B
        job.api.script(Answer(404), method="PATCH")
        with job.fails(StoreError, "URL refused 'a': 404 Not Found: Nothing matches the given URI"):
            cp.commit()
        assert job.calls() == ["GET", "GET a", "PATCH a", "GET a"]
        cp.discard()
    assert job.held() == {"a": A}


@pytest.mark.parametrize("existing", [409, 400])
def test_fault_13_a_refused_post_is_a_conflict_unless_ours(job, existing):
    job.api.set(post_existing=existing)
    with job.run() as cp:
        cp["a"] = A
        job.api.script(Hook(before=lambda: job.seed(a=B)), method="POST")
        with (
            freeze_time("2024-05-01T10:00:00Z"),
            job.fails(
                Conflict, f"'a' in 'run' was created by another writer at 2024-05-01T10:00:00.000Z {DECIDE}"
            ) as caught,
        ):
            cp.commit()
        assert (caught.value.key, caught.value.expected, caught.value.found.value) == ("a", None, encode(B))
        assert job.calls() == ["GET", "GET a", "POST a", "GET a"]
        cp.discard()
        assert cp["a"] == B
        cp["b"] = B
        job.api.script(Hook(before=lambda: job.seed(b=B)), method="POST")
        assert cp.commit().keys == ("b",)
        assert job.calls() == ["GET b", "POST b", "GET b"]
    assert job.held() == {"a": B, "b": B}


@pytest.mark.parametrize("existing", [409, 400])
def test_fault_13_overwriting_makes_the_other_call_once(job, existing):
    job.api.set(post_existing=existing)
    job.seed(gone=A)
    with job.run(job.store(concurrency=1), on_conflict="overwrite") as cp:
        job.api.store.commit("run", {"new": encode(A), "gone": None})
        cp["new"] = cp["gone"] = B
        cp.commit()
        assert sorted(job.calls()[1:]) == ["GET gone", "GET new", "PATCH gone", "PATCH new", "POST gone", "POST new"]
        cp["gone"] = C
        job.api.script(Answer(404), method="PATCH", forever=True)
        goes, comes = (
            Hook(before=lambda: job.api.store.commit("run", {"gone": None})),
            Hook(before=lambda: job.seed(gone=D)),
        )
        job.api.script(goes, comes, method="GET")
        job.api.script(Answer(409), method="POST", forever=True)
        with job.fails(StoreError, "URL refused 'gone': 409 Conflict: Request conflict"):
            cp.commit()
        assert job.calls() == ["PATCH gone", "GET gone", "POST gone", "GET gone"]
        cp.discard()


# 14: too large


def test_fault_14_a_value_too_large_names_its_key_alone(job):
    job.api.set(max_value=200)
    large = {"x": "x" * 300}
    size = len(encode(large))
    with job.run(job.store(concurrency=1)) as cp:
        cp["a"], cp["b"], cp["c"] = A, large, C
        with job.fails(
            PartialCommit,
            "'a', 'c' committed, 'b' pending: commit again to send only what is pending: "
            f"'b': the value of 'b' is too large for the store: {size} bytes; store less in one cursor",
        ) as caught:
            cp.commit()
        assert {key: entry.value for key, entry in caught.value.committed.items()} == {"a": encode(A), "c": encode(C)}
        assert (caught.value.pending, list(caught.value.errors)) == (("b",), ["b"])
        error = caught.value.errors["b"]
        assert (type(error), error.key, error.size) == (ValueTooLarge, "b", size)
        assert job.calls()[1:] == ["GET", "POST a", "POST b", "POST c"]
        assert cp.changed == {"b"}
        with job.fails(
            ValueTooLarge, f"the value of 'b' is too large for the store: {size} bytes; store less in one cursor"
        ):
            cp.commit()
        assert job.calls() == ["GET b", "POST b"]
        cp["b"] = B
        assert cp.commit().keys == ("b",)
    assert job.held() == {"a": A, "b": B, "c": C}


def test_fault_14_a_limit_told_as_400_names_its_key_alone(job):
    job.seed(a=A, b=A)
    told = Answer(400, {"statusCode": 400, "error": "Bad Request", "message": "value must be at most 200 characters"})
    job.api.script(told, method="PATCH", key="b")
    with job.run() as cp:
        cp["a"] = cp["b"] = B
        with job.fails(
            PartialCommit,
            "'a' committed, 'b' pending: commit again to send only what is pending: "
            "'b': URL refused 'b': 400 Bad Request: value must be at most 200 characters",
        ):
            cp.commit()
        cp.discard()
    assert job.held() == {"a": B, "b": A}


# 15 to 17: odd answers


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_fault_15_a_redirect_is_an_error_and_not_followed(job, status):
    job.seed(a=A)
    said = f"URL redirects ({status}), and redirects are not followed: correct the base URL"
    with ApiServer(token=TOKEN) as other:
        for target in (job.api.url, other.url):
            redirect = Answer(status, headers={"Location": f"{target}/sync-job-run-state?state_key=run"})
            with job.run() as cp:
                cp["a"] = B
                job.api.script(redirect, method="PATCH")
                with job.fails(StoreError, said):
                    cp.commit()
                cp.discard()
            job.api.script(redirect)
            with job.fails(StoreError, said), job.run():
                pass
            assert job.calls() == ["GET", "GET a", "PATCH a", "GET"]
        assert other.requests == []
    assert job.held() == {"a": A}


@pytest.mark.parametrize("answer", [200, 201, 204, "empty"])
def test_fault_16_any_2xx_is_success_with_or_without_a_body(job, answer):
    job.api.set(write_answer=answer)
    with job.run(job.store(concurrency=1)) as cp:
        cp["a"] = A
        cp.commit()
        cp["a"] = cp["b"] = B
        cp.commit()
        del cp["b"]
        assert cp.commit().keys == ("b",)
        assert cp.entry("a").value == encode(B)
    assert job.held() == {"a": B}
    assert [call for call in job.calls() if "GET" not in call] == ["POST a", "PATCH a", "POST b", "DELETE b"]


@pytest.mark.parametrize("answer", ["wrong key", "wrong value"])
def test_fault_17_an_echo_of_something_else_is_an_error(job, answer):
    job.api.set(write_answer=answer)
    with job.run() as cp:
        cp["a"] = A
        with job.fails(StoreError, "after a write of 'a' the service answered with another key or value"):
            cp.commit()
        assert cp.changed == {"a"}
        job.api.set(write_answer=200)
        cp["a"] = B
        cp.commit()  # what had landed behind the wrong echo is ours, and no conflict
    assert job.held() == {"a": B}
    assert job.calls() == ["GET", "GET a", "POST a", "GET a", "GET a", "PATCH a"]


# 18, 19: compressed answers

CHILD = """
import resource, sys
from checkpoint import Checkpointer, StoreError
from checkpoint.stores.truto import TrutoStore

url, token = sys.argv[1:]
store = TrutoStore(url, token)
store.load("warm")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    with Checkpointer("run", store):
        pass
except StoreError as error:
    print(str(error).replace(url, "URL"))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@cache
def bomb(size):
    return gzip.compress(b" " * size)


def test_fault_18_a_gzip_bomb_is_stopped_at_the_cap(job):
    assert len(bomb(300_000_000)) < 310_000
    job.api.script(None, Answer(200, bomb(300_000_000), GZIP))
    child = [sys.executable, "-W", "ignore", "-c", CHILD, job.api.url, TOKEN]
    done = subprocess.run(child, capture_output=True, text=True, timeout=60, check=True)
    job.output.append(done.stdout + done.stderr)
    said, megabytes = done.stdout.splitlines()
    assert said == "URL: the answer is larger than 67,108,864 bytes"
    assert int(megabytes) < 100
    assert job.calls() == ["GET", "GET"]


@pytest.mark.parametrize("applied", [False, True])
def test_fault_18_a_write_met_by_a_bomb_is_read_back(job, applied):
    job.seed(a=A)
    job.api.script(Answer(200, bomb(70_000_000), GZIP, applied=applied), method="PATCH")
    with job.run() as cp:
        cp["a"] = B
        if applied:
            assert cp.commit().keys == ("a",)
        else:
            with job.fails(StoreError, "URL: the answer is larger than 67,108,864 bytes") as caught:
                cp.commit()
            assert caught.value.unsettled == {"a"}
            assert cp.changed == {"a"}
        cp["a"] = C
        cp.commit()
    assert job.held() == {"a": C}


def test_fault_19_damaged_gzip_is_asked_for_again(job):
    listed = gzip.compress(b'{"result": [{"key": "a", "value": "x"}]}')
    job.patch.setattr(service, "POLICY", Policy(first=0.01, attempts=5))
    job.api.script(
        Answer(200, listed[:10], GZIP),  # cut off
        Answer(200, listed[:-9], GZIP),
        Answer(200, b"\x1f\x8b" + b"?" * 40, GZIP),
        Answer(200, listed[:-8] + b"????" + listed[-4:], GZIP),  # another checksum
        Answer(200, listed, GZIP),
    )
    with job.run() as cp:
        assert dict(cp.raw) == {"a": "x"}
    assert job.calls() == ["GET"] * 5


def test_fault_19_a_write_answered_in_damaged_gzip_is_read_back(job):
    job.api.script(Answer(200, gzip.compress(b"{}")[:10], GZIP), method="POST")
    with job.run() as cp:
        cp["a"] = A
        assert cp.commit()[:3] == (("a",), 4, 1)
    assert job.calls() == ["GET", "GET a", "POST a", "GET a", "POST a"]
    assert job.held() == {"a": A}


# 20, 21: names and certificates


JANUARY = datetime(2024, 1, 1, tzinfo=timezone.utc)


def certificates(folder, authority, name, **options):
    paths = [str(folder / f"{name}.pem"), str(folder / f"{name}.key")]
    certificate = authority.issue_cert(name, **options)
    certificate.cert_chain_pems[0].write_to_path(paths[0])
    certificate.private_key_pem.write_to_path(paths[1])
    return dict(zip(("ssl_certfile", "ssl_keyfile"), paths, strict=True))


@pytest.mark.parametrize(
    ("name", "trusted", "expires", "said"),
    [
        ("127.0.0.1", False, 2099, "unable to get local issuer certificate"),
        ("127.0.0.1", True, 2001, "certificate has expired"),
        ("127.0.0.2", True, 2099, "IP address mismatch, certificate is not valid for '127.0.0.1'."),
    ],
    ids=["self-signed", "expired", "wrong host"],
)
def test_fault_20_an_untrusted_certificate_fails_at_once(job, name, trusted, expires, said):
    authority = trustme.CA()
    trust = job.folder / "trusted.pem"
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(str(trust))
    job.patch.setenv("SSL_CERT_FILE", str(trust))
    until = {
        "not_before": datetime(2000, 1, 1, tzinfo=timezone.utc),
        "not_after": datetime(expires, 1, 1, tzinfo=timezone.utc),
    }
    with ApiServer(token=TOKEN, **certificates(job.folder, authority, name, **until)) as server:
        with pytest.raises(StoreError) as caught, job.run(job.store(server.url)):
            pass
        job.errors.append(caught.value)
    assert type(caught.value) is StoreError
    assert re.fullmatch(
        rf"{server.url}: the service's certificate is not trusted: \[SSL: CERTIFICATE_VERIFY_FAILED\] "
        rf"certificate verify failed: {re.escape(said)} \(_ssl\.c:\d+\); "
        r"only the certificates in \$SSL_CERT_FILE( or \$SSL_CERT_DIR)? are trusted",
        str(caught.value),
    )
    assert server.requests == []


def test_fault_20_a_certificate_that_is_trusted_is_taken(job):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(job.folder / "trusted.pem"))
    job.patch.setenv("SSL_CERT_FILE", str(job.folder / "trusted.pem"))
    with ApiServer(token=TOKEN, **certificates(job.folder, authority, "127.0.0.1")) as server:
        with job.run(job.store(server.url)) as cp:
            cp["a"] = A
        assert server.store.load("run")["a"].value == encode(A)


def test_fault_20_tls_where_none_is_spoken_says_so(job):
    store = job.store(job.api.url.replace("http:", "https:"))
    with (
        pytest.raises(StoreError, match=r"does not speak TLS: try http:// \(ConnectError: ") as caught,
        job.run(store),
    ):
        pass
    assert type(caught.value) is StoreError
    assert job.calls() == []


def test_fault_21_a_name_that_is_not_known_is_tried_again(job):
    with pytest.raises(StoreUnavailable) as caught, job.run(job.store("http://nowhere.invalid")):
        pass
    job.errors.append(caught.value)
    assert re.fullmatch(
        r"http://nowhere\.invalid: gave up after 3 attempts in \d+\.\d s: ConnectError: \[Errno -\d\] .+",
        str(caught.value),
    )


def test_fault_21_an_own_late_write_is_overwritten_again(job):
    job.seed(a=A)
    with job.run() as cp:
        cp["a"] = B
        job.api.script(Drop(), method="PATCH")
        cp.commit()
        cp["a"] = C
        cp.commit()
        job.seed(a=B)  # the first attempt arrives now
        cp["a"] = D
        assert cp.commit().keys == ("a",)
    assert job.held() == {"a": D}


def test_fault_21_a_late_write_of_a_partial_commit_is_resent(job):
    job.seed(a=A)
    job.api.set(max_value=200)
    with job.run() as cp:
        cp["a"], cp["big"] = B, {"x": "x" * 300}
        job.api.script(Drop(), method="PATCH")
        with pytest.raises(PartialCommit) as caught:
            cp.commit()
        job.errors.append(caught.value)
        assert list(caught.value.committed) == ["a"]
        del cp["big"]
        cp["a"] = C
        cp.commit("a")
        job.seed(a=B)  # the first attempt arrives now
        cp["a"] = D
        assert cp.commit("a").keys == ("a",)
    assert job.held() == {"a": D}


# 22, 23: several keys, several pages


def test_fault_22_one_failing_key_of_three_is_a_partial_commit(job):
    job.seed(a=A, b=A, c=A)
    job.api.script(Answer(422, {"statusCode": 422, "error": "Bad", "message": "b is odd"}), method="PATCH", key="b")
    with job.run() as cp:
        cp["a"] = cp["b"] = cp["c"] = B
        with job.fails(
            PartialCommit,
            "'a', 'c' committed, 'b' pending: commit again to send only what is pending: "
            "'b': URL refused 'b': 422 Bad: b is odd",
        ) as caught:
            cp.commit()
        assert {key: entry.value for key, entry in caught.value.committed.items()} == {"a": encode(B), "c": encode(B)}
        assert caught.value.pending == ("b",)
        assert {key: type(error) for key, error in caught.value.errors.items()} == {"b": StoreError}
        assert cp.changed == {"b"}
        job.calls()
        assert cp.commit().keys == ("b",)
        assert job.calls() == ["GET b", "PATCH b"]
    assert job.held() == {"a": B, "b": B, "c": B}


def test_fault_22_each_key_that_fails_for_good_has_its_own_error(job):
    job.seed(a=A, b=A, c=A)
    for key, status in (("a", 422), ("c", 400)):
        refusal = Answer(status, {"statusCode": status, "error": "Bad", "message": f"{key} is odd"})
        job.api.script(refusal, method="PATCH", key=key)
    with job.run() as cp:
        cp["a"] = cp["b"] = cp["c"] = B
        with job.fails(
            PartialCommit,
            "'b' committed, 'a', 'c' pending: commit again to send only what is pending: "
            "'a': URL refused 'a': 422 Bad: a is odd; 'c': URL refused 'c': 400 Bad: c is odd",
        ) as caught:
            cp.commit()
        assert (list(caught.value.committed), caught.value.pending) == (["b"], ("a", "c"))
        assert cp.changed == {"a", "c"}
        cp.commit()
    assert job.held() == {"a": B, "b": B, "c": B}


def test_fault_23_pages_are_crossed_and_the_newest_copy_wins(job):
    cursors = {f"k{n}": {"n": n} for n in range(7)}
    job.seed(**cursors)
    job.api.set(page_size=3, empty_page=True, shuffled=True, duplicates=True, extra_fields=True)
    with job.run() as cp:
        assert {key: cp[key] for key in cp} == cursors
    assert {call.state_key for call in job.api.requests} == {"run"}
    assert job.calls() == ["GET"] * 13


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
def test_fault_23_the_newest_is_so_in_time_and_not_in_spelling(job, older, newer):
    entries = [{"key": "a", "value": "new", "updated_at": newer}, {"key": "a", "value": "old", "updated_at": older}]
    for listed in (entries, entries[::-1]):
        job.api.script(Answer(200, {"result": listed}))
        with job.run() as cp:
            assert dict(cp.raw) == {"a": "new"}


def test_fault_23_a_page_that_repeats_itself_is_an_error(job):
    job.seed(**{f"k{n}": {"n": n} for n in range(7)})
    job.api.set(page_size=3, repeated_cursor=True)
    with job.fails(StoreError, "the list of 'run' repeats its page '3', and would never end"), job.run():
        pass
    assert job.calls() == ["GET"] * 2


def test_fault_23_a_key_that_a_list_missed_is_confirmed(job):
    job.seed(a=A, b=B, c=C)
    job.api.set(page_size=2)
    job.api.script(None, Answer(200, {"result": [], "next_cursor": None}))
    with job.run() as cp:
        assert list(cp) == ["a", "b"]
        cp["c"] = D
        job.calls()
        with pytest.raises(Conflict, match="'c' in 'run' was created by another writer") as caught:
            cp.commit()
        job.errors.append(caught.value)
        assert (caught.value.expected, caught.value.found.value) == (None, encode(C))
        assert job.calls() == ["GET c"]
        cp.discard()
        assert cp["c"] == C
    assert job.held() == {"a": A, "b": B, "c": C}


def test_fault_23_a_key_missed_among_many_is_confirmed(job):
    job.seed(**{f"k{n}": {"n": n} for n in range(9)})
    job.api.set(page_size=3)
    with job.run() as cp:
        for n in range(9):
            cp[f"new{n}"] = {"n": n}
        job.seed(new4=A)
        entries = [{"key": f"k{n}", "value": encode({"n": n})} for n in range(9)]
        job.api.script(
            Answer(200, {"result": entries[:5], "next_cursor": "5"}),
            Answer(200, {"result": entries[5:], "next_cursor": None}),
            match=lambda call: call.method == "GET" and call.key is None,
        )
        with pytest.raises(Conflict, match="'new4' in 'run' was created by another writer") as caught:
            cp.commit()
        job.errors.append(caught.value)
        cp.discard()
    assert {"POST"} & {call.method for call in job.api.requests} == set()


# 36: a large value on a slow line


def test_fault_36_a_slow_upload_meets_the_deadline(job):
    done, received = Event(), []

    def read_slowly(listener):
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            while not done.wait(0.1):
                received.append(len(connection.recv(100_000)))

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        pool.submit(read_slowly, listener)
        store = job.store(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.5, deadline=1.5)
        with pytest.raises(CommitUnknown, match="it is unknown whether 'a' in 'run' was written") as caught:
            store.commit("run", {"a": "x" * 20_000_000})
        job.errors.append(caught.value)
        done.set()
    assert (caught.value.state_key, caught.value.keys) == ("run", ("a",))
    assert 0 < sum(received) < 10_000_000  # no single piece took long, and yet it ended
