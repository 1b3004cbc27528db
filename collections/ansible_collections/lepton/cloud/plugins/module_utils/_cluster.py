# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""A Kubernetes cluster: reads, server-side applies and watches of its API, in one namespace. Effects, and no decisions. PRIVATE to the collection."""

from __future__ import annotations

import json
import queue
import threading
import time
from typing import Any, Iterator, Mapping

from ._command import clean
from ._deployment import Conflict, conflicts
from ._manifest import MANAGER, DeploymentError, Manifest

try:
    import urllib3
    from kubernetes.client.exceptions import ApiException

    from kubernetes import client, config
except ImportError:  # the module says so
    client = None

# How the official client calls each kind: static, so that nothing has to be discovered.
CALLS = {
    "ServiceAccount": ("CoreV1Api", "service_account"),
    "PersistentVolumeClaim": ("CoreV1Api", "persistent_volume_claim"),
    "Service": ("CoreV1Api", "service"),
    "Pod": ("CoreV1Api", "pod"),
    "Deployment": ("AppsV1Api", "deployment"),
    "ReplicaSet": ("AppsV1Api", "replica_set"),
    "NetworkPolicy": ("NetworkingV1Api", "network_policy"),
    "PodDisruptionBudget": ("PolicyV1Api", "pod_disruption_budget"),
    "HorizontalPodAutoscaler": ("AutoscalingV2Api", "horizontal_pod_autoscaler"),
    "EndpointSlice": ("DiscoveryV1Api", "endpoint_slice"),
}
APPLY = "application/apply-patch+yaml"
CONNECT_SECONDS = 5
AGAIN_SECONDS = 0.5  # after a watch ended, before the next
MOST = 500  # objects of one page of a list
IMMUTABLE = "is immutable"


class ApiError(DeploymentError):
    """What an API server refused, in its own words; `found` are the fields that belong to others."""

    def __init__(self, text: str, status: int, reason: str, found: list[Conflict]) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.found = found


