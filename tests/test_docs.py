"""The README and the pages: every Python block runs as it stands, but for the API's address; links, lists, figures."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint import Checkpointer, Conflict, Incremental, errors
from checkpoint.cli.command import checkpoint as command
from checkpoint.codec import decode, encode
from checkpoint.stores import open_store
from checkpoint.streams import telling
from checkpoint.testing import Answer, ApiServer, Drop

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / ".ci"))
import build_docs as built  # noqa: E402 - a script, not installed
import reference  # noqa: E402 - as above
import table  # noqa: E402 - as above

OWN_TESTS = {
    *(ROOT / "docs" / "howto" / name for name in ("cluster.md", "migrate.md", "orchestrators.md", "recipes.md")),
    *(ROOT / "docs" / "guide").glob("*.md"),
    *(ROOT / "docs" / "tutorial").glob("*.md"),
}
"""Pages whose blocks have tests of their own: test_recipes.py, test_cluster.py, test_orchestrators.py and others."""
LANGUAGES = {"python", "sh", "text", "json", "toml", "yaml", "sql", "nginx", "ini", "dockerfile", "javascript"}
"""Languages of blocks. Python and shell run as tests; a drawing, a screen or a configuration says what it is."""
PAGES = {path: path.read_text("utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
OTHERS = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *(ROOT / "benchmarks").rglob("*.md"),
    ROOT / "tests" / "README.md",
]
BLOCKS = [
    pytest.param(path, code, id=f"{path.relative_to(ROOT)}-{number}")
    for path, text in PAGES.items()
    if path not in OWN_TESTS
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE), 1)
]


def block(page, words):
    """Return the one block of a page that has these words."""
    (code,) = [param.values[1] for param in BLOCKS if param.values[0] == ROOT / page and words in param.values[1]]
    return code


class Contacts:
    """A source of 90 contacts, three of the same second, ten a page."""

    rows = tuple({"id": n, "updated_at": f"2024-05-01T10:00:{n // 3:02}Z"} for n in range(90))

    def contacts(self, updated_since):
        rows = [row for row in self.rows if row["updated_at"] >= updated_since]
        return (rows[first : first + 10] for first in range(0, len(rows), 10))


class Sink(list):
    """Pages that were written."""

    write = list.append


@pytest.fixture
def names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHECKPOINT_STORE", f"sqlite:///{tmp_path}/default.db")
    with ApiServer() as server:
        monkeypatch.setenv("TRUTO_API_TOKEN", server.token)
        yield {"api": Contacts(), "sink": Sink(), "server": server}


def run(code, names):
    exec(compile(code.replace("https://api.truto.one", names["server"].url), "page", "exec"), names)


@pytest.mark.parametrize(("page", "code"), BLOCKS)
def test_block_runs_once_and_again(page, code, names):
    for _ in range(2):
        run(code, dict(names))


def test_the_first_block_syncs_once_and_then_only_what_is_new(names):
    first = block("README.md", "contacts.pages")
    run(first, names)
    assert [row for page in names["sink"] for row in page] == list(Contacts.rows)
    names["sink"].clear()
    run(first, names)
    assert names["sink"] == []
    store = open_store()
    assert len(store.load("sync_job_123")) == 1
    store.close()


def test_the_crash_test_shown_passes(names, crash_and_resume):
    run(block("docs/howto/testing.md", "def test_contacts"), names)
    names["test_contacts"](crash_and_resume)


def test_the_contract_shown_passes(names, tmp_path):
    (tmp_path / "test_mine.py").write_text(block("docs/howto/testing.md", "StoreContract"), "utf-8")
    line = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "-k",
        "unknown_namespace",
    ]
    done = subprocess.run([*line, tmp_path], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_is_in_the_table():
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Where things are")[2]
    package = ROOT / "checkpoint"
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert {name for name in rooms if f"{name}`" not in table} == set()


def test_every_link_leads_somewhere():
    broken = []
    for path in [*PAGES, *OTHERS]:
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
            target = str(ROOT / link.removeprefix(built.HERE)) if link.startswith(built.HERE) else link
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            if not target.startswith("https://") and not (there.exists() and (not anchor or anchor in anchors(there))):
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


def anchors(path):
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index():
    index = PAGES[ROOT / "docs" / "README.md"]
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.parent != ROOT}
    left_out = {page for page in pages if f"({page})" not in index and not page.startswith("guide/")}
    assert left_out == {"README.md"}


def test_the_front_page_stays_short():
    assert PAGES[ROOT / "README.md"].count("\n") <= 200


def test_links_of_the_front_page_work_on_a_package_index_too():
    assert [link for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[ROOT / "README.md"]) if "://" not in link] == []


def test_every_block_says_its_language():
    fences = {path: re.findall(r"^ *(?:```|~~~)(.*)$", text, re.MULTILINE)[::2] for path, text in PAGES.items()}
    assert {(path.name, fence) for path, some in fences.items() for fence in some if fence not in LANGUAGES} == set()


def test_every_public_name_is_in_the_reference():
    missing = set()
    for page, modules in reference.PAGES.items():
        text = reference.api(page)
        for module in modules:
            home = importlib.import_module(module)
            public = {name for name in dir(home) if not name.startswith("_") and shows(module, getattr(home, name))}
            missing |= {f"{module}.{name}" for name in public if f"### {name}\n" not in text}
    assert missing == set()


def shows(module, value):
    """Tell whether a package's own module shows a name; of inner modules only what is listed is public."""
    inner = module.count(".") > 1 or module == "checkpoint.codec"
    return not inner and not inspect.ismodule(value) and getattr(value, "__module__", "").startswith("checkpoint")


