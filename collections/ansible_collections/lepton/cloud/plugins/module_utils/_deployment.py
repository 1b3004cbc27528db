# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What differs between Kubernetes objects, who owns which of their fields, and what an earlier revision was. Pure.

PRIVATE to the collection and to the Lepton bot.
"""

from __future__ import annotations

import json
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from ._changes import Change
from ._manifest import (
    AROUND,
    CONTAINER,
    MANAGER,
    OBJECTS,
    OPTIONS,
    OURS_LABEL,
    RESTARTED,
    DeploymentError,
    Manifest,
    key_of,
    merged,
    options_text,
    stored_options,
)
from ._rollout_status import REVISION, owned, revision_of, template_of

NOISE = (REVISION, OBJECTS, OPTIONS, "kubectl.kubernetes.io/last-applied-configuration")
# Where people look for a field, in place of where Kubernetes has it.
SHORTER = (("template.spec.", "pod."), ("template.metadata.", "pod."))


class Conflict(NamedTuple):
    """A field that another manager has set to something else."""

    field: str
    manager: str


def is_ours(live: Mapping[str, Any]) -> bool:
    """Return whether this collection made or adopted an object."""
    return bool((live["metadata"].get("labels") or {}).get(OURS_LABEL) == MANAGER)


def autoscaled(live: Mapping[str, Any]) -> bool:
    """Return whether a HorizontalPodAutoscaler of ours gives this deployment its number of replicas."""
    return bool(stored_options(live).get("autoscale"))


def notes_of(thing: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what we keep of a Deployment in its annotations, which shows in no difference."""
    annotations = ((thing or {}).get("metadata") or {}).get("annotations") or {}
    return {name: annotations.get(name) for name in (OBJECTS, OPTIONS)}


def extract(live: Mapping[str, Any]) -> Manifest:
    """Return what this collection last applied to an object: those of its fields that its managedFields say are ours.

    The same as client-go's ExtractDeployment. Empty where nothing of it was ever applied by us.
    """
    fields = _our_fields(live)
    return _named(live, _extracted(live, fields)) if fields else {}


def _our_fields(live: Mapping[str, Any]) -> dict[str, Any]:
    for entry in live["metadata"].get("managedFields") or ():
        if entry.get("manager") == MANAGER and entry.get("operation") == "Apply" and not entry.get("subresource"):
            return dict(entry.get("fieldsV1") or {})
    return {}


def _named(live: Mapping[str, Any], config: Mapping[str, Any]) -> Manifest:
    metadata = {**config.get("metadata", {}), "name": live["metadata"]["name"]}
    return {"apiVersion": live["apiVersion"], "kind": live["kind"], **config, "metadata": metadata}


def _extracted(value: Any, fields: Mapping[str, Any]) -> Any:
    """Follow one set of fieldsV1: `f:` is a field, `k:` an item with these keys, `v:` an item of this value, `.` the thing itself."""
    if not fields:
        return value
    if isinstance(value, Mapping):
        return {name[2:]: _extracted(value[name[2:]], below) for name, below in fields.items() if name.startswith("f:") and name[2:] in value}
    if isinstance(value, list):
        items = []
        for name, below in fields.items():
            if name.startswith("k:"):
                keys = json.loads(name[2:])
                items += [{**keys, **_extracted(item, below)} for item in value if all(item.get(key) == wanted for key, wanted in keys.items())]
            elif name.startswith("v:"):
                items.append(json.loads(name[2:]))
        return items
    return value


def selector_of(deployment: Mapping[str, Any]) -> str:
    """Return the label selector of a Deployment's pods, and of its ReplicaSets, as requests have it."""
    return ",".join("%s=%s" % pair for pair in sorted((deployment["spec"]["selector"].get("matchLabels") or {}).items()))


