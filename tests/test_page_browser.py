"""The page in Debian's Chromium, as somebody uses it who is called at night; `checkpoint ui` serves it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlsplit

import pytest
from cli_screens import UNDO
from test_cli import ENVIRONMENT

from checkpoint import Checkpointer, codec
from checkpoint.entries import Writer
from checkpoint.run import lease
from checkpoint.stores.sqlite import SQLiteStore

CHROMIUM = shutil.which("chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'"


def moment(**ago):
    return (datetime.now(timezone.utc) - timedelta(**ago)).isoformat(timespec="seconds").replace("+00:00", "Z")


@pytest.fixture(scope="module")
def playwright():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright):
    found = playwright.chromium.launch(
        executable_path=CHROMIUM, args=[*QUIET, "--host-resolver-rules=MAP evil.example 127.0.0.1"]
    )
    yield found
    found.close()


@contextmanager
def shown(store, *arguments, **environment):
    """Run `checkpoint ui` over a file, and stop it by Ctrl-C."""
    command = [sys.executable, "-m", "checkpoint.cli", "ui", "--store", f"sqlite:///{store}", *arguments]
    with subprocess.Popen(command, env=ENVIRONMENT | environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = re.search(r"http://\S+", process.stdout.readline())[0]
            password = re.match(r"Password: (\S+)", process.stdout.readline())[1]
            yield SimpleNamespace(address=address, password=password)
        finally:
            process.send_signal(signal.SIGINT)
    assert process.returncode in {0, 130}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file as a night left it: one stream stands still, one run failed, one lease is held, and 300 accounts."""
    path = tmp_path_factory.mktemp("page") / "state.db"
    with closing(SQLiteStore(path)) as store:
        for hour in (50, 26, 2):
            values = {"deals": {"updated_at": moment(hours=53)}, "contacts": {"updated_at": moment(hours=hour + 1)}}
            changes = {key: codec.encode(value) for key, value in values.items()}
            store.commit("crm", changes, run_id=f"nightly-{hour}")
        with pytest.raises(ConnectionError), Checkpointer("shop", store, record_run=True, run_id="hourly") as cp:
            cp["orders"] = {"id": 7}
            cp.commit()
            raise ConnectionError
        with Checkpointer("accounts", store) as cp:
            group = cp.group("accounts")
            for number in range(300):
                group[f"a{number:03}"] = {"updated_at": moment(minutes=number * 7 % 300)}
        held = lease.LeaseState(f"worker {EVIL}", moment(hours=1), 1, 1)
        store.commit(f"ns {EVIL}", {f"key {EVIL}": codec.encode({f"field {EVIL}": EVIL}), lease.KEY: held.value()},
                     run_id=f"run {EVIL}", reasons={f"key {EVIL}": f"reason {EVIL}"},
                     writer=Writer("host", 7, f"by {EVIL}"))  # fmt: skip
    return path


@pytest.fixture(scope="module")
def served(file):
    with shown(file, "--no-browser") as page:
        yield page


