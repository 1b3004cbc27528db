#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deploy, scale, restart, roll back and undeploy models on Kubernetes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_deployment
short_description: Manage a Kubernetes Deployment that serves a model, and what belongs to it
version_added: 0.3.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Applies a Deployment on the API server's side as field manager C(lepton), with its Service, and where asked what else belongs to it,
    and watches until it is rolled out.
  - What an option does not say stays as it is, unless O(complete) or a O(declaration) says that it is all that is wanted.
  - Everything is applied as a dry run first. Check mode is that dry run, and the difference is the one between what is there and its
    result, so that neither defaults nor status show in it.
  - Fields that another manager has set otherwise are not overwritten unless O(force_conflicts). Objects that were made by somebody else
    are not touched unless O(adopt).
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.cluster
attributes:
  check_mode:
    support: full
    details: It is the API server's dry run, with all its defaults and admission.
  diff_mode:
    support: full
  idempotent:
    support: full
    details: But O(state=restarted), which makes new pods each time.
options:
  name:
    description:
      - Name of the Deployment, and of what belongs to it. Up to 63 lower-case letters, digits or hyphens.
    type: str
    required: true
  state:
    description:
      - V(present) deploys, or scales. V(restarted) makes new pods of the same kind, a few at a time.
      - V(rolled_back) brings the pods' template of an earlier O(revision) back.
      - V(absent) deletes the Deployment and what belongs to it, when its pods have ended. Persistent volume claims, and so the data, stay.
    type: str
    choices: [present, restarted, rolled_back, absent]
    default: present
  declaration:
    description:
      - Any of these options as a mapping, such as from the inventory, and all that is wanted. Those given beside it win.
      - Its number of replicas is what a new Deployment begins with. Afterwards there are as many as were last asked for.
    type: dict
  complete:
    description:
      - The options describe all that is wanted, so what they do not say is as for a new Deployment.
    type: bool
    default: false
  image:
    description:
      - The image. Needed to deploy what is not there.
    type: str
  replicas:
    description:
      - How many pods. As many as there are where it is not given, O(initial_replicas) for a new Deployment.
    type: int
  initial_replicas:
    description:
      - How many pods a new Deployment has.
    type: int
    default: 1
  revision:
    description:
      - The revision for O(state=rolled_back). The one before where none is given.
    type: int
  command:
    description:
      - Arguments in place of those that the image names.
    type: list
    elements: str
  environment:
    description:
      - Environment variables. Everybody who may look at the Deployment sees them, so they cannot hold secrets.
    type: dict
  environment_secrets:
    description:
      - Environment variables from keys of Secrets that are there, as C(VARIABLE=SECRET/KEY).
    type: dict
  environment_from:
    description:
      - Secrets and ConfigMaps all of whose keys become variables, as V(secret/NAME) or V(configmap/NAME).
    type: list
    elements: str
  secrets:
    description:
      - Names of Secrets that are there. Each is mounted as C(/run/secrets/NAME).
    type: list
    elements: str
  config_maps:
    description:
      - Names of ConfigMaps that are there. Each is mounted as C(/etc/config/NAME).
    type: list
    elements: str
  image_pull_secrets:
    description:
      - Names of Secrets with which images are pulled.
    type: list
    elements: str
  port:
    description:
      - The port that the model listens on. With it, it gets a Service.
    type: int
  service_port:
    description:
      - The Service's port, where it is not O(port).
    type: int
  service_type:
    description:
      - The Service's type. V(ClusterIP) for a new one.
    type: str
    choices: [ClusterIP, NodePort, LoadBalancer]
  health_path:
    description:
      - Path that answers 2xx when the model can serve, such as V(/v2/health/ready).
    type: str
  live_path:
    description:
      - Path that answers 2xx while the model need not be restarted.
    type: str
  start_seconds:
    description:
      - How long the model may take to load. V(300) for a new one.
    type: int
  drain_seconds:
    description:
      - How long a pod that is to end goes on to serve, while load balancers take note. V(10) for a new one.
    type: int
  stop_seconds:
    description:
      - How long it may take to end after that, before it is killed. V(20) for a new one.
    type: int
  cpus:
    description:
      - How many CPUs are reserved for each pod. It may use more while others leave them.
    type: float
  memory:
    description:
      - Memory that is reserved for each pod and that it cannot exceed, with its unit, such as V(8GiB).
    type: str
  gpus:
    description:
      - How many GPUs each pod has.
    type: int
  gpu_resource:
    description:
      - What the cluster calls its GPUs. V(nvidia.com/gpu) for a new one.
    type: str
  shm_size:
    description:
      - Size of C(/dev/shm), with its unit.
    type: str
  read_only:
    description:
      - Whether the root file system is read-only. C(/tmp) can always be written. V(true) for a new one.
    type: bool
  user:
    description:
      - Number of the user that it runs as, in place of the image's.
    type: int
  node_selector:
    description:
      - Labels that a node must have.
    type: dict
  tolerations:
    description:
      - Taints of nodes that are no hindrance, as Kubernetes has them.
    type: list
    elements: dict
  spread:
    description:
      - Labels of nodes, such as V(topology.kubernetes.io/zone), over whose values the pods are spread.
    type: list
    elements: str
  priority_class:
    description:
      - Name of its PriorityClass.
    type: str
  service_account:
    description:
      - Name of a ServiceAccount that is there, whose token the pods get.
    type: str
  own_service_account:
    description:
      - Make a ServiceAccount for it, without a token. V(false) for a new one.
    type: bool
  volumes:
    description:
      - Persistent volume claims and where they are mounted.
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - Name of the volume.
        type: str
        required: true
      path:
        description:
          - Where it is mounted.
        type: str
        required: true
      claim:
        description:
          - Name of the claim. C(DEPLOYMENT-NAME) where none is given.
        type: str
      size:
        description:
          - Size of a claim that is made here. Without it the claim must be there.
        type: str
      storage_class:
        description:
          - Its storage class.
        type: str
      access_mode:
        description:
          - Its access mode.
        type: str
        choices: [ReadWriteOnce, ReadOnlyMany, ReadWriteMany, ReadWriteOncePod]
        default: ReadWriteOnce
      read_only:
        description:
          - Whether pods can only read it.
        type: bool
        default: false
  autoscale:
    description:
      - Bounds within which a HorizontalPodAutoscaler gives it its number of pods. O(replicas) goes without.
    type: dict
    suboptions:
      min_replicas:
        description:
          - The fewest.
        type: int
        required: true
      max_replicas:
        description:
          - The most.
        type: int
        required: true
      cpu_percent:
        description:
          - Share of the reserved CPUs in use that it aims at.
        type: int
        default: 80
  min_available:
    description:
      - How many pods, or which share such as V(50%), a drain of nodes leaves. It makes a PodDisruptionBudget.
    type: str
  allow_from:
    description:
      - Who may reach the pods, as the peers of a NetworkPolicy. Nobody where the list is empty.
    type: list
    elements: dict
  max_surge:
    description:
      - How many pods, or which share, there may be above the number wanted during a rollout. V(1) for a new one.
    type: str
  max_unavailable:
    description:
      - How many pods, or which share, may be missing during a rollout. V(0) for a new one.
    type: str
  revision_history:
    description:
      - How many earlier revisions are kept. V(10) for a new one.
    type: int
  labels:
    description:
      - Labels of the objects and pods.
    type: dict
  merge:
    description:
      - Parts of manifests by kind, such as C(Deployment), for what has no option here. Lists of named items are merged by name, and null removes.
    type: dict
  adopt:
    description:
      - Take over objects of these names that somebody else made.
    type: bool
    default: false
  force_conflicts:
    description:
      - Take over fields that another manager has set to something else.
    type: bool
    default: false
  rollback_on_failure:
    description:
      - Bring back what was there before when the rollout fails. What was not there before is deleted.
    type: bool
    default: false
  wait:
    description:
      - Wait until it is rolled out, or gone.
    type: bool
    default: true
  wait_seconds:
    description:
      - How long that may take.
    type: int
    default: 3600
  stuck_seconds:
    description:
      - How long pods may be without an image, or with one that cannot be pulled or started, before the rollout has failed.
    type: int
    default: 60
  progress_pipe:
    description:
      - A FIFO that lines of progress are written to. On this machine, the module's action plugin gives one.
    type: path
