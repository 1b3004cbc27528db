# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What a service is declared to be: a set of like replicas that clients reach under one address. Pure.

PRIVATE to the collection and to the Lepton bot. A declaration stands in the inventory (C(lepton_services)); what is wanted now,
a declaration with a number of replicas, is kept by every load balancer of the site beside the service's own configuration.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Mapping

from ._container import ContainerError, Limits, Spec, check_limits, check_spec, shown
from ._dataset import Dataset, mount_of, read_dataset
from ._manifest import DESCRIBING, DeploymentError, manifests
from ._units import format_size, parse_size

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)  # its replicas are called NAME-NUMBER
BALANCES = ("roundrobin", "leastconn", "first", "hash")
BACKENDS = ("container", "node", "deployment")
NODE_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", re.ASCII)
IPV4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}", re.ASCII)
MIB = 1024 * 1024
DATA_DIR = "/var/lib/lepton/data"
HEALTH_PATH = re.compile(r"/[A-Za-z0-9_./?&=%-]{0,200}", re.ASCII)
HEADER = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)


class ServiceError(ValueError):
    """A declaration that cannot be used, or something asked of a service that cannot be had."""


@dataclass(frozen=True)
class Service:
    """A declaration. `port` is the container's, node's or pod's, `listen_port` the one that clients use. Seconds are whole, memory has a unit.

    `cluster` is where a service of backend `deployment` runs, a host of the inventory's group `clusters`, and `deployment` holds those
    options of M(lepton.cloud.model_deployment) that other backends do not have.
    """

    image: str
    port: int
    listen_port: int
    backend: str = "container"
    command: tuple[str, ...] | None = None
    environment: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    gpus: str | None = None
    user: str | None = None
    health_path: str = "/v2/health/ready"
    min_replicas: int = 1
    max_replicas: int = 4
    cpus: float | None = None
    memory: str | None = None
    balance: str = "leastconn"
    hash_header: str | None = None
    max_concurrent: int | None = None
    start_seconds: int = 120
    drain_seconds: int = 60
    stop_seconds: int = 10
    watch_seconds: int = 5
    max_error_rate: float = 0.05
    data: tuple[Dataset, ...] = ()
    cluster: str | None = None
    deployment: Mapping[str, Any] | None = None

    def to_fields(self) -> dict[str, Any]:
        """Return what is not the default, as it is written in an inventory."""
        defaults = {field.name: field.default for field in fields(self)}
        given = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        fields_of = {name: shown(value) for name, value in given.items()}
        return dict(fields_of, data=[item.to_fields() for item in self.data]) if self.data else fields_of


def check_name(name: str) -> str:
    """Return the name if a service can bear it, else raise ServiceError."""
    if not NAME.fullmatch(name):
        raise ServiceError(
            "%s is not a service name: expected up to 40 lower-case letters, digits or '-', starting and ending with a letter or digit"
            % ascii(name[:40] + ("…" if len(name) > 40 else ""))
        )
    return name


def read_service(name: str, declared: Any) -> Service:
    """Return the declaration called `name`, or raise ServiceError that names the field and what was expected."""
    check_name(name)
    if not isinstance(declared, Mapping):
        raise ServiceError("service %s: expected a mapping such as {image: models/%s:1, port: 8080, listen_port: 8000}" % (name, name))
    known = {field.name: field for field in fields(Service)}
    unknown = sorted(set(map(str, declared)) - set(known))
    if unknown:
        raise ServiceError("service %s: there is no field %s; expected one of %s" % (name, ascii(unknown[0][:40])[1:-1], ", ".join(sorted(known))))
    for field in ("image", "port", "listen_port"):
        if declared.get(field) is None:
            raise ServiceError("service %s: %s is missing" % (name, field))
    values = {}
    for field, value in declared.items():
        if value is not None:
            try:
                values[field] = _typed(field, value)
            except (TypeError, ValueError) as error:
                raise ServiceError("service %s: %s: %s" % (name, field, error)) from error
    service = Service(**values)
    _check(name, service)
    return service


INTS = ("port", "listen_port", "min_replicas", "max_replicas", "max_concurrent", "start_seconds", "drain_seconds", "stop_seconds", "watch_seconds")
LISTS = ("command", "secrets", "volumes")


