# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What every module shares that talks to a Kubernetes cluster: its options, its connection, and what a deployment looks like in a result. PRIVATE."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterable, Iterator, Mapping

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from . import _cluster
from ._command import clean
from ._deployment import autoscaled, is_ours
from ._manifest import DeploymentError
from ._module import end_with_controller
from ._rollout_status import revision_of, rollout_status

CLUSTER_OPTIONS: dict[str, dict[str, Any]] = {
    "kubeconfig": {"type": "path"},
    "context": {"type": "str"},
    "namespace": {"type": "str"},
    "api_server": {"type": "str"},
    "token": {"type": "str", "no_log": True},
    "ca_cert": {"type": "path"},
    "validate_certs": {"type": "bool", "default": True},
    "request_seconds": {"type": "int", "default": 30},
}
EXCLUSIVE = [("kubeconfig", "api_server"), ("context", "api_server")]


@contextmanager
def cluster_of(module: AnsibleModule) -> Iterator[_cluster.Cluster]:
    """Yield the cluster; whatever goes wrong ends the module with a sentence, never with a traceback."""
    end_with_controller()
    if _cluster.config is None:
        module.fail_json(msg=missing_required_lib("kubernetes"))
    cluster = None
    try:
        cluster = _cluster.Cluster(module.params)
        yield cluster
    except DeploymentError as error:
        module.fail_json(msg=str(error), **({} if cluster is None else {"calls": cluster.calls}))
    except OSError as error:
        module.fail_json(msg="%s: %s" % (module.params["kubeconfig"] or "the cluster", error))
    finally:
        if cluster is not None:
            cluster.close()


def deployment_result(live: Mapping[str, Any], replica_sets: Iterable[Mapping[str, Any]] = (), pods: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return a deployment as every module reports it."""
    status = rollout_status(live, replica_sets, pods)
    container = live["spec"]["template"]["spec"]["containers"][0]
    resources = container.get("resources") or {}
    shown: dict[str, Any] = {
        "name": live["metadata"]["name"],
        "namespace": live["metadata"]["namespace"],
        "image": clean(container["image"]),
        "replicas": live["spec"].get("replicas", 1),
        "ready": (live.get("status") or {}).get("readyReplicas") or 0,
        "state": "available" if status.done else "failed" if status.failed else "rolling out",
        "revision": revision_of(live),
        "resources": {**(resources.get("requests") or {}), **(resources.get("limits") or {})},
        "autoscaled": autoscaled(live),
        "owned": is_ours(live),
    }
    return dict(shown, why=status.why) if status.why else shown


def revision_result(replica_set: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a deployment can be rolled back to."""
    return {
        "revision": revision_of(replica_set),
        "image": clean(replica_set["spec"]["template"]["spec"]["containers"][0]["image"]),
        "pods": (replica_set.get("status") or {}).get("replicas") or 0,
        "created": replica_set["metadata"].get("creationTimestamp"),
    }


def pod_result(pod: Mapping[str, Any], revision: int) -> dict[str, Any]:
    """Return a pod, with what it waits for."""
    status = pod.get("status") or {}
    containers = status.get("containerStatuses") or ()
    ready = any(condition.get("type") == "Ready" and condition.get("status") == "True" for condition in status.get("conditions") or ())
    waiting = next((reason for each in containers if (reason := ((each.get("state") or {}).get("waiting") or {}).get("reason"))), None)
    return {
        "name": pod["metadata"]["name"],
        "state": "terminating" if pod["metadata"].get("deletionTimestamp") else waiting or str(status.get("phase", "unknown")).lower(),
        "ready": ready,
        "restarts": sum(each.get("restartCount") or 0 for each in containers),
        "node": (pod.get("spec") or {}).get("nodeName"),
        "revision": revision,
        "created": pod["metadata"].get("creationTimestamp") or "",
    }
