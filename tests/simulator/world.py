"""What runs share: a store that compares and swaps, or the API; and what truly happened there."""

from __future__ import annotations

import itertools
import json
import pkgutil
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from starlette.requests import Request

import checkpoint.run
import checkpoint.streams
from checkpoint import CheckpointError, CommitUnknown, MemoryStore, ServerStore, StoreUnavailable, TrutoStore
from checkpoint.server.v1 import V1
from checkpoint.stores.http import Response, TransportError

from .clockwork import Interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from checkpoint.entries import Entry, Receipt

    from .clockwork import Clockwork, Process

for _room in (checkpoint.run, checkpoint.streams):
    for _module in pkgutil.iter_modules(_room.__path__, f"{_room.__name__}."):
        if not _module.name.endswith("arrow"):
            import_module(_module.name)  # not in the middle of a schedule, which would not repeat itself

_worlds = itertools.count()  # runs of one token share their pace, those of another schedule do not

NAMESPACE = "job"
DEADLINE = 60.0
"""Seconds after which a write that is late lands no more."""

STOP = 25.0
"""Seconds that a stopped run is stopped: longer than a lease."""


class Landed(NamedTuple):
    """One key of one write, as the world knows it."""

    moment: int
    key: str
    value: str | None
    by: str
    over: Entry | None
    """What was there before."""
    version: int | None
    late: bool


class World:
    """The store, the network and the moments at which things happened."""

    def __init__(self, clockwork: Clockwork, kind: str) -> None:
        self.clockwork = clockwork
        self.kind = kind
        self.atomic = kind != "api"
        self.truth = MemoryStore()
        self.landed: list[Landed] = []
        self.troubles: set[str] = set()
        """What kinds of things went wrong."""
        self._moments = 0
        self._late: list[tuple[float, Callable[[], Any]]] = []
        self._lists: list[dict[str, Entry]] = [{}]

    def moment(self) -> int:
        """Return the number of this moment, greater than all before."""
        self._moments += 1
        return self._moments

    def store(self, process: Process) -> Store | ServerStore | TrutoStore:
        """Return the store as a run sees it."""
        if self.kind == "atomic":
            return Store(self, process)
        token, store = f"token-{process.name}-{next(_worlds)}", None
        if self.kind == "server":
            store = ServerStore("http://server", token)
            store._service._clients = ServerWire(self, process)
        else:
            store = TrutoStore("http://api", token, rate=(10**6, 1.0))
            store._service._clients = Wire(self, process)
        return store

    def write(
        self, by: str, changes: Mapping[str, str | None], base: Mapping[str, Entry | None], *, late: bool = False
    ) -> Receipt:
        """Write truly."""
        before = self.truth.load(NAMESPACE)
        receipt = self.truth.commit(NAMESPACE, changes, base, run_id=by)
        moment = self.moment()
        for key, value in changes.items():
            version = receipt.entries[key].version if key in receipt.entries else None
            self.landed.append(Landed(moment, key, value, by, before.get(key), version, late))
        self._lists.append(self.truth.load(NAMESPACE))
        return receipt

    def list(self, *, stale: bool = False) -> dict[str, Entry]:
        """Return what a list shows: what is there, or what was there before the last write."""
        return self._lists[-2] if stale and len(self._lists) > 1 else self.truth.load(NAMESPACE)

    def call(self, process: Process, kinds: tuple[str, ...], serve: Callable[[], Any]) -> Trouble | Any:
        """Let one call or request happen, or go wrong in one of the ways that it can."""
        clockwork = self.clockwork
        task = clockwork.mine()

        def does() -> Any:
            process.served.append(self.moment())
            return serve()

        if task is None:  # after the schedule: nothing goes wrong
            return does()
        clockwork.point()
        while self._late and clockwork.choices.turn(2):
            until, lands = self._late.pop(0)
            if clockwork.now <= until:
                lands()
        interrupts = ("interrupt before", "interrupt after") if task.main and process.interruptible else ()
        kind = clockwork.choices.fault(("all well", *kinds, "stop", "kill before", "kill after", *interrupts))
        if kind == "all well":
            return does()
        self.troubles.add(kind)
        if kind.startswith("interrupt"):
            process.interruptible = False  # a second one is what kills a run
        if kind == "interrupt before":
            raise Interruption("before a call")
        if kind == "kill before":
            clockwork.kill(process)
        if kind == "stop":
            clockwork.stop(process, STOP)
            return does()
        if kind in kinds:
            return Trouble(kind)
        does()
        if kind == "kill after":
            clockwork.kill(process)
        raise Interruption("after a call")

    def later(self, lands: Callable[[], Any]) -> None:
        """Let a write land later, or never."""
        self._late.append((self.clockwork.now + DEADLINE, lands))


class Trouble(str):
    """What went wrong with a call, in a word."""

    __slots__ = ()


class Store:
    """A store that compares and swaps: a real one, behind a network that loses things."""

    atomic = True

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def __repr__(self) -> str:
        return "Store()"

    def load(self, state_key: str) -> dict[str, Entry]:
        return self._read(self._world.truth.load, state_key)

    if hasattr(MemoryStore, "read"):

        def read(self, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
            return self._read(self._world.truth.read, state_key, list(keys))

    def history(self, state_key: str, key: str | None = None, **options: Any) -> Any:
        return self._read(self._world.truth.history, state_key, key, **options)

    def _read(self, call: Any, *args: Any, **options: Any) -> Any:
        answer = self._world.call(self._process, ("refused",), lambda: call(*args, **options))
        if isinstance(answer, Trouble):
            raise StoreUnavailable("the network is down")
        return answer

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        *,
        run_id: str | None = None,
        **more: Any,
    ) -> Receipt:
        world, changes, base = self._world, dict(changes), dict(base)

        def write() -> Receipt:
            return world.write(self._process.name, changes, base)

        answer = world.call(self._process, ("refused", "lost", "late"), write)
        if not isinstance(answer, Trouble):
            return answer
        if answer == "refused":
            raise StoreUnavailable("the network is down")
        if answer == "lost":
            _whatever(write)
        else:
            world.later(lambda: _whatever(lambda: world.write(self._process.name, changes, base, late=True)))
        raise CommitUnknown(state_key, changes)

    def close(self) -> None:
        pass


