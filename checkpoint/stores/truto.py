"""The Truto API's sync-job-run-state over HTTP.

The API writes key by key and knows no compare-and-swap: a commit looks before it writes, sends its keys in parallel,
and reads back every write whose outcome it did not see. What the reference ("Sync Job Run State") leaves open, such as
whether a POST of an existing key overwrites it, is taken either way.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, urlsplit

import orjson

from checkpoint.entries import Entry, Receipt
from checkpoint.errors import (
    CheckpointError,
    CommitUnknown,
    Conflict,
    PartialCommit,
    StoreError,
    Unauthorized,
    ValueTooLarge,
)
from checkpoint.stores import service
from checkpoint.stores.base import check_base, check_changes, check_name, holds, unchanged
from checkpoint.stores.retrying import Again, Deadline
from checkpoint.stores.service import Requests, Service, Unanswered
from checkpoint.stores.tokens import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from checkpoint.stores.http import Response

logger = logging.getLogger("checkpoint")

ENTRIES_PER_GET = 1_000
"""Listed entries that cost about as much as one request for a single entry."""

CONCURRENCY = 50
"""Requests at once where nothing else is asked for: a hundred changed keys are the look and two rounds of writes."""

MISSING = 404
TOO_LARGE = 413


class TrutoStore:
    """Namespaces in the Truto API: commits go key by key, in parallel; foreign writes are detected, not prevented.

    Args:
        base_url: where the API is; a path is kept as a prefix.
        token: the API token; None: `$TRUTO_API_TOKEN`.
        timeout: seconds to connect, and to wait for each piece of an answer.
        deadline: seconds for the write of one key as a whole, with its retries and the pauses the service asks for.
        concurrency: requests at once.
        rate: (requests, seconds): never more requests in any such time; shared by all stores of this process that use
            the same base URL and token.

    Raises:
        ValueError: the URL or the token is not one, or a number is not positive; the token is not shown.

    """

    def __init__(
        self,
        base_url: str = "https://api.truto.one",
        token: str | Callable[[], str] | None = None,
        *,
        timeout: float = 10.0,
        deadline: float = 60.0,
        concurrency: int = CONCURRENCY,
        rate: tuple[int, float] = (500, 10.0),
    ) -> None:
        self._base_url = base_url
        given = [token]
        del token  # so that no rendered traceback shows it
        source = Token(given.pop(), "TRUTO_API_TOKEN")
        if not (timeout > 0 and deadline > 0 and concurrency >= 1 and rate[0] >= 1 and rate[1] > 0):
            raise ValueError("timeout, deadline, concurrency and rate must be greater than 0")
        self._base_url = _checked_url(base_url)
        self._service = Service(
            self._base_url, source, timeout=timeout, concurrency=concurrency, rate=rate, patience=deadline
        )
        self._timeout = timeout
        self._deadline = deadline
        self._seen: dict[str, _Seen] = {}

    def __repr__(self) -> str:
        return f"TrutoStore({self._base_url!r})"

    def load(self, state_key: str) -> dict[str, Entry]:
        """Return every entry of a namespace, following the list's pages; see `Store.load`."""
        check_name("state_key", state_key)
        run, started = Requests(self._base_url), monotonic()
        entries = self._list(run, state_key)
        logger.debug(
            "%r: listed keys=%d requests=%d retries=%d seconds=%.3f",
            state_key, len(entries), run.requests, run.retries, monotonic() - started,
        )  # fmt: skip
        return entries

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        *,
        run_id: str | None = None,  # the API has no place for it
    ) -> Receipt:
        """Write the changed keys one by one, in parallel; see `Store.commit`.

        Before the first write, the keys named in `base` are looked at; a difference is `Conflict`, and nothing is
        written. A key that is not named is overwritten whatever it holds.
        """
        check_changes(state_key, changes, run_id)
        run = Requests(self._base_url)
        stored = self._look(run, state_key, changes, base)
        check_base(state_key, changes, base, {key: entry for key, entry in stored.items() if entry is not None})
        seen = self._seen.setdefault(state_key, _Seen())
        landed = {key: stored[key] for key, value in changes.items() if key in stored and holds(stored[key], value)}
        writes = {
            key: _Write(
                _Api(self._service, run, state_key),
                key,
                value,
                base.get(key),
                exists=base[key] is not None if key in base else key in seen.keys,
                checked=key in base,
                seconds=self._deadline,
                last_look=min(self._timeout, self._deadline / 2),
            )
            for key, value in changes.items()
            if key not in landed
        }
        self._service.announce(len(writes))
        outcomes = self._service.each(run, lambda key: writes[key].settle(), writes)
        errors: dict[str, CheckpointError] = {}
        for key in writes:  # in the caller's order, not in that of the answers
            if key in outcomes:
                outcome = outcomes[key]
                if isinstance(outcome, CheckpointError):
                    errors[key] = outcome
                else:
                    landed[key] = outcome
        self._remember(state_key, landed)
        unsettled = frozenset(key for key, write in writes.items() if write.unsettled)
        if len(landed) < len(changes):
            error = _failure(changes, landed, errors)
            error.unsettled = unsettled
            raise error
        entries = {key: entry for key, entry in landed.items() if entry is not None}
        return Receipt(entries, run.requests, run.retries, unsettled)

    @property
    def deadline(self) -> float:
        """Seconds for each key's write; see `HasDeadline`."""
        return self._deadline

    def clock(self) -> datetime:
        """Return the time by the service's clock, to the second: its `Date` header (RFC 9110, 6.6.1).

        Raises:
            StoreError: the service refused or failed, or its answer has no date.

        """
        run, deadline = Requests(self._base_url), Deadline(self._deadline)
        date = run.call(lambda: _Api(self._service, run, "clock").date(deadline), deadline, service.POLICY)
        try:
            return parsedate_to_datetime(date)
        except ValueError as error:
            raise StoreError(f"{self._base_url} does not tell its time: {date!r}") from error

    def close(self) -> None:
        """End this process's threads and connections."""
        self._service.close()

    def _look(
        self, run: Requests, state_key: str, changes: Mapping[str, str | None], base: Mapping[str, Entry | None]
    ) -> dict[str, Entry | None]:
        """Return what is stored under the keys of `base`, by whichever costs less: one list, or a GET for each.

        A list may be stale, and can miss a key between two pages: what it says against `base` is confirmed by a GET.
        """
        if not base:
            return {}
        seen = self._seen.get(state_key, _Seen())
        if len(base) <= seen.pages + len(seen.keys) // ENTRIES_PER_GET:
            return self._get_each(run, state_key, base)
        listed = self._list(run, state_key)
        paged = self._seen[state_key].pages > 1
        stored = {key: listed.get(key) for key in base}
        doubtful = [
            key
            for key, expected in base.items()
            if (paged and key not in listed)
            or not (unchanged(expected, stored[key]) or (key in changes and holds(stored[key], changes[key])))
        ]
        return {**stored, **self._get_each(run, state_key, doubtful)}

    def _get_each(self, run: Requests, state_key: str, keys: Iterable[str]) -> dict[str, Entry | None]:
        api = _Api(self._service, run, state_key)

        def get(key: str) -> Entry | None:
            deadline = Deadline(self._deadline)
            return run.call(lambda: api.get(key, deadline), deadline, service.POLICY)

        found: dict[str, Entry | None] = {}
        for key, outcome in self._service.each(run, get, keys).items():
            if isinstance(outcome, CheckpointError):
                raise outcome
            found[key] = outcome
        return found

    def _list(self, run: Requests, state_key: str) -> dict[str, Entry]:
        api = _Api(self._service, run, state_key)
        entries: dict[str, Entry] = {}
        cursors: list[str | None] = [None]
        while True:
            deadline = Deadline(self._deadline)
            listed, cursor = run.call(lambda: api.page(cursors[-1], deadline), deadline, service.POLICY)  # noqa: B023 - called at once, in this turn of the loop
            for entry in listed:
                known = entries.get(entry.key)
                if known is None or _moment(entry) >= _moment(known):
                    entries[entry.key] = entry
            if cursor is None:
                self._seen[state_key] = _Seen(len(cursors), set(entries))
                return entries
            if cursor in cursors:
                raise StoreError(f"the list of {state_key!r} repeats its page {cursor!r}: it would never end")
            cursors.append(cursor)

    def _remember(self, state_key: str, landed: Mapping[str, Entry | None]) -> None:
        keys = self._seen.setdefault(state_key, _Seen()).keys
        keys.update(key for key, entry in landed.items() if entry is not None)
        keys.difference_update(key for key, entry in landed.items() if entry is None)


