# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What a container is, what is wanted of it, and the plan between the two: pure, no effects.

PRIVATE to the collection and to the Lepton bot. Memory is bytes throughout.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Mapping

from ._changes import Change, diff_of
from ._units import format_size

NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?", re.ASCII)
# https://github.com/distribution/reference: [registry[:port]/]path[:tag][@digest]
IMAGE = re.compile(r"[a-z0-9][\w.-]*(?::\d{1,5})?(?:/[a-z0-9][a-z0-9._-]*)*(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?", re.ASCII)
PORT = re.compile(r"(?:(?P<address>\d{1,3}(?:\.\d{1,3}){3}):)?(?P<host>\d{1,5}):(?P<inside>\d{1,5})", re.ASCII)
VOLUME = re.compile(r"(?P<source>[A-Za-z0-9_./-]{1,200}):(?P<target>/[A-Za-z0-9_./-]{1,200})(?P<mode>:ro|:rw)?", re.ASCII)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)
SECRET_WORD = re.compile(r"pass(word|wd)|secret|token|credential|private_?key|api_?key", re.IGNORECASE)
GPUS = re.compile(r"all|\d{1,3}|[a-z0-9.-]+/[a-z0-9-]+=[A-Za-z0-9_.:,-]+", re.ASCII)  # a count, or a CDI device: vendor/class=name
RESTARTS = ("no", "on-failure", "always", "unless-stopped")
SMALLEST = 6 * 1024 * 1024  # bytes of memory; Docker refuses less
LOOPBACK = "127.0.0.1"
ASIDE = ".replaced"  # what a container is called while its replacement is not up yet


class ContainerError(ValueError):
    """Something asked for that cannot be had; the text says why and what to do."""


@dataclass(frozen=True)
class Spec:
    """What a container was made from. A change of any of these needs a new container. None: the image's own.

    It is kept with the container as a label, and read back from there: what engines show of it is written in their own way.
    """

    image: str
    command: tuple[str, ...] | None = None
    environment: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    tmpfs: tuple[str, ...] = ("/tmp",)
    gpus: str | None = None
    user: str | None = None
    read_only: bool = True
    capabilities: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    health_path: str | None = None
    health_port: int | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Limits:
    """What is changed while it runs. None: no limit."""

    cpus: float | None = None
    memory: int | None = None
    restart: str = "unless-stopped"


@dataclass(frozen=True)
class Container:
    """A container as its engine shows it.

    `spec` is None for one that is not ours: it has neither our mark nor was it adopted. `state` is the engine's word: created,
    running, paused, restarting, exited, dead.
    `health` is that of the image's own check, "" without one. `image_id` is what it runs, whatever its tag names by now.
    """

    name: str
    id: str
    state: str
    image: str
    image_id: str
    spec: Spec | None = None
    limits: Limits = Limits()
    health: str = ""
    exit_code: int = 0
    restarts: int = 0
    trouble: str = ""
    labels: Mapping[str, str] | None = None
    published: tuple[str, ...] = ()
    started_at: str = ""  # RFC 3339, in UTC

    @property
    def running(self) -> bool:
        return self.state in ("running", "restarting", "paused")


@dataclass(frozen=True)
class Wish:
    """What is wanted. What `given` does not hold is as it is, or the default for a new container."""

    name: str
    state: str
    given: Mapping[str, Any]
    limits: Mapping[str, Any]
    secrets_differ: bool = False


@dataclass(frozen=True)
class Plan:
    """Steps in order and the fields they change. `spec` and `limits` are what the container has afterwards."""

    steps: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    spec: Spec | None = None
    limits: Limits = Limits()

    @property
    def changed(self) -> bool:
        return bool(self.steps)

    def diff(self) -> dict[str, dict[str, object]]:
        return diff_of(self.changes)


def read_spec(label: str) -> Spec | None:
    """Return the specification that a label holds, None where it holds none that we can read."""
    try:
        fields = json.loads(label)
        values = {name: _frozen(value) for name, value in fields.items() if name in Spec.__dataclass_fields__}
        return Spec(**values)
    except (ValueError, TypeError, AttributeError):
        return None


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def check_name(name: str) -> str:
    """Return the name if a container can bear it, else raise ContainerError."""
    if not NAME.fullmatch(name) or name.endswith(ASIDE):
        raise ContainerError(
            "%s is not a container name: expected up to 63 lower-case letters, digits, '-' or '.', starting and ending with a letter or digit"
            % ascii(name[:40] + ("…" if len(name) > 40 else ""))
        )
    return name


def check_image(image: str) -> str:
    """Return the image reference if engines can read it so, else raise ContainerError."""
    if not IMAGE.fullmatch(image) or len(image) > 300:
        raise ContainerError("%s is not an image: expected [REGISTRY/]NAME[:TAG], such as models/chat:1" % ascii(image[:80]))
    return image


