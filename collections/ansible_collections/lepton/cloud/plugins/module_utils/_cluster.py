# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""A Kubernetes cluster: reads, server-side applies and watches of its API, in one namespace. Effects, and no decisions. PRIVATE to the collection."""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from typing import Any, Callable, Iterator, Mapping
from urllib.parse import quote, urlencode

from ._command import clean
from ._deployment import Conflict, conflicts
from ._manifest import KINDS, MANAGER, DeploymentError, Manifest

try:
    import urllib3
    from kubernetes.client.api_client import ApiClient
    from kubernetes.client.configuration import Configuration

    from kubernetes import config
except ImportError:  # the module says so
    config = None

# Static, so that nothing has to be discovered. The client's own classes for each kind take seconds to import, and are not.
PLURALS = {
    "ServiceAccount": "serviceaccounts",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Service": "services",
    "Pod": "pods",
    "Deployment": "deployments",
    "ReplicaSet": "replicasets",
    "NetworkPolicy": "networkpolicies",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "EndpointSlice": "endpointslices",
}
VERSIONS = {**KINDS, "Pod": "v1", "ReplicaSet": "apps/v1", "EndpointSlice": "discovery.k8s.io/v1"}
APPLY = "application/apply-patch+yaml"
JSON = "application/json"
DRY_RUN = {"dryRun": "All"}
CONNECT_SECONDS = 5
WATCH_SECONDS = 120  # of one request: a connection that is dead without a word is found out so
AGAIN_SECONDS = 0.5  # after a watch ended, before the next
MOST = 500  # objects of one page of a list
IMMUTABLE = "is immutable"


class ApiError(DeploymentError):
    """What an API server refused, in its own words. `found` are the fields that belong to others, `missing` is the object that is not there."""

    def __init__(self, text: str, status: int, found: list[Conflict], missing: str | None) -> None:
        super().__init__(text)
        self.status = status
        self.missing = missing
        self.found = found


class Unreachable(DeploymentError):
    """An API server that did not answer: whether it has done what it was asked cannot be told."""


