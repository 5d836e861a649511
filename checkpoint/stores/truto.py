"""The Truto API's sync-job-run-state over HTTP.

The API writes key by key and has no compare-and-swap: a commit reads before it writes, sends its keys in parallel,
and reads back every write whose outcome it did not see. What the reference ("Sync Job Run State") leaves open, such as
whether a POST of an existing key overwrites it, is taken either way.
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
"""Listed entries that cost about as much as one request for a single entry."""

CONCURRENCY = 50
"""Requests at once where nothing else is asked for: a hundred changed keys are the look and two rounds of writes."""

LOST = 3
"""Answers to a list from another than the API, until the address is taken for wrong."""

TOO_LARGE = 413


def _rate(text: str) -> tuple[int, float]:
    requests, slash, seconds = text.partition("/")
    if not slash:
        raise ValueError("requests/seconds are wanted, such as 500/10")
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
        base_url: where the API is; a path is kept as a prefix.
        token: the API token, or a callable that gives it; None: `$TRUTO_API_TOKEN`, else what the file holds that
            `$TRUTO_API_TOKEN_FILE` names. A callable is asked when a token is first needed, and both are asked once
            more when the service refuses the token (401). The time that a callable takes counts towards the deadline,
            which does not end it: give its own requests a timeout.
        timeout: seconds to connect, and to wait for each piece of an answer.
        deadline: seconds for a load, and for the write of one key, as a whole: with all pages, addresses and retries,
            and the pauses that the service asks for.
        concurrency: requests at once.
        rate: (requests, seconds): never more requests in any such time; shared by all stores of this process that use
            the same base URL and token.

    Raises:
        ValueError, TypeError: the URL or the token is not one, or a number is not positive; the token is not shown.
        Unauthorized: the token's file holds none.

    """

    URL_OPTIONS: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "concurrency": int,
        "deadline": positive,
        "rate": _rate,
        "timeout": positive,
    }
    """Options that may stand in a URL; `rate=50/10` is 50 requests in 10 seconds."""

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
        run_id: str | None = None,  # the API has no place for it
    ) -> Receipt:
        """Write the changed keys one by one, in parallel; see `Store.commit`.

        Before the first write, the keys named in `base` are looked at; a difference is `Conflict`, and nothing is
        written. A key that is not named is overwritten whatever it holds.
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
        stored = self._look(run, state_key, changes, base, reading)
        check_base(state_key, changes, base, {key: entry for key, entry in stored.items() if entry is not None})
        landed = {key: stored[key] for key, value in changes.items() if key in stored and holds(stored[key], value)}
        seconds = max(reading.left(), self._deadline / 10)  # one deadline, with what was read before
        missing = {key: value for key, value in changes.items() if key not in landed}
        writes = self._writes(run, state_key, missing, base, stored, seconds)
        self._service.announce(len(writes))
        outcomes = self._service.each(run, lambda key: writes[key].settle(), writes)
        errors: dict[str, CheckpointError] = {}
        for key in [key for key in writes if key in outcomes]:  # in the caller's order, not in that of the answers
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
            StoreError: the service refused or failed, or its answer has no date.

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
        """Return what is stored under the keys of `base`, and under those whose path may be rewritten on the way.

        The keys of `base` by whichever costs less, one list or a GET for each. A list may be stale, and can miss a key
        between two pages: what it says against `base`, and what would stand for a write, is confirmed by a GET.

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
            listed = self._list(run, state_key, deadline)  # in which no path is rewritten
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
                error.args = (f"{error}; {came} pages of the list of {state_key!r} had come",) if came else error.args
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
                raise StoreError(f"the list of {state_key!r} repeats its page {shown}: it would never end")
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
            raise api.rewritten(f"the list of {api.state_key!r} was answered {misses[-1]}, {LOST} times")

        return api.run.call(attempt, deadline, service.POLICY)


