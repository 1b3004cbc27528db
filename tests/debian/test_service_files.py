# SPDX-License-Identifier: Apache-2.0
"""Whether a service of systemd's has read its files, where clocks, links and systemd itself make that hard to see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import eventually
from tests.debian.machine import Machine, debian_machine

pytestmark = [pytest.mark.debian, pytest.mark.slow]
UNIT = "[Service]\nEnvironment=WORD={word}\nExecStart=/bin/sh -c 'cat /etc/demo/* >/run/read; exec sleep 1000'\nExecReload=/bin/sh -c 'cat /etc/demo/* >/run/read'\nRestart=always\nRestartSec=0\n"  # fmt: skip  # noqa: E501


@pytest.fixture(scope="module")
def booted() -> Iterator[Machine]:
    with debian_machine("trixie") as made:
        made.inventory(("hypervisors",))
        yield made


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    (etc(booted) / "demo").mkdir()
    (etc(booted) / "demo/a").write_text("old\n")
    (etc(booted) / "systemd/system/demo.service").write_text(UNIT.format(word="old"))
    booted.do("systemctl daemon-reload; systemctl start demo")
    eventually(lambda: booted.do("cat", "/run/read") == "old", 20)
    yield booted
    booted.do("systemctl stop demo; rm -rf /etc/demo /etc/systemd/system/demo.service /run/read /srv/demo; systemctl daemon-reload")


def etc(machine: Machine) -> Path:
    return machine.folder / "root/etc"


def done(machine: Machine, **files: Any) -> list[str]:
    """Return what is done to the service, now and when asked again."""
    return [machine.module("service_files", name="demo", **files).get("action", "failed") for _ in range(2)]


def test_a_file_is_read_once(machine: Machine) -> None:
    assert done(machine, reload=["/etc/demo"], restart=["/etc/none"]) == ["none", "none"]
    (etc(machine) / "demo/a").write_text("new\n")
    assert done(machine, reload=["/etc/demo"]) == ["reload", "none"]
    assert machine.do("cat", "/run/read") == "new"
    # Also one whose time is of a clock that is ahead, or that was brought with a time of its own.
    os.utime(etc(machine) / "demo/a", (4e9, 4e9))
    assert done(machine, restart=["/etc/demo/a"]) == ["restart", "none"]
    (etc(machine) / "demo/b").write_text("brought\n")
    os.utime(etc(machine) / "demo/b", (1e9, 1e9))
    assert done(machine, restart=["/etc/demo/b"]) == ["restart", "none"]
    assert eventually(lambda: machine.do("cat", "/run/read") == "new\nbrought", 20)


def test_a_unit_that_systemd_has_not_read_is_read_though_the_service_started_since(machine: Machine) -> None:
    before = machine.do("systemctl", "show", "--property=MainPID", "--value", "demo")
    (etc(machine) / "systemd/system/demo.service").write_text(UNIT.format(word="new"))
    machine.do("kill", "-9", before)
    process = eventually(lambda: (now := machine.do("systemctl", "show", "--property=MainPID", "--value", "demo")) not in {before, "0"} and now, 20)
    assert "WORD=old" in machine.do("cat", f"/proc/{process}/environ")
    assert done(machine) == ["restart", "none"]
    process = machine.do("systemctl", "show", "--property=MainPID", "--value", "demo")
    assert "WORD=new" in machine.do("cat", f"/proc/{process}/environ")


def test_links_are_followed_and_what_is_no_file_is_left_out(machine: Machine) -> None:
    machine.do("mkdir /srv/demo; ln -s /srv/demo /etc/demo/team; ln -s . /etc/demo/loop; ln -s self /etc/demo/self; mkfifo /etc/demo/pipe")
    assert done(machine, restart=["/etc/demo"]) == ["restart", "none"]
    machine.do("touch", "/srv/demo/later")
    assert done(machine, restart=["/etc/demo"]) == ["restart", "none"]


def test_what_does_not_run_stays_so_and_what_is_no_service_is_said(machine: Machine) -> None:
    machine.do("systemctl", "stop", "demo")
    (etc(machine) / "demo/a").write_text("new\n")
    assert done(machine, restart=["/etc/demo"]) == ["none", "none"]
    assert machine.do("systemctl", "is-active", "demo") == "inactive"
    assert "this host has no such unit" in machine.module("service_files", name="nothing")["msg"]
    assert "expected a service" in machine.module("service_files", name="systemd-journald.socket")["msg"]
