"""The fault matrix, rows 79, 81 to 83, 91 to 94, 96 and 97: gateways, proxies, names, deadlines, interruptions.

Against real sockets, and a real nginx where it is installed.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress

import pytest
from nginx_server import running_nginx

from checkpoint import Checkpointer, CommitUnknown, Conflict, StoreError, StoreUnavailable, Unauthorized
from checkpoint.codec import encode
from checkpoint.stores import open_store, retrying
from checkpoint.stores.network import resolve
from checkpoint.stores.route import route_to
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import Answer, ApiServer, Delay, Hang

A, B = {"at": 1}, {"at": 2}
EMPTY = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 13\r\n\r\n{"result":[]}'
)
REWRITES = "a gateway or proxy answers in place of the API, or rewrites paths"


@pytest.fixture
def stores(api):
    made = []

    def make(url=None, token=None, **options):
        made.append(TrutoStore(url or api.url, token or api.token, **{"timeout": 5.0, "deadline": 10.0, **options}))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def asked(api):
    return [f"{call.method} {call.key or ''}".strip() for call in api.requests]


def seed(api, **cursors):
    api.store.commit("run", {key: encode(cursor) for key, cursor in cursors.items()})


def held(api):
    return {key: entry.value for key, entry in api.store.load("run").items()}


# 79: only a GET may stand for a write


def test_fault_79_setting_an_old_value_back_is_sent(api, stores):
    seed(api, **{f"k{n}": A for n in range(3)})
    api.set(stale_list=True)
    with Checkpointer("run", stores()) as cp:
        for cursor in (B, A):
            for key in cp:
                cp[key] = cursor
            cp.commit()
    assert held(api) == {f"k{n}": encode(A) for n in range(3)}
    assert asked(api).count("PATCH k0") == 2


def test_fault_79_deleting_new_keys_past_a_stale_list_is_sent(api, stores):
    api.set(stale_list=True)
    with Checkpointer("run", stores()) as cp:
        for key in ("a", "b", "c"):
            cp[key] = A
        cp.commit()
        for key in ("a", "b", "c"):
            del cp[key]
        cp.commit()
    assert held(api) == {}


def test_fault_79_a_list_that_shows_the_new_value_is_confirmed(api, stores):
    store = stores()
    seed(api, a=A, b=A)
    base = store.load("run")
    seed(api, a=B, b=B)
    api.clear()
    store.commit("run", {"a": encode(B), "b": encode(B)}, base)
    assert sorted(asked(api)) == ["GET", "GET a", "GET b"]


def test_fault_79_a_list_alone_stands_for_no_write(api, stores):
    store = stores()
    seed(api, a=A, b=A)
    base = store.load("run")
    seed(api, a=B)
    api.script(Answer(200, {"result": [{"key": key, "value": encode(A)} for key in "ab"]}), method="GET")
    with pytest.raises(Conflict) as caught:
        store.commit("run", {"a": encode(A), "b": encode(B)}, base)
    assert caught.value.key == "a"
    assert held(api) == {"a": encode(B), "b": encode(A)}


# 81: gateways that rewrite paths


@pytest.fixture
def nginx(api, tmp_path):
    """Yield the address of an nginx that decodes and normalises paths before it passes them on."""
    with running_nginx(api.url, tmp_path) as base_url:
        yield f"{base_url}/rewrites"


@pytest.mark.parametrize("key", ["a/b", "x/../a", "a/./b", "a//b", "a/"])
@pytest.mark.parametrize("on_conflict", ["raise", "overwrite"])
def test_fault_81_nothing_is_written_through_a_rewriting_nginx(api, nginx, stores, key, on_conflict):
    api.store.commit("run", {key: encode(A), "a": encode(A)})
    before = api.store.load("run")
    with Checkpointer("run", stores(nginx), on_conflict=on_conflict) as cp:
        assert set(cp) == {key, "a"}
        cp[key] = B
        with pytest.raises(StoreError, match=REWRITES):
            cp.commit()
        cp.discard()
        del cp[key]
        with pytest.raises(StoreError, match=REWRITES):
            cp.commit()
        cp.discard()
    assert api.store.load("run") == before
    assert [call.method for call in api.requests if call.method != "GET"] == []


def test_fault_81_a_gateway_that_decodes_twice_is_found(stores):
    def decode(request):
        line, rest = request.split(b"\r\n", 1)
        return line.replace(b"%25", b"%") + b"\r\n" + rest

    with gateway(decode) as (upstream, url):
        upstream.store.commit("run", {"a%2Fb": encode(A), "a/b": encode(A)})
        with Checkpointer("run", stores(url), on_conflict="overwrite") as cp:
            cp["a%2Fb"] = B
            with pytest.raises(StoreError, match=REWRITES):
                cp.commit()
            cp.discard()
        assert held(upstream) == {"a%2Fb": encode(A), "a/b": encode(A)}


@pytest.mark.parametrize(
    ("change", "key", "other"),
    [
        (bytes.lower, "Deals", "deals"),
        (lambda line: line.replace(b".?", b"?"), "deals.", "deals"),
        (lambda line: line.replace(b"%20?", b"?"), "deals ", "deals"),
        (lambda line: line.replace(b"%2B", b"%20"), "a+b", "a b"),
        (lambda line: line.replace(b"%3Bx", b""), "a;x", "a"),
        (lambda line: line.replace(b"%3F", b"?"), "a?b", "a"),
        (lambda line: line.replace(b"%EF%AC%81", b"fi"), "\ufb01", "fi"),
    ],
    ids=["case", "dot", "blank", "plus", "semicolon", "question mark", "ligature"],
)
@pytest.mark.parametrize("deletes", [False, True])
def test_fault_81_a_key_taken_for_another_is_not_written(stores, change, key, other, deletes):
    def careless(request):
        line, rest = request.split(b"\r\n", 1)
        method, path, version = line.split(b" ", 2)
        path, mark, query = path.partition(b"?")
        return method + b" " + change(path + mark) + query + b" " + version + b"\r\n" + rest

    with gateway(careless) as (upstream, url):
        before = {key: encode(A), other: encode(A), "x": encode(A), "y": encode(A)}
        upstream.store.commit("run", before)
        with Checkpointer("run", stores(url), on_conflict="overwrite") as cp:
            cp["x"], cp["y"] = B, B
            cp[key] = B
            if deletes:
                del cp[key]
            with pytest.raises(StoreError, match=f"{REWRITES}|state_key is required"):
                cp.commit()
            cp.discard()
        assert held(upstream) == before


def test_fault_81_keys_that_look_alike_are_read_once_in_a_run(api, stores):
    api.store.commit("run", {"A": encode(A), "a": encode(A), "b": encode(A)})
    with Checkpointer("run", stores(), on_conflict="overwrite") as cp:
        for cursor in (B, A, B):
            for key in cp:
                cp[key] = cursor
            cp.commit()
    assert [asked(api).count(f"GET {key}") for key in ("A", "a", "b")] == [1, 1, 0]


def test_fault_81_other_keys_go_through_a_rewriting_nginx(api, nginx, stores):
    seed(api, a=A)
    with Checkpointer("run", stores(nginx)) as cp:
        cp["a"], cp["new key ü"] = B, B
        cp.commit()
    assert held(api) == {"a": encode(B), "new key ü": encode(B)}


def test_fault_81_a_slash_is_read_once_in_a_run(api, stores):
    api.store.commit("run", {f"a/{n}": encode(A) for n in range(3)})
    with Checkpointer("run", stores(), on_conflict="overwrite") as cp:
        for cursor in (B, A, B):
            for key in cp:
                cp[key] = cursor
            cp.commit()
    assert [asked(api).count(f"GET a/{n}") for n in range(3)] == [1, 1, 1]


def test_fault_81_a_missing_loaded_key_is_looked_up_in_a_list(api, stores):
    seed(api, a=A)
    with Checkpointer("run", stores()) as cp:
        cp["a"] = B
        api.script(Answer(404), method="GET", key="a", forever=True)
        with pytest.raises(StoreError, match="'a' was not found, though the list has it") as caught:
            cp.commit()
        assert type(caught.value) is StoreError
        api.clear()
        api.store.commit("run", {"a": None})
        with pytest.raises(Conflict) as gone:
            cp.commit()
        assert gone.value.found is None
        cp.discard()


@pytest.mark.parametrize("on_conflict", ["raise", "overwrite"])
def test_fault_81_a_delete_without_effect_is_not_acknowledged(api, stores, on_conflict):
    seed(api, a=A)
    with Checkpointer("run", stores(), on_conflict=on_conflict) as cp:
        del cp["a"]
        api.script(Answer(404), method="DELETE")
        with pytest.raises(StoreError, match=REWRITES):
            cp.commit()
        cp.discard()
    assert held(api) == {"a": encode(A)}


# 82: a gateway's own 404 on the list


GATEWAY = Answer(404, {"message": "no Route matched with those values"})


def test_fault_82_a_gateways_404_is_tried_again(api, stores):
    seed(api, a=A)
    api.script(GATEWAY, GATEWAY)
    assert set(stores().load("run")) == {"a"}
    assert asked(api) == ["GET"] * 3


@pytest.mark.parametrize(
    "answer",
    [
        GATEWAY,
        Answer(404, "not here"),
        Answer(404, b""),
        Answer(404, [1]),
        Answer(404, {"status": 404}),
        Answer(404, {"statusCode": None}),
        Answer(404, {"statusCode": 502, "message": "upstream"}),
        Answer(404, {"error": {"statusCode": 404}}),
    ],
)
def test_fault_82_a_gateways_404_is_never_a_fresh_start(api, stores, answer):
    seed(api, a=A)
    api.script(answer, forever=True)
    began = time.monotonic()
    with pytest.raises(StoreError, match=REWRITES), Checkpointer("run", stores()):
        pass
    assert time.monotonic() - began < 5


# 83: addresses


CONTROLS = ["{}\n", "{}\r\n", " {}", "{} ", "{}\t", "{}\x00", "{}/a\tb", "{}\x1b[0m", "{}\x7f"]


@pytest.mark.parametrize("text", CONTROLS)
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9",
        "https://h",
        "sqlite:///state.db",
        "memory://m",
        "postgresql://h/db",
        "s3://b/p",
        "other://x",
    ],
)
def test_fault_83_urls_with_control_characters_are_refused(url, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRUTO_API_TOKEN", "test-token")
    url = text.format(url)
    with pytest.raises(ValueError, match="control characters") as caught:
        open_store(url)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="control characters"):
        Checkpointer("run", url)
    monkeypatch.setenv("CHECKPOINT_STORE", url.replace("\x00", "\x01"))
    with pytest.raises(ValueError, match="control characters"), Checkpointer("run"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [text for text in CONTROLS if "\x00" not in text])
def test_fault_83_the_stores_own_constructor_refuses_them_too(text):
    with pytest.raises(ValueError, match="control characters"):
        TrutoStore(text.format("http://127.0.0.1:9"), "token")


@pytest.mark.parametrize(
    "host",
    [
        *["a..b", "x" * 64 + ".com", "\u2603\ufdd0.com", "xn--\u00fc.com", ".example", "\u0640\u0640", "a\u200bb..c"],
        *["h;x", "h,x", "h|x", "<h>", "h%20x", "h%2fx", "h\\x", "h x", "[::1", "[fe80::g]", "999.1.1.1"],
        *["h:0", "h:99999", "h:-1", "h:80x", "user:hidden-word@h", "user@h", "h?x", "h#x"],
    ],
)
def test_fault_83_a_host_that_is_no_name_is_refused(host):
    for scheme in ("http", "https"):
        with pytest.raises(ValueError, match=r"host|base URL") as caught:
            TrutoStore(f"{scheme}://{host}", "token")
        assert "hidden-word" not in str(caught.value)


@pytest.mark.parametrize("host", ["[::1]", "LOCALHOST"])
def test_fault_83_hosts_of_unusual_spelling_are_reached(stores, host):
    def serve(connection):
        if message(connection):
            connection.sendall(EMPTY)

    with between(serve, "::1" if host[0] == "[" else "127.0.0.1") as port:
        assert stores(f"HTTP://{host}:{port}").load("run") == {}


def test_fault_83_the_zone_of_an_address_is_looked_up(monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    for host in ("fe80::1%25eth0", "fe80::1%eth0"):
        assert resolve(host, 80).result() == []
    assert asked == ["fe80::1%eth0"] * 2


def test_fault_83_options_of_a_url_reach_the_store(api, monkeypatch):
    monkeypatch.setenv("TRUTO_API_TOKEN", api.token)
    with closing(open_store(f"{api.url}?rate=50/10&concurrency=7&timeout=5&deadline=0.5")) as store:
        assert (store.deadline, store._timeout, store._service._concurrency) == (0.5, 5.0, 7)
        assert store._service._rate == (50, 10.0)
        api.script(Hang(), forever=True)
        with pytest.raises(StoreUnavailable):
            store.load("run")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("deadline=soon", "deadline='soon' in the store's URL cannot be read"),
        ("deadline=nan", "deadline='nan' in the store's URL cannot be read"),
        ("timeout=-1", "timeout='-1' in the store's URL cannot be read"),
        ("concurrency=1.5", "concurrency='1.5' in the store's URL cannot be read"),
        ("concurrency=0", "must be greater than 0"),
        ("rate=50", "it must be requests/seconds, such as 500/10"),
        ("rate=50/0", "rate='50/0' in the store's URL cannot be read"),
        ("deadline=1&deadline=2", "'deadline' occurs twice"),
        ("dedline=1", "a store's URL may have the options concurrency, deadline, rate, timeout"),
        ("deadline=1&x", "a store's URL may have the options concurrency, deadline, rate, timeout"),
    ],
)
def test_fault_83_an_option_that_is_none_is_refused(query, said, monkeypatch):
    monkeypatch.setenv("TRUTO_API_TOKEN", "test-token")
    with pytest.raises(ValueError, match=r".") as caught:
        open_store(f"https://api.truto.one?{query}")
    assert said in str(caught.value)


# 91: one deadline for everything


def test_fault_91_silent_addresses_share_the_deadline(stores, monkeypatch):
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"10.255.255.{n}", 80)) for n in range(1, 9)]
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: addresses if host == "many.example" else real(host, *rest, **more),
    )
    monkeypatch.setattr(socket.socket, "connect", lambda self, _: time.sleep(self.gettimeout()) or timed_out())
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="gave up after"):
        stores("http://many.example", timeout=0.8, deadline=1.5).load("run")
    assert time.monotonic() - began < 2.5


def timed_out():
    """Raise what the system raises where nobody answers."""
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(0.001)
        one.recv(1)


def test_fault_91_silent_addresses_leave_time_for_the_last(api, stores, monkeypatch):
    port, real, given = int(api.url.rpartition(":")[2]), socket.socket.connect, []

    def connect(self, address):
        given.append(self.gettimeout())
        if address[0].startswith("10."):
            time.sleep(self.gettimeout())
            timed_out()
        real(self, address)

    hosts = [*(f"10.255.255.{n}" for n in range(1, 9)), "127.0.0.1"]
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]
    monkeypatch.setattr(socket, "getaddrinfo", addressed(addresses))
    store = stores(f"http://two.example:{port}", timeout=1.0, deadline=1.5)
    monkeypatch.setattr(socket.socket, "connect", connect)
    assert store.load("run") == {}
    assert given == pytest.approx([1 / 9] * 9, rel=0.01)  # the first one's share is what is left for the last


def test_fault_91_the_answering_address_is_found(api, stores, monkeypatch):
    port = int(api.url.rpartition(":")[2])
    closed = socket.create_server(("127.0.0.1", 0))
    closed.close()
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.9", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", addressed(addresses))
    assert stores(f"http://two.example:{port}").load("run") == {}


def addressed(addresses, real=socket.getaddrinfo):
    return lambda host, *rest, **more: addresses if host.endswith(".example") else real(host, *rest, **more)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_fault_91_a_silent_name_server_meets_the_deadline(stores, monkeypatch, scheme):
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(20) and [])
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="gave up after"):
        stores(f"{scheme}://slow.example", timeout=0.4, deadline=1.0).load("run")
    assert time.monotonic() - began < 3
    released.set()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_fault_91_a_silent_name_server_keeps_no_process_alive(scheme):
    code = f"""
