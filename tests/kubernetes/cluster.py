# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes control plane of the test run's own: built once from Go modules, started below one folder, with kwok for kubelets."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from urllib3 import PoolManager, disable_warnings
from urllib3.exceptions import HTTPError, InsecureRequestWarning

HERE = Path(__file__).resolve().parent
PROGRAMS = ("go", "etcd", "kubectl")
OLDEST_GO = (1, 24)  # what Kubernetes 1.34 asks for
START_SECONDS = 90
STAGES = ("node/fast/node-initialize.yaml", "node/heartbeat/node-heartbeat.yaml")
# Debian's etcd 3.4 lacks what lists by watching need, and clients that try fall back only after many seconds.
CLIENTS = {"KUBE_FEATURE_WatchListClient": "false"}
LOG = ("loading the model", "\x1b[31mlistening on 8080")  # what every simulated pod has written
COUNTED = "lepton.test:counted"
USERS = {"admin": "", "ours": f",{COUNTED}", "theirs": f",{COUNTED}"}  # with their tokens; what the last two ask for is counted
GIVEN = "LEPTON_TEST_KUBECONFIG"


@cache
def cluster_missing() -> list[str]:
    """Return what this machine lacks to build and run a control plane, [] when nothing or where a cluster is given."""
    if GIVEN in os.environ:
        return [] if shutil.which("kubectl") else ["kubectl"]
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if "go" not in missing:
        version = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=True, cwd="/").stdout
        found = re.match(r"go(\d+)\.(\d+)", version)
        if found is None or tuple(map(int, found.groups())) < OLDEST_GO:
            missing.append(f"go {'.'.join(map(str, OLDEST_GO))} or later (there is {version.strip()})")
    return missing


