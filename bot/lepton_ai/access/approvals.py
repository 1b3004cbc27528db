# SPDX-License-Identifier: Apache-2.0
"""When somebody else must agree, and who that may be: pure decisions over a site's rules."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lepton_ai.access.limits import Limit, over_limit
from lepton_ai.access.matching import Caller, matches
from lepton_ai.hours import SPAN, within


class ApprovalRule(BaseModel):
    """When an operation needs approval, and whose. Every condition that is given must hold.

    `above`: only where an argument is past one of these. `hours`: only at this time of day, such as `18:00-08:00`, in the
    site's time zone. `hosts_over`: only where the plan changes more hosts than this.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    operations: list[str] = Field(default=["*"])
    targets: list[str] = Field(default=["*"])
    above: dict[str, Limit] = Field(default_factory=dict)
    hours: str | None = Field(default=None, pattern=SPAN)
    hosts_over: int | None = Field(default=None, ge=0)
    approvers: list[str] = Field(min_length=1)
    count: int = Field(default=1, ge=1)
    self_approval: bool = False
    expires_minutes: int = Field(default=60, ge=1)

    @model_validator(mode="after")
    def _needs_somebody(self) -> ApprovalRule:
        if not any(approver.strip() for approver in self.approvers):
            raise ValueError("approvers names nobody")
        return self


def needed_approval(
    rules: Sequence[ApprovalRule], operation: str, targets: Sequence[str], arguments: Mapping[str, Any], at: datetime.datetime, hosts: int | None = None
) -> ApprovalRule | None:
    """Return the first rule that asks for approval, None when none does.

    `hosts` is how many hosts the plan would change; without a plan yet, a rule on that number counts as asking, so that
    there is a plan.
    """
    for rule in rules:
        applies = (
            matches(rule.operations, operation)
            and (any(matches(rule.targets, target) for target in targets) if targets else "*" in rule.targets)
            and (not rule.above or over_limit(rule.above, arguments) is not None)
            and (rule.hours is None or within(rule.hours, at.time()))
            and (rule.hosts_over is None or hosts is None or hosts > rule.hosts_over)
        )
        if applies:
            return rule
    return None


def may_approve(approvers: Sequence[str], *, self_approval: bool, requester: str, caller: Caller) -> str | None:
    """Return why this caller may not approve, None when it may."""
    if caller.principal == requester and not self_approval:
        return "whoever asked for something cannot approve it"
    if not any(matches(approvers, who) for who in (caller.principal, *caller.groups)):
        return f"only {', '.join(approvers)} may approve this"
    return None
