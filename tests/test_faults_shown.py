"""The fault matrix, rows 98 and 99: what services echo, and what terminals and logs get to see."""

from __future__ import annotations

import html
import json
import logging
import subprocess
import sys
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote

import pytest
from test_faults_secrets import log as log  # noqa: PLC0414 - the fixture
from test_faults_secrets import shown

from checkpoint import CheckpointError, Conflict, CorruptState, Locked, PartialCommit, StateMissing, StoreError
from checkpoint.codec import encode
from checkpoint.entries import Entry
from checkpoint.errors import printable
from checkpoint.stores.tokens import Secret
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import Answer, ApiServer, Raw

TOKEN = "s/E&c+R=e<T\"'%0123\\xyz"

ESCAPED = {
    "plain": TOKEN,
    "json": json.dumps(TOKEN)[1:-1],
    "json twice": json.dumps(json.dumps(TOKEN)),
    "json with slashes": json.dumps(TOKEN)[1:-1].replace("/", "\\/"),
    "\\u": "".join(f"\\u{ord(char):04x}" for char in TOKEN),
    "\\U": "".join(f"\\u{ord(char):04X}" for char in TOKEN),
    "\\x": "".join(f"\\x{ord(char):02x}" for char in TOKEN),
    "html": html.escape(TOKEN),
    "html twice": html.escape(html.escape(TOKEN)),
    "html decimal": "".join(f"&#{ord(char)};" for char in TOKEN),
    "html hexadecimal": "".join(f"&#x{ord(char):X};" for char in TOKEN),
    "percent": quote(TOKEN, safe=""),
    "percent of all": "".join(f"%{ord(char):02x}" for char in TOKEN),
    "percent twice": quote(quote(TOKEN, safe=""), safe=""),
    "repr": repr(TOKEN)[1:-1],
    "base64": b64encode(TOKEN.encode()).decode(),
    "base64 of a header": b64encode(f"Bearer {TOKEN}".encode()).decode(),
    "base64 for URLs": urlsafe_b64encode(f"x:{TOKEN}".encode()).decode(),
}
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def served():
    with ApiServer(token=TOKEN) as api:
        yield api


@pytest.fixture
def store(served):
    store = TrutoStore(served.url, TOKEN, timeout=2.0, deadline=3.0)
    yield store
    store.close()


def check(error, log):
    """Look for the token in an error and in all that was logged, whichever way it is written."""
    for text in [*shown(error, set()), *log.text]:
        for name, escaped in ESCAPED.items():
            assert escaped not in text, name


@pytest.mark.parametrize("name", ESCAPED)
@pytest.mark.parametrize(
    "answer",
    [
        lambda echo: Answer(400, {"statusCode": 400, "error": "Bad Request", "message": f"bad: {echo}!"}),
        lambda echo: Answer(401, {"statusCode": 401, "error": echo, "message": "no"}),
        lambda echo: Answer(200, f"<p>{echo}</p>", {"Content-Type": "text/html"}),
        lambda echo: Answer(200, {echo: echo}),
        lambda echo: Answer(200, {"result": {}, echo: 1}),
        lambda echo: Answer(200, {"result": [{"key": 5, echo: 1}]}),
        lambda echo: Answer(404, {"hint": echo}),
        lambda echo: Answer(418, b"[]", {"Content-Type": f"application/x; {quote(echo)}"}),
        lambda echo: Answer(200, b"x", {**JSON, "Content-Encoding": quote(echo)}),
        lambda echo: Raw(b"HTTP/1.1 200 OK\r\n" + echo.encode() + b" x\r\n\r\n"),
    ],
    ids=["message", "error", "page", "as a key", "beside result", "in an entry", "404", "type", "encoding", "head"],
)
def test_fault_98_an_echoed_token_is_nowhere(served, store, log, name, answer):
    served.script(answer(ESCAPED[name]), forever=True)
    with pytest.raises(StoreError) as caught:
        store.load("run")
    check(caught.value, log)


def test_fault_98_a_token_as_the_answered_key_is_nowhere(served, store, log):
    served.script(Answer(200, {"key": TOKEN, "value": "x"}), method="GET", key="a")
    served.script(Answer(200, {"key": TOKEN, "value": TOKEN}), method="POST")
    with pytest.raises(StoreError) as caught:
        store.commit("run", {"a": "x"}, {"a": None})
    check(caught.value, log)
    with pytest.raises(StoreError) as caught:
        store.commit("run", {"b": "x"})
    check(caught.value, log)


