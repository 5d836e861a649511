"""`ServerStore` and `/v1`: lost answers, gateways, what the store behind the server cannot do."""

from __future__ import annotations

import os
import pickle
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from hashlib import sha256

import httpx
import pytest
from nginx_server import running_nginx

from checkpoint import (
    Checkpointer,
    CommitUnknown,
    Conflict,
    MemoryStore,
    ServerStore,
    SQLiteStore,
    StoreError,
    StoreUnavailable,
    Unauthorized,
    ValueTooLarge,
    open_store,
)
from checkpoint.codec import encode
from checkpoint.entries import RUN_KEY, Entry, Writer
from checkpoint.server.access import Access
from checkpoint.server.apart import apart
from checkpoint.stores.base import host
from checkpoint.testing import Answer, ApiServer, Cut, Drop, Hang, Hook

A, B = {"at": 1}, {"at": 2}
COMMIT, STATE = "/v1/commit", "/v1/state"


class Bare:
    """An atomic store without any other ability."""

    atomic = True

    def __init__(self):
        self.kept = MemoryStore()

    def load(self, state_key):
        return self.kept.load(state_key)

    def commit(self, state_key, changes, base={}, *, run_id=None):
        return self.kept.commit(state_key, changes, base, run_id=run_id)

    def close(self):
        pass


@contextmanager
def opened(api, url=None, token=None, **options):
    with closing(
        ServerStore(url or api.url, token or api.token, **{"timeout": 5.0, "deadline": 10.0, **options})
    ) as it:
        yield it


@pytest.fixture
def store(api):
    with opened(api) as store:
        yield store


def script(api, *faults, path=COMMIT, **options):
    api.script(*faults, match=lambda call: call.path.endswith(path), **options)


def asked(api):
    return [f"{call.method} {call.path}" for call in api.requests]


# One request a call


def test_a_load_and_a_commit_are_one_request_each(api, store):
    entries = store.commit("job", {f"key {number}": "1" for number in range(500)}).entries
    assert store.load("job") == entries
    receipt = store.commit("job", dict.fromkeys(entries, "2"), entries, run_id="run")
    assert (receipt.requests, receipt.retries, receipt.unsettled) == (1, 0, frozenset())
    assert receipt.entries == api.store.load("job")
    assert asked(api) == [f"POST {COMMIT}", f"GET {STATE}", f"POST {COMMIT}"]


def test_what_is_read_by_key_is_one_request(api, store):
    entries = store.commit("job", {"a": "1", "b": "2", "c": "3"}).entries
    api.clear()
    assert store.read("job", ["a"]) == {"a": entries["a"]}
    assert store.read("job", ["b", "c", "missing"]) == {"b": entries["b"], "c": entries["c"]}
    assert store.read("job", []) == {}
    assert store.read("job", ["x" * 3_000]) == {}
    assert asked(api) == [f"GET {STATE}", f"POST {STATE}", f"POST {STATE}"]


def test_a_hundred_thousand_keys_are_loaded(api):
    values = {f"key {number}": "x" * 50 for number in range(100_000)}
    with opened(api, timeout=60.0, deadline=120.0) as store:
        written = store.commit("job", values).entries
        assert len(written) == 100_000
        assert store.load("job") == written == api.store.load("job")


def test_an_answer_larger_than_what_is_sent_at_once_is_whole(api, store):
    for number in (1_999, 2_000, 2_001, 4_000):
        written = store.commit(f"job {number}", {str(key): "1" for key in range(number)}).entries
        assert store.load(f"job {number}") == written


def test_history_names_the_process_of_the_client(api, store):
    store.commit("job", {"a": "1"}, run_id="run", reasons={"a": "why"})
    (change,) = api.store.history("job")
    assert (change.run_id, change.host, change.process, change.reason) == ("run", host(), os.getpid(), "why")
    assert store.history("job", "a") == [change]


def test_the_clock_and_the_facts_are_the_servers(store):
    assert abs((store.clock() - datetime.now(timezone.utc)).total_seconds()) < 60
    assert store.facts()["server"].endswith(", over MemoryStore")


