"""What the jobs of `cluster.py` reach their source and their sink with, in the driver and in every worker."""

from __future__ import annotations

import json
import os
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Iterator

STORE = os.environ["CLUSTER_STORE"]


def get(path: str, **query: object) -> dict[str, Any]:
    """Ask the source, which learns who asks, so that it can have that process killed."""
    given = {name: value for name, value in query.items() if value is not None}
    connection = HTTPConnection(os.environ["CLUSTER_SOURCE"], timeout=120)
    connection.request("GET", f"{path}?{urlencode(given)}", headers={"X-Process": str(os.getpid())})
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def pages(path: str, **query: object) -> Iterator[list[dict[str, Any]]]:
    """Yield the pages of a list."""
    token = None
    while True:
        answer = get(path, page_token=token, **query)
        yield answer["rows"]
        token = answer["next"]
        if token is None:
            return


class Sink:
    """Keeps the ids of rows in a file for each process, a page a line."""

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Write a page at once."""
        if rows:
            line = json.dumps([row["id"] for row in rows]).encode() + b"\n"
            file = os.open(f"{os.environ['CLUSTER_SINK']}/{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(file, line)
            os.close(file)


sink = Sink()
