# SPDX-License-Identifier: Apache-2.0
"""What an alert asks for: a pure decision over a site's rules. Labels and annotations are data, and only ever values of arguments."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import regex
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from lepton_ai.hours import DAYS, SPAN, Day, within

LONGEST_VALUE = 1000  # characters of a label or an annotation; what is longer is cut, fits no pattern and is no argument
MATCH_SECONDS = 0.1
# Alertmanager's own way to write a matcher: prometheus.io/docs/alerting/latest/configuration/#matcher
MATCHER = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*(?:"((?:[^"\\]|\\.)*)"|([^"=~\s]\S*)|)\s*')


def _readable(matcher: str) -> str:
    found = MATCHER.fullmatch(matcher)
    if found is None:
        raise ValueError(f'{matcher!r} is not a matcher: expected one such as alertname="NodeMemoryHigh" or severity=~"page|warn"')
    if found[2] in ("=~", "!~"):
        try:
            regex.compile(_value(found))
        except regex.error as error:
            raise ValueError(f"{matcher!r}: {error}") from error
    return matcher


class FromLabel(BaseModel):
    """An argument that has the value of a label of the alert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str


class FromAnnotation(BaseModel):
    """An argument that has the value of an annotation of the alert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    annotation: str


class AlertRule(BaseModel):
    """What is asked for when an alert begins to fire that all matchers fit.

    `throttle_minutes`: not again for the same arguments within so many. `hours`: only at this time of day, such as `08:00-18:00`, and
    `days`: only on these, in the site's time zone. `approvers`: it waits as a plan until one of these agrees.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    matchers: list[Annotated[str, AfterValidator(_readable)]] = Field(min_length=1)
    operation: str = Field(pattern=r"^[^.\s]+\.[^.\s]+$", description="Such as node.resize.")
    arguments: dict[str, FromLabel | FromAnnotation | str | int | float | bool | list[str]] = Field(default_factory=dict)
    throttle_minutes: float = Field(default=0, ge=0)
    hours: str | None = Field(default=None, pattern=SPAN)
    days: list[Day] = Field(default_factory=lambda: [*DAYS], min_length=1)
    approvers: list[str] = Field(default_factory=list)


def _cut(values: dict[str, str]) -> dict[str, str]:
    return {name[:LONGEST_VALUE]: value[: LONGEST_VALUE + 1] for name, value in values.items()}


Values = Annotated[dict[str, str], AfterValidator(_cut)]


class Alert(BaseModel):
    """One alert of Alertmanager's webhook (version 4), which Grafana's is like. What else stands in it is not needed."""

    model_config = ConfigDict(populate_by_name=True)

    status: str = "firing"
    labels: Values = Field(default_factory=dict)
    annotations: Values = Field(default_factory=dict)
    fingerprint: str = Field(default="", max_length=100)
    starts: datetime.datetime | None = Field(default=None, alias="startsAt")
    ends: datetime.datetime | None = Field(default=None, alias="endsAt")
    generator: str = Field(default="", alias="generatorURL")  # the page that shows why, at Prometheus or Grafana

    @property
    def name(self) -> str:
        return self.labels.get("alertname", "an alert without a name")


class Notification(BaseModel):
    """What Alertmanager posts: a group of alerts for one receiver."""

    model_config = ConfigDict(populate_by_name=True)

    receiver: str = Field(default="alertmanager", max_length=200)
    alerts: list[Alert]
    group_key: str = Field(default="", alias="groupKey")
    group_labels: Values = Field(default_factory=dict, alias="groupLabels")
    truncated_alerts: int = Field(default=0, alias="truncatedAlerts")


@dataclass(frozen=True)
class Asked:
    """What one alert asks for. Without a rule nothing, for the reason in `why`; `missing` says which argument it has no value for."""

    alert: Alert
    why: str
    rule: AlertRule | None = None
    arguments: Mapping[str, Any] | None = None
    missing: str = ""


def asked_by(alert: Alert, rules: Sequence[AlertRule], at: datetime.datetime) -> Asked:
    """Return what an alert asks for at a time of the site, by the first rule that fits it. That something is over asks for nothing."""
    if alert.status != "firing":
        return Asked(alert, f"it is {alert.status}, and only what fires asks for anything")
    rule = next((rule for rule in rules if all(_fits(matcher, alert.labels) for matcher in rule.matchers)), None)
    if rule is None:
        return Asked(alert, "no rule fits it")
    if DAYS[at.weekday()] not in rule.days or (rule.hours is not None and not within(rule.hours, at.time())):
        return Asked(alert, f"rule {rule.name} holds only {' '.join([*rule.days, rule.hours or ''])}".strip())
    arguments: dict[str, Any] = {}
    for name, value in rule.arguments.items():
        if isinstance(value, FromLabel):
            found, where = alert.labels.get(value.label), f"label {value.label}"
        elif isinstance(value, FromAnnotation):
            found, where = alert.annotations.get(value.annotation), f"annotation {value.annotation}"
        else:
            arguments[name] = value
            continue
        if found is None:
            return Asked(alert, f"rule {rule.name}", rule, None, f"{name} comes from the {where}, which the alert does not have")
        if len(found) > LONGEST_VALUE:
            return Asked(alert, f"rule {rule.name}", rule, None, f"{name} comes from the {where}, which is longer than {LONGEST_VALUE} characters")
        arguments[name] = found
    return Asked(alert, f"rule {rule.name}", rule, arguments)


def _fits(matcher: str, labels: Mapping[str, str]) -> bool:
    found = MATCHER.fullmatch(matcher)
    assert found is not None
    actual, wanted = labels.get(found[1], ""), _value(found)
    if found[2] in ("=", "!="):
        return (actual == wanted) == (found[2] == "=")
    if len(actual) > LONGEST_VALUE:
        return False  # whichever way it is asked: what cannot be tried must not start anything
    try:
        fits = regex.fullmatch(wanted, actual, timeout=MATCH_SECONDS) is not None
    except TimeoutError:
        return False
    return fits == (found[2] == "=~")


def _value(found: re.Match[str]) -> str:
    """Return a matcher's value; within quotes these are the escapes that Alertmanager knows."""
    if found[3] is None:
        return found[4] or ""
    return re.sub(r'\\(["\\n])', lambda escape: "\n" if escape[1] == "n" else escape[1], found[3])
