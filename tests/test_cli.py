"""The command line, as processes: screens, errors, exit statuses, and the server it runs."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
from base64 import b64encode
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from cli_screens import UNDO

from checkpoint import Checkpointer, SQLiteStore
from checkpoint.codec import encode
from checkpoint.stores import _OPENERS
from checkpoint.stores.truto import TrutoStore

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "a-token-nobody-may-see"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("CHECKPOINT_", "TRUTO_"))},
    "COLUMNS": "80",
    "PYTHONWARNINGS": "error",
}


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "checkpoint.cli", *arguments],
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "checkpoint.cli", "serve", "--port", "0", *arguments],
        env={**ENVIRONMENT, "CHECKPOINT_SERVER_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            said, _, url = process.stdout.readline().rstrip("\n").rpartition(" ")
            assert said == "Listening on", process.stderr.read()
            yield process, url
        finally:
            process.kill()


def status_of(url: str, *, token: str | None = TOKEN, body: bytes | None = None) -> int:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        with urlopen(Request(f"{url}/sync-job-run-state?state_key=ns", body, headers)) as response:
            return response.status
    except HTTPError as error:
        with error:
            return error.code


def test_help():
    done = command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "Usage: checkpoint [OPTIONS] COMMAND [ARGS]...\n"
        "\n"
        "  Inspect and repair the checkpoints of incremental syncs.\n"
        "\n"
        "  A store holds namespaces, one for each job. A namespace holds a cursor under\n"
        "  each key, with the position from which the next run reads on. A key may be a\n"
        "  group, which holds a cursor for each of its members.\n"
        "\n"
        "  Begin with `checkpoint list` and `checkpoint status`. A sync to try it on:\n"
        "  `checkpoint demo`.\n"
        "\n"
        "Options:\n"
        "  --version    Show the version and exit.\n"
        "  --store URL  The store: sqlite:///state.db, https://api.truto.one … Default:\n"
        "               $CHECKPOINT_STORE, else a SQLite file in your state folder.\n"
        "  -h, --help   Show this message and exit.\n"
        "\n"
        "Commands:\n"
        "  list        List namespaces, keys, or the members of a group.\n"
        "  get         Print the cursor of a key as JSON.\n"
        "  set         Store a cursor, given as a JSON object.\n"
        "  merge       Change fields of a cursor with a JSON merge patch (RFC 7396).\n"
        "  edit        Edit a cursor in $VISUAL or $EDITOR.\n"
        "  clear       Delete keys of a namespace, or all of them.\n"
        "  status      Judge whether keys are fresh, and name each stale one.\n"
        "  runs        List the runs of a namespace, newest first.\n"
        "  history     Show what the latest commits changed, newest first.\n"
        "  diff        Compare two namespaces, two stores, or two moments.\n"
        "  rewind      Move a position back: the next run reads from there again.\n"
        "  restore     Bring keys back to what they were at a moment.\n"
        "  plot        Draw a key's position over time, and its lag.\n"
        "  copy        Copy a namespace to another store or another name.\n"
        "  move        Copy a namespace, compare, and delete the original.\n"
        "  export      Write a namespace as a document.\n"
        "  import      Store a document in a namespace.\n"
        "  init        Create or upgrade the tables of a store.\n"
        "  doctor      Check whether the store can be used.\n"
        "  reshard     Pack a group into another number of shards.\n"
        "  unlock      Release the lease that an exclusive run left behind.\n"
        "  singer-run  Run a Singer tap and target, from where JOB stopped.\n"
        "  ui          Show a store in the browser.\n"
        "  serve       Serve a store over HTTP, to clients with a token.\n"
        "  token       Make a token for `checkpoint serve`.\n"
        "  demo        Run a real incremental sync, kill it halfway, start it again.\n"
        "\n"
        "  Exit status: 0 success; 1 an error, or `diff`, `doctor` or `status` found\n"
        "  something; 2 the command line is wrong, or `diff` failed; 3 `status` cannot\n"
        "  tell.\n"
        "\n"
        "  Completion, for bash (likewise zsh, fish):\n"
        '  eval "$(_CHECKPOINT_COMPLETE=bash_source checkpoint)"\n'
    )


def test_help_of_serve():
    done = command("serve", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "Usage: checkpoint serve [OPTIONS]\n"
        "\n"
        "  Serve a store over HTTP, to clients with a token.\n"
        "\n"
        "  A token is needed: $CHECKPOINT_SERVER_TOKEN may read and write,\n"
        "  $CHECKPOINT_SERVER_READ_TOKEN may read. For several tokens,\n"
        "  $CHECKPOINT_SERVER_TOKENS names a file with the lines that `checkpoint\n"
        "  token` prints; it is read again when it changes.\n"
        "\n"
        "  It prints its URL once it listens. SIGTERM and Ctrl-C stop it within 10\n"
        "  seconds, after requests under way are answered.\n"
        "\n"
        "  Example: checkpoint serve --store sqlite:///state.db\n"
        "\n"
        "Options:\n"
        "  --store URL       The store: sqlite:///state.db, https://api.truto.one …\n"
        "                    Default: $CHECKPOINT_STORE, else a SQLite file in your\n"
        "                    state folder.\n"
        "  --port N          The port to listen on; 0 takes a free one.  [default:\n"
        "                    8080; 0<=x<=65535]\n"
        "  --host ADDRESS    The address to listen on.  [default: 127.0.0.1]\n"
        "  --token TEXT      A token to read and write. Better set\n"
        "                    $CHECKPOINT_SERVER_TOKEN: the list of processes shows\n"
        "                    arguments.\n"
        "  --host-name NAME  A name by which browsers reach the page under /ui, such as\n"
        "                    that of a gateway; may be repeated.\n"
        "  --root-path PATH  The path under which a gateway offers the server, such as\n"
        "                    /state.\n"
        "  --workers N       The number of processes.  [default: 1; x>=1]\n"
        "  --page-size N     List at most N entries per page.  [x>=1]\n"
        "  --rate N/SECONDS  Allow N requests in any SECONDS, such as 500/10; further\n"
        "                    ones get 429.\n"
        "  --max-body BYTES  Refuse larger requests. Default: 16 MiB; 64 MiB for a\n"
        "                    commit.  [x>=1]\n"
        "  --access-log      Write a line for each request, without values or tokens.\n"
        "  -h, --help        Show this message and exit.\n"
    )


def test_help_of_demo():
    done = command("demo", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "Usage: checkpoint demo [OPTIONS]\n"
        "\n"
        "  Run a real incremental sync, kill it halfway, start it again.\n"
        "\n"
        "  It copies files of Python's standard library into a scratch folder, and\n"
        "  syncs the copy into a SQLite table: in full, with nothing changed, and with\n"
        "  some files touched. Then it starts over in a process that it kills with\n"
        "  SIGKILL halfway, and starts that again. After each sync it compares source\n"
        "  and sink, and it exits with 1 if a row is missing or wrong.\n"
        "\n"
        "  Example: checkpoint demo --limit 500\n"
        "\n"
        "Options:\n"
        "  --store URL  The store: sqlite:///state.db, https://api.truto.one … Default:\n"
        "               $CHECKPOINT_STORE, else a SQLite file that is deleted\n"
        "               afterwards.\n"
        "  --serve      Sync over HTTP: start `checkpoint serve` over the store, and\n"
        "               sync through it.\n"
        "  --limit N    Sync N files instead of all.  [x>=1]\n"
        "  --keep DIR   Work in DIR, and keep it.\n"
        "  -h, --help   Show this message and exit.\n"
    )


def test_version():
    done = command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"checkpoint {version('checkpoint-store')}\n", "")


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_one_sentence_names_it(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from checkpoint.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"The command line needs {missing}: pip install 'checkpoint-store[cli]'\n"


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_serving_without_the_extra_one_sentence_names_it(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "sys.argv[1:] = ['serve', '--token', 't']\n"
        "from checkpoint.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: serving needs {missing}: pip install 'checkpoint-store[server]'\n"


@pytest.mark.parametrize("verb", [("demo",), ("serve", "--token", "t")])
@pytest.mark.parametrize("arguments", [("--store", "nosuch://x"), ()])
def test_a_bad_url_is_one_sentence(verb, arguments):
    done = command(*verb, *arguments, CHECKPOINT_STORE="nosuch://x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: no store opens 'nosuch://x': a store's URL begins with one of "
        f"{', '.join(f'{scheme}:' for scheme in sorted(_OPENERS))}\n"
    )


def test_a_store_that_cannot_be_had_is_one_sentence(tmp_path):
    (tmp_path / "state.db").write_bytes(b"not a database, " * 1000)
    done = command("demo", "--store", f"sqlite:///{tmp_path}/state.db", "--limit", "10")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "state.db" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    done = command("demo", "--keep", str(tmp_path / "file" / "kept"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: [Errno 20] Not a directory: '{tmp_path}/file/kept'\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nosuch"], "No such command 'nosuch'."),
        (["demo", "--limit", "0"], "Invalid value for '--limit': 0 is not in the range x>=1."),
        (["singer-run", "..", "--tap", "a", "--target", "b"], "Invalid value for 'JOB': namespace must not be '..'"),
        (
            ["serve"],
            "a token is needed: set $CHECKPOINT_SERVER_TOKEN, or $CHECKPOINT_SERVER_TOKENS to a file of tokens",
        ),
        *[
            (
                ["serve", "--rate", rate],
                f"Invalid value for '--rate': {rate!r} is not requests/seconds, such as 500/10.",
            )
            for rate in ("fast", "500", "0/10", "500/0", "-1/10")
        ],
    ],
)
def test_usage_errors_end_with_2(arguments, sentence):
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"Error: {sentence}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_keeps_state_in_its_store_and_stops_cleanly(tmp_path, number):
    for expected in ({}, {"updated_at": "2024-05-01"}):
        with serving("--store", f"sqlite:///{tmp_path}/state.db") as (process, url):
            with closing(TrutoStore(url, TOKEN)) as store, Checkpointer("ns", store) as cp:
                assert cp.get("files", {}) == expected
                cp["files"] = {"updated_at": "2024-05-01"}
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=30)
        assert (process.returncode, stdout, stderr) == (0, "", "")


def test_serve_asks_for_the_token():
    with serving("--store", "memory://x") as (_, url):
        assert [status_of(url, token=token) for token in (TOKEN, "other", None)] == [200, 401, 401]


def test_serve_limits_rate_and_body():
    with serving("--store", "memory://x", "--rate", "2/60", "--max-body", "100") as (_, url):
        assert [status_of(url, body=b"x" * 101), status_of(url), status_of(url)] == [413, 200, 429]


def test_serve_pages_its_lists():
    with serving("--store", "memory://x", "--page-size", "2") as (_, url), closing(TrutoStore(url, TOKEN)) as store:
        store.commit("ns", {"a": "1", "b": "2", "c": "3"})
        request = Request(f"{url}/sync-job-run-state?state_key=ns", headers={"Authorization": f"Bearer {TOKEN}"})
        with urlopen(request) as response:
            assert b"next_cursor" in response.read()
        assert sorted(store.load("ns")) == ["a", "b", "c"]


def test_a_port_in_use_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = command("serve", "--store", "memory://x", "--port", port, CHECKPOINT_SERVER_TOKEN=TOKEN)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert "in use" in done.stderr
    assert done.stderr.count("\n") == 1


def test_serve_refuses_a_store_that_cannot_be_used(tmp_path: Path):
    done = command("serve", "--port", "0", "--store", f"sqlite:///{tmp_path}/none/x.db", "--token", TOKEN)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"Error: {tmp_path}/none/x.db cannot be created, because its folder does not exist: create the folder\n"
    )


def test_serve_refuses_a_token_that_no_client_can_send(tmp_path: Path):
    done = command("serve", "--port", "0", "--store", f"sqlite:///{tmp_path}/x.db", "--token", "a b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("Error: the token must be printable ASCII without spaces, and not empty\n")


def test_serve_says_that_the_port_is_taken(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = command("serve", "--port", port, "--store", f"sqlite:///{tmp_path}/x.db", "--token", TOKEN)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: cannot listen on 127.0.0.1:{port}: ")
    assert done.stderr.endswith("; try another --port\n")


@pytest.mark.parametrize("host", ["nosuch.invalid", "192.0.2.1"])  # RFC 6761, RFC 5737
def test_serve_says_that_the_host_is_none_of_this_machine(host):
    done = command("serve", "--port", "0", "--host", host, "--store", "memory://x", "--token", TOKEN)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: cannot listen on {host}:0: ")
    assert done.stderr.endswith("; try another --host\n")


def test_the_package_is_the_command_too():
    done = subprocess.run(
        [sys.executable, "-m", "checkpoint", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("checkpoint ")


def seeded(tmp_path: Path, keys: int = 1) -> dict[str, str]:
    """Return the environment of a store whose namespace `job` holds so many keys."""
    with closing(SQLiteStore(tmp_path / "state.db")) as store:
        store.commit("job", {f"key-{number:05}": encode({"updated_at": "2024-05-01"}) for number in range(keys)})
    return {**ENVIRONMENT, "CHECKPOINT_STORE": f"sqlite:///{tmp_path}/state.db"}


def shell(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    script = script.replace("checkpoint ", f"{shlex.quote(sys.executable)} -m checkpoint.cli ")
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], env=environment, capture_output=True, timeout=60, check=False
    )


def test_get_goes_into_set_through_a_pipe(tmp_path):
    environment = seeded(tmp_path)
    value = "a text\r\nof two lines\n\n\u2028"
    with closing(SQLiteStore(tmp_path / "state.db")) as store:
        store.commit("job", {"text": value})
        done = shell(
            "checkpoint get job key-00000 | checkpoint set other cursor - &&"
            "checkpoint get --raw job text | checkpoint set other --raw text - --json",
            {**environment, "LC_ALL": "C"},
        )
        assert (done.returncode, re.sub(UNDO.encode(), b"", done.stderr)) == (0, b"")
        assert {key: entry.value for key, entry in store.load("other").items()} == {
            "cursor": encode({"updated_at": "2024-05-01"}),
            "text": value,
        }


@pytest.mark.parametrize("verb", ["list job", "list job --json", "export job", "history job"])
def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path, verb):
    done = shell(f"checkpoint {verb} | head -n 1 | wc -l", seeded(tmp_path, keys=5_000))
    assert (done.stdout.strip(), done.stderr) == (b"1", b"")


def test_a_pipe_gets_whole_lines_without_colour(tmp_path):
    environment = seeded(tmp_path)
    del environment["COLUMNS"]
    cursor = {"updated_at": "2024-05-01", "note": "x" * 300}
    with closing(SQLiteStore(tmp_path / "state.db")) as store:
        store.commit("job", {"key-00000": encode(cursor)})
        store.commit("job", {"key-00001": encode({})})
    done = shell("checkpoint list job | grep key", {**environment, "TERM": "xterm-256color"})
    assert re.sub(r" {2,3}(age|\d+ s)  ", "  AGE  ", done.stdout.decode()) == (  # of one digit or two
        f"key        cursor{' ' * 54}  lag  AGE  written by\n"
        f"key-00000  {json.dumps(cursor, separators=(',', ':'))}    -  AGE  -\n"
        f"key-00001  {{}}{' ' * 58}    -  AGE  -\n"
    )


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("set job new - <&-", 1, b"Error: the value for 'new' is no cursor: "),
        ("import job <&-", 1, b"Error: this is not a document of the format json: "),
        ("clear job <&- >/dev/null", 2, b"Error: Delete 1 key of 'job'? There "),
        ("list >&-", 0, b""),
        ("get job key-00000 >&-", 0, b""),
        ("export job >&-", 0, b""),
        ("copy job --as other 2>&-", 0, b""),
        ("set job key-00000 '{\"a\": 1}' <&- >&- 2>&-", 0, b""),
    ],
)
def test_a_closed_stream_is_an_empty_one(tmp_path, line, status, said):
    done = shell(f"checkpoint {line}", seeded(tmp_path))
    told = done.stderr.lstrip()  # rich before 15 ends the line that it could not print
    assert (done.returncode, told[: len(said) or None]) == (status, said)
    with closing(SQLiteStore(tmp_path / "state.db")) as store:
        stored = {"a": 1} if "{" in line else {"updated_at": "2024-05-01"}
        assert store.load("job")["key-00000"].value == encode(stored)


def test_what_a_terminal_has_no_letters_for_is_escaped(tmp_path):
    environment = {**seeded(tmp_path), "PYTHONIOENCODING": "ascii"}
    done = shell("checkpoint set job clé '{}' && checkpoint list job | cut -d ' ' -f 1", environment)
    assert (done.returncode, re.sub(UNDO.encode(), b"", done.stderr)) == (0, b"")
    assert done.stdout == b"+ cl\\xe9  {}\n1 key of 'job' changed.\nkey\ncl\\xe9\nkey-00000\n"


def test_ctrl_c_while_it_begins_ends_it_in_a_word(tmp_path):
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    done = shell("checkpoint list", {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"Aborted!\n")


def test_ctrl_c_is_no_difference():
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        subprocess.Popen(
            [sys.executable, "-m", "checkpoint.cli", "diff", "job", "other"],
            env={
                **ENVIRONMENT,
                "TRUTO_API_TOKEN": TOKEN,
                "CHECKPOINT_STORE": f"http://127.0.0.1:{silent.getsockname()[1]}",
                "PYTHONWARNINGS": "ignore",  # of a connection that was cut off
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process,
    ):
        silent.settimeout(60)
        with silent.accept()[0]:  # and no answer: it waits
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, b"", b"\nAborted!\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize("line", ["--help", "get --help", "list", "export job", "export job /dev/full"])
def test_an_output_that_takes_no_more_is_one_sentence(tmp_path, line):
    done = shell(f"checkpoint {line} >/dev/full", seeded(tmp_path))
    told = done.stderr.strip().splitlines()  # rich before 15 ends the line that it could not print
    assert (done.returncode, told) == (1, [b"Error: [Errno 28] No space left on device"])


def test_export_to_a_file_is_whole_or_not_at_all(tmp_path):
    environment = seeded(tmp_path, keys=100)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "job.json").write_text("the last one\n")
    (folder / "job.json").chmod(0o640)
    (folder / "link").symlink_to("job.json")
    # What is measured of a process goes into a file, too.
    unmeasured = {name: value for name, value in environment.items() if not name.startswith("COVERAGE_")}
    full = shell(f"ulimit -f 1; checkpoint export job {folder}/job.json --overwrite", unmeasured)
    assert (full.returncode, full.stderr) == (1, f"Error: [Errno 27] File too large: '{folder}/job.json'\n".encode())
    assert {file.name: file.read_text() for file in folder.iterdir()} == dict.fromkeys(
        ("job.json", "link"), "the last one\n"
    )
    quiet = f"checkpoint export job {folder}/link --overwrite >/dev/null"
    done = shell(f"{quiet} && checkpoint export job /dev/stdout | cat", environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(file.name for file in folder.iterdir()) == ["job.json", "link"]
    assert (folder / "link").is_symlink()
    assert (folder / "job.json").read_bytes() == done.stdout == shell("checkpoint export job", environment).stdout
    assert (folder / "job.json").stat().st_mode & 0o777 == 0o640
    nowhere = shell(f"checkpoint export job {folder}/none/job.json", environment)
    assert nowhere.stderr == f"Error: [Errno 2] No such file or directory: '{folder}/none/job.json'\n".encode()


def test_diff_exits_as_diff_does(tmp_path):
    environment = seeded(tmp_path)
    script = (
        "checkpoint diff job job; echo $?; checkpoint diff job none; echo $?; checkpoint diff job --with x; echo $?"
    )
    done = shell(script, environment)
    assert [line for line in done.stdout.split() if line.isdigit()] == [b"0", b"1", b"2"]


def in_terminal(
    arguments: list[str], environment: dict[str, str], answer: bytes, question: bytes = b"[y/N]: "
) -> tuple[int, bytes]:
    """Run the command in a terminal of its own, answer its question, and return its status and its screen."""
    pty = pytest.importorskip("pty", reason="needs a terminal of POSIX")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "checkpoint.cli", *arguments],
        env={**environment, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        screen = b""
        while question not in screen and (read := _read(ours)):
            screen += read
        os.write(ours, answer)
        while read := _read(ours):
            screen += read
        os.close(ours)
        return process.wait(60), screen


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so when the other side is closed
        return b""


@pytest.mark.parametrize(("answer", "status", "left"), [(b"n\n", 1, 2), (b"\n", 1, 2), (b"y\n", 0, 0)])
def test_what_destroys_asks_on_a_terminal(tmp_path, answer, status, left):
    environment = seeded(tmp_path, keys=2)
    code, screen = in_terminal(["clear", "job"], environment, answer)
    assert b"\x1b[31m- key-00000  " in screen
    assert b"Delete 2 keys of 'job'? [y/N]: " in screen
    with closing(SQLiteStore(tmp_path / "state.db")) as store:
        assert (code, len(store.load("job"))) == (status, left)


def editor(tmp_path: Path, script: str) -> dict[str, str]:
    """Return the environment of a store with one key, and an editor that is a script."""
    file = tmp_path / "editor"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return {**seeded(tmp_path), "EDITOR": str(file), "VISUAL": str(file), "TMPDIR": str(tmp_path)}


def test_ctrl_c_in_the_editor_is_the_editors(tmp_path):
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from checkpoint.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "edit", "job", "key-00000"],
        env=editor(tmp_path, """trap : INT; kill -INT 0; echo '{"a": 1}' > "$1" """),
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, re.sub(UNDO, "", done.stderr)) == (0, "")
    assert done.stdout.splitlines()[-1] == "1 key of 'job' changed."


def test_an_edit_that_is_given_up_names_its_file(tmp_path):
    environment = editor(tmp_path, """echo '{"a": ' > "$1" """)
    _, screen = in_terminal(["edit", "job", "key-00000"], environment, b"\x04", question=b"[Y/n]: ")
    (draft,) = tmp_path.glob("checkpoint-*")
    assert draft.read_text("utf-8") == '{"a": \n'
    assert f"What you wrote is in {draft}".encode() in screen


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:PORT",
        "server+http://127.0.0.1:PORT",
        "postgresql://u@127.0.0.1:PORT,127.0.0.1:PORT,127.0.0.1:PORT/db",
        "s3://bucket/prefix",
        "sqlite:///LOCKED",
    ],
)
def test_doctor_ends_within_five_seconds_of_its_start(tmp_path, url):
    path = tmp_path / "state.db"
    SQLiteStore(path).close()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("CREATE TABLE held (x)")
        port = str(silent.getsockname()[1])
        bucket = {"AWS_ENDPOINT": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "r"}
        names = ("TRUTO_API_TOKEN", "CHECKPOINT_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        tokens = dict.fromkeys(names, "x")
        store = url.replace("PORT", port).replace("LOCKED", str(path))
        began = perf_counter()
        done = command("doctor", "--store", store, **bucket, **tokens)
        took = perf_counter() - began
    assert done.returncode == 1, done.stderr
    assert "WRONG  reach" in done.stdout
    assert took < 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_doctor_ends_where_a_store_keeps_no_deadline(tmp_path):
    """Another package's store, that waits for ever: reading a pipe into which nobody writes."""
    metadata, pipe = tmp_path / "theirs-1.0.dist-info", tmp_path / "pipe"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[checkpoint.stores]\ntheirs = their_store:JSONStore\n")
    os.mkfifo(pipe)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent)])
    began = perf_counter()
    done = command("doctor", "--store", f"theirs://{pipe}", PYTHONPATH=path)
    took = perf_counter() - began
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(r"^WRONG  reach         no answer in \d\.\d s$", done.stdout, re.MULTILINE)
    assert took < 5


