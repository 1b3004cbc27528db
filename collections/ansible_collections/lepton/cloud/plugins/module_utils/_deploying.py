# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Planning a change of a deployment by dry runs, applying it, watching its rollout, and bringing back what was there. PRIVATE to the collection."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping

from ._changes import Change
from ._cluster import ApiError, Cluster, Unreachable
from ._deployment import (
    applied,
    autoscaled,
    changes,
    conflict_text,
    continued,
    extract,
    is_ours,
    notes_of,
    restoring,
    rollback_target,
    rolled_back,
    selector_of,
    with_replicas,
    with_restart,
)
from ._manifest import KINDS, OBJECTS, DeploymentError, Manifest, check_name, given_options, manifests, stored_options
from ._rollout_status import RolloutStatus, rollout_status, template_of

TRIES = 5  # of an apply, while controllers write the status of the same object
UNDO_SECONDS = 120  # for what was there before to be ready again
PATIENCE_SECONDS = 60  # for an API server that does not answer while something is under way
AUTOSCALER = "HorizontalPodAutoscaler"
Report = Callable[[str], None]


class Superseded(DeploymentError):
    """Another change came meanwhile, so this one has nothing to bring back."""


@dataclass
class Apply:
    """One object: as it is (None: it is not), what is applied, and what a dry run says it becomes."""

    kind: str
    name: str
    before: Manifest | None
    manifest: Manifest
    after: Manifest
    changes: list[Change]

    @property
    def needed(self) -> bool:
        """Whether it is applied: what we only keep in a Deployment's annotations is no change of it, and has to be kept all the same."""
        return bool(self.changes) or notes_of(self.before) != notes_of(self.after)


@dataclass
class Plan:
    """What is to be done, in order. `live` is the Deployment as it is."""

    name: str
    live: Manifest | None
    applies: list[Apply] = field(default_factory=list)
    deletes: list[Manifest] = field(default_factory=list)
    wait: bool = False

    @property
    def changes(self) -> list[Change]:
        found = [change for each in self.applies for change in each.changes]
        return found + [change for each in self.deletes for change in changes(each, None)]

    @property
    def first(self) -> list[Manifest]:
        """What is deleted before anything is applied: what would scale it meanwhile."""
        return [each for each in self.deletes if each["kind"] == AUTOSCALER]

    @property
    def last(self) -> list[Manifest]:
        """What is deleted when all else is as it should be, since until then somebody may need it."""
        return [each for each in self.deletes if each["kind"] != AUTOSCALER]

    @property
    def steps(self) -> list[str]:
        applies = ["apply %s/%s" % (each.kind, each.name) for each in self.applies if each.changes]
        first, last = (["delete %s/%s" % (each["kind"], each["metadata"]["name"]) for each in some] for some in (self.first, self.last))
        return [*first, *applies, *(["wait"] if self.wait and applies else []), *last]


def make_plan(cluster: Cluster, params: Mapping[str, Any]) -> Plan:
    """Return the plan that the module's options ask for. Nothing is changed; raises DeploymentError for what cannot be."""
    name, state = check_name(params["name"]), params["state"]
    live = cluster.get("Deployment", name)
    _refuse_foreign(cluster, params, "deployment", live)
    if state == "absent":
        return _plan_removal(cluster, name, live)
    plan = Plan(name, live, wait=params["wait"])
    options = given_options(params)
    if state == "present" and (options or live is None):
        _plan_deploy(cluster, params, options, plan)
        return plan
    if live is None:
        raise DeploymentError("there is no deployment %s in %s" % (name, cluster.namespace))
    config = extract(live) or applied(live)
    config.setdefault("spec", {})
    if state == "present":
        _check_scaling(live, params["replicas"])
        _plan_apply(cluster, params, plan, with_replicas(config, params["replicas"]), live)
    elif state == "restarted":
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        _plan_apply(cluster, params, plan, with_restart(config, moment), live)
    else:
        target = rollback_target(live, cluster.list("ReplicaSet", selector_of(live)), params["revision"])
        if target:
            _plan_rollback(cluster, params, rolled_back(config, target), target, plan)
    return plan


