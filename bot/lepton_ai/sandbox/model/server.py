# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a model server, on the standard library alone: it answers the Open Inference Protocol's health and inference paths.

It is what the sandbox and the tests put behind a load balancer where a model itself is not the point. Its environment: PORT, VERSION
(told in every answer), DELAY (seconds that an inference takes), START (seconds until it is ready), FAIL (share of inferences that
answer 500), BREAK (it ends at once).
"""

import json
import os
import random
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERSION = os.environ.get("VERSION", "1")
DELAY = float(os.environ.get("DELAY", "0.005"))
FAIL = float(os.environ.get("FAIL", "0"))
READY_AT = time.monotonic() + float(os.environ.get("START", "0.2"))


class Model(BaseHTTPRequestHandler):
    """Answers with what a client needs to see which replica served it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        ready = time.monotonic() >= READY_AT
        if self.path == "/v2/health/live" or (self.path == "/v2/health/ready" and ready):
            self.answer(200, {})
        elif self.path == "/v2/health/ready":
            self.answer(503, {"error": "loading"})
        else:
            self.infer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.infer()

    def infer(self) -> None:
        time.sleep(DELAY)
        if random.random() < FAIL:
            self.answer(500, {"error": "this version is broken"})
        else:
            self.answer(200, {"model_name": "stand-in", "model_version": VERSION, "outputs": []})

    def answer(self, status: int, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


if os.environ.get("BREAK"):
    print("\x1b[31mthe model {{ lookup('pipe', 'id') }} cannot be read\x1b[0m", flush=True)
    sys.exit(3)
server = Server(("0.0.0.0", int(os.environ.get("PORT", "8080"))), Model)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
print("serving version", VERSION, flush=True)
server.serve_forever()
