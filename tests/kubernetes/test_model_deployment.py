# SPDX-License-Identifier: Apache-2.0
"""The module against a real control plane, and what kubectl says of it. The nodes are simulated: their pods are ready, or fail, by kwok's stages."""

import json
import threading
import time
from typing import Any

import pytest
from tests.conftest import eventually
from tests.kubernetes.conftest import Namespace

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]

SMALL: dict[str, Any] = {"image": "model:1", "replicas": 2, "port": 8080, "health_path": "/ready", "memory": "1GiB", "cpus": 0.5, "stuck_seconds": 2}
ALL: dict[str, Any] = {
    **SMALL, "replicas": None, "live_path": "/v2/health/live", "start_seconds": 30, "drain_seconds": 5, "stop_seconds": 15,
    "gpus": 1, "shm_size": "2GiB", "user": 1000, "command": ["--model", "chat"], "environment": {"LEVEL": "info"}, "environment_secrets": {"KEY": "hub/key"},
    "environment_from": ["configmap/limits"], "secrets": ["hub"], "config_maps": ["limits"], "image_pull_secrets": ["pull"], "node_selector": {},
    "tolerations": [{"key": "gpu", "operator": "Exists"}], "spread": ["topology.kubernetes.io/zone"], "own_service_account": True,
    "volumes": [{"name": "cache", "path": "/cache", "size": "10GiB", "storage_class": "fast"}], "autoscale": {"min_replicas": 2, "max_replicas": 4},
    "min_available": "50%", "allow_from": [{"podSelector": {"matchLabels": {"role": "gateway"}}}], "labels": {"team": "chat"},
    "merge": {"Deployment": {"spec": {"minReadySeconds": 1}}, "Service": {"metadata": {"annotations": {"note": "merged"}}}},
}  # fmt: skip


def test_it_is_planned_deployed_and_left_alone(namespace: Namespace) -> None:
    before = namespace.everything()
    planned = namespace.deploy(check=True, **SMALL)
    assert planned["changed"]
    assert {"field": "image", "before": None, "after": "model:1", "effective": "now"} in planned["changes"]
    assert planned["steps"] == ["apply Service/chat", "apply Deployment/chat", "wait"]
    assert namespace.everything() == before

    done = namespace.deploy(**SMALL)
    assert (done["changed"], done["changes"]) == (True, planned["changes"])
    assert done["deployment"]["state"] == "available"
    assert (namespace.ready(), namespace.image()) == (2, "model:1")
    managers = {entry["manager"] for entry in namespace.get("service", "chat", "--show-managed-fields")["metadata"]["managedFields"]}
    assert managers == {"lepton"}

    before = namespace.everything()
    again = namespace.deploy(**SMALL)
    assert (again["changed"], again["changes"], again["steps"]) == (False, [], [])
    assert namespace.everything() == before


def test_what_is_not_said_stays_and_a_declaration_is_all(namespace: Namespace) -> None:
    namespace.deploy(**SMALL)
    newer = namespace.deploy(image="model:2")
    assert newer["changes"] == [{"field": "image", "before": "model:1", "after": "model:2", "effective": "now"}]
    assert namespace.find("service", "chat")
    namespace.deploy(service_type="NodePort")  # which shows in no field of the Deployment
    namespace.deploy(image="model:1")
    assert namespace.get("service", "chat")["spec"]["type"] == "NodePort"
    declared = namespace.deploy(declaration={"image": "model:3", "replicas": 7, "memory": "2GiB"})
    assert not declared["failed"], declared["msg"]
    fields = {change["field"]: change["after"] for change in declared["changes"]}
    assert {"Service": None, "image": "model:3", "resources.limits.memory": "2Gi", "resources.requests.cpu": None}.items() <= fields.items()
    assert namespace.find("service", "chat") is None
    assert namespace.ready() == 2  # as many as were last asked for


