"""The server answers as its OpenAPI document says, whatever it is asked."""

from __future__ import annotations

import subprocess
import sys
from typing import get_type_hints

import pytest
from hypothesis import settings

from checkpoint.codec import encode
from checkpoint.entries import Change, Entry
from checkpoint.server import v1, vendor
from checkpoint.testing import ApiServer

pytest.importorskip("schemathesis")


def test_the_document_names_what_entries_and_changes_hold():
    for model, kind, left_out in (
        (v1.StoredEntry, Entry, set()),
        (v1.WrittenEntry, Entry, {"value"}),
        (vendor.StateEntry, Entry, {"version"}),
        (v1.KeptChange, Change, set()),
    ):
        hints = {name: hint for name, hint in get_type_hints(kind).items() if name not in left_out}
        assert {name: field.annotation for name, field in model.model_fields.items()} == hints


def test_answers_conform_to_the_document(tmp_path):
    examples = settings().max_examples // 20
    with ApiServer(page_size=2, post_existing=409) as server:
        server.store.commit("0", {key: encode({"at": key}) for key in "0123"})
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {server.token}", "--checks", "all"),
            *("--max-examples", str(examples), "--seed", "1", "--generation-database", "none", "--no-color"),
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        answered = {(call.method, call.status) for call in server.requests}
    assert {status for _, status in answered} <= {200, 400, 401, 404, 405, 409, 422}
    assert answered >= {(method, status) for method in ("GET", "POST", "PATCH", "DELETE") for status in (200, 400, 401)}
