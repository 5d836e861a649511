"""The five calls of the Truto API on a namespace, and how their responses are read.

A response counts only in the API's own form: a response of a gateway or proxy, or one for another path than the
requested one, is an error.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

import orjson

from checkpoint.entries import Entry
from checkpoint.errors import StoreError
from checkpoint.stores.listing import list_document
from checkpoint.stores.retrying import Again, Deadline

if TYPE_CHECKING:
    from checkpoint.stores.http import Response
    from checkpoint.stores.service import Requests, Service

logger: logging.Logger = logging.getLogger("checkpoint")

MISSING = 404


class Elsewhere(Again):
    """A 404 to a list that did not come from the API: a gateway may find the route a moment later."""


@dataclass(frozen=True, slots=True)
class StateApi:
    """The five calls on one namespace, one attempt each, and how their responses are read."""

    service: Service
    run: Requests
    state_key: str

    def page(self, cursor: str | None, deadline: Deadline) -> tuple[list[Entry], str | None]:
        """List the entries of one page; return them and the cursor of the next page, None after the last."""
        response = self._send(deadline, "GET", None, cursor=cursor)
        if response.status == MISSING and not says_missing(response):
            raise Elsewhere(self.service.said(response))
        if cursor is None and says_missing(response):
            logger.warning(
                "%s answered 404 for %r, so it holds no state yet: check the base URL if it should",
                self.service.base_url, self.state_key,
                extra={"checkpoint_event": "no_state", "checkpoint_namespace": self.state_key},
            )  # fmt: skip
            return [], None
        document = self.service.document(response, lambda body: list_document(body, entry_of))
        result, following = document.get("result"), document.get("next_cursor")
        if not isinstance(result, list):
            raise StoreError(
                self.service.hide(f"the list of {self.state_key!r} has no 'result' list, but {sorted(document)[:10]}")
            )
        return cast("list[Entry]", result), str(following) if following else None

    def date(self, deadline: Deadline) -> str:
        """Return the `Date` header of the response to a list, empty if there is none; it contains no token."""
        return self.service.hide(self._send(deadline, "GET", None).headers.get("date", ""))

    def get(self, key: str, deadline: Deadline) -> Entry | None:
        """Return one entry, None where it is missing."""
        response = self._send(deadline, "GET", key)
        if says_missing(response):
            return None
        if response.status == MISSING:
            raise self.rewritten(
                f"the answer for {key!r} was {self.service.said(response)}, which is not in the API's own form"
            )
        entry = entry_of(self.service.document(response))
        if entry.key != key:
            raise self.rewritten(self.service.hide(f"asked for {key!r}, the service answered with {entry.key!r}"))
        return entry

    def rewritten(self, what: str) -> StoreError:
        """Return the error for a response that belongs to another path than the requested one."""
        return StoreError(
            f"{self.service.base_url}: {what}. Correct the base URL; if it is right, a gateway or proxy answers in "
            "place of the API, or rewrites paths (decodes %2F, resolves .., drops a prefix): let it forward paths "
            "unchanged"
        )

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


def says_missing(response: Response) -> bool:
    """Whether the API itself says that there is no such entry: its own errors repeat the `statusCode`."""
    if response.status != MISSING:
        return False
    try:
        document = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(document, dict) and cast("dict[str, object]", document).get("statusCode") == MISSING


def is_rewritable(key: str) -> bool:
    """Whether a gateway may rewrite a key's path: by decoding `%2F`, or resolving `..`."""
    return any(char in key for char in "/\\%?#;")


def folded(key: str) -> str:
    """Return a key as a gateway may normalise it: case-folded, without outer dots and spaces, in one Unicode form."""
    return unicodedata.normalize("NFKC", key).casefold().replace("+", " ").strip(". ")


def entry_of(document: object) -> Entry:
    """Return the entry that a JSON object describes; unknown fields are ignored.

    A value that is not a string is opaque, and becomes its JSON text.
    """
    fields = cast("dict[str, object]", document) if isinstance(document, dict) else {}
    key, value = fields.get("key"), fields.get("value")
    if not isinstance(key, str) or "value" not in fields:
        raise StoreError("the service answered with something that is not an entry: it has no 'key' or no 'value'")
    created_at, updated_at, run_id = (
        None if (told := fields.get(name)) is None else str(told)
        for name in ("created_at", "updated_at", "sync_job_run_id")
    )
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return Entry(key, text, created_at, updated_at, run_id)


def time_of(entry: Entry) -> tuple[float, str]:
    """Return a sort key for `updated_at`; values that are not ISO 8601 sort as text, before all others."""
    text = entry.updated_at or ""
    # Python 3.10 reads fractions of three or six digits only, and no Z.
    known = re.sub(r"\.(\d+)", lambda digits: f".{digits[1]:0<6.6}", text.replace("Z", "+00:00"))
    try:
        return datetime.fromisoformat(known).timestamp(), text
    except ValueError:
        return float("-inf"), text
