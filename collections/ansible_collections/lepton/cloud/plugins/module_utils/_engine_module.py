# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What every module shares that talks to a container engine: its options, its connection, and what a container looks like in a result. PRIVATE."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule

from ._command import clean
from ._container import Container, ContainerError
from ._engine import Engine, age_seconds
from ._module import end_with_controller
from ._units import format_size, parse_size

ENGINE_OPTIONS: dict[str, dict[str, Any]] = {
    "engine": {"type": "str", "choices": ["auto", "docker", "podman"], "default": "auto"},
    "engine_address": {"type": "str"},
    "state_dir": {"type": "path", "default": "/var/lib/lepton"},
    "address": {"type": "str", "default": "127.0.0.1"},
    "port_range": {"type": "str", "default": "20000-20999"},
    "cpu_overcommit": {"type": "float", "default": 4},
    "memory_reserve": {"type": "str", "default": "1GiB"},
}


def lock_dir(module: AnsibleModule) -> str:
    return os.path.join(module.params["state_dir"], "locks")


def data_dir(module: AnsibleModule) -> str:
    return os.path.join(module.params["state_dir"], "data")


@contextmanager
def engine_of(module: AnsibleModule) -> Iterator[Engine]:
    """Yield the host's engine; whatever goes wrong ends the module with a sentence, never with a traceback."""
    end_with_controller()
    kind = module.params["engine"]
    try:
        if kind == "auto":
            kind = next((name for name in ("docker", "podman") if shutil.which(name)), None)
            if kind is None:
                raise ContainerError("this host has neither docker nor podman: install an engine (role lepton.cloud.container_host)")
        reserve = parse_size(module.params["memory_reserve"])
        yield Engine(kind, address=module.params["engine_address"], state_dir=module.params["state_dir"], memory_reserve=reserve)
    except ValueError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg="%s on this host: %s" % (kind, error))


def container_result(container: Container) -> dict[str, Any]:
    """Return a container as every module reports it. What it and its engine made up is cleaned of escape sequences."""
    shown: dict[str, Any] = {
        "name": clean(container.name),
        "state": container.state,
        "health": container.health or None,
        "image": clean(container.image),
        "image_id": container.image_id,
        "cpus": container.limits.cpus,
        "memory": format_size(container.limits.memory) if container.limits.memory else None,
        "restart": container.limits.restart,
        "ports": list(container.published),
        "restarts": container.restarts,
        "age_seconds": age_seconds(container.started_at) if container.running else None,
        "owned": container.spec is not None,
        "labels": dict(container.spec.labels) if container.spec is not None else {},
    }
    if container.state in ("exited", "dead", "restarting"):
        shown["exit_code"] = container.exit_code
    if container.trouble:
        shown["trouble"] = clean(container.trouble)
    return shown
