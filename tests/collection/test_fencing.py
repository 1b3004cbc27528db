# SPDX-License-Identifier: Apache-2.0
"""What is said to fence agents, and what of their answers is shown. One of Pacemaker's turns a machine off in tests/debian."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._fencing import FenceError, asked, check_agent, said
from tests.conftest import ansible_module


def test_an_agent_reads_a_line_for_each_option() -> None:
    assert asked("off", {"ip": "192.0.2.7", "ipport": 443, "ssl": True}) == "ip=192.0.2.7\nipport=443\nssl=1\naction=off\n"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"password": "a\naction=on"}, "options.password: expected one line of text"),
        ({"a b": "c"}, "options: expected the agent's own words such as ip, username and password, not 'a b'"),
        ({"action": "on"}, "expected the agent's own words"),
        ({"ip": ["a"]}, "options.ip: expected one line of text, or a number"),
    ],
)
def test_nothing_else_is_said_to_it(options: dict[str, Any], why: str) -> None:
    with pytest.raises(FenceError, match=re.escape(why)):
        asked("off", options)


@pytest.mark.parametrize("agent", ["sh", "/bin/sh", "fence_x; reboot", "../fence_x/sh", "fence_"])
def test_only_an_agent_is_asked(agent: str) -> None:
    with pytest.raises(FenceError, match="expected a fence agent such as fence_redfish"):
        check_agent(agent)


def test_of_what_it_says_no_secret_is_shown_however_it_is_spelled() -> None:
    assert said("connecting\nlogin of ops with hunter2 failed\n\n", {"username": "ops", "password": "hunter2"}) == "connecting / login of ops with *** failed"
    assert said("Unable to run -P 'a b;c'\nPlease use '-h' for usage", {"password": "a b;c"}) == "Unable to run -P ***"
    assert said("a\\ b\\;c and a%20b%3Bc of public", {"password": "a b;c", "community": "public"}) == "*** and *** of ***"
    assert said("hunter2 at bmc1", {"passwd": "hunter", "password": "hunter2", "ip": "bmc1"}) == "*** at bmc1"
    assert said("", {}) == "it said nothing"


def command_line(process: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""


def agent(folder: Path, script: str) -> str:
    path = folder / "fence_test"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 0", "turned it off, and then did not say that it is off: it said nothing"),
        ("echo no route >&2; exit 1", "could not turn it off: no route. Whether it runs is not known"),
        ("echo syntax error >&2; exit 2", "could not turn it off: syntax error"),  # which is also what status answers of a machine that is off
        ("(sleep 8; touch late) & wait", "did not end within 1 s: whether the machine runs is not known"),
    ],
)
def test_what_is_not_seen_to_be_off_is_an_error(tmp_path: Path, script: str, why: str) -> None:
    done = ansible_module("host_fence", {"agent": agent(tmp_path, script.replace("late", f"{tmp_path}/late")), "wait_seconds": 1})
    assert done["failed"]
    assert why in done["msg"]
    # Nor does anything that it has started turn the machine off later.
    assert not [name for name in os.listdir("/proc") if name.isdigit() and str(tmp_path) in command_line(name)]


def test_what_is_off_already_is_turned_off_all_the_same(tmp_path: Path) -> None:
    script = f"words=$(cat); echo $words >>{tmp_path}/asked; case $words in *off) exit 0;; esac; exit 2"
    done = ansible_module("host_fence", {"agent": agent(tmp_path, script), "options": {"power_wait": 0.5}})
    assert (done["failed"], done["changed"]) == (False, False)
    assert (tmp_path / "asked").read_text().split() == ["power_wait=0.5", "action=status", "power_wait=0.5", "action=off", "power_wait=0.5", "action=status"]
    (tmp_path / "fence_text").write_text("no program")
    (tmp_path / "fence_text").chmod(0o755)
    assert "cannot be run: Exec format error" in ansible_module("host_fence", {"agent": str(tmp_path / "fence_text")})["msg"]
    missing = ansible_module("host_fence", {"agent": "fence_nothing"})
    assert "fence_nothing is not on this controller: install the package fence-agents" in missing["msg"]
