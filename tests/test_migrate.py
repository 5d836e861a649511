"""Other people's state, taken over as `docs/howto/migrate.md` says, by a connector that goes on where they stopped.

The other tool has read the first rows, up to the middle of some of one instant. Then the connector of the page reads:
nothing may be missing, and nothing but the rows at the position may come twice.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from sources import Source

from checkpoint import Checkpointer, formats
from checkpoint.cli.command import checkpoint

PAGE = (Path(__file__).parent.parent / "docs" / "howto" / "migrate.md").read_text("utf-8")
PER_PAGE = 60
"""Of the source, whose rows have the same time seven by seven."""


def block(words):
    """Return the one block of the page that has these words."""
    (code,) = [code for code in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) if words in code]
    return code


class World:
    """A source, the state of the old tool, and what the new connector wrote."""

    def __init__(self, source, url):
        self.source, self.rows = source, []
        self.url = url
        self.names = {"sink": self, "pages": self.pages}

    def get(self, path, **query):
        query = {name: value for name, value in query.items() if value is not None}
        return httpx.get(f"{self.source.url}{path}", params=query).json()

    def pages(self, path, **query):
        token = None
        while True:
            answer = self.get(path, page_token=token, **query)
            yield answer["rows"]
            token = answer["next"]
            if token is None:
                return

    def write(self, rows):
        self.rows += [row["id"] for row in rows]

    def old(self, count=PER_PAGE):
        """Return the rows that the old tool has read."""
        return [row for page in self.pages("/contacts") for row in page][:count]

    def run(self, words, **more):
        exec(compile(block(words), "migrate.md", "exec"), {**self.names, **more})

    def go_on(self, old, state_key="crm"):
        """Run the connector, twice, and see that it goes on where the old tool stopped."""
        at = old[-1]["updated_at"]
        code = block("contacts.pages").replace('"crm"', repr(state_key))
        exec(compile(code, "migrate.md", "exec"), dict(self.names))
        every = {row["id"] for page in self.pages("/contacts") for row in page}
        before = {row["id"] for row in old}
        assert before | set(self.rows) == every
        assert before & set(self.rows) == {row["id"] for row in old if row["updated_at"] == at}
        assert 0 < len(before & set(self.rows)) < 7
        assert len(self.rows) == len(set(self.rows)) > 100
        self.rows.clear()
        exec(compile(code, "migrate.md", "exec"), dict(self.names))
        assert self.rows == []

    def imported(self, document, tool):
        text = document if isinstance(document, str) else json.dumps(document)
        done = CliRunner().invoke(checkpoint, ["import", "crm", "--from", tool], input=text)
        assert done.exit_code == 0, done.output


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A reader of the page, who has named the store in the environment, and nowhere else."""
    url = f"sqlite:///{tmp_path / 'state.db'}"
    monkeypatch.setenv("CHECKPOINT_STORE", url)
    with Source(0, 300, changing=False, limited=False) as source:
        yield World(source, url)


def test_a_json_file_in_a_bucket(world, s3):
    boto3 = pytest.importorskip("boto3")
    old, bucket = world.old(), s3.removeprefix("s3://")
    state = {"contacts": {"last_seen": old[-1]["updated_at"]}}
    client = boto3.client("s3")
    client.put_object(Bucket=bucket, Key="etl/state.json", Body=json.dumps(state).encode())
    world.run("boto3", BUCKET=bucket)
    client.close()
    world.go_on(old)


def test_an_airflow_variable(world):
    old = world.old()
    variable = {"key": "crm_state", "value": json.dumps({"contacts": old[-1]["updated_at"]}), "is_encrypted": True}
    world.run("/api/v2/variables", get={"/api/v2/variables/crm_state": variable}.__getitem__)
    world.go_on(old)


