"""A store in a bucket of an object storage: S3, Google Cloud Storage, Azure Blob Storage.

A namespace is one object, a JSON document that a person can read, replaced as a whole on the condition that nobody has
replaced it since it was read (RFC 9110, 13.1: If-Match, If-None-Match). The document lists the random ids of its latest
commits. By its id a commit recognises itself when its answer was lost, or when its own repetition was refused.
"""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast
from urllib.parse import quote, unquote

import orjson

from checkpoint.entries import Entry, Receipt
from checkpoint.errors import CommitUnknown, CorruptState, StoreError, StoreUnavailable, Unauthorized, ValueTooLarge
from checkpoint.stores import bucket
from checkpoint.stores.aside import Aside
from checkpoint.stores.base import check_base, check_changes, check_name, utc_now
from checkpoint.stores.bucket import STALE, Bucket, Failed, Mode, keeps_conditions, library
from checkpoint.stores.retrying import DEADLINE, Again, Deadline, Operation, Policy, Telling, monotonic
from checkpoint.stores.rows import MAX_VERSION, entries_by_key, refuse_row, refuse_rows
from checkpoint.stores.urls import check_seconds, options, positive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

T = TypeVar("T")

FORMAT = 1
"""Of the documents, told in each."""

PAUSE = 4.0
"""Seconds of the longest pause before the next attempt."""

ATTEMPTS = 1_000
"""Attempts before a request counts as failed; the deadline ends nearly all earlier."""

IN_A_ROW = 2
"""Puts that are sent without a pause in between while other runs' puts come first."""

CROWDED = 4
"""The pause after `IN_A_ROW` refused puts lasts at most this many times as long as they took."""

MAX_NAME = 1024
"""Bytes of the longest object name: the limit of S3, of Google and, in characters, of Azure."""

_EMPTY = 16 * 1024  # a document of this many bytes holds a key for sure

REMEMBERED = 32
"""Commits that a document lists. A lost answer can be cleared up until as many other commits have followed."""


