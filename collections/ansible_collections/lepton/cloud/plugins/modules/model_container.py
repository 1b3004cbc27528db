#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Create, start, change, replace, stop and remove containers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_container
short_description: Manage a container that serves a model
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Brings one container to the state asked for, on the C(docker) or C(podman) command of its host.
  - CPU and memory limits and the restart policy are changed in place. Whatever else changes needs a new container, which takes the
    place of the old one; when it does not come up, the old one comes back.
  - A container has a read-only root, no capabilities and no new privileges unless it is given them.
  - What an option does not say stays as it is. Containers that were neither made nor adopted by this module are never touched.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.engine
attributes:
  check_mode:
    support: full
    details: An image that the host does not have is not pulled, so nothing is known of it yet.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  name:
    description:
      - The container's name. Up to 63 lower-case letters, digits, hyphens or dots.
    type: str
    required: true
  state:
    description:
      - V(present) leaves a container's state as it is, and creates a missing one stopped.
      - V(started) starts it. V(healthy) also waits until it is healthy, and fails when it is not within O(wait_seconds).
      - V(stopped) asks it to end and waits, V(absent) removes it.
      - V(adopted) makes a container ours that was made by somebody else, from what its engine says of it. It is not touched; what
        this module gives to containers, such as a read-only root, it gets when something changes that needs a new one.
    type: str
    choices: [present, started, healthy, stopped, absent, adopted]
    default: started
  image:
    description:
      - The image, as C([REGISTRY/]NAME[:TAG]). Needed to create. One that the host does not have is pulled.
      - A tag that names another image by now is a change as well.
    type: str
  command:
    description:
      - Arguments in place of those that the image names.
    type: list
    elements: str
  environment:
    description:
      - Environment variables. Everybody who may look at the container sees them, so they cannot hold secrets.
    type: dict
  secrets:
    description:
      - Secrets by name. The container finds each as a file below C(/run/secrets); they appear neither in the engine's answers nor in any result.
    type: dict
  ports:
    description:
      - Published ports, as V([ADDRESS:]HOST:CONTAINER). The loopback address where none is given.
    type: list
    elements: str
  volumes:
    description:
      - Mounts, as V(/SOURCE:/TARGET) or V(NAME:/TARGET), read-only unless V(:rw) follows.
    type: list
    elements: str
  tmpfs:
    description:
      - Folders that the container may write to, and that are forgotten with it. V(/tmp) for a new container.
    type: list
    elements: str
  gpus:
    description:
      - V(all), a number of GPUs, or a CDI device such as V(nvidia.com/gpu=0).
    type: str
  user:
    description:
      - USER or USER:GROUP in place of the image's.
    type: str
  read_only:
    description:
      - Whether its root file system is read-only. V(true) for a new container.
    type: bool
  capabilities:
    description:
      - Capabilities that it keeps. None for a new container.
    type: list
    elements: str
  labels:
    description:
      - Labels of the container.
    type: dict
  health_path:
    description:
      - Path that answers 2xx when the container can serve, such as V(/v2/health/ready). It is asked for from the host.
    type: str
  health_port:
    description:
      - The container's port for O(health_path). It must be among the published ones.
    type: int
  cpus:
    description:
      - How many CPUs it may use.
    type: float
  memory:
    description:
      - Memory limit with its unit, such as V(2GiB).
    type: str
  restart:
    description:
      - When the engine starts it again. V(unless-stopped) for a new container.
    type: str
    choices: ["no", on-failure, always, unless-stopped]
  stop_seconds:
    description:
      - How long it may take to end before it is killed.
    type: int
    default: 10
  wait_seconds:
    description:
      - How long it may take to become healthy.
    type: int
    default: 120
seealso:
  - module: lepton.cloud.container_host_info
"""

EXAMPLES = r"""
- name: A model that serves
  lepton.cloud.model_container:
    name: sentiment
    state: healthy
    image: models/sentiment:3
    ports: ["8080:8080"]
    health_path: /v2/health/ready
    health_port: 8080
    cpus: 2
    memory: 4GiB

- name: More memory, while it runs
  lepton.cloud.model_container:
    name: sentiment
    memory: 8GiB

- name: Gone
  lepton.cloud.model_container:
    name: sentiment
    state: absent
"""

RETURN = r"""
container:
  description: The container after the change, or as it is in check mode. Null when there is none.
  type: dict
  returned: success
  sample: {name: sentiment, state: running, image: "models/sentiment:3", cpus: 2, memory: 4GiB, ports: ["127.0.0.1:8080:8080"]}
changes:
  description: The fields that differ, from what to what, and when the change takes effect.
  type: list
  elements: dict
  returned: success
  sample: [{field: memory, before: 4GiB, after: 8GiB, effective: now}]
steps:
  description: What was done, or would be done in check mode, in order.
  type: list
  elements: str
  returned: success
  sample: [update]
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._container import ASIDE, LOOPBACK, Container, ContainerError, Plan, Wish, check_name, make_plan, plan_adoption
from ..module_utils._engine import SECRETS_LABEL, Engine
from ..module_utils._engine_module import ENGINE_OPTIONS, container_result, engine_of, lock_dir
from ..module_utils._host_lock import host_lock
from ..module_utils._units import parse_size

