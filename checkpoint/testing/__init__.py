"""Test connectors and stores: a server of the state API, scripted faults, the store contract, and crashed jobs."""

from importlib import import_module

TYPE_CHECKING = False  # as in `checkpoint`: each name is imported when it is first used

if TYPE_CHECKING:
    from checkpoint.testing.contract import StoreContract as StoreContract
    from checkpoint.testing.crashing import Attempt as Attempt
    from checkpoint.testing.crashing import Crashes as Crashes
    from checkpoint.testing.crashing import crash_and_resume as crash_and_resume
    from checkpoint.testing.faults import Answer as Answer
    from checkpoint.testing.faults import Cut as Cut
    from checkpoint.testing.faults import Delay as Delay
    from checkpoint.testing.faults import Drip as Drip
    from checkpoint.testing.faults import Drop as Drop
    from checkpoint.testing.faults import End as End
    from checkpoint.testing.faults import Exchange as Exchange
    from checkpoint.testing.faults import Fault as Fault
    from checkpoint.testing.faults import Hang as Hang
    from checkpoint.testing.faults import Hook as Hook
    from checkpoint.testing.faults import Pass as Pass
    from checkpoint.testing.faults import Raw as Raw
    from checkpoint.testing.server import ApiServer as ApiServer
    from checkpoint.testing.server import Call as Call

_HOMES = {
    "Answer": "checkpoint.testing.faults",
    "ApiServer": "checkpoint.testing.server",
    "Attempt": "checkpoint.testing.crashing",
    "Call": "checkpoint.testing.server",
    "Crashes": "checkpoint.testing.crashing",
    "Cut": "checkpoint.testing.faults",
    "Delay": "checkpoint.testing.faults",
    "Drip": "checkpoint.testing.faults",
    "Drop": "checkpoint.testing.faults",
    "End": "checkpoint.testing.faults",
    "Exchange": "checkpoint.testing.faults",
    "Fault": "checkpoint.testing.faults",
    "Hang": "checkpoint.testing.faults",
    "Hook": "checkpoint.testing.faults",
    "Pass": "checkpoint.testing.faults",
    "Raw": "checkpoint.testing.faults",
    "StoreContract": "checkpoint.testing.contract",
    "crash_and_resume": "checkpoint.testing.crashing",
}

__all__ = [
    "Answer",
    "ApiServer",
    "Attempt",
    "Call",
    "Crashes",
    "Cut",
    "Delay",
    "Drip",
    "Drop",
    "End",
    "Exchange",
    "Fault",
    "Hang",
    "Hook",
    "Pass",
    "Raw",
    "StoreContract",
    "crash_and_resume",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
