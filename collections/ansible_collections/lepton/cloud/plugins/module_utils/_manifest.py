# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""From the options of M(lepton.cloud.model_deployment) to Kubernetes objects. Pure. PRIVATE to the collection and to the Lepton bot."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Mapping

from ._units import parse_size

NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)  # a Service's is the narrowest (RFC 1035 label)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,252}", re.ASCII)
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,500}", re.ASCII)
MANAGER = "lepton"
NAME_LABEL = "app.kubernetes.io/name"
OURS_LABEL = "app.kubernetes.io/managed-by"
OBJECTS = "cloud.lepton/objects"  # the kinds beside the Deployment that were made for it
OPTIONS = "cloud.lepton/options"  # what was asked for, so that the next who asks need not say it again
RESTARTED = "cloud.lepton/restartedAt"
CONTAINER = "model"
PROBE_SECONDS = 5
PULL_SECONDS = 600  # for a node to be there and the image on it
UNASKED_SECONDS = 10  # for one that nothing asks whether it is well to end, if it does
# What a rollback leaves as it is, since no revision of the pods' template has it.
AROUND = (
    "allow_from", "autoscale", "max_surge", "max_unavailable", "min_available", "revision_history", "service_port", "service_type",
)  # fmt: skip
# What describes a deployment, of the module's options; the others say what is done with it.
DESCRIBING = AROUND + (
    "command", "config_maps", "cpus", "drain_seconds", "environment", "environment_from", "environment_secrets", "gpu_resource", "gpus",
    "health_path", "image", "image_pull_secrets", "labels", "live_path", "memory", "merge", "node_selector", "own_service_account", "port",
    "priority_class", "read_only", "secrets", "service_account", "shm_size", "spread", "start_seconds", "stop_seconds", "tolerations", "user",
    "volumes",
)  # fmt: skip
# In the order in which they are made: what pods need comes before their Deployment, what scales it after.
KINDS = {
    "ServiceAccount": "v1",
    "PersistentVolumeClaim": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "Service": "v1",
    "Deployment": "apps/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
}
Manifest = dict[str, Any]


class DeploymentError(ValueError):
    """Options that make no deployment, or something asked of one that cannot be had. Its text is written for people."""


def check_name(name: str) -> str:
    """Return the name if a Deployment and its Service can bear it, else raise DeploymentError."""
    if not NAME.fullmatch(name):
        raise DeploymentError(
            "%s is not a deployment name: expected up to 63 lower-case letters, digits or '-', starting with a letter and ending with a letter or digit"
            % ascii(name[:64])
        )
    return name


def manifests(name: str, given: Mapping[str, Any], replicas: int | None, selector: Mapping[str, str] | None = None) -> dict[tuple[str, str], Manifest]:
    """Return the objects that the options describe, by (kind, name) and in the order in which they are made.

    `given` are those options of the module that describe a deployment. `replicas` None leaves the number to whoever owns it.
    `selector` is that of a Deployment that is there, which can never be changed. Raises DeploymentError that names the option.
    """
    labels_of_pods = selector or {NAME_LABEL: name}
    check_name(name)
    if "image" not in given:
        raise DeploymentError("there is no deployment %s yet: image is needed to make one" % name)
    made = [
        _service_account(name) if given.get("own_service_account") else None,
        *(_claim(name, volume) for volume in given.get("volumes", ()) if volume.get("size")),
        _network_policy(name, given, labels_of_pods) if "allow_from" in given else None,
        _disruption_budget(name, given["min_available"], labels_of_pods) if "min_available" in given else None,
        _service(name, given, labels_of_pods) if "port" in given else None,
        _deployment(name, given, replicas, labels_of_pods),
        _autoscaler(name, given["autoscale"]) if given.get("autoscale") else None,
    ]
    raw = _check_merge(given.get("merge", {}))
    objects = {}
    for each in filter(None, made):
        key = (each["kind"], each["metadata"]["name"])
        labels = {**given.get("labels", {}), NAME_LABEL: name, OURS_LABEL: MANAGER}
        each["metadata"]["labels"] = labels
        objects[key] = merged(each, raw.get(each["kind"], {}))
    missing = sorted(set(raw) - {kind for kind, _name in objects})
    if missing:
        raise DeploymentError("merge: no %s is made here, so nothing can be merged into one" % missing[0])
    for (kind, called), each in objects.items():
        _check_merged(kind, called, each)
    companions = ["%s/%s" % key for key in objects if key[0] not in ("Deployment", "PersistentVolumeClaim")]
    notes = {OBJECTS: " ".join(companions), OPTIONS: options_text(given)}
    metadata = objects["Deployment", name]["metadata"]
    metadata["annotations"] = {**metadata.get("annotations", {}), **notes}
    return objects


