# SPDX-License-Identifier: Apache-2.0
"""Services whose replicas are pods: the same operations, a real HAProxy that follows the real API server's EndpointSlices, and clients.

The pods are kwok's and run nothing. Each has its address served by a real HTTP server in the network namespace where HAProxy and the
clients are, from when kwok says that the pod is ready until it is gone. Not shown by that: kubelets, preStop hooks, a pod network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from ansible_collections.lepton.cloud.plugins.module_utils._balancer import is_up
from ansible_collections.lepton.cloud.plugins.module_utils._cluster import Cluster as Api
from ansible_collections.lepton.cloud.plugins.module_utils._follow import SETTINGS
from ansible_collections.lepton.cloud.plugins.module_utils._haproxy import Balancer as HAProxy
from tests.conftest import ROOT, eventually, require
from tests.kubernetes.conftest import Namespace
from tests.load import load

from lepton_ai.sandbox.balancer import stop_balancer

pytestmark = [pytest.mark.kubernetes, pytest.mark.haproxy, pytest.mark.slow]
PORT = 18000
END = "2s"  # that a pod serves on after it was told to end
DECLARED = {
    "backend": "deployment", "cluster": "gpu", "image": "models/chat:1", "port": 8080, "listen_port": PORT, "max_replicas": 5, "drain_seconds": 5,
    "memory": "1GiB", "deployment": {"merge": {"Deployment": {"spec": {"template": {"metadata": {"annotations": {"lepton.test/end": END}}}}}}},
}  # fmt: skip
START = "import sys; from pathlib import Path; from lepton_ai.sandbox.balancer import start_balancer; start_balancer(Path(sys.argv[1]))"


class Site:
    """A load balancer in a network namespace of its own, the pods' servers beside it, and the program that follows."""

    def __init__(self, folder: Path, namespace: Namespace) -> None:
        self.folder, self.namespace = folder, namespace
        self.net = namespace.name
        self.follower: subprocess.Popen[str] | None = None
        self.options = {
            "socket_address": str(folder / "haproxy/admin.sock"), "master_socket": str(folder / "haproxy/master.sock"),
            "config": str(folder / "haproxy/haproxy.cfg"), "services_dir": str(folder / "haproxy/services"), "state_file": str(folder / "haproxy/state"),
            "listen_address": "127.0.0.1",
        }  # fmt: skip
        self.haproxy = HAProxy(**self.options)
        self.cluster = {"kubeconfig": str(namespace.cluster.kubeconfig), "namespace": namespace.name}
        self.declare(DECLARED)

    def declare(self, declared: dict[str, Any]) -> None:
        here = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        self.inventory = self.folder / "hosts.yml"
        self.inventory.write_text(
            yaml.safe_dump(
                {
                    "clusters": {"hosts": {"gpu": {"lepton_cluster": self.cluster, **here}}},
                    "load_balancers": {"hosts": {"lb": {"lepton_balancer": self.options, **here}}},
                    "all": {"vars": {"lepton_services": {"chat": declared}}},
                }
            )
        )

    def inside(self, *command: str | Path) -> list[str]:
        return ["ip", "netns", "exec", self.net, *map(str, command)]

    def do(self, verb: str, *words: str, fails: bool = False, **arguments: Any) -> str:
        command = [ROOT / ".venv/bin/ansible-playbook", "-i", self.inventory, ROOT / f"playbooks/service/{verb}.yml"]
        extra = ["-e", json.dumps({"service": "chat", **arguments})]
        done = subprocess.run([*command, *extra, *words], capture_output=True, text=True, check=False, timeout=240, cwd=ROOT)
        assert (done.returncode != 0) is fails, done.stdout + done.stderr + self.log()
        return done.stdout + done.stderr

    def follow(self) -> None:
        """Start the program as its unit does."""
        settings = self.folder / "endpoints.json"
        settings.write_text(json.dumps({"balancer": self.options, "clusters": {"gpu": self.cluster}}))
        log = (self.folder / "endpoints.log").open("a")
        program = "ansible_collections.lepton.cloud.plugins.module_utils._follow"
        self.follower = subprocess.Popen([sys.executable, "-m", program, settings], stdout=log, stderr=log, text=True)

    def leave(self) -> None:
        assert self.follower is not None
        self.follower.kill()
        self.follower.wait(10)

    def log(self) -> str:
        return (self.folder / "endpoints.log").read_text()

    def serving(self) -> list[str]:
        """Return the servers that HAProxy's own tables show ready and up."""
        up = {row["name"] for row in self.haproxy.statistics().get("chat", []) if is_up(row)}
        return sorted(server.name for server in self.haproxy.servers().get("chat", {}).values() if server.state == "ready" and server.name in up)

    def pods(self) -> list[str]:
        """Return the pods that live and are not about to end."""
        return sorted(each["metadata"]["name"] for each in self.namespace.get("pods")["items"] if "deletionTimestamp" not in each["metadata"])

    def agree(self) -> bool:
        found = self.pods()
        return bool(found) and self.serving() == found

    def ask(self) -> str:
        done = subprocess.run(self.inside("curl", "-s", "--max-time", "10", f"http://127.0.0.1:{PORT}/"), capture_output=True, text=True, check=False)
        return done.stdout


