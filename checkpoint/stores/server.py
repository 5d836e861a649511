"""A store behind our own server, `checkpoint serve`, over HTTP.

A commit is one request, and as atomic as the store behind the server. If its response is lost, the commit is read back.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast
from urllib.parse import quote, urlencode

import orjson

from checkpoint.entries import Entry, Receipt, Writer, has_history, named
from checkpoint.errors import CommitUnknown, Conflict, StoreError, Unauthorized, ValueTooLarge
from checkpoint.stores import wire
from checkpoint.stores.base import check_changes, check_name, entries_of, holds, unchanged
from checkpoint.stores.history import check_question, writer_of
from checkpoint.stores.listing import list_document
from checkpoint.stores.retrying import DEADLINE, Again, Deadline, Policy
from checkpoint.stores.service import AnswerLost, Requests, Service, Unclear, checked_url
from checkpoint.stores.tokens import Secret, Token
from checkpoint.stores.urls import check_seconds, positive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from checkpoint.entries import Change
    from checkpoint.stores.http import Response

T = TypeVar("T")

MAX_BODY = 1 << 30
"""Size limit of a response in bytes; a namespace comes in one response."""

CONNECTIONS = 50
"""The most parallel requests over one connection."""

LONGEST_QUERY = 2_000
"""The most characters of a query; a longer one goes into a body, which gateways do not cut off."""

LOST = 3
"""Responses that did not come from the server before the URL counts as wrong."""

POLICY = Policy(longest=2.0)
"""The retry policy: a server is back within seconds, and history keeps only the last changes of a key."""

_UNLESS_OURS = {401, 403, 408, 413}
"""Statuses of a server that did nothing. A gateway may send them too, after the server has executed the request."""

_UNPACED = (1_000, 0.001)  # requests and seconds: no limit of ours, a busy server says so


class ServerStore:
    """Namespaces behind our own server: atomic commits with compare-and-swap, one request each.

    Args:
        base_url: URL of the server, `server+https://host` or `https://host`; a path is kept as a prefix.
        token: the token, or a callable that gives it; None: `$CHECKPOINT_TOKEN`, else the contents of the file
            `$CHECKPOINT_TOKEN_FILE`. A callable is called when a token is first needed. Callable and file are read
            again when the server refuses the token (401). A callable's time counts towards the deadline, but the
            deadline cannot interrupt it: give its own requests a timeout.
        timeout: seconds to connect, and to wait for each part of a response.
        deadline: seconds for a whole load or commit, including retries.

    If the store behind the server cannot keep a history or list namespaces, these calls raise a StoreError that says
    so.

    Raises:
        ValueError, TypeError: the URL or the token is invalid, or a number is not positive; the token is not shown.
        Unauthorized: the token file is empty.

    """

    atomic = True
    URL_OPTIONS: ClassVar[Mapping[str, Callable[[str], Any]]] = {"deadline": positive, "timeout": positive}

    def __init__(
        self,
        base_url: str,
        token: str | Callable[[], str] | None = None,
        *,
        timeout: float = 10.0,
        deadline: float = DEADLINE,
    ) -> None:
        self._base_url = ""
        url, tokens = Secret(base_url), [token]
        del base_url, token  # so that no rendered traceback shows them
        source = Token(tokens.pop(), "CHECKPOINT_TOKEN")
        self._timeout = check_seconds("timeout", timeout)
        self._deadline = check_seconds("deadline", deadline)
        example = "server+https://checkpoint.example.com"
        self._base_url = checked_url(url.reveal(), "a server's URL", example, self.URL_OPTIONS, prefix="server+")
        self._service = Service(
            self._base_url,
            source,
            timeout=self._timeout,
            concurrency=CONNECTIONS,
            rate=_UNPACED,
            patience=self._deadline,
            max_body=MAX_BODY,
        )
        self._keeps_history: bool | None = None

    def __repr__(self) -> str:
        return f"ServerStore({self._base_url!r})"

    @property
    def deadline(self) -> float:
        """Seconds for one load or commit; see `HasDeadline`."""
        return self._deadline

    @property
    def keeps_history(self) -> bool | None:
        """Whether the store behind the server keeps history; None: unknown before the first response.

        See `MayKeepHistory`.
        """
        return self._keeps_history

    def load(self, state_key: str) -> dict[str, Entry]:
        """Return every entry of a namespace; see `Store.load`."""
        check_name("state_key", state_key)
        return self._read({"state_key": state_key})

    def read(self, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
        """Return the entries of these keys, as far as they exist; see `ReadsKeys.read`."""
        check_name("state_key", state_key)
        wanted = {*keys}
        for key in wanted:
            check_name("key", key)
        return self._read(_named(state_key, wanted)) if wanted else {}

    def _read(self, fields: Mapping[str, Any]) -> dict[str, Entry]:
        return self._ask(lambda call: call.entries(fields))

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        *,
        run_id: str | None = None,
        reasons: Mapping[str, str] = {},
        writer: Writer | None = None,
    ) -> Receipt:
        """Write the changed keys, all or none; see `KeepsHistory.commit`.

        History records the host and process of `writer`, and in `by` the server's name for the token.

        Raises:
            CommitUnknown: no response came, and the commit could not be read back.

        """
        check_changes(state_key, changes, run_id)
        author = writer_of(reasons, writer)
        fields = {
            "state_key": state_key,
            "changes": _by_text(changes),
            "base": {key: wire.expected_fields(entry) for key, entry in _by_text(base).items()},
            "run_id": run_id,
            "reasons": _by_text(reasons),
            "host": author.host,
            "process": author.process,
        }
        run, last_look = Requests(self._base_url), min(self._timeout, self._deadline / 2)
        calls = _Calls(self._service, run, Deadline(self._deadline - last_look), self._note)
        commit = _Commit(calls, state_key, changes, base, run_id, author, orjson.dumps(fields))
        return self._service.commit(run, lambda: commit.settle(last_look))

    def namespaces(self) -> list[str]:
        """Return the namespaces that hold a key; see `ListsNamespaces.namespaces`."""
        return self._ask(lambda call: call.result(wire.NAMESPACES, {}, _text))

    def history(self, state_key: str, key: str | None = None, *, limit: int | None = None) -> list[Change]:
        """Return the changes; see `KeepsHistory.history`."""
        check_question(state_key, key, limit)
        asked = {"state_key": state_key, "key": key, "limit": limit}
        fields = {name: value for name, value in asked.items() if value is not None}
        return self._ask(lambda call: call.result(wire.HISTORY, fields, wire.change_from))

    def clock(self) -> datetime:
        """Return the time by the server's clock; see `TellsTime.clock`."""
        told = self._ask(lambda call: self._service.hide(call.ask(wire.ABOUT, {}).headers.get(wire.TIME, "")))
        return self._service.moment(told, _time_of)

    def facts(self) -> dict[str, str]:
        """Return facts about the server and the store behind it; see `TellsFacts.facts`."""
        document = self._ask(lambda call: self._service.document(call.ask(wire.ABOUT, {})))
        told = document.get("facts")
        facts = cast("dict[str, object]", told) if isinstance(told, dict) else {}
        over = f", over {document['store']}" if document.get("store") else ""  # hidden from limited tokens
        server = f"checkpoint-store {document.get('release')}{over}"
        return {name: self._service.hide(str(fact)) for name, fact in {"server": server, **facts}.items()}

    def close(self) -> None:
        """End this process's threads and connections."""
        self._service.close()

    def _ask(self, question: Callable[[_Calls], T]) -> T:
        """Make a call that is safe to repeat, with retries until the deadline."""
        run, deadline = Requests(self._base_url), Deadline(self._deadline)
        calls = _Calls(self._service, run, deadline, self._note)
        return self._service.load(run, lambda: run.call(lambda: question(calls), deadline, POLICY))

    def _note(self, response: Response) -> None:
        kept = response.headers.get(wire.KEEPS_HISTORY)
        if kept is not None:
            self._keeps_history = kept == "kept"