def _plan_rollback(cluster: Cluster, params: Mapping[str, Any], manifest: Manifest, target: Manifest, plan: Plan) -> None:
    """Plan the Deployment as it was, and around it what then belonged to it."""
    live = plan.live or {}
    options = stored_options(manifest)
    around = manifests(plan.name, options, None, _selector(live)) if options else {("Deployment", plan.name): manifest}
    for kind, name in around:
        if kind == "Deployment":
            _plan_apply(cluster, params, plan, manifest, live)
            wanted, becomes = ({**live, "spec": {"template": template_of(each)}} for each in (target, plan.applies[-1].after))
            left = changes(wanted, becomes)
            if left:
                fields = ", ".join(sorted({change.field for change in left}))
                raise DeploymentError("%s cannot be brought back whole: other managers hold %s. Change these with what made them" % (plan.name, fields))
        else:
            _plan_companion(cluster, params, plan, around[kind, name])


def _check_scaling(live: Manifest, replicas: int | None) -> None:
    name = live["metadata"]["name"]
    if replicas is None:
        raise DeploymentError("%s: what is to change? Nothing is given, neither replicas nor an option that describes it" % name)
    if replicas < 0:
        raise DeploymentError("replicas: expected 0 or more, not %d" % replicas)
    if autoscaled(live):
        raise DeploymentError("%s has a HorizontalPodAutoscaler, which would undo it: change its autoscale in place of replicas" % name)


def _plan_deploy(cluster: Cluster, params: Mapping[str, Any], given: Mapping[str, Any], plan: Plan) -> None:
    live = plan.live
    options = {**({} if params["complete"] else stored_options(live)), **given}
    objects = manifests(plan.name, options, _replicas(params, options, live), _selector(live))
    kept = []
    for reference in str(notes_of(live)[OBJECTS] or "").split():
        kind, _slash, name = reference.partition("/")
        if kind in KINDS and (kind, name) not in objects:
            dropped = cluster.get(kind, name)
            if dropped is not None and is_ours(dropped):
                plan.deletes.append(dropped)
                kept.append(reference)  # until a later deployment finds it gone: this one may end before it has deleted it
    for (kind, _name), manifest in objects.items():
        if kind == "Deployment":
            _refuse_deleted(live)
            annotations = manifest["metadata"]["annotations"]
            annotations[OBJECTS] = " ".join([*annotations[OBJECTS].split(), *kept])
            _plan_apply(cluster, params, plan, continued(manifest, live), live)
            _check_drain(options, plan.applies[-1].after)
        else:
            _plan_companion(cluster, params, plan, manifest)


def _selector(live: Manifest | None) -> dict[str, str] | None:
    return None if live is None else live["spec"]["selector"].get("matchLabels")


def _plan_companion(cluster: Cluster, params: Mapping[str, Any], plan: Plan, manifest: Manifest) -> None:
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    before = cluster.get(kind, name)
    _refuse_foreign(cluster, params, kind, before)
    _refuse_deleted(before)
    _plan_apply(cluster, params, plan, manifest, before)


def _refuse_foreign(cluster: Cluster, params: Mapping[str, Any], what: str, before: Manifest | None) -> None:
    if before is not None and not is_ours(before) and not params["adopt"]:
        name = before["metadata"]["name"]
        raise DeploymentError("the %s %s in %s was made by somebody else: say adopt to take it over" % (what, name, cluster.namespace))


def _refuse_deleted(before: Manifest | None) -> None:
    if before is not None and before["metadata"].get("deletionTimestamp"):
        raise DeploymentError("the %s %s is still being deleted: wait until it is gone" % (before["kind"], before["metadata"]["name"]))


def _check_drain(options: Mapping[str, Any], after: Manifest) -> None:
    """Raise DeploymentError where a cluster drops what drains pods: before Kubernetes 1.30 it does so without a word."""
    containers = after["spec"]["template"]["spec"]["containers"]
    wanted = options.get("drain_seconds") != 0 and "Deployment" not in options.get("merge", {})
    if wanted and not any(((each.get("lifecycle") or {}).get("preStop") or {}).get("sleep") for each in containers):
        raise DeploymentError("this cluster knows no preStop sleep (Kubernetes 1.30): say drain_seconds 0, and merge a preStop hook that its image can run")


def _replicas(params: Mapping[str, Any], options: Mapping[str, Any], live: Manifest | None) -> int | None:
    """Return how many pods to ask for, None where that is not ours to say.

    With an autoscaler the number is its own; but giving up a field that only we own would remove it, and one pod would be left
    (https://kubernetes.io/docs/reference/using-api/server-side-apply/#transferring-ownership).
    """
    now = None if live is None else live["spec"].get("replicas", 1)
    if options.get("autoscale"):
        if params["replicas"] is not None:
            raise DeploymentError("replicas and autoscale exclude each other: the HorizontalPodAutoscaler gives the number")
        return now if live is not None and "replicas" in extract(live).get("spec", {}) else None
    wanted = params["replicas"] if params["replicas"] is not None else params["initial_replicas"] if now is None else now
    if wanted < 0:
        raise DeploymentError("replicas: expected 0 or more, not %d" % wanted)
    return int(wanted)