def test_only_tokens_of_all_namespaces_see_the_store(tmp_path):
    (tmp_path / "tokens").write_text(
        "".join(
            f"{name} read {prefix} {sha256(name.encode()).hexdigest()}\n" for name, prefix in (("a", "*"), ("b", "b"))
        )
    )
    with (
        closing(apart(SQLiteStore(tmp_path / "state.db"))) as kept,
        ApiServer(kept, token=Access([], tmp_path / "tokens")) as api,
        opened(api, token="a") as whole,
        opened(api, token="b") as part,
    ):
        assert whole.facts().keys() == {"server", "SQLite", "journal mode", "file"}
        assert whole.facts()["server"].endswith(", over SQLiteStore")
        assert part.facts() == {"server": whole.facts()["server"].removesuffix(", over SQLiteStore")}
        assert abs((part.clock() - datetime.now(timezone.utc)).total_seconds()) < 60


# Lost answers


@pytest.mark.parametrize(
    "fault",
    [
        Drop(),
        Drop(applied=True),
        Drop(applied=True, reset=True),
        Cut(5),
        Answer(500),
        Answer(500, applied=True),
        Answer(502, "<html>", applied=True),
        Answer(503),
        Answer(504, "<html>", applied=True),
        Answer(429, headers={"Retry-After": "0"}),
    ],
    ids=str,
)
def test_a_commit_whose_answer_is_lost_lands_once(api, store, fault):
    base = store.commit("job", {"a": "1", "b": "1"}).entries
    script(api, fault)
    receipt = store.commit("job", {"a": "2", "b": None, "c": "2"}, {**base, "c": None}, run_id="run")
    assert receipt.entries == api.store.load("job")
    assert {key: entry.value for key, entry in receipt.entries.items()} == {"a": "2", "c": "2"}
    assert receipt.unsettled == frozenset()
    assert [(change.key, change.after) for change in api.store.history("job")][:3] == [
        ("a", "2"),
        ("b", None),
        ("c", "2"),
    ]
    assert len(api.store.history("job")) == 5


def test_deletions_whose_answer_is_lost_land_once(api, store):
    base = store.commit("job", {"a": "1", "b": "1"}).entries
    script(api, Drop(applied=True))
    assert store.commit("job", dict.fromkeys(base), base).entries == {}
    assert api.store.load("job") == {}
    assert len(api.store.history("job")) == 4


def test_an_equal_value_of_before_is_not_the_commits(api, store):
    base = store.commit("job", {"a": "same"}, run_id="run").entries
    script(api, Drop())
    receipt = store.commit("job", {"a": "same", "b": "1"}, {**base, "b": None}, run_id="run")
    assert receipt.entries == api.store.load("job")
    assert receipt.entries["a"].version == receipt.entries["b"].version == 2
    script(api, Drop())
    assert store.commit("job", {"a": "same"}, receipt.entries, run_id="run").entries["a"].version == 3


def test_an_equal_value_of_another_run_is_not_the_commits(api, store):
    base = store.commit("job", {"a": "1"}).entries
    script(api, Hook(before=lambda: api.store.commit("job", {"a": "2"}, run_id="other"), then=Drop()))
    with pytest.raises(Conflict) as caught:
        store.commit("job", {"a": "2"}, base, run_id="run")
    assert caught.value.found.sync_job_run_id == "other"


def written_over(api, cp):
    """Commit `a` and `b`, lose the answer, and let another writer replace `b` at once; return what it wrote."""
    theirs = []
    then = Hook(after=lambda: theirs.append(api.store.commit("job", {"b": "theirs"}).entries["b"]), then=Drop(True))
    script(api, then)
    cp["a"], cp["b"] = B, B
    return theirs


def test_a_lost_commit_over_which_another_wrote_is_found(api, store):
    """History shows it. The next commit meets the other writer."""
    with Checkpointer("job", store) as cp:
        cp["a"], cp["b"] = A, A
        cp.commit()
        theirs = written_over(api, cp)
        commit = cp.commit()
        assert commit.keys == ("a", "b")
        cp["b"] = A
        with pytest.raises(Conflict) as caught:
            cp.commit()
        assert (caught.value.key, caught.value.found) == ("b", theirs[0])
        cp.discard()
        assert (cp.raw["b"], cp["a"]) == ("theirs", B)
        cp["b"] = B
        cp.commit()
    assert [change.after for change in api.store.history("job", "a")] == [encode(B), encode(A)]