class ObjectStore:
    """Namespaces in a bucket, one object each: atomic commits with compare-and-swap.

    Credentials, region, endpoint and proxy come from the environment, as obstore reads it: `AWS_*`, `GOOGLE_*`,
    `AZURE_*`; plain HTTP needs `AWS_ALLOW_HTTP=true` (or GOOGLE, AZURE). The service must know conditional writes:
    S3 does, and so do its imitations of today.

    Args:
        url: `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`; the prefix, taken literally, may be
                left out, and belongs to this store alone. `?deadline=180` sets the deadline.
        credential_provider: obstore's, a callable that returns credentials and when they expire, asked again then;
            None: the environment, and for S3 the profile that boto3 finds, where it is installed.
        deadline: seconds for one load or commit, with everything that is tried again.

    Raises:
        ValueError: the URL or the deadline is not one.
        StoreError: obstore is not installed.

    """

    atomic = True

    def __init__(
        self,
        url: str,
        *,
        credential_provider: Callable[[], Any] | None = None,
        deadline: float | None = None,
    ) -> None:
        self._scheme, self._bucket, self._prefix, query = _take_apart(url)
        named, unknown = options(query, {"deadline": positive})
        if unknown:
            raise ValueError(f"an object store's URL has only the option deadline, not {unknown!r}")
        self._deadline = check_seconds("deadline", named.get("deadline", DEADLINE) if deadline is None else deadline)
        self._provider = credential_provider
        self._url = f"{self._scheme}://{self._bucket}/{self._prefix}".rstrip("/")
        self._buckets: dict[int, Bucket] = {}  # by process: a child leaves its parent's alone
        library()

    @property
    def deadline(self) -> float:
        """Seconds for one load or commit; see `HasDeadline`."""
        return self._deadline

    def __repr__(self) -> str:
        return f"ObjectStore({self._url!r})"

    def load(self, state_key: str) -> dict[str, Entry]:
        """Return every entry of a namespace; see `Store.load`."""
        name = self._name(state_key)
        return self._ask(name).retry(lambda: self._read(name, state_key)).entries

    def read(self, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
        """Return the entries of these keys, as far as they exist; see `ReadsKeys.read`. The object is read whole."""
        wanted = {*keys}
        for key in wanted:
            check_name("key", key)
        return {key: entry for key, entry in self.load(state_key).items() if key in wanted}

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        *,
        run_id: str | None = None,
    ) -> Receipt:
        """Write the changed keys, all or none; see `Store.commit`."""
        check_changes(state_key, changes, run_id)
        name = self._name(state_key)
        if not changes and not base:
            return Receipt()
        asked = self._ask(name)
        work = _BucketCommit(self, name, state_key, changes, run_id, asked)
        try:
            entries = asked.retry(lambda: work.attempt(base))
        except StoreError as error:
            landed = work.looked()
            if landed is not None:
                return Receipt(landed, asked.requests, asked.retries)
            if not work.doubtful:
                raise
            unknown = CommitUnknown(state_key, changes)
            unknown.unsettled = frozenset(changes)
            raise unknown from error
        return Receipt(entries, asked.requests, asked.retries)

    def namespaces(self) -> list[str]:
        """Return, sorted, the namespaces that hold a key or cannot be read; small objects are read to find out."""
        operation, aside = Operation(self._url), Aside()  # a signal handler's exception must not wait for the looks
        try:
            return aside.call(operation, lambda: self._namespaces(operation), settles=False)
        finally:
            aside.close()

    def _namespaces(self, operation: Operation) -> list[str]:
        sizes = _Asked(f"{self._url}/", self._deadline, self._timeout).retry(lambda: self._opened().sizes(self._prefix))
        found = {_state_key(name.removeprefix(self._prefix).lstrip("/")): name for name in sizes}
        known = {key: name for key, name in found.items() if key is not None}
        small = [key for key, name in known.items() if sizes[name] < _EMPTY]

        def look(key: str) -> bool:
            return not operation.stopped and self._is_empty(known[key])

        with ThreadPoolExecutor(16, "checkpoint") as pool:
            looks = pool.map(look, small)
            empty = {key for key, is_empty in zip(small, looks, strict=True) if is_empty}  # the first failure ends it
        return sorted(known.keys() - empty)

    def close(self) -> None:
        """Drop the connections of this process; the next use opens new ones."""
        self._buckets.pop(os.getpid(), None)

    @property
    def _timeout(self) -> float:
        """Seconds of one request: a write needs three of them, and pauses, within the deadline."""
        return min(bucket.TIMEOUT, self._deadline / 4)

    def _name(self, state_key: str) -> str:
        """Return the name of a namespace's object; only letters, digits and `-._~` stand for themselves in it."""
        check_name("state_key", state_key)
        name = f"{self._prefix}/{quote(state_key, safe='')}.json".lstrip("/")
        if len(name.encode()) > MAX_NAME:
            raise ValueError(
                f"state_key is too long: its object's name would have {len(name.encode()):,} bytes, and at most "
                f"{MAX_NAME:,} are allowed; each byte other than an ASCII letter or digit takes three"
            )
        return name

    def _ask(self, name: str) -> _Asked:
        return _Asked(self._where(name), self._deadline, self._timeout)

    def _where(self, name: str) -> str:
        return f"{self._scheme}://{self._bucket}/{name}"

    def _opened(self) -> Bucket:
        opened = self._buckets.get(os.getpid())
        if opened is None:
            opened = self._buckets[os.getpid()] = Bucket(self._scheme, self._bucket, self._timeout, self._provider)
        return opened

    def _read(self, name: str, state_key: str) -> _Document:
        found = self._opened().get(name)
        if found is None:
            return _Document({}, 0, (), "create")
        data, mode = found
        try:
            return _parsed(data, mode, state_key, self._where(name))
        except (ValueError, RecursionError) as error:
            raise StoreError(
                f"{self._where(name)} is not a usable checkpoint object ({error}), and was left unchanged: "
                "replace it by a good copy, or move it away to start over"
            ) from error

    def _is_empty(self, name: str) -> bool:
        found = self._ask(name).retry(lambda: self._opened().get(name))
        try:
            return found is None or not _parsed(*found).entries
        except (ValueError, RecursionError, CorruptState):
            return False


