"""The server answers as its OpenAPI document says, whatever it is asked."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import settings

from checkpoint.codec import encode
from checkpoint.testing import ApiServer

pytest.importorskip("schemathesis")


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
