# SPDX-License-Identifier: Apache-2.0
"""A machine on which containers run already becomes a container host."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.debian.machine import Machine, changed, debian_machine

pytestmark = [pytest.mark.debian, pytest.mark.slow]


@contextmanager
def running_a_container(options: str = "") -> Iterator[Machine]:
    """Make a machine with Docker as its package leaves it, or with options of a site's own, and with a container."""
    with debian_machine() as machine:
        machine.inventory(("container_hosts",))
        machine.do("apt-get", "install", "-y", "-qq", "docker.io")
        # What the container that stands for a machine does not have: control groups that can be written.
        machine.do("for mounted in /sys/fs/cgroup/*; do mount -o remount,bind,rw $mounted; done")
        shutil.copy("/bin/busybox", machine.folder / "root/usr/bin/busybox")
        if options:
            (machine.folder / "root/etc/default/docker").write_text(f"DOCKER_OPTS={options}\n")
            machine.do("systemctl", "restart", "docker")
        machine.do("tar -C /usr -c bin/busybox | docker import - box")
        machine.do("docker", "run", "--detach", "--name", "before", "--network", "none", "box", "/bin/busybox", "sleep", "1000")
        assert state(machine)["Running"]
        yield machine


def state(machine: Machine) -> dict[str, Any]:
    (found,) = json.loads(machine.do("docker", "inspect", "before"))
    shown: dict[str, Any] = found["State"]
    return shown


def test_containers_that_run_on_a_machine_outlive_its_preparing() -> None:
    """Docker's own settings end them with the engine, and the engine is restarted for ours."""
    with running_a_container() as machine:
        before = state(machine)
        assert changed(machine.play("host/prepare")) > 0
        assert state(machine) == before
        assert "json-file" in machine.do("docker", "info")
        assert changed(machine.play("host/prepare")) == 0


def test_an_engine_that_takes_none_of_the_settings_is_not_restarted_for_them() -> None:
    """It refuses them all where one of them is an option already, and says so in its log only."""
    with running_a_container("--log-driver=json-file") as machine:
        before = state(machine)
        failed = machine.play("host/prepare")
        assert failed.returncode != 0
        assert "See that containers would run on" in failed.stdout
        assert state(machine) == before
