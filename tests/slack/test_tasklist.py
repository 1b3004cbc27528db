# SPDX-License-Identifier: Apache-2.0
"""Task lists: what has changed since they were last shown, and no more."""

from __future__ import annotations

from dataclasses import replace

from tests.slack.test_messages import ENDED, RUN

from lepton_ai.runs.model import EventKind, RunEvent, State
from lepton_ai.runs.progress import Progress
from lepton_ai.slack.tasklist import news, task_chunks


def test_a_task_list_says_only_what_is_new() -> None:
    progress = Progress()
    progress.add(RunEvent(EventKind.TASK, task="One"))
    progress.add(RunEvent(EventKind.OK, host="h1"))
    progress.add(RunEvent(EventKind.FAILED, host="h2"))
    progress.add(RunEvent(EventKind.TASK, task="Two" * 200))
    first = task_chunks(RUN, progress)
    assert [(chunk["status"], chunk.get("details")) for chunk in first] == [("error", "h1 ok, h2 failed"), ("in_progress", None)]
    assert len(first[1]["title"]) == 250
    shown = {chunk["id"]: chunk for chunk in first}
    assert news(task_chunks(RUN, progress), shown) == []
    for number in range(200):
        progress.add(RunEvent(EventKind.CHANGED, host=f"h{number}"))
    (late,) = news(task_chunks(ENDED, progress), shown)
    assert (late["status"], late["details"]) == ("complete", "200 hosts: 200 changed")
    progress.add(RunEvent(EventKind.TASK, task="Three"))
    assert task_chunks(replace(ENDED, state=State.CANCELED), progress)[-1]["status"] == "error"
