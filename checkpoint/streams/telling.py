"""Log records about a stream, written once at its end; members of a group are judged together.

Each record has a fixed word in `checkpoint_event`, and `checkpoint_stream`, the stream or group it speaks of:

    run_ended      INFO      rows of the stream in this run
    all_late       WARNING   rows came, and every one lies before start_value
    no_range       WARNING   start_value lies at or after end_value
    unfinished     WARNING   the position of an unsorted stream did not move; INFO where that was meant
    all_ahead      WARNING   every row lies in the future, so that none became the position
    maybe_epoch    WARNING   numbers that look like times were compared as numbers
    other_epoch    WARNING   another epoch format makes the values times from 1990 to 2100, the given one does not
    many_at_once   WARNING   more rows share the position than are remembered
    unremembered   INFO      more rows lie inside the lookback or above the ceiling than are remembered
    resumed        INFO      a fetch goes on where an earlier one was interrupted
    resume_dropped WARNING   a place to resume was stored for another range
    torn           WARNING   an exception came while rows were handed out, so that no more is claimed
    held_elsewhere WARNING   another thread or task has rows in hand that the run did not commit
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint.streams.counts import NO_ROWS, Stats
from checkpoint.streams.values import epoch_named

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from checkpoint.streams.options import Options
    from checkpoint.streams.reading import Scan

logger: logging.Logger = logging.getLogger("checkpoint")


class Ending(NamedTuple):
    """What is logged about one stream at its end."""

    key: str
    stats: Stats
    commits: int
    long_late: bool
    """Its late rows are late by more than a day, or are no moments."""
    no_range: bool
    unfinished: str | None
    """Why it was left unfinished; None: it was finished, or nothing was fed."""
    meant: bool
    """That it was left so was meant, or does not matter."""
    all_ahead: bool
    epoch: str | None
    """The format that its numbers look like."""
    noted: Mapping[str, str]
    """What was noted of a member, which a single stream tells at once; see `AT_ONCE`."""


AT_ONCE = {
    "resumed": (logging.INFO, "continues where an earlier fetch() was interrupted%s%s"),
    "resume_dropped": (
        logging.WARNING,
        (
            "the place where an earlier fetch() was interrupted belongs to another %s, so this one starts from the "
            "first page; an initial_value computed from now() can never resume%s"
        ),
    ),
    "torn": (
        logging.WARNING,
        (
            "a signal handler raised an exception while rows were delivered, so no more of its rows are committed: "
            "read them again in the next run, or in this one after cp.discard()%s%s"
        ),
    ),
    "other_epoch": (
        logging.WARNING,
        "its cursor_format makes its values times outside 1990 to 2100: did you mean cursor_format=%r?%s",
    ),
    "many_at_once": (
        logging.WARNING,
        "more than %s rows are at its position: the next run delivers some of them again; raise max_seen%s",
    ),
}
"""What is told as it happens, once a run: how, and in which words; `%s` is what more there is to say, and of whom."""


def are_long_late(scan: Scan, options: Options) -> bool:
    """Tell whether rows are later than in a healthy job, in which a newest-first reading ends with a late row."""
    latest = scan.late_top[1]
    if latest is None:
        return True
    return options.row_order != "desc" and scan.resumed is None and scan.range.is_long_before(latest)


def epoch_of(scan: Scan, options: Options, highest: Any) -> str | None:
    """Return the format that numbers without a clock look like; None: they have one, or look like none."""
    if highest is None or options.cursor_format is not None or scan.range.scale.kind != "number":
        return None
    return epoch_named(highest)


def tell_of_end(name: str, endings: Sequence[Ending], *, failed: bool = False) -> None:
    """Log the end of a stream, or of the streams of a group.

    Args:
        name: the stream's key, or the group's name.
        endings: of the stream, or of each member.
        failed: an exception ended it; then there is nothing to warn of.

    """
    if not endings:
        return
    total = NO_ROWS
    for ending in endings:
        total += ending.stats
    _tell_of_noted(name, endings)
    if not failed:
        _warn_of_late(name, endings, total)
        _warn(name, endings)
    unfinished = [ending for ending in endings if ending.unfinished is not None]
    if unfinished:
        meant = failed or all(ending.meant for ending in unfinished)
        _log(
            logging.INFO if meant else logging.WARNING, "unfinished", name,
            "was left unfinished, and its position did not move: %s", _why(endings, unfinished),
        )  # fmt: skip
    if total.unremembered:
        _log(
            logging.INFO, "unremembered", name,
            "%d rows inside the lookback or above the ceiling are not remembered and may come twice: raise max_seen",
            total.unremembered, checkpoint_unremembered=total.unremembered,
        )  # fmt: skip
    commits = sum(ending.commits for ending in endings)
    _log(
        logging.INFO, "run_ended", name, "seen=%d delivered=%d dropped=%d late=%d commits=%d",
        total.seen, total.delivered, total.dropped, total.late, commits,
        checkpoint_seen=total.seen, checkpoint_delivered=total.delivered, checkpoint_dropped=total.dropped,
        checkpoint_late=total.late, checkpoint_commits=commits,
    )  # fmt: skip


def _tell_of_noted(name: str, endings: Sequence[Ending]) -> None:
    """Log the events that were noted for members."""
    for event in AT_ONCE:
        if noted := [ending for ending in endings if event in ending.noted]:
            tell_at_once(name, event, noted[0].noted[event], _members(endings, noted))


def _warn_of_late(name: str, endings: Sequence[Ending], total: Stats) -> None:
    """Warn if rows came, and every one was late."""
    if total.seen and total.late == total.seen and all(ending.long_late for ending in endings if ending.stats.late):
        _log(
            logging.WARNING, "all_late", name,
            "all %d rows lie before start_value and were dropped: check that the source returns the range and the "
            "field that were asked for; to read these rows, rewind", total.seen, checkpoint_late=total.late,
        )  # fmt: skip


def _warn(name: str, endings: Sequence[Ending]) -> None:
    """Log the warnings that name the streams they apply to."""
    _warn_of(
        "no_range", name, endings, [ending for ending in endings if ending.no_range],
        "start_value lies at or after end_value, so nothing can be read%s: to read the range again, rewind() to "
        "its beginning or keep it under a key of its own; to go on, raise end_value or leave it out",
    )  # fmt: skip
    _warn_of(
        "all_ahead", name, endings, [ending for ending in endings if ending.all_ahead],
        "every row lies in the future, so the position did not move%s: check the source's clock, the time zone "
        "(timezone=), and whether the field holds planned times",
    )  # fmt: skip
    alike = [ending for ending in endings if ending.epoch]
    _warn_of(
        "maybe_epoch", name, endings, alike,
        "its numbers look like times, but are compared as plain numbers%s: pass cursor_format=%r, or "
        "cursor_format='number' if they are not times", *(ending.epoch for ending in alike[:1]),
    )  # fmt: skip


def _warn_of(
    event: str, name: str, endings: Sequence[Ending], some: Sequence[Ending], text: str, *args: object
) -> None:
    """Log a warning about some streams, if there are any."""
    if some:
        _log(logging.WARNING, event, name, text, _members(endings, some), *args)


def tell_at_once(name: str, event: str, detail: str, members: str = "") -> None:
    """Log something as it happens; see `AT_ONCE`."""
    level, text = AT_ONCE[event]
    _log(level, event, name, text, detail, members)


def tell_of_holders(names: Sequence[str]) -> None:
    """Log that rows of streams were not claimed at the end of a run."""
    _log(
        logging.WARNING, "held_elsewhere", ", ".join(names),
        "another thread or task still has rows in hand, so they were not committed: wait for it before you "
        "leave the run",
    )  # fmt: skip


def _why(endings: Sequence[Ending], unfinished: Sequence[Ending]) -> str:
    reasons = dict.fromkeys(str(ending.unfinished) for ending in unfinished)
    return "; ".join(reasons) + _members(endings, unfinished)


def _members(endings: Sequence[Ending], some: Sequence[Ending]) -> str:
    """Return the members that a record is about, as text; empty for a single stream."""
    if len(endings) == 1:
        return ""
    keys = ", ".join(repr(ending.key) for ending in some[:3])
    return f" ({len(some)} of {len(endings)} members: {keys}{', …' if len(some) > 3 else ''})"


def _log(level: int, event: str, name: str, text: str, *args: object, **extra: object) -> None:
    extra |= {"checkpoint_event": event, "checkpoint_stream": name}
    logger.log(level, f"%r: {text}", name, *args, extra=extra)  # noqa: G004 - the text is ours, and one of a few
