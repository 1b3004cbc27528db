# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Fence agents, which turn a machine off by its BMC, its power strip or its hypervisor. Pure.

What they take and answer: https://github.com/ClusterLabs/fence-agents/blob/main/doc/FenceAgentAPI.md
"""

from __future__ import annotations

import re
import shlex
from typing import Any, Mapping, Optional
from urllib.parse import quote

AGENT = re.compile(r"fence_[a-z0-9_]+")
# What an agent answers to the action status.
IS_ON, IS_OFF = 0, 2
# What of an agent's options may be shown. Every other one may be a secret, whatever its agent calls it.
SHOWN = frozenset(("ip", "ipaddr", "ipport", "plug", "port", "username", "login"))


class FenceError(ValueError):
    """What no agent can be asked; the text says what was expected."""


def check_agent(agent: str) -> None:
    """Refuse what is no agent's name or path."""
    if not AGENT.fullmatch(agent.rpartition("/")[2]):
        raise FenceError("agent: expected a fence agent such as fence_redfish, or the path of one, not %s" % ascii(agent[:80]))


def asked(action: str, options: Mapping[str, Any]) -> str:
    """Return what an agent reads: a line for each option. Nothing of it is in its arguments, which everybody on the machine sees."""
    for name, value in options.items():
        if not re.fullmatch(r"[a-z0-9_]+", str(name)) or name == "action":
            raise FenceError("options: expected the agent's own words such as ip, username and password, not %s" % ascii(str(name)[:80]))
        if not isinstance(value, (str, int, float)) or re.search(r"[\r\n\0]", str(value)):
            raise FenceError("options.%s: expected one line of text, or a number" % name)
    written = {name: int(value) if isinstance(value, bool) else value for name, value in options.items()}
    return "".join("%s=%s\n" % pair for pair in {**written, "action": action}.items())


def is_on(code: int) -> Optional[bool]:
    """Return what an agent's status says, None where it does not know."""
    return {IS_ON: True, IS_OFF: False}.get(code)


def said(printed: str, options: Mapping[str, Any]) -> str:
    """Return the last two lines that an agent printed, without the secrets that it was given, in any of the ways that programs quote them."""
    lines = [line.strip() for line in printed.splitlines() if line.strip() and "'-h' for usage" not in line]
    last = " / ".join(lines[-2:]) or "it said nothing"
    hidden = {str(value) for name, value in options.items() if name not in SHOWN and len(str(value)) > 2}
    spelled = {way for value in hidden for way in (value, shlex.quote(value), re.sub(r"([^\w@%+=:,./-])", r"\\\1", value), repr(value), quote(value, safe=""))}
    for way in sorted(spelled, key=len, reverse=True):
        last = last.replace(way, "***")
    return last[:300]
