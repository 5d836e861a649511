"""Jobs that run beside each other; started by `test_several_runs.py`, one process each.

python run_counting.py count STORE SECONDS            counts in one key, catching Conflict; prints how often
python run_counting.py members STORE NAME SECONDS     sets members of its own in the group that all share
"""

from __future__ import annotations

import json
import os
import sys
import time

from checkpoint import Checkpointer, CommitUnknown, Conflict

NAMESPACE = "shared"


def count(store: str, seconds: str) -> None:
    counted = conflicts = unknown = 0
    with Checkpointer(NAMESPACE, store) as cp:
        until = time.monotonic() + float(seconds)
        while time.monotonic() < until or not counted:
            cp["count"] = {"n": cp.get("count", {"n": 0})["n"] + 1}
            try:
                cp.commit()
                counted += 1
            except Conflict:
                conflicts += 1
                cp.discard()
            except CommitUnknown:
                unknown += 1
                cp.reload()
    print(json.dumps({"counted": counted, "conflicts": conflicts, "unknown": unknown}), flush=True)


def members(store: str, name: str, seconds: str) -> None:
    """Print each number once it is stored, so that whoever kills this process knows what it must find."""
    until = time.monotonic() + float(seconds)
    with Checkpointer(NAMESPACE, store) as cp:
        group = cp.group("accounts")
        number = group.get(f"{name}-0", {"n": 0})["n"]
        while time.monotonic() < until:
            number += 1
            for member in range(3):
                group[f"{name}-{member}"] = {"n": number}
            cp.commit()
            os.write(1, b"%d\n" % number)


if __name__ == "__main__":
    {"count": count, "members": members}[sys.argv[1]](*sys.argv[2:])
