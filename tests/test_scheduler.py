# SPDX-License-Identifier: Apache-2.0
"""Schedules: asked for once at their moment, by whoever runs then, and later where nobody did."""

from __future__ import annotations

import datetime
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from lepton_ai.errors import LeptonError
from lepton_ai.runs.model import Result
from lepton_ai.scheduler import Scheduler
from lepton_ai.timetable import Schedule, due

ZONE = ZoneInfo("Europe/Berlin")


def at(day: int, hour: int, minute: int = 0) -> datetime.datetime:
    return datetime.datetime(2026, 11, day, hour, minute, tzinfo=ZONE)  # the 23rd is a Monday


def schedule(**more: Any) -> Schedule:
    return Schedule.model_validate({"name": "nightly", "operation": "node.backup", "arguments": {"node": "web-*"}, "at": "22:30", **more})


def test_it_is_due_from_its_moment_on_for_a_while_over_midnight_too() -> None:
    every = schedule()
    assert due(every, at(24, 22, 29)) is None
    assert due(every, at(24, 22, 30)) == at(24, 22, 30)
    assert due(every, at(25, 3)) == at(24, 22, 30)
    assert due(every, at(25, 5)) is None
    mondays = schedule(days=["mon"])
    assert due(mondays, at(24, 1)) == at(23, 22, 30)
    assert due(mondays, at(24, 23)) is None


@pytest.mark.parametrize("wrong", [{"at": "25:00"}, {"name": "a b"}, {"days": ["someday"]}, {"every": "5m"}, {"days": []}])
def test_what_is_no_schedule_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        schedule(**wrong)


class Site:
    def __init__(self, *schedules: Schedule) -> None:
        self.nodes = {"h1": ["web-1", "db-1"], "h2": ["web-2"]}
        self.failures: dict[str, str] = {}
        self.keys: set[str] = set()
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.begun: list[str] = []
        self.refuses = False
        backup = SimpleNamespace(spec=SimpleNamespace(kinds={"node": "node"}))
        settings = SimpleNamespace(schedules=schedules, zone=ZONE)
        self.runs = SimpleNamespace(catalog=SimpleNamespace(operations={"node.backup": backup}), look=self.look, settings=settings)

    def look(self, name: str) -> Result:
        assert name == "node.list"
        return Result(answers={host: {"nodes": [{"name": node} for node in nodes]} for host, nodes in self.nodes.items()}, failures=self.failures)

    def submit_values(self, caller: Any, _operation: Any, values: dict[str, Any], *, key: str, why: str) -> tuple[Any, bool]:
        self.asked.append((caller.principal, why, values))
        if self.refuses:
            raise LeptonError("no grant names schedule:nightly")
        new = key not in self.keys
        self.keys.add(key)
        return SimpleNamespace(id=key), new

    def scheduler(self) -> Scheduler:
        return Scheduler(self, self.begun.append)  # type: ignore[arg-type]


def test_each_node_is_asked_for_once_whoever_asks_and_however_often() -> None:
    site = Site(schedule())
    first, second = site.scheduler(), site.scheduler()  # as after a restart, or on another machine
    for clock in (at(24, 22, 0), at(24, 22, 30), at(24, 22, 31), at(25, 1)):
        first.tick(clock)
        second.tick(clock)
    assert site.begun == [f"schedule:nightly:2026-11-24T22:30+01:00:{node}" for node in ("web-1", "web-2")]
    assert site.asked[0] == ("schedule:nightly", "scheduled at 22:30", {"node": "web-1"})
    first.tick(at(25, 22, 30))
    assert len(site.begun) == 4


def test_a_host_that_does_not_answer_is_asked_again_and_a_refusal_is_final() -> None:
    site = Site(schedule())
    site.failures, there = {"h2": "no route"}, site.nodes.pop("h2")
    scheduler = site.scheduler()
    scheduler.tick(at(24, 22, 30))
    scheduler.tick(at(24, 22, 31))
    assert len(site.asked) == 1
    site.nodes["h2"], site.failures = there, {}
    scheduler.tick(at(24, 22, 36))
    assert [key.rpartition(":")[2] for key in site.begun] == ["web-1", "web-2"]
    site = Site(schedule(arguments={"node": "web-1"}))
    site.refuses = True
    scheduler = site.scheduler()
    for minute in (30, 31, 40):
        scheduler.tick(at(24, 22, minute))
    assert len(site.asked) == 1
    unknown = Site(schedule(operation="node.nonsense"))
    unknown.scheduler().tick(at(24, 22, 30))  # is in the log
    assert unknown.asked == []
