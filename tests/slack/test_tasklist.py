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


def test_details_are_said_once_when_a_task_is_over_and_what_is_more_is_counted() -> None:
    progress = Progress()
    progress.add(RunEvent(EventKind.TASK, task="One"))
    progress.add(RunEvent(EventKind.OK, host="h1"))
    progress.add(RunEvent(EventKind.OK, host="h2"))
    (first,) = task_chunks(RUN, progress)
    assert (first["title"], "details" in first) == ("One · 2 hosts done", False)
    progress.add(RunEvent(EventKind.TASK, task="Two"))
    (over, _two) = news(task_chunks(RUN, progress), {first["id"]: first})
    assert over["details"] == "h1 ok, h2 ok"
    late = news([{**over, "status": "error"}], {over["id"]: over})
    assert late == [{name: value for name, value in {**over, "status": "error"}.items() if name != "details"}], "details would be added to the earlier ones"
    for number in range(60):
        progress.add(RunEvent(EventKind.TASK, task=f"Task {number}"))
    assert task_chunks(RUN, progress)[-1]["title"] == "12 more, now: Task 59"
    progress.add(RunEvent(EventKind.FAILED, host="h1", ignored=True))
    assert progress.begun_tasks[-1].hosts == {"h1": "ignored"}


def test_a_task_under_way_shows_what_it_says() -> None:
    progress = Progress()
    progress.add(RunEvent(EventKind.TASK, task="Deploy"))
    progress.add(RunEvent(EventKind.PROGRESS, said="2/5 ready"))
    (chunk,) = task_chunks(RUN, progress)
    assert (chunk["title"], chunk["status"]) == ("Deploy · 2/5 ready", "in_progress")
    progress.add(RunEvent(EventKind.OK, host="gpu"))
    (over,) = task_chunks(ENDED, progress)
    assert over["title"] == "Deploy"