def test_a_lost_commit_over_which_another_deleted_is_found(api, store):
    written = store.commit("job", {"gone": "1"}).entries
    script(api, Hook(after=lambda: api.store.commit("job", {"new": None}), then=Drop(True)))
    receipt = store.commit("job", {"new": "2", "gone": None}, {**written, "new": None}, run_id="run")
    assert receipt.entries["new"][:2] == ("new", "2")
    (_, own) = api.store.history("job", "new")
    assert (receipt.entries["new"].version, receipt.entries["new"].updated_at) == (own.version, own.at)
    assert store.load("job") == {}


def test_without_history_what_was_lost_and_replaced_conflicts():
    with ApiServer(MemoryStore(keep=0)) as api, opened(api) as store, Checkpointer("job", store) as cp:
        cp["a"], cp["b"] = A, A
        cp.commit()
        theirs = written_over(api, cp)
        with pytest.raises(Conflict) as caught:
            cp.commit()
        assert (caught.value.key, caught.value.found) == ("b", theirs[0])
        cp.discard()
        assert (cp.raw["b"], cp["a"]) == ("theirs", B)


@pytest.mark.parametrize("writes", [1, 3, 4])
def test_what_history_has_forgotten_is_unknown(writes):
    """The server keeps three changes: that of the commit, and two of others."""
    with ApiServer(MemoryStore(keep=3)) as api, opened(api) as store:
        base = store.commit("job", {"a": "0"}).entries

        def others():
            for number in range(writes):
                api.store.commit("job", {"a": f"other {number}"})

        script(api, Hook(before=others, then=Drop()))  # it does not land
        with pytest.raises(CommitUnknown if writes > 3 else Conflict) as caught:
            store.commit("job", {"a": "1"}, base, run_id="run")
        assert caught.value.unsettled == {"a"}


@pytest.mark.parametrize("is_own", [False, True])
def test_what_another_process_did_alike_is_not_the_commits(api, store, is_own):
    base = store.commit("job", {"a": "1"}).entries

    def others():
        api.store.commit("job", {"a": "2"}, run_id="run", writer=Writer(host(), os.getpid() if is_own else 1))
        api.store.commit("job", {"a": "3"})

    script(api, Hook(before=others, then=Drop()))
    if is_own:
        assert store.commit("job", {"a": "2"}, base, run_id="run").entries["a"].version == 2
    else:
        with pytest.raises(Conflict):
            store.commit("job", {"a": "2"}, base, run_id="run")


def test_a_commit_that_lands_after_it_was_read_back_is_own(api, store):
    base = store.commit("job", {"a": "1"}).entries
    held = []

    async def hold(exchange):
        held.append(exchange)
        await exchange.end("reset")

    script(api, hold, Hook(before=lambda: api._in_loop(held[0].apply())))
    receipt = store.commit("job", {"a": "2"}, base, run_id="run")
    assert receipt.entries == api.store.load("job")
    assert len(api.store.history("job")) == 2


def test_what_is_not_compared_may_land_again(api, store):
    script(api, Drop(applied=True))
    assert store.commit("job", {"a": "1"}).unsettled == {"a"}
    assert len(api.store.history("job")) == 1
    script(api, Drop(applied=True))
    assert store.commit("job", {"a": "2"}, {"b": None}).unsettled == {"a"}
    script(api, Answer(503))  # which nobody is at work behind
    assert store.commit("job", {"a": "3"}).unsettled == frozenset()
    script(api, Answer(504))  # as the server says that ends before a store has answered
    assert store.commit("job", {"a": "4"}).unsettled == {"a"}


def test_an_outcome_that_cannot_be_read_back_is_unknown(api):
    with opened(api, timeout=0.2, deadline=1.0) as store:
        store.commit("job", {"a": "1"})
        script(api, Hang(applied=True), forever=True)
        script(api, Hang(), path=STATE, forever=True)
        with pytest.raises(CommitUnknown) as caught:
            store.commit("job", {"a": "2"}, run_id="run")
        assert (caught.value.keys, caught.value.unsettled) == (("a",), {"a"})
        api.clear()
        assert store.load("job")["a"].value == "2"


