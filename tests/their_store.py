"""A store as another package would bring it: it knows `checkpoint.stores.base` alone, and a JSON file."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoint.entries import Entry, Receipt
from checkpoint.stores.base import check_base, check_changes, check_name, utc_now

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class JSONStore:
    """Every namespace in one file, which each commit replaces as a whole; processes take turns."""

    atomic = True

    def __init__(self, url: str) -> None:
        self.path = Path(url.partition("://")[2])

    def load(self, state_key: str) -> dict[str, Entry]:
        check_name("state_key", state_key)
        stored = self._read().get(state_key, {"entries": []})
        return {fields[0]: Entry(*fields) for fields in stored["entries"]}

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        *,
        run_id: str | None = None,
    ) -> Receipt:
        check_changes(state_key, changes)
        with self._alone():
            everything, stored = self._read(), self.load(state_key)
            check_base(state_key, changes, base, stored)
            version, now = everything.get(state_key, {"version": 0})["version"] + 1, utc_now()
            written = {
                key: Entry(key, value, stored[key].created_at if key in stored else now, now, run_id, version)
                for key, value in changes.items()
                if value is not None
            }
            kept = {key: entry for key, entry in {**stored, **written}.items() if changes.get(key, "") is not None}
            rows = [list(entry) for entry in kept.values()]
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps({**everything, state_key: {"version": version, "entries": rows}}))
            new.replace(self.path)
            return Receipt(written)

    def close(self) -> None:
        """Nothing stays open."""

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = os.open(self.path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