class Wire:
    """The network under a `TrutoStore`, and the service at its end."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def close(self) -> None:
        pass

    def forked(self) -> None:
        """Do nothing; without it the stores behind this one would not hear of a fork of the whole process."""

    def lacking(self, requests: int) -> list[Any]:
        """Open no connections ahead."""
        return []

    def send(self, *request: Any) -> Response:
        """Send a request: its method, URL and body are among what is given, in this order."""
        at = next(at for at, one in enumerate(request) if one in {"GET", "POST", "PATCH", "DELETE"})
        return self._sent(*request[at : at + 3])

    def _sent(self, method: str, url: str, body: bytes | None) -> Response:
        parts = urlsplit(url)
        key = unquote(parts.path.removeprefix("/sync-job-run-state").strip("/")) or None
        assert parse_qs(parts.query)["state_key"] == [NAMESPACE]
        document = json.loads(body) if body else {}

        def serve(*, late: bool = False, stale: bool = False) -> Response:
            return self._serve(method, key or document.get("key"), document.get("value"), late=late, stale=stale)

        own = ("late",) if method != "GET" else ("stale",) if key is None else ()
        return self._carried(("refused", "lost", "503", *own), serve)

    def _carried(self, kinds: tuple[str, ...], serve: Callable[..., Response]) -> Response:
        """Let a request be served, or go wrong in one of the ways that it can."""
        world = self._world
        answer = world.call(self._process, kinds, serve)
        if not isinstance(answer, Trouble):
            return answer
        if answer == "refused":
            raise TransportError("refused", reached=False)
        if answer == "503":
            return _answer(503, {"statusCode": 503, "error": "Service Unavailable", "message": "later"})
        if answer == "stale":
            return serve(stale=True)
        if answer == "late":
            world.later(lambda: serve(late=True))
        else:
            serve()
        raise TransportError("reset", reached=True)

    def _serve(self, method: str, key: str | None, value: str | None, *, late: bool, stale: bool) -> Response:
        world = self._world
        if method == "GET" and key is None:
            return _answer(200, {"result": [_shown(entry) for entry in world.list(stale=stale).values()]})
        assert key is not None
        found = world.list().get(key)
        if method in {"PATCH", "GET"} and found is None:
            return _answer(404, {"statusCode": 404, "error": "Not Found", "message": key})
        if method == "GET":
            return _answer(200, _shown(found))
        if method == "DELETE" and found is None:
            return _answer(404, {"statusCode": 404, "error": "Not Found", "message": key})
        receipt = world.write(self._process.name, {key: None if method == "DELETE" else value}, {}, late=late)
        return _answer(200, _shown(receipt.entries.get(key, found)))


class ServerWire(Wire):
    """The network under a `ServerStore`, and our own server's `/v1` at its end."""

    def _sent(self, method: str, url: str, body: bytes | None) -> Response:
        def serve(*, late: bool = False) -> Response:
            return self._answered(method, url, body, late=late)

        commits = url.endswith("/v1/commit")
        return self._carried(("refused", "lost", "503", *(("late",) if commits else ())), serve)

    def _answered(self, method: str, url: str, body: bytes | None, *, late: bool) -> Response:
        parts = urlsplit(url)
        v1 = V1(Truth(self._world, self._process, late=late), Anybody(), _called, _called, lambda: 1 << 30)
        calls = {"state": v1.state, "commit": v1.commit, "history": v1.history}
        scope = {"type": "http", "method": method, "headers": [], "query_string": parts.query.encode(), "client": None}
        answering = v1.answered(calls[parts.path.removeprefix("/v1/")])(Request(scope, _receiving(body or b"")))
        try:
            answering.send(None)  # nothing in it waits
        except StopIteration as done:
            answer = done.value
        headers = {name.decode().lower(): value.decode() for name, value in answer.raw_headers}
        return Response(answer.status_code, headers, bytes(answer.body))


class Anybody:
    """The tokens of a server that lets everybody do everything."""

    def allow(self, *_: Any) -> None:
        """Say nothing."""


class Truth:
    """What is truly stored, as the server sees it while it answers one process."""

    atomic = True

    def __init__(self, world: World, process: Process, *, late: bool) -> None:
        self._world = world
        self._process = process
        self._late = late
        self.load, self.read, self.history = world.truth.load, world.truth.read, world.truth.history

    def commit(self, state_key: str, changes: Any, base: Any, *, run_id: str | None, **_: Any) -> Receipt:
        assert run_id == self._process.name
        return self._world.write(run_id, changes, base, late=self._late)

    def close(self) -> None:
        pass


async def _called(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _receiving(body: bytes) -> Any:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _answer(status: int, document: Any) -> Response:
    return Response(status, {"content-type": "application/json"}, json.dumps(document).encode())


def _shown(entry: Any) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in ("key", "value", "created_at", "updated_at")}


def _whatever(call: Callable[[], Any]) -> None:
    """Do something whose outcome nobody is told."""
    with suppress(CheckpointError):
        call()