def check_spec(spec: Spec) -> Spec:
    """Return the specification if a container can be made so, else raise ContainerError that names the field and the value."""
    check_image(spec.image)
    for name, value in spec.environment:
        if not VARIABLE.fullmatch(name):
            raise ContainerError("environment: %s is not the name of a variable" % ascii(name[:40]))
        if SECRET_WORD.search(name) and not name.lower().endswith(("_file", "_path")):
            raise ContainerError("environment: %s reads like a secret, and everybody who may look at a container sees its environment: use `secrets`" % name)
        if "\n" in value or "\0" in value:
            raise ContainerError("environment: the value of %s has several lines" % name)
    for name in spec.secrets:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name, re.ASCII):
            raise ContainerError("secrets: %s is not the name of a file" % ascii(name[:40]))
    for port in spec.ports:
        numbers = PORT.fullmatch(port)
        if numbers is None or not all(0 < int(numbers[part]) < 65536 for part in ("host", "inside")):
            raise ContainerError("ports: %s is not a published port: expected [ADDRESS:]HOST:CONTAINER, such as 127.0.0.1:8080:8080" % ascii(port[:60]))
    for volume in spec.volumes:
        if not VOLUME.fullmatch(volume) or ".." in volume.split(":")[0].split("/"):
            raise ContainerError("volumes: %s is not a mount: expected /SOURCE:/TARGET or NAME:/TARGET, with :rw where it may write" % ascii(volume[:80]))
    for folder in spec.tmpfs:
        if not re.fullmatch(r"/[A-Za-z0-9_./-]{1,200}", folder, re.ASCII):
            raise ContainerError("tmpfs: %s is not an absolute path" % ascii(folder[:80]))
    for capability in spec.capabilities:
        if not re.fullmatch(r"[A-Z_]{2,40}", capability, re.ASCII):
            raise ContainerError("capabilities: %s is no capability: expected a name such as NET_BIND_SERVICE" % ascii(capability[:40]))
    for name, _value in spec.labels:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._/-]{0,100}", name, re.ASCII) or name.startswith("cloud.lepton.spec"):
            raise ContainerError("labels: %s is not a label of yours: expected lower-case letters, digits and '.'" % ascii(name[:60]))
    if spec.gpus is not None and not GPUS.fullmatch(spec.gpus):
        raise ContainerError("gpus: %s is neither all, nor a number, nor a CDI device such as nvidia.com/gpu=0" % ascii(spec.gpus[:60]))
    if spec.user is not None and not re.fullmatch(r"[a-z0-9_][a-z0-9_-]{0,31}(?::[a-z0-9_][a-z0-9_-]{0,31})?", spec.user, re.ASCII):
        raise ContainerError("user: %s is not USER or USER:GROUP" % ascii(spec.user[:40]))
    if spec.health_path is not None:
        if not re.fullmatch(r"/[A-Za-z0-9_./?&=%-]{0,200}", spec.health_path, re.ASCII):
            raise ContainerError("health_path: %s is not a path such as /v2/health/ready" % ascii(spec.health_path[:60]))
        if spec.health_port is None or host_port(spec, spec.health_port) is None:
            raise ContainerError("health_path: port %s is not among the published ports, so its health cannot be asked for" % spec.health_port)
    return spec


def host_port(spec: Spec, inside: int) -> tuple[str, int] | None:
    """Return where on the host a port of the container is published: (address, port)."""
    for port in spec.ports:
        numbers = PORT.fullmatch(port)
        if numbers and int(numbers["inside"]) == inside:
            address = numbers["address"] or LOOPBACK
            return (LOOPBACK if address == "0.0.0.0" else address), int(numbers["host"])
    return None


def check_limits(limits: Limits) -> Limits:
    """Return the limits if engines take them, else raise ContainerError."""
    if limits.cpus is not None and not 0.01 <= limits.cpus <= 4096:
        raise ContainerError("cpus: %g is not a number of CPUs: expected 0.01 or more" % limits.cpus)
    if limits.memory is not None and limits.memory < SMALLEST:
        raise ContainerError("memory: %s is too little: expected at least %s" % (format_size(limits.memory), format_size(SMALLEST)))
    if limits.restart not in RESTARTS:
        raise ContainerError("restart: expected one of %s, not %s" % (", ".join(RESTARTS), ascii(limits.restart[:40])))
    return limits


def plan_adoption(name: str, found: Container | None, seen: Spec | None) -> Plan:
    """Return what makes a container of somebody else ours; `seen` is what its engine says it was made from. It is not touched."""
    check_name(name)
    if found is None:
        raise ContainerError("there is no container %s on this host" % name)
    if found.spec is not None:
        return Plan()
    if seen is None:
        raise AssertionError("a container that is there was made from something")
    return Plan(("adopt",), (Change("owned", False, True), Change("image", None, seen.image)), check_spec(seen), found.limits)