@pytest.mark.parametrize("form", ["sdk", "plain", "meltano"])
def test_singer_bookmarks(world, form):
    old = world.old()
    at = old[-1]["updated_at"]
    sdk = {"replication_key": "updated_at", "replication_key_value": at, "starting_replication_value": "2024-01-01"}
    state = {"bookmarks": {"contacts": {"updated_at": at} if form == "plain" else sdk}}
    world.imported({"completed": {"singer_state": state}} if form == "meltano" else state,
                   "meltano" if form == "meltano" else "singer")  # fmt: skip
    world.go_on(old)


def test_an_interrupted_unsorted_bookmark_stays_behind():
    interrupted = {"replication_key": "at", "replication_key_value": "a", "progress_markers": {
        "Note": "Progress is not resumable if interrupted.", "replication_key": "at", "replication_key_value": "z",
    }}  # fmt: skip
    first = {"starting_replication_value": "a", "progress_markers": {"replication_key": "at"}}
    assert formats.positions({"bookmarks": {"s": interrupted, "t": first}}, "singer") == {"s": {"at": "a"}}


def stream(name, state):
    return {"type": "STREAM", "stream": {"stream_descriptor": {"name": name}, "stream_state": state}}


def test_airbyte_messages(world):
    old = world.old()
    world.imported([stream("contacts", {"updated_at": old[-1]["updated_at"]}), stream("empty", {})], "airbyte")
    world.go_on(old)


def test_airbyte_partitions_become_members(world):
    ats = {"1": {"updated_at": "2024-05-01T00:00:00Z"}, "2": {"updated_at": "2024-05-02T00:00:00Z"}}
    parts = [{"partition": {"account": int(name), "parent_slice": {}}, "cursor": at} for name, at in ats.items()]
    world.imported([stream("orders", {"states": parts, "use_global_cursor": False, "lookback_window": 1})], "airbyte")
    with Checkpointer("crm", world.url) as cp:
        assert dict(cp.group("orders")) == ats
        assert cp.incremental("2", "updated_at", group="orders").start_value == "2024-05-02T00:00:00Z"


def test_singer_partitions_become_members():
    def part(value, **context):
        return {"context": context, "replication_key": "at", "replication_key_value": value}

    state = {"bookmarks": {"s": {"partitions": [part(1, org="a", repo="b"), part(2, org="a", repo="c/d")]},
                           "t": {"partitions": [{"context": {"org": "a"}}]}}}  # fmt: skip
    assert formats.positions(state, "singer") == {"__group__": {"s": {"a/b": {"at": 1}, "a/c/d": {"at": 2}}}}


def dlt(**values):
    resources = {name: {"incremental": {"updated_at": {"initial_value": None, "last_value": value}}}
                 for name, value in values.items()}  # fmt: skip
    return {"_state_version": 1, "sources": {"crm": {"resources": resources}}}


def test_dlt_state(world):
    old = world.old()
    world.imported(dlt(contacts=f"\uf027{old[-1]['updated_at']}", numbers=7, unread=None), "dlt")
    with Checkpointer("crm", world.url) as cp:
        assert dict(cp) == {"contacts": {"updated_at": old[-1]["updated_at"]}, "numbers": {"updated_at": 7}}
    world.go_on(old)


def test_a_pipeline_of_dlt(world, tmp_path, monkeypatch):
    """It reads some pages, and its `state.json` is imported."""
    dlt = pytest.importorskip("dlt", reason="dlt is not installed")
    monkeypatch.chdir(tmp_path)
    old = world.old()

    @dlt.resource(name="contacts", primary_key="id")
    def contacts(updated_at=dlt.sources.incremental("updated_at", initial_value=None)):  # noqa: B008 - as dlt has it
        assert updated_at.last_value is None
        yield old

    pipeline = dlt.pipeline("crm", destination="filesystem", dataset_name="crm", pipelines_dir=str(tmp_path / "dlt"))
    pipeline.extract(contacts())
    world.imported((tmp_path / "dlt" / "crm" / "state.json").read_text("utf-8"), "dlt")
    world.go_on(old)


