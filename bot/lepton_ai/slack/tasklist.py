# SPDX-License-Identifier: Apache-2.0
"""A run's tasks as one of Slack's task lists, in the thread of its message: what has changed since it was last shown. Pure.

docs.slack.dev/reference/methods/chat.startStream and chat.appendStream: title and status of a chunk with a known id take the place
of the earlier ones, its details are added to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lepton_ai.runs.model import HERE, EventKind, Run, State
from lepton_ai.runs.progress import Progress, Task
from lepton_ai.slack.limits import TASK_LIMIT, shortened

MOST_TASKS = 50  # of one list
FEW_HOSTS = 5  # that are named
Chunk = dict[str, Any]
_WRONG = frozenset({EventKind.FAILED.value, EventKind.UNREACHABLE.value})


def task_chunks(run: Run, progress: Progress) -> list[Chunk]:
    """Return the chunks of all tasks that have begun, as they stand: pending is none, since Ansible finds its tasks as it goes."""
    begun = list(progress.begun_tasks)
    chunks = [_chunk(number, task, current=number == len(begun) and not run.state.final, run=run) for number, task in enumerate(begun[:MOST_TASKS], 1)]
    if len(begun) > MOST_TASKS:
        title = f"{len(begun) - MOST_TASKS} more" + ("" if run.state.final else f", now: {begun[-1].name}")
        more = {"type": "task_update", "id": f"{run.id}-more", "title": shortened(title, TASK_LIMIT)}
        chunks.append({**more, "status": "complete" if run.state.final else "in_progress"})
    return chunks


def news(chunks: list[Chunk], shown: Mapping[str, Chunk]) -> list[Chunk]:
    """Return of each chunk what is not shown yet. Slack adds details to those that are there, so they are sent once."""
    fresh = []
    for chunk in chunks:
        known = shown.get(chunk["id"], {})
        said = {name: value for name, value in chunk.items() if name != "details" or "details" not in known}
        if any(known.get(name) != value for name, value in said.items()):
            fresh.append(said)
    return fresh


def _chunk(number: int, task: Task, *, current: bool, run: Run) -> Chunk:
    every = dict(task.hosts)  # at once: the run's own thread writes it
    hosts = {host: state for host, state in every.items() if host != HERE} or every
    wrong = any(state in _WRONG for state in hosts.values())
    cut = not current and not hosts and run.state.final and run.state is not State.SUCCEEDED  # it was under way when the run ended
    status = "in_progress" if current else "error" if wrong or cut else "complete"
    title = (task.name or "a task") + (f" · {len(hosts)} hosts done" if current and len(hosts) > 1 else "")
    title += f" · {task.said}" if current and task.said else ""
    chunk = {"type": "task_update", "id": f"{run.id}-{number}", "title": shortened(title, TASK_LIMIT), "status": status}
    return {**chunk, "details": shortened(_in_words(hosts), TASK_LIMIT)} if hosts and not current else chunk


def _in_words(hosts: Mapping[str, str]) -> str:
    if len(hosts) <= FEW_HOSTS:
        return ", ".join(f"{host} {state}" for host, state in sorted(hosts.items()))
    return f"{len(hosts)} hosts: " + ", ".join(f"{count} {state}" for state, count in sorted(Counter(hosts.values()).items()))
