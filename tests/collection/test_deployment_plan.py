# SPDX-License-Identifier: Apache-2.0
"""From options to manifests, and what differs, who owns it and what an earlier revision was."""

from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._deployment import (
    applied,
    changes,
    conflict_text,
    conflicts,
    continued,
    extract,
    restoring,
    rollback_target,
    rolled_back,
)
from ansible_collections.lepton.cloud.plugins.module_utils._manifest import (
    MANAGER,
    OPTIONS,
    DeploymentError,
    given_options,
    manifests,
    merged,
    stored_options,
)

LIVE: dict[str, Any] = {
    "apiVersion": "apps/v1", "kind": "Deployment",
    "metadata": {
        "name": "chat", "uid": "d1", "resourceVersion": "9", "labels": {"app.kubernetes.io/managed-by": "lepton", "theirs": "1"},
        "annotations": {"deployment.kubernetes.io/revision": "3"},
        "managedFields": [
            {"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:metadata": {"f:labels": {"f:theirs": {}}}}},
            {"manager": "lepton", "operation": "Update", "subresource": "status", "fieldsV1": {"f:status": {}}},
            {
                "manager": "lepton", "operation": "Apply",
                "fieldsV1": {
                    "f:metadata": {"f:labels": {"f:app.kubernetes.io/managed-by": {}}},
                    "f:spec": {
                        "f:replicas": {},
                        "f:template": {"f:spec": {"f:containers": {'k:{"name":"model"}': {
                            ".": {}, "f:name": {}, "f:image": {}, "f:args": {},
                            "f:ports": {'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}},
                        }}}},
                    },
                },
            },
        ],
    },
    "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "chat"}}, "progressDeadlineSeconds": 600,
        "template": {
            "metadata": {"labels": {"app": "chat"}},
            "spec": {"containers": [
                {"name": "model", "image": "m:1", "args": ["-x"], "imagePullPolicy": "Always", "ports": [{"containerPort": 80, "protocol": "TCP"}]},
                {"name": "mesh", "image": "mesh:1"},
            ]},
        },
    },
    "status": {"replicas": 2},
}  # fmt: skip


def test_what_we_applied_is_told_from_what_others_and_defaults_added() -> None:
    container = {"name": "model", "image": "m:1", "args": ["-x"], "ports": [{"containerPort": 80, "protocol": "TCP"}]}
    assert extract(LIVE) == {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "chat", "labels": {"app.kubernetes.io/managed-by": "lepton"}},
        "spec": {"replicas": 2, "template": {"spec": {"containers": [container]}}},
    }  # fmt: skip
    assert applied(LIVE) == extract(LIVE)


def test_what_was_taken_over_comes_back_and_does_not_go_with_us() -> None:
    """A field that only we hold would be removed by our leaving it: an image, or four of five pods."""
    theirs = {**LIVE, "metadata": {**LIVE["metadata"], "managedFields": [{"manager": MANAGER, "operation": "Apply", "fieldsV1": {"f:spec": {"f:paused": {}}}}]}}
    back = restoring(theirs, LIVE)
    assert back["spec"]["replicas"] == 2
    assert back["spec"]["template"]["spec"]["containers"][0]["image"] == "m:1"
    assert restoring(LIVE, LIVE) == extract(LIVE)


def test_what_was_never_applied_by_us_comes_back_whole() -> None:
    foreign = {**LIVE, "metadata": {"name": "chat", "annotations": {"deployment.kubernetes.io/revision": "3", "note": "x"}, "uid": "d1"}}
    assert extract(foreign) == {}
    assert applied(foreign) == {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "chat", "annotations": {"note": "x"}}, "spec": LIVE["spec"],
    }  # fmt: skip


def test_a_difference_is_by_fields_and_without_what_the_server_keeps() -> None:
    after = {**LIVE, "status": {}, "metadata": {**LIVE["metadata"], "resourceVersion": "10", "annotations": {"deployment.kubernetes.io/revision": "4"}}}
    assert changes(LIVE, after) == []
    wanted = merged(after, {"spec": {"replicas": 3, "template": {"spec": {"containers": [{"name": "model", "image": "m:2"}], "hostname": "x"}}}})
    assert [change[:3] for change in changes(LIVE, wanted)] == [("replicas", 2, 3), ("image", "m:1", "m:2"), ("pod.hostname", None, "x")]
    beside = merged(after, {"spec": {"template": {"spec": {"containers": [{"name": "mesh", "image": "mesh:2"}]}}}})
    assert [change[:3] for change in changes(LIVE, beside)] == [("pod.containers[mesh].image", "mesh:1", "mesh:2")]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "chat"}, "spec": {"type": "ClusterIP"}}
    assert [change[:3] for change in changes(None, service)] == [("Service", None, "there")]
    assert [change[:3] for change in changes(service, merged(service, {"spec": {"type": "NodePort"}}))] == [("Service.type", "ClusterIP", "NodePort")]