@dataclass(slots=True)
class _Seen:
    """What a namespace was last seen to be."""

    pages: int = 1
    keys: set[str] = field(default_factory=set[str])


@dataclass(frozen=True, slots=True)
class _Api:
    """The five calls on one namespace, once each, and what their answers say."""

    service: Service
    run: Requests
    state_key: str

    def page(self, cursor: str | None, deadline: Deadline) -> tuple[list[Entry], str | None]:
        """List the entries of one page; return them and the cursor of the next page, None after the last."""
        response = self._send(deadline, "GET", None, cursor=cursor)
        if cursor is None and _is_missing(response):
            logger.warning(
                "%s: 404 for %r, taken as no state: is the base URL right?", self.service.base_url, self.state_key
            )
            return [], None
        document = self.service.document(response)
        result, following = document.get("result"), document.get("next_cursor")
        if not isinstance(result, list):
            raise StoreError(f"the list of {self.state_key!r} has no 'result' list, but {sorted(document)[:10]}")
        return [_entry(item) for item in cast("list[object]", result)], str(following) if following else None

    def date(self, deadline: Deadline) -> str:
        """Return the time that the answer to a list carries, empty where it carries none."""
        return self._send(deadline, "GET", None).headers.get("date", "")

    def get(self, key: str, deadline: Deadline) -> Entry | None:
        """Return one entry, None where it is missing."""
        response = self._send(deadline, "GET", key)
        if _is_missing(response):
            return None
        entry = _entry(self.service.document(response))
        if entry.key != key:
            raise StoreError(f"asked for {key!r}, the service answered with {entry.key!r}")
        return entry

    def post(self, key: str, value: str, deadline: Deadline) -> Response:
        """Create an entry."""
        return self._send(deadline, "POST", None, {"key": key, "value": value})

    def patch(self, key: str, value: str, deadline: Deadline) -> Response:
        """Change an entry."""
        return self._send(deadline, "PATCH", key, {"value": value})

    def delete(self, key: str, deadline: Deadline) -> Response:
        """Delete an entry."""
        return self._send(deadline, "DELETE", key)

    def _send(
        self,
        deadline: Deadline,
        method: str,
        key: str | None,
        document: dict[str, str] | None = None,
        *,
        cursor: str | None = None,
    ) -> Response:
        path = "/sync-job-run-state" + (f"/{quote(key, safe='')}" if key is not None else "")
        path += f"?state_key={quote(self.state_key, safe='')}"
        if cursor is not None:
            path += f"&next_cursor={quote(cursor, safe='')}"
        return self.service.request(self.run, deadline, method, path, document)