def test_all_options_make_what_they_say_and_all_of_it_goes(namespace: Namespace) -> None:
    namespace.kubectl("create", "secret", "generic", "hub", "--from-literal=key=s3cret")
    namespace.kubectl("create", "configmap", "limits", "--from-literal=MOST=9")
    done = namespace.deploy(wait=False, **ALL)
    assert not done["failed"], done["msg"]
    assert namespace.kinds() == {"Deployment", "Service", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    spec = namespace.get("deployment", "chat")["spec"]
    pod, (container,) = spec["template"]["spec"], spec["template"]["spec"]["containers"]
    assert (spec["minReadySeconds"], spec["progressDeadlineSeconds"], pod["terminationGracePeriodSeconds"]) == (1, 630, 20)
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] == 5
    assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] == 30
    assert container["resources"]["limits"] == {"memory": "1Gi", "nvidia.com/gpu": "1"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/dev/shm", "/cache", "/run/secrets/hub", "/etc/config/limits"}
    assert namespace.get("service", "chat")["metadata"]["annotations"] == {"note": "merged"}
    assert namespace.get("pvc", "chat-cache")["spec"]["resources"]["requests"]["storage"] == "10Gi"
    assert not namespace.deploy(wait=False, **ALL)["changed"]

    refused = namespace.deploy(replicas=3)
    assert refused["failed"]
    assert "HorizontalPodAutoscaler" in refused["msg"]
    resized = namespace.deploy(wait=False, volumes=[{"name": "cache", "path": "/cache", "size": "10GiB", "storage_class": "slow"}])
    assert resized["failed"]
    assert "What is immutable changes by undeploying" in resized["msg"]

    fewer = namespace.deploy(complete=True, **SMALL)
    assert not fewer["failed"], fewer["msg"]
    assert namespace.kinds() == {"Deployment", "Service"}
    before = namespace.everything()
    planned = namespace.deploy(state="absent", check=True)
    assert (planned["changed"], planned["steps"]) == (True, ["delete Deployment/chat", "delete Service/chat"])
    assert [line for line in namespace.everything() if not line.startswith("Pod/")] == [line for line in before if not line.startswith("Pod/")]
    assert namespace.deploy(state="absent")["changed"]
    assert (namespace.kinds(), namespace.get("pods")["items"]) == (set(), [])
    assert namespace.find("pvc", "chat-cache")  # the data stays
    assert not namespace.deploy(state="absent")["changed"]


def test_it_is_scaled_without_touching_anything_else(namespace: Namespace) -> None:
    namespace.deploy(**SMALL)
    template = namespace.get("deployment", "chat")["spec"]["template"]
    planned = namespace.deploy(check=True, replicas=5)
    assert planned["changes"] == [{"field": "replicas", "before": 2, "after": 5, "effective": "now"}]
    assert namespace.get("deployment", "chat")["spec"]["replicas"] == 2
    assert namespace.deploy(replicas=5)["changed"]
    assert namespace.ready() == 5
    assert not namespace.deploy(replicas=5)["changed"]
    assert namespace.deploy(replicas=0)["changed"]
    assert namespace.get("pods", "--field-selector=status.phase=Running")["items"] == []
    assert namespace.get("deployment", "chat")["spec"]["template"] == template
    assert "expected 0 or more" in namespace.deploy(replicas=-1)["msg"]
    assert "what is to change" in namespace.deploy()["msg"]


def test_what_others_hold_is_shown_and_not_overwritten(namespace: Namespace) -> None:
    namespace.deploy(**SMALL)
    namespace.kubectl("set", "image", "deployment/chat", "model=theirs:1")
    eventually(lambda: namespace.ready() == 2)
    refused = namespace.deploy(image="model:2")
    assert refused["failed"]
    assert "image belongs to kubectl-set" in refused["msg"]
    assert "force_conflicts" in refused["msg"]
    assert namespace.image() == "theirs:1"
    assert namespace.deploy(image="model:2", force_conflicts=True)["changed"]
    assert namespace.image() == "model:2"
    namespace.kubectl("scale", "deployment/chat", "--replicas=3")
    eventually(lambda: namespace.ready() == 3)
    taken = namespace.deploy(image="model:crash", replicas=1, force_conflicts=True, rollback_on_failure=True)
    assert "It is back at model:2: 3/3 ready" in taken["msg"]  # theirs too
    assert namespace.deploy(image="model:3")["changed"]  # their number of pods is no hindrance
    assert namespace.ready() == 3


def test_what_somebody_else_made_is_adopted_only_when_asked(namespace: Namespace) -> None:
    namespace.kubectl("create", "deployment", "chat", "--image=theirs:1", "--replicas=2")
    for arguments in (SMALL, {"state": "absent"}, {"replicas": 1}, {"state": "restarted"}):
        assert "made by somebody else" in namespace.deploy(**arguments)["msg"]
    assert namespace.module("model_deployment_info")["deployments"] == []
    adopted = namespace.deploy(adopt=True, force_conflicts=True, image="model:1", port=8080, health_path="/ready")
    assert not adopted["failed"], adopted["msg"]
    containers = namespace.get("deployment", "chat")["spec"]["template"]["spec"]["containers"]
    assert [(each["name"], each["image"]) for each in containers] == [("theirs", "model:1")]
    endpoints = namespace.get("endpointslices", "-l", "kubernetes.io/service-name=chat")["items"]
    eventually(lambda: len(namespace.get("endpointslices", "-l", "kubernetes.io/service-name=chat")["items"][0].get("endpoints") or ()) == 2)
    assert endpoints


@pytest.mark.parametrize(("image", "quoted"), [("no.invalid/model:1", "ImagePullBackOff"), ("model:crash", "it ended with exit code 3: no GPU is there")])
def test_a_rollout_that_fails_brings_back_what_was_there(namespace: Namespace, image: str, quoted: str) -> None:
    first = namespace.deploy(**{**SMALL, "image": image}, rollback_on_failure=True)
    assert first["failed"]
    assert quoted in first["msg"]
    assert "deleted again" in first["msg"]
    eventually(lambda: namespace.kinds() == set())

    namespace.deploy(**SMALL)
    selector = namespace.get("deployment", "chat")["spec"]["selector"]
    failed = namespace.deploy(image=image, memory="2GiB", rollback_on_failure=True, stuck_seconds=2)
    assert failed["failed"]
    assert quoted in failed["msg"]
    assert "It is back at model:1: 2/2 ready" in failed["msg"]
    assert (namespace.image(), namespace.ready()) == ("model:1", 2)
    assert not namespace.deploy(**SMALL)["changed"]
    assert namespace.get("deployment", "chat")["spec"]["selector"] == selector

    left = namespace.deploy(image=image, stuck_seconds=2)
    assert left["failed"]
    assert quoted in left["msg"]
    assert namespace.image() == image
    fixed = namespace.deploy(image="model:2")  # and what failed before is no reason for this to
    assert not fixed["failed"], fixed["msg"]


def test_restarts_and_rollbacks(namespace: Namespace) -> None:
    """Whatever else bears the same labels: only revisions that the Deployment owns count."""
    namespace.deploy(**SMALL)
    namespace.deploy(image="model:2")
    pods = {pod["metadata"]["name"] for pod in namespace.get("pods")["items"]}
    restarted = namespace.deploy(state="restarted")
    assert restarted["changed"]
    assert not pods & {pod["metadata"]["name"] for pod in namespace.get("pods", "--field-selector=status.phase=Running")["items"]}
    assert not namespace.deploy(image="model:2")["changed"]  # the restart stays

    namespace.kubectl("create", "configmap", "owner")  # of another kind, since one without owner would be adopted
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": namespace.get("configmap", "owner")["metadata"]["uid"], "controller": True}
    template = namespace.get("deployment", "chat")["spec"]["template"]
    labels = template["metadata"]["labels"]
    notes = {"deployment.kubernetes.io/revision": "7"}
    stranger = {
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "stranger", "annotations": notes, "labels": labels, "ownerReferences": [owner]},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
    }  # fmt: skip
    namespace.kubectl("create", "-f", "-", given=stranger)
    missing = namespace.deploy(state="rolled_back", revision=7)
    assert missing["failed"]
    assert "no revision 7: there are 1, 2, and 3 is what it is at" in missing["msg"]

    planned = namespace.deploy(state="rolled_back", revision=1, check=True)
    assert {"field": "image", "before": "model:2", "after": "model:1", "effective": "now"} in planned["changes"]
    assert namespace.image() == "model:2"
    assert namespace.deploy(state="rolled_back", revision=1)["changed"]
    assert (namespace.image(), namespace.ready()) == ("model:1", 2)
    assert "memory" in json.dumps(namespace.get("deployment", "chat")["spec"]["template"])
    assert namespace.deploy(memory="2GiB")["changes"][0]["field"] == "resources.limits.memory"
    assert namespace.image() == "model:1"  # what was rolled back is what is described now

    namespace.kubectl("set", "env", "deployment/chat", "THEIRS=1")
    eventually(lambda: namespace.ready() == 2)
    held = namespace.deploy(state="rolled_back", revision=2)
    assert held["failed"]
    assert "env" in held["msg"]
    assert "other managers" in held["msg"]


