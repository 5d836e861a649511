"""The namespace of a run as value strings."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from checkpoint.codec import Cursor


class Values(MutableMapping[str, str]):
    """The value strings of a run's mapping."""

    def __init__(
        self,
        cursors: MutableMapping[str, Cursor],
        value: Callable[[str], str | None],
        set_value: Callable[[str, str], None],
    ) -> None:
        self._cursors = cursors
        self._value = value
        self._set_value = set_value

    def __getitem__(self, key: str) -> str:
        value = self._value(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: str) -> None:
        self._set_value(key, value)

    def __delitem__(self, key: str) -> None:
        del self._cursors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cursors)

    def __len__(self) -> int:
        return len(self._cursors)

    def clear(self) -> None:
        """Delete every key, without decoding any."""
        self._cursors.clear()
