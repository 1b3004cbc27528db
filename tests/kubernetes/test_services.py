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
from tests.warm import ansible

from lepton_ai.sandbox.balancer import stop_balancer

pytestmark = [pytest.mark.kubernetes, pytest.mark.haproxy, pytest.mark.slow]
PORT = 18000
END = "2s"  # that a pod serves on after it was told to end
DECLARED = {
    "backend": "deployment", "cluster": "gpu", "image": "models/chat:1", "port": 8080, "listen_port": PORT, "max_replicas": 5, "drain_seconds": 5,
    "memory": "1GiB",
    "deployment": {"stuck_seconds": 2, "merge": {"Deployment": {"spec": {"template": {"metadata": {"annotations": {"lepton.test/end": END}}}}}}},
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
        # The program asks as somebody who has exactly the rights of its role.
        rules = yaml.safe_load((ROOT / "collections/ansible_collections/lepton/cloud/rbac/endpoints-role.yml").read_text())["rules"]
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "endpoints"}, "rules": rules}
        namespace.kubectl("create", "-f", "-", given=role)
        namespace.kubectl("create", "serviceaccount", "endpoints")
        namespace.kubectl("create", "rolebinding", "endpoints", "--role=endpoints", f"--serviceaccount={namespace.name}:endpoints")
        token = namespace.kubectl("create", "token", "endpoints").strip()
        self.limited = str(namespace.cluster.kubeconfig_for(token, namespace=namespace.name))

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
        command = ["-i", self.inventory, ROOT / f"playbooks/service/{verb}.yml", "-e", json.dumps({"service": "chat", **arguments}), *words]
        done = ansible("ansible-playbook", command, cwd=ROOT, env=dict(os.environ), timeout=240)
        assert (done.returncode != 0) is fails, done.stdout + done.stderr + self.log()
        return done.stdout + done.stderr

    def follow(self) -> None:
        """Start the program as its unit does."""
        settings = self.folder / "endpoints.json"
        settings.write_text(json.dumps({"balancer": self.options, "clusters": {"gpu": {"kubeconfig": self.limited}}}))
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
    if not namespace.cluster.programs:
        pytest.skip("NOT TESTED (kubernetes): only pods of simulated nodes can have their addresses served here")
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


def test_what_moves_by_itself_is_followed_and_what_breaks_loses_nothing(site: Site) -> None:
    site.do("create", replicas=3)
    cluster = site.namespace.cluster
    with load(f"http://127.0.0.1:{PORT}/", prefix=site.inside()) as counted:
        # A node is drained, say: Kubernetes ends a pod and makes another one.
        gone = site.pods()[0]
        site.namespace.kubectl("delete", "pod", gone, "--wait=false")
        eventually(lambda: gone not in site.serving() and site.agree())
        # Nobody follows for a while, and what was missed is made up for.
        site.leave()
        gone = site.pods()[0]
        site.namespace.kubectl("delete", "pod", gone, "--wait=false")
        eventually(lambda: gone not in site.pods() and len(site.pods()) == 3)
        assert gone in site.serving()
        site.follow()
        eventually(site.agree)
        # While the API server is away everything stays as it is, and a reload of HAProxy changes nothing.
        cluster.stop("kube-apiserver")
        try:
            eventually(lambda: "cannot be reached" in site.log())
            site.haproxy.reload()
            eventually(lambda: len(site.serving()) == 3)
        finally:
            cluster.start("kube-apiserver")
            cluster.wait_ready()
        eventually(lambda: "it is well again" in site.log())
        site.namespace.kubectl("scale", "deployment", "chat", "--replicas=4")  # somebody else
        eventually(lambda: len(site.pods()) == 4 and site.agree())
        assert "spec.replicas belongs to kubectl" in site.do("reconcile", fails=True)  # what is wanted is 3, and they are not overruled
        site.namespace.kubectl("scale", "deployment", "chat", "--replicas=3")
        eventually(lambda: len(site.pods()) == 3 and site.agree())
        assert "changed=0" in site.do("reconcile")
        site.do("balance")
        site.do("update", again=True)
        eventually(site.agree)
    assert counted.requests > 100
    assert counted.dropped == 0, (counted, site.log())


def test_what_fails_is_taken_back(site: Site) -> None:
    told = site.do("create", image="no.invalid/chat:1", fails=True)
    assert "ImagePullBackOff" in told
    assert "all of it was taken back" in told
    assert site.namespace.find("deployment", "chat") is None
    assert site.haproxy.entries() == []
    site.do("create")
    (pod,) = site.serving()
    told = site.do("update", image="no.invalid/chat:2", fails=True)
    assert "ImagePullBackOff" in told
    assert site.namespace.image() == "models/chat:1"
    assert site.serving() == [pod]
    assert site.haproxy.entries()[0].service.image == "models/chat:1"
    assert "may have 1 to 5 replicas, not 9" in site.do("scale", replicas=9, fails=True)
    assert site.serving() == [pod]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cluster": None}, "cluster is missing"),
        ({"cluster": "elsewhere"}, "has no host 'elsewhere'"),
        ({"secrets": ["key"]}, "say them as options of a deployment"),
        ({"deployment": {"autoscale": {}}}, "autoscale is a field of the service itself, or has none"),
        ({"deployment": {"colour": "red"}}, "colour is no option of a deployment"),
        ({"deployment": ["a"]}, "expected a mapping of options"),
        ({"gpus": "all"}, "gpus: expected a number for pods"),
        ({"backend": "container"}, "cluster and deployment are for backend deployment"),
    ],
)
def test_bad_declarations_change_nothing(site: Site, wrong: dict[str, Any], said: str) -> None:
    site.declare({**DECLARED, **wrong})
    before = site.namespace.everything()
    assert said in site.do("create", fails=True)
    assert site.namespace.everything() == before
    assert site.haproxy.entries() == []
