# SPDX-License-Identifier: Apache-2.0
"""A node's size by what it has used: chosen, and for real by what its host and a monitor say."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._node import NodeError, Size
from ansible_collections.lepton.cloud.plugins.module_utils._sizing import Bounds, choose_size
from tests.collection.test_moving import Fleet, fleet
from tests.conftest import eventually

__all__ = ["fleet"]
MIB = 1 << 20
SIZE = Size(4, 1024 * MIB, 8, 2048 * MIB)
BOUNDS = Bounds(1, 8, 128 * MIB, 2048 * MIB)


@pytest.mark.parametrize(
    ("vcpus_used", "memory_used", "bounds", "vcpus", "memory", "said"),
    [
        (2.5, 800, BOUNDS, 4, 1024, "which are 70% of 4"),
        (3.0, 900, BOUNDS, 5, 1152, "which are 70% of 5"),
        (2.05, 700, BOUNDS, 4, 1024, "it keeps its 4, since fewer would soon be too few"),
        (2.0, 200, BOUNDS, 3, 256, "which are 70% of 3"),
        (0.0, 10, BOUNDS, 1, 128, "and 25% more are 128MiB"),
        (20.0, 4000, BOUNDS, 8, 2048, "and it can have 8"),
        (0.1, 100, Bounds(2, 8, 512 * MIB, 2048 * MIB), 2, 512, "its bounds allow 2 to 8 vCPUs and 512MiB to 2GiB"),
        (2.5, None, BOUNDS, 4, 1024, "its guest does not say how much memory it uses, so that stays 1GiB"),
        (2.5, 700, BOUNDS, 4, 1024, "it keeps its 1GiB, since that is nearly what it has"),
    ],
)
def test_a_node_gets_what_it_needs_and_does_not_go_to_and_fro(
    vcpus_used: float, memory_used: int | None, bounds: Bounds, vcpus: int, memory: int, said: str
) -> None:
    choice = choose_size(SIZE, [vcpus_used] * 60, [] if memory_used is None else [memory_used * MIB] * 60, bounds)
    assert (choice.vcpus, choice.memory) == (vcpus, memory * MIB), choice.reasons
    assert said in " ".join(choice.reasons)
    # The size that was chosen is chosen again.
    again = choose_size(Size(choice.vcpus, choice.memory, 8, 2048 * MIB), [vcpus_used] * 60, [] if memory_used is None else [memory_used * MIB] * 60, bounds)
    assert (again.vcpus, again.memory) == (choice.vcpus, choice.memory)


@pytest.mark.parametrize(
    ("used", "bounds", "why"),
    [([], BOUNDS, "only 0 samples"), ([1.0] * 39, BOUNDS, "only 39 samples"), ([1.0] * 60, Bounds(4, 2, 0, 1), "no size is within these bounds")],
)
def test_of_too_little_nothing_is_chosen(used: list[float], bounds: Bounds, why: str) -> None:
    with pytest.raises(NodeError, match=why):
        choose_size(SIZE, used, [], bounds)


class Told(BaseHTTPRequestHandler):
    """Stands for a Prometheus that has watched the node for an hour; tests/monitoring has a real one with its exporter."""

    asked: list[str] = []  # noqa: RUF012 -- one server at a time
    used = "3.5"

    def do_GET(self) -> None:
        self.asked.append(urllib.parse.unquote_plus(self.path))
        values = [[number, self.used] for number in range(240)]
        body = json.dumps({"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}, "values": values}]}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        return


@pytest.fixture
def prometheus() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Told)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.libvirt
@pytest.mark.slow
def test_a_node_is_sized_by_what_its_host_sees_and_by_what_prometheus_knows(fleet: Fleet, prometheus: str) -> None:
    host = fleet.hosts["kvm1"]
    made: dict[str, Any] = {"state": "running", "image": "guest", "vcpus": 1, "max_vcpus": 4, "memory": "512MiB"}
    assert host.node("fit-1", **made)["changed"]
    # A guest that has booted, and says what it uses.
    eventually(lambda: "memory_used" in (host.module("virtual_node_info", name="fit-1")["nodes"] or [{}])[0], 90)
    told = fleet.run("node/resize", "-e", f"lepton_prometheus={prometheus}", "--check", node="fit-1", auto=True, max_vcpus=3)
    assert told.returncode == 0, told.stdout
    assert '{domain="fit-1"}' in Told.asked[-1]
    assert host.virsh("vcpucount", "fit-1", "--live", "--current") == "1"
    done = fleet.run("node/resize", "-e", f"lepton_prometheus={prometheus}", node="fit-1", auto=True, max_vcpus=3)
    assert done.returncode == 0, done.stdout
    assert host.virsh("vcpucount", "fit-1", "--live", "--current") == "3"
    # Of its memory nearly nothing is used, so most of it is given back, at once; libvirt's own record of that is up to a second late.
    eventually(lambda: 128 << 10 <= int(host.virsh("dominfo", "fit-1").partition("Used memory:")[2].split()[0]) < 320 << 10, 10)
    gone = fleet.run("node/resize", "-e", "lepton_prometheus=http://127.0.0.1:9", node="fit-1", auto=True)
    assert "Prometheus at http://127.0.0.1:9 does not tell what it uses" in gone.stdout
    usage = host.module("virtual_node_usage", name="fit-1", seconds=3)
    assert len(usage["vcpus_used"]) >= 4, usage
    assert all(0 <= value <= 4 for value in usage["vcpus_used"])
    host.node("fit-1", state="absent")
