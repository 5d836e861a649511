"""A tap of one stream, `orders`: rows with the ids 1 to `rows`, and a STATE after every tenth one and at the end.

It tells its arguments in the file `calls`. `hold` is a row before which it waits for a byte from the pipe `go`.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path


def emit(**message):
    print(json.dumps(message), flush=True)


parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path)
parser.add_argument("--state", type=Path)
arguments = parser.parse_args()
config = json.loads(arguments.config.read_text("utf-8"))
state = json.loads(arguments.state.read_text("utf-8")) if arguments.state else {}
with Path(config["calls"]).open("a", encoding="utf-8") as calls:
    print(json.dumps(state) if arguments.state else "no state", file=calls)

position = state.get("bookmarks", {}).get("orders", {}).get("id", 0)
emit(type="SCHEMA", stream="orders", key_properties=["id"], schema={"properties": {"id": {"type": "integer"}}})
for row in range(position + 1, config["rows"] + 1):
    if row == config.get("hold"):
        print(f"tap {os.getpid()} holds", file=sys.stderr, flush=True)
        with Path(config["go"]).open("rb") as go:
            go.read(1)
    if row == config.get("end"):
        sys.exit(config["status"])
    if row == config.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    emit(type="RECORD", stream="orders", record={"id": row, "text": "x" * config.get("width", 1)})
    if row % 10 == 0 or row == config["rows"]:
        value = {"bookmarks": {"orders": {"id": row, "pad": "x" * config.get("pad", 0)}}, "currently_syncing": "orders"}
        emit(type="STATE", value=config.get("states", {}).get(str(row), value))