def test_what_the_api_server_refuses_is_quoted_and_nothing_is_made(namespace: Namespace) -> None:
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": namespace.name},
        "spec": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
                "resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}],
            },
            "validations": [{"expression": "!has(object.spec.replicas) || object.spec.replicas <= 3", "message": "three pods are enough for everybody"}],
        },
    }  # fmt: skip
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": namespace.name},
        "spec": {"policyName": namespace.name, "validationActions": ["Deny"]},
    }  # fmt: skip
    namespace.kubectl("create", "-f", "-", given=policy)
    namespace.kubectl("create", "-f", "-", given=binding)
    try:
        eventually(lambda: namespace.deploy("probe", check=True, **{**SMALL, "replicas": 4})["failed"], 40)
        before = namespace.everything()
        refused = namespace.deploy(**{**SMALL, "replicas": 4})
        assert refused["failed"]
        assert "three pods are enough for everybody" in refused["msg"]
        assert namespace.everything() == before  # not even its Service
    finally:
        namespace.kubectl("delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", namespace.name)


def test_a_quota_is_said_at_once(namespace: Namespace) -> None:
    namespace.kubectl("create", "quota", "small", "--hard=pods=2")
    namespace.deploy(**SMALL)
    begun = time.monotonic()
    failed = namespace.deploy(replicas=3)
    assert failed["failed"]
    assert "exceeded quota: small" in failed["msg"]
    assert time.monotonic() - begun < 60  # and not after the ten minutes of a progress deadline