def _typed(field: str, value: Any) -> Any:
    if field in INTS:
        if isinstance(value, bool) or not re.fullmatch(r"\d{1,6}", str(value)):
            raise ValueError("expected a whole number, not %s" % ascii(str(value)[:40]))
        return int(value)
    if field in ("cpus", "max_error_rate"):
        return round(float(value), 3)  # as exactly as engines take it
    if field in LISTS:
        if isinstance(value, (str, Mapping)):
            raise ValueError("expected a list")
        return tuple(map(str, value))
    if field == "data":
        if not isinstance(value, (list, tuple)):
            raise ValueError("expected a list")
        return tuple(read_dataset(item) for item in value)
    if field == "deployment":
        if not isinstance(value, Mapping):
            raise ValueError("expected a mapping of options")
        return dict(value)
    if field == "environment":
        if not isinstance(value, Mapping):
            raise ValueError("expected a mapping of names to values")
        return tuple(sorted((str(name), str(item)) for name, item in value.items()))
    if field == "memory":
        return format_size(parse_size(str(value)))
    return str(value)


def _check(name: str, service: Service) -> None:
    if service.backend not in BACKENDS:
        raise ServiceError("service %s: backend: expected one of %s, not %s" % (name, ", ".join(BACKENDS), ascii(service.backend[:40])))
    if service.balance not in BALANCES:
        raise ServiceError("service %s: balance: expected one of %s, not %s" % (name, ", ".join(BALANCES), ascii(service.balance[:40])))
    if (service.balance == "hash") != (service.hash_header is not None):
        raise ServiceError("service %s: balance hash and hash_header go together" % name)
    if service.hash_header is not None and not HEADER.fullmatch(service.hash_header):
        raise ServiceError("service %s: hash_header: %s is not the name of a header" % (name, ascii(service.hash_header[:40])))
    if service.balance == "first" and service.max_concurrent is None:
        raise ServiceError("service %s: balance first fills one replica before it takes the next, so it needs max_concurrent" % name)
    for field in ("port", "listen_port"):
        if not 0 < getattr(service, field) < 65536:
            raise ServiceError("service %s: %s: %d is not a port" % (name, field, getattr(service, field)))
    if not 0 <= service.min_replicas <= service.max_replicas <= 1000 or not service.max_replicas:
        bounds = (name, service.min_replicas, service.max_replicas)
        raise ServiceError("service %s: expected 0 <= min_replicas <= max_replicas <= 1000, and max_replicas of 1 at least, not %d and %d" % bounds)
    if not 0 <= service.max_error_rate <= 1:
        raise ServiceError("service %s: max_error_rate: expected a share from 0 to 1, not %g" % (name, service.max_error_rate))
    if service.backend != "deployment" and (service.cluster is not None or service.deployment is not None):
        raise ServiceError("service %s: cluster and deployment are for backend deployment" % name)
    if service.backend == "node":
        _check_node(name, service)
        return
    if service.backend == "deployment":
        _check_deployment(name, service)
        return
    if len({item.name for item in service.data}) < len(service.data):
        raise ServiceError("service %s: data: two of them have the same name" % name)
    try:
        check_spec(container_spec(service, name, "127.0.0.1", 20000, DATA_DIR))
        check_limits(Limits(service.cpus, None if service.memory is None else parse_size(service.memory)))
    except ContainerError as error:
        raise ServiceError("service %s: %s" % (name, error)) from error


def _check_node(name: str, service: Service) -> None:
    """Raise ServiceError for what a replica that is a node cannot have."""
    for field in ("command", "environment", "secrets", "volumes", "gpus", "user", "data"):
        if getattr(service, field):
            raise ServiceError("service %s: %s: a node has what its image brings: this is for backend container" % (name, field))
    if not NODE_IMAGE.fullmatch(service.image):
        raise ServiceError("service %s: image: %s is not the name of a node's image" % (name, ascii(service.image[:80])))
    if service.memory is None or service.cpus is None or service.cpus < 1 or service.cpus != int(service.cpus):
        raise ServiceError("service %s: a node needs memory, and a whole number of cpus" % name)
    if parse_size(service.memory) % MIB:
        raise ServiceError("service %s: memory: a node has whole MiB, not %s" % (name, service.memory))
    if not HEALTH_PATH.fullmatch(service.health_path):
        raise ServiceError("service %s: health_path: %s is not a path such as /v2/health/ready" % (name, ascii(service.health_path[:60])))


# Those options of a deployment that a service has fields of its own for.
SAID = (
    "autoscale", "command", "cpus", "drain_seconds", "environment", "gpus", "health_path", "image", "memory", "port", "service_port", "service_type",
    "start_seconds", "stop_seconds", "user",
)  # fmt: skip


