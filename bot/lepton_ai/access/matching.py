# SPDX-License-Identifier: Apache-2.0
"""Who asks, and whether a name matches patterns: what every rule is made of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Caller:
    """Who asks: a principal, the groups it is in, and the channel it asks from (None outside Slack)."""

    principal: str
    groups: tuple[str, ...] = ()
    channel: str | None = None


def matches(patterns: Collection[str], value: str) -> bool:
    """Return whether any of the shell-style patterns (`node/web-*`) matches, case and all."""
    return any(fnmatchcase(value, pattern) for pattern in patterns)