def test_a_namespace_that_is_going_or_not_there(namespace: Namespace) -> None:
    held = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "finalizers": ["lepton.test/held"]}}
    namespace.kubectl("create", "-f", "-", given=held)
    namespace.kubectl("delete", "namespace", namespace.name, "--wait=false")
    eventually(lambda: namespace.cluster.get("namespace", namespace.name)["status"]["phase"] == "Terminating")
    refused = namespace.deploy(**SMALL)
    assert "being terminated. Wait until the namespace" in refused["msg"]
    namespace.kubectl("patch", "configmap", "held", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    eventually(lambda: namespace.cluster.find("namespace", namespace.name) is None, 60)
    assert f'namespaces "{namespace.name}" not found' in namespace.deploy(**SMALL)["msg"]
    namespace.cluster.kubectl("create", "namespace", namespace.name)  # for the fixture to delete


def test_who_asks_and_where(namespace: Namespace) -> None:
    no_context = Namespace(namespace.cluster, namespace.name, {"context": "nowhere"}).deploy(**SMALL)
    assert "there is no context 'nowhere'" in no_context["msg"]
    assert "expected one of" in no_context["msg"]
    wrong = Namespace(namespace.cluster, namespace.name, {"kubeconfig": str(namespace.cluster.kubeconfig_for("expired-token-s3cret"))}).deploy(**SMALL)
    assert "does not accept who asks" in wrong["msg"]
    assert "s3cret" not in json.dumps(wrong)
    if namespace.cluster.programs:
        server = namespace.cluster.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
        known = {"kubeconfig": None, "api_server": server, "token": "admin", "ca_cert": str(namespace.cluster.folder / "api/apiserver.crt")}
        assert Namespace(namespace.cluster, namespace.name, known).deploy(check=True, **SMALL)["changed"]
        unknown = Namespace(namespace.cluster, namespace.name, {**known, "ca_cert": None}).deploy(check=True, **SMALL)
        assert "certificate verify failed" in unknown["msg"]
    missing = Namespace(namespace.cluster, namespace.name, {"kubeconfig": "/nowhere/kubeconfig"}).deploy(**SMALL)
    assert "/nowhere/kubeconfig" in missing["msg"]
    away = {"kubeconfig": None, "api_server": "https://127.0.0.1:1", "token": "t0ken-s3cret", "validate_certs": False}
    silent = Namespace(namespace.cluster, namespace.name, away).deploy(**SMALL)
    assert "cannot be reached" in silent["msg"]
    assert "t0ken-s3cret" not in json.dumps(silent)


def test_an_api_server_that_goes_and_comes_back_in_the_middle(namespace: Namespace) -> None:
    if not namespace.cluster.programs:
        pytest.skip("NOT TESTED (kubernetes): the API server of a cluster that is given is not ours to end")
    namespace.deploy(**SMALL)
    slow = {"Deployment": {"spec": {"template": {"metadata": {"annotations": {"lepton.test/start": "12s"}}}}}}
    answers: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: answers.append(namespace.deploy(image="model:slow", merge=slow)))
    waiting.start()
    eventually(lambda: namespace.image() == "model:slow", 30)
    namespace.cluster.stop("kube-apiserver")
    namespace.cluster.start("kube-apiserver")
    namespace.cluster.wait_ready()
    waiting.join(200)
    assert not answers[0]["failed"], answers[0]["msg"]
    assert (namespace.image(), namespace.ready()) == ("model:slow", 2)


