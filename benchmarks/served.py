"""The state API in a process of its own, so that it shares no interpreter lock with what is measured."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness import fail

from checkpoint.codec import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

TOKEN = "a-token"
NAMESPACE = "sync_job_123"
SERVER = """
import json, sys
from functools import partial
from checkpoint.server import Switches, serve
from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.sqlite import SQLiteStore
namespace, token, latency, rate, entries, path = sys.argv[1:]
store = SQLiteStore(path) if path else MemoryStore()
with open(entries) as file:
    store.commit(namespace, json.load(file))
options = Switches(latency=float(latency), rate=json.loads(rate), in_threads=bool(path))
serve(store, token, port=0, options=options, ready=partial(print, flush=True))
"""


@contextmanager
def server(
    latency: float, entries: Mapping[str, str], rate: tuple[int, float] | None = None, *, file: bool = False
) -> Generator[str]:
    """Serve the state API, with so many seconds of latency, from another process; its URL.

    The namespace holds these entries, in memory or in a SQLite file; beyond the rate, requests in so many seconds, it
    answers 429.
    """
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:  # the system's own may be in memory
        held = Path(folder, "entries.json")
        held.write_text(json.dumps(entries))
        path = str(Path(folder, "state.db")) if file else ""
        command = [sys.executable, "-c", SERVER, NAMESPACE, TOKEN, str(latency), json.dumps(rate), str(held), path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                url = process.stdout.readline().strip() if process.stdout else ""
                if not url:
                    fail("the server did not start")
                yield url
            finally:
                process.terminate()


@contextmanager
def killed() -> Generator[tuple[str, Path, Callable[[], None]]]:
    """Serve a SQLite file by `checkpoint serve`; its URL, the file, and a call that kills it and starts it again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        path = Path(folder, "state.db")
        command = [sys.executable, "-m", "checkpoint", "serve", "--store", f"sqlite:///{path}", "--port", str(port)]
        environment = {**os.environ, "CHECKPOINT_SERVER_TOKEN": TOKEN}
        running: list[subprocess.Popen[str]] = []

        def start() -> None:
            running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
            if not (running[-1].stdout and running[-1].stdout.readline()):
                fail("the server did not start")

        def kill() -> None:
            end()
            start()

        def end() -> None:
            process = running.pop()
            process.kill()
            process.communicate()

        start()
        try:
            yield f"http://127.0.0.1:{port}", path, kill
        finally:
            end()


def streams(count: int) -> dict[str, str]:
    """Return the entries of so many streams, `stream_000000` and on."""
    return {
        f"stream_{number:06}": encode({"id": number, "updated_at": "2024-05-01T10:00:00Z"}) for number in range(count)
    }
