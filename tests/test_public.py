"""What the package shows, and what importing it costs."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from types import ModuleType

import pytest

import checkpoint
from checkpoint import errors

EXTRAS = {"ObjectStore": "obstore", "PostgresStore": "psycopg"}


def test_every_public_name_is_exported_and_nothing_else():
    assert sorted(checkpoint.__all__) == sorted(set(checkpoint.__all__))
    for name in checkpoint.__all__:
        assert getattr(checkpoint, name).__name__ == name
    modules = {name for name, value in vars(checkpoint).items() if isinstance(value, ModuleType)}
    public = {name for name in dir(checkpoint) if not name.startswith("_")}
    assert public - modules == {*checkpoint.__all__, "TYPE_CHECKING", "import_module"}


def test_every_error_is_exported():
    tree = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert tree <= set(checkpoint.__all__)


def test_every_public_name_has_a_sentence():
    said = {}
    for name in checkpoint.__all__:
        said[name] = home = getattr(checkpoint, name)
        for member in [member for member in vars(home) if not member.startswith("_")] if isinstance(home, type) else []:
            value = inspect.getattr_static(home, member)
            value = getattr(value, "__func__", value)
            if inspect.isfunction(value) or isinstance(value, property):
                said[f"{name}.{member}"] = value
    first = {name: (inspect.getdoc(value) or "").partition("\n")[0] for name, value in said.items()}
    assert {name: line for name, line in first.items() if not re.fullmatch(r"[A-Z].+[.:]", line)} == {}
    assert len(first) > 80


@pytest.mark.parametrize(("name", "library"), EXTRAS.items())
def test_a_store_without_its_extra_says_so_when_made(name, library):
    code = f"""
import inspect, pydoc, sys
sys.modules[{library!r}] = None
import checkpoint
from checkpoint import *
assert {{*checkpoint.__all__}} <= {{name for name, _ in inspect.getmembers(checkpoint)}}
assert {name}.__name__ == {name!r}
assert "PACKAGE CONTENTS" in pydoc.plain(pydoc.render_doc(checkpoint))
assert {name} is checkpoint.{name}
try:
    {name}("s3://bucket")
except (ImportError, checkpoint.StoreError) as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert re.fullmatch(rf".*needs {library}.*: pip install 'checkpoint-store\[.*\]'\n", done.stdout)


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(checkpoint, "Nothing")


def test_importing_it_imports_no_client_server_or_database():
    code = "import sys, checkpoint; print(*sys.modules)"
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60, env=unmeasured
    ).stdout
    loaded = {name.partition(".")[0] for name in printed.split()}
    heavy = {"typing", "logging", "orjson", "asyncio", "httpx", "httpx2", "tenacity", "sqlite3", "platformdirs"}
    heavy |= {"fastapi", "uvicorn", "click", "rich", "psycopg", "obstore", "pyarrow", "meltano"}
    assert loaded & heavy == set()
