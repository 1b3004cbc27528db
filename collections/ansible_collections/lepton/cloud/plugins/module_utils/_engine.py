# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""A container engine through its own command, `docker` or `podman`, and its JSON output. PRIVATE to the collection."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Iterable, Iterator, Mapping, Sequence

from ._command import Ran, Run, clean, run
from ._container import ASIDE, Container, ContainerError, Limits, Plan, Spec, host_port, read_spec
from ._host_lock import host_lock
from ._node import NodeError, given
from ._ports import probe
from ._units import format_size

SPEC_LABEL = "cloud.lepton.spec"
SECRETS_LABEL = "cloud.lepton.secrets"  # which folder of its secrets a container has
SECRETS_TARGET = "/run/secrets"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x"}
POLL_SECONDS = 0.1
LOOK_SECONDS = 0.5  # between two looks at the engine while its container is waited for
LAST_LINES = 15
PULL_SECONDS = 1800
ROOM_SECONDS = 30  # to wait for others that set a limit
MIB = 1024 * 1024


def docker_container(data: Mapping[str, Any]) -> Container:
    """Return a container from what `docker container inspect` says of it."""
    state, config, host = data["State"], data["Config"], data["HostConfig"]
    return Container(
        name=data["Name"].lstrip("/"),
        id=data["Id"],
        state=state["Status"],
        image=config["Image"],
        image_id=_image_id(data["Image"]),
        spec=_spec_of(config),
        limits=_limits_of(host),
        health=(state.get("Health") or {}).get("Status", ""),
        exit_code=state.get("ExitCode", 0),
        restarts=data.get("RestartCount", 0),
        trouble=state.get("Error", ""),
        labels=_own_labels(config),
        published=_published(host),
        started_at=str(state.get("StartedAt") or ""),
    )


def podman_container(data: Mapping[str, Any]) -> Container:
    """Return a container from what `podman container inspect` says of it."""
    state, config, host = data["State"], data["Config"], data["HostConfig"]
    health = state.get("Health") or state.get("Healthcheck") or {}  # Healthcheck until podman 4
    return Container(
        name=data["Name"],
        id=data["Id"],
        state={"stopped": "exited", "configured": "created", "initialized": "created"}.get(state["Status"], state["Status"]),
        image=data.get("ImageName") or config.get("Image", ""),
        image_id=_image_id(data["Image"]),
        spec=_spec_of(config),
        limits=_limits_of(host),
        health=health.get("Status", "") or "",
        exit_code=state.get("ExitCode", 0),
        restarts=data.get("RestartCount", 0),
        trouble=state.get("Error", ""),
        labels=_own_labels(config),
        published=_published(host),
        started_at=str(state.get("StartedAt") or ""),
    )


def foreign_spec(data: Mapping[str, Any], image: Mapping[str, Any]) -> Spec:
    """Return what a container of somebody else was made from, from what its engine says of it and of its image."""
    config, host, own = data["Config"], data["HostConfig"], image.get("Config") or {}
    image_variables, image_labels = set(own.get("Env") or ()), own.get("Labels") or {}
    variables = [item.partition("=") for item in config.get("Env") or () if item not in image_variables]
    labels = {name: value for name, value in (config.get("Labels") or {}).items() if image_labels.get(name) != value}
    requests = host.get("DeviceRequests") or ()
    gpus = next((("all" if item.get("Count") == -1 else str(item.get("Count"))) for item in requests if item.get("Driver", "") in ("", "nvidia")), None)
    command = config.get("Cmd")
    return Spec(
        image=str(data.get("ImageName") or config["Image"]).removeprefix("localhost/"),
        command=None if command is None or command == own.get("Cmd") else tuple(command),
        environment=tuple(sorted((name, value) for name, _equals, value in variables)),
        ports=_published(host),
        volumes=_mounted(data),
        tmpfs=tuple(sorted({*(host.get("Tmpfs") or ()), *(mount["Destination"] for mount in data.get("Mounts") or () if mount.get("Type") == "tmpfs")})),
        gpus=gpus,
        user=config.get("User") if config.get("User") not in ("", own.get("User")) else None,
        read_only=bool(host.get("ReadonlyRootfs")),
        capabilities=_capabilities(host),
        labels=tuple(sorted(labels.items())),
    )