class _Document(NamedTuple):
    """A namespace as it was read."""

    entries: dict[str, Entry]
    version: int
    commits: tuple[str, ...]
    """The ids of the latest commits; the last one made this version, the one before the version before."""
    mode: Mode
    """What to put on condition of: that there is no object, or that it is still this one."""


class _BucketCommit:
    """One commit's attempts, each of which begins by reading."""

    def __init__(
        self,
        store: ObjectStore,
        name: str,
        state_key: str,
        changes: Mapping[str, str | None],
        run_id: str | None,
        asked: _Asked,
    ) -> None:
        self._store = store
        self._name = name
        self._state_key = state_key
        self._changes = changes
        self._run_id = run_id
        self._asked = asked
        self._now = utc_now()
        self._sent: dict[str, dict[str, Entry]] = {}  # what was sent, by the id of the attempt
        self._doubted = 0  # version that the first put of unknown outcome would have made; 0: there is none
        self._open: Mode | None = None  # condition of a put that the service may still carry out
        self._unread = False  # the last put is of unknown outcome, and nothing was read since
        self._overtaken = 0  # puts that were refused because another run wrote first

    @property
    def doubtful(self) -> bool:
        """Whether an attempt may have landed, or may land yet."""
        return self._doubted > 0

    def attempt(self, base: Mapping[str, Entry | None]) -> dict[str, Entry]:
        """Write the changes unless an earlier attempt has; return the written entries.

        Raises:
            Conflict: a key in `base` was changed elsewhere.
            Failed: it may be tried again, or may not.

        """
        began, refused = monotonic(), list[Failed]()
        while True:
            # At once after a refusal: after a pause too many commits may have followed to tell what became of the put.
            found = self._read()
            landed = self._landed(found)
            if landed is None and len(refused) == IN_A_ROW:
                # Who won begins its next commit without a pause: whoever waits long beside it never gets its turn.
                refused[-1].longest = CROWDED * (monotonic() - began)
                raise refused[-1]
            if refused:
                self._asked.count_attempt()
            if landed is not None:
                return landed
            try:
                return self._write(found, base)
            except Failed as failed:
                if not failed.refused:
                    raise
                refused.append(failed)

    def _write(self, found: _Document, base: Mapping[str, Entry | None]) -> dict[str, Entry]:
        """Write the changes over a document that was read; return the written entries."""
        check_base(self._state_key, self._changes, base, found.entries)
        if not self._changes:
            return {}
        written = self._written(found)
        attempt = token_hex(8)
        data = _rendered(self._state_key, self._merged(found, written), found, attempt)
        if len(data) > bucket.MAX_OBJECT:
            raise self._too_large()
        if not self._asked.may_write():
            raise StoreUnavailable(
                f"{self._asked.where}: gave up after {self._asked.spent()}: no time was left to write"
                + (_OVERTAKEN.format(self._overtaken) if self._overtaken else "")
            )
        self._sent[attempt] = written
        self._put(data, found)
        return written

    def _put(self, data: bytes, found: _Document) -> None:
        """Write the object; the first that this process creates in the bucket shows whether conditions are kept."""
        opened = self._store._opened()  # noqa: SLF001 - as above
        first = found.mode == "create" and not opened.checked
        if first:  # while nothing is there that it could overwrite
            self._check(opened, _rendered(self._state_key, {}, found, ""), STALE)
        self._asked.requests += 1
        try:
            opened.put(self._name, data, found.mode)
        except Failed as failed:
            self._overtaken += failed.refused
            if failed.reached:
                self._doubted = self._doubted or found.version + 1
                self._unread = True
            if failed.unanswered:
                self._open = found.mode
            if failed.too_large:
                raise self._too_large() from failed
            raise
        if first:
            self._check(opened, data, found.mode)
            opened.checked = True

    def _check(self, opened: Bucket, data: bytes, mode: Mode) -> None:
        """Refuse a bucket that ignores the condition of a put: two runs would overwrite each other's commits there."""
        self._asked.requests += 1
        if not keeps_conditions(opened, self._name, data, mode):
            header = "If-None-Match" if mode == "create" else "If-Match"
            raise StoreError(
                f"{self._asked.where}: the service ignores {header}, so runs could overwrite each other's commits "
                "unnoticed: use a service with conditional writes, such as S3; a proxy in between may drop the header"
            )

    def looked(self) -> dict[str, Entry] | None:
        """Read once more after a put of unknown outcome; return the entries that landed, None where none did."""
        if self._unread:
            with suppress(Failed, StoreError):
                return self._landed(self._read())
        return None

    def _read(self) -> _Document:
        self._unread = False
        self._asked.requests += 1
        return self._store._read(self._name, self._state_key)  # noqa: SLF001 - the store's own

    def _landed(self, found: _Document) -> dict[str, Entry] | None:
        """Return what an earlier attempt wrote, None where none did."""
        for commit in found.commits:
            if commit in self._sent:
                self._doubted = 0
                return self._sent[commit]
        if 0 < self._doubted <= found.version - len(found.commits):
            raise StoreError(f"{self._asked.where}: too many commits followed to find out whether this one was written")
        if self._open != found.mode:  # its condition will never hold again
            self._doubted, self._open = 0, None
        return None

    def _written(self, found: _Document) -> dict[str, Entry]:
        def created_at(key: str) -> str | None:
            return found.entries[key].created_at if key in found.entries else self._now

        return {
            key: Entry(key, value, created_at(key), self._now, self._run_id, found.version + 1)
            for key, value in self._changes.items()
            if value is not None
        }

    def _merged(self, found: _Document, written: dict[str, Entry]) -> dict[str, Entry]:
        kept = {key: entry for key, entry in found.entries.items() if key not in self._changes}
        return dict(sorted({**kept, **written}.items()))

    def _too_large(self) -> ValueTooLarge:
        sizes = {key: len(value.encode()) for key, value in self._changes.items() if value is not None}
        largest = max(sizes, key=lambda key: sizes[key], default="")
        return ValueTooLarge(largest, sizes.get(largest, 0))


