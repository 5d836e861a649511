"""S3 on a free loopback port, printed on the first line; it ends when its standard input does.

Run as a script. One request at a time, as S3 itself decides on conditional writes: moto alone compares and writes in
two steps, between which another of its threads may write.
"""

import os
import sys
from threading import Lock, Thread

from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open

    def log_request(self, *_):
        pass


lock, s3 = Lock(), create_backend_app("s3")


def one_at_a_time(environ, start_response):
    with lock:
        return [b"".join(s3(environ, start_response))]


server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True, request_handler=Quiet)
print(server.server_address[1], flush=True)
Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
os._exit(0)