# What a container can have that a specification of ours has no word for: where engines show it, and what they show when it has none.
UNKNOWN_TO_US: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("NetworkMode", (None, "", "default", "bridge", "slirp4netns", "pasta")),
    ("Privileged", (None, False)),
    ("Devices", (None, [])),
    ("PidMode", (None, "", "private")),
    ("IpcMode", (None, "", "private", "shareable")),
    ("UTSMode", (None, "", "private")),
    ("UsernsMode", (None, "")),
    ("ShmSize", (None, 0, 64 * 1024 * 1024, 65536000)),
    ("Ulimits", (None, [])),
    ("Runtime", (None, "", "runc", "crun", "oci")),
    ("SecurityOpt", (None, [], ["no-new-privileges"])),
    ("Dns", (None, [])),
    ("DnsSearch", (None, [])),
    ("GroupAdd", (None, [])),
    ("Sysctls", (None, {})),
    ("Links", (None, [])),
    ("CgroupParent", (None, "")),
    ("ExtraHosts", (None, [])),
    ("VolumesFrom", (None, [])),
)
# What an engine leaves to a container that is told nothing of capabilities:
# https://docs.docker.com/engine/containers/run/#runtime-privilege-and-linux-capabilities
DEFAULT_CAPABILITIES = frozenset(
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT".split()
)


def lost_by_adoption(data: Mapping[str, Any], image: Mapping[str, Any]) -> list[str]:
    """Return what a container of somebody else would lose if it was made again from our specification of it."""
    config, host, own = data["Config"], data["HostConfig"], image.get("Config") or {}
    lost = [name for name, none in UNKNOWN_TO_US if host.get(name) not in none]
    if (config.get("Entrypoint") or None) != (own.get("Entrypoint") or None):
        lost.append("Entrypoint")
    lost += [inside for inside in host.get("PortBindings") or {} if not inside.endswith("/tcp")]
    return lost + [mount["Destination"] for mount in data.get("Mounts") or () if mount.get("Type") not in ("bind", "volume", "tmpfs")]


def _mounted(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what is mounted, however it was asked for, as our specifications write it; also volumes that have no name but their number."""
    mounts = [mount for mount in data.get("Mounts") or () if mount.get("Type") in ("bind", "volume")]
    parts = ((mount["Source"] if mount["Type"] == "bind" else mount.get("Name"), mount["Destination"], mount.get("RW", True)) for mount in mounts)
    return tuple(sorted("%s:%s:%s" % (source, target, "rw" if writable else "ro") for source, target, writable in parts))


def _capabilities(host: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the capabilities that a container has: ours begin with none, others with what the engine leaves to them."""
    dropped = {name.upper().removeprefix("CAP_") for name in host.get("CapDrop") or ()}
    kept = frozenset() if "ALL" in dropped else DEFAULT_CAPABILITIES - dropped
    return tuple(sorted(kept | {name.upper().removeprefix("CAP_") for name in host.get("CapAdd") or ()}))


READERS = {"docker": docker_container, "podman": podman_container}


def age_seconds(started_at: str) -> int | None:
    """Return how long ago a container was started by this host's clock, None for one that never was.

    Engines write nanoseconds, which Python 3.9 does not read, and the year 1 for never.
    """
    found = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)$", started_at)
    if found is None or found.group(1).startswith("0001"):
        return None
    begun = datetime.fromisoformat(found.group(1) + ("+00:00" if found.group(2) == "Z" else found.group(2)))
    return max(0, int((datetime.now(timezone.utc) - begun).total_seconds()))


