# SPDX-License-Identifier: Apache-2.0
"""Policies that scale what is really there with nobody awake: HAProxy's metrics, Prometheus, a decision, a run, replicas, HAProxy again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.conftest import ROOT, eventually
from tests.end_to_end.test_node_services import Edge
from tests.end_to_end.test_services import Site, reload_balancer, site
from tests.load import load
from tests.prometheus import running_prometheus

from lepton_ai.sandbox.stand import Stand, free_port

pytestmark = [pytest.mark.prometheus, pytest.mark.docker, pytest.mark.haproxy, pytest.mark.libvirt, pytest.mark.slow]
__all__ = ["site"]


@pytest.fixture
def prometheus(workspace_stand: Stand, tmp_path: Path) -> Iterator[str]:
    """A Prometheus that reads HAProxy's own metrics every second."""
    stand = workspace_stand
    assert stand.balancer is not None
    metrics = free_port()
    exporter = stand.balancer.folder / "services" / "metrics.cfg"
    exporter.write_text(f"frontend metrics\n  bind 127.0.0.1:{metrics}\n  http-request use-service prometheus-exporter if {{ path /metrics }}\n")
    reload_balancer(stand.balancer.folder)
    job = {"job_name": "haproxy", "scrape_interval": "1s", "static_configs": [{"targets": [f"127.0.0.1:{metrics}"]}]}
    with running_prometheus(tmp_path, {"scrape_configs": [job]}) as running:
        yield running.url
    exporter.unlink(missing_ok=True)
    reload_balancer(stand.balancer.folder)


@contextmanager
def light_load(url: str) -> Iterator[list[int]]:
    """Ask a few times a second meanwhile; what is yielded holds the statuses."""
    statuses: list[int] = []
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=30) as client:
            while not ended.wait(0.2):
                statuses.append(client.get(url).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield statuses
    finally:
        ended.set()
        thread.join(40)


@contextmanager
def in_force(stand: Stand, prometheus: str, **policy: Any) -> Iterator[None]:
    """Have the bot scale a service of the stand by a policy meanwhile."""
    settings, service = stand.site / "lepton.yml", policy["service"]
    before = settings.read_text()
    wanted = yaml.safe_load(before)
    wanted["scaling"] = {"prometheus": prometheus}
    wanted["access"]["roles"]["scaler"] = {"operations": ["service.scale", "service.resize"], "targets": [f"service/{service}"]}
    wanted["access"]["grants"].append({"role": "scaler", "principals": [f"policy:{service}"]})
    (stand.site / "policies").mkdir(exist_ok=True)
    (stand.site / f"policies/{service}.yml").write_text(
        yaml.safe_dump({"mode": "live", "hold_seconds": 30, "flap_budget": {"reversals": 20}, **policy})
    )  # earlier tests changed it too
    stand.bot.stop()
    settings.write_text(yaml.safe_dump(wanted))
    stand.start_bot()
    try:
        yield
    finally:
        stand.bot.stop()
        shutil.rmtree(stand.site / "policies")
        settings.write_text(before)
        stand.start_bot()


def requests_of(service: str, capacity: float) -> list[dict[str, Any]]:
    """Return the signals of a policy: requests a second, of which one replica serves so many."""
    return [{"name": "requests", "promql": f'sum(rate(haproxy_backend_http_requests_total{{proxy="{service}"}}[10s]))', "capacity": capacity}]


def lepton(stand: Stand, *words: str) -> str:
    environment = {**os.environ, "LEPTON_SITE": str(stand.site)}
    return subprocess.run([ROOT / ".venv/bin/lepton", *words], capture_output=True, text=True, check=True, env=environment).stdout


def test_containers_grow_and_are_cut(site: Site, prometheus: str) -> None:
    with in_force(site.stand, prometheus, service="chat", min_replicas=1, max_replicas=4, signals=requests_of("chat", 40)):
        with load(site.url) as counted:
            eventually(lambda: len([status for _address, status in site.servers().values() if status == "UP"]) == 4, 180)
        with light_load(site.url) as statuses:
            eventually(lambda: list(site.servers()) and len(site.servers()) == 1 and len(site.containers(running=False)) == 1, 300)
    assert counted.requests > 1000
    assert counted.dropped == 0, counted
    assert set(statuses) == {200}
    told = lepton(site.stand, "scaling", "history", "chat")
    assert re.search(r"chat 1 → [2-4] \(\+\d\)\. Requests: ", told), told
    assert re.search(r"chat [2-4] → 1 \(-\d\)\. ", told), told
    assert re.search(r"grew, all served within \d+ s\.", told), told
    assert "policy:chat" in {run["principal"] for run in json.loads(lepton(site.stand, "runs", "--json")) if run["operation"] == "service.scale"}


def cpus(site: Site) -> list[float]:
    """Return what the engine itself lets each container have."""
    names = [line.split()[0] for line in site.containers()]
    return [int(site.docker("inspect", "--format", "{{.HostConfig.NanoCpus}}", name)) / 1e9 for name in names]


def test_what_nobody_calls_is_gone_until_somebody_calls_and_replicas_grow_before_there_are_more(site: Site, prometheus: str) -> None:
    chat = {"image": "model:1", "port": 8080, "listen_port": site.stand.service_port, "memory": "128MiB", "cpus": 1, "min_replicas": 0, "start_seconds": 60}
    site.do("update", lepton_services={"chat": chat})
    policy = {"service": "chat", "min_replicas": 0, "max_replicas": 2, "vertical": {"cpus": 1, "max_cpus": 2}}
    with in_force(site.stand, prometheus, **policy, signals=requests_of("chat", 40)):
        eventually(lambda: not site.containers(running=False) and not site.servers(), 240)
        assert "http-request lua.lepton_wait_for_server 90" in site.file()
        called = time.monotonic()
        with httpx.Client(timeout=60) as client:
            assert client.get(site.url).status_code == 200
        assert time.monotonic() - called < 45
        (one,) = site.containers()
        with load(site.url) as counted:
            eventually(lambda: cpus(site) == [2.0], 90)
            assert site.containers() == [one]  # the very same one, which was made bigger where it serves
            eventually(lambda: cpus(site) == [2.0, 2.0] and len([status for _address, status in site.servers().values() if status == "UP"]) == 2, 90)
    assert counted.requests > 1000
    assert counted.dropped == 0, counted
    told = lepton(site.stand, "scaling", "history", "chat")
    for expected in ("chat 1 → 0 (-1). Requests: nobody has called", "chat 0 → 1 (+1). Waiting: 1 requests wait", "chat 1 → 2 CPUs for each of 1."):
        assert expected in told, told


def test_nodes_grow_and_are_cut(workspace_stand: Stand, prometheus: str) -> None:
    edge = Edge(workspace_stand)
    code, said = edge.ask("create")
    assert code == 0, said
    try:
        with in_force(edge.stand, prometheus, service="edge", min_replicas=1, max_replicas=2, signals=requests_of("edge", 2)):
            with light_load(edge.url) as statuses:
                eventually(lambda: edge.table() == dict.fromkeys(("edge-1", "edge-2"), "UP"), 180)
                assert list(edge.nodes().values()) == ["running", "running"]
            eventually(lambda: len(edge.table()) == len(edge.nodes()) == 1, 200)
            assert edge.guest()["cpus"] == 1
    finally:
        edge.ask("delete")
    # While the second guest boots in software emulation the first one may not get the time to answer HAProxy's checks.
    assert statuses.count(200) > 0.9 * len(statuses), statuses
    told = lepton(edge.stand, "scaling", "history", "edge")
    assert re.search(r"grew, all served within \d+ s\.", told), told
