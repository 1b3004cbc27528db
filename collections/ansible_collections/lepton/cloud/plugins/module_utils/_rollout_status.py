# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""How far the rollout of a Kubernetes Deployment is, and why it does not go on: from what the API has. Pure. PRIVATE to the collection and to the Lepton bot.

The rules for 'done' are kubectl's (k8s.io/kubectl/pkg/polymorphichelpers/rollout_status.go). What kubectl leaves to a person to look
up, its pods say, and they are quoted.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping, NamedTuple

from ._command import clean

HASH_LABEL = "pod-template-hash"  # which the deployment controller adds to the template of each ReplicaSet
REVISION = "deployment.kubernetes.io/revision"
HOPELESS = ("InvalidImageName", "ErrImageNeverPull")  # the kubelet will not try again
# It will, and one of these may pass: a registry that was busy, a Secret that is not known yet. While it stays, nothing goes on.
STUCK = ("ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "RunContainerError")
# What refuses a pod refuses the next one like it. A ServiceAccount that was made just now may not be known yet, and is none of these.
FORBIDDING = ("exceeded quota", "violates PodSecurity", "denied the request", "denied request")
CRASHES = 3  # restarts of a container after which the kubelet's back-off is believed
LONGEST = 300  # characters of one quotation


class RolloutStatus(NamedTuple):
    """`progress` such as '2/5 ready'; `why` quotes what holds it up, and is empty while nothing does. `stuck` is failed if it stays so."""

    progress: str
    done: bool
    failed: bool
    why: str
    stuck: bool = False


def rollout_status(
    deployment: Mapping[str, Any],
    replica_sets: Iterable[Mapping[str, Any]] = (),
    pods: Iterable[Mapping[str, Any]] = (),
    before: Mapping[str, Any] | None = None,
) -> RolloutStatus:
    """Return how the rollout of a Deployment stands.

    `replica_sets` and `pods` may hold those of others too: only what the Deployment owns counts, by owner's uid and not by labels,
    and of its pods only those of the newest revision. `before` is the Deployment as it was when it was changed: a deadline that an
    earlier rollout has missed stays in its conditions for a while.
    """
    metadata, spec, status = deployment.get("metadata") or {}, deployment.get("spec") or {}, deployment.get("status") or {}
    wanted = spec.get("replicas", 1)
    updated, total, available = (status.get(name) or 0 for name in ("updatedReplicas", "replicas", "availableReplicas"))
    if (status.get("observedGeneration") or 0) < (metadata.get("generation") or 0):
        return RolloutStatus("0/%d ready" % wanted, False, False, "")  # its status is of an older specification
    newest = newest_replica_set(deployment, replica_sets)
    # Without its ReplicaSet only this is sure: not more than the old ones are ready without being new.
    ready = ((newest.get("status") or {}).get("readyReplicas") or 0) if newest is not None else max(0, available - (total - updated))
    progress = "%d/%d ready" % (min(ready, wanted), wanted)
    if updated == wanted == total == available:
        return RolloutStatus("%d/%d ready" % (wanted, wanted), True, False, "")
    said, hopeless, stuck = _troubles(newest, pods)
    # A Deployment also repeats what an older ReplicaSet was refused.
    failure = _conditions(deployment if newest is None else newest).get("ReplicaFailure") or {}
    if failure.get("status") == "True":
        said.insert(0, _quote("", failure.get("reason"), failure.get("message")))
        hopeless = hopeless or any(words in str(failure.get("message")) for words in FORBIDDING)
    progressing = _conditions(deployment).get("Progressing") or {}
    late = progressing.get("status") == "False" and progressing.get("reason") == "ProgressDeadlineExceeded"
    if before is not None and progressing == _conditions(before).get("Progressing"):
        late = False
    if late and not said:
        said.append(_quote("", progressing.get("reason"), progressing.get("message")))
    if spec.get("paused") and not said:
        said.append("the deployment is paused: kubectl rollout resume lets it go on")
    return RolloutStatus(progress, False, late or hopeless, "; ".join(said), stuck)


def _conditions(thing: Mapping[str, Any]) -> dict[Any, Mapping[str, Any]]:
    return {condition.get("type"): condition for condition in (thing.get("status") or {}).get("conditions") or ()}


def owned(owner: Mapping[str, Any], objects: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return those that the owner controls, by its uid."""
    uid = (owner.get("metadata") or {}).get("uid")
    found = []
    for each in objects:
        references = (each.get("metadata") or {}).get("ownerReferences") or ()
        if uid and any(reference.get("uid") == uid and reference.get("controller") for reference in references):
            found.append(each)
    return found


def revision_of(thing: Mapping[str, Any]) -> int:
    """Return the revision that the deployment controller gave it, 0 while there is none."""
    text = str(((thing.get("metadata") or {}).get("annotations") or {}).get(REVISION, ""))
    return int(text) if text.isdecimal() else 0


def template_of(owner: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the pods of a ReplicaSet are made from, as its Deployment had it."""
    template = owner["spec"]["template"]
    metadata = template.get("metadata") or {}
    labels = {name: value for name, value in (metadata.get("labels") or {}).items() if name != HASH_LABEL}
    kept = {name: value for name, value in metadata.items() if name not in ("labels", "creationTimestamp")}
    return {**template, "metadata": {**kept, "labels": labels}}


def newest_replica_set(deployment: Mapping[str, Any], replica_sets: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the ReplicaSet that the Deployment's pods are to come from: the oldest of the same template, as the controller itself tells it.

    Its revision would not do: just after a change it still is the one before.
    """
    wanted = template_of(deployment)
    same = [each for each in owned(deployment, replica_sets) if template_of(each) == wanted]
    return min(same, key=lambda each: str(each["metadata"].get("creationTimestamp")), default=None)


def _troubles(replica_set: Mapping[str, Any] | None, pods: Iterable[Mapping[str, Any]]) -> tuple[list[str], bool, bool]:
    """Return what the pods of a ReplicaSet say, each thing once, whether waiting is of no use, and whether it may be of none."""
    said: dict[str, str] = {}
    hopeless = stuck = False
    if replica_set is None:
        return [], hopeless, stuck
    for pod in owned(replica_set, pods):
        name, status = (pod.get("metadata") or {}).get("name"), pod.get("status") or {}
        for condition in status.get("conditions") or ():
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                said.setdefault("PodScheduled", _quote(name, condition.get("reason"), condition.get("message")))
        for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
            waiting = (container.get("state") or {}).get("waiting") or {}
            reason = waiting.get("reason")
            if not reason or reason in ("ContainerCreating", "PodInitializing"):
                continue
            quoted = _quote(name, reason, waiting.get("message"))
            ended = (container.get("lastState") or {}).get("terminated") or {}
            if ended:
                quoted += " (it ended with exit code %s%s)" % (ended.get("exitCode"), _after_colon(ended.get("message") or ended.get("reason")))
            said.setdefault(reason, quoted)
            stuck = stuck or reason in STUCK
            hopeless = hopeless or reason in HOPELESS or (reason == "CrashLoopBackOff" and (container.get("restartCount") or 0) >= CRASHES)
    return list(said.values()), hopeless, stuck


def _quote(pod: Any, reason: Any, message: Any) -> str:
    return ("pod %s: " % pod if pod else "") + str(reason or "no reason given")[:80] + _after_colon(message)


def _after_colon(text: Any) -> str:
    shown = " ".join(clean(str(text or "")).split())
    return ": " + (shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…") if shown else ""
