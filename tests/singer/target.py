"""A target: appends the ids of rows to the file `rows`, and at a STATE, once they are there, prints its value."""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path)
config = json.loads(parser.parse_args().config.read_text("utf-8"))
with Path(config["rows"]).open("a", encoding="utf-8") as rows:
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "RECORD":
            print(message["record"]["id"], file=rows)
            if message["record"]["id"] == config.get("end"):
                sys.exit(config["status"])
            if message["record"]["id"] == config.get("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
        elif message["type"] == "STATE":
            rows.flush()
            value = message["value"]
            print(value if isinstance(value, str) else json.dumps(value), flush=True)
    if config.get("wait"):
        print(f"target {os.getpid()} waits", file=sys.stderr, flush=True)
        signal.pause()
