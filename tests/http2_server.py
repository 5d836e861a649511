"""The state API over TLS and HTTP/2, served by hypercorn in a process: what the client's HTTP/2 is tested against.

Started with a certificate's two files and the protocols to offer; it writes its port, and answers a line of JSON for
each line of JSON that it reads.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading

TOKEN = "test-token"


class Http2Server:
    """A context manager: the server in a process of its own."""

    def __init__(self, folder, protocols=("h2", "http/1.1")):
        import trustme

        authority = trustme.CA()
        self.authority = str(folder / "authority.pem")
        authority.cert_pem.write_to_path(self.authority)
        certificate, files = authority.issue_cert("127.0.0.1"), [str(folder / "server.pem"), str(folder / "server.key")]
        certificate.cert_chain_pems[0].write_to_path(files[0])
        certificate.private_key_pem.write_to_path(files[1])
        self._command = [sys.executable, "-W", "ignore", __file__, *files, *protocols]
        self.token = TOKEN

    def __enter__(self):
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.url = f"https://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _ask(self, **command):
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def hang(self, *what):
        """Never answer requests whose method and path is one of these, such as `POST /sync-job-run-state`."""
        self._ask(hang=what)

    def gather(self, what, count):
        """Let requests with this method wait until so many are there."""
        self._ask(gather=[what, count])

    def seen(self):
        """Return what was asked for: version of HTTP, port of the client, method and path."""
        return self._ask(seen=True)

    def held(self, state_key):
        """Return the stored values."""
        return self._ask(held=state_key)


async def main(certfile, keyfile, *protocols):
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    from checkpoint.server import Switches, create_app
    from checkpoint.stores.memory import MemoryStore

    store, seen, hanging, gathering = MemoryStore(), [], [], {}
    app = create_app(store, TOKEN, Switches(in_threads=False))

    async def served(scope, receive, send):
        if scope["type"] == "http":
            what = f"{scope['method']} {scope['raw_path'].decode().partition('?')[0]}"
            seen.append([scope["http_version"], scope["client"][1], what])
            while what in hanging:  # noqa: ASYNC110 - another thread changes it
                await asyncio.sleep(0.01)
            if scope["method"] in gathering:
                await gathering[scope["method"]]()
        await app(scope, receive, send)

    def gather(method, count):
        waiting, together = [], asyncio.Event()

        async def wait():
            waiting.append(None)
            if len(waiting) >= count:
                together.set()
            await asyncio.wait_for(together.wait(), 10)

        gathering[method] = wait

    def commands():
        for line in sys.stdin:
            command = json.loads(line)
            if "hang" in command:
                hanging[:] = command["hang"]
            if "gather" in command:
                loop.call_soon_threadsafe(gather, *command["gather"])
            held = (
                {key: entry.value for key, entry in store.load(command["held"]).items()} if "held" in command else None
            )
            print(json.dumps(seen if "seen" in command else held), flush=True)

    config, loop = Config(), asyncio.get_running_loop()
    config.bind, config.certfile, config.keyfile = ["127.0.0.1:0"], certfile, keyfile
    config.alpn_protocols, config.accesslog, config.errorlog = list(protocols), None, None
    sockets = config.create_sockets()
    config.create_sockets = lambda: sockets
    sockets.secure_sockets[0].listen(100)  # before anybody knows the port
    print(sockets.secure_sockets[0].getsockname()[1], flush=True)
    threading.Thread(target=commands, daemon=True).start()
    await serve(served, config, shutdown_trigger=asyncio.Event().wait)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
