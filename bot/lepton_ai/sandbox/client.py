# SPDX-License-Identifier: Apache-2.0
"""A client that calls a service all the time and counts what it gets: what the tour shows, on the standard library alone."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

ANSWER_SECONDS = 30


@contextmanager
def calling(port: int, clients: int = 4) -> Iterator[Counter[str]]:
    """Call 127.0.0.1:PORT meanwhile, with so many clients; yield the counts: answers by status, and `no answer`."""
    counts: Counter[str] = Counter()
    done, lock = threading.Event(), threading.Lock()

    def call() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        while not done.is_set():
            try:
                connection.request("POST", "/v2/models/model/infer", "{}", {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                outcome = str(answer.status)
            except (OSError, http.client.HTTPException):
                connection.close()
                outcome = "no answer"
            with lock:
                counts[outcome] += 1

    threads = [threading.Thread(target=call, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        done.set()
        for thread in threads:
            thread.join(ANSWER_SECONDS)
