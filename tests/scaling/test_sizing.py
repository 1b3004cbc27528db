# SPDX-License-Identifier: Apache-2.0
"""A node's size by what it has used, and a service's by what its policy wanted, through the Python API."""

from __future__ import annotations

import time
from typing import Any

import pytest
import yaml
from ansible_collections.lepton.cloud.plugins.module_utils._sizing import vcpus_for
from tests.scaling.test_decision import decided

from lepton_ai import extension as extension_module
from lepton_ai import resources as resources_module
from lepton_ai.errors import LeptonError
from lepton_ai.extension import Extension
from lepton_ai.resources import CPUResource, MemoryResource, VirtualNode
from lepton_ai.runs.store import Store
from lepton_ai.settings import Settings


@pytest.mark.parametrize(
    ("used", "most", "vcpus", "said"),
    [
        ([1.3] * 100, 8, 2, "used at most 1.30 vCPUs, which are 70% of 2"),
        ([1.4] * 100, 8, 2, "70% of 2"),
        ([1.41] * 100, 8, 3, "70% of 3"),
        ([0.0] * 100, 8, 1, "70% of 1"),
        ([0.1] * 96 + [9.0] * 4, 8, 1, "in 95 of 100 moments"),
        ([9.0] * 100, 8, 8, "and it can have 8"),
        ([None, float("nan"), -1.0] * 100, 8, None, "only 0 samples"),
        ([1.0] * 39, 8, None, "only 39 samples are known of what it uses, and 40 are needed"),
    ],
)
def test_a_node_gets_what_it_usually_uses_and_some_more(used: list[float | None], most: int, vcpus: int | None, said: str) -> None:
    found, why = vcpus_for(used, most)
    assert found == vcpus
    assert said in why


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    """What is asked for, in place of doing it; there is a node web-1, and a service chat with two replicas."""
    asked: list[tuple[str, str, dict[str, Any]]] = []
    answers = {
        "node show": {"nodes": [{"name": "web-1", "max_vcpus": 4}]},
        "service list": {"services": [{"name": "chat", "servers": [{"name": "chat-1"}]}]},
    }

    def perform(_settings: Settings, noun: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if verb not in ("show", "list"):
            asked.append((noun, verb, arguments))
        return {"result": {"answers": {"h": answers.get(f"{noun} {verb}", {})}}}

    for module in (resources_module, extension_module):
        monkeypatch.setattr(module, "perform", perform)
    return asked


def test_a_node_without_a_size_is_sized_by_what_it_used(site: Settings, done: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (site.site / "lepton.yml").write_text(yaml.safe_dump({"scaling": {"prometheus": "http://prometheus"}}))
    node = VirtualNode(CPUResource(1), MemoryResource(1), name="web-1", site=site.site)
    asked = []

    def past(_url: str, promql: str, _begin: float, _end: float) -> list[float | None]:
        asked.append(promql)
        return [1.9] * 240

    monkeypatch.setattr(resources_module, "from_prometheus", past)
    node.adjust_resources()
    assert done[-1] == ("node", "resize", {"node": "web-1", "vcpus": 3, "memory": "1024MiB"})
    assert asked == ['sum(rate(libvirt_domain_info_cpu_time_seconds_total{node="web-1"}[2m]))']

    def gone(*_: Any) -> list[float | None]:
        raise LeptonError("Prometheus at http://prometheus does not answer")

    monkeypatch.setattr(resources_module, "from_prometheus", gone)
    node.adjust_resources()
    assert done[-1][2]["vcpus"] == 3  # as it was
    node.adjust_resources(cpu=CPUResource(2))
    assert done[-1][2]["vcpus"] == 2


def test_without_a_prometheus_a_node_keeps_what_was_declared(site: Settings, done: list[Any]) -> None:
    VirtualNode(CPUResource(2), MemoryResource(1), name="web-1", site=site.site).adjust_resources()
    assert done[-1][2]["vcpus"] == 2


def test_a_service_grows_to_what_its_policy_wants_or_by_one(site: Settings, store: Store, done: list[Any]) -> None:
    extension = Extension(site=site.site)
    extension.scale("chat-1")
    assert done[-1] == ("service", "scale", {"service": "chat", "replicas": "+1"})
    record = {**decided(load=35, peak=60).record(), "when": time.time(), "mode": "shadow", "acted": False}
    store.keep_decision(record, 3600)
    extension.scale("chat")
    assert done[-1][2]["replicas"] == "7"
    store.keep_decision({**record, "when": time.time(), "final": 2}, 3600)
    extension.scale("chat")
    assert done[-1][2]["replicas"] == "+1"
    store.keep_decision({**record, "when": time.time() - 3000}, 2)
    extension.scale("chat")
    assert done[-1][2]["replicas"] == "+1"