def serve_pods(site: Site, lines: IO[str], ended: threading.Event) -> None:
    """Have the address of each pod served while it is there."""
    api = Api({**SETTINGS, **site.cluster})
    for _kind, event, pod in api.watch({"Pod": {}}, lambda: 0 if ended.is_set() else time.monotonic() + 0.2):
        if event == "GONE":
            continue
        address, name = (pod.get("status") or {}).get("podIP"), pod["metadata"]["name"]
        if address:
            lines.write(f"- {address}\n" if event == "DELETED" else f"+ {address} {name}\n")
            lines.flush()


@pytest.fixture
def site(namespace: Namespace) -> Iterator[Site]:
    require([] if os.geteuid() == 0 else ["the rights of root"], "kubernetes")
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    site = Site(folder, namespace)
    subprocess.run(["ip", "netns", "add", site.net], check=True)
    for words in (("ip", "link", "set", "lo", "up"), ("ip", "route", "add", "local", "10.0.0.0/8", "dev", "lo")):
        subprocess.run(site.inside(*words), check=True)
    pods = subprocess.Popen(site.inside(sys.executable, Path(__file__).parent / "pods.py"), stdin=subprocess.PIPE, text=True)
    ended = threading.Event()
    assert pods.stdin is not None

    def kubelet() -> None:
        while not ended.is_set():  # a watch without news ends
            serve_pods(site, pods.stdin, ended)  # type: ignore[arg-type]

    thread = threading.Thread(target=kubelet, daemon=True)
    thread.start()
    subprocess.run(site.inside(sys.executable, "-c", START, folder), check=True)
    site.follow()
    yield site
    site.leave()
    ended.set()
    thread.join(10)
    pods.kill()
    stop_balancer(folder)
    subprocess.run(["ip", "netns", "delete", site.net], check=True)
    shutil.rmtree(folder, ignore_errors=True)


def test_the_same_operations_with_clients_and_no_request_is_lost(site: Site) -> None:
    before = site.namespace.everything()
    planned = site.do("create", "--check")
    assert "deploy models/chat:1" in planned, planned
    assert site.namespace.everything() == before
    site.do("create", replicas=2)
    assert len(site.serving()) == 2
    assert site.agree()
    with load(f"http://127.0.0.1:{PORT}/", prefix=site.inside()) as counted:
        site.do("scale", replicas=4)
        assert len(site.serving()) == 4
        assert "changed=0" in site.do("scale", replicas=4)
        site.do("update", image="models/chat:2")
        assert site.namespace.image() == "models/chat:2"
        assert len(site.serving()) == 4
        assert site.agree()
        site.do("scale", replicas=1)
        assert len(site.serving()) == 1
        eventually(lambda: len(site.haproxy.servers()["chat"]) == 1)
    assert counted.requests > 100
    assert counted.dropped == 0, counted
    site.do("delete")
    assert site.namespace.find("deployment", "chat") is None
    assert site.haproxy.entries() == []
