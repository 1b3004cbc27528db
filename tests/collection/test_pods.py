# SPDX-License-Identifier: Apache-2.0
"""Services whose replicas are pods: plans, and which servers their EndpointSlices ask for. Pure."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from ansible_collections.lepton.cloud.plugins.module_utils._balancer import Server
from ansible_collections.lepton.cloud.plugins.module_utils._endpoints import endpoints, moves
from ansible_collections.lepton.cloud.plugins.module_utils._service import ServiceError, deployment_options, read_service
from ansible_collections.lepton.cloud.plugins.module_utils._steps import StepError, make_plan
from tests.conftest import ROOT

DECLARED: dict[str, Any] = {"backend": "deployment", "cluster": "gpu", "image": "model:1", "port": 8080, "listen_port": 8000, "max_replicas": 5, "gpus": "1"}
LIVE = {"name": "chat", "image": "model:1", "replicas": 2, "state": "available"}
POD = "chat-6d5f8b7c9d-abcd"


def table(replicas: int = 2, **declared: Any) -> dict[str, Any]:
    servers = [{"name": f"{POD}{end}", "state": "ready", "weight": 100, "status": "UP", "response_ms": ms} for end, ms in (("1", 10), ("2", 40))]
    return {"services": [{"name": "chat", "replicas": replicas, "version": 3, "declaration": {**DECLARED, **declared}, "servers": servers}]}


def steps(operation: str, live: dict[str, Any] | None, lb: dict[str, Any], **arguments: Any) -> list[dict[str, Any]]:
    declared = {**DECLARED, **arguments.pop("declared", {})}
    cluster = {"gpu": {"deployments": [] if live is None else [live]}, "other": {}}
    answers = {"clusters": arguments.pop("clusters", cluster), "load_balancers": {"lb": lb}}
    given = {"service": "chat", "image": None, "replicas": None, **arguments}
    return list(make_plan(f"service.{operation}", given, answers, {"chat": declared})["steps"])


def titles(planned: list[dict[str, Any]], *, undo: bool = False) -> list[str]:
    return [f"{step['host']}: {step['title']}" for step in planned if bool(step.get("undo")) is undo]


def test_create_deploys_and_waits_for_the_load_balancers() -> None:
    planned = steps("create", None, {"services": []}, replicas=2)
    assert titles(planned) == ["lb: keep that chat is wanted so", "gpu: deploy model:1", "lb: see that 2 pods get requests"]
    assert titles(planned, undo=True) == [
        "gpu: end the pods, and delete the deployment", "lb: see that 0 pods get requests", "lb: keep that chat is wanted as before",
    ]  # fmt: skip
    deploy = planned[1]
    assert deploy["module"] == "lepton.cloud.model_deployment"
    assert deploy["after"] == {"image": "model:1", "replicas": 2}
    assert deploy["args"]["gpus"] == 1
    assert deploy["args"]["rollback_on_failure"] is True


def test_scale_and_reconcile_say_the_number_to_the_deployment_alone() -> None:
    planned = steps("scale", LIVE, table(), replicas="+2")
    assert titles(planned) == ["lb: keep that chat is wanted so", "gpu: have 4 pods", "lb: see that 4 pods get requests"]
    assert (planned[1]["before"], planned[1]["after"]) == ({"replicas": 2}, {"replicas": 4})
    assert steps("reconcile", LIVE, table()) == []
    assert titles(steps("reconcile", {**LIVE, "replicas": 5}, table()))[0] == "gpu: have 2 pods"
    assert titles(steps("reconcile", None, table()))[0] == "gpu: deploy model:1"
    assert titles(steps("reconcile", {**LIVE, "image": "other:1"}, table()))[0] == "gpu: deploy model:1"


def test_update_rolls_out_and_brings_back_what_was_there() -> None:
    planned = steps("update", LIVE, table(), image="model:2")
    assert titles(planned) == ["gpu: deploy model:2", "lb: see that 2 pods get requests", "lb: keep that chat is wanted so"]
    assert titles(planned, undo=True) == ["gpu: deploy model:1 again", "lb: keep that chat is wanted as before"]
    assert planned[0]["before"] == {"image": "model:1"}
    again = steps("update", LIVE, table(), again=True)
    assert again[0]["args"]["state"] == "restarted"
    with pytest.raises(StepError, match="runs on gpu: on other it is another service"):
        steps("update", LIVE, table(), declared={"cluster": "other"})


def test_adopting_waits_for_pods_beside_the_servers_that_are_there() -> None:
    proxies = [
        {"kind": "listen", "name": "web", "ports": [8000], "default_backend": "", "other_backends": [], "lost": [],
         "servers": [{"name": "old", "address": "10.0.0.5", "port": 80}]}
    ]  # fmt: skip
    planned = titles(steps("adopt", None, {"services": [], "proxies": proxies}, replicas=2))
    assert planned == [
        "lb: take the place of web", "gpu: deploy model:1", "lb: see that 2 pods get requests", "lb: drain old and take it out",
    ]  # fmt: skip


def test_balance_weighs_pods_and_delete_ends_them_before_their_address() -> None:
    (weighed,) = steps("balance", LIVE, table())
    assert (weighed["args"]["name"], weighed["after"]) == (f"{POD}2", {"weight": 20})
    assert titles(steps("delete", LIVE, table())) == [
        "gpu: end the pods, and delete the deployment", "lb: see that 0 pods get requests", "lb: remove the address of chat",
    ]  # fmt: skip


def test_a_cluster_that_does_not_answer_is_named() -> None:
    with pytest.raises(StepError, match="gpu did not answer: no route"):
        steps("create", None, {"services": []}, clusters={"gpu": {"msg": "no route"}})
    with pytest.raises(StepError, match="group clusters has no host 'gpu'"):
        steps("create", None, {"services": []}, clusters={})


def test_a_declaration_is_checked_and_becomes_options() -> None:
    service = read_service("chat", {**DECLARED, "environment": {"A": 1}, "memory": "1GiB", "deployment": {"node_selector": {"gpu": "a100"}}})
    assert read_service("chat", service.to_fields()) == service
    assert deployment_options(service)["environment"] == {"A": "1"}
    with pytest.raises(ServiceError, match="health_path"):
        read_service("chat", {**DECLARED, "health_path": "no path"})


def endpoint(end: str, *, ready: bool | None = True, serving: bool | None = None, address: str = "10.0.0.1", kind: str = "Pod") -> dict[str, Any]:
    return {"addresses": [address], "conditions": {"ready": ready, "serving": serving}, "targetRef": {"kind": kind, "name": POD + end}}


def piece(*items: dict[str, Any], port: str = "http", kind: str = "IPv4") -> dict[str, Any]:
    return {"addressType": kind, "ports": [{"name": port, "port": 8080}], "endpoints": list(items)}


def moved(slices: list[dict[str, Any]], *running: Server) -> list[tuple[str, str]]:
    return [(move.name.removeprefix(POD), move.state) for move in moves("chat", endpoints(slices), {server.name: server for server in running})]


def server(end: str, state: str = "ready", address: str = "10.0.0.1") -> Server:
    return Server(POD + end, address, 8080, 100, state)


def test_pods_come_before_others_go() -> None:
    slices = [piece(endpoint("1"), endpoint("2", ready=False, serving=True))]
    assert moved(slices, server("2"), server("3")) == [("1", "ready"), ("2", "drain"), ("3", "absent")]
    assert moved(slices, server("1"), server("2", "drain")) == []
    assert moved([piece(endpoint("1"))], server("1", "drain")) == [("1", "ready")]
    assert moved([piece(endpoint("1", address="10.0.0.9"))], server("1")) == [("1", "ready")]


def test_without_any_that_is_ready_those_that_end_still_serve() -> None:
    slices = [piece(endpoint("1", ready=False, serving=True), endpoint("2", ready=False, serving=False))]
    assert moved(slices, server("1"), server("2")) == [("2", "drain")]


def test_what_is_no_pod_of_it_is_left_alone() -> None:
    other = Server("old-1", "10.0.0.7", 80)
    assert moves("chat", {}, {"old-1": other}) == []
    assert endpoints([piece(endpoint("1"), port="metrics"), piece(endpoint("2"), kind="FQDN"), piece(endpoint("3", kind="Node")), {}]) == {}


def test_a_pod_in_two_slices_counts_once_and_unknown_is_ready() -> None:
    found = endpoints([piece(endpoint("1", ready=False)), piece(endpoint("1", ready=None))])
    assert [(each.ready, each.serving) for each in found.values()] == [(True, True)]
    assert moves("chat", endpoints([piece(endpoint("1", address="fd00::1"), kind="IPv6")]), {})[0].address == "[fd00::1]"


def test_the_program_at_a_balancer_comes_with_all_that_it_imports() -> None:
    """Its role copies modules of the collection by name."""
    folder = ROOT / "collections/ansible_collections/lepton/cloud"
    found, left = set(), {"_follow.py"}
    while left:
        module = left.pop()
        found.add(module)
        left |= {f"{name}.py" for name in re.findall(r"^from \.(_\w+) import", (folder / "plugins/module_utils" / module).read_text(), re.MULTILINE)} - found
    copied = yaml.safe_load((folder / "roles/load_balancer/vars/main.yml").read_text())["load_balancer_endpoints_modules"]
    assert sorted(found) == copied
