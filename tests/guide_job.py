"""Runs a job of the guide for `sources.Runner`: one fork for each run, told by a line on standard input."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import traceback
import warnings
from contextlib import nullcontext, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import freezegun
import httpx

import checkpoint
from checkpoint.run import checkpointer
from checkpoint.stores import open_store, sqlite

IMPORTED = (checkpoint, checkpointer, httpx, open_store, sqlite)
"""What a fork need not import again."""


class Sink:
    """Keeps what was written in a file; ticks at each write."""

    def __init__(self, ticks, die_after):
        self.ticks, self.left = ticks, die_after
        self.file = os.open("sink.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, rows):
        self._put([(row["id"], None if "@removed" in row.keys() else row["version"]) for row in rows])  # noqa: SIM118 - rows of a database iterate by value

    def replace(self, rows):
        self._put([(None, None), *((row["key"], int(row["sequence"])) for row in rows)])

    def apply(self, rows):
        self._put([(row["key"], int(row["sequence"])) for row in rows])

    def _put(self, pairs):
        os.write(self.file, json.dumps(pairs).encode() + b"\n")
        os.write(self.ticks, b".")
        if self.left:
            self.left -= len(pairs)
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


def main(ticks):
    while line := sys.stdin.readline():
        command = json.loads(line)
        pid = os.fork()
        if not pid:
            run(ticks, **command)
        print(pid, flush=True)
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # its pid stays its own until the other side says
        print(-info.si_status if info.si_code != os.CLD_EXITED else info.si_status, flush=True)
        sys.stdin.readline()
        os.waitpid(pid, 0)


def run(ticks, code, later, die_after):
    status = 1
    try:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", r"datetime\.\w+ size changed")  # pandas, imported while a clock is frozen
        if "import polars" in code:  # before a clock is frozen: it looks at the size of datetimes
            for name in ("pandas", "pyarrow.compute", "polars"):
                with suppress(ImportError):
                    importlib.import_module(name)
        handler = logging.FileHandler("warnings.txt", delay=True)
        handler.setLevel(logging.WARNING)
        logging.getLogger("checkpoint").addHandler(handler)
        names = {"STORE": f"sqlite:///{Path.cwd()}/state.db", "sink": Sink(ticks, die_after)}
        clock = nullcontext()
        if later:
            clock = freezegun.freeze_time(datetime.now(timezone.utc) + timedelta(seconds=later), tick=True)
        with clock:
            exec(compile(code, "guide", "exec"), names)
        status = 0
    except BaseException:  # noqa: BLE001 - it is a process's end
        Path("error.txt").write_text(traceback.format_exc())
    finally:
        os._exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]))
