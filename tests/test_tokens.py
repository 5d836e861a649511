"""Tokens: sources that fail or change, what is hidden of them, and of URLs with a password."""

from __future__ import annotations

import logging
import sys
from contextlib import closing
from datetime import datetime, timezone

import pytest
from test_faults_secrets import log as log  # noqa: PLC0414 - the fixture
from test_faults_secrets import shown

from checkpoint import (
    AsyncCheckpointer,
    Checkpointer,
    CheckpointError,
    ServerStore,
    StoreError,
    TrutoStore,
    Unauthorized,
    open_store,
)
from checkpoint.stores.tokens import Secret
from checkpoint.testing import Answer, ApiServer

OLD, NEW = "old-token-0123456789", "new-token-9876543210"
VARIABLES = {TrutoStore: "TRUTO_API_TOKEN", ServerStore: "CHECKPOINT_TOKEN"}


@pytest.fixture
def api():
    with ApiServer(token=NEW) as api:
        yield api


@pytest.fixture(params=[TrutoStore, ServerStore])
def kind(request, monkeypatch):
    for name in VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    return request.param


def told(tokens):
    """Return a source that gives each token once, and raises what is an error."""
    waiting = list(tokens)

    def token():
        given = waiting.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    return token


def fails(call, text):
    """Expect `Unauthorized` with this text, and none of a dependency's errors behind it; return it."""
    with pytest.raises(Unauthorized, match=text) as caught:
        call()
    assert type(caught.value) is Unauthorized
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    return caught.value


# Sources that fail


def test_a_source_that_fails_is_unauthorized_and_asked_again(api, kind):
    source = told([LookupError("the vault is away"), NEW])
    with closing(kind(api.url, source)) as store:
        fails(
            lambda: store.load("run"), r"^the API token from token= is not available: LookupError: the vault is away$"
        )
        assert api.requests == []
        assert store.load("run") == {}


@pytest.mark.parametrize("given", [None, b"bytes", "", "half\n", "two words"], ids=str)
def test_a_source_that_gives_no_token_is_unauthorized(api, kind, given):
    for tokens, requests in ([given], 0), ([OLD, given], 1):
        api.clear()
        with closing(kind(api.url, told(tokens))) as store:
            error = fails(lambda store=store: store.commit("run", {"a": "1"}), "^the API token from token= must be ")
            assert not given or repr(given)[1:-1] not in str(error)
        assert len(api.requests) == requests
    assert api.store.load("run") == {}


def test_a_source_that_fails_when_asked_again_is_unauthorized(api, kind):
    with closing(kind(api.url, told([OLD, ConnectionError(f"refresh of {OLD} failed")]))) as store:
        error = fails(lambda: store.load("run"), r"is not available: ConnectionError: refresh of \*\*\* failed$")
        assert [text for text in shown(error, set()) if OLD in text] == []


def test_a_file_that_is_half_written_or_gone_is_unauthorized(api, kind, tmp_path, monkeypatch):
    file, variable = tmp_path / "token", f"{VARIABLES[kind]}_FILE"
    monkeypatch.setenv(variable, str(file))
    named = rf"^the API token from the file that \${variable} names "
    fails(lambda: kind(api.url), f"{named}is not available: FileNotFoundError: .*No such file")
    file.write_text("")
    fails(lambda: kind(api.url), f"{named}must be printable ASCII")
    file.write_text(f"{OLD}\n")
    with closing(kind(api.url)) as store:
        file.write_text("")
        fails(lambda: store.load("run"), f"{named}must be printable ASCII")
        file.unlink()
        fails(lambda: store.load("run"), f"{named}is not available: FileNotFoundError")
        file.write_text(f"{NEW}\n")
        assert store.load("run") == {}


def test_the_time_that_a_source_takes_counts(api, kind, monkeypatch):
    """The clock goes on by a deadline while the source is asked: nothing is sent any more."""
    from checkpoint.stores import retrying

    late = [0.0]
    monkeypatch.setattr(retrying, "monotonic", lambda _read=retrying.monotonic: _read() + late[0])

    def token():
        late[0] = 60.0
        return NEW

    with closing(kind(api.url, token, deadline=50.0)) as store, pytest.raises(StoreError, match="deadline has passed"):
        store.load("run")
    assert api.requests == []


# What is hidden


@pytest.mark.parametrize(
    "answer",
    [
        lambda echo: Answer(400, {"statusCode": 400, "error": "Bad Request", "message": f"{echo} was rotated"}),
        lambda echo: Answer(401, {"statusCode": 401, "error": "Unauthorized", "message": f"{echo} was rotated"}),
        lambda echo: Answer(200, b"x", {"Content-Encoding": echo}),
        lambda echo: Answer(200, f"<p>{echo}"),
    ],
    ids=["400", "401", "encoding", "page"],
)
def test_fault_98_the_token_before_is_hidden_too(api, kind, log, answer):
    with closing(kind(api.url, told([OLD, NEW, NEW]))) as store:
        assert store.load("run") == {}
        for echo in (OLD, NEW):
            api.script(answer(echo), forever=True)
            for call in (lambda: store.load("run"), lambda: store.commit("run", {"a": "1"})):
                with pytest.raises(CheckpointError) as caught:
                    call()
                assert [text for text in shown(caught.value, set()) if echo in text] == []
            api.clear()
        logging.getLogger("httpcore.http11").debug("echo=%s", OLD)
    assert [text for text in log.text if OLD in text or NEW in text] == []
    assert any("echo=***" in text for text in log.text)