def test_doctor_tells_what_it_knows_while_it_waits():
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "checkpoint.cli",
                "doctor",
                "--store",
                f"http://127.0.0.1:{silent.getsockname()[1]}",
            ],
            env={**ENVIRONMENT, "TRUTO_API_TOKEN": TOKEN},
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        silent.settimeout(60)
        silent.accept()[0].close()  # it has begun to look
        ready, _, _ = select.select([process.stdout], [], [], 30)  # half of what it waits for the store
        told = [process.stdout.readline()[:19].split() for _ in range(2)] if ready else []
        process.kill()
    assert told == [["ok", "checkpoint"], ["ok", "store"]]


def test_commands_of_the_page_name_a_store_of_the_environment(tmp_path):
    """A shell that has no such variable takes them too, in any folder."""
    environment = {**seeded(tmp_path), "CHECKPOINT_STORE": "sqlite:///state.db"}
    verb = [sys.executable, "-m", "checkpoint.cli", "ui", "--no-browser"]
    with subprocess.Popen(verb, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        password = re.match(r"Password: (\S+)", process.stdout.readline())[1]
        basic = {"Authorization": f"Basic {b64encode(f'me:{password}'.encode()).decode()}"}
        with urlopen(Request(f"{address}key?namespace=job&key=key-00000", headers=basic), timeout=60) as page:
            text = page.read().decode()
        process.send_signal(signal.SIGINT)
    assert f"checkpoint rewind job key-00000 --by 2d --store sqlite:///{tmp_path}/state.db<" in text


def test_lists_need_no_slow_library(tmp_path):
    """Of a short command they took half the time."""
    program = """if True:
        import sys
        from checkpoint.cli import main
        try:
            main()
        finally:
            print(sorted({"rich.console", "rich.table", "importlib.metadata", "httpx", "difflib"} & {*sys.modules}))
    """
    for words in (["list"], ["list", "job"], ["status"], ["diff", "job", "--since", "1"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *words], env=seeded(tmp_path), capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]", words


def test_a_store_comes_from_the_option_before_the_environment(tmp_path):
    environment = {**seeded(tmp_path), "CHECKPOINT_STORE": "nosuch://x"}
    done = shell(f"checkpoint list --json --store sqlite:///{tmp_path}/state.db", environment)
    assert [row["namespace"] for row in json.loads(done.stdout)] == ["job"]
