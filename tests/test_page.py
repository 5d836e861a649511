"""The page under /ui: who may see it, what it shows, and that it is only HTML."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import sqlite3
from contextlib import closing
from hashlib import sha256
from html.parser import HTMLParser
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlencode, urlsplit

import pytest
from click.testing import CliRunner
from freezegun import freeze_time

from checkpoint import Checkpointer, codec
from checkpoint.cli.command import checkpoint
from checkpoint.entries import RUN_KEY, Writer
from checkpoint.overview.commands import Commands
from checkpoint.run import lease
from checkpoint.server import Access, Shown, create_app, views
from checkpoint.server.access import Grant
from checkpoint.stores.base import host
from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.sqlite import SQLiteStore
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import ApiServer

NOW = "2024-05-03T12:00:00Z"
STYLE = Path(views.__file__).parent / "templates" / "style.css"


class Counting(MemoryStore):
    """Counts the calls of the store."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def load(self, state_key):
        self.calls.append(("load", state_key))
        return super().load(state_key)

    def history(self, state_key, key=None, *, limit=None):
        self.calls.append(("history", state_key))
        return super().history(state_key, key, limit=limit)

    def namespaces(self):
        self.calls.append(("namespaces",))
        return super().namespaces()


@pytest.fixture
def store():
    return Counting()


@pytest.fixture
def server(store):
    with ApiServer(store) as server:
        yield server


def served(store, access="test-token", shown=None):
    """Serve a store with a page of its own."""
    server = ApiServer(store)
    server._app.state.stop()
    server._app = create_app(store, access, page=shown or Shown())
    return server


def basic(password):
    return {"Authorization": "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()}


def answer(server, path="", *, method="GET", password="test-token", host=None, **headers):
    """Return the status, headers and text of an answer."""
    address = urlsplit(server.url)
    with closing(HTTPConnection(address.hostname, address.port, timeout=10)) as connection:
        connection.putrequest(method, f"/ui/{path}" if path is not None else "/ui", skip_host=True)
        for name, value in {
            "Host": address.netloc if host is None else host,
            **({} if password is None else basic(password)),
            **headers,
        }.items():
            connection.putheader(name, value)
        connection.endheaders()
        found = connection.getresponse()
        return SimpleNamespace(status=found.status, headers=found.headers, text=found.read().decode())


class Seen(HTMLParser):
    """The elements of a page, and its text; an element that is not closed where it should be is an error."""

    VOID = frozenset({"meta", "link", "input", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.elements.append((tag, dict(attrs), [*self.open]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), [*self.open]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attrs for name, attrs, _ in self.elements if name == tag]

    @property
    def links(self):
        return [attrs["href"] for attrs in self.all("a")]


def seen(server, path="", **asked):
    found = answer(server, path, **asked)
    assert found.status == 200, found.text
    return Seen(found.text)


def at(moment):
    return codec.encode({"updated_at": moment})


# Who may see it


def test_the_root_leads_browsers_to_the_page(server):
    """With a query it is what a wrong URL of a store asks for, and is not there."""
    address = urlsplit(server.url)
    for target, expected in (("/", (307, "ui/")), ("/?state_key=a", (404, None))):
        with closing(HTTPConnection(address.hostname, address.port, timeout=10)) as connection:
            connection.request("GET", target)
            found = connection.getresponse()
            assert (found.status, found.headers["Location"]) == expected


def test_without_a_password_the_browser_is_told_to_ask(server):
    for password in (None, "wrong"):
        found = answer(server, password=password)
        assert (found.status, found.headers["WWW-Authenticate"]) == (401, 'Basic realm="checkpoint", charset="UTF-8"')
        assert "A password is needed" in Seen(found.text).text
    assert answer(server).status == 200


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", [None, "", "key?namespace=crm&key=contacts"])
def test_only_get_is_answered(server, store, method, path):
    store.commit("crm", {"contacts": at(NOW)})
    found = answer(server, path, method=method)
    assert (found.status, found.headers["Allow"]) == (405, "GET")
    assert store.calls == []


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200), ("LOCALHOST", 200), ("127.0.0.1", 200), ("127.0.0.1:80", 200), ("[::1]:80", 200),
        ("page.example.com", 200), ("Page.Example.com.:443", 200), ("127.0.0.2", 200),
        ("evil.example", 400), ("localhost.evil.example", 400), ("10.0.0.1", 400), ("", 400), ("localhost:80:80", 400),
        ("page.example.com@evil.example", 400), ("[::1", 400), ("[::2]", 400), ("0.0.0.0", 400), ("2130706433", 400),
    ],
)  # fmt: skip
def test_a_foreign_host_is_refused_before_anything(store, host, status):
    with served(store, shown=Shown(host_names=("Page.example.com",))) as server:
        found = answer(server, host=host)
    assert (found.status, bool(store.calls)) == (status, status == 200)
    if status == 400:
        assert "--host-name" in found.text


@pytest.mark.parametrize("given", ["Gateway:8443", "gateway", "gateway.:443"])
def test_a_host_name_may_be_given_with_its_port(store, given):
    with served(store, shown=Shown(host_names=(given, "[fd00::17]:8443", "fd00::18"))) as server:
        for host, status in (("gateway:8443", 200), ("gateway", 200), ("[fd00::17]", 200), ("[fd00::18]:80", 200),
                             ("gatewa", 400), ("[fd00::19]", 400)):  # fmt: skip
            assert answer(server, host=host).status == status, host