def test_two_who_deploy_at_once(namespace: Namespace) -> None:
    namespace.deploy(**SMALL)
    answers: dict[str, dict[str, Any]] = {}
    images = [f"model:slow-{number}" for number in range(3)]
    threads = [
        threading.Thread(target=lambda image=image: answers.update({image: namespace.deploy(image=image, rollback_on_failure=True)})) for image in images
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    winner = namespace.image()
    assert not answers[winner]["failed"]
    assert namespace.ready() == 2
    for image, answer in answers.items():
        if answer["failed"]:
            assert "somebody else" in answer["msg"], image


def test_a_thousand_other_pods_make_no_more_requests(namespace: Namespace) -> None:
    """Whoever lists a whole namespace to find three pods of his own gets slower with everybody else's."""
    namespace.kubectl("create", "deployment", "crowd", "--image=model:1", "--replicas=1000")
    few = namespace.deploy(**SMALL)
    eventually(lambda: namespace.ready("crowd") > 900, 240)
    crowded = namespace.deploy("other", **SMALL)
    assert not crowded["failed"], crowded["msg"]
    assert crowded["calls"] == few["calls"]
    assert {each["name"] for each in namespace.module("model_deployment_info")["deployments"]} == {"chat", "other"}


def test_what_is_deployed_is_told_with_its_revisions_pods_and_log(namespace: Namespace) -> None:
    namespace.deploy(**SMALL)
    namespace.deploy(image="model:crash")
    (told,) = namespace.module("model_deployment_info", name="chat", log_lines=1)["deployments"]
    assert [(each["revision"], each["image"]) for each in told["revisions"]] == [(2, "model:crash"), (1, "model:1")]
    assert {(pod["state"], pod["revision"]) for pod in told["pods"]} == {("running", 1), ("CrashLoopBackOff", 2)}
    assert "CrashLoopBackOff" in told["why"]
    crashed = next(pod["name"] for pod in told["pods"] if pod["revision"] == 2)
    logged = namespace.module("model_deployment_info", name="chat", log_lines=1)["log"]
    assert logged.startswith(crashed)
    assert "\x1b" not in logged  # what a pod writes moves nobody's cursor
    stranger = namespace.module("model_deployment_info", name="chat", log_lines=1, pod="somebody-elses")
    assert "there is no pod 'somebody-elses' of it" in stranger["msg"]
