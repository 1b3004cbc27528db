# SPDX-License-Identifier: Apache-2.0
"""Everything with exactly the rights of the ClusterRole in the collection, and one right less: the real API server says which."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.conftest import ROOT, eventually
from tests.kubernetes.conftest import Namespace
from tests.kubernetes.test_model_deployment import ALL, SMALL

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]
ROLE = ROOT / "collections/ansible_collections/lepton/cloud/rbac/cluster-role.yml"
RULES: list[dict[str, Any]] = yaml.safe_load(ROLE.read_text())["rules"]
# What a right is for, where doing all of it shows nothing else.
ONE_LESS = [
    ("deployments", "get"), ("deployments", "create"), ("deployments", "patch"), ("deployments", "delete"), ("deployments", "watch"), ("deployments", "list"),
    ("replicasets", "list"), ("replicasets", "watch"), ("pods", "list"), ("pods", "watch"), ("pods/log", "get"),
    *((kind, verb) for kind in ("services", "serviceaccounts", "networkpolicies", "poddisruptionbudgets", "horizontalpodautoscalers")
      for verb in ("get", "create", "patch", "delete")),
    *(("persistentvolumeclaims", verb) for verb in ("get", "create", "patch")),
]  # fmt: skip


@pytest.fixture
def limited(namespace: Namespace) -> Namespace:
    """The namespace, asked by somebody who has a role of this name and no other rights. Nobody has granted it any yet."""
    namespace.kubectl("create", "serviceaccount", "lepton")
    namespace.kubectl("create", "rolebinding", "lepton", "--role=lepton", f"--serviceaccount={namespace.name}:lepton")
    token = namespace.kubectl("create", "token", "lepton").strip()
    path = namespace.cluster.kubeconfig_for(token, namespace=namespace.name)
    return Namespace(namespace.cluster, namespace.name, {"kubeconfig": str(path), "namespace": None})


def grant(namespace: Namespace, rules: list[dict[str, Any]]) -> None:
    """Give the role these rights, and wait until the API server knows."""
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "lepton", "namespace": namespace.name}, "rules": rules}
    namespace.kubectl("apply", "-f", "-", given=role)
    account = f"system:serviceaccount:{namespace.name}:lepton"

    def known() -> bool:
        told = namespace.kubectl("auth", "can-i", "--list", "--as", account, "--no-headers")
        found = {(line.split()[0].partition(".")[0], verb) for line in told.splitlines() for verb in line[line.rindex("[") + 1 : -1].split()}
        wanted = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
        return {(resource, verb) for resource, verb in found if resource in {name for name, _verb in every_right()}} == wanted

    eventually(known)


def every_right() -> set[tuple[str, str]]:
    return {(resource, verb) for rule in RULES for resource in rule["resources"] for verb in rule["verbs"]}


def without(resource: str, verb: str) -> list[dict[str, Any]]:
    """Return the rules with one right less."""
    rules = []
    for rule in copy.deepcopy(RULES):
        if resource in rule["resources"]:
            others = [name for name in rule["resources"] if name != resource]
            rules += [{**rule, "resources": others}] if others else []
            rule = {**rule, "resources": [resource], "verbs": [each for each in rule["verbs"] if each != verb]}
        rules += [rule] if rule["verbs"] else []
    return rules


def everything(namespace: Namespace) -> Iterator[dict[str, Any]]:
    """Do all that the modules can do, and yield each answer."""
    full = {**ALL, "environment_secrets": None, "environment_from": None, "secrets": None, "config_maps": None, "volumes": [
        {"name": "cache", "path": "/cache", "size": "1GiB"},
    ], "wait": False}  # fmt: skip
    full = {option: value for option, value in full.items() if value is not None}
    yield namespace.deploy(**full)
    yield namespace.deploy(complete=True, **SMALL)
    yield namespace.deploy(replicas=1)
    yield namespace.deploy(state="restarted")
    yield namespace.deploy(state="rolled_back")
    yield namespace.module("model_deployment_info")
    yield namespace.module("model_deployment_info", name="chat", log_lines=5)
    yield namespace.deploy(state="absent")


def test_the_rights_of_the_cluster_role_are_enough(limited: Namespace) -> None:
    grant(limited, RULES)
    for answer in everything(limited):
        assert not answer["failed"], answer["msg"]
        assert "forbidden" not in json.dumps(answer)
    assert limited.kinds() == set()


def test_the_rights_listed_are_all_there_are() -> None:
    assert set(ONE_LESS) == every_right()


def test_without_any_right_the_first_that_is_missing_is_named(limited: Namespace) -> None:
    answer = limited.deploy(**SMALL)
    assert f'User "system:serviceaccount:{limited.name}:lepton" cannot get resource "deployments" in API group "apps"' in answer["msg"]


def test_one_right_less_is_named(limited: Namespace) -> None:
    """Those of the pods' own kinds: what each is used for fails, and the API server's words say which right it was."""
    changing = {"name": "chat", "state": "restarted"}
    uses: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
        ("deployments", "get"): ("model_deployment", changing),
        ("deployments", "create"): ("model_deployment", {"name": "new", "image": "model:1"}),
        ("deployments", "patch"): ("model_deployment", changing),
        ("deployments", "watch"): ("model_deployment", changing),
        ("deployments", "delete"): ("model_deployment", {"name": "chat", "state": "absent"}),
        ("deployments", "list"): ("model_deployment_info", {}),
        ("replicasets", "list"): ("model_deployment", {"name": "chat", "state": "rolled_back", "revision": 1}),
        ("replicasets", "watch"): ("model_deployment", changing),
        ("pods", "list"): ("model_deployment_info", {"name": "chat"}),
        ("pods", "watch"): ("model_deployment", changing),
        ("pods/log", "get"): ("model_deployment_info", {"name": "chat", "log_lines": 5}),
    }
    assert set(uses) == {right for right in ONE_LESS if right[0] in ("deployments", "replicasets", "pods", "pods/log")}
    grant(limited, RULES)
    assert not limited.deploy(**SMALL)["failed"]
    for (resource, verb), (module, arguments) in uses.items():
        grant(limited, without(resource, verb))
        answer = limited.module(module, **arguments)
        said = f'cannot {verb} resource "{resource}"'
        assert said in str(answer.get("msg") or answer.get("log")), (resource, verb, answer)
    assert limited.find("deployment", "chat")
    assert limited.find("deployment", "new") is None


@pytest.mark.parametrize("verb", ["get", "create", "patch", "delete"])
def test_one_right_less_for_what_stands_beside_is_named(limited: Namespace, verb: str) -> None:
    """The kinds beside the Deployment are asked for in one way, so one run each shows that every right of all of them is needed."""
    options = {
        "services": {"port": 8080}, "serviceaccounts": {"own_service_account": True}, "networkpolicies": {"allow_from": []},
        "poddisruptionbudgets": {"min_available": "1"}, "horizontalpodautoscalers": {"autoscale": {"min_replicas": 1, "max_replicas": 2}},
        "persistentvolumeclaims": {"volumes": [{"name": "v", "path": "/v", "size": "1GiB"}]},
    }  # fmt: skip
    for resource, given in options.items():
        if (resource, verb) not in ONE_LESS:
            continue
        name = f"of-{resource}"[:40]
        if verb == "delete":
            grant(limited, RULES)
            assert not limited.deploy(name, image="model:1", wait=False, **given)["failed"]
        grant(limited, without(resource, verb))
        answer = limited.deploy(name, state="absent") if verb == "delete" else limited.deploy(name, image="model:1", wait=False, **given)
        assert answer["failed"], resource
        assert f'cannot {verb} resource "{resource}"' in answer["msg"]
        if verb != "delete":
            assert limited.cluster.find("--namespace", limited.name, "deployment", name) is None  # nothing is half done