@pytest.mark.parametrize(
    "given", ["", "https://state.example.com", "state.example.com/ui", "a b", "*", "a:b", "[a:b]", "[x]"]
)
def test_what_is_no_host_name_is_refused_at_the_start(store, given):
    with pytest.raises(ValueError, match=re.escape(f"{given!r} is not a host name: give one such as")):
        create_app(store, "token", page=Shown(host_names=(given,)))


def test_a_request_with_two_hosts_is_refused(server):
    assert answer(server, HOST="127.0.0.1").status == 400


def test_a_token_sees_its_own_namespaces_alone(store):
    for name in ("crm_a", "crm_b", "crn_c"):
        store.commit(name, {"contacts": at(NOW)})
    access = Access([Grant("crm team", "read", "crm_", sha256(b"pw").digest())])
    with served(store, access) as server:
        with freeze_time(NOW):
            page = seen(server, password="pw")
        assert [link for link in page.links if link.startswith("namespace?")] == [
            "namespace?namespace=crm_a",
            "namespace?namespace=crm_b",
        ]
        for path in ("namespace?namespace=crn_c", "key?namespace=crn_c&key=contacts", "runs?namespace=crn_c"):
            assert answer(server, path, password="pw").status == 403
        missing = answer(server, "namespace?namespace=crm_c", password="pw")
    assert missing.status == 404
    assert "crm_a" in missing.text
    assert "crn_c" not in missing.text  # it may not be read


def test_a_namespace_without_keys_suggests_no_foreign_one(store):
    for name, key in (("crm_c", "__lease__"), ("crn_c", "contacts")):
        store.commit(name, {key: at(NOW)})
    with served(store, Access([Grant("crm team", "read", "crm_", sha256(b"pw").digest())])) as server:
        for path in ("group?namespace=crm_c&key=a", "key?namespace=crm_c&key=a", "key?namespace=crm_c&key=a&member=b"):
            found = answer(server, path, password="pw")
            assert found.status == 404
            assert "crn_c" not in found.text


def test_what_a_browser_may_do_with_an_answer(server, store):
    store.commit("crm", {"contacts": at(NOW)})
    style = base64.b64encode(sha256(STYLE.read_bytes()).digest()).decode()
    for path, asked in (("", {}), ("key?namespace=crm&key=contacts", {}), ("", {"password": None}), ("nothing", {})):
        headers = answer(server, path, **asked).headers
        assert headers["Content-Security-Policy"] == (
            f"default-src 'none'; style-src 'sha256-{style}'; img-src data:; form-action 'self'; base-uri 'none'; "
            "frame-ancestors 'none'"
        )
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
        assert (headers["Referrer-Policy"], headers["X-Frame-Options"]) == ("no-referrer", "DENY")
        assert headers["Set-Cookie"] is None


def test_the_page_without_its_slash_leads_to_it(server):
    found = answer(server, None)
    assert (found.status, found.headers["Location"]) == (308, "ui/")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("nothing", 404), ("namespace", 400), ("namespace?namespace=nowhere", 404), ("namespace?namespace=..", 400),
        ("key?namespace=crm", 400), ("key?namespace=crm&key=contact", 404), ("group?namespace=crm&key=contacts", 404),
        ("?page=x", 400), ("?sort=x", 400), ("?search=%ff", 400), ("?search=a&search=b", 400),
        ("key?namespace=crm&key=%00", 400),
        ("key?namespace=crm&key=contacts&member=m", 404), ("../v1/x", 404), ("style.css", 404),
    ],
)  # fmt: skip
def test_a_bad_address_gets_a_page_that_says_so(server, store, path, status):
    store.commit("crm", {"contacts": at(NOW)})
    found = answer(server, path)
    assert found.status == status
    assert "All namespaces" in Seen(found.text).text


def test_a_misspelt_name_gets_a_question(server, store):
    store.commit("crm", {"contacts": at(NOW)})
    assert "did you mean 'contacts'?" in Seen(answer(server, "key?namespace=crm&key=contact").text).text
    assert "did you mean 'crm'?" in Seen(answer(server, "namespace?namespace=crmm").text).text


# Namespaces


def run_of(store, name, run_id, *, error=None, rows=3):
    """Run a job over a namespace; the moment is the frozen clock's."""
    try:
        with Checkpointer(name, store, run_id=run_id, record_run=True) as cp:
            contacts = cp.incremental("contacts", "updated_at", initial_value="2024-05-01T00:00:00Z", row_order="asc")
            contacts.filter([{"updated_at": f"2024-05-02T09:0{number}:00Z"} for number in range(rows)])
            cp.commit()
            if error is not None:
                raise error
    except ConnectionError:
        pass


def test_namespaces_tell_their_runs_lag_and_holder(server, store):
    with freeze_time("2024-05-03T10:00:00Z"):
        run_of(store, "crm", "nightly-7")
    with freeze_time("2024-05-03T11:00:00Z"):
        run_of(store, "shop", "hourly", error=ConnectionError())
        held = lease.LeaseState("worker 3", "2024-05-03T11:30:00.000Z", 1, 1)
        store.commit("crm", {lease.KEY: held.value()})
    with freeze_time(NOW):
        page = seen(server)
    assert "1 failed 1 held by a run that is probably dead 2 behind by more than a day" in page.text
    assert "2 namespaces, those with a problem first, then the slowest" in page.text
    second, first = page.text.split("crm", 1)[1].split("shop", 1)
    assert "failed ConnectionError 1 h ago 2024-05-03 11:00:00 UTC 1 d 2 h behind contacts 1 h contacts 1" in first
    assert "done 2 h ago 2024-05-03 10:00:00 UTC 1 d 2 h behind contacts 2 h contacts 1" in second
    assert "worker 3 probably dead: last renewed 1 h ago" in second