@pytest.fixture
def visit(browser, served):
    """Open a tab of somebody who has signed in; whatever asks another host or runs a script is an error."""
    contexts = []

    def opened(path="", **options):
        credentials = {"username": "me", "password": served.password}
        context = browser.new_context(
            **{"http_credentials": credentials, "viewport": {"width": 1280, "height": 900}, **options}
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("dialog", lambda dialog: foreign.append(dialog.message))
        tab.on("request", lambda request: foreign.append(request.url) if not ours(request.url) else None)
        tab.on("console", lambda message: foreign.append(message.text))
        tab.goto(served.address + path)
        return tab

    def ours(url):
        return url.startswith((served.address, "data:"))

    foreign = []
    yield opened
    for context in contexts:
        context.close()
    assert foreign == []


@pytest.mark.parametrize("password", [None, "wrong"])
def test_the_browser_asks_for_the_password(browser, served, password):
    credentials = {} if password is None else {"http_credentials": {"username": "any", "password": password}}
    with closing(browser.new_context(**credentials)) as context:
        tab = context.new_page()
        try:
            assert tab.goto(served.address).status == 401
            assert "A password is needed" in tab.inner_text("main")
        except Exception as error:  # what it says where nobody answers its question
            if "ERR_INVALID_AUTH_CREDENTIALS" not in str(error):
                raise
    assert served.password not in served.address


def copied(tab, command):
    """Click a command, and return what is selected, which Ctrl-C would copy."""
    command.click()
    return tab.evaluate("getSelection().toString()").strip()


def run(command):
    """Run a command line as a shell does, with `checkpoint` on its path; return what it printed."""
    environment = ENVIRONMENT | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("CHECKPOINT_STORE", None)
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert (done.returncode, re.sub(UNDO, "", done.stderr)) == (0, "")
    return done.stdout


def test_a_stream_is_found_rewound_and_seen_in_its_history(visit):
    tab = visit()
    row = tab.get_by_role("row").filter(has=tab.get_by_role("link", name="crm", exact=True))
    assert re.search(r"2 d 5 h behind\s+deals", row.inner_text())
    row.get_by_role("link", name="crm", exact=True).click()
    tab.get_by_role("link", name="contacts", exact=True).click()
    assert tab.title() == "contacts · crm · checkpoint"
    assert "nightly-2" in tab.inner_text("main")
    before = tab.locator("dd.large").first.inner_text()
    command = copied(tab, tab.locator(".command").first)
    assert command.startswith("checkpoint rewind crm contacts --by 2d --store sqlite:///")
    assert "1 key of 'crm' changed." in run(command)
    tab.reload()
    assert tab.locator("dd.large").first.inner_text() != before
    newest = tab.locator("ol.past > li").first
    assert "run checkpoint rewind" in newest.inner_text()
    assert "Reason: rewound by 2 d" in newest.inner_text()
    rewound = tab.locator("dd.large").first.inner_text()
    assert "1 key of 'crm' changed." in run(f"{copied(tab, newest.locator('.command'))} --yes")  # undone
    tab.reload()
    assert tab.locator("dd.large").first.inner_text() == before
    assert "1 key of 'crm' changed." in run(f"{copied(tab, newest.locator('.command'))} --yes")  # and done again
    tab.reload()
    assert tab.locator("dd.large").first.inner_text() == rewound
    second = tab.locator("ol.past > li").nth(3)
    second.get_by_text("Restore this state").click()
    assert "1 key of 'crm' changed." in run(f"{copied(tab, second.locator('.command'))} --yes")
    tab.reload()
    assert tab.locator("dd.large").first.inner_text() == before


def test_one_member_of_many_is_found_by_search(visit):
    tab = visit("namespace?namespace=accounts")
    tab.get_by_role("link", name="accounts", exact=True).last.click()
    tab.get_by_label("Part of a member's name").fill("a123")
    tab.keyboard.press("Enter")
    tab.get_by_role("link", name="a123", exact=True).click()
    assert "checkpoint rewind accounts accounts --member a123 --by 2d" in tab.locator(".command").first.inner_text()
    assert "1 member of 'accounts' changed." in run(tab.locator(".command").first.inner_text())
    tab.reload()
    assert "Reason: rewound by 2 d" in tab.inner_text("ol.past")


def test_a_failed_run_leads_to_what_it_changed(visit):
    tab = visit()
    tab.get_by_role("link", name="Runs of shop").click()
    assert "failed ConnectionError" in " ".join(tab.inner_text("table").split())
    tab.get_by_text("Commands").click()
    done = tab.locator(".command").first.inner_text()
    assert done.startswith("checkpoint diff shop --since 2")


def test_stored_markup_runs_nothing(visit):
    tab = visit()
    tab.get_by_role("link", name=f"ns {EVIL}").first.click()
    assert f"worker {EVIL}" in tab.inner_text("main")
    said = run(f"{copied(tab, tab.locator('.command'))} --dry-run")
    assert f"is held by worker {EVIL} since" in " ".join(said.split())
    tab.get_by_role("link", name=f"key {EVIL}").click()
    for what in ("reason", "by", "run"):
        assert f"{what} {EVIL}" in tab.inner_text("ol.past")
    assert tab.locator("script, img, iframe").count() == 0


def test_a_foreign_host_is_refused(browser, served):
    address = urlsplit(served.address)
    with closing(browser.new_context(http_credentials={"username": "me", "password": served.password})) as context:
        tab = context.new_page()
        assert tab.goto(f"http://localhost:{address.port}/ui/").status == 200
        answer = tab.goto(f"http://evil.example:{address.port}/ui/")
        assert answer.status == 400
        assert "evil.example" in tab.inner_text("main")
        assert "crm" not in tab.inner_text("main")


PAGES = ["", "namespace?namespace=crm", "key?namespace=crm&key=contacts", "group?namespace=accounts&key=accounts",
         "runs?namespace=shop", "namespace?namespace=shop", "nothing",
         f"namespace?namespace={quote(f'ns {EVIL}')}"]  # fmt: skip

CONTRASTS = """() => {
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const paper = element => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (parts(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const light = color => parts(color).slice(0, 3).map(part => part / 255).map(
    part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
  ).reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter(node => node.nodeType === 3 && node.data.trim());
    if (!text.length || !element.getClientRects().length) continue;
    const ink = element.closest("svg") ? getComputedStyle(element).fill : getComputedStyle(element).color;
    const both = [light(ink), light(paper(element))].sort((one, other) => one - other);
    found.push([(both[1] + 0.05) / (both[0] + 0.05), text[0].data.trim()]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_fits_and_can_be_read(browser, served, scheme, width):
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}}
    credentials = {"username": "me", "password": served.password}
    with closing(browser.new_context(http_credentials=credentials, **options)) as context:
        tab = context.new_page()
        for path in PAGES:
            tab.goto(served.address + path)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, path
            found = tab.evaluate(CONTRASTS)
            assert len(found) > 3
            assert [(value, text) for value, text in found if value < 4.5] == [], path


def test_the_keyboard_reaches_everything(visit):
    tab = visit("key?namespace=crm&key=contacts")
    tab.keyboard.press("Tab")
    focused = "document.activeElement"
    assert tab.evaluate(f"{focused}.textContent") == "Skip to the content"
    assert tab.evaluate(f"{focused}.getBoundingClientRect().left") >= 0
    assert tab.evaluate(f"getComputedStyle({focused}).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    assert tab.evaluate(f"{focused}.id") == "main"
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate(f"{focused}.className || {focused}.tagName"))
    assert {"command", "SUMMARY", "A"} <= reached
    tree = tab.locator("body").aria_snapshot()
    for part in ("navigation", "main", "heading", "contentinfo", "textbox", "img"):
        assert part in tree, part


def test_a_lag_stands_on_one_line(visit):
    """Beside long keys too, as Airflow's are."""
    cell = visit("namespace?namespace=crm").locator("td[data-label=Lag]").first
    assert cell.evaluate("cell => getComputedStyle(cell).whiteSpace") == "nowrap"


def test_cells_are_read_with_their_headers_on_a_phone(visit):
    tree = visit(viewport={"width": 390, "height": 800}).locator("table").aria_snapshot()
    for part in ("columnheader", "rowheader", "cell", "row"):
        assert part in tree


def test_a_browser_is_opened_where_there_is_a_screen(file, tmp_path):
    told = tmp_path / "told"
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" > {told}.new && mv {told}.new {told}\n')
    script.chmod(0o700)
    for arguments in ((), ("--no-browser",)):
        told.unlink(missing_ok=True)
        with shown(file, *arguments, BROWSER=f"{script} %s") as page:
            if arguments:
                assert not told.exists()
                continue
            for _ in range(10_000):
                if told.exists():
                    break
                os.sched_yield()
            assert told.read_text().strip() == page.address
