# SPDX-License-Identifier: Apache-2.0
"""What lepton.cloud and kubernetes.core do in the same cases: `PYTHONPATH=. python tests/benchmarks/deployment_cases.py --peer FOLDER`.

The cases are those of kubernetes.core's own integration tests of k8s_scale, k8s_rollback and waiting, as behaviours, and those in which it
is known to be wrong. Each runs on both sides against the tests' own control plane; what is printed is a table of what was seen. FOLDER as
in deployments.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, ansible_module
from tests.kubernetes.cluster import Cluster, start_cluster, stop_cluster

NAME = "chat"
WAIT = {"wait": True, "wait_sleep": 1, "wait_timeout": 15}


@dataclass
class Side:
    """One of the two, in a namespace of its own."""

    cluster: Cluster
    namespace: str
    ours: bool

    def do(self, what: str, *, check: bool = False, **options: Any) -> dict[str, Any]:
        """Deploy, scale or roll back, by the modules of this side. `start` is how long the pods of a `:slow` image take."""
        where: dict[str, Any] = {"kubeconfig": str(self.cluster.kubeconfig)}
        if self.ours:
            module = "model_deployment"
            if start := options.pop("start", None):
                options["merge"] = {"Deployment": {"spec": {"template": {"metadata": {"annotations": {"lepton.test/start": start}}}}}}
            options |= {"initial_replicas": 2} if what == "deploy" else {}
            given = {"namespace": self.namespace, "name": NAME, **({"state": "rolled_back"} if what == "rollback" else {}), **options}
        else:
            named = {"namespace": self.namespace, "name": NAME, "kind": "Deployment", "api_version": "apps/v1"}
            module = f"kubernetes.core.{'k8s' if what == 'deploy' else 'k8s_' + what}"
            if what == "deploy":
                given = {"state": options.pop("state", "present"), **({"definition": self._manifest(**options)} if options else named), **WAIT}
            else:
                given = {**named, **options, **(WAIT if what == "scale" else {})}
        return ansible_module(module, {**where, **given}, check=check, python=sys.executable)

    def _manifest(self, image: str, replicas: int = 2, paused: bool = False, start: str = "2s") -> dict[str, Any]:
        labels = {"app.kubernetes.io/name": NAME}
        pod = {"metadata": {"labels": labels, "annotations": {"lepton.test/start": start}}, "spec": {"containers": [{"name": "model", "image": image}]}}
        spec = {"replicas": replicas, "paused": paused, "selector": {"matchLabels": labels}, "template": pod}
        return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME, "namespace": self.namespace}, "spec": spec}

    def pause(self, image: str) -> dict[str, Any]:
        """Deploy another image while rollouts are paused."""
        paused = {"merge": {"Deployment": {"spec": {"paused": True}}}, "wait_seconds": 15} if self.ours else {"paused": True}
        return self.do("deploy", image=image, **paused)

    def kubectl(self, *words: str, given: Any = None) -> str:
        return self.cluster.kubectl("--namespace", self.namespace, *words, given=given)

    def live(self) -> dict[str, Any]:
        return self.cluster.get("--namespace", self.namespace, "deployment", NAME)

    def stands(self) -> str:
        """Return the image and the pods of its that are ready."""
        live = self.live()
        return f"{live['spec']['template']['spec']['containers'][0]['image']}, {live['status'].get('readyReplicas', 0)} of {live['spec']['replicas']} ready"


def said(answer: dict[str, Any]) -> str:
    """Return in a few words what a module answered."""
    if answer["failed"]:
        return f"fails: {' '.join(str(answer.get('msg')).split())[:110]}"
    warned = " with a warning" if any("history" in str(each) for each in [answer.get("warnings"), *answer.get("rollback_info", ())]) else ""
    return ("changed" if answer["changed"] else "ok") + warned


def two_versions(side: Side) -> None:
    side.do("deploy", image="model:1")
    side.do("deploy", image="model:2")


def grow(side: Side) -> str:
    side.do("deploy", image="model:1")
    return f"{said(side.do('scale', replicas=4))}; {side.stands()}"


def same(side: Side) -> str:
    side.do("deploy", image="model:1")
    return said(side.do("scale", replicas=2))


def plan(side: Side) -> str:
    side.do("deploy", image="model:1")
    return f"{said(side.do('scale', replicas=4, check=True))}; {side.stands()}"


def to_none(side: Side) -> str:
    side.do("deploy", image="model:1")
    return f"{said(side.do('scale', replicas=0))}; {side.stands()}"


def nothing_there(side: Side) -> str:
    return said(side.do("scale", replicas=2))


def equal_but_not_ready(side: Side) -> str:
    """The count is as wanted, and its pods are still starting."""
    side.do("deploy", image="model:slow", replicas=1, start="9s")
    side.kubectl("scale", f"deployment/{NAME}", "--replicas=3")
    return f"{said(side.do('scale', replicas=3))}; {side.stands()}"


def quota(side: Side) -> str:
    side.kubectl("create", "quota", "small", "--hard=pods=2")
    side.do("deploy", image="model:1")
    begun = time.monotonic()
    answer = said(side.do("scale", replicas=3))
    return f"after {time.monotonic() - begun:.0f} s {answer}"


def back(side: Side) -> str:
    two_versions(side)
    side.kubectl("annotate", f"deployment/{NAME}", "team=chat")
    answer = said(side.do("rollback"))
    return f"{answer}; {side.stands()}; annotation {'kept' if 'team' in side.live()['metadata']['annotations'] else 'lost'}"


def back_planned(side: Side) -> str:
    two_versions(side)
    return f"{said(side.do('rollback', check=True))}; {side.stands()}"


def back_to_the_first(side: Side) -> str:
    two_versions(side)
    side.do("deploy", image="model:3")
    return f"{said(side.do('rollback', revision=1))}; {side.stands()}"


def no_history(side: Side) -> str:
    side.do("deploy", image="model:1")
    return said(side.do("rollback"))


def stranger(side: Side) -> str:
    """The revision before was pruned, and a ReplicaSet of another owner bears the same labels and its number."""
    two_versions(side)
    side.do("deploy", image="model:3")
    found = side.cluster.get("--namespace", side.namespace, "replicasets")["items"]
    before = next(each for each in found if each["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2")
    side.kubectl("delete", "replicaset", before["metadata"]["name"])
    side.kubectl("create", "configmap", "owner")
    uid = side.cluster.get("--namespace", side.namespace, "configmap", "owner")["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid, "controller": True}
    pod = {**before["spec"]["template"]["spec"], "containers": [{"name": "model", "image": "stranger:1"}]}
    spec = {**before["spec"], "template": {**before["spec"]["template"], "spec": pod}}
    metadata = {"name": "stranger", "labels": before["metadata"]["labels"], "annotations": before["metadata"]["annotations"], "ownerReferences": [owner]}
    side.kubectl("create", "-f", "-", given={"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata, "spec": spec})
    return f"{said(side.do('rollback'))}; {side.stands()}"


def never_starts(side: Side) -> str:
    side.do("deploy", image="model:1")
    begun = time.monotonic()
    answer = said(side.do("deploy", image="no.invalid/model:2"))
    return f"after {time.monotonic() - begun:.0f} s {answer}"


def paused(side: Side) -> str:
    side.do("deploy", image="model:1")
    answer = said(side.pause("model:2"))
    pods = side.cluster.get("--namespace", side.namespace, "pods")["items"]
    return f"{answer}; pods run {', '.join(sorted({pod['spec']['containers'][0]['image'] for pod in pods}))}"


def gone(side: Side) -> str:
    side.do("deploy", image="model:1")
    answer = said(side.do("deploy", state="absent"))
    return f"{answer}; {len(side.cluster.get('--namespace', side.namespace, 'pods')['items'])} pods left"


CASES: dict[str, Callable[[Side], str]] = {
    "scale up, and wait": grow,
    "scale to what there is": same,
    "plan a scaling (check mode)": plan,
    "scale to none": to_none,
    "scale what is not there": nothing_there,
    "scale to what is there while its pods start": equal_but_not_ready,
    "scale beyond a quota": quota,
    "roll back to the one before": back,
    "plan a rollback (check mode)": back_planned,
    "roll back to revision 1 of 3": back_to_the_first,
    "roll back without history": no_history,
    "roll back beside a stranger's ReplicaSet": stranger,
    "wait for an image that cannot be had": never_starts,
    "wait while the deployment is paused": paused,
    "delete, and wait": gone,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="folder that holds ansible_collections/kubernetes/core")
    options = parser.parse_args()
    os.environ["ANSIBLE_COLLECTIONS_PATH"] = f"{ROOT / 'collections'}:{options.peer.resolve()}"
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    cluster = start_cluster(folder)
    print("| case | kubernetes.core | lepton.cloud |\n| --- | --- | --- |")
    try:
        for number, (title, case) in enumerate(CASES.items()):
            seen = []
            for ours in (False, True):
                side = Side(cluster, f"case-{number}-{'ours' if ours else 'theirs'}", ours)
                cluster.kubectl("create", "namespace", side.namespace)
                seen.append(case(side))
            print(f"| {title} | {' | '.join(seen)} |", flush=True)
    finally:
        stop_cluster(cluster)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