def test_a_conflict_names_field_and_manager() -> None:
    cause = {"reason": "FieldManagerConflict", "message": 'conflict with "kubectl-edit" using apps/v1', "field": ".spec.replicas"}
    found = conflicts({"details": {"causes": [cause, {"reason": "FieldValueInvalid", "field": "x"}]}})
    assert "spec.replicas belongs to kubectl-edit" in conflict_text("the Deployment chat", found)
    assert conflicts({}) == []


def replica_set(revision: int, image: str, *, owner: str = "d1", options: str = "{}") -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": "chat", "pod-template-hash": "x"}}, "spec": {"containers": [{"name": "model", "image": image}]}}
    notes = {"deployment.kubernetes.io/revision": str(revision), OPTIONS: options}
    return {"metadata": {"annotations": notes, "ownerReferences": [{"uid": owner, "controller": True}]}, "spec": {"template": template}}


def test_a_rollback_goes_only_to_what_the_deployment_owns() -> None:
    sets = [replica_set(1, "m:0"), replica_set(2, "m:1"), replica_set(3, "m:2"), replica_set(9, "stranger", owner="d9")]
    assert rollback_target(LIVE, sets, None) is sets[1]
    assert rollback_target(LIVE, sets, 1) is sets[0]
    for revision, words in ((9, "no revision 9: there are 1, 2, and 3 is what it is at"), (4, "no revision 4")):
        with pytest.raises(DeploymentError, match=words):
            rollback_target(LIVE, sets, revision)
    with pytest.raises(DeploymentError, match="no earlier revision"):
        rollback_target(LIVE, sets[2:], None)


def test_a_rollback_brings_its_description_back_and_leaves_what_is_around_the_pods() -> None:
    config = {"metadata": {"annotations": {OPTIONS: '{"image":"m:2","min_available":"1","max_surge":"2"}'}}, "spec": {"replicas": 4}}
    back = rolled_back(config, replica_set(1, "m:0", options='{"image":"m:0","memory":"1GiB","max_surge":"9"}'))
    assert back["spec"]["replicas"] == 4
    assert back["spec"]["template"]["metadata"]["labels"] == {"app": "chat"}
    assert stored_options(back) == {"image": "m:0", "memory": "1GiB", "min_available": "1", "max_surge": "2"}


