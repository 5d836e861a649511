"""Run every benchmark, each in a process of its own, and write what they say.

python benchmarks/run.py             all of them: `results/*.json`, then the table and the pictures
python benchmarks/run.py flush load  these, and the table and the pictures from all results there are
python benchmarks/run.py --before P  also the checkout of an older revision at P, where a benchmark can
python benchmarks/run.py --table     nothing but the table and the pictures
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from harness import RESULTS
from table import NAMES, write

HERE = Path(__file__).parent
OLDER = ("rows", "scale")
"""What measures an older checkout, too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES, "capacity"], help="all of them by default")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--before", type=Path, metavar="PATH", help=f"an older checkout, for {' and '.join(OLDER)}")
    options = parser.parse_args()
    options.results.mkdir(exist_ok=True)
    for name in [] if options.table else options.names or [*NAMES, "capacity"]:
        started = time.monotonic()
        if name == "capacity":
            verified = options.results / "capacity.json"
            arguments = ["--verify", str(verified), "--rounds", "1" if options.quick else "3"]
        else:
            arguments = ["--results", str(options.results), *(["--quick"] if options.quick else [])]
            if name in OLDER and options.before is not None:
                arguments += ["--before", str(options.before)]
        code = subprocess.run([sys.executable, HERE / f"{name}.py", *arguments], check=False).returncode
        print(f"== {name}: {time.monotonic() - started:.0f} s{f', FAILED ({code})' if code else ''}\n", flush=True)
    subprocess.run([sys.executable, HERE / "capacity.py", "--plot", str(options.results / "capacity.svg")], check=True)
    write(options.results, readme=options.results == RESULTS)


if __name__ == "__main__":
    main()
