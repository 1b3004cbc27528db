# SPDX-License-Identifier: Apache-2.0
"""How far a rollout is and why it does not go on, from what the API answers."""

from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._rollout_status import RolloutStatus, newest_replica_set, rollout_status

TEMPLATE: dict[str, Any] = {"metadata": {"labels": {"app": "chat"}}, "spec": {"containers": [{"name": "model", "image": "m:2"}]}}
OLD: dict[str, Any] = {**TEMPLATE, "spec": {"containers": [{"name": "model", "image": "m:1"}]}}


def deployment(wanted: int = 5, *, generation: int = 2, conditions: list[dict[str, Any]] | None = None, **status: int) -> dict[str, Any]:
    counted = {"observedGeneration": 2, **status}
    return {
        "kind": "Deployment", "metadata": {"name": "chat", "uid": "d1", "generation": generation}, "spec": {"replicas": wanted, "template": TEMPLATE},
        "status": {**counted, "conditions": conditions or []},
    }  # fmt: skip


def replica_set(template: dict[str, Any] = TEMPLATE, *, uid: str = "r2", owner: str = "d1", ready: int = 0, created: str = "2026-01-02") -> dict[str, Any]:
    labels = {**template["metadata"]["labels"], "pod-template-hash": uid}
    return {
        "metadata": {"uid": uid, "creationTimestamp": created, "ownerReferences": [{"uid": owner, "controller": True}]},
        "spec": {"template": {**template, "metadata": {"labels": labels, "creationTimestamp": None}}}, "status": {"readyReplicas": ready},
    }  # fmt: skip


def pod(waiting: dict[str, Any] | None = None, *, owner: str = "r2", name: str = "chat-1", restarts: int = 0, **status: Any) -> dict[str, Any]:
    container = {"name": "model", "restartCount": restarts, "state": {"waiting": waiting} if waiting else {"running": {}}, **status.pop("container", {})}
    return {"metadata": {"name": name, "ownerReferences": [{"uid": owner, "controller": True}]}, "status": {"containerStatuses": [container], **status}}


def full(wanted: int = 5) -> dict[str, int]:
    return {"replicas": wanted, "updatedReplicas": wanted, "availableReplicas": wanted, "readyReplicas": wanted}


@pytest.mark.parametrize(
    ("status", "progress", "done"),
    [
        (full(), "5/5 ready", True),
        ({**full(), "replicas": 6}, "4/5 ready", False),  # an old one has not ended, and may be one of the five
        ({**full(), "availableReplicas": 3}, "3/5 ready", False),
        ({**full(), "updatedReplicas": 2}, "2/5 ready", False),
        ({"replicas": 5, "availableReplicas": 5}, "0/5 ready", False),
        ({}, "0/5 ready", False),
    ],
)
def test_all_must_be_new_and_available_and_no_old_one_left(status: dict[str, int], progress: str, done: bool) -> None:
    assert rollout_status(deployment(**status)) == RolloutStatus(progress, done, False, "")


def test_none_at_all_is_done_at_once() -> None:
    assert rollout_status(deployment(0)).done


def test_a_status_of_an_older_specification_says_nothing() -> None:
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    assert rollout_status(deployment(generation=3, conditions=[late], **full())) == RolloutStatus("0/5 ready", False, False, "")


def test_pods_of_the_new_revision_are_counted_and_no_others() -> None:
    sets = [replica_set(OLD, uid="r1", ready=5), replica_set(ready=2), replica_set(uid="r9", owner="d9", ready=4)]
    status = rollout_status(deployment(replicas=7, updatedReplicas=2, availableReplicas=7), sets)
    assert status.progress == "2/5 ready"


def test_the_oldest_of_the_same_template_is_the_newest_revision() -> None:
    """As the deployment controller has it, whatever revision its annotation still says."""
    sets = [replica_set(uid="r3", created="2026-01-03"), replica_set(uid="r2"), replica_set(OLD, uid="r1", created="2026-01-01")]
    found = newest_replica_set(deployment(), sets)
    assert found is not None
    assert found["metadata"]["uid"] == "r2"