@dataclass(slots=True)
class _Calls:
    """The calls of one load or commit, one attempt each, and how their responses are read."""

    service: Service
    run: Requests
    deadline: Deadline
    note: Callable[[Response], None]
    misses: int = 0
    """Responses so far that did not come from the server."""

    def entries(self, fields: Mapping[str, Any]) -> dict[str, Entry]:
        """Return the requested entries by key."""
        return {entry.key: entry for entry in self.result(wire.STATE, fields, wire.entry_from)}

    def result(self, path: str, fields: Mapping[str, Any], make: Callable[[object], T]) -> list[T]:
        """Request a list, and return `make(item)` for each item."""
        response = self.ask(path, fields)
        try:
            document = self.service.document(response, lambda body: list_document(body, make))
        except ValueError as error:
            raise self.strange(error) from error
        result = document.get("result")
        if not isinstance(result, list):
            raise self.strange("there is no 'result' list")
        return cast("list[T]", result)

    def ask(self, path: str, fields: Mapping[str, Any]) -> Response:
        """Send a read-only request."""
        query = "" if "keys" in fields else urlencode(fields, quote_via=quote, safe="")
        if "keys" in fields or len(query) > LONGEST_QUERY:
            return self.send("POST", path, orjson.dumps(fields))
        return self.send("GET", f"{path}?{query}" if query else path, None)

    def send(self, method: str, path: str, body: bytes | None) -> Response:
        """Send a request, and return its successful response.

        Raises:
            Again: it may be tried again.
            Unauthorized, StoreError: it may not.

        """
        return self.judged(self.answer(method, path, body))

    def answer(self, method: str, path: str, body: bytes | None) -> Response:
        """Send a request, and return any response; see `Service.answer`."""
        response = self.service.answer(self.run, self.deadline, method, path, body)
        self.note(response)
        return response

    def judged(self, response: Response) -> Response:
        """Return a response that reports success or a value that is too large; raise as `send` does."""
        if response.status >= 400:
            self._refuse(response)
        return self.service.judged(response)

    def _refuse(self, response: Response) -> None:
        told, said = _told(response), self.service.said(response)
        code = str(told.get("code"))
        if code == wire.UNAVAILABLE:
            raise Again(said)
        if code == wire.UNKNOWN:
            raise AnswerLost(said, late=True)
        if code in {wire.REFUSED, wire.UNSUPPORTED}:
            raise StoreError(f"{self.service.base_url}: {self.service.hide(str(told.get('message')))}")
        if response.status == 404:
            self.misses += 1
            if self.misses < LOST:
                raise Again(said)
            raise StoreError(
                f"{self.service.base_url} answered {said}, {LOST} times. Correct the base URL; if it is right, a "
                "gateway or proxy answers in place of the server"
            )

    def strange(self, why: object) -> StoreError:
        """Return the error for a response in an unexpected form."""
        return StoreError(
            self.service.hide(f"{self.service.base_url} sent an answer that this client does not understand: {why}")
        )