def test_a_run_goes_on_after_an_unknown_outcome(api):
    with opened(api, timeout=0.2, deadline=1.0) as store, Checkpointer("job", store) as cp:
        cp["a"] = A
        script(api, Drop(applied=True), Hang(), forever=True)
        script(api, Hang(), path=STATE, forever=True)
        with pytest.raises(CommitUnknown):
            cp.commit()
        assert cp.changed == {"a"}
        api.clear()
        cp["a"] = B
        cp.commit()
    assert len(api.store.history("job")) == 2


def test_a_comparison_alone_may_be_asked_for_again(api, store):
    base = store.commit("job", {"a": "1"}).entries
    script(api, Drop(), Drop(applied=True))
    assert store.commit("job", {}, base).entries == {}
    api.store.commit("job", {"a": "2"})
    script(api, Drop())
    with pytest.raises(Conflict):
        store.commit("job", {}, base)


# Gateways, other servers, other tokens


@pytest.mark.parametrize(
    "answer",
    [
        Answer(404, "<html>not here</html>"),
        Answer(404, {"statusCode": 404, "error": "Not Found", "message": "no"}),
        Answer(404, b""),
    ],
    ids=["page", "json", "empty"],
)
def test_a_404_is_never_an_empty_namespace(api, store, answer):
    store.commit("job", {"a": "1"})
    api.clear()
    script(api, answer, path=STATE, forever=True)
    with pytest.raises(StoreError, match=r"3 times\. Correct the base URL; if it is right, a gateway or"):
        store.load("job")
    assert asked(api) == [f"GET {STATE}"] * 3
    api.clear()
    script(api, answer, answer)
    assert store.commit("job", {"a": "2"}).retries == 2


@pytest.mark.parametrize(
    "body",
    [
        "<html>log in</html>",
        {"result": None},
        {"result": [1]},
        {"result": [{"key": "a"}]},
        {"result": [{"key": []}]},
        [],
    ],
)
def test_another_answer_than_the_servers_is_an_error(api, store, body):
    script(api, Answer(200, body), path=STATE)
    with pytest.raises(StoreError):
        store.load("job")
    script(api, Answer(200, body))
    with pytest.raises(StoreError) as caught:
        store.commit("job", {"a": "1"})
    assert caught.value.unsettled == {"a"}


@pytest.mark.parametrize("code", [[], "conflict", "value_too_large"], ids=str)
def test_a_refusal_that_no_call_knows_is_an_error(api, store, code):
    answer = Answer(409, {"code": code, "key": []}, headers={"checkpoint-time": "2024-05-01T10:00:00Z"})
    for path, call in (STATE, lambda: store.load("job")), (COMMIT, lambda: store.commit("job", {"a": "1"})):
        script(api, answer, path=path)
        with pytest.raises(StoreError, match="409|does not understand"):
            call()


def test_a_run_goes_on_after_an_answer_of_another(api, store):
    """It lands behind an answer that cannot be read, and after it was read back."""
    held = []

    async def hold(exchange):
        held.append(exchange)
        await exchange.send(Answer(200, "<html>log in</html>"))

    with Checkpointer("job", store) as cp:
        cp["a"] = A
        script(api, hold)
        with pytest.raises(StoreError):
            cp.commit()
        api._in_loop(held[0].apply())
        cp["a"] = B
        cp.commit()
    assert [change.cursor_after for change in api.store.history("job")] == [B, A]


ANOTHERS = [
    *[Answer(status, "<html>", {"Content-Type": "text/html"}) for status in (401, 403, 408, 413, 501, 505, 507, 520)],
    *[Answer(status, "<html>") for status in (522, 524, 200, 201, 303, 307)],
    Answer(204),
    Answer(200, {"result": []}),
    Answer(507, {"code": "unavailable"}),
    Answer(200, b"?", {"Content-Encoding": "br"}),
]
"""What gateways answer in the server's place, after it has made a commit or before."""