def _image_id(text: str) -> str:
    """Return an image's identity as Docker writes it; Podman leaves out how it was made."""
    return text if text.startswith("sha256:") else "sha256:" + text


def _spec_of(config: Mapping[str, Any]) -> Spec | None:
    label = (config.get("Labels") or {}).get(SPEC_LABEL)
    return None if label is None else read_spec(label)


def _own_labels(config: Mapping[str, Any]) -> dict[str, str]:
    return {clean(str(name)): clean(str(value)) for name, value in (config.get("Labels") or {}).items() if name != SPEC_LABEL}


def _limits_of(host: Mapping[str, Any]) -> Limits:
    nano, memory = host.get("NanoCpus") or 0, host.get("Memory") or 0
    if not nano and host.get("CpuQuota", 0) > 0 and host.get("CpuPeriod", 0) > 0:
        nano = host["CpuQuota"] * 10**9 // host["CpuPeriod"]
    restart = (host.get("RestartPolicy") or {}).get("Name") or "no"
    return Limits(cpus=nano / 1e9 if nano else None, memory=memory or None, restart=restart)


def _published(host: Mapping[str, Any]) -> tuple[str, ...]:
    bindings = ((inside.partition("/")[0], item) for inside, items in (host.get("PortBindings") or {}).items() for item in items or ())
    return tuple(sorted("%s:%s:%s" % (item.get("HostIp") or "0.0.0.0", item.get("HostPort", ""), inside) for inside, item in bindings))


