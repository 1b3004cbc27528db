# SPDX-License-Identifier: Apache-2.0
"""Deployments by lepton.cloud and by kubernetes.core: `PYTHONPATH=. python tests/benchmarks/deployments.py --peer FOLDER [--json]`.

Measured side by side in one run on the tests' own control plane: how long `ansible-playbook` takes to deploy a model and its Service, to
scale it, to roll it back, and to find that nothing is to do, each until all of it is so; and how many requests that makes, as the API
server's audit log counts them. What Ansible needs to start is measured as well, and is in every time. FOLDER holds
`ansible_collections/kubernetes/core`, such as from `pip install --no-deps --target FOLDER ansible`. Prints times and ratios and asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from tests.kubernetes.cluster import Cluster, start_cluster, stop_cluster

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 3
NAME = "chat"


def manifests(namespace: str, image: str) -> list[dict[str, Any]]:
    """Return the Deployment and the Service that a person would write for what ours makes of its options."""
    labels = {"app": NAME}
    container = {
        "name": "model", "image": image, "ports": [{"name": "http", "containerPort": 8080}],
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
    }  # fmt: skip
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}}
    where = {"name": NAME, "namespace": namespace, "labels": labels}
    ports = [{"name": "http", "port": 8080, "targetPort": "http"}]
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": where, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": where, "spec": {"selector": labels, "ports": ports}},
    ]


def tasks_of(who: str, what: str, kubeconfig: str, namespace: str) -> list[dict[str, Any]]:
    """Return the tasks of one measurement. Theirs wait as ours do: what their rollback does not wait for is waited for by k8s_info."""
    if who == "nobody":
        return []
    image = "model:2" if what == "update" else "model:1"
    if who == "ours":
        given = {
            "deploy": {"image": image, "replicas": 2, "port": 8080, "health_path": "/ready", "cpus": 0.5, "memory": "1GiB", "drain_seconds": 0},
            "scale": {"replicas": 4}, "rollback": {"state": "rolled_back"},
        }  # fmt: skip
        options = given.get("deploy" if what in ("update", "again") else what, {})
        return [{"lepton.cloud.model_deployment": {"kubeconfig": kubeconfig, "namespace": namespace, "name": NAME, **options}}]
    where = {"kubeconfig": kubeconfig, "validate_certs": False}
    named = {**where, "api_version": "apps/v1", "kind": "Deployment", "name": NAME, "namespace": namespace}
    waited = {"wait": True, "wait_sleep": 1, "wait_timeout": 120}
    if what == "scale":
        return [{"kubernetes.core.k8s_scale": {**named, "replicas": 4, **waited}}]
    if what == "rollback":
        waiting = {**named, **waited, "wait_condition": {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}}
        return [{"kubernetes.core.k8s_rollback": named}, {"kubernetes.core.k8s_info": waiting}]
    apply = {"apply": True, "server_side_apply": {"field_manager": "theirs"}}
    return [{"kubernetes.core.k8s": {**where, **apply, **waited, "definition": each}} for each in manifests(namespace, image)]


def run(folder: Path, peer: Path, tasks: list[dict[str, Any]]) -> float:
    """Return how many seconds a playbook of these tasks takes."""
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": {"ansible_python_interpreter": sys.executable}, "tasks": tasks}
    (folder / "play.yml").write_text(yaml.safe_dump([play]))
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": f"{ROOT / 'collections'}:{peer}", "ANSIBLE_LOCALHOST_WARNING": "False"}
    begun = time.perf_counter()
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", folder / "play.yml"], env=environment, capture_output=True, text=True, check=False, cwd=folder
    )
    took = time.perf_counter() - begun
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return took


def measure(cluster: Cluster, folder: Path, peer: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Return for each measurement and side the median (seconds, requests)."""
    found: dict[str, dict[str, list[tuple[float, int]]]] = {}
    for repeat in range(REPEATS):
        for who in ("ours", "theirs"):
            namespace = f"bench-{who}-{repeat}"
            cluster.kubectl("create", "namespace", namespace)
            config = str(cluster.kubeconfig_for(who))
            for what in ("deploy", "again", "update", "rollback", "scale"):  # theirs could not be applied again after their own scaling
                before = cluster.requests(who)
                took = run(folder, peer, tasks_of(who, what, config, namespace))
                if what != "update":
                    found.setdefault(what, {}).setdefault(who, []).append((took, cluster.requests(who) - before))
            image = cluster.get("--namespace", namespace, "deployment", NAME)["spec"]["template"]["spec"]["containers"][0]["image"]
            assert image == "model:1", image
        found.setdefault("nothing", {}).setdefault("nobody", []).append((run(folder, peer, tasks_of("nobody", "", "", "")), 0))
    return {
        what: {who: (statistics.median(took for took, _ in each), statistics.median(calls for _, calls in each)) for who, each in sides.items()}
        for what, sides in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="folder that holds ansible_collections/kubernetes/core")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    cluster = start_cluster(folder)
    try:
        found = measure(cluster, folder, options.peer.resolve())
    finally:
        stop_cluster(cluster)
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"ansible-playbook with no task: {found['nothing']['nobody'][0]:.2f} s")
    for what in ("deploy", "again", "scale", "rollback"):
        (ours, our_calls), (theirs, their_calls) = found[what]["ours"], found[what]["theirs"]
        print(f"{what:9} ours {ours:6.2f} s {our_calls:4.0f} requests   kubernetes.core {theirs:6.2f} s {their_calls:4.0f} requests", end="   ")
        print(f"{ours / theirs:.2f} of the time, {our_calls / their_calls:.2f} of the requests")


if __name__ == "__main__":
    main()
