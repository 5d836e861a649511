"""What the tests of the store contract share: names, values, and a helper for expected errors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from checkpoint.stores.base import Store

Error = TypeVar("Error", bound=BaseException)

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")

NAMES = (
    *(
        "a",
        "A",
        "a b",
        " a",
        "a/b",
        "a%2Fb",
        "a%2fb",
        "a%252Fb",
        "a?b=c",
        "a#b",
        "a%",
        "a;b",
        "a:b",
        "a@b",
        "a+b",
        "a&b",
    ),
    *("a=b", "a\\b", "a'b", 'a"b', "*", "_", "%", "...", "./a", "../a", "/", "//", "null", "0", "__a", "a.16-00"),
    *(
        "é",
        "e\u0301",
        "ß",
        "ẞ",
        "日本語",
        "😀",
        "👩‍👩‍👧",
        "\u200b",
        "\u2028",
        "\ufeff",
        "\U0010ffff",
        "x" * 2_000,
        "é" * 2_000,
    ),
)

VALUES = ("", " ", "null", "{}", "a\nb", "\r\n", "\x00", "a\x00b", "'", '"', "\\", "é", "😀", "\u2028", "\ufffd")

BAD_NAMES: tuple[Any, ...] = (
    "",
    ".",
    "..",
    "a\n",
    "\x00",
    "a\x00b",
    "\x1f",
    "\x7f",
    "\x85",
    "\ud800",
    None,
    1,
    b"a",
    ("a",),
)


def values_of(store: Store, state_key: str = "job") -> dict[str, str]:
    """Return the values of a namespace, by key."""
    return {key: entry.value for key, entry in store.load(state_key).items()}


def raised(kind: type[Error], call: Callable[..., Any], *arguments: Any) -> Error:
    """Call, and return the error that is raised, like `pytest.raises`: the contract works without pytest."""
    try:
        call(*arguments)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised by {arguments!r}")
