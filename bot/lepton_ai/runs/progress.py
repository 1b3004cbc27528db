# SPDX-License-Identifier: Apache-2.0
"""From ansible-runner's events to typed ones, and from those to what has been done: pure."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.lepton.cloud.plugins.module_utils._progress import SAID
from ansible_collections.lepton.cloud.plugins.module_utils._steps import field_name

from lepton_ai.runs.model import EventKind, FieldChange, Result, RunEvent

LONGEST = 4000  # characters of one text that is kept
MOST = 2000  # entries of one list that are kept
PLANNER = "lepton.cloud.plan"
LONGEST_SAID = 300
DEEPEST = 12  # levels of a result
_HOST_KINDS = {
    "runner_on_ok": EventKind.OK,
    "runner_on_failed": EventKind.FAILED,
    "runner_on_unreachable": EventKind.UNREACHABLE,
    "runner_on_skipped": EventKind.SKIPPED,
}
_ANSWER_TYPES: dict[str, type] = {
    "nodes": list, "host": dict, "capacity": dict, "console": str, "node": dict, "images": list,
    "containers": list, "container": dict, "room": dict, "container_images": dict, "log": str, "services": list, "service": dict, "server": dict,
    "deployments": list, "deployment": dict, "model_images": list, "image": dict, "start_seconds": float, "fit": dict,
}  # fmt: skip


def read_event(event: Mapping[str, Any]) -> RunEvent | None:
    """Return the typed event of one of ansible-runner's dictionaries, or None for one that says nothing to people."""
    kind = event.get("event", "")
    data = event.get("event_data") or {}
    if kind == "playbook_on_play_start":
        return RunEvent(EventKind.PLAY, play=_cut(data.get("name", "")))
    if kind == "playbook_on_task_start":
        return RunEvent(EventKind.TASK, play=_cut(data.get("play", "")), task=_cut(data.get("name", "")))
    if kind == "playbook_on_stats":
        return RunEvent(EventKind.STATS)
    if kind == "verbose":  # what Ansible displays besides: ours says so
        said = str(event.get("stdout") or "").strip()
        return RunEvent(EventKind.PROGRESS, said=_cut(said.removeprefix(SAID))[:LONGEST_SAID]) if said.startswith(SAID) else None
    if kind in _HOST_KINDS:
        answered = data.get("res")
        result: dict[str, Any] = answered if isinstance(answered, dict) else {}
        read = _HOST_KINDS[kind]
        if read is EventKind.OK and result.get("changed"):
            read = EventKind.CHANGED
        return RunEvent(
            read,
            play=_cut(data.get("play", "")),
            task=_cut(data.get("task", "")),
            host=_cut(_delegated(result) or data.get("host", "")),
            result=bounded(result),
            ignored=bool(data.get("ignore_errors")),
            action=str(data.get("task_action", "")),
        )
    return None


def _delegated(result: Mapping[str, Any]) -> str:
    """Return the host that a task was done on in place of its own: of a step of a plan, that is the host it is for."""
    delegated = result.get("_ansible_delegated_vars")
    return str(delegated.get("ansible_delegated_host") or "") if isinstance(delegated, Mapping) else ""


def bounded(value: Any, depth: int = DEEPEST) -> Any:
    """Return the value as every database takes it: long texts and lists cut, deep nesting named, no NUL, no NaN."""
    if isinstance(value, str):
        return _cut(value)
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        return {_cut(key)[:200]: bounded(item, depth - 1) for key, item in list(value.items())[:MOST]}
    if isinstance(value, list | tuple):
        return [bounded(item, depth - 1) for item in value[:MOST]]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _cut(value)


@dataclass
class Task:
    """One task of a playbook, how it went on each host so far, and what it says while it is under way."""

    name: str
    said: str = ""
    hosts: dict[str, str] = field(default_factory=dict)


