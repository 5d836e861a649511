"""Who may use the server: tokens in the environment and in a file, their names, prefixes and rotation."""

from __future__ import annotations

import socket
import subprocess
import sys
from base64 import b64encode
from hashlib import sha256

import httpx
import pytest
from click.testing import CliRunner

from checkpoint.cli.command import checkpoint
from checkpoint.server.access import Access, new_token
from checkpoint.server.messages import Refusal
from checkpoint.stores.memory import MemoryStore
from checkpoint.testing import ApiServer

PATH = "/sync-job-run-state"


def bearer(token):
    return [(b"authorization", f"Bearer {token}".encode())]


def refused(access, headers, wish, state_key=None):
    with pytest.raises(Refusal) as refusal:
        access.allow(headers, wish, state_key)
    return refusal.value.status, refusal.value.message


def line(name, wish, prefix, token):
    return f"{name} {wish} {prefix} {sha256(token.encode()).hexdigest()}\n"


@pytest.fixture
def tokens(tmp_path):
    return tmp_path / "tokens"


def test_the_environment_holds_a_token_to_write_and_one_to_read():
    access = Access.of_environment({"CHECKPOINT_SERVER_TOKEN": "w", "CHECKPOINT_SERVER_READ_TOKEN": "r"})
    for token, wish in (("w", "write"), ("w", "read"), ("r", "read")):
        assert access.allow(bearer(token), wish, "any") is None
    assert refused(access, bearer("r"), "write", "any") == (403, "this token may only read")
    assert refused(access, bearer("x"), "read") == (401, "a valid bearer token is required")
    assert refused(access, [], "read")[0] == 401
    assert refused(access, bearer(""), "read")[0] == 401


def test_without_any_token_nothing_is_served():
    for environment in ({}, {"CHECKPOINT_SERVER_TOKEN": ""}):
        with pytest.raises(ValueError, match=r"^a token is needed: set \$CHECKPOINT_SERVER_TOKEN, or "):
            Access.of_environment(environment)
    with pytest.raises(ValueError, match=r"^\$CHECKPOINT_SERVER_READ_TOKEN must be printable ASCII"):
        Access.of_environment({"CHECKPOINT_SERVER_READ_TOKEN": "a b"})


def test_a_file_names_who_may_do_what_where(tokens):
    tokens.write_text("# who may what\n\n" + line("crm", "write", "crm_", "one") + line("board", "read", "*", "two"))
    access = Access.of_environment({"CHECKPOINT_SERVER_TOKENS": str(tokens)})
    assert access.allow(bearer("one"), "write", "crm_contacts") == "crm"
    assert access.allow(bearer("two"), "read", "erp") == "board"
    assert refused(access, bearer("one"), "read", "erp") == (403, "crm may not read in the namespace 'erp'")
    assert refused(access, bearer("one"), "write", "erp") == (403, "crm may not write in the namespace 'erp'")
    assert refused(access, bearer("two"), "write", "erp") == (403, "board may only read")
    assert access.readable(bearer("one"), ["crm_a", "erp", "crm_b"]) == ["crm_a", "crm_b"]


def test_a_token_may_have_several_lines(tokens):
    tokens.write_text(line("crm", "write", "crm_*", "one") + line("crm", "read", "*", "one"))
    access = Access([], tokens)
    assert [access.allow(bearer("one"), *asked) for asked in (("write", "crm_a"), ("read", "erp"))] == ["crm", "crm"]
    assert refused(access, bearer("one"), "write", "erp") == (403, "crm may not write in the namespace 'erp'")


def test_a_token_is_rotated_without_a_gap(tokens, caplog):
    tokens.write_text(line("crm", "write", "*", "old"))
    access = Access([], tokens)
    tokens.write_text(line("crm", "write", "*", "old") + line("crm", "write", "*", "new"))
    assert [access.allow(bearer(token), "write", "a") for token in ("old", "new")] == ["crm", "crm"]
    replacement = tokens.with_name("replacement")
    replacement.write_text(line("crm", "write", "*", "new"))
    replacement.rename(tokens)
    assert refused(access, bearer("old"), "write", "a")[0] == 401
    assert access.allow(bearer("new"), "write", "a") == "crm"
    assert "new" not in caplog.text.replace(str(tokens), "")


def test_a_file_that_became_unreadable_leaves_the_tokens(tokens, caplog):
    tokens.write_text(line("crm", "write", "*", "old"))
    access = Access([], tokens)
    tokens.write_text("a-secret-by-mistake\n")
    assert [access.allow(bearer("old"), "read") for _ in range(2)] == ["crm", "crm"]
    tokens.unlink()
    assert access.allow(bearer("old"), "read") == "crm"
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == (
        f"{tokens} cannot be read, so the earlier tokens stay valid: "
        "line 1 of the tokens is not NAME read|write PREFIX SHA256"
    )
    assert len(said) == 2
    assert "a-secret" not in caplog.text


@pytest.mark.parametrize("text", ["crm write *", "crm own * " + "0" * 64, "crm write * " + "0" * 63, "a b write * x"])
def test_a_line_that_is_none_is_named_by_its_number(tokens, text):
    tokens.write_text("\n" + text)
    with pytest.raises(ValueError, match=r"^line 2 of the tokens is not NAME read\|write PREFIX SHA256$"):
        Access([], tokens)


