# SPDX-License-Identifier: Apache-2.0
"""A machine on which containers run already becomes a container host."""

from __future__ import annotations

import json
import shutil

import pytest
from tests.debian.machine import changed, debian_machine

pytestmark = [pytest.mark.debian, pytest.mark.slow]


def test_containers_that_run_on_a_machine_outlive_its_preparing() -> None:
    """Docker's own settings end them with the engine, and the engine is restarted for ours."""
    with debian_machine() as machine:
        machine.inventory(("container_hosts",))
        machine.do("apt-get", "install", "-y", "-qq", "docker.io")
        machine.do("for mounted in /sys/fs/cgroup/*; do mount -o remount,bind,rw $mounted; done")
        shutil.copy("/bin/busybox", machine.folder / "root/usr/bin/busybox")
        machine.do("tar -C /usr -c bin/busybox | docker import - box")
        machine.do("docker", "run", "--detach", "--name", "before", "--network", "none", "box", "/bin/busybox", "sleep", "1000")
        (before,) = json.loads(machine.do("docker", "inspect", "before"))
        assert before["State"]["Running"]
        assert changed(machine.play("host/prepare")) > 0
        (after,) = json.loads(machine.do("docker", "inspect", "before"))
        assert after["State"] == before["State"]
        assert "json-file" in machine.do("docker", "info")
        assert changed(machine.play("host/prepare")) == 0