@dataclass
class Progress:
    """What people are shown while a run proceeds, folded from its events."""

    play: str = ""
    task: str = ""
    tasks: int = 0  # how many there are, 0 where that is not known
    tasks_begun: int = 0
    tasks_done: int = 0
    begun: float = field(default_factory=time.monotonic)
    hosts: dict[str, str] = field(default_factory=dict)
    begun_tasks: list[Task] = field(default_factory=list)  # in order; as many as are kept
    result: Result = field(default_factory=Result)

    def add(self, event: RunEvent) -> None:
        """Take one event in. Never raises on data that a host made up."""
        if event.host and len(self.result.timeline) < MOST:
            self.result.timeline.append((round(time.monotonic() - self.begun, 2), event.host, event.task, event.kind.value))
        if event.host and self.begun_tasks:
            self.begun_tasks[-1].hosts[event.host] = "ignored" if event.ignored else event.kind.value
        if event.kind is EventKind.PLAY:
            self.play = event.play
        elif event.kind is EventKind.TASK:
            self.task = event.task
            self.tasks_begun += 1
            if len(self.begun_tasks) < MOST:
                self.begun_tasks.append(Task(event.task))
        elif event.kind is EventKind.PROGRESS and self.begun_tasks:
            self.begun_tasks[-1].said = event.said
        elif event.kind in (EventKind.FAILED, EventKind.UNREACHABLE):
            self.hosts[event.host] = event.kind.value
            if not event.ignored:
                self.result.failures[event.host] = failure_text(event)
        elif event.kind in (EventKind.OK, EventKind.CHANGED):
            self.tasks_done += 1
            if self.hosts.get(event.host) != EventKind.CHANGED.value:
                self.hosts[event.host] = event.kind.value
            self._take_result(event)

    def _take_result(self, event: RunEvent) -> None:
        plan = event.result.get("lepton_plan")
        if isinstance(plan, Mapping) and event.action == PLANNER:  # which runs here; a module's answer may be made up by its host
            self.result.plan = dict(plan)
        for warning in _texts(event.result.get("warnings")):
            _append(self.result.warnings, warning)
        if event.kind is EventKind.CHANGED and event.host not in self.result.changed_hosts:
            self.result.changed_hosts.append(event.host)
        for change in field_changes(event):
            _append(self.result.changes, change)
        for reason in _texts(event.result.get("restart_reasons")):
            _append(self.result.warnings, f"{event.host}: takes effect at the next start: {reason}")
        for reason in _texts(event.result.get("size_reasons")):
            _append(self.result.warnings, f"{event.host}: {reason}")
        # Only what our modules return; another module's key of the same name may hold anything.
        answer = {key: value for key, value in event.result.items() if isinstance(value, _ANSWER_TYPES.get(key, ()))}
        if answer:
            self.result.answers.setdefault(event.host, {}).update(answer)

    def take_plan(self) -> None:
        """Count what a composite operation has planned as what it would change, step by step."""
        for step in self.result.plan.get("steps", ()):
            if step.get("undo"):
                continue
            before, after = step["before"], step["after"]
            if step["host"] not in self.result.changed_hosts:
                self.result.changed_hosts.append(step["host"])
            for name in {**before, **after}:
                _append(self.result.changes, FieldChange(step["host"], field_name(step, name), before.get(name), after.get(name)))


def field_changes(event: RunEvent) -> list[FieldChange]:
    """Return what a result says has changed: our modules' own list, else what its diff has, else only that it has."""
    if event.kind is not EventKind.CHANGED:
        return []
    own = event.result.get("changes")
    if isinstance(own, list):
        return [
            FieldChange(event.host, str(item.get("field", "")), item.get("before"), item.get("after"), str(item.get("effective", "now")))
            for item in own
            if isinstance(item, Mapping)
        ]
    loop = event.result.get("results")
    if isinstance(loop, list):
        return [change for item in loop if isinstance(item, Mapping) and item.get("changed") for change in field_changes(replace(event, result=item))]
    raw = event.result.get("diff")
    found = [change for diff in (raw if isinstance(raw, list) else [raw]) if isinstance(diff, Mapping) for change in _differences(event, diff)]
    return found or ([FieldChange(event.host, event.task, None, "changed")] if event.task else [])


def _differences(event: RunEvent, diff: Mapping[str, Any]) -> list[FieldChange]:
    """Return what one of Ansible's diffs says; of texts only how long they are and which, since they may be anything."""
    before, after = diff.get("before"), diff.get("after")
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return [FieldChange(event.host, str(key), before.get(key), after.get(key)) for key in {**before, **after} if before.get(key) != after.get(key)]
    if before == after:
        return []
    field = str(diff.get("after_header") or diff.get("before_header") or event.task)
    return [FieldChange(event.host, field, _text_shown(before), _text_shown(after))]


def _text_shown(text: Any) -> str | None:
    if text in (None, ""):
        return None
    lines = str(text).splitlines()
    return f"{len(lines)} lines ({hashlib.sha256(str(text).encode()).hexdigest()[:8]})"


def failure_text(event: RunEvent) -> str:
    """Return why a task failed, in the module's own words."""
    text = str(event.result.get("msg") or event.result.get("stderr") or "failed without a message")
    for prefix in ("Task failed: ", "Module failed: ", "Action failed: "):
        text = text.removeprefix(prefix)
    return text if event.kind is EventKind.FAILED else f"unreachable: {text}"


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _append[Item](items: list[Item], item: Item) -> None:
    if len(items) < MOST and item not in items:
        items.append(item)


def _cut(text: Any) -> str:
    shown = str(text).encode("utf-8", "replace").decode().replace("\0", "")
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"