def test_basic_takes_the_token_as_the_password():
    access = Access.of_token("se:cret")
    for user in ("", "anybody"):
        credentials = b64encode(f"{user}:se:cret".encode()).decode()
        assert access.allow([(b"authorization", f"Basic {credentials}".encode())], "read") is None
    for credentials in ("", "!", b64encode(b"se:cret").decode()):
        assert refused(access, [(b"authorization", f"Basic {credentials}".encode())], "read")[0] == 401


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/commit", '{"state_key":"a","changes":{"k":null},"run_id":"="}'),
        (PATH, '{"key":"k","value":"="}'),
    ],
)
def test_a_form_of_another_site_writes_nothing(path, body):
    store = MemoryStore()
    store.commit("a", {"k": "before"})
    with ApiServer(store) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        # What a browser that has shown the page sends for `<form method=post enctype=text/plain>`.
        headers = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
        response = client.post(
            path, params={"state_key": "a"}, content=body, headers=headers, auth=("anybody", server.token)
        )
    assert response.status_code == 403
    assert response.json()["message"] == "HTTP Basic is for reading: to write, send Authorization: Bearer TOKEN"
    assert store.load("a")["k"].value == "before"


@pytest.mark.parametrize("header", [None, "Bearer ", "Basic " + b64encode(b"anybody:").decode(), "Other x"])
def test_a_line_for_the_empty_token_lets_nobody_in(tokens, header):
    tokens.write_text(line("unset", "write", "*", ""))
    assert refused(Access([], tokens), [(b"authorization", header.encode())] if header else [], "read")[0] == 401


def test_fault_100_two_authorization_headers_are_refused():
    with ApiServer() as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        good, bad = ("Authorization", f"Bearer {server.token}"), ("Authorization", "Bearer wrong")
        for headers in ([good, bad], [bad, good], [good, good]):
            response = client.get(PATH, params={"state_key": "a"}, headers=headers)
            assert (response.status_code, response.json()["message"]) == (400, "Authorization is given twice")
        assert client.get(PATH, params={"state_key": "a"}, headers=[good]).status_code == 200


def test_who_may_only_read_uploads_no_commit(tokens):
    tokens.write_text(line("board", "read", "*", "two"))
    with ApiServer(token=Access([], tokens)) as server:
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port), timeout=10) as connection:
            head = "Host: x\r\nAuthorization: Bearer two\r\nContent-Length: 60000000\r\n\r\n"
            connection.sendall(f"POST /v1/commit HTTP/1.1\r\n{head}".encode())  # and nothing of the body
            assert connection.recv(100).startswith(b"HTTP/1.1 403 ")


def test_who_committed_is_in_the_history(tokens):
    tokens.write_text(line("crm-loader", "write", "crm", "one") + line("board", "read", "*", "two"))
    store = MemoryStore()
    with (
        ApiServer(store, token=Access([], tokens)) as server,
        httpx.Client(base_url=server.url, params={"state_key": "crm"}, trust_env=False) as client,
    ):
        client.headers["Authorization"] = "Bearer one"
        assert client.post(PATH, json={"key": "a", "value": "1"}).status_code == 200
        assert client.patch(f"{PATH}/a", json={"value": "2"}).status_code == 200
        assert client.delete(f"{PATH}/a").status_code == 200
        assert client.get(PATH, params={"state_key": "erp"}).status_code == 403
        client.headers["Authorization"] = "Bearer two"
        assert client.get(PATH).status_code == 200
        assert client.post(PATH, json={"key": "a", "value": "1"}).status_code == 403
        assert client.patch(f"{PATH}/a", json={"value": "2"}).status_code == 403
        assert client.delete(f"{PATH}/a").status_code == 403
    assert [(change.after, change.by) for change in store.history("crm")] == [
        (None, "crm-loader"),
        ("2", "crm-loader"),
        ("1", "crm-loader"),
    ]


def test_the_verb_makes_a_line_that_the_server_takes(tokens):
    done = CliRunner().invoke(checkpoint, ["token", "crm", "write", "crm_*"])
    assert done.exit_code == 0
    tokens.write_text(done.stdout)
    told, _, token = done.stderr.rstrip("\n").rpartition(" ")
    assert told == "The token of crm, shown only once:"
    assert token not in done.stdout
    access = Access([], tokens)
    assert access.allow(bearer(token), "write", "crm_a") == "crm"
    assert refused(access, bearer(token), "write", "erp")[0] == 403


@pytest.mark.parametrize(("name", "prefix"), [("two words", "*"), ("", "*"), ("#crm", "*"), ("crm", "a b")])
def test_what_cannot_stand_in_a_line_is_refused(name, prefix):
    with pytest.raises(ValueError, match=r"must be one word without spaces"):
        new_token(name, "write", prefix)


def test_a_missing_file_of_tokens_is_one_sentence(tmp_path):
    command = [sys.executable, "-m", "checkpoint.cli", "serve", "--store", "memory://x", "--port", "0"]
    environment = {"CHECKPOINT_SERVER_TOKENS": str(tmp_path / "none"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: [Errno 2] No such file or directory: '{tmp_path}/none'\n"
