"""Make the pictures of docs/operating/page.md: python .ci/screenshots.py, with Debian's chromium and freezegun."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path

from freezegun import freeze_time
from PIL import Image
from playwright.sync_api import sync_playwright

from checkpoint import Checkpointer, SQLiteStore, codec
from checkpoint.run import lease

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "operating"
FOLDER = Path("/tmp/jobs")  # noqa: S108 - its name stands in the commands that the page shows, so it is no random one
NOW = datetime.now(timezone.utc).replace(microsecond=0)
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def text(moment: datetime) -> str:
    """Return a time as sources spell it."""
    return moment.isoformat().replace("+00:00", "Z")


def sync(store: SQLiteStore, name: str, streams: list[str], ago: timedelta, *, fails: bool = False) -> None:
    """Run a job as it ran some time ago: a few hundred rows of each stream."""
    then = NOW - ago
    with suppress(ConnectionError), freeze_time(then), Checkpointer(name, store, run_id=f"nightly {then:%m-%d}") as cp:
        for stream in streams:
            rows = [{"updated_at": text(then - timedelta(minutes=300 - n))} for n in range(280)]
            cp.incremental(stream, "updated_at", initial_value="2020-01-01T00:00:00Z", row_order="asc").filter(rows)
        cp.commit()
        if fails:
            raise ConnectionError


def fill(path: Path) -> None:
    """Store what a team's jobs would have."""
    with closing(SQLiteStore(path)) as store:
        for day in range(12, -1, -1):
            ago = timedelta(days=day, hours=5)
            sync(store, "crm_eu", ["contacts", "companies", *(["deals"] if day > 3 else [])], ago)
            sync(store, "crm_us", ["contacts", "companies", "deals"], ago + timedelta(minutes=9))
            sync(store, "billing", ["invoices"], ago + timedelta(minutes=31), fails=day == 0)
        with freeze_time(NOW - timedelta(hours=2)), Checkpointer("accounts", store, run_id="hourly") as cp:
            group = cp.group("accounts")
            for number in range(2_400):
                group[f"account-{number:04}"] = {"updated_at": text(NOW - timedelta(minutes=130 + number * 7 % 60))}
        with freeze_time(NOW - timedelta(minutes=40)), Checkpointer("warehouse", store, run_id="load 17") as cp:
            cp["orders"] = {"id": 918_220}
        held = lease.LeaseState("worker-3, process 41, run load 18", text(NOW - timedelta(minutes=4)), 7, 48)
        store.commit("warehouse", {lease.KEY: held.value()})
        back = codec.encode({"updated_at": text(NOW - timedelta(days=2, hours=5))})
        with freeze_time(NOW - timedelta(hours=1)):
            reasons = {"contacts": "rows of Tuesday are missing"}
            store.commit("crm_eu", {"contacts": back}, run_id="checkpoint rewind", reasons=reasons)


def main() -> None:
    """Make both pictures."""
    FOLDER.mkdir()
    try:
        draw(FOLDER / "state.db")
    finally:
        shutil.rmtree(FOLDER)


def draw(path: Path) -> None:
    """Fill a store, and make the pictures of its page."""
    with sync_playwright() as playwright:
        fill(path)
        command = [sys.executable, "-m", "checkpoint", "ui", "--no-browser"]
        environment = os.environ | {"CHECKPOINT_STORE": f"sqlite:///{path}"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as page:
            printed = "".join([page.stdout.readline(), page.stdout.readline()] if page.stdout else [])
            address, password = re.findall(r"http://\S+|(?<=Password: )\S+", printed)
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
            tab = browser.new_page(viewport={"width": 1040, "height": 700},
                                   http_credentials={"username": "me", "password": password})  # fmt: skip
            for name, query, height in (("namespaces", "", 660), ("key", "key?namespace=crm_eu&key=contacts", 1240)):
                tab.goto(address + query)
                part = {"x": 0, "y": 0, "width": 1040, "height": height}
                picture = Image.open(BytesIO(tab.screenshot(clip=part, full_page=True)))
                picture.quantize(48).save(PICTURES / f"page-{name}.png", optimize=True)
            browser.close()
            page.terminate()


if __name__ == "__main__":
    main()