def _plan_apply(cluster: Cluster, params: Mapping[str, Any], plan: Plan, manifest: Manifest, before: Manifest | None) -> None:
    try:
        after = cluster.apply(manifest, dry_run=True, force=params["force_conflicts"])
    except ApiError as error:
        if error.found:
            raise DeploymentError(conflict_text("the %s %s" % (manifest["kind"], manifest["metadata"]["name"]), error.found)) from error
        raise
    plan.applies.append(Apply(manifest["kind"], manifest["metadata"]["name"], before, manifest, after, changes(before, after)))


def _plan_removal(cluster: Cluster, name: str, live: Manifest | None) -> Plan:
    """What scales it goes first, and what guards its pods after they have ended. Data stays."""
    plan = Plan(name, live)
    found = {kind: cluster.get(kind, name) for kind in KINDS if kind not in ("Deployment", "PersistentVolumeClaim")}
    for kind in (AUTOSCALER, "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceAccount"):
        each = live if kind == "Deployment" else found[kind]
        if each is not None and (kind == "Deployment" or is_ours(each)):
            cluster.delete(kind, name, each["metadata"]["uid"], dry_run=True)
            plan.deletes.append(each)
    return plan


def apply_plan(cluster: Cluster, plan: Plan, params: Mapping[str, Any], report: Report) -> Manifest | None:
    """Do what is planned, wait for it, and return the Deployment as it then is, None when there is none.

    What fails brings back what was there, where that is asked for, and says so.
    """
    deadline = time.monotonic() + params["wait_seconds"]
    cluster.patience = PATIENCE_SECONDS  # from now on giving up would leave something half done
    done: list[Apply] = []
    gone: list[Manifest] = []
    try:
        for thing in plan.first:
            gone.append(thing)
            _delete(cluster, thing)
        for each in plan.applies:
            if each.needed:
                try:
                    each.after = _apply(cluster, each, force=params["force_conflicts"])
                except Unreachable:
                    done.append(each)  # which it may be
                    raise
                done.append(each)
        if plan.wait:
            _wait_ready(cluster, plan, params, deadline, report)
    except Superseded:
        raise
    except DeploymentError as error:
        if params["rollback_on_failure"] and plan.changes:
            raise DeploymentError("%s. %s" % (error, _undo(cluster, plan, done, gone, report))) from error
        raise
    for thing in plan.last:
        _delete(cluster, thing)
        if thing["kind"] == "Deployment" and params["wait"]:
            _wait_gone(cluster, thing, deadline, report)
    if any(thing["kind"] == "Deployment" for thing in plan.deletes):
        return None if params["wait"] else cluster.get("Deployment", plan.name)
    return next((each.after if each.needed else each.before for each in plan.applies if each.kind == "Deployment"), plan.live)


def _delete(cluster: Cluster, thing: Manifest) -> None:
    cluster.delete(thing["kind"], thing["metadata"]["name"], thing["metadata"]["uid"], dry_run=False)


def _wait_ready(cluster: Cluster, plan: Plan, params: Mapping[str, Any], deadline: float, report: Report) -> None:
    """Wait until the Deployment that was applied is rolled out; raise DeploymentError that says why it is not."""
    for each in plan.applies:
        if each.kind == "Deployment":
            status, each.after = wait_for(cluster, each.after, deadline, params["stuck_seconds"], report)
            if not status.done:
                late = "" if status.failed else " and not more within %d s" % params["wait_seconds"]
                raise DeploymentError("%s: %s%s%s" % (plan.name, status.progress, late, ": " + status.why if status.why else ""))


def _apply(cluster: Cluster, each: Apply, *, force: bool) -> Manifest:
    """Apply for real, only if the object still is what was planned for. Controllers write its status all the time, which does not count."""
    before = each.before
    for _try in range(TRIES):
        version = None if before is None else before["metadata"]["resourceVersion"]
        try:
            return cluster.apply(each.manifest, dry_run=False, force=force, version=version)
        except ApiError as error:
            if error.status != 409 or error.found or before is None:
                raise
            now = cluster.get(each.kind, each.name)
            if now is None or changes(before, now):
                raise DeploymentError("somebody else changed the %s %s meanwhile: look at it, and ask again" % (each.kind, each.name)) from error
            before = now
    raise DeploymentError("the %s %s changes faster than it could be applied: ask again" % (each.kind, each.name))