@pytest.mark.parametrize("answer", ANOTHERS, ids=str)
def test_what_a_gateway_answers_for_a_commit_is_looked_up(api, store, answer):
    base = store.commit("job", {"a": "1"}).entries
    script(api, replace(answer, applied=True))
    receipt = store.commit("job", {"a": "2"}, base, run_id="run")
    assert receipt.entries == api.store.load("job")
    assert receipt.unsettled == frozenset()
    assert len(api.store.history("job")) == 2
    script(api, Hook(after=lambda: api.store.commit("job", {"a": "theirs"}), then=replace(answer, applied=True)))
    store.commit("job", {"a": "3"}, receipt.entries, run_id="run")
    assert [change.after for change in api.store.history("job")] == ["theirs", "3", "2", "1"]


@pytest.mark.parametrize("answer", [answer for answer in ANOTHERS if answer.status != 408], ids=str)
def test_what_a_gateway_refuses_is_unsettled(api, store, answer):
    base = store.commit("job", {"a": "1"}).entries
    api.clear()
    script(api, answer)
    with pytest.raises(StoreError) as caught:
        store.commit("job", {"a": "2"}, base, run_id="run")
    assert caught.value.unsettled == {"a"}
    assert type(caught.value) in {StoreError, Unauthorized, ValueTooLarge}
    assert asked(api)[:2] == [f"POST {COMMIT}", f"GET {STATE}"]
    assert COMMIT not in str(asked(api)[1:])


def test_a_comparison_that_a_gateway_refuses_is_not_looked_up(api, store):
    script(api, Answer(507, "<html>"))
    with pytest.raises(StoreError) as caught:
        store.commit("job", {}, {"a": None})
    assert caught.value.unsettled == frozenset()
    assert asked(api) == [f"POST {COMMIT}"]


def test_what_the_server_refuses_itself_is_certain(api, store):
    for status, code in (500, "refused"), (501, "unsupported"), (403, None), (413, None), (401, None):
        body = {"statusCode": status, "error": "x", "message": "y", "code": code}
        script(api, Answer(status, body, {"checkpoint-time": "2024-05-01T10:00:00Z"}))
        with pytest.raises(StoreError) as caught:
            store.commit("job", {"a": "1"})
        assert caught.value.unsettled == frozenset()
    assert asked(api) == [f"POST {COMMIT}"] * 5


def test_a_doubt_about_a_commit_lasts_until_it_is_read_back(api, store):
    base = store.commit("job", {"a": "1"}).entries
    api.clear()
    script(api, Answer(507, "<html>", applied=True))
    script(api, Answer(429, headers={"Retry-After": "0"}), Answer(503, "<html>"), path=STATE)
    assert store.commit("job", {"a": "2"}, base, run_id="run").entries == api.store.load("job")
    assert asked(api) == [f"POST {COMMIT}", *[f"GET {STATE}"] * 3]


def test_a_commit_sent_again_with_another_token_lands_once(tmp_path):
    """A gateway answers 401 after the server has made the commit; the source has another token by then."""
    lines = [f"{name} write * {sha256(name.encode()).hexdigest()}\n" for name in ("old", "new")]
    (tmp_path / "tokens").write_text("".join(lines))
    tokens = iter(["old", "new"])
    with ApiServer(token=Access([], tmp_path / "tokens")) as api, opened(api, token=lambda: next(tokens)) as store:
        base = store.commit("job", {"a": "1"}).entries
        script(api, Answer(401, "<html>", applied=True))
        receipt = store.commit("job", {"a": "2"}, base, run_id="run")
        assert receipt.entries == api.store.load("job")
        assert [call.headers["authorization"] for call in api.requests][-3:] == ["Bearer old", *["Bearer new"] * 2]


def test_a_redirect_is_not_followed(api, store):
    script(api, Answer(301, headers={"Location": f"{api.url}{STATE}"}), path=STATE)
    with pytest.raises(StoreError, match="redirects"):
        store.load("job")