seealso:
  - module: lepton.cloud.model_deployment_info
"""

EXAMPLES = r"""
- name: A model on two GPUs, behind a Service
  lepton.cloud.model_deployment:
    kubeconfig: /etc/lepton/kubeconfig
    namespace: models
    name: chat
    image: registry.example.net/models/chat:1
    replicas: 3
    port: 8080
    health_path: /v2/health/ready
    memory: 32GiB
    gpus: 2
    shm_size: 8GiB
    rollback_on_failure: true

- name: Five of them
  lepton.cloud.model_deployment:
    namespace: models
    name: chat
    replicas: 5

- name: The version before
  lepton.cloud.model_deployment:
    namespace: models
    name: chat
    state: rolled_back
"""

RETURN = r"""
deployment:
  description: The deployment after the change, or as it is in check mode. Null when there is none.
  type: dict
  returned: success
  sample: {name: chat, namespace: models, image: "models/chat:1", replicas: 3, ready: 3, state: available, revision: 1}
changes:
  description: The fields that differ, from what to what.
  type: list
  elements: dict
  returned: success
  sample: [{field: replicas, before: 3, after: 5, effective: now}]
steps:
  description: What was done, or would be done in check mode, in order.
  type: list
  elements: str
  returned: success
  sample: [apply Deployment, wait]