def test_a_run_without_an_end_is_said_to_run_or_to_be_dead(server, store):
    """By its lease, where it is exclusive; what the rows are is told when it ends."""
    with freeze_time(NOW) as clock:
        Checkpointer("plain", store, run_id="r1", record_run=True).__enter__()["a"] = {"id": 1}
        Checkpointer("held", store, run_id="r2", record_run=True).__enter__()
        store.commit("held", {lease.KEY: lease.LeaseState("host, process 7, run r2, 1234abcd", NOW, 1, 1).value()})
        for name in ("plain", "held"):
            store.commit(name, {"a": at(NOW)})
        clock.tick(12)
        pages = ("", "namespace?namespace={}", "key?namespace={}&key=a", "runs?namespace={}")

        def told(name):
            return [seen(server, path.format(name)).text for path in pages]

        for text in told("plain"):
            assert "no end: still running, or killed" in text
        for text in told("plain")[1:3]:
            assert "unknown: running, or killed" in text
        for text in told("held"):
            assert re.search(r"(?i)last renewed 12 s ago", text)
        for text in told("held")[1:]:
            assert "no end" not in text
            assert "Other exclusive runs end with Locked" in text
        for text in told("held")[1:3]:
            assert "running: recorded at its end" in text
        assert "An exclusive run holds this namespace" in told("held")[2].split("Repair")[1]
        clock.tick(3_600)
        for text in told("held"):
            assert "no end: probably killed" in text
            assert "probably dead" in text.replace("held by a run that is probably dead", "")
        assert "An exclusive run holds this namespace" not in told("held")[2]


def test_a_search_finds_namespaces_and_keys(server, store):
    for name in ("crm", "shop"):
        store.commit(name, {f"key-{number}": at(NOW) for number in range(3)})
    assert "1 namespace of 2" in seen(server, "?search=sho").text
    text = seen(server, "namespace?namespace=crm&search=y-2").text
    assert ("key-2" in text, "key-1" in text) == (True, False)


def test_a_lease_released_by_hand_is_told_with_its_run(server, store):
    """Before, the page said less of the namespace once it was unlocked."""
    with freeze_time(NOW) as clock:
        begun = {"run_id": "r2", "host": "host", "process": 7, "started": NOW}
        held = lease.LeaseState("host, process 7, run r2, 1234abcd", NOW, 1, 1)
        store.commit("held", {"a": at(NOW), RUN_KEY: codec.encode(begun), lease.KEY: held.value()})
        clock.tick(3_600)
        lease.unlock(store, "held")
        clock.tick(60)
        pages = [seen(server, f"{page}?namespace=held").text for page in ("namespace", "runs")]
        pages.append(seen(server, "key?namespace=held&key=a").text)
        store.commit("slow", {"a": at("2024-05-01T12:00:00Z")})
        listed = seen(server).text
    assert "1 with a run whose lease was released by hand" in listed
    assert listed.index(" held ") < listed.index(" slow ")
    for text in pages:
        assert f"The lease was released by hand 1 min ago (2024-05-03 13:00:00 UTC), on {host()}, process" in text
        assert "It was held by host, process 7, run r2." in text
        assert "no end: its lease was released by hand" in text
    assert "checkpoint unlock" not in "".join(pages)


def test_a_position_ahead_of_the_clock_comes_first(server, store):
    store.commit("ahead", {"contacts": at("2024-06-03T00:00:00Z"), "deals": at("2024-05-03T11:00:00Z")})
    store.commit("slow", {"contacts": at("2024-04-01T00:00:00Z")})
    with freeze_time(NOW):
        text = seen(server).text
        page = seen(server, "key?namespace=ahead&key=contacts").text
    assert "1 with a position ahead of the clock 1 behind by more than a day" in text
    assert re.search(r"ahead 1?.*1 h behind deals ahead of the clock by 30 d contacts .* slow ", text)
    assert "The position is ahead of the clock by 30 d." in page
    assert "To undo the commit that moved it there" not in page  # the history has no earlier value
    assert "To read again from two days before now: checkpoint rewind ahead contacts --to 2024-05-01T00:00:00Z" in page
    assert "are not read again, unless --to is older" in page


def test_streams_without_rows_are_told_with_a_run(server, store):
    with Checkpointer("crm", store, record_run=True) as cp:
        for number in range(40):
            for _ in cp.incremental(f"quiet-{number:02}", "at", row_order="asc").pages([]):
                pass
        for number in (1, 2):
            for _ in cp.incremental(f"busy-{number}", "at", row_order="asc").pages([[{"at": 1}] * number]):
                pass
    text = seen(server, "runs?namespace=crm").text
    assert "By stream busy-2 2 seen, 2 delivered; read to its end busy-1 1 seen" in text
    assert "quiet-00 no rows; read to its end quiet-01" in text
    assert "and 10 more: checkpoint runs --json" in text


