"""A job against the API's server over real sockets: what the tests of the HTTP rows of the fault matrix share."""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack, contextmanager

import pytest

from checkpoint import AsyncCheckpointer, Checkpointer
from checkpoint.codec import decode, encode
from checkpoint.stores import service
from checkpoint.stores.retrying import Policy
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import ApiServer

TOKEN = "sEcReT-0123456789"


class Job:
    """One job, its API server, and what it was told.

    Storms are short: a request is given up after three attempts, which come soon after each other.
    """

    def __init__(self, folder, face=Checkpointer):
        self.folder = folder
        self.face = face
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(service, "POLICY", Policy(first=0.01, attempts=3))
        self.made = []
        """The stores and runs."""
        self.errors = []
        """What the job was told of as a failure, with its traceback."""
        self.output = []
        """What child processes wrote."""
        self._stack = ExitStack()
        self._told = 0

    def __enter__(self):
        self._stack.callback(self.patch.undo)
        self.api = ApiServer(token=TOKEN).__enter__()
        self._stack.callback(self._stop)
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _stop(self):
        self.api.__exit__()

    def store(self, url=None, **options):
        store = TrutoStore(url or self.api.url, TOKEN, **{"timeout": 10.0, "deadline": 30.0, **options})
        self._stack.callback(store.close)
        self.made.append(store)
        return store

    def run(self, store=None, **options):
        run = self.face("run", store or self.store(), **options)
        self.made.append(run)
        return run

    @contextmanager
    def fails(self, kind, text):
        """Expect exactly this error, the address and the times in its text aside."""
        with pytest.raises(kind) as caught:
            yield caught
        self.errors.append(caught.value)
        said = re.sub(r"in \d+\.\d s", "in S s", str(caught.value).replace(self.api.url, "URL"))
        assert (type(caught.value), said) == (kind, text)

    @contextmanager
    def away(self):
        """Nobody listens meanwhile; afterwards a new server does, at the same address and with the same state."""
        store, port = self.api.store, int(self.api.url.rpartition(":")[2])
        self.api.__exit__()
        try:
            yield
        finally:
            self.api = ApiServer(store, token=TOKEN, port=port).__enter__()
            self._told = 0

    def seed(self, **cursors):
        """Write as another job would."""
        self.api.store.commit("run", {key: encode(cursor) for key, cursor in cursors.items()})

    def held(self):
        """Return the cursors that the server holds."""
        return {key: decode(entry.value) for key, entry in self.api.store.load("run").items()}

    def calls(self):
        """Return what the server was asked since the last call of this, such as `GET` (a list) and `PATCH a`."""
        requests = self.api.requests
        new, self._told = requests[self._told :], len(requests)
        return [f"{call.method} {call.key or ''}".strip() for call in new]


class Driven:
    """An `AsyncCheckpointer` as a plain context manager: what it awaits is run to its end on a loop of its own."""

    def __init__(self, *args, **options):
        self._run = AsyncCheckpointer(*args, **options)
        self._loop = asyncio.new_event_loop()

    def __enter__(self):
        try:
            self._loop.run_until_complete(self._run.__aenter__())
        except BaseException:
            self._loop.close()
            raise
        return self

    def __exit__(self, *error):
        try:
            return self._loop.run_until_complete(self._run.__aexit__(*error))
        finally:
            self._loop.close()

    def __repr__(self):
        return repr(self._run)

    def __getattr__(self, name):
        return getattr(self._run, name)

    def commit(self, *only):
        return self._loop.run_until_complete(self._run.commit(*only))

    def __getitem__(self, key):
        return self._run[key]

    def __setitem__(self, key, cursor):
        self._run[key] = cursor

    def __delitem__(self, key):
        del self._run[key]

    def __iter__(self):
        return iter(self._run)

    def keys(self):
        return list(self._run)