class _Write:
    """One key's way to the service: what is sent, what came of it, and what is read back where nobody saw.

    `known` is the entry last known, None for none; where it was not `checked` the key is overwritten whatever it holds.
    `exists` tells which call to begin with. `seconds` are for everything, `last_look` of them for reading back at the
    end.
    """

    def __init__(
        self,
        api: _Api,
        key: str,
        value: str | None,
        known: Entry | None,
        *,
        exists: bool,
        checked: bool,
        seconds: float,
        last_look: float,
    ) -> None:
        self.unsettled = False
        """Whether an attempt, its outcome never seen, may have landed or may land yet."""
        self._api = api
        self._key = key
        self._value = value
        self._known = known
        self._checked = checked
        self._seconds = seconds
        self._last_look = last_look
        self._exists = exists
        self._in_doubt = False
        self._turned = False

    def settle(self) -> Entry | None:
        """Write the key, and return its entry, None for a deleted one.

        Raises:
            Conflict: somebody else wrote it.
            CommitUnknown: nobody could tell whether it landed.
            StoreError: it was refused, or could not be sent.

        """
        deadline = Deadline(self._seconds - self._last_look)
        try:
            return self._api.run.retry(lambda: self._attempt(deadline), deadline, service.POLICY)
        except Again as last:
            return self._give_up(deadline, last)

    def _attempt(self, deadline: Deadline) -> Entry | None:
        if self._api.run.stop.is_set():
            raise Again("stopped before it was sent")
        if self._in_doubt:
            found = self._read_back(deadline)
            if holds(found, self._value):
                return found
            self._accept(found)
            self._in_doubt = False
        try:
            return self._send(deadline)
        except Again as again:
            self._in_doubt = isinstance(again, Unanswered)
            self.unsettled |= isinstance(again, Unanswered) and again.late
            raise

    def _read_back(self, deadline: Deadline) -> Entry | None:
        """Return what became of a write whose outcome nobody saw.

        Raises:
            Again: the service cannot say now.
            CommitUnknown: it will not.

        """
        try:
            return self._api.get(self._key, deadline)
        except Unauthorized:
            self.unsettled = True
            raise
        except StoreError as refused:
            self.unsettled = True
            raise CommitUnknown(self._api.state_key, [self._key]) from refused

    def _send(self, deadline: Deadline) -> Entry | None:
        if self._value is None:
            response = self._api.delete(self._key, deadline)
            if _is_missing(response):
                return None
        elif self._exists:
            response = self._api.patch(self._key, self._value, deadline)
            if _is_missing(response):
                return self._turn(response, deadline)
        else:
            response = self._api.post(self._key, self._value, deadline)
            if response.status in {400, 409}:
                return self._turn(response, deadline)
        if response.status >= 500:  # not one to try again, and yet it may have been done
            found = self._read_back(deadline)
            if holds(found, self._value):
                return found
            self.unsettled = True
        if not 200 <= response.status < 300:
            raise self._refusal(response)
        return self._echo(response)

    def _turn(self, response: Response, deadline: Deadline) -> Entry | None:
        """Find out why a PATCH found nothing, or a POST something: ours after all, a conflict, or the other call."""
        found, assumed = self._api.get(self._key, deadline), self._exists
        if holds(found, self._value):
            return found
        self._accept(found)
        self._exists = found is not None
        if self._exists == assumed or self._turned:
            raise self._refusal(response)  # not for the key's presence, then
        self._turned = True
        return self._send(deadline)

    def _accept(self, found: Entry | None) -> None:
        """Refuse to write over what is neither ours nor what was last known."""
        if not self._checked:
            self._exists = found is not None
        elif not unchanged(self._known, found):
            raise Conflict(self._api.state_key, self._key, self._known, found)

    def _give_up(self, deadline: Deadline, last: Again) -> Entry | None:
        """Read the key once more after the last attempt, and say what is known."""
        error = self._api.run.gave_up(deadline, last)
        unknown = CommitUnknown(self._api.state_key, [self._key])
        if self._in_doubt:
            if self._api.run.refused:  # nothing more is sent under this token
                self.unsettled = True
                raise unknown from error
            try:
                found = self._read_back(Deadline(self._last_look))
            except Again:
                self.unsettled = True
                raise unknown from error
            if holds(found, self._value):
                return found
            self._accept(found)
        if self.unsettled:
            raise unknown from error
        raise error from last.__cause__

    def _refusal(self, response: Response) -> StoreError:
        if response.status == TOO_LARGE and self._value is not None:
            return ValueTooLarge(self._key, len(self._value.encode()))
        api = self._api.service
        return StoreError(f"{api.base_url} refused {self._key!r}: {api.said(response)}")

    def _echo(self, response: Response) -> Entry | None:
        """Check what the service says it has stored; an answer without a body says nothing."""
        told = self._api.service.document(response) if response.body else {}
        same_value = self._value is None or told.get("value", self._value) == self._value
        if told.get("key", self._key) != self._key or not same_value:
            self.unsettled = True
            raise StoreError(f"wrote {self._key!r}, and the service answered with another key or value")
        if self._value is None:
            return None
        created_at = self._known.created_at if self._known is not None else None
        return _entry({"created_at": created_at, **told, "key": self._key, "value": self._value})