def test_a_commit_too_large_for_the_server_says_what_to_do(api, store):
    api.set(max_commit=2_000)
    with pytest.raises(StoreError, match="a commit of 100 keys and .* bytes is too large.*commit fewer keys at once"):
        store.commit("job", {str(key): "x" * 50 for key in range(100)})
    with pytest.raises(ValueTooLarge) as caught:
        store.commit("job", {"a": "x" * 3_000})
    assert (caught.value.key, caught.value.size) == ("a", 3_000)
    assert store.load("job") == {}


@pytest.mark.parametrize("prefix", ["", "/rewrites"])
def test_a_run_goes_through_nginx(api, tmp_path, prefix):
    with running_nginx(api.url, tmp_path) as base_url, opened(api, f"server+{base_url}{prefix}") as store:
        keys = ["a", "a/b", "x/../a", "a%2Fb", "a?b", "é", "x" * 2_000]
        with Checkpointer("job/../é", store, exclusive=True) as cp:
            for key in keys:
                cp[key] = A
            cp.commit()
            script(api, Drop(applied=True))  # nginx says 502
            cp["a"] = B
            assert cp.commit().retries == 1
        with Checkpointer("job/../é", store, exclusive=True) as cp:
            assert dict(cp) == {**dict.fromkeys(keys, A), "a": B}
            assert len(cp.history("a")) == 2
    assert {call.path for call in api.requests} == {STATE, COMMIT, "/v1/history"}


def test_a_nginx_without_a_server_behind_it_is_waited_for(tmp_path):
    behind = MemoryStore()
    with ApiServer(behind) as api:
        url, token = api.url, api.token
    port = int(url.rpartition(":")[2])
    with running_nginx(url, tmp_path) as base_url, opened(None, base_url, token, deadline=1.0) as store:
        with pytest.raises(StoreUnavailable, match="502"):
            store.load("job")
        with ApiServer(behind, port=port):
            assert store.load("job") == {}


def test_a_token_that_is_refused_is_asked_for_again(api):
    tokens = ["old", api.token]
    with opened(api, token=lambda: tokens.pop(0)) as store:
        assert store.load("job") == {}
    assert tokens == []
    with opened(api, token="wrong-token") as store:
        for call in (lambda: store.load("job"), lambda: store.commit("job", {"a": "1"}), store.namespaces, store.clock):
            with pytest.raises(Unauthorized) as caught:
                call()
            assert "wrong-token" not in f"{caught.value!r} {store!r}"
    assert api.store.load("job") == {}


def test_the_token_comes_from_the_environment_or_a_file(api, tmp_path, monkeypatch):
    monkeypatch.delenv("CHECKPOINT_TOKEN", raising=False)
    with pytest.raises(ValueError, match="no API token: set CHECKPOINT_TOKEN, or pass token="):
        ServerStore(api.url)
    (tmp_path / "token").write_text(f"{api.token}\n")
    monkeypatch.setenv("CHECKPOINT_TOKEN_FILE", str(tmp_path / "token"))
    with closing(open_store(f"server+{api.url}?deadline=5&timeout=2")) as store:
        assert (store.deadline, store.load("job")) == (5.0, {})
        assert repr(store) == f"ServerStore({api.url!r})"
    monkeypatch.setenv("CHECKPOINT_TOKEN", "another")
    with (
        closing(open_store(f"server+{api.url}/")) as store,
        pytest.raises(Unauthorized, match=r"from \$CHECKPOINT_TOKEN"),
    ):
        store.load("job")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "server+https:///x",
            "a server's URL must be a URL such as server+https://checkpoint.example.com, not 'https:///x'",
        ),
        ("server+https://", "a server's URL must be a URL such as"),
        ("server+https://user:word@host", "a server's URL must not have a user"),
        ("server+https://host?rate=1/1", "a store's URL may have the options deadline, timeout"),
        ("server+https://host?timeout=0", "timeout='0' in the store's URL cannot be read"),
        ("server+https://host name", "is not a valid name"),
    ],
)
def test_urls_that_are_none_are_refused(monkeypatch, url, said):
    monkeypatch.setenv("CHECKPOINT_TOKEN", "t")
    with pytest.raises(ValueError, match=said.replace("+", r"\+")):
        open_store(url)