class Engine:
    """One engine, by its command. `address` is where its daemon listens, where that is not its default.

    `memory_reserve` bytes are never given to containers. `state_dir` keeps what the engine must not show, secrets, and what it cannot
    be told any more, which containers were adopted.
    """

    def __init__(self, kind: str, *, address: str | None, state_dir: str, memory_reserve: int = 0, run: Run = run) -> None:
        self.kind = kind
        self.lock_dir = os.path.join(state_dir, "locks")
        self._memory_reserve = memory_reserve
        self.secret_dir = os.path.join(state_dir, "secrets")
        self.adopted_dir = os.path.join(state_dir, "adopted")
        self._command = [kind] + ([] if address is None else ["--host" if kind == "docker" else "--url", address])
        self._address = address
        self._run = run

    # What is there

    def container(self, name: str) -> Container | None:
        """Return a container by its name, None when there is none."""
        ran = self.attempt("container", "inspect", name)
        if ran.code:
            if "no such container" in ran.trouble.lower():
                return None
            raise self.error("inspect", ran)
        return self._read(json.loads(ran.out)[0])

    def _read(self, data: Mapping[str, Any]) -> Container:
        found = READERS[self.kind](data)
        if found.spec is not None:
            return found
        try:
            with open(os.path.join(self.adopted_dir, found.id), encoding="utf-8") as file:
                return replace(found, spec=read_spec(file.read()))
        except FileNotFoundError:
            return found

    def made_from(self, name: str) -> Spec | None:
        """Return what a container was made from, whoever made it; None when there is none. Raises ContainerError where that cannot be said."""
        ran = self.attempt("container", "inspect", name)
        if ran.code:
            return None
        data = json.loads(ran.out)[0]
        image = self.image(data["Image"]) or {}
        lost = lost_by_adoption(data, image)
        if lost:
            raise ContainerError("%s cannot be adopted, since it could not be made again as it is: it has its own %s" % (name, ", ".join(lost)))
        return foreign_spec(data, image)

    def adopt(self, name: str, spec: Spec) -> None:
        """Note that a container is ours from now on. It is not touched: engines cannot change a label."""
        found = given(self.container(name))
        os.makedirs(self.adopted_dir, mode=0o700, exist_ok=True)
        path = os.path.join(self.adopted_dir, found.id)
        with open(path + ".partial", "w", encoding="utf-8") as file:
            file.write(spec.to_json())
        os.replace(path + ".partial", path)

    def _forget_adopted(self) -> None:
        """Remove the notes of adopted containers that are there no more."""
        noted = os.listdir(self.adopted_dir) if os.path.isdir(self.adopted_dir) else []
        kept = set(self.ask("ps", "--all", "--quiet", "--no-trunc").split()) if noted else set()
        for container_id in noted:
            if container_id not in kept:
                os.unlink(os.path.join(self.adopted_dir, container_id))

    def containers(self) -> list[Container]:
        """Return all containers of this engine, ours and others, by name."""
        names = self.ask("ps", "--all", "--quiet", "--no-trunc").split()
        if not names:
            return []
        ran = self.attempt("container", "inspect", *names)  # one that has gone meanwhile makes it fail, and shows the others
        if ran.code and "no such container" not in ran.trouble.lower():
            raise self.error("inspect", ran)
        return sorted((self._read(item) for item in json.loads(ran.out or "[]")), key=lambda container: container.name)

    def image(self, reference: str) -> dict[str, Any] | None:
        """Return what the engine says of an image, None when it does not have it."""
        ran = self.attempt("image", "inspect", reference)
        if ran.code:
            if "no such image" in ran.trouble.lower() or "image not known" in ran.trouble.lower():
                return None
            raise self.error("image inspect", ran)
        found: dict[str, Any] = json.loads(ran.out)[0]
        return dict(found, Id=_image_id(found["Id"]))

    def image_ids(self) -> dict[str, str]:
        """Return the images of this engine, by name."""
        lines = self.ask("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if "<none>" not in line)
        # Podman writes localhost before an image without a registry.
        return {name.removeprefix("localhost/"): _image_id(image_id) for name, image_id in sorted(pairs)}

    def info(self) -> dict[str, Any]:
        """Return the engine's {kind, version, cpus, memory, architecture}."""
        facts = json.loads(self.ask("info", "--format", "json" if self.kind == "podman" else "{{json .}}"))
        if facts.get("ServerErrors"):
            raise ContainerError("%s does not answer%s: %s" % (self.kind, self._where(), clean(facts["ServerErrors"][0])))
        if self.kind == "podman":
            host = facts["host"]
            version, cpus, memory, machine = facts["version"]["Version"], host["cpus"], host["memTotal"], host["arch"]
        else:
            version, cpus, memory, machine = facts["ServerVersion"], facts["NCPU"], facts["MemTotal"], facts["Architecture"]
        return {"kind": self.kind, "version": version, "cpus": cpus, "memory": memory, "architecture": ARCHITECTURES.get(machine, machine)}

    def logs(self, name: str, lines: int) -> str:
        """Return the last lines that a container wrote, fit to be shown."""
        return clean(self._run([*self._command, "logs", "--tail", str(lines), name], together=True).out)

    def secrets_of(self, name: str, folder: str) -> dict[str, str]:
        """Return the secrets that were given to a container, {} when there are none."""
        path = os.path.join(self.secret_dir, name, os.path.basename(folder))
        found = {}
        for file in os.listdir(path) if folder and os.path.isdir(path) else ():
            with open(os.path.join(path, file), encoding="utf-8") as opened:
                found[file] = opened.read()
        return found

    # What is done

    def pull(self, image: str) -> None:
        """Fetch an image from its registry."""
        ran = self.attempt("pull", "--quiet", image, seconds=PULL_SECONDS)
        if ran.code:
            known = ", ".join(list(self.image_ids())[:20]) or "none"
            raise ContainerError("the image %s is not here, and could not be pulled: %s. Images here: %s" % (image, _last(ran.trouble), known))

    def check_architecture(self, image: str) -> None:
        """Raise ContainerError for an image that this machine cannot run."""
        found = self.image(image)
        own = self.info()["architecture"]
        if found is not None and found.get("Architecture") not in (None, "", own):
            raise ContainerError("the image %s is for %s, and this host is %s: build it for that" % (image, clean(str(found["Architecture"])), own))

    def create(self, name: str, spec: Spec, limits: Limits, values: Mapping[str, str]) -> None:
        """Make a container, stopped. `values` are its secrets, which it gets as files."""
        command = ["create", "--name=" + name, "--label=%s=%s" % (SPEC_LABEL, spec.to_json()), "--restart=" + limits.restart]
        command += ["--cap-drop=ALL", "--security-opt=no-new-privileges"]
        command += ["--read-only"] if spec.read_only else []
        command += ["--tmpfs=" + folder for folder in spec.tmpfs]
        command += ["--cap-add=" + capability for capability in spec.capabilities]
        command += ["--label=%s=%s" % pair for pair in spec.labels]
        command += ["--env=%s=%s" % pair for pair in spec.environment]
        command += ["--publish=" + (port if port.count(":") == 2 else "127.0.0.1:" + port) for port in spec.ports]
        command += ["--volume=" + (volume if volume.endswith((":rw", ":ro")) else volume + ":ro") for volume in spec.volumes]
        command += ["--user=" + spec.user] if spec.user is not None else []
        if spec.gpus is not None:
            command += ["--device=" + spec.gpus] if "=" in spec.gpus else ["--gpus=" + spec.gpus]
        command += self._limits(limits)
        if spec.secrets:
            folder = self._write_secrets(name, {secret: values[secret] for secret in spec.secrets})
            command += ["--label=%s=%s" % (SECRETS_LABEL, os.path.basename(folder)), "--volume=%s:%s:ro" % (folder, SECRETS_TARGET)]
        self.ask(*command, spec.image, *(spec.command or ()))

    def update(self, name: str, limits: Limits, *, restart: bool) -> None:
        """Change what changes in place. `restart`: the policy too, which Podman before 5.1 cannot."""
        self.ask("update", *self._limits(limits), *(["--restart=" + limits.restart] if restart else []), name)

    def apply(self, name: str, plan: Plan, *, values: Mapping[str, str], stop_seconds: int, wait_seconds: int) -> None:
        """Do the steps of a plan. What does not come up is taken back: the container is gone, or the earlier one is there again.

        Raises ContainerError with why, and with the last lines that the container wrote.
        """
        old = name + ASIDE
        was_running, set_aside = False, plan.steps[-1:] == ("drop_aside",) and "set_aside" not in plan.steps
        try:
            for step in plan.steps:
                if step == "pull":
                    self.pull(given(plan.spec).image)
                elif step == "create":
                    self.check_architecture(given(plan.spec).image)
                    with self.promising(name, plan.limits):
                        self.create(name, given(plan.spec), plan.limits, values)
                elif step == "start":
                    self.ask("start", name)
                    self._must_run(name)
                elif step == "wait":
                    self.wait_healthy(name, given(plan.spec), wait_seconds)
                elif step == "stop":
                    was_running = True
                    self.ask("stop", "--time=%d" % stop_seconds, name, seconds=stop_seconds + 30)
                elif step == "unpause":
                    self.ask("unpause", name)
                elif step == "update":
                    with self.promising(name, plan.limits):
                        self.update(name, plan.limits, restart=any(change.field == "restart" for change in plan.changes))
                elif step == "set_aside":
                    self.ask("rename", name, old)
                    set_aside = True
                elif step == "remove":
                    self.ask("rm", "--force", "--volumes", name)
                elif step == "drop_aside":
                    if self.container(old) is not None:
                        self.ask("rm", "--force", old)  # its volumes may hold what nobody has elsewhere
                    set_aside = False
                    self._keep_secrets(name)
                    self._forget_adopted()
                elif step == "adopt":
                    self.adopt(name, given(plan.spec))
                elif step == "forget":
                    shutil.rmtree(os.path.join(self.secret_dir, name), ignore_errors=True)
                    self._forget_adopted()
        except (ContainerError, NodeError, OSError) as error:  # what is wrong, a lock that is held, a file that cannot be written
            raise ContainerError("%s%s" % (error, self._take_back(name, plan, was_running=was_running, set_aside=set_aside))) from error

    @contextmanager
    def promising(self, name: str, limits: Limits) -> Iterator[None]:
        """Hold what this host may promise while a limit is set: two that were planned from the same answer must not both get the last of it."""
        if limits.memory is None:
            yield
            return
        with host_lock(self.lock_dir, "room", ROOM_SECONDS):
            others = {item.name: item.limits.memory or 0 for item in self.containers()}
            before = max(others.pop(name, 0), others.pop(name + ASIDE, 0))
            free = self._free(sum(others.values()))
            if limits.memory > max(free, before):  # what it has is its own, however full the host is by now
                told = (name, format_size(limits.memory), format_size(free // MIB * MIB))
                raise ContainerError("%s was to get %s, and this host has %s left to give" % told)
            yield

    def _free(self, promised: int) -> int:
        return max(0, self.info()["memory"] - self._memory_reserve - promised)

    def memory_free(self) -> int:
        """Return how many bytes this host may still promise."""
        return self._free(sum(item.limits.memory or 0 for item in self.containers()))

    def _take_back(self, name: str, plan: Plan, *, was_running: bool, set_aside: bool) -> str:
        """Undo what was begun, and return that in words. `set_aside`: the earlier container waits under its other name."""
        if set_aside:
            self.put_back(name, start=was_running or "set_aside" not in plan.steps)
            return ". The earlier container is back"
        if "set_aside" in plan.steps:  # it failed before the old one was touched, or while it was stopped
            if was_running:
                self.attempt("start", name)
            return ". The container is as it was"
        if "create" not in plan.steps:
            return ""
        self.attempt("rm", "--force", "--volumes", name)
        shutil.rmtree(os.path.join(self.secret_dir, name), ignore_errors=True)
        return ". The container was removed again"

    def put_back(self, name: str, *, start: bool) -> None:
        """Put the container back that a replacement had set aside."""
        self.attempt("rm", "--force", "--volumes", name)
        self.ask("rename", name + ASIDE, name)
        if start:
            self.ask("start", name)
        self._keep_secrets(name)

    def _must_run(self, name: str) -> None:
        found = self.container(name)
        if found is not None and found.state not in ("running", "paused"):
            raise ContainerError("%s ended at once with code %d%s" % (name, found.exit_code, self._last_words(name)))

    def wait_healthy(self, name: str, spec: Spec, seconds: float) -> None:
        """Wait until a container is healthy: by its readiness path where it has one, and by the image's own check where that has one.

        Raises ContainerError at once when it has ended or begins to restart, and after `seconds` with what it answered last.
        """
        deadline = time.monotonic() + seconds
        address = host_port(spec, spec.health_port) if spec.health_path is not None and spec.health_port is not None else None
        begun = self.container(name)
        restarts = begun.restarts if begun is not None else 0
        answer, ready, looked = "nothing", address is None, 0.0
        while True:
            if address is not None and not ready:
                ready, answer = probe(address, str(spec.health_path))
            if ready or time.monotonic() - looked > LOOK_SECONDS:
                found = self.container(name)
                looked = time.monotonic()
                if found is None:
                    raise ContainerError("%s was removed while it was waited for" % name)
                if found.state not in ("running", "created") or found.restarts > restarts:
                    again = "begins again and again" if found.restarts > restarts or found.state == "restarting" else "ended"
                    raise ContainerError("%s %s, the last time with code %d%s" % (name, again, found.exit_code, self._last_words(name)))
                if found.health == "unhealthy":
                    raise ContainerError("%s says itself that it is unhealthy%s" % (name, self._last_words(name)))
                if ready and found.health in ("", "healthy"):
                    return
            if time.monotonic() > deadline:
                asked = (
                    "%s answered %s" % (spec.health_path, answer) if address is not None else "its own check says %s" % (found.health if found else "nothing")
                )
                raise ContainerError("%s did not become healthy within %d s: %s%s" % (name, seconds, asked, self._last_words(name)))
            time.sleep(POLL_SECONDS)  # readiness is an answer of the container's own, for which there is no event

    def _last_words(self, name: str) -> str:
        said = self.logs(name, LAST_LINES).strip()
        return ". It wrote last: %s" % said[-1500:] if said else ". It wrote nothing"

    # Secrets

    def _write_secrets(self, name: str, values: Mapping[str, str]) -> str:
        """Write secrets for one container into a folder of their own and return it; only root and the container get there."""
        home = os.path.join(self.secret_dir, name)
        os.makedirs(home, mode=0o700, exist_ok=True)
        os.chmod(self.secret_dir, 0o700)
        folder = os.path.join(home, secrets.token_hex(8))
        os.mkdir(folder, 0o755)
        os.chmod(folder, 0o755)
        for secret, value in values.items():
            # The folders above keep others of this host out; inside the container, whatever user it has must read them.
            with os.fdopen(os.open(os.path.join(folder, secret), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444), "w") as file:
                os.fchmod(file.fileno(), 0o444)  # whatever the umask
                file.write(value)
        return folder

    def _keep_secrets(self, name: str) -> None:
        """Remove the secrets of containers that are there no more."""
        found = self.container(name)
        kept = ((found.labels or {}).get(SECRETS_LABEL) if found is not None else None) or ""
        home = os.path.join(self.secret_dir, name)
        for folder in os.listdir(home) if os.path.isdir(home) else ():
            if folder != kept:
                shutil.rmtree(os.path.join(home, folder), ignore_errors=True)

    # The command

    def _limits(self, limits: Limits) -> list[str]:
        found = [] if limits.cpus is None else ["--cpus=%g" % limits.cpus]
        if limits.memory is not None:
            found += ["--memory=%d" % limits.memory, "--memory-swap=%d" % limits.memory]  # the same: no swap, and it can grow past the earlier sum
        return found

    def ask(self, *words: str, seconds: float = 60) -> str:
        """Return what the engine's command answers; raise ContainerError with what it said when it failed."""
        ran = self.attempt(*words, seconds=seconds)
        if ran.code:
            raise self.error(words[0], ran)
        return ran.out

    def attempt(self, *words: str, seconds: float = 60) -> Ran:
        """Return how the engine's command ended, and what it said."""
        return self._run([*self._command, *words], seconds=seconds)

    def _where(self) -> str:
        return " at %s" % self._address if self._address else ""

    def error(self, what: str, ran: Ran) -> ContainerError:
        """Return the error that a failed command was, in words."""
        text = _last(ran.trouble or ran.out) or "it ended with code %d" % ran.code
        if ran.code in (124, 126, 127) or "cannot connect to the docker daemon" in text.lower() or "trying to connect" in text.lower():
            return ContainerError("%s does not answer%s: %s. Is the engine installed and running?" % (self.kind, self._where(), text))
        if "port is already allocated" in text or "address already in use" in text:
            return ContainerError("%s %s: a port is taken by somebody else on this host: %s" % (self.kind, what, text))
        if "no space left" in text.lower():
            return ContainerError("%s %s: the disk of this host is full: %s" % (self.kind, what, text))
        return ContainerError("%s %s: %s" % (self.kind, what, text))


def _last(text: str) -> str:
    lines = [line for line in clean(text).splitlines() if line.strip() and not line.startswith(("See 'docker", "Run 'docker"))]
    return " ".join(lines[-3:])[-600:]


def ports_in_use(containers: Sequence[Container], listening: Iterable[int]) -> list[int]:
    """Return the TCP ports of this host that somebody listens on, or that a container would take when it is started."""
    published = {int(port.split(":")[1]) for container in containers for port in container.published if port.split(":")[1].isdigit()}
    return sorted({*published, *listening})
