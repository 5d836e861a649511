"""The HTTP store over TLS: HTTP/2 where the service speaks it, one connection for all."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time

import pytest
from http2_server import Http2Server

from checkpoint import Checkpointer, CommitUnknown, StoreError, StoreUnavailable
from checkpoint.codec import encode
from checkpoint.stores.network import LoopNetwork, Wire
from checkpoint.stores.truto import TrutoStore

for module in ("trustme", "hypercorn", "h2"):
    pytest.importorskip(module)

STATE = "/sync-job-run-state"


@pytest.fixture
def served(tmp_path, monkeypatch):
    with Http2Server(tmp_path) as server:
        monkeypatch.setenv("SSL_CERT_FILE", server.authority)
        yield server


@pytest.fixture
def stores(served):
    made = []

    def make(**options):
        made.append(TrutoStore(served.url, served.token, **options))
        return made[-1]

    yield make
    for store in made:
        store.close()


def connections(served):
    return len({port for _, port, _ in served.seen()})


def test_all_requests_of_a_run_share_one_connection(served, stores):
    with Checkpointer("run", stores()) as cp:
        for number in range(20):
            cp[f"k{number}"] = {"n": number}
        assert len(cp.commit().keys) == 20
    assert {version for version, _, _ in served.seen()} == {"2"}
    assert connections(served) == 1
    assert served.held("run") == {f"k{number}": encode({"n": number}) for number in range(20)}


def test_without_http2_there_are_connections_side_by_side(tmp_path, monkeypatch):
    with Http2Server(tmp_path, protocols=["http/1.1"]) as server:
        monkeypatch.setenv("SSL_CERT_FILE", server.authority)
        server.gather("POST", 4)
        store = TrutoStore(server.url, server.token)
        with Checkpointer("run", store) as cp:
            for number in range(4):
                cp[f"k{number}"] = {"n": number}
            cp.commit()
        store.close()
        assert {version for version, _, _ in server.seen()} == {"1.1"}
        assert len({port for _, port, what in server.seen() if what.startswith("POST")}) == 4


def test_threads_do_not_mix_up_the_requests_of_a_connection(served, stores):
    store, failures = stores(rate=(1_000_000, 1.0)), []
    store.load("warm")

    def job(name):
        try:
            for number in range(8):
                store.commit(name, {f"{name}-{key}": f"{name} {key} {number}" for key in range(25)})
        except StoreError as error:
            failures.append(error)

    threads = [threading.Thread(target=job, args=[f"job{number}"]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for name in ("job0", "job1", "job2", "job3"):
        assert served.held(name) == {f"{name}-{key}": f"{name} {key} 7" for key in range(25)}
    assert connections(served) == 1


def test_fault_06_silence_meets_the_deadline_over_http2(served, stores):
    served.hang(f"GET {STATE}")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="gave up after 1 attempt in 1"):
        stores(deadline=1.0, timeout=10.0).load("run")
    assert 0.9 < time.monotonic() - began < 5


def test_fault_05_a_lost_answer_is_unknown_over_http2(served, stores):
    store = stores(deadline=1.5, timeout=0.5)
    store.load("run")
    served.hang(f"POST {STATE}", f"GET {STATE}/a")
    with pytest.raises(CommitUnknown) as caught:
        store.commit("run", {"a": "x"})
    assert caught.value.unsettled == {"a"}


def test_a_long_wait_is_told_while_it_lasts(served, stores, caplog, monkeypatch):
    monkeypatch.setattr("checkpoint.stores.retrying.SILENCE", 0.2)
    served.hang(f"GET {STATE}")
    threading.Timer(0.6, served.hang).start()
    store = stores(deadline=20.0)
    assert store.load("run") == {}
    assert caplog.messages == [f"{served.url}: no usable answer yet, trying for up to 20 s: no answer yet"]


def test_fault_95_ctrl_c_comes_out_and_the_next_load_works(served, stores):
    served.hang(f"GET {STATE}")
    store = stores(deadline=20.0)
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        store.load("run")
    assert time.monotonic() - began < 10
    served.hang()
    assert store.load("run") == {}


def test_fault_96_a_handlers_timeout_error_comes_out_over_http2(served, stores, monkeypatch):
    def handler(*_):
        raise TimeoutError("the task's own limit")

    before = signal.signal(signal.SIGALRM, handler)
    served.hang(f"GET {STATE}")
    store = stores(deadline=20.0)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(TimeoutError, match="the task's own limit"):
            store.load("run")
    finally:
        signal.signal(signal.SIGALRM, before)
    served.hang()
    assert store.load("run") == {}


def test_fault_97_a_thread_that_cannot_start_is_told(served, stores, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    store = stores()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            store.load("run")
    assert store.load("run") == {}


def test_a_closed_store_leaves_no_thread_and_opens_again(served, stores):
    def ours():
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("checkpoint")]

    store = stores()
    store.load("run")
    assert sorted(ours()) == ["checkpoint-calls", "checkpoint-http2"]
    store.close()
    assert ours() == []
    assert store.load("run") == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_fault_43_a_forked_child_has_a_connection_of_its_own(served, stores):
    store = stores()
    store.commit("run", {"parent": "1"})
    child = os.fork()
    if child == 0:
        try:
            store.commit("run", {"child": "1"})
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    store.commit("run", {"parent": "2"})
    assert served.held("run") == {"parent": "2", "child": "1"}
    assert connections(served) == 2


def test_closing_the_store_ends_a_request_of_another_thread(served, stores):
    """Its thread asks again over a new connection, as after every connection that was lost."""
    store = stores(timeout=20.0, deadline=20.0)
    store.load("run")
    asked = len(served.seen())
    served.hang(f"GET {STATE}")
    loaded = []
    thread = threading.Thread(target=lambda: loaded.append(store.load("run")), daemon=True)
    thread.start()
    while len(served.seen()) == asked:
        time.sleep(0.01)
    store.close()
    served.hang()
    thread.join(10)
    assert loaded == [{}]


def test_a_cancellation_beside_data_is_not_lost():
    """The deadline cancels a request in the very turn in which more of its answer comes, as one of drips may."""

    async def run():
        loop, network = asyncio.get_running_loop(), LoopNetwork()
        ours, theirs = socket.socketpair()
        with theirs:
            _, wire = await loop.create_connection(lambda: Wire(network), sock=ours)
            reading = asyncio.ensure_future(wire.read(10, 5.0))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            wire.data_received(b"x")
            reading.cancel()
            done = await asyncio.gather(reading, return_exceptions=True)
            assert [type(each) for each in done] == [asyncio.CancelledError]
            assert await wire.read(10, 5.0) == b"x"
            await wire.aclose()

    asyncio.run(run())
