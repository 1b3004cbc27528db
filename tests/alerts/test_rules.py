# SPDX-License-Identifier: Apache-2.0
"""What alerts ask for: by the first rule that fits, with labels as data."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from pydantic import ValidationError

from lepton_ai.alerts.rules import AlertRule, Notification, asked_by

RULE = {
    "name": "memory",
    "matchers": ['alertname="NodeMemoryHigh"', 'severity=~"page|warn"', 'node!=""', "team!~test.*"],
    "operation": "node.resize",
    "arguments": {"node": {"label": "node"}, "memory": "2GiB", "why": {"annotation": "summary"}},
}
NOON = datetime.datetime(2026, 11, 27, 12)  # a Friday
LABELS = {"alertname": "NodeMemoryHigh", "severity": "page", "node": "{{ lookup('pipe', 'id') }}"}
ALERT: dict[str, Any] = {"status": "firing", "labels": LABELS, "annotations": {"summary": "it is full"}, "fingerprint": "a", "startsAt": "2026-01-01T00:00:00Z"}


def asked(alert: dict[str, Any], *rules: dict[str, Any]) -> Any:
    notification = Notification.model_validate({"receiver": "lepton", "version": "4", "alerts": [alert]})
    return asked_by(notification.alerts[0], [AlertRule.model_validate(rule) for rule in rules or (RULE,)], NOON)


def test_labels_and_annotations_are_values_of_arguments() -> None:
    found = asked(ALERT)
    assert found.rule.name == "memory"
    assert found.arguments == {"node": "{{ lookup('pipe', 'id') }}", "memory": "2GiB", "why": "it is full"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"status": "resolved"}, "only what fires"),
        ({"labels": {**LABELS, "severity": "page2"}}, "no rule fits"),
        ({"labels": {**LABELS, "node": ""}}, "no rule fits"),
        ({"labels": {**LABELS, "team": "testers"}}, "no rule fits"),
        ({"labels": {**LABELS, "severity": "p" * 1_000_000}}, "no rule fits"),
        ({"labels": {**LABELS, "team": "t" * 1001}}, "no rule fits"),
        ({"labels": {}}, "no rule fits"),
    ],
)
def test_what_does_not_fit_asks_for_nothing(change: dict[str, Any], why: str) -> None:
    found = asked({**ALERT, **change})
    assert found.rule is None
    assert why in found.why


def test_a_label_that_is_missing_is_said() -> None:
    found = asked({**ALERT, "annotations": {}})
    assert found.arguments is None
    assert found.missing == "why comes from the annotation summary, which the alert does not have"


def test_the_first_rule_that_fits_counts() -> None:
    assert asked(ALERT, {**RULE, "name": "no", "matchers": ["alertname=Other"]}, RULE, {**RULE, "name": "late"}).rule.name == "memory"


@pytest.mark.parametrize("matcher", ["", "alertname", '1a="x"', 'a=="x"', 'a="x" b="y"', 'a=~"("', 'a="x'])
def test_a_matcher_that_is_none_is_refused(matcher: str) -> None:
    with pytest.raises(ValidationError, match=r"is not a matcher|missing \)"):
        AlertRule.model_validate({**RULE, "matchers": [matcher]})
    with pytest.raises(ValidationError):
        AlertRule.model_validate({**RULE, "matchers": []})


@pytest.mark.parametrize(
    ("matcher", "label", "fits"),
    [
        (r'a=~"web-\\d+"', "web-12", True),  # within quotes a backslash is written twice, as in Alertmanager
        (r"a=~web-\d+", "web-12", True),
        (r'a="C:\\dir"', "C:\\dir", True),
        (r'a="C:\dir"', "C:\\dir", True),
        (r'a="say \"x\""', 'say "x"', True),
        ('a=~"web"', "web-1", False),
        ('a=~"(a+)+b"', "a" * 60, False),  # which takes Python's own patterns for ever
    ],
)
def test_matchers_are_read_as_alertmanager_does_and_come_to_an_end(matcher: str, label: str, fits: bool) -> None:
    rule = {"name": "r", "matchers": [matcher], "operation": "x.y"}
    assert (asked({**ALERT, "labels": {"a": label}}, rule).rule is not None) == fits
