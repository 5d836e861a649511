"""What the package shows, and what importing it costs."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType

import checkpoint
from checkpoint import errors

EXTRAS = {"ObjectStore": "obstore", "PostgresStore": "psycopg"}  # what they need, and may be missing here


def test_every_public_name_is_exported_and_nothing_else():
    assert sorted(checkpoint.__all__) == sorted(set(checkpoint.__all__))
    for name in checkpoint.__all__:
        if find_spec(EXTRAS.get(name, "checkpoint")):
            assert getattr(checkpoint, name).__name__ == name
    modules = {name for name, value in vars(checkpoint).items() if isinstance(value, ModuleType)}
    public = {name for name in dir(checkpoint) if not name.startswith("_")}
    assert public - modules == {*checkpoint.__all__, "TYPE_CHECKING", "import_module"}


def test_every_error_is_exported():
    tree = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert tree <= set(checkpoint.__all__)


def test_every_public_name_and_method_says_in_a_sentence_what_it_is():
    said = {}
    for name in checkpoint.__all__:
        try:
            said[name] = home = getattr(checkpoint, name)
        except ImportError:  # as above
            continue
        for member in [member for member in vars(home) if not member.startswith("_")] if isinstance(home, type) else []:
            value = inspect.getattr_static(home, member)
            value = getattr(value, "__func__", value)
            if inspect.isfunction(value) or isinstance(value, property):
                said[f"{name}.{member}"] = value
    first = {name: (inspect.getdoc(value) or "").partition("\n")[0] for name, value in said.items()}
    assert {name: line for name, line in first.items() if not re.fullmatch(r"[A-Z].+[.:]", line)} == {}
    assert len(first) > 80


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(checkpoint, "Nothing")


def test_importing_it_imports_no_client_no_server_and_no_database():
    code = "import sys, checkpoint; print(*sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60
    ).stdout
    loaded = {name.partition(".")[0] for name in printed.split()}
    heavy = {"typing", "logging", "orjson", "asyncio", "httpx", "httpx2", "tenacity", "sqlite3", "platformdirs"}
    heavy |= {"fastapi", "uvicorn", "click", "rich", "psycopg", "obstore", "pyarrow", "meltano"}
    assert loaded & heavy == set()