class _Commit:
    """One commit: its attempts, and the read-back where no response came.

    in doubt   lost     when
    no         no       every attempt got a response
    yes        yes      the last attempt may have landed
    no         yes      read back: the last attempt had not landed by then, but may still (`late`)
    """

    def __init__(
        self,
        call: _Calls,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None],
        run_id: str | None,
        author: Writer,
        body: bytes,
    ) -> None:
        self._call = call  # its deadline leaves time for the last read-back
        self._state_key = state_key
        self._changes = changes
        self._base = base
        self._run_id = run_id
        self._author = author
        self._body = body
        self._in_doubt = False
        self._lost = False
        self._late = False

    def settle(self, last_look: float) -> Receipt:
        """Commit within the deadline, and read back once more after it, within `last_look` seconds."""
        try:
            try:
                return self._call.run.retry(self._attempt, self._call.deadline, POLICY)
            except Again as last:
                return self._give_up(last, last_look)
        except (Conflict, StoreError, CommitUnknown) as error:
            if self._lost:
                error.unsettled = frozenset(self._changes)
            raise

    def _attempt(self) -> Receipt:
        if self._call.run.stopped:
            raise Again("stopped before it was sent")
        if self._in_doubt:
            if (receipt := self._read_back()) is not None:
                return receipt
            self._in_doubt = False
        try:
            return self._send()
        except AnswerLost as lost:
            if self._changes:
                self._in_doubt = self._lost = True
                self._late |= lost.late
            raise
        except Conflict:
            # The conflict may be with an earlier attempt that landed after the read-back, or with what another writer
            # wrote over an attempt that had landed.
            sent_before = self._lost or self._call.run.renewed
            if sent_before and (receipt := self._read_back() or self._remembered()) is not None:
                return receipt
            raise

    def _send(self) -> Receipt:
        try:
            response = self._call.answer("POST", wire.COMMIT, self._body)
        except Unclear as unclear:
            failure = unclear.plain()
        else:
            try:
                return self._outcome(response)
            except StoreError as error:
                if _is_certain(response):
                    raise
                failure = error
        return self._look_up(failure)

    def _look_up(self, failure: StoreError) -> Receipt:
        """Return the receipt of a failed attempt that landed after all; else raise its failure.

        A gateway may have responded in place of the server, after the server had committed.
        """
        if self._changes:
            self._in_doubt = self._lost = self._late = True
            receipt = self._read_back() or self._remembered()
            self._in_doubt = False
            if receipt is not None:
                return receipt
        raise failure

    def _outcome(self, response: Response) -> Receipt:
        """Return the receipt of a commit that the server confirms; else raise the server's error."""
        told = _told(response)
        if str(told.get("code")) in {wire.CONFLICT, wire.TOO_LARGE}:
            raise self._refusal(told)
        if response.status == 408 and not told:
            raise AnswerLost(self._call.service.said(response), late=True)
        if self._call.judged(response).status == 413:
            raise self._too_large()
        return self._receipt(self._echo(response))

    def _refusal(self, fields: Mapping[str, Any]) -> Conflict | StoreError:
        key, found, size = fields.get("key"), fields.get("found"), fields.get("size")
        try:
            if not isinstance(key, str):
                raise ValueError("it has no key")  # noqa: TRY301 - bad data
            if fields.get("code") == wire.TOO_LARGE:
                return ValueTooLarge(key, size if isinstance(size, int) else len((self._changes[key] or "").encode()))
            entry = None if found is None else wire.entry_from(found)
        except (ValueError, KeyError) as error:
            return self._call.strange(error)
        return Conflict(self._state_key, key, self._base.get(key), entry)

    def _too_large(self) -> StoreError:
        [*values] = self._changes.items()
        if len(values) == 1 and (value := values[0][1]) is not None:
            return ValueTooLarge(values[0][0], len(value.encode()))
        return StoreError(
            f"{self._call.service.base_url}: a commit of {len(values):,} keys and {len(self._body):,} bytes is too "
            "large for the server (--max-body), or for a gateway in front of it (nginx: client_max_body_size): "
            "commit fewer keys at once, or raise the limit"
        )

    def _echo(self, response: Response) -> dict[str, Entry]:
        """Return what the server says it has written."""
        call = self._call
        result = call.service.document(response).get("result")
        try:
            items = cast("list[object]", result) if isinstance(result, list) else []
            entries = [wire.written_of(item, self._changes) for item in items]
        except ValueError as error:
            raise call.strange(error) from error
        written = {entry.key: entry for entry in entries}
        keys = [key for key, value in self._changes.items() if value is not None]
        if written.keys() != {*keys}:
            raise StoreError(f"{call.service.base_url} answered a commit with other keys than were sent")
        return {key: written[key] for key in keys}

    def _receipt(self, entries: Mapping[str, Entry]) -> Receipt:
        run = self._call.run
        open_still = self._late and not self._is_guarded()
        return Receipt(entries, run.requests, run.retries, frozenset(self._changes) if open_still else frozenset())

    def _is_guarded(self) -> bool:
        """Whether this commit, once made, makes a late earlier attempt of it a conflict."""
        base = self._base
        return any(key in base and (value is not None or base[key] is not None) for key, value in self._changes.items())

    def _read_back(self) -> Receipt | None:
        """Return the receipt of a commit whose response was lost, None if it has not landed.

        Raises:
            Again: the server cannot tell at the moment.
            CommitUnknown: it will not be able to.

        """
        fields = _named(self._state_key, self._changes)
        try:
            found = self._call.entries(fields)
        except Unauthorized:
            self._late = True
            raise
        except StoreError as refused:
            self._late = True
            raise CommitUnknown(self._state_key, self._changes) from refused
        return self._receipt({key: found[key] for key in self._changes if key in found}) if self._made(found) else None

    def _made(self, found: Mapping[str, Entry]) -> bool:
        """Whether this commit wrote these entries: all of its run and of one version, and none unchanged."""
        written: list[Entry] = []
        for key, value in self._changes.items():
            entry = found.get(key)
            if not holds(entry, value):
                return False
            if entry is not None:
                if entry.sync_job_run_id != self._run_id or (key in self._base and unchanged(self._base[key], entry)):
                    return False
                written.append(entry)
        return len({entry.version for entry in written}) < 2

    def _remembered(self) -> Receipt | None:
        """Return the receipt of an attempt that landed, from the history.

        None: no such attempt landed, or these keys have no history.

        Raises:
            Again: the server cannot say now.
            CommitUnknown: there were so many later writes that the history no longer has those after the base.

        """
        base = self._base
        compared = (key for key in self._changes if key in base and has_history(key))
        key = next((key for key in compared if self._changes[key] is not None or base[key] is not None), None)
        if key is None:
            return None
        expected, asked = base[key], {"state_key": self._state_key, "key": str.__str__(key)}
        before, version = (expected.value, expected.version or 0) if expected is not None else (None, 0)
        meant = (before, self._changes[key], self._run_id, self._author.host, self._author.process)
        try:
            told = self._call.result(wire.HISTORY, asked, wire.change_from)
        except StoreError:
            return None
        since = [each for each in told if each.version > version and (each.key, each.member) == named(key)]
        for each in since:
            if (each.before, each.after, each.run_id, each.host, each.process) == meant:
                stored = {key: entry for key, entry in base.items() if entry is not None}
                return self._receipt(entries_of(self._changes, stored, each.at, self._run_id, each.version))
        if since and [each.before for each in since] != [*(each.after for each in since[1:]), before]:
            raise CommitUnknown(self._state_key, self._changes)
        return None

    def _give_up(self, last: Again, last_look: float) -> Receipt:
        """Read back once more after the last attempt, and return or raise the outcome."""
        error = self._call.run.gave_up(self._call.deadline, last)
        if self._in_doubt:
            self._call.deadline = Deadline(last_look)
            try:
                receipt = self._read_back()
            except Again:
                self._late = True
                raise CommitUnknown(self._state_key, self._changes) from error
            if receipt is not None:
                return receipt
        if self._late:
            raise CommitUnknown(self._state_key, self._changes) from error
        raise error from last.__cause__