class Cluster:
    """One namespace of one cluster. Every method raises DeploymentError with a sentence; `calls` counts the requests."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._seconds = settings["request_seconds"]
        self.calls = 0
        self.patience = 0.0  # seconds for which what can be asked again is, before an API server counts as gone
        self._configuration = Configuration()
        namespace = self._read(settings)
        self.namespace = settings["namespace"] or namespace or "default"
        if not self._configuration.verify_ssl:  # whoever chose so need not be told with each request
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._client = ApiClient(self._configuration)

    def _read(self, settings: Mapping[str, Any]) -> str | None:
        """Take in where the cluster is and who asks, and return the namespace of the context."""
        if settings["api_server"]:
            if not re.match(r"https?://[^/]", settings["api_server"]):
                raise DeploymentError("api_server: expected an address such as https://10.0.0.1:6443, not %s" % ascii(settings["api_server"][:80]))
            self._configuration.host = settings["api_server"].rstrip("/")
            self._configuration.ssl_ca_cert = settings["ca_cert"]
            self._configuration.verify_ssl = settings["validate_certs"]
            if settings["token"]:
                self._configuration.api_key = {"authorization": "Bearer " + settings["token"].strip()}
            return None
        path, context = settings["kubeconfig"], settings["context"]
        shown = path or "at its usual place"
        try:
            whole = config.kube_config.KubeConfigMerger(path or config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION).config
            if whole is None:
                raise DeploymentError("the kubeconfig %s is not there, or empty" % shown)
            known = {each.value["name"]: each.value.get("context") or {} for each in whole.value.get("contexts") or ()}
            chosen = whole.value.get("current-context") if context is None else context
            if chosen not in known:
                raise DeploymentError("there is no context %s in the kubeconfig %s: expected one of %s" % (ascii(chosen), shown, ", ".join(sorted(known))))
            config.load_kube_config(config_file=path, context=chosen, client_configuration=self._configuration)
        except config.ConfigException as error:  # which quotes whole entries, with what is secret in them
            raise DeploymentError("the kubeconfig %s: %s" % (shown, str(error).partition("{")[0][:300])) from error
        except DeploymentError:
            raise
        except Exception as error:
            raise DeploymentError("the kubeconfig %s is none (%s)" % (shown, type(error).__name__)) from error
        found: str | None = known[chosen].get("namespace")
        return found

    def close(self) -> None:
        self._client.close()

    def get(self, kind: str, name: str) -> Manifest | None:
        """Return an object, None when there is none."""
        try:
            return self._ask("GET", kind, name)
        except ApiError as error:
            if error.status == 404 and error.missing == name:
                return None
            raise

    def list(self, kind: str, selector: str) -> list[Manifest]:
        """Return the objects that a label selector picks, page by page."""
        found: list[Manifest] = []
        page: Manifest = {"metadata": {"continue": ""}}
        while "continue" in page["metadata"]:
            page = self._ask("GET", kind, query={"labelSelector": selector, "limit": MOST, "continue": page["metadata"]["continue"]})
            found += [{"apiVersion": VERSIONS[kind], "kind": kind, **item} for item in page["items"]]  # in a list they do not say what they are
        return found

    def apply(self, manifest: Mapping[str, Any], *, dry_run: bool, force: bool, version: str | None = None) -> Manifest:
        """Apply a manifest as ours and return the object as it is then.

        With `version` only while the object is at this resourceVersion. Raises ApiError whose `found` names the fields of others.
        """
        body = dict(manifest)
        if version is not None:
            body["metadata"] = {**body["metadata"], "resourceVersion": version}
        query = {"fieldManager": MANAGER, "force": str(force).lower(), **(DRY_RUN if dry_run else {})}
        return self._ask("PATCH", body["kind"], body["metadata"]["name"], query=query, body=body, content_type=APPLY)

    def delete(self, kind: str, name: str, uid: str, *, dry_run: bool) -> None:
        """Delete this very object and what belongs to it; one that is gone already is no error."""
        policy = "Foreground" if kind == "Deployment" else "Background"
        body: Manifest = {"propagationPolicy": policy, "preconditions": {"uid": uid}}
        if dry_run:
            body["dryRun"] = ["All"]  # here and not in the query, which is not read where there is a body
        try:
            self._ask("DELETE", kind, name, body=body)
        except ApiError as error:
            if error.status != 404:
                raise

    def log(self, pod: str, container: str, lines: int) -> str:
        """Return the end of what a pod's container wrote; of one that has no log yet, why."""
        path = self._path("Pod", pod, "log", query={"container": container, "tailLines": lines})
        try:
            return clean(self._request("GET", path).data.decode("utf-8", "replace"))
        except ApiError as error:
            return "(%s)" % error

    def watch(self, wanted: Mapping[str, Mapping[str, str]], until: Callable[[], float]) -> Iterator[tuple[str, str, Manifest]]:
        """Yield what becomes of the objects of several kinds, as (kind, ADDED, MODIFIED, DELETED or GONE, object).

        It ends when the time is `until()`, which may change with what is told.

        Each kind is one request that begins with what is there. One that ends, because its time is over or the API server is gone, is
        asked anew; what it had told is no more, which GONE says, as it does before the first. `wanted` gives each kind its
        C(labelSelector) or C(fieldSelector), and may give a C(resourceVersion): then it begins with what comes after that.
        """
        told: queue.Queue[Any] = queue.Queue()
        ended = threading.Event()
        for kind, selectors in wanted.items():
            threading.Thread(target=self._follow, args=(kind, selectors, told, ended), name="watch-" + kind, daemon=True).start()
        try:
            while True:
                try:
                    event = told.get(timeout=max(0.0, until() - time.monotonic()))
                except queue.Empty:
                    return
                if isinstance(event, DeploymentError):
                    raise event
                yield event
        finally:
            ended.set()

    def _follow(self, kind: str, selectors: Mapping[str, str], told: queue.Queue[Any], ended: threading.Event) -> None:
        """Read one kind's watch until nobody wants it any more, in a thread of its own."""
        selectors = dict(selectors)
        while not ended.is_set():
            told.put((kind, "GONE", {}))
            try:
                query = {**selectors, "watch": "true", "timeoutSeconds": WATCH_SECONDS}
                for line in _lines(self._request("GET", self._path(kind, query=query), seconds=WATCH_SECONDS + CONNECT_SECONDS), ended):
                    event = json.loads(line)
                    if event["type"] == "ERROR":  # such as a version that is too old by now
                        selectors.pop("resourceVersion", None)
                        break
                    told.put((kind, event["type"], event["object"]))
            except ApiError as error:
                if error.status in (401, 403, 404):
                    told.put(error)
                    return
            except (DeploymentError, urllib3.exceptions.HTTPError, OSError, ValueError):
                pass
            ended.wait(AGAIN_SECONDS)

    def _path(self, kind: str, *parts: str, query: Mapping[str, Any] | None = None) -> str:
        version = VERSIONS[kind]
        root = ("/apis/" if "/" in version else "/api/") + version
        path = "/".join([root, "namespaces", *(quote(part, safe="") for part in (self.namespace, PLURALS[kind], *parts))])
        return path + ("?" + urlencode(query) if query else "")

    def _ask(self, method: str, kind: str, *parts: str, query: Mapping[str, Any] | None = None, body: Any = None, content_type: str = JSON) -> Manifest:
        answer = self._request(method, self._path(kind, *parts, query=query), body=body, content_type=content_type)
        try:
            found: Manifest = json.loads(answer.data)
        except ValueError as error:
            raise DeploymentError("what answers at %s is no Kubernetes API server" % self._configuration.host) from error
        return found

    def _request(self, method: str, path: str, *, body: Any = None, content_type: str = JSON, seconds: float | None = None) -> Any:
        """Send one request and return the answer; raise ApiError for a refusal. With `seconds` it is read as it comes, for so long.

        What cannot be reached is asked again while there is patience, and so is what has too much to do. Applies with a version are not:
        they may have been done, and would find it changed. What the official client gives is who asks (which may change: tokens of clouds
        run out) and how the API server is known.
        """
        headers = {"Accept": JSON, **({"Content-Type": content_type} if body is not None else {})}
        headers.update({each["key"]: each["value"].strip() for each in self._configuration.auth_settings().values() if each["value"]})
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=self._seconds if seconds is None else seconds)
        once = seconds is not None or "resourceVersion" in (body or {}).get("metadata", ())
        end = time.monotonic() + self.patience
        while True:
            self.calls += 1
            try:
                answer = self._client.rest_client.pool_manager.request(
                    method, self._configuration.host + path, body=None if body is None else json.dumps(body), headers=headers,
                    timeout=timeout, preload_content=seconds is None, retries=False,
                )  # fmt: skip
            except urllib3.exceptions.HTTPError as error:
                if once or time.monotonic() > end:
                    raise Unreachable("the API server %s cannot be reached: %s" % (self._configuration.host, error)) from error
            except ValueError as error:  # of which the text is the header's
                raise DeploymentError("the token for %s is none: it holds what no header can" % self._configuration.host) from error
            else:
                if answer.status < 300:
                    return answer
                busy = answer.status == 429 or (answer.status >= 500 and not once)
                if not busy or time.monotonic() > end:
                    raise self._refused(answer)
            time.sleep(AGAIN_SECONDS)

    def _refused(self, answer: Any) -> DeploymentError:
        """Return what the API server said, with what can be done about it."""
        body = answer.data.decode("utf-8", "replace")
        try:
            status = dict(json.loads(body))
        except (ValueError, TypeError):
            status = {"message": body}
        said = clean(str(status.get("message") or answer.reason or "no reason given"))[:2000]
        if answer.status == 401:
            said = "the API server %s does not accept who asks: the token or certificate is wrong, or its time is over" % self._configuration.host
        elif IMMUTABLE in said:
            said += ". What is immutable changes by undeploying and deploying anew"
        elif answer.status == 403 and "being terminated" in said:
            said += ". Wait until the namespace %s is gone, or take another" % self.namespace
        elif answer.status >= 500:
            return Unreachable("the API server %s fails: %s" % (self._configuration.host, said))
        missing = (status.get("details") or {}).get("name") if status.get("reason") == "NotFound" else None
        return ApiError(said, answer.status, conflicts(status), missing)


def _lines(response: Any, ended: threading.Event) -> Iterator[bytes]:
    """Yield the lines of an answer as they come."""
    rest = b""
    for part in response.stream(amt=None, decode_content=False):
        if ended.is_set():
            return
        *lines, rest = (rest + part).split(b"\n")
        yield from (line for line in lines if line)
