"""The Truto API's sync-job-run-state over HTTP.

The API writes key by key and has no compare-and-swap: a commit reads before it writes, sends its keys in parallel,
and reads back every write whose outcome it did not see. Where the reference ("Sync Job Run State") is silent, such as
whether a POST of an existing key overwrites it, both behaviours work.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

from checkpoint.entries import Entry, Receipt
from checkpoint.errors import (
    CheckpointError,
    CommitUnknown,
    Conflict,
    PartialCommit,
    StoreError,
    StoreUnavailable,
    Unauthorized,
    ValueTooLarge,
)
from checkpoint.stores import service
from checkpoint.stores.base import check_base, check_changes, check_name, holds, unchanged
from checkpoint.stores.calls import MISSING, Elsewhere, StateApi, entry_of, folded, is_rewritable, says_missing, time_of
from checkpoint.stores.rate import http_date
from checkpoint.stores.retrying import Again, Deadline
from checkpoint.stores.service import AnswerLost, Requests, Service, Unclear, checked_url
from checkpoint.stores.tokens import Secret, Token
from checkpoint.stores.urls import check_count, check_seconds, positive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from checkpoint.stores.http import Response

logger: logging.Logger = logging.getLogger("checkpoint")

ENTRIES_PER_GET = 1_000
"""Number of listed entries that cost about as much as one GET."""

CONCURRENCY = 50
"""Default number of parallel requests: a hundred changed keys take one read and two rounds of writes."""

LOST = 3
"""List responses that did not come from the API before the URL counts as wrong."""

TOO_LARGE = 413


def _rate(text: str) -> tuple[int, float]:
    requests, slash, seconds = text.partition("/")
    if not slash:
        raise ValueError("it must be requests/seconds, such as 500/10")
    return int(requests), positive(seconds)


def _checked_rate(rate: tuple[int, float]) -> tuple[int, float]:
    try:
        requests, seconds = rate
    except (TypeError, ValueError):
        raise TypeError("rate must be (requests, seconds), such as (500, 10.0)") from None
    return check_count("the requests of rate", requests), check_seconds("the seconds of rate", seconds)


class TrutoStore:
    """Namespaces in the Truto API: commits go key by key, in parallel; foreign writes are detected, not prevented.

    Args:
        base_url: URL of the API; a path is kept as a prefix.
        token: the API token, or a callable that gives it; None: `$TRUTO_API_TOKEN`, else the contents of the file
            `$TRUTO_API_TOKEN_FILE`. A callable is called when a token is first needed. Callable and file are read again
            when the service refuses the token (401). A callable's time counts towards the deadline, but the deadline
            cannot interrupt it: give its own requests a timeout.
        timeout: seconds to connect, and to wait for each part of a response.
        deadline: seconds for a whole load, and for the whole write of one key, including all pages, addresses, retries,
            and the pauses that the service asks for.
        concurrency: parallel requests.
        rate: (requests, seconds): the most requests in any period of that length; shared by all stores of this process
            that use the same base URL and token.

    Raises:
        ValueError, TypeError: the URL or the token is invalid, or a number is not positive; the token is not shown.
        Unauthorized: the token file is empty.

    """

    URL_OPTIONS: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "concurrency": int,
        "deadline": positive,
        "rate": _rate,
        "timeout": positive,
    }
    """Options that a URL may contain; `rate=50/10` is 50 requests in 10 seconds."""

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
        self._base_url = ""
        url, tokens = Secret(base_url), [token]
        del base_url, token  # so that no rendered traceback shows them
        source = Token(tokens.pop(), "TRUTO_API_TOKEN")
        self._timeout = check_seconds("timeout", timeout)
        self._deadline = check_seconds("deadline", deadline)
        connections, pace = check_count("concurrency", concurrency), _checked_rate(rate)
        self._base_url = checked_url(url.reveal(), "the API's base URL", "https://api.truto.one", self.URL_OPTIONS)
        self._service = Service(
            self._base_url,
            source,
            timeout=self._timeout,
            concurrency=connections,
            rate=pace,
            patience=self._deadline,
        )
        self._seen: dict[str, _Seen] = {}

    def __repr__(self) -> str:
        return f"TrutoStore({self._base_url!r})"

    def load(self, state_key: str) -> dict[str, Entry]:
        """Return every entry of a namespace, following the list's pages; see `Store.load`."""
        check_name("state_key", state_key)
        run = Requests(self._base_url)
        return self._service.load(run, lambda: self._load(run, state_key))

    def _load(self, run: Requests, state_key: str) -> dict[str, Entry]:
        started = monotonic()
        entries = self._list(run, state_key, Deadline(self._deadline))
        self._seen[state_key].reached.clear()  # a run begins by loading
        seconds = monotonic() - started
        logger.debug(
            "%r: listed keys=%d requests=%d retries=%d seconds=%.3f",
            state_key, len(entries), run.requests, run.retries, seconds,
            extra={
                "checkpoint_event": "listed", "checkpoint_namespace": state_key, "checkpoint_keys": len(entries),
                "checkpoint_requests": run.requests, "checkpoint_retries": run.retries, "checkpoint_seconds": seconds,
            },
        )  # fmt: skip
        return entries

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        *,
        run_id: str | None = None,  # the API cannot store it
    ) -> Receipt:
        """Write the changed keys one by one, in parallel; see `Store.commit`.

        Before the first write, the keys in `base` are read; a difference raises `Conflict`, and nothing is written. A
        key that is not in `base` is overwritten without a comparison.
        """
        check_changes(state_key, changes, run_id)
        run = Requests(self._base_url)
        return self._service.commit(run, lambda: self._commit(run, state_key, changes, base))

    def _commit(
        self,
        run: Requests,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None],
    ) -> Receipt:
        reading = Deadline(self._deadline)
        self._service.warm(len(changes))  # while the look is under way
        stored = self._look(run, state_key, changes, base, reading)
        check_base(state_key, changes, base, {key: entry for key, entry in stored.items() if entry is not None})
        landed = {key: stored[key] for key, value in changes.items() if key in stored and holds(stored[key], value)}
        seconds = max(reading.left(), self._deadline / 10)  # one deadline, shared with the read before
        missing = {key: value for key, value in changes.items() if key not in landed}
        writes = self._writes(run, state_key, missing, base, stored, seconds)
        self._service.announce(len(writes))
        outcomes = self._service.each(run, lambda key: writes[key].settle(), writes)
        errors: dict[str, CheckpointError] = {}
        for key in [key for key in writes if key in outcomes]:  # in the caller's order
            outcome = outcomes[key]
            if isinstance(outcome, CheckpointError):
                errors[key] = outcome
            else:
                landed[key] = outcome
        self._seen.setdefault(state_key, _Seen()).remember(landed)
        unsettled = frozenset(key for key, write in writes.items() if write.unsettled)
        if len(landed) < len(changes):
            error = _failure(changes, landed, errors)
            error.unsettled = unsettled
            raise error
        entries = {key: entry for key, entry in landed.items() if entry is not None}
        return Receipt(entries, run.requests, run.retries, unsettled)

    def _writes(
        self,
        run: Requests,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None],
        stored: Mapping[str, Entry | None],
        seconds: float,
    ) -> dict[str, _Write]:
        seen = self._seen.setdefault(state_key, _Seen())
        return {
            key: _Write(
                StateApi(self._service, run, state_key),
                key,
                value,
                base.get(key),
                exists=stored[key] is not None if key in stored else key in seen.keys,
                checked=key in base,
                seconds=seconds,
                last_look=min(self._timeout, seconds / 2),
                listed=lambda: self._list(run, state_key, Deadline(seconds)),
            )
            for key, value in changes.items()
        }

    @property
    def deadline(self) -> float:
        """Seconds for each key's write; see `HasDeadline`."""
        return self._deadline

    def clock(self) -> datetime:
        """Return the time by the service's clock, to the second: its `Date` header (RFC 9110, 6.6.1).

        Raises:
            StoreError: the service refused or failed, or its response has no date.

        """
        run, deadline = Requests(self._base_url), Deadline(self._deadline)
        api = StateApi(self._service, run, "clock")
        date = self._service.load(run, lambda: run.call(lambda: api.date(deadline), deadline, service.POLICY))
        return self._service.moment(date, http_date)

    def close(self) -> None:
        """End this process's threads and connections."""
        self._service.close()

    def _look(
        self,
        run: Requests,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None],
        deadline: Deadline,
    ) -> dict[str, Entry | None]:
        """Return the entries of the keys in `base`, and of keys whose path a gateway may rewrite.

        The keys of `base` are read by one list or by a GET each, whichever costs less. A list may be stale, and can
        miss a key between two pages. So a GET confirms each entry that differs from `base` or that looks like the
        result of a write.

        Raises:
            StoreError: a gateway rewrites paths; nothing was written.

        """
        stored: dict[str, Entry | None] = {}
        doubtful = list(base)
        seen = self._seen.setdefault(state_key, _Seen())
        if len(base) > seen.pages + len(seen.keys) // ENTRIES_PER_GET:
            listed = self._list(run, state_key, deadline)
            seen = self._seen[state_key]
            stored.update((key, listed.get(key)) for key in base)
            doubtful = [key for key in base if _is_doubtful(key, changes, base[key], listed.get(key), seen)]
        risky = seen.risky(changes)
        found = self._get_each(run, state_key, dict.fromkeys([*doubtful, *risky]), deadline)
        gone = [key for key, entry in found.items() if entry is None and (key in seen.keys or key in risky)]
        if gone:
            listed = self._list(run, state_key, deadline)  # a list has no path that could be rewritten
            _check_gone(StateApi(self._service, run, state_key), gone, listed)
        self._seen[state_key].reached.update(key for key, entry in found.items() if entry is not None)
        return {**stored, **found}

    def _get_each(
        self, run: Requests, state_key: str, keys: Iterable[str], deadline: Deadline
    ) -> dict[str, Entry | None]:
        api, own = StateApi(self._service, run, state_key), {key: deadline.same() for key in keys}

        def get(key: str) -> Entry | None:
            return run.call(lambda: api.get(key, own[key]), own[key], service.POLICY)

        found: dict[str, Entry | None] = {}
        for key, outcome in self._service.each(run, get, own).items():
            if isinstance(outcome, CheckpointError):
                raise outcome
            found[key] = outcome
        deadline.at = max([deadline.at, *(each.at for each in own.values())])  # waits for the rate do not count
        return found

    def _list(self, run: Requests, state_key: str, deadline: Deadline) -> dict[str, Entry]:
        """Return every entry of a namespace; all pages and retries have one deadline."""
        api = StateApi(self._service, run, state_key)
        entries: dict[str, Entry] = {}
        cursors: list[str | None] = [None]
        while True:
            try:
                listed, cursor = self._page(api, cursors[-1], deadline)
            except StoreUnavailable as error:
                came = len(cursors) - 1
                error.args = (
                    (f"{error}; {came} pages of the list of {state_key!r} were read before",) if came else error.args
                )
                raise
            for entry in listed:
                known = entries.get(entry.key)
                if known is None or time_of(entry) >= time_of(known):
                    entries[entry.key] = entry
            if cursor is None:
                reached = self._seen.get(state_key, _Seen()).reached
                self._seen[state_key] = _Seen(len(cursors), set(entries), reached)
                return entries
            if run.stopped:
                raise StoreUnavailable(f"{self._base_url}: the list of {state_key!r} was interrupted")
            if cursor in cursors:
                shown = self._service.hide(repr(cursor))
                raise StoreError(f"the list of {state_key!r} repeats its page {shown}, and would never end")
            cursors.append(cursor)

    def _page(self, api: StateApi, cursor: str | None, deadline: Deadline) -> tuple[list[Entry], str | None]:
        misses: list[Elsewhere] = []

        def attempt() -> tuple[list[Entry], str | None]:
            try:
                return api.page(cursor, deadline)
            except Elsewhere as miss:
                misses.append(miss)
                if len(misses) < LOST:
                    raise
            raise api.rewritten(f"the answer for the list of {api.state_key!r} was {misses[-1]}, {LOST} times")

        return api.run.call(attempt, deadline, service.POLICY)


