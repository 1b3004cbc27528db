# SPDX-License-Identifier: Apache-2.0
"""What is known of a group of alerts, and what a notification makes of it. Pure.

Alertmanager says everything again and again, and two of them say it twice. So what counts is when an episode began: an alert that fires is new
only when it began after its last episode had ended, and an end that is older than what fires now says nothing.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping

from pydantic import BaseModel, Field

from lepton_ai.alerts.rules import Alert, Notification

FIRING, RESOLVED = "firing", "resolved"
MOST_ALERTS = 2000  # of one group that are remembered
SAME_SECONDS = 120.0  # by which two may differ on when one episode began
LATE_SECONDS = 300.0  # after its end, within which news that something fires may be late
UNHEARD_SECONDS = 9 * 3600.0  # more than twice Alertmanager's repeat_interval: an end that was never said, since it was silenced or cut off


class Episode(BaseModel):
    """One alert, from when it began to fire. `pending`: what it asks for has not been asked for yet; `result` says what came of that."""

    alert: Alert
    status: str
    starts: float
    ends: float = 0.0
    heard: float = 0.0  # when it was last said
    pending: bool = False
    result: str = ""
    run: str = ""  # that it caused


class Silence(BaseModel):
    """That Alertmanager keeps quiet of a group."""

    until: float
    by: str


class Group(BaseModel):
    """A group of alerts for one receiver. `life` counts how often it came back after all of it was over: each has a message of its own."""

    key: str
    receiver: str
    sender: str
    labels: dict[str, str] = Field(default_factory=dict)
    episodes: dict[str, Episode] = Field(default_factory=dict)
    truncated: int = 0
    life: int = 0
    opened: float = 0.0
    acknowledged: str = ""
    silence: Silence | None = None

    @property
    def firing(self) -> list[Episode]:
        return [episode for episode in self.episodes.values() if episode.status == FIRING]


def key_of(notification: Notification) -> str:
    """Return a group's name: of its receiver and of what Alertmanager calls it, short enough for a button."""
    return hashlib.sha256(f"{notification.receiver}\0{notification.group_key}".encode()).hexdigest()[:24]


def fingerprint_of(alert: Alert) -> str:
    """Return what an alert is known by: its sender's own fingerprint, else a digest of its labels, which is what that is."""
    return alert.fingerprint or hashlib.sha256(json.dumps(alert.labels, sort_keys=True).encode()).hexdigest()[:16]


def merged(group: Group | None, notification: Notification, sender: str, now: float) -> tuple[Group, int]:
    """Return the group after a notification, and how many of its alerts have begun to fire by it."""
    group = Group(key=key_of(notification), receiver=notification.receiver, sender=sender) if group is None else group.model_copy(deep=True)
    began, reopened, quiet = 0, False, not group.firing
    group.labels, group.truncated = dict(notification.group_labels), notification.truncated_alerts
    episodes = {} if quiet and any(alert.status == FIRING for alert in notification.alerts) else group.episodes
    known = group.episodes
    for alert in notification.alerts:
        fingerprint = fingerprint_of(alert)
        before = episodes.get(fingerprint) or known.get(fingerprint)
        starts = _seconds(alert.starts) or (before.starts if before is not None and before.status == FIRING else now)
        if alert.status == FIRING:
            if _is_new(before, starts):
                if before is None and len(episodes) >= MOST_ALERTS and not _make_room(episodes):
                    group.truncated += 1
                    continue
                episodes[fingerprint] = Episode(alert=alert, status=FIRING, starts=starts, heard=now, pending=True)
                began += 1
            elif before is not None and (before.status == FIRING or now - before.ends > LATE_SECONDS):
                reopened = reopened or before.status != FIRING  # one of two Prometheus' had said that it was over
                episodes[fingerprint] = before.model_copy(update={"alert": alert, "status": FIRING, "ends": 0.0, "heard": now})
            elif before is not None:
                episodes.setdefault(fingerprint, before)  # late news of what is over
        elif before is not None and before.status == FIRING and (ends := _seconds(alert.ends) or now) > before.starts:
            episodes[fingerprint] = before.model_copy(update={"alert": alert, "status": RESOLVED, "ends": ends, "pending": False})
    if (began or reopened) and quiet:
        group.life, group.opened, group.acknowledged, group.silence = group.life + 1, now, "", None
    group.episodes = episodes if began or reopened or not quiet else known
    return group, began


def _is_new(before: Episode | None, starts: float) -> bool:
    """Return whether what fires is another episode than the one that is known: its end may never have been said."""
    return before is None or starts > (before.starts + SAME_SECONDS if before.status == FIRING else before.ends)


def _make_room(episodes: dict[str, Episode]) -> bool:
    """Forget one alert that is over, and return whether there was one."""
    over = next((fingerprint for fingerprint, episode in episodes.items() if episode.status != FIRING), None)
    return over is not None and episodes.pop(over) is not None


def unheard(group: Group, now: float) -> Group:
    """Return the group with those alerts over whose sender says nothing of them any more."""
    group = group.model_copy(deep=True)
    for episode in group.firing:
        if now - episode.heard > UNHEARD_SECONDS:
            episode.status, episode.ends, episode.pending, episode.result = RESOLVED, now, False, episode.result or "not heard of any more"
    return group


def _seconds(moment: datetime.datetime | None) -> float:
    """Return a moment as seconds since the epoch; 0 for none, which Go writes as the year 1."""
    try:
        return 0.0 if moment is None or moment.year < 1971 else moment.timestamp()
    except (OverflowError, ValueError):  # a year that no clock has
        return 0.0


def common_labels(group: Group) -> Mapping[str, str]:
    """Return what all that fires has in common, which is what a silence is about."""
    labels = [episode.alert.labels for episode in group.firing]
    return {name: value for name, value in labels[0].items() if all(other.get(name) == value for other in labels)} if labels else group.labels
