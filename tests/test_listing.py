"""The answer to a list, read piece by piece."""

from __future__ import annotations

import json
import tracemalloc
from random import Random
from typing import Any

import orjson
import pytest

from checkpoint.stores import listing
from checkpoint.stores.calls import entry_of
from checkpoint.stores.listing import list_document

TRICKY = ["},{", '"},{"', "}]", "]},", "\\", '\\"},', '{"result":[', "é}, {", ""]


def items(random: Random, count: int) -> list[Any]:
    """Return items whose texts, and whose inner objects, look like the end of one."""

    def text() -> str:
        return "".join(random.choices(TRICKY, k=random.randint(0, 4)))

    return [
        random.choice(
            [{"key": text(), "value": text()}, {"a": [{"b": text()}, {"c": 1}], "d": {"e": text()}}, text(), 1]
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("piece", [1, 7, 300])
def test_read_in_pieces_it_is_what_it_is_at_once(monkeypatch: pytest.MonkeyPatch, seed: int, piece: int) -> None:
    monkeypatch.setattr(listing, "PIECE", piece)
    random = Random(seed)
    document: Any = {"result": items(random, random.randint(0, 60)), "next_cursor": random.choice([None, "a]},{"])}
    if seed % 4 == 0:
        document = {"next_cursor": "first", **document}
    for text in (orjson.dumps(document), json.dumps(document, indent=2).encode(), json.dumps(document).encode()):
        assert list_document(text, lambda item: item) == document
        with pytest.raises(orjson.JSONDecodeError):
            list_document(text[: random.randint(0, len(text) - 1)], lambda item: item)


@pytest.mark.parametrize("document", [[], 1, "text", {"result": 5}, {"result": {"a": 1}}, {"error": "no"}])
def test_what_is_no_list_comes_as_it_is(document: Any) -> None:
    assert list_document(orjson.dumps(document), str) == document


def test_a_long_list_takes_little_beside_its_entries() -> None:
    value = "eyJpZCI6IjY3ODkwIiwidGltZXN0YW1wIjoiMjAyMy0wMi0wMVQwMDowMDowMFoifQ=="
    at = "2023-01-01T10:00:00.000Z"
    body = orjson.dumps(
        {"result": [{"key": f"key/{n}", "value": value, "created_at": at, "updated_at": at} for n in range(50_000)]}
    )
    tracemalloc.start()
    try:
        document: Any = list_document(body, entry_of)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(document["result"]) == 50_000
    assert peak < kept + 25_000_000  # 100 MB where it is parsed at once
