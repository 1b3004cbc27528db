#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell which deployments there are, their revisions and pods, and what a pod wrote."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_deployment_info
short_description: Tell which models are deployed on a Kubernetes cluster, and how they are
version_added: 0.3.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Lists the deployments of one namespace that were made by M(lepton.cloud.model_deployment), with the state of their rollouts.
  - Of one that is named it tells the revisions that it can be rolled back to, and its pods.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.attributes.info_module
  - lepton.cloud.cluster
options:
  name:
    description:
      - Only this one, in full.
    type: str
  log_lines:
    description:
      - How many lines of the end of a pod's log are told, with O(name).
    type: int
  pod:
    description:
      - Whose log. That of the newest pod that is not ready where none is given, and else of the newest.
    type: str
seealso:
  - module: lepton.cloud.model_deployment
"""

EXAMPLES = r"""
- name: What is deployed
  lepton.cloud.model_deployment_info:
    namespace: models
  register: deployed

- name: What it wrote last
  lepton.cloud.model_deployment_info:
    namespace: models
    name: chat
    log_lines: 50
"""

RETURN = r"""
deployments:
  description: The deployments, by name. With O(name) that one in full, with its revisions and pods.
  type: list
  elements: dict
  returned: success
  sample: [{name: chat, namespace: models, image: "models/chat:1", replicas: 3, ready: 3, state: available, revision: 1}]
log:
  description: The end of a pod's log.
  type: str
  returned: with O(log_lines)
  sample: "listening on 8080"
calls:
  description: How many requests that took.
  type: int
  returned: always
  sample: 3
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._cluster import Cluster
from ..module_utils._cluster_module import CLUSTER_OPTIONS, EXCLUSIVE, cluster_of, deployment_result, pod_result, revision_result
from ..module_utils._deployment import is_ours, main_container, selector_of
from ..module_utils._manifest import MANAGER, OURS_LABEL, DeploymentError, Manifest, check_name
from ..module_utils._rollout_status import owned, revision_of


def in_full(cluster: Cluster, live: Manifest) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a deployment with its revisions and pods, and those pods, the newest first."""
    selector = selector_of(live)
    replica_sets = owned(live, cluster.list("ReplicaSet", selector))
    every = cluster.list("Pod", selector)
    pods = [pod_result(pod, revision_of(each)) for each in replica_sets for pod in owned(each, every)]
    pods.sort(key=lambda pod: (pod["created"], pod["name"]), reverse=True)
    revisions = sorted((revision_result(each) for each in replica_sets), key=lambda each: each["revision"], reverse=True)
    return dict(deployment_result(live, replica_sets, every), revisions=revisions, pods=pods), pods


def log_of(cluster: Cluster, container: str, pods: list[dict[str, Any]], wanted: str | None, lines: int) -> str:
    """Return the end of one pod's log, under its name; raise DeploymentError for one that is not of this deployment."""
    if not pods:
        return "(there are no pods)"
    if wanted is None:
        chosen = next((pod["name"] for pod in pods if not pod["ready"]), pods[0]["name"])
    elif wanted in [pod["name"] for pod in pods]:
        chosen = wanted
    else:
        raise DeploymentError("there is no pod %s of it: expected one of %s" % (ascii(wanted[:80]), ", ".join(pod["name"] for pod in pods[:20])))
    return "%s:\n%s" % (chosen, cluster.log(chosen, container, lines))


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(CLUSTER_OPTIONS, name={"type": "str"}, log_lines={"type": "int"}, pod={"type": "str"}),
        required_by={"log_lines": "name", "pod": "log_lines"},
        mutually_exclusive=EXCLUSIVE,
        supports_check_mode=True,
    )
    name = module.params["name"]
    with cluster_of(module) as cluster:
        answer: dict[str, Any] = {}
        if name is None:
            found = [deployment_result(each) for each in cluster.list("Deployment", "%s=%s" % (OURS_LABEL, MANAGER))]
            answer["deployments"] = sorted(found, key=lambda each: each["name"])
        else:
            live = cluster.get("Deployment", check_name(name))
            if live is None or not is_ours(live):
                answer["deployments"] = []
            else:
                shown, pods = in_full(cluster, live)
                answer["deployments"] = [shown]
                if module.params["log_lines"] is not None:
                    answer["log"] = log_of(cluster, main_container(live), pods, module.params["pod"], module.params["log_lines"])
        module.exit_json(changed=False, calls=cluster.calls, **answer)


if __name__ == "__main__":
    main()
