"""Pytest fixtures for the tests of a connector: a store, a server, and a job that is crashed and resumed."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from checkpoint.stores.base import Store
    from checkpoint.testing import ApiServer
    from checkpoint.testing.crashing import Attempt, Crashes

INI = "checkpoint_store"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the store of all tests."""
    parser.addini(
        INI,
        "URL of the store of a test, with {folder}, {unique} or {server} in it (default: SQLite in a temporary folder)",
        default="",
    )


@pytest.fixture
def checkpoint_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """Run an empty `checkpoint.testing.ApiServer`, with its token in `$TRUTO_API_TOKEN` and `$CHECKPOINT_TOKEN`.

    Its `url` opens a `TrutoStore`, and `server+` before the `url` a `ServerStore`.
    """
    from checkpoint.testing import ApiServer  # imported only if a test needs it

    with ApiServer() as server:
        for name in ("TRUTO_API_TOKEN", "CHECKPOINT_TOKEN"):
            monkeypatch.setenv(name, server.token)
        yield server


@pytest.fixture
def checkpoint_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Open an empty store: a SQLite file in a folder of the test, or the store that an option or a parameter names.

    The ini option `checkpoint_store` and an indirect parameter are URLs. In them `{folder}` stands for an empty folder,
    `{unique}` for a text that is used once, and `{server}` for the URL of `checkpoint_server` (`server+{server}` opens
    a `ServerStore` on it).
    """
    from checkpoint.stores import open_store
    from checkpoint.testing.crashing import fill

    template = getattr(request, "param", None) or _template(request)
    folder = tmp_path / "checkpoint_store"
    folder.mkdir()
    server = request.getfixturevalue("checkpoint_server").url if "{server}" in template else ""
    store = open_store(fill(template, folder, server))
    yield store
    store.close()


@pytest.fixture
def crash_and_resume(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Crashes]:
    """Return `checkpoint.testing.crash_and_resume`, with a folder of the test and the store of the ini option.

    `crash_and_resume(job)` kills a job at each place where it may die, runs it again, and fails if a row is missing.
    """
    from checkpoint.testing.crashing import crash_and_resume

    template, numbers = _template(request), count(1)

    def call(job: Callable[[Attempt], object], *, store: str = template, **options: Any) -> Crashes:
        return crash_and_resume(job, tmp_path / f"crash_and_resume-{next(numbers)}", store=store, **options)

    return call


def _template(request: pytest.FixtureRequest) -> str:
    from checkpoint.testing.crashing import STORE

    return request.config.getini(INI) or STORE