def made(**options: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return manifests("chat", {"image": "m:1", **options}, 2)


def test_manifests_come_in_the_order_in_which_they_are_needed() -> None:
    every = made(port=80, own_service_account=True, volumes=[{"name": "v", "path": "/v", "size": "1GiB"}], autoscale={"min_replicas": 1, "max_replicas": 2},
                 min_available="1", allow_from=[])  # fmt: skip
    kinds = [kind for kind, _name in every]
    assert kinds == ["ServiceAccount", "PersistentVolumeClaim", "NetworkPolicy", "PodDisruptionBudget", "Service", "Deployment", "HorizontalPodAutoscaler"]
    assert all(each["metadata"]["labels"]["app.kubernetes.io/managed-by"] == MANAGER for each in every.values())
    assert every["NetworkPolicy", "chat"]["spec"]["ingress"] == []  # nobody; an empty `from` would be everybody


def test_a_model_that_loads_for_long_is_given_its_time() -> None:
    spec = made(port=80, health_path="/ready", start_seconds=1800)["Deployment", "chat"]["spec"]
    startup = spec["template"]["spec"]["containers"][0]["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] == 1800
    assert spec["progressDeadlineSeconds"] > 1800


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": "-x"}, "image: '-x' is not the name of an image"),
        ({"image": None}, "image is needed"),
        ({"memory": "much"}, "memory: "),
        ({"health_path": "/ready"}, "port is needed too"),
        ({"environment": {"a b": 1}}, "environment: 'a b' is not the name of a variable"),
        ({"environment_secrets": {"A": "secret"}}, "expected SECRET/KEY"),
        ({"environment_from": ["file/x"]}, "environment_from: expected secret/NAME"),
        ({"max_surge": "some"}, "max_surge: "),
        ({"min_available": "half"}, "min_available: "),
        ({"autoscale": {"min_replicas": 3, "max_replicas": 2}}, "autoscale: expected 1 <= min_replicas <= max_replicas"),
        ({"merge": {"Service": {}}}, "merge: no Service is made here"),
        ({"merge": {"Pod": {}}}, "merge: expected parts of manifests by kind"),
        ({"merge": {"Deployment": {"metadata": {"name": "other"}}}}, "given by this module"),
        ({"merge": {"Deployment": {"metadata": None}}}, "given by this module"),
        ({"merge": {"Deployment": {"metadata": {"annotations": "x"}}}}, "given by this module"),
        ({"merge": {"Deployment": {"spec": {"template": {"spec": {"containers": None}}}}}}, "given by this module"),
        ({"merge": {"Deployment": {"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}}}}, "given by this module"),
    ],
)
def test_options_that_make_no_deployment_are_named(options: dict[str, Any], words: str) -> None:
    given = given_options({**dict.fromkeys(all_options()), "image": "m:1", **options})
    with pytest.raises(DeploymentError) as told:
        manifests("chat", given, 1)
    assert words in str(told.value)


def all_options() -> tuple[str, ...]:
    from ansible_collections.lepton.cloud.plugins.module_utils._manifest import DESCRIBING

    return DESCRIBING


@pytest.mark.parametrize("name", ["", "Chat", "1chat", "chat-", "a" * 64, "chat.x", "../x", "chat\n"])
def test_names_that_kubernetes_would_not_take_are_refused_before_it_is_asked(name: str) -> None:
    with pytest.raises(DeploymentError, match="is not a deployment name"):
        manifests(name, {"image": "m:1"}, 1)


def test_parts_are_merged_by_name_and_null_removes() -> None:
    base = {"a": {"b": 1, "c": 2}, "list": [{"name": "x", "v": 1}, {"name": "y"}], "plain": [1, 2]}
    mounts = [{"name": "v", "mountPath": "/a"}]
    assert merged(mounts, [{"name": "v", "mountPath": "/b", "subPath": "x"}]) == [*mounts, {"name": "v", "mountPath": "/b", "subPath": "x"}]
    part = {"a": {"b": None, "d": 3}, "list": [{"name": "x", "w": 2}, {"name": "z"}], "plain": [3]}
    assert merged(base, part) == {"a": {"c": 2, "d": 3}, "list": [{"name": "x", "v": 1, "w": 2}, {"name": "y"}, {"name": "z"}], "plain": [3]}


def test_a_deployment_that_is_there_keeps_its_selector_its_container_and_its_restart() -> None:
    every = manifests("chat", {"image": "m:1", "port": 80, "allow_from": [], "min_available": "1"}, 2, {"app": "old"})
    wanted = every["Deployment", "chat"]
    assert every["Service", "chat"]["spec"]["selector"] == every["PodDisruptionBudget", "chat"]["spec"]["selector"]["matchLabels"] == {"app": "old"}
    assert every["NetworkPolicy", "chat"]["spec"]["podSelector"]["matchLabels"] == {"app": "old"}
    foreign: dict[str, Any] = {
        "metadata": {"name": "chat"},
        "spec": {
            "selector": {"matchLabels": {"app": "old"}},
            "template": {"metadata": {"annotations": {"cloud.lepton/restartedAt": "then"}}, "spec": {"containers": [{"name": "nginx"}]}},
        },
    }
    spec = continued(wanted, foreign)["spec"]
    assert spec["selector"] == {"matchLabels": {"app": "old"}}
    assert spec["template"]["metadata"]["labels"]["app"] == "old"
    assert spec["template"]["metadata"]["annotations"] == {"cloud.lepton/restartedAt": "then"}
    assert [each["name"] for each in spec["template"]["spec"]["containers"]] == ["nginx"]
    foreign["spec"]["template"]["spec"]["containers"] = [{"name": "a"}, {"name": "b"}]
    with pytest.raises(DeploymentError, match="containers a, b, and none of them is called model"):
        continued(wanted, foreign)