def test_two_tokens_are_hidden_and_older_ones_let_go(api):
    source = told(["first-0123456789", OLD, NEW])
    with closing(TrutoStore(api.url, source)) as store:
        with pytest.raises(Unauthorized):
            store.load("run")
        assert store.load("run") == {}
        assert store._service.hide(f"first-0123456789 {OLD} {NEW}") == "first-0123456789 *** ***"


def test_a_token_is_hidden_while_another_thread_renews_it():
    """Between any two lines of it the one before is let go."""
    first, old, new = (Secret(text) for text in ("first-0123456789", OLD, NEW))
    lines, before = 0, sys.gettrace()

    def renewed(frame, event, _):
        nonlocal lines
        if frame.f_code is not Secret.hide.__code__:
            return None
        if event == "line" and frame.f_locals["self"] is old:
            lines -= 1
            if not lines:
                new.follow(old)
        return renewed

    for place in range(1, 8):
        lines = place
        old.follow(first)
        sys.settrace(renewed)
        try:
            assert old.hide(OLD) == "***"
        finally:
            sys.settrace(before)


def test_an_answer_in_an_unknown_encoding_is_a_store_error(api, kind):
    api.script(Answer(200, b"x", {"Content-Encoding": "BR"}))
    with closing(kind(api.url, NEW)) as store, pytest.raises(StoreError, match="unsupported encoding 'BR'$") as caught:
        store.load("run")
    assert type(caught.value) is StoreError


# The service's clock


HEADER = {TrutoStore: "date", ServerStore: "checkpoint-time"}
MOMENT = datetime(2024, 5, 1, 10, tzinfo=timezone.utc)


@pytest.mark.parametrize("zone", ["GMT", "-0000", "+0200", ""])
def test_a_date_of_any_form_is_a_moment_in_utc(api, zone):
    hour = 12 if zone == "+0200" else 10
    api.script(Answer(200, {"result": []}, {"date": f"Wed, 01 May 2024 {hour}:00:00 {zone}".strip()}))
    with closing(TrutoStore(api.url, NEW)) as store:
        told = store.clock()
    assert (told, told.tzinfo) == (MOMENT, timezone.utc)


@pytest.mark.parametrize("text", ["2024-05-01T10:00:00Z", "2024-05-01T10:00:00", "2024-05-01T12:00:00+02:00"])
def test_a_servers_time_of_any_form_is_a_moment_in_utc(api, text):
    api.script(Answer(200, {}, {"checkpoint-time": text}), forever=True)
    with closing(ServerStore(api.url, NEW)) as store:
        assert (store.clock(), store.clock().tzinfo) == (MOMENT, timezone.utc)


@pytest.mark.parametrize(
    "text", [OLD, "", "yesterday", "Wed, 01 May 99999999999999 10:00:00 GMT", "0001-01-01T00:00:00+14:00"]
)
def test_a_time_that_is_none_is_an_error_without_the_token(api, kind, text):
    api.script(Answer(200, {"result": []}, {HEADER[kind]: text}), forever=True)
    with closing(kind(api.url, OLD)) as store:
        with pytest.raises(StoreError, match="sent no valid time: ") as caught:
            store.clock()
        assert [each for each in shown(caught.value, set()) if OLD in each] == []
    assert type(caught.value) is StoreError
    assert caught.value.__cause__ is None


# URLs with a password


@pytest.mark.parametrize(
    "url",
    [
        "https://user:s3cr3t-w0rd@host",
        "https://user:s3cr3t-w0rd@host?timeout=never",
        "https://user:s3cr3t-w0rd@host?timeout=5&timeout=5",
        "https://host?key=s3cr3t-w0rd",
        "server+https://user:s3cr3t-w0rd@host#x",
        "postgresql://user:s3cr3t-w0rd@host/db\n",
        "postgresql://user:s3cr3t-w0rd@host/db?keep=many",
        "postgress://user:s3cr3t-w0rd@host/db",
        "memory://name?keep=x&s3cr3t-w0rd=1",
    ],
)
def test_a_url_with_a_password_is_in_no_frame_of_ours(url, monkeypatch):
    monkeypatch.setenv("TRUTO_API_TOKEN", "token")
    monkeypatch.setenv("CHECKPOINT_TOKEN", "token")
    calls = [lambda: open_store(url), lambda: Checkpointer("job", url).__enter__()]
    if url.startswith("https:"):
        calls += [
            lambda: TrutoStore(url),
            lambda: TrutoStore(url, timeout=0),
            lambda: TrutoStore(url, b"no token"),
            lambda: ServerStore(url),
            lambda: Checkpointer("", url),
            lambda: Checkpointer("job", url, min_interval=-1),
            lambda: AsyncCheckpointer("", url),
        ]
    for call in calls:
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert [text for text in shown(caught.value, set()) if "s3cr3t" in text] == []
