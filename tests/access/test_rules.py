# SPDX-License-Identifier: Apache-2.0
"""Deny by default, and every verdict names its rule."""

import pytest

from lepton_ai.access.matching import Caller
from lepton_ai.access.rules import Grant, Role, Rules, decide

RULES = Rules(
    roles={
        "operator": Role(operations=["*"]),
        "builder": Role(operations=["node.resize", "node.list"], targets=["node/web-*"]),
        "stranger": Role(operations=["custom.wipe"]),
    },
    grants=[
        Grant(role="operator", principals=["slack:T1/UADA"]),
        Grant(role="builder", principals=["slack-group:T1/SBUILD"], channels=["CMODELS"]),
        Grant(role="stranger", principals=["slack:T1/UEVE"]),
        Grant(role="nothing", principals=["slack:T1/UBOB"]),
    ],
)
GRACE = Caller("slack:T1/UGRACE", ("slack-group:T1/SBUILD",), "CMODELS")


@pytest.mark.parametrize(
    ("caller", "operation", "targets", "allowed", "rule"),
    [
        (Caller("slack:T1/UADA", (), "CANY"), "node.release", ("node/db",), True, "role operator"),
        (Caller("slack:T2/UADA", (), "CANY"), "node.list", (), False, "no grant names slack:T2/UADA"),
        (GRACE, "node.resize", ("node/web-1",), True, "role builder"),
        (GRACE, "node.list", (), True, "role builder"),
        (GRACE, "node.resize", ("node/db",), False, "reaches only node/web-*"),
        (GRACE, "node.resize", ("node/web-1", "node/db"), False, "reaches only node/web-*"),
        (GRACE, "node.release", ("node/web-1",), False, "has only node.resize, node.list"),
        (Caller(GRACE.principal, GRACE.groups, "COPS"), "node.list", (), False, "only in the channels CMODELS"),
        (Caller("slack:T1/UGRACE", (), "CMODELS"), "node.list", (), False, "no grant names"),
        (Caller("slack:T1/UBOB", (), None), "node.list", (), False, "the role nothing does not exist"),
    ],
)
def test_verdicts(caller: Caller, operation: str, targets: tuple[str, ...], allowed: bool, rule: str) -> None:
    verdict = decide(RULES, caller, operation, targets, by_wildcard=True, reads=operation == "node.list")
    assert verdict.allowed is allowed
    assert rule in verdict.rule


def test_a_playbook_of_unknown_risk_is_not_reached_by_a_wildcard() -> None:
    ada, eve = Caller("slack:T1/UADA"), Caller("slack:T1/UEVE")
    assert not decide(RULES, ada, "custom.wipe", (), by_wildcard=False, reads=False).allowed
    assert decide(RULES, eve, "custom.wipe", (), by_wildcard=False, reads=False).allowed


def test_a_change_that_names_no_target_is_not_for_a_role_with_limits() -> None:
    assert not decide(RULES, GRACE, "node.resize", (), by_wildcard=True, reads=False).allowed
    assert decide(RULES, GRACE, "node.resize", None, by_wildcard=True, reads=False).allowed