@dataclass(slots=True)
class _Seen:
    """The last known contents of a namespace."""

    pages: int = 1
    keys: set[str] = field(default_factory=set[str])
    reached: set[str] = field(default_factory=set[str])
    """Keys that a gateway may rewrite, but did not when they were read in this run."""
    _alike: set[str] | None = None
    """Keys that a gateway may confuse with each other; None until computed, and after keys were added or removed."""

    def risky(self, changes: Mapping[str, str | None]) -> list[str]:
        """Return the keys to patch or delete whose path a gateway may rewrite and that this run has not read yet."""
        asked = [key for key, value in changes.items() if value is None or key in self.keys]
        return [key for key in asked if key not in self.reached and (is_rewritable(key) or key in self._confusable())]

    def remember(self, landed: Mapping[str, Entry | None]) -> None:
        """Record what was written."""
        added = {key for key, entry in landed.items() if entry is not None} - self.keys
        gone = {key for key, entry in landed.items() if entry is None} & self.keys
        if added or gone:
            self.keys, self._alike = (self.keys | added) - gone, None

    def _confusable(self) -> set[str]:
        if self._alike is None:
            first: dict[str, str] = {}
            others = {key: other for key in self.keys if (other := first.setdefault(folded(key), key)) != key}
            self._alike = {*others, *others.values()}
        return self._alike