calls:
  description: How many requests that took.
  type: int
  returned: always
  sample: 6
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._changes import diff_of
from ..module_utils._cluster_module import CLUSTER_OPTIONS, EXCLUSIVE, cluster_of, deployment_result
from ..module_utils._deploying import apply_plan, make_plan
from ..module_utils._progress import reporting

VOLUME = {
    "name": {"type": "str", "required": True},
    "path": {"type": "str", "required": True},
    "claim": {"type": "str"},
    "size": {"type": "str"},
    "storage_class": {"type": "str"},
    "access_mode": {"type": "str", "choices": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"], "default": "ReadWriteOnce"},
    "read_only": {"type": "bool", "default": False},
}
AUTOSCALE = {
    "min_replicas": {"type": "int", "required": True},
    "max_replicas": {"type": "int", "required": True},
    "cpu_percent": {"type": "int", "default": 80},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            CLUSTER_OPTIONS,
            name={"type": "str", "required": True},
            state={"type": "str", "choices": ["present", "restarted", "rolled_back", "absent"], "default": "present"},
            declaration={"type": "dict"},
            complete={"type": "bool", "default": False},
            image={"type": "str"},
            replicas={"type": "int"},
            initial_replicas={"type": "int", "default": 1},
            revision={"type": "int"},
            command={"type": "list", "elements": "str"},
            environment={"type": "dict"},
            environment_secrets={"type": "dict", "no_log": False},
            environment_from={"type": "list", "elements": "str"},
            secrets={"type": "list", "elements": "str", "no_log": False},
            config_maps={"type": "list", "elements": "str"},
            image_pull_secrets={"type": "list", "elements": "str", "no_log": False},
            port={"type": "int"},
            service_port={"type": "int"},
            service_type={"type": "str", "choices": ["ClusterIP", "NodePort", "LoadBalancer"]},
            health_path={"type": "str"},
            live_path={"type": "str"},
            start_seconds={"type": "int"},
            drain_seconds={"type": "int"},
            stop_seconds={"type": "int"},
            cpus={"type": "float"},
            memory={"type": "str"},
            gpus={"type": "int"},
            gpu_resource={"type": "str"},
            shm_size={"type": "str"},
            read_only={"type": "bool"},
            user={"type": "int"},
            node_selector={"type": "dict"},
            tolerations={"type": "list", "elements": "dict"},
            spread={"type": "list", "elements": "str"},
            priority_class={"type": "str"},
            service_account={"type": "str"},
            own_service_account={"type": "bool"},
            volumes={"type": "list", "elements": "dict", "options": VOLUME},
            autoscale={"type": "dict", "options": AUTOSCALE},
            min_available={"type": "str"},
            allow_from={"type": "list", "elements": "dict"},
            max_surge={"type": "str"},
            max_unavailable={"type": "str"},
            revision_history={"type": "int"},
            labels={"type": "dict"},
            merge={"type": "dict"},
            adopt={"type": "bool", "default": False},
            force_conflicts={"type": "bool", "default": False},
            rollback_on_failure={"type": "bool", "default": False},
            wait={"type": "bool", "default": True},
            wait_seconds={"type": "int", "default": 3600},
            stuck_seconds={"type": "int", "default": 60},
            progress_pipe={"type": "path"},
        ),
        mutually_exclusive=[*EXCLUSIVE, ("service_account", "own_service_account")],
        supports_check_mode=True,
    )
    params: dict[str, Any] = module.params
    with cluster_of(module) as cluster:
        plan = make_plan(cluster, params)
        after = plan.live
        if not module.check_mode:
            with reporting(params["progress_pipe"]) as report:
                after = apply_plan(cluster, plan, params, report)
        module.exit_json(
            changed=bool(plan.changes),
            diff=diff_of(plan.changes),
            changes=[change._asdict() for change in plan.changes],
            steps=plan.steps,
            deployment=None if after is None else deployment_result(after),
            calls=cluster.calls,
        )


if __name__ == "__main__":
    main()
