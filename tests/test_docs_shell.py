"""Every shell block of the README and the pages, typed by a reader whose store holds the namespaces that they name."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest
from freezegun import freeze_time
from shell_blocks import Reader, blocks, installs

from checkpoint import Checkpointer, SQLiteStore

ROOT = Path(__file__).parent.parent
TYPED = {
    "README.md", "docs/operating/commands.md", "docs/operating/deploy.md", "docs/operating/history.md",
    "docs/operating/watching.md",
    "docs/operating/page.md", "docs/howto/orchestrators.md",
}  # fmt: skip
OWN_TESTS = {
    "docs/operating/server.md": "test_server_docs.py",
    "docs/howto/migrate.md": "test_migrate.py",
    "docs/howto/neighbours.md": "test_singer.py, test_meltano.py",
    "docs/tutorial/first-connector.md": "test_tutorial.py",
    "docs/tutorial/looking-after.md": "test_tutorial.py",
}
"""Pages whose blocks need more than a store, and what runs them."""
ANSWERS = {"status": (0, 1), "diff": (0, 1), "doctor": (0, 1)}
"""Commands of which 1 is an answer."""
PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
COMMANDS = [
    pytest.param(page, block.text, id=f"{page}-{number}")
    for page in sorted(TYPED)
    for number, block in enumerate(blocks(PAGES[page].read_text("utf-8")), 1)
    if block.language == "sh" and not installs(block.text)
]


@pytest.fixture
def reader(tmp_path):
    """Make a default store with the jobs of the pages, and some days of history."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    with closing(SQLiteStore(tmp_path / "jobs.db")) as store:
        for day in (1, 2, 3):
            with freeze_time(f"2024-05-0{day}T12:00:00Z"):
                for name in ("sync_job_123", "sync_job_124", "crm", "crm_eu"):
                    with Checkpointer(name, store) as cp:
                        cp["contacts"] = {"updated_at": f"2024-05-0{day}T10:00:00Z"}
                        cp.group("accounts")["a17"] = {"updated_at": f"2024-05-0{day}T11:00:00Z"}
                for name in ("airflow.asset.contacts", "airflow.dag.watermarks"):
                    with Checkpointer(name, store) as cp:
                        cp["watermark"] = {"value": f"2024-05-0{day}T10:00:00Z"}
    mail = tmp_path / "mail"
    mail.write_text("#!/bin/sh\ncat >sent\n", "utf-8")
    mail.chmod(0o700)
    with Reader(tmp_path, {"CHECKPOINT_STORE": url}) as reader:
        reader.type("PATH=$PWD:$PATH")
        yield reader


@pytest.mark.parametrize(("page", "code"), COMMANDS)
def test_every_line_of_a_block_does_what_it_says(page, code, reader):
    for line in code.splitlines():
        status, printed = reader.type(here(line, reader.port))
        verb = re.search(r"\bcheckpoint (\w+)", line)
        assert status in ANSWERS.get(verb[1] if verb else "", (0,)), f"{line}\n{printed}"
        assert "Usage:" not in printed, f"{line}\n{printed}"


def here(line, port):
    """Return a line with a database of this folder; a server runs in the background, on a free port."""
    line = re.sub(r"postgresql://\S+", "sqlite:///other.db", line)
    if re.search(r"\bcheckpoint (serve|ui --)", line):
        line = re.sub(r"(?=\s+#|$)", f" --port {port} &", re.sub(r" --port \d+", "", line), count=1)
    return line


def test_every_page_with_shell_blocks_is_typed():
    found = {
        page for page, path in PAGES.items() if any(each.language == "sh" for each in blocks(path.read_text("utf-8")))
    }
    assert found - TYPED - set(OWN_TESTS) == set()
