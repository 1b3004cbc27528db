# SPDX-License-Identifier: Apache-2.0
"""The values that move through a run: request, run, event, result. All plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

HERE = "localhost"  # where playbooks check their requests; none of the hosts they are about
NO_HOST = "has no host in the group"  # what fails there, where the site has no hosts for an operation


class State(StrEnum):
    """Where a run stands. The last five are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    TIMED_OUT = "timed out"
    INTERRUPTED = "interrupted"

    @property
    def final(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True)
class Request:
    """One thing asked for. `key` makes a repeated delivery the same request; `origin` is where the answer goes.

    `approved_plan` is the run of the plan that was approved: only what that one showed may be done. `hosts`: only on these, all
    where there are none. `canary`: on one host first, and on the others when that went well.
    """

    operation: str
    arguments: Mapping[str, Any]
    principal: str
    key: str
    check: bool = False
    why: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict)
    approved_plan: str = ""
    hosts: Sequence[str] = ()
    canary: bool = False


class EventKind(StrEnum):
    """What ansible-runner reported, in Ansible's own words."""

    PLAY = "play"
    TASK = "task"
    OK = "ok"
    CHANGED = "changed"
    SKIPPED = "skipped"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    STATS = "stats"
    PROGRESS = "progress"


@dataclass(frozen=True)
class RunEvent:
    """One event of a run. `result` is what a module answered; `ignored` marks a failure that the play goes past.

    `action` is the task's module or action plugin. `said` is what a task that is under way says of how far it is.
    """

    kind: EventKind
    play: str = ""
    task: str = ""
    host: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    ignored: bool = False
    action: str = ""
    said: str = ""


@dataclass(frozen=True)
class FieldChange:
    """One field of one host that changed, or would."""

    host: str
    field: str
    before: Any
    after: Any
    effective: str = "now"


@dataclass
class Result:
    """What a run has done so far. Bounded: long texts are cut where they enter."""

    changes: list[FieldChange] = field(default_factory=list)
    changed_hosts: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    timeline: list[tuple[float, str, str, str]] = field(default_factory=list)  # seconds after the start, host, task, outcome
    plan: dict[str, Any] = field(default_factory=dict)  # of a composite operation: {steps, digest}


@dataclass(frozen=True)
class Run:
    """A request as it stands in the store. Times are seconds since the epoch; secret arguments are masked."""

    id: str
    operation: str
    arguments: Mapping[str, Any]
    principal: str
    check: bool
    state: State
    risk: str
    why: str
    origin: Mapping[str, Any]
    created: float
    started: float | None
    finished: float | None
    result: Mapping[str, Any]
    error: str
    command: str
    message: Mapping[str, Any]
    delivered: bool
    revision: str = ""
    approved_plan: str = ""
    hosts: Sequence[str] = ()
    canary: bool = False

    @property
    def due(self) -> float:
        """When it shall begin, seconds since the epoch; a plan begins at once whatever it is a plan of."""
        return 0.0 if self.check else float(self.origin.get("due") or 0.0)


@dataclass(frozen=True)
class Decision:
    """One person's yes or no to a plan. `at` is seconds since the epoch."""

    principal: str
    approved: bool
    at: float


def shown_origin(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return where a request came from without its answer address: whoever has that may speak there."""
    return {name: value for name, value in origin.items() if name != "response_url"}


def failed_of(run: Run) -> list[str]:
    """Return the hosts on which a run went wrong, by name, where it went well on others; none where it went wrong everywhere."""
    result = result_of(run)
    hosts = {host for _seconds, host, _task, _outcome in result.timeline} - {HERE}
    failed = sorted(host for host in result.failures if host != HERE)
    return failed if set(failed) < hosts else []


def result_of(run: Run) -> Result:
    """Return a run's stored result as the value it was."""
    data = dict(run.result)
    data["changes"] = [FieldChange(**change) for change in data.get("changes", [])]
    return Result(**data)
