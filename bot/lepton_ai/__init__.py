# SPDX-License-Identifier: Apache-2.0
"""Lepton: an AI cloud on your own hosts, run from Slack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lepton_ai.resources import VirtualNode

__all__ = ["VirtualNode"]


def __getattr__(name: str) -> Any:
    # Only when asked for: every module of the package comes through here, and most need nothing of the API.
    if name == "VirtualNode":
        from lepton_ai.resources import VirtualNode

        return VirtualNode
    raise AttributeError(f"module 'lepton_ai' has no attribute {name!r}")