def wait_for(cluster: Cluster, deployment: Manifest, deadline: float, stuck_seconds: float, report: Report) -> tuple[RolloutStatus, Manifest]:
    """Watch a rollout to its end, its failure or the deadline, and return how it and its Deployment then stand.

    What is stuck for so long has failed.
    """
    name = deployment["metadata"]["name"]
    selector = {"labelSelector": selector_of(deployment)}
    wanted = {"Deployment": {"fieldSelector": "metadata.name=" + name}, "ReplicaSet": selector, "Pod": selector}
    known: dict[str, dict[str, Manifest]] = {kind: {} for kind in wanted}
    status, told = rollout_status(deployment), ""
    if status.done:  # as an apply that changed nothing answers
        return status, deployment
    until, template, last = [deadline], template_of(deployment), deployment
    for kind, event, thing in cluster.watch(wanted, lambda: until[0]):
        if event == "GONE":
            known[kind].clear()
            continue
        if event == "DELETED":
            known[kind].pop(thing["metadata"]["uid"], None)
            if kind == "Deployment":
                raise DeploymentError("the deployment %s was deleted meanwhile" % name)
        else:
            known[kind][thing["metadata"]["uid"]] = thing
        for live in known["Deployment"].values():
            if live["metadata"]["generation"] < deployment["metadata"]["generation"]:
                continue  # an API server that does not know of our change yet
            if template_of(live) != template:
                raise Superseded("somebody else deployed %s meanwhile: what runs now is theirs, and this did not finish" % name)
            status, last = rollout_status(live, known["ReplicaSet"].values(), known["Pod"].values(), deployment), live
            if (news := "%s %s" % (status.progress, status.why)) != told:
                report(news.strip())
                told = news
            if status.done or status.failed:
                return status, last
            until[0] = min(until[0], time.monotonic() + stuck_seconds) if status.stuck else deadline
    return status._replace(failed=status.stuck and until[0] < deadline), last


def _wait_gone(cluster: Cluster, thing: Manifest, deadline: float, report: Report) -> None:
    """Watch until a Deployment is gone, which by foreground deletion is when its pods are."""
    metadata = thing["metadata"]
    wanted = {"Deployment": {"fieldSelector": "metadata.name=" + metadata["name"], "resourceVersion": metadata["resourceVersion"]}}
    report("ending its pods")
    begun = False
    for _kind, event, live in cluster.watch(wanted, lambda: deadline):
        if event == "GONE" and begun:  # the watch ended and begins anew
            now = cluster.get("Deployment", metadata["name"])
            if now is None or now["metadata"]["uid"] != metadata["uid"]:
                return
        elif event == "DELETED" and live["metadata"]["uid"] == metadata["uid"]:
            return
        begun = True
    raise DeploymentError("the pods of %s have not ended in time: they hold it until they have" % metadata["name"])


def _undo(cluster: Cluster, plan: Plan, done: list[Apply], gone: list[Manifest], report: Report) -> str:
    """Bring back what was there before, and return in a sentence what that came to."""
    report("bringing back what was there before")
    troubles = []
    for each in reversed(done):
        try:
            if each.kind == "PersistentVolumeClaim":
                continue  # data stays
            if each.before is not None:
                each.after = cluster.apply(restoring(each.before, each.after), dry_run=False, force=True)
            elif (now := cluster.get(each.kind, each.name)) is not None and is_ours(now):
                _delete(cluster, now)
        except DeploymentError as error:
            troubles.append("the %s %s: %s" % (each.kind, each.name, error))
    for thing in gone:
        try:
            cluster.apply(applied(thing), dry_run=False, force=True)
        except DeploymentError as error:
            troubles.append("the %s %s: %s" % (thing["kind"], thing["metadata"]["name"], error))
    if troubles:
        return "What was there before could not be brought back: %s" % "; ".join(troubles)
    if plan.live is None:
        return "There was none before, so it is deleted again"
    deployment = next((each.after for each in done if each.kind == "Deployment"), plan.live)
    try:
        status, _live = wait_for(cluster, deployment, time.monotonic() + UNDO_SECONDS, UNDO_SECONDS, report)
    except DeploymentError as error:
        return str(error)
    image = plan.live["spec"]["template"]["spec"]["containers"][0]["image"]
    return "It is back at %s: %s%s" % (image, status.progress, ": " + status.why if status.why else "")