def test_every_method_of_a_stream_is_in_the_reference():
    text = reference.api("api")
    public = [name for name in dir(Incremental) if not name.startswith("_")]
    methods = [name for name in public if name not in reference.INTERNAL["Incremental"]]
    assert [name for name in methods if f"#### Incremental.{name}" not in text and f"* `{name}`" not in text] == []


def test_every_part_that_is_made_is_known():
    parts = {part for text in PAGES.values() for part in built.MADE.findall(text)}
    assert parts == {*reference.PAGES, "verbs", "calls"}
    verbs = reference.verbs()
    assert {
        name for name, verb in command.commands.items() if not verb.hidden and f"checkpoint {name}\n" not in verbs
    } == set()
    assert "| `GET /sync-job-run-state` |" in reference.calls()


def test_every_page_is_in_the_navigation():
    texts = {path.relative_to(ROOT / "docs").as_posix(): text for path, text in PAGES.items() if path.parent != ROOT}
    texts["README.md"] = PAGES[ROOT / "docs" / "README.md"]
    listed = set(re.findall(r'": "([^"]+[.]md)"', json.dumps(built.navigation(texts))))
    assert set(texts) - listed == set()


def test_every_environment_variable_is_described():
    page = PAGES[ROOT / "docs" / "reference" / "environment.md"]
    texts = [path.read_text("utf-8") for path in (ROOT / "checkpoint").rglob("*.py")]
    named = {name for text in texts for name in re.findall(r"\b(?:CHECKPOINT|TRUTO|AIRFLOW_CTX)_[A-Z_]*[A-Z]\b", text)}
    assert {name for name in named if f"`{name}`" not in page} == set()


def test_every_event_of_a_stream_is_described():
    page = PAGES[ROOT / "docs" / "reference" / "logging.md"].partition("## Events of streams")[2]
    listed = re.findall(r"^    ([a-z_]+) +(?:INFO|WARNING) ", telling.__doc__, re.MULTILINE)
    assert re.findall(r"^\| `([a-z_]+)` \| (?:INFO|WARNING)", page, re.MULTILINE) == listed


def test_every_error_is_described():
    page = PAGES[ROOT / "docs" / "reference" / "errors.md"]
    names = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert {name for name in names if f"| `{name}` |" not in page} == {"CheckpointError"}


def at(day):
    return {"updated_at": f"2024-05-{day:02}"}


@pytest.fixture
def commit(names):
    run(block("docs/howto/failures.md", "def commit(cp):"), names)
    return names["commit"]


@pytest.mark.parametrize("theirs", [at(3), at(2), at(1), None])
def test_the_commit_shown_takes_another_runs_later_position(commit, names, theirs):
    server = names["server"]
    server.store.commit("job", {"a": encode(at(0))})
    with Checkpointer("job", server.url) as cp:
        cp["a"] = at(2)
        server.store.commit("job", {"a": theirs and encode(theirs)})
        if theirs in (at(3), at(2)):
            commit(cp)
            assert cp["a"] == theirs
        else:
            with pytest.raises(Conflict):
                commit(cp)
    assert {key: decode(entry.value) for key, entry in server.store.load("job").items()} == (
        {} if theirs is None else {"a": theirs}
    )


def test_the_commit_shown_sends_less_of_what_is_too_large(commit, names):
    server = names["server"]
    server.set(max_value=200)
    with Checkpointer("job", server.url) as cp:
        cp["a"], cp["b"] = {**at(1), "seen": ["x" * 300]}, at(1)
        commit(cp)
        assert cp.changed == set()
    assert {key: decode(entry.value) for key, entry in server.store.load("job").items()} == {"a": at(1), "b": at(1)}


@pytest.mark.parametrize("applied", [True, False])
def test_the_commit_shown_settles_an_unanswered_write(commit, names, applied):
    server = names["server"]
    server.script(Drop(applied=applied), method="POST")
    server.script(None, Answer(400), method="GET", key="a")  # looked at, sent, and refused to be read back
    with Checkpointer("job", server.url) as cp:
        cp["a"] = at(1)
        commit(cp)
        assert cp.changed == set()
    assert decode(server.store.load("job")["a"].value) == at(1)
    assert server.pending == 0


@pytest.mark.parametrize(
    ("page", "begin", "end", "text"),
    [
        (table.PAGE, table.BEGIN, table.END, table.summary),
        (table.PAGE, *table.ROWS, table.by_shape),
        (table.DECISIONS, *table.MEASURED, table.decided),
        (table.README, table.FIRST, table.LAST, table.comparison),
    ],
)
def test_the_figures_are_those_that_the_benchmarks_wrote(page, begin, end, text):
    found = table.read()
    shown = page.read_text("utf-8").partition(begin)[2].partition(end)[0]
    assert shown == text(found)