def _rendered(state_key: str, entries: Mapping[str, Entry], before: _Document, commit: str) -> bytes:
    document = {
        "format": FORMAT,
        "state_key": state_key,
        "version": before.version + 1,
        "commits": " ".join([*before.commits, commit][-REMEMBERED:]),
        "entries": {
            key: {
                "value": entry.value,
                "created_at": entry.created_at,
                "updated_at": entry.updated_at,
                "sync_job_run_id": entry.sync_job_run_id,
                "version": entry.version,
            }
            for key, entry in entries.items()
        },
    }
    # A key may be of a class derived from str.
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)


_DOCUMENT: dict[str, set[type]] = {
    "format": {int},
    "state_key": {str},
    "version": {int},
    "commits": {str},
    "entries": {dict},
}
_ENTRY = {*Entry._fields[1:]}


def _parsed(data: bytes, mode: Mode, state_key: str | None = None, where: str = "") -> _Document:
    """Return what a document holds; None as `state_key`: that of any namespace. `where` is for errors.

    Raises:
        ValueError: it is not one, or another namespace's; the text says why.
        CorruptState: an entry in it is not one.

    """
    document: object = orjson.loads(data)
    told = _told_format(document)
    if type(told) is int and told > FORMAT:
        raise ValueError(f"its format is {told}, and this release reads format {FORMAT}: upgrade checkpoint-store")
    fields = _fields_of(document, _DOCUMENT, "the document")
    if state_key not in {None, fields["state_key"]}:
        raise ValueError(f"it belongs to the namespace {fields['state_key']!r}")
    if not 0 <= fields["version"] <= MAX_VERSION:
        raise ValueError("the version of the document is out of range")
    rows = [_row_of(key, entry) for key, entry in cast("dict[str, object]", fields["entries"]).items()]
    for row in rows:
        check_name("key", row[0])
    entries = entries_by_key(rows)
    if entries is None:
        refuse_rows(where, fields["state_key"], rows)
    for row in rows:
        if row[-1] > fields["version"]:
            refuse_row(where, fields["state_key"], row, "its version is later than that of the document")
    if orjson.dumps(document, option=orjson.OPT_INDENT_2) != data:  # written by hand, or with keys twice
        json.loads(data, object_pairs_hook=_without_duplicates)
    return _Document(entries, fields["version"], tuple(fields["commits"].split()), mode)