def test_a_token_reaches_what_its_line_says_and_signs_commits(tmp_path):
    digest = {name: sha256(f"token of {name}".replace(" ", "-").encode()).hexdigest() for name in ("crm", "reader")}
    file = tmp_path / "tokens"
    file.write_text(f"crm write crm_ {digest['crm']}\nreader read * {digest['reader']}\n")
    behind = MemoryStore()
    behind.commit("billing", {"a": "1"})
    with ApiServer(behind, token=Access((), file)) as api:
        with opened(api, token="token-of-crm") as store:
            store.commit("crm_eu", {"a": "1"}, run_id="run")
            assert store.namespaces() == ["crm_eu"]
            assert [change.by for change in store.history("crm_eu")] == ["crm"]
            for call in (lambda: store.load("billing"), lambda: store.commit("billing", {"a": "2"})):
                with pytest.raises(Unauthorized, match="403"):
                    call()
        with opened(api, token="token-of-reader") as store:
            assert store.namespaces() == ["billing", "crm_eu"]
            assert store.read("billing", ["a", "b"]).keys() == {"a"}  # a POST, which only reads
            with pytest.raises(Unauthorized, match="403"):
                store.commit("billing", {"a": "2"})
    assert behind.load("billing")["a"].value == "1"


# What the store behind the server cannot do


def test_a_store_that_writes_key_by_key_is_not_served(truto):
    with ApiServer(truto) as api, opened(api) as store:
        for call in (lambda: store.load("job"), lambda: store.commit("job", {"a": "1"}), store.namespaces):
            with pytest.raises(StoreError, match="the TrutoStore behind this server writes key by key, and /v1 needs"):
                call()


def test_a_server_without_history_or_namespaces_says_so():
    with ApiServer(Bare()) as api, opened(api) as store:
        with pytest.raises(StoreError, match="the Bare behind this server keeps no history"):
            store.history("job")
        with pytest.raises(StoreError, match="the Bare behind this server does not list its namespaces"):
            store.namespaces()
        store.commit("job", {"a": "1"}, reasons={"a": "why"})
        assert store.read("job", ["a", "b"]).keys() == {"a"}


@pytest.mark.usefixtures("recorded")
def test_no_runs_are_recorded_where_no_history_is_kept(caplog):
    with ApiServer(Bare()) as api, opened(api) as store:
        with Checkpointer("job", store) as cp:
            cp["a"] = A
            with pytest.raises(StoreError, match="keeps no history"):
                cp.runs()
        assert api.store.load("job").keys() == {"a"}
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.usefixtures("recorded")
def test_runs_are_recorded_where_history_is_kept(api, store):
    with Checkpointer("job", store, run_id="nightly") as cp:
        cp["a"] = A
    with Checkpointer("job", store) as cp:
        assert [(run.run_id, run.outcome, run.host, run.process) for run in cp.runs()][1:] == [
            ("nightly", "done", host(), os.getpid())
        ]
    assert RUN_KEY in api.store.load("job")


def test_what_the_store_refuses_is_told_once(tmp_path):
    with ApiServer(SQLiteStore(tmp_path / "missing" / "state.db")) as api, opened(api) as store:
        with pytest.raises(StoreError, match="cannot be created, because its folder does not exist: create the folder"):
            store.load("job")
        assert len(api.requests) == 1


def test_a_store_that_is_away_for_now_is_asked_again():
    class Away(MemoryStore):
        left = 2

        def commit(self, *args, **options):
            self.left -= 1
            if self.left >= 0:
                raise StoreUnavailable("away")
            return super().commit(*args, **options)

    with ApiServer(Away()) as other, opened(other) as store:
        assert store.commit("job", {"a": "1"}).requests == 3
        assert asked(other) == [f"POST {COMMIT}"] * 3  # nothing was written, so there is nothing to read back


def test_a_store_that_does_not_know_is_read_back():
    class Forgetful(MemoryStore):
        def commit(self, state_key, changes, *args, **options):
            receipt = super().commit(state_key, changes, *args, **options)
            if receipt.entries["a"].value == "lost":
                raise CommitUnknown(state_key, changes)
            return receipt

    with ApiServer(Forgetful()) as other, opened(other) as store:
        assert store.commit("job", {"a": "lost"}, {"a": None}, run_id="run").entries == other.store.load("job")
        assert asked(other) == [f"POST {COMMIT}", f"GET {STATE}"]