@pytest.mark.parametrize(
    ("pods", "failed", "why"),  # None: if it stays so
    [
        ([pod({"reason": "ContainerCreating"})], False, ""),
        ([pod({"reason": "ErrImagePull", "message": "no such host"})], None, "pod chat-1: ErrImagePull: no such host"),  # it may be had the next time
        ([pod({"reason": "ImagePullBackOff", "message": "back-off"})], None, "pod chat-1: ImagePullBackOff: back-off"),
        ([pod({"reason": "ImagePullBackOff"}, owner="r1")], False, ""),  # an old revision's trouble
        ([pod({"reason": "CrashLoopBackOff"}, restarts=1)], False, "pod chat-1: CrashLoopBackOff"),
        (
            [pod({"reason": "CrashLoopBackOff"}, restarts=3, container={"lastState": {"terminated": {"exitCode": 3, "message": "no\nGPU \x1b[31m"}}})],
            True, "pod chat-1: CrashLoopBackOff (it ended with exit code 3: no GPU)",
        ),
        (
            [pod({"reason": "ImagePullBackOff"}, name=f"chat-{number}") for number in range(900)],
            None, "pod chat-0: ImagePullBackOff",
        ),
        (
            [pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no GPU"}])],
            False, "pod chat-1: Unschedulable: 0/3 nodes: no GPU",
        ),
    ],
)  # fmt: skip
def test_what_the_pods_say_is_quoted_once(pods: list[dict[str, Any]], failed: bool | None, why: str) -> None:
    status = rollout_status(deployment(replicas=6, updatedReplicas=1, availableReplicas=5), [replica_set(), replica_set(OLD, uid="r1")], pods)
    assert (status.done, status.failed, status.stuck, status.why) == (False, failed is True, failed is None, why)


@pytest.mark.parametrize(
    ("kind", "status", "reason", "message", "failed", "why"),
    [
        ("Progressing", "True", "ReplicaSetUpdated", "", False, ""),
        ("Progressing", "False", "ProgressDeadlineExceeded", "timed out", True, "ProgressDeadlineExceeded: timed out"),
        ("ReplicaFailure", "True", "FailedCreate", "exceeded quota: small", True, "FailedCreate: exceeded quota: small"),
        ("ReplicaFailure", "True", "FailedCreate", "timeout", False, "FailedCreate: timeout"),
        ("ReplicaFailure", "False", "FailedCreate", "exceeded quota", False, ""),
    ],
)
def test_what_the_controller_says_is_quoted(kind: str, status: str, reason: str, message: str, failed: bool, why: str) -> None:
    condition = {"type": kind, "status": status, "reason": reason, "message": message}
    told = rollout_status(deployment(conditions=[condition], replicas=5, updatedReplicas=1, availableReplicas=4))
    assert (told.failed, told.why) == (failed, why)


def test_a_late_rollout_says_what_its_pods_wait_for() -> None:
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "has timed out progressing"}
    waiting = pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}])
    status = rollout_status(deployment(conditions=[late], replicas=6, updatedReplicas=1, availableReplicas=5), [replica_set()], [waiting])
    assert (status.failed, status.why) == (True, "pod chat-1: Unschedulable: 0/3 nodes")


def test_a_paused_one_says_so() -> None:
    paused = deployment(replicas=5, updatedReplicas=0, availableReplicas=5)
    paused["spec"]["paused"] = True
    assert "kubectl rollout resume" in rollout_status(paused).why


def test_what_an_earlier_rollout_missed_or_was_refused_is_none_of_this_ones() -> None:
    missed = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "lastUpdateTime": "1", "message": "late"}
    before, now = (deployment(conditions=[missed], replicas=2, updatedReplicas=1, availableReplicas=1) for _ in range(2))
    assert not rollout_status(now, before=before).failed
    again = deployment(conditions=[{**missed, "lastUpdateTime": "2"}], replicas=2, updatedReplicas=1, availableReplicas=1)
    assert rollout_status(again, before=before).failed
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota: small"}
    old = deployment(conditions=[refused], replicas=2, updatedReplicas=1, availableReplicas=1)
    assert not rollout_status(old, [replica_set(), replica_set(OLD, uid="r1")]).failed
    newest = replica_set()
    newest["status"]["conditions"] = [refused]
    assert rollout_status(old, [newest]).failed