def test_fault_98_a_page_cursor_that_repeats_is_not_shown(served, store, log):
    served.script(Answer(200, {"result": [], "next_cursor": TOKEN}), forever=True)
    with pytest.raises(StoreError, match="repeats its page") as caught:
        store.load("run")
    check(caught.value, log)


def test_fault_98_what_the_http_libraries_log_has_no_token(served, store, log):
    head = f"HTTP/1.1 200 {quote(TOKEN)}\r\nX-Echo: {TOKEN}\r\nContent-Type: application/json\r\n"
    body = b'{"result": []}'
    served.script(Raw(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body))
    assert store.load("run") == {}
    assert any("X-Echo" in text for text in log.text)
    for escaped in ESCAPED.values():
        assert [text for text in log.text if escaped in text] == []


@pytest.mark.parametrize("name", ESCAPED)
def test_fault_98_every_way_of_writing_it_is_hidden(name):
    said = Secret(TOKEN).hide(f"before {ESCAPED[name]} after {TOKEN[:-1]}")
    before, _, after = said.partition("***")
    assert after.strip('"\\') == f" after {TOKEN[:-1]}" or after.lstrip('\\"') == f" after {TOKEN[:-1]}"
    assert before.strip('"\\') in {"before ", "before QmVhcmVyIH", "before eDp"}


# 99: control characters


EVIL = "evil\n\r\x1b[31m\x1b]8;;http://x\x07link\x1b]8;;\x07\x00\x7f\x9b\u202e\u2028"


def is_shown_safely(text):
    return not any(ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u202e\u2028" for char in text)


def test_fault_99_controls_are_escaped_and_the_rest_is_kept():
    assert printable("a\n\x1b[0m\u202eé ü 漢 👩‍🚀") == "a\\u000a\\u001b[0m\\u202eé ü 漢 👩‍🚀"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(400, {"statusCode": 400, "error": "Bad", "message": EVIL}),
        Answer(200, EVIL, {"Content-Type": "text/html"}),
        Answer(200, {EVIL: 1}),
        Answer(401, {"statusCode": 401, "error": EVIL, "message": EVIL}),
        Answer(404, {"message": EVIL}),
        Answer(503, {"statusCode": 503, "error": EVIL, "message": EVIL}),
        Raw(b"HTTP/1.1 200 \x1b[31m\r\n\r\n"),
        Raw(b"HTTP/1.1 200 OK\r\n\x1b[31m evil\r\n\r\n"),
    ],
)
def test_fault_99_what_a_service_says_is_shown_escaped(served, store, log, answer, caplog):
    served.script(answer, forever=True)
    with pytest.raises(StoreError) as caught:
        store.load("run")
    error = caught.value
    while error is not None:
        assert is_shown_safely(str(error))
        error = error.__cause__
    assert all(is_shown_safely(record.getMessage()) for record in caplog.records)


def because(error, cause):
    error.__cause__ = cause
    return error


ENTRY = Entry("a", "x", updated_at=EVIL, sync_job_run_id=EVIL)


@pytest.mark.parametrize(
    "error",
    [
        Conflict("run", "a", None, ENTRY),
        Locked("run", EVIL, EVIL),
        PartialCommit({}, ["a"], {"a": StoreError(EVIL)}),
        StoreError(EVIL),
        CheckpointError(EVIL),
        StateMissing("run", EVIL),
        because(CorruptState("run", "a", "x"), ValueError(EVIL)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_fault_99_every_error_is_shown_escaped(error):
    assert "evil" in str(error)
    assert is_shown_safely(str(error))


def test_fault_99_log_lines_are_escaped(caplog):
    logging.getLogger("checkpoint").warning("%s said %s", EVIL, EVIL)
    assert is_shown_safely(caplog.messages[0])
    assert "evil\\u000a" in caplog.messages[0]


@pytest.mark.parametrize("verb", [["get", "run"], ["list", "run"], ["history", "run"], ["status", "run"], ["doctor"]])
def test_fault_99_the_command_line_shows_no_controls(tmp_path, verb):
    pytest.importorskip("click")
    url = f"sqlite:///{tmp_path}/state.db"
    from checkpoint import open_store

    store = open_store(url)
    store.commit("run", {"a": EVIL, "k\u202eey": encode({"at": EVIL})}, run_id=EVIL.replace("\x00", ""))
    store.close()
    command = [sys.executable, "-m", "checkpoint", *verb, "--store", url]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    for output in (done.stdout.decode(), done.stderr.decode()):
        assert is_shown_safely(output.replace("\n", " ")), output
        assert "\x1b" not in output
