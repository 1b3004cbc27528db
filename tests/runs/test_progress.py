# SPDX-License-Identifier: Apache-2.0
"""ansible-runner's events become typed ones, and those become what has been done."""

from typing import Any

from lepton_ai.runs.model import EventKind, FieldChange, RunEvent
from lepton_ai.runs.progress import LONGEST, MOST, Progress, bounded, read_event


def raw(event: str, **data: Any) -> dict[str, Any]:
    return {"event": event, "event_data": data}


def test_events_are_read() -> None:
    assert read_event(raw("playbook_on_play_start", name="P")) == RunEvent(EventKind.PLAY, play="P")
    assert read_event(raw("playbook_on_task_start", name="T", play="P")) == RunEvent(EventKind.TASK, play="P", task="T")
    changed = read_event(raw("runner_on_ok", host="h", task="T", res={"changed": True}))
    assert changed is not None
    assert changed.kind is EventKind.CHANGED
    assert read_event(raw("playbook_on_stats")) == RunEvent(EventKind.STATS)
    assert read_event(raw("something_new")) is None
    assert read_event({}) is None
    assert read_event(raw("runner_on_ok", host="h", res="not a mapping")) is not None


def test_our_modules_changes_come_first_and_any_diff_of_fields_will_do() -> None:
    progress = Progress()
    own = {"changed": True, "changes": [{"field": "vcpus", "before": 1, "after": 3, "effective": "now"}], "diff": {"before": {"x": 1}, "after": {"x": 2}}}
    other = {"changed": True, "diff": {"before": {"mode": "0600", "same": 1}, "after": {"mode": "0644", "same": 1}}}
    for host, result in (("a", own), ("b", other), ("c", {"changed": True, "diff": "text"})):
        progress.add(RunEvent(EventKind.CHANGED, host=host, result=result))
    assert progress.result.changes == [FieldChange("a", "vcpus", 1, 3), FieldChange("b", "mode", "0600", "0644")]
    assert progress.result.changed_hosts == ["a", "b", "c"]


def test_a_failure_says_the_modules_own_words_unless_it_is_ignored() -> None:
    progress = Progress()
    progress.add(RunEvent(EventKind.FAILED, host="a", result={"msg": "Task failed: Module failed: no room"}))
    progress.add(RunEvent(EventKind.FAILED, host="b", result={"msg": "x"}, ignored=True))
    progress.add(RunEvent(EventKind.UNREACHABLE, host="c", result={"msg": "no route"}))
    assert progress.result.failures == {"a": "no room", "c": "unreachable: no route"}


def test_what_hosts_send_is_bounded() -> None:
    deep: Any = "x"
    for _ in range(50):
        deep = {"k": deep}
    cut = bounded({"long": "x" * 100_000, "many": list(range(10_000)), "deep": deep})
    assert len(cut["long"]) == LONGEST
    assert len(cut["many"]) == MOST
    assert "…" in str(cut["deep"])


def test_what_a_task_says_while_it_is_under_way_is_its_own_and_nothing_else_displayed_is() -> None:
    progress = Progress()
    said = read_event({"event": "verbose", "stdout": "lepton progress: 2/5 ready"})
    assert said == RunEvent(EventKind.PROGRESS, said="2/5 ready")
    progress.add(said)  # before any task: nothing to say it of
    progress.add(RunEvent(EventKind.TASK, task="Deploy"))
    progress.add(said)
    assert progress.begun_tasks[-1].said == "2/5 ready"
    progress.add(RunEvent(EventKind.TASK, task="Next"))
    assert progress.begun_tasks[-1].said == ""
    assert read_event({"event": "verbose", "stdout": "[WARNING]: something"}) is None
    long = read_event({"event": "verbose", "stdout": "lepton progress: " + "x" * 9000})
    assert long is not None
    assert len(long.said) == 300
