# SPDX-License-Identifier: Apache-2.0
"""A service whose replicas are virtual nodes: real guests behind a real HAProxy, asked themselves what they got."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.conftest import eventually
from tests.end_to_end.test_people import virsh
from tests.end_to_end.test_services import Site
from tests.load import load

from lepton_ai.sandbox.stand import Stand, free_port

pytestmark = [pytest.mark.haproxy, pytest.mark.docker, pytest.mark.libvirt, pytest.mark.slow]
STATUS = "/cgi-bin/status"


class Edge(Site):
    """The stand with a service `edge` of nodes, declared as an inventory would."""

    def __init__(self, stand: Stand) -> None:
        super().__init__(stand)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}{STATUS}"
        self.declared: dict[str, Any] = {
            "backend": "node", "image": "guest", "port": 80, "listen_port": self.port, "health_path": STATUS, "cpus": 1, "memory": "96MiB",
            "max_replicas": 3, "start_seconds": 90, "drain_seconds": 20, "watch_seconds": 1,
        }  # fmt: skip

    def ask(self, verb: str, *words: str, **arguments: Any) -> tuple[int, str]:
        """Run a playbook after whatever else holds the service's lock; return its code and what it printed."""

        def done() -> tuple[int, str] | None:
            answered = self.playbook(verb, *words, service="edge", lepton_services={"edge": self.declared}, **arguments)
            return None if "service/edge is locked by" in answered.stdout else (answered.returncode, answered.stdout)

        found: tuple[int, str] = eventually(done, 120)
        return found

    def nodes(self) -> dict[str, str]:
        """Return libvirt's own list: state by name."""
        lines = virsh(self.stand, "list", "--all").splitlines()
        found = [line.split(None, 2) for line in lines if line.strip()]
        return {words[1]: words[2] for words in found if words[1].startswith("edge-")}

    def table(self) -> dict[str, str]:
        return {row["svname"]: row["status"] for row in self.rows("edge")}

    def guest(self) -> dict[str, Any]:
        seen: dict[str, Any] = httpx.get(self.url, timeout=20).json()
        return seen


def test_nodes_come_go_die_and_grow_behind_one_address(workspace_stand: Stand) -> None:
    edge = Edge(workspace_stand)
    code, said = edge.ask("create", "--check")
    assert code == 0, said
    assert (edge.nodes(), edge.table()) == ({}, {})
    code, said = edge.ask("create")
    assert code == 0, said
    assert (edge.nodes(), edge.table()) == ({"edge-1": "running"}, {"edge-1": "UP"})
    assert edge.guest()["cpus"] == 1
    with load(edge.url, connections=2) as counted:
        code, said = edge.ask("scale", replicas=2)
        assert code == 0, said
        assert (edge.nodes(), edge.table()) == (dict.fromkeys(("edge-1", "edge-2"), "running"), dict.fromkeys(("edge-1", "edge-2"), "UP"))
        assert edge.ask("scale", replicas=2)[1].count("changed=0") >= 2
        code, said = edge.ask("scale", replicas=1)
        assert code == 0, said
        assert (len(edge.nodes()), len(edge.table())) == (1, 1)
    assert counted.requests > 100, counted
    assert counted.dropped == 0, counted

    edge.declared["cpus"] = 2
    code, said = edge.ask("update")
    assert code == 0, said
    assert eventually(lambda: edge.guest()["cpus"] == 2)

    (name,) = edge.nodes()
    virsh(workspace_stand, "destroy", name)  # as a crash of its process would
    eventually(lambda: name not in edge.table() and list(edge.table().values()) == ["UP"] and list(edge.nodes().values()) == ["running"], 150)
    assert edge.guest()["cpus"] == 2

    before = edge.nodes(), edge.table()
    edge.declared["image"] = "no-such-image"
    code, said = edge.ask("update")
    assert code != 0
    assert "all of it was taken back" in said, said
    assert (edge.nodes(), edge.table()) == before

    code, said = edge.ask("delete")
    assert code == 0, said
    assert (edge.nodes(), edge.table()) == ({}, {})