def build(say: Callable[[str], None] = print) -> Path:
    """Return the folder with `controlplane` and `kwok`, built when this version of their sources was not built before."""
    sources = [path for name in ("controlplane", "kwok") for path in sorted((HERE / name).iterdir()) if path.suffix in (".go", ".mod", ".sum")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    version = _version("controlplane", "k8s.io/kubernetes")
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lepton" / "kubernetes" / f"{version}-{digest}"
    if (kept / "kwok").exists():
        return kept
    major, minor = version.removeprefix("v").split(".")[:2]
    told = "k8s.io/component-base/version"
    flags = f"-s -w -X {told}.gitVersion={version} -X {told}.gitMajor={major} -X {told}.gitMinor={minor}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f"{kept.name}.part{os.getpid()}")
    part.mkdir()
    for name, package, ldflags in (("controlplane", ".", flags), ("kwok", "sigs.k8s.io/kwok/cmd/kwok", "-s -w")):
        say(f"building {name} for Kubernetes {version} once, which takes minutes: {part / name}")
        begun = time.monotonic()
        done = subprocess.run(
            ["go", "build", "-trimpath", "-ldflags", ldflags, "-o", part / name, package], cwd=HERE / name, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{name} could not be built:\n{done.stderr[-4000:]}")
        say(f"built {name} in {time.monotonic() - begun:.0f} s")
    listed = ["go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"]
    folder = subprocess.run(listed, cwd=HERE / "kwok", capture_output=True, text=True, check=True).stdout.strip()
    for stage in STAGES:
        (part / Path(stage).name).write_text((Path(folder) / "kustomize/stage" / stage).read_text())
    with suppress(OSError):  # another run was first
        part.rename(kept)
    shutil.rmtree(part, ignore_errors=True)
    return kept


def _version(module: str, package: str) -> str:
    found = re.search(rf"^\s*(?:require )?{re.escape(package)} (v\S+)", (HERE / module / "go.mod").read_text(), re.MULTILINE)
    assert found
    return found[1]


@dataclass
class Cluster:
    """A cluster with `kubeconfig` for its administrator; `programs` are those started here, none where the cluster was given."""

    folder: Path
    kubeconfig: Path
    programs: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    commands: dict[str, Sequence[str]] = field(default_factory=dict)

    def kubectl(self, *words: str, given: Any = None) -> str:
        """Return what kubectl prints; `given` is a manifest for its standard input."""
        text = None if given is None else json.dumps(given)
        done = subprocess.run(["kubectl", "--kubeconfig", self.kubeconfig, *words], input=text, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *words: str) -> dict[str, Any]:
        """Return an object, or a list of them, as the API has it."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *words, "-o", "json"))
        return found

    def find(self, *words: str) -> dict[str, Any] | None:
        """Return an object, or None when there is none."""
        text = self.kubectl("get", *words, "-o", "json", "--ignore-not-found")
        found: dict[str, Any] | None = json.loads(text) if text else None
        return found

    def start(self, name: str) -> None:
        """Start one of the programs with its log in the folder."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.programs[name] = subprocess.Popen(
                self.commands[name], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
                env={**os.environ, **CLIENTS},
            )  # fmt: skip

    def stop(self, name: str) -> None:
        """End one of the programs at once, as a crash would."""
        program = self.programs.pop(name)
        program.kill()
        program.wait(10)

    def kubeconfig_for(self, token: str, *, context: str = "test", namespace: str = "default") -> Path:
        """Write a kubeconfig that holds a token, and return its path."""
        server = yaml.safe_load(self.kubeconfig.read_text())["clusters"][0]["cluster"]
        path = self.folder / f"kubeconfig-{secrets.token_hex(4)}"
        path.write_text(yaml.safe_dump(_kubeconfig(server, token, context, namespace)))
        path.chmod(0o600)
        return path

    def requests(self, user: str) -> int:
        """Return how many requests a user whose requests are counted has made, from the API server's audit log."""
        lines = (self.folder / "audit.log").read_text().splitlines()
        return sum(json.loads(line)["user"]["username"] == user for line in lines)

    def wait_ready(self) -> None:
        """Wait until the API server says that it is ready."""
        server = yaml.safe_load(self.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        disable_warnings(InsecureRequestWarning)
        deadline, http = time.monotonic() + START_SECONDS, PoolManager(cert_reqs="CERT_NONE", retries=False, timeout=2)
        while True:
            with suppress(HTTPError):
                if http.request("GET", server + "/readyz", headers={"Authorization": "Bearer admin"}).status == 200:
                    return
            ended = [name for name, program in self.programs.items() if program.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "\n".join((self.folder / f"{name}.log").read_text()[-1500:] for name in ended or self.programs)
                raise RuntimeError(f"the control plane did not start: {', '.join(ended)}\n{logs}")
            time.sleep(0.1)


def _kubeconfig(server: dict[str, Any], token: str, context: str = "test", namespace: str = "default") -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": context,
        "clusters": [{"name": "test", "cluster": server}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": context, "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
    }  # fmt: skip


def start_cluster(folder: Path, *, nodes: int = 3) -> Cluster:
    """Start etcd, the API server with RBAC, the controllers, the scheduler and kwok, and return when the nodes are there."""
    if GIVEN in os.environ:
        return Cluster(folder, Path(os.environ[GIVEN]))
    programs = build()
    ports = dict(zip(("etcd", "peer", "api", "controllers", "scheduler", "kubelet"), _free_ports(6), strict=True))
    admin = folder / "kubeconfig"
    admin.write_text(yaml.safe_dump(_kubeconfig({"server": f"https://127.0.0.1:{ports['api']}", "insecure-skip-tls-verify": True}, "admin")))
    subprocess.run(["openssl", "genrsa", "-out", folder / "sa.key", "2048"], check=True, capture_output=True)
    made = ["-newkey", "rsa:2048", "-nodes", "-keyout", folder / "kubelet.key", "-out", folder / "kubelet.crt", "-subj", "/CN=kwok"]
    subprocess.run(["openssl", "req", "-x509", *made], check=True, capture_output=True)
    (folder / "pod.log").write_text("".join(f"2026-11-27T00:00:0{second}.000000000Z stdout F {line}\n" for second, line in enumerate(LOG)))
    logs = {
        "kind": "ClusterLogs",
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "metadata": {"name": "logs"},
        "spec": {"logs": [{"logsFile": str(folder / "pod.log")}]},
    }
    (folder / "logs.yaml").write_text(yaml.safe_dump(logs))
    (folder / "tokens.csv").write_text("".join(f'{user},{user},{user},"system:masters{group}"\n' for user, group in USERS.items()))
    rules = [{"level": "Metadata", "userGroups": [COUNTED]}, {"level": "None"}]
    policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived", "ResponseStarted"], "rules": rules}
    (folder / "audit.yaml").write_text(yaml.safe_dump(policy))
    etcd, peer = f"http://127.0.0.1:{ports['etcd']}", f"http://127.0.0.1:{ports['peer']}"
    cluster = Cluster(folder, admin)
    key = folder / "sa.key"
    plane, where = programs / "controlplane", {"kubeconfig": admin, "leader_elect": "false"}
    cluster.commands = {
        "etcd": _command(
            "etcd", data_dir=folder / "etcd", listen_client_urls=etcd, advertise_client_urls=etcd, listen_peer_urls=peer,
            initial_advertise_peer_urls=peer, initial_cluster=f"default={peer}", unsafe_no_fsync="true",
        ),
        "kube-apiserver": _command(
            plane, "kube-apiserver", etcd_servers=etcd, secure_port=ports["api"], bind_address="127.0.0.1", cert_dir=folder / "api",
            authorization_mode="RBAC", token_auth_file=folder / "tokens.csv", service_account_key_file=key, service_account_signing_key_file=key,
            service_account_issuer="https://lepton.test", service_cluster_ip_range="10.96.0.0/16", feature_gates="WatchList=false",
            audit_policy_file=folder / "audit.yaml", audit_log_path=folder / "audit.log",
        ),
        "kube-controller-manager": _command(
            plane, "kube-controller-manager", **where, service_account_private_key_file=key, use_service_account_credentials="true",
            secure_port=ports["controllers"], cert_dir=folder / "controllers",
        ),
        "kube-scheduler": _command(plane, "kube-scheduler", **where, secure_port=ports["scheduler"], cert_dir=folder / "scheduler"),
        "kwok": [
            *_command(
                programs / "kwok", kubeconfig=admin, manage_all_nodes="true", node_ip="127.0.0.1", node_port=ports["kubelet"],
                server_address=f"127.0.0.1:{ports['kubelet']}", tls_cert_file=folder / "kubelet.crt", tls_private_key_file=folder / "kubelet.key",
            ),
            *(f"--config={path}" for path in (HERE / "stages.yaml", folder / "logs.yaml", *(programs / Path(stage).name for stage in STAGES))),
        ],
    }  # fmt: skip
    try:
        cluster.start("etcd")
        cluster.start("kube-apiserver")
        cluster.wait_ready()
        for name in ("kube-controller-manager", "kube-scheduler", "kwok"):
            cluster.start(name)
        for number in range(1, nodes + 1):
            cluster.kubectl("create", "-f", "-", given=_node(f"n{number}"))
        deadline = time.monotonic() + START_SECONDS
        while not (_ready_nodes(cluster) == nodes and cluster.find("serviceaccount", "default")):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the nodes did not become ready: {(folder / 'kwok.log').read_text()[-1500:]}")
            time.sleep(0.2)
    except BaseException:
        stop_cluster(cluster)
        raise
    return cluster


def stop_cluster(cluster: Cluster) -> None:
    """End what was started here."""
    for name in reversed(list(cluster.programs)):
        cluster.stop(name)


def _ready_nodes(cluster: Cluster) -> int:
    conditions = [node.get("status", {}).get("conditions", []) for node in cluster.get("nodes")["items"]]
    return sum(any(item["type"] == "Ready" and item["status"] == "True" for item in found) for found in conditions)


def _command(*words: str | Path, **options: object) -> list[str]:
    return [*map(str, words), *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]


def _node(name: str) -> dict[str, Any]:
    """Return a node for kwok: eight CPUs, 32 GiB, two GPUs."""
    size = {"cpu": "8", "memory": "32Gi", "pods": "500", "nvidia.com/gpu": "2", "ephemeral-storage": "100Gi"}
    return {
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": f"zone-{name}"}},
        "status": {"allocatable": size, "capacity": size},
    }  # fmt: skip


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


if __name__ == "__main__":
    lacking = cluster_missing()
    print(f"NOT BUILT: missing {', '.join(lacking)}" if lacking else f"built: {build()}")