def test_a_tap_of_the_singer_sdk(world, capsys):
    """It reads some pages, and its last STATE message is imported."""
    sdk = pytest.importorskip("singer_sdk", reason="singer-sdk is not installed")
    old = world.old()

    class Contacts(sdk.Stream):
        name, primary_keys, replication_key, is_sorted = "contacts", ("id",), "updated_at", True
        schema = sdk.typing.PropertiesList(
            sdk.typing.Property("id", sdk.typing.IntegerType),
            sdk.typing.Property("updated_at", sdk.typing.DateTimeType),
        ).to_dict()

        def get_records(self, context):
            yield from old

    class Tap(sdk.Tap):
        name, config_jsonschema = "tap-crm", {"properties": {}}

        def discover_streams(self):
            return [Contacts(self)]

    Tap(config={}).sync_all()
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    states = [message["value"] for message in said if message["type"] == "STATE"]
    world.imported(states[-1], "singer")
    world.go_on(old)


def test_dlt_resources_of_one_name_are_kept_apart():
    state = dlt(orders=1)
    state["sources"]["shop"] = dlt(orders=2)["sources"]["crm"]
    assert formats.positions(state, "dlt") == {"orders": {"updated_at": 1}, "shop/orders": {"updated_at": 2}}


def test_the_vendors_api_written_by_hand(world, api, monkeypatch):
    monkeypatch.setenv("TRUTO_API_TOKEN", api.token)
    old = world.old()
    at = old[-1]["updated_at"]
    deals = base64.b64encode(json.dumps({"last_processed_at": at}).encode()).decode()
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {api.token}"}) as client:
        for key, value in {"contacts": at, "deals": deals}.items():
            answer = client.post("/sync-job-run-state?state_key=sync_job_123", json={"key": key, "value": value})
            answer.raise_for_status()
    exec(block("cp.raw").replace("https://api.truto.one", api.url), {})
    with Checkpointer("sync_job_123", api.url) as cp:
        assert cp["deals"] == {"updated_at": at}
    monkeypatch.setenv("CHECKPOINT_STORE", api.url)  # as the page says
    world.go_on(old, "sync_job_123")


@pytest.mark.parametrize(
    ("document", "tool", "text"),
    [
        ([], "dlt", "the document must be an object"),
        ({}, "dlt", "its 'sources' must be an object"),
        ({"sources": {"a": 1}}, "dlt", "the source 'a' must be an object"),
        ({"sources": {"a": {"resources": {"r": {"incremental": {"x": {"last_value": 1}, "y": {"last_value": 2}}}}}}},
         "dlt", "'r' has several positions: x, y; a stream has one"),
        ([stream("s", {"use_global_cursor": True, "states": [{}], "state": {"at": 7}})], "airbyte",
         "'s' has one position for all of its partitions, {\"at\":7}: give it to every member as its initial_value"),
        ([stream("s", {"states": [{"partition": {"a": 1}, "cursor": 1}]})], "airbyte",
         "the 'cursor' of partition 0 of 's' must be an object"),
        ([stream("s", {"states": [{"partition": {"a": 1}, "cursor": {"at": 1}}] * 2})], "airbyte",
         "two partitions of 's' would both be the member '1'"),
        ({"bookmarks": {"s": {"partitions": [3]}}}, "singer", "partition 0 of 's' must be an object"),
        ({}, "fivetran", "there is no tool 'fivetran': it is one of singer, airbyte, meltano, dlt"),
    ],
)  # fmt: skip
def test_bad_state_is_one_sentence(document, tool, text, tmp_path):
    with pytest.raises(ValueError, match=re.escape(text)):
        formats.positions(document, tool)
    done = CliRunner().invoke(
        checkpoint,
        ["--store", f"sqlite:///{tmp_path / 's.db'}", "import", "crm", "--from", tool],
        input=json.dumps(document),
    )
    assert done.exit_code == (2 if tool == "fivetran" else 1)
    assert text in " ".join(done.output.split()) or tool == "fivetran"


def test_what_is_read_in_a_program_as_the_page_says():
    exec(block("formats.positions"), {})