def continued(wanted: Mapping[str, Any], live: Mapping[str, Any] | None) -> Manifest:
    """Return a Deployment's manifest with what must stay of the one that is there.

    Its selector can never be changed, a container of another name would be a second one, and a restart that it had is no reason for
    new pods when nothing is said of it. Raises DeploymentError for one whose containers cannot be told apart.
    """
    if live is None:
        return dict(wanted)
    running = [each["name"] for each in live["spec"]["template"]["spec"]["containers"]]
    if CONTAINER not in running and len(running) > 1 and not is_ours(live):
        raise DeploymentError("%s has the containers %s, and none of them is called %s" % (live["metadata"]["name"], ", ".join(running), CONTAINER))
    template = wanted["spec"]["template"]
    containers = [{**each, "name": running[0]} if CONTAINER not in running and each["name"] == CONTAINER else each for each in template["spec"]["containers"]]
    template = {**template, "spec": {**template["spec"], "containers": containers}}
    spec = {**wanted["spec"], "selector": live["spec"]["selector"], "template": template}
    moment = ((live["spec"]["template"].get("metadata") or {}).get("annotations") or {}).get(RESTARTED)
    return with_restart({**wanted, "spec": spec}, moment) if moment else {**wanted, "spec": spec}


def with_restart(config: Mapping[str, Any], moment: str) -> Manifest:
    """Return a Deployment's configuration that makes new pods of the same kind."""
    spec = dict(config["spec"])
    template = dict(spec.get("template") or {})
    metadata = dict(template.get("metadata") or {})
    metadata["annotations"] = {**(metadata.get("annotations") or {}), RESTARTED: moment}
    return {**config, "spec": {**spec, "template": {**template, "metadata": metadata}}}


def with_replicas(config: Mapping[str, Any], replicas: int) -> Manifest:
    return {**config, "spec": {**config["spec"], "replicas": replicas}}


def rolled_back(config: Mapping[str, Any], replica_set: Mapping[str, Any]) -> Manifest:
    """Return a Deployment's configuration with the template of an earlier revision, and with the options that described it.

    The deployment controller gives each ReplicaSet the annotations that its Deployment then had.
    """
    then, now = stored_options(replica_set), stored_options(config)
    options = {option: value for option, value in then.items() if option not in AROUND}
    options.update({option: value for option, value in now.items() if option in AROUND})
    metadata = dict(config["metadata"])
    if then:
        metadata["annotations"] = {**(metadata.get("annotations") or {}), OPTIONS: options_text(options)}
    return {**config, "metadata": metadata, "spec": {**config["spec"], "template": template_of(replica_set)}}


def rollback_target(deployment: Mapping[str, Any], replica_sets: Iterable[Mapping[str, Any]], revision: int | None) -> Mapping[str, Any]:
    """Return the ReplicaSet of a revision, of the one before the newest where none is given.

    Only what the Deployment owns counts, however many others bear its labels. Raises DeploymentError that says which there are.
    """
    now = revision_of(deployment)
    kept = {revision_of(each): each for each in owned(deployment, replica_sets) if revision_of(each) > 0}
    earlier = sorted(number for number in kept if number != now)
    known = ", ".join(map(str, earlier)) or "none"
    name = deployment["metadata"]["name"]
    if revision is None:
        before = [number for number in earlier if number < now]
        if not before:
            raise DeploymentError("%s has no earlier revision than %d to go back to" % (name, now))
        return kept[before[-1]]
    if revision == now:
        return kept.get(now, {})
    if revision not in kept:
        raise DeploymentError("%s has no revision %d: there are %s, and %d is what it is at" % (name, revision, known, now))
    return kept[revision]


