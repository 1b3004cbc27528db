# SPDX-License-Identifier: Apache-2.0
"""Limits on arguments, approvals and freezes: pure decisions."""

from __future__ import annotations

import datetime
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from lepton_ai.access.approvals import ApprovalRule, may_approve, needed_approval
from lepton_ai.access.freezes import Freeze, freeze_on, read_until
from lepton_ai.access.limits import Limit, over_limit
from lepton_ai.access.matching import Caller
from lepton_ai.access.rules import Grant, Role, Rules, decide
from lepton_ai.errors import LeptonError

NOON = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=ZoneInfo("Europe/Berlin"))


@pytest.mark.parametrize(
    ("limits", "arguments", "trouble"),
    [
        ({"vcpus": Limit(max=8)}, {"vcpus": 8}, None),
        ({"vcpus": Limit(max=8)}, {"vcpus": 9}, "vcpus is 9, and at most 8"),
        ({"vcpus": Limit(max=8)}, {}, None),
        ({"memory": Limit(max="8GiB")}, {"memory": "8192MiB"}, None),
        ({"memory": Limit(max="8GiB")}, {"memory": "8193MiB"}, "at most 8GiB"),
        ({"memory": Limit(max="8GiB")}, {"memory": "what"}, "at most 8GiB"),
        ({"network": Limit(values=["user", "bridge:*"])}, {"network": "bridge:br0"}, None),
        ({"network": Limit(values=["user", "bridge:*"])}, {"network": "none"}, "only user, bridge:*"),
        ({"ports": Limit(values=["8*"])}, {"ports": ["80:80", "22:22"]}, "ports is 22:22"),
    ],
)
def test_limits(limits: dict[str, Limit], arguments: dict[str, object], trouble: str | None) -> None:
    found = over_limit(limits, arguments)
    assert (found is None) if trouble is None else (found is not None and trouble in found)


def test_a_role_with_a_limit_says_so_and_another_role_may_still_allow() -> None:
    rules = Rules(
        roles={"small": Role(operations=["node.resize"], limits={"vcpus": Limit(max=8)}), "big": Role(operations=["node.resize"], targets=["node/big"])},
        grants=[Grant(role="small", principals=["os:1@h"]), Grant(role="big", principals=["os:1@h"])],
    )
    caller = Caller("os:1@h")
    refused = decide(rules, caller, "node.resize", ("node/web",), {"vcpus": 9}, by_wildcard=True, reads=False)
    assert "for the role small vcpus is 9, and at most 8.0 is allowed" in refused.rule
    assert decide(rules, caller, "node.resize", ("node/web",), {"vcpus": 8}, by_wildcard=True, reads=False).allowed
    assert decide(rules, caller, "node.resize", ("node/big",), {"vcpus": 9}, by_wildcard=True, reads=False).allowed


def rule(**more: object) -> ApprovalRule:
    return ApprovalRule.model_validate({"name": "r", "approvers": ["slack:T/U2"], **more})


@pytest.mark.parametrize(
    ("asked", "arguments", "hosts", "needed"),
    [
        (rule(), {}, None, True),
        (rule(operations=["node.release"]), {}, None, False),
        (rule(targets=["node/db-*"]), {}, None, False),
        (rule(above={"vcpus": {"max": 4}}), {"vcpus": 4}, None, False),
        (rule(above={"vcpus": {"max": 4}}), {"vcpus": 5}, None, True),
        (rule(hours="11:00-13:00"), {}, None, True),
        (rule(hours="18:00-08:00"), {}, None, False),
        (rule(hours="22:00-12:30"), {}, None, True),
        (rule(hosts_over=2), {}, None, True),
        (rule(hosts_over=2), {}, 2, False),
        (rule(hosts_over=2), {}, 3, True),
    ],
)
def test_when_approval_is_needed(asked: ApprovalRule, arguments: dict[str, object], hosts: int | None, needed: bool) -> None:
    assert (needed_approval([asked], "node.resize", ("node/web-1",), arguments, NOON, hosts) is not None) is needed


def test_who_may_approve() -> None:
    approvers = ["slack:T/U1", "slack:T/U2", "slack-group:T/S1"]
    assert may_approve(approvers, self_approval=False, requester="slack:T/U1", caller=Caller("slack:T/U2")) is None
    assert may_approve(approvers, self_approval=False, requester="slack:T/U1", caller=Caller("slack:T/U9", ("slack-group:T/S1",))) is None
    assert "cannot approve it" in str(may_approve(approvers, self_approval=False, requester="slack:T/U1", caller=Caller("slack:T/U1")))
    assert may_approve(approvers, self_approval=True, requester="slack:T/U1", caller=Caller("slack:T/U1")) is None
    assert "only slack:T/U1" in str(may_approve(approvers, self_approval=False, requester="slack:T/U1", caller=Caller("slack:T2/U2")))


@pytest.mark.parametrize("bad", [{"approvers": []}, {"approvers": [" "]}, {"hours": "8-9"}, {"count": 0}, {"expires_minutes": 0}, {"unknown": 1}])
def test_a_rule_that_cannot_be_meant_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        rule(**bad)


def test_a_freeze_stops_what_it_names_until_it_ends() -> None:
    freezes = [Freeze("node/web-*", 100.0, "os:1@h", "release")]
    assert freeze_on(freezes, ("node/web-1",), 99.0) is freezes[0]
    assert freeze_on(freezes, ("node/web-1",), 100.0) is None
    assert freeze_on(freezes, ("node/db",), 99.0) is None
    assert freeze_on(freezes, (), 99.0) is freezes[0]  # what does not say what it changes might change that
    assert freeze_on([Freeze("*", None, "os:1@h", "")], ("node/db",), 1e12) is not None
    assert "node/web-* is frozen by os:1@h until" in str(freezes[0])


@pytest.mark.parametrize(
    ("word", "hours"), [("30m", 0.5), ("2h", 2), ("1d", 24), ("18:00", 6), ("08:00", 20), ("8:00", 20), ("2026-11-24", 12), ("2026-11-23T13:00", 1)]
)
def test_ends_of_a_freeze(word: str, hours: float) -> None:
    end = read_until(word, NOON)
    assert end is not None
    assert end - NOON == datetime.timedelta(hours=hours)


def test_words_that_are_no_end_or_a_wrong_one() -> None:
    assert read_until("because", NOON) is None
    for word in ("25:00", "2026-13-01", "2020-01-01"):
        with pytest.raises(LeptonError):
            read_until(word, NOON)