import socket, time
from checkpoint import StoreUnavailable, TrutoStore
socket.getaddrinfo = lambda *_, **__: time.sleep(60)
store = TrutoStore("{scheme}://slow.example", "token", deadline=0.5)
try:
    store.load("run")
except StoreUnavailable:
    store.close()
    print("gave up")
"""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=45, check=True)
    assert done.stdout == b"gave up\n"


def test_fault_91_an_endless_list_ends_at_the_deadline(api, stores):
    seed(api, a=A)

    pages = iter(range(1_000_000))

    async def endless(exchange):
        await exchange.send(Answer(200, {"result": [], "next_cursor": f"page {next(pages)}"}))

    api.script(endless, forever=True)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"gave up after .*; \d+ pages of the list of 'run' were read before"):
        stores(deadline=1.0, rate=(1_000_000, 1.0)).load("run")
    assert 0.9 < time.monotonic() - began < 3


def test_fault_91_slow_pages_share_the_deadline(api, stores):
    seed(api, **{f"k{n}": A for n in range(9)})
    api.set(page_size=1)
    api.script(Delay(0.4), forever=True)
    with pytest.raises(StoreUnavailable, match="gave up after 1 attempt in"):
        stores(deadline=1.0).load("run")


def test_fault_91_the_look_and_the_write_share_the_deadline(api, stores):
    seed(api, a=A)
    store = stores(deadline=4.0)
    base = store.load("run")
    api.script(Answer(503, headers={"Retry-After": "3"}), method="GET", key="a")
    api.script(Hang(), method="PATCH", forever=True)
    with pytest.raises(CommitUnknown) as caught:
        store.commit("run", {"a": encode(B)}, base)
    seconds = re.search(r"gave up after 1 attempt in ([\d.]+) s", str(caught.value.__cause__))
    assert float(seconds[1]) < 1.5  # half a second, besides the one for reading back; 2.0 with a deadline each


def test_fault_91_the_attempts_go_on_until_the_deadline(api, stores):
    api.script(Answer(503), forever=True)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        stores(deadline=3.0).load("run")
    assert f"gave up after {len(api.requests)} attempts in " in str(caught.value)
    assert 0.5 < time.monotonic() - began < 4


# 92: a server that closes without saying so


def message(connection):
    """Read a request or an answer, whose length a header tells."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (piece := connection.recv(65536)):
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    while len(body) < int(length[1] if length else 0):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def between(serve, host="127.0.0.1"):
    """Listen, and call for each connection, in a thread of its own; yield the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=64) as listener:

        def served(connection):
            with connection:
                serve(connection)

        def accept():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connections.append(connection)
                threads.append(threading.Thread(target=served, args=[connection]))
                threads[-1].start()

        connections = []
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        try:
            yield listener.getsockname()[1]
        finally:  # or else a test that fails waits for ever
            listener.shutdown(socket.SHUT_RDWR)
            threads[0].join()
            for connection in connections:  # some may never have carried a request
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


@contextmanager
def gateway(change=lambda request: request, answers=1):
    """Serve the API behind a gateway that closes each connection after so many answers, and does not say so."""
    with ApiServer() as upstream:

        def serve(connection):
            for _ in range(answers):
                if not (request := message(connection)):
                    return
                with socket.create_connection(("127.0.0.1", int(upstream.url.rpartition(":")[2]))) as onward:
                    onward.sendall(change(request))
                    connection.sendall(message(onward))

        with between(serve) as port:
            yield upstream, f"http://127.0.0.1:{port}"


def test_fault_92_a_server_that_closes_without_saying_so_works(stores):
    with gateway() as (upstream, url):
        with Checkpointer("run", stores(url)) as cp:
            for number in range(20):
                cp["a"], cp["b"] = {"at": number}, {"at": number}
                cp.commit()
        assert held(upstream) == {"a": encode({"at": 19}), "b": encode({"at": 19})}


# 93: Retry-After


@pytest.mark.parametrize(
    "text", ["1e400", "inf", "nan", "-1", "0x10", "1_000", "1.5", "5 minutes", "Infinity", "-0", ""]
)
def test_fault_93_a_retry_after_that_is_no_number_is_ignored(api, stores, text):
    api.script(Answer(503, headers={"Retry-After": text}))
    began = time.monotonic()
    assert stores().load("run") == {}
    assert time.monotonic() - began < 3


# 94: proxies and certificates


@contextmanager
def proxy(answer=b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"):
    """Give every request the same answer; yield the port and what was asked for."""
    heads = []

    def serve(connection):
        if head := connection.recv(10_000):
            heads.append(head)
            connection.sendall(answer)

    with between(serve) as port:
        yield port, heads


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("variable", ["{}_proxy", "{}_PROXY", "all_proxy", "ALL_PROXY"])
def test_fault_94_a_407_is_tried_once_and_names_the_variable(stores, no_proxies, scheme, variable):
    variable = variable.format(scheme if variable[0] == "{" and variable.islower() else scheme.upper())
    if variable == "HTTP_PROXY":
        no_proxies.delenv("REQUEST_METHOD", raising=False)
    with proxy() as (port, heads):
        no_proxies.setenv(variable, f"http://user:hidden-word@127.0.0.1:{port}")
        with pytest.raises(StoreError) as caught:
            stores(f"{scheme}://api.example").load("run")
    assert len(heads) == 1
    assert f"the proxy 127.0.0.1:{port} (${variable}) asks for a user and a password" in str(caught.value)
    assert "hidden-word" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_fault_94_a_missing_proxy_is_tried_once_and_named(stores, no_proxies, scheme):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    no_proxies.setenv("ALL_PROXY", f"127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(StoreError, match=rf"the proxy 127\.0\.0\.1:{port} \(\$ALL_PROXY\) cannot be reached"):
        stores(f"{scheme}://api.example").load("run")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_fault_94_a_proxy_that_says_nothing_is_named(stores, no_proxies, scheme):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        no_proxies.setenv("ALL_PROXY", f"http://user:hidden-word@127.0.0.1:{port}")
        with pytest.raises(StoreUnavailable) as caught:
            stores(f"{scheme}://api.example", timeout=0.3, deadline=0.5).load("run")
    assert f"(through the proxy 127.0.0.1:{port} ($ALL_PROXY))" in str(caught.value)
    assert "hidden-word" not in str(caught.value)


def test_fault_94_a_proxy_that_refuses_the_host_is_tried_once(stores, no_proxies):
    with proxy(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as (port, heads):
        no_proxies.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        with pytest.raises(StoreError, match=rf"the proxy 127\.0\.0\.1:{port} \(\$HTTPS_PROXY\) refused .*403"):
            stores("https://api.example").load("run")
    assert len(heads) == 1


def test_fault_94_a_proxy_that_cannot_reach_now_is_asked_again(stores, no_proxies):
    with proxy(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n") as (port, heads):
        no_proxies.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        with pytest.raises(StoreUnavailable, match="502"):
            stores("https://api.example", deadline=2.0).load("run")
    assert len(heads) > 1


@pytest.mark.parametrize(
    "exempted",
    ["127.0.0.0/8", "10.0.0.0/8, 127.0.0.1/32", "127.0.0.1", "*", "::1/128,127.0.0.0/9", "localhost,127.0.0.1"],
)
def test_fault_94_no_proxy_names_addresses_and_networks(api, stores, no_proxies, exempted):
    no_proxies.setenv("ALL_PROXY", "http://127.0.0.1:9")
    no_proxies.setenv("NO_PROXY", exempted)
    assert stores().load("run") == {}


@pytest.mark.parametrize(
    ("url", "exempted"),
    [
        ("https://api.example", "api.example example .example *.example API.example api.example:443 example:443 *:443"),
        ("https://api.example", "https://api.example all://example *"),
        ("http://[fd00::5]:8080", "fd00::/8 [fd00::]/8 fd00::5 fd00:0::5 [fd00::5] [fd00::5]:8080"),
        ("http://10.1.2.3", "10.0.0.0/8 10.1.2.3 10.1.2.3:80 http://10.1.2.3"),
    ],
)
def test_fault_94_no_proxy_exempts_what_it_names(no_proxies, url, exempted):
    no_proxies.setenv("ALL_PROXY", "http://127.0.0.1:9")
    for item in exempted.split():
        no_proxies.setenv("NO_PROXY", f"other.example, {item}")
        assert route_to(url).proxy is None, item


@pytest.mark.parametrize(
    ("url", "others"),
    [
        ("https://api.example", "xample i.example api.example:80 http://api.example fd00::/8 [::1] [ ] : :// , 0/0/0"),
        ("http://[fd00::5]:8080", "[fd00::5]:80 fd01::/16 10.0.0.0/8 ::"),
        ("http://10.1.2.3", "10. 10.1.2 10.1.2.3:81 10.0.0.0/99 https://10.1.2.3"),
    ],
)
def test_fault_94_no_proxy_exempts_nothing_else(no_proxies, url, others):
    no_proxies.setenv("ALL_PROXY", "http://127.0.0.1:9")
    for item in ["", *others.split()]:
        no_proxies.setenv("NO_PROXY", item)
        assert str(route_to(url).proxy) == "the proxy 127.0.0.1:9 ($ALL_PROXY)", item


@pytest.mark.parametrize("exempted", ["10.0.0.0/8", "128.0.0.0/1", "nonsense/8", "example.com", "fd00::/8", "[::1]:80"])
def test_fault_94_other_networks_exempt_nothing(stores, no_proxies, exempted):
    with proxy() as (port, heads):
        no_proxies.setenv("ALL_PROXY", f"http://127.0.0.1:{port}")
        no_proxies.setenv("NO_PROXY", exempted)
        with pytest.raises(StoreError, match="asks for a user"):
            stores().load("run")
    assert len(heads) == 1


def test_fault_94_socks_without_its_extra_says_what_to_install(stores, no_proxies):
    no_proxies.setitem(sys.modules, "socksio", None)
    no_proxies.setenv("ALL_PROXY", "socks5://user:hidden-word@127.0.0.1:9")
    for scheme in ("http", "https"):
        with pytest.raises(StoreError) as caught:
            stores(f"{scheme}://api.example").load("run")
        assert "the proxy 127.0.0.1:9 ($ALL_PROXY) speaks SOCKS, which needs another package" in str(caught.value)
        assert "hidden-word" not in str(caught.value)


def test_fault_94_a_socks_proxy_refusing_login_is_tried_once(stores, no_proxies):
    pytest.importorskip("socksio")
    with proxy(b"\x05\xff") as (port, heads):
        no_proxies.setenv("ALL_PROXY", f"socks5://user:hidden-word@127.0.0.1:{port}")
        with pytest.raises(StoreError, match=r"the proxy 127\.0\.0\.1:\d+ \(\$ALL_PROXY\) refused") as caught:
            stores("http://api.example").load("run")
    assert len(heads) == 1
    assert "hidden-word" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:9", "http://[:9", "http://127.0.0.1:port"])
def test_fault_94_a_proxy_that_is_none_names_the_variable(stores, no_proxies, url):
    no_proxies.setenv("ALL_PROXY", url)
    with pytest.raises(StoreError, match=r"\$ALL_PROXY"):
        stores("http://api.example").load("run")


def test_fault_94_a_companys_certificate_names_the_variable(tmp_path, no_proxies, stores):
    trustme = pytest.importorskip("trustme")
    no_proxies.delenv("SSL_CERT_FILE", raising=False)
    no_proxies.delenv("SSL_CERT_DIR", raising=False)
    authority = trustme.CA()
    certificate, files = authority.issue_cert("127.0.0.1"), (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(files[0])
    certificate.private_key_pem.write_to_path(files[1])
    with ApiServer(ssl_certfile=files[0], ssl_keyfile=files[1]) as api:
        with pytest.raises(StoreError, match="for a company's own CA, set SSL_CERT_FILE"):
            stores(api.url).load("run")
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        no_proxies.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert stores(api.url).load("run") == {}
    no_proxies.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(StoreError, match="SSL_CERT_FILE"):
        stores("https://api.example").load("run")


def test_fault_94_a_proxys_own_certificate_names_the_proxy(tmp_path, no_proxies, stores):
    trustme = pytest.importorskip("trustme")
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        no_proxies.delenv(name, raising=False)
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    def serve(connection):
        with suppress(OSError), context.wrap_socket(connection, server_side=True) as wrapped:
            if wrapped.recv(10_000):
                wrapped.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    with between(serve) as port:
        no_proxies.setenv("ALL_PROXY", f"https://127.0.0.1:{port}")
        for scheme in ("http", "https"):
            with pytest.raises(StoreError, match=rf"the certificate of the proxy 127\.0\.0\.1:{port} \(\$ALL_PROXY\)"):
                stores(f"{scheme}://api.example").load("run")
        no_proxies.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        for scheme in ("http", "https"):
            with pytest.raises(StoreError, match="asks for a user and a password"):
                stores(f"{scheme}://api.example").load("run")


# 96, 97: signal handlers and threads


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "error", [TimeoutError("the task's own limit"), OSError("of a handler"), KeyError("of a handler")]
)
@pytest.mark.parametrize("writes", [False, True])
def test_fault_96_what_a_handler_raises_comes_out(api, stores, error, writes):
    def handler(*_):
        raise error

    seed(api, a=A)
    store = stores()
    base = store.load("run")
    api.script(Hang(), forever=True)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.5)  # once more, should it come where Python ignores it
        with pytest.raises(type(error)) as caught:
            store.commit("run", {"a": "x"}) if writes else store.load("run")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught.value is error
    api.clear()
    assert store.load("run") == base


def test_fault_96_an_error_being_handled_is_not_mistaken(stores):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    store = stores(f"http://127.0.0.1:{port}", deadline=0.3)
    try:
        raise TimeoutError("the job's own, long ago")
    except TimeoutError:
        with pytest.raises(StoreUnavailable, match="Connection refused"):
            store.load("run")


def test_fault_97_a_thread_that_cannot_start_comes_out(api, stores, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    store = stores()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            store.commit("run", {"a": "x", "b": "x"})
        with pytest.raises(RuntimeError, match="can't start new thread"):
            stores("http://name.example").load("run")
    store.commit("run", {"a": "y", "b": "y"})
    assert held(api) == {"a": "y", "b": "y"}


def test_fault_97_a_resolver_thread_that_cannot_start_raises(stores, monkeypatch):
    real = threading.Thread.start

    def start(thread):
        if thread.name == "checkpoint-dns":
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        stores("http://name.example", deadline=1.0).load("run")


# Tokens that change


def test_a_token_is_asked_for_again_once_it_was_refused(api, stores):
    tokens = iter(["old", api.token, "never"])
    store = TrutoStore(api.url, lambda: next(tokens))
    assert store.load("run") == {}
    assert store.load("run") == {}
    assert [call.headers["authorization"] for call in api.requests] == ["Bearer old", *[f"Bearer {api.token}"] * 2]
    store.close()


def test_a_token_refused_twice_is_unauthorized(api):
    tokens = iter(["one", "two", "three"])
    store = TrutoStore(api.url, lambda: next(tokens))
    with pytest.raises(Unauthorized, match="refused the token from token="):
        store.load("run")
    assert [call.headers["authorization"] for call in api.requests] == ["Bearer one", "Bearer two"]
    store.close()


def test_a_token_from_a_file_is_read_again(api, tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("old\n")
    monkeypatch.delenv("TRUTO_API_TOKEN", raising=False)
    monkeypatch.setenv("TRUTO_API_TOKEN_FILE", str(file))
    store = TrutoStore(api.url)
    file.write_text(f"{api.token}\n")
    store.commit("run", {"a": "x", "b": "x", "c": "x"})
    assert set(held(api)) == {"a", "b", "c"}
    store.close()


def test_fault_96_an_error_amid_a_tokens_file_comes_out(tmp_path, monkeypatch):
    def read(*_):
        signal.raise_signal(signal.SIGALRM)

    def handler(*_):
        raise PermissionError("of a handler")

    monkeypatch.delenv("TRUTO_API_TOKEN", raising=False)
    monkeypatch.setenv("TRUTO_API_TOKEN_FILE", str(tmp_path / "token"))
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with monkeypatch.context() as patch, pytest.raises(PermissionError, match="of a handler"):
            patch.setattr("checkpoint.stores.tokens.Path.read_text", read)
            TrutoStore("http://127.0.0.1:9")
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("content", ["", "two words", "bell\a"])
def test_a_file_without_a_token_is_refused(tmp_path, monkeypatch, content):
    (tmp_path / "token").write_text(content)
    monkeypatch.delenv("TRUTO_API_TOKEN", raising=False)
    monkeypatch.setenv("TRUTO_API_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(Unauthorized, match="from the file that .TRUTO_API_TOKEN_FILE names must be printable"):
        TrutoStore("http://127.0.0.1:9")


def test_a_token_that_is_no_text_is_refused(api):
    with pytest.raises(TypeError, match="must be a str, not bytes"):
        TrutoStore(api.url, b"token")
    store = TrutoStore(api.url, lambda: None)
    with pytest.raises(Unauthorized, match="from token= must be a str, not NoneType"):
        store.load("run")
    store.close()


def test_no_tls_context_is_built_for_http(api, monkeypatch):
    import ssl

    def refuse(*_, **__):
        raise AssertionError("a TLS context")

    monkeypatch.setattr(ssl.SSLContext, "__new__", refuse)
    store = TrutoStore(api.url, api.token)
    assert store.load("run") == {}
    store.close()


def test_importing_the_library_imports_no_http_client():
    code = """
