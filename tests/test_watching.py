"""The page about watching: its rules, its manifest and its job are what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import yaml

from checkpoint import Checkpointer, MemoryStore, SQLiteStore
from checkpoint.streams import telling
from checkpoint.testing import ApiServer

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "operating" / "watching.md").read_text("utf-8")
DOCUMENTS = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)]
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
METRICS = re.findall(r"^\| `(checkpoint_\w+)` \|", PAGE, re.MULTILINE)


def one(key):
    (found,) = [document for document in DOCUMENTS if key in document]
    return found


def test_the_rules_ask_for_metrics_that_are_promised():
    (group,) = one("groups")["groups"]
    alerts = [rule["alert"] for rule in group["rules"]]
    assert len({*alerts}) == len(alerts) >= 5
    for rule in group["rules"]:
        asked = set(re.findall(r"\bcheckpoint_\w+", rule["expr"]))
        assert asked <= {*METRICS}, rule
        assert asked or 'up{job="checkpoint"}' in rule["expr"]
        assert {"summary", "do"} == {*rule["annotations"]}
    assert one("scrape_configs")["scrape_configs"][0]["job_name"] == "checkpoint"


def test_the_metrics_are_those_that_the_server_tells(recorded):
    store = MemoryStore()
    with pytest.raises(ZeroDivisionError), Checkpointer("crm", store):
        raise ZeroDivisionError
    with Checkpointer("crm", store) as cp:
        cp["contacts"] = {"updated_at": "2024-05-01T10:00:00Z"}
    with ApiServer(store) as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        text = httpx.get(f"{server.url}/metrics", headers=headers, trust_env=False).text
    samples = {line.partition(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    names = {re.sub(r"\{.*|_(?:bucket|count|sum)$", "", sample) for sample in samples}
    told = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    assert (told, {*METRICS} - names) == ({*METRICS}, {"checkpoint_request_seconds"} - names)
    assert {name for name in METRICS if f'{name}{{namespace="crm"}}' in samples} == {*METRICS[:6]}


def test_what_the_rules_advise_are_commands():
    from checkpoint.cli.command import checkpoint

    for rule in one("groups")["groups"][0]["rules"]:
        command, verb, *_ = rule["annotations"]["do"].split()
        assert command == "checkpoint"
        assert verb in checkpoint.commands


def test_a_locked_job_ends_with_75_and_the_cron_job_knows(tmp_path):
    cron = one("kind")
    assert (cron["kind"], cron["spec"]["concurrencyPolicy"]) == ("CronJob", "Forbid")
    job = cron["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": pod["containers"][0]["name"], "operator": "In", "values": [75]}
    assert pod["restartPolicy"] == "Never"  # a pod failure policy needs it
    assert pod["terminationGracePeriodSeconds"] > 30
    (code,) = CODE
    script = tmp_path / "sync.py"
    script.write_text(f"api = sink = None\n{code}")
    path = tmp_path / "state.db"
    with closing(SQLiteStore(path)) as store, Checkpointer("crm", store, exclusive=True):
        done = subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "CHECKPOINT_STORE": f"sqlite:///{path}"},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 75
    assert "not started: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_words_to_look_for_are_events():
    (words,) = re.findall(r"^## With log lines\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", words))
    logging = (ROOT / "docs" / "reference" / "logging.md").read_text("utf-8")
    assert named == {word for word in named if f"| `{word}` |" in logging} != set()
    assert "all_late" in telling.__doc__
