# SPDX-License-Identifier: Apache-2.0
"""What the simulated pods serve, for tests with traffic: a real HTTP server on each pod's address, in this network namespace.

Lines on standard input: `+ ADDRESS NAME` has one listen, `- ADDRESS` kills it with all its connections, as a kubelet would.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from itertools import count

PORT = 8080
WORK_SECONDS = 0.01


class Pod:
    """One server, that says who it is, and how many requests it had cut off when it was killed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connections: set[asyncio.StreamWriter] = set()
        self.server: asyncio.Server | None = None
        self.numbers = count(1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"/v2/health" not in head.split(b"\r\n", 1)[0]:
                    await asyncio.sleep(WORK_SECONDS)
                body = json.dumps({"pod": self.name, "number": next(self.numbers)}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
        self.connections.discard(writer)
        writer.close()

    def kill(self) -> None:
        if self.server is not None:
            self.server.close()
        for writer in self.connections:
            writer.transport.abort()


async def main() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    pods: dict[str, Pod] = {}
    while line := (await reader.readline()).decode():
        what, address, *name = line.split()
        if what == "+" and address not in pods:
            pods[address] = pod = Pod(name[0])
            pod.server = await asyncio.start_server(pod.serve, address, PORT)
        elif what == "-" and address in pods:
            pods.pop(address).kill()


if __name__ == "__main__":
    asyncio.run(main())
