# SPDX-License-Identifier: Apache-2.0
"""What a notification makes of what is known: once, whoever says it and however often."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from lepton_ai.alerts.groups import MOST_ALERTS, Group, common_labels, fingerprint_of, key_of, merged
from lepton_ai.alerts.rules import LONGEST_VALUE, Notification

NEVER = "0001-01-01T00:00:00Z"  # what Go writes for no time


def at(minute: int) -> str:
    return f"2026-11-27T12:{minute:02d}:00.123456789Z"


def alert(fingerprint: str = "a", *, starts: int = 0, ends: int | None = None, **labels: str) -> dict[str, Any]:
    return {
        "status": "firing" if ends is None else "resolved", "labels": {"alertname": "High", **labels}, "annotations": {}, "fingerprint": fingerprint,
        "startsAt": at(starts), "endsAt": NEVER if ends is None else at(ends), "generatorURL": "",
    }  # fmt: skip


def said(*alerts: dict[str, Any], truncated: int = 0, receiver: str = "lepton", group: str = '{}:{alertname="High"}') -> Notification:
    told = {"version": "4", "receiver": receiver, "groupKey": group, "truncatedAlerts": truncated, "groupLabels": {"alertname": "High"}, "alerts": list(alerts)}
    return Notification.model_validate(told)


def after(*notifications: Notification) -> tuple[Group, list[int]]:
    group, began = None, []
    for number, notification in enumerate(notifications):
        group, count = merged(group, notification, "alertmanager", 1000.0 + number)
        group = Group.model_validate(group.model_dump(mode="json"))  # as it is kept
        began.append(count)
    assert group is not None
    return group, began


def test_what_is_said_again_is_not_new() -> None:
    group, began = after(said(alert()), said(alert()), said(alert(), alert("b", starts=1)))
    assert began == [1, 0, 1]
    assert {name: episode.status for name, episode in group.episodes.items()} == {"a": "firing", "b": "firing"}
    assert group.life == 1


def test_what_is_over_begins_anew_only_after_its_end() -> None:
    group, began = after(said(alert(starts=0)), said(alert(starts=0, ends=5)), said(alert(starts=0)), said(alert(starts=4)), said(alert(starts=6)))
    # The second Alertmanager is late with the first episode, once with a start of its own; only the last one is another.
    assert began == [1, 0, 0, 0, 1]
    assert group.life == 2
    assert group.episodes["a"].pending


def test_an_end_that_was_never_said_does_not_hide_the_next_beginning() -> None:
    group, began = after(said(alert(starts=0)), said(alert(starts=1)), said(alert(starts=30)))
    assert began == [1, 0, 1]  # two Prometheus' may differ on when it began, but not by half an hour
    assert group.episodes["a"].pending


def test_what_one_prometheus_says_is_over_and_the_other_goes_on_saying_fires() -> None:
    group, _ = after(said(alert(starts=0)), said(alert(starts=0, ends=5)))
    ended = group.episodes["a"].ends
    late, _ = merged(group, said(alert(starts=0)), "alertmanager", ended + 60)
    assert late.firing == []
    again, began = merged(group, said(alert(starts=0)), "alertmanager", ended + 600)
    assert ([episode.pending for episode in again.firing], began, again.life) == ([False], 0, 2)


def test_room_is_made_by_what_is_over() -> None:
    first = said(*(alert(str(number)) for number in range(MOST_ALERTS)))
    ends = said(*(alert(str(number), ends=5) for number in range(1, MOST_ALERTS)))
    group, began = after(first, ends, said(alert("new", starts=6)))
    assert began == [MOST_ALERTS, 0, 1]
    assert {"0", "new"} <= {name for name, episode in group.episodes.items() if episode.status == "firing"}


def test_an_end_that_is_older_than_what_fires_says_nothing() -> None:
    group, _began = after(said(alert(starts=0)), said(alert(starts=0, ends=5)), said(alert(starts=6)), said(alert(starts=0, ends=5)))
    assert group.episodes["a"].status == "firing"
    over, _began = after(said(alert(starts=0)), said(alert(starts=0, ends=5)), said(alert(starts=6)), said(alert(starts=6, ends=7)))
    assert over.episodes["a"].status == "resolved"
    assert not over.episodes["a"].pending


def test_an_end_alone_is_nothing() -> None:
    group, began = after(said(alert(ends=5)))
    assert (began, group.episodes, group.life) == ([0], {}, 0)


def test_a_new_life_forgets_the_old_one() -> None:
    first = said(alert("a"), alert("b"))
    group, _began = after(first, said(alert("a", ends=5), alert("b", ends=5)), said(alert("a", starts=8)))
    assert list(group.episodes) == ["a"]
    acknowledged = group.model_copy(update={"acknowledged": "slack:T/U"})
    over, _ = merged(acknowledged, said(alert("a", starts=8, ends=9)), "alertmanager", 2000.0)
    again, _ = merged(over, said(alert("a", starts=10)), "alertmanager", 2001.0)
    assert (again.life, again.acknowledged) == (3, "")


def test_there_is_an_end_to_what_is_remembered() -> None:
    group, _began = after(said(*(alert(str(number)) for number in range(MOST_ALERTS + 5)), truncated=3))
    assert len(group.episodes) == MOST_ALERTS
    assert group.truncated == 8


def test_names_are_of_receiver_and_group() -> None:
    keys = {key_of(said(alert())), key_of(said(alert(), receiver="other")), key_of(said(alert(), group="other"))}
    assert len(keys) == 3
    assert all(len(key) == 24 for key in keys)


def test_without_a_fingerprint_labels_are_one() -> None:
    notification = said(alert("", node="a"), alert("", node="b"), alert("", node="a"))
    group, began = after(notification)
    assert (len(group.episodes), began) == (2, [2])
    assert fingerprint_of(notification.alerts[0]) == fingerprint_of(notification.alerts[2])


@pytest.mark.parametrize("labels", [{}, {"instance": "[2001:db8::1]:9100"}, {"x": "y" * 1_000_000}, {"x": "{{ 7*7 }}"}])
def test_labels_are_data_of_bounded_length(labels: dict[str, str]) -> None:
    group, _began = after(said(alert(**labels)))
    kept = group.episodes["a"].alert.labels
    assert all(kept[name] == value[: LONGEST_VALUE + 1] for name, value in labels.items())


def test_a_silence_is_about_what_all_have_in_common() -> None:
    group, _began = after(said(alert("a", node="x", team="t"), alert("b", node="y", team="t")))
    assert common_labels(group) == {"alertname": "High", "team": "t"}


def test_hours_of_go_are_read_with_their_zone() -> None:
    told = {**alert(), "startsAt": "2026-11-27T14:00:00.123456789+02:00"}
    group, _began = after(said(told))
    assert datetime.datetime.fromtimestamp(group.episodes["a"].starts, datetime.UTC).hour == 12
