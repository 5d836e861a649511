"""When the next request may go: a sliding window over those sent, and a gate that a busy service closes.

Plain data and arithmetic on a clock that the caller reads (seconds, monotonic): nothing here waits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from heapq import heapify, heapreplace
from typing import NamedTuple

_LONGEST = 1e9  # seconds: what so many digits say may be no float


@dataclass(slots=True)
class Slot:
    """One request's place in the window."""

    at: float
    """When it counts from: when it was sent and, once it is answered, when the answer came.

    The service counts it somewhere in between; only the later moment is surely not before that.
    """


class Rate:
    """The rate of one token: never more than `limit` requests in any `period` seconds, none while the gate is shut."""

    def __init__(self, limit: int, period: float) -> None:
        self.limit: int = limit
        self.period: float = period
        self._slots: deque[Slot] = deque(maxlen=limit)
        self._shut_until = float("-inf")

    def window(self, now: float) -> float:
        """Return the seconds until the window has room for one more request."""
        if len(self._slots) < self.limit:
            return 0.0
        return max(0.0, self._slots[0].at + self.period - now)

    def gate(self, now: float) -> float:
        """Return the seconds until the gate opens."""
        return max(0.0, self._shut_until - now)

    def take(self, now: float) -> Slot:
        """Count a request that is sent now; its slot's `at` is moved when the answer comes."""
        slot = Slot(now)
        self._slots.append(slot)
        return slot

    def shut(self, until: float) -> None:
        """Keep the gate shut until then at least."""
        self._shut_until = max(self._shut_until, until)

    def tighten(self, limit: int, period: float) -> None:
        """Adopt another pace if it is slower."""
        if limit / period < self.limit / self.period:
            self.limit, self.period = limit, period
            self._slots = deque(self._slots, maxlen=limit)

    def forecast(self, now: float, requests: int) -> float:
        """Return the seconds until the last of so many requests may go, sent as early as the window lets them."""
        if len(self._slots) + requests <= self.limit:
            return 0.0
        starts = deque((slot.at for slot in self._slots), maxlen=self.limit)
        at = now
        for _ in range(requests):
            if len(starts) == self.limit:
                at = max(at, starts[0] + self.period)
            starts.append(at)
        return at - now


class Trip(NamedTuple):
    """One request of a simulated flush."""

    sent: float
    answered: float


def simulate(
    pace: Rate, requests: int, *, concurrency: int, latency: float, start: float = 0.0, work: float = 0.0
) -> list[Trip]:
    """Return when each of so many requests goes and when its answer comes, in seconds, in the order they go.

    They are all ready at `start`; `concurrency` of them go at once, each as soon as an earlier one is answered and the
    pace allows. Each takes `work` of this process, which does one at a time. The pace counts them, as it does real
    ones: a later flush of the same token is simulated with the same pace.
    """
    free = [start] * concurrency
    heapify(free)
    idle = start
    trips: list[Trip] = []
    for _ in range(requests):
        sent = max(free[0], idle)
        while wait := max(pace.window(sent), pace.gate(sent)):
            sent += wait
        idle = sent + work
        answered = idle + latency
        pace.take(sent).at = answered
        heapreplace(free, answered)
        trips.append(Trip(sent, answered))
    return trips


def retry_after(header: str | None, date: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, section 10.2.3), None where it asks nothing.

    It is digits or an HTTP-date; anything else is ignored. A date is measured from the answer's own Date header, so
    that the two clocks need not agree; without one it is ignored, as is what lies in the past.
    """
    header = (header or "").strip(" \t")
    if header.isascii() and header.isdigit():
        return min(float(header), _LONGEST)
    try:
        seconds = (http_date(header) - http_date(date or "")).total_seconds()
    except (ValueError, OverflowError):
        return None
    return seconds if seconds >= 0 else None


def http_date(text: str) -> datetime:
    """Return the moment of an HTTP-date (RFC 9110, section 5.6.7), in UTC; the form of C's asctime names no zone.

    Raises:
        ValueError, OverflowError: it is none.

    """
    moment = parsedate_to_datetime(text)
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)
