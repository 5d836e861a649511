"""The state API in a process of its own, so that it shares no interpreter lock with what is measured."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness import fail

if TYPE_CHECKING:
    from collections.abc import Generator

TOKEN = "a-token"
NAMESPACE = "sync_job_123"
SERVER = """
import sys
from functools import partial
from checkpoint.codec import encode
from checkpoint.server import Options, serve
from checkpoint.stores.memory import MemoryStore
store = MemoryStore()
store.commit(sys.argv[3], {
    f"stream_{number:06}": encode({"id": number, "updated_at": "2024-05-01T10:00:00Z"})
    for number in range(int(sys.argv[4]))
})
options = Options(latency=float(sys.argv[1]), in_threads=False)
serve(store, sys.argv[2], port=0, options=options, ready=partial(print, flush=True))
"""


@contextmanager
def server(latency: float, keys: int = 0) -> Generator[str]:
    """Serve the state API, with so many seconds of latency, from another process; its URL.

    The namespace holds so many keys, `stream_000000` and on.
    """
    command = [sys.executable, "-c", SERVER, str(latency), TOKEN, NAMESPACE, str(keys)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip() if process.stdout else ""
            if not url:
                fail("the server did not start")
            yield url
        finally:
            process.terminate()