# For other languages


def test_the_api_answers_whoever_speaks_it(api):
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {api.token}"}, trust_env=False) as client:
        first = {"state_key": "job", "changes": {"a": "1", "b": "1"}, "run_id": "r", "host": "h", "process": 7}
        answer = client.post(COMMIT, json=first)
        (a, b) = answer.json()["result"]
        assert (answer.status_code, a["key"], b["version"], a["sync_job_run_id"]) == (200, "a", 1, "r")
        assert answer.headers["checkpoint-history"] == "kept"
        told = client.get(STATE, params={"state_key": "job", "key": "a"}).json()["result"]
        assert told == [{**a, "value": "1"}]
        base = {"a": {"value": "1", "version": 1, "updated_at": a["updated_at"]}}
        assert client.post(COMMIT, json={"state_key": "job", "changes": {"a": None}, "base": base}).status_code == 200
        conflict = client.post(COMMIT, json={"state_key": "job", "changes": {"b": "2"}, "base": base})
        assert (conflict.status_code, conflict.json()["code"]) == (409, "conflict")
        assert (conflict.json()["key"], conflict.json()["found"]) == ("a", None)
        changes = client.get("/v1/history", params={"state_key": "job", "limit": "1"}).json()["result"]
        assert [(change["key"], change["after"]) for change in changes] == [("a", None)]
        assert client.get("/v1/namespaces").json() == {"result": ["job"]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "state_key is required"),
        ({"state_key": "job"}, "changes must be a JSON object"),
        ({"state_key": "job", "changes": []}, "changes must be a JSON object"),
        ({"state_key": "job", "changes": {"a": 1}}, "the value of 'a' must be a str, not int"),
        ({"state_key": "job", "changes": {"": "1"}}, "key must not be ''"),
        ({"state_key": "job", "changes": {}, "base": {"a": 1}}, "base: it must be a JSON object"),
        ({"state_key": "job", "changes": {}, "process": -1}, "process must be a number from 0 to 1000000000000000"),
        ({"state_key": "job", "changes": {}, "host": 1}, "host must be a str, not int"),
        ({"state_key": "job", "changes": {}, "new": 1}, "new is not a parameter of this request"),
        ([], "the body must be a JSON object"),
        (b"{", "the body must be JSON"),
    ],
)
def test_a_bad_commit_is_refused_with_a_sentence(api, body, said):
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    headers = {"Authorization": f"Bearer {api.token}"}
    answer = httpx.post(f"{api.url}{COMMIT}", headers=headers, trust_env=False, **content)
    assert (answer.status_code, answer.json()["message"]) == (400, said)


# Processes


def test_a_forked_child_has_connections_of_its_own(api, store):
    base = store.commit("job", {"a": "1"}).entries
    child = os.fork()
    if not child:
        try:
            store.commit("job", {"a": "2"}, base)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the child of a fork must not go on with the tests
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(Conflict):
        store.commit("job", {"a": "3"}, base)
    assert store.load("job")["a"].value == "2"


def test_a_store_tells_after_three_seconds_that_it_waits(api, caplog):
    started = time.monotonic()
    script(api, *[Answer(503, headers={"Retry-After": "1"})] * 60, path=STATE)
    with opened(api, deadline=5.0) as store, pytest.raises(StoreUnavailable):
        store.load("job")
    assert time.monotonic() - started < 8
    (told,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith(f"{api.url}: no usable answer yet, trying for up to 5 s: 503")


def test_a_store_is_not_pickled_with_its_token(store):
    with pytest.raises(TypeError):
        pickle.dumps(store)


def test_an_entry_may_have_any_text(store):
    entry = Entry("a", "\ud7ff\0\u2028", None, None, None, None)
    assert store.commit("job", {"a": entry.value}).entries["a"].value == entry.value
    assert store.commit("job", {"a": "1"}, {"a": entry}).entries["a"].value == "1"
