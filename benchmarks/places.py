"""Stores on the loopback, each in a process of its own: SQLite, PostgreSQL, S3, our own server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

from harness import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from contextlib import AbstractContextManager

TOKEN = "a-token"
TESTS = Path(__file__).parent.parent / "tests"
KINDS = ("sqlite", "postgres", "s3", "server")


class Place(NamedTuple):
    """Where a store is, and what a process needs in its environment to reach it."""

    url: str
    environment: Mapping[str, str]


@contextmanager
def place(kind: str, folder: Path) -> Generator[Place]:
    """Run a store of this kind, empty; the folder is for its files."""
    with _MAKERS[kind](folder) as made:
        yield made


@contextmanager
def reached(made: Place) -> Generator[str]:
    """Let this process reach a store by its URL, too."""
    before = {name: os.environ.get(name) for name in made.environment}
    os.environ.update(made.environment)
    try:
        yield made.url
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _sqlite(folder: Path) -> Generator[Place]:
    yield Place(f"sqlite:///{folder.absolute()}/state.db", {})


@contextmanager
def _postgres(_folder: Path) -> Generator[Place]:
    sys.path.insert(0, str(TESTS))
    from postgres_server import PostgresServer

    if reason := PostgresServer.missing():
        fail(reason)
    server = PostgresServer()
    try:
        yield Place(server.url, {})
    finally:
        server.close()


@contextmanager
def _s3(_folder: Path) -> Generator[Place]:
    with (
        subprocess.Popen(
            [sys.executable, TESTS / "s3_server.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server,
        ExitStack() as stack,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        stack.callback(server.stdin.close)
        yield bucket(f"http://127.0.0.1:{int(server.stdout.readline())}")


def bucket(endpoint: str) -> Place:
    """Make a bucket at an S3 endpoint."""
    name = f"bucket-{token_hex(8)}"
    build_opener(ProxyHandler({})).open(Request(f"{endpoint}/{name}", method="PUT"), timeout=60).close()
    variables = {"ENDPOINT_URL": endpoint, "ALLOW_HTTP": "true", "REGION": "us-east-1"}
    variables |= {"ACCESS_KEY_ID": "test-key-id", "SECRET_ACCESS_KEY": "test-secret"}
    return Place(f"s3://{name}/state", {f"AWS_{name}": value for name, value in variables.items()})


@contextmanager
def _server(folder: Path) -> Generator[Place]:
    """Serve a SQLite file, as a team does that has no database."""
    command = [sys.executable, "-m", "checkpoint", "serve", "--store", f"sqlite:///{folder.absolute()}/behind.db"]
    environment = {**os.environ, "CHECKPOINT_SERVER_TOKEN": TOKEN}
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        try:
            (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)", said) or fail(f"the server said {said!r}")
            yield Place(f"server+http://127.0.0.1:{port}", {"CHECKPOINT_TOKEN": TOKEN})
        finally:
            process.terminate()


_MAKERS: dict[str, Callable[[Path], AbstractContextManager[Place]]] = {
    "sqlite": _sqlite,
    "postgres": _postgres,
    "s3": _s3,
    "server": _server,
}