def _row_of(key: str, entry: object) -> tuple[Any, ...]:
    """Return the fields of a key in a document, in the order of `Entry`; `...` for each missing one."""
    told = cast("dict[str, object]", entry) if isinstance(entry, dict) and entry.keys() == _ENTRY else {}
    return (key, *(told.get(name, ...) for name in Entry._fields[1:]))


def _told_format(document: object) -> object:
    return cast("dict[str, object]", document).get("format") if isinstance(document, dict) else None


def _fields_of(found: object, fields: Mapping[str, set[type]], what: str) -> dict[str, Any]:
    """Refuse whatever is not a JSON object of exactly these fields and types; a bool is no number."""
    if not isinstance(found, dict) or found.keys() != fields.keys():
        raise ValueError(f"{what} does not have the fields {', '.join(fields)}")
    checked = cast("dict[str, Any]", found)
    for name, value in checked.items():
        if type(value) not in fields[name]:
            raise ValueError(f"the {name} of {what} is a {type(value).__name__}")
    return checked


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _state_key(name: str) -> str | None:
    """Return the namespace whose object has this name below the prefix; None if it is not ours."""
    state_key = unquote(name.removesuffix(".json"))
    try:
        check_name("state_key", state_key)
    except ValueError:
        return None
    return state_key if name == f"{quote(state_key, safe='')}.json" else None


def _take_apart(url: str) -> tuple[str, str, str, str]:
    """Return scheme, bucket, prefix and query of a store's URL.

    Raises:
        ValueError: it is not one; credentials in it are not shown.

    """
    found = re.fullmatch(r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._-]*)(?:/+([^?#]*))?(?:\?([^#]*))?", url)
    if found is None:
        shown = "one with credentials: those come from the environment" if "@" in url else repr(url)
        raise ValueError(
            "an object store's URL is s3://bucket/prefix, gs://bucket/prefix or az://container/prefix, "
            f"optionally followed by ?deadline=60, not {shown}"
        )
    scheme, name, prefix, query = found.groups(default="")
    prefix = prefix.rstrip("/")
    for part in prefix.split("/") if prefix else ():
        check_name("each part of an object store's prefix", part)
    return scheme, name, prefix, query


_ADVICE = (
    "; check the credentials and their permissions (without the permission to list the bucket, S3 answers 403 for a "
    "missing object)"
)


_OVERTAKEN = (
    "; another run wrote the namespace first, {} times: commit with commit_soon, which lets others go first, give each "
    "worker a namespace of its own, or add ?deadline=180 to the store's URL"
)


class _Asked:
    """One load or commit: its deadline, its attempts, its requests."""

    def __init__(self, where: str, deadline: float, timeout: float) -> None:
        self._operation = Operation(where)
        self._deadline = Deadline(deadline - timeout)  # keeps the time for the request that begins last
        self._timeout = timeout
        self.where = where
        self.requests = 0

    @property
    def retries(self) -> int:
        """How often it was tried again."""
        return self._deadline.attempts - 1

    def count_attempt(self) -> None:
        """Count one that followed without a pause."""
        self._deadline.attempts += 1

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._deadline.left() + self._timeout

    def may_write(self) -> bool:
        """Tell whether there is time for a put, and for a look at what became of it."""
        return self.left() >= 2 * self._timeout + min(PAUSE, self._timeout)

    def spent(self) -> str:
        """Return what it took, in words."""
        return self._deadline.spent()

    def retry(self, attempt: Callable[[], T]) -> T:
        """Call until it succeeds, or the attempts or the deadline end.

        Raises:
            StoreError: what the last attempt failed with.

        """

        def once() -> T:
            try:
                return attempt()
            except Failed as failed:
                if failed.again:
                    raise Again(str(failed), longest=failed.longest) from failed
                raise

        try:
            with Telling(self._operation, self._deadline, "the service does not answer yet"):
                return self._operation.call(once, self._deadline, Policy(first=0.05, longest=PAUSE, attempts=ATTEMPTS))
        except Failed as failed:
            refused = Unauthorized(f"{self.where}: {failed}{_ADVICE}") if failed.unauthorized else None
            raise refused or StoreError(f"{self.where}: {failed}") from failed