@dataclass(slots=True)
class _Seen:
    """What a namespace was last seen to be."""

    pages: int = 1
    keys: set[str] = field(default_factory=set[str])
    reached: set[str] = field(default_factory=set[str])
    """Keys that a gateway may rewrite, and that it was seen not to in this run."""
    _alike: set[str] | None = None
    """Keys that a gateway may take for one another; None until they are looked for, and after others came or went."""

    def risky(self, changes: Mapping[str, str | None]) -> list[str]:
        """Return the keys to patch or delete whose path a gateway may rewrite, and that were not read in this run."""
        asked = [key for key, value in changes.items() if value is None or key in self.keys]
        return [key for key in asked if key not in self.reached and (is_rewritable(key) or key in self._confusable())]

    def remember(self, landed: Mapping[str, Entry | None]) -> None:
        """Take note of what was written."""
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
    """Tell whether what a list says of a key is to be confirmed by a GET."""
    missed = seen.pages > 1 and key not in seen.keys
    return missed or not unchanged(expected, listed) or (key in changes and holds(listed, changes[key]))


def _check_gone(api: StateApi, keys: Iterable[str], listed: Mapping[str, Entry]) -> None:
    """Refuse that a key's path leads nowhere where a list has the key."""
    for key in keys:
        if key in listed:
            raise api.rewritten(f"{key!r} was not found, though the list has it")


class _Write:
    """One key's way to the service: what is sent, what came of it, and what is read back where nobody saw.

    While an attempt is in doubt (`_in_doubt`), nothing is sent: only reading the key back ends the doubt.
    `known` is the entry last known, None for none; where it was not `checked` the key is overwritten whatever it holds.
    `exists` tells which call to begin with. `seconds` are for everything, `last_look` of them for reading back at the
    end; `listed` asks for a fresh list.
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
        """Whether an attempt, its outcome never seen, may have landed or may land yet."""
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
            Conflict: somebody else wrote it.
            CommitUnknown: nobody could tell whether it landed.
            StoreError: it was refused, or could not be sent.

        """
        deadline = Deadline(self._seconds - self._last_look)
        try:
            return self._api.run.retry(lambda: self._attempt(deadline), deadline, service.POLICY)
        except Again as last:
            return self._give_up(deadline, last)
        except StoreUnavailable as error:  # of a look after a refusal
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
        try:
            response = self._answer(deadline)
        except Unclear as unclear:
            failure = unclear.plain()
        else:
            if response.status < 500:
                return self._outcome(response, deadline)
            failure = self._refusal(response)
        return self._look_up(failure, deadline)  # nothing to try again, and yet it may have been done

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
        """Return what an attempt wrote all the same; raise its failure where it had written nothing by now."""
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
        """Find out why a PATCH found nothing, or a POST something: ours after all, a conflict, or the other call."""
        api, assumed = self._api, self._exists
        # Tried again by itself: to send the write again would be to write over whatever came in between.
        found = api.run.call(lambda: api.get(self._key, deadline), deadline, service.POLICY)
        if found is None and self._checked:  # where nothing is compared, a POST does no harm
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
        """Look a key up in a list, where its path led nowhere though it was loaded: a gateway may rewrite paths."""
        if self._exists:
            _check_gone(self._api, [self._key], self._listed())

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
        said = self._api.service.said(response)
        if response.status == MISSING and not says_missing(response):
            return self._api.rewritten(f"{self._key!r} was answered {said}, which is not the API's own form")
        return StoreError(f"{self._api.service.base_url} refused {self._key!r}: {said}")

    def _echo(self, response: Response) -> Entry | None:
        """Check what the service says it has stored; an answer without a body says nothing."""
        self.unsettled, before = True, self.unsettled
        told = self._api.service.document(response) if response.body else {}
        same_value = self._value is None or told.get("value", self._value) == self._value
        if told.get("key", self._key) != self._key or not same_value:
            raise StoreError(f"wrote {self._key!r}, and the service answered with another key or value")
        self.unsettled = before
        if self._value is None:
            return None
        created_at = self._known.created_at if self._known is not None else None
        return entry_of({"created_at": created_at, **told, "key": self._key, "value": self._value})


def _failure(
    changes: Mapping[str, str | None], landed: Mapping[str, Entry | None], errors: Mapping[str, CheckpointError]
) -> CheckpointError:
    """Return the one error of a commit of which not every key landed."""
    for error in errors.values():
        if isinstance(error, Unauthorized) or len(changes) == 1:
            error.committed = dict(landed)
            return error
    return PartialCommit(landed, [key for key in changes if key not in landed], errors)
