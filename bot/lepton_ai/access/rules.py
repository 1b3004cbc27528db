# SPDX-License-Identifier: Apache-2.0
"""Who may do what: a pure decision over roles and grants, deny by default."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lepton_ai.access.approvals import ApprovalRule
from lepton_ai.access.limits import Limit, over_limit
from lepton_ai.access.matching import Caller, matches


class Role(BaseModel):
    """What a role may do. Patterns are shell-style: `node.*`, `node/web-*`. `limits` are by argument."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operations: list[str]
    targets: list[str] = Field(default=["*"])
    limits: dict[str, Limit] = Field(default_factory=dict)


class Grant(BaseModel):
    """Who has a role: principals such as `slack:T01/U02`, `slack-group:T01/S03`, `os:1000@host`; in Slack, where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str
    principals: list[str]
    channels: list[str] = Field(default=["*"])


class Rules(BaseModel):
    """The `access` part of a site's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    roles: dict[str, Role] = Field(default_factory=dict)
    grants: list[Grant] = Field(default_factory=list)
    approvals: list[ApprovalRule] = Field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """Whether a request may go on, and the rule that says so."""

    allowed: bool
    rule: str


def decide(
    rules: Rules,
    caller: Caller,
    operation: str,
    targets: Sequence[str] | None,
    arguments: Mapping[str, Any] | None = None,
    *,
    by_wildcard: bool,
    reads: bool,
) -> Verdict:
    """Return the verdict on one request; without `targets`, on whether there is any target for which it could be yes.

    A change that names no target is only for roles without a limit on targets; a read may list everything.

    `by_wildcard` is False for a playbook whose author said nothing of its risk: only its exact name in a role grants it.
    """
    mine = [grant for grant in rules.grants if _is_for(grant, caller)]
    if not mine:
        return Verdict(False, f"no grant names {caller.principal}" + (f" or its groups {', '.join(caller.groups)}" if caller.groups else ""))
    reasons = []
    for grant in mine:
        role = rules.roles.get(grant.role)
        if role is None:
            reasons.append(f"the role {grant.role} does not exist")
        elif not _names(role.operations, operation, by_wildcard):
            reasons.append(f"the role {grant.role} has only {', '.join(role.operations)}")
        elif caller.channel is not None and not matches(grant.channels, caller.channel):
            reasons.append(f"the role {grant.role} holds only in the channels {', '.join(grant.channels)}")
        elif targets is not None and not _reaches(role, targets, reads):
            reasons.append(f"the role {grant.role} reaches only {', '.join(role.targets)}")
        elif (excess := over_limit(role.limits, arguments or {})) is not None:
            reasons.append(f"for the role {grant.role} {excess}")
        else:
            return Verdict(True, f"role {grant.role}")
    return Verdict(False, "; ".join(dict.fromkeys(reasons)))


def _is_for(grant: Grant, caller: Caller) -> bool:
    return any(matches(grant.principals, who) for who in (caller.principal, *caller.groups))


def _reaches(role: Role, targets: Sequence[str], reads: bool) -> bool:
    if not targets and not reads:
        return "*" in role.targets
    return all(matches(role.targets, target) for target in targets)


def _names(patterns: Collection[str], operation: str, by_wildcard: bool) -> bool:
    return operation in patterns or (by_wildcard and matches(patterns, operation))