def _check_merged(kind: str, name: str, each: Mapping[str, Any]) -> None:
    """Raise DeploymentError for what identifies an object, or what the module itself needs of it, and a merge has changed."""
    try:
        same = (each["kind"], each["apiVersion"], each["metadata"]["name"], each["metadata"]["labels"][OURS_LABEL]) == (kind, KINDS[kind], name, MANAGER)
        whole = isinstance(each["metadata"].get("annotations", {}), Mapping)
        if kind == "Deployment":
            pod = each["spec"]["template"]
            whole = whole and isinstance(pod["metadata"]["labels"], Mapping) and any(item["name"] == CONTAINER for item in pod["spec"]["containers"])
    except (KeyError, TypeError, AttributeError):
        same = False
    if not (same and whole):
        raise DeploymentError("merge: kind, apiVersion, name, the label %s and the container of a %s are given by this module" % (OURS_LABEL, kind))


def given_options(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the module's options that describe a deployment and were given."""
    return {option: params[option] for option in DESCRIBING if params[option] is not None}


def options_text(options: Mapping[str, Any]) -> str:
    """Return options as they are kept in an annotation, and stored_options reads them."""
    return json.dumps(options, sort_keys=True, separators=(",", ":"))


def stored_options(thing: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options that a Deployment was last deployed with, or a ReplicaSet of it; none where they are not known."""
    text = ((thing or {"metadata": {}})["metadata"].get("annotations") or {}).get(OPTIONS)
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = {}
    return {option: value for option, value in found.items() if option in DESCRIBING} if isinstance(found, dict) else {}


def merged(base: Any, part: Any) -> Any:
    """Return `base` with `part` merged in: mappings by key, lists of named items by name, all else replaced, null removes."""
    if isinstance(base, Mapping) and isinstance(part, Mapping):
        result = dict(base)
        for key, value in part.items():
            if value is None:
                result.pop(key, None)
            else:
                result[key] = merged(result.get(key), value)
        return result
    if isinstance(base, list) and isinstance(part, list) and (key := key_of([*base, *part])):
        by_key = {item[key]: item for item in base}
        for item in part:
            by_key[item[key]] = merged(by_key.get(item[key]), item)
        return list(by_key.values())
    if isinstance(part, Mapping):
        return merged({}, part)
    return part


def key_of(items: Any) -> str | None:
    """Return by what the items of a list are told apart, as Kubernetes does; None where they are not."""
    found = (key for key in ("mountPath", "name") if items and all(isinstance(item, Mapping) and isinstance(item.get(key), str) for item in items))
    return next(found, None)


def _check_merge(raw: Any) -> Mapping[str, Any]:
    for kind, part in raw.items():
        if kind not in KINDS or not isinstance(part, Mapping):
            raise DeploymentError("merge: expected parts of manifests by kind, one of %s; not %s" % (", ".join(KINDS), ascii(str(kind)[:40])))
    checked: Mapping[str, Any] = raw
    return checked


def _object(kind: str, name: str, spec: Mapping[str, Any] | None = None) -> Manifest:
    shown: Manifest = {"apiVersion": KINDS[kind], "kind": kind, "metadata": {"name": name}}
    return shown if spec is None else {**shown, "spec": dict(spec)}


def _service_account(name: str) -> Manifest:
    return {**_object("ServiceAccount", name), "automountServiceAccountToken": False}


def _claim(name: str, volume: Mapping[str, Any]) -> Manifest:
    spec = {"accessModes": [volume.get("access_mode") or "ReadWriteOnce"], "resources": {"requests": {"storage": _size("volumes", volume["size"])}}}
    if volume.get("storage_class") is not None:
        spec["storageClassName"] = volume["storage_class"]
    return _object("PersistentVolumeClaim", _claim_name(name, volume), spec)


def _claim_name(name: str, volume: Mapping[str, Any]) -> str:
    return str(volume.get("claim") or "%s-%s" % (name, volume["name"]))


def _network_policy(name: str, given: Mapping[str, Any], selector: Mapping[str, str]) -> Manifest:
    """Only the peers that are named may come in, and only to the model's port."""
    rule: dict[str, Any] = {"from": [dict(peer) for peer in given["allow_from"]]}
    if "port" in given:
        rule["ports"] = [{"port": "http", "protocol": "TCP"}]  # by name, so that each pod's own is meant while they change
    ingress = [rule] if given["allow_from"] else []  # an empty `from` would be everybody
    return _object("NetworkPolicy", name, {"podSelector": {"matchLabels": dict(selector)}, "policyTypes": ["Ingress"], "ingress": ingress})


def _disruption_budget(name: str, least: str, selector: Mapping[str, str]) -> Manifest:
    if not re.fullmatch(r"\d{1,5}|\d{1,3}%", least, re.ASCII):
        raise DeploymentError("min_available: expected a number of pods or a share such as 50%%, not %s" % ascii(least[:20]))
    value: Any = least if least.endswith("%") else int(least)
    return _object("PodDisruptionBudget", name, {"minAvailable": value, "selector": {"matchLabels": dict(selector)}})


def _service(name: str, given: Mapping[str, Any], selector: Mapping[str, str]) -> Manifest:
    port = {"name": "http", "port": given.get("service_port", given["port"]), "targetPort": "http", "protocol": "TCP"}
    return _object("Service", name, {"type": given.get("service_type", "ClusterIP"), "selector": dict(selector), "ports": [port]})


def _autoscaler(name: str, autoscale: Mapping[str, Any]) -> Manifest:
    least, most = autoscale["min_replicas"], autoscale["max_replicas"]
    if not 1 <= least <= most:
        raise DeploymentError("autoscale: expected 1 <= min_replicas <= max_replicas, not %d and %d" % (least, most))
    target = {"type": "Utilization", "averageUtilization": autoscale.get("cpu_percent") or 80}
    spec = {
        "scaleTargetRef": {"apiVersion": KINDS["Deployment"], "kind": "Deployment", "name": name},
        "minReplicas": least,
        "maxReplicas": most,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
    }
    return _object("HorizontalPodAutoscaler", name, spec)


def _deployment(name: str, given: Mapping[str, Any], replicas: int | None, selector: Mapping[str, str]) -> Manifest:
    start, drain, stop = (given.get(option, default) for option, default in (("start_seconds", 300), ("drain_seconds", 10), ("stop_seconds", 20)))
    pod: dict[str, Any] = {
        "containers": [_container(given, start, drain)],
        "terminationGracePeriodSeconds": drain + stop,
        # Said even where it is the default: left out, an earlier one would live on in the deprecated serviceAccount.
        "serviceAccountName": name if given.get("own_service_account") else given.get("service_account", "default"),
        "automountServiceAccountToken": bool(given.get("service_account")) and not given.get("own_service_account"),
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    if "shm_size" in given:
        pod["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _size("shm_size", given["shm_size"])}})
    for volume in given.get("volumes", ()):
        pod["volumes"].append({"name": volume["name"], "persistentVolumeClaim": {"claimName": _claim_name(name, volume)}})
    pod["volumes"] += [{"name": "secret-" + each, "secret": {"secretName": each}} for each in given.get("secrets", ())]
    pod["volumes"] += [{"name": "config-" + each, "configMap": {"name": each}} for each in given.get("config_maps", ())]
    for option, field in (("node_selector", "nodeSelector"), ("tolerations", "tolerations"), ("priority_class", "priorityClassName")):
        if option in given:
            pod[field] = given[option]
    if given.get("spread"):
        how = {"maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": dict(selector)}}
        pod["topologySpreadConstraints"] = [{"topologyKey": key, **how} for key in given["spread"]]
    if given.get("image_pull_secrets"):
        pod["imagePullSecrets"] = [{"name": each} for each in given["image_pull_secrets"]]
    labels = {**given.get("labels", {}), OURS_LABEL: MANAGER, NAME_LABEL: name, **selector}
    spec: dict[str, Any] = {
        "selector": {"matchLabels": dict(selector)},
        "template": {"metadata": {"labels": labels}, "spec": pod},
        "revisionHistoryLimit": given.get("revision_history", 10),
        # A model that is still loading is no failure; one that loads longer than it may is. Its image and its node may take their time too.
        "progressDeadlineSeconds": start + PULL_SECONDS,
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": _share(given, "max_surge", "1"), "maxUnavailable": _share(given, "max_unavailable", "0")},
        },
    }
    if "health_path" not in given:
        spec["minReadySeconds"] = UNASKED_SECONDS
    if replicas is not None:
        spec["replicas"] = replicas
    return _object("Deployment", name, spec)


def _share(given: Mapping[str, Any], option: str, default: str) -> int | str:
    text = str(given.get(option, default))
    if not re.fullmatch(r"\d{1,5}%?", text, re.ASCII):
        raise DeploymentError("%s: expected a number of pods or a share such as 25%%, not %s" % (option, ascii(text[:20])))
    return text if text.endswith("%") else int(text)


def _container(given: Mapping[str, Any], start: int, drain: int) -> dict[str, Any]:
    if not IMAGE.fullmatch(given["image"]):
        raise DeploymentError("image: %s is not the name of an image" % ascii(given["image"][:80]))
    read_only = given.get("read_only", True)
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": given["image"],
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": read_only, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        # Meanwhile it is taken out of all load balancing, and goes on to answer what still comes.
        "lifecycle": {"preStop": {"sleep": {"seconds": drain}}},
    }
    if not drain:
        del container["lifecycle"]
    if "user" in given:
        container["securityContext"].update(runAsUser=given["user"], runAsNonRoot=given["user"] != 0)
    if given.get("command"):
        container["args"] = [str(word) for word in given["command"]]
    if "port" in given:
        container["ports"] = [{"name": "http", "containerPort": given["port"], "protocol": "TCP"}]
    container.update(_environment(given), **_probes(given, start))
    resources = _resources(given)
    if resources:
        container["resources"] = resources
    mounts = container["volumeMounts"]
    if "shm_size" in given:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    for volume in given.get("volumes", ()):
        mounts.append({"name": volume["name"], "mountPath": volume["path"], "readOnly": bool(volume.get("read_only"))})
    mounts += [{"name": "secret-" + each, "mountPath": "/run/secrets/" + each, "readOnly": True} for each in given.get("secrets", ())]
    mounts += [{"name": "config-" + each, "mountPath": "/etc/config/" + each, "readOnly": True} for each in given.get("config_maps", ())]
    return container


def _environment(given: Mapping[str, Any]) -> dict[str, Any]:
    variables: list[dict[str, Any]] = [{"name": str(name), "value": str(value)} for name, value in sorted(given.get("environment", {}).items())]
    for name, reference in sorted(given.get("environment_secrets", {}).items()):
        secret, separator, key = str(reference).partition("/")
        if not separator or not key:
            raise DeploymentError("environment_secrets: %s: expected SECRET/KEY" % ascii(str(name)[:40]))
        variables.append({"name": str(name), "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    for variable in variables:
        if not VARIABLE.fullmatch(variable["name"]):
            raise DeploymentError("environment: %s is not the name of a variable" % ascii(variable["name"][:40]))
    sources = []
    for reference in given.get("environment_from", ()):
        kind, separator, name = reference.partition("/")
        if kind not in ("secret", "configmap") or not name:
            raise DeploymentError("environment_from: expected secret/NAME or configmap/NAME, not %s" % ascii(reference[:60]))
        sources.append({"secretRef" if kind == "secret" else "configMapRef": {"name": name}})
    return {**({"env": variables} if variables else {}), **({"envFrom": sources} if sources else {})}


def _probes(given: Mapping[str, Any], start: int) -> dict[str, Any]:
    """A startup probe has the time that loading may take, so that the others can be quick."""
    if "health_path" not in given:
        return {}
    if "port" not in given:
        raise DeploymentError("health_path: it is asked for at the model's port, so port is needed too")
    ready = {"httpGet": {"path": given["health_path"], "port": "http"}, "periodSeconds": PROBE_SECONDS, "timeoutSeconds": 3}
    probes = {
        "startupProbe": {**ready, "failureThreshold": max(1, math.ceil(start / PROBE_SECONDS))},
        "readinessProbe": {**ready, "failureThreshold": 2},
    }
    if "live_path" in given:
        probes["livenessProbe"] = {**ready, "httpGet": {"path": given["live_path"], "port": "http"}, "failureThreshold": 6}
    return probes


def _resources(given: Mapping[str, Any]) -> dict[str, Any]:
    """Memory and GPUs are never more than what was reserved; CPUs may be, while others leave them."""
    requests, limits = {}, {}
    if "cpus" in given:
        requests["cpu"] = "%dm" % round(given["cpus"] * 1000)
    if "memory" in given:
        requests["memory"] = limits["memory"] = _size("memory", given["memory"])
    if given.get("gpus"):
        limits[given.get("gpu_resource", "nvidia.com/gpu")] = str(given["gpus"])
    return {**({"requests": requests} if requests else {}), **({"limits": limits} if limits else {})}


def _size(option: str, text: str) -> str:
    """Return a size in Kubernetes' words."""
    try:
        size = parse_size(text)
    except ValueError as error:
        raise DeploymentError("%s: %s" % (option, error)) from error
    for unit, name in ((1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")):
        if size % unit == 0:
            return "%d%s" % (size // unit, name)
    return str(size)
