# SPDX-License-Identifier: Apache-2.0
"""How a plan that needs approval stands: pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import StrEnum

from lepton_ai.runs.model import Decision, Run, State


class Standing(StrEnum):
    """What a plan waits for. Only WAITING can be decided."""

    NONE = "needs no approval"
    PLANNING = "is being planned"
    NOTHING = "would change nothing"
    WAITING = "waits for approval"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"


def standing(plan: Run, decisions: Sequence[Decision], now: float | None = None) -> Standing:
    """Return how a plan stands at a point of time, seconds since the epoch; now by default."""
    approval = plan.origin.get("approval")
    if not approval or not plan.check:
        return Standing.NONE
    if any(not decision.approved for decision in decisions):
        return Standing.REJECTED
    if plan.state is not State.SUCCEEDED:
        return Standing.PLANNING if not plan.state.final else Standing.NONE
    if approval["plannable"] and not plan.result.get("changed_hosts"):
        return Standing.NOTHING
    if sum(decision.approved for decision in decisions) >= approval["count"]:
        return Standing.APPROVED
    return Standing.EXPIRED if (time.time() if now is None else now) > approval["expires"] else Standing.WAITING