def test_members_that_share_an_entry_have_no_age_of_their_own(server, store):
    shard = codec.encode({"a": {"updated_at": "2024-05-01T00:00:00Z"}, "b": {"updated_at": "2024-05-02T00:00:00Z"}})
    with freeze_time("2024-05-03T10:00:00Z"):
        store.commit("crm", {"__group__.accounts": codec.encode({"shards": 1}), "__group__.accounts.00": shard})
    with freeze_time(NOW):
        assert "2 d 12 h behind accounts / a unknown 2" in seen(server).text
        for path in ("namespace?namespace=crm", "group?namespace=crm&key=accounts"):
            text = seen(server, path).text
            assert "unknown its entry, shared with other members, was written 2 h ago" in text
            assert "2 h ago 2024" not in text
        assert "Age 2 h ago" in seen(server, "key?namespace=crm&key=accounts&member=a").text  # as its history tells
        reads = {"accounts": {"at": "2024-05-03T11:30:00Z", "only": ["a"]}}
        store.commit("crm", {"__run__": codec.encode({"reads": reads})})
        assert "30 min ago read to its end" in seen(server, "group?namespace=crm&key=accounts").text
        assert "unknown" not in seen(server).text.split("accounts / a", 1)[1].split("accounts / a")[0]


def test_namespaces_are_found_by_part_and_by_pattern(server, store):
    for name in ("crm_eu", "crm_us", "billing"):
        store.commit(name, {"contacts": at(NOW)})

    def found(query):
        with freeze_time(NOW):
            return re.findall(r"namespace\?namespace=(\w+)", " ".join(seen(server, query).links))

    assert found("?search=crm") == ["crm_eu", "crm_us"]
    assert found("?search=" + quote("*_us")) == ["crm_us"]
    assert found("?search=BILL") == ["billing"]
    page = seen(server, "?search=none")
    assert "No namespace matches “none”. All 3" in page.text


@pytest.fixture
def tenants(store):
    """2 000 namespaces, of which some need somebody."""
    for number in range(2_000):
        store.commit(f"tenant-{number:04}", {"contacts": at("2024-05-03T11:00:00Z")})
    with freeze_time("2024-05-03T11:00:00Z"):
        run_of(store, "tenant-1500", "failed", error=ConnectionError())
        Checkpointer("tenant-1600", store, run_id="killed", record_run=True).__enter__()
    store.commit("tenant-1700", {"contacts": at("2024-05-01T00:00:00Z")})
    store.commit("tenant-1800", {"__group__.accounts": "no head"})
    store.calls.clear()
    return store


def test_of_many_namespaces_the_worst_come_first(server, tenants):
    with freeze_time(NOW):
        page = seen(server)
    assert re.findall(r"namespace\?namespace=tenant-(\d+)", " ".join(page.links))[:3] == ["1800", "1500", "1700"]
    assert "1 cannot be shown 1 failed 1 without an end 1 behind by more than a day" in page.text
    assert "./?sort=slowest&page=2" in page.links
    assert len(tenants.calls) == 2_001


def test_namespaces_that_take_too_long_to_read_come_by_name(server, tenants, monkeypatch):
    monkeypatch.setattr(views, "READING", 0.0)
    page = seen(server)
    assert "Reading all of them takes too long for this page" in page.text
    assert re.search(r"namespace\?namespace=tenant-(\d+)", " ".join(page.links))[1] == "0000"
    assert len(tenants.calls) < 200
    assert "1 failed" in seen(server, "?sort=slowest").text


def test_many_namespaces_are_read_page_by_page(server, tenants):
    page = seen(server, "?sort=name&page=20")
    assert "Page 20 of 20" in page.text
    assert "./?sort=name&page=19" in page.links
    assert tenants.calls == [("namespaces",), *(("load", f"tenant-{number:04}") for number in range(1_900, 2_000))]


@pytest.mark.parametrize(
    "letter", ["\u202e", "\u2028", "\u00ad", "\u00a0", "\ue000", "\U000e0001", '"', "&#8238;", " "]
)
def test_a_search_leads_to_the_same_namespace(server, store, letter):
    """What cannot be seen is escaped where people read it, and exact where the browser sends it back."""
    name = f"a{letter}b"
    store.commit(name, {f"{letter}{number}": at(NOW) for number in range(12)})
    with Checkpointer(name, store, record_run=False) as cp:
        cp.group(name)["m"] = {"a": 1}
    for path in ("namespace", "group"):
        found = seen(server, f"{path}?namespace={quote(name)}&key={quote(name)}&search={quote(letter)}")
        sent = {attrs["name"]: attrs["value"] for attrs in found.all("input")}
        assert (sent["namespace"], sent.get("key", name)) == (name, name)
        assert sent["search"] == letter.strip()
        again = seen(server, f"{path}?{urlencode(sent)}")
        assert any(f"?namespace={quote(name, safe='')}&" in link for link in again.links)


def test_a_namespace_that_cannot_be_read_hides_no_other(server, store):
    store.commit("good", {"contacts": at(NOW)})
    store.commit("bad", {"__group__.accounts": "no head"})
    page = seen(server)
    assert re.search(r"bad cannot be shown .*accounts.* good", page.text)
    assert answer(server, "namespace?namespace=bad").status == 500


def test_an_empty_store_says_so(server):
    assert "The store holds nothing yet." in seen(server).text


# Keys, groups and members


def test_keys_show_cursor_lag_and_rows_of_the_last_run(server, store):
    with freeze_time("2024-05-03T10:00:00Z"):
        run_of(store, "crm", "nightly-7")
        store.commit("crm", {"note": "free text", "number": codec.encode({"id": 7})})
    with freeze_time(NOW):
        page = seen(server, "namespace?namespace=crm")
    assert (
        'contacts {"updated_at":"2024-05-02T09:02:00Z"} 1 d 2 h behind 2 h ago 2024-05-03 10:00:00 UTC '
        "3 seen, 3 delivered nightly-7" in page.text
    )
    assert 'note "free text" not a time' in page.text
    assert 'number {"id":7} not a time' in page.text


