# SPDX-License-Identifier: Apache-2.0
"""What is said to fence agents, and what of their answers is shown. One of Pacemaker's turns a machine off in tests/debian."""

from __future__ import annotations

import re
import time
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


def test_of_what_it_says_the_last_line_is_shown_and_no_secret() -> None:
    assert said("connecting\nlogin of ops with hunter2 failed\n\n", {"username": "ops", "password": "hunter2"}) == "login of ops with *** failed"
    assert said("", {}) == "it said nothing"


def agent(folder: Path, script: str) -> str:
    path = folder / "fence_test"
    path.write_text(f"#!/bin/sh\nread words\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 0", "turned it off, and then did not say that it is off: it said nothing"),
        ("echo no route >&2; exit 1", "could not turn it off: no route. Whether it runs is not known"),
        ("sleep 30", "did not end within 1 s: whether the machine runs is not known"),
    ],
)
def test_what_is_not_seen_to_be_off_is_an_error(tmp_path: Path, script: str, why: str) -> None:
    begun = time.monotonic()
    done = ansible_module("host_fence", {"agent": agent(tmp_path, script), "wait_seconds": 1})
    assert done["failed"]
    assert why in done["msg"]
    assert time.monotonic() - begun < 20


def test_what_is_off_already_stays_so(tmp_path: Path) -> None:
    done = ansible_module("host_fence", {"agent": agent(tmp_path, f"echo asked >>{tmp_path}/asked; exit 2")})
    assert (done["failed"], done["changed"]) == (False, False)
    assert (tmp_path / "asked").read_text() == "asked\n"
    missing = ansible_module("host_fence", {"agent": "fence_nothing"})
    assert "fence_nothing is not on this controller: install the package fence-agents" in missing["msg"]