def _told(response: Response) -> Mapping[str, Any]:
    """Return the JSON object of an error response if it came from the server itself."""
    if response.status < 400 or wire.TIME not in response.headers:
        return {}
    try:
        document = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        return {}
    return cast("dict[str, Any]", document) if isinstance(document, dict) else {}


def _time_of(text: str) -> datetime:
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)


def _is_certain(refusal: Response) -> bool:
    """Whether an error response proves that the commit was not made: a gateway may fail after a commit."""
    told = _told(refusal)
    if 400 <= refusal.status < 500:
        return bool(told) or refusal.status not in _UNLESS_OURS
    return str(told.get("code")) in {wire.REFUSED, wire.UNSUPPORTED}


def _named(state_key: str, keys: Iterable[str]) -> dict[str, Any]:
    """Return the request fields that select keys; those of a single key fit into a query."""
    names = [str.__str__(key) for key in keys]
    return {"state_key": state_key, "key": names[0]} if len(names) == 1 else {"state_key": state_key, "keys": names}


def _by_text(mapping: Mapping[str, T]) -> dict[str, T]:
    """Return a mapping with plain str keys, the only kind that JSON can hold."""
    return {str.__str__(key): value for key, value in mapping.items()}


def _text(item: object) -> str:
    if not isinstance(item, str):
        raise ValueError("a name is not text")
    return item