def accounts(store, number, name="crm"):
    with freeze_time("2024-05-03T10:00:00Z"), Checkpointer(name, store, run_id="members") as cp:
        group = cp.group("accounts")
        for index in range(number):
            group[f"a{index:05}"] = {"updated_at": f"2024-05-{1 + (index * 7) % 3:02}T00:00:{index % 60:02}Z"}


def test_a_group_is_one_row_and_unfolds_by_member(server, store):
    accounts(store, 250)
    store.calls.clear()
    page = seen(server, "namespace?namespace=crm")
    assert "accounts 250 members slowest a00000 newest a00239" in page.text
    first = seen(server, "group?namespace=crm&key=accounts")
    assert "250 members" in first.text
    assert "Page 1 of 3" in first.text
    members = [link for link in first.links if link.startswith("key?")]
    assert (len(members), members[0]) == (100, "key?namespace=crm&key=accounts&member=a00000")
    assert "group?namespace=crm&key=accounts&sort=slowest&page=2" in {
        re.sub("search=&", "", link) for link in reordered(first.links)
    }
    found = seen(server, "group?namespace=crm&key=accounts&search=a0012&sort=name")
    assert [link[-6:] for link in found.links if link.startswith("key?")] == [f"a0012{last}" for last in range(10)]
    assert {call[0] for call in store.calls} == {"load"}


def reordered(links):
    """Return links with the names of a query in a fixed order."""
    order = ["namespace", "key", "search", "sort", "page"]
    return [
        f"{page}?" + "&".join(sorted(query.split("&"), key=lambda pair: order.index(pair.partition("=")[0])))
        for page, _, query in (link.partition("?") for link in links)
        if page == "group"
    ]


def test_a_large_group_costs_one_load_a_page(server, store):
    accounts(store, 10_000)
    for path in (
        "namespace?namespace=crm",
        "group?namespace=crm&key=accounts&page=50",
        "group?namespace=crm&key=accounts&search=99",
    ):
        store.calls.clear()
        assert len(answer(server, path).text) < 150_000
        assert store.calls == [("load", "crm")]
    store.calls.clear()
    assert "a05000" in seen(server, "key?namespace=crm&key=accounts&member=a05000").text
    assert store.calls == [("load", "crm"), ("history", "crm")]


# One key


@pytest.fixture
def night(store):
    """A key that moved for three nights, was rewound, and moved on."""
    for day in (1, 2, 3):
        with freeze_time(f"2024-05-0{day}T02:00:00Z"):
            store.commit("crm", {"contacts": at(f"2024-05-0{day}T01:00:00Z")}, run_id=f"nightly-{day}")
    with freeze_time("2024-05-03T08:00:00Z"):
        store.commit("crm", {"contacts": at("2024-05-01T01:00:00Z")}, run_id="checkpoint rewind",
                     reasons={"contacts": "rows were missing"}, writer=Writer("host", 7, "anna"))  # fmt: skip
    return store


def test_a_key_shows_who_changed_what_when_and_why(server, night):
    with freeze_time(NOW):
        page = seen(server, "key?namespace=crm&key=contacts")
    assert (
        "Position 2024-05-01T01:00:00Z updated_at Lag 2 d 11 h behind Age 4 h ago 2024-05-03 08:00:00 UTC" in page.text
    )
    assert re.search(
        r"History 4 h ago 2024-05-03 08:00:00 UTC version 4, run checkpoint rewind, by anna, \S+ process \d+ "
        r'Reason: rows were missing . was: updated_at: "2024-05-03T01:00:00Z" '
        r'\+ is: updated_at: "2024-05-01T01:00:00Z" '
        r"To undo this change: checkpoint restore crm contacts --to 3 --store \S+ "
        r"10 h ago 2024-05-03 02:00:00 UTC version 3, run nightly-3, \S+ process \d+ . was: updated_at: ",
        page.text,
    )


def test_a_key_is_drawn_over_time_and_told_in_words(server, night):
    with freeze_time("2024-05-05T08:00:00Z"):
        page = seen(server, "key?namespace=crm&key=contacts")
    (figure,) = page.all("figure")
    assert figure["role"] == "img"
    assert figure["aria-label"] == (
        "4 commits, from 2024-05-01T02:00:00.000Z to 2024-05-03T08:00:00.000Z: position from 2024-05-01T01:00:00Z to "
        "2024-05-01T01:00:00Z; lag between 1 h and 2 d 7 h; unchanged for 2 d until now, lag 4 d 7 h"
    )
    position, lag = (path["d"] for path in page.all("path")[1:4:2])
    assert re.search(r"L1100\.0 (\S+)$", position)[1] == re.findall(r"V([0-9.]+)", position)[-1]  # it stands still
    assert lag.endswith("L1100.0 240.0")  # and its lag has grown to be the largest one
    assert len(page.all("svg")) == 2
    assert len(page.all("circle")) == 16


def commands(page, text):
    """Return the command lines in a page."""
    return re.findall(r'class="command"[^>]*>([^<]*)<', text)