LOCK_SECONDS = 20
PLAIN = ("image", "gpus", "user", "read_only", "health_path", "health_port")
LISTS = ("command", "ports", "volumes", "tmpfs", "capabilities")
DICTS = ("environment", "labels")
# What is written shortly means the same as what is written out.
NORMAL = {
    "ports": lambda port: port if port.count(":") != 1 else "%s:%s" % (LOOPBACK, port),
    "volumes": lambda volume: volume if volume.endswith((":ro", ":rw")) else volume + ":ro",
}


def read_wish(params: dict, secrets_differ: bool) -> Wish:
    """Return the module's options as a typed wish; raise ValueError for one that is none."""
    given = {name: params[name] for name in PLAIN if params[name] is not None}
    for name in LISTS:
        if params[name] is not None:
            given[name] = tuple(params[name] if name == "command" else sorted({NORMAL.get(name, str)(item) for item in params[name]}))
    for name in DICTS:
        if params[name] is not None:
            given[name] = tuple(sorted((str(key), str(value)) for key, value in params[name].items()))
    if params["secrets"] is not None:
        given["secrets"] = tuple(sorted(params["secrets"]))
    limits = {name: params[name] for name in ("cpus", "restart") if params[name] is not None}
    if "cpus" in limits:
        limits["cpus"] = round(limits["cpus"], 3)  # as exactly as engines take it
    if params["memory"] is not None:
        try:
            limits["memory"] = parse_size(params["memory"])
        except ValueError as error:
            raise ContainerError("memory: %s" % error) from error
    return Wish(check_name(params["name"]), params["state"], given, limits, secrets_differ)


def other_secrets(engine: Engine, found: Container | None, values: dict | None) -> bool:
    """Return whether the secrets that are wanted differ from those that the container has, by content."""
    if values is None or found is None or found.spec is None or set(found.spec.secrets) != set(values):
        return False  # by name, the specification itself differs
    return bool(values) and engine.secrets_of(found.name, (found.labels or {}).get(SECRETS_LABEL, "")) != values


def plan_for(engine: Engine, params: dict, *, check: bool) -> Plan:
    """Return the plan, after what an earlier replacement left half done has been put back."""
    name = check_name(params["name"])
    if params["state"] == "adopted":
        return plan_adoption(name, engine.container(name), engine.made_from(name))
    found, aside = engine.container(name), engine.container(name + ASIDE)
    values = None if params["secrets"] is None else {str(key): str(value) for key, value in params["secrets"].items()}
    if aside is not None and aside.spec is not None and found is None and params["state"] != "absent":
        if not check:
            engine.put_back(name, start=False)
        found, aside = aside, None
    wish = read_wish(params, other_secrets(engine, found, values))
    image = wish.given.get("image")
    # A name that is not well formed is the plan's to refuse, before any engine reads it.
    known = engine.image(image) if image and not image.startswith("-") else None
    plan = make_plan(wish, found, None if known is None else known["Id"], aside=aside is not None)
    if "create" in plan.steps and plan.spec is not None and not set(plan.spec.secrets) <= set(values or ()):
        raise ContainerError("%s has secrets, and to make it anew they must be given again: %s" % (name, ", ".join(plan.spec.secrets)))
    return plan


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            ENGINE_OPTIONS,
            name={"type": "str", "required": True},
            state={"type": "str", "choices": ["present", "started", "healthy", "stopped", "absent", "adopted"], "default": "started"},
            image={"type": "str"},
            command={"type": "list", "elements": "str"},
            environment={"type": "dict"},
            secrets={"type": "dict", "no_log": True},
            ports={"type": "list", "elements": "str"},
            volumes={"type": "list", "elements": "str"},
            tmpfs={"type": "list", "elements": "str"},
            gpus={"type": "str"},
            user={"type": "str"},
            read_only={"type": "bool"},
            capabilities={"type": "list", "elements": "str"},
            labels={"type": "dict"},
            health_path={"type": "str"},
            health_port={"type": "int"},
            cpus={"type": "float"},
            memory={"type": "str"},
            restart={"type": "str", "choices": ["no", "on-failure", "always", "unless-stopped"]},
            stop_seconds={"type": "int", "default": 10},
            wait_seconds={"type": "int", "default": 120},
        ),
        required_together=[("health_path", "health_port")],
        supports_check_mode=True,
    )
    params = module.params
    with engine_of(module) as engine:
        name = check_name(params["name"])
        if module.check_mode:
            plan = plan_for(engine, params, check=True)
        else:
            with host_lock(lock_dir(module), "container." + name, LOCK_SECONDS):
                plan = plan_for(engine, params, check=False)
                values = {str(key): str(value) for key, value in (params["secrets"] or {}).items()}
                if plan.changed:
                    engine.apply(name, plan, values=values, stop_seconds=params["stop_seconds"], wait_seconds=params["wait_seconds"])
                if params["state"] == "healthy" and "wait" not in plan.steps and plan.spec is not None:
                    engine.wait_healthy(name, plan.spec, params["wait_seconds"])
        found = engine.container(name)
        module.exit_json(
            changed=plan.changed,
            diff=plan.diff(),
            changes=[change._asdict() for change in plan.changes],
            steps=list(plan.steps),
            container=None if found is None else container_result(found),
        )


if __name__ == "__main__":
    main()
