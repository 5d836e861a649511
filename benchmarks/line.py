"""A line with latency: passes bytes on between a client and a server, half of the latency each way.

    python benchmarks/line.py 0.05 127.0.0.1:5001 127.0.0.1:0        prints its port
    python benchmarks/line.py 0.05 /run/.s.PGSQL.5432 /tmp/x/.s.PGSQL.5432

When its standard input ends, it prints how often a client had to wait for an answer, and ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress


class Line:
    """Connections to one server, and the round trips that they made."""

    def __init__(self, latency: float, server: str) -> None:
        self.latency, self.server = latency, server
        self.trips = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Join a client to the server."""
        answered = [True]  # whether the server said something since the client did
        there, out = await dialled(self.server)

        def asked() -> None:
            self.trips += answered[0]
            answered[0] = False

        def told() -> None:
            answered[0] = True

        await asyncio.gather(self.pass_on(reader, out, asked), self.pass_on(there, writer, told))

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: object) -> None:
        """Pass on what one side says, later."""
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sending = asyncio.ensure_future(self.send(late, writer))
        data = b"begin"
        while data:
            try:
                data = await reader.read(1 << 16)
            except ConnectionError:
                data = b""
            if data and callable(heard):
                heard()
            late.put_nowait((asyncio.get_running_loop().time() + self.latency / 2, data))
        await sending

    async def send(self, late: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        """Write each part at its time; the empty one ends the connection."""
        while True:
            at, data = await late.get()
            await asyncio.sleep(at - asyncio.get_running_loop().time())
            if not data:
                writer.close()
                return
            with suppress(ConnectionError):
                writer.write(data)
                await writer.drain()


async def dialled(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("/"):
        return await asyncio.open_unix_connection(address)
    host, _, port = address.partition(":")
    return await asyncio.open_connection(host, int(port))


async def main(latency: float, server: str, here: str) -> None:
    line = Line(latency, server)
    if here.startswith("/"):
        listening = await asyncio.start_unix_server(line.accept, here)
        print(here, flush=True)
    else:
        host, _, port = here.partition(":")
        listening = await asyncio.start_server(line.accept, host, int(port))
        print(listening.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    listening.close()
    print(line.trips, flush=True)
    os._exit(0)  # with whatever connections there are


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), *sys.argv[2:]))