def _checked_url(base_url: str) -> str:
    if "@" in base_url:
        raise ValueError("the API's base URL has no user; it is not shown here")
    if "?" in base_url or "#" in base_url:
        raise ValueError("the API's base URL has no query or fragment")
    try:
        parts = urlsplit(base_url)
        named = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port or an address that is none
        named = False
    if not named:
        raise ValueError(f"the API's base URL is like https://api.truto.one, not {base_url!r}")
    return base_url.rstrip("/")


def _failure(
    changes: Mapping[str, str | None], landed: Mapping[str, Entry | None], errors: Mapping[str, CheckpointError]
) -> CheckpointError:
    """Return the one error of a commit of which not every key landed."""
    for error in errors.values():
        if isinstance(error, Unauthorized) or len(changes) == 1:
            error.committed = dict(landed)
            return error
    return PartialCommit(landed, [key for key in changes if key not in landed], errors)


def _is_missing(response: Response) -> bool:
    """Tell the API's own 404 from the page of some proxy."""
    if response.status != MISSING:
        return False
    try:
        return isinstance(orjson.loads(response.body), dict)
    except orjson.JSONDecodeError:
        return False


def _entry(document: object) -> Entry:
    """Return the entry that a JSON object describes; unknown fields are left alone.

    A value that is no string is opaque: its JSON text stands for it.
    """
    fields = cast("dict[str, object]", document) if isinstance(document, dict) else {}
    key, value = fields.get("key"), fields.get("value")
    if not isinstance(key, str) or "value" not in fields:
        raise StoreError("the service answered with something that is not an entry: no 'key' or no 'value'")
    return Entry(
        key,
        value if isinstance(value, str) else orjson.dumps(value).decode(),
        created_at=_text(fields.get("created_at")),
        updated_at=_text(fields.get("updated_at")),
        sync_job_run_id=_text(fields.get("sync_job_run_id")),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _moment(entry: Entry) -> tuple[float, str]:
    """Return a sort key for `updated_at`; what is not ISO 8601 sorts as text, before what is."""
    text = entry.updated_at or ""
    # Python 3.10 reads fractions of three or six digits only, and no Z.
    known = re.sub(r"\.(\d+)", lambda digits: f".{digits[1]:0<6.6}", text.replace("Z", "+00:00"))
    try:
        return datetime.fromisoformat(known).timestamp(), text
    except ValueError:
        return float("-inf"), text
