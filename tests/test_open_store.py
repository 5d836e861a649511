"""`open_store`: which store a URL names."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from checkpoint import Checkpointer
from checkpoint.stores import open_store
from checkpoint.stores.base import HasDeadline
from checkpoint.testing import StoreContract

if TYPE_CHECKING:
    from checkpoint import Store

SCHEMES = "az:, gs:, http:, https:, memory:, postgres:, postgresql:, s3:, server+http:, server+https:, sqlite:"
KNOWN = f"a store's URL begins with one of {SCHEMES}"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_STORE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("TRUTO_API_TOKEN", "test-token")


@pytest.mark.parametrize(
    ("url", "store"),
    [
        ("sqlite:///state.db", "SQLiteStore('{folder}/state.db')"),
        ("sqlite:////var/state.db", "SQLiteStore('/var/state.db')"),
        ("memory://a", "MemoryStore()"),
        ("https://api.truto.one", "TrutoStore('https://api.truto.one')"),
        ("http://127.0.0.1:8080", "TrutoStore('http://127.0.0.1:8080')"),
    ],
)
def test_the_scheme_names_the_store(url: str, store: str, tmp_path: Path) -> None:
    assert repr(open_store(url)) == store.format(folder=tmp_path)


@pytest.mark.parametrize(
    ("url", "store"),
    [
        ("SQLite:///State.db", "SQLiteStore('{folder}/State.db')"),
        ("MEMORY://A", "MemoryStore()"),
        ("HTTPS://api.truto.one", "TrutoStore('https://api.truto.one')"),
        ("Http://127.0.0.1:8080?Timeout=5", None),
        ("Server+HTTPS://host/Path", "ServerStore('https://host/Path')"),
        ("SERVER+http://host?deadline=5", "ServerStore('http://host')"),
        ("S3://bucket/Prefix", "ObjectStore('s3://bucket/Prefix')"),
        ("PostgreSQL://host/Name", "PostgresStore("),
        ("Postgres+psycopg2://host/db", None),
    ],
)
def test_a_scheme_may_be_in_capitals(
    url: str, store: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHECKPOINT_TOKEN", "test-token")
    if store is None:  # refused, in the words of the store
        with pytest.raises(ValueError, match=r"^the API's base URL must not have a query|: write postgresql://"):
            open_store(url)
        return
    opened = open_store(url)
    assert repr(opened).startswith(store.format(folder=tmp_path))
    opened.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Path("a b/state.db"), "a store's URL must be a str such as 'sqlite:///a%20b/state.db', not PosixPath"),
        (Path("/var/state.db"), "a store's URL must be a str such as 'sqlite:////var/state.db', not PosixPath"),
        (b"memory://x", "a store's URL must be a str such as 'sqlite:///state.db', not bytes"),
        (5, "a store's URL must be a str such as 'sqlite:///state.db', not int"),
    ],
)
def test_what_is_no_text_says_what_to_write(given: object, said: str) -> None:
    with pytest.raises(TypeError) as caught:
        open_store(given)  # type: ignore[arg-type]  # what callers without types give
    assert str(caught.value).replace("WindowsPath", "PosixPath") == said


@pytest.mark.parametrize(
    "url", ["memory://?x=1#y", "memory://a?x=1", "memory://a#y", "memory://a?keep=5#y", "memory://#"]
)
def test_a_memory_stores_name_has_no_query(url: str) -> None:
    with pytest.raises(ValueError, match="a memory store's URL must be memory://name, not"):
        open_store(url)


def test_a_memory_store_is_shared_by_its_name() -> None:
    store = open_store("memory://shared")
    store.commit("job", {"a": "1"})
    assert open_store("memory://shared") is store
    assert open_store("memory://other") is not store
    with pytest.raises(ValueError, match="URL") as caught:
        open_store("memory://")
    assert str(caught.value) == "a memory store's URL must be memory://name, not 'memory://'"


def test_an_empty_url_is_no_fresh_start_somewhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKPOINT_STORE", "")
    for url in ("", None):
        with pytest.raises(ValueError, match="the store's URL is empty"):
            open_store(url)


def test_without_a_url_the_environment_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHECKPOINT_STORE", "sqlite:///of-the-environment.db")
    assert repr(open_store()) == f"SQLiteStore('{tmp_path}/of-the-environment.db')"
    assert repr(open_store("sqlite:///given.db")) == f"SQLiteStore('{tmp_path}/given.db')"


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other folders")
def test_without_any_it_is_in_the_user_state_folder(tmp_path: Path) -> None:
    assert repr(open_store()) == f"SQLiteStore('{tmp_path}/checkpoint/state.db')"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://localhost", f"no store opens 'redis://localhost': {KNOWN}"),
        ("state.db", f"no store opens 'state.db': {KNOWN}; a file is sqlite:///state.db"),
        ("/var/state.db", f"no store opens '/var/state.db': {KNOWN}; a file is sqlite:////var/state.db"),
    ],
)
def test_a_url_that_names_no_store_says_which_do(url: str, said: str) -> None:
    with pytest.raises(ValueError, match="no store opens") as caught:
        open_store(url)
    assert str(caught.value) == said


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Install what another package says of itself; its module is beside these tests."""
    metadata = tmp_path / "theirs-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[checkpoint.stores]\ntheirs = their_store:JSONStore\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("installed")
def test_installed_packages_add_schemes() -> None:
    assert open_store("theirs://host/path?a=b").path == Path("host/path?a=b")
    with pytest.raises(ValueError, match=re.escape(f"one of {SCHEMES}, theirs:") + "$"):
        open_store("redis://localhost")


@pytest.mark.skipif(sys.platform == "win32", reason="their store locks as POSIX does")
@pytest.mark.usefixtures("installed")
class TestTheirStore(StoreContract):
    """The store of another package, found by its scheme, keeps the contract."""

    @pytest.fixture
    def store(self, installed: None, tmp_path: Path) -> Store:
        self.url = f"theirs://{tmp_path}/state.json"
        return open_store(self.url)

    def reopen(self, store: Store) -> Store:
        store.close()
        return open_store(self.url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgress://user:pass@word@localhost/db", "postgress://***"),
        ("postgress://user:pass/word@localhost/db", "postgress://***"),
        ("postgress://localhost/db?password=word", "postgress://***"),
        ("mysql:user:word@localhost", "://***"),
        ("host=localhost password=word", "://***"),
    ],
)
def test_a_mistyped_url_shows_no_password(url: str, shown: str) -> None:
    with pytest.raises(ValueError, match="no store opens") as caught:
        open_store(url)
    assert str(caught.value) == f"no store opens {shown!r}: {KNOWN}"


def test_a_run_shows_no_password() -> None:
    run = Checkpointer("job", "postgresql://user:word@localhost/db")
    assert repr(run) == "Checkpointer('job', postgresql://***, new)"


@pytest.mark.parametrize(
    "url",
    [
        *("https://user:word@host:99999", "https://user:word@", "http://user:word@host"),
        *("http://user:pass/word@host", "http://[user:word@host"),
    ],
)
def test_a_users_password_in_the_apis_address_is_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match="must not have a user") as caught:
        open_store(url)
    assert "word" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite:///x.db", "s3://bucket/x", "postgresql://host/db"])
def test_a_deadline_in_the_url_is_the_stores(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(f"{url}?deadline=180")
    assert isinstance(store, HasDeadline)
    assert store.deadline == 180
    store.close()