import sys, checkpoint
with checkpoint.Checkpointer("run", "memory://m") as cp:
    cp["a"] = {}
assert not {"httpx", "httpx2", "httpcore", "httpcore2", "tenacity"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# 6: bytes that never stop, none of which is waited for


@pytest.fixture
def late(monkeypatch):
    """Return what puts our monotonic clock an hour forward."""
    hours, read = [], retrying.monotonic
    monkeypatch.setattr(retrying, "monotonic", lambda: read() + 3_600.0 * len(hours))
    return lambda: hours.append(1)


@contextmanager
def answered_by(answer):
    """Yield the URL of a server that lets a function have its first connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with suppress(OSError):
                connection, _ = listening.accept()
                with connection:
                    answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(20)
        assert not thread.is_alive()


def test_fault_06_a_ready_answer_ends_with_the_deadline(stores, late):
    """There is always something to read: no single read waits."""

    def answer(connection):
        connection.recv(10_000)
        late()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
        connection.sendall(head + b'{"result": []' + b" " * 10_000_000 + b"}")

    with answered_by(answer) as url, pytest.raises(StoreUnavailable, match=r"1 attempt in .* ReadTimeout: timed out"):
        stores(url, deadline=60.0).load("run")


def test_fault_06_a_ready_upload_ends_with_the_deadline(stores, late):
    received = []

    def answer(connection):
        while piece := connection.recv(100_000):
            received.append(len(piece))
            if len(received) == 3:
                late()

    with answered_by(answer) as url, pytest.raises(CommitUnknown):
        stores(url, deadline=60.0, timeout=2.0).commit("run", {"a": "x" * 60_000_000})
    assert sum(received) < 50_000_000