class Cluster:
    """One namespace of one cluster. Every method raises DeploymentError with a sentence; `calls` counts the requests."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._seconds = settings["request_seconds"]
        self.calls = 0
        self._configuration = client.Configuration()
        namespace = self._read(settings)
        self.namespace = settings["namespace"] or namespace or "default"
        self._configuration.retries = False  # a read is asked again by who needs it; a write is never sent twice
        self._client = client.ApiClient(self._configuration)

    def _read(self, settings: Mapping[str, Any]) -> str | None:
        """Take in where the cluster is and who asks, and return the namespace of the context."""
        if settings["api_server"]:
            self._configuration.host = settings["api_server"]
            self._configuration.ssl_ca_cert = settings["ca_cert"]
            self._configuration.verify_ssl = settings["validate_certs"]
            if settings["token"]:
                self._configuration.api_key = {"authorization": "Bearer " + settings["token"].strip()}
            return None
        path, context = settings["kubeconfig"], settings["context"]
        try:
            contexts, current = config.list_kube_config_contexts(config_file=path)
            known = {each["name"]: each for each in contexts}
            if context is not None and context not in known:
                raise DeploymentError("there is no context %s in %s: expected one of %s" % (ascii(context), path, ", ".join(sorted(known))))
            config.load_kube_config(config_file=path, context=context, client_configuration=self._configuration)
        except config.ConfigException as error:
            raise DeploymentError("the kubeconfig %s: %s" % (path or "at its usual place", error)) from error
        chosen = known[context] if context is not None else current
        found: str | None = (chosen.get("context") or {}).get("namespace")
        return found

    def close(self) -> None:
        self._client.close()

    def get(self, kind: str, name: str) -> Manifest | None:
        """Return an object, None when there is none."""
        try:
            found = self._ask("read", kind, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return self._whole(kind, found)

    def list(self, kind: str, selector: str) -> list[Manifest]:
        """Return the objects that a label selector picks, page by page."""
        found: list[Manifest] = []
        options: dict[str, Any] = {}
        while True:
            page = self._ask("list", kind, label_selector=selector, limit=MOST, **options)
            found += [self._whole(kind, item) for item in page["items"]]
            if not (page["metadata"] or {}).get("continue"):
                return found
            options = {"_continue": page["metadata"]["continue"]}

    def apply(self, manifest: Mapping[str, Any], *, dry_run: bool, force: bool, version: str | None = None) -> Manifest:
        """Apply a manifest as ours and return the object as it is then.

        With `version` only while the object is at this resourceVersion. Raises ApiError whose `found` names the fields of others.
        """
        body = dict(manifest)
        if version is not None:
            body["metadata"] = {**body["metadata"], "resourceVersion": version}
        options: dict[str, Any] = {"dry_run": "All"} if dry_run else {}
        return self._ask("patch", body["kind"], body["metadata"]["name"], body=body, field_manager=MANAGER, force=force, _content_type=APPLY, **options)

    def delete(self, kind: str, name: str, uid: str, *, dry_run: bool) -> None:
        """Delete this very object and what belongs to it; one that is gone already is no error."""
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        options: dict[str, Any] = {"dry_run": "All"} if dry_run else {}
        try:
            self._ask("delete", kind, name, body=body, **options)
        except ApiError as error:
            if error.status != 404:
                raise

    def log(self, pod: str, container: str, lines: int) -> str:
        """Return the end of what a pod's container wrote; of one that has no log yet, why."""
        try:
            return clean(self._request("read_namespaced_pod_log", "CoreV1Api", (pod, self.namespace), {"container": container, "tail_lines": lines}))
        except ApiError as error:
            return "(%s)" % error

    def watch(self, wanted: Mapping[str, Mapping[str, str]], deadline: float) -> Iterator[tuple[str, str, Manifest]]:
        """Yield what becomes of the objects of several kinds, as (kind, ADDED, MODIFIED, DELETED or GONE, object), until a deadline.

        Each kind is one request that begins with what is there. One that ends, because the API server does, is asked anew until the
        deadline; what it had told is no more, which GONE says, as it does before the first. `wanted` gives each kind its
        `label_selector` or `field_selector`, and may give a `resource_version`: then it begins with what comes after that.
        """
        told: queue.Queue[Any] = queue.Queue()
        ended = threading.Event()
        for kind, selectors in wanted.items():
            threading.Thread(target=self._follow, args=(kind, selectors, deadline, told, ended), name="watch-" + kind, daemon=True).start()
        try:
            while True:
                try:
                    event = told.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    return
                if isinstance(event, DeploymentError):
                    raise event
                yield event
        finally:
            ended.set()

    def _follow(self, kind: str, selectors: Mapping[str, str], deadline: float, told: queue.Queue[Any], ended: threading.Event) -> None:
        """Read one kind's watch to the deadline, in a thread of its own."""
        selectors = dict(selectors)
        while not ended.is_set() and (left := deadline - time.monotonic()) > 0:
            told.put((kind, "GONE", {}))
            try:
                options = {**selectors, "watch": True, "timeout_seconds": max(1, int(left)), "_request_timeout": (CONNECT_SECONDS, left + CONNECT_SECONDS)}
                self.calls += 1
                name, word = CALLS[kind]
                response = getattr(getattr(client, name)(self._client), "list_namespaced_" + word)(self.namespace, _preload_content=False, **options)
                for line in _lines(response, ended):
                    event = json.loads(line)
                    if event["type"] == "ERROR":  # such as a version that is too old by now
                        selectors.pop("resource_version", None)
                        break
                    told.put((kind, event["type"], self._whole(kind, event["object"])))
            except ApiException as error:
                if error.status in (401, 403, 404):
                    told.put(self._refused(error))
                    return
            except (urllib3.exceptions.HTTPError, OSError, ValueError):
                pass
            ended.wait(AGAIN_SECONDS)

    def _ask(self, verb: str, kind: str, *args: str, **options: Any) -> Manifest:
        name, word = CALLS[kind]
        text = self._request("%s_namespaced_%s" % (verb, word), name, (*args, self.namespace), options)
        found: Manifest = json.loads(text)
        return found

    def _request(self, method: str, api: str, args: tuple[str, ...], options: Mapping[str, Any]) -> str:
        self.calls += 1
        try:
            call = getattr(getattr(client, api)(self._client), method)
            response = call(*args, _preload_content=False, _request_timeout=(CONNECT_SECONDS, self._seconds), **options)
            body: bytes = response.data
            return body.decode("utf-8", "replace")
        except ApiException as error:
            raise self._refused(error) from error
        except urllib3.exceptions.HTTPError as error:
            raise DeploymentError("the API server %s cannot be reached: %s" % (self._configuration.host, error)) from error

    def _refused(self, error: Any) -> ApiError:
        """Return what the API server said, with what can be done about it."""
        body = error.body.decode("utf-8", "replace") if isinstance(error.body, bytes) else error.body
        try:
            status = json.loads(body or "{}")
        except ValueError:
            status = {"message": body}
        said = clean(str(status.get("message") or error.reason or "no reason given"))[:2000]
        if error.status == 401:
            said = "the API server %s does not accept who asks: the token or certificate is wrong, or its time is over" % self._configuration.host
        elif IMMUTABLE in said:
            said += ". What is immutable changes by undeploying and deploying anew"
        elif error.status == 403 and "being terminated" in said:
            said += ". Wait until the namespace %s is gone, or take another" % self.namespace
        return ApiError(said, int(error.status or 0), str(status.get("reason") or ""), conflicts(status))

    @staticmethod
    def _whole(kind: str, found: Manifest) -> Manifest:
        """Return an object with its kind, which the items of a list do not have."""
        return {"apiVersion": "apps/v1" if kind in ("Deployment", "ReplicaSet") else "v1", "kind": kind, **found}


def _lines(response: Any, ended: threading.Event) -> Iterator[bytes]:
    """Yield the lines of an answer as they come."""
    rest = b""
    for part in response.stream(amt=None, decode_content=False):
        if ended.is_set():
            return
        *lines, rest = (rest + part).split(b"\n")
        yield from (line for line in lines if line)