def changes(live: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[Change]:
    """Return the fields in which two states of an object differ, without what only the server keeps of them.

    Both are the server's own answers, `after` that of a dry run, so what differs is no default that only one of them has. None where
    there is no object.
    """
    if live is None or after is None:
        kind = str((live or after or {})["kind"])
        if kind != "Deployment":
            return [Change(kind, "there" if live else None, "there" if after else None)]
    before, wanted = (({} if each is None else _flat(_comparable(each))) for each in (live, after))
    kind = str((after or live or {})["kind"])
    differing = [field for field in sorted({**before, **wanted}) if before.get(field) != wanted.get(field)]
    main = main_container(after or live or {})
    found = [Change(_short(kind, field, main), before.get(field), wanted.get(field)) for field in differing]
    if live is None or after is None:  # of what comes or goes as a whole, what tells it from others
        return [change for change in found if change.field in SUMMARY] or found
    return found


SUMMARY = ("image", "replicas", "resources.limits.memory", "resources.requests.cpu", "resources.limits.nvidia.com/gpu")


def main_container(deployment: Mapping[str, Any]) -> str:
    """Return the name of the container that serves the model."""
    containers = (((deployment.get("spec") or {}).get("template") or {}).get("spec") or {}).get("containers") or [{"name": CONTAINER}]
    name: str = containers[0]["name"]
    return name


def _short(kind: str, field: str, main: str) -> str:
    shown = field[len("spec.") :] if field.startswith("spec.") else field
    for long, short in (("template.spec.containers[%s]." % main, ""), *SHORTER):
        if shown.startswith(long):
            shown = short + shown[len(long) :]
            break
    return shown if kind == "Deployment" else "%s.%s" % (kind, shown)


def _comparable(live: Mapping[str, Any]) -> dict[str, Any]:
    metadata = live.get("metadata") or {}
    annotations = {name: value for name, value in (metadata.get("annotations") or {}).items() if name not in NOISE}
    shown = {name: value for name, value in live.items() if name not in ("metadata", "status", "apiVersion", "kind")}
    return {**shown, "labels": metadata.get("labels") or {}, "annotations": annotations}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return a structure as paths to its leaves; items of lists that have names are told apart by those."""
    if isinstance(value, Mapping) and value:
        found = {}
        for name, item in value.items():
            found.update(_flat(item, "%s.%s" % (path, name) if path else str(name)))
        return found
    if isinstance(value, list) and (key := key_of(value)):
        found = {}
        for item in value:
            found.update(_flat({name: below for name, below in item.items() if name != key} or "there", "%s[%s]" % (path, item[key])))
        return found
    return {path: value}


def conflicts(status: Mapping[str, Any]) -> list[Conflict]:
    """Return which fields belong to whom, from the API server's refusal of an apply."""
    found = []
    for cause in (status.get("details") or {}).get("causes") or ():
        if cause.get("reason") == "FieldManagerConflict":
            manager = str(cause.get("message", "")).partition('"')[2].partition('"')[0]
            found.append(Conflict(str(cause.get("field", "")).lstrip("."), manager or "another manager"))
    return found


def conflict_text(what: str, found: Sequence[Conflict]) -> str:
    """Return who owns what, and what can be done about it."""
    told = "; ".join("%s belongs to %s" % conflict for conflict in found)
    return "%s: %s. Leave these fields to them, or say force_conflicts to take them over" % (what, told)


def restoring(before: Mapping[str, Any], after: Mapping[str, Any]) -> Manifest:
    """Return what, applied, brings an object back to how it was `before` we applied something and it became `after`.

    That is what we had applied until then, and what of others we have taken over since: a field that only we hold would be gone with
    our leaving it. All of it where we had never applied anything.
    """
    config = extract(before)
    return merged(config, _named(before, _extracted(before, _our_fields(after)))) if config else applied(before)


def applied(live: Mapping[str, Any]) -> Manifest:
    """Return what, applied again, brings an object back to how it is: what we applied, or all of it where we never did."""
    config = extract(live)
    if config:
        return config
    metadata = {name: live["metadata"][name] for name in ("name", "labels", "annotations") if live["metadata"].get(name)}
    annotations = {name: value for name, value in metadata.get("annotations", {}).items() if name not in NOISE}
    return {
        "apiVersion": live["apiVersion"],
        "kind": live["kind"],
        **{name: value for name, value in live.items() if name not in ("apiVersion", "kind", "metadata", "status")},
        "metadata": {**metadata, "annotations": annotations},
    }
