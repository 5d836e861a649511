"""Encoding a cursor of 60 bytes and decoding it again, beside json and base64, which check nothing."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

from harness import OURS, Case, compare, main, within

from checkpoint.codec import decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

CURSOR = {"updated_at": "2024-05-01T10:00:00.000000Z", "id": 1_234_567_890}  # 60 bytes of compact JSON
VALUE = encode(CURSOR)
PEER = "json + base64"


def cases(quick: bool) -> list[Case]:
    """Measure per call, in rounds of thousands."""
    calls, rounds = (2_000, 5) if quick else (20_000, 25)
    return [
        compare(
            "encode a 60-byte cursor",
            rounds,
            {
                OURS: per_call(calls, lambda: encode(CURSOR)),
                PEER: per_call(calls, lambda: base64.b64encode(json.dumps(CURSOR).encode()).decode()),
            },
            within(1e-6, PEER, 3.5e-6),
        ),
        compare(
            "decode it",
            rounds,
            {
                OURS: per_call(calls, lambda: decode(VALUE)),
                PEER: per_call(calls, lambda: json.loads(base64.b64decode(VALUE))),
            },
        ),
    ]


def per_call(calls: int, call: Callable[[], Any]) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - started) / calls

    return run


if __name__ == "__main__":
    main(__file__, __doc__, cases, ["orjson"])