def _is_doubtful(
    key: str, changes: Mapping[str, str | None], expected: Entry | None, listed: Entry | None, seen: _Seen
) -> bool:
    """Whether a GET has to confirm what a list says about a key."""
    missed = seen.pages > 1 and key not in seen.keys
    return missed or not unchanged(expected, listed) or (key in changes and holds(listed, changes[key]))


def _check_gone(api: StateApi, keys: Iterable[str], listed: Mapping[str, Entry]) -> None:
    """Raise an error where a list has the key but a GET of its path finds nothing."""
    for key in keys:
        if key in listed:
            raise api.rewritten(f"{key!r} was not found, though the list has it")


class _Write:
    """The write of one key: its attempts, their outcomes, and the read-back of an unknown outcome.

    While an attempt is in doubt (`_in_doubt`), no write is sent until the key has been read back. `known` is the entry
    last known, None for none; where it was not `checked`, the key is overwritten without a comparison. `exists` selects
    the first call. `seconds` is the total time, of which `last_look` is reserved for the final read-back; `listed` asks
    for a fresh list.
    """

    def __init__(
        self,
        api: StateApi,
        key: str,
        value: str | None,
        known: Entry | None,
        *,
        exists: bool,
        checked: bool,
        seconds: float,
        last_look: float,
        listed: Callable[[], Mapping[str, Entry]],
    ) -> None:
        self.unsettled = False
        """Whether an attempt with an unknown outcome may have landed or may still land."""
        self._api = api
        self._key = key
        self._value = value
        self._known = known
        self._checked = checked
        self._seconds = seconds
        self._last_look = last_look
        self._exists = exists
        self._listed = listed
        self._in_doubt = False
        self._turned = False

    def settle(self) -> Entry | None:
        """Write the key, and return its entry, None for a deleted one.

        Raises:
            Conflict: another writer changed it.
            CommitUnknown: the outcome could not be determined.
            StoreError: it was refused, or could not be sent.

        """
        deadline = Deadline(self._seconds - self._last_look)
        try:
            return self._api.run.retry(lambda: self._attempt(deadline), deadline, service.POLICY)
        except Again as last:
            return self._give_up(deadline, last)
        except StoreUnavailable as error:  # of a read after a refusal
            if self.unsettled:
                raise CommitUnknown(self._api.state_key, [self._key]) from error
            raise

    def _attempt(self, deadline: Deadline) -> Entry | None:
        if self._api.run.stopped:
            raise Again("stopped before it was sent")
        if self._in_doubt:
            found = self._read_back(deadline)
            if holds(found, self._value):
                return found
            self._accept(found)
            self._in_doubt = False
        return self._send(deadline)

    def _read_back(self, deadline: Deadline) -> Entry | None:
        """Return the outcome of a write whose response was lost.

        Raises:
            Again: the service cannot tell at the moment.
            CommitUnknown: it will not be able to.

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
        try:
            response = self._answer(deadline)
        except Unclear as unclear:
            failure = unclear.plain()
        else:
            if response.status < 500:
                return self._outcome(response, deadline)
            failure = self._refusal(response)
        return self._look_up(failure, deadline)  # final, although the write may have been made

    def _outcome(self, response: Response, deadline: Deadline) -> Entry | None:
        if self._value is None:
            if says_missing(response):
                self._check_gone()
                return None
        elif says_missing(response) if self._exists else response.status in {400, 409}:
            return self._turn(response, deadline)
        if not 200 <= response.status < 300:
            raise self._refusal(response)
        return self._echo(response)

    def _look_up(self, failure: StoreError, deadline: Deadline) -> Entry | None:
        """Return what a failed attempt wrote after all; raise its failure if it has written nothing so far."""
        before, self._in_doubt, self.unsettled = self.unsettled, True, True
        found = self._read_back(deadline)
        self._in_doubt = False
        if holds(found, self._value):
            self.unsettled = before
            return found
        raise failure

    def _answer(self, deadline: Deadline) -> Response:
        try:
            if self._value is None:
                return self._api.delete(self._key, deadline)
            if self._exists:
                return self._api.patch(self._key, self._value, deadline)
            return self._api.post(self._key, self._value, deadline)
        except AnswerLost as lost:
            self._in_doubt = True
            self.unsettled |= lost.late
            raise

    def _turn(self, response: Response, deadline: Deadline) -> Entry | None:
        """Find out why a PATCH found no entry, or a POST found one: an own write, a conflict, or the wrong call."""
        api, assumed = self._api, self._exists
        # Only this read is retried: sending the write again could overwrite a write made in between.
        found = api.run.call(lambda: api.get(self._key, deadline), deadline, service.POLICY)
        if found is None and self._checked:  # without a comparison a POST does no harm
            self._check_gone()
        if holds(found, self._value):
            return found
        self._accept(found)
        self._exists = found is not None
        if self._exists == assumed or self._turned:
            raise self._refusal(response)  # not for the key's presence, then
        self._turned = True
        return self._send(deadline)

    def _check_gone(self) -> None:
        """Look up in a list a loaded key whose path was not found: a gateway may rewrite paths."""
        if self._exists:
            _check_gone(self._api, [self._key], self._listed())

    def _accept(self, found: Entry | None) -> None:
        """Refuse to overwrite an entry that is neither an own write nor the last known one."""
        if not self._checked:
            self._exists = found is not None
        elif not unchanged(self._known, found):
            raise Conflict(self._api.state_key, self._key, self._known, found)

    def _give_up(self, deadline: Deadline, last: Again) -> Entry | None:
        """Read the key once more after the last attempt, and return or raise the outcome."""
        error = self._api.run.gave_up(deadline, last)
        unknown = CommitUnknown(self._api.state_key, [self._key])
        if self._in_doubt:
            if self._api.run.refused:  # no further request may use this token
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
        said = self._api.service.said(response)
        if response.status == MISSING and not says_missing(response):
            return self._api.rewritten(f"the answer for {self._key!r} was {said}, which is not in the API's own form")
        return StoreError(f"{self._api.service.base_url} refused {self._key!r}: {said}")

    def _echo(self, response: Response) -> Entry | None:
        """Check what the service says it has stored; a response without a body says nothing."""
        self.unsettled, before = True, self.unsettled
        told = self._api.service.document(response) if response.body else {}
        same_value = self._value is None or told.get("value", self._value) == self._value
        if told.get("key", self._key) != self._key or not same_value:
            raise StoreError(f"after a write of {self._key!r} the service answered with another key or value")
        self.unsettled = before
        if self._value is None:
            return None
        created_at = self._known.created_at if self._known is not None else None
        return entry_of({"created_at": created_at, **told, "key": self._key, "value": self._value})


def _failure(
    changes: Mapping[str, str | None], landed: Mapping[str, Entry | None], errors: Mapping[str, CheckpointError]
) -> CheckpointError:
    """Return the single error of a commit in which some keys did not land."""
    for error in errors.values():
        if isinstance(error, Unauthorized) or len(changes) == 1:
            error.committed = dict(landed)
            return error
    return PartialCommit(landed, [key for key in changes if key not in landed], errors)