def test_beside_each_state_stands_the_command_that_restores_it(server, night):
    text = answer(server, "key?namespace=crm&key=contacts").text
    store = f"--store server+{server.url}"
    assert commands(None, text) == [
        f"checkpoint rewind crm contacts --by 2d {store}",
        f"checkpoint restore crm contacts --to 3 {store}",  # undoes the newest one
        f"checkpoint restore crm contacts --to 3 {store}",
        f"checkpoint restore crm contacts --to 2 {store}",
    ]  # what the first night stored is what is stored now


@pytest.mark.parametrize("kind", ["key", "member", "new", "deleted"])
def test_the_newest_change_can_be_undone(server, store, kind, monkeypatch):
    member = {"member": "a 1"} if kind == "member" else {}
    stored = "__group__.accounts/a 1" if member else "accounts"
    head = {"__group__.accounts": codec.encode({"members": "entries"})} if member else {}
    for moment in ("2024-05-01T00:00:00Z", NOW):
        if kind != "new" or moment == NOW:
            store.commit("crm", head | {stored: at(moment), "other": at(moment)})
    if kind == "deleted":
        store.commit("crm", {"other": None, stored: None})
    before = store.history("crm", stored)[0].before
    assert before == {"new": None, "deleted": at(NOW)}.get(kind, at("2024-05-01T00:00:00Z"))
    text = answer(server, f"key?{urlencode({'namespace': 'crm', 'key': 'accounts', **member})}").text
    [command] = re.findall(
        r"(?:To undo this change|Without it, the stream starts over):</p>\s*<code [^>]*>([^<]*)<", text
    )
    monkeypatch.setenv("CHECKPOINT_TOKEN", server.token)
    done = CliRunner().invoke(checkpoint, [*shlex.split(html.unescape(command))[1:], "--yes"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    entry = store.load("crm").get(stored)
    assert (None if entry is None else entry.value) == before


def test_a_failed_run_and_a_lease_come_with_their_commands(server, store):
    with freeze_time("2024-05-03T11:00:00Z"):
        run_of(store, "shop", "hourly", error=ConnectionError())
        store.commit("shop", {lease.KEY: lease.LeaseState("worker 3", None, 1, 1).value()})
    text = answer(server, "namespace?namespace=shop").text
    place = f"--store server+{server.url}"
    assert commands(None, text) == [
        f"checkpoint unlock shop {place}",
        f"checkpoint diff shop --since 2024-05-03T11:00:00.000Z {place}",
        f"checkpoint restore shop --to 2024-05-03T11:00:00.000Z {place}",
    ]


def test_a_deleted_key_still_has_its_past(server, night):
    night.commit("crm", {"contacts": None, "other": at(NOW)})
    page = seen(server, "key?namespace=crm&key=contacts")
    assert "Nothing is stored here now" in page.text
    assert "deleted" in page.text
    assert "version 4, run checkpoint rewind" in page.text


def test_remembered_rows_are_counted_and_unfold(server, store):
    seen_rows = {"at": NOW, "rows": [f"{number:032x}" for number in range(900)]}
    store.commit("crm", {"contacts": codec.encode({"updated_at": NOW, "seen": seen_rows})})
    page = seen(server, "key?namespace=crm&key=contacts")
    assert '{ "updated_at": "2024-05-03T12:00:00Z", "seen": 900 }' in page.text
    assert "+ is: seen: 900" in page.text
    assert f"{899:032x}" in page.text.partition("With the boundary rows")[2]


def test_a_long_history_is_shown_in_pages(server, store):
    for number in range(60):
        store.commit("crm", {"contacts": codec.encode({"id": number})})
    assert "Page 1 of 3" in seen(server, "key?namespace=crm&key=contacts").text
    last = seen(server, "key?namespace=crm&key=contacts&page=3")
    assert "version 1," in last.text
    assert "version 11," not in last.text


def test_runs_show_how_each_ended_and_what_it_did(server, store):
    with freeze_time("2024-05-03T10:00:00Z"):
        run_of(store, "crm", "nightly-7")
    with freeze_time("2024-05-03T11:00:00Z"):
        run_of(store, "crm", "nightly-8", error=ConnectionError(), rows=0)
    with freeze_time(NOW):
        page = seen(server, "runs?namespace=crm")
    assert re.search(r"2 runs, newest first .* 1 h ago 2024-05-03 11:00:00 UTC failed ConnectionError 0 s ", page.text)
    assert re.search(
        r"2 h ago 2024-05-03 10:00:00 UTC done 0 s 1 3 seen, 3 delivered By stream contacts 3 seen", page.text
    )


# Stores that keep no history or cannot list


def test_a_store_without_history_says_so(api):
    with closing(TrutoStore(api.url, api.token)) as truto, served(truto) as server:
        truto.commit("crm", {"contacts": at(NOW)})
        page = seen(server)
        assert "This store cannot list its namespaces." in page.text
        assert {"name": "namespace", "id": "namespace"}.items() <= page.all("input")[0].items()
        assert "not recorded" in seen(server, "namespace?namespace=crm").text
        text = answer(server, "key?namespace=crm&key=contacts").text
        assert "This store keeps no history" in text
        assert commands(None, text) == [f"checkpoint rewind crm contacts --by 2d --store {server.url}"]
        assert "This store keeps no history, so runs are not recorded." in seen(server, "runs?namespace=crm").text
        assert answer(server, "namespace?namespace=nowhere").status == 404


def test_a_store_that_does_not_answer_is_told(store):
    with ApiServer() as gone:
        address = gone.url
    with closing(TrutoStore(address, "token", deadline=0.5)) as truto, served(truto) as server:
        found = answer(server, "namespace?namespace=crm")
    assert found.status == 503
    assert "The store does not answer" in Seen(found.text).text


# Whatever is stored is text


EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'{{ 7777*7777 }}"
OBEYED = "\u202eturned"


@pytest.fixture
def evil(store):
    """A namespace in which every text that a page can show is markup."""
    namespace, key, member = f"ns {EVIL}", f"key {EVIL}", f"member {EVIL}{OBEYED}"
    value = codec.encode({f"field {EVIL}": f"value {EVIL}\x1b[31m", "seen": EVIL})
    with freeze_time("2024-05-03T10:00:00Z"), Checkpointer(namespace, store, run_id=f"run {EVIL}") as cp:
        cp[key] = {f"field {EVIL}": "before"}
        cp.group(f"group {EVIL}")[member] = {"at": f"2024 {EVIL}"}
        cp.commit()
    store.commit(namespace, {key: value, "opaque": f"opaque {EVIL}\x07"}, run_id=f"run {EVIL}\x1b]8;;http://evil.example",
                 reasons={key: f"reason {EVIL}\n\r"}, writer=Writer("host", 7, f"by {EVIL}"))  # fmt: skip
    store.commit(namespace, {lease.KEY: lease.LeaseState(f"owner {EVIL}", f"since {EVIL}", 1, 1).value()})
    run = {"run_id": f"run {EVIL}", "host": f"host {EVIL}", "process": 1, "started": f"2024 {EVIL}", "ended": EVIL,
           "outcome": f"out {EVIL}", "error": f"Error {EVIL}", "streams": {f"stream {EVIL}": {"seen": 3}}}  # fmt: skip
    store.commit(namespace, {"__run__": codec.encode(run)})
    return SimpleNamespace(
        namespace=quote(namespace), key=quote(key), group=quote(f"group {EVIL}"), member=quote(member)
    )


@pytest.mark.parametrize(
    "path",
    [
        "", "?search={namespace}", "?search=%3Cscript%3E", "namespace?namespace={namespace}",
        "runs?namespace={namespace}",
        "key?namespace={namespace}&key={key}", "group?namespace={namespace}&key={group}",
        "key?namespace={namespace}&key=opaque",
        "key?namespace={namespace}&key={group}&member={member}", "key?namespace={namespace}&key=%3Cscript%3E",
        "%3Cscript%3E", "?sort=%3Cscript%3E", "namespace?namespace=%3Cscript%3Ealert(1)%3C/script%3E",
    ],
)  # fmt: skip
def test_markup_and_control_characters_are_shown_as_text(server, evil, path):
    text = answer(server, path.format(**vars(evil))).text
    page = Seen(text)
    text_only = """html head meta title link style body a header nav ol ul li span main h1 h2 h3 p form div label input
        button table caption thead tbody tr th td small time code pre dl dt dd strong br details summary footer
        figure svg g path text circle"""
    assert {tag for tag, _, _ in page.elements} <= set(text_only.split())
    names = {name for _, attrs, _ in page.elements for name in attrs}
    assert not [
        name for name in names if name.startswith("on") or name in {"style", "src", "srcdoc", "action", "target"}
    ]
    assert all(re.match(r"(\./|namespace|group|key|runs|#main)(\?|$)", link) for link in page.links)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", text)
    assert "60481729" not in page.text  # nothing stored is a template


def test_every_stored_text_is_there_to_be_read(server, evil):
    text = seen(server, f"key?namespace={evil.namespace}&key={evil.key}").text
    for what in ("ns", "key", "run", "reason", "by", "owner", "out", "Error"):
        assert f"{what} {EVIL}" in text, what
    for what in ("field", "value"):  # in JSON
        assert json.dumps(f"{what} {EVIL}")[1:-1] in text, what
    assert "\\u001b[31m" in text
    assert "\\u000a\\u000d" in text
    assert "\\u202eturned" in seen(server, f"group?namespace={evil.namespace}&key={evil.group}").text


# Whoever reads it by keyboard or ear


@pytest.mark.parametrize(
    "path",
    ["", "namespace?namespace=crm", "key?namespace=crm&key=contacts", "group?namespace=crm&key=accounts",
     "runs?namespace=crm", "nothing"],
)  # fmt: skip
def test_each_page_has_landmarks_headings_and_labels(server, night, path):
    accounts(night, 120)
    page = Seen(answer(server, path).text)
    (root,), (main,) = page.all("html"), page.all("main")
    assert root["lang"] == "en"
    assert len(page.all("h1")) == len(page.all("title")) == len(page.all("header")) == len(page.all("footer")) == 1
    assert (page.all("a")[0]["href"], main["id"]) == ("#main", "main")
    assert all(attrs.get("aria-label") for attrs in page.all("nav"))
    labels = {attrs["for"] for attrs in page.all("label")}
    assert all(attrs.get("type") == "hidden" or attrs["id"] in labels for attrs in page.all("input"))
    assert all(attrs.get("scope") in {"col", "row"} for attrs in page.all("th"))
    for table in page.all("table"):
        assert "caption" in {tag for tag, _, _ in page.elements} or table["aria-labelledby"]
    ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def luminance(color):
    """The relative luminance of a color (WCAG 2.2)."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out_from_their_paper(scheme):
    light, dark = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light if scheme == "light" else dark))
    pairs = [
        (ink, paper)
        for ink in ("ink", "quiet", "accent")
        for paper in ("paper", "card", "soft", "bad-soft", "warn-soft")
    ]
    pairs += [("bad", "bad-soft"), ("warn", "warn-soft"), ("good", "card"), ("good", "paper"), ("bad", "card")]
    low = {pair: round(contrast(colors[pair[0]], colors[pair[1]]), 2) for pair in pairs}
    assert {pair: value for pair, value in low.items() if value < 4.5} == {}


def test_the_style_sheet_asks_no_other_host():
    assert not re.search(r"url\(|@import|https?:", STYLE.read_text())


def test_a_badge_leads_to_the_namespaces_that_it_counts(server, store):
    store.commit("ahead", {"contacts": at("2024-06-03T00:00:00Z")})
    store.commit("slow", {"contacts": at("2024-04-01T00:00:00Z")})
    with freeze_time(NOW):
        (badge,) = [link for link in seen(server).links if "behind" in link]
        query = badge.removeprefix("./")
        page, by_name = seen(server, query), seen(server, f"{query}&sort=name")
    for each in (page, by_name):
        assert "1 namespace of 2" in each.text
        assert "32 d behind contacts" in each.text
        assert "ahead of the clock by" not in each.text


def test_a_stream_that_found_nothing_new_says_since_when(server, store):
    """Only where that is another time than its age; a lag of more than a day is marked."""
    for moment, pages in (("2024-05-01T10:00:00Z", [[{"at": "2024-05-01T09:00:00Z"}]]), ("2024-05-03T11:00:00Z", [])):
        with freeze_time(moment), Checkpointer("crm", store, record_run=True) as cp:
            for _ in cp.incremental("contacts", "at", row_order="asc").pages(pages):
                pass
            cp["deals"] = {"at": moment}
    with freeze_time(NOW):
        answer = seen(server, "namespace?namespace=crm")
    assert "1 h ago no new rows since 2024-05-01 10:00" in answer.text
    assert "1 h behind 1 h ago 2024-05-03 11:00:00 UTC" in answer.text
    assert answer.text.count("no new rows") == 1


def test_a_first_commit_is_undone_behind_a_warning(server, store):
    with freeze_time(NOW), Checkpointer("crm", store, record_run=True) as cp:
        for _ in cp.incremental("a", "at", row_order="asc", group="accounts").pages([[{"at": NOW}]]):
            pass
    text = seen(server, "key?namespace=crm&key=accounts&member=a").text
    assert "Undo this change: delete the key This change created the key. Without it, the stream starts over:" in text
    assert "rewind changes the position at once; restore , in the history below, shows the changes and asks" in text
    assert "Rows of the last run" not in text
    assert "To search members, open the page of their group." in seen(server, "?search=none").text


def test_a_damaged_value_can_be_restored(server, store):
    store.commit("crm", {"contacts": at(NOW), "note": "free text"})
    store.commit("crm", {"contacts": "garbage!!"})
    page = seen(server, "key?namespace=crm&key=contacts").text
    assert "The value is damaged : it is not a cursor any more." in page
    assert page.index("checkpoint restore crm contacts --to 1 ") == page.index(
        "checkpoint ", page.index("The value is")
    )
    assert "damaged" not in seen(server, "key?namespace=crm&key=note").text
    assert re.search("1 with a damaged value .* damaged contacts", seen(server).text)


def test_a_damaged_row_is_told_with_its_repair(tmp_path):
    path = tmp_path / "state.db"
    with closing(SQLiteStore(path)) as store:
        store.commit("crm", {"contacts": at(NOW), "deals": at(NOW)})
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("UPDATE checkpoint_entries SET value = x'ff00' WHERE key = 'contacts'")
        with served(store, shown=Shown(commands=Commands("sqlite:///state.db"))) as server:
            assert "crm cannot be shown" in seen(server).text
            for page in ("namespace?namespace=crm", "key?namespace=crm&key=deals"):
                text = Seen(answer(server, page).text).text
                assert "This cannot be shown the stored row of 'contacts' in 'crm' is damaged" in text
                assert "checkpoint restore crm contacts --to 1 --store sqlite:///state.db" in text


def test_a_position_ahead_of_the_clock_can_be_undone(server, store):
    """Also where later commits moved it further ahead: the command goes back to before the first of them."""
    for position in ("2024-05-01T00:00:00Z", "2024-06-03T00:00:00Z", "2024-07-03T00:00:00Z"):
        store.commit("ahead", {"contacts": at(position)})
    with freeze_time(NOW):
        page = seen(server, "key?namespace=ahead&key=contacts").text
    box = page.partition("Rows until then may not be delivered.")[2].partition("Cursor")[0]
    assert "To undo the commit that moved it there" in box
    assert "checkpoint restore ahead contacts --to 1 --store" in box
    assert "checkpoint rewind" not in page  # to two days before now: rows since version 1 could be skipped


def test_every_documented_address_answers(store, server):
    with Checkpointer("crm", store, record_run=True) as cp:
        cp["contacts"] = {"updated_at": NOW}
        cp.group("accounts")["a17"] = {"updated_at": NOW}
    page = (Path(__file__).parents[1] / "docs" / "operating" / "page.md").read_text()
    addresses = re.findall(r"^\| `/ui/(.*?)` \|", page, re.MULTILINE)
    assert len(addresses) == 5
    for address in (*addresses, "?search=c*&page=1&sort=slowest", "key?namespace=crm&key=accounts&member=a17"):
        assert answer(server, address).status == 200, address
