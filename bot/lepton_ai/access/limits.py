# SPDX-License-Identifier: Apache-2.0
"""Limits on arguments: how much of a thing, or which. Pure; sizes are compared as sizes."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ansible_collections.lepton.cloud.plugins.module_utils._units import parse_size
from pydantic import BaseModel, ConfigDict


class Limit(BaseModel):
    """What a value may be: at most `max` (a number, or a size such as `8GiB`), or one that matches one of `values`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max: float | str | None = None
    values: list[str] | None = None


def over_limit(limits: Mapping[str, Limit], arguments: Mapping[str, Any]) -> str | None:
    """Return why these arguments are not within the limits, None when they are. What is not given is within them."""
    for name, limit in limits.items():
        value = arguments.get(name)
        if value is None:
            continue
        for item in value if isinstance(value, list) else [value]:
            if limit.max is not None and not _at_most(item, limit.max):
                return f"{name} is {_shown(item)}, and at most {limit.max} is allowed"
            if limit.values is not None and not any(fnmatchcase(str(item), pattern) for pattern in limit.values):
                return f"{name} is {_shown(item)}, and only {', '.join(limit.values)} is allowed"
    return None


def _at_most(value: Any, most: float | str) -> bool:
    try:
        return (parse_size(value) if isinstance(value, str) else value) <= (parse_size(most) if isinstance(most, str) else most)
    except (ValueError, TypeError):
        return False


def _shown(value: Any) -> str:
    return ascii(str(value)[:40])[1:-1]