def _check_deployment(name: str, service: Service) -> None:
    """Raise ServiceError for what a replica that is a pod cannot have, or has under another name."""
    if service.cluster is None:
        raise ServiceError("service %s: cluster is missing: which host of the inventory's group clusters it runs on" % name)
    for field in ("secrets", "volumes", "data"):
        if getattr(service, field):
            raise ServiceError("service %s: %s: a pod's stand in the cluster, so say them as options of a deployment under deployment" % (name, field))
    for field in ("gpus", "user"):
        if not re.fullmatch(r"\d{1,9}", getattr(service, field) or "0"):
            raise ServiceError("service %s: %s: expected a number for pods, not %s" % (name, field, ascii(getattr(service, field)[:40])))
    if not HEALTH_PATH.fullmatch(service.health_path):
        raise ServiceError("service %s: health_path: %s is not a path such as /v2/health/ready" % (name, ascii(service.health_path[:60])))
    allowed = sorted({*DESCRIBING, "stuck_seconds"} - set(SAID))
    wrong = next((str(option) for option in service.deployment or () if option not in allowed), None)
    if wrong is not None:
        why = "is a field of the service itself, or has none" if wrong in SAID else "is no option of a deployment"
        raise ServiceError("service %s: deployment: %s %s; expected one of %s" % (name, ascii(wrong[:40])[1:-1], why, ", ".join(allowed)))
    try:
        manifests(name, deployment_options(service), service.min_replicas)
    except DeploymentError as error:
        raise ServiceError("service %s: %s" % (name, error)) from error


def deployment_options(service: Service) -> dict[str, Any]:
    """Return what a service's fields say of its Deployment, as options of M(lepton.cloud.model_deployment)."""
    options: dict[str, Any] = {field: getattr(service, field) for field in ("image", "port", "health_path", "start_seconds", "drain_seconds", "stop_seconds")}
    numbers = {field: None if (value := getattr(service, field)) is None else int(value) for field in ("gpus", "user")}
    command = None if service.command is None else list(service.command)
    optional = {"cpus": service.cpus, "memory": service.memory, "command": command, "environment": dict(service.environment) or None, **numbers}
    return {**options, **{option: value for option, value in optional.items() if value is not None}}


# What a replica's container is made from: where one of these differs, another container is needed.
REVISED = ("image", "port", "command", "environment", "secrets", "volumes", "gpus", "user", "health_path")
NODE_REVISED = ("backend", "image", "port")


def revision(service: Service) -> str:
    """Return what tells replicas of one declaration from those of another."""
    fields_of = REVISED if service.backend == "container" else NODE_REVISED
    values = [getattr(service, field) for field in fields_of] + [item.to_fields() for item in service.data]
    content = json.dumps(values, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def labels_of(service: Service, name: str) -> dict[str, str]:
    """Return what says of a replica whose it is."""
    return {"cloud.lepton.revision": revision(service), "cloud.lepton.service": name}


def published(service: Service, address: str, port: int) -> str:
    """Return how a replica's port is published on a port of its host, as ADDRESS:HOST:INSIDE."""
    # Where the balancers reach it, and nowhere else: Docker's published ports go past a host's firewall.
    bind = address if IPV4.fullmatch(address) else "127.0.0.1" if address == "localhost" else "0.0.0.0"
    return "%s:%d:%d" % (bind, port, service.port)


def container_spec(service: Service, name: str, address: str, port: int, data_dir: str) -> Spec:
    """Return what a replica's container is made from, published on a port of its host, whose copies of datasets stand in `data_dir`."""
    return Spec(
        image=service.image,
        command=service.command,
        environment=service.environment,
        secrets=service.secrets,
        ports=(published(service, address, port),),
        volumes=(*service.volumes, *(mount_of(item, data_dir) for item in service.data)),
        gpus=service.gpus,
        user=service.user,
        labels=tuple(sorted(labels_of(service, name).items())),
        health_path=service.health_path,
        health_port=service.port,
    )


def check_replicas(name: str, service: Service, replicas: int) -> int:
    """Return a number of replicas if it is within the service's bounds, else raise ServiceError."""
    if not service.min_replicas <= replicas <= service.max_replicas:
        raise ServiceError(
            "%s may have %d to %d replicas, not %d: its bounds stand in its declaration" % (name, service.min_replicas, service.max_replicas, replicas)
        )
    return replicas
