"""The last row of the fault matrix: every HTTP row once more, in search of the token."""

from __future__ import annotations

import io
import logging
import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import islice, product
from pathlib import Path
from traceback import TracebackException, walk_tb
from types import FunctionType

import pytest
import test_faults_http
from job import TOKEN, Driven, Job

from checkpoint import StoreError
from checkpoint.stores.tokens import Secret
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import Raw

console = pytest.importorskip("rich.console")
tracebacks = pytest.importorskip("rich.traceback")

TESTS = str(Path(__file__).parent)


def scenarios():
    """Return every test of the HTTP rows, with three of its parameters at most."""
    for name, test in vars(test_faults_http).items():
        if name.startswith("test_fault_"):
            marks = [mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
            for values in islice(product(*(values for _, values in marks)), 3):
                arguments = {}
                for (names, _), value in zip(marks, values, strict=True):
                    arguments.update({names: value} if isinstance(names, str) else zip(names, value, strict=True))
                yield name, test, arguments


class Everything(logging.Handler):
    """All that is logged by anybody, arguments and tracebacks included."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.names = set()
        self.text = []

    def emit(self, record):
        self.names.add(record.name.partition(".")[0].rstrip("2"))
        self.text += [self.format(record), repr(record.args)]


@pytest.fixture
def log():
    handler, root, others = Everything(), logging.getLogger(), list(logging.Logger.manager.loggerDict)
    levels = {name: logging.getLogger(name).level for name in (root.name, *others)}
    for name in levels:
        logging.getLogger(name).setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def chain(error):
    """Return an error and all that are behind or inside it."""
    links, waiting = [], [error]
    while waiting:
        link = waiting.pop()
        if link is not None and link not in links:
            links.append(link)
            waiting += [link.__cause__, link.__context__, *getattr(link, "errors", {}).values()]
    return links


def frames(error):
    """Return an error's traceback from where it leaves the tests, whose locals do hold the token."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(TESTS):
        traceback = traceback.tb_next
    return traceback


def shown(error, rendered):
    """Yield everything that somebody may show or keep of an error; rich, which is slow, draws each function once."""
    for link in chain(error):
        traceback = frames(link)
        yield from (str(link), repr(link), repr(vars(link)), repr(link.args))
        with suppress(Exception):  # of a dependency's, some are none to pickle
            yield pickle.dumps(link).decode("latin-1")
        yield from TracebackException(type(link), link, traceback, capture_locals=True).format(chain=False)
        functions = {frame.f_code for frame, _ in walk_tb(traceback) if "checkpoint" in frame.f_globals["__name__"]}
        if functions - rendered:
            rendered |= functions
            yield drawn_by_rich(link, traceback)


def drawn_by_rich(error, traceback):
    drawn = io.StringIO()
    alone = type(error), error.with_traceback(None), traceback
    error.__cause__ = error.__context__ = None  # they have their turn
    options = {"show_locals": True, "locals_max_string": 10_000, "locals_max_length": 100, "extra_lines": 0}
    console.Console(file=drawn, width=500).print(tracebacks.Traceback.from_exception(*alone, **options))
    return "".join(drawn.getvalue().replace("│", "").split())  # as it was before it was folded


def kept(thing):
    """Yield everything that somebody may show or keep of a store or a run."""
    yield from (repr(thing), str(thing), repr(vars(thing)))
    with suppress(TypeError, AttributeError):
        yield pickle.dumps(thing).decode("latin-1")


def test_fault_50_no_http_row_leaves_the_token_behind(tmp_path, log, capfd):
    rendered, errors, rows = set(), 0, set()
    for number, (name, test, arguments) in enumerate(scenarios()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with Job(folder, Driven) as job:
            test(job, **arguments)
            for error in job.errors:
                errors += len(chain(error))
                assert not [text for text in shown(error, rendered) if TOKEN in text], (name, arguments)
            for thing in job.made:
                assert not [text for text in kept(thing) if TOKEN in text], (name, arguments)
            assert not [text for text in job.output if TOKEN in text], (name, arguments)
            rows.add(name[11:13])
    assert rows == {f"{row:02}" for row in (*range(1, 24), 36)}
    assert log.names >= {"checkpoint", "httpcore", "asyncio"}
    assert [text for text in log.text if TOKEN in text] == []
    assert TOKEN not in "".join(capfd.readouterr())
    assert errors > len(rendered) > 10


def test_fault_50_a_token_in_an_unreadable_answer_is_not_shown(tmp_path):
    with Job(tmp_path) as job:
        job.api.script(Raw(b"HTTP/1.1 200 OK\r\n" + TOKEN.encode() + b" x\r\n\r\n"), forever=True)
        with pytest.raises(StoreError, match="gave up after 3 attempts") as caught, job.run():
            pass
        assert "***" in str(caught.value)
        assert [text for text in shown(caught.value, set()) if TOKEN in text] == []


def test_fault_50_a_token_in_a_local_or_a_log_would_be_found(log):
    def fails(hidden):
        raise StoreError(hidden[:3])

    elsewhere = fails.__code__.replace(co_filename="<elsewhere>")
    with pytest.raises(StoreError) as caught:
        FunctionType(elsewhere, {"StoreError": StoreError, "__name__": "checkpoint.elsewhere"})(TOKEN)
    assert len([text for text in shown(caught.value, set()) if TOKEN in text]) == 2
    logging.getLogger("httpcore.connection").debug("headers=%r", [TOKEN])
    assert [text for text in log.text if TOKEN in text] == [f"headers=[{TOKEN!r}]", f"([{TOKEN!r}],)"]


def test_fault_50_the_token_itself_is_not_shown_or_pickled():
    secret = Secret(TOKEN)
    assert (repr(secret), str(secret), f"{[secret]}") == ("Secret(***)", "Secret(***)", "[Secret(***)]")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="a secret cannot be pickled"):
            pickle.dumps(secret, protocol)


SERVER = """
import logging, os
logging.basicConfig(level=logging.DEBUG)
from checkpoint.server import serve
from checkpoint.stores.memory import MemoryStore
serve(MemoryStore(), os.environ["CHECKPOINT_SERVER_TOKEN"], port=0, ready=lambda url: print(url, flush=True))
"""


def test_fault_50_the_servers_log_holds_no_token():
    environment = {**os.environ, "CHECKPOINT_SERVER_TOKEN": TOKEN}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        url = server.stdout.readline().strip()
        for token in (TOKEN, TOKEN + "-wrong"):
            store = TrutoStore(url, token)
            with suppress(StoreError):
                store.commit("run", {"a": "x"})
                store.commit("run", {"a" * 70_000: "x"})
            store.close()
        server.send_signal(signal.SIGTERM)
        out, log = server.communicate(timeout=30)
    assert server.returncode == 0
    assert "INFO:uvicorn.error:Finished server process" in log
    assert TOKEN not in out + log
