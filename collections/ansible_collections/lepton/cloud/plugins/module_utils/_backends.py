# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What a replica is made of: a container or a node, and how each is started, waited for, stopped, resized and removed. Pure.

PRIVATE to the collection and to the Lepton bot. What a service needs of its replicas is the same for every kind; this is where they differ.
"""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence

from ._placement import Room
from ._service import Service, container_spec, labels_of, published

POWER_SECONDS = 60  # for a node to go down after its power button was pressed, at least


class Backend(NamedTuple):
    """One kind of replicas: the module and the group of hosts that have them, and the words that both use."""

    module: str
    group: str
    known: str  # in which field of its answer a host tells of them
    ports: str  # and these tell where they are published
    cpus: str
    stopped: str


BACKENDS = {
    "container": Backend("model_container", "container_hosts", "containers", "ports", "cpus", "exited"),
    "node": Backend("virtual_node", "hypervisors", "nodes", "forward_ports", "vcpus", "stopped"),
}
CLUSTERS = "clusters"  # the hosts of services whose replicas are pods


def room_of(answer: Mapping[str, Any]) -> Room:
    """Return what a host has left, as M(lepton.cloud.container_host_info) or M(lepton.cloud.host_info) tell it."""
    room, cpus = (answer["capacity"], "vcpus_free") if "capacity" in answer else (answer["room"], "cpus_free")
    return Room(room[cpus], room["memory_free"], tuple(answer["ports_free"]), answer["address"], answer.get("closed") or "")


def images_of(answer: Mapping[str, Any]) -> dict[str, str]:
    """Return a host's images with their identities; a node's image is a file, and its name is all that is known of it."""
    return dict(answer["container_images"]) if "container_images" in answer else dict.fromkeys(answer.get("images", ()), "")


def start_args(service: Service, of: str, name: str, address: str, port: int, data_dir: str) -> dict[str, Any]:
    """Return what starts a replica of the service `of`, published on a port of its host."""
    if service.backend == "node":
        size = {"vcpus": int(service.cpus or 1), "memory": service.memory}
        ports = [published(service, address, port)]
        return {"name": name, "state": "running", "image": service.image, **size, "forward_ports": ports, "labels": labels_of(service, of)}
    spec = container_spec(service, of, address, port, data_dir)
    args: dict[str, Any] = {
        "name": name,
        "state": "started",
        "image": spec.image,
        "ports": list(spec.ports),
        "labels": dict(spec.labels),
        "health_path": spec.health_path,
        "health_port": spec.health_port,
    }
    optional = {"command": spec.command, "environment": spec.environment, "secrets": spec.secrets, "volumes": spec.volumes}
    args.update({option: dict(value) if option == "environment" else list(value) for option, value in optional.items() if value})
    single = {"gpus": spec.gpus, "user": spec.user, "cpus": service.cpus, "memory": service.memory}
    args.update({option: value for option, value in single.items() if value is not None})
    return args


def healthy_args(service: Service, name: str) -> dict[str, Any]:
    """Return what starts a replica if need be, and waits until it answers."""
    args: dict[str, Any] = {"name": name, "state": "healthy", "wait_seconds": service.start_seconds}
    if service.backend == "node":
        args.update(health_path=service.health_path, health_port=service.port)
    return args


def stop_args(service: Service, name: str) -> dict[str, Any]:
    """Return what stops a replica, and leaves it there."""
    if service.backend == "node":
        return {"name": name, "state": "stopped", "wait_seconds": max(POWER_SECONDS, service.stop_seconds)}
    return {"name": name, "state": "stopped", "stop_seconds": service.stop_seconds}


def absent_args(service: Service, name: str) -> dict[str, Any]:
    """Return what removes a replica."""
    args: dict[str, Any] = {"name": name, "state": "absent"}
    return args if service.backend == "node" else dict(args, stop_seconds=service.stop_seconds)


def resize_of(service: Service, cpus: float | None, memory: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the size that a replica has and the one that it gets, where they differ. What the service does not say stays."""
    field = BACKENDS[service.backend].cpus
    wanted_cpus = int(service.cpus) if service.backend == "node" and service.cpus else service.cpus
    now, wanted = {field: cpus, "memory": memory}, {field: wanted_cpus, "memory": service.memory}
    differing: Sequence[str] = [name for name in now if wanted[name] is not None and wanted[name] != now[name]]
    return {name: now[name] for name in differing}, {name: wanted[name] for name in differing}
