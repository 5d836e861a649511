"""What must be true after a schedule."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from checkpoint import Checkpointer, CheckpointError, codec

from .jobs import GROUP
from .world import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .clockwork import Clockwork, Lock
    from .jobs import Job, Write
    from .world import World

LEASE = "__lease__"


def violations(clockwork: Clockwork, world: World, jobs: list[Job]) -> Iterator[str]:
    """Say what is wrong, nothing where all is well."""
    yield from _left_over(clockwork, world, jobs)
    yield from (f"{job.process.name} saw {went}" for job in jobs for went in job.went_back)
    yield from _written_blindly(world, jobs)
    yield from _history(world)
    yield from _counts(world, jobs)
    try:
        yield from _readable(world, jobs)
    except CheckpointError as error:
        yield f"the next run is told: {type(error).__name__}: {error}"


def _left_over(clockwork: Clockwork, world: World, jobs: list[Job]) -> Iterator[str]:
    killed = {job.process.name for job in jobs if job.process.killed}
    if clockwork.hung:
        yield f"never ends: {', '.join(clockwork.hung)}"
        return
    for lock in clockwork.locks:
        if _held(lock):
            yield f"a lock is left held by {getattr(lock.owner, 'name', 'nobody')}"
    lease = world.truth.load(NAMESPACE).get(LEASE)
    owner = codec.decode(lease.value)["owner"] if lease is not None else None
    # Over the API a call of the main thread may need a thread: then one that cannot be started, and none when it is
    # tried again, leave the lease to end by itself, which the run is told.
    could = not world.troubles & {"refused", "lost", "late", "503", "stop", "stale"} and clockwork.not_started < 2
    if owner is not None and not killed and could:
        yield f"the lease is left to run {owner.partition('run ')[2][:1]}"
    for job in jobs:
        for error in job.errors:
            if isinstance(error, RuntimeError) and str(error) not in {"the job fails", "can't start new thread"}:
                yield f"{job.process.name} is told {type(error).__name__}: {error}"


def _held(lock: Lock) -> bool:
    owner = lock.owner
    return owner is not None and not (not isinstance(owner, bool) and owner.process.killed)


def _written_blindly(world: World, jobs: list[Job]) -> Iterator[str]:
    """On a store that compares and swaps nothing is replaced that its writer did not know, unless it was told to."""
    if not world.atomic:
        return
    careful = {job.process.name: job for job in jobs if not job.plan.overwrite}
    for one in world.landed:
        job = careful.get(one.by)
        over = one.over
        if job is None or over is None or over.sync_job_run_id == one.by or one.key not in job.known:
            continue
        if over.version not in job.known[one.key]:
            yield f"{one.by} replaced version {over.version} of {one.key!r}, which it never knew"


def _history(world: World) -> Iterator[str]:
    told = {(change.key, change.after) for change in world.truth.history(NAMESPACE)}
    for one in world.landed:
        changed = one.value is not None or one.over is not None
        if changed and not one.key.startswith("__") and (one.key, one.value) not in told:
            yield f"the history does not tell that {one.by} wrote {one.key!r}"


def _counts(world: World, jobs: list[Job]) -> Iterator[str]:
    entry = world.truth.load(NAMESPACE).get("count")
    found = codec.decode(entry.value)["n"] if entry is not None else 0
    least = sum(job.counted for job in jobs)
    most = least + sum(job.maybe_counted for job in jobs)
    if world.atomic and not any(job.plan.overwrite for job in jobs) and not least <= found <= most:
        yield f"{least} counted, and {found} stored"


def _readable(world: World, jobs: list[Job]) -> Iterator[str]:
    """What was acknowledged is there, unless a later write, or one at the same time, is."""
    shards = {None} if world.atomic else {job.plan.shards for job in jobs}
    for count in sorted(shards, key=lambda count: count or 0):
        found = _found(world, jobs, count)
        writes: dict[str, list[Write]] = {}
        for job in jobs:
            for write in job.writes:
                writes.setdefault(write.key, []).append(write)
        for key, all_of_it in writes.items():
            in_group = key.startswith(f"{GROUP}/") and not world.atomic
            if in_group and (_goes_back(key, jobs) or not _one_after_the_other(world, jobs)):
                continue
            if wrong := _register(world, all_of_it, found.get(key)):
                yield f"{key!r} is {found.get(key)} ({count} shards), but {wrong}"


def _found(world: World, jobs: list[Job], shards: int | None) -> dict[str, Any]:
    """Read everything as the next run does."""
    grouped = any(write.key.startswith(f"{GROUP}/") for job in jobs for write in job.writes)
    with Checkpointer(NAMESPACE, world.truth, record_run=False) as cp:
        group = (cp.group(GROUP, shards) if shards else cp.group(GROUP)) if grouped else None
        found = {key: dict(cp[key]) for key in cp}
        if group is not None:
            members = {member: group.get(member) for member in group}
            found |= {f"{GROUP}/{member}": dict(cursor) for member, cursor in members.items() if cursor is not None}
        return found


def _register(world: World, writes: list[Write], found: dict[str, Any] | None) -> str | None:
    """Say which acknowledged write came after all that could have left what is found, None where none did."""
    if found is not None and all(write.value != found for write in writes):
        return "nobody wrote that, and no row of it was handed out"
    late = {(one.key, one.value) for one in world.landed if one.late}
    ends = [float("-1")] if found is None else []
    for write in writes:
        if write.value == found:
            again = write.value is not None and (write.key, codec.encode(write.value)) in late
            ends.append(float("inf") if again else write.acked)
    last = max(ends, default=float("-inf"))
    for write in writes:
        if write.acked < float("inf") and write.began > last:
            return f"{write.run} was told that it is {write.value}"
    return None


def _goes_back(key: str, jobs: list[Job]) -> bool:
    """Tell whether a stream of a run that overwrites holds a member: it says its own position over another run's."""
    pages = (f"{GROUP}/{op.split()[1]}" for job in jobs if job.plan.overwrite for op in job.plan.ops if "page" in op)
    return key in pages


def _one_after_the_other(world: World, jobs: list[Job]) -> bool:
    """Tell whether no two runs committed at one time, by fresh lists: the API compares nothing."""
    if world.troubles & {"stale", "late", "lost", "503", "kill before", "kill after"}:
        return False
    spans = sorted(span for job in jobs for span in job.sending)
    return all(one[1] < other[0] for one, other in itertools.pairwise(spans))
