"""The page for people who run the server: its steps in a fresh environment, nginx, tokens, and other languages."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from checkpoint import Checkpointer, SQLiteStore
from checkpoint.server import serving
from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.server import ServerStore
from checkpoint.testing import ApiServer

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "operating" / "server.md").read_text("utf-8")
CHECKPOINT = str(Path(sys.executable).with_name("checkpoint"))


def block(language, words):
    """Return the one block of the page in this language that has these words."""
    (text,) = [
        each for each in re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) if words in each
    ]
    return text


def steps(instruction):
    """Return the arguments of an instruction of the Dockerfile."""
    return re.findall(rf"^{instruction} (.*)$", block("dockerfile", "FROM"), re.MULTILINE)


@contextmanager
def started(command, environment):
    """Run a command that serves; yield its base URL."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CHECKPOINT_", "PG"))}
    with subprocess.Popen(
        command, env={**clean, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            said = process.stdout.readline()
            assert said.startswith("Listening on "), process.stderr.read()
            yield said.rpartition(" ")[2].strip()
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors


def token_for(folder, *arguments):
    """Make a token as the page says; return it and the file."""
    done = subprocess.run([CHECKPOINT, "token", *arguments], capture_output=True, text=True, check=True)
    with (folder / "tokens").open("a") as file:
        file.write(done.stdout)
    return done.stderr.split()[-1], folder / "tokens"


def test_the_containers_steps_run_in_a_fresh_environment(tmp_path, postgres_url):
    """RUN and CMD as they stand, but for the folder, the address and where the package comes from."""
    folder = tmp_path / "opt"

    def here(line):
        line = line.replace("/opt/checkpoint", str(folder)).replace("0.0.0.0", "127.0.0.1")
        return re.sub(r"'checkpoint-store(\[[\w,]+\])'", lambda found: shlex.quote(f"{ROOT}{found[1]}"), line)

    quick = os.environ | {"PIP_NO_COMPILE": "1"}
    for line in steps("RUN"):
        done = subprocess.run(
            here(line), shell=True, capture_output=True, text=True, timeout=300, check=False, env=quick
        )
        assert done.returncode == 0, done.stderr
    services = yaml.safe_load(block("yaml", "services:"))["services"]
    environment = dict(services["checkpoint"]["environment"])
    assert environment.pop("CHECKPOINT_STORE").startswith("postgresql://checkpoint@db/")
    token, file = token_for(tmp_path, "ops", "write", "*")
    assert environment.pop("CHECKPOINT_SERVER_TOKENS") == "/etc/checkpoint/tokens"
    environment = {"CHECKPOINT_STORE": postgres_url, "CHECKPOINT_SERVER_TOKENS": str(file)}
    command = [*json.loads(here(steps("CMD")[0])), "--port", "0"]
    with started(command, environment) as url:
        (health,) = steps("HEALTHCHECK")
        check = json.loads(here(health.partition("CMD ")[2]).replace("http://127.0.0.1:8080", url))
        assert subprocess.run(check, timeout=30, check=False).returncode == 0
        with closing(ServerStore(url, token)) as store, Checkpointer("crm", store) as cp:
            cp["contacts"] = {"updated_at": "2024-05-01T10:00:00Z"}
        answer = httpx.get(
            f"{url}/v1/state?state_key=crm", headers={"Authorization": f"Bearer {token}"}, trust_env=False
        )
        assert [entry["key"] for entry in answer.json()["result"] if not entry["key"].startswith("__")] == ["contacts"]


def test_the_containers_agree_with_each_other():
    """No engine runs them here: what one file says of the other, and what the server's own facts are."""
    document = yaml.safe_load(block("yaml", "services:"))
    server, database = document["services"]["checkpoint"], document["services"]["db"]
    environment = server["environment"]
    (exposed,) = steps("EXPOSE")
    assert [port.rpartition(":")[2] for port in server["ports"]] == [exposed]
    (health,) = steps("HEALTHCHECK")
    assert f"http://127.0.0.1:{exposed}/healthz" in health
    assert json.loads(steps("CMD")[0])[1:4] == ["serve", "--host", "0.0.0.0"]  # the port is the default one
    (folder,) = server["volumes"]
    assert str(Path(environment["CHECKPOINT_SERVER_TOKENS"]).parent) == folder.split(":")[1]
    user = database["environment"]["POSTGRES_USER"]
    assert environment["CHECKPOINT_STORE"] == f"postgresql://{user}@db/{user}"
    assert environment["PGPASSWORD"] == database["environment"]["POSTGRES_PASSWORD"]
    assert database["healthcheck"]["test"] == ["CMD", "pg_isready", "-U", user]
    assert [volume.partition(":")[0] for volume in database["volumes"]] == [*document["volumes"]]
    assert int(server["stop_grace_period"].removesuffix("s")) > serving.KILL


def test_the_unit_of_systemd_starts_a_server(tmp_path):
    unit = block("ini", "[Service]")
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    (variable,) = re.findall(r"^Environment=CHECKPOINT_SERVER_TOKENS=(.*)$", unit, re.MULTILINE)
    assert variable == "/etc/checkpoint/tokens"
    _, file = token_for(tmp_path, "ops", "write", "*")
    words = command.replace("/opt/checkpoint/bin/checkpoint", CHECKPOINT).replace("/var/lib/checkpoint", str(tmp_path))
    with started([*words.split(), "--port", "0"], {"CHECKPOINT_SERVER_TOKENS": str(file)}) as url:
        assert httpx.get(f"{url}/healthz", trust_env=False).json() == {"status": "ok"}
    assert (tmp_path / "state.db").exists()
    if shutil.which("systemd-analyze"):
        (tmp_path / "checkpoint.service").write_text(unit.replace("/opt/checkpoint/bin/checkpoint", CHECKPOINT))
        verify = ["systemd-analyze", "verify", str(tmp_path / "checkpoint.service")]
        done = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
        assert "checkpoint.service" not in done.stderr


@pytest.mark.parametrize("below", ["", "/state"])
def test_nginx_passes_tls_and_keys_on_as_they_are(tmp_path, below):
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx (apt-get install nginx-light)")
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    token, file = token_for(tmp_path, "ops", "write", "*")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [CHECKPOINT, "serve", "--store", "memory://x", "--port", "0", *(["--root-path", below] if below else [])]
    with started(command, {"CHECKPOINT_SERVER_TOKENS": str(file)}) as url:
        server = block("nginx", "ssl_certificate").replace("http://127.0.0.1:8080", url)
        server = re.sub(r"/etc/ssl/checkpoint\.(pem|key)", str(tmp_path / "both.pem"), server)
        server = server.replace("listen 443", f"listen 127.0.0.1:{port}").replace("location / ", f"location {below}/ ")
        temporary = " ".join(f"{name}_temp_path {tmp_path}/{name};" for name in ("proxy", "fastcgi", "uwsgi", "scgi"))
        head = f"daemon off; master_process off; pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}"
        body = f"http {{ access_log off; client_body_temp_path {tmp_path}/body; {temporary}\n{server}}}"
        (tmp_path / "nginx.conf").write_text(f"{head}\n{body}")
        nginx = subprocess.Popen(["nginx", "-p", tmp_path, "-c", tmp_path / "nginx.conf"], stderr=subprocess.PIPE)
        try:
            context = ssl.create_default_context()
            authority.configure_trust(context)
            headers = {"Authorization": f"Bearer {token}"}
            with httpx.Client(
                base_url=f"https://127.0.0.1:{port}{below}", headers=headers, verify=context, trust_env=False
            ) as client:
                for _ in range(500):
                    with socket.socket() as probe:
                        if probe.connect_ex(("127.0.0.1", port)) == 0:
                            break
                    time.sleep(0.01)
                changes = {"state_key": "crm", "changes": {"a/b": "1", "c": "2"}}
                assert client.post("/v1/commit", json=changes).status_code == 200
                path, query = "/sync-job-run-state", {"state_key": "crm"}
                assert client.get(f"{path}/a%2Fb", params=query).json()["value"] == "1"
                assert client.get(f"{path}/none", params=query).json()["statusCode"] == 404
                assert "statusCode" not in client.get("/nowhere").json()
        finally:
            nginx.terminate()
            nginx.communicate()


def test_the_lines_about_tokens_make_tokens(tmp_path):
    from checkpoint.server.access import Access

    commands = block("sh", "checkpoint token").replace("checkpoint token", f"{CHECKPOINT} token")
    done = subprocess.run(["sh", "-ec", commands], cwd=tmp_path, capture_output=True, text=True, check=True)
    loader, grafana = re.findall(r": (\S+)$", done.stderr, re.MULTILINE)
    access = Access([], tmp_path / "tokens")
    assert access.allow([(b"authorization", f"Bearer {loader}".encode())], "write", "crm_eu") == "crm-loader"
    assert access.allow([(b"authorization", f"Bearer {grafana}".encode())], "read", "erp") == "grafana"


def test_the_lines_about_backup_are_the_programs_own(tmp_path):
    lines = block("sh", "pg_dump").splitlines()
    assert [line.split()[0] for line in lines] == ["pg_dump", "sqlite3", "checkpoint"]
    with closing(SQLiteStore(tmp_path / "state.db")) as store:
        store.commit("crm", {"a": "1"})
        with closing(SQLiteStore(tmp_path / "state.db")) as other:
            other.commit("crm", {"a": "2"})
    done = subprocess.run(
        [*lines[2].partition("#")[0].split(), "--yes", "--dry-run"],
        env={**os.environ, "CHECKPOINT_STORE": f"sqlite:///{tmp_path}/state.db", "PATH": str(Path(CHECKPOINT).parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Usage:" not in done.stderr


def test_curl_and_javascript_share_a_cursor():
    for program in ("curl", "node"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here")
    store = MemoryStore()
    with ApiServer(store) as server:
        environment = {**os.environ, "SERVER": server.url, "CHECKPOINT_TOKEN": server.token}
        shell = ["bash", "-ec", block("sh", "curl")]
        done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=60, check=True)
        loaded, end = json.JSONDecoder().raw_decode(done.stdout)
        committed = json.loads(done.stdout[end:])
        assert (loaded, [entry["key"] for entry in committed["result"]]) == ({"result": []}, ["contacts"])
        command = ["node", "--input-type=module", "-e", block("javascript", "fetch")]
        for shown in ("from 2024-05-01T10:00:00Z\n", "from 2024-05-02T10:00:00Z\n"):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
            assert (done.returncode, done.stdout, done.stderr) == (0, shown, "")
        again = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=60, check=True)
        assert '"code":"conflict"' in again.stdout
    with Checkpointer("crm", store) as cp:
        assert cp["contacts"] == {"updated_at": "2024-05-02T10:00:00Z"}
