"""Shell blocks of pages, typed as a reader types them: in one shell and one folder, with what they print."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from typing_extensions import Self

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PORT = "8765"
"""The port in the pages; a test takes a free one."""
DONE = "__done__"
KILLED = re.compile(r"bash: line \d+: +\d+ Killed")
"""What a shell says that reads a file; at a prompt it is one word."""
INSTALLS = re.compile(r"^(?:python3 -m venv|uv sync|uv run|(?:\S*python\S* -m )?pip install)")
SHOWS = re.compile(r"^checkpoint ui(?= *(#|$))", re.MULTILINE)
ASKS = re.compile(r"^(checkpoint (?:clear|restore|copy|move|import|unlock) .*?)(\s+#.*)?$", re.MULTILINE)


VOLATILE = (
    (re.compile(r"20(?!24)\d\d-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?"), "TIME"),
    (re.compile(r"\b[0-9a-f]{8,}(-[0-9a-f]+)*\b"), "ID"),
    (re.compile(r"\b\d+(\.\d+)? ?(ms|s|min|h|d|days?|months?|y|years?)\b"), "SPAN"),
    (re.compile(r"\S+ process \d+"), "PROCESS"),
    (re.compile(r"SQLiteStore\('[^']*'\)"), "STORE"),
    (re.compile(r"sqlite:////\S+"), "URL"),
    (re.compile(r"(?<=127\.0\.0\.1:)\d+"), "PORT"),
    (re.compile(r"(?<=Password: )\S+"), "PASSWORD"),
    (re.compile(r"[ -]{2,}|\n+"), " "),
)
"""What differs from run to run: times of today, names of runs, spans, processes, places, secrets, and the columns."""


def steady(screen: str) -> str:
    """Return a screen without what differs from run to run."""
    for what, instead in VOLATILE:
        screen = what.sub(instead, screen)
    return screen.strip()


class Block(NamedTuple):
    """A block of a page, and what the page says that it prints; None: it does not say."""

    language: str
    text: str
    shown: str | None


def blocks(text: str) -> list[Block]:
    """Return the blocks of a page that run; a `text` block right behind one is what that one prints."""
    found = list(BLOCK.finditer(text))
    result: list[Block] = []
    for number, each in enumerate(found):
        after = found[number + 1] if number + 1 < len(found) else None
        screen = after is not None and after[1] == "text" and not text[each.end() : after.start()].strip()
        if each[1] in ("sh", "python"):
            result.append(Block(each[1], each[2], after[2] if screen and after else None))
    return result


def installs(code: str) -> bool:
    """Tell whether a block sets up an environment: CI does that, and a test has one."""
    return INSTALLS.match(code) is not None


class Reader:
    """A reader at a prompt: a folder, one bash in it, and what the last block printed."""

    def __init__(self, folder: Path, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        quiet = {"COLUMNS": "100", "PYTHONWARNINGS": "", "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:randomly"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CHECKPOINT_", "COV_"))}
        self.bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env={**kept, "PATH": path, "HOME": str(folder), **quiet, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.bash.pid, signal.SIGKILL)
        self.bash.communicate()

    def save(self, code: str) -> bool:
        """Save a block that begins with the name of a file; return whether it does."""
        name = re.match(r"# ([\w.]+\.py)\n", code)
        if name is None:
            return False
        (self.folder / name[1]).write_text(self._here(code), "utf-8")
        return True

    def type(self, code: str) -> tuple[int, str]:
        """Type a block; return its exit status and what it printed. The page is stopped by Ctrl-C once it is shown."""
        assert self.bash.stdin is not None
        assert self.bash.stdout is not None
        typed = ASKS.sub(lambda found: f"{found[1]} --yes", self._here(code))
        typed, pages = SHOWS.subn("checkpoint ui --no-browser", typed)
        self.bash.stdin.write(f'{{\n{typed}\n}} </dev/null\nstatus=$?; echo; echo "{DONE} $status"\n')
        self.bash.stdin.flush()
        lines: list[str] = []
        for line in self.bash.stdout:
            if line.startswith(DONE):
                break
            if not KILLED.match(line):
                lines.append(line)
            if pages and line.startswith("Password: "):
                os.killpg(self.bash.pid, signal.SIGINT)
        else:
            raise AssertionError(f"the shell has ended: {''.join(lines)}")
        if code.partition(" #")[0].rstrip().endswith("&"):
            self._wait()
        return int(line.split()[1]), "".join(lines).strip("\n").replace(self.port, PORT) + "\n"

    def _here(self, code: str) -> str:
        return code.replace(PORT, self.port)

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(self.port)), 1):
                return
        raise TimeoutError("nothing listens")