def make_plan(wish: Wish, found: Container | None, image_id: str | None, *, aside: bool = False) -> Plan:
    """Return what must be done to get from `found` (None: there is none) to the wish.

    `image_id` is what the wished image's name stands for on this host, None where it is not there. `aside`: an earlier
    replacement was cut short, and the container it was to replace is still there under another name.
    """
    check_name(wish.name)
    if found is not None and found.spec is None:
        raise ContainerError("%s exists on this host but was not made by Lepton, so it is left alone: adopt it, or choose another name" % wish.name)
    if wish.state == "absent":
        return _removal(found, aside=aside)
    if found is None:
        return _creation(wish, image_id)
    spec = check_spec(replace(found.spec, **wish.given))  # type: ignore[type-var]
    limits = check_limits(replace(found.limits, **wish.limits))
    changes = [
        _spec_change(field, getattr(found.spec, field), getattr(spec, field)) for field in wish.given if getattr(found.spec, field) != getattr(spec, field)
    ]
    if wish.secrets_differ:
        changes.append(Change("secrets", "as they were", "new content"))
    if "image" in wish.given and not any(change.field == "image" for change in changes) and image_id is not None and image_id != found.image_id:
        changes.append(Change("image", "%s (%s)" % (spec.image, _short(found.image_id)), "%s (%s)" % (spec.image, _short(image_id))))
    if changes:
        return _replacement(wish, found, spec, limits, changes, pull=image_id is None, aside=aside)
    return _adjustment(wish, found, limits, aside=aside)


def _removal(found: Container | None, *, aside: bool) -> Plan:
    if found is None and not aside:
        return Plan()
    changes = [] if found is None else [Change("state", found.state, "absent"), Change("image", found.image, None)]
    steps = (["stop"] if found is not None and found.running else []) + (["remove"] if found is not None else [])
    return Plan((*steps, *(["drop_aside"] if aside else []), "forget"), tuple(changes))


def _creation(wish: Wish, image_id: str | None) -> Plan:
    if not wish.given.get("image"):
        raise ContainerError("there is no container %s, and to create it an image is needed" % wish.name)
    spec = check_spec(Spec(**wish.given))
    limits = check_limits(Limits(**wish.limits))
    steps = ["pull"] if image_id is None else []
    steps.append("create")
    state = "created"
    if wish.state in ("started", "healthy"):
        steps.append("start")
        state = "running"
    if wish.state == "healthy":
        steps.append("wait")
    changes = [Change("state", "absent", state)]
    for field in ("image", *(name for name in wish.given if name != "image")):
        change = _spec_change(field, None, getattr(spec, field))
        if change.after not in (None, [], {}):
            changes.append(change)
    changes += [_limit_change(field, None, limits) for field in wish.limits if getattr(limits, field) is not None]
    return Plan(tuple(steps), tuple(changes), spec, limits)


def _replacement(wish: Wish, found: Container, spec: Spec, limits: Limits, changes: list[Change], *, pull: bool, aside: bool) -> Plan:
    """Plan a new container in place of the old one, which comes back when the new one does not come up."""
    effective = "with a brief stop" if found.running else "now"
    steps = (["pull"] if pull else []) + (["drop_aside"] if aside else [])
    steps += (["stop"] if found.running else []) + ["set_aside", "create"]
    started = wish.state in ("started", "healthy") or (wish.state == "present" and found.running)
    if started:
        steps.append("start")
    if wish.state == "healthy" or (started and spec.health_path is not None):
        steps.append("wait")
    steps.append("drop_aside")
    all_changes = [change._replace(effective=effective) for change in changes]
    all_changes += [_limit_change(field, found.limits, limits) for field in wish.limits if getattr(found.limits, field) != getattr(limits, field)]
    if started != found.running:
        all_changes.append(Change("state", found.state, "running" if started else "exited"))
    return Plan(tuple(steps), tuple(all_changes), spec, limits)


def _adjustment(wish: Wish, found: Container, limits: Limits, *, aside: bool) -> Plan:
    steps, changes = [], []
    if limits != found.limits:
        steps.append("update")
        changes += [_limit_change(field, found.limits, limits) for field in wish.limits if getattr(found.limits, field) != getattr(limits, field)]
    if wish.state in ("started", "healthy") and found.state == "paused":
        steps.append("unpause")
        changes.append(Change("state", "paused", "running"))
    elif wish.state in ("started", "healthy") and not found.running:
        steps.append("start")
        changes.append(Change("state", found.state, "running"))
    elif wish.state == "stopped" and found.running:
        steps.append("stop")
        changes.append(Change("state", found.state, "exited"))
    if aside:
        # Not before the new one has shown that it serves: until then the old one is what there is to go back to.
        steps += (["wait"] if found.spec is not None and found.spec.health_path is not None and wish.state != "stopped" else []) + ["drop_aside"]
        changes.append(Change("replacement", "cut short", "finished"))
    return Plan(tuple(steps), tuple(changes), found.spec, limits)


def _spec_change(field: str, before: Any, after: Any) -> Change:
    return Change(field, shown(before), shown(after))


def shown(value: Any) -> Any:
    """Return a field as it is written in YAML and told in a difference: pairs as a mapping, others as a list."""
    if isinstance(value, tuple):
        return dict(value) if value and isinstance(value[0], tuple) else list(value)
    return value


def _limit_change(field: str, before: Limits | None, after: Limits) -> Change:
    def told(limits: Limits | None) -> Any:
        value = None if limits is None else getattr(limits, field)
        return format_size(value) if field == "memory" and value is not None else value

    return Change(field, told(before), told(after))


def _short(image_id: str) -> str:
    return image_id.partition(":")[2][:12] or image_id[:12]
