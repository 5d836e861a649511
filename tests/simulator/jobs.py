"""What a run does, and what it is told."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint import Checkpointer, CheckpointError, Conflict, LeaseLost, PartialCommit, codec

from .clockwork import Interruption, Process
from .world import NAMESPACE

if TYPE_CHECKING:
    from .world import World

GROUP = "g"
_RECORDS = "record_run" in inspect.signature(Checkpointer).parameters


class RunPlan(NamedTuple):
    """One run: its operations (see `Job.do`) and its options."""

    ops: tuple[str, ...]
    exclusive: bool = False
    overwrite: bool = False
    shards: int | None = 1
    record: bool = False
    stubborn: bool = True
    """Goes on after an interruption; else it leaves the block by it."""
    bytecodes: int | None = None
    """An exception comes at this place of its main thread where CPython runs signal handlers."""


class Plan(NamedTuple):
    """Which runs over which store: "atomic", "server" (which is that, too) or "api"."""

    store: str
    runs: tuple[RunPlan, ...]
    faults: int = 1
    """How much may go wrong, at most."""


@dataclass
class Write:
    """One value that a run gave to a key, or to a member (`g/m`)."""

    run: str
    key: str
    value: dict[str, Any] | None
    began: int
    acked: float = float("inf")
    """The moment it was acknowledged; never: its run was told otherwise, or did not live to see it."""


class Job:
    """A run as one would write it: it does its operations, notes what it is told, and discards after a conflict."""

    def __init__(self, world: World, name: str, plan: RunPlan) -> None:
        self.world = world
        self.plan = plan
        self.process = Process(name)
        self.process.bytecodes = plan.bytecodes
        self.writes: list[Write] = []
        self.counted = self.maybe_counted = 0
        self.errors: list[BaseException] = []
        self.known: dict[str, set[int | None]] = {}
        """The versions of keys that this run has said it knows."""
        self.went_back: list[str] = []
        self.sending: list[tuple[float, float]] = []
        """The moments of the first and the last request of each commit."""
        self._since = float("inf")
        self._open: list[Write] = []
        self._was: dict[str, Any] = {}

    def main(self) -> None:
        """Be the main thread."""
        plan = self.plan
        store = self.world.store(self.process)
        self.process.interruptible = True
        more = {"record_run": plan.record} if _RECORDS else {}
        try:
            with Checkpointer(
                NAMESPACE,
                store,
                exclusive=plan.exclusive,
                on_conflict="overwrite" if plan.overwrite else "raise",
                run_id=self.process.name,
                **more,
            ) as cp:
                self._work(cp)
                self._sends()
            self._acknowledged()
        except (CheckpointError, Interruption, RuntimeError) as error:
            self.process.interruptible = False
            if "was interrupted while it delivered rows" not in str(error):  # it was, and this run did not go back
                self.errors.append(error)
        finally:
            self._has_sent()
            self.process.interruptible = False
            self._close(store)

    def _close(self, store: Any) -> None:
        """Close the store, for which it may need a thread; a run that was killed closes nothing."""
        if not self.process.killed:
            try:
                store.close()
            except RuntimeError as error:
                self.errors.append(error)

    def _work(self, cp: Checkpointer) -> None:
        self._group = self._stream = None
        if any(op.split()[0] in {"member", "drop", "page"} for op in self.plan.ops):
            self._group = cp.group(GROUP, self.plan.shards) if self.plan.shards else cp.group(GROUP)
        for op in self.plan.ops:
            try:
                self._look(cp)
                self.do(cp, *op.split())
            except Interruption as error:
                self.errors.append(error)
                if not self.plan.stubborn:
                    raise
            except LeaseLost:
                raise
            except CheckpointError as error:
                self.errors.append(error)
                if isinstance(error, (Conflict, PartialCommit)):
                    self._open.clear()
                    cp.discard()

    def do(self, cp: Checkpointer, what: str, name: str = "") -> None:
        """Do one operation."""
        if what == "set":
            self._note(cp, name, {"n": self.world.moment()})
        elif what == "back":
            self._back(cp, name, [write.value for write in self.writes if write.key == name and write.value])
        elif what == "revert":
            theirs = [one.value for one in self.world.landed if (one.key, one.by != self.process.name) == (name, True)]
            self._back(cp, name, [codec.decode(value) for value in theirs if value])
        elif what == "delete" and name in cp:
            self._note(cp, name, None)
        elif what == "count":
            self._count(cp, name)
        elif what == "member":
            self._note(self._group, name, {"n": self.world.moment()})
        elif what == "drop" and name in self._group:
            self._note(self._group, name, None)
        elif what == "page":
            self._page(cp, name)
        elif what == "commit":
            self._sends()
            cp.commit()
            self._has_sent()
            self._acknowledged()
        elif what == "soon":
            self._sends()
            cp.commit_soon()
        elif what == "flush":
            self._sends()
            cp.flush()
            self._has_sent()
        elif what == "discard":
            self._open.clear()  # first: interrupted, it may have gone back already
            cp.discard()
        elif what == "reload":
            self._open.clear()
            cp.reload()
        elif what == "rest":
            self.world.clockwork.sleep(float(name))
        elif what == "fail":
            raise RuntimeError("the job fails")

    def _note(self, mapping: Any, name: str, value: dict[str, Any] | None) -> None:
        """Set or delete a key or member, and remember that nobody was told of it yet."""
        key = name if isinstance(mapping, Checkpointer) else f"{GROUP}/{name}"
        self._begin(Write(self.process.name, key, value, self.world.moment()), mapping.get(name))
        try:
            if value is None:
                del mapping[name]
            else:
                mapping[name] = value
        except Interruption:  # set or not
            self._open = [one for one in self._open if one.key != key]
            raise

    def _begin(self, write: Write, was: Any) -> None:
        if all(one.key != write.key for one in self._open):
            self._was[write.key] = was
        self.writes.append(write)
        self._open.append(write)

    def _back(self, cp: Checkpointer, key: str, values: list[Any]) -> None:
        """Set a key to the first value that it had, where that is not the one it is known to have."""
        entry = cp.entry(key)
        if (
            values
            and all(one.key != key for one in self._open)
            and codec.encode(values[0]) != (entry.value if entry else None)
        ):
            self._note(cp, key, values[0])

    def _count(self, cp: Checkpointer, key: str) -> None:
        """Count one in a key, as a job that reads, adds and writes."""
        self.maybe_counted += 1
        cp[key] = {"n": cp.get(key, {"n": 0})["n"] + 1}
        cp.commit()
        self.maybe_counted -= 1
        self.counted += 1
        self._acknowledged()

    def _page(self, cp: Checkpointer, key: str) -> None:
        """Read a page of a stream that is kept in the group."""
        if self._stream is None or not self._stream.live:  # detached where discard was interrupted
            self._stream = cp.incremental(key, "at", row_order="asc", group=GROUP)
        at = {"at": self.world.moment()}
        write = Write(self.process.name, f"{GROUP}/{key}", at, self.world.moment())
        try:
            for _ in self._stream.pages([[at]]):
                self._begin(write, None)
        except Interruption:  # where it came while rows were handed out, none is claimed any more, and that is logged
            self._open = [one for one in self._open if one.key != write.key]
            raise

    def _sends(self) -> None:
        self._since = min(self._since, self.world.moment())

    def _has_sent(self) -> None:
        if served := [moment for moment in self.process.served if moment > self._since]:
            self.sending.append((served[0], served[-1]))
        self._since = float("inf")

    def _acknowledged(self) -> None:
        """Note that the run was told: the last value of each key is stored. One that it had anyway is not sent."""
        moment = self.world.moment()
        for write in {write.key: write for write in self._open}.values():
            if write.value != self._was[write.key]:
                write.acked = moment
        self._open.clear()

    def _look(self, cp: Checkpointer) -> None:
        """Note which versions this run knows, and that none goes back."""
        words = [op.split() for op in self.plan.ops]
        for key in {word[1] for word in words if word[0] in {"set", "back", "revert", "delete"}}:
            entry = cp.entry(key)
            version = entry.version if entry is not None else None
            seen = self.known.setdefault(key, set())
            seen.add(version)
            if version is not None and max(one or 0 for one in seen) > version:
                self.went_back.append(f"{key!r} from a later version to {version}")
